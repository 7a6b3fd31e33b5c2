"""The decisions of a step of training, made on a GPU so that the host need not wait for them.

They are whether a step counts, the loss scale of the next one, and how many updates there have been. The state of a
device is a float64 array there with the numbers of `Decided`; a step makes a new one from the last.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreach import Picked
from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace
from xlstm.precision import Mixed, rescaled


class Decided(NamedTuple):
    """The numbers of a device_state.

    Attributes
    ----------
    loss, norm : float
        Those of the last step.
    scale, good : float
        The loss scale of the next step, and how many steps were good since it changed.
    updates : float
        Updates done.
    weight, batches : float
        Targets and batches that were accumulated since the last update.
    steps : float
        Steps since the device_state was begun.
    failed : float
        The number of the first of these steps that could not be taken, or 0; nothing changes after it.
    counts, updated : float
        Whether the last step's gradients were taken, and whether it updated the parameters: 1 or 0.
    total : float
        Targets of all gradients of an update.
    row : float
        The place of the numbers of the last step's update among those that it was given.
    """

    loss: float = 0.0
    norm: float = 0.0
    scale: float = 1.0
    good: float = 0.0
    updates: float = 0.0
    weight: float = 0.0
    batches: float = 0.0
    steps: float = 0.0
    failed: float = 0.0
    counts: float = 0.0
    updated: float = 0.0
    total: float = 1.0
    row: float = 0.0


KEPT = ("scale", "good", "updates", "weight", "batches", "steps", "failed")  # what a step takes from the last one


def given(weight: float, first: int, rows: Sequence[Sequence[float]], room: int) -> np.ndarray[Any, Any]:
    """Return the numbers that the host gives a step, which `numbers` reads on the device.

    They are the number of targets of the batch, the number of the update that the first row is for, and rows of numbers
    of the optimiser, with room for so many.
    """
    values = np.zeros(2 + len(rows[0]) * room)
    values[:2] = weight, first
    values[2:].reshape(-1, room)[:, : len(rows)] = np.transpose(rows)
    return values


def numbers(values: Array, width: int, device_state: Array) -> list[Picked]:
    """Return those `width` numbers of the optimiser in `given` that are for the update which comes next."""
    return [Picked(column, value(device_state, "row")) for column in values[2:].reshape((width, -1))]


def begin(home: Backend, known: Decided) -> Array:
    """Return a device_state with these numbers."""
    return home.asarray(np.array(known), "float64")


def value(device_state: Array, name: str) -> Array:
    """Return a number of a device_state, a 0-d array that lies in it."""
    return device_state[Decided._fields.index(name)]


def read(device_state: Array) -> Decided:
    """Return the numbers of a device_state; the host waits for the device."""
    return Decided(*to_numpy(device_state).tolist())


def decide(
    xp: Namespace, device_state: Array, loss: Array, norm: Array, given: Array, precision: Mixed | None, accumulate: int
) -> Array:
    """Return the state of the device after a step with this loss and norm of its gradients, from one launch."""
    rule: dict[str, Any] = {"accumulate": accumulate, "scales": precision is not None and precision.scales}
    if precision is not None and precision.scales:
        rule |= precision.rule
    after = xp.empty_like(device_state)
    before = (value(device_state, name) for name in KEPT)
    fuse(xp, _decided, loss, norm, given[0], given[1], *before, out=tuple(after[k] for k in range(len(after))), **rule)
    return after


def _decided(
    xp: Namespace,
    loss: Array,
    norm: Array,
    targets: Array,
    first: Array,
    *before: Array,
    accumulate: int,
    scales: bool,
    **rule: float,
) -> tuple[Array, ...]:
    """Return the numbers of `Decided`, in its order; `before` are those of KEPT."""
    scale, good, updates, weight, batches, steps, failed = before
    loss, norm = xp.astype(loss, xp.float64), xp.astype(norm, xp.float64)
    one, none = xp.ones_like(scale), xp.zeros_like(scale)
    finite, possible = _finite(xp, norm, one, none), none
    if scales:
        next_scale, next_good, possible = rescaled(xp, finite, scale, good, **rule)
    sound = _finite(xp, loss, one, none) * xp.maximum(finite, possible)
    steps = steps + 1
    failed = xp.where(failed > 0, failed, (1 - sound) * steps)
    goes_on = xp.where(failed > 0, none, one)
    if scales:
        scale, good = xp.where(goes_on > 0, next_scale, scale), xp.where(goes_on > 0, next_good, good)
    counts = goes_on * finite
    batches, weight = batches + counts, weight + counts * targets
    updated = counts * xp.where(batches >= accumulate, one, none)
    total = xp.where(weight > 0, weight, one)
    left = [xp.where(updated > 0, none, a) for a in (weight, batches)]
    row = xp.maximum(updates - first, none)
    return loss, norm, scale, good, updates + updated, *left, steps, failed, counts, updated, total, row


def _finite(xp: Namespace, a: Array, one: Array, none: Array) -> Array:
    """Return 1 where a number is finite, else 0."""
    return xp.where(xp.abs(a) <= sys.float_info.max, one, none)
