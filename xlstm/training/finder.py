"""The learning-rate range test: how the loss changes while the rate grows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import Seed, generator
from xlstm.data.batches import BATCHES, Batches
from xlstm.training.feed import Inputs, Loss
from xlstm.training.optimizers import Optimizer, adam
from xlstm.training.schedules import Schedule
from xlstm.training.step import Step

SMOOTH = 0.9  # decay of the running mean of losses
SKIPPED = 10  # the first of so many parts of the test, where the mean is of few losses, does not count
MARGIN = 10.0  # between the rate with the lowest loss and the suggested one
DIVERGED = 4.0  # the test ends when the running mean is so many times its lowest value


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
    optimizer: Callable[[Schedule], Optimizer] = adam,
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
    BATCHES(where, "data", data)
    checks.function(where, "optimizer", optimizer)
    rates = low * (high / low) ** (np.arange(steps) / (steps - 1))
    step = Step(model, optimizer(lambda done: float(rates[min(done, steps - 1)])), loss=loss)
    state = step.init(params, seed)
    found: list[float] = []
    mean, lowest, skipped = 0.0, math.inf, steps // SKIPPED
    for number, batch in zip(range(1, steps + 1), _forever(state.feed.batches, data, where, seed), strict=False):
        try:
            state, taken = step(state, batch, f"{where}: step {number}")
        except FloatingPointError:  # it has diverged
            break
        mean = SMOOTH * mean + (1 - SMOOTH) * taken.loss
        found.append(mean / (1 - SMOOTH**number))
        if number > skipped:
            lowest = min(lowest, found[-1])
        if found[-1] > DIVERGED * lowest:
            break
    if len(found) < max(3, skipped + 1):
        rate = rates[len(found)]
        raise ValueError(f"{where}: the loss diverges after {len(found)} steps, at a rate of {rate:g}; lower low")
    best = float(rates[skipped + int(np.argmin(found[skipped:]))])
    return RangeTest(rates[: len(found)], np.array(found), max(low, best / MARGIN))


def _forever(batches: Callable[..., Iterator[Inputs]], data: Batches, where: str, seed: Seed) -> Iterator[Inputs]:
    """Yield the batches of epoch after epoch."""
    order = generator(seed, stream=1, where=where)
    while True:
        yield from batches(data, where, ": batch", order)
