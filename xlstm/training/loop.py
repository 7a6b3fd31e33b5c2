"""One readable training loop: truncated backpropagation through time, validation, early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_like
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array, Params, namespace
from xlstm.arrays.random import generator
from xlstm.data.windows import Batch, finite
from xlstm.layers.masks import STREAM
from xlstm.layers.module import Module
from xlstm.layers.sequence import SequenceLayer
from xlstm.training import optimizers
from xlstm.training.losses import mse
from xlstm.training.precision import Mixed, Scaling, after, lowered, raised

Loss = Callable[..., tuple[Array, Array]]
BATCHES = checks.having("batches", "__len__", expected="Windows, Streams, or something else that yields batches")


class Batches(Protocol):
    """`Windows`, `Streams`, or anything else that yields batches."""

    def __len__(self) -> int: ...
    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Progress:
    """Where training stands, after every step. Epochs and steps count from 1."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    validation: float | None  # of the epoch before
    best: float | None
    seconds: float


@dataclass(frozen=True)
class Trained:
    """What training gives: the best weights and how it went."""

    params: Params = field(repr=False)
    losses: list[float] = field(repr=False)  # of every step
    validations: list[float] = field(repr=False)  # of every epoch
    best_epoch: int
    stopped_early: bool
    seconds: float
    skipped: int = 0  # steps left out because gradients overflowed in a lower precision


def train(
    model: Any,
    params: Params,
    data: Batches,
    optimizer: optimizers.Optimizer,
    *,
    epochs: int,
    validation: Batches | None = None,
    patience: int | None = None,
    loss: Loss = mse,
    clip: float | None = None,
    averaging: float = 0.0,
    seed: int = 0,
    precision: Mixed | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Fit a model.

    Within an epoch the state is carried from batch to batch unless a batch is `fresh`, and gradients
    stop at the border of a batch: truncated backpropagation through time. The same seed, data and
    starting weights give the same result.

    Parameters
    ----------
    model : object
        Has `forward(params, x, state, train) -> (y, state, saved)` and
        `backward(params, saved, dy) -> (grads, dx, dstate)`. `forward` is given `lengths` too where the
        batches have them, and a `seed` where the model says that it is `random`.
    params : dict of str to array
        Starting weights; not changed. Their library and device are used.
    data, validation : Batches
        What to fit, and what to judge by.
    optimizer : Optimizer
    epochs : int
        At most so many passes over `data`.
    patience : int, optional
        Stop when the validation loss has not improved for so many epochs.
    loss : callable
        `loss(y, target, mask) -> (loss, dy)`.
    clip : float, optional
        Limit of the global gradient norm.
    averaging : float
        Judge and return an exponential moving average of the weights with this decay, which is less
        noisy than the weights of any one step; 0 means the weights themselves.
    seed : int
        Order of the batches, and masks of dropout and zoneout.
    precision : Mixed, optional
        Run forward and backward in float16 or bfloat16, on a GPU. The weights stay in the dtype that they have, which
        validation and the optimiser use and which is returned; so do the loss and the sums over gradients. A step
        whose scaled gradients overflow is left out.
    progress : callable, optional
        Called after every step.

    Returns
    -------
    Trained
        With the weights of the epoch with the lowest validation loss, or the last ones without
        `validation`.

    Raises
    ------
    FloatingPointError
        The loss, a parameter or a gradient is not finite, with `precision` at the least scale too; names the step and
        the parameter.
    ValueError
        `data` or `validation` yields no batch or none with a target that counts, or numbers in a batch are not finite
        or do not fit into the dtype.
    TypeError, ValueError, BackendError
        A `precision` that does not go with the weights, or a device that has it not.
    """
    _check_model(model)
    epochs = checks.count("train", "epochs", epochs)
    patience = checks.optional(checks.count)("train", "patience", patience)
    namespace("train", checks.mapping("train", params, "params"))
    if not isinstance(optimizer, optimizers.Optimizer):
        raise TypeError(
            f"train: optimizer is {checks.shown(optimizer)}, expected one of xlstm.optim, such as optim.adam(1e-3)"
        )
    averaging = checks.rate("train", "averaging", averaging)
    clip = checks.optional(checks.above_0)("train", "clip", clip)
    checks.function("train", "loss", loss)
    checks.optional(checks.function)("train", "progress", progress)
    BATCHES("train", "data", data)
    checks.optional(BATCHES)("train", "validation", validation)
    if patience is not None and validation is None:
        raise ValueError("train: patience needs validation data")
    if not isinstance(precision, Mixed | None):
        raise TypeError(f"train: precision is {checks.shown(precision)}, expected None or an xlstm.precision.Mixed")
    backend = low = backend_like(next(iter(params.values())))
    scaling = Scaling()
    if precision is not None:
        low, scaling = precision.below(backend), precision.init()
    rng = generator(seed, stream=1, where="train")  # stream 0 drew the weights
    random = {"seed": generator(seed, stream=STREAM)} if getattr(model, "random", False) else {}
    optim_state = optimizer.init(params)
    losses: list[float] = []
    validations: list[float] = []
    best_params, best_epoch, done = params, 0, 0
    mean = params
    start = time.perf_counter()

    for epoch in range(1, epochs + 1):
        state, counted, step = None, 0.0, 0
        for step, batch in enumerate(data.batches(rng), 1):
            batch = _within(model, batch)
            where = f"train: epoch {epoch}, step {step}"
            _check_batch(where, batch, low, backend)
            counted += _weight(batch) * _has_steps(batch)
            with np.errstate(over="ignore", invalid="ignore"):  # found below, with a better message
                x, (target, mask) = low.asarray(batch.x), _truth(backend, batch)
                used = lowered(params, low.dtype)
                y, state, saved = model.forward(
                    used, x, None if batch.fresh else state, train=True, **_options(batch, random)
                )
                value, dy = loss(raised(y, backend.dtype), target, mask)
                grads, _, _ = model.backward(used, saved, lowered(dy, low.dtype, scaling.scale))
                grads = raised(grads, backend.dtype, scaling.scale)
                norm = optimizers.global_norm(grads)
            now, size = to_numpy(backend.xp.stack((value, norm)))  # the one wait for the device in a step
            losses.append(float(now))
            sound = math.isfinite(size)
            following = after(precision, scaling, sound)
            if following is None or not math.isfinite(now):
                _check_batch(where, batch, low, backend, everything=True)
                narrow = "" if precision is None else f" in {low.dtype} at a loss scale of {scaling.scale:g}"
                raise FloatingPointError(_diagnosis(epoch, step, losses[-1], used, grads, narrow))
            scaling = following
            if sound:
                if clip is not None:
                    grads = optimizers.clip_global_norm(grads, clip, norm)
                params, optim_state = optimizer.update(params, grads, optim_state)
                done += 1
                # Until 1 / (1 - averaging) steps are done, the plain mean of all of them.
                decay = min(averaging, 1 - 1 / done)
                mean = optimizers.running_mean(mean, params, decay) if decay else params
            if progress is not None:
                seconds = time.perf_counter() - start
                last = validations[-1] if validations else None
                best = min(validations, default=None)
                progress(Progress(epoch, epochs, step, len(data), losses[-1], last, best, seconds))
        _check_counted(f"train: epoch {epoch}", step, counted)
        if validation is None:
            best_params, best_epoch = mean, epoch
            continue
        validations.append(evaluate(model, mean, validation, loss))
        if not math.isfinite(validations[-1]):
            raise FloatingPointError(f"train: epoch {epoch}: the validation loss is {validations[-1]:g}")
        if validations[-1] < min(validations[:-1], default=math.inf):
            best_params, best_epoch = mean, epoch
        if patience is not None and epoch - best_epoch >= patience:
            break

    seconds = time.perf_counter() - start
    return Trained(best_params, losses, validations, best_epoch, epoch < epochs, seconds, len(losses) - done)


def evaluate(model: Any, params: Params, data: Batches, loss: Loss = mse) -> float:
    """Mean loss over all of `data`, with the state carried as in training.

    Raises
    ------
    ValueError
        `data` yields no batch or none with a target that counts, or numbers in a batch are not finite or do not fit
        into the dtype.
    """
    _check_model(model)
    BATCHES("evaluate", "data", data)
    checks.function("evaluate", "loss", loss)
    namespace("evaluate", checks.mapping("evaluate", params, "params"))
    backend = backend_like(next(iter(params.values())))
    total, count, counted, step, state = 0.0, 0.0, 0.0, 0, None
    for step, batch in enumerate(data.batches(), 1):
        batch = _within(model, batch)
        _check_batch(f"evaluate: batch {step}", batch, backend, backend)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller sees it in the result
            x, (target, mask) = backend.asarray(batch.x), _truth(backend, batch)
            y, state, _ = model.forward(params, x, None if batch.fresh else state, train=False, **_options(batch))
            value, _ = loss(y, target, mask)
        weight = _weight(batch)
        total += weight * float(value)
        count += weight
        counted += weight * _has_steps(batch)
    _check_counted("evaluate", step, counted)
    return total / count


def _check_model(model: Any) -> None:
    expected = "a model or a layer that goes through time"
    checks.having("forward", "backward", expected=expected)("train", "model", model)
    if isinstance(model, Module) and not isinstance(model, SequenceLayer):
        raise TypeError(f"train: model is {checks.shown(model)}, expected {expected}")
    if getattr(model, "batch_first", False):
        raise ValueError("train: batches have time first, so the model must too; make it with batch_first=False")


def _within(model: Any, batch: Batch) -> Batch:
    """The batch with a mask in which targets past the end of a sequence do not count."""
    if batch.lengths is None or getattr(model, "last", False):
        return batch
    there = np.arange(batch.x.shape[0])[:, None] < np.asarray(batch.lengths)  # (T, B)
    if batch.mask is not None:
        there = batch.mask & there.reshape(there.shape + (1,) * (batch.mask.ndim - 2))
    return batch._replace(mask=there)


def _check_batch(where: str, batch: Batch, low: Backend, backend: Backend, everything: bool = False) -> None:
    """Raise ValueError unless x and the targets that count are finite on their backends.

    Arrays on a device are left alone, which would have to wait for it, and so are targets that a mask leaves out,
    unless `everything` is to be checked.
    """
    there = None
    if batch.lengths is not None:
        there = np.arange(batch.x.shape[0])[:, None] < np.asarray(batch.lengths)  # (T, B)
    for name, array, dtype, counts in (
        ("x", batch.x, low.dtype, there),
        ("target", batch.target, backend.dtype, None if everything else batch.mask),
    ):
        if everything or isinstance(array, np.ndarray):
            finite(where, name, to_numpy(array), dtype, counts)


def _weight(batch: Batch) -> float:
    """How many targets count."""
    return float(batch.target.size if batch.mask is None else np.count_nonzero(batch.mask))


def _has_steps(batch: Batch) -> bool:
    """Whether any of its sequences has a step."""
    return batch.lengths is None or bool(np.any(batch.lengths))


def _check_counted(where: str, steps: int, counted: float) -> None:
    if steps == 0:
        raise ValueError(f"{where}: the data yield no batches")
    if counted == 0:
        raise ValueError(f"{where}: the data have no target that counts; masks leave out all, or lengths are all 0")


def _truth(backend: Backend, batch: Batch) -> tuple[Array, Array | None]:
    """Target and mask on the device."""
    return backend.asarray(batch.target), None if batch.mask is None else backend.asarray(batch.mask)


def _options(batch: Batch, random: dict[str, Any] | None = None) -> dict[str, Any]:
    """What only some batches and models need."""
    return {**(random or {}), **({} if batch.lengths is None else {"lengths": batch.lengths})}


def _diagnosis(epoch: int, step: int, loss: float, params: Params, grads: Params, narrow: str) -> str:
    where = f"train: epoch {epoch}, step {step}: loss is {loss:g}"
    for what, arrays in {"parameter": params, "gradient of": grads}.items():
        for name, array in arrays.items():
            if not np.all(np.isfinite(to_numpy(array))):
                wider = ", clipping, or float32" if narrow else " or clipping"
                return f"{where}, {what} {name} is not finite{narrow}; a smaller learning rate{wider} may help"
    if math.isfinite(loss):
        return f"{where}, the norm of the gradient overflows; clipping values or a wider dtype may help"
    return f"{where} though every parameter and gradient is finite: are there targets out of range?"
