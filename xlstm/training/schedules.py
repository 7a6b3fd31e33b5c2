"""Learning rates as schedules: functions of the number of updates done, which can be pickled and
copied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from xlstm.arrays import checks

Schedule = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """Make a schedule that keeps the same learning rate.

    Parameters
    ----------
    lr : float

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError, TypeError
        A setting is out of range, or no number.
    """
    return functools.partial(_constant, rate=checks.above_0("constant", "lr", lr))


def step_decay(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """Make a schedule that multiplies lr by `factor`, which is at most 1, every `every` updates.

    Parameters
    ----------
    lr : float
    every : int
        Updates between two changes.
    factor : float

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError, TypeError
        A setting is out of range, or no number.

    Examples
    --------
    >>> rate = step_decay(0.1, every=10, factor=0.5)
    >>> rate(0), rate(9), rate(10)
    (0.1, 0.1, 0.05)
    """
    rate = checks.above_0("step_decay", "lr", lr)
    every = checks.count("step_decay", "every", every)
    factor = checks.non_negative("step_decay", "factor", factor)
    if factor > 1:
        raise ValueError(f"step_decay: factor is {factor}, expected at most 1")
    return functools.partial(_step_decay, rate=rate, every=every, factor=factor)


def cosine(lr: float, steps: int, floor: float = 0.0) -> Schedule:
    """Make a schedule that falls from lr to `floor` along half a cosine in `steps` updates, and
    stays there (Loshchilov & Hutter 2017).

    Parameters
    ----------
    lr : float
        The rate of the first update.
    steps : int
    floor : float
        The rate after `steps` updates.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError, TypeError
        A setting is out of range, or no number.

    Examples
    --------
    >>> rate = cosine(0.1, steps=100)
    >>> rate(0), round(rate(50), 6), rate(100)
    (0.1, 0.05, 0.0)
    """
    rate = checks.above_0("cosine", "lr", lr)
    steps = checks.count("cosine", "steps", steps)
    return functools.partial(
        _cosine, steps=steps, rate=rate, floor=checks.non_negative("cosine", "floor", floor)
    )


def warmup(steps: int, then: Schedule) -> Schedule:
    """Make a schedule that rises linearly to `then(0)` over `steps` updates, then follows `then`
    from its beginning.

    Parameters
    ----------
    steps : int
    then : Schedule

    Returns
    -------
    Schedule

    Raises
    ------
    TypeError, ValueError
        `steps` is not a count, or `then` is not a schedule.

    Examples
    --------
    >>> rate = warmup(4, constant(0.1))
    >>> [round(rate(step), 6) for step in range(6)]
    [0.02, 0.04, 0.06, 0.08, 0.1, 0.1]
    """
    steps = checks.count("warmup", "steps", steps)
    then = schedule("warmup", "then", then)
    return functools.partial(_warmup, steps=steps, then=then)


def schedule(where: str, name: str, value: float | Schedule) -> Schedule:
    """Return a number as a constant schedule, and a schedule unchanged if it returns a rate for
    step 0.
    """
    if not callable(value):
        return functools.partial(_constant, rate=checks.above_0(where, name, value))
    try:
        first = checks.function(where, name, value)(0)
    except Exception as error:
        raise TypeError(
            f"{where}: {name} is no schedule ({checks.shown(value)}: {error})"
        ) from error
    checks.finite(where, f"{name}(0)", first)
    return value


# The schedules are partial applications of these functions, so that they can be pickled and copied.


def _constant(step: int, rate: float) -> float:
    return rate


def _step_decay(step: int, rate: float, every: int, factor: float) -> float:
    return float(rate * factor ** (step // every))


def _cosine(step: int, rate: float, steps: int, floor: float) -> float:
    return floor + (rate - floor) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def _warmup(step: int, steps: int, then: Schedule) -> float:
    return then(0) * (step + 1) / (steps + 1) if step < steps else then(step - steps)
