"""A pretrained forecaster, and its forecasts at any rows of tracks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.namespace import Params
from xlstm.data.host import Values
from xlstm.estimators.tracks import Track
from xlstm.models.tirex import TiRex2

VALUES = 1 << 23  # values of series that are copied at once


class Pretrained(NamedTuple):
    """A TiRex with its parameters and the options of its forecasts.

    Attributes
    ----------
    model : TiRex or TiRex2
    params : dict of str to array
    options : dict
        Keywords of its `forecast`.
    """

    model: Any
    params: Params
    options: Mapping[str, Any]

    def forecast(self, track: Track, origins: Sequence[int], steps: int) -> tuple[Values, Values]:
        """Return the median (M, H, C) and quantiles (M, H, C, Q) after the rows before each origin."""
        count = max(1, VALUES // track.values.size)
        parts = [
            self.all_of([(track, end) for end in origins[k : k + count]], steps) for k in range(0, len(origins), count)
        ]
        median, quantiles = (np.concatenate(part) for part in zip(*parts, strict=True))
        return median, quantiles

    def all_of(self, looks: Sequence[tuple[Track, int]], steps: int) -> tuple[Values, Values]:
        """Return the median (M, H, C) and quantiles (M, H, C, Q) after the first rows of each track."""
        C = looks[0][0].values.shape[1]
        if isinstance(self.model, TiRex2):
            past = [track.past[:end].T if track.past.size else None for track, end in looks]
            future = [_until(track.future, end + steps).T if track.future.size else None for track, end in looks]
            series = [track.values[:end].T for track, end in looks]
            found = self.model.forecast(self.params, series, steps, past=past, future=future, **self.options)
        else:
            series = [column for track, end in looks for column in track.values[:end].T]
            found = self.model.forecast(self.params, series, steps, **self.options)
        q = found.quantiles.reshape(len(looks), C, steps, len(found.levels))
        return found.mean.reshape(len(looks), C, steps).swapaxes(1, 2), q.swapaxes(1, 2)


def _until(rows: Values, end: int) -> Values:
    """Return rows up to `end` at least, with gaps after the last one."""
    more = max(0, end - len(rows))
    return np.pad(rows, ((0, more), (0, 0)), constant_values=np.nan) if more else rows
