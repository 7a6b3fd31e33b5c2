"""Masks drawn on CuPy, with the bits that the generator on the host would draw.

NumPy's PCG64 is a linear congruential generator, x' = a x + c modulo 2^128 (O'Neill 2014). A few
multiplications give any later state (Brown 1994). So each thread of a kernel starts at its own
place, no number is copied to the device, and the generator on the host is advanced as if it had
drawn the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays.constants import Home, from_host, home, kept
from xlstm.arrays.cuda import device, kernel_fallback
from xlstm.arrays.groups import Part, rows
from xlstm.arrays.namespace import Array, Host, Namespace, Shape, device_of, namespace_of, room
from xlstm.arrays.random import skip

A = 0x2360ED051FC65DA44385DF649FCCF645  # the multiplier of PCG64
THREADS = 256
BLOCKS = 1024  # the most blocks of a launch
OPTIONS = ("-device-int128",)
PIECE = 32  # numbers of a row that one thread draws
STATE = 4  # numbers of a state on the device: whether a half is kept, that half, and the 128 bits

TEXT = (
    f"constexpr long long PIECE = {PIECE};"
    + """
typedef unsigned long long u64;
typedef unsigned __int128 u128;

struct State { u64 kept, first, high, low; };
struct Steps {  // x' = a x + c
    u128 a, c;
    __device__ u128 operator()(u128 x) const { return a * x + c; }
};
struct Halves { u64 a_high, a_low, c_high, c_low; };
__device__ __forceinline__ u128 joined(u64 high, u64 low) { return (u128)high << 64 | low; }
__device__ __forceinline__ Steps joined(const Halves& one) {
    return {joined(one.a_high, one.a_low), joined(one.c_high, one.c_low)};
}

__device__ __forceinline__ Steps jump(const Steps& one, u64 steps) {  // by squaring
    Steps square = one, all = {1, 0};
    for (; steps; steps >>= 1) {
        if (steps & 1) all = {all.a * square.a, all.c * square.a + square.c};
        square = {square.a * square.a, (square.a + 1) * square.c};
    }
    return all;
}
__device__ __forceinline__ u64 output(u128 state) {
    const u64 high = (u64)(state >> 64), mixed = high ^ (u64)state;
    const int turn = (int)(high >> 58);
    return mixed >> turn | mixed << (-turn & 63);
}
struct Values {  // two of so many bytes: `below` for numbers below `rate`, else `other`
    void* to;
    int size;
    float rate;
    u64 below, other;
    __device__ void put(long long at, unsigned drawn) const {
        const u64 value = (drawn >> 8) * (1.0f / 16777216.0f) < rate ? below : other;
        if (size == 2) ((unsigned short*)to)[at] = (unsigned short)value;
        else if (size == 4) ((unsigned*)to)[at] = (unsigned)value;
        else ((u64*)to)[at] = value;
    }
};

// Writes a value for each of `count` numbers. They are drawn from a state on the device, or without one from `given`;
// `halves` are those of a step.
extern "C" __global__ void xlstm_bernoulli(void* to, long long count, int size, float rate, u64 below, u64 other,
                                           const State given, const State* there, const Halves halves) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long threads = (long long)gridDim.x * blockDim.x;
    const State from = there ? *there : given;
    const Values values{to, size, rate, below, other};
    const int kept = (int)from.kept;
    if (thread == 0 && kept) values.put(0, (unsigned)from.first);
    const Steps one = joined(halves), all = jump(one, threads);
    u128 state = jump(one, thread + 1)(joined(from.high, from.low));
    for (long long draw = thread; 2 * draw + kept < count; draw += threads) {
        const u64 drawn = output(state);
        values.put(2 * draw + kept, (unsigned)drawn);
        if (2 * draw + kept + 1 < count) values.put(2 * draw + kept + 1, (unsigned)(drawn >> 32));
        state = all(state);
    }
}

// The same for some rows of `width` numbers out of all that are drawn, whose places are in `rows`.
extern "C" __global__ void xlstm_bernoulli_rows(void* to, long long count, int size, float rate, u64 below, u64 other,
                                                const State given, const State* there, const Halves halves,
                                                const long long* rows, long long width) {
    const long long threads = (long long)gridDim.x * blockDim.x, pieces = (width + PIECE - 1) / PIECE;
    const State from = there ? *there : given;
    const Steps one = joined(halves);
    const Values values{to, size, rate, below, other};
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < count / width * pieces; k += threads) {
        const long long row = k / pieces, start = k % pieces * PIECE, end = min(width, start + PIECE);
        long long at = row * width + start, number = rows[row] * width + start - (int)from.kept;
        if (number < 0) {  // the half that was kept
            values.put(at++, (unsigned)from.first);
            number++;
        }
        u128 state = jump(one, number / 2 + 1)(joined(from.high, from.low));
        for (; at < row * width + end; at++, number++) {
            const u64 drawn = output(state);
            values.put(at, (unsigned)(number & 1 ? drawn >> 32 : drawn));
            if (number & 1) state = one(state);
        }
    }
}
"""
)


def bernoulli(
    rng: np.random.Generator, rate: float, shape: Shape, array: Array, pair: tuple[float, float]
) -> Array | None:
    """Return the mask of `bernoulli` in `arrays/random.py`; None without a kernel for the generator.

    `pair` has the values below `rate` and of other numbers.
    """
    if isinstance(rng, Later):
        return _launched(rng, rate, shape, array, pair)
    if not isinstance(rng.bit_generator, np.random.PCG64):
        return None
    before = rng.bit_generator.state
    mask = kernel_fallback.attempt("xlstm_bernoulli", _launched, rng, rate, shape, array, pair)
    if mask is None:
        rng.bit_generator.state = before
    return mask


def _launched(
    rng: np.random.Generator,
    rate: float,
    shape: Shape,
    array: Array,
    pair: tuple[float, float],
) -> Array:
    """Return the array, drawn on the device."""
    xp = namespace_of(array)
    mask = room(xp, array, shape)
    part: Part | None = getattr(rng, "part", None)
    # The number of numbers drawn, including those of other ranks.
    count = mask.size if part is None else part.count(shape)
    if isinstance(rng, Later):
        state = [0] * STATE
        on_device = rng.place(count)
    else:
        state = states(rng, [count])[0]
        on_device = np.uintp(0)
    if not mask.size:
        return mask
    values = np.array(pair).astype(mask.dtype).view(f"u{mask.itemsize}").astype(np.uint64)
    name = "xlstm_bernoulli"
    draws = 2
    rows_of_part: tuple[Any, ...] = ()
    step = device.struct(_halves(A, rng.bit_generator.state["state"]["inc"]), form="4Q")
    with device_of(mask):
        if part is not None:
            name = "xlstm_bernoulli_rows"
            draws = PIECE
            places = _on_device(xp, part.key, shape[0], len(shape) == 2, home(device_of(mask)))
            rows_of_part = (places, np.int64(mask.size // len(places)))
        numbers = np.int64(mask.size), np.int32(mask.itemsize), np.float32(rate), *values
        start = device.struct(state, form="4Q"), on_device, step
        blocks = min(BLOCKS, -(-mask.size // (draws * THREADS)))
        kernel = device.kernel(TEXT, name, OPTIONS)
        kernel((blocks,), (THREADS,), (mask, *numbers, *start, *rows_of_part))
    return mask


@kept(16)
def _on_device(xp: Namespace, key: Any, steps: int, packed: bool, home: Home) -> Array:
    """Return the rows of a part, on a device."""
    return from_host(xp, rows(key, steps, packed), home)


class Later(np.random.Generator):
    """A PCG64 for masks in a CUDA graph, drawn from states that are on the device before a launch.

    Parameters
    ----------
    bits : PCG64
        Only its increment matters; later states share it.
    states : array (most, STATE)
        Memory on the device for the states to draw masks from, uint64.
    part : Part, optional
        The part of a batch that the masks are for.
    """

    def __init__(
        self, bits: np.random.BitGenerator, states: Array, part: Part | None = None
    ) -> None:
        super().__init__(bits)
        self.part = part
        self.states = states
        self.sizes = list[int]()

    def place(self, size: int) -> Array:
        """Return the place of the next mask's state; the mask draws `size` numbers."""
        self.sizes.append(size)
        if len(self.sizes) > len(self.states):
            raise ValueError(f"a captured step draws more masks than {len(self.states)}")
        return self.states[len(self.sizes) - 1]


def states(rng: np.random.Generator, sizes: Sequence[int]) -> Host:
    """Return the states (masks, STATE) to draw masks of these sizes from, and advance `rng`."""
    table = np.zeros((len(sizes), STATE), np.uint64)
    for row, size in zip(table, sizes, strict=True):
        state: Any = rng.bit_generator.state
        row[:] = state["has_uint32"], state["uinteger"], *_halves(state["state"]["state"])
        skip(rng.bit_generator, size)
    return table


def _halves(*numbers: int) -> list[int]:
    """Return the high and the low 64 bits of each number."""
    return [half for number in numbers for half in (number >> 64, number & (2**64 - 1))]
