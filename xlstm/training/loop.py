"""The training loop: truncated backpropagation through time, validation, early stopping."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import generator
from xlstm.layers.masks import STREAM
from xlstm.training import optimizers
from xlstm.training.feed import BATCHES, Batches, Feed, Loss, loss_of
from xlstm.training.precision import Mixed, Scaling, after, lowered, raised


@dataclass(frozen=True)
class Progress:
    """Where training stands, after every step. Epochs and steps count from 1."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    validation: float | None  # after the epoch before
    best: float | None
    seconds: float


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
    """

    params: Params = field(repr=False)
    losses: list[float] = field(repr=False)
    validations: list[float] = field(repr=False)
    best_epoch: int
    stopped_early: bool
    seconds: float
    skipped: int = 0


def train(
    model: Any,
    params: Params,
    data: Batches,
    optimizer: optimizers.Optimizer,
    *,
    epochs: int,
    validation: Batches | None = None,
    patience: int | None = None,
    loss: Loss | None = None,
    clip: float | None = None,
    averaging: float = 0.0,
    seed: int = 0,
    precision: Mixed | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Fit a model.

    Within an epoch the state is carried from batch to batch unless a batch is `fresh`, and gradients stop at the border
    of a batch: truncated backpropagation through time. The same seed, data and starting weights give the same result.

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
    epochs : int
        Most passes over `data`.
    patience : int, optional
        Stop when the validation loss has not improved for so many epochs.
    loss : callable, optional
        `loss(y, target, mask) -> (loss, dy)`; by default the model's own `loss`, or else `losses.mse`.
    clip : float, optional
        Limit of the global gradient norm.
    averaging : float
        Judge and return an exponential moving average of the weights with this decay, which is less noisy than the
        weights of any one step; 0 means the weights themselves.
    seed : int
        Decides the order of the batches, and the masks of dropout and zoneout.
    precision : Mixed, optional
        Run forward and backward in float16 or bfloat16, on a GPU. The weights stay in the dtype that they have, which
        validation and the optimiser use and which is returned; so do the loss and the sums over gradients. A step
        whose scaled gradients overflow is left out.
    progress : callable, optional
        Called after every step.

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
        or do not fit into the dtype.
    TypeError, ValueError, BackendError
        A `precision` that does not go with the weights, or a device that does not have it.
    """
    feed = Feed.of("train", model, params)
    epochs = checks.count("train", "epochs", epochs)
    patience = checks.optional(checks.count)("train", "patience", patience)
    checks.instance(optimizers.Optimizer, "one of xlstm.optim, such as optim.adam(1e-3)")(
        "train", "optimizer", optimizer
    )
    averaging = checks.rate("train", "averaging", averaging)
    clip = checks.optional(checks.above_0)("train", "clip", clip)
    loss = loss_of("train", model, loss)
    checks.optional(checks.function)("train", "progress", progress)
    BATCHES("train", "data", data)
    checks.optional(BATCHES)("train", "validation", validation)
    checks.optional(checks.instance(Mixed, "None or an xlstm.precision.Mixed"))("train", "precision", precision)
    if patience is not None and validation is None:
        raise ValueError("train: patience needs validation data")
    home, scaling = feed.home, Scaling()
    if precision is not None:
        feed, scaling = dataclasses.replace(feed, low=precision.below(home)), precision.init()
    low = feed.low.dtype
    order = generator(seed, stream=1, where="train")  # stream 0 drew the weights
    masks = {"seed": generator(seed, stream=STREAM)} if getattr(model, "random", False) else {}
    moments = optimizer.init(params)
    losses: list[float] = []
    validations: list[float] = []
    best_params, best_epoch, done, averaged = params, 0, 0, params
    start = time.perf_counter()

    for epoch in range(1, epochs + 1):
        where, state = f"train: epoch {epoch}", None
        for step, batch in enumerate(feed.batches(data, where, ", step", order), 1):
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named below
                used = lowered(params, low)  # copies in a lower precision, where there is one
                y, state, saved = feed.forward(used, batch, state, train=True, **masks)
                value, dy = loss(raised(y, home.dtype), batch.target, batch.mask)
                grads = model.backward(used, saved, lowered(dy, low, scaling.scale))[0]
                grads = raised(grads, home.dtype, scaling.scale)
                norm = optimizers.global_norm(grads)
            # The step waits for the device here and nowhere else.
            loss_value, norm_value = map(float, to_numpy(home.xp.stack((value, norm))))
            losses.append(loss_value)
            next_scaling = after(precision, scaling, math.isfinite(norm_value))
            if next_scaling is None or not math.isfinite(loss_value):
                feed.check(f"{where}, step {step}", batch.host, everything=True)
                narrow = "" if precision is None else f" in {low} at a loss scale of {scaling.scale:g}"
                raise FloatingPointError(f"{where}, step {step}: {_diagnosis(loss_value, used, grads, narrow)}")
            scaling = next_scaling
            if math.isfinite(norm_value):
                if clip is not None:
                    grads = optimizers.clip_global_norm(grads, clip, norm)
                params, moments = optimizer.update(params, grads, moments)
                done += 1
                decay = min(averaging, 1 - 1 / done)  # at first the plain mean of all steps
                averaged = optimizers.running_mean(averaged, params, decay) if decay else params
            if progress is not None:
                last, best = validations[-1] if validations else None, min(validations, default=None)
                seconds = time.perf_counter() - start
                progress(Progress(epoch, epochs, step, len(data), loss_value, last, best, seconds))
        if validation is None:
            best_params, best_epoch = averaged, epoch
            continue
        validation_loss = evaluate(model, averaged, validation, loss)
        if not math.isfinite(validation_loss):
            raise FloatingPointError(f"{where}: the validation loss is {validation_loss:g}")
        if validation_loss < min(validations, default=math.inf):
            best_params, best_epoch = averaged, epoch
        validations.append(validation_loss)
        if patience is not None and epoch - best_epoch >= patience:
            break

    seconds = time.perf_counter() - start
    return Trained(best_params, losses, validations, best_epoch, epoch < epochs, seconds, len(losses) - done)


def evaluate(model: Any, params: Params, data: Batches, loss: Loss | None = None) -> float:
    """Return the mean loss over all of `data`, with the state carried as in training.

    Parameters
    ----------
    model : object
        As for `train`.
    params : dict of str to array
    data : Batches
    loss : callable, optional
        As for `train`.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        `data` yields no batch or none with a target that counts, or numbers in a batch are not finite or do not fit
        into the dtype.
    """
    feed = Feed.of("evaluate", model, params)
    BATCHES("evaluate", "data", data)
    loss = loss_of("evaluate", model, loss)
    total, count, state = 0.0, 0.0, None
    for batch in feed.batches(data, "evaluate", ": batch"):
        with np.errstate(over="ignore", invalid="ignore"):  # the caller sees it in the result
            y, state, _ = feed.forward(params, batch, state, train=False)
            value, _ = loss(y, batch.target, batch.mask)
        total += batch.weight * float(value)
        count += batch.weight
    return total / count


def _diagnosis(loss: float, params: Params, grads: Params, narrow: str) -> str:
    """Return why a step cannot be taken; `narrow` names a lower precision."""
    for what, arrays in {"parameter": params, "gradient of": grads}.items():
        for name, array in arrays.items():
            if not np.all(np.isfinite(to_numpy(array))):
                wider = ", clipping, or float32" if narrow else " or clipping"
                problem = f"{what} {name} is not finite{narrow}; a smaller learning rate{wider} may help"
                return f"loss is {loss:g}, {problem}"
    if math.isfinite(loss):
        return f"loss is {loss:g}, the norm of the gradient overflows; clipping values or a wider dtype may help"
    return f"loss is {loss:g} though every parameter and gradient is finite: are there targets out of range?"
