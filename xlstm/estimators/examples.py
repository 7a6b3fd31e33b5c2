"""Windows of tracks as a network sees them, and in batches what it is to predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.data.batches import Batch
from xlstm.data.covariates import TimeSeries
from xlstm.data.host import Values
from xlstm.estimators.scaling import Origins, Scaling, standard

Host = np.ndarray[Any, Any]


def width(scaling: Scaling) -> int:
    """Return the number of columns that a network sees."""
    return len(scaling.units[0]) + len(scaling.past[0]) + 2 * len(scaling.future[0]) + len(scaling.static[0])


def inputs(track: TimeSeries, scaling: Scaling, scale: Values, origins: Origins, window: int, horizon: int) -> Values:
    """Return windows (T, M, D): differences from the last value, then covariates, static numbers last.

    Covariates that are known in advance are there twice, as they are at a step and as they will be a horizon later, so
    that a window holds the numbers of the steps that are predicted.
    """
    rows = origins - np.arange(window, 0, -1)[:, None]  # (T, M)
    later = np.minimum(rows + horizon, len(track.future) - 1)
    return np.concatenate(
        (
            (track.known[rows] - track.known[origins - 1]) / scale,
            standard(track.past[rows], scaling.past),
            standard(track.future[rows], scaling.future),
            standard(track.future[later], scaling.future),
            np.broadcast_to(standard(track.static, scaling.static), (*rows.shape, len(track.static))),
        ),
        axis=2,
    )


@dataclass(frozen=True)
class Examples:
    """Windows with what a network is to predict after each of them, in shuffled batches. Windows are made as needed.

    Attributes
    ----------
    tracks : list of S Track
    scaling : Scaling
    window, horizon, batch_size : int
    series : array (M,)
        The series of each window.
    origins : array (M,)
        The first row after each window.
    scale : array (M, C)
    target : array (M, H * C)
    mask : bool array (M, H * C)
        Targets that are there.
    """

    tracks: Sequence[TimeSeries]
    scaling: Scaling
    window: int
    horizon: int
    batch_size: int
    series: Host
    origins: Host
    scale: Values
    target: Values
    mask: Host

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.origins) // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch, shuffled by `rng` or in order without it."""
        order = np.arange(len(self.origins)) if rng is None else rng.permutation(len(self.origins))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            x = np.empty((self.window, len(rows), width(self.scaling)))
            for k in np.unique(self.series[rows]):
                mine = np.flatnonzero(self.series[rows] == k)
                at = rows[mine]
                x[:, mine] = inputs(
                    self.tracks[k], self.scaling, self.scale[at], self.origins[at], self.window, self.horizon
                )
            yield Batch(x, self.target[rows], self.mask[rows], True)
