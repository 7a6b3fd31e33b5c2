"""Training and validation of a model."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import Seed
from xlstm.data.batches import BATCHES, Batches
from xlstm.precision import Mixed
from xlstm.training import optimizers
from xlstm.training.callbacks import Callback, Clip, Each, EarlyStopping, MovingAverage, Progress
from xlstm.training.feed import Loss
from xlstm.training.folder import Folder
from xlstm.training.run import Run, Trained
from xlstm.training.steps import Step


def train(
    model: Any,
    params: Params,
    data: Batches,
    optimizer: optimizers.Optimizer,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    validation: Batches | None = None,
    loss: Loss | None = None,
    seed: Seed = 0,
    precision: Mixed | None = None,
    accumulate: int = 1,
    callbacks: Iterable[Callback | Callable[[Progress], object]] = (),
    checkpoints: str | os.PathLike[str] | None = None,
    every: int | None = None,
    keep: int = 3,
    resume: bool = False,
    graph: bool = False,
    patience: int | None = None,
    clip: float | None = None,
    averaging: float = 0.0,
    progress: Callable[[Progress], object] | None = None,
) -> Trained:
    """Fit a model.

    Within an epoch the state is carried from batch to batch unless a batch is `fresh`, and gradients stop at the border
    of a batch: truncated backpropagation through time. The same seed, data and starting weights give the same result,
    also where a run was stopped and resumed.

    Parameters
    ----------
    model : object
        Any model or layer of this library, or another object that has `forward(params, x, state, train) -> (y, state,
        saved)` and `backward(params, saved, dy) -> (grads, dx, dstate)`. `forward` is also given `lengths` where the
        batches have them, and a `seed` where the model says that it is `random`. A model with `batch_first` is given
        batches in that order.
    params : dict of str to array
        Starting weights; they are not changed. Their library and device are used.
    data, validation : Batches
        The data to fit, and those to judge by.
    optimizer : Optimizer
    epochs : int, optional
        Most passes over `data`.
    steps : int, optional
        Most batches in all; the last epoch ends with them, and a run that is given more begins a new epoch. One of
        `epochs` and `steps` is needed.
    loss : callable, optional
        `loss(y, target, mask) -> (loss, dy)`; by default the model's own `loss`, or else `losses.mse`.
    seed : int
        Decides the order of the batches, and the masks of dropout and zoneout.
    precision : Mixed, optional
        Run forward and backward in float16 or bfloat16, on a GPU. The weights stay in the dtype that they have, which
        validation and the optimiser use and which is returned; so do the loss and the sums over gradients. A step
        whose scaled gradients overflow is left out.
    accumulate : int
        Update the weights after so many batches, by the mean gradient over all their targets.
    callbacks : list of Callback or callable
        All else that is done: `EarlyStopping`, `MovingAverage`, `ReduceOnPlateau`, `Clip`, or your own. A function is
        called with a `Progress` after every step, and where it returns True training stops.
    checkpoints : path, optional
        The folder of the run, for checkpoints and the history. Without it nothing is written.
    every : int, optional
        Batches between two checkpoints; by default there is one after each epoch. There is always one at the end.
    keep : int
        The number of checkpoints that are kept, beside `best.safetensors`, that of the best epoch.
    resume : bool
        Go on from the newest checkpoint in `checkpoints`, if there is one. Arguments that decide the numbers are to be
        those of the run, and the error names one that is not: the model, the first batch of the data, the optimiser,
        the loss, the seed, the precision, `accumulate`, and callbacks that change gradients or weights or have a state.
        `epochs` and `steps` may be more, with them the steps of a `cosine`, and `patience`, functions, and how often
        checkpoints are written may change.
    graph : bool
        Capture steps in CUDA graphs, on CuPy, as `Step` says: from the third batch of a kind on, a step is one launch,
        with the same result to the bit. Nothing of the forward and backward passes, of the loss and of a callback's
        `gradients` runs on the host then, so those that change by themselves from step to step do not go with it.
    patience, clip, averaging, progress : optional
        They stand for the callbacks `EarlyStopping(patience)`, `Clip(clip)`, `MovingAverage(averaging)` and a function.

    Returns
    -------
    Trained
        Its weights are those of the epoch with the lowest validation loss, or the last ones without `validation`.

    Raises
    ------
    FloatingPointError
        The loss, a parameter or a gradient is not finite, with `precision` at the least scale too; names the step and
        the parameter.
    ValueError
        `data` or `validation` yields no batch or none with a target that counts, or numbers in a batch are not finite
        or do not fit into the dtype. The folder holds another run.
    TypeError, ValueError, BackendError
        A `precision` that does not go with the weights, or a device that does not have it. `graph` where the weights
        are not on CuPy.
    OSError
        The folder cannot be written to, or a checkpoint cannot be read, before training begins.
    Interrupted, Terminated
        Ctrl-C, or SIGTERM or SIGHUP, after the step was finished and saved; a second signal acts at once. These are a
        KeyboardInterrupt and a SystemExit, whose `trained` is what was best so far.
    """
    chosen: list[Callback] = [] if clip is None else [Clip(clip)]
    chosen += [MovingAverage(averaging)] if checks.rate("train", "averaging", averaging) else []
    chosen += [] if patience is None else [EarlyStopping(patience)]
    chosen += _callbacks([] if progress is None else [progress], "progress") + _callbacks(callbacks)
    step = Step(model, optimizer, loss=loss, precision=precision, callbacks=chosen, accumulate=accumulate, graph=graph)
    if validation is None and any(callback.needs_validation for callback in chosen):
        raise ValueError("train: patience needs validation data, and so does each callback that looks at its loss")
    named = {"data": data} | ({} if validation is None else {"validation": validation})
    for name, batches in named.items():
        if len(BATCHES("train", name, batches)) == 0:
            raise ValueError(f"train: {name} has no batches")
    if epochs is None and steps is None:
        raise ValueError("train: epochs and steps are None, expected one of them")
    most = {name: checks.optional(checks.count)("train", name, n) for name, n in (("epochs", epochs), ("steps", steps))}
    every = checks.optional(checks.count)("train", "every", every)
    if checks.flag("train", "resume", resume) and checkpoints is None:
        raise ValueError("train: resume is True, but checkpoints names no folder to resume from")
    path = checks.optional(checks.path)("train", "checkpoints", checkpoints)
    folder = Folder(path, checks.count("train", "keep", keep))
    run = Run(step, data, validation, most["epochs"] or checks.COUNTED, most["steps"] or checks.COUNTED, every, folder)
    try:
        run.begin(params, seed)
        run.resume(resume)
        return run.train()
    finally:
        folder.close()


def _callbacks(given: Any, name: str = "callbacks") -> list[Callback]:
    """Return a list of callbacks and functions as callbacks; errors call it `name`."""
    chosen: list[Callback] = []
    for k, callback in enumerate(checks.several("train", name, given, "a list of callbacks", 1000)):
        if isinstance(callback, type) or not (isinstance(callback, Callback) or callable(callback)):
            shown = checks.shown(callback)
            raise TypeError(f"train: {name}[{k}] is {shown}, expected a training.Callback or a function")
        chosen.append(callback if isinstance(callback, Callback) else Each(callback))
    return chosen


class RangeTest(NamedTuple):
    """The result of a learning-rate range test.

    Attributes
    ----------
    rates : array (N,)
        Learning rates, growing.
    losses : array (N,)
        The loss after each, smoothed.
    suggestion : float
        A tenth of the rate at which the smoothed loss was lowest, since a little beyond that training diverges, and
        at least `low`. The first tenth of the steps does not count: the mean is of few losses there.
    """

    rates: np.ndarray[Any, Any]
    losses: np.ndarray[Any, Any]
    suggestion: float


def find_learning_rate(
    model: Any,
    params: Params,
    data: Batches,
    optimizer: Callable[[optimizers.Schedule], optimizers.Optimizer] = optimizers.adam,
    *,
    low: float = 1e-6,
    high: float = 1.0,
    steps: int = 100,
    loss: Loss | None = None,
    seed: Seed = 0,
) -> RangeTest:
    """Train for some steps while the learning rate grows from `low` to `high` (Smith 2017).

    The weights that result are thrown away.

    Parameters
    ----------
    model : object
        As for `train`.
    params : dict of str to array
    data : Batches
        They are gone through as often as needed.
    optimizer : callable
        Makes an optimiser of a schedule, such as `optim.adam`.
    low, high : float
        The first and the last learning rate.
    steps : int
        At least 10; the test ends earlier where the loss has grown to four times its lowest value.

    loss : callable, optional
        As for `train`.
    seed : int
        Decides the order of the batches and the masks.

    Returns
    -------
    RangeTest

    Raises
    ------
    ValueError, TypeError
        An argument is out of range or of the wrong kind; or the loss diverges at once.
    """
    where = "find_learning_rate"
    low, high = checks.above_0(where, "low", low), checks.above_0(where, "high", high)
    steps = checks.whole(10, checks.COUNTED)(where, "steps", steps)
    if high <= low:
        raise ValueError(f"{where}: high is {high:g}, expected more than low, which is {low:g}")
    checks.function(where, "optimizer", optimizer)
    rates = low * (high / low) ** (np.arange(steps) / (steps - 1))
    means: list[float] = []
    mean, smooth, lowest, skipped = 0.0, 0.9, math.inf, steps // 10  # in the first tenth the mean is of few losses

    def diverges(now: Progress) -> bool:
        nonlocal mean, lowest
        mean = smooth * mean + (1 - smooth) * now.loss
        means.append(mean / (1 - smooth**now.total))
        if now.total > skipped:
            lowest = min(lowest, means[-1])
        return means[-1] > 4 * lowest

    growing = optimizer(lambda done: float(rates[min(done, steps - 1)]))
    with contextlib.suppress(FloatingPointError):  # it has diverged
        train(model, params, data, growing, steps=steps, loss=loss, seed=seed, progress=diverges)
    if len(means) < max(3, skipped + 1):
        rate = rates[len(means)]
        raise ValueError(f"{where}: the loss diverges after {len(means)} steps, at a rate of {rate:g}; lower low")
    best = float(rates[skipped + int(np.argmin(means[skipped:]))])
    return RangeTest(rates[: len(means)], np.array(means), max(low, best / 10))
