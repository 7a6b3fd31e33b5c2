"""The passes of a chunkwise mLSTM in kernels: what is asked of the device, forward and backward.

They have the arguments and results of `chunkwise` and `chunkwise_bwd` in `cells/mlstm_chunks.py`.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import broken, device
from xlstm.arrays.namespace import DOUBLE, SINGLE, Array, Namespace, astype, dtype_name, reshape, room
from xlstm.arrays.rows import by_rows
from xlstm.cells import mlstm_chunks as plain
from xlstm.cells import mlstm_formulas as formulas
from xlstm.cells.denominator import limit_of
from xlstm.cells.mlstm_chunks import Logs
from xlstm.engines.cuda import launch
from xlstm.engines.cuda.choice import MMA, TF32, told
from xlstm.engines.cuda.chunk_source import KINDS, LARGEST, THREADS, WAYS, Shape, Way, source, steps
from xlstm.engines.cuda.kernels import contiguous
from xlstm.engines.cuda.tiling import Device

VIEWS = ("q", "k", "v", "i", "f", "dh")  # arrays (T, B, N, ...) with any strides
POINTERS = (
    "C0 n0 m0 logf read write keep b w most r m C n end_C end_n end_m s den h dh_h ds dend_C dend_n dC dn dC0 dn0 dm0 "
    "inner dq dk dv dw dend_m dm more_w more_b more_m di df"
)
NUMBERS = ("T", "groups", "chunks")


class Saved(NamedTuple):
    """The arrays that `chunkwise` keeps; numbers of steps are (B, N, chunks, L) but for the first three."""

    inputs: tuple[Array, ...]  # q, k, v, i~, f~, as given
    start: tuple[Array, ...]  # C0, n0, m0
    logf: Array  # (B, N, T)
    h: Array  # (B, N, T, V)
    logs: Logs
    weights: dict[str, Array]  # read and write, and keep (B, N, chunks)
    states: dict[str, Array]  # C and n before every chunk and after the last one, (B, N, chunks + 1, ...)
    s: Array
    den: Array
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
        """Run kernels on arrays and numbers by name, each in so many times as many blocks as it has tiles."""
        numbers: list[int] = []
        for name in VIEWS:
            numbers += _view(arrays.get(name))
        numbers += [0 if (a := arrays.get(name)) is None else a.data.ptr for name in POINTERS.split()]
        table = (device.struct([*numbers, *(arrays[name] for name in NUMBERS)]),)
        for kind, count in blocks.items():
            kernel, tiles = source(kind, *self)
            launch.launch(kernel, (count * tiles, 1), THREADS, table)


def way_of(dtype: str, precision: str, card: Device) -> Way | None:
    """Return how a card multiplies numbers of a dtype, or None where it has no kernels for them."""
    least = MMA if dtype == "float16" else TF32
    return WAYS.get((dtype, precision if dtype == "float32" else "float32")) if card.capability >= least else None


def kernels(xp: Namespace, q: Array, k: Array, v: Array, chunk: int, forget: str, eps: float) -> Kernels | None:
    """Return the kernels for an mLSTM with queries, keys and values (B, N, T, ...), or None where there are none."""
    card = launch.device(xp, q)
    if card is None:
        return None
    (path, precision), (B, N, T, K), V = told(), q.shape, v.shape[-1]
    way = way_of(dtype_name(q.dtype), precision, card)
    if way is None or path == "loop" or chunk > LARGEST or K % 2 or V % 2 or B * N * T == 0:
        return None
    most = 16 // q.itemsize
    pack = most if all(_fits(a, most) for a in (q, k, v)) else 2
    found = Kernels(way, Shape(N, K, V, steps(min(chunk, T)), pack), forget, eps)
    return found if _most_shared(found) <= card.shared and broken.works(found.name) else None


def chunkwise(xp: Namespace, *given: Any) -> tuple[Array, Array, Array, Array, Saved] | None:
    """Compute all steps from q, k, v, i~, f~, C0, n0, m0 and `Kernels`, or return None where these are None or fail.

    Returns
    -------
    h : array (B, N, T, V)
    C, n, m : array
        The state after the last step.
    saved : Saved
    """
    return None if given[-1] is None else broken.attempt(given[-1].name, forward, xp, *given)


def chunkwise_bwd(
    xp: Namespace, dh: Array, dC: Array | None, dn: Array | None, dm: Array | None, saved: Saved
) -> tuple[Array, ...]:
    """Return the gradients of q, k, v, i~, f~, C0, n0 and m0; dC, dn and dm may all be None, which means 0."""
    made, given = saved.made, (dh, dC, dn, dm)
    found = broken.attempt(made.name, backward, xp, *given, saved)
    if found is None:
        q, k, v, i, f, C0, n0, m0 = *saved.inputs, *saved.start
        *_, again = plain.chunkwise(xp, q, k, v, i, f, C0, n0, m0, made.eps, made.forget, made.shape.L)
        found = plain.chunkwise_bwd(xp, *given, again, made.eps, made.forget)
    return found


def forward(
    xp: Namespace, q: Array, k: Array, v: Array, i: Array, f: Array, C0: Array, n0: Array, m0: Array, made: Kernels
) -> tuple[Array, Array, Array, Array, Saved]:
    q, k, v = (_packed(a, made.shape.pack) for a in (q, k, v))
    (B, N, T, K), V, L = q.shape, v.shape[-1], made.shape.L
    chunks, groups = -(-T // L), B * N
    new, wide = functools.partial(room, xp, q), SINGLE
    C0, n0, m0 = (contiguous(astype(xp, a, wide)) for a in (C0, n0, m0))
    outer, step = (B, N, chunks), (B, N, chunks, L)
    logs = Logs(*(new(outer if name == "m" else step, DOUBLE) for name in Logs._fields))
    weights = {"read": new(step, wide), "write": new(step, wide), "keep": new(outer, wide)}
    states = {"C": new((B, N, chunks + 1, K, V), q.dtype), "n": new((B, N, chunks + 1, K), wide)}
    logf, s, den = (new(step, wide) for _ in range(3))
    end_C, end_n, end_m = (new(a.shape, wide) for a in (C0, n0, m0))
    h = new((T, B, N, V), q.dtype)
    arrays = {"q": q, "k": k, "v": v, "i": i, "f": f, "T": T, "groups": groups, "chunks": chunks}
    arrays |= {"C0": C0, "n0": n0, "m0": m0, **logs._asdict(), **weights, **states}
    arrays |= {"logf": logf, "s": s, "den": den, "h": h, "end_C": end_C, "end_n": end_n, "end_m": end_m}
    made.run({"gates": groups, "states": groups, "within": groups * chunks}, arrays)
    h = xp.permute_dims(h, (1, 2, 0, 3))
    saved = Saved((q, k, v, i, f), (C0, n0, m0), _flat(logf, T), h, logs, weights, states, s, den, made)
    return h, end_C, end_n, end_m, saved


def backward(
    xp: Namespace, dh: Array, dC: Array | None, dn: Array | None, dm: Array | None, saved: Saved
) -> tuple[Array, ...]:
    (q, k, v, i, f), _, _, h, logs, weights, states, s, den, made = saved
    dh = _packed(dh, made.shape.pack)
    (B, N, T, K), V, L = q.shape, v.shape[-1], made.shape.L
    chunks, groups, wide = -(-T // L), B * N, s.dtype
    new = functools.partial(room, xp, q)
    of_steps = [_flat(a, T, 1) for a in (den, s, logs.b, logs.r)]
    dh_h, ds = by_rows(xp, _rows_bwd, dh, h, *of_steps, limit=limit_of(xp, wide), dtype=np.dtype(wide))
    inner = new((source("states_bwd", *made)[1], B, N, chunks + 1), wide)
    grads = {name: new((T, B, N, F), q.dtype) for name, F in (("dq", K), ("dk", K), ("dv", V))}
    gates = {name: new((T, B, N), i.dtype) for name in ("di", "df")}
    starts = {"dC0": new((B, N, K, V), wide), "dn0": new((B, N, K), wide), "dm0": new((B, N), wide)}
    dw = new((B, N, chunks, L), wide)
    arrays = {"q": q, "k": k, "v": v, "f": f, "dh": dh, "T": T, "groups": groups, "chunks": chunks, "inner": inner}
    arrays |= {"dh_h": dh_h, "ds": ds, "s": s, "den": den, "b": logs.b, "w": logs.w, "r": logs.r, "logf": saved.logf}
    arrays |= {"dC": new((B, N, chunks, K, V), q.dtype), "dn": new((B, N, chunks, K), wide), "dw": dw}
    arrays |= {**weights, **states, **grads, **gates, **starts}
    dC, dn, dm = (None if a is None else contiguous(astype(xp, a, wide)) for a in (dC, dn, dm))
    arrays |= {"dend_C": dC, "dend_n": dn}
    blocks = {"states_bwd": groups, "within_bwd": groups * chunks}
    if dm is not None or made.eps:
        arrays |= {name: new((B, N, chunks, L), wide) for name in ("more_w", "more_b")}
        arrays |= {"more_m": new((B, N), wide), "dend_m": dm}
        arrays |= {"m": logs.m, "most": logs.most, "dm": new((B, N, chunks), wide)}
        blocks |= {"maximum_bwd": groups, "shares_bwd": groups * chunks}
    made.run({**blocks, "gates_bwd": groups}, arrays)
    found = [xp.permute_dims(a, (1, 2, 0, 3)) for a in grads.values()]
    found += [xp.permute_dims(a, (1, 2, 0)) for a in gates.values()]
    return (*found, *starts.values())


def _rows_bwd(
    xp: Namespace, dh: Array, h: Array, den: Array, s: Array, b: Array, r: Array, limit: float, dtype: Any
) -> tuple[Array, Array]:
    """Return -den times the gradient of den, and the gradient of s, as `chunkwise_bwd` of the cell finds them."""
    dh_h = xp.sum(astype(xp, dh, dtype) * astype(xp, h, dtype), axis=-1, keepdims=True)  # (8)
    return dh_h, formulas.den_bwd(xp, dh_h, den, s, b, r, limit=limit, dtype=dtype)  # (7)


def _view(a: Array | None) -> tuple[int, ...]:
    """Return the address of an array (B, N, T, ...), and the steps in elements along time, sequences and heads."""
    if a is None:
        return 0, 0, 0, 0
    size, steps = a.itemsize, a.strides
    return a.data.ptr, steps[2] // size, steps[0] // size, steps[1] // size


def _flat(a: Array, T: int, *last: int) -> Array:
    """Return (B, N, chunks, L) as (B, N, T), with an axis of length 1 after them if need be."""
    B, N, chunks, L = a.shape
    steps = reshape(a, (B, N, chunks * L, *last))
    return steps if chunks * L == T else steps[:, :, :T, ...]


def _fits(a: Array, pack: int) -> bool:
    """Return whether the rows of an array (B, N, T, F) are `pack` neighbours each, which begin where that many may."""
    size = pack * a.itemsize
    starts = [*(step for n, step in zip(a.shape[:3], a.strides[:3], strict=True) if n > 1), a.data.ptr]
    return a.strides[3] == a.itemsize and a.shape[3] % pack == 0 and all(start % size == 0 for start in starts)


def _packed(a: Array, pack: int) -> Array:
    """Return an array that fits, a copy if need be."""
    return a if _fits(a, pack) else a.copy(order="C")


@functools.cache
def _most_shared(made: Kernels) -> int:
    """Return the bytes of shared memory that the kernel with most of it takes."""
    return max(source(kind, *made)[0].shared for kind in KINDS)
