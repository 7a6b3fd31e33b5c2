"""Kernels for a GPU, run on a CPU: the sources that NVRTC compiles, with a shim in the place of the device.

These tests see indices, tiles, fragments, double buffers, barriers as phases, and the arrays that go in and out. They
do not see time, nor what a device does that its manual does not say.
"""

from __future__ import annotations

import copy
import os
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import xlstm
from tests import compilers, layers
from tests.device import ShimRuntime, library
from xlstm.arrays.random import generator
from xlstm.cells import lstm
from xlstm.cells.activations import sigmoid, sigmoid_bwd, tanh_bwd
from xlstm.cells.cell import Cell
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cuda import launch, source, tiling
from xlstm.engines.cuda.engine import Cuda, CudaTape
from xlstm.engines.cuda.tiling import Device
from xlstm.engines.pointwise import pointwise
from xlstm.engines.step import Masks, Step
from xlstm.models import TiRex
from xlstm.recurrence.backward import run_bwd

# Small enough that groups have to wait for one another.
SMALL = Device("a small one", 90, 8, 232448, 16)
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
]


@pytest.fixture
def on_device(monkeypatch):
    """Layers of NumPy arrays run in kernels, on a device, by a path and with a precision."""

    def begin(path, precision=None, device=SMALL, seed=0):
        runtime = ShimRuntime(device, seed)
        monkeypatch.setattr(launch, "runtime", lambda xp, like: runtime)
        monkeypatch.setenv("XLSTM_CUDA_PATH", path)
        if precision:
            monkeypatch.setenv("XLSTM_CUDA_PRECISION", precision)
        return runtime

    yield begin
    monkeypatch.undo()


def results(layer, lengths=None, dtype="float64", T=5, B=9, seed=3):
    """Run a layer forward and backward with the same numbers for every dtype; return all that it gives and `saved`."""
    rng = generator(seed)
    params = {n: (0.3 * rng.standard_normal(p.shape)).astype(dtype) for n, p in layer.draw(generator(0)).items()}
    outer = (B, T) if layer.batch_first else (T, B)
    x = rng.standard_normal((*outer, layer.input_size)).astype(dtype)
    L = layer.num_layers * len(layer.directions)
    state = [rng.standard_normal((L, B, size)) for size in layer.state_sizes]
    if "n" in layer.STATES:
        state[2] = abs(state[2]) + 1
    state = tuple(s.astype(dtype) for s in state)
    y, end, saved = layer.forward(params, x, state, lengths=lengths, seed=5 if layer.random else None)
    dy, dend = rng.standard_normal(y.shape).astype(dtype), [rng.standard_normal(s.shape).astype(dtype) for s in end]
    grads, dx, start = layer.backward(params, saved, dy, dend)
    found = {"y": y, "dx": dx, **grads}
    found |= {f"end {k}": s for k, s in enumerate(end)} | {f"dstart {k}": s for k, s in enumerate(start)}
    for name, one in saved.passes.items():
        found |= {f"{name} gates": one.gates, f"{name} h": one.h}
        found |= {f"{name} {s}": getattr(one, s) for s in layer.STATES[1:]}
    return found


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
def test_cells_by_every_path(on_device, monkeypatch, cell, path, dtype, precision):
    layer = CELLS[cell](40)
    expected = results(layer)
    runtime = on_device(path, precision)
    monkeypatch.setattr(
        sys.modules["xlstm.arrays.namespace"], "_on_cpu_array", lambda array: False
    )  # float16 is refused there
    found = results(layer, dtype=dtype)
    assert {entry.removesuffix("_step") for entry in runtime.launches} >= {"xlstm_forward", "xlstm_backward"}
    assert ("xlstm_forward_step" in runtime.launches) == (path == "pointwise")
    agree(found, expected, TOLERANCE[precision or dtype])


@pytest.mark.parametrize(("path", "dtype"), [("pointwise", "float64"), ("plain", "float64"), ("cluster", "float32")])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "sLSTM"])
def test_lengths_stacks_directions_and_recomputing(on_device, path, dtype, kind, recompute):
    layer = getattr(xlstm, kind)(3, 20, 2, bidirectional=True, batch_first=True, recompute=recompute)
    lengths = [4, 2, 0, 5, 1, 5, 3, 1, 1, 2, 0]
    expected = results(layer, lengths, B=11)
    runtime = on_device(path)
    found = results(layer, lengths, dtype=dtype, B=11)
    assert len(runtime.launches) > 8
    agree(found, expected, TOLERANCE[dtype])


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
def test_options(on_device, options, path, dtype, lengths):
    layer = OPTIONS[options](num_layers=2, bidirectional=True)
    if path == "plain" and not options.startswith("recurrent"):
        on_device(path)
        with pytest.raises(ValueError, match="no kernel does several steps with"):
            results(layer, lengths)
        return
    expected = results(layer, lengths)
    runtime = on_device(path)
    found = results(layer, lengths, dtype=dtype)
    assert ("xlstm_forward" if path == "plain" else "xlstm_forward_step") in runtime.launches
    agree(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("path", ["pointwise", "plain"])
def test_the_limit_of_a_forget_gate(on_device, path):
    """In a network of TiRex, where it matters to some gates and not to others."""
    model = TiRex(8, 1, 2, patch_size=2, quantiles=(0.5,), input_ff_size=4, context=8)
    params = model.init(0, "numpy", "float64")
    params["blocks.0.cell.b"][8:16] = np.linspace(14, 16, 8)
    x = generator(1).standard_normal((3, 4, 4))

    def everything():
        y, _, saved = model.forward(params, x)
        grads, dx, _ = model.backward(params, saved, y)
        return {"y": y, "dx": dx, **grads}

    expected = everything()
    runtime = on_device(path)
    found = everything()
    assert runtime.launches
    agree(found, expected, TOLERANCE["float64"])


@pytest.mark.parametrize("path", ["pointwise", "plain"])
def test_numbers_of_a_cell(on_device, path):
    """Each value has its own results from the same kernels."""
    texts = set()
    for k in range(3):
        activations = (f"hard_sigmoid({0.2 + 0.1 * k}, {0.5 - 0.1 * k})", "tanh", f"scaled_tanh({1 + k}, 0.5)")
        layer = xlstm.LSTM(3, 6, clip=0.3 + k, cell_clip=0.1 + 0.2 * k, activations=activations)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "runtime", lambda xp, like: None)
            expected = results(layer, T=3, B=2)
        runtime = on_device(path)
        keep = runtime.launch
        runtime.launch = lambda made, *rest, keep=keep: texts.add(made.text) or keep(made, *rest)
        agree(results(layer, T=3, B=2), expected, TOLERANCE["float64"])
    assert len(texts) == 2


@pytest.mark.parametrize("H", [1, 3, 17, 64, 100])
def test_any_width(on_device, H):
    layer = xlstm.LSTM(3, H)
    expected = results(layer, T=3, B=2)
    on_device("grid")
    agree(results(layer, dtype="float32", T=3, B=2), expected, TOLERANCE["float32"])


@pytest.mark.parametrize("path", ["plain", "grid", "cluster"])
@pytest.mark.parametrize("smaller", [1.0, 1e-6, 1e-12])
def test_float32_as_two_halves_has_its_digits(on_device, path, smaller):
    """Also where numbers are beyond the range of float16, and where each sequence is a tenth of the one before it."""
    layer, rng, B = xlstm.LSTM(3, 40), generator(2), 8
    params = {n: (0.3 * rng.standard_normal(p.shape)) for n, p in layer.draw(generator(0)).items()}
    params |= {n: 0 * p for n, p in params.items() if n.endswith((".b", ".bh"))}
    each = smaller * 10.0 ** -np.arange(B)[:, None]
    x, dy = each * rng.standard_normal((5, B, 3)), each * rng.standard_normal((5, B, 40))
    expected = layers.run(layer, params, x, dy=dy)
    on_device(path)
    params, x, dy = {n: p.astype("float32") for n, p in params.items()}, x.astype("float32"), dy.astype("float32")
    found = layers.run(layer, params, x, dy=dy)
    for name, value in expected.items():
        by_sequence = (0, 2) if value.ndim == 3 else None
        gap = np.max(np.abs(found[name] - value), axis=by_sequence)
        assert np.all(gap <= 2e-6 * np.max(np.abs(value), axis=by_sequence)), (name, gap)


def test_arrays_that_do_not_lie_in_order_and_batches_without_sequences(on_device):
    layer = xlstm.LSTM(3, 1, bidirectional=True)
    rng = generator(0)
    params, x, dy = (
        layer.init(backend="numpy"),
        rng.standard_normal((4, 6, 3)),
        rng.standard_normal((4, 6, 4))[..., ::2],
    )
    params = {n: np.repeat(p, 2, axis=-1).astype("float64")[..., ::2] for n, p in params.items()}
    expected = layers.run(layer, params, x, dy=dy)
    for path in ("pointwise", "plain"):
        on_device(path)
        agree(layers.run(layer, params, x, dy=dy), expected, 1e-12)
        y, _, saved = layer.forward(params, x[:, :0])
        assert y.shape == (4, 0, 2)
        assert layer.backward(params, saved, y)[1].shape == (4, 0, 3)


def test_gradients_by_random_directions(on_device):
    on_device("plain")
    layer = xlstm.LSTM(2, 5, 2, peepholes=True)
    be = xlstm.backend("numpy", dtype="float64")
    params, x, state = layers.inputs_of(layer, be, generator(3), 4, 3)
    assert layers.check(layer, params, x, state, [4, 2, 3]) < 1e-7


@pytest.mark.parametrize("path", ["plain", "grid", "cluster"])
def test_results_do_not_depend_on_the_order_of_threads(on_device, path):
    layer, found = xlstm.GRU(3, 40), []
    for seed in range(4):
        on_device(path, seed=seed)
        found.append(results(layer, dtype="float32", T=4))
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
        ("cluster", "exchange.cuh", "    wait_arrivals(arrivals, (group.step - 1) / 2 % 2);"),
    ],
)
def test_a_missing_barrier_is_seen(on_device, monkeypatch, path, part, text):
    """The test of the test above."""
    layer = xlstm.GRU(3, 40)
    expected = results(layer, T=4)
    broken = source.file(part).replace(text, text.replace("sync_block();", "").replace("wait_arrivals", "(void)"))
    assert broken != source.file(part)
    whole = source.file
    monkeypatch.setattr(source, "file", lambda name: broken if name == part else whole(name))
    source.loop.cache_clear()
    wrong = []
    try:
        for seed in (1, 2):
            on_device(path, seed=seed)
            try:
                found = results(layer, dtype="float32", T=4)
            except AssertionError as error:
                wrong.append(str(error))
                continue
            wrong += [n for n, v in expected.items() if not np.max(np.abs(found[n] - v)) <= 1e-4]
    finally:
        source.loop.cache_clear()
    assert wrong


def test_threads_that_wait_in_vain_are_found(on_device, monkeypatch):
    whole = source.file
    broken = whole("exchange.cuh").replace("threadIdx.x == 0) set_flag", "threadIdx.x == 0 && group.rank) set_flag")
    monkeypatch.setattr(source, "file", lambda name: broken if name == "exchange.cuh" else whole(name))
    source.loop.cache_clear()
    assert broken != whole("exchange.cuh")
    on_device("grid")
    with pytest.raises(AssertionError, match="wait for what never comes"):
        results(xlstm.GRU(3, 40), dtype="float32", T=2)
    source.loop.cache_clear()


def test_the_model_of_tensor_cores_multiplies_matrices():
    """The shim's mma is that of the PTX manual: the places of elements in lanes, and what they make."""
    text = (
        source.file("device.cuh")
        + """
#define KERNEL multiply
extern "C" void KERNEL(const unsigned* a, const unsigned* b, float* c) {
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
    c = np.empty((16, 8), dtype="float32")
    made = source.Source("multiply", text, (), 0, 1)
    assert library(text) is not None
    ShimRuntime(SMALL).launch(made, "multiply", launch.Grid(1, 1, 32), [a, b, c])
    np.testing.assert_array_equal(c, a.astype("float32") @ b.astype("float32").T)


@pytest.mark.parametrize(
    ("kind", "lanes", "which", "width", "sms"),
    [
        *(("LSTM", lanes, "forward", 60, 8) for lanes in (1, 2, 4, 8)),
        *(("LSTM", lanes, "backward", 60, 8) for lanes in (4, 8)),
        *(("LSTM", lanes, "backward", 120, 40) for lanes in (1, 2)),
        ("GRU", 4, "forward", 60, 8),
    ],
)
def test_ordinary_arithmetic_with_weights_in_registers(on_device, monkeypatch, kind, lanes, which, width, sms):
    """So many lanes share rows, and add what they found; units beyond the last one are 0."""
    divisions = tiling._divisions

    def some(which_of, *given):
        for way in divisions(which_of, *given):
            if way[4] and (which_of != which or way[6:] == (lanes,)):
                yield way

    monkeypatch.setattr(tiling, "_divisions", some)
    layer = getattr(xlstm, kind)(3, width)
    lengths = [4, 2, 0, 5, 1, 5, 3, 1, 1]
    expected = results(layer, lengths)
    device = SMALL._replace(name=f"{lanes} lanes {which}", sms=sms)
    runtime = on_device("plain", device=device, seed=1)
    agree(results(layer, lengths, dtype="float32"), expected, TOLERANCE["float32"])
    assert {"xlstm_forward", "xlstm_backward"} <= set(runtime.launches)


def test_tilings_say_what_they_need_and_cover_all_units():
    step = pointwise(lstm.Cell(), (), ("b",))
    for device in (SMALL, Device("large", 90, 132, 232448, 16), Device("older", 80, 108, 166912)):
        for a in tiling.ARITHMETIC.values():
            for kind in tiling.PASSES:
                for width, B in ((1, 1), (50, 32), (384, 700), (512, 64), (1024, 16)):
                    for cluster in (False, True):
                        t = tiling.best(kind, step, width, 1, B, a, device, cluster)
                        if t is None:
                            continue
                        assert t.units * t.blocks >= width
                        assert t.shared <= device.shared
                        assert t.blocks <= device.sms
                        assert t.columns * t.groups >= B


def test_bfloat16(on_device):
    """A pass alone is run, for NumPy has no products of bfloat16."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    found = {}
    for path, dtype in (("pointwise", "float64"), ("grid", bfloat16), ("cluster", bfloat16), ("plain", bfloat16)):
        on_device(path)
        rng, runs, H = generator(1), [(2, 9), (3, 4)], 40
        B, N = 9, 30
        Wh, b, zx, h, c, dy = (
            0.3 * rng.standard_normal(s) for s in ((4 * H, H), 4 * H, (N, 4 * H), (B, H), (B, H), (N, H))
        )
        step = Step(np, lstm.Cell(), {"Wh": Wh.astype(dtype), "b": b.astype(dtype)}, Masks())
        state = [h.T.astype(dtype), c.T.astype(dtype)]
        tape = CudaTape(Cuda(), step, runs, zx.astype(dtype), state[0])
        assert tape.choice.path == path
        ends = tape.forward(state, "all")
        gradients, starts = tape.backward(dy.astype(dtype), ends)
        found[path] = {"y": tape.y, "dZ": gradients.arrays["zx"], "ends": np.stack(ends), "starts": np.stack(starts)}
    expected = found.pop("pointwise")
    for other in found.values():
        agree(other, expected, TOLERANCE["bfloat16"])


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
def test_cells_of_users(on_device, cell, path, dtype, keep):
    """Every path agrees with the reference engine, in gradients and in what is read from the tape."""
    H, D, widths = 20, 3, [(2, 9), (1, 9), (2, 4)]
    G, S, N, B = len(cell.GATES), len(cell.STATES), 35, 11

    def run(engine, dtype):
        rng = generator(0)
        own = (2 * H,) if "p" in cell.OWN else (H,)
        shapes = {"Wx": (G * H, D), "Wh": (G * H, H), "b": (G * H,), cell.OWN[0]: own}
        w = {name: (0.3 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}
        x, dy = (rng.standard_normal((N, size)).astype(dtype) for size in (D, H))
        state, dend = ([rng.standard_normal((H, B)).astype(dtype) for _ in range(S)] for _ in range(2))
        y, end, tape = engine.forward(Step(np, cell, w, Masks()), x, state, widths, keep)
        grads, dx, start = run_bwd(copy.deepcopy(tape), dy, dend)
        found = {"y": y, "dx": dx, "h": tape.state("h"), **grads}
        found |= {f"end {k}": s for k, s in enumerate(end)} | {f"start {k}": s for k, s in enumerate(start)}
        if "c" in cell.STATES:
            found["c"] = tape.state("c")
        return found | {"saved n": tape.rows(lambda kept: kept.saved.n, (H,))}

    expected = run(ARRAY_API, "float64")
    on_device(path)
    agree(run(Cuda(), dtype), expected, TOLERANCE[dtype])


def test_a_header_that_is_not_compiled_for_this_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(compilers.tempfile, "gettempdir", lambda: str(tmp_path))
    path = compilers.header("#define SEVEN 7\n", "g++", "-O1")
    os.remove(f"{path}.gch")
    made = compilers.load('extern "C" int seven() { return SEVEN; }\n', "g++", "-O1", "-include", path, "-x", "c++")
    assert made.seven() == 7
