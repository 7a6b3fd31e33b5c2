"""The decisions of a step of training, made on a GPU so that the host need not wait for them.

They are whether a step counts, and whether all steps so far could be taken. The state of a device is a float64 array
there with the numbers of `Decided`; a step makes a new one from the last, and from the numbers that the host gives it.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from xlstm.arrays.fuse import fuse
from xlstm.arrays.namespace import Array, Namespace


class Decided(NamedTuple):
    """The numbers of a device_state.

    Attributes
    ----------
    loss, norm : float
        Those of the last step.
    failed : float
        The number of the first step that could not be taken, or 0; nothing changes after it.
    counts : float
        Whether the last step's gradients were taken: 1 or 0.
    """

    loss: float = 0.0
    norm: float = 0.0
    failed: float = 0.0
    counts: float = 0.0


class Given(NamedTuple):
    """The numbers that the host gives a step; those of the optimiser come after them.

    Attributes
    ----------
    number : float
        That of the step among those that the host has not looked at, from 1.
    scale : float
        The factor of the gradients.
    forgiven : float
        1 where a step whose gradients are not finite is left out, and 0 where it cannot be taken.
    targets, total : float
        The number of targets of the batch, and of all batches of an update.
    """

    number: float
    scale: float
    forgiven: float
    targets: float
    total: float


def decision(device_state: Array, name: str) -> Array:
    """Return a number of a device_state, a 0-d array that lies in it."""
    return device_state[Decided._fields.index(name)]


def decide(xp: Namespace, device_state: Array, loss: Array, norm: Array, given: Given) -> Array:
    """Return the state of the device after a step with this loss and norm of its gradients, from one launch."""
    after, failed = xp.empty_like(device_state), decision(device_state, "failed")
    places = tuple(after[k] for k in range(len(after)))
    fuse(xp, _decisions, loss, norm, given.number, given.forgiven, failed, out=places)
    return after


def _decisions(
    xp: Namespace, loss: Array, norm: Array, number: Array, forgiven: Array, failed: Array
) -> tuple[Array, Array, Array, Array]:
    """Return the numbers of `Decided`, in its order."""
    loss, norm = xp.astype(loss, xp.float64), xp.astype(norm, xp.float64)
    finite = _finite(xp, norm)
    sound = _finite(xp, loss) * xp.maximum(finite, forgiven)
    failed = xp.where(failed > 0, failed, (1 - sound) * number)
    return loss, norm, failed, xp.where(failed > 0, xp.zeros_like(failed), finite)


def _finite(xp: Namespace, a: Array) -> Array:
    """Return 1 where a number is finite, else 0."""
    return xp.where(xp.abs(a) <= sys.float_info.max, xp.ones_like(a), xp.zeros_like(a))
