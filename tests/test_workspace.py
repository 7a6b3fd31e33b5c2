"""Memory that is used again."""

import gc
import subprocess
import sys

import numpy as np

import xlstm
from xlstm import workspace


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


def test_little_memory_is_kept(monkeypatch):
    monkeypatch.setattr(workspace, "LIMIT", 3 << 20)
    monkeypatch.setattr(workspace, "_spare", {})
    like = np.zeros(1, dtype=np.float64)
    arrays = [workspace.empty(np, (1 << 17,), like) for _ in range(8)]  # 1 MB each
    del arrays
    gc.collect()
    assert len(workspace._spare) == 3
    workspace.empty(np, (10,), like)  # a small one is not from there
    assert len(workspace._spare) == 3


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
        spare = {memory.ctypes.data for memory in workspace._spare.values()}
        _, _, saved = layer.forward(params, x)
        assert saved["0"].saved.hs.base.memory.ctypes.data in spare
    finally:
        gc.enable()
