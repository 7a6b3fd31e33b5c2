"""The engine for NumPy arrays: the time loop of a cell, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import fuse
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import chains, jit
from xlstm.engines.numba.tape import DTYPES, NumbaTape, constants, kernels
from xlstm.engines.numba.weights import contiguous
from xlstm.engines.segments import Widths, joined
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Tape


class Numba:
    """Runs loops that Numba compiled from a cell's trace."""

    name = "numba"

    def __reduce__(self) -> str:
        """Copy and pickle it as the one there is."""
        return "NUMBA"

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step, or ""."""
        if step.xp is not np:
            return "it runs NumPy arrays"
        if not jit.enabled():
            return f"{jit.VARIABLE} is 0, or Numba is not installed"
        if step.obstacle:
            return f"no compiled loop does {step.obstacle}"
        if step.Wh.dtype not in DTYPES:
            return f"no compiled loop has {step.Wh.dtype}"
        step.compiled = kernels(step)
        return "" if step.compiled else "the cell is not element by element"

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps; see `Engine`."""
        tape = NumbaTape(self, step, widths, x, state[0])
        end = tape.forward(state, keep)
        return tape.y, joined(np, [end], state, tape.first), tape

    def backward(self, tape: Any, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; see `Engine`."""
        found, start = tape.backward(dy, dstate)
        return found, joined(np, [start], dstate, tape.first)

    def step(self, step: Step, x: Array, state: Sequence[Array]) -> list[Array]:
        """Run one step of one sequence from x (1, D) and its state (1, H); return the state after it, (1, H)."""
        found = step.compiled or kernels(step)
        kernel, flat = found.lean, [np.concatenate((s, s), axis=1)[0, :] for s in state]
        arrays = {**constants(step, 1), **dict(zip(found.step.carried, flat[1:], strict=True))}
        given = [arrays[name] for name in kernel.names]
        weights = (contiguous(step.w["Wx"]), contiguous(step.Wh))
        kernel.loops.forward_step(contiguous(x[0, :]), *weights, flat[0], *given)
        return [s[None, s.size // 2 :] for s in flat]


NUMBA = Numba()
fuse.loops = chains.run
