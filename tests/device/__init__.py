"""A GPU on a CPU: xlstm's CUDA sources compiled by g++ with the shim of this folder, on NumPy arrays."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.compilers import header, load
from xlstm.engines.cuda.launch import Grid
from xlstm.engines.cuda.source import Source, file
from xlstm.engines.cuda.tiling import Device

HEADERS, SHIM, SCHEDULER = (Path(__file__).with_name(name) for name in ("headers.hpp", "shim.hpp", "scheduler.cpp"))
SCALARS = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double}
TOGETHER, IN_TURN, WITHOUT_WAITING = range(3)  # ways to run blocks
DECLARED = re.compile(
    r'^extern "C"(?: __global__)? void ([^{;]*?)(\w+)\(([^(){;]*)\)\s*\{((?:.*?\n)?)\}', re.MULTILINE | re.DOTALL
)
COMPILE = ("g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-strict-aliasing", "-w", "-U_FORTIFY_SOURCE")


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
    way = TOGETHER if together else IN_TURN if entries(text)[entry].waits else WITHOUT_WAITING
    stuck = getattr(library(text), f"run_{entry}")(x, y, threads, shared, cluster, seed, pointers, way)
    assert not stuck, f"{entry}: threads wait for what never comes"


@functools.cache
def library(text: str) -> ctypes.CDLL:
    """A source with the shim in the place of the device, compiled once for all processes."""
    names = sorted(entries(text))
    text = text.replace(file("device.cuh"), "")
    text += "".join(
        f'\nextern "C" int run_{name}(int x, int y, int threads, int shared, int cluster, unsigned seed, void** args, '
        f"int way) {{ return shim::launch({name}, x, y, threads, shared, cluster, seed, args, way); }}"
        for name in names
    )
    return load(text, *shimmed())


@functools.cache
def shimmed() -> tuple[str, ...]:
    """The command that compiles kernels, which find the scheduler in this process."""
    shim = header("".join(path.read_text(encoding="utf-8") for path in (HEADERS, SHIM)), *COMPILE)
    command = (*COMPILE, "-include", shim, "-x", "c++")
    load(SCHEDULER.read_text(encoding="utf-8"), *command, mode=ctypes.RTLD_GLOBAL)
    return command


class Entry(NamedTuple):
    """A kernel in a text, as far as can be read there."""

    types: list[str]  # of its parameters, in C without `const`
    cluster: int  # blocks of a cluster
    waits: bool  # whether its threads wait for one another


@functools.cache
def entries(text: str) -> dict[str, Entry]:
    """The kernels of a text by name; names that the text defines are replaced."""
    defined = {name: value or "" for name, value in re.findall(r"^#define (\w+)(?:[ \t]+(.*))?$", text, re.MULTILINE)}

    def replaced(words: str) -> str:
        for _ in range(4):
            words = re.sub(r"\w+", lambda word: defined.get(word.group(), word.group()), words)
        return words

    found = {}
    for said, name, parameters, body in DECLARED.findall(text):
        cluster = re.search(r"__cluster_dims__\((\d+)", replaced(said))
        plain = re.sub(r"\bconst\b|__restrict__", "", replaced(parameters)).split(",")
        types = [" ".join(re.sub(r"\w+$", "", p.strip()).split()) for p in plain if p.strip()]
        waits = bool(re.search(r"sync_|__syncthreads|_group\(|_cluster\(|\bmma\(", body))
        found[replaced(name)] = Entry(types, int(cluster.group(1)) if cluster else 1, waits)
    return found
