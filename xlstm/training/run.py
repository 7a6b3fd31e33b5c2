"""A run of training, from its first step or from a checkpoint to its end."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import together
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import Seed, generator
from xlstm.data.batches import Batches
from xlstm.training import signals, snapshot, trees
from xlstm.training.callbacks import Progress, has
from xlstm.training.evaluation import mean_loss
from xlstm.training.feed import Inputs
from xlstm.training.folder import Folder, find
from xlstm.training.history import History
from xlstm.training.snapshot import finite
from xlstm.training.step import Step, StepState, Taken

log = logging.getLogger("xlstm.training")


@dataclass(frozen=True)
class Trained:
    """The result of training: the best weights and how it went.

    Attributes
    ----------
    params : dict of str to array
        The best weights.
    losses : list of float
        One a step.
    validations : list of float
        One an epoch.
    best_epoch : int
    stopped_early : bool
    seconds : float
    skipped : int
        Steps left out because gradients overflowed in a lower precision.
    unsaved : str
        Which files could not be written to the folder of the run, and why; empty where all could.
    """

    params: Params = field(repr=False)
    losses: list[float] = field(repr=False)
    validations: list[float] = field(repr=False)
    best_epoch: int
    stopped_early: bool
    seconds: float
    skipped: int = 0
    unsaved: str = ""


class Run:
    """A run of training, from its first step or from a checkpoint to its end."""

    def __init__(
        self,
        step: Step,
        data: Batches,
        validation: Batches | None,
        epochs: int,
        steps: int,
        every: int | None,
    ) -> None:
        self.step, self.data, self.validation = step, data, validation
        self.epochs, self.steps, self.every = epochs, steps, every
        self.callbacks = list(step.callbacks)
        # Whether a callback looks at the weights after each step.
        self.watched = any(has(callback, "step", "weights") for callback in self.callbacks)
        self.folder: Folder | None = None
        self.history: History | None = None
        self.losses: list[float] = []
        self.validations: list[float] = []
        self.epoch, self.done = 1, 0  # the epoch that is under way, and its batches done
        self.best_epoch, self.skipped = 0, 0
        self.ended = False  # by a callback, after an epoch
        self.norm = math.nan
        self.start = time.perf_counter()
        self.saved_at: Any = None  # where training stood at the last attempt to save it
        self.lowest = math.inf  # validation loss

    def begin(self, params: Params, seed: Seed) -> None:
        """Set the state before the first step."""
        self.state: StepState = self.step.init(params, seed)
        self.seed = int(seed) if isinstance(seed, Integral) else type(seed).__name__
        self.order = generator(seed, stream=1, where="train")  # stream 0 drew the weights
        self.order_before: Any = None  # its state when the epoch began
        self.best = self.judged = params
        for callback in self.callbacks:
            callback.begin(params)
        most = min(self.epochs * len(self.data), self.steps)
        if self.step.accumulate > most:
            raise ValueError(f"train: accumulate is {self.step.accumulate}, but there are {most} batches in all")

    def keep_in(self, folder: Folder) -> None:
        """Keep checkpoints and the history in a folder."""
        for callback in self.callbacks:  # what cannot be saved is refused before any work
            trees.pack({f"the state of {type(callback).__name__}": callback.state()})
        self.folder, self.history = folder, History(folder.path)
        self.folder.begin()

    def close(self) -> None:
        """Let others have the folder."""
        if self.folder is not None:
            self.folder.close()

    def resume(self, given: bool | Path) -> None:
        """Go on from a checkpoint, where that is asked for and there is one."""
        found = None
        if isinstance(given, Path):
            found = find(given)
        elif given and self.folder is not None:
            found = self.folder.newest()
        if self.folder is not None:
            self.folder.check(found)
        if found is not None:
            snapshot.restore(self, found)
            if self.ended:
                log.info(f"train: {found.path} is the end of a run that a callback ended; it does not go on")
        if self.folder is not None and self.history is not None:
            self.folder.clean()
            self.history.begin(self.total, len(self.validations))

    @property
    def total(self) -> int:
        """Batches of all epochs so far."""
        return len(self.losses)

    def train(self) -> Trained:
        """Train until the end, or until a signal or a callback stops it."""
        with signals.deferred() as received:
            try:
                # A run that was stopped after its last step has that epoch's validation before it.
                while self.epoch <= self.epochs and (self.total < self.steps or self.done) and not self.ended:
                    if self._epoch(received):
                        break
                self._save()
            except Exception:  # the state before the step that failed is sound
                with contextlib.suppress(Exception):
                    self._save()
                raise
            finally:
                if self.history is not None:
                    self.history.flush()
        if received.number is None:
            return self._result()
        message = self._farewell(received.number)
        log.warning(message)
        raise signals.error(message, self._result(), received.number)

    def _epoch(self, received: signals.Received) -> bool:
        """Train for the rest of an epoch; return whether training is to stop within it."""
        where, stop = f"train: epoch {self.epoch}", False
        if self.done == 0:
            self.order_before = self.order.bit_generator.state
            self.state = self.state._replace(carried=None)
        rest: Iterable[Inputs] = ()
        if self.total < self.steps:
            rest = self.state.feed.batches(self.data, where, ", step", self.order, self.done)
        for inputs in rest:
            self.state, taken = self.step(self.state, inputs, f"{where}, step {self.done + 1}")
            self._count(taken)
            if self.callbacks:
                now = self._progress()
                answers = [callback.step(now) for callback in self.callbacks]  # all of them are asked
                stop = any(map(_says, answers))
            if stop or received.number is not None:
                return True
            if self.total == self.steps:
                break
            if self.every is not None and self.total % self.every == 0:
                self._save()
        improved = False
        if not self.watched:
            self.judged = self._copied(self.judged)
        if self.validation is None:
            self.best_epoch = self.epoch
        else:
            improved = self._validate(self.validation, where, received)
            if received.number is not None:
                return True
        now = self._progress()
        answers = [callback.epoch(now) for callback in self.callbacks]
        self.ended = any(map(_says, answers))
        self.epoch, self.done = self.epoch + 1, 0
        if improved or self.every is None:
            self._save(improved)
        return False

    def _count(self, taken: Taken) -> None:
        """Note a step, and let callbacks see the new weights."""
        self.losses.append(taken.loss)
        self.norm, self.done = taken.norm, self.done + 1
        self.skipped += not math.isfinite(taken.norm)
        if taken.updated:
            self.judged = self.state.params
            if self.watched:
                self.judged = self._copied(self.judged)
            for callback in self.callbacks:
                self.judged = callback.weights(self.judged, self.state.updates)
        if self.history is not None:
            self.history.add(
                total=self.total, epoch=self.epoch, loss=taken.loss, norm=finite(taken.norm), seconds=self.seconds
            )

    def _copied(self, params: Params) -> Params:
        """Return weights that the next step leaves alone, which it changes where steps are captured."""
        if self.state.graphs is None:
            return params
        arrays = together.copies(self.state.feed.home.xp, list(params.values()))
        return dict(zip(params, arrays, strict=True))

    def _validate(self, data: Batches, where: str, received: signals.Received) -> bool:
        """Judge the weights; return whether they are the best so far. A signal ends it at once, without a result."""
        found = mean_loss(self.step.model, self.judged, data, self.step.loss, lambda: received.number is not None)
        if received.number is not None:
            return False
        if not math.isfinite(found):
            raise FloatingPointError(f"{where}: the validation loss is {found:g}")
        improved = found < self.lowest
        if improved:
            self.best, self.best_epoch, self.lowest = self.judged, self.epoch, found
        self.validations.append(found)
        if self.history is not None:
            self.history.add(total=self.total, epoch=self.epoch, validation=found, seconds=self.seconds)
        return improved

    def _progress(self) -> Progress:
        return Progress(
            self.epoch,
            min(self.epochs, -(-self.steps // max(1, len(self.data)))),
            self.done,
            len(self.data),
            self.losses[-1],
            self.validations[-1] if self.validations else None,
            self.lowest if self.validations else None,
            self.seconds,
            self.best_epoch,
            self.norm,
            self.total,
            self.judged,
        )

    @property
    def seconds(self) -> float:
        """Seconds since the run began, with those before a checkpoint."""
        return time.perf_counter() - self.start

    def _result(self) -> Trained:
        missing = "" if self.folder is None else self.folder.missing(self.total)
        if self.history is not None and self.history.problem:
            missing += f"{'; ' * bool(missing)}the history is not on disk ({self.history.problem})"
        if missing:
            warnings.warn(f"train: {missing}", RuntimeWarning, stacklevel=4)
        return Trained(
            self.best if self.validations else self.judged,
            self.losses,
            self.validations,
            self.best_epoch,
            self.epoch <= self.epochs and self.total < self.steps,
            self.seconds,
            self.skipped,
            missing,
        )

    @functools.cached_property
    def first_batches(self) -> dict[str, str | None]:
        """The numbers that tell data apart."""
        given = {"first batch": self.data, "first batch of validation": self.validation}
        return {name: snapshot.first_batch(data) for name, data in given.items()}

    def _save(self, improved: bool = False) -> None:
        """Write a checkpoint, where there is a folder and it does not have this one."""
        at = (self.epoch, self.done, self.ended)
        if self.folder is None or (at == self.saved_at and not self.folder.problem):
            return
        self.saved_at = at
        self.history.flush()  # type: ignore[union-attr]
        self.folder.save(self.total, snapshot.about(self), snapshot.tree(self), improved, bool(self.validations))

    def _farewell(self, number: int) -> str:
        """Return how a run that a signal stopped can go on."""
        at = f"epoch {self.epoch}, step {self.done}" if self.done else f"epoch {self.epoch - 1}"
        if self.folder is None:
            return f"train: stopped after {at} by signal {number}; it keeps no checkpoints"
        if missing := self.folder.missing(self.total):
            return f"train: stopped after {at} by signal {number}; {missing}"
        return f"train: stopped after {at} by signal {number}; resume=True goes on from {self.folder.path}"


def _says(answer: object) -> bool:
    """Tell whether a callback says that training is to stop: by True, or NumPy's."""
    return isinstance(answer, bool | np.bool_) and bool(answer)
