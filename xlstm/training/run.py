"""A run of training, from its first step or from a checkpoint to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import re
import signal
import time
import warnings
import zlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from xlstm import checkpoint
from xlstm.arrays import checks, foreach
from xlstm.arrays.backend import backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import Seed, generator
from xlstm.data.batches import Batches
from xlstm.precision import Scaling
from xlstm.training.callbacks import Callback, Progress, has
from xlstm.training.feed import Inputs, evaluate
from xlstm.training.folder import Checkpoint, Folder, find
from xlstm.training.optimizers import OptimState
from xlstm.training.steps import Step, StepState, Taken
from xlstm.training.stop_signals import Interrupted, Terminated, deferred

ARRAYS = ("params", "carried", "sums")  # of the state of a step, as a checkpoint has them
COUNTS = ("weight", "batches", "updates")  # of the state of a step
PLACES = ("epoch", "done", "best_epoch", "skipped", "ended")  # where a run is
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


@dataclass(eq=False)
class Run:
    """A run of training, from its first step or from a checkpoint to its end."""

    step: Step
    data: Batches
    validation: Batches | None
    epochs: int
    steps: int
    every: int | None
    folder: Folder
    epoch: int = 1  # that is under way
    done: int = 0  # its batches done
    best_epoch: int = 0
    skipped: int = 0
    ended: bool = False  # by a callback, after an epoch
    norm: float = math.nan
    losses: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)  # earlier by the seconds before a checkpoint

    def __post_init__(self) -> None:
        self.callbacks = list(self.step.callbacks)
        self.watched = any(has(callback, "step", "weights") for callback in self.callbacks)  # the weights of each step
        self.remembering = [callback for callback in self.callbacks if has(callback, "state")]

    @property
    def total(self) -> int:
        """Batches of all epochs so far."""
        return len(self.losses)

    @property
    def lowest(self) -> float:
        """The lowest validation loss."""
        return min(self.validations, default=math.inf)

    @property
    def seconds(self) -> float:
        """Seconds since the run began, with those before a checkpoint."""
        return time.perf_counter() - self.start

    def begin(self, params: Params, seed: Seed) -> None:
        """Set the state before the first step, and make the folder."""
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
        if self.folder.path is not None:
            checks.seed_number("train", "seed", seed)
            for callback in self.callbacks:  # what cannot be saved is refused before any work
                checkpoint.pack({f"the state of {type(callback).__name__}": callback.state()})
        self.folder.begin()

    def resume(self, resume: bool | Path) -> None:
        """Go on from a checkpoint, where that is asked for and there is one."""
        origin = find(resume) if isinstance(resume, Path) else self.folder.newest() if resume else None
        self.folder.check(origin)
        if origin is not None:
            _restore(self, origin)
            if self.ended:
                log.info(f"train: {origin.path} is the end of a run that a callback ended; it does not go on")
        self.folder.rewind(self.total, self.epoch)

    def train(self) -> Trained:
        """Train until the end, or until a signal or a callback stops it."""
        with deferred() as received:
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
                self.folder.flush()
        trained = self._result()
        if not received:
            return trained
        at = f"epoch {self.epoch}, step {self.done}" if self.done else f"epoch {self.epoch - 1}"
        how = "it keeps no checkpoints" if self.folder.path is None else f"resume=True goes on from {self.folder.path}"
        message = f"train: stopped after {at} by signal {received[0]}; {trained.unsaved or how}"
        log.warning(message)
        raise (Interrupted if received[0] == signal.SIGINT else Terminated)(message, trained, received[0])

    def _epoch(self, received: list[int]) -> bool:
        """Train for the rest of an epoch; return whether training is to stop within it."""
        where = f"train: epoch {self.epoch}"
        if self.done == 0:
            self.order_before = self.order.bit_generator.state
            self.state = self.state._replace(carried=None)
        rest: Iterable[Inputs] = ()
        if self.total < self.steps:
            rest = self.state.feed.batches(self.data, where, ", step", self.order, self.done)
        for inputs in rest:
            self.state, taken = self.step(self.state, inputs, f"{where}, step {self.done + 1}")
            self._count(taken)
            if self._asks("step") or received:
                return True
            if self.total == self.steps:
                break
            if self.every is not None and self.total % self.every == 0:
                self._save()
        if not self.watched:
            self.judged = self._copied(self.judged)
        improved = self.validation is not None and self._validate(self.validation, where, received)
        if received:
            return True
        if self.validation is None:
            self.best_epoch = self.epoch
        self.ended = self._asks("epoch")
        self.epoch, self.done = self.epoch + 1, 0
        if improved or self.every is None:
            self._save()
        return False

    def _count(self, taken: Taken) -> None:
        """Note a step, and let callbacks see the new weights."""
        self.losses.append(taken.loss)
        self.norm, self.done = taken.norm, self.done + 1
        self.skipped += not math.isfinite(taken.norm)
        if taken.updated:
            self.judged = self._copied(self.state.params) if self.watched else self.state.params
            for callback in self.callbacks:
                self.judged = callback.weights(self.judged, self.state.updates)
        self.folder.log(total=self.total, epoch=self.epoch, loss=taken.loss, norm=taken.norm, seconds=self.seconds)

    def _copied(self, params: Params) -> Params:
        """Return weights that the next step leaves alone, which it changes where steps are captured."""
        if self.state.graphs is None:
            return params
        arrays = foreach.copies(self.state.feed.home.xp, list(params.values()))
        return dict(zip(params, arrays, strict=True))

    def _validate(self, data: Batches, where: str, received: list[int]) -> bool:
        """Judge the weights; return whether they are the best so far. A signal ends it at once, without a result."""
        loss = evaluate(self.step.model, self.judged, data, self.step.loss, stopped=lambda: bool(received))
        if received:
            return False
        if not math.isfinite(loss):
            raise FloatingPointError(f"{where}: the validation loss is {loss:g}")
        improved = loss < self.lowest
        if improved:
            self.best, self.best_epoch = self.judged, self.epoch
        self.validations.append(loss)
        self.folder.log(total=self.total, epoch=self.epoch, validation=loss, seconds=self.seconds)
        return improved

    def _asks(self, event: str) -> bool:
        """Tell all callbacks of the end of a step or epoch; return whether one says, by True or NumPy's, to stop."""
        if not self.callbacks:
            return False
        epochs = min(self.epochs, -(-self.steps // max(1, len(self.data))))
        place = (self.epoch, epochs, self.done, len(self.data))
        validation, best = (self.validations[-1], self.lowest) if self.validations else (None, None)
        losses = (self.losses[-1], validation, best)
        now = Progress(*place, *losses, self.seconds, self.best_epoch, self.norm, self.total, self.judged)
        answers = [getattr(callback, event)(now) for callback in self.callbacks]
        return any(isinstance(answer, bool | np.bool_) and answer for answer in answers)

    def _result(self) -> Trained:
        unsaved = self.folder.missing(self.total)
        if unsaved:
            warnings.warn(f"train: {unsaved}", RuntimeWarning, stacklevel=4)
        best = self.best if self.validations else self.judged
        stopped = self.epoch <= self.epochs and self.total < self.steps
        how = (self.best_epoch, stopped, self.seconds, self.skipped, unsaved)
        return Trained(best, self.losses, self.validations, *how)

    def _save(self) -> None:
        """Write a checkpoint, where there is a folder and it does not have this one."""
        if self.folder.path is None:
            return
        state = self.state
        about = {
            **self.settings,
            **{name: getattr(self, name) for name in (*PLACES, "total", "seconds")},
            **{name: getattr(state, name) for name in COUNTS},
            **state.scaling._asdict(),
        }
        tree = {
            **{name: getattr(state, name) for name in ARRAYS},
            "slots": state.moments.slots,
            "masks": None if state.masks is None else state.masks.bit_generator.state,
            "order": self.order_before if self.done else self.order.bit_generator.state,
            "best": self.best,
            "judged": self.judged,
            "losses": np.array(self.losses),
            "validations": np.array(self.validations),
            "callbacks": [callback.state() for callback in self.remembering],
        }
        self.folder.save(about, tree, bool(self.validations))

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run, but the arrays; a run that goes on has to share them."""
        step, data = self.step, {"first batch": self.data, "first batch of validation": self.validation}
        return {
            "model": _text(step.model) if dataclasses.is_dataclass(step.model) else type(step.model).__name__,
            "parameters": {name: list(p.shape) for name, p in self.state.params.items()},
            "dtype": self.state.feed.home.dtype,
            "precision": None if step.precision is None else repr(step.precision),
            "accumulate": step.accumulate,
            "seed": self.seed,
            "optimizer": _text(getattr(step.optimizer.init, "__self__", step.optimizer.init)),
            "loss function": _text(getattr(step.loss, "__func__", step.loss)),
            "callbacks": [
                _text(callback) if type(callback).__module__ == Callback.__module__ else type(callback).__name__
                for callback in self.callbacks
                if has(callback, "gradients", "weights", "state")  # the repr of a user's callback may change
            ],
            "moments": sorted(self.state.moments.slots),
            "steps": len(self.data),
            **{name: None if one is None else first_batch(one) for name, one in data.items()},
        }


def _restore(run: Run, origin: Checkpoint) -> None:
    """Let a run go on from a checkpoint; ValueError if it is one of another run, or damaged."""
    about, home = origin.about, run.state.feed.home
    for name, expected in run.settings.items():
        there = about.get(name)
        if there != expected:
            if isinstance(there, str) and isinstance(expected, str):  # what is shown begins shortly before they differ
                same = next((k for k, (a, b) in enumerate(zip(there, expected, strict=False)) if a != b), 32)
                there, expected = there[max(0, same - 32) :], expected[max(0, same - 32) :]
            is_not = f"its {name} is {checks.shown(there)}, expected {checks.shown(expected)}"
            raise ValueError(f"train: {origin.path} is of another run: {is_not}")
    try:
        held = checkpoint.unpack(origin.value, origin.arrays, lambda a, dtype: backend_of(home, dtype).asarray(a))
        params = run.state.params
        alike: dict[str, Any] = dict.fromkeys(("params", "best", "judged"), params)
        alike["slots"] = run.state.moments.slots
        alike["losses"] = np.broadcast_to(0.0, about["total"])
        alike["validations"] = np.broadcast_to(0.0, len(held["validations"]))
        if held["sums"] is not None:
            alike["sums"] = {name: params[name] for name in held["sums"]}
        for name, like in alike.items():
            checkpoint.check_alike(name, held[name], like)
        run.state = run.state._replace(
            **{name: held[name] for name in ARRAYS},
            **{name: about[name] for name in COUNTS},
            moments=OptimState(about["updates"], held["slots"]),
            scaling=Scaling(about["scale"], about["good"]),
        )
        if run.state.masks is not None:
            run.state.masks.bit_generator.state = held["masks"]
        run.order.bit_generator.state = run.order_before = held["order"]
        run.best, run.judged = held["best"], held["judged"]
        run.losses, run.validations = held["losses"].tolist(), held["validations"].tolist()
        for name in PLACES:
            setattr(run, name, about[name])
        for callback, state in zip(run.remembering, held["callbacks"], strict=True):
            callback.restore(state)
        run.start -= about["seconds"]
    except Exception as error:  # whatever it is, it comes from the file, or from what a callback makes of it
        raise ValueError(f"{origin.path}: not a sound checkpoint ({type(error).__name__}: {error})") from error
    if origin.path.parent == run.folder.path:
        run.folder.saved = about


def _text(value: Any) -> str:
    """Return the repr of a setting without what may differ: addresses in memory, and the length of a cosine."""
    return re.sub(r"(?<=function _cosine) at 0x\w+>, steps=\d+| at 0x\w+", "", repr(value))


def first_batch(data: Batches) -> str:
    """Return a number that tells data apart: it is made of their first batch in order."""
    batches, crc = data.batches(), 0
    first = next(iter(batches), None)
    for array in () if first is None else (first.x, first.target, first.lengths, *(first.options or {}).values()):
        if array is not None:
            crc = zlib.crc32(np.ascontiguousarray(to_numpy(array)).tobytes(), crc)
    if isinstance(batches, Generator):
        batches.close()
    return f"{crc:08x}"
