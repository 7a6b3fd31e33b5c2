"""The processes that a launcher of MPI started, as a group: arrays of the host go by MPI, those of
GPUs by NCCL.

mpi4py is imported only where a launcher started more than one process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import platform
import shlex
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import array_api_compat
import numpy as np

from xlstm.arrays import checks, cores, optional_imports
from xlstm.arrays.convert import BackendError, like, to_numpy
from xlstm.arrays.namespace import Array
from xlstm.arrays.ranks.groups import Alone, Group, OtherRankError, odd_ranks
from xlstm.arrays.ranks.nccl import KINDS, Nccl, agreed, choose_gpu
from xlstm.arrays.ranks.watchdog import SILENT, Clock, Watch

# Bytes that are summed at once. On one machine they stay in the cache, and 55 MB take two thirds of
# the time; between machines each piece costs a latency.
PIECE = 1 << 20
LARGE_PIECE = 1 << 30
SAID = 0.3  # seconds in which the launcher passes on what was written
# How many processes a launcher started. Batch scripts have SLURM_NTASKS, too; WORLD_SIZE says
# nothing without RANK.
SIZES = (
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "FLUX_JOB_SIZE",
    "JSM_NAMESPACE_SIZE",
    "WORLD_SIZE",
)
# the number of a process, where a launcher may not say how many there are
NUMBERS = ("PMIX_RANK", "PALS_RANKID")
INSTALL = "pip install 'xlstm-xp[mpi]'"

# functions that are called with the message before this rank ends the job
told: list[Callable[[str], None]] = []


def group(version: str, comm: Any = None) -> Group:
    """Return the processes that a launcher started, or those of a communicator, with this version
    of xlstm; `distributed.group` says more.
    """
    if comm is None:
        return world(version)
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not (isinstance(comm, mpi.Intracomm) and comm):
        null = mpi is not None and isinstance(comm, mpi.Comm) and not comm
        raise TypeError(
            f"group: comm is {'COMM_NULL, or freed' if null else checks.shown(comm)}, expected an"
            " intracommunicator of mpi4py, as MPI.COMM_WORLD.Split(color) returns it"
        )
    job = world(version)
    if comm == mpi.COMM_WORLD:
        return job
    numbers = comm.Get_group().Translate_ranks(None, mpi.COMM_WORLD.Get_group())
    if mpi.UNDEFINED in numbers:
        raise BackendError(
            "group: comm has processes that are not in MPI.COMM_WORLD, which cannot end the job"
            " where one of them fails"
        )
    # It belongs to the communicator: another one may get the same handle once this one is freed.
    if comm.Get_attr(_key()) is None:
        if isinstance(job, MpiGroup) and comm.size > 1:
            comm.Set_attr(_key(), MpiGroup(mpi, comm, job, numbers))
        else:
            comm.Set_attr(_key(), Alone())
    ranks: Group = comm.Get_attr(_key())
    return ranks


@functools.cache
def _key() -> int:
    """Return the key of the groups among the attributes of communicators."""
    return int(optional_imports.mpi().Comm.Create_keyval())


@functools.cache
def world(version: str) -> Group:
    """Return the group of all processes that the launcher started."""
    name, started = _started()
    if started == 1 and name not in NUMBERS and "mpi4py.MPI" not in sys.modules:
        return Alone()
    launched = (
        f"group: a launcher started {started}{' or more' if name in NUMBERS else ''} processes"
        f" ({name})"
    )
    try:
        mpi = optional_imports.mpi()
        library = mpi.Get_library_version()
        # An MPICH without PMIx ends the process where the launcher speaks nothing else.
        speaks = "PMI_SIZE" in os.environ or "PMIX_RANK" not in os.environ
        foreign = not speaks and library.startswith("MPICH") and "pmix" not in library
        if not (foreign or mpi.Is_initialized()):
            with _ended_by_signals():
                mpi.Init_thread(mpi.THREAD_MULTIPLE)
    except (ImportError, RuntimeError) as error:
        raise BackendError(
            f"{launched}, which needs mpi4py and an MPI ({optional_imports.first_line(error)});"
            f" {INSTALL}, or load the MPI of the cluster"
        ) from error
    if foreign or mpi.COMM_WORLD.size == 1 < started:
        if name == "WORLD_SIZE" and (instead := _instead_of_torch(started)):
            raise BackendError(f"{launched}, but {instead}")
        first = " ".join(library.splitlines()[0].rstrip("\0").split())
        raise BackendError(
            f"{launched}, but each of them sees itself alone: the launcher is that of another MPI"
            f" than mpi4py's ({first}), or of none; start with the mpiexec of this one"
        )
    if mpi.COMM_WORLD.size == 1:
        return Alone()
    if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        raise BackendError(
            "group: MPI runs without MPI_THREAD_MULTIPLE, which the watch beside each rank needs;"
            ' write mpi4py.rc.thread_level = "multiple" before `from mpi4py import MPI`, and with'
            " Cray MPICH export MPICH_MAX_THREAD_SAFETY=multiple"
        )
    with _ended_by_signals():
        ranks = MpiGroup(mpi, mpi.COMM_WORLD)
        versions = ranks.tell(f"{version} (checksum of its files {_checksum_of_files():08x})")
    common, odd = odd_ranks(versions)
    if odd:
        raise BackendError(
            f"group: rank {odd[0]} has version {versions[odd[0]]} of xlstm, expected that of other"
            f" ranks, {common}"
        )
    return ranks


def _instead_of_torch(started: int) -> str:
    """Return what to do instead of torchrun and PyTorchJob, or nothing where neither started this
    process.
    """
    if {"TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"} & os.environ.keys():
        line = shlex.join(["mpiexec", "-n", str(started), "python", *sys.argv])
        return f"torchrun starts no MPI; start with: {line}"
    if "MASTER_ADDR" in os.environ:
        return (
            f"a PyTorchJob starts no MPI; write an MPIJob that runs mpiexec -n {started}, as"
            " docs/distributed.md shows it"
        )
    return ""


def _checksum_of_files() -> int:
    """Return a number that tells the code of this package apart."""
    checksum = 0
    for path in sorted(Path(__file__).parents[2].rglob("*")):
        if path.suffix in (".py", ".cu", ".cuh"):
            checksum = zlib.crc32(path.read_bytes(), checksum)
    return checksum


def _started() -> tuple[str, int]:
    """Return how many processes a launcher started, or the least that there can be, after the
    variable that says so.
    """
    variables = {
        name: int(text)
        for name in (*SIZES, *NUMBERS)
        if (text := os.environ.get(name, "")).isdigit()
    }
    if "RANK" not in os.environ:
        variables.pop("WORLD_SIZE", None)
    sizes = {name: size for name, size in variables.items() if name in SIZES}
    sizes = sizes or {name: number + 1 for name, number in variables.items()}
    return max(sizes.items(), key=lambda item: item[1], default=("", 1))


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the process while it waits for others in C, where handlers of
    Python do not run.
    """
    handlers: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    handlers[number] = handler
                    signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for changed, handler in handlers.items():
            signal.signal(changed, handler)


class MpiGroup:
    """The group of the processes of a communicator.

    From here on a rank ends the job where it fails, or leaves while others wait for it.

    Parameters
    ----------
    mpi : module
        mpi4py.MPI
    comm : communicator of mpi4py
    job : MpiGroup, optional
        The group of all processes; this one is that, where it is not told.
    numbers : sequence of int, optional
        Those of the processes in the whole job, in the order of the ranks.
    """

    def __init__(
        self, mpi: Any, comm: Any, job: MpiGroup | None = None, numbers: Sequence[int] = ()
    ) -> None:
        self._comm = comm.Dup()
        self._here = mpi.IN_PLACE
        self.rank = int(comm.rank)
        self.size = int(comm.size)
        machine = comm.Split_type(mpi.COMM_TYPE_SHARED, self.rank)
        self.local_rank = int(machine.rank)
        self._hosts: list[str] = self._comm.allgather(platform.node())
        self.machines = len(set(self._hosts))
        self._piece = PIECE if self.machines == 1 else LARGE_PIECE
        self._nccl: Nccl | None = None
        self._clock = Clock()
        self._gpu_clocks = {kind: Clock(f"{kind} on the GPU") for kind in KINDS}
        self._beside = ThreadPoolExecutor(1, "xlstm.later")
        self._job = job or self
        self._numbers = list(numbers or range(self.size))
        if job is None:
            cores.share(machine.allgather(cores.affinity()).count(cores.affinity()))
            choose_gpu(self.local_rank)
            self._groups: list[MpiGroup] = []
            self._before = sys.excepthook
            sys.excepthook = self._failed
            # mpi4py has registered the end of MPI before, which comes after this
            atexit.register(self._leave)
        machine.Free()
        self._watch = Watch(comm.Dup(), (self._clock, *self._gpu_clocks.values()), self._end)
        self._job._groups.append(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a group cannot be pickled: it belongs to its process")

    def sum(self, a: Array) -> None:
        """Replace an array by the sum over all ranks, which has the same bits on each."""
        if array_api_compat.is_cupy_array(a):
            return self._gpus().sum(a)
        with self._clock.during("sum"), _on_host(a) as host:
            for piece in self._pieces(host):
                self._comm.Allreduce(self._here, piece)

    def tell(self, what: Any) -> list[Any]:
        """Return the small objects that the ranks tell, in the order of the ranks."""
        with self._clock.during("tell"):
            return list(self._comm.allgather(what))

    def share(self, arrays: Sequence[Array]) -> None:
        """Replace arrays by those of rank 0."""
        with self._clock.during("share"):
            for a in arrays:
                with _on_host(a) as host:
                    for piece in self._pieces(host):
                        self._comm.Bcast(piece)

    def sum_part(self, a: Array, out: Array) -> None:
        """Put this rank's part of the sum over all ranks of `a` (size * n,) into `out` (n,)."""
        if array_api_compat.is_cupy_array(a):
            return self._gpus().sum_part(a, out)
        with self._clock.during("sum"), _on_host(a) as host, _on_host(out) as part:
            self._comm.Reduce_scatter_block(host, part)

    def gather_parts(self, part: Array, out: Array) -> None:
        """Put the parts (n,) of all ranks side by side into `out` (size * n,)."""
        if array_api_compat.is_cupy_array(part):
            return self._gpus().gather_parts(part, out)
        with self._clock.during("gather"), _on_host(part) as own, _on_host(out) as host:
            self._comm.Allgather(own, host)

    def exchange(self, a: Array, out: Array) -> None:
        """Send the k-th of the parts of `a` (size * n,) to rank k, and put those that the ranks send
        here side by side into `out` (size * n,).
        """
        if array_api_compat.is_cupy_array(a):
            return self._gpus().exchange(a, out)
        with self._clock.during("exchange"), _on_host(a) as sent, _on_host(out) as received:
            self._comm.Alltoall(sent, received)

    def collect(self, part: Array, out: Array | None) -> None:
        """Put the parts (n,) of all ranks side by side into `out` (size * n,) of rank 0."""
        whole = contextlib.nullcontext() if out is None else _on_host(out)
        with self._clock.during("collect"), _on_host(part) as own, whole as host:
            self._comm.Gather(own, host)

    def later(self, function: Callable[..., None], *arrays: Array) -> Callable[[], None]:
        """Run `sum`, `sum_part` or `exchange` beside the caller, and return a function that waits for
        it: on a thread, or on a stream of its own.
        """
        if array_api_compat.is_cupy_array(arrays[0]):
            return self._gpus().later(function, *arrays)
        return self._beside.submit(function, *arrays).result

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

    def _gpus(self) -> Nccl:
        """Return NCCL; the first time connects the GPUs."""
        if self._nccl is None:
            number = agreed(self)
            with self._clock.during("start of NCCL"):
                self._nccl = Nccl(self, number, self._gpu_clocks)
            self._watch.check = self._nccl.check
        return self._nccl

    def _pieces(self, host: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield an array in pieces."""
        size = self._piece // host.itemsize
        return (host[at : at + size] for at in range(0, host.size, size))

    def _end(self, ranks: list[int], why: str, show: Callable[[], None] = lambda: None) -> None:
        """End the job since those ranks failed; of all that find this out, one rank says so."""
        if self._job._watch.speaks():
            show()
            where = f"host {', '.join(dict.fromkeys(self._hosts[rank] for rank in ranks))}"
            numbers = [self._numbers[rank] for rank in ranks]
            if (numbers, self._job.size) != (ranks, self.size):
                where = f"{_listed(numbers)} of {self._job.size} in the job, {where}"
            self.abort(
                f"xlstm: rank {_listed(ranks)} of {self.size} ({where}) failed, the job ends: {why}"
            )
        time.sleep(SILENT)
        self._comm.Abort(1)

    def _failed(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """End the job by an error that nobody has caught; of several ranks with one, a single rank
        shows it, by its number in the group that came last.
        """
        if issubclass(kind, KeyboardInterrupt):  # all ranks get it, and leave
            if self.rank == 0:
                self._before(kind, error, trace)
            return
        if isinstance(error, OtherRankError):
            time.sleep(SILENT / 2)  # that rank speaks
        last = self._groups[-1]
        last._end(
            [last.rank],
            optional_imports.first_line(error),
            lambda: self._before(kind, error, trace),
        )

    def _leave(self) -> None:
        """Wait at the end of the program for the other ranks; Ctrl-C ends it at once."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Groups may overlap, so none is waited for before all are left.
        for ranks in self._groups:
            ranks.close()
        for wait in [ranks._watch.leave() for ranks in self._groups]:
            wait()


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


@contextlib.contextmanager
def _on_host(a: Array) -> Iterator[np.ndarray[Any, Any]]:
    """Give an array as MPI takes it: flat, on the host, C-contiguous and of a dtype that MPI knows.

    It is the array itself where possible, and else a copy, which is put back afterwards.
    """
    host = np.asarray(to_numpy(a), order="C")
    if host.dtype == np.float16:
        host = host.astype(np.float32)
    yield host.reshape(-1)
    if host is not a:
        a[...] = like(host, a)
