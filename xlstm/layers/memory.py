"""The mLSTM cell over a batch of sequences: lengths, and on a CPU the heads on all cores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import blas, threads
from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells import mlstm
from xlstm.layers.sequence import Leaf, Span, State

# On a CPU so many heads are taken at once as have about this many elements: few large calls, whose threads seldom wait
# for one another, and arrays that stay near.
GROUP = 1 << 18
STEPS = "T"


class Memory(NamedTuple):
    """N heads, with keys K and values V wide."""

    N: int
    K: int
    V: int
    eps: float = 0.0
    forget: str = "sigmoid"
    chunk: int | None = None

    @property
    def steps(self) -> int:
        """Steps of a chunk, by default by the width of keys: work within chunks is to that between them as L to K."""
        return self.chunk or min(mlstm.CHUNK, max(16, self.K // 2))

    def states(self, B: int | None) -> State:
        """C, n and m of every head."""
        heads = {"B": B, "N": self.N}
        K, V = {"K": self.K}, {"V": self.V}
        return (
            Leaf("C", {**heads, **K, **V}),
            Leaf("n", {**heads, **K}),
            Leaf("m", heads, rest=-float("inf")),
        )

    def run(
        self, q: Array, k: Array, v: Array, i: Array, f: Array, state: State, span: Span
    ) -> tuple[Array, State, Any]:
        """From q, k (T, B, N K), v (T, B, N V) and gates i~, f~ (T, B, N): h (T, B, N V), the state, what is kept."""
        xp, keep, T, B = span.xp, span.keep, span.T, span.B
        threads.given()
        if T == 1 and not keep and span.there is None:
            q, k, v = (xp.reshape(a, (B, self.N, F)) for a, F in ((q, self.K), (k, self.K), (v, self.V)))
            C, n, m = state
            step = functools.partial(mlstm.step, xp, q, k, v, i[0, ...], f[0, ...], C, n, m, self.eps, self.forget)
            h, *end, _ = blas.in_turn(step, self.K * self.V if xp is np else 0)
            return xp.reshape(h, (1, B, self.N * self.V)), tuple(end), None
        i = span.mask(i, -float("inf"))  # writes nothing
        f = span.mask(f, float("inf") if self.forget == "sigmoid" else 0.0)  # and forgets nothing
        arrays = [self._heads(xp, a, F) for a, F in ((q, self.K), (k, self.K), (v, self.V), (i, None), (f, None))]
        arrays += state
        cell = functools.partial(mlstm.chunkwise, xp, eps=self.eps, forget=self.forget, chunk=self.steps)

        def one(*arrays: Array) -> tuple[Any, ...]:
            h, *end, saved = cell(*arrays)
            # Copies: what is kept holds every state on the way, and the caller may change the last one.
            return h, *(xp.asarray(s, copy=True) for s in end), saved if keep else None

        (h, *end), saved = self._all(xp, one, arrays, span, [STEPS + "V", "KV", "K", ""])
        return self._rows(xp, h, span), tuple(end), saved

    def run_bwd(self, saved: Any, dh: Array, dstate: State | None, span: Span) -> tuple[tuple[Array, ...], State]:
        """Gradients of q, k, v, i and f, and of the initial state, from those of h and of the final state."""
        xp = span.xp
        cell = functools.partial(mlstm.chunkwise_bwd, xp, eps=self.eps, forget=self.forget)

        def one(dh: Array, *rest: Any) -> tuple[Any, ...]:
            *dstate, kept = rest
            dC, dn, dm = dstate or (None, None, None)
            return *cell(dh, dC, dn, dm, kept), None

        arrays = [self._heads(xp, dh, self.V), *(dstate or ())]
        wanted = [STEPS + last for last in ("K", "K", "V", "", "")] + ["KV", "K", ""]
        grads, _ = self._all(xp, one, arrays, span, wanted, saved)
        inputs = [self._rows(xp, d, span) for d in grads[:5]]
        inputs[3:] = [span.mask(d) for d in inputs[3:]]
        return tuple(inputs), tuple(grads[5:])

    def _heads(self, xp: Namespace, a: Array, F: int | None) -> Array:
        """(T, B, N F) seen as (B, N, T, F); gates (T, B, N) as (B, N, T)."""
        T, B, _ = a.shape
        if F is None:
            return xp.permute_dims(a, (1, 2, 0))
        return xp.permute_dims(xp.reshape(a, (T, B, self.N, F)), (1, 2, 0, 3))

    def _rows(self, xp: Namespace, a: Array, span: Span) -> Array:
        """The reverse of `_heads`."""
        if a.ndim == 3:
            return xp.permute_dims(a, (2, 0, 1))
        return xp.reshape(xp.permute_dims(a, (2, 0, 1, 3)), (span.T, span.B, self.N * a.shape[3]))

    def _groups(self, xp: Namespace, span: Span) -> list[tuple[slice, slice]]:
        """Sequences and heads that are taken at once."""
        if xp is not np or span.B == 0:
            return [(slice(None), slice(None))]
        size = max(1, GROUP // (span.T * max(self.K, self.V, min(span.T, self.steps))))
        size = min(size, max(1, span.B * self.N // threads.available()))
        some, many = min(size, self.N), max(1, size // self.N)
        return [
            (slice(b, b + many), slice(n, n + some)) for b in range(0, span.B, many) for n in range(0, self.N, some)
        ]

    def _all(
        self,
        xp: Namespace,
        cell: Callable[..., tuple[Any, ...]],
        arrays: list[Array],
        span: Span,
        wanted: list[str],
        saved: list[Any] | None = None,
    ) -> tuple[list[Array], list[Any]]:
        """What the cell gives for all heads, and what it keeps of each group; on all cores where that is worth it.

        `arrays` begin with axes (B, N); `wanted` are the axes of results after these. What is kept has its group beside
        it, so that the backward pass has the same ones.
        """
        if saved is None:
            groups = self._groups(xp, span)
            more: list[tuple[Any, ...]] = [()] * len(groups)
        else:
            groups, more = [g for g, _ in saved], [(kept,) for _, kept in saved]
        work = span.T * span.B * self.N * (min(span.T, self.steps) + self.K) * (self.K + self.V)
        if len(groups) == 1:
            whole = functools.partial(cell, *arrays, *more[0])
            alone = xp is not np or work <= blas.SINGLE
            *found, kept = whole() if alone else threads.work(1, lambda _: whole(), threads.available())
            return found, [(groups[0], kept)]
        outs = [self._empty(axes, span, arrays[0]) for axes in wanted]

        def one(g: tuple[slice, slice], more: tuple[Any, ...]) -> tuple[tuple[slice, slice], Any]:
            *found, kept = cell(*(np.ascontiguousarray(a[g]) for a in arrays), *more)
            for out, values in zip(outs, found, strict=True):
                out[g] = values
            return g, kept

        tasks = [functools.partial(one, g, m) for g, m in zip(groups, more, strict=True)]
        size = min(threads.available(), len(tasks)) if work > threads.LARGE else 1
        return outs, threads.work(size, lambda team: team.run(tasks))

    def _empty(self, axes: str, span: Span, like: Array) -> Array:
        """Room for a result; steps come first in memory, as the caller has them."""
        tail = [{"K": self.K, "V": self.V}[axis] for axis in axes.removeprefix(STEPS)]
        if not axes.startswith(STEPS):
            return np.empty((span.B, self.N, *tail), dtype=like.dtype)
        return np.empty((span.T, span.B, self.N, *tail), dtype=like.dtype).transpose(1, 2, 0, *range(3, 3 + len(tail)))
