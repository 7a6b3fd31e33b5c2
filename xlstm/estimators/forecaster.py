"""The forecaster: a series and its future, with fit, predict and score."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import DType, Params
from xlstm.data import reading
from xlstm.data.batches import Windows
from xlstm.data.host import Values
from xlstm.data.preparation import Scaler, carry_forward, split, windows
from xlstm.estimators import baselines
from xlstm.estimators.settings import Scalers, Settings
from xlstm.estimators.values import check_reach, series
from xlstm.layers.recurrent import LSTM
from xlstm.models.sequence import SequenceModel
from xlstm.training import Progress, Trained, checkpoint, loop, optimizers
from xlstm.training import precision as precisions

KIND = "forecaster"
CHUNK = 4096  # windows forecast at once
AR_ORDER = 24  # coefficients of the linear autoregression it is compared with


@dataclass(frozen=True)
class Score:
    """Forecasts of the test part and their root mean square errors, in the series' own units.

    Attributes
    ----------
    model, persistence, autoregression : array (horizon,)
    order : int
        Coefficients of the autoregression.
    points : int
        Values forecast one step ahead that are there to compare with.
    at : array (N,)
        Positions of the first value of each forecast.
    forecasts : array (N, horizon)
        Those of the model.
    """

    model: Values
    persistence: Values
    autoregression: Values
    order: int
    points: int
    at: np.ndarray[Any, Any]
    forecasts: Values


class Forecaster:
    """Forecast a series with an LSTM and a linear head.

    The model sees by how much each of the last `window` values differs from the latest one, and predicts by how much
    each of the next `horizon` values will, so the level of the series may drift. Both are scaled to a root mean square
    of one. It is fitted on the first 60 % of the series and stops early by the next 20 %; only `score` uses the last
    20 %.

    Parameters
    ----------
    settings : Settings, optional
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}, optional
    name : str
        A name for the series, kept in the model file.

    Attributes
    ----------
    trained : Trained or None
        How training went, after `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> values = np.sin(np.arange(400) / 5)
    >>> forecaster = Forecaster(Settings(epochs=5, hidden_size=8), "numpy").fit(values)
    >>> forecaster.predict(values, steps=12).shape
    (12,)
    """

    def __init__(
        self,
        settings: Settings | None = None,
        backend: str | Backend | None = None,
        dtype: DType | None = None,
        name: str = "",
    ) -> None:
        self.name = checks.text("Forecaster", "name", name)
        checks.optional(checks.instance(Settings, "Settings"))("Forecaster", "settings", settings)
        self.settings = Settings() if settings is None else settings
        self.backend = backend_of(backend, dtype)
        self.model = SequenceModel(LSTM(1, self.settings.hidden_size), self.settings.horizon, last=True)
        self.params: Params | None = None
        self.scalers: Scalers | None = None
        self.trained: Trained | None = None

    def fit(self, values: Any, progress: Callable[[Progress], None] | None = None) -> Forecaster:
        """Train on a series.

        Parameters
        ----------
        values : array (N,)
            The series; NaN is a gap, which is bridged by the value before it and never a target.
        progress : callable, optional
            Called with a `training.Progress` after every step.

        Returns
        -------
        Forecaster
            Itself.

        Raises
        ------
        ValueError
            The series is too short for the window, constant, or not finite, or a value is so large, or so far from the
            others, that its square overflows; a `SeriesError` names it.
        FloatingPointError
            Training diverged.
        TypeError, BackendError
            The backend does not have the precision.
        """
        s = self.settings
        checks.optional(checks.function)("Forecaster", "progress", progress)
        data, scalers = self.examples(values)
        mixed, context = precisions.named(s.precision, self.backend)
        with context:
            trained = loop.train(
                self.model,
                self.model.init(s.seed, self.backend),
                data["train"],
                optimizers.adamw(s.learning_rate, weight_decay=s.weight_decay),
                epochs=s.epochs,
                validation=data["validation"],
                patience=s.patience,
                clip=s.clip,
                averaging=s.averaging,
                seed=s.seed,
                precision=mixed,
                progress=progress,
            )
        self.trained, self.scalers, self.params = trained, scalers, trained.params
        return self

    def examples(self, values: Any) -> tuple[dict[str, Windows], Scalers]:
        """Return the windows to train on, to validate with and to test on, by part, and their scaling.

        Parameters
        ----------
        values : array (N,)
            The series; NaN is a gap.

        Returns
        -------
        windows : dict of str to Windows
            "train", "validation" and "test".
        scalers : Scalers

        Raises
        ------
        ValueError, TypeError, BackendError
            As `fit` does.
        """
        s = self.settings
        precisions.named(s.precision, self.backend)  # a precision that cannot be had is refused before any work
        values = series(values)
        rows, fitted = self._rows(len(values)), values[split(len(values)).train]
        if np.nanmin(fitted) == np.nanmax(fitted):
            raise ValueError(
                f"Forecaster: the training part of the series is constant at {values[0]:g}, there is nothing to learn"
            )
        filled = carry_forward(values)
        known, target = windows(filled, s.window, s.horizon)
        observed = ~np.isnan(windows(values, s.window, s.horizon)[1])
        past, future = known - known[:, -1:], target - known[:, -1:]
        for name, chosen in rows.items():
            if not np.all(np.any(observed[chosen], axis=0)):
                raise ValueError(f"Forecaster: the {name} part of the series has no values to predict")
        scalers = Scalers(*(Scaler.fit(array[rows["train"]], center=False) for array in (past, future)))
        check_reach(filled, scalers, self.backend.dtype)
        x, target = scalers.past.apply(past)[:, :, None], scalers.future.apply(future)
        found = {n: Windows(x[chosen], target[chosen], observed[chosen], s.batch_size) for n, chosen in rows.items()}
        return found, scalers

    def predict(self, values: Any, steps: int | None = None) -> Values:
        """Return the values after the end of a series.

        Beyond the horizon the predictions are fed back as if they had been observed.

        Parameters
        ----------
        values : array (N,)
            The series; NaN is a gap.
        steps : int, optional
            How many values; by default as many as the horizon.

        Returns
        -------
        array (steps,)

        Raises
        ------
        ValueError
            It is not fitted, or the series is shorter than the window or out of range.
        FloatingPointError
            The forecast is not finite.
        """
        steps = self.settings.horizon if steps is None else checks.size("Forecaster", "steps", steps)
        known = carry_forward(series(values))
        check_reach(known, self._fitted()[1], self.backend.dtype)
        if len(known) < self.settings.window:
            raise ValueError(
                f"Forecaster: a forecast needs {self.settings.window} values to look back on, "
                f"the series has {len(known)}"
            )
        recent = known[-self.settings.window :]
        ahead: list[float] = []
        while len(ahead) < steps:
            block = self._predict(recent[None])[0]
            ahead.extend(block)
            recent = np.concatenate((recent, block))[-self.settings.window :]
        return np.array(ahead[:steps])

    def forecasts(self, values: Any) -> tuple[np.ndarray[Any, Any], Values]:
        """Return all forecasts over the test part.

        Parameters
        ----------
        values : array (N,)
            The series; NaN is a gap.

        Returns
        -------
        at : array (N,)
            Positions of the first value of each forecast.
        forecasts : array (N, horizon)
        """
        values = series(values)
        rows = self._rows(len(values))["test"]
        known = carry_forward(values)
        check_reach(known, self._fitted()[1], self.backend.dtype)
        x, _ = windows(known, self.settings.window, self.settings.horizon)
        return np.arange(rows.start, rows.stop) + self.settings.window, self._predict(x[rows])

    def score(self, values: Any) -> Score:
        """Return errors on the test part, with those of repeating the last value and of a linear autoregression.

        The autoregression has `AR_ORDER` coefficients (fewer in a short series) and a constant for each step ahead.
        """
        values = series(values)
        at, forecasts = self.forecasts(values)
        horizon, known = self.settings.horizon, carry_forward(values)
        truth = values[at[:, None] + np.arange(horizon)]  # (N, horizon)
        order = min(AR_ORDER, int(at[0]) // 3)
        return Score(
            model=baselines.rmse(forecasts, truth),
            persistence=baselines.rmse(baselines.persistence(known, horizon, at), truth),
            autoregression=baselines.rmse(baselines.autoregression(known, values, order, horizon, at), truth),
            order=order,
            points=int(np.count_nonzero(~np.isnan(truth[:, 0]))),
            at=at,
            forecasts=forecasts,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, scaling, settings and name to a safetensors file, whole or not at all."""
        params, scalers = self._fitted()
        config = {"name": self.name, "settings": asdict(self.settings), "scalers": asdict(scalers)}
        checkpoint.save(path, params, KIND, config | {"dtype": self.backend.dtype})

    @classmethod
    @reading.brief()
    def load(cls, path: str | os.PathLike[str], backend: str | Backend | None = None) -> Forecaster:
        """Read a file that `save` wrote.

        Parameters
        ----------
        path : path
        backend : str or Backend, optional
            As for `xlstm.backend`, by default "auto".

        Returns
        -------
        Forecaster

        Raises
        ------
        OSError, ValueError
            There is no such file, or it is not a forecaster's.
        """
        arrays, config = checkpoint.load(path, KIND)
        try:
            name, dtype, scalers = (config.get(key) for key in ("name", "dtype", "scalers"))
            if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(scalers, dict)):
                raise TypeError(f"name, dtype and scalers are {checks.shown([name, dtype, scalers])}")
            settings = reading.made("settings", Settings, config.get("settings"))
            forecaster = cls(settings, backend, dtype, name)
            past, future = (reading.made(part, Scaler, scalers.get(part)) for part in ("past", "future"))
            forecaster.scalers = Scalers(past, future)
            forecaster.model.check(arrays)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a sound forecaster ({type(error).__name__}: {error})") from error
        checkpoint.finite(path, arrays, forecaster.backend.dtype)
        forecaster.params = {name: forecaster.backend.asarray(array) for name, array in arrays.items()}
        return forecaster

    def _fitted(self) -> tuple[dict[str, Any], Scalers]:
        if self.params is None or self.scalers is None:
            raise ValueError("Forecaster: not fitted yet, call fit first")
        return self.params, self.scalers

    def _rows(self, length: int) -> dict[str, slice]:
        """Return the windows of a series whose targets all lie in a part of it, by the name of the part."""
        window, horizon = self.settings.window, self.settings.horizon
        rows = {}
        for name, part in split(length)._asdict().items():
            first, end = max(0, part.start - window), part.stop - window - horizon + 1
            if first >= end:
                need = horizon if part.start else window + horizon
                raise ValueError(
                    f"Forecaster: a window of {window} and a horizon of {horizon} need {need} rows "
                    f"in rows {part.start + 1} to {part.stop} of the series"
                )
            rows[name] = slice(first, end)
        return rows

    def _predict(self, known: Values) -> Values:
        """Return forecasts (N, horizon) after windows (N, window)."""
        if len(known) > CHUNK:
            return np.concatenate([self._predict(known[k : k + CHUNK]) for k in range(0, len(known), CHUNK)])
        params, scalers = self._fitted()
        past = scalers.past.apply(known - known[:, -1:])
        x = self.backend.asarray(np.ascontiguousarray(past.T[:, :, None]))  # (window, N, 1)
        change, _, _ = self.model.forward(params, x, train=False)
        forecast = known[:, -1:] + scalers.future.invert(to_numpy(change).astype(np.float64))
        if not np.all(np.isfinite(forecast)):
            raise FloatingPointError("Forecaster: the forecast is not finite; the series or the weights are too large")
        return forecast
