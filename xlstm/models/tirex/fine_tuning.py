"""Windows over series to fine-tune a TiRex: each token of a window predicts the next patch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.batches import Batch
from xlstm.models.tirex import items, transforms
from xlstm.models.tirex.items import Item, ItemRows

Numbers = np.ndarray[Any, Any]
MODEL = checks.having(
    "patch_size", "context", "scaler", "COVARIATES", expected="a TiRex or a TiRex2"
)
SIZES = dict.fromkeys(("stride", "horizon"), checks.optional(checks.size))


@dataclass(frozen=True)
class PatchWindows:
    """Training data for a TiRex: windows over series, with the patch after each token as its
    target.

    Each window and its targets are scaled by the window's own mean and standard deviation, as for a
    forecast. Missing values are no targets.

    To teach a horizon of several patches, the last patches of some windows are hidden. In training,
    their number is random. In validation, without random numbers, it is the number of patches in
    the horizon after the first.

    A window of TiRex-2 has all targets and covariates of an item; which rows see each other is as
    in a forecast. Covariates are no targets. Covariates that are known in advance stay visible for
    the hidden patches and for the next one.

    Parameters
    ----------
    model : TiRex or TiRex2
    series : array (L,) or (S, L), or list of arrays (L,), or list of Item
        The series, each with two values or more; NaN is a missing value. For TiRex-2 also (S, V,
        L), and (V, L) in a list: items of V targets.
    horizon : int, optional
        Steps that the model learns to forecast, less than the context; by default a patch.
    stride : int, optional
        Values between the ends of two successive windows; by default a patch.
    batch_size : int
        Windows in a batch. A window of TiRex-2 has a row for each target and covariate of its item.
    since : list of int, optional
        The index of the first value of each series that may be a target; by default all may.
    past, future : array, or list, optional
        Covariates of TiRex-2, as for its `forecast`; `future` may end with the series.

    Raises
    ------
    TypeError, ValueError
        `series` are not series, no value may be a target, covariates do not fit, or an argument is
        out of range.
    """

    model: Any
    series: Any = field(repr=False)
    horizon: int | None = None
    stride: int | None = None
    batch_size: int = 32
    since: Sequence[int] | None = None
    past: Any = field(default=None, repr=False)
    future: Any = field(default=None, repr=False)
    _items: list[Item] = field(init=False, repr=False, compare=False)
    # (N, 2): the index of a series, and the number of values before the target
    _ends: Numbers = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = "PatchWindows"
        checks.fields(self, model=MODEL, batch_size=checks.size, **SIZES)
        series = self.series
        if not (isinstance(series, list) and all(isinstance(item, Item) for item in series)):
            _, series = items.read_items(where, self.model, series, self.past, self.future)
        numbers = [0] * len(series) if self.since is None else self.since
        since = checks.several(
            where, "since", numbers, "one number for each series", checks.size_or_0
        )
        if len(since) != len(series):
            raise ValueError(
                f"{where}: since has {len(since)} numbers, expected one for each of {len(series)}"
                " series"
            )
        P = self.model.patch_size
        if (self.horizon or P) >= self.model.context:
            expected = f"expected less than {self.model.context}, the context"
            raise ValueError(f"{where}: horizon is {self.horizon}, {expected}")
        ends = []
        has_targets = False
        for k, (item, n) in enumerate(zip(series, since, strict=True)):
            has_targets |= not np.all(np.isnan(item.target[:, max(1, n) :]))
            L = item.target.shape[1]
            # the number of values before the last patch of each window, the latest first
            latest = max(1, L - P) if L > 1 else 0
            earliest = max(1, min(P, L - P), n - P + 1)
            ends += [(k, end) for end in range(latest, earliest - 1, -(self.stride or P))]
        if not has_targets:
            raise ValueError(
                f"{where}: no series has a value after its first one that may be a target"
            )
        places = np.array(ends, dtype=np.int64).reshape(-1, 2)
        vars(self).update(since=since, _items=series, _ends=places)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self._ends) // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch: tokens (T, B, 2P), targets and their marks (T, B, P)."""
        ends = self._ends if rng is None else rng.permutation(self._ends)
        most = -(-(self.horizon or 1) // self.model.patch_size) - 1
        for start in range(0, len(ends), self.batch_size):
            some = ends[start : start + self.batch_size]
            hidden = np.full(len(some), most)
            if rng is not None:
                hidden = rng.integers(0, most + 1, len(some))
            yield self._batch(some, hidden)

    def _batch(self, ends: Numbers, hidden: Numbers) -> Batch:
        model = self.model
        since = self.since or ()
        P = model.patch_size
        width = model.context + P  # with the patch after the last token
        parts = []
        later = []
        for (k, end), n in zip(ends, hidden, strict=True):
            item = self._items[k]
            visible = max(1, end - n * P)
            ahead = end + P - visible
            parts.append(
                ItemRows.of(item.until(visible, model.context), ahead, ahead, width - ahead)
            )
            y = np.full(parts[-1].x.shape, np.nan)
            # rows of covariates have no targets
            for row, target in zip(y, item.target, strict=False):
                row[:] = transforms.last(target[: end + P], width, max(0, end + P - len(target)))
            y[:, : max(0, since[k] - end + model.context)] = np.nan
            later.append(y)
        rows = ItemRows.joined(parts)
        y = np.concatenate(later)
        units = model.scaler.units(rows.x)
        tokens = transforms.tokens(model.scaler.scaled(rows.x, units), P)  # (R, T + 1, 2P)
        target = model.scaler.scaled(y, units).reshape(len(y), -1, P)
        # The target of a token is the patch after it.
        target = np.concatenate((target[:, 1:], np.full_like(target[:, :1], np.nan)), axis=1)
        if not np.any(rows.known):  # nothing is known in the last token
            tokens = tokens[:, :-1]
            target = target[:, :-1]
        counted = ~np.isnan(target)
        return Batch(
            tokens.swapaxes(0, 1),
            np.where(counted, target, 0.0).swapaxes(0, 1),
            counted.swapaxes(0, 1),
            True,
            options=rows.marks if len(rows.x) > len(ends) else None,
        )
