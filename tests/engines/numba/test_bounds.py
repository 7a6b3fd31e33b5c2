"""Compiled functions read and write nothing past an array: `guards.py` has what ends a process that
does.
"""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.engines.numba.guards import KINDS
from xlstm.engines.numba import jit

pytestmark = [
    pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure())),
    pytest.mark.skipif(os.name == "nt", reason="this system has no mprotect"),
]
FUNCTIONS = {
    "forward",
    "backward",
    "pack",
    "product_of_rows",
    "product_of_few_rows",
    "products_over_rows",
    "vector_over_rows",
}


def python(*arguments, **environment):
    """Run Python in the folder of the project."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=env, cwd=ROOT
    )


@pytest.mark.parametrize("vectors", KINDS)
def test_nothing_past_an_array_is_read_or_written(vectors):
    length, _ = vectors.split("-")
    done = python(
        "-m", "tests.engines.numba.guards", vectors, XLSTM_VECTOR_BYTES=length, XLSTM_COMPILE="1"
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
    calls, made = done.stdout.splitlines()[-2:]
    assert set(calls.split()) > FUNCTIONS | {"forward_alone"}
    # arrays that compiled functions make are guarded as well
    assert int(made.removeprefix("made ")) > 500


CODE = """
import ctypes, sys
import numpy as np
from tests.engines.numba.guards import Compiled

def place(a, i):
    return ctypes.c_double.from_address(a.ctypes.data + 8 * i)

def read(a, i):
    return place(a, i).value

def write(a, i):
    place(a, i).value = 7.0

compiled = Compiled()
flush, name, i = sys.argv[1:]
compiled.guards.flush = flush
given = np.zeros(5)
if name == "make":
    import numba

    compiled.allocate()

    @numba.njit
    def make(n, i):
        a = np.empty(n)
        a[0] = 1.0
        return a[i]

    given = 5
compiled.call(name, globals()[name], given, 4)
print("within", flush=True)
compiled.call(name, globals()[name], given, int(i))
print("outside")
"""


@pytest.mark.parametrize(
    ("flush", "name", "i", "ends"),
    [
        ("end", "read", 5, True),
        ("end", "make", 5, True),
        ("start", "write", -1, True),
        ("start", "write", 5, False),
        ("end", "write", -1, False),
    ],
)
def test_the_guards_themselves(flush, name, i, ends):
    """A number on the flush side of an array ends the process, and one that is written on its other
    side is found.
    """
    done = python("-c", CODE, flush, name, str(i))
    assert done.stdout.splitlines() == ["within"], done.stderr
    if ends:
        assert -done.returncode in (signal.SIGSEGV, signal.SIGBUS)
    else:
        assert "AssertionError: write wrote next to an array of 40 bytes" in done.stderr
