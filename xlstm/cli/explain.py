"""Says how a recurrent layer would run on a GPU."""

from __future__ import annotations

from typing import Any

from xlstm.arrays import checks, probe
from xlstm.arrays.namespace import DTYPES
from xlstm.engines.cuda import launch
from xlstm.engines.cuda.choice import choose, told
from xlstm.engines.cuda.tiling import Device, Tiling
from xlstm.engines.pointwise import pointwise
from xlstm.layers.recurrent import KINDS, sLSTM

LAYERS: dict[str, type[Any]] = {**KINDS, "slstm": sLSTM}
# Cards to ask about where there is none: SMs, and the shared memory of a block.
CARDS = {
    "a100": Device("NVIDIA A100", 80, 108, 163 * 1024),
    "h100": Device("NVIDIA H100", 90, 132, 227 * 1024, 16),
    "h200": Device("NVIDIA H200", 90, 132, 227 * 1024, 16),
}
PATHS = {
    "loop": "the array library alone, step by step",
    "pointwise": "a product and a kernel each step",
    "plain": "one kernel for all steps, ordinary arithmetic, blocks that meet in global memory",
    "grid": "one kernel for all steps, tensor cores, blocks that meet in global memory",
    "cluster": "one kernel for all steps, tensor cores, clusters of blocks",
}


def explain(kind: str, T: int, B: int, H: int, dtype: str, card: str | None = None) -> list[tuple[str, str]]:
    """Return what is chosen for a layer without options, and why nothing else is, as lines with a heading each.

    Parameters
    ----------
    kind : {"lstm", "gru", "rnn", "slstm"}
    T, B, H : int
        Steps, sequences, units.
    dtype : str
        The dtype of the arrays, such as "float16".
    card : {"a100", "h100", "h200"}, optional
        The default is the GPU here, or an H100 where there is none.

    Raises
    ------
    ValueError
        A name or a number is none of these, or a path that was asked for cannot do it.
    """
    checks.choice(LAYERS)("explain", "layer", kind)
    checks.choice(DTYPES)("explain", "dtype", dtype)
    for name, size in (("T", T), ("B", B), ("H", H)):
        checks.size("explain", name, size)
    checks.optional(checks.choice(CARDS))("explain", "card", card)
    layer = LAYERS[kind](H, H)
    (cell,) = layer.cells.values()
    added = tuple(name.rpartition(".")[2] for name in layer.shapes if name.endswith((".b", ".bh")))
    device, where = _device(card)
    found = choose(kind, told(), pointwise(cell, (), added), "", dtype, H, 1, B, device)
    rows = [
        ("layer", f"{layer!r}, {T} steps of {B} sequences, {dtype}"),
        (
            "device",
            f"{device.name}, sm_{device.capability}, {device.sms} SMs, {device.shared // 1024} KB a block{where}",
        ),
        ("path", f"{found.path}: {PATHS[found.path]}"),
    ]
    rows += [(t.kind, _words(t, T)) for t in (found.forward, found.backward) if t is not None]
    rows += [(f"not {path}", reason) for path, reason in found.others.items()]
    return rows


def _words(t: Tiling, T: int) -> str:
    together = "a cluster" if t.cluster else "a group"
    waves = "" if t.waves == 1 else f" in {t.waves} turns"
    weights = t.M * t.K * t.arithmetic.size
    kept = max(0, weights - t.weights)
    return (
        f"{t.arithmetic.name}; {t.groups} times {t.blocks} blocks as {together}{waves}, each {t.units} units of "
        f"{t.columns} sequences with {t.threads} threads; weights of a block {kept // 1024} KB in registers and "
        f"{(weights - kept) // 1024} KB in shared memory, of which {t.shared / 1024:.0f} KB are used; "
        f"{t.time:.1f} us a step, {t.time * T / 1000:.2f} ms (an estimate)"
    )


def _device(card: str | None) -> tuple[Device, str]:
    if card is not None:
        return CARDS[card], ""
    failure = probe.cupy_failure()
    return (launch.current(), "") if failure is None else (CARDS["h100"], f" (what if: {failure})")
