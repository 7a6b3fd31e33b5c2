"""A test of learning rates: the loss while the rate grows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.arrays.random import Seed
from xlstm.data.batches import Batches
from xlstm.training.callbacks import Progress
from xlstm.training.feed import Loss
from xlstm.training.loop import train
from xlstm.training.optimizers import Optimizer, adam
from xlstm.training.schedules import Schedule


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
    data: Batches | Iterable[Any],
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
    data : Batches, or an iterable of batches or pairs
        As for `train`. They are gone through as often as needed.
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
