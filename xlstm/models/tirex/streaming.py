"""Forecasts of series that grow: states are kept, and new values cost a token each instead of a whole window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import frames, panels
from xlstm.data.host import Values
from xlstm.data.panels import Roles
from xlstm.layers.state import State
from xlstm.models.tirex import multivariate, series, tables, windows
from xlstm.models.tirex import quantiles as levels_of
from xlstm.models.tirex.forecast import Forecast
from xlstm.models.tirex.running import Starts
from xlstm.models.tirex.scaling import Units

RENEWED = 8  # by default a window is read again after this share of the context


@dataclass
class TimeSeries:
    """The network after patches that end with some value; the next ones end P, 2P, ... values later.

    Attributes
    ----------
    units : Units
        Location and scale of the values.
    began : int
        Number of values that there were when the first window was read.
    at : int
        Number of values that there were at the end of the last patch.
    state : tuple
        State after it.
    y : array (B, 1, P, Q)
        The output of the network after it.
    """

    units: Units
    began: int
    at: int
    state: State
    y: Values


class Stream:
    """One series or several that get new values at the same times, and forecasts after any of them.

    A forecast needs patches that end with the last value. There are P ways to cut a series into patches, of which each
    has a state of its own: a forecast goes on from that one whose patches end with the last value, which costs a token
    for each patch that has come since, and one for each patch of the horizon after the first. The first forecast of
    each way reads a whole window.

    Forecasts are those of `TiRex.forecast` with a `rollout` as long as the horizon, and of `TiRex2.forecast` without
    differences and flips, but for two things: a series is measured in the units that it had when its window was read,
    and states remember values before the last `context` ones. `renew` bounds both.

    Parameters
    ----------
    model : TiRex or TiRex2
    params : dict of str to array
        They are not to be changed in place.
    given : array (L,), (B, L), or list of arrays (L,), or table
        The values so far; NaN is a missing value. Each column of numbers of a table of pandas, Polars or PyArrow is a
        series, or several with `series_id`; where rows have dates, all end with the same one.
    renew : int, optional
        After so many new values a window is read again, with units of its own; by default after an eighth of `context`.
        With 0 that is never done, while there are forecasts often enough.
    targets : list of str, optional
        With a table the columns to forecast, by default all.
    series_id : str, optional
        With a table the column that tells several series apart.

    Raises
    ------
    TypeError, ValueError
        The series or the parameters are none; a column is as `forecast` does not take it, or series of a table end with
        different dates.
    ImportError
        There is a table, and the package narwhals is not installed.
    """

    def __init__(
        self,
        model: Any,
        params: Params,
        given: Any,
        renew: int | None = None,
        *,
        targets: str | Sequence[str] | None = None,
        series_id: str | None = None,
    ) -> None:
        self.model, self._where = model, f"{type(model).__name__}.stream"
        self.renew = checks.size_or_0(self._where, "renew", model.context // RENEWED if renew is None else renew)
        self._starts = Starts(model, params)
        self._table: tables.Table | None = None
        if tables.is_one(self._where, "series", given, targets=targets, series_id=series_id):
            self._table = tables.Table.of(self._where, model, given, Roles(targets, series_id=series_id))
            panels.check_ends(self._where, self._table.given, self._table.found)
            columns = self._table.columns
            given = columns if len(columns) > 1 else columns[0]
        found = series.read(self._where, given, 1)
        self._single = found.single
        self._seen = np.stack([windows.last(row[0], model.context) for row in found.rows])  # (B, C)
        self._tracks: dict[int, TimeSeries] = {}
        self.count = 0

    def push(self, values: Any) -> None:
        """Add values after those there are.

        Parameters
        ----------
        values : array (B,) or (B, n); of one series a number or (n,); or table
            The next value of each series, or the next n; NaN where one is missing. Where the series came as a table
            these are more rows of it, in any order if they have dates, or whole numbers in the index of pandas that
            rise by one step: a series without a row for a step has a missing value there. An array has the targets of
            the first series, then those of the second, and so on.

        Raises
        ------
        TypeError, ValueError
            There are not as many rows as series, or these are no numbers; rows of a table are not the next ones.
        """
        if frames.has_columns(values):
            self._add(self._following(values))
            return
        B = len(self._seen)
        expected = "a number or (n,)" if self._single else f"(B,) or (B, n) with B = {B}"
        host = checks.host(self._where, "values", values, expected)
        if host.dtype.kind not in "fiubO":
            raise TypeError(f"{self._where}: values is {checks.shown(values)}, expected numbers {expected}")
        new = host.reshape(1, -1) if self._single and host.ndim < 2 else host[:, None] if host.ndim == 1 else host
        if new.ndim != 2 or len(new) != B:
            raise ValueError(f"{self._where}: values has shape {host.shape}, expected {expected}")
        if new.shape[1]:
            self._add(np.stack([row[0] for row in series.read(self._where, list(new), 1).rows]))

    def forecast(self, horizon: int, *, quantiles: Any = None) -> Forecast:
        """Return a forecast of the steps after the last value.

        Parameters
        ----------
        horizon : int
        quantiles : list of float, optional
            As for `forecast` of the model.

        Returns
        -------
        Forecast
            Its quantiles are (B, H, Q), or (H, Q) of one series, or tables as of `forecast` of the model.

        Raises
        ------
        TypeError, ValueError
            An argument is out of range.

        Warns
        -----
        HorizonWarning
            TiRex-2 was trained for a shorter horizon.
        """
        model = self.model
        horizon = checks.size(self._where, "horizon", horizon)
        check = levels_of.levels if self._table is None else tables.levels_once
        levels = check(self._where, quantiles, model.quantiles)
        if hasattr(model, "horizon"):  # TiRex-2 has one
            multivariate.warn_beyond(self._where, model, horizon, 3)
        track = self._now()
        ahead = [track.y]
        more = -(-horizon // model.patch_size) - 1
        if more:
            ahead.append(self._run(np.zeros((len(self._seen), more, model.input_size)), track.state)[0])
        y = model.scaler.restored(np.concatenate(ahead, axis=1), track.units)
        q = model.calibrated(y.reshape(len(y), -1, y.shape[-1])[:, :horizon])
        if self._table is not None:
            return self._table.forecast(q, model.quantiles, levels, self.count)
        found = series.Given([row[None] for row in self._seen], [1] * len(q), self._single)
        return Forecast.of(found, list(q[:, None]), model.quantiles, levels)

    def _following(self, rows: Any) -> Values:
        """Return more rows of the table, (B, n)."""
        if self._table is None:
            raise TypeError(f"{self._where}: values is a table, expected an array, as the series were no table")
        return self._table.following(self._where, "values", rows, self.count)

    def _add(self, new: Values) -> None:
        """Add values (B, n)."""
        self._seen = np.concatenate((self._seen, new), axis=1)[:, -self.model.context :]
        self.count += new.shape[1]

    def _now(self) -> TimeSeries:
        """Return the network after patches that end with the last value."""
        P, phase = self.model.patch_size, self.count % self.model.patch_size
        track = self._tracks.get(phase)
        old = track is not None and 0 < self.renew <= self.count - track.began
        if track is None or old or self.count - track.at > self.model.context:
            units = self.model.scaler.units(self._seen)
            T = self.model.context // P
            lead = min(windows.leading(row, P, T - 1) for row in self._seen)
            y, state = self._run(self._tokens(units, T)[:, lead:], self._starts.after(lead, len(self._seen)))
            track = TimeSeries(units, self.count, self.count, state, y[:, -1:])
        elif self.count > track.at:
            y, state = self._run(self._tokens(track.units, (self.count - track.at) // P), track.state)
            track = TimeSeries(track.units, track.began, self.count, state, y[:, -1:])
        self._tracks[phase] = track
        return track

    def _tokens(self, units: Units, T: int) -> Values:
        """Return the last T tokens, (B, T, 2P)."""
        P = self.model.patch_size
        return windows.tokens(self.model.scaler.scaled(self._seen[:, -T * P :], units), P)

    def _run(self, tokens: Values, state: State | None) -> tuple[Values, State]:
        """Return y (B, T, P, Q) and the state after tokens."""
        starts = self._starts
        y, end, _ = self.model.forward(starts.params, like(tokens, starts.like), state, False)
        return to_numpy(y).astype(np.float64).swapaxes(2, 3), end
