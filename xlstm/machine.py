"""What a measured time depends on: machine, versions, threads, BLAS and its kernel, devices."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import xlstm
from xlstm import blas, jit, threads
from xlstm.backend import usable

PACKAGES = (
    *("numpy", "array-api-compat", "safetensors", "threadpoolctl", "numba", "scipy"),
    *("cupy-cuda12x", "cupy-cuda13x", "torch", "jax", "keras", "onnx", "onnxruntime", "h5py", "matplotlib"),
)
# Environment variables that change how fast something is, by how they begin.
VARIABLES = ("OPENBLAS", "OMP", "MKL", "BLIS", "CUPY_TF32", "NVIDIA_TF32", "NUMBA", "XLSTM")


def describe() -> dict[str, Any]:
    """Everything by name, fit for JSON; packages that are not installed are left out."""
    found: dict[str, Any] = {
        "xlstm": xlstm.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "processor": processor(),
        "cores": cores(),
        "threads": threads.available(),
        "blas": blas.describe(),
        "compiled loops": compiled(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
        "packages": {package: version for package in PACKAGES if (version := version_of(package))},
    }
    return found | {f"backend {name}": str(backend) for name, backend in usable().items()}


def version_of(package: str) -> str | None:
    """The version installed, None without."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiled() -> str:
    """Whether the loops on NumPy arrays are compiled, and why not."""
    if jit.enabled():
        return f"yes, by Numba {version_of('numba')}"
    return f"no: {jit.failure() or f'{jit.VARIABLE}=0'}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Its name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
