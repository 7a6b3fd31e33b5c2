"""Choice of backend, moving arrays, and the words of refusals. CuPy's failures are staged with a
fake.
"""

import contextlib
import sys
import types

import numpy as np
import pytest

import xlstm
from xlstm import BackendError
from xlstm.arrays import optional_imports
from xlstm.arrays.backend import backend_like
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import namespace
from xlstm.arrays.random import generator


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("XLSTM_BACKEND", raising=False)
    optional_imports.cupy_failure.cache_clear()
    yield
    optional_imports.cupy_failure.cache_clear()


class FakeArray:
    def __init__(self, total, product_fails=None):
        self.total = total
        self.product_fails = product_fails

    def sum(self):
        return self.total

    def __matmul__(self, other):
        if self.product_fails:
            raise RuntimeError(self.product_fails)
        return FakeArray(65536.0)


def fake_cupy(devices=1, driver=None, kernel=None, product=None):
    """Just enough of CuPy for the probe, failing at the stage that is given a message."""

    def count():
        if driver:
            raise RuntimeError(driver)
        return devices

    def compiled(*args):
        if kernel:
            raise RuntimeError(kernel)
        return lambda ones: FakeArray(2048.0)

    return types.SimpleNamespace(
        cuda=types.SimpleNamespace(
            runtime=types.SimpleNamespace(getDeviceCount=count),
            Device=lambda n: contextlib.nullcontext(),
        ),
        ones=lambda *a, **k: FakeArray(1024.0, product),
        ElementwiseKernel=compiled,
    )


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (
            {"driver": "cudaErrorInsufficientDriver"},
            "no NVIDIA driver or device answers .*cudaErrorInsufficientDriver",
        ),
        ({"devices": 0}, "device 0 does not exist, 0 found"),
        (
            {"kernel": "libnvrtc.so.12 not found"},
            r"RuntimeError: libnvrtc.so.12 not found.*pip install",
        ),
        (
            {"product": "libcublas.so.12 not found"},
            r"RuntimeError: libcublas.so.12 not found.*pip install",
        ),
    ],
)
def test_cupy_that_does_not_work_says_what_failed(monkeypatch, stage, words):
    monkeypatch.setattr(optional_imports, "cupy", lambda: fake_cupy(**stage))
    with pytest.raises(BackendError, match=f"cupy: .*{words}"):
        xlstm.backend("cupy")
    auto = xlstm.backend("auto")
    assert auto.name == "numpy"
    assert auto.reason.startswith("no usable GPU: ")


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "CUDA on the CPU"])
def test_cupy_is_called_as_cuda_calls_its_device(monkeypatch, name):
    """An emulation on a CPU is thus never called a GPU."""
    device = contextlib.nullcontext()
    device.id = 0
    fake = fake_cupy()
    fake.cuda.Device = lambda n: device
    fake.cuda.runtime.getDevice = lambda: 0
    fake.cuda.runtime.getDeviceProperties = lambda n: {"name": name.encode()}
    monkeypatch.setattr(optional_imports, "cupy", lambda: fake)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", np)
    auto = xlstm.backend("auto")
    assert str(auto) == f"cupy on device 0 ({name})"
    assert auto.reason == "a kernel and a matrix product ran on the device"


def test_missing_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"CuPy .*pip install 'cupy-cuda12x\[ctk\]'"):
        xlstm.backend("cupy")


def test_environment_decides_auto(monkeypatch):
    monkeypatch.setenv("XLSTM_BACKEND", "numpy")
    assert xlstm.backend().reason == "XLSTM_BACKEND=numpy"
    monkeypatch.setenv("XLSTM_BACKEND", "torch")
    assert xlstm.backend("numpy").name == "numpy"
    monkeypatch.setenv("XLSTM_BACKEND", "abacus")
    with pytest.raises(ValueError, match="XLSTM_BACKEND: 'abacus' is not a backend"):
        xlstm.backend()
    monkeypatch.setenv("XLSTM_BACKEND", "cupy")
    monkeypatch.setattr(optional_imports, "cupy", lambda: fake_cupy(devices=0))
    with pytest.raises(BackendError, match="cupy"):
        xlstm.backend()


def test_arrays_move_there_and_back(be):
    x = be.asarray([[1.0, 2.0], [3.0, 4.0]])
    assert backend_like(x).xp is be.xp
    assert str(backend_like(x).dtype) == "float64"
    np.testing.assert_array_equal(to_numpy(x), [[1.0, 2.0], [3.0, 4.0]])
    assert to_numpy(be.asarray(np.arange(3))).dtype == np.int64
    assert to_numpy(be.asarray(np.array([True]))).dtype == np.bool_
    assert to_numpy(be.asarray([1.5], "float32")).dtype == np.float32
    be.synchronize()


def test_generator_is_seeded_and_checked():
    assert generator(3).random() == generator(np.int64(3)).random()
    assert generator(0).random() == 0.6369616873214543  # PCG64(0), whatever NumPy's default becomes
    for seed in (-1, 1.5, True, "x"):
        with pytest.raises(ValueError, match="seed"):
            generator(seed)


def test_namespace_of_arrays(be, rng):
    a, b = (be.asarray(rng.standard_normal(3)) for _ in range(2))
    assert namespace("f", {"a": a, "b": b}) is be.xp
    with pytest.raises(TypeError, match="f: b is a list"):
        namespace("f", {"a": a, "b": [1.0]})
    if be.name != "numpy":
        with pytest.raises(TypeError, match=r"f: b is a numpy array, expected a .* array"):
            namespace("f", {"a": a, "b": np.zeros(3)})
