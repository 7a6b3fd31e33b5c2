"""Everything that a measured time depends on: machine, versions, threads, BLAS and its kernel, devices."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import xlstm
from xlstm.arrays import cores, probe
from xlstm.arrays.backend import available_backends
from xlstm.engines.numba import jit

PACKAGES = (
    *("numpy", "array-api-compat", "safetensors", "threadpoolctl", "numba"),
    *("cupy-cuda12x", "cupy-cuda13x", "torch", "jax", "keras", "onnx", "onnxruntime", "h5py", "matplotlib"),
)
# Beginnings of environment variables that change how fast something is.
VARIABLES = ("OPENBLAS", "OMP", "MKL", "BLIS", "CUPY_TF32", "NVIDIA_TF32", "NUMBA", "XLSTM")


def describe() -> dict[str, Any]:
    """Return everything by name, as JSON can hold it; packages that are not installed are left out."""
    try:
        count: int | str = cores.threads()
    except ValueError as error:
        count = f"refused: {error}"
    found: dict[str, Any] = {
        "xlstm": xlstm.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "processor": processor(),
        "cores": cores.usable(),
        "threads": count,
        "compiled loops": compiled(),
        "blas": cores.describe_blas(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
        "packages": {package: version for package in PACKAGES if (version := version_of(package))},
    }
    found |= {f"backend {name}": str(backend) for name, backend in available_backends().items()}
    if probe.cupy_failure() is None:
        runtime = probe.cupy().cuda.runtime
        found |= {"cuda driver": runtime.driverGetVersion(), "cuda runtime": runtime.runtimeGetVersion()}
    if "torch" in sys.modules and (torch := probe.torch()).cuda.is_available():
        found |= {"torch's cuda": torch.version.cuda, "torch's cudnn": torch.backends.cudnn.version()}
    return found


def version_of(package: str) -> str | None:
    """Return the version that is installed, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiled() -> str:
    """Say whether the loops on NumPy arrays are compiled, or why not, and where the code is kept."""
    if os.environ.get(jit.VARIABLE) == "0":
        return f"no: {jit.VARIABLE}=0"
    try:
        if not jit.enabled():
            return f"no: {jit.failure()}"
        from xlstm.engines.numba import codecache

        size = jit.shape("float32").lanes * 4
        return f"yes, by Numba {version_of('numba')} for vectors of {size} bytes, {codecache.describe()}"
    except (ImportError, ValueError) as error:
        return f"refused: {error}"


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
