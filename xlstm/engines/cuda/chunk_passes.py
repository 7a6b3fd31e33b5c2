"""The passes of a chunkwise mLSTM in kernels: what is asked of the device, forward and backward.

They compute what `chunkwise` and `chunkwise_bwd` in `cells/mlstm_chunks.py` do, from arrays as
layers have them: q and k (T, B, N K), v (T, B, N V), i~ and f~ (T, B, N), for N heads. Arrays that
only kernels read lie in one room.
"""

from __future__ import annotations

import functools
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
from xlstm.engines.cuda.chunk_source import KINDS, LARGEST, THREADS, WAYS, Shape, Way, source, steps
from xlstm.engines.cuda.kernels import contiguous
from xlstm.engines.cuda.tiling import Device

VIEWS = ("q", "k", "v", "i", "f", "dh")  # arrays (T, B, N F) with any strides
NAMES = (
    "C0 n0 m0 logf read write keep b w most r m C n end_C end_n end_m s den h dh_h ds dend_C dend_n"
    " dC dn dC0 dn0 dm0 inner dq dk dv dw dend_m dm more_w more_b more_m di df"
)
POINTERS = tuple(NAMES.split())
NUMBERS = ("T", "groups", "chunks")
# kept for backward
FORWARD = ("b", "w", "most", "r", "m", "logf", "s", "den", "read", "write", "keep", "C", "n")
BACKWARD = ("inner", "dC", "dn", "dw")
MAXIMUM = ("more_w", "more_b", "more_m", "dm")  # those of the gradients through the maximum
ALIGNED = 256  # bytes


class Saved(NamedTuple):
    """The arrays that `chunkwise` keeps."""

    inputs: tuple[Array, ...]  # q, k, v, i~, f~, as given
    start: tuple[Array, ...]  # C0, n0, m0
    h: Array  # (T, B, N V)
    room: Array  # with the arrays of `FORWARD`
    made: Kernels


class Kernels(NamedTuple):
    """The kernels of a layer."""

    way: Way
    shape: Shape
    forget: str
    eps: float

    @property
    def name(self) -> str:
        """The name under which they are known where they are broken."""
        return f"chunks {self.way.io} {self.way.planes} {self.shape.K} x {self.shape.V}"

    def run(self, blocks: dict[str, int], arrays: dict[str, Any]) -> None:
        """Run kernels on arrays, addresses and numbers by name, each in so many times the blocks
        that its tiles are.
        """
        numbers: list[int] = []
        for name in VIEWS:
            numbers += _view(arrays.get(name), self.shape.heads)
        for name in POINTERS:
            a = arrays.get(name, 0)
            numbers.append(a if type(a) is int else a.data.ptr)
        table = (device.struct([*numbers, *(arrays[name] for name in NUMBERS)]),)
        for kind, count in blocks.items():
            kernel, tiles = source(kind, *self)
            launch.launch(kernel, (count * tiles, 1), THREADS, table)

    def made_room(
        self, xp: Namespace, q: Array, names: tuple[str, ...]
    ) -> tuple[Array, dict[str, int]]:
        """Return room for arrays that only kernels read, and the address of each."""
        places, size = _places(self, *q.shape[:2], q.itemsize, names)
        found = room(xp, q, (size,), np.uint8)
        return found, {name: found.data.ptr + place for name, place in places.items()}


@functools.lru_cache(maxsize=64)
def _places(
    made: Kernels, T: int, B: int, itemsize: int, names: tuple[str, ...]
) -> tuple[dict[str, int], int]:
    """Return where each array begins in a room, and the bytes of all."""
    N, K, V, L, _ = made.shape
    outer = B * N
    chunks = B * N * -(-T // L)
    sizes = {
        **dict.fromkeys(("b", "w", "most", "r"), 8 * chunks * L),
        **dict.fromkeys(
            ("logf", "s", "den", "read", "write", "dw", "more_w", "more_b"), 4 * chunks * L
        ),
        **{"m": 8 * chunks, "keep": 4 * chunks, "dm": 4 * chunks, "more_m": 4 * outer},
        **{"C": itemsize * (chunks + outer) * K * V, "n": 4 * (chunks + outer) * K},
        **{"dC": itemsize * chunks * K * V, "dn": 4 * chunks * K},
        "inner": 4 * source("states_bwd", *made)[1] * (chunks + outer),
    }
    places = {}
    end = 0
    for name in names:
        places[name] = end
        end = end + -(-sizes[name] // ALIGNED) * ALIGNED
    return places, end


def way_of(dtype: str, precision: str, card: Device) -> Way | None:
    """Return how a card multiplies numbers of a dtype, or None where it has no kernels for them."""
    least = MMA if dtype == "float16" else TF32
    return (
        WAYS.get((dtype, precision if dtype == "float32" else "float32"))
        if card.capability >= least
        else None
    )


def kernels(
    xp: Namespace, q: Array, k: Array, v: Array, heads: int, chunk: int, forget: str, eps: float
) -> Kernels | None:
    """Return the kernels for an mLSTM with these queries, keys and values, or None where there are
    none.
    """
    card = launch.device(xp, q)
    if card is None:
        return None
    path, precision = told()
    T, _, K = q.shape
    V = v.shape[2] // heads
    K //= heads
    way = way_of(dtype_name(q.dtype), precision, card)
    if way is None or path == "loop" or chunk > LARGEST or K % 2 or V % 2 or q.size == 0:
        return None
    most = 16 // q.itemsize
    pack = most if all(_fits(a, heads, most) for a in (q, k, v)) else 2
    found = Kernels(way, Shape(heads, K, V, steps(min(chunk, T)), pack), forget, eps)
    return (
        found if _most_shared(found) <= card.shared and kernel_fallback.works(found.name) else None
    )


def chunkwise(xp: Namespace, *given: Any) -> tuple[Array, Array, Array, Array, Saved] | None:
    """Compute all steps from q, k, v, i~, f~, C0, n0, m0 and `Kernels`, or return None where these
    are None or fail.

    Returns
    -------
    h : array (T, B, N V)
    C, n, m : array
        The state after the last step.
    saved : Saved
    """
    return (
        None if given[-1] is None else kernel_fallback.attempt(given[-1].name, forward, xp, *given)
    )


def chunkwise_bwd(
    xp: Namespace, dh: Array, dC: Array | None, dn: Array | None, dm: Array | None, saved: Saved
) -> tuple[Array, ...] | None:
    """Return the gradients of q, k, v, i~, f~, C0, n0 and m0, or None where the kernels fail.

    dC, dn and dm may all be None, which means 0.
    """
    return kernel_fallback.attempt(saved.made.name, backward, xp, dh, dC, dn, dm, saved)


def forward(
    xp: Namespace,
    q: Array,
    k: Array,
    v: Array,
    i: Array,
    f: Array,
    C0: Array,
    n0: Array,
    m0: Array,
    made: Kernels,
) -> tuple[Array, Array, Array, Array, Saved]:
    T, B, _ = q.shape
    N, _, _, L, _ = made.shape
    q, k, v = (_packed(a, made.shape) for a in (q, k, v))
    C0, n0, m0 = start = tuple(contiguous(astype(xp, a, SINGLE)) for a in (C0, n0, m0))
    whole, arrays = made.made_room(xp, q, FORWARD)
    h, *end = room(xp, v, v.shape), *(room(xp, a, a.shape) for a in start)
    chunks = -(-T // L)
    groups = B * N
    arrays |= {
        "q": q,
        "k": k,
        "v": v,
        "i": i,
        "f": f,
        "T": T,
        "groups": groups,
        "chunks": chunks,
        "h": h,
    }
    arrays |= {
        "C0": C0,
        "n0": n0,
        "m0": m0,
        **dict(zip(("end_C", "end_n", "end_m"), end, strict=True)),
    }
    made.run({"gates": groups, "states": groups, "within": groups * chunks}, arrays)
    return h, end[0], end[1], end[2], Saved((q, k, v, i, f), start, h, whole, made)


def backward(
    xp: Namespace, dh: Array, dC: Array | None, dn: Array | None, dm: Array | None, saved: Saved
) -> tuple[Array, ...]:
    (q, k, v, _, f), start, h, whole, made = saved
    T, B, _ = q.shape
    N, _, _, L, _ = made.shape
    chunks = -(-T // L)
    groups = B * N
    through_maximum = dm is not None or bool(made.eps)
    dh = _packed(dh, made.shape)
    kept = _places(made, T, B, q.itemsize, FORWARD)[0]
    far = N * chunks * L, chunks * L, 1, 1  # of the numbers of steps, as (B, N, T, 1)
    of_steps = [
        optional_imports.cupy().ndarray(
            (B, N, T, 1), dtype, whole.data + kept[name], [n * dtype.itemsize for n in far]
        )
        for name, dtype in (("den", SINGLE), ("s", SINGLE), ("b", DOUBLE), ("r", DOUBLE))
    ]
    options = {"limit": limit_of(xp, SINGLE), "dtype": SINGLE}
    dh_h, ds = by_rows(xp, _rows_bwd, by_head(dh, N), by_head(h, N), *of_steps, **options)
    _room, arrays = made.made_room(xp, q, BACKWARD + MAXIMUM if through_maximum else BACKWARD)
    grads = {
        name: room(xp, a, a.shape)
        for name, a in zip(("dq", "dk", "dv", "di", "df"), saved.inputs, strict=True)
    }
    starts = {
        name: room(xp, a, a.shape) for name, a in zip(("dC0", "dn0", "dm0"), start, strict=True)
    }
    dC, dn, dm = (None if a is None else contiguous(astype(xp, a, SINGLE)) for a in (dC, dn, dm))
    ends = {
        name: a for name, a in (("dend_C", dC), ("dend_n", dn), ("dend_m", dm)) if a is not None
    }
    arrays |= {name: whole.data.ptr + place for name, place in kept.items()} | grads | starts | ends
    arrays |= {"q": q, "k": k, "v": v, "f": f, "dh": dh, "T": T, "groups": groups, "chunks": chunks}
    arrays |= {"dh_h": dh_h, "ds": ds}
    blocks = {"states_bwd": groups, "within_bwd": groups * chunks}
    if through_maximum:
        blocks |= {"maximum_bwd": groups, "shares_bwd": groups * chunks}
    made.run({**blocks, "gates_bwd": groups}, arrays)
    return (*grads.values(), *starts.values())


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
    """Return -den times the gradient of den, and the gradient of s, as `chunkwise_bwd` of the cell
    finds them.
    """
    dh_h = xp.sum(astype(xp, dh, dtype) * astype(xp, h, dtype), axis=-1, keepdims=True)  # (8)
    return dh_h, formulas.den_bwd(xp, dh_h, den, s, b, r, limit=limit, dtype=dtype)  # (7)


def by_head(a: Array, heads: int) -> Array:
    """Return (T, B, N F) seen as (B, N, T, F)."""
    return a.reshape(*a.shape[:2], heads, -1).transpose(1, 2, 0, 3)


def _view(a: Array | None, heads: int) -> tuple[int, ...]:
    """Return the address of an array (T, B, N F), and the steps in elements along time, sequences
    and heads.
    """
    if a is None:
        return 0, 0, 0, 0
    size = a.itemsize
    t, b, one = a.strides
    return a.data.ptr, t // size, b // size, a.shape[2] // heads * one // size


def _fits(a: Array, heads: int, pack: int) -> bool:
    """Return whether the rows of heads in (T, B, N F) are `pack` neighbours each, which begin where
    that many may.
    """
    size = pack * a.itemsize
    F = a.shape[2] // heads
    starts = [
        *(step for n, step in zip(a.shape[:2], a.strides[:2], strict=True) if n > 1),
        a.data.ptr,
    ]
    return (
        a.strides[2] == a.itemsize and F % pack == 0 and all(start % size == 0 for start in starts)
    )


def _packed(a: Array, shape: Shape) -> Array:
    """Return an array that fits, a copy if need be."""
    return a if _fits(a, shape.heads, shape.pack) else a.copy(order="C")


@functools.cache
def _most_shared(made: Kernels) -> int:
    """Return the bytes of shared memory that the kernel with most of it takes."""
    return max(source(kind, *made)[0].shared for kind in KINDS)
