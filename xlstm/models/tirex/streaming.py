"""Forecasts of growing series from kept states: new values cost a token, not a whole window."""

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

RENEWED = 8  # by default, a window is read again after 1 / RENEWED of the context


class Phase(NamedTuple):
    """The network after patches that end at one phase; the next patches end P, 2P, ... values
    later.
    """

    units: RowUnits
    began: int  # number of values when the first window was read
    at: int  # number of values at the end of the last patch
    state: State  # after that patch
    y: Values  # (B, 1, P, Q), the network's output after that patch


class Stream:
    """A stream of one or several growing series, with forecasts after any new value.

    All series get new values at the same times; `push` adds them.

    A forecast needs patches that end with the last value. There are P ways to cut a series into
    patches, and each has its own state. A forecast continues from the state whose patches end with
    the last value. It costs a token for each patch since then, and a token for each patch of the
    horizon after the first. The first forecast of each way reads a whole window.

    Forecasts equal those of `TiRex.forecast` with a `rollout` as long as the horizon, and of
    `TiRex2.forecast` without differencing and sign flip, with two exceptions:

    - A series keeps the mean and scale that it had when its window was read.
    - States remember values before the last `context` values.

    `renew` bounds both differences.

    Parameters
    ----------
    model : TiRex or TiRex2
    params : dict of str to array
        The parameters; do not change them in-place.
    series : array (L,), (B, L), or list of arrays (L,)
        The values so far; NaN is a missing value.
    renew : int, optional
        Number of new values after which a window is read again, with its own mean and scale; by
        default an eighth of `context`. With 0 it is never read again, as long as forecasts are
        frequent enough.

    Raises
    ------
    TypeError, ValueError
        `series` are not series, or `params` are not the model's parameters.
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
        """Add new values at the end of the series.

        Parameters
        ----------
        values : array (B,) or (B, n); of one series a number or (n,)
            The next value of each series, or the next n values; NaN for a missing value.

        Raises
        ------
        TypeError, ValueError
            The number of rows differs from the number of series, or values are not numbers.
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
            As for the model's `forecast`.

        Returns
        -------
        Forecast
            Its quantiles are (B, H, Q), or (H, Q) for one series.

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
        """Return the phase whose patches end with the last value."""
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
