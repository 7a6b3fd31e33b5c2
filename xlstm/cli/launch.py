"""`--ranks`: processes on this machine that train one model, which MPICH's mpiexec starts with this
command line.

A rank writes to standard output and error of this process, and not to pipes of mpiexec: the
progress bar stays on a terminal, and mpiexec's own messages are kept apart. A rank sends its number
and its process through a socket once MPI has started, and its exit code at the end.

mpiexec ends all ranks if one is gone, and may name any of them. So a shell beside each rank notes
how the rank ended, before mpiexec can know it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType

import typer

from xlstm import distributed
from xlstm.arrays.ranks import mpi
from xlstm.cli import console
from xlstm.cli.console import tell
from xlstm.core import process_signals

# in ranks: the descriptors of standard output, of standard error and of the socket
VARIABLE = "XLSTM_RANKS"
# the shell of a rank: it runs a command line, and adds the rank and its exit code to the file $0
SHELL = '"$@"; code=$?; echo "$PMI_RANK $code" >> "$0"; exit $code'

_channel: socket.socket | None = None  # from a rank to its launcher


def join(ranks: int | None) -> distributed.Group:
    """Return the ranks that train together: those that a launcher started, or else this process.

    If `ranks` asks for several and no launcher started them, this function runs the command line on
    that many ranks, and this process ends with their exit code.
    """
    group = distributed.group()
    if group.size > 1:
        console.be_rank(group.rank)
    report()
    if ranks not in (None, group.size):
        if group.size > 1:
            raise ValueError(f"--ranks is {ranks}, but the launcher started {group.size}")
        raise typer.Exit(launch(ranks))
    return group


def launch(ranks: int) -> int:
    """Run the command line of this process on so many ranks, pass signals on to them, and return
    the exit code.

    If a signal ended the job, the code is 128 + the signal. If every rank came to its end, it is
    the code of rank 0. Otherwise it is 1, and a line on standard error explains it.

    Raises
    ------
    ImportError
        mpi4py, or the mpiexec of the package mpich, is not installed in the environment of this
        Python.
    """
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if importlib.util.find_spec("mpi4py") is None or not mpiexec.exists():
        other = (
            f"or start with that of another MPI: mpiexec -n {ranks} xlstm train ..., without"
            " --ranks"
        )
        raise ImportError(f"--ranks needs mpi4py, and {mpiexec} of MPICH: {mpi.INSTALL}, {other}")
    descriptors = [_copied(1), _copied(2)]
    ours, theirs = socket.socketpair()
    with (
        ours,
        tempfile.TemporaryFile() as printed,
        tempfile.NamedTemporaryFile("r") as ended,
    ):
        with theirs:
            descriptors.append(theirs.fileno())
            shell = ["sh", "-c", SHELL, ended.name, sys.executable]
            process = subprocess.Popen(
                [str(mpiexec), "-n", str(ranks), *shell, *sys.orig_argv[1:]],
                env={**os.environ, VARIABLE: " ".join(map(str, descriptors))},
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal from the terminal comes to this process alone
            )
        job = _Job(ranks, process.pid)
        process_signals.handle(job.pass_on)
        with ours.makefile() as lines:
            for line in lines:  # until mpiexec and all ranks are gone
                job.note(*map(int, line.split()))
        process.wait()
        if (code := job.verdict()) is not None:
            return code
        printed.seek(0)
        job.explain(process.returncode, printed.read().decode(errors="replace"), ended.read())
        return 1


class _Job:
    """The ranks that are known so far: their processes, and the exit codes of ranks that came to
    their end.
    """

    def __init__(self, ranks: int, mpiexec: int) -> None:
        self.ranks = ranks
        self.mpiexec = mpiexec
        self.processes = set[int]()
        self.codes = dict[int, int]()
        self.signal = 0  # the first one that was passed on

    def note(self, rank: int, process: int, code: int) -> None:
        """Note the message of a rank."""
        self.processes.add(process)
        if code >= 0:
            self.codes[rank] = code

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on to all ranks; while MPI starts, in which handlers of ranks do not run,
        end them at once.
        """
        self.signal = self.signal or number
        receivers = [*self.processes]
        if len(receivers) < self.ranks:
            receivers = [self.mpiexec]  # its ranks end with it
            number = signal.SIGKILL
        for process in receivers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def verdict(self) -> int | None:
        """Return the exit code of the job, or None if nobody has said why it ended."""
        ended = len(self.codes) == self.ranks
        failed = any(self.codes.values())
        if ended and not failed:
            return 0
        if self.signal:
            return 128 + self.signal
        if ended:
            return self.codes[0] or max(self.codes.values())
        return 1 if failed else None  # that rank has said why

    def explain(self, code: int, printed: str, ended: str) -> None:
        """Say why the job ended: a rank was gone, or mpiexec failed.

        Parameters
        ----------
        code : int
            The exit code of mpiexec.
        printed : str
            The output of mpiexec.
        ended : str
            The ranks that ended and their exit codes, in order.
        """
        for line in ended.splitlines():
            rank, status = map(int, line.split())
            if rank not in self.codes:
                how = f"ended early, with exit code {status}"
                if status - 128 in signal.valid_signals():
                    how = f"was killed by {signal.Signals(status - 128).name}"
                place = f"rank {rank} of {self.ranks} (host {socket.gethostname()})"
                tell(f"xlstm: {place} {how}, the job ends")
                return
        if printed.strip():
            tell(printed.strip())
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        tell(f"xlstm: mpiexec ended {how}, and so did the job")


def attach() -> None:
    """If this process is a rank, write to the streams of its launcher, and end with it."""
    global _channel
    if VARIABLE not in os.environ:
        return
    output, error, descriptor = map(int, os.environ.pop(VARIABLE).split())
    for copy, number in ((output, 1), (error, 2)):
        os.dup2(copy, number)
        os.close(copy)
    _channel = socket.socket(fileno=descriptor)
    threading.Thread(target=_follow, args=(_channel,), daemon=True).start()
    mpi.told.append(_said_why)


def report(code: int = -1) -> None:
    """Tell the launcher of this rank, if there is one, that MPI has started, or with which exit
    code the rank ends.
    """
    if _channel is not None:
        with contextlib.suppress(OSError):  # the launcher was killed
            _channel.sendall(f"{os.environ['PMI_RANK']} {os.getpid()} {code}\n".encode())


def _said_why() -> None:
    """Tell the launcher that this rank has said why it ends the job; MPI's words do not follow."""
    report(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _follow(channel: socket.socket) -> None:
    """End as by SIGTERM if the launcher has ended before: it was killed."""
    with contextlib.suppress(OSError):
        channel.recv(1)  # it sends nothing
    os.kill(os.getpid(), signal.SIGTERM)


def _copied(number: int) -> int:
    """Return another descriptor of a stream; if the stream is closed, open it to the null device
    first.
    """
    try:
        os.fstat(number)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return os.dup(number)
