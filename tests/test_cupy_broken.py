"""Kernels that a card refuses: another path does their work, with one warning, and with the same results."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import xlstm
from tests import cuda_on_cpu, gpu, layers
from tests.layers import agree, largest
from tests.test_cupy_kernels import LENGTHS, TOLERANCE, results
from xlstm.arrays import broken, foreach
from xlstm.arrays.bernoulli import bernoulli
from xlstm.arrays.broken import CudaError
from xlstm.arrays.concat import Filled, concat
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.fuse import fuse, total
from xlstm.arrays.gather import gather
from xlstm.arrays.rows import by_rows
from xlstm.arrays.scan import scan
from xlstm.engines import cuda
from xlstm.engines.cuda import launch

cupy = gpu.needed()
STAGES = ("compile", "load", "launch")


def softmax(xp, x, y):
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True), xp.mean(x * y, axis=-1, keepdims=True)


def moved(xp, a, b, rate):
    return a - rate * b, b * b


def sigmoid(xp, x):
    return 1 / (1 + xp.exp(-x))


def decayed(xp, c, x):
    return 0.5 * c + x


def in_place(be, a, b):
    foreach.apply(be.xp, moved, [[a], [b]], [0.3], into=(0, 1))
    return a, b


# What begins the name of each kernel of arrays, and calls that take it, of two arrays (3, 5).
ARRAYS = {
    "xlstm_concat": lambda be, a, b: [concat(be.xp, [a, Filled(0.5, 2), b], 1)],
    "xlstm_gather": lambda be, a, b: gather(be.xp, [a, b], [cupy.asarray([1, 3, 0]), cupy.asarray([3, 2, 2, 1])]),
    "xlstm_rows": lambda be, a, b: by_rows(be.xp, softmax, a, b),
    "xlstm_fuse": lambda be, a, b: [fuse(be.xp, sigmoid, a), fuse(be.xp, sigmoid, b, out=a)],
    "xlstm_scan": lambda be, a, b: scan(be.xp, decayed, [a[:, 0]], b)[0],
    "xlstm_total": lambda be, a, b: [total(be.xp, a, b, axes=(-2, -1))],
    "xlstm_each": lambda be, a, b: [
        *foreach.copies(be.xp, [a]),
        *foreach.apply(be.xp, moved, [[a], [b]], [cupy.asarray(0.3)])[0],
        *in_place(be, a + 0, b + 0),
    ],
    "xlstm_squares": lambda be, a, b: [foreach.norm(be.xp, [300 * a, b])],
    "xlstm_bernoulli": lambda be, a, b: [bernoulli(np.random.default_rng(1), 0.4, (9, 3), a, dropout=True)],
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("start", ARRAYS)
def test_kernels_of_arrays(start, stage, dtype):
    be, rng = xlstm.backend("cupy", dtype=dtype), np.random.default_rng(0)
    given = [be.asarray(rng.standard_normal((3, 5))) for _ in range(2)]
    expected = ARRAYS[start](be, *(a.copy() for a in given))
    words = "does not compile .error: " if stage == "compile" else "is not loaded or launched .CUDADriverError: "
    with gpu.refusing(stage, start):
        with pytest.warns(RuntimeWarning, match=f"on CUDA on the CPU {start}.* {words}") as warned:
            found = ARRAYS[start](be, *(a.copy() for a in given))
        with gpu.counted() as again:
            ARRAYS[start](be, *(a.copy() for a in given))  # nor is it tried a second time
    assert len(warned) == len({str(w.message) for w in warned}) <= 2
    assert not [name for name in again.found.names if f" {start}" in name]
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        agree({"": a}, {"": b}, TOLERANCE[dtype], largest)


def alone(path):
    """Have no other path be taken than this one, or what follows it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for other in {"cluster", "grid", "plain"} - {path}:
            broken.note(f"{other} ", "it is not tried")


# A path, and what the text of its kernels of passes has.
LOOPS = {
    "cluster": "#define CLUSTER 1",
    "grid": "#define CLUSTER 0",
    "plain": "#define CLUSTER 0",
    "pointwise": "_step",
}


@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS}])
@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("path", LOOPS)
def test_recurrent_layers(monkeypatch, path, stage, kind, options):
    """Where nothing is launched, the passes that follow fail as well, and the array library does their work."""
    layer = xlstm.LSTM(3, 20, num_layers=2, peepholes=True, recompute=stage == "load")
    expected = results(layer, backend="numpy", **options)
    kind = {"forward": "slim", "backward": "again"}[kind] if layer.recompute else kind
    part = LOOPS[path] if stage == "compile" and path != "pointwise" else f"xlstm_{kind}"
    with gpu.refusing(stage, part):
        alone(path)
        with pytest.warns(RuntimeWarning, match="xlstm_.*; another way does its work") as found:
            agree(results(layer, "float32", **options), expected, TOLERANCE["float32"], largest)
        agree(results(layer, "float32", **options), expected, TOLERANCE["float32"], largest)
    said = [str(one.message) for one in found]
    assert path in said[0]
    assert len(said) == len(set(said)) == (1 if part[0] == "#" or (path == "pointwise" and kind != "again") else 2)


@pytest.mark.parametrize("stage", STAGES)
def test_a_single_step(stage):
    be, layer = xlstm.backend("cupy", dtype="float32"), xlstm.GRU(3, 8)
    params, x = layer.init(0, be), be.asarray(np.ones((2, 3)))
    expected = layer.step(params, x)[0]
    with gpu.refusing(stage, "xlstm_lean_step"):
        with pytest.warns(RuntimeWarning, match="xlstm_lean_step"):
            found = layer.step(params, x)[0]
        agree({"": layer.step(params, x)[0]}, {"": found})
    agree({"": found}, {"": expected}, 1e-5)


def test_what_was_asked_for_is_refused():
    """CUDA 12.0 does not compile st.async, with which clusters exchange."""
    layer = xlstm.LSTM(3, 20)
    with gpu.refusing("compile", "#define CLUSTER 1"):
        with (
            cuda.use("cluster"),
            pytest.raises(CudaError, match=r"xlstm_forward does not compile .error: #define CLUSTER"),
        ):
            results(layer, "float32")
        alone("cluster")
        with pytest.warns(RuntimeWarning, match="cluster .*: xlstm_forward does not compile"):
            results(layer, "float32")
        with cuda.use("cluster"), pytest.raises(CudaError, match="#define CLUSTER 1"):
            results(layer, "float32")
    be = xlstm.backend("cupy", dtype="bfloat16")
    words = "path 'loop' has no bfloat16, and no kernel works"
    with gpu.refusing("launch", "xlstm_"), pytest.warns(RuntimeWarning), pytest.raises(TypeError, match=words):
        layer.forward(layer.init(0, be), be.asarray(np.ones((2, 2, 3))))


@pytest.mark.parametrize("kind", ["gates", "states_bwd"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_of_an_mlstm(dtype, stage, kind):
    layer = xlstm.mLSTM(3, 16, num_heads=2)
    exact = results_of(layer, "numpy", "float64")
    with gpu.refusing(stage, f"xlstm_chunk_{kind}"):
        with pytest.warns(RuntimeWarning, match=f"chunks .*: xlstm_chunk_{kind} ") as found:
            agree(results_of(layer, "cupy", dtype), exact, TOLERANCE[dtype], largest)
        agree(results_of(layer, "cupy", dtype), exact, TOLERANCE[dtype], largest)
    assert len(found) == 1


def results_of(layer, backend, dtype):
    be, rng = xlstm.backend(backend, dtype=dtype), np.random.default_rng(0)
    params = {n: be.asarray(p) for n, p in layer.init(0, "numpy").items()}
    x = be.asarray(rng.standard_normal((20, 2, layer.input_size)))
    y, end, saved = layer.forward(params, x)
    grads, dx, _ = layer.backward(params, saved, y, tuple(s * 0.1 for s in end))
    return {name: to_numpy(a).astype("float64") for name, a in {"y": y, "dx": dx, **grads}.items()}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_language_model_without_any_kernel(dtype, stage):
    layer = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 2, [], 2, dropout=0.2), 7)
    found = {}
    for part in ("nothing at all", "xlstm_"):
        be, rng = xlstm.backend("cupy", dtype=dtype), np.random.default_rng(0)
        params = {n: be.asarray(0.3 * rng.standard_normal(to_numpy(p).shape)) for n, p in layer.init(0, be).items()}
        with gpu.refusing(stage, part), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y, _, saved = layer.forward(params, layers.input_of(layer, be, rng), seed=1)
            grads = layer.backward(params, saved, y)[0]
        found[part] = {"y": y, **grads}
        assert {str(a.dtype) for a in found[part].values()} == {dtype}
    agree(*found.values(), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("path", ["cluster", "grid"])
def test_blocks_that_wait_for_one_another_have_room(monkeypatch, path):
    """MPS leaves a process a part of the multiprocessors: no kernel is launched that waits for blocks in vain."""
    gpu.on_cpu()
    monkeypatch.setattr(launch, "_device", lambda number: launch.Device("CUDA on the CPU", 90, 132, 232448, 16))
    layer = xlstm.LSTM(3, 200)
    expected = results(layer, backend="numpy")
    gpu.first_contact()
    alone(path)
    words = f"{path} .* wait for one another, and [02] run at once"
    with cuda_on_cpu.configured(part=2), pytest.warns(RuntimeWarning, match=words):
        agree(results(layer, "float32"), expected, TOLERANCE["float32"], largest)
    gpu.first_contact()


@pytest.mark.usefixtures("refused")
def test_a_card_that_answers_nothing_more_is_named():
    gpu.on_cpu()
    text = 'extern "C" __global__ void hang() { if (threadIdx.x) __syncthreads(); else while (true) __nanosleep(1); }'
    a = cupy.ones((3, 4), "float32")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="LAUNCH_FAILED"):
        cupy.RawKernel(text, "hang")((1,), (64,), ())
    with pytest.raises(CudaError, match=r"xlstm_concat, or a kernel before it, failed while it ran .* answers nothing"):
        concat(xlstm.backend("cupy").xp, [a, a], 0)
    cuda_on_cpu.recover()
