"""`xlstm info`: what runs here, and how a layer would run on a GPU."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from xlstm.arrays.backend import Backend, available_backends, backend
from xlstm.arrays.convert import BackendError
from xlstm.cli import explain, machine
from xlstm.cli.console import out
from xlstm.cli.options import JsonOption


def info(
    layer: Annotated[
        tuple[str, int, int, int, str] | None,
        typer.Option("--explain", metavar="LAYER T B H DTYPE", help="How it runs on a GPU: lstm 512 64 512 float16."),
    ] = None,
    card: Annotated[str | None, typer.Option(help="For --explain: t4, rtx4090, h100, ... instead of the GPU.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show versions, devices, threads, and which backend is chosen and why."""
    if layer is not None:
        lines = explain.explain(*layer, card)
        _print(dict(lines), 14, as_json)
        return
    if card is not None:
        raise ValueError("info: --card goes with --explain")
    found = machine.describe()
    rows = {key: found[key] for key in ("xlstm", "python", "processor", "cores")}
    rows |= {package: machine.version_of(package) or "not installed" for package in machine.PACKAGES}
    rows |= {"threads": found["threads"], "blas": "; ".join(found["blas"]), "compiled loops": found["compiled loops"]}
    for name, one in available_backends().items():
        rows[f"backend {name}"] = str(one) if isinstance(one, Backend) else f"not usable: {one}"
    try:
        chosen = backend("auto")
        rows["auto chooses"] = f"{chosen} ({chosen.reason})"
    except (ValueError, BackendError) as error:
        rows["auto chooses"] = f"nothing: {error}"
    _print({**found, **rows} if as_json else rows, 18, as_json)


def _print(rows: dict[str, Any], width: int, as_json: bool) -> None:
    """Print names and values, as lines or as one JSON object."""
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for name, value in rows.items():
        out.print(f"{name:{width}s}{value}")
