"""The passes of a chunkwise mLSTM in kernels: the launches of a forward and of a backward pass.

Their results are those of `chunkwise` and `chunkwise_bwd` in `cells/mlstm_chunks.py`, from arrays
in the layer's shapes: q and k (T, B, N K), v (T, B, N V), i~ and f~ (T, B, N), for N heads. Arrays
that only kernels read share one room of memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import device, kernel_fallback
from xlstm.arrays.namespace import DOUBLE, SINGLE, Array, Namespace, astype, dtype_name, room
from xlstm.arrays.rows import by_rows
from xlstm.cells import mlstm_formulas as formulas
from xlstm.cells.mlstm_formulas import limit_of
from xlstm.engines.cuda import launch
from xlstm.engines.cuda.choice import MMA, TF32, told
from xlstm.engines.cuda.chunk_source import (
    CHUNK_ARITHMETIC,
    KINDS,
    LARGEST,
    THREADS,
    ChunkArithmetic,
    ChunkShape,
    source,
    steps_of,
)
from xlstm.engines.cuda.kernels import contiguous
from xlstm.engines.cuda.tiling import Device
from xlstm.engines.memories import REFERENCE, MemoryPass, MemoryTape, Start

VIEWS = ("q", "k", "v", "i", "f", "dh")  # arrays (T, B, N F) with any strides
NAMES = (
    "C0 n0 m0 logf read write keep b w most r m C n end_C end_n end_m s den h dh_h ds dend_C dend_n"
    " dC dn dC0 dn0 dm0 inner dq dk dv dw dend_m dm more_w more_b more_m di df"
)
POINTERS = tuple(NAMES.split())
OF_CHUNKS = ("within", "within_bwd", "shares_bwd")  # kernels with blocks for each chunk
# arrays that are kept for the backward pass
FORWARD = ("b", "w", "most", "r", "m", "logf", "s", "den", "read", "write", "keep", "C", "n")
BACKWARD = ("inner", "dC", "dn", "dw")
MAXIMUM = ("more_w", "more_b", "more_m", "dm")  # arrays for gradients through the maximum
GRADIENTS = ("dq", "dk", "dv", "di", "df", "dC0", "dn0", "dm0")  # results of `chunkwise_bwd`
ALIGNED = 256  # bytes


class Saved(NamedTuple):
    """The arrays that `chunkwise` keeps."""

    inputs: tuple[Array, ...]  # q, k, v, i~, f~, unchanged
    start: tuple[Array, ...]  # C0, n0, m0
    h: Array  # (T, B, N V)
    room: Array  # memory for the arrays in `FORWARD`
    kernels: ChunkKernels


class ChunkKernels(NamedTuple):
    """The kernels of a layer."""

    arithmetic: ChunkArithmetic
    shape: ChunkShape
    forget: str
    eps: float

    @property
    def name(self) -> str:
        """The name of the kernels in the list of broken kernels."""
        return f"{self.arithmetic.kind}{self.shape.K} x {self.shape.V}"

    def run(self, kinds: Sequence[str], arrays: dict[str, Any]) -> None:
        """Run kernels on arrays and addresses by name."""
        T, B, _ = arrays["q"].shape
        groups = B * self.shape.heads
        chunks = -(-T // self.shape.L)
        numbers: list[int] = []
        for name in VIEWS:
            numbers += _view(arrays.get(name), self.shape.heads)
        for name in POINTERS:
            a = arrays.get(name, 0)
            numbers.append(a if type(a) is int else a.data.ptr)
        table = (device.struct([*numbers, T, groups, chunks]),)
        for kind in kinds:
            kernel, tiles = source(kind, *self)
            blocks = tiles * groups * (chunks if kind in OF_CHUNKS else 1)
            launch.launch(kernel, (blocks, 1), THREADS, table)

    def work_space(
        self, xp: Namespace, q: Array, names: tuple[str, ...]
    ) -> tuple[Array, dict[str, int]]:
        """Return room for arrays that only kernels read, and the address of each array."""
        places, size = _places(self, *q.shape[:2], q.itemsize, names)
        memory = room(xp, q, (size,), np.uint8)
        return memory, {name: memory.data.ptr + place for name, place in places.items()}


@functools.lru_cache(maxsize=64)
def _places(
    kernels: ChunkKernels, T: int, B: int, itemsize: int, names: tuple[str, ...]
) -> tuple[dict[str, int], int]:
    """Return where each array begins in a room, and the bytes of all together."""
    N, K, V, L, _ = kernels.shape
    outer = B * N
    chunks = B * N * -(-T // L)
    sizes = {
        **dict.fromkeys(("b", "w", "most", "r"), 8 * chunks * L),
        **dict.fromkeys(
            ("logf", "s", "den", "read", "write", "dw", "more_w", "more_b"), 4 * chunks * L
        ),
        "m": 8 * chunks,
        "keep": 4 * chunks,
        "dm": 4 * chunks,
        "more_m": 4 * outer,
        "C": itemsize * (chunks + outer) * K * V,
        "n": 4 * (chunks + outer) * K,
        "dC": itemsize * chunks * K * V,
        "dn": 4 * chunks * K,
        "inner": 4 * source("states_bwd", *kernels)[1] * (chunks + outer),
    }
    places = {}
    end = 0
    for name in names:
        places[name] = end
        end = end + -(-sizes[name] // ALIGNED) * ALIGNED
    return places, end


def arithmetic_of(dtype: str, precision: str, card: Device) -> ChunkArithmetic | None:
    """Return how a card multiplies numbers of a dtype, or None if it has no kernels for them."""
    if card.capability < (MMA if dtype == "float16" else TF32):
        return None
    return CHUNK_ARITHMETIC.get((dtype, precision if dtype == "float32" else "float32"))


def kernels(
    xp: Namespace, q: Array, k: Array, v: Array, heads: int, chunk: int, forget: str, eps: float
) -> ChunkKernels | None:
    """Return the kernels for an mLSTM with these queries, keys and values, or None if there are
    none.
    """
    card = launch.device(xp, q)
    if card is None:
        return None
    path, precision = told()
    T, _, K = q.shape
    V = v.shape[2] // heads
    K //= heads
    way = arithmetic_of(dtype_name(q.dtype), precision, card)
    if way is None or path == "loop" or chunk > LARGEST or K % 2 or V % 2 or q.size == 0:
        return None
    most = 16 // q.itemsize
    pack = most if all(_fits(a, heads, most) for a in (q, k, v)) else 2
    layer = ChunkKernels(way, ChunkShape(heads, K, V, steps_of(min(chunk, T)), pack), forget, eps)
    fits = _most_shared(layer) <= card.shared
    return layer if fits and kernel_fallback.works(layer.name) else None


class CudaMemory:
    """The engine that runs matrix memories in kernels."""

    name = "cuda"

    def refuses(self, step: MemoryPass, x: Sequence[Array], state: Start) -> str:
        """Return why the engine cannot run a pass, or ""."""
        q, k, v, *_ = x
        step.compiled = kernels(step.xp, q, k, v, step.N, step.chunk, step.forget, step.eps)
        return "" if step.compiled else "it has no kernels for these widths, dtype and card"

    def forward(
        self, step: MemoryPass, x: Sequence[Array], state: Start, keep: bool
    ) -> tuple[Array, list[Array], MemoryTape | None]:
        """Run all steps; see `MemoryEngine`."""
        name = step.compiled.name
        computed = kernel_fallback.attempt(name, forward, step.xp, step.compiled, *x, *state)
        if computed is None:
            return REFERENCE.forward(step, x, state, keep)
        h, *end, saved = computed
        return h, end, MemoryTape(self, step, saved) if keep else None

    def backward(
        self, tape: MemoryTape, dh: Array, dstate: Start | None
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        """Return the gradients; see `MemoryEngine`."""
        saved: Saved = tape.saved
        step = tape.step
        ends = dstate or (None, None, None)
        grads = kernel_fallback.attempt(saved.kernels.name, backward, step.xp, dh, *ends, saved)
        if grads is None:  # the forward pass begins again, too
            _, _, again = REFERENCE.forward(step, saved.inputs, saved.start, True)
            return REFERENCE.backward(again, dh, dstate)  # type: ignore[arg-type]  # it is kept
        return grads[:5], grads[5:]


MEMORY = CudaMemory()


def forward(
    xp: Namespace, kernels: ChunkKernels, *arguments: Array
) -> tuple[Array, Array, Array, Array, Saved]:
    inputs = (*(_packed(a, kernels.shape) for a in arguments[:3]), *arguments[3:5])
    q, _, v, *_ = inputs
    start = tuple(contiguous(astype(xp, a, SINGLE)) for a in arguments[5:])
    memory, arrays = kernels.work_space(xp, q, FORWARD)
    h = room(xp, v, v.shape)
    end_C, end_n, end_m = end = [room(xp, a, a.shape) for a in start]
    names = ("q", "k", "v", "i", "f", "C0", "n0", "m0", "end_C", "end_n", "end_m", "h")
    arrays |= zip(names, (*inputs, *start, *end, h), strict=True)
    kernels.run(("gates", "states", "within"), arrays)
    return h, end_C, end_n, end_m, Saved(inputs, start, h, memory, kernels)


def backward(
    xp: Namespace, dh: Array, dC: Array | None, dn: Array | None, dm: Array | None, saved: Saved
) -> tuple[Array, ...]:
    (q, k, v, _, f), start, h, memory, kernels = saved
    T, B, _ = q.shape
    N, _, _, L, _ = kernels.shape
    steps = L * -(-T // L)
    through_maximum = dm is not None or bool(kernels.eps)
    dh = _packed(dh, kernels.shape)
    places = _places(kernels, T, B, q.itemsize, FORWARD)[0]
    far = N * steps, steps, 1, 1  # strides of numbers per step, as (B, N, T, 1)
    of_steps = [
        optional_imports.cupy().ndarray(
            (B, N, T, 1), dtype, memory.data + places[name], [n * dtype.itemsize for n in far]
        )
        for name, dtype in (("den", SINGLE), ("s", SINGLE), ("b", DOUBLE), ("r", DOUBLE))
    ]
    options = {"limit": limit_of(xp, SINGLE), "dtype": SINGLE}
    dh_h, ds = by_rows(xp, _rows_bwd, by_head(dh, N), by_head(h, N), *of_steps, **options)
    _memory, arrays = kernels.work_space(xp, q, BACKWARD + MAXIMUM * through_maximum)
    arrays |= {name: memory.data.ptr + place for name, place in places.items()}
    grads = {
        name: room(xp, a, a.shape)
        for name, a in zip(GRADIENTS, (*saved.inputs, *start), strict=True)
    }
    ends = {
        name: contiguous(astype(xp, a, SINGLE))
        for name, a in (("dend_C", dC), ("dend_n", dn), ("dend_m", dm))
        if a is not None
    }
    arrays |= grads | ends
    arrays |= {"q": q, "k": k, "v": v, "f": f, "dh": dh, "dh_h": dh_h, "ds": ds}
    maximum = ("maximum_bwd", "shares_bwd") if through_maximum else ()
    kernels.run(("states_bwd", "within_bwd", *maximum, "gates_bwd"), arrays)
    return tuple(grads.values())


def _rows_bwd(
    xp: Namespace,
    dh: Array,
    h: Array,
    den: Array,
    s: Array,
    b: Array,
    r: Array,
    limit: float,
    dtype: Any,
) -> tuple[Array, Array]:
    """Return -den times the gradient with respect to den, and the gradient with respect to s, like
    `chunkwise_bwd` of the cell.
    """
    dh_h = xp.sum(astype(xp, dh, dtype) * astype(xp, h, dtype), axis=-1, keepdims=True)  # (8)
    return dh_h, formulas.den_bwd(xp, dh_h, den, s, b, r, limit=limit, dtype=dtype)  # (7)


def by_head(a: Array, heads: int) -> Array:
    """Return (T, B, N F) as a view (B, N, T, F)."""
    return a.reshape(*a.shape[:2], heads, -1).transpose(1, 2, 0, 3)


def _view(a: Array | None, heads: int) -> tuple[int, ...]:
    """Return the address of an array (T, B, N F), and its strides, in elements, along time,
    sequences and heads.
    """
    if a is None:
        return 0, 0, 0, 0
    size = a.itemsize
    t, b, feature = a.strides
    return a.data.ptr, t // size, b // size, a.shape[2] // heads * feature // size


def _fits(a: Array, heads: int, pack: int) -> bool:
    """Return whether kernels can read the rows of heads in (T, B, N F) as aligned packs of `pack`
    neighbours.
    """
    size = pack * a.itemsize
    far = [step for n, step in zip(a.shape[:2], a.strides[:2], strict=True) if n > 1]
    return (
        a.strides[2] == a.itemsize
        and a.shape[2] // heads % pack == 0
        and all(start % size == 0 for start in (*far, a.data.ptr))
    )


def _packed(a: Array, shape: ChunkShape) -> Array:
    """Return an array that fits the kernels, a copy if necessary."""
    return a if _fits(a, shape.heads, shape.pack) else a.copy(order="C")


@functools.cache
def _most_shared(kernels: ChunkKernels) -> int:
    """Return the bytes of shared memory of the kernel that needs most."""
    return max(source(kind, *kernels)[0].shared for kind in KINDS)
