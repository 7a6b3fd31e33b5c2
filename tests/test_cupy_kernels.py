"""Kernels of recurrent layers: whole layers by every path beside NumPy, options, cells of users, and cards.

Where CuPy runs on a CPU, threads also run in orders that seeds draw, in which a missing barrier shows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import xlstm
from tests import cuda_on_cpu, gpu, layers
from tests.layers import agree, largest
from xlstm.arrays import foreach, rows
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.random import generator
from xlstm.cells.activations import tanh_bwd
from xlstm.cells.cell import Cell
from xlstm.engines import cuda
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.cuda import cell_source, launch, tiling
from xlstm.engines.cuda.cuda_engine import Cuda
from xlstm.engines.cuda.launch import CudaError, Grid
from xlstm.models import TiRex
from xlstm.recurrence.backward import run_bwd
from xlstm.training import precision as precisions

cupy = gpu.needed()

# Largest difference relative to the largest value: that of the dtype, or of the factors of products.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "tf32": 4e-3, "float16": 6e-3, "bfloat16": 5e-2}
EXACT = [("pointwise", "float64", None), ("pointwise", "float32", None), ("plain", "float64", None)]
WAYS = [
    *EXACT,
    ("plain", "float32", None),
    ("grid", "float32", None),
    ("cluster", "float32", None),
    ("grid", "float32", "tf32"),
    ("cluster", "float32", "tf32"),
    ("cluster", "float16", None),
    ("grid", "bfloat16", None),
    ("cluster", "bfloat16", None),
]
LENGTHS = [4, 2, 0, 5, 1, 5, 3, 1, 1]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let layers be divided as on a card of 8 multiprocessors, so that groups wait for one another."""
    runtime = launch._runtime(0)
    monkeypatch.setattr(runtime, "device", runtime.device._replace(sms=8))
    return runtime


def results(layer, dtype="float64", backend="cupy", T=5, B=9, **options):
    """Run a layer forward and backward with the same numbers for every dtype; return all that it gives and keeps."""
    be = xlstm.backend(backend, dtype=dtype)
    params, x, state = layers.inputs_of(layer, be, generator(3), T, B, 0.3)
    if "n" in layer.STATES:
        state = (*state[:2], be.xp.abs(state[2]) + 1, state[3])
    return layers.run(layer, params, x, state, kept=True, seed=5 if layer.random else None, **options)


def beside_numpy(layer, dtype="float32", precision=None, **options):
    agree(
        results(layer, dtype, **options),
        results(layer, backend="numpy", **options),
        TOLERANCE[precision or dtype],
        largest,
    )


BOTH = {"num_layers": 2, "bidirectional": True}
LOOPS = {
    "LSTM": xlstm.LSTM(3, 40),
    "LSTM, bounds": xlstm.LSTM(3, 40, peepholes=True, clip=2.0, cell_clip=1.5),
    "LSTM, coupled": xlstm.LSTM(3, 40, coupled_input_forget=True, peepholes=True, bias=False),
    "GRU": xlstm.GRU(3, 40),
    "RNN": xlstm.RNN(3, 40),
    "sLSTM": xlstm.sLSTM(3, 40, num_heads=2),
    "LSTM, stack": xlstm.LSTM(3, 20, **BOTH, batch_first=True, recompute=True),
    "GRU, stack": xlstm.GRU(3, 20, **BOTH, batch_first=True, recompute=True),
    "sLSTM, stack": xlstm.sLSTM(3, 20, **BOTH, batch_first=True, recompute=True),
    "LSTM, dropout": xlstm.LSTM(3, 20, recurrent_dropout=0.4, **BOTH),
    "GRU, dropout and zoneout": xlstm.GRU(3, 20, recurrent_dropout=0.4, zoneout=0.2, **BOTH),
    "LSTM, zoneout": xlstm.LSTM(3, 20, zoneout=(0.3, 0.2)),
    "LSTM, zoneout of c": xlstm.LSTM(3, 20, zoneout=(0.0, 0.4), peepholes=True),
    "GRU, zoneout": xlstm.GRU(3, 20, zoneout=0.3, **BOTH),
    **{f"LSTM of {H}": xlstm.LSTM(3, H) for H in (1, 17, 100)},
}
STEPS = {
    "LSTM, other numbers": xlstm.LSTM(
        3, 20, activations=("hard_sigmoid(0.3, 0.4)", "tanh", "scaled_tanh(2, 0.5)"), clip=0.5, cell_clip=0.3
    ),
    "layer_norm": xlstm.LSTM(3, 20, layer_norm=True, recurrent_bias=True, **BOTH),
    "layer_norm and more": xlstm.LSTM(
        3, 20, layer_norm=True, peepholes=True, zoneout=0.2, recurrent_dropout=0.4, cell_clip=0.5, **BOTH
    ),
    "layer_norm of a GRU": xlstm.GRU(3, 20, layer_norm=True, **BOTH),
    "layer_norm of an RNN": xlstm.RNN(3, 20, layer_norm=True, **BOTH),
    "projection": xlstm.LSTM(3, 20, proj_size=7, **BOTH),
    "projection and more": xlstm.LSTM(
        3, 20, proj_size=7, recurrent_dropout=0.4, layer_norm=True, zoneout=(0.0, 0.2), **BOTH
    ),
    "reset before": xlstm.GRU(3, 20, reset_after=False, **BOTH),
    "reset before and more": xlstm.GRU(
        3, 20, reset_after=False, recurrent_dropout=0.4, clip=0.5, recurrent_bias=True, **BOTH
    ),
}
CASES = [(name, way) for name in LOOPS for way in WAYS] + [(name, way) for name in STEPS for way in EXACT[:2]]


@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS}, {"lengths": LENGTHS, "train": False, "keep": True}])
@pytest.mark.parametrize(("name", "way"), CASES)
def test_layers_by_every_path(small, monkeypatch, name, way, options):
    (path, dtype, precision), launched, whole = way, set(), small.launch
    monkeypatch.setattr(small, "launch", lambda made, entry, *rest: launched.add(entry) or whole(made, entry, *rest))
    with cuda.use(path, precision):
        beside_numpy((LOOPS | STEPS)[name], dtype, precision, **options)
    assert {entry.endswith("_step") for entry in launched - {cell_source.ARRANGE, "xlstm_again_step"}} == {
        path == "pointwise"
    }


@pytest.mark.parametrize(("cell", "path"), [("LSTM", "plain"), ("GRU", "plain"), ("LSTM", "grid")])
def test_gradients_of_blocks_that_are_no_multiple_of_the_shares(cell, path):
    """Where a share of the sum over blocks begins after the last block, it adds nothing: 6 blocks, 5 shares of 2."""
    with cuda.use(path):
        beside_numpy(getattr(xlstm, cell)(3, 130), lengths=LENGTHS)


@pytest.mark.parametrize("path", ["pointwise", "plain"])
def test_the_limit_of_a_forget_gate(path):
    """In a network of TiRex, where it matters to some gates and not to others."""
    model, found = TiRex(8, 1, 2, patch_size=2, quantiles=(0.5,), input_ff_size=4, context=8), {}
    for name in ("cupy", "numpy"):
        be = xlstm.backend(name, dtype="float64")
        params = model.init(0, be)
        params["blocks.0.cell.b"][8:16] = be.asarray(np.linspace(14, 16, 8))
        with cuda.use(path):
            y, _, saved = model.forward(params, be.asarray(generator(1).standard_normal((3, 4, 4))))
            grads, dx, _ = model.backward(params, saved, y)
        found[name] = {key: to_numpy(a) for key, a in {"y": y, "dx": dx, **grads}.items()}
    agree(found["cupy"], found["numpy"], TOLERANCE["float64"], largest)


@pytest.mark.parametrize("path", ["plain", "grid", "cluster"])
@pytest.mark.parametrize("smaller", [1.0, 1e-6, 1e-12])
def test_float32_as_two_halves_has_its_digits(path, smaller):
    """Also where numbers are beyond the range of float16, and where each sequence is a tenth of the one before it."""
    layer, rng, B = xlstm.LSTM(3, 40), generator(2), 8
    params = {n: (0.3 * rng.standard_normal(p.shape)) for n, p in layer.draw(generator(0)).items()}
    params |= {n: 0 * p for n, p in params.items() if n.endswith((".b", ".bh"))}
    each = smaller * 10.0 ** -np.arange(B)[:, None]
    x, dy = each * rng.standard_normal((5, B, 3)), each * rng.standard_normal((5, B, 40))
    expected, be = layers.run(layer, params, x, dy=dy), xlstm.backend("cupy")
    with cuda.use(path):
        there = {n: be.asarray(p) for n, p in params.items()}
        found = layers.run(layer, there, be.asarray(x), dy=be.asarray(dy))
    for name, value in expected.items():
        by_sequence = (0, 2) if value.ndim == 3 else None
        gap = np.max(np.abs(found[name] - value), axis=by_sequence)
        assert np.all(gap <= 2e-6 * np.max(np.abs(value), axis=by_sequence)), (name, gap)


@pytest.mark.parametrize("path", ["pointwise", "plain"])
def test_arrays_that_do_not_lie_in_order_and_batches_without_sequences(path):
    layer, rng = xlstm.LSTM(3, 1, bidirectional=True), generator(0)
    x, dy = rng.standard_normal((4, 6, 3)), rng.standard_normal((4, 6, 4))[..., ::2]
    params = {n: rng.standard_normal((*p.shape[:-1], 2 * p.shape[-1]))[..., ::2] for n, p in layer.draw(rng).items()}
    expected = layers.run(layer, params, x, dy=dy)
    there = {n: gpu.as_it_lies(p) for n, p in params.items()}
    with cuda.use(path):
        agree(layers.run(layer, there, cupy.asarray(x), dy=gpu.as_it_lies(dy)), expected, 1e-12, largest)
        y, _, saved = layer.forward(there, cupy.asarray(x)[:, :0])
        assert y.shape == (4, 0, 2)
        assert layer.backward(there, saved, y)[1].shape == (4, 0, 3)
    layer = xlstm.LSTM(3, 5, layer_norm=True)
    y, (h, c) = layer.step(layer.init(0, "cupy"), cupy.zeros((0, 3), dtype="float32"))
    assert (y.shape, h.shape, c.shape) == ((0, 5), (1, 0, 5), (1, 0, 5))


@pytest.mark.parametrize("path", ["plain", "grid", "cluster"])
def test_results_do_not_depend_on_the_order_of_threads(path):
    gpu.on_cpu()
    found = []
    for seed in range(4):
        with cuda.use(path), cuda_on_cpu.configured(seed=seed):
            found.append(results(xlstm.GRU(3, 40), "float32", T=4))
        agree(found[-1], found[0])


@pytest.mark.parametrize(
    ("path", "part", "text"),
    [
        # Sums are read before they are there; h is passed on, dz is multiplied, parts of dh are added before they are.
        ("cluster", "forward.cu", "        sync_block();\n        const long long row0"),
        ("cluster", "forward.cu", "        sync_block();\n\n        constexpr int PIECES"),
        ("cluster", "backward.cu", "        sync_block();\n        product(weights"),
        ("grid", "backward.cu", "        sync_block();\n    };"),
    ],
)
def test_a_missing_barrier_is_seen(monkeypatch, path, part, text):
    """The test of the test above."""
    gpu.on_cpu()
    layer = xlstm.GRU(3, 40)
    expected = results(layer, backend="numpy", T=4)
    broken = cell_source.file(part).replace(text, text.replace("sync_block();", ""))
    assert broken != cell_source.file(part)
    whole = cell_source.file
    monkeypatch.setattr(cell_source, "file", lambda name: broken if name == part else whole(name))
    cell_source.loop.cache_clear()
    wrong = []
    try:
        for seed in (1, 2):
            with cuda.use(path), cuda_on_cpu.configured(seed=seed):
                found = results(layer, "float32", T=4)
            wrong += [name for name, a in expected.items() if not largest(found[name] - a) <= 1e-4]
    finally:
        cell_source.loop.cache_clear()
    assert wrong


def test_tensor_cores_multiply_matrices():
    """As the PTX manual says: the places of elements in lanes, and what they make."""
    text = (
        cell_source.file("device.cuh")
        + """
extern "C" __global__ void multiply(const unsigned* a, const unsigned* b, float* c) {
    const int lane = threadIdx.x, g = lane / 4, q = lane % 4;
    float sum[4] = {0, 0, 0, 0};
    const unsigned *low = a + g * 8 + q, *high = low + 64, *other = b + g * 8 + q;
    mma(half_t(), sum, uint4{low[0], high[0], low[4], high[4]}, other[0], other[4]);
    c[g * 8 + 2 * q] = sum[0]; c[g * 8 + 2 * q + 1] = sum[1];
    c[(g + 8) * 8 + 2 * q] = sum[2]; c[(g + 8) * 8 + 2 * q + 1] = sum[3];
}
"""
    )
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, shape).astype("float16") for shape in ((16, 16), (8, 16)))
    c = cupy.empty((16, 8), dtype="float32")
    cupy.RawKernel(text, "multiply", launch.OPTIONS)((1,), (32,), (cupy.asarray(a), cupy.asarray(b), c))
    np.testing.assert_array_equal(c.get(), a.astype("float32") @ b.astype("float32").T)


@pytest.mark.parametrize(
    ("kind", "lanes", "which", "width", "sms"),
    [
        *(("LSTM", lanes, "forward", 60, 8) for lanes in (1, 2, 4, 8)),
        *(("LSTM", lanes, "backward", 60, 8) for lanes in (4, 8)),
        *(("LSTM", lanes, "backward", 120, 40) for lanes in (1, 2)),
        ("GRU", 4, "forward", 60, 8),
    ],
)
def test_ordinary_arithmetic_with_weights_in_registers(small, monkeypatch, kind, lanes, which, width, sms):
    """So many lanes share rows, and add what they found; units beyond the last one are 0."""
    divisions = tiling._divisions

    def some(which_of, *given):
        for way in divisions(which_of, *given):
            if way[4] and (which_of != which or way[6:] == (lanes,)):
                yield way

    monkeypatch.setattr(tiling, "_divisions", some)
    layer = getattr(xlstm, kind)(3, width)
    monkeypatch.setattr(small, "device", small.device._replace(name=f"{lanes} lanes {which}", sms=sms))
    with cuda.use("plain"):
        beside_numpy(layer, lengths=LENGTHS)


@dataclass(frozen=True)
class Apart(Cell):
    """A cell as a user writes it, with a parameter of its own.

    Its products have gradients of their own, with a row of dzx more than gates, which `own_bwd` needs.
    """

    K: float = 1.5  # K and M are names in the templates, too

    GATES = ("n",)
    STATES = ("h", "c")
    REST = (0.0, 0.0)
    OWN = ("M",)

    def gates(self, xp, zx, zh, h0, c0, M):
        n = xp.tanh(self.K * zx[0, ...] + M[0, ...] * zh[0, ...])
        c = 0.5 * c0 + n
        return c * M[1, ...], c, Apart.Saved(n, zh, c)

    class Saved(NamedTuple):
        n: Any
        m: Any
        c: Any

    def gates_bwd(self, xp, saved, dh, dc, M):
        dc = dc + M[1, ...] * dh
        dn = tanh_bwd(xp, dc, saved.n, saved.n)
        return xp.stack((self.K * dn, dh)), xp.stack((M[0, ...] * dn,)), None, 0.5 * dc

    def own_bwd(self, xp, dz, saved, c0, M):
        rows = xp.stack((dz[0, ...] * saved.m[0, ...] / self.K, dz[1, ...] * saved.c))
        return {"M": xp.sum(rows, axis=(1, 3))}


@pytest.mark.parametrize("keep", ["all", "states"])
@pytest.mark.parametrize(
    ("path", "dtype"),
    [
        ("pointwise", "float64"),
        ("cluster", "float32"),
        ("cluster", "float16"),
        ("grid", "float32"),
        ("plain", "float64"),
    ],
)
def test_a_cell_of_a_user(path, dtype, keep):
    """Every path agrees with the reference engine, in gradients and in what is read from the tape."""
    cell, H, D, widths = Apart(), 20, 3, [(2, 9), (1, 9), (2, 4)]

    def run(engine, be):
        rng = generator(0)
        shapes = {"Wx": (H, D), "Wh": (H, H), "b": (H,), "M": (2 * H,)}
        w = {name: be.asarray(0.3 * rng.standard_normal(shape)) for name, shape in shapes.items()}
        x, dy = (be.asarray(rng.standard_normal((35, size))) for size in (D, H))
        state, dend = ([be.asarray(rng.standard_normal((H, 11))) for _ in range(2)] for _ in range(2))
        y, end, tape = engine.forward(Step(be.xp, cell, w, Masks()), x, state, widths, keep)
        grads, dx, start = run_bwd(copy.deepcopy(tape), dy, dend)
        found = {"y": y, "dx": dx, "h": tape.state("h"), "c": tape.state("c"), **grads}
        found |= {f"end {k}": s for k, s in enumerate(end)} | {f"start {k}": s for k, s in enumerate(start)}
        return found | {"n": tape.rows(lambda kept: kept.saved.n, (H,))}

    expected = run(ARRAY_API, xlstm.backend("numpy", dtype="float64"))
    with cuda.use(path):
        agree(run(Cuda(), xlstm.backend("cupy", dtype=dtype)), expected, TOLERANCE[dtype], largest)


@pytest.mark.parametrize("path", ["grid", "cluster"])
@pytest.mark.parametrize("precision", ["tf32", "float32"])
def test_a_weight_that_is_not_a_number_counts(path, precision):
    """A GPU's NaN has all bits of its fraction set, where a processor's has one."""
    be = xlstm.backend("cupy")
    layer = xlstm.LSTM(3, 8)
    params = layer.init(0, be)
    Wh = np.array(to_numpy(params["0.Wh"]))
    Wh.view("uint32")[:, 5] = 0x7FFFFFFF
    params["0.Wh"] = be.asarray(Wh)
    x, h0 = be.asarray(np.ones((1, 2, 3))), be.asarray(np.ones((1, 2, 8)))
    with cuda.use(path, precision):
        y, _, saved = layer.forward(params, x, (h0, h0))
        assert np.isnan(to_numpy(y)).all()
        params["0.Wh"] = params["0.Wh"] * 0 + 1
        _, _, saved = layer.forward(params, x, (h0, h0))
        _, _, (dh0, _) = layer.backward(params, saved, y)
    assert np.isnan(to_numpy(dh0)).all()


@pytest.fixture
def unknown():
    """Nothing is known of any card."""
    launch._runtime.cache_clear()
    yield
    launch._runtime.cache_clear()


@pytest.mark.usefixtures("unknown")
def test_clusters_are_those_that_have_room_for_a_kernel():
    """Small blocks of 16 fit onto a part of the chip that has no room for as many large ones."""
    gpu.on_cpu()
    with cuda_on_cpu.configured(cluster=8), cuda.use("cluster"):
        assert launch.current().cluster == 8
        be, layer = xlstm.backend("cupy", dtype="bfloat16"), xlstm.LSTM(3, 160)
        layer.forward(layer.init(0, be), be.asarray(np.ones((2, 2, 3))))


@pytest.mark.usefixtures("unknown")
def test_a_device_that_is_not_current_has_its_clusters():
    gpu.two_devices()
    with cupy.cuda.Device(1):
        there = cupy.ones(3, dtype="float32")
    found = launch.runtime(xlstm.backend("cupy").xp, there).device.cluster
    with cupy.cuda.Device(1):
        assert launch.current().cluster == found
    assert cupy.cuda.runtime.getDevice() == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_computed_in_float32(dtype):
    """In the kernels for many arrays, and in those for rows: one rounding in the end."""
    from tests.test_rows import expected, standard

    be, rng = xlstm.backend("cupy", dtype=dtype), np.random.default_rng(0)
    given = {str(k): be.asarray(rng.standard_normal(shape)) for k, shape in enumerate(((3,), (5000,), (7, 11)))}
    exact = {name: to_numpy(a).astype("float64") for name, a in given.items()}
    with gpu.counted() as found:
        up = precisions.raised(given, "float32", 4.0)
        down = precisions.lowered(up, dtype, 2.0)
        norm = foreach.norm(be.xp, list(given.values()))
    assert found.operations == 4
    for name, a in exact.items():
        np.testing.assert_array_equal(to_numpy(up[name]), a / 4)
        np.testing.assert_array_equal(to_numpy(down[name]), a / 2)
    gap = {"float16": 1e-3, "bfloat16": 8e-3}[dtype]
    assert norm.dtype == given["0"].dtype
    np.testing.assert_allclose(to_numpy(norm), np.sqrt(sum(np.sum(a * a) for a in exact.values())), rtol=gap)
    x, gain, shift = (be.asarray(rng.standard_normal(shape)) for shape in ((4, 50), (50,), (1,)))
    y, r, c = rows.by_rows(be.xp, standard, x, gain, shift, scale=0.25)
    assert y.dtype == r.dtype == x.dtype
    arrays = [to_numpy(a).astype("float64") for a in (x, gain, shift)]
    for a, b in zip((y, r, c), expected(*arrays, 0.25), strict=True):
        np.testing.assert_allclose(to_numpy(a).astype("float64"), b, rtol=gap, atol=gap)


def test_an_array_of_another_dtype_reaches_no_kernel():
    be = xlstm.backend("cupy")
    layer = xlstm.LSTM(3, 8)
    _, _, saved = layer.forward(layer.init(0, be), be.asarray(np.ones((2, 2, 3))))
    tape = saved.passes["0"].tape
    made = cell_source.loop(tape.function, "forward", tape.choice.forward)
    runtime, wrong = launch.runtime(be.xp, tape.x), cupy.ones(4, dtype="float64")
    arrays = [wrong if name == "zx" else cupy.ones(4, dtype="float32") for name in made.arrays]
    given = [None, np.int32(0), np.int32(0), np.int32(0), None, None, wrong, *arrays]
    with pytest.raises(CudaError, match="xlstm_forward was given float64 for zx, expected float32"):
        runtime.launch(made, made.name, Grid(1, 1, 32, made.shared), given)
    step = cell_source.pointwise(tape.function, "forward", tape.choice.arithmetic, 1, 8)
    arrays = [wrong if name == "after_c" else cupy.ones(4, dtype="float32") for name in step.arrays]
    with pytest.raises(CudaError, match="xlstm_forward_step was given float64 for after_c, expected float32"):
        runtime.launch(step, step.name, Grid(1, 1, 32), [np.int64(0), np.int32(0), *arrays])
