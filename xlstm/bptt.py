"""Backpropagation through time, once, for every gated cell: `recurrence.forward` backwards."""

from __future__ import annotations

from collections.abc import Sequence

from xlstm.activations import normalize_bwd
from xlstm.backend import Array, Namespace, Params, device_of
from xlstm.recurrence import Loop, Saved, columns, product, reshape, swap

# `slopes` takes as many steps at once as make about this many elements: few large calls where a
# step is small and calls cost most, one step at a time where a step by itself fills the cache.
BLOCK = 32768


def backward(
    xp: Namespace, w: Params, saved: Saved, dy: Array | None, dstate: Sequence[Array]
) -> tuple[Params, Array, tuple[Array, ...]]:
    """Gradients of `w`, x (N, D) and the initial state from dy (N, P) and those of the final state (H, B)."""
    cell = saved.cell
    loop = LoopBack(xp, w, saved, dstate[0].shape[1])
    R = w["Wh"].shape[0]
    state: Sequence[Array] = [d[:, :0] for d in dstate]
    at = saved.x.shape[0]
    for (k, n), kept in zip(reversed(saved.runs), reversed(saved.kept), strict=True):
        state = _widen(xp, state, dstate, n)
        block = max(1, BLOCK // max(1, R * n))
        for stop in range(k, 0, -block):
            start = max(0, stop - block)
            carry, inner, normal, _ = loop.parts([a[start:stop, ...] for a in kept])
            inner = [swap(xp, a) for a in inner]
            slopes = [swap(xp, a) for a in cell.slopes(xp, *carry, inner, **loop.own)]
            for t in range(stop - start - 1, -1, -1):
                at -= n
                dh, *dcarry = state
                if dy is not None:
                    dh = dh + dy[at : at + n, :].T
                here = [a[t, ...] for a in slopes]
                if loop.plain:
                    dz, *dcarry = cell.gates_bwd(xp, dh, *dcarry, here)
                    dz = reshape(xp, dz, (R, n))
                    loop.z[:, at : at + n] = dz
                    state = [loop.WhT @ dz, *dcarry]
                else:
                    state = loop.step_bwd(dh, dcarry, here, [a[t, ...] for a in normal], at, n)
    return *loop.gradients(w, saved), tuple(_widen(xp, state, dstate, dstate[0].shape[1]))


def _widen(xp: Namespace, state: Sequence[Array], dstate: Sequence[Array], n: int) -> Sequence[Array]:
    """Gradients of a state of n columns: those of sequences that end here are the gradient of the final state."""
    have = state[0].shape[1]
    if have == n:
        return state
    if have == 0:
        return [d[:, :n] for d in dstate]
    return [xp.concat((s, d[:, have:n]), axis=1) for s, d in zip(state, dstate, strict=True)]


class LoopBack(Loop):
    """One time step backwards; gradients of all steps are collected as columns (rows, N)."""

    def __init__(self, xp: Namespace, w: Params, saved: Saved, B: int) -> None:
        super().__init__(xp, saved.cell, w, saved.noise)
        self.B, self.N = B, saved.x.shape[0]
        self.WhT = _transposed(xp, self.Wh)
        self.innerT = _transposed(xp, self.inner) if self.cell.INNER else None
        self.WhrT = None if self.Whr is None else _transposed(xp, self.Whr)
        # z: by the pre-activations; a: by the product Wh h; q: by that product normalised; out: by the output
        # before projection. a and q are there only where they differ.
        self.collected: dict[str, Array] = {}
        if self.plain:
            self.z = self.collected["z"] = self._columns(w["Wh"].shape[0], saved.x)

    def parts(self, kept: list[Array]) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
        """What a run kept: carried states, what the cell saved, what the normalisation did, and outputs to project."""
        first, last = len(self.cell.STATES) - 1, len(kept) - (self.Whr is not None)
        middle = last - 2 * (self.gh is not None)
        return kept[:first], kept[first:middle], kept[middle:last], kept[last:]

    def step_bwd(
        self, dh: Array, dcarry: list[Array], slopes: list[Array], normal: list[Array], at: int, n: int
    ) -> list[Array]:
        """Gradient of the state before a step from that of the state after it."""
        xp, cell = self.xp, self.cell
        drop = None if self.noise.drop is None else self.noise.drop[:, :n]
        if self.zoneout:
            stayed = self._stay_bwd([dh, *dcarry], at, n)
            dh, *dcarry = (d if s is None else d - s for d, s in zip([dh, *dcarry], stayed, strict=True))
        if self.WhrT is not None:
            self._collect("out", dh, at, n)
            dh = self.WhrT @ dh
        if cell.INNER:
            dz, _, dh0, *dcarry = cell.gates_bwd(xp, dh, *dcarry, slopes, product(self.innerT, after=drop))
            da = self._collect("z", dz, at, n)
        elif cell.SPLIT:
            dz, dzh, dh0, *dcarry = cell.gates_bwd(xp, dh, *dcarry, slopes)
            self._collect("z", dz, at, n)
            da = self._collect("q", dzh, at, n)
        else:
            dz, *dcarry = cell.gates_bwd(xp, dh, *dcarry, slopes)
            da = self._collect("z", dz, at, n)
        rows = self.Wh.shape[0]
        if da.shape[0] != rows:
            da = da[:rows, :]
        if self.gh is not None:
            da = self._collect("a", normalize_bwd(xp, self.gh * da, normal[0], normal[1], 0), at, n)
        dh = self.WhT @ da
        if drop is not None:
            dh *= drop
        if cell.SPLIT:
            dh += dh0
        if self.zoneout:
            return [d if s is None else d + s for d, s in zip((dh, *dcarry), stayed, strict=True)]
        return [dh, *dcarry]

    def _stay_bwd(self, dstate: Sequence[Array], at: int, n: int) -> list[Array | None]:
        """The part of a state's gradient that goes to the old state directly."""
        shares = [columns(s, at, n) for s in self.noise.stay]
        return [None if s is None else s * d for d, s in zip(dstate, shares, strict=True)]

    def gradients(self, w: Params, saved: Saved) -> tuple[Params, Array]:
        """Gradients of the parameters and of x, each a product over all steps."""
        xp, cell, x = self.xp, self.cell, saved.x
        if not saved.runs:
            return {name: xp.zeros_like(p) for name, p in w.items()}, xp.zeros_like(x)
        R, outer = w["Wh"].shape[0], self.Wh.shape[0]
        Z = self.collected["z"][:R, :]
        Q = self.collected.get("q", Z)
        A = self.collected.get("a", Q)
        grads: Params = {}
        DX = Z
        if saved.normal is not None:
            grads["gx"] = xp.sum(Z * saved.normal[0], axis=1)
            DX = normalize_bwd(xp, w["gx"][:, None] * Z, *saved.normal, 0)
        grads["Wx"], dx = DX @ x, DX.T @ w["Wx"]
        grads["Wh"] = A[:outer, :] @ self._seen(saved)
        parts = [self.parts(kept) for kept in saved.kept] if not self.plain or self.own else []
        if cell.INNER:
            inner = [cell.inner([swap(xp, a) for a in arrays]) for _, arrays, _, _ in parts]
            grads["Wh"] = xp.concat((grads["Wh"], A[outer:, :] @ self._masked(saved, saved.rows(inner, (self.H,)))))
        if "b" in w:
            grads["b"] = xp.sum(Z, axis=1)
        if "bh" in w:
            grads["bh"] = xp.sum(Q, axis=1)
        if self.gh is not None:
            grads["gh"] = xp.sum(Q * saved.rows([normal[0] for _, _, normal, _ in parts], (R,)).T, axis=1)
        if self.Whr is not None:
            grads["Whr"] = self.collected["out"] @ saved.rows([out[0] for _, _, _, out in parts], (self.H,))
        if self.own:
            self._own_gradients(grads, saved, parts)
        return {name: grads[name] for name in w}, dx

    def _own_gradients(self, grads: Params, saved: Saved, parts: Sequence[tuple[list[Array], ...]]) -> None:
        """Adds the gradients of the cell's own parameters, summed over steps and batch."""
        xp, Z, at = self.xp, self.collected["z"], 0
        for (k, n), (carry, arrays, _, _) in zip(saved.runs, parts, strict=True):
            dz = reshape(xp, Z[:, at : at + k * n], (Z.shape[0] // self.H, self.H, k, n))
            at += k * n
            dz = xp.permute_dims(dz, (0, 2, 1, 3))  # (G, k, H, n)
            arrays = [swap(xp, a) for a in arrays]
            for name, grad in self.cell.own_bwd(xp, dz, *carry, arrays, list(self.own)).items():
                total = reshape(xp, xp.sum(grad, axis=(-3, -1)), (-1,))
                grads[name] = grads[name] + total if name in grads else total

    def _seen(self, saved: Saved) -> Array:
        """What Wh was multiplied by at every step, (N, P): h before the step, masked."""
        xp, rows, at = self.xp, [], 0
        for (k, n), start in zip(saved.runs, saved.starts, strict=True):
            rows += [start.T, saved.y[at : at + (k - 1) * n, :]]
            at += k * n
        return self._masked(saved, xp.concat(rows))

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

    def _collect(self, name: str, gradient: Array, at: int, n: int) -> Array:
        """Keep a step's gradient (G, H, n) or (rows, n); returns it as (rows, n)."""
        if gradient.ndim == 3:
            gradient = reshape(self.xp, gradient, (gradient.shape[0] * gradient.shape[1], n))
        if name not in self.collected:
            self.collected[name] = self._columns(gradient.shape[0], gradient)
        self.collected[name][:, at : at + n] = gradient
        return gradient

    def _columns(self, rows: int, like: Array) -> Array:
        """Room for (rows, N)."""
        about = {"dtype": like.dtype, "device": device_of(like)}
        # Of one sequence a step is one column: stored as (N, rows) it lies together.
        if self.B == 1:
            return self.xp.empty((self.N, rows), **about).T
        return self.xp.empty((rows, self.N), **about)


def _transposed(xp: Namespace, W: Array) -> Array:
    """W^T as a copy: OpenBLAS is 10 % quicker than on a view."""
    return reshape(xp, reshape(xp, W.T, (W.shape[0] * W.shape[1],)), (W.shape[1], W.shape[0]))
