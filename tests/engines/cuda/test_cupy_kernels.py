"""Kernels of recurrent layers: whole layers by every path beside NumPy, options, cells of users,
and cards.

Where CuPy runs on a CPU, threads also run in orders that seeds draw, in which a missing barrier
shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import cuda_on_cpu
import xlstm
from tests import gpu, registry
from tests.registry import agree, largest
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.random import generator
from xlstm.cells.activations import tanh_bwd
from xlstm.engines import cuda
from xlstm.engines.cuda import cell_source, launch

cupy = gpu.needed()

# Largest difference relative to the largest value: that of the dtype, or of the factors of
# products.
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


asked = launch._device.__wrapped__  # anew at every call


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let layers be divided as on a card of 8 multiprocessors, so that groups wait for one
    another.
    """
    found = launch._device(0)._replace(sms=8)
    monkeypatch.setattr(launch, "_device", lambda number: found)


def results(layer, dtype="float64", backend="cupy", T=5, B=9, **options):
    """Run a layer forward and backward with the same numbers for every dtype; return all that it
    gives and keeps.
    """
    be = xlstm.backend(backend, dtype=dtype)
    params, x, state = registry.inputs_of(layer, be, generator(3), T, B, 0.3)
    if "n" in layer.STATES:
        state = (*state[:2], be.xp.abs(state[2]) + 1, state[3])
    return registry.run(
        layer, params, x, state, kept=True, seed=5 if layer.random else None, **options
    )


def beside_numpy(layer, dtype="float32", precision=None, **options):
    agree(
        results(layer, dtype, **options),
        results(layer, backend="numpy", **options),
        TOLERANCE[precision or dtype],
        largest,
    )


@dataclass(frozen=True)
class Apart(xlstm.Cell):
    """A cell as a user writes it, with a parameter of its own.

    Its products have gradients of their own, with a row of dzx more than gates, which `own_bwd`
    needs.
    """

    K: float = 1.5  # K and M are names in the templates, too

    GATES = ("n",)
    STATES = ("h", "c")
    REST = (0.0, 0.0)
    PARAMETERS = {"M": 2}  # noqa: RUF012

    class Saved(NamedTuple):
        n: Any
        m: Any
        c: Any

    def gates(self, xp, zx, zh, h0, c0, M):
        n = xp.tanh(self.K * zx[0, ...] + M[0, ...] * zh[0, ...])
        c = 0.5 * c0 + n
        return c * M[1, ...], c, self.Saved(n, zh[0, ...], c)

    def gates_bwd(self, xp, saved, dh, dc, M):
        dc = dc + M[1, ...] * dh
        dn = tanh_bwd(xp, dc, saved.n, saved.n)
        return xp.stack((self.K * dn, dh)), xp.stack((M[0, ...] * dn,)), None, 0.5 * dc

    def own_bwd(self, xp, dz, saved, c0, M):
        rows = xp.stack((dz[0, ...] * saved.m / self.K, dz[1, ...] * saved.c))
        return {"M": xp.sum(rows, axis=(1, 3))}


BOTH = {"num_layers": 2, "bidirectional": True}
# tests/parity.py has each option by itself.
LOOPS = {
    "LSTM, bounds": xlstm.LSTM(3, 40, peepholes=True, clip=2.0, cell_clip=1.5),
    "LSTM, coupled": xlstm.LSTM(3, 40, coupled_input_forget=True, peepholes=True, bias=False),
    "GRU": xlstm.GRU(3, 40),
    "sLSTM": xlstm.sLSTM(3, 40, num_heads=2),
    "LSTM, stack": xlstm.LSTM(3, 20, **BOTH, batch_first=True, recompute=True),
    "GRU, dropout and zoneout": xlstm.GRU(3, 20, recurrent_dropout=0.4, zoneout=0.2, **BOTH),
    "LSTM, zoneout": xlstm.LSTM(3, 20, zoneout=(0.3, 0.2)),
    "LSTM, zoneout of c": xlstm.LSTM(3, 20, zoneout=(0.0, 0.4), peepholes=True),
    "a cell of a user": xlstm.register_cell(Apart)(3, 20, **BOTH),
    **{f"LSTM of {H}": xlstm.LSTM(3, H) for H in (1, 17, 100)},
}
LAYER_NORM = {"layer_norm": True, "recurrent_dropout": 0.4}
STEPS = {
    "LSTM, other numbers": xlstm.LSTM(
        3,
        20,
        activations=("hard_sigmoid(0.3, 0.4)", "tanh", "scaled_tanh(2, 0.5)"),
        clip=0.5,
        cell_clip=0.3,
    ),
    "layer_norm": xlstm.LSTM(
        3, 20, **LAYER_NORM, peepholes=True, zoneout=0.2, cell_clip=0.5, **BOTH
    ),
    "layer_norm of a GRU": xlstm.GRU(3, 20, layer_norm=True, recurrent_bias=True, **BOTH),
    "projection": xlstm.LSTM(3, 20, proj_size=7, **LAYER_NORM, zoneout=(0.0, 0.2), **BOTH),
    "reset before": xlstm.GRU(
        3, 20, reset_after=False, recurrent_dropout=0.4, clip=0.5, recurrent_bias=True, **BOTH
    ),
}
# without a product of h
SCANS = {
    "minLSTM": xlstm.minLSTM(3, 40, recompute=True, reverse=True),
    "minGRU": xlstm.minGRU(3, 20, zoneout=0.2, batch_first=True, log_space=False),
}
CASES = [(name, way) for name in LOOPS for way in WAYS] + [
    (name, way) for name in STEPS for way in EXACT[:2]
]
CASES += [(name, way) for name in SCANS for way in EXACT]
CASES += [("minGRU", ("plain", "bfloat16", None))]


@pytest.mark.parametrize(
    "options", [{}, {"lengths": LENGTHS}, {"lengths": LENGTHS, "train": False, "keep": True}]
)
@pytest.mark.parametrize(("name", "way"), CASES)
def test_layers_by_every_path(monkeypatch, name, way, options):
    path, dtype, precision = way
    launched = set()
    whole = launch.launch
    monkeypatch.setattr(
        launch, "launch", lambda made, *rest: launched.add(made.name) or whole(made, *rest)
    )
    with cuda.use(path, precision):
        beside_numpy((LOOPS | STEPS | SCANS)[name], dtype, precision, **options)
    assert {
        entry.endswith("_step") for entry in launched - {cell_source.ARRANGE, "xlstm_again_step"}
    } == {path == "pointwise"}


@pytest.mark.parametrize("name", STEPS | SCANS)
def test_options_without_kernels_of_their_own(name):
    with cuda.use("loop"):
        beside_numpy((STEPS | SCANS)[name], lengths=LENGTHS)


@pytest.mark.parametrize(("cell", "path"), [("LSTM", "plain"), ("GRU", "plain"), ("LSTM", "grid")])
def test_gradients_of_blocks_that_are_no_multiple_of_the_shares(cell, path):
    """Where a share of the sum over blocks begins after the last block, it adds nothing: 6 blocks,
    5 shares of 2.
    """
    with cuda.use(path):
        beside_numpy(getattr(xlstm, cell)(3, 130), lengths=LENGTHS)


@pytest.mark.parametrize("path", ["plain", "grid", "cluster"])
@pytest.mark.parametrize("smaller", [1.0, 1e-6, 1e-12])
def test_float32_as_two_halves_has_its_digits(path, smaller):
    """Also where numbers are beyond the range of float16, and where each sequence is a tenth of the
    one before it.
    """
    layer = xlstm.LSTM(3, 40)
    rng = generator(2)
    B = 8
    params = {n: (0.3 * rng.standard_normal(p.shape)) for n, p in layer.draw(generator(0)).items()}
    params |= {n: 0 * p for n, p in params.items() if n.endswith((".b", ".bh"))}
    each = smaller * 10.0 ** -np.arange(B)[:, None]
    x = each * rng.standard_normal((5, B, 3))
    dy = each * rng.standard_normal((5, B, 40))
    expected = registry.run(layer, params, x, dy=dy)
    be = xlstm.backend("cupy")
    with cuda.use(path):
        there = {n: be.asarray(p) for n, p in params.items()}
        found = registry.run(layer, there, be.asarray(x), dy=be.asarray(dy))
    for name, value in expected.items():
        by_sequence = (0, 2) if value.ndim == 3 else None
        gap = np.max(np.abs(found[name] - value), axis=by_sequence)
        assert np.all(gap <= 2e-6 * np.max(np.abs(value), axis=by_sequence)), (name, gap)


@pytest.mark.parametrize("path", ["pointwise", "plain"])
def test_arrays_that_do_not_lie_in_order(path):
    layer = xlstm.LSTM(3, 1, bidirectional=True)
    rng = generator(0)
    x = rng.standard_normal((4, 6, 3))
    dy = rng.standard_normal((4, 6, 4))[..., ::2]
    params = {
        n: rng.standard_normal((*p.shape[:-1], 2 * p.shape[-1]))[..., ::2]
        for n, p in layer.draw(rng).items()
    }
    expected = registry.run(layer, params, x, dy=dy)
    there = {n: gpu.as_it_lies(p) for n, p in params.items()}
    with cuda.use(path):
        agree(
            registry.run(layer, there, cupy.asarray(x), dy=gpu.as_it_lies(dy)),
            expected,
            1e-12,
            largest,
        )


@pytest.mark.parametrize("path", ["plain", "grid", "cluster"])
def test_results_do_not_depend_on_the_order_of_threads(path):
    gpu.on_cpu()
    found = []
    for seed in range(4):
        with cuda.use(path), cuda_on_cpu.configured(seed=seed):
            found.append(results(xlstm.GRU(3, 40), "float32", T=4))
        agree(found[-1], found[0])


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
    x = be.asarray(np.ones((1, 2, 3)))
    h0 = be.asarray(np.ones((1, 2, 8)))
    with cuda.use(path, precision):
        y, _, saved = layer.forward(params, x, (h0, h0))
        assert np.isnan(to_numpy(y)).all()
        params["0.Wh"] = params["0.Wh"] * 0 + 1
        _, _, saved = layer.forward(params, x, (h0, h0))
        _, _, (dh0, _) = layer.backward(params, saved, y)
    assert np.isnan(to_numpy(dh0)).all()


def test_clusters_are_those_that_have_room_for_a_kernel(monkeypatch):
    """Small blocks of 16 fit onto a part of the chip that has no room for as many large ones."""
    gpu.on_cpu()
    monkeypatch.setattr(launch, "_device", asked)
    with cuda_on_cpu.configured(cluster=8), cuda.use("cluster"):
        assert launch.current().cluster == 8
        be = xlstm.backend("cupy", dtype="bfloat16")
        layer = xlstm.LSTM(3, 160)
        layer.forward(layer.init(0, be), be.asarray(np.ones((2, 2, 3))))
