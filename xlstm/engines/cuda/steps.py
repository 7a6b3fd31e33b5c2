"""A pass with kernels of its own for every step, and with what the array library multiplies between them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from xlstm.arrays.concat import concat
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, device_of
from xlstm.engines.cell_step import reshape
from xlstm.engines.cuda.kernels import Kernels, contiguous
from xlstm.engines.tape import Widths, starts_of


class Steps(Kernels):
    """The steps of a pass, one after the other; states are (B, H), and those of h (B, P)."""

    widths: Widths
    first: int  # sequences of the first step
    hs: Array
    y: Array
    keep_h: bool  # whether kernels keep h before every step

    @functools.cached_property
    def starts(self) -> list[int]:
        """The first row of every step, and the number of rows."""
        found: list[int] = starts_of(self.widths).tolist()
        return found

    def steps_forward(self, kind: str, arrays: dict[str, Any], states: Sequence[Array]) -> list[Array]:
        """Run all steps forward; return the state of each sequence at its own end."""
        projected = self.function.around.projected
        after = self._states(arrays, states)
        if projected:
            self.y[...] = 0
        before = 0  # first row of h before the step
        for at, end in itertools.pairwise(self.starts):
            self.ask(kind, arrays, self.hs[before : before + end - at, :], at, self.keep_h)
            if projected:
                matmul(self.step.xp, arrays["out"][at:end, :], self.step.w["Whr"].T, add=self.y[at:end, :])
            before = self.first + at
        return [self._last(), *after] if projected else after

    def steps_backward(self, arrays: dict[str, Any], states: Sequence[Array]) -> list[Array]:
        """Run all steps backward from the gradient of the final state; return that of the initial state."""
        after = self._states(arrays, states)
        if self.function.around.projected:
            return [self._back_through_projection(arrays, states[0]), *after]
        xp, product = self.step.xp, self.empty({"": None}, 0)[""]
        for at, end in reversed(list(itertools.pairwise(self.starts))):
            ending = (end - at - product.shape[0], self.step.H)  # sequences whose last step this is
            if ending[0]:
                product = xp.concat((product, xp.zeros(ending, dtype=product.dtype, device=device_of(product))))
            arrays["product"] = product
            self.ask_bwd(arrays, at, end - at)
            product = self._by_h(arrays, at, end)
        return [after[0] + self._masked(product), *after[1:]]

    def _back_through_projection(self, arrays: dict[str, Any], dend: Array) -> Array:
        """Run all steps backward; the gradient of y, (N, P), becomes that of h of every step."""
        dh, have = arrays["dy"], 0
        d0 = dh[:0, :]
        for start, (at, end) in reversed(list(zip([0, *self.starts], itertools.pairwise(self.starts), strict=False))):
            n = end - at
            if n > have:  # sequences whose last step this is
                dh[at + have : end, :] += self.given(dend[have:n, :])
            have = n
            arrays["product"] = self.given(matmul(self.step.xp, dh[at:end, :], self.step.w["Whr"]))
            self.ask_bwd(arrays, at, n)
            if at == 0:
                d0 = self._masked(self._by_h(arrays, at, end))
            elif "drop" in self.constants:
                dh[start : start + n, :] += self._masked(self._by_h(arrays, at, end))
            else:
                matmul(self.step.xp, self._passed_on(arrays, at, end), self.matrix, add=dh[start : start + n, :])
        return d0

    def _states(self, arrays: dict[str, Any], states: Sequence[Array]) -> list[Array]:
        """Return copies of the states that kernels have, which each step overwrites."""
        xp, names = self.step.xp, ("h", *self.function.carried)
        if self.function.around.projected:
            names, states = names[1:], states[1:]
        found = [contiguous(xp.astype(s, self.real, copy=True)) for s in states]
        for name, s in zip(names, found, strict=True):
            arrays[f"before_{name}"] = arrays[f"after_{name}"] = s
        return found

    def _by_h(self, arrays: dict[str, Any], at: int, end: int) -> Array:
        """Return the gradient of h by its product at a step, without its mask."""
        return self.through_bwd(self._passed_on(arrays, at, end))

    def _passed_on(self, arrays: dict[str, Any], at: int, end: int) -> Array:
        """Return the gradient of the product of h at a step, (n, R)."""
        dz = next(arrays[name] for name in ("da", "dzh", "dz") if name in arrays)
        return reshape(dz[at:end, ...], (end - at, self.step.R))

    def _masked(self, dh: Array) -> Array:
        drop = self.constants.get("drop")
        return dh if drop is None else dh * drop[: dh.shape[0], :]

    def _last(self) -> Array:
        """Return h of each sequence after its own last step."""
        ends: list[Array] = []
        following = [*(n for _, n in self.widths[1:]), 0]
        row = 0
        for (k, n), more in zip(self.widths, following, strict=True):
            row += k * n
            ends.insert(0, self.y[row - n + more : row, :])  # the longest come first
        return ends[0] if len(ends) == 1 else concat(self.step.xp, ends, 0)
