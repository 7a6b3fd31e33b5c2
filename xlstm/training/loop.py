"""The training loop: `train`, from the first step or a checkpoint to the end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np

from xlstm import checkpoint
from xlstm.arrays import checks, foreach
from xlstm.arrays.backend import backend_of
from xlstm.arrays.cached import cached_property
from xlstm.arrays.groups import Group, checksum
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import Seed, generator
from xlstm.data.batches import Batches, Prefetch
from xlstm.data.shards import Shard
from xlstm.precision import Mixed
from xlstm.training import optimizers
from xlstm.training.agreement import different, together
from xlstm.training.callbacks import (
    PROGRESS,
    Callback,
    Clip,
    Each,
    EarlyStopping,
    LateBar,
    MovingAverage,
    Progress,
    ProgressBar,
    has,
    on_terminal,
)
from xlstm.training.evaluation import Metric, evaluate, metrics_of
from xlstm.training.feed import Inputs, Iterated, Loss, batches_of
from xlstm.training.folder import Checkpoint, Folder
from xlstm.training.ranks import RunRanks
from xlstm.training.state import StepState, Taken, packed, unpacked
from xlstm.training.steps import TrainStep
from xlstm.training.stop_signals import Interrupted, Terminated, deferred

PLACES = ("epoch", "done", "best_epoch", "skipped", "ended")  # the position of a run
CALLBACK = checks.accepted(
    lambda value: isinstance(value, Callback) or (callable(value) and not isinstance(value, type)),
    "a training.Callback or a function",
)
# The checks of a run's options; `TrainStep` checks its own.
OPTIONS: dict[str, checks.Kind] = {
    **dict.fromkeys(("epochs", "steps", "every"), checks.optional(checks.count)),
    "keep": checks.count,
    "resume": checks.flag,
    "checkpoints": checks.optional(checks.path),
}
log = logging.getLogger("xlstm.training")


@dataclass(frozen=True)
class Trained:
    """The result of training: the best weights and a record of the run.

    Attributes
    ----------
    params : dict of str to array
        The best weights.
    losses : list of float
        The loss of each step.
    validations : list of float
        The validation loss of each epoch.
    best_epoch : int
        The epoch of the best weights, counted from 1.
    stopped_early : bool
        Whether training ended before its last epoch or step.
    seconds : float
        Time that training took.
    skipped : int
        Steps left out because gradients overflowed in a lower precision.
    unsaved : str
        The files that could not be written to the folder of the run, and why; empty if all could.
    metrics : dict of str to list of float
        The value of each metric after each epoch, by name.
    """

    params: Params = field(repr=False)
    losses: list[float] = field(repr=False)
    validations: list[float] = field(repr=False)
    best_epoch: int
    stopped_early: bool
    seconds: float
    skipped: int = 0
    unsaved: str = ""
    metrics: dict[str, list[float]] = field(default_factory=dict, repr=False)


def train(
    model: Any,
    params: Params,
    data: Batches | Iterable[Any],
    optimizer: optimizers.Optimizer,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    validation: Batches | Iterable[Any] | None = None,
    loss: Loss | None = None,
    seed: Seed = 0,
    precision: Mixed | None = None,
    accumulate: int = 1,
    callbacks: Iterable[Callback | Callable[[Progress], object]] = (),
    checkpoints: str | os.PathLike[str] | None = None,
    every: int | None = None,
    keep: int = 3,
    resume: bool = False,
    graph: bool | str = "auto",
    patience: int | None = None,
    clip: float | None = None,
    averaging: float = 0.0,
    progress: Callable[[Progress], object] | bool | str | None = None,
    group: Group | None = None,
    gradients: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Trained:
    """Fit a model to data with an optimiser, and return the best weights.

    Within an epoch, each batch continues from the state of the batch before it, unless a batch is
    `fresh`. Gradients stop at the border of a batch: truncated backpropagation through time. The
    same seed, data and starting weights give the same result, even if a run is stopped and resumed.

    Parameters
    ----------
    model : object
        Any model or layer of this library, or another object that has `forward(params, x, state,
        train) -> (y, state, saved)` and `backward(params, saved, dy) -> (grads, dx, dstate)`. If
        the batches have `lengths`, `forward` gets them; if the model's `random` is true, it gets a
        `seed`. A model with `batch_first` gets batches in that order.
    params : dict of str to array
        Starting weights, which stay unchanged. Training runs on their library and device.
    data, validation : Batches, or an iterable of batches or pairs
        The training data and the validation data: data of `xlstm.data`, or any iterable of
        mini-batches, such as a list or a `DataLoader` of PyTorch. Each entry is a `Batch` or a pair
        (x, target) with the sequences first: x (B, T, D) and target (B, T, ...), or (B, ...) for a
        model that predicts once. The seed shuffles lists of independent batches and the sampler of
        a `DataLoader`. An iterator can be read only once, so it cannot be `validation` and cannot
        be combined with `resume`.
    optimizer : Optimizer
        Such as `optim.adam(1e-3)`.
    epochs : int, optional
        Largest number of passes over `data`.
    steps : int, optional
        Largest number of batches in all. The last epoch ends with them, and a run resumed with more
        begins a new epoch. One of `epochs` and `steps` is needed.
    loss : callable, optional
        `loss(y, target, mask) -> (loss, dy)`; by default the model's own `loss`, or else
        `losses.mse`.
    seed : int
        It decides the order of the batches, and the masks of dropout and zoneout.
    precision : Mixed, optional
        Run forward and backward in float16 or bfloat16, on a GPU. The weights keep their dtype, and
        so do the loss and the sums over gradients; validation, the optimiser and the result use
        that dtype. A step whose scaled gradients overflow is left out.
    accumulate : int
        Number of batches between two updates of the weights. An update uses the mean gradient over
        all their targets.
    callbacks : list of Callback or callable
        Additions to the loop: `EarlyStopping`, `MovingAverage`, `ReduceOnPlateau`, `Clip`, or your
        own. A function is called with a `Progress` after every step; if it returns True, training
        stops.
    checkpoints : path, optional
        The folder of the run, for checkpoints and the history. Without it nothing is written. With
        a group, the `checkpoints` and `resume` of rank 0 count.
    every : int, optional
        Batches between two checkpoints; by default there is one after each epoch. There is always
        one at the end.
    keep : int
        The number of checkpoints to keep, besides `best.safetensors`, the best epoch's checkpoint.
    resume : bool
        Continue from the newest checkpoint in `checkpoints`, if there is one. Arguments that decide
        the numbers must be the same as before; otherwise an error names the one that differs. These
        arguments are the model, the first batch of the data, the optimiser, the loss, the seed, the
        precision and `accumulate`. They also include callbacks that have a state or change
        gradients or weights. You may raise `epochs` and `steps`, and with them the steps of a
        `cosine`. You may also change `patience`, functions, and how often checkpoints are written.
    graph : bool or "auto"
        Capture steps in CUDA graphs on CuPy, as `TrainStep` says. From the third batch of a kind
        on, a step is one launch, with the same result to the bit. The Python code of the forward
        and backward passes, the loss and a callback's `gradients` then no longer runs. So do not
        capture code whose work changes from step to step. "auto" captures on CuPy if model, loss
        and callbacks belong to this library, and otherwise takes steps one by one. True says that
        your own code may be captured, too, and raises an error if graphs are not possible.
    patience, clip, averaging, progress : optional
        Short forms of the callbacks `EarlyStopping(patience)`, `Clip(clip)`,
        `MovingAverage(averaging)` and a function. `progress=True` adds a `ProgressBar()`, and
        "auto" adds one that appears after a second. "auto" adds none if standard error is no
        terminal, if rich is not installed, in other threads than the main one and in workers of a
        pool, and if `callbacks` has a bar.
    group : Group, optional
        The ranks that train together, as `distributed.group()` returns them; all ranks call `train`
        with the same arguments. They share each batch, so the result equals one process's result up
        to rounding if the loss is a mean over targets. Rank 0 alone writes files and calls
        functions. A signal, or a callback that asks to stop, ends training on all ranks one step
        later.
    gradients : {"bfloat16"}, optional
        Send gradients between ranks as bfloat16, with half the bytes of float32, and sum them in
        float32, so that they keep its range. Rounding leaves residuals, which are added in the next
        step. A checkpoint holds those of each rank, so a run that resumes on the same number of
        ranks has the bits of an uninterrupted one. Another number of ranks begins without them.
    metrics : dict of str to callable, optional
        Functions of `(y, target)`, by name, that are computed on the validation data after each
        epoch: for example `{"accuracy": lambda y, target: y.argmax(-1) == target}`. Each is called
        once a batch, with the outputs and the targets that count, as arrays of the weights'
        library. If there is a mask, its axes become one, (M, ...). A metric returns an array of
        numbers, or one number, their mean. The result is the mean over batches, weighted by their
        targets. The losses of `xlstm.losses` are metrics, too.

    Returns
    -------
    Trained
        With `validation` it has the weights of the epoch with the lowest validation loss, otherwise
        the last weights.

    Raises
    ------
    FloatingPointError
        The loss, a parameter or a gradient is not finite (with `precision`, even at the least
        scale); the error names the step and the parameter.
    ValueError
        `data` or `validation` yields no batch, or no target counts. A batch has numbers that are
        not finite or do not fit into the dtype. The folder holds another run.
    TypeError, ValueError, BackendError
        The weights or the device do not support the `precision`. `graph` is True and the weights
        are not on CuPy.
    OSError
        The folder cannot be written to, or a checkpoint cannot be read, before training begins.
    Interrupted, Terminated
        Ctrl-C, or SIGTERM or SIGHUP, ended training after the step was finished and saved; a second
        signal acts at once. These are a KeyboardInterrupt and a SystemExit; their `trained` holds
        the best weights so far.
    OtherRankError
        Another rank of the group could not continue; this rank stopped before the same step.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> from xlstm import optim, training
    >>> from xlstm.data import Windows
    >>> lstm = xlstm.LSTM(1, 4)
    >>> data = Windows(np.ones((8, 5, 1)), np.ones((8, 5, 4)), every_step=True)
    >>> start = lstm.init(backend="numpy")
    >>> result = training.train(lstm, start, data, optim.adam(1e-2), epochs=3)
    >>> len(result.losses), result.losses[-1] < result.losses[0]
    (3, True)
    """
    step = TrainStep(
        model,
        optimizer,
        loss=loss,
        precision=precision,
        callbacks=_callbacks(callbacks, clip, averaging, patience, progress),
        accumulate=accumulate,
        graph=graph,
        group=group,
        gradients=gradients,
    )
    metrics = metrics_of("train", metrics)
    data = batches_of("train", "data", model, data)
    if validation is not None:
        validation = batches_of("train", "validation", model, validation)
    limits: dict[str, Any] = {
        "epochs": _epochs(epochs, data, validation, resume, group),
        "steps": steps,
        "every": every,
        "keep": keep,
        "resume": resume,
        "checkpoints": checkpoints,
    }
    limits = {name: kind("train", name, limits[name]) for name, kind in OPTIONS.items()}
    path = limits.pop("checkpoints")
    if group is not None:
        data = Shard(data, group)
        validation = None if validation is None else Shard(validation, group)
    # rank 0's folder counts
    folder = Folder(path if group is None or group.rank == 0 else None, limits.pop("keep"))
    run = TrainingRun(
        step, params, seed, data, validation, metrics, folder, saving=path is not None, **limits
    )
    try:
        run.begin()
        return run.train()
    finally:
        folder.close()
        for callback in run.callbacks:
            callback.end()


def _callbacks(
    callbacks: Any, clip: Any, averaging: Any, patience: Any, progress: Any
) -> list[Callback]:
    """Return all callbacks of a run, first those that `train` makes of its other arguments."""
    every: list[Callback] = [] if clip is None else [Clip(clip)]
    if checks.rate("train", "averaging", averaging):
        every.append(MovingAverage(averaging))
    if patience is not None:
        every.append(EarlyStopping(patience))
    expected = "a list of callbacks"
    every += [
        callback if isinstance(callback, Callback) else Each(callback)
        for callback in checks.several("train", "callbacks", callbacks, expected, CALLBACK)
    ]
    progress = PROGRESS("train", "progress", progress)
    if isinstance(progress, str):  # "auto"
        if on_terminal() and not any(isinstance(callback, ProgressBar) for callback in every):
            every.append(LateBar())
    elif callable(progress):
        every.append(Each(progress))
    elif progress:
        every.append(ProgressBar())
    return every


def _epochs(
    epochs: int | None,
    data: Batches,
    validation: Batches | None,
    resume: bool,
    group: Group | None,
) -> int | None:
    """Return the number of epochs.

    Raise ValueError if data that can be read only once need more than one, or if a sampler divides
    data among ranks that have no group.
    """
    for name, batches in {"validation": validation, "data": data}.items():
        if not isinstance(batches, Iterated):
            continue
        ranks = getattr(batches.sampler, "num_replicas", 1)
        if group is None and ranks > 1:
            raise ValueError(
                f"train: {name} has a DistributedSampler of num_replicas={ranks}, but group is None,"
                " so each rank would train a model of its own; expected group=distributed.group()"
            )
        if not batches.once:
            continue
        problem = f"train: {name} is an iterator, {checks.shown(batches.data)}"
        if name == "validation":
            raise ValueError(f"{problem}, expected data that can be read again after every epoch")
        if resume is True or epochs not in (None, 1):
            raise ValueError(
                f"{problem}, which can be read only once, expected epochs=1 without resume=True, got"
                f" epochs={checks.shown(epochs)} and resume={resume}"
            )
        return 1
    return epochs


@dataclass(eq=False)
class TrainingRun:
    """A training run, from its first step or a checkpoint to its end."""

    step: TrainStep
    start_params: dataclasses.InitVar[Params]
    seed: Seed
    data: Batches
    validation: Batches | None
    metrics: Mapping[str, Metric]
    folder: Folder
    saving: bool  # whether rank 0 writes checkpoints
    epochs: int | None
    steps: int | None
    every: int | None
    resume: bool
    epoch: int = 1  # the current epoch
    done: int = 0  # its batches so far
    best_epoch: int = 0
    skipped: int = 0
    ended: bool = False  # a callback ended it after an epoch
    norm: float = math.nan
    losses: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    # A resumed run counts the seconds before its checkpoint, too.
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self, start_params: Params) -> None:
        refused = {
            "patience needs validation data, and so does each callback that looks at its loss": (
                self.validation is None and any(c.needs_validation for c in self.step.callbacks)
            ),
            "metrics are computed on validation data, but there are none": (
                self.validation is None and self.metrics
            ),
            "data has no batches": len(self.data) == 0,
            "validation has no batches": self.validation is not None and len(self.validation) == 0,
            "epochs and steps are None, expected one of them": (
                self.epochs is None and self.steps is None
            ),
            "resume is True, but checkpoints names no folder to resume from": (
                self.resume
                and not self.saving
                and (self.step.group is None or self.step.group.rank == 0)
            ),
        }
        for problem, holds in refused.items():
            if holds:
                raise ValueError(f"train: {problem}")
        self.most_epochs = self.epochs or checks.COUNTED
        self.most_steps = self.steps or checks.COUNTED
        self.state: StepState = self.step.init(start_params, self.seed)
        self.ranks = RunRanks(self.state.runtime.ranks, self.step.model, self.step.sums_locally)
        self.callbacks = [
            callback for callback in self.step.callbacks if self.ranks.first or callback.everywhere
        ]
        # Whether a callback looks at the weights of each step.
        self.watched = any(
            has(callback, "step", "weights") and not isinstance(callback, LateBar)
            for callback in self.callbacks
        )
        self.remembering = [callback for callback in self.step.callbacks if has(callback, "state")]
        for callback in self.step.callbacks:
            if not callback.everywhere and has(callback, "gradients", "weights"):
                raise ValueError(
                    f"train: {type(callback).__name__}.everywhere is False, expected True as it changes gradients or"
                    " weights"
                )
        steps = min(self.most_epochs * len(self.data), self.most_steps)
        if self.step.accumulate > steps:
            raise ValueError(
                f"train: accumulate is {self.step.accumulate}, but there are {steps} batches in all"
            )
        self.order = generator(self.seed, stream=1, where="train")  # stream 0 drew the weights
        self.order_before: Any = None  # the generator's state when the epoch began
        self.best = self.judged = self.state.params
        # the value of each metric after each epoch
        self.measured: dict[str, list[float]] = {name: [] for name in self.metrics}
        for callback in self.callbacks:
            self.ranks.tried(callback.begin, self.state.params)

    @property
    def total(self) -> int:
        """Batches so far, in all epochs."""
        return len(self.losses)

    @property
    def lowest(self) -> float:
        """The lowest validation loss."""
        return min(self.validations, default=math.inf)

    @property
    def seconds(self) -> float:
        """Seconds of training, with those before the checkpoint that the run resumed from."""
        return time.perf_counter() - self.start

    def begin(self) -> None:
        """Make the folder, and continue from the newest checkpoint if that is asked for and there
        is one.
        """
        if self.step.group is not None:
            limits = {"epochs": self.epochs, "most steps": self.steps, "every": self.every}
            settings = self.ranks.tried(lambda: {**self.settings, **limits})
            beside = self.saving, self.order.bit_generator.state
            self.saving, self.order.bit_generator.state = self.ranks.same(settings, beside)
        if self.saving:
            self.ranks.tried(self._check_saving)
        origin = self.ranks.read(self._newest)
        if origin is not None:
            self._restore(origin)
            if self.ended:
                log.info(
                    f"train: {origin.path} is the end of a run that a callback ended; it does"
                    " not continue"
                )
        self.ranks.of_first(lambda: self.folder.rewind(self.total, self.epoch))

    def _check_saving(self) -> None:
        """Raise an error for settings that cannot be saved, before any work."""
        checks.seed_number("train", "seed", self.seed)
        for callback in self.callbacks:
            checkpoint.pack({f"the state of {type(callback).__name__}": callback.state()})

    def _newest(self) -> Checkpoint | None:
        """Make the folder, and return the checkpoint to continue from, if any."""
        self.folder.begin()
        origin = self.folder.newest() if self.resume else None
        self.folder.check(origin)
        return origin

    def train(self) -> Trained:
        """Train until the end, or until a signal or a callback stops it."""
        with deferred() as received:
            try:
                # A run that was stopped after its last step still has to validate that epoch.
                while (
                    self.epoch <= self.most_epochs
                    and (self.total < self.most_steps or self.done)
                    and not self.ended
                ):
                    if self._epoch(received):
                        break
                self._save()
            except Exception as error:  # the state before the failed step is valid
                if self.ranks.saves(error):
                    with contextlib.suppress(Exception):
                        self._save()
                raise
            finally:
                self.folder.flush()
            number = self.ranks.signal(received)
        trained = self._result()
        if number is None:
            return trained
        at = f"epoch {self.epoch}, step {self.done}" if self.done else f"epoch {self.epoch - 1}"
        how = "it keeps no checkpoints"
        if self.folder.path is not None:
            how = f"resume=True goes on from {self.folder.path}"
        message = f"train: stopped after {at} by signal {number}; {trained.unsaved or how}"
        if self.ranks.first:
            log.warning(message)
        raise (Interrupted if number == signal.SIGINT else Terminated)(message, trained, number)

    def _epoch(self, received: list[int]) -> bool:
        """Train for the rest of an epoch; return whether training is to stop within it."""
        where = f"train: epoch {self.epoch}"
        if self.done == 0:
            self.order_before = self.order.bit_generator.state
            self.state = self.state._replace(carried=None)
        if self._steps(where, received):
            return True
        if not self.watched:
            self.judged = self._copied(self.judged)
        if self.ranks.meets(received):
            return True
        improved = False
        if self.validation is None:
            self.best_epoch = self.epoch
        else:
            improved = self._validate(self.validation, where, received)
            if self.ranks.meets(received):
                return True
        asked = self.ranks.tried(self._asks, "epoch")
        self.ended = self.ranks.ends(self.state.params, self.total, asked)
        self.epoch = self.epoch + 1
        self.done = 0
        if improved or self.every is None:
            self._save()
        return False

    def _steps(self, where: str, received: list[int]) -> bool:
        """Take the rest of the steps of an epoch; return whether training is to stop within it."""
        rest: Iterable[Inputs] = ()
        if self.total < self.most_steps:
            feed = self.state.runtime.feed
            rest = feed.batches(self.data, where, ", step", self.order, self.done)
        for inputs in self.ranks.guarded(rest):
            after, taken = self.step(self.state, inputs, f"{where}, step {self.done + 1}")
            if inputs is None:  # all ranks have found the end of their data
                break
            self.state = after
            if self.ranks.stops(self.ranks.tried(self._count, taken), received):
                return True
            if self.total == self.most_steps:
                break
            if self.every is not None and self.total % self.every == 0:
                self._save()
        return False

    def _count(self, taken: Taken) -> bool:
        """Record a step and show callbacks the new weights; return whether one asks to stop."""
        loss: Any = taken.loss
        norm: Any = taken.norm
        self.losses.append(loss)
        self.norm = norm
        self.done += 1
        self.skipped += not math.isfinite(norm)
        if taken.updated:
            self.judged = self._copied(self.state.params) if self.watched else self.state.params
            for callback in self.callbacks:
                self.judged = callback.weights(self.judged, self.state.updates)
        self._log(loss=loss, norm=norm)
        return self._asks("step")

    def _log(self, **entry: Any) -> None:
        """Add a line to the history."""
        entry["seconds"] = self.seconds
        self.folder.log(total=self.total, epoch=self.epoch, **entry)

    def _copied(self, params: Params) -> Params:
        """Return weights that the next step leaves alone; captured steps change arrays in-place."""
        runtime = self.state.runtime
        if runtime.graphs is None:
            return params
        arrays = foreach.copies(runtime.feed.home.xp, list(params.values()))
        return dict(zip(params, arrays, strict=True))

    def _validate(self, data: Batches, where: str, received: list[int]) -> bool:
        """Validate the weights, and return whether they are the best so far. A signal ends it at
        once, without a result.
        """
        with together(self.ranks.reduce):
            result = evaluate(
                self.step.model,
                self.judged,
                data,
                self.step.loss,
                stopped=lambda: bool(received),
                group=self.step.group,
                metrics=self.metrics,
            )
        if self.ranks.meets(received):
            return False
        loss, measured = result
        if not math.isfinite(loss):
            raise FloatingPointError(f"{where}: the validation loss is {loss:g}")
        improved: bool = loss < self.lowest
        if improved:
            self.best = self.judged
            self.best_epoch = self.epoch
        self.validations.append(loss)
        for name, value in measured.items():
            self.measured[name].append(value)
        self._log(validation=loss, **{f"metrics.{name}": value for name, value in measured.items()})
        return improved

    def _asks(self, event: str) -> bool:
        """Tell all callbacks that a step or epoch has ended; return whether one returned True (also
        NumPy's).
        """
        if not self.callbacks:
            return False
        now = Progress(
            epoch=self.epoch,
            epochs=min(self.most_epochs, -(-self.most_steps // max(1, len(self.data)))),
            step=self.done,
            steps=len(self.data),
            loss=self.losses[-1],
            validation=self.validations[-1] if self.validations else None,
            best=self.lowest if self.validations else None,
            seconds=self.seconds,
            best_epoch=self.best_epoch,
            norm=self.norm,
            total=self.total,
            params=self.judged,
            metrics={name: values[-1] for name, values in self.measured.items() if values},
        )
        answers = [getattr(callback, event)(now) for callback in self.callbacks]
        return any(isinstance(answer, bool | np.bool_) and answer for answer in answers)

    def _result(self) -> Trained:
        problems = filter(None, (self.folder.problem, self.folder.history_problem))
        unsaved = self.ranks.of_first(lambda: "; ".join(problems))
        if unsaved and self.ranks.first:
            warnings.warn(f"train: {unsaved}", RuntimeWarning, stacklevel=4)
        return Trained(
            params=self.best if self.validations else self.judged,
            losses=self.losses,
            validations=self.validations,
            best_epoch=self.best_epoch,
            stopped_early=self.epoch <= self.most_epochs and self.total < self.most_steps,
            seconds=self.seconds,
            skipped=self.skipped,
            unsaved=unsaved,
            metrics=self.measured,
        )

    def _save(self) -> None:
        """Write a checkpoint, if there is a folder that does not have it yet."""
        if not self.saving:
            return
        state = self.ranks.whole(self.state, self.total)
        residuals = self.ranks.residuals()
        if not self.ranks.first:
            return
        numbers, tree = packed(state)
        about = {
            **self.settings,
            **{name: getattr(self, name) for name in PLACES},
            "total": self.total,
            "seconds": self.seconds,
            **numbers,
        }
        tree |= {
            "order": self.order_before if self.done else self.order.bit_generator.state,
            "best": self.best,
            "judged": self.judged,
            "losses": np.array(self.losses),
            "validations": np.array(self.validations),
            "metrics": {name: np.array(values) for name, values in self.measured.items()},
            "callbacks": [callback.state() for callback in self.remembering],
            "residuals": residuals,
        }
        self.ranks.tried(self.folder.save, about, tree, bool(self.validations))

    def _restore(self, origin: Checkpoint) -> None:
        """Continue from a checkpoint; raise ValueError if it is damaged or of another run."""
        about = origin.about
        for name, expected in self.settings.items():
            if about.get(name) != expected:
                raise ValueError(
                    f"train: {origin.path} is of another run:"
                    f" {different(f'its {name}', about.get(name), expected)}"
                )
        try:
            self._unpack(about, origin)
        except Exception as error:
            # Any error here comes from the file, or from a callback that restores its state from
            # it.
            raise ValueError(
                f"{origin.path}: not a sound checkpoint ({type(error).__name__}: {error})"
            ) from error
        self.folder.saved = about

    def _unpack(self, about: dict[str, Any], origin: Checkpoint) -> None:
        """Restore the values of a checkpoint; raise an error if they do not fit the run."""
        home = self.state.runtime.feed.home
        tree = checkpoint.unpack(
            origin.value, origin.arrays, lambda a, dtype: backend_of(home, dtype).asarray(a)
        )
        params = self.state.params
        if tree["sums"] is not None:
            tree["sums"] = self.ranks.own_sums(tree["sums"], params)
        validations = np.broadcast_to(0.0, len(tree["validations"]))
        alike: dict[str, Any] = {
            **dict.fromkeys(("params", "best", "judged"), params),
            "slots": self.ranks.slots(self.state),
            "losses": np.broadcast_to(0.0, about["total"]),
            "validations": validations,
            "metrics": dict.fromkeys(self.metrics, validations),
            "sums": tree["sums"] and {name: params[name] for name in tree["sums"]},
        }
        for name, like in alike.items():
            if like is not None:
                checkpoint.check_alike(name, tree[name], like)
        self.state = self.ranks.part(unpacked(self.state, about, tree))
        self.ranks.restore_residuals(tree.get("residuals", ()))  # older checkpoints have none
        self.order_before = self.order.bit_generator.state = tree["order"]
        self.best = tree["best"]
        self.judged = tree["judged"]
        self.losses = tree["losses"].tolist()
        self.validations = tree["validations"].tolist()
        self.measured = {name: values.tolist() for name, values in tree["metrics"].items()}
        for name in PLACES:
            setattr(self, name, about[name])
        for callback, state in zip(self.remembering, tree["callbacks"], strict=True):
            if callback in self.callbacks:
                callback.restore(state)
        self.start -= about["seconds"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings, apart from arrays, that decide the numbers of a run; a resumed run must
        share them.
        """
        return {
            **self.step.settings,
            "parameters": {name: list(p.shape) for name, p in self.state.params.items()},
            "dtype": self.state.runtime.feed.home.dtype,
            "seed": int(self.seed) if isinstance(self.seed, Integral) else type(self.seed).__name__,
            "moments": sorted(self.ranks.slots(self.state)),
            "steps": len(self.data),
            "metrics": [*self.metrics],
            "first batch": first_batch(self.data),
            "first batch of validation": first_batch(self.validation),
        }


def first_batch(data: Batches | None) -> str | dict[str, Any] | None:
    """Return a description that identifies data: their `identity`, or otherwise a checksum of their
    first batch in order.
    """
    whole: Any = data
    while isinstance(whole, Shard | Prefetch):
        whole = whole.data
    if whole is None:
        return None
    identity = getattr(whole, "identity", None)
    by_batch = isinstance(whole, Iterated) and not whole.once and whole is data
    if isinstance(identity, str | dict) and not by_batch:
        return identity
    arrays: list[Any] = []
    for first in itertools.islice(whole.batches(), 1):
        arrays = [first.x, first.target, first.lengths, *(first.options or {}).values()]
    return f"{checksum(arrays):08x}"
