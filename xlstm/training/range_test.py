"""A test of learning rates: the loss while the rate grows."""

from __future__ import annotations

import contextlib
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
from xlstm.training.optimizers import Optimizer, adam, sgd
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
        A tenth of the rate at which the loss, smoothed, had fallen most below that of the starting
        weights on the same batches, since a little beyond that training diverges; at least `low`.
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

    The same batches also go through the starting weights, so that it does not matter which of them
    are easy. The weights that result are thrown away.

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
        At least 10; the test ends earlier where the loss is four times that of the starting
        weights.
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
    low = checks.above_0(where, "low", low)
    high = checks.above_0(where, "high", high)
    steps = checks.whole(10, checks.COUNTED)(where, "steps", steps)
    if high <= low:
        raise ValueError(f"{where}: high is {high:g}, expected more than low, which is {low:g}")
    checks.function(where, "optimizer", optimizer)
    run: dict[str, Any] = {"steps": steps, "loss": loss, "seed": seed}
    # the loss after each step, and that of the starting weights on the same batches
    smoothed: list[Any] = []
    mean = np.zeros(2)
    smooth = 0.9

    def rate(done: Any) -> Any:
        return low * (high / low) ** (done / (steps - 1))

    def diverges(now: Progress) -> bool:
        nonlocal mean
        mean = smooth * mean + (1 - smooth) * np.array([now.loss, still.losses[now.total - 1]])
        smoothed.append(mean / (1 - smooth**now.total))
        return bool(now.total > steps // 10 and smoothed[-1][0] > 4 * np.mean(still.losses))

    growing = optimizer(lambda done: rate(min(done, steps - 1)))
    with contextlib.suppress(FloatingPointError):  # it has diverged
        still = train(model, params, data, sgd(lambda done: 0.0), **run)
        train(model, params, data, growing, progress=diverges, **run)
    if len(smoothed) < 3:
        done = len(smoothed)
        raise ValueError(
            f"{where}: the loss diverges after {done} steps, at a rate of {rate(done):g}; lower low"
        )
    losses, before = np.array(smoothed).T
    rates = rate(np.arange(len(losses)))
    best = float(rates[int(np.argmin(losses - before))])
    return RangeTest(rates, losses, max(low, best / 10))
