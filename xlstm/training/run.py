"""A run of training, from its first step or from a checkpoint to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import re
import time
import warnings
import zlib
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks, foreach
from xlstm.arrays.backend import backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import Seed, generator
from xlstm.data.batches import Batches
from xlstm.training import optimizers, signals
from xlstm.training.callbacks import Callback, MovingAverage, Progress, has
from xlstm.training.feed import Inputs, mean_loss
from xlstm.training.folder import Checkpoint, Folder, find, pack, unpack
from xlstm.training.history import History
from xlstm.training.precision import Scaling
from xlstm.training.step import Step, StepState, Taken

STATE = ("params", "carried", "sums", "weight", "batches")  # of a step, as a checkpoint has it
NUMBERS = {"scale": checks.above_0, "good": checks.size_or_0, "weight": checks.non_negative}
NUMBERS |= dict.fromkeys(("batches", "moments step"), checks.size_or_0)
PLACES = ("epoch", "done", "best_epoch", "skipped", "ended")  # where a run stands
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
            pack({f"the state of {type(callback).__name__}": callback.state()})
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
            restore(self, found)
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
        arrays = foreach.copies(self.state.feed.home.xp, list(params.values()))
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
        return {name: None if data is None else first_batch(data) for name, data in given.items()}

    def _save(self, improved: bool = False) -> None:
        """Write a checkpoint, where there is a folder and it does not have this one."""
        at = (self.epoch, self.done, self.ended)
        if self.folder is None or (at == self.saved_at and not self.folder.problem):
            return
        self.saved_at = at
        self.history.flush()  # type: ignore[union-attr]
        self.folder.save(self.total, about(self), tree(self), improved, bool(self.validations))

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


def tree(run: Run) -> dict[str, Any]:
    """Return the arrays and numbers from which a run goes on."""
    state = run.state
    return {
        **{name: getattr(state, name) for name in STATE},
        "moments": state.moments._asdict(),
        "scaling": list(state.scaling),
        "masks": None if state.masks is None else state.masks.bit_generator.state,
        "order": run.order_before if run.done else run.order.bit_generator.state,
        "best": run.best,
        "judged": run.judged,
        "losses": np.array(run.losses),
        "validations": np.array(run.validations),
        "callbacks": [callback.state() for callback in _remembering(run)],
    }


def about(run: Run) -> dict[str, Any]:
    """Return what a checkpoint says of its run: first what a run that goes on has to share."""
    return {
        **_settings(run),
        **{name: getattr(run, name) for name in (*PLACES, "epochs")},
        "total": run.total,
        "updates": run.state.updates,
        "seconds": run.seconds,
        "loss": finite(run.losses[-1]) if run.losses else None,
        "best": run.lowest if run.validations else None,
    }


def restore(run: Run, found: Checkpoint) -> None:
    """Let a run go on from a checkpoint.

    Raises
    ------
    ValueError
        The checkpoint is one of another run, or damaged.
    """
    for name, value in _settings(run).items():
        there = found.about.get(name)
        if there != value:
            if isinstance(there, str) and isinstance(value, str):  # what is shown begins shortly before they differ
                same = next((k for k, (a, b) in enumerate(zip(there, value, strict=False)) if a != b), 32)
                start = max(0, same - 32)
                there, value = there[start:], value[start:]
            is_not = f"its {name} is {checks.shown(there)}, expected {checks.shown(value)}"
            raise ValueError(f"train: {found.path} is of another run: {is_not}")
    home = run.state.feed.home
    try:
        held = unpack(found.value, found.arrays, lambda a, dtype: backend_of(home, dtype).asarray(a))
        _check(run, held, found.about["total"])
        run.state = run.state._replace(
            **{name: held[name] for name in STATE},
            moments=optimizers.OptimState(**held["moments"]),
            scaling=Scaling(*held["scaling"]),
            updates=found.about["updates"],
        )
        if run.state.masks is not None:
            run.state.masks.bit_generator.state = held["masks"]
        run.order.bit_generator.state = held["order"]
        run.best, run.judged = held["best"], held["judged"]
        run.losses, run.validations = held["losses"].tolist(), held["validations"].tolist()
        for name in PLACES:
            setattr(run, name, found.about[name])
        run.lowest = min(run.validations, default=math.inf)
        for callback, state in zip(_remembering(run), held["callbacks"], strict=True):
            callback.restore(state)
        run.start -= found.about["seconds"]
    except Exception as error:  # whatever it is, it comes from the file, or from what a callback makes of it
        raise ValueError(f"{found.path}: not a sound checkpoint ({type(error).__name__}: {error})") from error
    run.order_before = run.order.bit_generator.state
    if run.folder is not None and found.path.parent == run.folder.path:
        run.folder.saved, run.saved_at = run.total, (run.epoch, run.done, run.ended)


def _check(run: Run, held: dict[str, Any], total: int) -> None:
    """Raise an error unless the values of a checkpoint can be those of a run."""
    numbers = (*held["scaling"], held["weight"], held["batches"], held["moments"]["step"])
    for (name, rule), number in zip(NUMBERS.items(), numbers, strict=True):
        rule("its values", name, number)
    params = run.state.params
    _check_alike("moments", held["moments"]["slots"], run.state.moments.slots)
    for name in ("params", "best", "judged"):
        _check_alike(name, held[name], params)
    if held["sums"] is not None:
        _check_alike("sums", held["sums"], {name: params[name] for name in held["sums"]})
    for callback, kept in zip(_remembering(run), held["callbacks"], strict=True):
        if isinstance(callback, MovingAverage):
            _check_alike("mean", kept["mean"], params)
    for name, count in (("losses", total), ("validations", held["validations"].size)):
        _check_alike(name, held[name], np.broadcast_to(0.0, count))


def _check_alike(name: str, found: Any, like: Any) -> None:
    """Raise ValueError unless `found` is a dict with the names of `like`, or an array of its shape and dtype."""
    if isinstance(like, dict):
        if not isinstance(found, dict) or found.keys() != like.keys():
            raise ValueError(f"{name} is {checks.shown(found)}, expected a dict of {checks.few(like)}")
        for key in like:
            _check_alike(f"{name} {key}", found[key], like[key])
    elif getattr(found, "shape", None) != like.shape or found.dtype != like.dtype:
        raise ValueError(f"{name} is {checks.shown(found)}, expected {checks.shown(like)}")


def finite(number: float) -> float | None:
    """Return a number for JSON, which has no infinity."""
    return number if math.isfinite(number) else None


def _settings(run: Run) -> dict[str, Any]:
    """Return what decides the numbers of a run, apart from the arrays."""
    step = run.step
    return {
        "model": _text(step.model) if dataclasses.is_dataclass(step.model) else type(step.model).__name__,
        "parameters": {name: list(p.shape) for name, p in run.state.params.items()},
        "dtype": run.state.feed.home.dtype,
        "precision": None if step.precision is None else repr(step.precision),
        "accumulate": step.accumulate,
        "seed": run.seed,
        "optimizer": _text(getattr(step.optimizer.init, "__self__", step.optimizer.init)),
        "loss function": _text(getattr(step.loss, "__func__", step.loss)),
        "callbacks": [
            _text(callback) if type(callback).__module__ == Callback.__module__ else type(callback).__name__
            for callback in run.callbacks
            if has(callback, "gradients", "weights", "state")  # the repr of a user's callback may change
        ],
        "moments": sorted(run.state.moments.slots),
        "steps": len(run.data),
        **run.first_batches,
    }


def _text(value: Any) -> str:
    """Return the repr of a setting without what may differ: addresses in memory, and the length of a cosine."""
    return re.sub(r"(?<=function _cosine) at 0x\w+>, steps=\d+| at 0x\w+", "", repr(value))


def first_batch(data: Batches) -> str:
    """Return a number that tells data apart: it is made of their first batch in order."""
    batches = data.batches()
    first = next(iter(batches), None)
    found = 0
    for array in () if first is None else (first.x, first.target, first.lengths, *(first.options or {}).values()):
        if array is not None:
            found = zlib.crc32(np.ascontiguousarray(to_numpy(array)).tobytes(), found)
    if isinstance(batches, Generator):
        batches.close()
    return f"{found:08x}"


def _remembering(run: Run) -> list[Callback]:
    """Return the callbacks that have a state."""
    return [callback for callback in run.callbacks if has(callback, "state")]
