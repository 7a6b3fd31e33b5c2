"""Data for training a TiRex: windows of series, of which each token is to predict the next patch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.random import generator
from xlstm.data.batches import Batch
from xlstm.data.host import Values
from xlstm.data.synthetic import synthetic
from xlstm.models.tirex import series, windows

Numbers = np.ndarray[Any, Any]
MODEL = checks.having("patch_size", "context", "scaler", expected="a TiRex or a TiRex2")
SIZES = dict.fromkeys(("stride", "horizon"), checks.optional(checks.size))
UNSEEN = 7  # the seed of synthetic series that no run of training draws


@dataclass(frozen=True)
class PatchWindows:
    """Windows over series, as a TiRex sees them, with the patch after each token as its target.

    A window is measured in units of its own, as for a forecast, and so are its targets. Values that are missing have no
    target. To teach a horizon of several patches, of some windows the last patches are hidden, as many as chance says;
    without chance, to judge a model, as many as the horizon has after its first patch.

    Parameters
    ----------
    model : TiRex or TiRex2
    series : array (L,) or (S, L), or list of arrays (L,)
        Each of two values or more; NaN is a missing value.
    horizon : int, optional
        Steps to learn to forecast, by default a patch; less than the context.
    stride : int, optional
        Values from the end of a window to that of the next, by default a patch.
    batch_size : int
    since : list of int, optional
        The number of the first value of each series that may be a target; by default all are.

    Raises
    ------
    TypeError, ValueError
        The series are none, no value may be a target, or an argument is out of range.
    """

    model: Any
    series: Any = field(repr=False)
    horizon: int | None = None
    stride: int | None = None
    batch_size: int = 32
    since: Sequence[int] | None = None
    _rows: list[Values] = field(init=False, repr=False, compare=False)
    _ends: Numbers = field(init=False, repr=False, compare=False)  # (N, 2): a series, and the values before its target

    def __post_init__(self) -> None:
        where = "PatchWindows"
        checks.fields(self, model=MODEL, batch_size=checks.size, **SIZES)
        rows = [row[0] for row in series.read(where, self.series, 1).rows]
        since = [0] * len(rows)
        if self.since is not None:
            given = checks.several(where, "since", self.since, "one number for each series", checks.LARGEST)
            since = [checks.size_or_0(where, f"since[{k}]", n) for k, n in enumerate(given)]
            if len(since) != len(rows):
                problem = f"since has {len(since)} numbers"
                raise ValueError(f"{where}: {problem}, expected one for each of {len(rows)} series")
        P = self.model.patch_size
        if (self.horizon or P) >= self.model.context:
            raise ValueError(
                f"{where}: horizon is {self.horizon}, expected less than {self.model.context}, the context"
            )
        found = [(k, end) for k, row in enumerate(rows) for end in self._places(len(row), since[k])]
        if not any(np.any(~np.isnan(rows[k][max(1, since[k]) :])) for k in range(len(rows))):
            raise ValueError(f"{where}: no series has a value after its first one that may be a target")
        object.__setattr__(self, "since", since)
        object.__setattr__(self, "_rows", rows)
        object.__setattr__(self, "_ends", np.array(found, dtype=np.int64).reshape(-1, 2))

    def _places(self, L: int, since: int) -> Sequence[int]:
        """Return how many values lie before the last patch of each window of a series, the latest first."""
        P = self.model.patch_size
        if L < 2:
            return []
        return range(max(1, L - P), max(0, min(P, L - P) - 1, since - P), -(self.stride or P))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self._ends) // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch: tokens (T, B, 2P), targets and their marks (T, B, P)."""
        ends = self._ends if rng is None else rng.permutation(self._ends)
        most = -(-(self.horizon or 1) // self.model.patch_size) - 1
        for start in range(0, len(ends), self.batch_size):
            some = ends[start : start + self.batch_size]
            hidden = np.full(len(some), most) if rng is None else rng.integers(0, most + 1, len(some))
            yield self._batch(some, hidden)

    def _batch(self, ends: Numbers, hidden: Numbers) -> Batch:
        model, since = self.model, self.since or ()
        P, C = model.patch_size, model.context
        seen, after, counts = [], [], []
        for (k, end), n in zip(ends, hidden, strict=True):
            row = self._rows[k]
            visible = max(1, end - n * P)
            seen.append(windows.last(row[:visible], C, end - visible))
            after.append(windows.last(row[: end + P], C, max(0, end + P - len(row))))
            counts.append(end + P - C + np.arange(C) >= since[k])
        x, y = np.stack(seen), np.stack(after)
        units = model.scaler.units(x)
        target = model.scaler.scaled(y, units).reshape(len(y), -1, P)
        counted = ~np.isnan(target) & np.stack(counts).reshape(target.shape)
        tokens = windows.tokens(model.scaler.scaled(x, units), P)
        known = np.where(counted, target, 0.0)
        return Batch(tokens.swapaxes(0, 1), known.swapaxes(0, 1), counted.swapaxes(0, 1), True)


@dataclass(frozen=True)
class SyntheticPatches:
    """Windows over synthetic series, which are drawn anew for each batch.

    Parameters
    ----------
    model : TiRex or TiRex2
    count : int
        Batches in an epoch.
    horizon : int, optional
        As for `PatchWindows`.
    batch_size : int
    """

    model: Any
    count: int
    horizon: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        checks.fields(self, model=MODEL, count=checks.size, batch_size=checks.size, horizon=SIZES["horizon"])
        next(self.batches())  # checks the horizon

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.count

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch, which is the same each time without `rng`."""
        model, judging = self.model, rng is None
        rng = generator(UNSEEN, stream=4) if rng is None else rng
        length = model.context + model.patch_size
        for _ in range(self.count):
            rows = synthetic(rng, self.batch_size, length)
            data = PatchWindows(model, rows, self.horizon, length, self.batch_size)
            yield next(data.batches(None if judging else rng))
