"""Forecasts: quantiles of the steps after the end of series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xlstm.data.host import Values
from xlstm.models.tirex import quantiles as levels_of
from xlstm.models.tirex import series

MEDIAN = (0.5,)


class HorizonWarning(RuntimeWarning):
    """A forecast reaches further than the model was trained for, or than it sees values of the series."""


class Forecast(NamedTuple):
    """Forecasts of the steps after the end of series, in float64 on the host.

    Those of a table are tables of the same library.

    Attributes
    ----------
    quantiles : array (..., H, Q), list of arrays, or table
        The axes are those of the series, with those of the forecast in the place of the time. It is a list where series
        of several targets differ in their number.
    mean : array (..., H), list of arrays, or table
        The median, which the published packages call so.
    levels : tuple of Q floats
        The levels of the quantiles.
    """

    quantiles: Any
    mean: Any
    levels: tuple[float, ...]

    @classmethod
    def of(
        cls, given: series.Given, q: Sequence[Values], trained: Sequence[float], levels: tuple[float, ...]
    ) -> Forecast:
        """Return quantiles (V, H, Q) of trained levels for each series as a forecast of other levels."""
        wanted = given.like([levels_of.between(one, trained, levels) for one in q])
        return cls(wanted, given.like([levels_of.between(one, trained, MEDIAN)[..., 0] for one in q]), levels)
