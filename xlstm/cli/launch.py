"""`--ranks`: processes on this machine that train one model, which MPICH's mpiexec starts with this
command line.

A rank writes to standard output and error of this process, and not to pipes of mpiexec: the
progress bar stays on a terminal, and mpiexec's own messages are kept apart. A rank sends its number
and its process through a socket once MPI has started, and its exit code at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
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
# In mpiexec's message about a rank that failed: its process, and the number of the signal that
# ended it.
BANNER = re.compile(r"PID (\d+) RUNNING AT(?:.*EXIT STRING: [^\n]*\(signal (\d+)\))?", re.DOTALL)

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
    with ours, tempfile.TemporaryFile() as printed:
        with theirs:
            descriptors.append(theirs.fileno())
            process = subprocess.Popen(
                [str(mpiexec), "-n", str(ranks), sys.executable, *sys.orig_argv[1:]],
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
        printed.seek(0)
        return job.verdict(process.returncode, printed.read().decode(errors="replace"))


class _Job:
    """The ranks that are known so far: their processes, and the exit codes of ranks that came to
    their end.
    """

    def __init__(self, ranks: int, mpiexec: int) -> None:
        self.ranks = ranks
        self.mpiexec = mpiexec
        self.processes = dict[int, int]()
        self.codes = dict[int, int]()
        self.signal = 0  # the first one that was passed on

    def note(self, rank: int, process: int, code: int) -> None:
        """Note the message of a rank."""
        self.processes[process] = rank
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

    def verdict(self, code: int, printed: str) -> int:
        """Return the exit code of the job. If it is 1, say why, from the exit code and the output
        of mpiexec.
        """
        ended = len(self.codes) == self.ranks
        if ended and not any(self.codes.values()):
            return 0
        if self.signal:
            return 128 + self.signal
        if ended:
            return self.codes[0] or max(self.codes.values())
        if not any(self.codes.values()):  # else that rank has said why
            self._explain(code, printed)
        return 1

    def _explain(self, code: int, printed: str) -> None:
        if printed.strip():
            tell(printed.strip())
        named = BANNER.search(printed)
        if code < 0:
            tell(f"xlstm: mpiexec was ended by {signal.Signals(-code).name}, and so was the job")
        elif named is not None and (rank := self.processes.get(int(named[1]))) is not None:
            how = f"ended with exit code {code}"
            if named[2]:
                how = f"was killed by {signal.Signals(int(named[2])).name}"
            place = f"rank {rank} of {self.ranks} (host {socket.gethostname()})"
            tell(f"xlstm: {place} {how}, the job ends")
        elif code == 0:
            left = ", ".join(str(rank) for rank in range(self.ranks) if rank not in self.codes)
            tell(f"xlstm: the job ended, and rank {left} of {self.ranks} did not come to its end")


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
    mpi.told.append(lambda message: report(1))


def report(code: int = -1) -> None:
    """Tell the launcher of this rank, if there is one, that MPI has started, or with which exit
    code the rank ends.
    """
    if _channel is not None:
        with contextlib.suppress(OSError):  # the launcher was killed
            _channel.sendall(f"{os.environ['PMI_RANK']} {os.getpid()} {code}\n".encode())


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
