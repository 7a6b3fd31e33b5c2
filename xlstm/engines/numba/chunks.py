"""The chunkwise mLSTM over NumPy arrays in one compiled call, whose heads and sequences threads share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from xlstm.arrays.namespace import Array
from xlstm.cells.mlstm_chunks import Logs, Saved
from xlstm.cells.mlstm_formulas import Formula, by_name, options_of
from xlstm.engines.heads import Group
from xlstm.engines.numba import chunk_loops, jit
from xlstm.engines.numba.matmul import DTYPES
from xlstm.engines.numba.team import address, share
from xlstm.engines.numba.typed import KINDS, function, helpers

NUMBERS = ("root", "eps")  # options of formulas that are arguments here
SMALL = 1 << 18  # multiplications below which NumPy's calls cost less than to compile the loops


def chunkwise(
    given: Sequence[Array], eps: float, forget: str, chunk: int, groups: Sequence[Group] | None
) -> tuple[list[Array], list[tuple[Group, Saved]]] | None:
    """Compute all steps, as `chunkwise` in `cells/mlstm_chunks.py`, or return None where this is no work for the loops.

    Parameters
    ----------
    given : sequence of arrays (B, N, ...)
        q, k, v, i~, f~, C0, n0 and m0.
    eps, forget, chunk
        As of the cell.
    groups : list of (slice, slice) or None
        The sequences and heads that backward is to take at once; None where no backward is to follow.

    Returns
    -------
    results : list of array
        h (B, N, T, V), C, n and m.
    kept : list of (group, Saved)
    """
    q, k, v, i, f, C0, n0, m0 = given
    (B, N, T, K), V = q.shape, v.shape[-1]
    L = min(chunk, T)
    keep, work = groups is not None, B * N * T * (L + K) * (K + V)
    if work < SMALL or q.dtype not in DTYPES or any(a.dtype != q.dtype for a in given) or not jit.enabled():
        return None
    q, k, v = (a if a.strides[-1] == a.itemsize else np.ascontiguousarray(a) for a in (q, k, v))
    # The loops count from the first number of an array forwards.
    q, k, v, i, f = (a if min(a.strides) >= 0 else np.ascontiguousarray(a) for a in (q, k, v, i, f))
    count, W, dtype = -(-T // L), V + 1, q.dtype
    each, some = (B, N, count, L), count + 1 if keep else 1
    states = np.empty((B, N, some, K, W), dtype)
    states[..., 0, :, :V], states[..., 0, :, V] = C0, n0
    logf, s, den = (np.empty(each, dtype) for _ in range(3))
    logs = Logs(*(np.empty(each[:-1] if name == "m" else each) for name in Logs._fields))
    h, m = np.empty((T, B, N, V), dtype).transpose(1, 2, 0, 3), np.empty((B, N), dtype)
    m0 = np.ascontiguousarray(m0)
    compiled = _compiled(DTYPES[dtype], forget, jit.shape(DTYPES[dtype]))
    ordered = (m0, logf, logs.b, logs.w, logs.most, logs.r, logs.m, states, s, den, m)
    arguments = (
        compiled.PRODUCT,
        np.array([N, T, K, V, W, count, L, K * W if keep else 0]),
        np.array([[address(a), *(step // a.itemsize for step in a.strides[:3])] for a in (q, k, v, i, f, h)]),
        np.array([address(a) for a in ordered]),
        np.array([K**-0.5, eps]),
    )
    share([(B * N, compiled.chunks, arguments, 1)], work)
    logf, end = logf.reshape(B, N, count * L)[..., :T], states[:, :, -1]

    def saved(g: Group) -> Saved:
        inputs = tuple(np.ascontiguousarray(a[g]) for a in (q, k, v, i, f))
        own = Logs(*(a[g] for a in logs))
        return Saved(inputs, logf[g], np.ascontiguousarray(h[g]), own, states[g][:, :, :-1], end[g], s[g], den[g])

    return [h, end[..., :V].copy(), end[..., V].copy(), m], [(g, saved(g)) for g in groups or ()]


@functools.cache
def _compiled(dtype: str, forget: str, shape: Any) -> ModuleType:
    """Return a module with the loops for a dtype and a forget gate."""
    with jit.lock:
        texts = _formulas(dtype, forget)
        found = jit.generated(jit.shared(dtype), "\n".join([*texts.values(), inspect.getsource(chunk_loops.chunks)]))
        found.__dict__.update({name: value for name, value in vars(helpers()).items() if name not in vars(found)})
        jit.bind(found, tuple(getattr(found, name) for name in texts))
        jit.bind(found, (found.chunks,), counted=True)
        return found


def _formulas(dtype: str, forget: str) -> dict[str, str]:
    """Return the formulas of the cell by name, each as the source of a function of single numbers."""
    real = np.dtype(dtype)
    return {name: _function(name, one, KINDS[real], options_of(real)) for name, one in by_name(forget).items()}


def _function(name: str, formula: Formula, kind: str, options: dict[str, Any]) -> str:
    """Return a formula as the source of a function, whose last arguments are those of NUMBERS that it has."""
    numbers = dict.fromkeys(formula.taken(dict.fromkeys(NUMBERS)), kind)
    return function(name, formula.function, formula.kinds(kind, "8") | numbers, formula.taken(options))
