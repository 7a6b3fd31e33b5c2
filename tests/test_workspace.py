"""Memory that is used again."""

import gc
import random
import subprocess
import sys
import threading
import time
import types
import weakref

import numpy as np

import xlstm
from xlstm.arrays import workspace


def test_large_memory_is_used_again_once_nobody_refers_to_it():
    like = np.zeros(1, dtype=np.float32)
    a = workspace.empty(np, (300, 300), like)
    place = a.ctypes.data
    view = a[10:20].T
    del a
    b = workspace.empty(np, (300, 300), like)
    assert b.ctypes.data != place
    del view
    c = workspace.empty(np, (310, 290), like)
    assert c.ctypes.data == place
    assert c.shape == (310, 290)
    assert c.flags.writeable
    assert c.dtype == np.float32


class Slow(weakref.ref):
    """Lets other threads run once it is seen whether memory is in use."""

    def __call__(self):
        user = super().__call__()
        time.sleep(random.uniform(0, 2e-4))
        return user


def test_threads_never_share_memory(monkeypatch):
    monkeypatch.setattr(workspace, "_kept", {})
    monkeypatch.setattr(workspace, "weakref", types.SimpleNamespace(ref=Slow))
    like = np.zeros(1, dtype=np.float32)
    end, bad, calls = time.monotonic() + 1, [], []

    def call(number):
        done = 0
        while time.monotonic() < end and not bad:
            array = workspace.empty(np, (1 << 16,), like)
            array[:64] = number
            time.sleep(random.uniform(0, 2e-4))
            done += 1
            if not np.all(array[:64] == number):
                bad.append(number)
            del array
        calls.append(done)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not bad
    assert len(calls) == 4


def kept():
    return sum(memory.nbytes for memory, _ in workspace._kept.values())


def test_little_memory_is_kept(monkeypatch):
    monkeypatch.setattr(workspace, "LIMIT", 3 << 20)
    monkeypatch.setattr(workspace, "_kept", {})
    like = np.zeros(1, dtype=np.float64)
    arrays = [workspace.empty(np, (1 << 17,), like) for _ in range(8)]  # 1 MB each
    for k, array in enumerate(arrays):
        array[:] = k
    assert all(np.all(array == k) for k, array in enumerate(arrays))  # nobody shares memory
    assert kept() == 3 << 20
    del arrays, array
    assert kept() == 3 << 20
    workspace.empty(np, (10,), like)  # a small one is not from there
    large = workspace.empty(np, (1 << 18,), like)  # two make room for one of another size
    assert kept() == 3 << 20
    assert large.ctypes.data in {memory.ctypes.data for memory, _ in workspace._kept.values()}
    larger = workspace.empty(np, (1 << 20,), like)
    assert larger.ctypes.data not in {memory.ctypes.data for memory, _ in workspace._kept.values()}


def test_memory_can_be_given_back(monkeypatch):
    monkeypatch.setattr(workspace, "_kept", {})
    like = np.zeros(1)
    used, unused = (workspace.empty(np, (1 << 17,), like) for _ in range(2))
    used[:] = 1.0
    del unused
    workspace.release()
    assert kept() == 1 << 20
    np.testing.assert_array_equal(used, 1.0)


def test_little_stays_after_a_large_call():
    """A call takes 700 MB, and most of the memory that it leaves is freed at once."""
    code = """
import numpy as np, xlstm
from xlstm.cli.peak import _resident
layer = xlstm.LSTM(64, 64)
params = layer.init(0, "numpy")
def call(T):
    y, _, saved = layer.forward(params, np.ones((T, 256, 64), "f4"))
    layer.backward(params, saved, y)
call(2)
before = _resident("VmRSS")
call(800)
print(_resident("VmRSS") - before, _resident("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    left, peak = map(int, done.stdout.split())
    assert peak > 400e6
    assert left < workspace.LIMIT + 16e6


def test_a_layer_gives_its_memory_back_without_the_garbage_collector(rng):
    """Nothing in a pass refers to itself: the memory of one training step is there for the next."""
    layer = xlstm.LSTM(8, 64)
    params = layer.init(0, "numpy")
    x = rng.standard_normal((200, 16, 8)).astype(np.float32)
    gc.disable()
    try:
        for _ in range(2):
            y, _, saved = layer.forward(params, x)
            layer.backward(params, saved, y)
        del y, saved
        spare = {memory.ctypes.data for memory, user in workspace._kept.values() if user() is None}
        _, _, saved = layer.forward(params, x)
        assert saved["0"].saved.hs.base.memory.ctypes.data in spare
    finally:
        gc.enable()
