"""The choice of a path and the calls of CuPy, as far as both go without a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engines.cuda.test_kernels import CARDS, CELLS, SCANS
from xlstm.cells import lstm
from xlstm.engines import cuda
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.cuda import choice, launch
from xlstm.engines.cuda.cuda_engine import Cuda
from xlstm.engines.cuda.tiling import Device

H100, A100, T4 = (CARDS[capability] for capability in (90, 80, 75))


def choose(dtype="float32", width=512, heads=1, B=64, device=H100, cell="lstm", why=""):
    return choice.choose(
        choice.told(), None if why else (CELLS | SCANS)[cell], why, dtype, width, heads, B, device
    )


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"dtype": "bfloat16"}, "cluster"),
        ({"dtype": "float16", "device": A100}, "grid"),
        ({"dtype": "float32"}, "cluster"),
        ({"dtype": "float32", "device": T4, "width": 256}, "grid"),
        ({"dtype": "bfloat16", "width": 1024, "B": 16}, "grid"),
        ({"dtype": "float64", "width": 64}, "plain"),
        ({"dtype": "float64", "width": 4096}, "pointwise"),
        ({"dtype": "float32", "device": Device("V100", 70, 80, 98304), "width": 64}, "plain"),
        ({"dtype": "float32", "device": Device("P100", 60, 56, 49152)}, "pointwise"),
        ({"why": "no kernel does zoneout"}, "loop"),
        ({"cell": "mingru", "width": 4096, "dtype": "float16"}, "plain"),
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
        ("cluster", {"device": A100}, "A100 is sm_80, clusters need sm_90"),
        ("grid", {"dtype": "float64"}, "tensor cores"),
        ("cluster", {"width": 4096}, "no way to divide 1 x 4096 units"),
        ("grid", {"cell": "mingru"}, "there is no product of h for tensor cores"),
        ("plain", {"why": "no kernel does zoneout"}, "no kernel does zoneout; loop can do it"),
        (
            "pointwise",
            {"dtype": "bfloat16", "device": Device("V100", 70, 80, 98304)},
            "bfloat16 needs sm_80",
        ),
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
    with pytest.raises(ValueError, match="XLSTM_CUDA_PATH"):
        choose()


def test_bfloat16_is_refused_where_cupy_would_lose_it(monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(launch, "device", lambda xp, like: H100)
    weights = {
        "Wh": np.zeros((8, 2), dtype=ml_dtypes.bfloat16),
        "b": np.zeros(8, dtype=ml_dtypes.bfloat16),
    }
    step = Step(np, lstm.Cell(), weights, Masks())
    assert Cuda().refuses(step, [(3, 4)]) == ""
    projected = {**weights, "Whr": np.zeros((2, 2), dtype=ml_dtypes.bfloat16)}
    with pytest.raises(
        TypeError,
        match=(
            "path 'loop' has no bfloat16, no kernel does zoneout of a projection; expected float16"
        ),
    ):
        Cuda().refuses(Step(np, lstm.Cell(), projected, Masks(None, (0.1, None))), [(3, 4)])
    with cuda.use("loop"), pytest.raises(TypeError, match="no bfloat16, and it was asked for"):
        Cuda().refuses(step, [(3, 4)])
