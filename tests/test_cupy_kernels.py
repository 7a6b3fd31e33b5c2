"""Kernels of recurrent layers: whole layers by every path beside NumPy, options, cells of users, and cards.

Where CuPy runs on a CPU, threads also run in orders that seeds draw, in which a missing barrier shows.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import xlstm
from tests import cuda_on_cpu, gpu, layers
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.random import generator
from xlstm.cells.activations import sigmoid, sigmoid_bwd, tanh_bwd
from xlstm.cells.cell import Cell
from xlstm.engines import cuda
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cuda import launch, source, tiling
from xlstm.engines.cuda.engine import Cuda
from xlstm.engines.cuda.launch import CudaError, Grid
from xlstm.engines.step import Masks, Step
from xlstm.models import TiRex
from xlstm.recurrence.backward import run_bwd

cupy = gpu.needed()

# Sizes with which bench.barriers runs in seconds.
BARRIERS = {"FEW": 2, "MANY": 4, "THREADS": 32, "STAY": 1, "MANY_CLUSTERS": 2, "ROUNDS": 1, "COPIED": 64}
# Largest difference relative to the largest value: that of the dtype, or of the factors of products.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "tf32": 4e-3, "float16": 6e-3, "bfloat16": 5e-2}
WAYS = [
    ("pointwise", "float64", None),
    ("plain", "float64", None),
    ("plain", "float32", None),
    ("grid", "float32", None),
    ("cluster", "float32", None),
    ("grid", "float32", "tf32"),
    ("cluster", "float32", "tf32"),
    ("cluster", "float16", None),
    ("grid", "bfloat16", None),
    ("cluster", "bfloat16", None),
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let layers be divided as on a card of 8 multiprocessors, so that groups wait for one another."""
    runtime = launch._runtime(0)
    monkeypatch.setattr(runtime, "device", runtime.device._replace(sms=8))
    return runtime


@pytest.fixture
def launched(small, monkeypatch):
    """Texts of the kernels that are launched, by name."""
    found, whole = {}, small.launch
    monkeypatch.setattr(
        small, "launch", lambda made, entry, *rest: found.update({entry: made.text}) or whole(made, entry, *rest)
    )
    return found


def results(layer, dtype="float64", lengths=None, backend="cupy", T=5, B=9, seed=3):
    """Run a layer forward and backward with the same numbers for every dtype; return all that it gives and `saved`."""
    be, rng = xlstm.backend(backend, dtype=dtype), generator(seed)
    params = {n: be.asarray(0.3 * rng.standard_normal(p.shape)) for n, p in layer.draw(generator(0)).items()}
    outer = (B, T) if layer.batch_first else (T, B)
    x = be.asarray(rng.standard_normal((*outer, layer.input_size)))
    L = layer.num_layers * len(layer.directions)
    state = [rng.standard_normal((L, B, size)) for size in layer.state_sizes]
    if "n" in layer.STATES:
        state[2] = abs(state[2]) + 1
    state = tuple(be.asarray(s) for s in state)
    y, end, saved = layer.forward(params, x, state, lengths=lengths, seed=5 if layer.random else None)
    dy, dend = be.asarray(rng.standard_normal(y.shape)), [be.asarray(rng.standard_normal(s.shape)) for s in end]
    grads, dx, start = layer.backward(params, saved, dy, dend)
    found = {"y": y, "dx": dx, **grads}
    found |= {f"end {k}": s for k, s in enumerate(end)} | {f"dstart {k}": s for k, s in enumerate(start)}
    for name, one in saved.passes.items():
        found |= {f"{name} gates": one.gates, f"{name} h": one.h}
        found |= {f"{name} {s}": getattr(one, s) for s in layer.STATES[1:]}
    return {name: to_numpy(a) for name, a in found.items()}


def agree(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        gap = np.max(np.abs(found[name].astype("float64") - value), initial=0.0)
        assert gap <= tolerance * max(np.max(np.abs(value), initial=0.0), 1e-3), (name, gap)


CELLS = {
    "lstm": lambda H: xlstm.LSTM(3, H),
    "lstm, options": lambda H: xlstm.LSTM(3, H, peepholes=True, clip=2.0, cell_clip=1.5),
    "lstm, coupled": lambda H: xlstm.LSTM(3, H, coupled_input_forget=True, peepholes=True, bias=False),
    "gru": lambda H: xlstm.GRU(3, H),
    "rnn": lambda H: xlstm.RNN(3, H),
    "slstm": lambda H: xlstm.sLSTM(3, H, num_heads=2),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("path", "dtype", "precision"), WAYS)
def test_cells_by_every_path(launched, cell, path, dtype, precision):
    layer = CELLS[cell](40)
    with cuda.use(path, precision):
        found = results(layer, dtype)
    assert {entry.removesuffix("_step") for entry in launched} >= {"xlstm_forward", "xlstm_backward"}
    assert ("xlstm_forward_step" in launched) == (path == "pointwise")
    agree(found, results(layer, backend="numpy"), TOLERANCE[precision or dtype])


@pytest.mark.parametrize(("path", "dtype"), [("pointwise", "float64"), ("plain", "float64"), ("cluster", "float32")])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "sLSTM"])
def test_lengths_stacks_directions_and_recomputing(path, dtype, kind, recompute):
    layer = getattr(xlstm, kind)(3, 20, 2, bidirectional=True, batch_first=True, recompute=recompute)
    lengths = [4, 2, 0, 5, 1, 5, 3, 1, 1, 2, 0]
    with cuda.use(path):
        found = results(layer, dtype, lengths, B=11)
    agree(found, results(layer, "float64", lengths, "numpy", B=11), TOLERANCE[dtype])


OPTIONS = {
    "recurrent dropout": lambda **more: xlstm.LSTM(3, 20, recurrent_dropout=0.4, **more),
    "recurrent dropout of a GRU": lambda **more: xlstm.GRU(3, 20, recurrent_dropout=0.4, zoneout=0.2, **more),
    "layer_norm": lambda **more: xlstm.LSTM(3, 20, layer_norm=True, recurrent_bias=True, **more),
    "layer_norm and more": lambda **more: xlstm.LSTM(
        3, 20, layer_norm=True, peepholes=True, zoneout=0.2, recurrent_dropout=0.4, cell_clip=0.5, **more
    ),
    "layer_norm of a GRU": lambda **more: xlstm.GRU(3, 20, layer_norm=True, **more),
    "layer_norm of an RNN": lambda **more: xlstm.RNN(3, 20, layer_norm=True, **more),
    "projection": lambda **more: xlstm.LSTM(3, 20, proj_size=7, **more),
    "projection and more": lambda **more: xlstm.LSTM(
        3, 20, proj_size=7, recurrent_dropout=0.4, layer_norm=True, zoneout=(0.0, 0.2), **more
    ),
    "reset before": lambda **more: xlstm.GRU(3, 20, reset_after=False, **more),
    "reset before and more": lambda **more: xlstm.GRU(
        3, 20, reset_after=False, recurrent_dropout=0.4, clip=0.5, recurrent_bias=True, **more
    ),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("path", "dtype"), [("pointwise", "float64"), ("pointwise", "float32"), ("plain", "float64")])
@pytest.mark.parametrize("lengths", [None, [4, 2, 0, 5, 1, 5, 3, 1, 1]])
def test_options(options, path, dtype, lengths):
    layer = OPTIONS[options](num_layers=2, bidirectional=True)
    refused = path == "plain" and not options.startswith("recurrent")
    expect = (
        pytest.raises(ValueError, match="no kernel does several steps with") if refused else contextlib.nullcontext()
    )
    with cuda.use(path), expect:
        agree(results(layer, dtype, lengths), results(layer, "float64", lengths, "numpy"), TOLERANCE[dtype])


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
    agree(found["cupy"], found["numpy"], TOLERANCE["float64"])


@pytest.mark.parametrize("path", ["pointwise", "plain"])
def test_numbers_of_a_cell(launched, path):
    """Each value has its own results from the same kernels."""
    texts = set()
    for k in range(3):
        activations = (f"hard_sigmoid({0.2 + 0.1 * k}, {0.5 - 0.1 * k})", "tanh", f"scaled_tanh({1 + k}, 0.5)")
        layer = xlstm.LSTM(3, 6, clip=0.3 + k, cell_clip=0.1 + 0.2 * k, activations=activations)
        with cuda.use(path):
            found = results(layer, T=3, B=2)
        agree(found, results(layer, backend="numpy", T=3, B=2), TOLERANCE["float64"])
        texts |= {text for entry, text in launched.items() if entry != source.ARRANGE}
    assert len(texts) == 2


@pytest.mark.parametrize("H", [1, 3, 17, 64, 100])
def test_any_width(H):
    layer = xlstm.LSTM(3, H)
    with cuda.use("grid"):
        found = results(layer, "float32", T=3, B=2)
    agree(found, results(layer, backend="numpy", T=3, B=2), TOLERANCE["float32"])


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
        agree(layers.run(layer, there, cupy.asarray(x), dy=gpu.as_it_lies(dy)), expected, 1e-12)
        y, _, saved = layer.forward(there, cupy.asarray(x)[:, :0])
        assert y.shape == (4, 0, 2)
        assert layer.backward(there, saved, y)[1].shape == (4, 0, 3)


def test_gradients_by_random_directions():
    layer = xlstm.LSTM(2, 5, 2, peepholes=True)
    params, x, state = layers.inputs_of(layer, xlstm.backend("cupy", dtype="float64"), generator(3), 4, 3)
    with cuda.use("plain"):
        assert layers.check(layer, params, x, state, [4, 2, 3]) < 1e-7


@pytest.mark.parametrize("path", ["plain", "grid", "cluster"])
def test_results_do_not_depend_on_the_order_of_threads(path):
    gpu.on_cpu()
    layer, found = xlstm.GRU(3, 40), []
    for seed in range(4):
        with cuda.use(path), cuda_on_cpu.configured(seed=seed):
            found.append(results(layer, "float32", T=4))
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


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
    broken = source.file(part).replace(text, text.replace("sync_block();", ""))
    assert broken != source.file(part)
    whole = source.file
    monkeypatch.setattr(source, "file", lambda name: broken if name == part else whole(name))
    source.loop.cache_clear()
    wrong = []
    try:
        for seed in (1, 2):
            with cuda.use(path), cuda_on_cpu.configured(seed=seed):
                found = results(layer, "float32", T=4)
            wrong += [n for n, v in expected.items() if not np.max(np.abs(found[n] - v)) <= 1e-4]
    finally:
        source.loop.cache_clear()
    assert wrong


def test_tensor_cores_multiply_matrices():
    """As the PTX manual says: the places of elements in lanes, and what they make."""
    text = (
        source.file("device.cuh")
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
    lengths = [4, 2, 0, 5, 1, 5, 3, 1, 1]
    monkeypatch.setattr(small, "device", small.device._replace(name=f"{lanes} lanes {which}", sms=sms))
    with cuda.use("plain"):
        found = results(layer, "float32", lengths)
    agree(found, results(layer, "float64", lengths, "numpy"), TOLERANCE["float32"])


class Gates(NamedTuple):
    z: Any
    n: Any
    a: Any
    h0: Any


@dataclass(frozen=True)
class LiGRU(Cell):
    """The light GRU of Ravanelli et al. 2018 as a user writes it, with a parameter M (H, 1).

    dh0 is a gradient of its own, and that of both products is one.
    """

    K: float = 1.0  # K and M are names in the templates, too

    GATES = ("z", "n")
    OWN = ("M",)

    def gates(self, xp, zx, zh, h0, M):
        a = zx + zh
        z, n = sigmoid(xp, a[0, ...]), xp.maximum(self.K * a[1, ...] * M, 0 * a[1, ...])
        return n + z * (h0 - n), Gates(z, n, a, h0)

    def gates_bwd(self, xp, saved, dh, M):
        z, n, _, h0 = saved
        dz = sigmoid_bwd(xp, dh * (h0 - n), z, z)
        dn = xp.where(n > 0, dh * (1 - z), 0 * dh)
        da = xp.stack((dz, self.K * dn * M))
        return da, da, dh * z

    def own_bwd(self, xp, dz, saved, M):
        return {"M": xp.sum(dz[1, ...] * saved.a[1, ...] / M, axis=(0, 2))}


@dataclass(frozen=True)
class Apart(Cell):
    """A cell whose products have gradients of their own, with a row of dzx more than gates, which `own_bwd` needs."""

    GATES = ("n",)
    STATES = ("h", "c")
    REST = (0.0, 0.0)
    OWN = ("p",)

    def gates(self, xp, zx, zh, h0, c0, p):
        n = xp.tanh(zx[0, ...] + p[0, ...] * zh[0, ...])
        c = 0.5 * c0 + n
        return c * p[1, ...], c, Apart.Saved(n, zh, c)

    class Saved(NamedTuple):
        n: Any
        m: Any
        c: Any

    def gates_bwd(self, xp, saved, dh, dc, p):
        dc = dc + p[1, ...] * dh
        dn = tanh_bwd(xp, dc, saved.n, saved.n)
        return xp.stack((dn, dh)), xp.stack((p[0, ...] * dn,)), None, 0.5 * dc

    def own_bwd(self, xp, dz, saved, c0, p):
        rows = xp.stack((dz[0, ...] * saved.m[0, ...], dz[1, ...] * saved.c))
        return {"p": xp.sum(rows, axis=(1, 3))}


@pytest.mark.parametrize(
    ("path", "dtype", "keep"),
    [
        *(("pointwise", "float64", keep) for keep in ("all", "states")),
        *(("cluster", "float32", keep) for keep in ("all", "states")),
        ("cluster", "float16", "all"),
        ("grid", "float32", "all"),
        ("plain", "float64", "all"),
    ],
)
@pytest.mark.parametrize("cell", [LiGRU(1.5), Apart()])
def test_cells_of_users(cell, path, dtype, keep):
    """Every path agrees with the reference engine, in gradients and in what is read from the tape."""
    H, D, widths = 20, 3, [(2, 9), (1, 9), (2, 4)]
    G, S, N, B = len(cell.GATES), len(cell.STATES), 35, 11

    def run(engine, be):
        rng = generator(0)
        own = (2 * H,) if "p" in cell.OWN else (H,)
        shapes = {"Wx": (G * H, D), "Wh": (G * H, H), "b": (G * H,), cell.OWN[0]: own}
        w = {name: be.asarray(0.3 * rng.standard_normal(shape)) for name, shape in shapes.items()}
        x, dy = (be.asarray(rng.standard_normal((N, size))) for size in (D, H))
        state, dend = ([be.asarray(rng.standard_normal((H, B))) for _ in range(S)] for _ in range(2))
        y, end, tape = engine.forward(Step(be.xp, cell, w, Masks()), x, state, widths, keep)
        grads, dx, start = run_bwd(copy.deepcopy(tape), dy, dend)
        found = {"y": y, "dx": dx, "h": tape.state("h"), **grads}
        found |= {f"end {k}": s for k, s in enumerate(end)} | {f"start {k}": s for k, s in enumerate(start)}
        if "c" in cell.STATES:
            found["c"] = tape.state("c")
        found["saved n"] = tape.rows(lambda kept: kept.saved.n, (H,))
        return {name: to_numpy(a) for name, a in found.items()}

    expected = run(ARRAY_API, xlstm.backend("numpy", dtype="float64"))
    with cuda.use(path):
        agree(run(Cuda(), xlstm.backend("cupy", dtype=dtype)), expected, TOLERANCE[dtype])


def test_barriers_are_measured_and_kept(monkeypatch, tmp_path):
    """The main function, with few and small groups: the record is there after every measurement."""
    from bench import barriers

    gpu.timed_as_a_card(monkeypatch)
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
    from xlstm.arrays import rows, together
    from xlstm.training import precision

    be, rng = xlstm.backend("cupy", dtype=dtype), np.random.default_rng(0)
    given = {str(k): be.asarray(rng.standard_normal(shape)) for k, shape in enumerate(((3,), (5000,), (7, 11)))}
    exact = {name: to_numpy(a).astype("float64") for name, a in given.items()}
    with gpu.counted() as found:
        up = precision.raised(given, "float32", 4.0)
        down = precision.lowered(up, dtype, 2.0)
        norm = together.norm(be.xp, list(given.values()))
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
    made = source.loop(tape.function, "forward", tape.choice.forward)
    runtime, wrong = launch.runtime(be.xp, tape.x), cupy.ones(4, dtype="float64")
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
