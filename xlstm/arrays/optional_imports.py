"""Packages that are imported only on demand, and a test of the GPU."""

from __future__ import annotations

import functools
from typing import Any

ROCM = (
    "CuPy for ROCm: layers run in operations of CuPy, as kernels and graphs of xlstm are for CUDA"
)
CUPY = "pip install 'cupy-cuda12x[ctk]' (CUDA 13: 'cupy-cuda13x[ctk]')"


class BackendError(RuntimeError):
    """A backend, or a package that it needs, cannot run here.

    The message says what failed and what to install.
    """


def cupy() -> Any:
    """Import the module on demand, and return it."""
    import cupy

    return cupy


def torch() -> Any:
    """Import the module on demand, and return it."""
    import torch

    return torch


def mpi() -> Any:
    """Return mpi4py's module.

    If this call imports it first, MPI does not start with the import, but ends with the program.
    """
    import mpi4py

    mpi4py.rc(initialize=False, finalize=True)
    from mpi4py import MPI

    return MPI


def nccl() -> Any:
    """Return CuPy's module of NCCL; its `available` says whether NCCL is installed."""
    from cupy.cuda import nccl

    return nccl


def pyarrow() -> Any:
    """Import PyArrow's module for Parquet files on demand, and return it."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError("Parquet files: to read them, pip install pyarrow") from error
    return pyarrow


@functools.cache
def rocm() -> bool:
    """Return whether CuPy is the build for AMD's GPUs, which has neither our kernels nor graphs."""
    return bool(cupy().cuda.runtime.is_hip)


@functools.cache
def cupy_failure(number: int | None = None) -> str | None:
    """Try CuPy once per process; return None if it works, else what failed and how to fix it.

    The device is `number`, or else the current one: touching a further device would take memory
    there.

    Counting devices is not enough: NVRTC and cuBLAS are loaded only when a kernel is compiled and a
    product is computed, so this function does both.
    """
    try:
        cp = cupy()
    except Exception as error:  # a broken installation raises more than ImportError
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return f"CuPy is not installed; for an NVIDIA GPU: {CUPY}"
        return f"CuPy does not import ({first_line(error)}); reinstall it: {CUPY}"
    try:
        count = cp.cuda.runtime.getDeviceCount()
    except Exception as error:
        return (
            f"no NVIDIA driver or device answers ({first_line(error)}); install or update the"
            " NVIDIA driver"
        )
    if (number or 0) >= count:
        return f"CUDA device {number or 0} does not exist, {count} found"
    try:
        with cp.cuda.Device(number):
            ones = cp.ones((32, 32), dtype="float32")
            twice = cp.ElementwiseKernel("float32 a", "float32 b", "b = a + a", "xlstm_probe")(ones)
            if float((ones @ twice).sum()) != 65536.0:
                return (
                    "a test kernel and a matrix product gave a wrong result; check the driver and"
                    " the GPU"
                )
    except Exception as error:
        return (
            f"a test kernel and a matrix product did not run ({first_line(error)}); "
            f"install CuPy with the CUDA libraries: {CUPY}"
        )
    return None


def first_line(error: BaseException) -> str:
    """Return the class and the first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
