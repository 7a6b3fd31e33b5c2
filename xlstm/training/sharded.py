"""An optimiser shared by ranks: each keeps the moments of a part of the weights, and updates this part alone (ZeRO-1).

After Rajbhandari et al. 2020. The buffer of gradients is cut into equal parts, of which each rank gets the sum of one;
the new weights are put together again. This sends as many bytes as one sum of the whole, and takes a rank's share of
the time and of the memory of the optimiser. Rules work element by element, so a part of an array is as good as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.groups import Group
from xlstm.arrays.namespace import Array, Params
from xlstm.training.callbacks import Callback, Clip, has
from xlstm.training.optimizers import ByRules, Optimizer, OptimState, Slots, global_norm
from xlstm.training.parallel import ROOM, Joint, Update

LEAST = 1 << 20  # parameters from which on an optimiser is shared; with fewer its time does not matter


def joint_of(group: Group, home: Backend, params: Params, optimizer: Optimizer, callbacks: Iterable[Callback]) -> Joint:
    """Return what ranks sum up: with a shared optimiser for many parameters on a CPU, if nobody needs whole gradients.

    Parameters
    ----------
    group : Group
    home : Backend
    params : dict of str to array
    optimizer : Optimizer
    callbacks : list of Callback
    """
    moving = {name: p for name, p in params.items() if not optimizer.frozen(name)}
    whole = any(has(one, "gradients") and not (isinstance(one, Clip) and one.value is None) for one in callbacks)
    many = sum(p.size for p in moving.values()) >= max(LEAST, group.size)
    if many and group.size > 1 and home.name == "numpy" and isinstance(optimizer, ByRules) and not whole:
        return Sharded(group, home, moving)
    return Joint(group, home, moving)


class Sharded(Joint):
    """What ranks sum up, where each updates a part of the weights."""

    def __init__(self, group: Group, home: Backend, params: Params) -> None:
        super().__init__(group, home, params)
        self.part: Array = np.empty(self.each, self.buffer.dtype)  # of the gradients, and then of the new weights
        self.slots: dict[str, list[str]] = {}  # the parameters that have a moment, by slot
        self.places: dict[str, tuple[slice, slice]] = {}  # of what is in it: where it is in an array, and in the part
        first, at = group.rank * self.each, 0
        for name, p in params.items():
            start, end = max(at, first), min(at + p.size, first + self.each)
            if start < end:
                self.places[name] = slice(start - at, end - at), slice(start - first, end - first)
            at += p.size

    def cut(self, arrays: Params) -> Params:
        """Return the parts of arrays that this rank has, flat."""
        return {name: arrays[name].reshape(-1)[there] for name, (there, _) in self.places.items() if name in arrays}

    def cut_slots(self, slots: Slots) -> Slots:
        """Return copies of the parts of moments that this rank has, in the slots that have one."""
        self.slots = {slot: list(arrays) for slot, arrays in slots.items()}
        parts = {slot: {name: a.copy() for name, a in self.cut(arrays).items()} for slot, arrays in slots.items()}
        return {slot: arrays for slot, arrays in parts.items() if arrays}

    def gathered(self, parts: Params) -> Params:
        """Return arrays of the parts of all ranks."""
        for name, a in parts.items():
            self.part[self.places[name][1]] = a
        whole = np.empty(self.each * self.group.size, self.part.dtype)
        self.group.gather_parts(self.part, whole)
        found, at = Params(), 0
        for name, grads in self.grads.items():
            found[name] = whole[at : at + grads.size].reshape(grads.shape)
            at += grads.size
        return found

    def whole_slots(self, parts: Slots) -> Slots:
        """Return the moments of which each rank has a part."""
        found = {slot: self.gathered(parts.get(slot, {})) for slot in self.slots}
        return {slot: {name: found[slot][name] for name in names} for slot, names in self.slots.items()}

    def updated(self, update: Update, params: Params, grads: Params, moments: OptimState) -> tuple[Params, OptimState]:
        new, after = update(self.cut(params), grads, moments)
        return params | self.gathered(new), after

    def fail(self, local: bool, then_all: bool) -> None:
        self._refuse(True)
        self.group.sum(self.head)

    def _summed(self, start: int = 0) -> tuple[Params, Array]:
        if start == 0:
            self.group.sum(self.head)
            self.look()  # before parts are summed, in which a rank that has failed takes no part
        self.group.sum_part(self.buffer[ROOM:], self.part)
        grads = {name: self.part[place] for name, (_, place) in self.places.items()}
        squares = np.asarray(global_norm(grads), np.float64) ** 2 if grads else np.zeros(())
        self.group.sum(squares := squares.reshape(1))
        return grads, np.sqrt(squares[0]).astype(self.part.dtype)
