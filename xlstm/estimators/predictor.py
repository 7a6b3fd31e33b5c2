"""The predictor of a forecaster, which adds a network to the other candidates: settings, windows,
examples and forecasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array, Params
from xlstm.data.batches import Batch, ByRows
from xlstm.data.host import Host, Values
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import baselines
from xlstm.estimators.base import CHECKS
from xlstm.estimators.selection import Combination
from xlstm.estimators.series_scaling import Origins, SeriesScaling, scales, standard
from xlstm.models.sequence import SequenceModel, sequence_model

# scale of the head's initial weights: small, so that the first forecasts are near the average
HEAD = 0.1
HEAD_WEIGHTS = ("head.W", "head.b")
NARROWEST = 1e-3  # least unit of residuals, as a share of a window's scale


@dataclass(kw_only=True)
class Settings:
    """The parameters of a `Forecaster` that decide how it is built and trained, checked.

    Attributes
    ----------
    window : int, optional
        Steps that the network looks back. By default it is 48, or half of the training part of the
        shortest series if that is less.
    horizon : int
        Steps ahead that are predicted at once.
    hidden_size : int
        Units of each recurrent layer.
    epochs : int
        Most passes over the training part.
    patience : int
        Epochs without a better validation loss before training stops.
    learning_rate, weight_decay : float
        Options of AdamW.
    batch_size : int
        Windows of a mini-batch.
    clip : float
        Limit of the global norm of the gradient.
    averaging : float
        Decay of the moving average of the weights that is validated and kept.
    seed : int
        Seed of the initial weights and of the order of batches.
    precision : {"float16", "bfloat16", "tf32"}, optional
        Arithmetic of training, on a GPU; the weights stay float32. See `xlstm.precision`.
    cell : {"lstm", "gru", "rnn", "slstm", "minlstm", "mingru", "mlstm", "xlstm"}
        Or the name of a registered cell.
    num_layers : int
        Number of recurrent layers.
    bidirectional : bool
        Read a window in both directions.
    dropout : float
        Rate of dropout between layers.
    candidates : list of str, or "auto"
        The methods that may forecast: some of "linear", "smoothing", "theta" and "network". With
        "auto", validation decides whether the network forecasts. If you name "network" in a list,
        it always does.
    quantiles : list of float
        Quantiles that are predicted beside the mean. If it is empty, there are no intervals.
    linear_baseline : int or "auto"
        Steps that the linear autoregression looks back; 0 for no autoregression. With "auto",
        errors from rolling origins decide.
    season : int, tuple of two int, or "auto"
        Steps of a season, or of two seasons such as 24 and 168, at most 100,000; 0 for none. All
        candidates but the network use them, exponential smoothing and the Theta method up to 2,000
        steps. A season of m steps needs 4/3 m rows before the test part. With "auto", `fit` looks
        for seasons in the series, and each candidate takes none, one or two. The seasonal naive
        forecast repeats the shorter one.
    calendar : bool or "auto"
        Use the time of the year, the week and the day as covariates, if there are dates. With
        "auto", the errors of the candidates from rolling origins decide.
    least : float, optional
        Lower limit of forecasts and intervals, such as 0 for counts and prices.
    refit : bool
        Choose and fit all candidates but the network once more on all rows, for `predict`.
    """

    window: Any = None  # int or None, and int once fitted
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
    cell: str = "lstm"
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    candidates: str | Sequence[str] = "auto"
    quantiles: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    linear_baseline: int | str = "auto"
    season: int | tuple[int, ...] | str = "auto"
    calendar: bool | str = "auto"
    least: float | None = None
    refit: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            setattr(self, name, CHECKS[name]("Forecaster", name, value))


def finite(forecast: Values) -> Values:
    """Return a forecast; raise FloatingPointError unless it is finite."""
    if not np.all(np.isfinite(forecast)):
        raise FloatingPointError(
            "Forecaster: the forecast is not finite; the series or what was fitted is too large"
        )
    return forecast


@dataclass(frozen=True)
class Predictor:
    """Forecasts after windows: last value + average of the other candidates + network.

    Attributes
    ----------
    settings : Settings
    backend : Backend
    scaling : SeriesScaling
    combination : Combination
        The average of the other candidates, to which the network adds.
    spread : array (H, C), or None before it is known
        Root mean square of the residuals of the combination, in scales of the window: the unit of
        the network's output.
    intervals : Intervals, or None before they are known
    model : SequenceModel
    params : dict of str to array
        Weights of the network.
    """

    settings: Settings
    backend: Backend
    scaling: SeriesScaling
    combination: Combination
    spread: Any
    intervals: Any
    model: SequenceModel
    params: Params

    def forecast(self, series: TimeSeries, units: Values, origins: Origins) -> Values:
        """Return the mean forecasts (M, H, C) after windows of a series.

        `units` (C,) are those of `SeriesScaling.of`. A forecast that is not finite raises
        FloatingPointError.
        """
        return self.finished(self.base(series, units, origins), series, units, origins)

    def finished(self, base: Values, series: TimeSeries, units: Values, origins: Origins) -> Values:
        """Return the mean forecasts (M, H, C) from those without the network, `base`.

        A network that `fit` has rejected has a head of zeros, and is not run.
        """
        if any(np.any(to_numpy(self.params[name])) for name in HEAD_WEIGHTS):
            base = base + self.added(series, units, origins)
        return finite(self.limited(base))

    def base(self, series: TimeSeries, units: Values, origins: Origins) -> Values:
        """Return forecasts without the network, (M, H, C); (n, H, C) for n paths, which are n * C
        columns with one origin.
        """
        changes: Values = units * self.combination.apply(series, self.scaling, units, origins)
        return np.reshape(series.known[origins - 1], (-1, 1, len(units))) + changes

    def added(self, series: TimeSeries, units: Values, origins: Origins) -> Values:
        """Return the network's part (M, H, C) of forecasts."""
        x, scale = self.windows(series, units, origins)
        y, _, _ = self.model.forward(self.params, x, train=False)
        return finite(self._in_units(to_numpy(y).astype(np.float64), scale))

    def _in_units(self, y: Array, scale: Array) -> Array:
        """Return the network's output (M, H, C) in the units of the series."""
        outputs = np.reshape(y, (scale.shape[0], *self.spread.shape))
        return outputs * (self.spread * scale[:, None])

    def quantiles(self, mean: Array, width: Array) -> Array:
        """Return quantiles (M, H, C, Q) around the mean, for intervals of a width (M, C)."""
        return self.limited(self.intervals.around(mean, width))

    def shared(self, share: float, combination: Combination) -> Predictor:
        """Return a predictor with other candidates, and the network's output scaled by `share`."""
        head = {name: share * self.params[name] for name in HEAD_WEIGHTS}
        return replace(self, combination=combination, params=self.params | head)

    def windows(self, series: TimeSeries, units: Values, origins: Origins) -> tuple[Array, Values]:
        """Return windows (T, M, D) as the network sees them, and their scale (M, C)."""
        scale = scales(series.known, origins, self.settings.window, units)
        return self.backend.asarray(self.inputs(series, scale, origins)), scale

    def inputs(self, series: TimeSeries, scale: Values, origins: Origins) -> Values:
        """Return windows (T, M, D): differences from the last value, then covariates, with static
        numbers last.

        Covariates that are known in advance appear twice: at their own step, and one horizon later.
        So a window also holds them for the steps to predict.
        """
        rows = origins - np.arange(self.settings.window, 0, -1)[:, None]  # (T, M)
        later = np.minimum(rows + self.settings.horizon, len(series.future) - 1)
        parts = (
            (series.known[rows] - series.known[origins - 1]) / scale,
            standard(series.past[rows], self.scaling.past),
            standard(series.future[rows], self.scaling.future),
            standard(series.future[later], self.scaling.future),
            np.broadcast_to(
                standard(series.static, self.scaling.static), (*rows.shape, len(series.static))
            ),
        )
        return np.concatenate(parts, axis=2)

    def limited(self, ahead: Values) -> Values:
        """Return forecasts, raised to the parameter `least` where they are below it."""
        return ahead if self.settings.least is None else np.maximum(ahead, self.settings.least)


@dataclass(frozen=True)
class Exported(Predictor):
    """A predictor whose forecasts are written as ONNX.

    Attributes
    ----------
    run : callable or None
        Writes the network; None if there is no network.
    """

    run: Any

    def finished(self, base: Values, series: TimeSeries, units: Values, origins: Origins) -> Values:
        if self.run is not None:
            x, scale = self.windows(series, units, origins)
            base = base + self._in_units(self.run(x), scale)
        return self.limited(base)


@dataclass(frozen=True)
class Examples(ByRows):
    """Windows and the residuals that the network learns to predict after them, in shuffled batches.

    Each batch makes its windows when it is needed.

    Attributes
    ----------
    predictor : Predictor
    several : list of S TimeSeries
    series : array (M,)
        Number of the series of each window.
    origins : array (M,)
        The first row after each window.
    scale : array (M, C)
        Scale of each window.
    target : array (M, H * C)
        The residuals, in units of `scale` and `predictor.spread`.
    mask : bool array (M, H * C)
        Whether each target is known.
    """

    predictor: Predictor
    several: Sequence[TimeSeries]
    series: Host
    origins: Host
    scale: Values
    target: Values
    mask: Host

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        return self.predictor.settings.batch_size

    def batch(self, rows: Host, own: slice) -> Batch:
        mask = self.mask[rows]
        rows = rows[own]
        p = self.predictor
        x = np.empty((p.settings.window, len(rows), p.model.input_size))
        for k in np.unique(self.series[rows]):
            columns = np.flatnonzero(self.series[rows] == k)
            at = rows[columns]
            x[:, columns] = p.inputs(self.several[k], self.scale[at], self.origins[at])
        return Batch(x, self.target[rows], mask, True)


def examples(
    predictor: Predictor,
    several: Sequence[TimeSeries],
    folds: Sequence[tuple[Combination, Sequence[Origins]]],
    stops: Sequence[int],
    spread: Values | None = None,
) -> Examples:
    """Return examples for the network: windows before the origins of each fold and series, and the
    residuals of the candidates of that fold.

    Targets end before the rows `stops`. The predictor of the examples is `predictor` with `spread`,
    by default computed from these examples.
    """
    s = predictor.settings
    parts = []
    for combination, origins in folds:
        for k, (series, units, at, stop) in enumerate(
            zip(several, predictor.scaling.units, origins, stops, strict=True)
        ):
            scale = scales(series.known, at, s.window, units)
            left = baselines.changes(series, at, s.horizon, stop, units)
            left -= combination.apply(series, predictor.scaling, units, at)
            left *= units / scale[:, None]
            parts.append((np.full(len(at), k), at, scale, left))
    numbers, rows, scale, left = map(np.concatenate, zip(*parts, strict=True))
    if spread is None:
        squares = [baselines.mean(left[:, h] ** 2) for h in range(s.horizon)]
        spread = np.fmax(np.sqrt(squares), NARROWEST)
    predictor = replace(predictor, spread=spread)
    left /= predictor.spread
    target = left.reshape(len(left), -1)
    mask = ~np.isnan(target)
    target[~mask] = 0.0
    return Examples(predictor, several, numbers, rows, scale, target, mask)


def network(settings: Settings, scaling: SeriesScaling) -> SequenceModel:
    """Return the network of a forecaster: recurrent layers and a head for each step ahead and
    target.
    """
    s = settings
    C, past, future, static = (part.shape[1] for part in scaling[:4])
    outputs = s.horizon * C
    sizes = {
        name: getattr(s, name) for name in ("hidden_size", "num_layers", "bidirectional", "dropout")
    }
    return sequence_model(
        "Forecaster", s.cell, C + past + 2 * future + static, outputs, True, **sizes
    )


def first_weights(predictor: Predictor, share: float = HEAD) -> Params:
    """Return initial weights whose head is scaled by `share`: near zero by default, and all zeros
    for a share of 0.
    """
    params = predictor.model.init(predictor.settings.seed, predictor.backend)
    return params | {"head.W": share * params["head.W"], "head.b": 0 * params["head.b"]}
