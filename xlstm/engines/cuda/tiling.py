"""How a recurrent product is divided among blocks, warps and memories, and an estimate of what a step then costs.

Every number that is called an estimate is one: it ranks the ways of one device, nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

KB = 1024
PASSES = ("forward", "backward")


class Device(NamedTuple):
    """What the choice depends on."""

    name: str
    capability: int  # 90 for sm_90
    sms: int
    shared: int  # bytes of a block at most
    cluster: int = 0  # blocks of the largest cluster that was seen to run


class Cell(NamedTuple):
    """Of a cell, what matters here."""

    gates: int
    values: int  # that a thread keeps for each unit of each sequence


class Arithmetic(NamedTuple):
    """How numbers are kept and multiplied. Sums are of `real`."""

    name: str
    io: str  # of arrays, in C
    real: str  # of what is computed element by element
    operand: str  # of factors of the recurrent product
    size: int  # its bytes
    mma: int  # 0: without tensor cores, 2: a float32 as two TF32
    tf32: bool
    peak: float  # FLOP per microsecond and SM, an estimate from an H100's data sheet

    @property
    def real_size(self) -> int:
        return 8 if self.real == "double" else 4


ARITHMETIC = {
    a.name: a
    for a in (
        Arithmetic("float64", "double", "double", "double", 8, 0, False, 0.13e6),
        Arithmetic("float32", "float", "float", "float", 4, 0, False, 0.25e6),
        Arithmetic("3xtf32", "float", "float", "float", 4, 2, False, 0.33e6),
        Arithmetic("tf32", "float", "float", "float", 4, 1, True, 2.3e6),
        Arithmetic("float16", "half_t", "float", "half_t", 2, 1, False, 4.6e6),
        Arithmetic("bfloat16", "bf16_t", "float", "bf16_t", 2, 1, False, 4.6e6),
        Arithmetic("float16 plain", "half_t", "float", "float", 4, 0, False, 0.25e6),
        Arithmetic("bfloat16 plain", "bf16_t", "float", "float", 4, 0, False, 0.25e6),
    )
}
SYNC = {True: 0.6, False: 1.2}  # microseconds of a step, in a cluster and through global memory: estimates
MEMORY = 0.22e6  # bytes per microsecond and SM from shared memory, an estimate
BETWEEN = 0.1e6  # the same between SMs
CELL = 0.06  # microseconds of one cell of each thread, an estimate
WARPS = 8
CELLS = 4  # of a thread at most, beside tensor cores
# Registers of a thread for weights, sums and what it keeps of its cells. Chosen so that none of those kernels that the
# tests compile spills; three products of a pair need some for themselves.
REGISTERS = {0: 0, 1: 174, 2: 166}


@dataclass(frozen=True)
class Tiling:
    """Of one pass over one head: M rows of weights of a block, times K."""

    width: int  # units of a head
    heads: int
    units: int  # of a block
    blocks: int  # that share a head and sequences
    columns: int  # sequences of a block
    cluster: bool
    M: int
    K: int
    threads: int
    warps_m: int
    kept: int  # chunks of K, of each tile of a warp, in registers
    at_once: int  # tiles of columns that a warp multiplies at once
    shared: int  # bytes
    cost: float  # microseconds of a step, an estimate
    groups: int  # of blocks for the whole batch
    waves: int  # times that groups have to wait for one another

    def exchange(self, kind: str, arithmetic: Arithmetic) -> int:
        """Bytes of global memory through which a group of a grid exchanges, twice."""
        if kind == "backward":
            return 2 * self.blocks**2 * self.columns * (self.units + 4) * arithmetic.real_size
        return 2 * self.columns * self.blocks * self.units * arithmetic.size

    @property
    def time(self) -> float:
        """Microseconds of a step of the whole batch."""
        return self.cost * self.waves


def best(
    kind: str, cell: Cell, width: int, heads: int, B: int, arithmetic: Arithmetic, device: Device, cluster: bool
) -> Tiling | None:
    """The way that costs least by the estimate, or None where nothing fits the device; `kind` forward or backward."""
    found = _all(kind, cell, width, heads, B, arithmetic, device, cluster)
    return min(found, key=lambda tiling: (tiling.time, tiling.shared), default=None)


class _Block(NamedTuple):
    """What is fixed of a block before its work is divided."""

    units: int
    blocks: int
    columns: int
    cluster: bool


class _Shape(NamedTuple):
    """How a block's work is divided among its warps, with the names that `Tiling` has for it."""

    M: int
    K: int
    threads: int
    warps_m: int
    kept: int
    at_once: int
    shared: int


def _all(
    kind: str, cell: Cell, width: int, heads: int, B: int, a: Arithmetic, device: Device, cluster: bool
) -> Iterator[Tiling]:
    """All that fit."""
    ways = _clusters(width, device.cluster) if cluster else _grids(width, a)
    most = _up(min(B, 128), 8)
    for (units, blocks), columns in itertools.product(ways, (8, 16, 24, 32, 48, 64, 96, 128)):
        groups = -(-B // columns) * heads
        # A cluster lies within one part of the chip, of which some SMs are left over.
        room = int(device.sms * 0.97) // blocks if cluster else device.sms // blocks
        if columns > most or room == 0:
            continue
        block = _Block(units, blocks, columns, cluster)
        for shape in _shapes(kind, cell, block, a):
            if shape.shared <= device.shared:
                cost = _cost(kind, block, shape, a)
                yield Tiling(width, heads, *block, *shape, cost=cost, groups=groups, waves=-(-groups // room))


def _shapes(kind: str, cell: Cell, block: _Block, a: Arithmetic) -> Iterator[_Shape]:
    chunk = 64 // a.size
    M, K = cell.gates * block.units, block.blocks * block.units
    if kind == "backward":
        M, K = K, M
    if not a.mma:
        K = _up(K, chunk)
        rows = M * (K * a.size + 16)
        yield _Shape(M, K, 32 * WARPS, 1, 0, 1, _shared(kind, M, K, block, 1, a) + rows)
        return
    tiles = M // 16
    if kind == "forward":
        ways = [(m, WARPS // m) for m in (1, 2, 4, 8) if tiles % m == 0]
    else:
        ways = [(max(m for m in range(1, WARPS + 1) if tiles % m == 0), 1)]
    for (warps_m, warps_k), at_once in itertools.product(ways, (1, 2)):
        deep, warps = _up(K, chunk * warps_k), warps_m * warps_k
        own, chunks = tiles // warps_m, deep // chunk // warps_k
        cells = -(-block.units * block.columns // (32 * warps))
        values = cells * (cell.values + 12) - 12  # and what it writes, and where the next one lies
        sums = a.mma + 1 if own * at_once <= (4 if a.mma == 2 else 2) else 1
        left = REGISTERS[a.mma] - 4 * own * at_once * sums - 16 * (at_once - 1) - values
        kept = min(chunks, left // (8 * own))
        if kept < chunks:  # those from shared memory pass through registers, too
            kept = (left - 8) // (8 * own)
        # With more sums at once the compiler finds no registers.
        if kept < 1 or own * at_once > 8 or cells > CELLS or block.columns // 8 % at_once:
            continue
        spare = warps * own * (chunks - kept) * KB
        yield _Shape(M, deep, 32 * warps, warps_m, kept, at_once, _shared(kind, M, deep, block, warps_k, a) + spare)


def _shared(kind: str, M: int, K: int, block: _Block, parts: int, a: Arithmetic) -> int:
    """Bytes beside the weights; the kernels assert that it is what they need."""
    units, blocks, columns, cluster = block
    V = columns * (K * a.size if K * a.size // 64 % 2 else K * a.size + 64)
    if kind == "forward":
        Z = parts * (M + 4) * columns * a.real_size
        return (2 if cluster else 1) * V + Z + columns * units * a.size
    return V + (2 * blocks * columns * (units + 4) * a.real_size if cluster else 0)


def _cost(kind: str, block: _Block, shape: _Shape, a: Arithmetic) -> float:
    """Microseconds of a step, an estimate."""
    units, blocks, columns, cluster = block
    M, K, threads, warps_m, kept, at_once, _ = shape
    warps, parts = threads // 32, 1
    near = M * columns * K * a.size * 1.25  # bytes from shared memory
    if a.mma:
        parts = warps // warps_m
        spare = M * K * a.size - warps * (M // 16 // warps_m) * kept * KB
        near = float(spare * (columns // 8 // at_once) + warps_m * K * a.size * columns)
    if kind == "forward":
        near += 2 * parts * M * columns * a.real_size
        between = blocks * columns * units * a.size
    else:
        between = 2 * M * columns * a.real_size
    cells = -(-units * columns // threads) * CELL
    return SYNC[cluster] + max(2 * M * K * columns / a.peak, near / MEMORY) + between / BETWEEN + cells


def _clusters(width: int, most: int) -> list[tuple[int, int]]:
    """Units of a block and blocks of a cluster."""
    found = [(_up(-(-width // blocks), 16), blocks) for blocks in (1, 2, 4, 8, 16) if blocks <= most]
    return [(units, blocks) for units, blocks in found if units * (blocks - 1) < width]  # the last one has work


def _grids(width: int, a: Arithmetic) -> list[tuple[int, int]]:
    """The same of a grid; where there are many blocks, as many as give every warp as many tiles."""
    found = []
    for units in (16, 32, 48, 64) if a.mma else (4, 8, 12, 16, 24, 32, 48, 64):
        blocks = -(-width // units)
        if a.mma and blocks > 8:
            blocks = _up(blocks, 8)
        found.append((units, blocks))
    return found


def _up(n: int, to: int) -> int:
    return -(-n // to) * to
