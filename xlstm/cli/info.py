"""`xlstm info`: everything that a measured time depends on, and how a layer would run on a GPU."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

import xlstm
from xlstm.arrays import checks, cores, optional_imports
from xlstm.arrays.backend import available_backends, backend
from xlstm.arrays.compiled import VARIABLE
from xlstm.arrays.namespace import DTYPES
from xlstm.cli.console import out
from xlstm.cli.options import JsonOption
from xlstm.engines.cuda import check as checking
from xlstm.engines.cuda import launch
from xlstm.engines.cuda.choice import choose, told
from xlstm.engines.cuda.tiling import Device, Tiling, peaks
from xlstm.engines.numba import jit
from xlstm.engines.pointwise import pointwise
from xlstm.layers.recurrent import KINDS, minGRU, minLSTM, sLSTM

PACKAGES = (
    "numpy",
    "array-api-compat",
    "safetensors",
    "threadpoolctl",
    "numba",
    "mpi4py",
    "mpich",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "torch",
    "jax",
    "keras",
    "onnx",
    "onnxruntime",
    "h5py",
    "matplotlib",
)
# Beginnings of environment variables that change how fast something is.
VARIABLES = ("OPENBLAS", "OMP", "MKL", "BLIS", "CUPY_TF32", "NVIDIA_TF32", "NUMBA", "XLSTM")
LAYERS: dict[str, type[Any]] = {
    **KINDS,
    "slstm": sLSTM,
    "minlstm": minLSTM,
    "mingru": minGRU,
}
# Cards to ask about without a GPU: SMs, the shared memory of a block, and blocks of a cluster.
CARDS = {
    "v100": Device("Tesla V100", 70, 80, 96 * 1024),
    "t4": Device("Tesla T4", 75, 40, 64 * 1024),
    "a100": Device("NVIDIA A100", 80, 108, 163 * 1024),
    "l4": Device("NVIDIA L4", 89, 58, 99 * 1024),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 89, 128, 99 * 1024),
    "h100": Device("NVIDIA H100", 90, 132, 227 * 1024, 16),
    "b200": Device("NVIDIA B200", 100, 148, 227 * 1024, 16),
    "rtx5090": Device("NVIDIA GeForce RTX 5090", 120, 170, 99 * 1024, 8),
}


def info(
    layer: Annotated[
        tuple[str, int, int, int, str] | None,
        Option("--explain", metavar="LAYER T B H DTYPE", help="Say how a layer runs on a GPU."),
    ] = None,
    card: Annotated[
        str | None, Option(help="Card for --explain, instead of the GPU: t4, rtx4090, h100, ...")
    ] = None,
    check: Annotated[
        bool, Option("--check", help="Compare kernels with NumPy, as `xlstm check`.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show versions, devices, threads, and which backend is chosen and why."""
    if check:
        check_kernels(as_json)
    if layer is not None:
        rows: dict[str, Any] = explain(*layer, card)
    elif card is not None:
        raise ValueError("info: --card goes with --explain")
    else:
        home = backend("auto")
        rows = describe() | {"auto chooses": f"{home} ({home.reason})"}
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        show(rows)


def show(rows: dict[str, Any]) -> None:
    """Print the rows of `describe` or `explain`, a line each."""
    for name, value in rows.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        out.print(f"{name:18s}{value}")


def check_kernels(as_json: JsonOption = False) -> None:
    """Compare the values and bits of every kind of kernel on the GPU with NumPy's, and keep the
    result.
    """
    report = checking.apart()
    typer.echo(json.dumps([row._asdict() for row in report]) if as_json else str(report))
    raise typer.Exit(bool(report.wrong))


def describe() -> dict[str, Any]:
    """Return everything by name, as JSON can hold it; packages that are not installed are left
    out.
    """
    about: dict[str, Any] = {
        "xlstm": xlstm.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "processor": processor(),
        "cores": cores.usable(),
        "threads": cores.threads(),
        "compiled loops": compiled(),
        "blas": cores.describe_blas(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
        "packages": {package: version for package in PACKAGES if (version := version_of(package))},
    }
    for name, home in available_backends().items():
        about[f"backend {name}"] = f"not usable: {home}" if isinstance(home, str) else str(home)
    if optional_imports.cupy_failure() is None:
        runtime = optional_imports.cupy().cuda.runtime
        about["cuda driver"] = runtime.driverGetVersion()
        about["cuda runtime"] = runtime.runtimeGetVersion()
        if optional_imports.rocm():
            about["rocm"] = optional_imports.ROCM
    if "torch" in sys.modules and (torch := optional_imports.torch()).cuda.is_available():
        about["torch's cuda"] = torch.version.cuda
        about["torch's cudnn"] = torch.backends.cudnn.version()
    return about


def version_of(package: str) -> str | None:
    """Return the version that is installed, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiled() -> str:
    """Say whether the loops on NumPy arrays are compiled, and where the code is kept, or why they
    are not compiled.
    """
    if os.environ.get(VARIABLE) == "0":
        return f"no: {VARIABLE}=0"
    try:
        if not jit.enabled():
            return f"no: {jit.failure()}"
        from xlstm.engines.numba import codecache

        size = jit.shape("float32").lanes * 4
        return (
            f"yes, by Numba {version_of('numba')} for vectors of {size} bytes,"
            f" {codecache.describe()}"
        )
    except (ImportError, ValueError) as error:
        return f"refused: {error}"


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def explain(
    kind: str, T: int, B: int, H: int, dtype: str, card: str | None = None
) -> dict[str, str]:
    """Say which path is chosen for a layer without options on a GPU, and why no other, by headings.

    `card` is one of CARDS, by default the GPU here, or else an H100. A name or a number that is
    none of these, or a path that was asked for and cannot do it, is a ValueError.
    """
    checks.choice(LAYERS)("explain", "layer", kind)
    checks.choice(DTYPES)("explain", "dtype", dtype)
    checks.optional(checks.choice(CARDS))("explain", "card", card)
    for name, size in (("T", T), ("B", B), ("H", H)):
        checks.size("explain", name, size)
    layer = LAYERS[kind](H, H)
    (cell,) = layer.cells.values()
    added = tuple(name.rpartition(".")[2] for name in layer.shapes if name.endswith((".b", ".bh")))
    failure = None if card else optional_imports.cupy_failure()
    if not (card or failure) and optional_imports.rocm():
        failure = optional_imports.ROCM
    device = CARDS[card or "h100"] if card or failure else launch.current()
    choice = choose(told(), pointwise(cell, (), added), "", dtype, H, 1, B, device)
    note = f" (what if: {failure})" if failure else ""
    speeds = peaks(device.name, device.capability)._asdict().items()
    rates = [f"{name} {v * device.sms / 1e6:.3g}" for name, v in speeds if v]
    rows = {
        "layer": f"{layer!r}, {T} steps of {B} sequences, {dtype}",
        "device": (
            f"{device.name}, sm_{device.capability}, {device.sms} SMs,"
            f" {device.shared // 1024} KB a block{note}"
        ),
        "peaks": f"{', '.join(rates)} TFLOP/s, from data sheets",
        "path": choice.path,
    }
    for tiling in (choice.forward, choice.backward):
        if tiling is not None:
            rows[tiling.kind] = _words(tiling, T)
    return rows | {f"not {path}": reason for path, reason in choice.others.items()}


def _words(t: Tiling, T: int) -> str:
    """Return how a kernel is divided, and the time that it should take."""
    waves = "" if t.waves == 1 else f" in {t.waves} turns"
    return (
        f"{t.arithmetic.name}; {t.groups} times {t.blocks} blocks as a"
        f" {'cluster' if t.cluster else 'group'}{waves}, each {t.units} units of {t.columns}"
        f" sequences, {t.threads} threads and {t.shared / 1024:.0f} KB; {t.time:.1f} us a step,"
        f" {t.time * T / 1000:.2f} ms (an estimate)"
    )
