"""The compiled time loop of a cell, forward and backward, on NumPy arrays."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import blas, workspace
from xlstm.arrays.backend import Array, Params
from xlstm.arrays.threads import Team
from xlstm.engines.numba import jit, kernels
from xlstm.engines.numba.compiled import Kernel
from xlstm.engines.numba.kernels import Kernels
from xlstm.engines.runs import Run

# Up to so many weights the kernel multiplies a single sequence by them faster than BLAS: they fit the cache.
WEIGHTS = 1 << 17
# Products of x of so many steps of a single sequence are made at once.
STEPS = 512


class Fused:
    """The loop of a cell without masks, projection or normalisation; it takes and gives what the plain one does.

    Without a Wx, rows x (N, R) are the products of x; with a Wh (G, N, K, K) heads go by themselves. `own` are the
    parameters that the cell itself uses, (rows, H, 1), `biases` are b and bh where the products of x and of h have one
    of their own, `numbers` are those of the cell.
    """

    def __init__(self, found: Kernels, w: Params, own: Params, biases: Params, numbers: Mapping[str, float]) -> None:
        self.kernels, self.numbers = found, numbers
        self.Wh = plain(w["Wh"])
        self.Wx = plain(w["Wx"]) if "Wx" in w else np.empty((0, 0), dtype=self.Wh.dtype)
        self.heads = self.Wh.ndim == 4
        self.H = self.Wh.shape[1] * self.Wh.shape[2] if self.heads else self.Wh.shape[1]
        self.R = self.Wh.size // self.Wh.shape[-1]
        self.G = self.R // self.H
        self.given = {name: p.reshape(self.G, self.H, 1) for name, p in biases.items()} | own

    def run(
        self, run: Run, state: Sequence[Array], x: Array, y: Array, keep: bool
    ) -> tuple[Sequence[Array], list[Array]]:
        """The state after a run and what is kept of it, from that before and rows x (N, D); y (N, H) is written."""
        kernel, arrays, found = self._forward(run, state, keep)
        h, at, n = arrays["h"], run.rows(0).start, run.n
        if self._alone(run):
            arrays["zx"] = np.empty((min(run.k, STEPS), self.G, self.H), dtype=h.dtype)
            args = [arrays[name] for name in kernel.names]
            kernel.alone(x, y, at, run.k, self.Wx.T, self.WhT, *args)
        else:
            (Wx, rowsx), (Wh, rowsh) = (_pieces(W, n) for W in (self.Wx, self.Wh))
            xs = np.empty((x.shape[1], n), dtype=h.dtype)
            args = [arrays[name] for name in kernel.names]
            kernel.run(x, y, at, run.width, run.k, Wx, Wh, rowsx, rowsh, xs, *args)
        return found

    def run_shared(
        self, run: Run, state: Sequence[Array], inputs: Array, y: Array, keep: bool, team: Team
    ) -> tuple[Sequence[Array], list[Array]]:
        """`run` from products of x (N, R), with each product of h shared out by the team."""
        kernel, arrays, found = self._forward(run, state, keep)
        args, n, H = [arrays[name] for name in kernel.names], run.n, self.H
        h, zx, zh = (arrays[name].reshape(-1, n) for name in ("h", "zx", "zh"))

        def units(t: int, first: int, last: int) -> None:
            at = run.rows(t).start
            for gate in range(0, self.R, H):
                kernel.stand(inputs, at, gate + first, zx[gate + first : gate + last], False)
            kernel.step(0, t, first * n, last * n, *args)
            kernel.lay(h[first:last], y, at, first)

        for t in range(run.k):
            team.product(self.Wh, h, zh)
            team.share(H, functools.partial(units, t))
        return found

    def run_bwd(
        self, run: Run, dstate: Sequence[Array], kept: Sequence[Array], dy: Array, dZ: Array, dQ: Array
    ) -> Sequence[Array]:
        """The gradient of the state before a run from that of the state after it, and rows dy (N, H) or without any.

        dZ and dQ (N, R) take the gradients of the products of x and of h, which are one array where those are added.
        """
        kernel, arrays, found = self._backward(run, dstate, kept)
        args = [arrays[name] for name in kernel.names]
        at = run.rows(0).start
        if self._alone(run):
            kernel.alone(dy, at, run.k, self.Wh, dZ, dQ, *args)
        else:
            kernel.run(dy, at, run.width, run.k, *_pieces(self.WhT, run.n), dZ, dQ, *args)
        return found

    def run_bwd_shared(
        self,
        run: Run,
        dstate: Sequence[Array],
        kept: Sequence[Array],
        dy: Array,
        dZ: Array,
        dQ: Array,
        team: Team,
    ) -> Sequence[Array]:
        """`run_bwd` with each product shared out by the team."""
        kernel, arrays, found = self._backward(run, dstate, kept)
        args = [arrays[name] for name in kernel.names]
        n, H, apart = run.n, self.H, dQ is not dZ
        dh, dz, through = (arrays[name].reshape(-1, n) for name in ("dh", "dz", "dzh" if apart else "dz"))

        def units(t: int, first: int, last: int) -> None:
            at = run.rows(t).start
            if dy.size:
                kernel.stand(dy, at, first, dh[first:last], True)
            kernel.step(0, t, first * n, last * n, *args)
            for gate in range(0, self.R, H):
                kernel.lay(dz[gate + first : gate + last], dZ, at, gate + first)
                if apart:
                    kernel.lay(through[gate + first : gate + last], dQ, at, gate + first)

        for t in range(run.k - 1, -1, -1):
            team.share(H, functools.partial(units, t))
            team.product(self.WhT, through, dh)
            if apart:
                dh += arrays["dh0"].reshape(H, n)
        return found

    def _forward(
        self, run: Run, state: Sequence[Array], keep: bool
    ) -> tuple[Kernel, Params, tuple[Sequence[Array], list[Array]]]:
        """The kernel, its arrays by name, and those of them that are the state after the run and what is kept."""
        found, n, M = self.kernels, run.n, self.H * run.n
        kernel = found.forward if keep else found.lean
        h = np.array(state[0], order="C").reshape(M)
        carried = [workspace.empty(np, (run.k + 1 if keep else 1, M), h) for _ in found.carried]
        for carry, start in zip(carried, state[1:], strict=True):
            carry[0] = start.reshape(M)
        saved = [workspace.empty(np, _shape(run.k, rows, M), h) for rows in found.saved.values() if keep]
        arrays = dict(zip((*found.carried, *found.saved), (*carried, *saved), strict=False))
        arrays |= {"h": h, "zx": np.empty((1, self.G, M), dtype=h.dtype), "zh": np.empty((self.G, M), dtype=h.dtype)}
        after = [a.reshape(self.H, n) for a in (h, *(carry[-1] for carry in carried))]
        kept = [*(carry[:-1] for carry in carried), *saved] if keep else []
        return kernel, self._complete(kernel, arrays, n), (after, [a.reshape(*a.shape[:-1], self.H, n) for a in kept])

    def _backward(
        self, run: Run, dstate: Sequence[Array], kept: Sequence[Array]
    ) -> tuple[Kernel, Params, Sequence[Array]]:
        """The kernel, its arrays by name, and those of them that are the gradient of the state before the run."""
        found, n, M = self.kernels, run.n, self.H * run.n
        dh, *dcarry = (np.array(d, order="C").reshape(M) for d in dstate)
        arrays = {"dh": dh, **{f"d{name}": d for name, d in zip(found.carried, dcarry, strict=True)}}
        names = (*found.carried, *found.saved)
        arrays |= {name: a.reshape(*a.shape[:-2], M) for name, a in zip(names, kept, strict=True)}
        arrays |= {"dz": np.empty((self.G, M), dtype=dh.dtype)}
        if "dzh" in found.backward.names:
            arrays |= {"dzh": np.empty((self.G, M), dtype=dh.dtype), "dh0": np.empty(M, dtype=dh.dtype)}
        before = [d.reshape(self.H, n) for d in (dh, *dcarry)]
        return found.backward, self._complete(found.backward, arrays, n), before

    def _complete(self, kernel: Kernel, arrays: Params, n: int) -> Params:
        """With what else the kernel takes: parameters as they stand beside the units of n sequences, and numbers."""
        for name, p in self.given.items():
            if name in kernel.names:
                arrays[name] = (p if n == 1 else np.repeat(p, n, axis=-1)).reshape(p.shape[0], -1)
        arrays.update(self.numbers)
        return arrays

    @functools.cached_property
    def WhT(self) -> Array:  # noqa: N802
        """Wh^T in memory: NumPy's copy takes ten times as long where rows are a power of two apart."""
        if self.heads:
            return np.ascontiguousarray(self.Wh.swapaxes(2, 3))
        found = np.empty((self.H, self.R), dtype=self.Wh.dtype)
        self.kernels.backward.lay(self.Wh, found, 0, 0)
        return found

    def _alone(self, run: Run) -> bool:
        """Whether a run is of a single sequence, whose products with Wh are made without BLAS."""
        return run.n == run.width == 1 and self.Wh.size <= WEIGHTS and self.Wx.size > 0 and not self.heads


def step(found: Kernels, w: Params, given: Mapping[str, Any], x: Array, state: Sequence[Array]) -> None:
    """One step of one sequence from x (D,); the state, h and the carried ones (H,), is changed in place.

    `given` has the parameters and the numbers that the cell uses.
    """
    arrays = {**given, "h": state[0], **dict(zip(found.carried, (s[None] for s in state[1:]), strict=True))}
    names = [name for name in found.lean.names if name not in ("zx", "zh")]
    found.lean.single(plain(x), plain(w["Wx"]), plain(w["Wh"]), *[arrays[name] for name in names])


def kernels_of(cell: Any, Wh: Array, own: Params, biases: Params) -> Kernels | None:
    """The kernels for a `Fused`, or None where the cell is not to be or cannot be compiled."""
    if not jit.enabled():
        return None
    return kernels.of(cell, Wh.dtype, tuple((name, p.shape[0]) for name, p in own.items()), tuple(biases))


def plain(a: Array) -> Array:
    """As compiled loops take arrays, contiguous and not read-only: one compilation serves all."""
    return a if a.flags.c_contiguous and a.flags.writeable else np.array(a, order="C")


def _pieces(W: Array, n: int) -> tuple[Array, int]:
    """W (R, K) in pieces (pieces, R, K) for products with n columns, and the rows to take at once; 0 for heads."""
    if W.ndim == 4:
        return W.reshape(-1, *W.shape[2:]), 0
    R, K = W.shape
    rows, pieces = blas.tiles(R, K, n)
    return np.ascontiguousarray(W.reshape(R, pieces, K // pieces).transpose(1, 0, 2)), rows


def _shape(k: int, rows: int | None, M: int) -> tuple[int, ...]:
    return (k, M) if rows is None else (k, rows, M)
