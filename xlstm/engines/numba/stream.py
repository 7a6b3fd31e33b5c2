"""One step of one sequence, as in a stream.

A small step takes as long as some twenty calls of Python functions around it. So what does not depend on the arrays is
looked up once for a layer and dtype: the compiled code, the order of its arguments, and their shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xlstm.arrays.namespace import Array, Params
from xlstm.engines.numba.tape import constants, kernels
from xlstm.engines.numba.weights import contiguous
from xlstm.engines.step import Step


class Stream:
    """The compiled step of a layer in one direction. It takes arrays in the shapes of a first step, and keeps none.

    Parameters
    ----------
    step : Step
        The first step, which Numba does not refuse.
    """

    def __init__(self, step: Step) -> None:
        found, given = step.compiled or kernels(step), constants(step, 1)
        self.cell, self.H, self.Wh = step.cell, step.H, step.Wh.shape
        self.loop = found.lean.loops.forward_step
        # The loop takes the states, then vectors of units such as biases, then numbers.
        names = found.lean.names[len(found.step.carried) :]
        self.vectors = [(name, given[name].shape) for name in names if name not in found.lean.numbers]
        self.numbers = [given[name] for name in found.lean.numbers]

    def __call__(self, w: Params, x: Array, state: Sequence[Array]) -> list[Array]:
        """Return the state (1, H) after a step, from weights by their last names, x (1, D) and the state before it."""
        w, H = self.cell.weights(np, w), self.H
        rooms = []  # each has a state before the step, and then the one after it
        for s in state:
            room = np.empty(2 * H, x.dtype)
            room[:H] = s
            rooms.append(room)
        vectors = [contiguous(w[name]).reshape(shape) for name, shape in self.vectors]
        Wh = contiguous(w["Wh"]).reshape(self.Wh) if "Wh" in w else np.zeros(self.Wh, x.dtype)
        self.loop(contiguous(x), contiguous(w["Wx"]), Wh, *rooms, *vectors, *self.numbers)
        return [room[None, H:] for room in rooms]
