"""The protocol of an engine, and the choice of the engine that runs a recurrence.

This file separates layers from engines. Code above it does not ask which library, device or
compiler there is. Code below it does not know of layers, stacks or directions.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from xlstm.arrays import checks, compiled
from xlstm.arrays.namespace import Array, Namespace, Params, library
from xlstm.cells.cell import Cell
from xlstm.core.places import imported
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Masks, Step, Stream
from xlstm.engines.tape import Gradients, Tape, Widths

__all__ = ["Engine", "use"]


class Engine(Protocol):
    """The base class of engines; an engine runs a recurrent layer in one direction over a packed
    batch.

    To add an engine, derive a class from this one and put an instance into `ENGINES`. Write
    `refuses`, `forward` and `backward`. A single step, as for streaming, is by default a pass of
    one step.

    Attributes
    ----------
    name : str
        The name by which you ask for the engine with `use`.
    """

    name: str

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return why the engine cannot run a step over a batch of these widths, or "" if it can.

        A layer keeps the answer for NumPy arrays, so there it must not depend on the widths.

        Parameters
        ----------
        step : Step
            The cell, its weights, and the options around it.
        widths : list of (steps, width)
            The segments of the batch.

        Returns
        -------
        str
        """

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Tape | None]:
        """Run all steps.

        Parameters
        ----------
        step : Step
            The cell, its weights, and the options around it.
        x : array (N, D)
            The input as packed rows: all sequences at the first step, then all at the second, and
            so on.
        state : arrays (P, B), (H, B), ...
            The states before the first step; sequences without any step come last.
        widths : list of (steps, width)
            The segments of the batch.
        keep : {"nothing", "states", "all"}
            The values that the tape keeps. With "states", the other values are computed again when
            they are needed.

        Returns
        -------
        y : array (N, P)
            The hidden state h after every step.
        state : list of arrays as `state`
            The states of each sequence at its own end. With "nothing", these are new arrays.
        tape : Tape or None
            The kept values; None only with "nothing".
        """

    def stream(self, step: Step) -> Stream:
        """Return a function that runs single steps and keeps nothing.

        Parameters
        ----------
        step : Step
            The first of the steps. Later steps have arrays of the same shapes and dtypes; only the
            number B of sequences may differ.

        Returns
        -------
        stream : function (w, x, state) -> (y, state)
            `w` has the weights of a step by their last names. x is (B, D), and the states before
            and after the step are arrays (B, P), (B, H), ... y is h after the step. y may be the
            first array of the state itself; all other results are new arrays.
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
        """Compute the gradients of all steps.

        Parameters
        ----------
        tape : Tape
            The result of `forward`.
        dy : array (N, P) or None
            The upstream gradient of y; None means 0.
        dstate : arrays (P, B), (H, B), ...
            The upstream gradients of the final states.

        Returns
        -------
        gradients : Gradients
            The gradients at every step.
        dstate : list of arrays as `dstate`
            The gradients with respect to the initial states.
        """


class Registered(NamedTuple):
    """An engine for the arrays of one library, which is imported when such arrays first come.

    Attributes
    ----------
    name : str
        The name of the engine.
    arrays : str
        The library, as error messages name it.
    place : str
        The module of the engine and its name there, "module:name".
    """

    name: str
    arrays: str
    place: str

    @property
    def engine(self) -> Any:
        """The engine itself."""
        return _imported(self.place)

    def refuses(self, step: Any, *given: Any) -> str:
        """Return why the engine cannot run a step, or ""; see `Engine`."""
        if library(step.xp) != self.arrays.lower():
            return f"it runs arrays of {self.arrays}"
        reason: str = self.engine.refuses(step, *given)
        return reason


_imported = functools.cache(imported)


# The fastest first. An engine for arrays of any library is in the list itself.
ENGINES: list[Engine | Registered] = [
    Registered("cuda", "CuPy", "xlstm.engines.cuda.cuda_engine:CUDA"),
    Registered("numba", "NumPy", "xlstm.engines.numba.numba_engine:NUMBA"),
    ARRAY_API,
]
_asked: contextvars.ContextVar[str | None] = contextvars.ContextVar("engine", default=None)


def choose(step: Step, widths: Widths, choices: dict[Any, Any]) -> Engine:
    """Return the engine that `use` asks for, or the first one that does not refuse.

    Parameters
    ----------
    step : Step
    widths : list of (steps, width)
    choices : dict
        A cache for NumPy arrays, which this function fills with chosen engines and their compiled
        steps. All calls with the same dict must have the same cell, names of weights and shapes.

    Raises
    ------
    ValueError
        The engine that `use` asks for refuses.
    """
    asked = _asked.get()
    if step.xp is not np:
        elsewhere: Engine = first(ENGINES, asked, step, widths)
        return elsewhere
    key = step.Wh.dtype, step.bare, asked, os.environ.get(compiled.VARIABLE)
    choice = choices.get(key)
    if choice is None:
        choices[key] = choice = first(ENGINES, asked, step, widths), step.compiled
    engine: Engine
    engine, step.compiled = choice
    return engine


def stream(
    xp: Namespace, cell: Cell, w: Params, masks: Masks, x: Array, choices: dict[Any, Any]
) -> Stream:
    """Return the function that runs single steps of a layer, from `Engine.stream`.

    Parameters are those of `Step`, then x (B, D), and `choices` as in `choose`.
    """
    asked = _asked.get()
    key = x.dtype, asked, os.environ.get(compiled.VARIABLE)
    run: Stream | None = choices.get(key) if xp is np else None
    if run is None:
        step = Step(xp, cell, w, masks)
        run = first(ENGINES, asked, step, [(1, x.shape[0])]).stream(step)
        if xp is np:
            choices[key] = run
    return run


def first(engines: Sequence[Any], asked: str | None, step: Any, *given: Any) -> Any:
    """Return the engine of a name, or without one the first of a table that does not refuse.

    The step and what is `given` beside it are the arguments of `refuses`.

    Raises
    ------
    ValueError
        The engine that is asked for refuses.
    """
    for entry in engines:
        if asked in (None, entry.name):
            reason = entry.refuses(step, *given)
            if not reason:
                return entry.engine if isinstance(entry, Registered) else entry
            if asked:
                raise ValueError(f"engine {asked}: {reason}")
    raise AssertionError("the reference engine refuses nothing")


def asked() -> str | None:
    """Return the name of the engine that `use` asks for, or None."""
    return _asked.get()


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Run every recurrence in this context with the engine of this name.

    If the engine cannot run a recurrence, the layer raises a ValueError with the reason.

    Parameters
    ----------
    name : str
        The name of an engine in `ENGINES`: "cuda", "numba" or "array_api".

    Returns
    -------
    context manager

    Raises
    ------
    ValueError
        No engine has that name.

    Examples
    --------
    >>> import numpy as np
    >>> import xlstm
    >>> from xlstm.engines import engine
    >>> lstm = xlstm.LSTM(3, 8)
    >>> params = lstm.init(backend="numpy")
    >>> with engine.use("array_api"):
    ...     y, state = lstm(params, np.ones((5, 2, 3), "float32"))
    >>> y.shape
    (5, 2, 8)
    """
    checks.choice([engine.name for engine in ENGINES])("engines.use", "name", name)
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)
