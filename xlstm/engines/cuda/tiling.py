"""Divide a recurrent product among blocks, warps and memories, and estimate the time of a step.

Estimates are only good for ranking the ways to divide a product on one device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xlstm.engines.pointwise import Pointwise

KB = 1024
PASSES = ("forward", "backward")


class Peaks(NamedTuple):
    """Peak operations per microsecond and SM, from data sheets; a product and its sum count as two.

    Products are dense, and sums are in float32. For sm_100 the peaks of sm_90 are used, since its
    own tensor cores need another instruction.
    """

    float64: float
    float32: float
    tf32: float
    half: float  # float16, and bfloat16 from sm_80 on


# By compute capability, in millions; 0 if there are no such operations. Comments have the peak of
# the chip, in TFLOP/s, over its SMs.
PEAKS = {
    60: Peaks(0.095, 0.189, 0, 0),  # P100: 5.3 and 10.6 over 56
    70: Peaks(0.098, 0.196, 0, 1.56),  # V100: 7.8, 15.7 and 125 over 80
    75: Peaks(0.006, 0.203, 0, 1.63),  # T4: 0.25, 8.1 and 65 over 40
    80: Peaks(0.090, 0.181, 1.44, 2.89),  # A100: 9.7, 19.5, 156 and 312 over 108
    86: Peaks(0.007, 0.434, 0.87, 1.74),  # A10: 31.2, 62.5 and 125 over 72
    89: Peaks(0.010, 0.645, 1.29, 2.55),  # L40S: 91.6, 183 and 362 over 142
    90: Peaks(0.258, 0.508, 3.75, 7.50),  # H100: 34, 67, 495 and 989 over 132
    100: Peaks(0.250, 0.507, 3.75, 7.50),  # B200: 37 and 75 over 148
    120: Peaks(0.010, 0.665, 1.33, 2.68),  # RTX PRO 6000: 125, 251 and 504 over 188
}

# The share of the tensor cores' peak that `mma.sync` reaches, as estimates; sm_90 and sm_100 have a
# faster instruction.
MMA = 0.85
MMA_HOPPER = 0.62


def peaks(name: str, capability: int) -> Peaks:
    """Return the peaks of a card.

    On a GeForce, tensor cores sum in float32 at half the rate of the chip.

    Parameters
    ----------
    name : str
        The name from CUDA, such as "NVIDIA GeForce RTX 4090".
    capability : int
        The compute capability, such as 90 for sm_90. An unknown one has the peaks of the next lower
        one.
    """
    chip = PEAKS[max((sm for sm in PEAKS if sm <= capability), default=min(PEAKS))]
    share = 0.5 if "GeForce" in name and capability >= 80 else 1.0
    chip = chip._replace(tf32=share * chip.tf32, half=share * chip.half)
    return Peaks(*(1e6 * peak for peak in chip))


class Device(NamedTuple):
    """The properties of a GPU that the choice depends on."""

    name: str
    capability: int  # 90 for sm_90
    sms: int
    shared: int  # most bytes of shared memory in a block
    cluster: int = 0  # blocks of the largest cluster that was tested


class Arithmetic(NamedTuple):
    """How numbers are stored and multiplied; sums are of type `real`."""

    name: str
    io: str  # C type of arrays
    real: str  # C type in which the cell is computed
    size: int  # bytes of a number in an array
    mma: int  # 0: without tensor cores, 1: with them, 2: with a float32 as two float16
    tf32: bool
    peak: str  # the field of Peaks that applies
    share: float  # share of the peak, or of the rate of `mma.sync`, that it reaches: an estimate

    @property
    def real_size(self) -> int:
        return 8 if self.real == "double" else 4


ARITHMETIC = {
    a.name: a
    for a in (
        Arithmetic("float64", "double", "double", 8, 0, False, "float64", 0.5),
        Arithmetic("float32", "float", "float", 4, 0, False, "float32", 0.7),
        Arithmetic("3xfp16", "float", "float", 4, 2, False, "half", 0.32),
        Arithmetic("tf32", "float", "float", 4, 1, True, "tf32", 1.0),
        Arithmetic("float16", "half_t", "float", 2, 1, False, "half", 1.0),
        Arithmetic("bfloat16", "bf16_t", "float", 2, 1, False, "half", 1.0),
    )
}
# microseconds of an exchange at a step, in a cluster and through global memory: estimates
SYNC = {True: 0.6, False: 1.2}
# Most FLOP per microsecond and SM, times the bytes of a number, of ordinary arithmetic, whose
# factors come from shared memory: an estimate.
PLAIN = 0.35e6
CELL = 0.06  # microseconds of one cell of each thread, an estimate
WARPS = 8
ARRANGERS = 256  # threads of a block that arranges weights
LINE = 128  # threads of a block in which no thread waits for another
CELLS = 4  # most cells of a thread, beside tensor cores
COLUMNS = (8, 16, 24, 32, 48, 64, 96, 128)  # sequences of a block
# Registers of a thread for weights, sums and values of its cells, by the number of products for a
# pair. With these, none of the kernels that the tests compile spills.
REGISTERS = {1: 206, 2: 163}


@dataclass(frozen=True)
class Tiling:
    """How a pass is divided: a block multiplies M rows of weights of length K by the values of some
    sequences.
    """

    kind: str  # forward or backward
    arithmetic: Arithmetic
    width: int  # units of a head
    heads: int
    units: int  # of a block
    blocks: int  # blocks that share a head and sequences
    columns: int  # sequences of a block
    cluster: bool
    groups: int  # groups of blocks for the whole batch
    waves: int  # rounds: each runs as many groups at once as fit the device
    rate: float  # FLOP per microsecond and SM, an estimate
    M: int
    K: int
    threads: int
    warps_m: int  # warps that share the rows; the others share K
    in_registers: int  # chunks of K in registers, for each tile of a warp

    @property
    def weights(self) -> int:
        """Bytes of a block's weights in shared memory."""
        size = self.arithmetic.size
        if not self.arithmetic.mma:
            return self.M * (self.K * size + 16)
        return (
            self.M * self.K * size
            - self.threads // 32 * (self.M // 16 // self.warps_m) * self.in_registers * KB
        )

    @property
    def shared(self) -> int:
        """Bytes of shared memory; the kernels assert this number."""
        row = self.K * self.arithmetic.size
        real = self.arithmetic.real_size
        arrivals = 16 * self.cluster
        V = self.columns * (row if row // 64 % 2 else row + 64) + self._scales * self.K
        if self.kind == "forward":
            Z = self._parts * (self.M + 4) * self.columns * real
            out = self.units * (self.columns * self.arithmetic.size + self._scales)
            return (2 if self.cluster else 1) * V + Z + out + self.weights + arrivals
        parts = self.exchange if self.cluster else self._shares * self.columns * self.units * real
        return V + parts + self.weights + arrivals

    @property
    def exchange(self) -> int:
        """Bytes through which a group exchanges values, twice; for a grid they are in global
        memory.
        """
        if self.kind == "forward":
            return (
                2 * self.blocks * self.units * (self.columns * self.arithmetic.size + self._scales)
            )
        # A block of a cluster holds values from the others, in rows without bank conflicts.
        parts = self.blocks * (self.units + 4) if self.cluster else self.blocks**2 * self.units
        return 2 * parts * self.columns * self.arithmetic.real_size

    @property
    def time(self) -> float:
        """Estimated microseconds of a step of the whole batch."""
        product = 2 * self.M * self.K * self.columns / self.rate
        cells = -(-self.units * self.columns // self.threads) * CELL
        return (SYNC[self.cluster] + product + cells) * self.waves

    @property
    def arranged(self) -> int:
        """Bytes of the weights in the layout for blocks; with scales, if a float32 is two
        float16.
        """
        scales = 4 * self._tiles if self.arithmetic.mma == 2 else 0
        return self.heads * self.blocks * (self.M * self.K * self.arithmetic.size + scales)

    @property
    def arrangers(self) -> int:
        """Blocks of the kernel that arranges the weights."""
        if self.arithmetic.mma == 2:
            return self.heads * self.blocks * self._tiles
        return -(-self.arranged // (16 * ARRANGERS))

    @property
    def _tiles(self) -> int:
        return self.M // 16 * (self.threads // 32 // self.warps_m)

    @property
    def same_scale(self) -> int:
        """Chunks of K that share a scale, if a float32 is two float16; see `factors.cuh`."""
        lanes = 16 if self.units % 32 else 32
        return self.K // 16 if self.kind == "backward" and self.units == lanes else lanes // 16

    @property
    def _scales(self) -> int:
        """Bytes of the scales for one k of all columns."""
        return self.columns // 4 if self.arithmetic.mma == 2 else 0

    @property
    def _shares(self) -> int:
        """Threads that share the sum of partial dh of a cell in a grid."""
        # Pieces of 16 bytes: a thread reads one at once.
        pieces = self.columns * self.units * self.arithmetic.real_size // 16
        return max(1, min(self.blocks, self.threads // pieces))

    @property
    def _parts(self) -> int:
        """Warps that share K; each has its own sum."""
        return self.threads // 32 // self.warps_m if self.in_registers else 1


def without_product(kind: str, a: Arithmetic, width: int, heads: int, B: int) -> Tiling:
    """Return the tiling of a cell without a product with h: a thread has one unit of a sequence."""
    blocks = -(-width * heads // LINE)
    rest = (0, 0, LINE, 1, 0)
    return Tiling(kind, a, width, heads, LINE, blocks, 1, False, B, 1, 1.0, *rest)


def best(
    kind: str,
    step: Pointwise,
    width: int,
    heads: int,
    B: int,
    a: Arithmetic,
    device: Device,
    cluster: bool,
) -> Tiling | None:
    """Return the tiling with the smallest estimated time, or None if none fits the device.

    Parameters
    ----------
    kind : {"forward", "backward"}
    step : Pointwise
    width, heads, B : int
        Units of a head, number of heads, number of sequences.
    a : Arithmetic
    device : Device
    cluster : bool
        Whether blocks are in clusters; otherwise they are a grid.
    """
    tilings = []
    rate = a.share * getattr(peaks(device.name, device.capability), a.peak)
    if a.mma:
        rate *= MMA_HOPPER if 90 <= device.capability < 120 else MMA
    else:
        rate = min(rate, PLAIN / a.size)
    for (units, blocks), columns in itertools.product(_blocks(width, a, device, cluster), COLUMNS):
        # A cluster lies within one part of the chip, where some SMs are left over.
        room = int(device.sms * 0.97) // blocks if cluster else device.sms // blocks
        if columns > _up(min(B, 128), 8) or room == 0:
            continue
        groups = -(-B // columns) * heads
        waves = -(-groups // room)
        block = (kind, a, width, heads, units, blocks, columns, cluster, groups, waves, rate)
        for division in _divisions(kind, step, a, units, blocks, columns):
            tiling = Tiling(*block, *division)
            if tiling.shared <= device.shared:
                tilings.append(tiling)
    return min(tilings, key=lambda t: (t.time, t.weights, t.shared), default=None)


def _blocks(width: int, a: Arithmetic, device: Device, cluster: bool) -> list[tuple[int, int]]:
    """Return the ways to divide a head, as pairs: units of a block, and number of blocks."""
    if cluster:
        ways = [
            (_up(-(-width // blocks), 16), blocks)
            for blocks in (1, 2, 4, 8, 16)
            if blocks <= device.cluster
        ]
        # The last block has work, too.
        return [(units, blocks) for units, blocks in ways if units * (blocks - 1) < width]
    if not a.mma:
        return [(units, -(-width // units)) for units in (4, 8, 12, 16, 24, 32, 48, 64)]
    ways = [(units, -(-width // units)) for units in (8, 16, 32, 48, 64) if units > 8 or a.mma == 1]
    # many blocks are rounded up so that every warp has the same number of tiles
    return [(units, _up(blocks, 8) if blocks > 8 else blocks) for units, blocks in ways]


def _divisions(
    kind: str, step: Pointwise, a: Arithmetic, units: int, blocks: int, columns: int
) -> Iterator[tuple[int, ...]]:
    """Yield the ways to divide the work of a block for which registers suffice.

    Each has the fields of `Tiling` from M on.
    """
    chunk = 64 // a.size
    gates = int(step.before["zx"] or 1)
    M = gates * units
    K = blocks * units
    if kind == "backward":
        M, K = K, M
    if not a.mma:
        yield M, _up(K, chunk), 32 * WARPS, 1, 0
        return
    inputs = step.after if kind == "backward" else step.before
    read = [rows or 1 for name, rows in inputs.items() if name not in ("zh", "drop", *step.numbers)]
    # Values that a thread holds for each of its cells.
    values = sum(read) + len(step.carried) + 1 + step.around.drop
    tiles, rest = divmod(M, 16)
    if rest:  # eight units of one or three gates
        return
    if kind == "forward":
        # With one tile, the compiler begins so many chunks of three products that registers run
        # out.
        least = 2 if a.mma == 2 and tiles > 1 else 1
        ways = [(m, WARPS // m) for m in (1, 2, 4, 8) if tiles % m == 0 and tiles // m >= least]
    else:
        ways = [(max(m for m in range(1, WARPS + 1) if tiles % m == 0), 1)]
    for warps_m, warps_k in ways:
        deep = _up(K, chunk * warps_k)
        warps = warps_m * warps_k
        own = tiles // warps_m
        chunks = deep // chunk // warps_k
        cells = -(-units * columns // (32 * warps))
        sums = 2 if a.mma == 2 or own <= 2 else 1
        # Beside its values, a cell needs room for its results and for the place of the next one.
        left = REGISTERS[a.mma] - 4 * own * sums - (cells * (values + 12) - 12)
        if a.mma == 2:  # the compiler begins sums before others end
            ahead = 16 if kind == "forward" and own != 2 else 0
            left -= 10 * (cells - 1) + ahead
        held = min(chunks, left // (8 * own))
        if held < chunks or a.mma == 2:  # chunks from shared memory pass through registers, too
            held = min(chunks - 2 * (a.mma == 2 and own == 2), (left - 8) // (8 * own))
        if a.mma == 2 and chunks - held > 5:  # they come in pairs
            held -= (chunks - held) % 2
        # With more sums at once, registers run out.
        if held >= 1 and own <= 8 and cells <= CELLS:
            yield M, deep, 32 * warps, warps_m, held


def _up(n: int, to: int) -> int:
    return -(-n // to) * to
