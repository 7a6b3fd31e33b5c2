"""Callbacks: stop early, average weights, clip gradients, log, or run code of your own during
training.

Write your own as a subclass of `Callback`, or as a function of a `Progress`, which `train` calls
after every step.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlstm import checkpoint
from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Params
from xlstm.training import optimizers
from xlstm.training.schedules import schedule

EVERY = 30.0  # seconds between two lines about training if there is no terminal
SHORT = 1.0  # seconds of training before a bar appears that nobody asked for
PROGRESS = checks.word_or(
    "auto",
    checks.optional(
        checks.accepted(
            lambda value: callable(value) or isinstance(value, bool | np.bool_),
            "True, False, 'auto' or a function",
        )
    ),
)


@dataclass(frozen=True)
class Progress:
    """The state of a training run that callbacks see. Epochs and steps count from 1.

    Attributes
    ----------
    epoch, epochs : int
    step, steps : int
        The current batch of this epoch, and the number of batches of an epoch.
    loss : float
        The loss of the last batch.
    validation : float or None
        The last validation loss, or None before the first.
    best : float or None
        The lowest validation loss so far.
    seconds : float
        Seconds since training began.
    best_epoch : int
        The epoch with the lowest validation loss.
    norm : float
        The global norm of the last batch's gradients.
    total : int
        Batches so far, in all epochs.
    params : dict of str to array
        The weights that validation uses: with `MovingAverage` the average.
    metrics : dict of str to float
        The last metrics of the validation data, by name.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    validation: float | None
    best: float | None
    seconds: float
    best_epoch: int = 0
    norm: float = math.nan
    total: int = 0
    params: Params = field(default_factory=dict, repr=False)
    metrics: dict[str, float] = field(default_factory=dict)


class Callback:
    """The base class of callbacks. Training calls its methods, and the methods here change nothing.

    If a callback remembers something, return it from `state`: a resumed run then continues as if it
    had not been interrupted.

    With a group, a callback runs on every rank. If its `everywhere` is False, it runs on rank 0
    alone and must change neither gradients nor weights.

    Attributes
    ----------
    needs_validation : bool
        Whether the callback needs validation data; without them `train` raises an error.
    everywhere : bool
        Whether it runs on all ranks of a group; if False, on rank 0 alone.

    Examples
    --------
    >>> class StopBelow(Callback):
    ...     def __init__(self, loss):
    ...         self.loss = loss
    ...
    ...     def step(self, now):
    ...         return now.loss < self.loss
    >>> callbacks = [StopBelow(0.01), Clip(norm=1.0), EarlyStopping(3)]  # for `train`
    """

    needs_validation = False
    everywhere = True  # False: on rank 0 of a group alone

    def begin(self, params: Params) -> None:
        """Prepare for a new run and forget an earlier one; `params` are the starting weights."""

    def gradients(self, grads: Params, norm: Array) -> Params:
        """Return the gradients for the update; `norm` is their global norm, a 0-d array."""
        return grads

    def weights(self, params: Params, updates: int) -> Params:
        """Return the weights that are validated and returned, after update number `updates`, from
        1.
        """
        return params

    def step(self, now: Progress) -> bool | None:
        """Return True to stop after this step; such a run can be resumed."""
        return None

    def epoch(self, now: Progress) -> bool | None:
        """Return True to end training after this epoch and its validation."""
        return None

    def end(self) -> None:
        """Close whatever `begin` or `step` opened; training has ended, normally or by an error."""

    def state(self) -> dict[str, Any]:
        """Return everything that the callback remembers: JSON values, and dicts of arrays."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned in an earlier process; arrays are on the device of the
        weights.
        """


def has(callback: Callback, *names: str) -> bool:
    """Return whether a callback overrides one of these methods."""
    return any(getattr(type(callback), name) is not getattr(Callback, name) for name in names)


@dataclass(frozen=True)
class Each(Callback):
    """A callback that calls a function of a `Progress` after every step and stops if it returns
    True.
    """

    function: Callable[[Progress], bool | None]

    everywhere = False

    def step(self, now: Progress) -> bool | None:
        return self.function(now)


@dataclass(frozen=True)
class Clip(Callback):
    """A callback that limits the global norm of the gradients (Pascanu et al. 2013), or each of
    their values.

    On CuPy it changes gradients in-place.

    Parameters
    ----------
    norm : float, optional
        Largest global norm of all gradients together.
    value : float, optional
        Largest absolute value of an element.

    Raises
    ------
    ValueError, TypeError
        A limit is not above 0, or there is none.
    """

    norm: float | None = None
    value: float | None = None

    def __post_init__(self) -> None:
        limit = checks.optional(checks.above_0)
        checks.fields(self, norm=limit, value=limit)
        if self.norm is None and self.value is None:
            raise ValueError("Clip: norm and value are None, expected a limit")

    def gradients(self, grads: Params, norm: Array) -> Params:
        if self.value is not None:
            grads = optimizers.clip_value(grads, self.value)
            norm = optimizers.global_norm(grads)
        if self.norm is not None:
            grads = optimizers.clip_global_norm(grads, self.norm, norm, in_place=True)
        return grads


@dataclass(frozen=True)
class EarlyStopping(Callback):
    """A callback that ends training when the validation loss has not improved for `patience`
    epochs.

    Parameters
    ----------
    patience : int

    Raises
    ------
    ValueError, TypeError
        `patience` is not a whole number from 1 up.
    """

    patience: int

    needs_validation = True

    def __post_init__(self) -> None:
        checks.fields(self, patience=checks.count)

    def epoch(self, now: Progress) -> bool | None:
        return now.epoch - now.best_epoch >= self.patience


@dataclass(eq=False)
class MovingAverage(Callback):
    """An exponential moving average of the weights, which training validates and returns (Polyak &
    Juditsky 1992).

    The average is less noisy than the weights of a single step. At first it is the plain mean of
    all steps.

    Parameters
    ----------
    decay : float
        Share of the average that each step keeps: from 0, for the weights themselves, to less than
        1.

    Attributes
    ----------
    mean : dict of str to array
        The average so far.

    Raises
    ------
    ValueError, TypeError
        `decay` is out of range.
    """

    decay: float
    mean: Params = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.fields(self, decay=checks.rate)

    def begin(self, params: Params) -> None:
        self.mean = params

    def weights(self, params: Params, updates: int) -> Params:
        decay = min(self.decay, 1 - 1 / updates)
        if decay:
            params = {name: decay * self.mean[name] + (1 - decay) * p for name, p in params.items()}
        self.mean = params
        return params

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def restore(self, state: dict[str, Any]) -> None:
        checkpoint.check_alike("mean", state["mean"], self.mean)
        self.mean = state["mean"]


@dataclass(eq=False)
class ReduceOnPlateau(Callback):
    """A learning rate that shrinks when the validation loss stops improving.

    It is both a schedule and a callback, so give it twice: after `plateau = ReduceOnPlateau(1e-3)`,
    pass `optim.adam(plateau)` and `train(..., callbacks=[plateau])`. If one is missing, the first
    epoch raises ValueError.

    It follows `torch.optim.lr_scheduler.ReduceLROnPlateau`. In a loop of your own, call its `begin`
    and `epoch`.

    Parameters
    ----------
    lr : float or Schedule
        The learning rate to shrink.
    factor : float
        Factor that multiplies the rate after each plateau.
    patience : int
        Epochs without improvement that are allowed; the rate shrinks after one more.
    threshold : float
        Relative improvement that counts: a loss is better if it is below `best * (1 - threshold)`.
    floor : float
        Smallest total factor: the rate never falls below `floor` times `lr`.

    Raises
    ------
    ValueError, TypeError
        An argument is out of range.
    """

    lr: Any  # a number becomes a schedule
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    floor: float = 0.0

    needs_validation = True

    def __post_init__(self) -> None:
        checks.fields(
            self,
            lr=schedule,
            patience=checks.size_or_0,
            factor=checks.real(0, 1, strict=True),
            threshold=checks.rate,
            floor=checks.rate,
        )
        self.begin({})
        self.is_rate = False  # becomes True when an optimiser asks for the rate

    def __call__(self, step: int) -> float:
        """Return the learning rate after `step` updates."""
        if step and not self.is_callback:
            raise ValueError(
                "ReduceOnPlateau: it is a learning rate, expected it in callbacks of train, too"
            )
        self.is_rate = True
        return float(self.scale * self.lr(step))

    def begin(self, params: Params) -> None:
        self.scale = 1.0
        self.best = math.inf
        self.bad = 0
        self.is_callback = bool(params)

    def epoch(self, now: Progress) -> None:
        assert now.validation is not None
        if not self.is_rate:
            raise ValueError(
                "ReduceOnPlateau: it is in callbacks, expected it as the learning rate of the"
                " optimizer, too, such as optim.adam(plateau)"
            )
        if now.validation < self.best * (1 - self.threshold):
            self.best = now.validation
            self.bad = 0
        else:
            self.bad += 1
        if self.bad > self.patience:
            self.scale = max(self.scale * self.factor, self.floor)
            self.bad = 0

    def state(self) -> dict[str, Any]:
        return {"scale": self.scale, "best": self.best, "bad": self.bad}

    def restore(self, state: dict[str, Any]) -> None:
        where = "ReduceOnPlateau"
        self.scale = checks.non_negative(where, "scale", state["scale"])
        self.best = checks.any_number(where, "best", state["best"])
        self.bad = checks.size_or_0(where, "bad", state["bad"])


class ProgressBar(Callback):
    """A callback that shows progress: a bar on a terminal or in a notebook, elsewhere a line every
    half minute.

    `train(progress=True)` makes one. It needs the package rich. Between `begin` and `end`, one bar
    can follow the steps of several runs.

    Parameters
    ----------
    console : rich.console.Console, optional
        The console that shows the bar; by default standard error.

    Raises
    ------
    TypeError
        `console` is not a console of rich.
    """

    everywhere = False

    def __init__(self, console: Any = None) -> None:
        is_console = checks.having(
            "is_terminal", "is_jupyter", "print", expected="a rich.console.Console"
        )
        self.console = checks.optional(is_console)("ProgressBar", "console", console)
        self._bar: Any = None

    def begin(self, params: Params) -> None:
        """Make the bar, which appears with the first step; raise ImportError if rich is not
        installed.
        """
        try:
            from rich import console, progress
        except ImportError as error:
            raise ImportError("ProgressBar: rich is not installed; pip install rich") from error

        self._bar = progress.Progress(
            progress.BarColumn(16),
            progress.TextColumn("{task.description}"),
            progress.TimeRemainingColumn(),
            console=self.console or console.Console(stderr=True),
        )
        self._bar.add_task("", total=None)
        self._due = time.monotonic() + EVERY

    def step(self, now: Progress) -> None:
        losses = {"loss": now.loss, "validation": now.validation, **now.metrics}
        words = f"epoch {now.epoch}/{now.epochs}" + "".join(
            f"  {name} {value:.4f}" for name, value in losses.items() if value is not None
        )
        if self._bar.console.is_terminal or self._bar.console.is_jupyter:
            # Training may stop early, so the time shown is the longest that can be left.
            self._bar.update(
                self._bar.task_ids[0],
                description=f"{words}  left",
                total=now.epochs * now.steps,
                completed=(now.epoch - 1) * now.steps + now.step,
            )
            self._bar.start()
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY
            with contextlib.suppress(OSError):  # nobody reads any more
                self._bar.console.print(f"{words}, step {now.step}/{now.steps}")

    def end(self) -> None:
        if self._bar is not None and self._bar.live.is_started:  # twice: an empty line
            self._bar.stop()
        self._bar = None


class LateBar(ProgressBar):
    """A progress bar that appears once training has taken longer than `SHORT`."""

    def step(self, now: Progress) -> None:
        if now.seconds > SHORT:
            super().step(now)


def on_terminal() -> bool:
    """Return whether a bar can be seen: rich is installed, standard error is a terminal, and no
    other thread or worker process shares it.
    """
    from multiprocessing import parent_process  # it would make the import of xlstm slower

    there = getattr(sys.stderr, "closed", None) is False and sys.stderr.isatty()
    alone = threading.current_thread() is threading.main_thread() and parent_process() is None
    return there and alone and importlib.util.find_spec("rich") is not None


class TensorBoard(Callback):
    """A callback that writes loss, gradient norm and validation loss for TensorBoard.

    It needs the package tensorboard: `pip install tensorboard`.

    Parameters
    ----------
    folder : path
        The folder for this run's files. TensorBoard reads a parent folder and names each run by its
        folder.
    every : int
        Batches between two entries.

    Raises
    ------
    TypeError, ValueError
        `folder` is not a path, or `every` is not a whole number from 1 up.
    """

    everywhere = False

    def __init__(self, folder: str | os.PathLike[str], every: int = 1) -> None:
        self.folder = checks.path("TensorBoard", "folder", folder)
        self.every = checks.count("TensorBoard", "every", every)
        self._writer: Any = None

    def begin(self, params: Params) -> None:
        """Open the files; raise ImportError if the package is not installed."""
        try:
            from tensorboard.summary import Writer
        except ModuleNotFoundError as error:
            raise ImportError(
                "TensorBoard: pip install tensorboard, whose package writes its files"
            ) from error
        self._writer = Writer(str(self.folder))

    def step(self, now: Progress) -> None:
        if now.total % self.every == 0:
            self._writer.add_scalar("loss", now.loss, now.total)
            self._writer.add_scalar("gradient norm", now.norm, now.total)

    def epoch(self, now: Progress) -> None:
        if now.validation is not None:
            self._writer.add_scalar("validation loss", now.validation, now.total)
        for name, value in now.metrics.items():
            self._writer.add_scalar(f"validation {name}", value, now.total)
        self._writer.flush()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open files, for copies and pickles."""
        return {**vars(self), "_writer": None}
