"""`xlstm info`: what runs here, and how a layer would run on a GPU."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer import Option

from xlstm.arrays import checks, probe
from xlstm.arrays.backend import Backend, available_backends, backend
from xlstm.arrays.convert import BackendError
from xlstm.arrays.namespace import DTYPES
from xlstm.cli import machine
from xlstm.cli.configuration import JsonOption
from xlstm.cli.console import out
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


def info(
    layer: Annotated[
        tuple[str, int, int, int, str] | None,
        Option("--explain", metavar="LAYER T B H DTYPE", help="How it runs on a GPU."),
    ] = None,
    card: Annotated[str | None, Option(help="For --explain: t4, rtx4090, h100, ... instead of the GPU.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show versions, devices, threads, and which backend is chosen and why."""
    if layer is not None:
        _print(explain(*layer, card), 14, as_json)
        return
    if card is not None:
        raise ValueError("info: --card goes with --explain")
    about = machine.describe()
    rows = {key: about[key] for key in ("xlstm", "python", "processor", "cores")}
    rows |= {package: about["packages"].get(package, "not installed") for package in machine.PACKAGES}
    rows |= {"threads": about["threads"], "blas": "; ".join(about["blas"]), "compiled loops": about["compiled loops"]}
    for name, one in available_backends().items():
        rows[f"backend {name}"] = str(one) if isinstance(one, Backend) else f"not usable: {one}"
    try:
        chosen = backend("auto")
        rows["auto chooses"] = f"{chosen} ({chosen.reason})"
    except (ValueError, BackendError) as error:
        rows["auto chooses"] = f"nothing: {error}"
    _print({**about, **rows} if as_json else rows, 18, as_json)


def _print(rows: dict[str, Any], width: int, as_json: bool) -> None:
    """Print names and values, as lines or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for name, value in rows.items():
        out.print(f"{name:{width}s}{value}")


def explain(kind: str, T: int, B: int, H: int, dtype: str, card: str | None = None) -> dict[str, str]:
    """Say which path is chosen for a layer without options on a GPU, and why no other, by headings.

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
    failure = None if card is not None else probe.cupy_failure()
    device = launch.current() if card is None and failure is None else CARDS[card or "h100"]
    choice = choose(told(), pointwise(cell, (), added), "", dtype, H, 1, B, device)
    shared = f"{device.shared // 1024} KB a block" + ("" if failure is None else f" (what if: {failure})")
    speeds = {name: peak * device.sms / 1e6 for name, peak in peaks(device.name, device.capability)._asdict().items()}
    rows = {
        "layer": f"{layer!r}, {T} steps of {B} sequences, {dtype}",
        "device": f"{device.name}, sm_{device.capability}, {device.sms} SMs, {shared}",
        "peaks": f"{', '.join(f'{name} {v:.3g}' for name, v in speeds.items() if v)} TFLOP/s, from data sheets",
        "path": f"{choice.path}: {PATHS[choice.path]}",
    }
    rows |= {tiling.kind: _words(tiling, T) for tiling in (choice.forward, choice.backward) if tiling is not None}
    return rows | {f"not {path}": reason for path, reason in choice.others.items()}


def _words(t: Tiling, T: int) -> str:
    """Return how a kernel is divided, and the time that it should take."""
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
