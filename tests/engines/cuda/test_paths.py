"""The choice of a path and the calls of CuPy, as far as both go without a GPU."""

from __future__ import annotations

import numpy as np
import pytest

import xlstm
from tests.engines.cuda.test_kernels import CELLS, DEVICES
from xlstm.arrays.broken import CudaError
from xlstm.cells import lstm
from xlstm.engines import cuda
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.cuda import choice, launch
from xlstm.engines.cuda.cuda_engine import Cuda
from xlstm.engines.cuda.tiling import Device

H100, A100 = DEVICES[90], DEVICES[80]


def choose(dtype="float32", width=512, heads=1, B=64, device=H100, cell="lstm", why=""):
    return choice.choose(choice.told(), None if why else CELLS[cell], why, dtype, width, heads, B, device)


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"dtype": "bfloat16"}, "cluster"),
        ({"dtype": "float16", "device": A100}, "grid"),
        ({"dtype": "float32"}, "cluster"),
        ({"dtype": "bfloat16", "width": 1024, "B": 16}, "grid"),
        ({"dtype": "float64", "width": 64}, "plain"),
        ({"dtype": "float64", "width": 4096}, "pointwise"),
        ({"dtype": "float32", "device": Device("V100", 70, 80, 98304), "width": 64}, "plain"),
        ({"dtype": "float32", "device": Device("P100", 60, 56, 49152)}, "pointwise"),
        ({"why": "no kernel does zoneout"}, "loop"),
    ],
)
def test_the_path_follows_shape_dtype_and_device(arguments, path):
    found = choose(**arguments)
    assert found.path == path
    assert set(found.others) == set(cuda.PATHS) - {path}
    assert all(found.others.values())


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("cluster", {"device": A100}, "'cluster' was asked for, but A100 is sm_80, clusters need sm_90"),
        ("grid", {"dtype": "float64"}, "tensor cores are not used for float64; loop, pointwise, plain can do it"),
        ("cluster", {"width": 4096}, r"no way to divide 1 x 4096 units, 64 sequences and 3xfp16 fits 132 SMs"),
        ("plain", {"why": "no kernel does zoneout"}, "no kernel does zoneout; loop can do it"),
        ("pointwise", {"dtype": "bfloat16", "device": Device("V100", 70, 80, 98304)}, "sm_70, bfloat16 needs sm_80"),
    ],
)
def test_a_path_that_was_asked_for_is_taken_or_refused(path, arguments, message):
    with cuda.use(path), pytest.raises(ValueError, match=f"cuda: path .*{message}"):
        choose(**arguments)


def test_paths_and_precisions_can_be_asked_for(monkeypatch):
    for path in cuda.PATHS:
        with cuda.use(path):
            assert choose().path == path
    assert choose().arithmetic.name == "3xfp16"
    with cuda.use(precision="tf32"):
        assert choose().arithmetic.name == "tf32"
        with cuda.use(path="plain"):
            assert choose().arithmetic.name == "float32"
    monkeypatch.setenv("XLSTM_CUDA_PATH", "grid")
    monkeypatch.setenv("XLSTM_CUDA_PRECISION", "tf32")
    assert (choose().path, choose().arithmetic.name) == ("grid", "tf32")
    with cuda.use("auto", "float32"):
        assert (choose().path, choose().arithmetic.name) == ("cluster", "3xfp16")
    monkeypatch.setenv("XLSTM_CUDA_PATH", "quick")
    with pytest.raises(ValueError, match="XLSTM_CUDA_PATH is 'quick', expected one of auto, loop,"):
        choose()
    with (
        pytest.raises(ValueError, match="use: precision is 'fp8', expected one of float32, tf32"),
        cuda.use(precision="fp8"),
    ):
        pass


def test_options_that_no_kernel_has_are_named(monkeypatch):
    monkeypatch.setattr(launch, "device", lambda xp, like: H100)
    x = np.ones((2, 3, 4), dtype="float32")
    for layer, what in (
        (xlstm.LSTM(4, 8, proj_size=2), "several steps with a projection; loop, pointwise"),
        (xlstm.LSTM(4, 8, proj_size=2, zoneout=0.1), "zoneout of a projection; loop"),
    ):
        params, seed = layer.init(backend="numpy"), 0 if layer.random else None
        with cuda.use("grid"), pytest.raises(ValueError, match=f"no kernel does {what} can do it"):
            layer.forward(params, x, seed=seed)
    layer.forward(params, x, seed=seed)  # by the array library


def test_bfloat16_is_refused_where_cupy_would_lose_it(monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(launch, "device", lambda xp, like: H100)
    weights = {"Wh": np.zeros((8, 2), dtype=ml_dtypes.bfloat16), "b": np.zeros(8, dtype=ml_dtypes.bfloat16)}
    step = Step(np, lstm.Cell(), weights, Masks())
    assert Cuda().refuses(step, [(3, 4)]) == ""
    projected = {**weights, "Whr": np.zeros((2, 2), dtype=ml_dtypes.bfloat16)}
    with pytest.raises(
        TypeError, match="path 'loop' has no bfloat16, no kernel does zoneout of a projection; expected float16"
    ):
        Cuda().refuses(Step(np, lstm.Cell(), projected, Masks(None, (0.1, None))), [(3, 4)])
    with cuda.use("loop"), pytest.raises(TypeError, match="no bfloat16, and it was asked for"):
        Cuda().refuses(step, [(3, 4)])


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize(
    ("body", "shared", "threads", "words"),
    [
        ("what;", 0, 32, r"xlstm_forward does not compile \(error.*\nXLSTM_CUDA_PATH=loop goes.*\n(.*\n)*.*what"),
        ("", 10**6, 32, r"xlstm_forward is not loaded or launched .* with 1000000 bytes\nXLSTM_CUDA_PATH=loop"),
        ("", 0, 2048, r"xlstm_forward is not loaded or launched .*: 16 x 9 blocks of 2048"),
    ],
)
def test_what_goes_wrong_is_said_in_one_message(xp, body, shared, threads, words):
    text = f'extern "C" __global__ void xlstm_forward() {{ {body} }}'
    with pytest.raises(CudaError, match=words):
        launch.launch(launch.Source("xlstm_forward", text, shared=shared), (16, 9), threads, [])
