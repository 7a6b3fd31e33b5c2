"""The seam: what an engine is, and which one runs a recurrence.

Above this file nobody asks which library, device or compiler there is; below it nobody knows of
layers, stacks or directions.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.cells.cell import Cell
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.cuda.cuda_engine import CUDA
from xlstm.engines.numba import jit
from xlstm.engines.numba.numba_engine import NUMBA, Stream
from xlstm.engines.tape import Gradients, Tape, Widths

__all__ = ["Engine", "use"]


class Engine(Protocol):
    """Runs one recurrent layer in one direction over a packed batch.

    To add an engine, write a class with these methods and put it into `ENGINES`. One step, as for
    streaming, goes another way: the function `step` has the reference engine or Numba run it.

    Attributes
    ----------
    name : str
        The name by which `use` asks for it.
    """

    name: str

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why it cannot run a step over a batch of these widths, or "" where it can.

        A layer keeps the answer for NumPy arrays, which must not depend on the widths.
        """

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape]:
        """Run all steps.

        Parameters
        ----------
        step : Step
        x : array (N, D)
            Packed rows.
        state : arrays (P, B), (H, B), ...
            The state before the first step; sequences without any step come last.
        widths : list of (steps, width)
            The segments of the batch.
        keep : {"nothing", "states", "all"}
            How much the tape keeps. With "states" the rest is rematerialised when it is asked for.

        Returns
        -------
        y : array (N, P)
            h after every step.
        state : list of arrays as `state`
            The state of each sequence at its own end.
        tape : Tape
        """

    def backward(
        self, tape: Tape, dy: Array | None, dstate: Sequence[Array]
    ) -> tuple[Gradients, list[Array]]:
        """Differentiate all steps.

        Parameters
        ----------
        tape : Tape
        dy : array (N, P) or None
            The gradient of y.
        dstate : arrays (P, B), (H, B), ...
            The gradient of the final state.

        Returns
        -------
        gradients : Gradients
            Those of every step.
        dstate : list of arrays as `dstate`
            The gradient of the initial state.
        """


ENGINES: list[Engine] = [CUDA, NUMBA, ARRAY_API]  # the quickest first
_asked: contextvars.ContextVar[str | None] = contextvars.ContextVar("engine", default=None)


def choose(step: Step, widths: Widths, known: dict[Any, tuple[Engine, Any]]) -> Engine:
    """Return the first engine that does not refuse, or the one that was asked for with `use`.

    Parameters
    ----------
    step : Step
    widths : list of (steps, width)
    known : dict
        The engines that were chosen before for NumPy arrays, and their compiled steps, which this
        function fills in. All calls with the same dict have the same cell, names of weights and
        shapes.

    Raises
    ------
    ValueError
        The engine that was asked for refuses.
    """
    asked = _asked.get()
    if step.xp is not np:
        return _chosen(step, widths, asked)
    key = step.Wh.dtype, step.bare, asked, os.environ.get(jit.VARIABLE)
    found = known.get(key)
    if found is None:
        known[key] = found = _chosen(step, widths, asked), step.compiled
    engine, step.compiled = found
    return engine


def _chosen(step: Step, widths: Widths, asked: str | None) -> Engine:
    for engine in ENGINES:
        if asked is None:
            if not engine.refuses(step, widths):
                return engine
        elif engine.name == asked:
            reason = engine.refuses(step, widths)
            if reason:
                raise ValueError(f"engine {asked}: {reason}")
            return engine
    raise AssertionError("the reference engine refuses nothing")


def step(
    xp: Namespace,
    cell: Cell,
    w: Params,
    masks: Masks,
    x: Array,
    state: Sequence[Array],
    streams: dict[Any, Stream | None],
) -> tuple[Array, Sequence[Array]]:
    """Run one step from x (B, D) and the state (B, P), (B, H), ...; return h, and the state after
    it, of these shapes.

    The reference engine runs it, since compiling a loop of one step gains nothing; Numba runs it
    for a single sequence in a small layer, and a kernel where there is a GPU. h is an array of its
    own where all of these are new.

    `streams` is a dict that this function fills: it has for each dtype the compiled step, or None
    where the reference engine runs. All calls with the same dict must have the same cell, masks and
    shapes of weights.

    Raises
    ------
    ValueError
        The engine that was asked for with `use` refuses the layer.
    """
    asked = _asked.get()
    if xp is np and x.shape[0] == 1 and asked in (None, NUMBA.name) and jit.enabled():
        if x.dtype not in streams:
            streams[x.dtype] = NUMBA.stream(Step(xp, cell, w, masks))
        stream = streams[x.dtype]
        if stream is not None:
            after = stream(w, x, state)
            return after[0], after
    step = Step(xp, cell, w, masks)
    if asked is not None:
        _chosen(step, [(1, x.shape[0])], asked)
    launched = CUDA.step(step, x, state) if asked in (None, CUDA.name) and xp is not np else None
    if launched is not None:
        return launched[0], launched[1:]
    found = [s.T for s in ARRAY_API.step(step, x, state)]
    return found[0], found


def asked() -> str | None:
    """Return the name of the engine that was asked for with `use`, or None."""
    return _asked.get()


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Run every recurrence in this context in the engine of a name, which raises where it cannot.

    Parameters
    ----------
    name : str
        The name of one of `ENGINES`.

    Returns
    -------
    context manager

    Raises
    ------
    ValueError
        There is no engine of that name.
    """
    checks.choice([engine.name for engine in ENGINES])("engines.use", "name", name)
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)
