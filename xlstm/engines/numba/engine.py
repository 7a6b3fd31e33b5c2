"""The engine for NumPy arrays: the time loop of a cell, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import fuse, scan
from xlstm.arrays import matmul as products
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import chains, jit, matmul, scans
from xlstm.engines.numba.stream import Stream
from xlstm.engines.numba.tape import DTYPES, NumbaTape, kernels
from xlstm.engines.segments import Widths, with_idle
from xlstm.engines.step import Step
from xlstm.engines.tape import Gradients, Tape

# Up to so many recurrent weights a step of one sequence runs in a compiled call; BLAS has the products of a larger one
# on all cores.
SMALL = 10**6


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
        return tape.y, with_idle(np, end, state, tape.first), tape

    def backward(self, tape: Any, dy: Array | None, dstate: Sequence[Array]) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps; see `Engine`."""
        found, start = tape.backward(dy, dstate)
        return found, with_idle(np, start, dstate, tape.first)

    def stream(self, step: Step) -> Stream | None:
        """Return the compiled single step of a layer, whose first step this is, or None where the reference is to run.

        In a large layer a step is little but products, which BLAS computes on all cores.
        """
        small = not step.heads and "Wx" in step.w and step.R * step.P <= SMALL
        return Stream(step) if small and not self.refuses(step, ()) else None


NUMBA = Numba()
fuse.loops = chains.run
products.compiled = matmul.run
products.compiled_into = matmul.run_into
scan.loops = scans.run
