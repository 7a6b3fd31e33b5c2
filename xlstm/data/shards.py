"""The part of the data that a rank trains on: its columns of every batch, so that all ranks go
through all batches.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.ranks.groups import GROUP, Group, Part, columns
from xlstm.data.batches import BATCHES, Batch, Batches, ByRows, Prefetch, Shuffler, mask_of_steps
from xlstm.data.host import Host

COMPARED = 2048  # targets of a batch that ranks compare by their checksum


@dataclass(frozen=True)
class Shard:
    """Data of which a rank sees its own sequences: as many of each batch as the others, or one more
    or less.

    The batches and their order are those of the data, and so are the random numbers that they take.
    Where the data can, they prepare nothing but the own sequences. A rank may have none where a
    batch has fewer than there are ranks. Sequences that `groups` of a TiRex-2 put together stay
    together.

    Parameters
    ----------
    data : Batches
        The same on all ranks.
    group : Group
        As `distributed.group()` returns it.

    Raises
    ------
    TypeError
        These are no data, or no group.
    """

    data: Batches
    group: Group

    def __post_init__(self) -> None:
        checks.fields(self, data=BATCHES, group=GROUP)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.data)

    def batches(self, rng: Shuffler = None) -> Iterator[Batch]:
        """Yield one epoch, in the order of the data."""
        data: Any = self.data
        if isinstance(data, Prefetch):
            yield from dataclasses.replace(data, data=Shard(data.data, self.group)).batches(rng)
        elif isinstance(data, ByRows) and type(data).batches is ByRows.batches:
            timed = getattr(data, "every_step", False)
            for number, rows in enumerate(data.orders(rng)):
                own = columns(len(rows), self.group)
                batch = data.batch(rows, own)
                truths = data.truths(rows[_compared(batch.target, timed, len(rows), number)])
                yield _part(batch, own, len(rows), timed, rows, truths)
        elif hasattr(data, "parts"):
            yield from data.parts(self.group, rng)
        else:
            for number, batch in enumerate(data.batches(rng)):
                yield cut(batch, self.group, getattr(data, "every_step", None), number)


def cut(batch: Batch, group: Group, every_step: bool | None, number: int) -> Batch:
    """Return the columns of a batch that a rank has.

    Parameters
    ----------
    batch : Batch
    group : Group
    every_step : bool or None
        Whether targets have a time axis; with None those have one that begin with the axes (T, B)
        of x.
    number : int
        That of the batch in its epoch, from 0.
    """
    if not isinstance(batch, Batch):
        raise TypeError(f"Shard: the batch is {checks.shown(batch)}, expected an xlstm.data.Batch")
    T, B = batch.x.shape[:2]
    options = batch.options or {}
    own = columns(B, group)
    if "groups" in options:
        own = _whole_groups(to_numpy(options["groups"]), group)
    timed = tuple(batch.target.shape[:2]) == (T, B) if every_step is None else every_step
    options = {name: _own(name, value, own) for name, value in options.items()}
    steps = (slice(None),) if timed else ()
    some = _compared(batch.target, timed, B, number)
    mine = batch._replace(x=batch.x[:, own], target=batch.target[*steps, own], options=options)
    return _part(mine, own, B, timed, batch.x[0, some], batch.target[*steps, some])


def _own(name: str, option: Any, own: slice) -> Any:
    """Return an option of some of the sequences of a batch."""
    if option is None:
        return None
    if name == "cu_seqlens":
        raise ValueError("Shard: cu_seqlens is for one sequence, expected resets (T, B)")
    if name == "resets":
        return to_numpy(option if hasattr(option, "shape") else np.asarray(option))[:, own]
    return option[own]


def _compared(target: Any, timed: bool, B: int, number: int) -> slice:
    """Return the sequences of a batch whose targets ranks compare: all where they are few, else
    some in turn.
    """
    each = math.prod(target.shape[:1] + target.shape[2:] if timed else target.shape[1:])
    count = max(1, COMPARED // max(1, each))
    first = number % max(1, -(-B // count)) * count
    return slice(first, first + count)


def _part(batch: Batch, own: slice, B: int, timed: bool, *seen: Any) -> Batch:
    """Return a part of a batch of B, of which `batch` has the columns `own`, but the whole mask and
    all lengths.

    Its checksum is that of all lengths and of the arrays `seen`, which are of the whole batch.
    Arrays on a device are left out.
    """
    mask, lengths = (
        None if array is None else to_numpy(array) for array in (batch.mask, batch.lengths)
    )
    T = len(batch.x)
    if timed and (mask is not None or lengths is not None):
        mask = mask_of_steps(mask, lengths, T, B)
    shape = (T, B, *batch.target.shape[2:]) if timed else (B, *batch.target.shape[1:])
    total = float(math.prod(shape))
    if mask is not None:
        total = float(np.sum(mask)) * math.prod(shape[mask.ndim :])
        mask = mask[:, own] if timed else mask[own]
    checksum = 0
    for array in (lengths, *seen):
        if isinstance(array, np.ndarray):
            checksum = zlib.crc32(array.tobytes(), checksum)
    part = Part(total, B, own, lengths, checksum)
    return batch._replace(mask=mask, lengths=None if lengths is None else lengths[own], part=part)


def _whole_groups(groups: Host, group: Group) -> slice:
    """Return the columns of a rank where sequences with the same number of `groups` (B,) stay
    together.
    """
    borders = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]
    if len(borders) - 1 != len(np.unique(groups)):
        raise ValueError(
            f"Shard: groups is {checks.shown(groups)}, expected sequences of a group side by side"
        )
    own = columns(len(borders) - 1, group)
    return slice(borders[own.start], borders[own.stop])
