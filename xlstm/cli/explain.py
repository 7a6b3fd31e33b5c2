"""Says how a recurrent layer would run on a GPU."""

from __future__ import annotations

from typing import Any

from xlstm.arrays import checks, probe
from xlstm.arrays.namespace import DTYPES
from xlstm.engines.cuda import launch
from xlstm.engines.cuda.choice import choose, told
from xlstm.engines.cuda.tiling import Device, Tiling, peaks
from xlstm.engines.pointwise import pointwise
from xlstm.layers.recurrent import KINDS, sLSTM

LAYERS: dict[str, type[Any]] = {**KINDS, "slstm": sLSTM}
# Cards to ask about where there is none: SMs, the shared memory of a block, and blocks of a cluster.
CARDS = {
    "v100": Device("Tesla V100", 70, 80, 96 * 1024),
    "t4": Device("Tesla T4", 75, 40, 64 * 1024),
    "a100": Device("NVIDIA A100", 80, 108, 163 * 1024),
    "a10": Device("NVIDIA A10", 86, 72, 99 * 1024),
    "rtx3090": Device("NVIDIA GeForce RTX 3090", 86, 82, 99 * 1024),
    "l4": Device("NVIDIA L4", 89, 58, 99 * 1024),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 89, 128, 99 * 1024),
    "h100": Device("NVIDIA H100", 90, 132, 227 * 1024, 16),
    "h200": Device("NVIDIA H200", 90, 132, 227 * 1024, 16),
    "b200": Device("NVIDIA B200", 100, 148, 227 * 1024, 16),
    "rtx5090": Device("NVIDIA GeForce RTX 5090", 120, 170, 99 * 1024, 8),
}
PATHS = {
    "loop": "the array library alone, step by step",
    "pointwise": "a product and a kernel each step",
    "plain": "one kernel for all steps, ordinary arithmetic, blocks that meet in global memory",
    "grid": "one kernel for all steps, tensor cores, blocks that meet in global memory",
    "cluster": "one kernel for all steps, tensor cores, clusters of blocks",
}


def explain(kind: str, T: int, B: int, H: int, dtype: str, card: str | None = None) -> list[tuple[str, str]]:
    """Say what is chosen for a layer without options, and why nothing else, as lines with a heading each.

    `card` is one of CARDS, by default the GPU here, or else an H100. A name or a number that is none of these, or a
    path that was asked for and cannot do it, is a ValueError.
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
    about = f"{device.name}, sm_{device.capability}, {device.sms} SMs, {device.shared // 1024} KB a block{where}"
    return [
        ("layer", f"{layer!r}, {T} steps of {B} sequences, {dtype}"),
        ("device", about),
        ("peaks", f"{_peaks(device)} TFLOP/s, from data sheets"),
        ("path", f"{found.path}: {PATHS[found.path]}"),
        *((tiling.kind, _words(tiling, T)) for tiling in (found.forward, found.backward) if tiling is not None),
        *((f"not {path}", reason) for path, reason in found.others.items()),
    ]


def _peaks(device: Device) -> str:
    found = peaks(device.name, device.capability)._asdict()
    return ", ".join(f"{name} {peak * device.sms / 1e6:.3g}" for name, peak in found.items() if peak)


def _words(t: Tiling, T: int) -> str:
    shape = "a cluster" if t.cluster else "a group"
    waves = "" if t.waves == 1 else f" in {t.waves} turns"
    weights = t.M * t.K * t.arithmetic.size
    kept = max(0, weights - t.weights)
    return (
        f"{t.arithmetic.name}; {t.groups} times {t.blocks} blocks as {shape}{waves}, each {t.units} units of "
        f"{t.columns} sequences with {t.threads} threads; weights of a block {kept // 1024} KB in registers and "
        f"{(weights - kept) // 1024} KB in shared memory, of which {t.shared / 1024:.0f} KB are used; "
        f"{t.time:.1f} us a step, {t.time * T / 1000:.2f} ms (an estimate)"
    )


def _device(card: str | None) -> tuple[Device, str]:
    if card is not None:
        return CARDS[card], ""
    failure = probe.cupy_failure()
    return (launch.current(), "") if failure is None else (CARDS["h100"], f" (what if: {failure})")
