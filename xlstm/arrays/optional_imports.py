"""Packages that are imported when they are asked for, and a test of whether a GPU works here."""

from __future__ import annotations

import functools
from typing import Any

ROCM = (
    "CuPy for ROCm: layers run in operations of CuPy, as kernels and graphs of xlstm are for CUDA"
)
CUPY = "pip install 'cupy-cuda12x[ctk]' (CUDA 13: 'cupy-cuda13x[ctk]')"


class BackendError(RuntimeError):
    """A backend, or a package that it needs, cannot run here; the text says what failed and what to
    install.
    """


def cupy() -> Any:
    """Return the module, which is imported only when it is asked for."""
    import cupy

    return cupy


def torch() -> Any:
    """Return the module, which is imported only when it is asked for."""
    import torch

    return torch


def mpi() -> Any:
    """Return mpi4py's module. Where this imports it first, MPI does not start, but ends with the
    program.
    """
    import mpi4py

    mpi4py.rc(initialize=False, finalize=True)
    from mpi4py import MPI

    return MPI


def nccl() -> Any:
    """Return CuPy's module of NCCL; its `available` says whether the library is there."""
    from cupy.cuda import nccl

    return nccl


def pyarrow() -> Any:
    """Return the module with what reads Parquet files, which is imported only when it is asked
    for.
    """
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ImportError("Parquet files: to read them, pip install pyarrow") from error
    return pyarrow


@functools.cache
def rocm() -> bool:
    """Return whether this is the CuPy of AMD's GPUs, for which there are neither our kernels nor
    graphs.
    """
    return bool(cupy().cuda.runtime.is_hip)


@functools.cache
def cupy_failure(number: int | None = None) -> str | None:
    """Try CuPy, once per process: return None if it works, else what failed and how to fix it.

    The device is that of a number, or else the current one: to touch another one takes memory of
    it.

    Counting devices is not enough: NVRTC and cuBLAS are loaded only when a kernel is compiled and a
    product is taken, so both are done here.
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
    """Return the kind and the first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
