"""The processes that a launcher of MPI started, as a group: arrays of the host go by MPI, those of GPUs by NCCL.

mpi4py is imported only where a launcher started more than one process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import array_api_compat
import numpy as np

from xlstm.arrays import cores, nccl, probe
from xlstm.arrays.convert import BackendError, like, to_numpy
from xlstm.arrays.groups import Alone, Group, OtherRankError
from xlstm.arrays.namespace import Array
from xlstm.arrays.watch import SILENT, Clock, Watch

PIECE = 1 << 20  # bytes that are summed at once: they stay in the cache, and 55 MB take half the time
SAID = 0.3  # seconds in which the launcher passes on what was written
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # SLURM_NTASKS is set in batch scripts, too
INSTALL = "pip install 'xlstm-xp[mpi]'"

told: list[Callable[[str], None]] = []  # functions that are called with the message before this rank ends the job


@functools.cache
def group(version: str) -> Group:
    """Return the processes that a launcher started, with this version of xlstm; `distributed.group` says more."""
    sizes = {name: int(text) for name in SIZES if (text := os.environ.get(name, "")).isdigit()}
    name, started = max(sizes.items(), key=lambda item: item[1], default=("", 1))
    if started == 1 and "mpi4py.MPI" not in sys.modules:
        return Alone()
    launched = f"group: a launcher started {started} processes ({name})"
    try:
        mpi = probe.mpi()
    except (ImportError, RuntimeError) as error:
        needs = f"mpi4py and an MPI ({probe.first_line(error)}); {INSTALL}, or load the MPI of the cluster"
        raise BackendError(f"{launched}, which needs {needs}") from error
    if mpi.COMM_WORLD.size == 1 < started:
        library = mpi.Get_library_version().splitlines()[0].rstrip("\0")
        other = f"that of another MPI than mpi4py's ({library}); start with the mpiexec of this one"
        raise BackendError(f"{launched}, but each of them sees itself alone: the launcher is {other}")
    if mpi.COMM_WORLD.size == 1:
        return Alone()
    if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        raise BackendError("group: MPI runs without MPI_THREAD_MULTIPLE, which the watch beside each rank needs")
    ranks = Ranks(mpi)
    if len(versions := dict.fromkeys(ranks.tell(version))) > 1:
        raise BackendError(f"group: the ranks have different versions of xlstm: {', '.join(versions)}")
    return ranks


class Ranks:
    """The group of all processes that MPI knows.

    From here on a rank ends the job where it fails, or leaves while others wait for it.
    """

    def __init__(self, mpi: Any) -> None:
        world = mpi.COMM_WORLD
        self._comm, self._here = world.Dup(), mpi.IN_PLACE
        self.rank, self.size = int(world.rank), int(world.size)
        machine = world.Split_type(mpi.COMM_TYPE_SHARED, self.rank)
        self.local_rank = int(machine.rank)
        cores.share(machine.allgather(cores.affinity()).count(cores.affinity()))
        machine.Free()
        self._hosts: list[str] = self._comm.allgather(platform.node())
        self._nccl: nccl.Nccl | None = None
        self._clock, self._gpu = Clock(), Clock("sum on the GPU")
        nccl.choose(self.local_rank)
        self._watch = Watch(world.Dup(), (self._clock, self._gpu), self._end)
        self._before, sys.excepthook = sys.excepthook, self._failed
        atexit.register(self._leave)  # mpi4py has registered the end of MPI before, which comes after this

    def __reduce__(self) -> NoReturn:
        raise TypeError("a group cannot be pickled: it belongs to its process")

    def sum(self, a: Array) -> None:
        """Replace a contiguous array by the sum over all ranks, which has the same bits on each."""
        if array_api_compat.is_cupy_array(a):
            return self._on_gpus(a)
        with self._clock.during("sum"), _on_host(a) as host:
            for piece in _pieces(host):
                self._comm.Allreduce(self._here, piece)

    def tell(self, what: Any) -> list[Any]:
        """Return the small objects that the ranks tell, in the order of the ranks."""
        with self._clock.during("tell"):
            return list(self._comm.allgather(what))

    def share(self, arrays: Sequence[Array]) -> None:
        """Replace contiguous arrays by those of rank 0."""
        with self._clock.during("share"):
            for a in arrays:
                with _on_host(a) as host:
                    for piece in _pieces(host):
                        self._comm.Bcast(piece)

    def sum_part(self, a: Array, out: Array) -> None:
        """Put this rank's part of the sum over all ranks of `a` (size * n,) into `out` (n,)."""
        with self._clock.during("sum"), _on_host(a) as host, _on_host(out) as part:
            self._comm.Reduce_scatter_block(host, part)

    def gather_parts(self, part: Array, out: Array) -> None:
        """Put the parts (n,) of all ranks side by side into `out` (size * n,)."""
        with self._clock.during("gather"), _on_host(part) as own, _on_host(out) as host:
            self._comm.Allgather(own, host)

    def abort(self, message: str) -> None:
        """End the job now, on all ranks, with a message and status 1."""
        for tell in told:
            tell(message)
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()
        time.sleep(SAID)
        self._comm.Abort(1)

    def close(self) -> None:
        """Say that this rank needs the others no more: one that still waits for it ends the job."""
        if self._watch.how == "goes on":
            self._watch.notify("leaves")

    def _on_gpus(self, a: Array) -> None:
        """Sum an array of CuPy; the first time connects the GPUs."""
        if self._nccl is None:
            number = nccl.agree(self)
            with self._clock.during("start of NCCL"):
                self._nccl = nccl.Nccl(self, number, self._gpu)
            self._watch.check = self._nccl.check
        self._nccl.sum(a)

    def _end(self, ranks: list[int], why: str, show: Callable[[], None] = lambda: None) -> None:
        """End the job since those ranks failed; of all that find this out, one rank says so."""
        if self._watch.speaks():
            show()
            names = ", ".join(map(str, ranks))
            hosts = ", ".join(dict.fromkeys(self._hosts[rank] for rank in ranks))
            self.abort(f"xlstm: rank {names} of {self.size} (host {hosts}) failed, the job ends: {why}")
        time.sleep(SILENT)
        self._comm.Abort(1)

    def _failed(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """End the job by an error that nobody has caught; of several ranks with one, a single rank shows it."""
        if issubclass(kind, KeyboardInterrupt):  # all ranks get it, and leave
            if self.rank == 0:
                self._before(kind, error, trace)
            return
        if isinstance(error, OtherRankError):
            time.sleep(SILENT / 2)  # that rank speaks
        self._end([self.rank], probe.first_line(error), lambda: self._before(kind, error, trace))

    def _leave(self) -> None:
        """Wait at the end of the program for the other ranks; Ctrl-C ends it at once."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.close()
        self._watch.leave()


@contextlib.contextmanager
def _on_host(a: Array) -> Iterator[np.ndarray[Any, Any]]:
    """Give the memory of an array of the host, of which MPI knows the dtype; else a copy, which is put back."""
    host = to_numpy(a)
    if host.dtype == np.float16:
        host = host.astype(np.float32)
    yield host.reshape(-1)
    if host is not a:
        a[...] = like(host, a)


def _pieces(host: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Yield an array in pieces that stay in the cache."""
    size = PIECE // host.itemsize
    return (host[at : at + size] for at in range(0, host.size, size))
