"""The mLSTM cell over a batch of sequences: lengths, and on a CPU the heads on all cores."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xlstm import threads
from xlstm.backend import Array, Namespace
from xlstm.cells import mlstm
from xlstm.layers.sequence import Leaf, Span, State

# On a CPU so many heads are taken at once as have about this many elements: matrices of steps stay in the cache.
GROUP = 1 << 16


class Memory(NamedTuple):
    """N heads, with keys K and values V wide."""

    N: int
    K: int
    V: int
    eps: float = 0.0
    forget: str = "sigmoid"
    chunk: int = mlstm.CHUNK

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
        self, xp: Namespace, q: Array, k: Array, v: Array, i: Array, f: Array, state: State, span: Span, keep: bool
    ) -> tuple[Array, State, Any]:
        """From q, k (T, B, N K), v (T, B, N V) and gates i~, f~ (T, B, N): h (T, B, N V), the state, what is kept."""
        T, B = span.T, span.B
        if T == 1 and not keep:
            q, k, v = (xp.reshape(a, (B, self.N, F)) for a, F in ((q, self.K), (k, self.K), (v, self.V)))
            C, n, m = state
            h, *end, _ = mlstm.step(xp, q, k, v, i[0, ...], f[0, ...], C, n, m, self.eps, self.forget)
            return xp.reshape(h, (1, B, self.N * self.V)), tuple(end), None
        i = span.mask(xp, i, -float("inf"))  # writes nothing
        f = span.mask(xp, f, float("inf") if self.forget == "sigmoid" else 0.0)  # and forgets nothing
        arrays = [self._heads(xp, a, F) for a, F in ((q, self.K), (k, self.K), (v, self.V))]
        arrays += [self._heads(xp, a) for a in (i, f)]
        arrays += [xp.reshape(s, (B * self.N, *s.shape[2:])) for s in state]
        one = functools.partial(mlstm.chunkwise, xp, eps=self.eps, forget=self.forget, chunk=self.chunk)
        groups = self._groups(xp, span)
        found = self._all(xp, [functools.partial(one, *(a[g, ...] for a in arrays)) for g in groups], span)
        h, *end = (_join(xp, [one[j] for one in found]) for j in range(4))
        end = [xp.reshape(s, (B, self.N, *s.shape[1:])) for s in end]
        return self._merge(xp, h, span, self.V), tuple(end), [one[4] for one in found] if keep else None

    def run_bwd(
        self, xp: Namespace, saved: Any, dh: Array, dstate: State | None, span: Span
    ) -> tuple[tuple[Array, ...], State]:
        """Gradients of q, k, v, i and f, and of the initial state, from those of h and of the final state."""
        B = span.B
        dh = self._heads(xp, dh, self.V)
        ends = [None if dstate is None else xp.reshape(d, (B * self.N, *d.shape[2:])) for d in dstate or (None,) * 3]
        one = functools.partial(mlstm.chunkwise_bwd, xp, eps=self.eps, forget=self.forget)
        tasks: list[Callable[[], Any]] = [
            functools.partial(one, dh[g, ...], *(None if d is None else d[g, ...] for d in ends), kept)
            for g, kept in zip(self._groups(xp, span), saved, strict=True)
        ]
        found = self._all(xp, tasks, span)
        grads = [_join(xp, [one[j] for one in found]) for j in range(8)]
        inputs = [self._merge(xp, d, span, F) for d, F in zip(grads, (self.K, self.K, self.V), strict=False)]
        inputs += [span.mask(xp, self._merge(xp, d, span)) for d in grads[3:5]]
        return tuple(inputs), tuple(xp.reshape(d, (B, self.N, *d.shape[1:])) for d in grads[5:])

    def _heads(self, xp: Namespace, a: Array, F: int | None = None) -> Array:
        """(T, B, N F) -> (B N, T, F); gates (T, B, N) -> (B N, T)."""
        T, B, _ = a.shape
        if F is None:
            return xp.reshape(xp.permute_dims(a, (1, 2, 0)), (B * self.N, T))
        heads = xp.reshape(a, (T, B, self.N, F))
        return xp.reshape(xp.permute_dims(heads, (1, 2, 0, 3)), (B * self.N, T, F))

    def _merge(self, xp: Namespace, a: Array, span: Span, F: int = 1) -> Array:
        """The reverse of `_heads`."""
        heads = xp.reshape(a, (span.B, self.N, span.T, F))
        return xp.reshape(xp.permute_dims(heads, (2, 0, 1, 3)), (span.T, span.B, self.N * F))

    def _groups(self, xp: Namespace, span: Span) -> list[slice]:
        """Heads of all sequences that are taken at once."""
        heads = span.B * self.N
        wide = max(self.K, self.V, min(span.T, self.chunk))
        size = max(1, GROUP // (span.T * wide)) if xp is np else heads
        return [slice(first, first + size) for first in range(0, heads, size)] or [slice(0, 0)]

    def _all(self, xp: Namespace, tasks: list[Callable[[], Any]], span: Span) -> list[Any]:
        """The results of all tasks, on all cores where that is worth it."""
        work = span.T * span.B * self.N * (min(span.T, self.chunk) + self.K) * (self.K + self.V)
        most = threads.available() if xp is np and len(tasks) > 1 and work > threads.LARGE else 1
        if most == 1:
            return [task() for task in tasks]
        with threads.team(min(most, len(tasks))) as team:
            return team.run(tasks)


def _join(xp: Namespace, arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else xp.concat(arrays)
