"""One step of training: forward, loss, backward, and an update of the parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.adopt import adopt
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import Seed, generator
from xlstm.data.batches import Batch
from xlstm.layers.masks import STREAM
from xlstm.training import optimizers
from xlstm.training.callbacks import Callback
from xlstm.training.feed import Feed, Inputs, Loss, loss_of
from xlstm.training.precision import Mixed, Scaling, after, lowered, raised

OPTIMIZER = checks.instance(optimizers.Optimizer, "one of xlstm.optim, such as optim.adam(1e-3)")
MIXED = checks.optional(checks.instance(Mixed, "None or an xlstm.precision.Mixed"))


class StepState(NamedTuple):
    """All that a step changes.

    Attributes
    ----------
    params : dict of str to array
    moments : OptimState
        The state of the optimiser.
    carried : tuple or None
        The state of the model at the end of the last batch.
    scaling : Scaling
        The scale of gradients in mixed precision.
    sums : dict of str to array, or None
        The gradients accumulated since the last update, each times its number of targets.
    weight : float
        The number of targets that they are of.
    batches : int
        The number of batches that they are of.
    updates : int
        Updates done.
    masks : numpy.random.Generator or None
        Where the masks of dropout and zoneout come from; a step draws from it.
    feed : Feed
        The way of batches onto the device of the parameters.
    """

    params: Params
    moments: optimizers.OptimState
    carried: Any
    scaling: Scaling
    sums: Params | None
    weight: float
    batches: int
    updates: int
    masks: np.random.Generator | None
    feed: Feed


class Taken(NamedTuple):
    """How a step went: the loss of its batch, the norm of the gradient, and whether it changed the parameters."""

    loss: float
    norm: float
    updated: bool


@dataclass(frozen=True)
class Step:
    """One step of training, for a loop of your own; `training.train` is made of it.

    The state of a recurrent model is carried from batch to batch unless a batch is `fresh`, and gradients stop at the
    border of a batch: truncated backpropagation through time.

    Parameters
    ----------
    model : object
        Any model or layer; `training.train` says what it needs.
    optimizer : Optimizer
    loss : callable, optional
        `loss(y, target, mask) -> (loss, dy)`; by default the model's own `loss`, or else `losses.mse`.
    precision : Mixed, optional
        Arithmetic of forward and backward.
    callbacks : list of Callback
        Only what they do to gradients matters here.
    accumulate : int
        Update the parameters after so many batches, by the mean gradient over all their targets.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong kind, or out of range.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> from xlstm import optim, training
    >>> from xlstm.data import Windows
    >>> lstm = xlstm.LSTM(1, 4)
    >>> step = training.Step(lstm, optim.adam(1e-2))
    >>> state = step.init(lstm.init(backend="numpy"))
    >>> data = Windows(np.ones((8, 5, 1)), np.ones((8, 5, 4)), every_step=True)
    >>> for batch in data.batches():
    ...     state, taken = step(state, batch)
    >>> taken.updated
    True
    """

    model: Any
    optimizer: optimizers.Optimizer
    loss: Loss | None = field(default=None, kw_only=True)
    precision: Mixed | None = field(default=None, kw_only=True)
    callbacks: Iterable[Callback] = field(default=(), kw_only=True)
    accumulate: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        checks.fields(self, optimizer=OPTIMIZER, precision=MIXED, accumulate=checks.count)
        object.__setattr__(self, "loss", loss_of("Step", self.model, self.loss))

    def init(self, params: Params, seed: Seed = 0) -> StepState:
        """Return the state before the first step.

        Parameters
        ----------
        params : dict of str to array
            Starting weights; they are not changed. Their library and device are used.
        seed : int or numpy.random.Generator
            Decides the masks of dropout and zoneout.

        Returns
        -------
        StepState

        Raises
        ------
        TypeError, ValueError, BackendError
            These are no parameters of a model, or a `precision` does not go with them.
        """
        params = adopt("train", params)
        feed, scaling = Feed.of("train", self.model, params), Scaling()
        if self.precision is not None:
            feed, scaling = dataclasses.replace(feed, low=self.precision.below(feed.home)), self.precision.init()
        masks = generator(seed, stream=STREAM) if getattr(self.model, "random", False) else None
        return StepState(params, self.optimizer.init(params), None, scaling, None, 0.0, 0, 0, masks, feed)

    def __call__(self, state: StepState, batch: Batch | Inputs, where: str = "step") -> tuple[StepState, Taken]:
        """Take a step.

        Parameters
        ----------
        state : StepState
        batch : Batch
        where : str
            The name of the step in errors.

        Returns
        -------
        state : StepState
        taken : Taken

        Raises
        ------
        FloatingPointError
            The loss, a parameter or a gradient is not finite, with `precision` at the least scale too.
        ValueError
            Numbers of the batch are not finite or do not fit into the dtype.
        """
        feed, scaling, params = state.feed, state.scaling, state.params
        inputs = batch if isinstance(batch, Inputs) else feed.inputs(batch, where)
        dtype, low = feed.home.dtype, feed.low.dtype
        masks = {} if state.masks is None else {"seed": state.masks}
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named below
            used = lowered(params, low)  # copies in a lower precision, where there is one
            y, carried, saved = feed.forward(used, inputs, state.carried, train=True, **masks)
            value, dy = self.loss(raised(y, dtype), inputs.target, inputs.mask)  # type: ignore[misc]
            grads = self.model.backward(used, saved, lowered(dy, low, scaling.scale))[0]
            grads = {name: g for name, g in grads.items() if not self.optimizer.frozen(name)}
            grads = raised(grads, dtype, scaling.scale)
            norm = optimizers.global_norm(grads)
        # The step waits for the device here and nowhere else.
        loss, size = map(float, to_numpy(feed.home.xp.stack((value, norm))))
        next_scaling = after(self.precision, scaling, math.isfinite(size))
        if next_scaling is None or not math.isfinite(loss):
            feed.check(where, inputs.host, everything=True)
            narrow = "" if self.precision is None else f" in {low} at a loss scale of {scaling.scale:g}"
            raise FloatingPointError(f"{where}: {_diagnosis(loss, used, grads, narrow)}")
        state = state._replace(carried=carried, scaling=next_scaling)
        if not math.isfinite(size):
            return state, Taken(loss, size, False)
        if self.accumulate > 1:
            state, grads = self._accumulated(state, grads, inputs.weight)
            if state.batches:
                return state, Taken(loss, size, False)
            norm = optimizers.global_norm(grads)
        for callback in self.callbacks:
            grads = callback.gradients(grads, norm)
        params, moments = self.optimizer.update(params, grads, state.moments)
        return state._replace(params=params, moments=moments, updates=state.updates + 1), Taken(loss, size, True)

    def _accumulated(self, state: StepState, grads: Params, weight: float) -> tuple[StepState, Params]:
        """Add gradients to those that wait; return the mean of all of them once there are enough."""
        new = {name: weight * g for name, g in grads.items()}
        sums = new if state.sums is None else {name: state.sums[name] + g for name, g in new.items()}
        batches, total = state.batches + 1, state.weight + weight
        if batches < self.accumulate:
            return state._replace(sums=sums, weight=total, batches=batches), grads
        mean = {name: g / (total or 1.0) for name, g in sums.items()}
        return state._replace(sums=None, weight=0.0, batches=0), mean


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
