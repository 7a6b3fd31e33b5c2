"""Optimisers as others see them: a pair of functions over a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from xlstm.arrays.namespace import Params
from xlstm.training.schedules import Schedule


class OptimState(NamedTuple):
    """The state of an optimiser: updates done, and moments (slot name -> parameter name -> array)."""

    step: int
    slots: dict[str, Params]


def _none(name: str) -> bool:
    return False


class Parts(NamedTuple):
    """The parts of an update: its numbers, which the host makes, and what is done to arrays.

    Attributes
    ----------
    width : int
        How many numbers there are.
    numbers : callable
        `numbers(step) -> tuple of float`, all that depends on the number of updates done, such as the learning rate.
    apply : callable
        `apply(params, grads, slots, numbers, done, in_place) -> (params, slots)`, the update by these numbers, which
        may be on the device. Where `done`, a 0-d array, is 0 nothing changes; None stands for 1. With `in_place` new
        values take the places of the old ones.
    """

    width: int
    numbers: Callable[[int], tuple[float, ...]]
    apply: Callable[..., tuple[Params, dict[str, Params]]]


class Optimizer(NamedTuple):
    """An optimiser.

    Attributes
    ----------
    init : callable
        `init(params) -> state`.
    update : callable
        `update(params, grads, state) -> (params, state)`.
    frozen : callable
        `frozen(name) -> bool`, whether the parameter stays as it is; its gradient is not needed.
    parts : Parts, optional
        `update` in two parts, for steps of training that do not wait for a GPU. An optimiser of your own may leave them
        out, and its steps then wait.
    schedules : tuple of Schedule
        Its learning rates, by which `train` sees whether a `ReduceOnPlateau` among them is a callback, too. An
        optimiser of your own may leave them out.
    """

    init: Callable[[Params], OptimState]
    update: Callable[[Params, Params, OptimState], tuple[Params, OptimState]]
    frozen: Callable[[str], bool] = _none
    parts: Parts | None = None
    schedules: tuple[Schedule, ...] = ()
