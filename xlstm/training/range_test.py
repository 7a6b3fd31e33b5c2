"""A learning-rate range test: record the loss while the learning rate grows."""

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
        Learning rates, in increasing order.
    losses : array (N,)
        The smoothed loss at each rate.
    suggestion : float
        A learning rate to start with, at least `low`. It is a tenth of the rate at which the
        smoothed loss was furthest below the starting weights' loss on the same batches; a little
        beyond that rate, training diverges.
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
    """Suggest a learning rate: train while the rate grows from `low` to `high` (Smith 2017).

    The starting weights also run on the same batches, so that easy batches do not distort the
    result. The trained weights are discarded.

    Parameters
    ----------
    model : object
        As for `train`.
    params : dict of str to array
    data : Batches, or an iterable of batches or pairs
        As for `train`. They are read as often as needed.
    optimizer : callable
        A function that makes an optimiser of a schedule, such as `optim.adam`.
    low, high : float
        The first and the last learning rate.
    steps : int
        Number of steps, at least 10. The test ends earlier if the loss reaches four times the
        starting weights' loss.
    loss : callable, optional
        As for `train`.
    seed : int
        It decides the order of the batches, and the masks of dropout and zoneout.

    Returns
    -------
    RangeTest

    Raises
    ------
    ValueError, TypeError
        An argument is out of range or of the wrong kind, or the loss diverges at once.

    Examples
    --------
    >>> import numpy as np, xlstm
    >>> from xlstm import optim, training
    >>> from xlstm.data import Windows
    >>> lstm = xlstm.LSTM(1, 4)
    >>> data = Windows(np.ones((8, 5, 1)), np.ones((8, 5, 4)), every_step=True)
    >>> start = lstm.init(backend="numpy")
    >>> found = training.find_learning_rate(lstm, start, data, optim.adam, low=1e-5, steps=20)
    >>> found.suggestion >= 1e-5
    True
    """
    where = "find_learning_rate"
    low = checks.above_0(where, "low", low)
    high = checks.above_0(where, "high", high)
    steps = checks.whole(10, checks.COUNTED)(where, "steps", steps)
    if high <= low:
        raise ValueError(f"{where}: high is {high:g}, expected more than low, which is {low:g}")
    checks.function(where, "optimizer", optimizer)
    run: dict[str, Any] = {"steps": steps, "loss": loss, "seed": seed}
    # the loss after each step, and the starting weights' loss on the same batches
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
