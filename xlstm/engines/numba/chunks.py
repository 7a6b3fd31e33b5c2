"""The chunkwise mLSTM over NumPy arrays in one compiled call; threads share heads and sequences."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import cores
from xlstm.arrays.compiled import VARIABLE
from xlstm.arrays.namespace import Array
from xlstm.cells.mlstm_chunks import Logs
from xlstm.cells.mlstm_formulas import by_name, kinds, options_of, taken
from xlstm.engines.memories import MemoryPass, MemoryTape, Start
from xlstm.engines.numba import chunk_loops, jit
from xlstm.engines.numba.packed_products import DTYPES
from xlstm.engines.numba.team import share
from xlstm.tracing.array_functions import Formula, kind_of, traced
from xlstm.tracing.writers import Python

SUMS = (chunk_loops.inner, chunk_loops.maximum_bwd)  # with sums in the fastest order
PLAIN = (
    chunk_loops.place_of,
    chunk_loops.scaled,
    chunk_loops.sum_of_rows,
    chunk_loops.copy_rows,
)
COUNTED = (chunk_loops.multiply, chunk_loops.chunks, chunk_loops.chunks_bwd)
NUMBERS = ("root", "eps")  # options of formulas that are arguments here
SMALL = 1 << 18  # multiplications below which NumPy's calls cost less than to compile the loops


class Saved(NamedTuple):
    """The arrays that `chunkwise` keeps: inputs unchanged, and the rest for all chunks, one after
    another.
    """

    inputs: tuple[Array, ...]  # q, k, v, i~, f~, unchanged
    logf: Array  # (B, N, T), with T rounded up to whole chunks
    h: Array  # (B, N, T, V)
    logs: Logs
    states: Array  # [C, n] before every chunk and after the last one, (B, N, chunks + 1, K, V + 1)
    s: Array  # (B, N, chunks, L)
    den: Array


class NumbaMemory:
    """The engine that runs matrix memories in compiled loops."""

    name = "numba"

    def refuses(self, step: MemoryPass, x: Sequence[Array], state: Start) -> str:
        """Return why the engine cannot run a pass, or ""."""
        cores.given()  # raises if the setting is wrong, however small the work is
        dtype = x[0].dtype
        if dtype not in DTYPES or any(a.dtype != dtype for a in (*x, *state)):
            return f"no compiled loop has {dtype}"
        if x[0].size == 0:
            return "there is no step"
        if not step.asked and _small(step, x):
            return "the calls of NumPy are quicker"
        return "" if jit.enabled() else f"{VARIABLE} is 0, or Numba is not installed"

    def forward(
        self, step: MemoryPass, x: Sequence[Array], state: Start, keep: bool
    ) -> tuple[Array, list[Array], MemoryTape | None]:
        """Run all steps; see `MemoryEngine`."""
        inputs = *step.by_head(x), *state
        (h, *end), saved = chunkwise(inputs, step.eps, step.forget, step.chunk, keep)
        return step.rows(h), end, MemoryTape(self, step, saved) if keep else None

    def backward(
        self, tape: MemoryTape, dh: Array, dstate: Start | None
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        """Return the gradients; see `MemoryEngine`."""
        step = tape.step
        grads = chunkwise_bwd(step.heads(dh), dstate, tape.saved, step.eps, step.forget)
        return list(map(step.rows, grads[:5])), grads[5:]


MEMORY = NumbaMemory()


def _small(step: MemoryPass, x: Sequence[Array]) -> bool:
    T, B, width = x[0].shape
    K = width // step.N
    V = x[2].shape[2] // step.N
    return _work(B, step.N, T, min(step.chunk, T), K, V) < SMALL


def chunkwise(
    inputs: Sequence[Array], eps: float, forget: str, chunk: int, keep: bool
) -> tuple[list[Array], Saved | None]:
    """Compute all steps like `chunkwise` in `cells/mlstm_chunks.py`.

    Parameters
    ----------
    inputs : sequence of arrays (B, N, ...)
        q, k, v, i~, f~, C0, n0 and m0.
    eps, forget, chunk
        As for the cell.
    keep : bool
        Whether a backward pass follows.

    Returns
    -------
    results : list of array
        h (B, N, T, V), C, n and m.
    kept : Saved or None
    """
    q, k, v, i, f, C0, n0, m0 = inputs
    B, N, T, K = q.shape
    V = v.shape[-1]
    L = min(chunk, T)
    q, k, v, i, f = read = tuple(map(_forwards, (q, k, v, i, f)))
    count = -(-T // L)
    W = V + 1
    dtype = q.dtype
    each = (B, N, count, L)
    some = count + 1 if keep else 1
    states = np.empty((B, N, some, K, W), dtype)
    states[..., 0, :, :V] = C0
    states[..., 0, :, V] = n0
    logf, s, den = (np.empty(each, dtype) for _ in range(3))
    logs = Logs(*(np.empty(each[:-1] if name == "m" else each) for name in Logs._fields))
    h = _steps_first(B, N, T, V, dtype)
    m = np.empty((B, N), dtype)
    m0 = np.ascontiguousarray(m0)
    sizes = N, T, K, V, count, L, K * W if keep else 0
    views = q, k, v, i, f, h
    _run("chunks", forget, views, sizes, logs, (m0, logf, states, s, den, m), eps)
    end = states[:, :, -1]
    logf = logf.reshape(B, N, count * L)[..., :T]
    saved = Saved(read, logf, h, logs, states, s, den) if keep else None
    return [h, end[..., :V].copy(), end[..., V].copy(), m], saved


def chunkwise_bwd(
    dh: Array, dstate: Sequence[Array] | None, saved: Saved, eps: float, forget: str
) -> list[Array]:
    """Return the gradients with respect to q, k, v, i~, f~, C0, n0 and m0, like `chunkwise_bwd` in
    `cells/mlstm_chunks.py`.

    `dh` is (B, N, T, V). `dstate` has the gradients with respect to the final C, n and m, or is
    None, which means 0.
    """
    (q, k, v, i, f), logf, h, logs, states, s, den = saved
    B, N, T, K = q.shape
    V = v.shape[-1]
    count, L = s.shape[2:]
    dtype = q.dtype
    dC = np.zeros((B, N, K, V + 1), dtype)
    dm = np.zeros((B, N), dtype)  # first of the final state, then of the initial one
    if dstate is not None:
        dC[..., :V], dC[..., V], dm[...] = dstate
    dh = _forwards(dh.astype(dtype, copy=False))
    grads = [_steps_first(B, N, T, width, dtype) for width in (K, K, V)]
    grads += [_steps_first(B, N, T, 1, dtype)[..., 0] for _ in (i, f)]
    sizes = N, T, K, V, count, L, int(dstate is not None or eps != 0)
    views = q, k, v, f, h, dh, *grads
    _run("chunks_bwd", forget, views, sizes, logs, (logf, states, s, den, dC, dm), eps)
    return [*grads, dC[..., :V], dC[..., V], dm]


def _run(
    loop: str,
    forget: str,
    views: Sequence[Array],
    sizes: tuple[int, ...],
    logs: Logs,
    arrays: Sequence[Array],
    eps: float,
) -> None:
    """Run a function of `chunk_loops.py` on all heads and sequences."""
    q = views[0]
    B, N, T, K = q.shape
    dtype = DTYPES[q.dtype]
    compiled = _compiled(dtype, forget, jit.shape(dtype))
    tables = *_views(views), _flat(logs), _flat(arrays)
    arguments = compiled.PRODUCT, sizes, *tables, np.array([K**-0.5, eps])
    work = _work(B, N, T, sizes[5], K, sizes[3]) * (2 if loop == "chunks_bwd" else 1)
    share([(B * N, getattr(compiled, loop), arguments, 1)], work)


def _work(B: int, N: int, T: int, L: int, K: int, V: int) -> int:
    """Return the multiplications of a forward pass; a backward pass has about twice as many."""
    return B * N * T * (L + K) * (K + V)


def _forwards(a: Array) -> Array:
    """Return an array whose numbers lie one after another, since the loops count forwards from its
    first number.
    """
    rows = a.ndim == 3 or a.strides[-1] == a.itemsize
    return a if rows and min(a.strides) >= 0 else np.ascontiguousarray(a)


def _steps_first(B: int, N: int, T: int, width: int, dtype: Any) -> Array:
    """Return room for an array (B, N, T, width), in memory with steps first, like the layer's
    arrays.
    """
    return np.empty((T, B, N, width), dtype).transpose(1, 2, 0, 3)


def _views(
    arrays: Sequence[Array],
) -> tuple[tuple[tuple[int, ...], ...], tuple[Array, ...]]:
    """Return the strides of arrays (B, N, T, ...), in numbers, and the first number of each."""
    far = tuple(tuple(step // a.itemsize for step in a.strides[:3]) for a in arrays)
    return far, tuple(a[(0, 0, *[slice(1)] * (a.ndim - 2))].reshape(1) for a in arrays)


def _flat(arrays: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(a.reshape(-1) for a in arrays)


@functools.cache
def _compiled(dtype: str, forget: str, shape: Any) -> ModuleType:
    """Return a module with the loops for a dtype and a forget gate."""
    with jit.lock:
        formulas = {
            name: _function(name, formula, np.dtype(dtype))
            for name, formula in by_name(forget).items()
        }
        common = jit.shared(dtype)
        text = common.__name__ + inspect.getsource(chunk_loops)
        module = jit.new_module(text, vars(common), "\n".join(formulas.values()))
        jit.bind(module, tuple(getattr(module, name) for name in formulas))
        jit.bind(module, PLAIN)
        jit.bind(module, SUMS, jit.FLAGS | {"reassoc"})
        jit.bind(module, COUNTED, counted=True)
        return module


def _function(name: str, formula: Formula, dtype: np.dtype[Any]) -> str:
    """Return a formula as the source of a function of single numbers, which takes its options in
    NUMBERS last.
    """
    kind = kind_of(dtype)
    numbers = dict.fromkeys(taken(formula, dict.fromkeys(NUMBERS)), kind)
    inputs = kinds(formula, kind, "double") | numbers
    lines = traced(formula, len(inputs), tuple(taken(formula, options_of(dtype)).items()))
    types = {f"x{k}": kind for k, kind in enumerate(inputs.values())}
    writer = Python(
        lines, lambda x, _: x, lambda y, _, value: f"{y} = {value}", types, default=kind
    )
    results = [line.to for line in lines if line.op == "store"]
    text = [
        f"def {name}({', '.join(types)}):",
        *writer.statements(),
        f"return {', '.join(results)}",
    ]
    return "\n    ".join(text) + "\n"
