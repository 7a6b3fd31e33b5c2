"""Backpropagation through time, once, for every gated cell: `recurrence.Forward` backwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from xlstm.arrays import blas, workspace
from xlstm.arrays.backend import Array, Namespace, Params, device_of
from xlstm.arrays.matmul import matmul
from xlstm.arrays.threads import Team
from xlstm.cells.normalization import normalize_bwd
from xlstm.engines.numba.fused import plain
from xlstm.engines.runs import Run, reshape
from xlstm.recurrence.forward import Saved
from xlstm.recurrence.loop import Loop, columns, product, swap
from xlstm.recurrence.parts import Part, before, beside

# `slopes` takes as many steps at once as make about this many elements: few large calls where a
# step is small and calls cost most, one step at a time where a step by itself fills the cache.
BLOCK = 32768


def run(passes: Sequence[Backward]) -> list[tuple[Params, Array, Sequence[Array]]]:
    """Run the directions of a layer: gradients of the parameters, of x (N, D) and of the initial state, of each."""
    plan = passes[0].saved.plan

    def work(team: Team) -> list[tuple[Params, Array, Sequence[Array]]]:
        tasks = [one.tasks(team) for one in passes]
        starts = iter(plan.run(team, [task for some in tasks for task in some]))
        return [one.finish([next(starts) for _ in some], team) for one, some in zip(passes, tasks, strict=True)]

    return plan.work(work)


class Backward:
    """A pass over one layer and direction, backwards.

    Parameters
    ----------
    dy : array (N, P) or None
        Gradient by y.
    dstate : arrays (P, B) and (H, B)
        Gradient by the final state.
    """

    def __init__(self, saved: Saved, dy: Array | None, dstate: Sequence[Array]) -> None:
        self.xp, self.saved, self.dy, self.dstate = saved.xp, saved, dy, dstate
        self.loop = LoopBack(saved)

    def tasks(self, team: Team) -> list[Callable[[], Sequence[Array]]]:
        """What is to be done for each part of the batch; the parts can be done side by side."""
        loop, dy = self.loop, self.dy
        if self.saved.device is not None:
            Z = loop.collected["z"].T
            dQ = loop.collected["q"].T if "q" in loop.collected else Z
            return [functools.partial(self.saved.device.backward, dy, self.dstate, Z, dQ)]
        run = functools.partial(loop.run_bwd, dy=dy)
        if self.saved.plan.compiled:
            fused, Z = loop.fused, loop.collected["z"].T
            dQ = loop.collected["q"].T if "q" in loop.collected else Z
            rows = {"dy": np.empty((0, 0), dtype=Z.dtype) if dy is None else plain(dy), "dZ": Z, "dQ": dQ}
            run = functools.partial(fused.run_bwd, **rows)
            if self.saved.plan.shared:
                run = functools.partial(fused.run_bwd_shared, **rows, team=team)
        return [functools.partial(self._part, part, run) for part in self.saved.parts]

    def finish(self, starts: Sequence[Sequence[Array]], team: Team) -> tuple[Params, Array, Sequence[Array]]:
        """From the results of the tasks."""
        active = self.saved.runs[0][1] if self.saved.runs else 0
        idle = [d[:, active:] for d in self.dstate]
        grads, dx = self.loop.gradients(self.saved, team)
        return grads, dx, [beside(self.xp, parts) for parts in zip(*starts, idle, strict=True)]

    def _part(self, part: Part, go: Callable[..., Sequence[Array]]) -> Sequence[Array]:
        """The gradient of the initial state of a part."""
        own = [d[:, part.runs[0].columns] for d in self.dstate]
        state: Sequence[Array] = [d[:, :0] for d in own]
        for run, kept in zip(reversed(part.runs), reversed(part.kept), strict=True):
            # Of the sequences that end here it is the gradient of the final state.
            have = state[0].shape[1]
            state = [beside(self.xp, (s, d[:, have : run.n])) for s, d in zip(state, own, strict=True)]
            state = go(run, state, kept)
        return state


class LoopBack(Loop):
    """One time step backwards; gradients of all steps are collected as columns (rows, N)."""

    def __init__(self, saved: Saved) -> None:
        vars(self).update(vars(saved.loop))
        xp, R, N = self.xp, self.G * self.H, saved.x.shape[0]
        # z: by the pre-activations; q: by the product Wh h, normalised; a: by that product; out: by the output
        # before projection. q and a are there only where they differ, and z has rows for the cell's own parameters.
        rows = {"z": R + self.H if "gc" in self.w else R}
        if self.cell.SPLIT and not self.cell.INNER:
            rows["q"] = R
        if self.gh is not None:
            rows["a"] = R
        if self.Whr is not None:
            rows["out"] = self.Whr.shape[0]
        # Of one sequence a step is one column: stored as (N, rows) it lies together. Compiled loops, and those on
        # a device, lay rows, too.
        self.apart = saved.plan.compiled or saved.device is not None
        flat = self.apart or (bool(saved.runs) and saved.runs[0][1] == 1)
        self.collected = {
            name: workspace.empty(xp, (N, n), saved.x).T if flat else workspace.empty(xp, (n, N), saved.x)
            for name, n in rows.items()
        }
        if not self.apart:
            self.WhT = _transposed(xp, self.Wh)
            self.innerT = _transposed(xp, self.inner) if self.cell.INNER else None
            self.WhrT = None if self.Whr is None else _transposed(xp, self.Whr)

    def run_bwd(self, run: Run, dstate: Sequence[Array], kept: list[Array], dy: Array | None) -> Sequence[Array]:
        """The gradient of the state before a run from that of the state after it."""
        Z = self.collected["z"]
        xp, R = self.xp, self.R
        WT = blas.blocks(self.WhT, run.n) if xp is np and self.WhT.ndim == 2 else self.WhT
        block = max(1, BLOCK // max(1, R * run.n))
        state = dstate
        for stop in range(run.k, 0, -block):
            start = max(0, stop - block)
            carry, inner, normal, _ = self.parts([a[start:stop, ...] for a in kept])
            inner = [swap(xp, a) for a in inner]
            slopes = [swap(xp, a) for a in self.cell.slopes(xp, *carry, inner, **self.own)]
            for t in range(stop - 1, start - 1, -1):
                rows = run.rows(t)
                dh, *dcarry = state
                if dy is not None:
                    dh = dh + dy[rows, :].T
                here = [a[t - start, ...] for a in slopes]
                if self.plain:
                    dz, *dcarry = self.cell.gates_bwd(xp, dh, *dcarry, here)
                    dz = reshape(xp, dz, (R, run.n))
                    Z[:, rows] = dz
                    state = [self.through_bwd(WT, dz), *dcarry]
                else:
                    state = self.step_bwd(WT, dh, dcarry, here, [a[t - start, ...] for a in normal], run, rows)
        return state

    def parts(self, kept: list[Array]) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
        """What a run kept: carried states, what the cell saved, what the normalisation did, and outputs to project."""
        first, last = len(self.cell.STATES) - 1, len(kept) - (self.Whr is not None)
        middle = last - 2 * (self.gh is not None)
        return kept[:first], kept[first:middle], kept[middle:last], kept[last:]

    def step_bwd(
        self,
        WT: Array,
        dh: Array,
        dcarry: list[Array],
        slopes: list[Array],
        normal: list[Array],
        run: Run,
        rows: slice,
    ) -> list[Array]:
        """Gradient of the state before a step from that of the state after it."""
        xp, cell = self.xp, self.cell
        drop = None if self.noise.drop is None else self.noise.drop[:, run.columns]
        if self.zoneout:
            stayed = self._stay_bwd([dh, *dcarry], rows)
            dh, *dcarry = (d if s is None else d - s for d, s in zip([dh, *dcarry], stayed, strict=True))
        if self.WhrT is not None:
            self._collect("out", dh, rows)
            dh = self.WhrT @ dh
        if cell.INNER:
            dz, _, dh0, *dcarry = cell.gates_bwd(xp, dh, *dcarry, slopes, product(self.innerT, after=drop))
            da = self._collect("z", dz, rows)
        elif cell.SPLIT:
            dz, dzh, dh0, *dcarry = cell.gates_bwd(xp, dh, *dcarry, slopes)
            self._collect("z", dz, rows)
            da = self._collect("q", dzh, rows)
        else:
            dz, *dcarry = cell.gates_bwd(xp, dh, *dcarry, slopes)
            da = self._collect("z", dz, rows)
        if da.shape[0] != self.R:
            da = da[: self.R, :]
        if self.gh is not None:
            da = self._collect("a", normalize_bwd(xp, self.gh * da, normal[0], normal[1], 0), rows)
        dh = self.through_bwd(WT, da)
        if drop is not None:
            dh *= drop
        if cell.SPLIT:
            dh += dh0
        if self.zoneout:
            return [d if s is None else d + s for d, s in zip((dh, *dcarry), stayed, strict=True)]
        return [dh, *dcarry]

    def through_bwd(self, WT: Array, da: Array) -> Array:
        """The product Wh^T da, (P, n)."""
        n = da.shape[1]
        if WT.ndim == 4:
            G, N, K, _ = WT.shape
            da = reshape(self.xp, da, (G, N, K, n))
            return reshape(self.xp, self.xp.sum(WT @ da, axis=0), (self.P, n))
        return reshape(self.xp, WT @ da, (self.P, n))

    def _stay_bwd(self, dstate: Sequence[Array], rows: slice) -> list[Array | None]:
        """The part of a state's gradient that goes to the old state directly."""
        shares = [columns(s, rows) for s in self.noise.stay]
        return [None if s is None else s * d for d, s in zip(dstate, shares, strict=True)]

    def gradients(self, saved: Saved, team: Team) -> tuple[Params, Array]:
        """Gradients of the parameters and of x, each a product over all steps."""
        xp, cell, w, x = self.xp, self.cell, self.w, saved.x
        if x.shape[0] == 0:
            return {name: xp.zeros_like(p) for name, p in w.items()}, xp.zeros_like(x)
        R, outer = self.G * self.H, self.R
        Z = self.collected["z"][:R, :]
        Q = self.collected.get("q", Z)
        A = self.collected.get("a", Q)
        grads: Params = {}
        DX = Z
        if saved.normal is not None:
            grads["gx"] = xp.sum(Z * saved.normal[0], axis=1)
            DX = normalize_bwd(xp, w["gx"][:, None] * Z, *saved.normal, 0)
        products = {"Wx": (DX, x), "dx": (DX.T, w["Wx"])} if "Wx" in w else {}
        if self.Wh.ndim == 2:
            products["Wh"] = (A[:outer, :], self._before(saved))
        else:
            G, N, K, _ = self.Wh.shape
            h = reshape(xp, self._before(saved), (x.shape[0], N, K))
            if self.apart:  # rows
                heads = xp.permute_dims(reshape(xp, A.T, (x.shape[0], G, N, K)), (1, 2, 3, 0))
            else:
                heads = reshape(xp, A, (G, N, K, x.shape[0]))
            grads["Wh"] = matmul(xp, heads, xp.permute_dims(h, (1, 0, 2)))
        if cell.INNER:
            inner = saved.rows(lambda kept, _: cell.inner([swap(xp, a) for a in self.parts(kept)[1]]), (self.H,))
            products["inner"] = (A[outer:, :], self._masked(saved, inner))
        if self.Whr is not None:
            out = saved.rows(lambda kept, _: self.parts(kept)[3][0], (self.H,))
            products["Whr"] = (self.collected["out"], out)
        for bias, d in (("b", Z), ("bh", Q)):
            if bias in w:
                ones = xp.ones((d.shape[1], 1), dtype=d.dtype, device=device_of(d))
                products[bias] = (d, ones)
        grads |= dict(zip(products, team.products(list(products.values())), strict=True))
        dx = grads.pop("dx") if "Wx" in w else Z.T
        if cell.INNER:
            grads["Wh"] = xp.concat((grads["Wh"], grads.pop("inner")))
        for bias in ("b", "bh"):
            if bias in w:
                grads[bias] = grads[bias][:, 0]
        if self.gh is not None:
            grads["gh"] = xp.sum(Q * saved.rows(lambda kept, _: self.parts(kept)[2][0], (R,)).T, axis=1)
        if self.own:
            self._own_gradients(grads, saved)
        return {name: grads[name] for name in w}, dx

    def _before(self, saved: Saved) -> Array:
        """What Wh was multiplied by at every step, (N, P): h before it, masked."""
        return self._masked(saved, before(self.xp, saved.hs, saved.runs))

    def _own_gradients(self, grads: Params, saved: Saved) -> None:
        """Adds the gradients of the cell's own parameters, summed over steps and batch."""
        xp, Z = self.xp, self.collected["z"]
        for part in saved.parts:
            for run, kept in zip(part.runs, part.kept, strict=True):
                carry, arrays, _, _ = self.parts(kept)
                dz = run.steps(xp, Z.T, 0, run.k)  # (k, n, G*H)
                dz = reshape(xp, dz, (run.k, run.n, Z.shape[0] // self.H, self.H))
                dz = xp.permute_dims(dz, (2, 0, 3, 1))  # (G, k, H, n)
                arrays = [swap(xp, a) for a in arrays]
                for name, grad in self.cell.own_bwd(xp, dz, *carry, arrays, list(self.own)).items():
                    total = reshape(xp, xp.sum(grad, axis=(-3, -1)), (-1,))
                    grads[name] = grads[name] + total if name in grads else total

    def _masked(self, saved: Saved, rows: Array) -> Array:
        """Rows (N, P) times the mask of their sequence."""
        xp, drop, at = self.xp, self.noise.drop, 0
        if drop is None:
            return rows
        parts = []
        for k, n in saved.runs:
            steps = reshape(xp, rows[at : at + k * n, :], (k, n, rows.shape[1])) * drop[:, :n].T
            parts.append(reshape(xp, steps, (k * n, rows.shape[1])))
            at += k * n
        return xp.concat(parts)

    def _collect(self, name: str, gradient: Array, rows: slice) -> Array:
        """Keep a step's gradient (G, H, n) or (R, n); returns it as (R, n)."""
        if gradient.ndim == 3:
            gradient = reshape(self.xp, gradient, (gradient.shape[0] * gradient.shape[1], gradient.shape[2]))
        self.collected[name][:, rows] = gradient
        return gradient


def _transposed(xp: Namespace, W: Array) -> Array:
    """W^T, or that of each head, as a copy: OpenBLAS is 10 % quicker than on a view."""
    if W.ndim == 4:
        return xp.asarray(xp.matrix_transpose(W), copy=True)
    return reshape(xp, reshape(xp, W.T, (W.shape[0] * W.shape[1],)), (W.shape[1], W.shape[0]))
