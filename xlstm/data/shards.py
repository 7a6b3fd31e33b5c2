"""The part of the data that a rank trains on: its columns of every batch.

So all ranks see the same batches in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.groups import GROUP, Group, columns
from xlstm.data.batches import (
    BATCHES,
    Batch,
    Batches,
    Prefetch,
    Shuffler,
    after,
    part_of,
    timeless,
)
from xlstm.data.host import Host


@dataclass(frozen=True)
class Shard:
    """Data that give a rank its own sequences of each batch.

    Ranks have equally many sequences, or differ by one.

    Batches, their order and the random numbers drawn are the same as in the whole data. If the data
    support it, a rank prepares only its own sequences. If a batch has fewer sequences than there
    are ranks, some ranks have none. Sequences that belong to one of the `groups` of a TiRex-2 stay
    together.

    Parameters
    ----------
    data : Batches
        The whole data, the same on all ranks.
    group : Group
        The ranks, as `distributed.group()` returns them.

    Raises
    ------
    TypeError
        `data` does not yield batches, or `group` is not a group.
    """

    data: Batches
    group: Group

    def __post_init__(self) -> None:
        checks.fields(self, data=BATCHES, group=GROUP)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.data)

    def batches(self, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield one epoch without its first `skip` batches, in the order of the data."""
        data: Any = self.data
        if isinstance(data, Prefetch):
            inner = Shard(data.data, self.group)
            yield from dataclasses.replace(data, data=inner).batches(rng, skip)
        elif _makes_parts(type(data)):
            yield from data.parts(self.group, rng, skip)
        else:
            for number, batch in enumerate(after(data, rng, skip), skip):
                yield cut(batch, self.group, getattr(data, "every_step", None), number)


def _makes_parts(kind: type) -> bool:
    """Return whether a class yields parts of its own batches; a subclass may override only
    `batches`.
    """
    owner = next((base for base in kind.__mro__ if "batches" in vars(base)), object)
    return "parts" in vars(owner)


def cut(batch: Batch, group: Group, every_step: bool | None, number: int) -> Batch:
    """Return the columns of a batch that belong to a rank.

    Parameters
    ----------
    batch : Batch
    group : Group
    every_step : bool or None
        Whether the targets of an x with a time axis have one, too. If None, they have one if they
        begin with the axes (T, B) of x.
    number : int
        The number of the batch in its epoch, from 0.
    """
    if not isinstance(batch, Batch):
        raise TypeError(f"Shard: the batch is {checks.shown(batch)}, expected an xlstm.data.Batch")
    shape = batch.x.shape
    axis = 0 if timeless(batch.x) else 1
    if len(shape) <= axis:
        raise ValueError(
            f"Shard: batch {number + 1} has x of shape {shape}, expected (T, B, D), tokens (T, B), or"
            " (B, D)"
        )
    B = shape[axis]
    options = batch.options or {}
    own = columns(B, group)
    if "groups" in options:
        own = _whole_groups(to_numpy(options["groups"]), group)
    if every_step is None:
        every_step = batch.target.shape[:2] == shape[:2]
    timed = bool(axis and every_step)
    steps = [slice(None)]
    mine = batch._replace(
        x=batch.x[*steps * axis, own],
        target=batch.target[*steps * timed, own],
        options={name: _own(name, value, own) for name, value in options.items()},
    )
    seen = (batch.x, batch.target, *options.values()) if group.size > 1 else ()
    return part_of(mine, own, B, timed, *seen)


def _own(name: str, option: Any, own: slice) -> Any:
    """Return an option for the sequences `own` of a batch."""
    if option is None:
        return None
    if name == "cu_seqlens":
        raise ValueError("Shard: cu_seqlens is for one sequence, expected resets (T, B)")
    if name == "resets":
        return to_numpy(option if hasattr(option, "shape") else np.asarray(option))[:, own]
    return option[own]


def _whole_groups(groups: Host, group: Group) -> slice:
    """Return the columns of a rank, if sequences with the same number in `groups` (B,) stay
    together.
    """
    borders = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
    if len(borders) - 1 != len(np.unique(groups)):
        raise ValueError(
            f"Shard: groups is {checks.shown(groups)}, expected sequences of a group side by side"
        )
    own = columns(len(borders) - 1, group)
    return slice(borders[own.start], borders[own.stop])
