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

from tests.conftest import REQUIRED, ROOT

MPIEXEC = Path(sys.executable).with_name("mpiexec")
INSTALLED = MPIEXEC.exists() and importlib.util.find_spec("mpi4py") is not None
needed = pytest.mark.skipif(
    not INSTALLED and "mpi" not in REQUIRED, reason="it needs mpi4py and mpich"
)
# Programs begin with this; `now` tells the test when something happens.
START = """
import os, signal, sys, time, numpy as np, xlstm
from xlstm import distributed
def now(word):
    os.write(1, f"{word} {time.time()}\\n".encode())
group = distributed.group()
os.write(1, f"pid {os.getpid()}\\n".encode())
"""


class Job:
    """A program on several ranks; after `end` it has `out`, `err` and `status`, and no process of
    it is left.
    """

    def __init__(self, ranks, code, *, start=START, mpiexec=MPIEXEC, **environment):
        command = [mpiexec, "-n", str(ranks), sys.executable, "-c", start + code]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLSTM_NUM_THREADS": "1",
            **environment,
        }
        pipes = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "start_new_session": True,
        }
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.out = ""

    def send(self, number, after):
        """Send a signal to mpiexec when a line with a word has come."""
        while f"{after} " not in self.out:
            self.out += self.process.stdout.readline() or f"{after} never came "
        self.out += f"sent {time.time()}\n"
        self.process.send_signal(number)
        return self.end()

    def end(self):
        try:
            out, self.err = self.process.communicate(timeout=500)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        self.out, self.status, self.ended = self.out + out, self.process.returncode, time.time()
        until(lambda: not any(map(runs, self.numbers("pid"))))
        self.ended = time.time()
        return self

    def numbers(self, word):
        """The numbers in the lines that begin with a word."""
        return [
            float(line.split()[1]) for line in self.out.splitlines() if line.startswith(f"{word} ")
        ]

    def seconds(self, word):
        """Seconds from the last line that begins with a word to the end of the last process."""
        return self.ended - self.numbers(word)[-1]


def until(happened, seconds=300):
    """Wait for something that takes a second or two."""
    end = time.time() + seconds
    while not happened():
        assert time.time() < end, f"it did not come within {seconds} seconds"
        time.sleep(0.01)


def runs(process):
    """Whether a process is there; one that has ended and waits for its parent is not."""
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{int(process)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        )
    return False
