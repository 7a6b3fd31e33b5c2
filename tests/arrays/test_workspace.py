"""Memory that the C allocator keeps from one call to the next."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest

import xlstm


def printed(code):
    """Return the words that a process of its own prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted on Linux")
def test_memory_is_used_again_and_can_be_given_back():
    """Twenty arrays of 2 MB have 10,000 pages, which the second time are there already."""
    code = """
import platform, resource
import numpy as np
from xlstm import workspace
from bench.peak import resident
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.empty(1 << 19, "f4") for _ in range(20)]
    for a in arrays:
        a.fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, second = faults(), faults()
before = resident("VmRSS")
workspace.release()
print(platform.libc_ver()[0], first, second, before - resident("VmRSS"))
"""
    library, first, second, released = printed(code)
    if library != "glibc":
        pytest.skip("this is another C library")
    assert int(second) < 0.1 * int(first)
    assert int(released) > 30e6


def test_little_stays_after_a_large_call():
    """A call takes 440 MB, and most of the memory that it leaves is freed at once."""
    code = """
import numpy as np, xlstm
from bench.peak import resident
layer = xlstm.LSTM(64, 64)
params = layer.init(0, "numpy")
def call(T):
    y, _, saved = layer.forward(params, np.ones((T, 256, 64), "f4"))
    layer.backward(params, saved, y)
call(2)
before = resident("VmRSS")
call(500)
print(resident("VmRSS") - before, resident("VmHWM") - before)
"""
    left, peak = map(int, printed(code))
    assert peak > 300e6
    assert left < (1 << 27) + 16e6


def test_a_layer_gives_its_memory_back_without_the_garbage_collector(rng):
    """Nothing in a pass refers to itself: the memory of one training step is there for the next."""
    layer = xlstm.LSTM(8, 64)
    params = layer.init(0, "numpy")
    x = rng.standard_normal((200, 16, 8)).astype(np.float32)
    gc.disable()
    try:
        y, _, saved = layer.forward(params, x)
        layer.backward(params, saved, y)
        kept = weakref.ref(y), weakref.ref(saved["0"].tape.hs)
        del y, saved
        assert [array() for array in kept] == [None, None]
    finally:
        gc.enable()
