"""Compiles and launches kernels through CuPy, and says what the device is."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import probe
from xlstm.arrays.convert import dtype_of
from xlstm.arrays.namespace import Array, Namespace
from xlstm.engines.cuda.cell_source import ARRANGE, Source
from xlstm.engines.cuda.tiling import Device

OPTIONS = ("-std=c++17", "-default-device")
NONPORTABLE = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
OPTIN = 97  # cudaDevAttrMaxSharedMemoryPerBlockOptin
OTHERWISE = "XLSTM_CUDA_PATH=loop goes without own kernels"


class CudaError(RuntimeError):
    """A kernel that does not compile or cannot be launched."""


class Grid(NamedTuple):
    """The size of a launch: x * y blocks of so many threads with so many bytes of shared memory."""

    x: int
    y: int
    threads: int
    shared: int = 0


class Runtime:
    """One device of CuPy, and the kernels that were compiled for it."""

    def __init__(self, number: int) -> None:
        self.number, runtime = number, probe.cupy().cuda.runtime
        properties = runtime.getDeviceProperties(number)
        self.device = Device(
            properties["name"].decode(),
            10 * properties["major"] + properties["minor"],
            properties["multiProcessorCount"],
            runtime.deviceGetAttribute(OPTIN, number),
        )
        self._functions: dict[tuple[str, str], tuple[Callable[..., None], list[Any]]] = {}
        self._lock = threading.Lock()
        if self.device.capability >= 90:
            with probe.cupy().cuda.Device(number):
                largest = next((blocks for blocks in (16, 8) if self._clusters(blocks)), 0)
            self.device = self.device._replace(cluster=largest)

    def _clusters(self, blocks: int) -> bool:
        """Return whether clusters of so many blocks run: not every chip has SMs enough together.

        Each block has as much shared memory as one may have, and so an SM of its own, as blocks of large layers have.
        """
        text = f'extern "C" __global__ void __cluster_dims__({blocks}, 1, 1) xlstm_probe() {{}}'
        grid = Grid(blocks, 1, 32, self.device.shared)
        try:
            self.launch(Source("xlstm_probe", text, (), grid.shared, blocks, True), "xlstm_probe", grid, [])
        except CudaError:
            return False
        return True

    def launch(self, source: Source, entry: str, grid: Grid, args: Sequence[Any]) -> None:
        """Run the kernel `entry` of a source on NumPy scalars, arrays, and None where there is no array.

        Raises
        ------
        CudaError
            The kernel does not compile or is not launched, or an array does not fit.
        """
        key = (source.text, entry)
        if key not in self._functions:
            with self._lock:
                if key not in self._functions:
                    parameters = source.parameters if entry == source.name else ()
                    dtypes = [np.dtype(dtype_of(np, p.dtype)) if p.dtype else None for p in parameters]
                    self._functions[key] = _compiled(source, entry), dtypes or [None] * len(args)
        function, dtypes = self._functions[key]
        for k, (a, dtype) in enumerate(zip(args, dtypes, strict=False)):
            if a is None or isinstance(a, np.generic):
                continue
            if not a.flags.c_contiguous:
                raise CudaError(f"cuda: {entry} was given an array of shape {a.shape} that is not contiguous")
            if dtype is not None and a.dtype != dtype:
                name = source.parameters[k].name
                raise CudaError(f"cuda: {entry} was given {a.dtype} for {name}, expected {dtype}")
        if probe.cupy().cuda.runtime.getDevice() != self.number:
            raise CudaError(f"cuda: arrays are on device {self.number}, which is not CuPy's current one")
        nothing = np.uintp(0)
        given = tuple([nothing if a is None else a for a in args])
        try:
            function((grid.x, grid.y), (grid.threads,), given, shared_mem=grid.shared)
        except Exception as error:
            raise CudaError(
                f"cuda: {entry} was not launched on {self.device.name} ({probe.first_line(error)}): "
                f"{grid.x} x {grid.y} blocks of {grid.threads} threads with {grid.shared} bytes; {OTHERWISE}"
            ) from error


def _compiled(source: Source, entry: str) -> Any:
    try:
        function = module(source, entry).get_function(entry)
        if entry != ARRANGE and source.shared:
            function.max_dynamic_shared_size_bytes = source.shared
        if entry != ARRANGE and source.cluster and source.blocks > 8:
            probe.cupy().cuda.driver.funcSetAttribute(function.kernel.ptr, NONPORTABLE, 1)
    except probe.cupy().cuda.compiler.CompileException as error:
        log = error.get_message()
        raise CudaError(f"cuda: {source.name} does not compile; {OTHERWISE}. NVRTC says:\n{log}") from error
    except Exception as error:
        reason = probe.first_line(error)
        raise CudaError(f"cuda: {source.name} does not fit the device ({reason}); {OTHERWISE}") from error
    return function


def module(source: Source, entry: str) -> Any:
    """Return the CuPy module of a kernel, not compiled yet; blocks that wait for one another are launched together."""
    cooperative = entry != ARRANGE and source.blocks > 1 and not source.cluster
    return probe.cupy().RawModule(
        code=source.text, options=OPTIONS, backend="nvrtc", enable_cooperative_groups=cooperative
    )


def runtime(xp: Namespace, like: Array) -> Runtime | None:
    """Return the runtime of the device of an array, or None where `xp` is not CuPy."""
    return _runtime(like.device.id) if xp is not np and xp.__name__.endswith("cupy") else None


def current() -> Device:
    """Return CuPy's current device."""
    return _runtime(int(probe.cupy().cuda.runtime.getDevice())).device


@functools.cache
def _runtime(number: int) -> Runtime:
    return Runtime(number)
