"""The GPUs of ranks, which sum and exchange arrays of CuPy by NCCL.

NCCL works in the current stream, and so in CUDA graphs. The GPU writes its progress to memory of
the host, because the host itself does not see the steps of a graph.
"""

from __future__ import annotations

import contextlib
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.convert import BackendError
from xlstm.arrays.groups import Group
from xlstm.arrays.namespace import Array, dtype_name
from xlstm.arrays.ranks.watchdog import Clock

INSTALL = "pip install 'xlstm-xp[nccl12]' (CUDA 13: 'xlstm-xp[nccl13]')"
KINDS = ("sum", "gather", "exchange")  # the operations that GPUs do together


def choose_gpu(local_rank: int) -> None:
    """Make the GPU of a rank the current one, if there are GPUs and CuPy."""
    try:
        count = optional_imports.cupy().cuda.runtime.getDeviceCount()
    except Exception:  # without CuPy or a driver all arrays are on the host
        return
    if count:
        optional_imports.cupy().cuda.Device(local_rank % count).use()


def agreed(group: Group) -> Any:
    """Return the id of a new communicator.

    Raise BackendError without NCCL, or if two ranks have the same GPU.
    """
    library = optional_imports.nccl()
    if not library.available:
        raise BackendError(f"group: CuPy finds no NCCL, which sums on GPUs need; {INSTALL}")
    owners = defaultdict[Any, list[int]](list)
    for rank, gpu in enumerate(
        group.tell((optional_imports.cupy().cuda.Device().pci_bus_id, platform.node()))
    ):
        owners[gpu].append(rank)
    for (bus, host), ranks in owners.items():
        if len(ranks) > 1:
            raise BackendError(
                f"group: ranks {ranks} have the same GPU ({bus} on host {host}); NCCL takes one"
                " rank for each GPU, so start no more ranks than there are GPUs"
            )
    return group.tell(library.get_unique_id() if group.rank == 0 else None)[0]


class Nccl:
    """A communicator of NCCL.

    Parameters
    ----------
    group : Group
    number : object
        The id of the communicator, from `agreed`.
    clocks : dict of str to Clock
        One for each of `KINDS`. From now on the GPU writes their counts.
    """

    def __init__(self, group: Group, number: Any, clocks: Mapping[str, Clock]) -> None:
        cp = optional_imports.cupy()
        self._library = optional_imports.nccl()
        self._communicator = self._library.NcclCommunicator(group.size, number, group.rank)
        self._size = group.size
        self._byte = self._library.NCCL_UINT8
        self._beside = cp.cuda.Stream(non_blocking=True)
        memory = cp.cuda.alloc_pinned_memory(16 * len(clocks))
        counts = np.frombuffer(memory, np.int64, 2 * len(clocks)).reshape(-1, 2)
        counts[...] = 0
        seen_by_gpu = cp.cuda.UnownedMemory(memory.ptr, memory.size(), memory, cp.cuda.Device().id)
        by_gpu = cp.ndarray(counts.shape, np.int64, cp.cuda.MemoryPointer(seen_by_gpu, 0))
        self._counts = dict(zip(clocks, by_gpu, strict=True))
        for clock, row in zip(clocks.values(), counts, strict=True):
            clock.counts = row

    def sum(self, a: Array) -> None:
        """Add up the arrays of all ranks in place."""
        with self._counted("sum", a) as (whole,):
            self._communicator.allReduce(
                whole.data.ptr, whole.data.ptr, whole.size, *self._addition(whole), _stream()
            )

    def sum_part(self, a: Array, out: Array) -> None:
        """Write this rank's part of the sum of all ranks to `out`."""
        with self._counted("sum", a, out) as (whole, part):
            self._communicator.reduceScatter(
                whole.data.ptr, part.data.ptr, part.size, *self._addition(whole), _stream()
            )

    def gather_parts(self, part: Array, out: Array) -> None:
        """Write the parts of all ranks, side by side, to `out`."""
        with self._counted("gather", part, out) as (own, whole):
            self._communicator.allGather(
                own.data.ptr, whole.data.ptr, own.nbytes, self._byte, _stream()
            )

    def exchange(self, a: Array, out: Array) -> None:
        """Send a part of `a` to each rank, and write arriving parts, side by side, to `out`."""
        with self._counted("exchange", a, out) as (sent, received):
            size = sent.nbytes // self._size
            self._library.groupStart()
            for rank in range(self._size):
                at = rank * size
                self._communicator.send(sent.data.ptr + at, size, self._byte, rank, _stream())
                self._communicator.recv(received.data.ptr + at, size, self._byte, rank, _stream())
            self._library.groupEnd()

    def later(self, function: Callable[..., None], *arrays: Array) -> Callable[[], None]:
        """Run a function of the group on a second stream.

        The returned function lets the current stream wait for it.
        """
        cuda = optional_imports.cupy().cuda
        copies = contextlib.ExitStack()
        # on the current stream, so that the second stream allocates nothing
        contiguous = copies.enter_context(_contiguous(*arrays))
        self._beside.wait_event(cuda.get_current_stream().record())
        with self._beside:
            function(*contiguous)
        end = self._beside.record()

        def wait() -> None:
            cuda.get_current_stream().wait_event(end)
            copies.close()

        return wait

    def check(self) -> None:
        """Raise the error that NCCL has met since the last check, if any."""
        self._communicator.check_async_error()

    @contextlib.contextmanager
    def _counted(self, kind: str, *arrays: Array) -> Iterator[list[Array]]:
        """Yield arrays in NCCL's form, and let the GPU count the work of the `with` block."""
        with _contiguous(*arrays) as contiguous:
            self._counts[kind][0] += 1
            yield contiguous
            self._counts[kind][1] += 1

    def _addition(self, a: Array) -> tuple[int, int]:
        """Return NCCL's numbers for the dtype of an array and for sums."""
        return getattr(self._library, f"NCCL_{dtype_name(a.dtype).upper()}"), self._library.NCCL_SUM


@contextlib.contextmanager
def _contiguous(*arrays: Array) -> Iterator[list[Array]]:
    """Yield C-contiguous arrays: the arrays themselves if possible, else copies.

    The values of copies are written back afterwards.
    """
    contiguous = [optional_imports.cupy().ascontiguousarray(a) for a in arrays]
    yield contiguous
    for a, copy in zip(arrays, contiguous, strict=True):
        if copy is not a:
            a[...] = copy.reshape(a.shape)


def _stream() -> int:
    """Return the address of the current stream."""
    return int(optional_imports.cupy().cuda.get_current_stream().ptr)
