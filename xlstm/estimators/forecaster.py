"""Estimators: fit and predict. `Forecaster` is the main job, a series and its future."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, DType, backend_of, to_numpy
from xlstm.data import reading
from xlstm.data.batches import Values, Windows
from xlstm.data.preparation import Scaler, Split, carry_forward, split, windows
from xlstm.layers.recurrent import LSTM
from xlstm.models.sequence import SequenceModel
from xlstm.training import checkpoint, loop, optimizers
from xlstm.training import precision as precisions

KIND = "forecaster"
CHUNK = 4096  # windows forecast at once
LARGEST = 1e150  # values of a series: the squares of their differences are finite
AR_ORDER = 24  # months of the linear autoregression it is compared with
SETTINGS: dict[str, checks.Kind] = {
    **dict.fromkeys(("window", "horizon", "hidden_size", "batch_size"), checks.size),
    **dict.fromkeys(("epochs", "patience"), checks.count),
    **dict.fromkeys(("learning_rate", "clip"), checks.above_0),
    **dict.fromkeys(("weight_decay", "averaging"), checks.non_negative),
    "seed": checks.seed_number,
    "precision": checks.optional(checks.choice(precisions.NAMES)),
}


@dataclass(frozen=True)
class Settings:
    """How a `Forecaster` is built and trained.

    Attributes
    ----------
    window : int
        Steps it looks back.
    horizon : int
        Steps ahead that are predicted at once.
    hidden_size : int
        Units of the LSTM.
    epochs : int
        At most so many passes over the training part.
    patience : int
        Epochs without a better validation loss before training stops.
    learning_rate, weight_decay : float
        Of AdamW.
    batch_size : int
    clip : float
        Limit of the global gradient norm.
    averaging : float
        Decay of the moving average of the weights that is kept.
    seed : int
        Decides initial weights and the order of batches.
    precision : {"float16", "bfloat16", "tf32"}, optional
        What is computed in while training, on a GPU; the weights stay float32. See `xlstm.precision`.
    """

    window: int = 48
    horizon: int = 1
    hidden_size: int = 50
    epochs: int = 100
    patience: int = 10
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_size: int = 64
    clip: float = 1.0
    averaging: float = 0.99
    seed: int = 0
    precision: str | None = None

    def __post_init__(self) -> None:
        for name, kind in SETTINGS.items():
            object.__setattr__(self, name, kind("Forecaster", name, getattr(self, name)))
        if self.window < 2:
            raise ValueError(f"Forecaster: window is {self.window}, expected 2 or more: it looks at differences")
        if self.averaging >= 1:
            raise ValueError(f"Forecaster: averaging is {self.averaging}, expected less than 1")


@dataclass(frozen=True)
class Scalers:
    """Scaling of what the model sees, `past`, and of what it predicts, `future`."""

    past: Scaler
    future: Scaler


@dataclass(frozen=True)
class Score:
    """Forecasts of the test part and their root mean square errors (horizon,), in the series' own units."""

    model: Values
    persistence: Values
    autoregression: Values
    order: int  # coefficients of the autoregression
    points: int  # values forecast one step ahead that are there to compare with
    at: np.ndarray[Any, Any]  # (N,) positions of the first value of each forecast
    forecasts: Values  # (N, horizon) the model's


class SeriesError(ValueError):
    """A value of a series that cannot be used, at position `row`."""

    def __init__(self, row: int, value: float, problem: str) -> None:
        super().__init__(f"Forecaster: values[{row}] is {value:g}, {problem}")
        self.row = row


class Forecaster:
    """Forecast a series with an LSTM and a linear head.

    The model sees by how much each of the last `window` values differs from the latest one, and
    predicts by how much each of the next `horizon` values will, so the level of the series may
    drift. Both are scaled to a root mean square of one. It is fitted on the first 60 % of the
    series and stops early by the next 20 %; the last 20 % are only used by `score`.

    Parameters
    ----------
    settings : Settings, optional
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}, optional
    name : str
        What is forecast, kept in the model file.

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
        self.params: dict[str, Any] | None = None
        self.scalers: Scalers | None = None
        self.trained: loop.Trained | None = None

    def fit(self, values: Any, progress: Callable[[loop.Progress], None] | None = None) -> Forecaster:
        """Train on a series; NaN is a gap, which is bridged by the value before it and never a target.

        Raises
        ------
        ValueError
            The series is too short for the window, constant, or not finite, or a value is so large, or so far from
            the others, that its square overflows; a `SeriesError` names it.
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
        """What `fit` trains on, validates with and leaves for testing, by name of the part; raises as `fit` does."""
        s = self.settings
        precisions.named(s.precision, self.backend)  # whatever cannot be had is said before any work
        values = _series(values)
        parts = self._parts(values)
        if np.nanmin(values[parts.train]) == np.nanmax(values[parts.train]):
            raise ValueError(
                f"Forecaster: the training part of the series is constant at {values[0]:g}, there is nothing to learn"
            )
        known, target = windows(carry_forward(values), s.window, s.horizon)
        observed = ~np.isnan(windows(values, s.window, s.horizon)[1])
        past, future = known - known[:, -1:], target - known[:, -1:]
        rows = {name: self._rows(part) for name, part in parts._asdict().items()}
        for name, chosen in rows.items():
            if not np.all(np.any(observed[chosen], axis=0)):
                raise ValueError(f"Forecaster: the {name} part of the series has no values to predict")
        scalers = Scalers(*(Scaler.fit(array[rows["train"]], center=False) for array in (past, future)))
        self._check_reach(carry_forward(values), scalers)
        x, target = scalers.past.apply(past)[:, :, None], scalers.future.apply(future)
        return {
            name: Windows(x[chosen], target[chosen], observed[chosen], s.batch_size) for name, chosen in rows.items()
        }, scalers

    def predict(self, values: Any, steps: int | None = None) -> Values:
        """The `steps` values after the end of a series, by default as many as the horizon.

        Beyond the horizon the predictions are fed back as if they had been observed.
        """
        steps = self.settings.horizon if steps is None else checks.size("Forecaster", "steps", steps)
        known = carry_forward(_series(values))
        self._check_reach(known, self._fitted()[1])
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
        """All forecasts over the test part of a series: positions (N,) of their first values, and (N, horizon)."""
        values = _series(values)
        rows = self._rows(self._parts(values).test)
        known = carry_forward(values)
        self._check_reach(known, self._fitted()[1])
        x, _ = windows(known, self.settings.window, self.settings.horizon)
        return np.arange(rows.start, rows.stop) + self.settings.window, self._predict(x[rows])

    def score(self, values: Any) -> Score:
        """Errors on the test part, beside those of repeating the last value and of a linear autoregression.

        The autoregression has `AR_ORDER` coefficients (fewer in a short series) and a constant for each
        step ahead, by least squares (`numpy.linalg.lstsq`) on all that comes before the test part.
        """
        values = _series(values)
        at, forecasts = self.forecasts(values)
        horizon = self.settings.horizon
        known = carry_forward(values)
        ahead = at[:, None] + np.arange(horizon)  # (N, horizon)
        truth = values[ahead]
        persistence = np.repeat(known[at - 1, None], horizon, axis=1)
        order = min(AR_ORDER, int(at[0]) // 3)
        regression = _autoregression(known, values, order, horizon, at)
        points = int(np.count_nonzero(~np.isnan(truth[:, 0])))
        return Score(
            model=_rmse(forecasts, truth),
            persistence=_rmse(persistence, truth),
            autoregression=_rmse(regression, truth),
            order=order,
            points=points,
            at=at,
            forecasts=forecasts,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, scaling, settings and name to a safetensors file, whole or not at all."""
        params, scalers = self._fitted()
        config = {
            "name": self.name,
            "settings": asdict(self.settings),
            "scalers": asdict(scalers),
            "dtype": self.backend.dtype,
        }
        checkpoint.save(path, params, KIND, config)

    @classmethod
    @reading.brief()
    def load(cls, path: str | os.PathLike[str], backend: str | Backend | None = None) -> Forecaster:
        """Read a file that `save` wrote.

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

    def _check_reach(self, known: Values, scalers: Scalers) -> None:
        """Raise SeriesError for a value so far from the others that its square, once scaled, overflows the dtype."""
        if known.size == 0:
            return
        most = math.sqrt(float(np.finfo(self.backend.dtype).max)) / 4
        with np.errstate(over="ignore"):
            far = np.abs(known - np.median(known)) / min(scalers.past.std, scalers.future.std)
        row = int(np.argmax(far))
        if far[row] > most:
            problem = (
                f"{far[row]:.2g} times the usual change of the series, more than {self.backend.dtype} has room for"
            )
            raise SeriesError(row, known[row], problem)

    def _parts(self, values: Values) -> Split:
        """The parts of a series, none too short for the window."""
        parts = split(len(values))
        window, horizon = self.settings.window, self.settings.horizon
        for part, need in ((parts.train, window + horizon), (parts.validation, horizon), (parts.test, horizon)):
            if part.stop - part.start < need:
                raise ValueError(
                    f"Forecaster: a window of {window} and a horizon of {horizon} need {need} rows "
                    f"in rows {part.start + 1} to {part.stop} of the series"
                )
        return parts

    def _rows(self, part: slice) -> slice:
        """Windows whose targets all lie in a part."""
        return slice(
            max(0, part.start - self.settings.window), part.stop - self.settings.window - self.settings.horizon + 1
        )

    def _predict(self, known: Values) -> Values:
        """Forecasts (N, horizon) after windows (N, window)."""
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


def _series(values: Any) -> Values:
    expected = "real numbers (N,)"
    array = checks.host("Forecaster", "values", values, expected)
    try:
        if array.dtype.kind not in "fiubO":
            raise TypeError
        array = array.astype(np.float64)  # None, a gap, becomes NaN
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"Forecaster: values is {checks.shown(values)}, expected {expected}") from None
    if array.ndim != 1:
        raise ValueError(f"Forecaster: the series has shape {array.shape}, expected (N,)")
    if array.size and np.isnan(array[0]):
        raise ValueError("Forecaster: the series begins with a gap, expected a value")
    beyond = np.flatnonzero(np.abs(array) > LARGEST)
    if beyond.size:
        row = int(beyond[0])
        raise SeriesError(row, array[row], f"expected numbers from {-LARGEST:g} to {LARGEST:g}")
    return array


def _autoregression(known: Values, values: Values, order: int, horizon: int, at: np.ndarray[Any, Any]) -> Values:
    """Least-squares forecasts at positions `at` from the `order` values before, fitted on all before the first."""
    x, _ = windows(known, order, horizon)
    _, target = windows(values, order, horizon)
    design = np.concatenate((x, np.ones((len(x), 1))), axis=1)
    forecast = np.empty((len(at), horizon))
    past = slice(0, int(at[0]) - order - horizon + 1)
    for h in range(horizon):
        there = ~np.isnan(target[past, h])
        coefficients, *_ = np.linalg.lstsq(design[past][there], target[past][there, h], rcond=None)
        forecast[:, h] = design[at - order] @ coefficients
    return forecast


def _rmse(forecast: Values, truth: Values) -> Values:
    """Over the values that are there, by steps ahead."""
    return np.asarray(np.sqrt(np.nanmean((forecast - truth) ** 2, axis=0)))
