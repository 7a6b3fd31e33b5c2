"""Defects of the GPU code that only the stand-in for CuPy shows, and the stand-in's own rules beside those of CuPy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import xlstm
from tests import standin
from xlstm.arrays.convert import to_numpy
from xlstm.engines import cuda
from xlstm.engines.cuda import launch, source
from xlstm.engines.cuda.launch import CudaError, Grid

if not standin.asked_for():
    pytest.skip(f"the stand-in for CuPy is not in place ({standin.VARIABLE}=1 puts it there)", allow_module_level=True)

import cupy
from cupy import cards

# Sizes with which bench.barriers runs in seconds.
BARRIERS = {"FEW": 2, "MANY": 4, "THREADS": 32, "STAY": 1, "MANY_CLUSTERS": 2, "ROUNDS": 1, "COPIED": 64}


@pytest.fixture
def machine(monkeypatch):
    """Other cards than usual, each by its changes, and nothing known of any."""

    def begin(*changes):
        monkeypatch.setattr(cards, "CARDS", [cards.Card(**change) for change in changes])
        launch._runtime.cache_clear()

    yield begin
    monkeypatch.undo()
    launch._runtime.cache_clear()


def test_barriers_are_measured_and_kept(monkeypatch, tmp_path):
    """The main function, with few and small groups: the record is there after every measurement."""
    from bench import barriers

    for name, value in BARRIERS.items():
        monkeypatch.setattr(barriers, name, value)
    path, records = tmp_path / "barriers.json", []
    latency = barriers.latency

    def seen(*arguments):
        records.append(json.loads(path.read_text()) if path.exists() else None)
        return latency(*arguments)

    monkeypatch.setattr(barriers, "latency", seen)
    monkeypatch.setattr(sys, "argv", ["barriers", "--json", str(path)])
    barriers.source.cache_clear()
    assert barriers.main() == 0
    barriers.source.cache_clear()
    found = json.loads(path.read_text())
    assert list(found["grid"]) == ["2", "8"]
    assert list(found["cluster"]) == ["1", "2", "4", "8", "16"]
    assert found["clusters at once"]["16"] == 1
    assert not found["failed"]
    assert records[0]["copied"] > 0
    assert records[0]["grid"] == {}
    assert list(records[1]["grid"]) == ["2"]
    assert list(records[-1]["cluster"]) == ["1", "2", "4", "8"]


@pytest.mark.parametrize("path", ["grid", "cluster"])
@pytest.mark.parametrize("precision", ["tf32", "float32"])
def test_a_weight_that_is_not_a_number_counts(path, precision):
    """A GPU's NaN has all bits of its fraction set, where a processor's has one."""
    be = xlstm.backend("cupy")
    layer = xlstm.LSTM(3, 8)
    params = layer.init(0, be)
    params["0.Wh"] = params["0.Wh"] + be.asarray(np.where(np.arange(8) == 5, np.nan, 0))
    assert 0x7FFFFFFF in to_numpy(params["0.Wh"]).view("uint32")
    x, h0 = be.asarray(np.ones((1, 2, 3))), be.asarray(np.ones((1, 2, 8)))
    with cuda.use(path, precision):
        y, _, saved = layer.forward(params, x, (h0, h0))
        assert np.isnan(to_numpy(y)).all()
        params["0.Wh"] = params["0.Wh"] * 0 + 1
        _, _, saved = layer.forward(params, x, (h0, h0))
        _, _, (dh0, _) = layer.backward(params, saved, y)
    assert np.isnan(to_numpy(dh0)).all()


def test_clusters_are_those_that_have_room_for_a_kernel(machine):
    """Small blocks of 16 fit onto a part of the chip that has no room for as many large ones."""
    machine({"together": 8}, {"together": 4}, {"together": 16}, {"capability": 80})
    found = []
    for number in range(4):
        with cupy.cuda.Device(number):
            found.append(launch.current().cluster)
    assert found == [8, 0, 16, 0]
    with cupy.cuda.Device(0), cuda.use("cluster"):
        be = xlstm.backend("cupy", dtype="bfloat16")
        layer = xlstm.LSTM(3, 160)
        layer.forward(layer.init(0, be), be.asarray(np.ones((2, 2, 3))))


def test_a_device_that_is_not_current_has_its_clusters(machine):
    machine({}, {})
    with cupy.cuda.Device(1):
        there = cupy.ones(3, dtype="float32")
    import array_api_compat.cupy as xp

    assert launch.runtime(xp, there).device.cluster == 16
    with cupy.cuda.Device(1):
        assert launch.current().cluster == 16
    assert cupy.cuda.runtime.getDevice() == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_computed_in_float32(dtype):
    """In the kernels for many arrays, and in those for rows: one rounding in the end."""
    import array_api_compat.cupy as xp

    from tests.test_rows import expected, standard
    from xlstm.arrays import rows, together
    from xlstm.training import precision

    be, rng = xlstm.backend("cupy", dtype=dtype), np.random.default_rng(0)
    given = {str(k): be.asarray(rng.standard_normal(shape)) for k, shape in enumerate(((3,), (5000,), (7, 11)))}
    exact = {name: to_numpy(a).astype("float64") for name, a in given.items()}
    with standin.counted() as found:
        up = precision.raised(given, "float32", 4.0)
        down = precision.lowered(up, dtype, 2.0)
        norm = together.norm(xp, list(given.values()))
    assert found.operations == 4
    for name, a in exact.items():
        np.testing.assert_array_equal(to_numpy(up[name]), a / 4)
        np.testing.assert_array_equal(to_numpy(down[name]), a / 2)
    gap = {"float16": 1e-3, "bfloat16": 8e-3}[dtype]
    assert norm.dtype == given["0"].dtype
    np.testing.assert_allclose(to_numpy(norm), np.sqrt(sum(np.sum(a * a) for a in exact.values())), rtol=gap)
    x, gain, shift = (be.asarray(rng.standard_normal(shape)) for shape in ((4, 50), (50,), (1,)))
    y, r, c = rows.by_rows(xp, standard, x, gain, shift, scale=0.25)
    assert y.dtype == r.dtype == x.dtype
    arrays = [to_numpy(a).astype("float64") for a in (x, gain, shift)]
    for a, b in zip((y, r, c), expected(*arrays, 0.25), strict=True):
        np.testing.assert_allclose(to_numpy(a).astype("float64"), b, rtol=gap, atol=gap)


def test_a_second_device(machine):
    """Training there gives the numbers of the first, and leaves it alone."""
    machine({}, {"capability": 80})
    found = []
    for number in range(2):
        with cupy.cuda.Device(number):
            be, layer = xlstm.backend("cupy"), xlstm.LSTM(3, 8, dropout=0.2, num_layers=2)
            optimizer = xlstm.optim.adam(0.1)
            params, x = layer.init(0, be), be.asarray(np.ones((4, 3, 3)))
            y, _, saved = layer.forward(params, x, lengths=[4, 2, 0], seed=1)
            grads = xlstm.optim.clip_global_norm(layer.backward(params, saved, y)[0], 0.1)
            params, _ = optimizer.update(params, grads, optimizer.init(params))
            assert {p.device.id for p in params.values()} == {number}
            found.append({name: to_numpy(p) for name, p in params.items()})
    for name, p in found[0].items():
        np.testing.assert_allclose(found[1][name], p, rtol=1e-5, atol=1e-6)


def test_an_array_of_another_dtype_reaches_no_kernel():
    import array_api_compat.cupy as xp

    be = xlstm.backend("cupy")
    layer = xlstm.LSTM(3, 8)
    _, _, saved = layer.forward(layer.init(0, be), be.asarray(np.ones((2, 2, 3))))
    tape = saved.passes["0"].tape
    made = source.loop(tape.function, "forward", tape.choice.forward)
    runtime, wrong = launch.runtime(xp, tape.x), cupy.ones(4, dtype="float64")
    arrays = [wrong if name == "zx" else cupy.ones(4, dtype="float32") for name in made.arrays]
    given = [None, np.int32(0), np.int32(0), np.int32(0), None, None, wrong, *arrays]
    with pytest.raises(CudaError, match="xlstm_forward was given float64 for zx, expected float32"):
        runtime.launch(made, made.name, Grid(1, 1, 32, made.shared), given)
    step = source.pointwise(tape.function, "forward", tape.choice.arithmetic, 1, 8)
    arrays = [wrong if name == "after_c" else cupy.ones(4, dtype="float32") for name in step.arrays]
    with pytest.raises(CudaError, match="xlstm_forward_step was given float64 for after_c, expected float32"):
        runtime.launch(step, step.name, Grid(1, 1, 32), [np.int64(0), np.int32(0), *arrays])


ZONEOUT = {
    "LSTM": xlstm.LSTM(3, 20, zoneout=(0.3, 0.2)),
    "LSTM, of c": xlstm.LSTM(3, 20, zoneout=(0.0, 0.4), peepholes=True),
    "GRU": xlstm.GRU(3, 20, 2, bidirectional=True, zoneout=0.3),
}


@pytest.mark.parametrize("path", ["pointwise", "plain", "grid", "cluster"])
@pytest.mark.parametrize("cell", ZONEOUT)
def test_zoneout_in_every_kernel(path, cell):
    """With masks, and with their expectation where there are none."""
    layer, rng, found = ZONEOUT[cell], np.random.default_rng(0), {}
    params = {name: p.astype("float64") for name, p in layer.init(0, "numpy").items()}
    x, dy = rng.standard_normal((5, 4, 3)), rng.standard_normal((5, 4, layer.output_size))
    for backend in ("cupy", "numpy"):
        be = xlstm.backend(backend, dtype="float32" if backend == "cupy" and path in ("grid", "cluster") else "float64")
        p = {name: be.asarray(a) for name, a in params.items()}
        with cuda.use(path):
            for train in (True, False):
                masks = {"train": train, "keep": True, "seed": 1}
                y, end, saved = layer.forward(p, be.asarray(x), lengths=[5, 2, 0, 3], **masks)
                grads, dx, start = layer.backward(p, saved, be.asarray(dy), end)
                gates = [saved[name].gates for name in saved.kept.passes]
                arrays = [y, *end, dx, *start, *grads.values(), *gates]
                found[backend, train] = [to_numpy(a) for a in arrays]
    for train in (True, False):
        for a, b in zip(found["cupy", train], found["numpy", train], strict=True):
            gap = 1e-12 if a.dtype == "float64" else 1e-5
            np.testing.assert_allclose(a, b, rtol=gap, atol=gap * max(1.0, np.max(np.abs(b), initial=0.0)))


@pytest.mark.parametrize(("cell", "path"), [("LSTM", "plain"), ("GRU", "plain"), ("LSTM", "grid")])
def test_gradients_of_blocks_that_are_no_multiple_of_the_shares(cell, path):
    """Where a share of the sum over blocks begins after the last block, it adds nothing: 6 blocks, 5 shares of 2."""
    layer, rng, found = getattr(xlstm, cell)(3, 130), np.random.default_rng(0), []
    x, dy = rng.standard_normal((4, 9, 3)), rng.standard_normal((4, 9, 130))
    for backend, dtype in (("cupy", "float32"), ("numpy", "float64")):
        be = xlstm.backend(backend, dtype=dtype)
        params = layer.init(0, be)
        with cuda.use(path):
            y, end, saved = layer.forward(params, be.asarray(x), lengths=[4, 2, 0, 4, 1, 4, 3, 1, 1])
            grads, dx, start = layer.backward(params, saved, be.asarray(dy), end)
        found.append([to_numpy(a) for a in (y, *end, dx, *start, *grads.values())])
    for a, b in zip(*found, strict=True):
        assert np.max(np.abs(a - b)) <= 2e-5 * np.max(np.abs(b))


def test_a_step_of_no_sequences():
    layer, be = xlstm.LSTM(3, 5, layer_norm=True), xlstm.backend("cupy")
    y, (h, c) = layer.step(layer.init(0, be), be.asarray(np.zeros((0, 3))))
    assert y.shape == (0, 5)
    assert h.shape == c.shape == (1, 0, 5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.02), ("bfloat16", 0.2)])
@pytest.mark.parametrize(
    "layer",
    [
        xlstm.LSTM(5, 12, layer_norm=True),
        xlstm.LSTM(5, 12, proj_size=4, recurrent_dropout=0.3),
        xlstm.LSTM(5, 12, recurrent_dropout=0.3),
        xlstm.GRU(5, 12, reset_after=False),
    ],
    ids=repr,
)
def test_options_in_low_precision(layer, dtype, tolerance):
    found = {}
    for name in ("float64", dtype):
        be, rng = xlstm.backend("cupy", dtype=name), np.random.default_rng(0)
        params, x = layer.init(0, be), be.asarray(rng.standard_normal((7, 3, 5)))
        y, state, saved = layer.forward(params, x, lengths=[7, 3, 5], seed=1 if layer.random else None)
        grads, dx, start = layer.backward(params, saved, y, state)
        once, _ = layer.step(params, x[0, ...], state)
        arrays = [y, *state, dx, *grads.values(), *start, once]
        assert all(str(a.dtype) == name for a in arrays)
        found[name] = [to_numpy(a).astype("float64") for a in arrays]
    for a, b in zip(found[dtype], found["float64"], strict=True):
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b))


REAL = """
import json, cupy
loops = {name: f.types for name in dir(cupy) if isinstance(f := getattr(cupy, name), cupy.ufunc)}
classes = [cupy.ndarray, cupy.cuda.Device, cupy.cuda.Event, cupy.cuda.Stream, cupy.cuda.MemoryPool, cupy.RawKernel]
names = {kind.__name__: dir(kind) for kind in classes}
names |= {"cupy": dir(cupy), "cuda": dir(cupy.cuda), "runtime": dir(cupy.cuda.runtime)}
keys = [kind.__name__ for kind in classes if kind.__hash__ is not None]
print(json.dumps({"loops": loops, "names": names, "keys": keys}))
"""


@pytest.fixture(scope="module")
def real():
    """Return what CuPy itself says of its names and loops, which takes no GPU."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", standin.VARIABLE)}
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        pytest.skip("CuPy is not installed")
    return json.loads(done.stdout)


def test_loops_are_those_of_cupy(real):
    """Which decide on the dtypes of results."""
    for name, ufunc in cupy._ufunc.UFUNCS.items():
        if name not in ("where", "clip"):
            assert ufunc.types == real["loops"][name], name


def test_cupy_has_all_that_the_standin_has(real):
    """Code that runs on the stand-in finds the same names in CuPy, and the same classes are no keys."""
    classes = [cupy.ndarray, cupy.cuda.Device, cupy.cuda.Event, cupy.cuda.Stream, cupy.cuda.MemoryPool, cupy.RawKernel]
    parts = {kind.__name__: dir(kind) for kind in classes}
    parts |= {"cupy": dir(cupy), "cuda": dir(cupy.cuda), "runtime": list(vars(cupy.cuda.runtime))}
    own = {"cards", "OPTIN", "NONPORTABLE", "FUNCTIONS", "SimpleNamespace", "Any", "Cublas", "ptr"}
    own |= {"cublas", "CUDARuntimeError"}  # cublas is loaded when it is asked for
    own |= {"DefaultPool", "synchronize_all"}
    usual = {*dir(type), "__weakref__", "__dict__", "__module__", "__copy__"}  # of every class of Python
    for part, names in parts.items():
        public = {name for name in names if not name.startswith("_") or name.endswith("__")}
        missing = public - set(real["names"][part]) - own - usual
        assert not {name for name in missing if not name.startswith("__")}, (part, missing)
    assert {kind.__name__ for kind in classes if kind.__hash__ is not None} <= set(real["keys"])
