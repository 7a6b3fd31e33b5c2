"""The group of processes started by a launcher of MPI.

Arrays on the host travel by MPI, arrays on GPUs by NCCL. mpi4py is imported only if a launcher
started more than one process.
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
from xlstm.arrays.groups import Alone, Group, OtherRankError, odd_ranks
from xlstm.arrays.namespace import Array
from xlstm.arrays.ranks.nccl import KINDS, Nccl, agreed, choose_gpu
from xlstm.arrays.ranks.watchdog import SILENT, Clock, Watch

# Bytes summed at once. On one machine such a piece stays in the cache: a sum of 55 MB takes two
# thirds of the time it takes in one piece. Between machines each piece costs a latency.
PIECE = 1 << 20
LARGE_PIECE = 1 << 30
SAID = 0.3  # seconds for the launcher to pass on output
# The number of processes that a launcher started. Batch scripts have SLURM_NTASKS, too; WORLD_SIZE
# means nothing without RANK.
SIZES = (
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "FLUX_JOB_SIZE",
    "JSM_NAMESPACE_SIZE",
    "WORLD_SIZE",
)
# the number of a process, for launchers that may not tell how many there are
NUMBERS = ("PMIX_RANK", "PALS_RANKID")
INSTALL = "pip install 'xlstm-xp[mpi]'"

# functions called once this rank has said why it ends the job
told: list[Callable[[], None]] = []


def group(version: str, comm: Any = None) -> Group:
    """Return the processes of a launcher, or of a communicator, with this version of xlstm.

    `distributed.group` documents it.
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
    # The group belongs to the communicator: another communicator may get the same handle once this
    # one is freed.
    if comm.Get_attr(_key()) is None:
        if isinstance(job, MpiGroup) and comm.size > 1:
            comm.Set_attr(_key(), MpiGroup(mpi, comm, job, numbers))
        else:
            comm.Set_attr(_key(), Alone())
    ranks: Group = comm.Get_attr(_key())
    return ranks


@functools.cache
def _key() -> int:
    """Return the key under which communicators hold their groups as attributes."""
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
        # An MPICH without PMIx ends the process if the launcher speaks only PMIx.
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
    """Return advice for a process started by torchrun or PyTorchJob, or "" for other processes."""
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
    """Return a number that differs if the code of this package differs."""
    checksum = 0
    for path in sorted(Path(__file__).parents[2].rglob("*")):
        if path.suffix in (".py", ".cu", ".cuh"):
            checksum = zlib.crc32(path.read_bytes(), checksum)
    return checksum


def _started() -> tuple[str, int]:
    """Return the environment variable of a launcher, and the number of processes it started.

    If the launcher does not tell the number, it is the least that there can be.
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
    """Let Ctrl-C and SIGTERM end the process while it waits for others inside a call of C.

    Python's handlers do not run there.
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

    Once the group exists, a rank ends the job if it fails, or if it leaves while others wait for
    it.

    Parameters
    ----------
    mpi : module
        mpi4py.MPI
    comm : communicator of mpi4py
    job : MpiGroup, optional
        The group of all processes; by default this group itself.
    numbers : sequence of int, optional
        The numbers of the processes in the whole job, in the order of the ranks.
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
            # mpi4py has registered the end of MPI earlier, so it comes after this
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
        """Send a small object to all ranks, and return the objects of all, in order of ranks."""
        with self._clock.during("tell"):
            return list(self._comm.allgather(what))

    def share(self, arrays: Sequence[Array]) -> None:
        """Replace arrays by the arrays of rank 0, in place."""
        with self._clock.during("share"):
            for a in arrays:
                with _on_host(a) as host:
                    for piece in self._pieces(host):
                        self._comm.Bcast(piece)

    def sum_part(self, a: Array, out: Array) -> None:
        """Write this rank's part of the sum over all ranks of `a` (size * n,) to `out` (n,)."""
        if array_api_compat.is_cupy_array(a):
            return self._gpus().sum_part(a, out)
        with self._clock.during("sum"), _on_host(a) as host, _on_host(out) as part:
            self._comm.Reduce_scatter_block(host, part)

    def gather_parts(self, part: Array, out: Array) -> None:
        """Write the parts (n,) of all ranks, side by side, to `out` (size * n,)."""
        if array_api_compat.is_cupy_array(part):
            return self._gpus().gather_parts(part, out)
        with self._clock.during("gather"), _on_host(part) as own, _on_host(out) as host:
            self._comm.Allgather(own, host)

    def exchange(self, a: Array, out: Array) -> None:
        """Send the k-th part of `a` (size * n,) to rank k, for every k.

        The parts that the ranks send to this one go, side by side, to `out` (size * n,).
        """
        if array_api_compat.is_cupy_array(a):
            return self._gpus().exchange(a, out)
        with self._clock.during("exchange"), _on_host(a) as sent, _on_host(out) as received:
            self._comm.Alltoall(sent, received)

    def collect(self, part: Array, out: Array | None) -> None:
        """Write the parts (n,) of all ranks, side by side, to `out` (size * n,) of rank 0."""
        whole = contextlib.nullcontext() if out is None else _on_host(out)
        with self._clock.during("collect"), _on_host(part) as own, whole as host:
            self._comm.Gather(own, host)

    def later(self, function: Callable[..., None], *arrays: Array) -> Callable[[], None]:
        """Start `sum`, `sum_part` or `exchange` beside the caller, and return a wait function.

        It runs on a thread, or on a stream of its own.
        """
        if array_api_compat.is_cupy_array(arrays[0]):
            return self._gpus().later(function, *arrays)
        return self._beside.submit(function, *arrays).result

    def abort(self, message: str) -> None:
        """End the job now, on all ranks, with a message and status 1."""
        with contextlib.suppress(OSError, ValueError):  # nobody reads the output
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()
        for has_said in told:
            has_said()
        time.sleep(SAID)
        self._comm.Abort(1)

    def close(self) -> None:
        """Announce that this rank no longer needs the others.

        A rank that still waits for it ends the job.
        """
        if self._watch.how == "goes on":
            self._watch.notify("leaves")

    def _gpus(self) -> Nccl:
        """Return NCCL; the first call connects the GPUs."""
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
        """End the job because these ranks failed; of all ranks that notice, one reports it."""
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
        """End the job because of an error that nobody caught.

        If several ranks have one, a single rank shows it, with its number in the latest group.
        """
        if issubclass(kind, KeyboardInterrupt):  # all ranks get it, and leave
            if self.rank == 0:
                self._before(kind, error, trace)
            return
        if isinstance(error, OtherRankError):
            time.sleep(SILENT / 2)  # that rank reports
        last = self._groups[-1]
        last._end(
            [last.rank],
            optional_imports.first_line(error),
            lambda: self._before(kind, error, trace),
        )

    def _leave(self) -> None:
        """Wait for the other ranks at the end of the program; Ctrl-C ends the wait at once."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Groups may overlap, so leave all of them before waiting for any.
        for ranks in self._groups:
            ranks.close()
        for wait in [ranks._watch.leave() for ranks in self._groups]:
            wait()


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))


@contextlib.contextmanager
def _on_host(a: Array) -> Iterator[np.ndarray[Any, Any]]:
    """Yield an array in MPI's form: flat, on the host, C-contiguous, of a dtype that MPI knows.

    If possible it is the array itself, else a copy, whose values are written back afterwards.
    """
    host = np.asarray(to_numpy(a), order="C")
    if host.dtype == np.float16:
        host = host.astype(np.float32)
    yield host.reshape(-1)
    if host is not a:
        a[...] = like(host, a)
