"""The state of a training, which is one tree, and the decisions of a step.

A step makes a new state from the last one. Some decisions depend on numbers, such as whether a step
counts. The host makes them, or on CuPy the GPU, so that the host need not wait: the decision is
then an array on the GPU with the numbers of `Decided`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.convert import to_numpy
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace, Params
from xlstm.precision import Scaling
from xlstm.training.feed import Feed
from xlstm.training.optimizers import OptimState


class Decided(NamedTuple):
    """The decisions of a step.

    Attributes
    ----------
    loss, norm : float
        The loss and the norm of the last step.
    failed : float
        The number of the first step that could not be taken, or 0. Nothing changes after that step.
    counts : float
        1 if the last step's gradients were used, else 0.
    """

    loss: float = 0.0
    norm: float = 0.0
    failed: float = 0.0
    counts: float = 0.0


class LossAndGradients(NamedTuple):
    """The result of a forward and a backward pass.

    Attributes
    ----------
    loss : 0-d array
    carried : tuple or None
        The state of the model at the end of the batch.
    used : dict of str to array
        The weights that the model was run with.
    grads : dict of str to array
    norm : 0-d array
        The norm of the gradients.
    """

    loss: Array
    carried: Any
    used: Params
    grads: Params
    norm: Array


class Head(NamedTuple):
    """The first numbers of the buffer. Each rank writes its own, and the sum over ranks is read.

    Attributes
    ----------
    loss : float
        The loss, or NaN if a rank has failed.
    squares : float
        The sum of the squares of the rank's gradients, if these are not summed with the head.
    status : float
        0 if the rank takes the step, 1 if its data have ended, and more than the number of ranks if
        it has failed.
    share : float
        The rank's share of the batch's targets; all shares sum to 1.
    signal, stop : float
        Above 0 if a rank has received a signal, or a callback has asked it to stop.
    check : float
        A number made of the rank's batches and learning rates so far; the sum is 0 if they are the
        same on all ranks.
    """

    loss: Any
    squares: Any
    status: Any
    share: Any
    signal: Any
    stop: Any
    check: Any


class HostScalars(NamedTuple):
    """The numbers that the host gives a step; the optimiser's numbers come after them.

    Attributes
    ----------
    number : float
        The number of the step among the steps that the host has not looked at, from 1.
    scale : float
        The factor of the gradients.
    forgiven : float
        1 if a step with gradients that are not finite is left out, 0 if it is an error.
    targets, total : float
        The number of targets in the batch, and in all batches of an update.
    share : float
        The rank's share of the batch's targets.
    signal, stop, check : float
        The numbers of the rank's `Head`.
    """

    number: float
    scale: float
    forgiven: float
    targets: float
    total: float
    share: float = 1.0
    signal: float = 0.0
    stop: float = 0.0
    check: float = 0.0


@dataclass(eq=False)
class Runtime:
    """The objects of a training that belong to its process, not to its state.

    Attributes
    ----------
    feed : Feed
        The feed that puts batches on the device of the parameters.
    ranks : AllReduce or None
        The sums of the ranks of a group.
    graphs : Graphs or None
        CUDA graphs of steps, which own the state's arrays and change them in-place.
    """

    feed: Feed
    ranks: Any = None
    graphs: Any = None


class StepState(NamedTuple):
    """The state of training that a step reads and renews.

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
        The gradients accumulated since the last update, each batch's times its number of targets.
    weight : float
        The number of targets in `sums`.
    batches : int
        The number of batches in `sums`.
    updates : int
        The number of updates done.
    masks : numpy.random.Generator or None
        The generator from which a step draws the masks of dropout and zoneout.
    decided : Decided, or array
        The decisions of the last step; on a GPU an array.
    pending : tuple of str
        The names of steps that the host has not looked at yet.
    runtime : Runtime
        The objects of this process: feed, ranks and captured graphs.
    """

    params: Params
    moments: OptimState
    carried: Any
    scaling: Scaling
    sums: Params | None
    weight: float
    batches: int
    updates: int
    masks: np.random.Generator | None
    decided: Decided | Array
    pending: tuple[str, ...]
    runtime: Runtime


class Taken(NamedTuple):
    """The result of a step: its loss, its norm, and whether it changed the parameters.

    Attributes
    ----------
    loss : float, or 0-d array
        The loss of the batch; an array on the GPU if the step did not wait.
    norm : float, or 0-d array
        The global norm of the gradients. With a group and `accumulate` it is the root of the sum of
        the squares of all ranks' parts.
    updated : bool, or 0-d array
        Whether the step changed the parameters.
    """

    loss: float | Array
    norm: float | Array
    updated: bool | Array


def read(decided: Decided | Array) -> Decided:
    """Return decisions on the host; it waits for a GPU's decisions."""
    return Decided(*to_numpy(decided).tolist())


def decide_on_device(
    xp: Namespace, last: Array, loss: Array, norm: Array, scalars: HostScalars
) -> Array:
    """Return the decisions of a step on a GPU, from the last step's decisions, in one launch."""
    decided = xp.empty_like(last)
    _, _, failed, _ = last
    numbers = (scalars.number, scalars.forgiven, failed)
    fuse(xp, _decisions, loss, norm, *numbers, out=tuple(decided))
    return decided


def _decisions(
    xp: Namespace, loss: Array, norm: Array, number: Array, forgiven: Array, failed: Array
) -> tuple[Array, Array, Array, Array]:
    """Return the numbers of `Decided`, in its order."""
    loss = xp.astype(loss, xp.float64)
    norm = xp.astype(norm, xp.float64)
    finite = _finite(xp, norm)
    sound = _finite(xp, loss) * xp.maximum(finite, forgiven)
    failed = xp.where(failed > 0, failed, (1 - sound) * number)
    return loss, norm, failed, xp.where(failed > 0, xp.zeros_like(failed), finite)


def _finite(xp: Namespace, a: Array) -> Array:
    """Return 1 if a number is finite, else 0."""
    return xp.where(xp.abs(a) <= sys.float_info.max, xp.ones_like(a), xp.zeros_like(a))


ARRAYS = ("params", "carried", "sums")  # of a state, as a checkpoint has them
COUNTS = ("weight", "batches", "updates")


def packed(state: StepState) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the numbers and the rest of a state by name, as a checkpoint stores them."""
    numbers = {name: getattr(state, name) for name in COUNTS} | state.scaling._asdict()
    tree = {name: getattr(state, name) for name in ARRAYS}
    tree["slots"] = state.moments.slots
    tree["masks"] = None if state.masks is None else state.masks.bit_generator.state
    return numbers, tree


def unpacked(state: StepState, numbers: dict[str, Any], tree: dict[str, Any]) -> StepState:
    """Return the state that `packed` was given, with the runtime of `state`."""
    if state.masks is not None:
        state.masks.bit_generator.state = tree["masks"]
    return state._replace(
        **{name: tree[name] for name in ARRAYS},
        **{name: numbers[name] for name in COUNTS},
        moments=OptimState(numbers["updates"], tree["slots"]),
        scaling=Scaling(numbers["scale"], numbers["good"]),
    )
