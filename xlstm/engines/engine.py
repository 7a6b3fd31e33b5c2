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
from xlstm.engines.cell_step import Masks, Step, Stream
from xlstm.engines.cuda.cuda_engine import CUDA
from xlstm.engines.numba import jit
from xlstm.engines.numba.numba_engine import NUMBA
from xlstm.engines.tape import Gradients, Tape, Widths

__all__ = ["Engine", "use"]


class Engine(Protocol):
    """Runs one recurrent layer in one direction over a packed batch.

    To add an engine, write a class derived from this one and put it into `ENGINES`. It needs
    `refuses`, `forward` and `backward`; a single step, as for streaming, is by default a pass of
    one step.

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
    ) -> tuple[Array, list[Array], Tape | None]:
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
            The state of each sequence at its own end; in arrays of their own where nothing is kept.
        tape : Tape or None
            None only where nothing is kept.
        """

    def stream(self, step: Step) -> Stream:
        """Return a function that runs single steps and keeps nothing.

        Parameters
        ----------
        step : Step
            The first of the steps. Others have arrays of the same shapes and dtypes, but for the
            number B of sequences.

        Returns
        -------
        stream : function (w, x, state) -> (y, state)
            `w` has the weights of a step by their last names; x is (B, D), and the states before
            and after the step are arrays (B, P), (B, H), .... y is h after the step, which may be
            the first array of the state itself; else all of them are new arrays.
        """

        xp = step.xp
        cell = step.cell
        masks = step.masks

        def run(w: Params, x: Array, state: Sequence[Array]) -> tuple[Array, Sequence[Array]]:
            again = Step(xp, cell, w, masks)
            before = [s.T for s in state]
            _, after, _ = self.forward(again, x, before, [(1, x.shape[0])], "nothing")
            states = [s.T for s in after]
            return states[0], states

        return run

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


def choose(step: Step, widths: Widths, choices: dict[Any, Any]) -> Engine:
    """Return the first engine that does not refuse, or the one that was asked for with `use`.

    Parameters
    ----------
    step : Step
    widths : list of (steps, width)
    choices : dict
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
        return _first(step, widths, asked)
    key = step.Wh.dtype, step.bare, asked, os.environ.get(jit.VARIABLE)
    choice = choices.get(key)
    if choice is None:
        choices[key] = choice = _first(step, widths, asked), step.compiled
    engine, step.compiled = choice
    return engine


def stream(
    xp: Namespace, cell: Cell, w: Params, masks: Masks, x: Array, choices: dict[Any, Any]
) -> Stream:
    """Return the function that runs single steps of a layer, from `Engine.stream`.

    Parameters are those of `Step`, x (B, D), and `choices`, which is as in `choose`.
    """
    asked = _asked.get()
    key = x.dtype, asked, os.environ.get(jit.VARIABLE)
    run: Stream | None = choices.get(key) if xp is np else None
    if run is None:
        step = Step(xp, cell, w, masks)
        run = _first(step, [(1, x.shape[0])], asked).stream(step)
        if xp is np:
            choices[key] = run
    return run


def _first(step: Step, widths: Widths, asked: str | None) -> Engine:
    for engine in ENGINES:
        if asked in (None, engine.name):
            reason = engine.refuses(step, widths)
            if not reason:
                return engine
            if asked:
                raise ValueError(f"engine {asked}: {reason}")
    raise AssertionError("the reference engine refuses nothing")


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
