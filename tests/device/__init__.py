"""A GPU on a CPU: xlstm's CUDA sources compiled by g++ with the shim of this folder, on NumPy arrays."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.compilers import load
from xlstm.engines.cuda.launch import Grid
from xlstm.engines.cuda.source import Source, file
from xlstm.engines.cuda.tiling import Device

SHIM = Path(__file__).with_name("shim.hpp")
SCALARS = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double}
COMPILE = ("g++", "-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w")


class ShimRuntime:
    """Runs kernels on NumPy arrays; `seed` draws the order of threads, 0 for that of their numbers."""

    def __init__(self, device: Device, seed: int = 0) -> None:
        self.device, self.seed = device, seed
        self.launches: list[str] = []

    def launch(self, source: Source, entry: str, grid: Grid, args: Sequence[Any]) -> None:
        self.launches.append(entry)
        values = []
        for a in args:
            if a is None:
                values.append(ctypes.c_void_p(0))
            elif isinstance(a, np.ndarray):
                assert a.flags.c_contiguous, f"{entry}: an argument of shape {a.shape} is not contiguous"
                values.append(ctypes.c_void_p(a.ctypes.data))
            else:
                values.append(SCALARS[a.dtype.name](a.item()))
        together = bool(entry == source.name and source.blocks)
        cluster = grid.x if together and source.cluster else 1
        run(source.text, entry, *grid[:3], grid.shared, cluster, values, together, self.seed)


def run(
    text: str,
    entry: str,
    x: int,
    y: int,
    threads: int,
    shared: int,
    cluster: int,
    values: Sequence[Any],
    together: bool,
    seed: int = 0,
) -> None:
    """Run a kernel of a text on values of ctypes; blocks that need not be there together run one after the other."""
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    launch = getattr(library(text), f"run_{entry}")
    if together or y > 1:
        assert not launch(x, y, threads, shared, cluster, seed, pointers, 0), f"{entry}: threads wait for what never comes"
        return
    for block in range(x):
        launch(1, 1, threads, shared, 1, seed, pointers, block)


@functools.cache
def library(text: str) -> ctypes.CDLL:
    """A source with the shim in the place of the device, compiled once for all processes."""
    shim, device = SHIM.read_text(encoding="utf-8"), file("device.cuh")
    text = text.replace(device, shim) if device in text else shim + text
    entries = {*re.findall(r"#define (?:KERNEL|ARRANGE) (\w+)", text), *re.findall(r"\) (xlstm_\w+)\(", text)}
    text += "".join(
        f'\nextern "C" int run_{entry}(int x, int y, int threads, int shared, int cluster, unsigned seed, void** args, '
        f"int first) {{ return shim::launch({entry}, x, y, threads, shared, cluster, seed, args, first); }}"
        for entry in sorted(entries)
    )
    return load(text, *COMPILE)
