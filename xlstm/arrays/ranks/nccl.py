"""GPUs of ranks, which add arrays of CuPy by NCCL.

NCCL works in the current stream, and so in CUDA graphs. How far a GPU has come shows in memory of
the host that the GPU writes to: the host itself knows of nothing that a graph does.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from typing import Any

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.convert import BackendError
from xlstm.arrays.namespace import Array, dtype_name
from xlstm.arrays.ranks.groups import Group
from xlstm.arrays.ranks.watchdog import Clock

INSTALL = "pip install 'xlstm-xp[nccl]'"


def choose_gpu(local_rank: int) -> None:
    """Make the GPU of a rank the current one, where there are GPUs and CuPy."""
    try:
        count = optional_imports.cupy().cuda.runtime.getDeviceCount()
    except Exception:  # without CuPy or a driver all arrays are on the host
        return
    if count:
        optional_imports.cupy().cuda.Device(local_rank % count).use()


def agreed(group: Group) -> Any:
    """Return the number of a new communicator; BackendError without NCCL, or where two ranks have
    the same GPU.
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
        That of the communicator, from `agreed`.
    clock : Clock
        Its counts are written by the GPU from now on.
    """

    def __init__(self, group: Group, number: Any, clock: Clock) -> None:
        cp = optional_imports.cupy()
        self._library = optional_imports.nccl()
        self._communicator = self._library.NcclCommunicator(group.size, number, group.rank)
        memory = cp.cuda.alloc_pinned_memory(clock.counts.nbytes)
        clock.counts = np.frombuffer(memory, np.int64, 2)
        clock.counts[:] = 0
        seen_by_gpu = cp.cuda.UnownedMemory(memory.ptr, memory.size(), memory, cp.cuda.Device().id)
        self._counts = cp.ndarray(2, np.int64, cp.cuda.MemoryPointer(seen_by_gpu, 0))

    def sum(self, a: Array) -> None:
        """Add up the arrays of all ranks in place."""
        kind = getattr(self._library, f"NCCL_{dtype_name(a.dtype).upper()}")
        stream = optional_imports.cupy().cuda.get_current_stream().ptr
        self._counts[0] += 1
        self._communicator.allReduce(
            a.data.ptr, a.data.ptr, a.size, kind, self._library.NCCL_SUM, stream
        )
        self._counts[1] += 1

    def check(self) -> None:
        """Raise the error that NCCL has met meanwhile, if any."""
        self._communicator.check_async_error()
