"""The mLSTM cell over a batch of sequences: rows are split into heads, and steps past a sequence's end masked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import cores
from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells import mlstm
from xlstm.engines.cuda.chunks import passes as chunks
from xlstm.engines.numba import chunks as loops
from xlstm.layers.state import Leaf, Span, State


def gates_of(xp: Namespace, kept: Any) -> tuple[Array, Array]:
    """Return the logarithms of the gates i and f at every step, (T, B, N), from what `Memory.run` kept."""
    return xp.permute_dims(kept.inputs[3], (2, 0, 1)), xp.permute_dims(kept.logf, (2, 0, 1))


class Memory(NamedTuple):
    """The matrix memories of N heads, whose keys are K wide and whose values are V wide."""

    N: int
    K: int
    V: int
    eps: float = 0.0
    forget: str = "sigmoid"
    chunk: int | None = None
    rest: float = -float("inf")  # m before the first step

    @property
    def steps(self) -> int:
        """Steps L of a chunk; by default they follow K, as work within chunks is to work between them as L is to K."""
        return self.chunk or min(mlstm.CHUNK, max(16, self.K))

    @property
    def states(self) -> State:
        """The leaves C, n and m of all heads."""
        N, K, V = {"N": self.N}, {"K": self.K}, {"V": self.V}
        C, n = Leaf("C", {}, N | K | V, wide=True), Leaf("n", {}, N | K, wide=True)
        return C, n, Leaf("m", {}, N, rest=self.rest, wide=True)

    def run(
        self, q: Array, k: Array, v: Array, i: Array, f: Array, state: State, span: Span
    ) -> tuple[Array, State, Any]:
        """Return h (T, B, N V), the final state, and what `run_bwd` needs.

        Queries q and keys k are (T, B, N K), values v (T, B, N V), and pre-activations of the gates i and f (T, B, N).
        """
        xp, keep, T, B = span.xp, span.keep, span.T, span.B
        cores.given()  # raises an error of the setting, however small the work is
        if T == 1 and not keep and span.full:
            q, k, v = (xp.reshape(a, (B, self.N, F)) for a, F in ((q, self.K), (k, self.K), (v, self.V)))
            C, n, m = state
            h, *end, _ = mlstm.step(xp, q, k, v, i[0, ...], f[0, ...], C, n, m, self.eps, self.forget)
            return xp.reshape(h, (1, B, self.N * self.V)), tuple(end), None
        # Past the end of a sequence a step writes nothing and forgets nothing.
        i = span.mask(i, -float("inf"))
        f = span.mask(f, float("inf") if self.forget == "sigmoid" else 0.0)
        gates = [xp.permute_dims(a, (1, 2, 0)) for a in (i, f)]  # (B, N, T)
        arrays = [*(self._heads(xp, a) for a in (q, k, v)), *gates, *state]
        if xp is np:
            found = loops.chunkwise(arrays, self.eps, self.forget, self.steps, keep)
            if found is not None:
                (h, *end), kept = found
                return self._rows(xp, h), tuple(end), kept
        own: Any = chunks.kernels(xp, arrays[0], arrays[1], arrays[2], self.steps, self.forget, self.eps)
        run: Any = functools.partial(mlstm.chunkwise, eps=self.eps, forget=self.forget, chunk=self.steps)
        if own is not None:
            run = functools.partial(chunks.chunkwise, made=own)
        h, *end, saved = run(xp, *arrays)
        if own is None:
            end = [xp.asarray(s, copy=True) for s in end]  # `saved` refers to them, and the caller may change them
        return self._rows(xp, h), tuple(end), saved if keep else None

    def run_bwd(self, saved: Any, dh: Array, dstate: State | None, span: Span) -> tuple[tuple[Array, ...], State]:
        """Return gradients of q, k, v, i and f, and of the initial state, from those of h and of the final state."""
        xp, dh = span.xp, self._heads(span.xp, dh)
        dC, dn, dm = dstate or (None, None, None)
        grads: Sequence[Array]
        if isinstance(saved, loops.Saved):
            grads = loops.chunkwise_bwd(dh, dstate, saved, self.eps, self.forget)
        elif isinstance(saved, chunks.Saved):
            grads = chunks.chunkwise_bwd(xp, dh, dC, dn, dm, saved)
        else:
            grads = mlstm.chunkwise_bwd(xp, dh, dC, dn, dm, saved, eps=self.eps, forget=self.forget)
        dq, dk, dv, di, df = (self._rows(xp, d) for d in grads[:5])
        return (dq, dk, dv, span.mask(di), span.mask(df)), tuple(grads[5:])

    def _heads(self, xp: Namespace, a: Array) -> Array:
        """Return (T, B, N F) seen as (B, N, T, F)."""
        T, B, width = a.shape
        return xp.permute_dims(xp.reshape(a, (T, B, self.N, width // self.N)), (1, 2, 0, 3))

    def _rows(self, xp: Namespace, a: Array) -> Array:
        """Return (B, N, T, F) as (T, B, N F), and gates (B, N, T) as (T, B, N)."""
        if a.ndim == 3:
            return xp.permute_dims(a, (2, 0, 1))
        B, N, T, F = a.shape
        return xp.reshape(xp.permute_dims(a, (2, 0, 1, 3)), (T, B, N * F))
