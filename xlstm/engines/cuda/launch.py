"""Compile and launch kernels through CuPy, and describe the device."""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import fuse, optional_imports
from xlstm.arrays.cuda import kernel_fallback
from xlstm.arrays.cuda.kernel_fallback import CudaError
from xlstm.arrays.namespace import Array, Namespace
from xlstm.engines.cuda import check_results
from xlstm.engines.cuda.kernel_source import KernelSource
from xlstm.engines.cuda.tiling import Device

OPTIONS = ("-std=c++17", "-default-device")
NONPORTABLE = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
OPTIN = 97
SMS = 16  # cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount
DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def launch(
    source: KernelSource, blocks: tuple[int, int], threads: int, args: Sequence[Any]
) -> None:
    """Run a kernel on NumPy scalars and arrays, with None for a missing array.

    Parameters
    ----------
    source : KernelSource
    blocks : (int, int)
        Blocks along both axes of the grid.
    threads : int
        Threads of a block.
    args : sequence
        Arrays must be contiguous, on the current device, and of the dtypes that the kernel
        declares.

    Raises
    ------
    CudaError
        The kernel does not compile or cannot be launched.
    """
    cupy = optional_imports.cupy()
    nothing = np.uintp(0)
    try:
        kernel = _kernel(source, cupy.cuda.runtime.getDevice())
        kernel(
            blocks,
            (threads,),
            tuple([nothing if a is None else a for a in args]),
            shared_mem=source.shared,
        )
    except Exception as error:
        raise _refused(source, error, f"{blocks[0]} x {blocks[1]}", threads) from error


def resident(source: KernelSource, threads: int) -> int:
    """Return how many blocks of a kernel run at once, if its blocks wait for one another.

    Raises
    ------
    CudaError
        Blocks that wait for one another do not run at once, or the kernel does not compile.
    """
    try:
        blocks = _resident(source, threads, optional_imports.cupy().cuda.runtime.getDevice())
    except Exception as error:
        raise _refused(source, error, str(source.blocks), threads) from error
    if blocks < source.blocks:
        problem = (
            f"{source.name} has {source.blocks} blocks that wait for one another, and {blocks} run"
            " at once"
        )
        raise CudaError(f"cuda: on {kernel_fallback.current()} {problem}")
    return blocks


@functools.cache
def _resident(source: KernelSource, threads: int, number: int) -> int:
    """Ask CUDA how many blocks run at once; it knows the part of the device that this process may
    use, as with MPS.
    """
    cuda = optional_imports.cupy().cuda
    function = _kernel(source, number).kernel.ptr
    if not source.cluster:
        each = cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
            function, threads, source.shared
        )
        return int(each * cuda.runtime.deviceGetAttribute(SMS, number))
    clusters = ctypes.c_int()
    # The type CUlaunchConfig: sizes of the grid and of a block, shared memory, stream, attributes,
    # and their number.
    config = struct.pack("@7I2PI", source.blocks, 1, 1, threads, 1, 1, source.shared, 0, 0, 0)
    try:
        ask = ctypes.CDLL(DRIVER).cuOccupancyMaxActiveClusters
    except (OSError, AttributeError):  # the launch will show the problem
        return source.blocks
    status = ask(ctypes.byref(clusters), ctypes.c_void_p(function), config)
    return source.blocks * (1 if status else clusters.value)


def _refused(source: KernelSource, error: Exception, blocks: str, threads: int) -> CudaError:
    if kernel_fallback.no_memory(error):
        raise error
    log = ""
    size = f": {blocks} blocks of {threads} threads with {source.shared} bytes"
    if isinstance(error, optional_imports.cupy().cuda.compiler.CompileException):
        log = f" NVRTC says:\n{error.get_message()}"
        size = ""
    why = f"on {kernel_fallback.current()} {source.name} {kernel_fallback.reason(error)}{size}"
    return CudaError(f"cuda: {why}\nXLSTM_CUDA_PATH=loop goes without own kernels.{log}")


@functools.cache
def _kernel(source: KernelSource, number: int) -> Any:
    """Return a kernel for the current device, which has this number; blocks that wait for one
    another run at once.
    """
    cupy = optional_imports.cupy()
    together = source.blocks > 1 and not source.cluster
    kernel = cupy.RawKernel(
        source.text, source.name, OPTIONS, backend="nvrtc", enable_cooperative_groups=together
    )
    if source.shared:
        kernel.max_dynamic_shared_size_bytes = source.shared
    if source.cluster and source.blocks > 8:
        cupy.cuda.driver.funcSetAttribute(kernel.kernel.ptr, NONPORTABLE, 1)
    return kernel


def device(xp: Namespace, like: Array) -> Device | None:
    """Return the device of an array, or None if `xp` is not CuPy on CUDA."""
    return _device(like.device.id) if fuse.compiles(xp) else None


def current() -> Device:
    """Return CuPy's current device."""
    return _device(int(optional_imports.cupy().cuda.runtime.getDevice()))


@functools.cache
def _device(number: int) -> Device:
    runtime = optional_imports.cupy().cuda.runtime
    properties = runtime.getDeviceProperties(number)
    capability = 10 * properties["major"] + properties["minor"]
    shared = runtime.deviceGetAttribute(OPTIN, number)
    with optional_imports.cupy().cuda.Device(number):
        largest = next((n for n in (16, 8) if capability >= 90 and _clusters(n, shared, number)), 0)
        check_results.first_use()
    return Device(
        properties["name"].decode(), capability, properties["multiProcessorCount"], shared, largest
    )


def _clusters(blocks: int, shared: int, number: int) -> bool:
    """Return whether clusters of `blocks` blocks run: not every chip has enough SMs together.

    Each block has the most shared memory that a block can have, and so its own SM, like blocks of
    large layers.
    """
    text = f'extern "C" __global__ void __cluster_dims__({blocks}, 1, 1) xlstm_probe() {{}}'
    source = KernelSource("xlstm_probe", text, (), shared, blocks, True)
    try:
        _kernel(source, number)((blocks,), (32,), (), shared_mem=shared)
    except Exception:  # CUDA or NVRTC refuses them
        return False
    return True
