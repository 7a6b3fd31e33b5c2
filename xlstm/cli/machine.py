"""What a measured time depends on: machine, versions, threads, BLAS and its kernel, devices."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import xlstm
from xlstm.arrays import blas, cores, probe, threads
from xlstm.arrays.backend import usable
from xlstm.engines.numba import jit

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
        "cores": cores.usable(),
        "threads": _threads(),
        "compiled loops": compiled(),  # before BLAS: they bring another one
        "blas": blas.describe(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
        "packages": {package: version for package in PACKAGES if (version := version_of(package))},
    }
    return found | {f"backend {name}": str(backend) for name, backend in usable().items()} | _cuda()


def version_of(package: str) -> str | None:
    """The version installed, None without."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiled() -> str:
    """Whether the loops on NumPy arrays are compiled, and why not; where the code is kept."""
    if os.environ.get(jit.VARIABLE) == "0":
        return f"no: {jit.VARIABLE}=0"
    try:
        if not jit.enabled():
            return f"no: {jit.failure()}"
        from xlstm.engines.numba import codecache

        return f"yes, by Numba {version_of('numba')}, {codecache.describe()}"
    except (ImportError, ValueError) as error:
        return f"refused: {error}"


def _threads() -> int | str:
    try:
        return threads.available()
    except ValueError as error:
        return f"refused: {error}"


def _cuda() -> dict[str, Any]:
    """Versions of the driver and of CUDA's libraries, on which a GPU's times depend."""
    found: dict[str, Any] = {}
    if probe.cupy_failure() is None:
        runtime = probe.cupy().cuda.runtime
        found |= {"cuda driver": runtime.driverGetVersion(), "cuda runtime": runtime.runtimeGetVersion()}
    if "torch" in sys.modules and (torch := probe.torch()).cuda.is_available():
        found |= {"torch's cuda": torch.version.cuda, "torch's cudnn": torch.backends.cudnn.version()}
    return found


def processor() -> str:
    """Its name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
