"""Forecasts of series that grow: states are kept, and new values cost a token each instead of a
whole window.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import like
from xlstm.arrays.namespace import Params
from xlstm.data.host import Values
from xlstm.layers.sequence import State
from xlstm.models.tirex import items, transforms
from xlstm.models.tirex.items import Forecast, SeriesBatch
from xlstm.models.tirex.prediction import PrefixStateCache, on_host
from xlstm.models.tirex.transforms import RowUnits

RENEWED = 8  # by default a window is read again after this share of the context


class Phase(NamedTuple):
    """The network after patches that end with some value; the next ones end P, 2P, ... values
    later.
    """

    units: RowUnits
    began: int  # number of values that there were when the first window was read
    at: int  # number of values that there were at the end of the last patch
    state: State  # after it
    y: Values  # (B, 1, P, Q), the output of the network after it


class Stream:
    """One series or several that get new values at the same times, and forecasts after any of them.

    A forecast needs patches that end with the last value. There are P ways to cut a series into
    patches, of which each has a state of its own: a forecast goes on from that one whose patches
    end with the last value, which costs a token for each patch that has come since, and one for
    each patch of the horizon after the first. The first forecast of each way reads a whole window.

    Forecasts are those of `TiRex.forecast` with a `rollout` as long as the horizon, and of
    `TiRex2.forecast` without differences and flips, but for two things: a series is measured in the
    units that it had when its window was read, and states remember values before the last `context`
    ones. `renew` bounds both.

    Parameters
    ----------
    model : TiRex or TiRex2
    params : dict of str to array
        They are not to be changed in place.
    series : array (L,), (B, L), or list of arrays (L,)
        The values so far; NaN is a missing value.
    renew : int, optional
        After so many new values a window is read again, with units of its own; by default after an
        eighth of `context`. With 0 that is never done, while there are forecasts often enough.

    Raises
    ------
    TypeError, ValueError
        The series or the parameters are none.
    """

    def __init__(self, model: Any, params: Params, series: Any, renew: int | None = None) -> None:
        self.model = model
        self._where = f"{type(model).__name__}.stream"
        renew = model.context // RENEWED if renew is None else renew
        self.renew = checks.size_or_0(self._where, "renew", renew)
        self._cache = PrefixStateCache(model, params)
        read = items.read_arrays(self._where, series, 1)
        self._single = read.single
        # (B, C)
        self._seen = np.stack([transforms.last(row[0], model.context) for row in read.rows])
        self._phases: dict[int, Phase] = {}
        self.count = 0

    def push(self, values: Any) -> None:
        """Add values after those there are.

        Parameters
        ----------
        values : array (B,) or (B, n); of one series a number or (n,)
            The next value of each series, or the next n; NaN where one is missing.

        Raises
        ------
        TypeError, ValueError
            There are not as many rows as series, or these are no numbers.
        """
        where = self._where
        B = len(self._seen)
        expected = "a number or (n,)" if self._single else f"(B,) or (B, n) with B = {B}"
        host = checks.host(where, "values", values, expected)
        outer = () if self._single else (B,)
        if host.ndim > len(outer) + 1 or host.shape[: len(outer)] != outer:
            raise ValueError(f"{where}: values has shape {host.shape}, expected {expected}")
        new = host.reshape(B, -1)
        if not new.shape[1]:
            return
        new = np.concatenate(items.read_arrays(where, list(new), 1, "values").rows)
        self._seen = np.concatenate((self._seen, new), axis=1)[:, -self.model.context :]
        self.count += new.shape[1]

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
            Its quantiles are (B, H, Q), or (H, Q) of one series.

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
        levels = transforms.levels_of(self._where, quantiles, model.quantiles)
        model.warn(self._where, horizon)
        phase = self._now()
        y = phase.y
        more = -(-horizon // model.patch_size) - 1
        if more:
            ahead = np.zeros((len(self._seen), more, model.input_size))
            y = np.concatenate((y, self._run(ahead, phase.state)[0]), axis=1)
        y = model.scaler.restored(y, phase.units)
        q = model.calibrated(y.reshape(len(y), -1, y.shape[-1])[:, :horizon])
        return SeriesBatch([], [1] * len(q), self._single).forecast(
            q[:, None], model.quantiles, levels
        )

    def _now(self) -> Phase:
        """Return the network after patches that end with the last value."""
        model = self.model
        count = self.count
        P = model.patch_size
        phase = self._phases.get(count % P)
        old = phase is not None and 0 < self.renew <= count - phase.began
        if phase is None or old or count - phase.at > model.context:
            units = model.scaler.units(self._seen)
            T = model.context // P
            lead = min(transforms.leading(row, P, T - 1) for row in self._seen)
            before = self._cache.after(lead, len(self._seen))
            y, state = self._run(self._tokens(units, T)[:, lead:], before)
            phase = Phase(units, count, count, state, y[:, -1:])
        elif count > phase.at:
            y, state = self._run(self._tokens(phase.units, (count - phase.at) // P), phase.state)
            phase = phase._replace(at=count, state=state, y=y[:, -1:])
        self._phases[count % P] = phase
        return phase

    def _tokens(self, units: RowUnits, T: int) -> Values:
        """Return the last T tokens, (B, T, 2P)."""
        P = self.model.patch_size
        return transforms.tokens(self.model.scaler.scaled(self._seen[:, -T * P :], units), P)

    def _run(self, tokens: Values, state: State | None) -> tuple[Values, State]:
        """Return y (B, T, P, Q) and the state after tokens."""
        y, end, _ = self.model.forward(
            self._cache.params, like(tokens, self._cache.like), state, False
        )
        return on_host(y), end
