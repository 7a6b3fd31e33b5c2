"""The forecaster: series and their future, with fit, predict and score."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NamedTuple, Self

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.namespace import DType, Params
from xlstm.data import reading
from xlstm.data.host import Values
from xlstm.data.preparation import split
from xlstm.estimators import highway, intervals, predictor, scores, seasons, storage, tracks
from xlstm.estimators.base import Estimator
from xlstm.estimators.examples import Examples, width
from xlstm.estimators.highway import Highway
from xlstm.estimators.predictor import Predictor
from xlstm.estimators.scaling import Origins, Scaling
from xlstm.estimators.scores import Score
from xlstm.estimators.settings import DECILES, Settings
from xlstm.estimators.tracks import Beside, Track
from xlstm.estimators.values import check_reach
from xlstm.models.network import sequence_model
from xlstm.models.sequence import SequenceModel
from xlstm.training import Callback, Interrupted, Progress, Terminated, Trained, loop, optimizers
from xlstm.training import precision as precisions

KIND = storage.KIND


class Prepared(NamedTuple):
    """Series ready to be trained on: what every part of training shares."""

    settings: Settings
    tracks: list[Track]
    scaling: Scaling
    line: Highway
    model: SequenceModel
    data: dict[str, Examples]
    spread: Values
    calendar: bool


class Forecaster(Estimator):
    """Forecast series with a recurrent network beside a linear autoregression.

    A network sees by how much each of the last `window` values differs from the latest one, in units of the window's
    own changes, and covariates. It predicts the mean and quantiles of the next `horizon` values at once, as what a
    linear autoregression leaves of them (LSTNet, Lai et al. 2018). Neither the level nor the scale of a series matters.

    `fit` trains on the first 60 % of a series and stops early by the next 20 %. The last 20 % are for `score`, whose
    network has not seen them. `predict` has a second network that is trained on all rows, unless `refit` is False.
    Intervals are widened by errors of the past (Romano et al. 2019).

    Parameters
    ----------
    settings : Settings, optional
        A `Settings` in place of the keywords of the same names.
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}, optional
    name : str
        A name for the series, kept in the model file.
    window, horizon, hidden_size, epochs, patience, learning_rate, weight_decay, batch_size, clip, averaging, seed, \
precision, cell, num_layers, bidirectional, dropout, quantiles, scaling, highway, season, calendar, refit
        As for `Settings`.
    checkpoints : path, optional
        A folder for checkpoints of training, as for `training.train`.
    resume : bool
        Go on from the newest checkpoint there.
    callbacks : list of Callback or callable
        As for `training.train`; they see the training that validation ends.
    warm_start : bool
        Begin with the weights of the last fit, where they have the right shapes.

    Attributes
    ----------
    trained_ : Trained
        How the training went that validation ended.
    params_ : dict of str to array
        Weights of the network that `predict` has.
    scaling_ : Scaling
        Units of values and covariates.
    season_ : int
        Steps of a season; 0 for none.
    calendar_ : bool
        Whether dates are looked at.
    highway_ : int
        Steps that the linear autoregression looks back to.
    n_targets_ : int
        Columns that are predicted.

    Examples
    --------
    >>> import numpy as np
    >>> values = np.sin(np.arange(400) / 5)
    >>> forecaster = Forecaster(epochs=5, hidden_size=8, horizon=3, backend="numpy").fit(values)
    >>> forecaster.predict(values, steps=12).shape
    (12,)
    >>> forecaster.predict_quantiles(values).shape
    (3, 9)
    """

    _kind = "regressor"

    def __init__(
        self,
        settings: Settings | None = None,
        backend: str | Backend | None = None,
        dtype: DType | None = None,
        name: str = "",
        *,
        window: int = Settings.window,
        horizon: int = Settings.horizon,
        hidden_size: int = Settings.hidden_size,
        epochs: int = Settings.epochs,
        patience: int = Settings.patience,
        learning_rate: float = Settings.learning_rate,
        weight_decay: float = Settings.weight_decay,
        batch_size: int = Settings.batch_size,
        clip: float = Settings.clip,
        averaging: float = Settings.averaging,
        seed: int = Settings.seed,
        precision: str | None = None,
        cell: str = Settings.cell,
        num_layers: int = Settings.num_layers,
        bidirectional: bool = False,
        dropout: float = 0.0,
        quantiles: Sequence[float] = DECILES,
        scaling: str = Settings.scaling,
        highway: int | str = Settings.highway,
        season: int | str = Settings.season,
        calendar: bool | str = Settings.calendar,
        refit: bool = True,
        checkpoints: str | os.PathLike[str] | None = None,
        resume: bool = False,
        callbacks: Sequence[Callback | Callable[[Progress], object]] = (),
        warm_start: bool = False,
    ) -> None:
        checks.optional(checks.instance(Settings, "Settings"))("Forecaster", "settings", settings)
        self.backend, self.dtype, self.name = backend, dtype, name
        self.window, self.horizon, self.hidden_size = window, horizon, hidden_size
        self.epochs, self.patience, self.learning_rate, self.weight_decay = (
            epochs,
            patience,
            learning_rate,
            weight_decay,
        )
        self.batch_size, self.clip, self.averaging, self.seed = batch_size, clip, averaging, seed
        self.precision, self.cell, self.num_layers, self.bidirectional = precision, cell, num_layers, bidirectional
        self.dropout, self.quantiles, self.scaling, self.highway = dropout, quantiles, scaling, highway
        self.season, self.calendar, self.refit = season, calendar, refit
        self.checkpoints, self.resume, self.callbacks, self.warm_start = checkpoints, resume, callbacks, warm_start
        if settings is not None:
            self._take(settings)

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in super()._names() if name != "settings"]

    @property
    def settings(self) -> Settings:
        """The parameters that decide how it is built and trained, checked."""
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    @property
    def trained(self) -> Trained | None:
        """`trained_`, or None before `fit`."""
        return getattr(self, "trained_", None)

    @property
    def params(self) -> Params | None:
        """`params_`, or None before `fit`."""
        return getattr(self, "params_", None)

    def fit(
        self,
        values: Any,
        progress: Callable[[Progress], None] | None = None,
        *,
        past: Any = None,
        future: Any = None,
        static: Any = None,
        dates: Any = None,
    ) -> Self:
        """Train on a series, or on several.

        Parameters
        ----------
        values : array (N,) or (N, C), or list of such arrays
            A series of one target, of several, or several series. NaN is a gap, which is bridged by the value before it
            and never a target.
        progress : callable, optional
            Called with a `training.Progress` after every step.
        past : array (N, P), optional
            Covariates that are known up to the last value. Where there are several series, this and what follows are
            lists with one entry for each.
        future : array (N or more, F), optional
            Covariates that are known in advance.
        static : array (S,), optional
            Numbers that do not change within a series.
        dates : array (N,), optional
            Rising dates, of which features of the calendar are made. Rows that are missing become gaps.

        Returns
        -------
        Forecaster
            Itself.

        Raises
        ------
        ValueError
            A series is too short for the window, constant, or not finite, or a value is so large, or so far from the
            others, that its square overflows; a `SeriesError` names it. A parameter is out of range.
        FloatingPointError
            Training diverged.
        TypeError, BackendError
            The backend does not have the precision.
        Interrupted, Terminated
            Ctrl-C or SIGTERM ended training. The forecaster is fitted then, with the best weights so far.
        """
        checks.optional(checks.function)("Forecaster", "progress", progress)
        backend = self._backend()
        made = self._prepared(values, Beside(past, future, static, dates), backend)
        stop: BaseException | None = None
        try:
            trained = self._train(made, backend, made.data["train"], progress, made.data["validation"])
        except (Interrupted, Terminated) as error:
            stop, trained = error, error.trained
        s = made.settings
        judge = Predictor(s, backend, made.scaling, made.line, made.spread, made.model, trained.params)
        whole = judge
        if s.refit and stop is None:
            try:
                whole = self._refitted(made, backend, trained.best_epoch, progress)
            except (Interrupted, Terminated) as error:
                stop = error
        adjustment = np.zeros((*judge.spread.shape, len(intervals.pairs(s.quantiles))))
        if adjustment.size:
            adjustment = intervals.adjustment(
                [self._outside(judge, made.tracks, k) for k in range(len(made.tracks))], s.quantiles
            )
        season = s.season if s.season != "auto" else _season(made.tracks)
        self._keep(judge, whole, adjustment, int(season), made.calendar)
        self.trained_ = trained
        if stop is not None:
            raise stop
        return self

    def examples(self, values: Any, **beside: Any) -> dict[str, Examples]:
        """Return the windows to train on, and those to validate with, by "train" and "validation".

        Parameters
        ----------
        values, past, future, static, dates
            As for `fit`.

        Returns
        -------
        dict of str to Examples

        Raises
        ------
        ValueError, TypeError, BackendError
            As `fit` does.
        """
        return self._prepared(values, Beside(**beside), self._backend()).data

    def predict(
        self,
        values: Any,
        steps: int | None = None,
        *,
        past: Any = None,
        future: Any = None,
        static: Any = None,
        dates: Any = None,
    ) -> Any:
        """Return the values after the end of a series.

        Beyond the horizon the predictions are fed back as if they had been observed, and past covariates stay as they
        are.

        Parameters
        ----------
        values : array (N,) or (N, C), or list of such arrays
            As for `fit`. A series that is shorter than the highway looks back is taken as constant before its
            beginning.
        steps : int, optional
            How many values; by default as many as the horizon.
        past, static, dates
            As for `fit`.
        future : array (N + steps, F), optional
            As for `fit`, with the rows that are predicted.

        Returns
        -------
        array (steps,) or (steps, C), or list of such arrays

        Raises
        ------
        ValueError
            It is not fitted, or the series is shorter than the window or out of range.
        FloatingPointError
            The forecast is not finite.
        """
        self._check_fitted()
        steps = self._whole.settings.horizon if steps is None else checks.size("Forecaster", "steps", steps)
        found = self._checked(values, Beside(past, future, static, dates), steps)
        ahead = [self._ahead(found, k, steps) for k in range(len(found))]
        flat = [one[:, 0] if is_flat else one for one, is_flat in zip(ahead, _flat(values), strict=True)]
        return flat if tracks.is_several(values) else flat[0]

    def predict_quantiles(
        self, values: Any, *, past: Any = None, future: Any = None, static: Any = None, dates: Any = None
    ) -> Any:
        """Return quantiles of the values of the horizon after the end of a series.

        Parameters
        ----------
        values, past, future, static, dates
            As for `predict`.

        Returns
        -------
        array (horizon, Q) or (horizon, C, Q), or list of such arrays
            In the order of the parameter `quantiles`.

        Raises
        ------
        ValueError
            As for `predict`, or there are no quantiles.
        FloatingPointError
            The forecast is not finite.
        """
        self._check_fitted()
        s = self._whole.settings
        if not s.quantiles:
            raise ValueError("Forecaster: it was fitted without quantiles, expected quantiles=(0.1, 0.9) or others")
        found = self._checked(values, Beside(past, future, static, dates), s.horizon)
        ahead = []
        for k, track in enumerate(found):
            _, quantiles, scale = self._whole.forecast(found, k, np.array([len(track.values)]))
            ahead.append(intervals.widen(quantiles, scale, self._adjustment, s.quantiles)[0])
        flat = [one[:, 0] if is_flat else one for one, is_flat in zip(ahead, _flat(values), strict=True)]
        return flat if tracks.is_several(values) else flat[0]

    def forecasts(
        self, values: Any, *, past: Any = None, future: Any = None, static: Any = None, dates: Any = None
    ) -> tuple[np.ndarray[Any, Any], Values]:
        """Return all forecasts over the test part, by the network that has not seen it.

        Parameters
        ----------
        values, past, future, static, dates
            As for `fit`.

        Returns
        -------
        at : array (N,)
            Positions of the first value of each forecast.
        forecasts : array (N, horizon) or (N, horizon, C)
            Those of several series follow each other.
        """
        self._check_fitted()
        found = self._checked(values, Beside(past, future, static, dates), 0)
        horizon = self._judge.settings.horizon
        parts = []
        for k, track in enumerate(found):
            at = np.arange(_rows(track, self._judge.settings)["test"].start, len(track.values) - horizon + 1)
            parts.append((at, self._judge.forecast(found, k, at)[0]))
        at, forecasts = (np.concatenate(part) for part in zip(*parts, strict=True))
        return at, forecasts[:, :, 0] if all(_flat(values)) else forecasts

    def score(
        self, values: Any, *, past: Any = None, future: Any = None, static: Any = None, dates: Any = None
    ) -> Score:
        """Return errors on the test part beside those of baselines, by the network that has not seen it.

        Baselines repeat the last value or the last season, or are a linear autoregression with 24 coefficients (fewer
        in a short series) and a constant for each step ahead, fitted on all that comes before the test part.

        Parameters
        ----------
        values, past, future, static, dates
            As for `fit`.

        Returns
        -------
        Score
        """
        self._check_fitted()
        found = self._checked(values, Beside(past, future, static, dates), 0)
        s, judged = self._judge.settings, []
        for k, track in enumerate(found):
            rows = _rows(track, s)
            first, last = rows["validation"].start, len(track.values)
            origins = np.arange(first, last)
            mean, quantiles, scale = self._judge.forecast(found, k, origins)
            truth = highway.targets(track, origins, s.horizon, last)
            cut = rows["test"].start - first
            if s.quantiles:
                outside = intervals.errors(quantiles, truth, scale, s.quantiles)
                by = intervals.rolling(outside, cut, s.quantiles)
                quantiles = intervals.widen(quantiles[cut:], scale[cut:], by, s.quantiles)
            judged.append(scores.Judged(origins[cut:], mean[cut:], quantiles[-len(truth[cut:]) :], truth[cut:]))
        return scores.score(found, judged, s.quantiles, self.season_, all(_flat(values)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, scaling, settings and name to a safetensors file, whole or not at all."""
        self._check_fitted()
        about = {"name": self.name, "settings": asdict(self._whole.settings), "dtype": self._whole.backend.dtype}
        storage.save(
            path,
            self._judge,
            self._whole,
            self._adjustment,
            about | {"season": self.season_, "calendar": self.calendar_},
        )

    @classmethod
    @reading.brief()
    def load(cls, path: str | os.PathLike[str], backend: str | Backend | None = None) -> Self:
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
        found = storage.load(path, backend, network)
        s = found.judge.settings
        made = cls(s, found.judge.backend, found.judge.backend.dtype, found.name)
        made._keep(found.judge, found.whole, found.adjustment, found.season, found.calendar)
        return made

    def _take(self, settings: Settings) -> None:
        """Store settings under the names of keywords, which are not to say something else."""
        for field in fields(Settings):
            given, wanted = getattr(self, field.name), getattr(settings, field.name)
            if given is not getattr(Settings, field.name) and given != wanted:
                raise TypeError(
                    f"Forecaster: {field.name} is {checks.shown(given)}, but settings has {checks.shown(wanted)}; "
                    "expected one of the two"
                )
            setattr(self, field.name, wanted)

    def _keep(self, judge: Predictor, whole: Predictor, adjustment: Values, season: int, calendar: bool) -> None:
        """Store what was fitted."""
        self._judge, self._whole, self._adjustment = judge, whole, adjustment
        self.params_, self.scaling_, self.model = whole.params, judge.scaling, judge.model
        self.season_, self.calendar_ = season, calendar
        self.highway_, self.n_targets_ = judge.line.order, judge.spread.shape[1]

    def _backend(self) -> Backend:
        backend = backend_of(self.backend, self.dtype)
        precisions.named(self.settings.precision, backend)  # what cannot be had is refused before any work
        return backend

    def _checked(self, values: Any, beside: Beside, steps: int) -> list[Track]:
        """Return tracks to predict after, with `steps` rows ahead; raise unless they go with the fitted ones."""
        judge = self._judge
        s, scaling = judge.settings, judge.scaling
        found = tracks.read(values, beside, max(steps, s.horizon), self.calendar_)
        units = scaling.of(found, s.window)
        for track, unit in zip(found, units, strict=True):
            widths = {
                "values": (track.values.shape[1], len(scaling.units[0])),
                "past": (track.past.shape[1], len(scaling.past[0])),
                "future": (track.future.shape[1], len(scaling.future[0])),
                "static": (len(track.static), len(scaling.static[0])),
            }
            for name, (given, fitted) in widths.items():
                if given != fitted:
                    what = f"{name} has {given} columns (with those that dates give)"
                    raise ValueError(f"Forecaster: {what}, expected {fitted}, as in fit")
            N = len(track.values)
            if N < s.window:
                raise ValueError(f"Forecaster: a forecast needs {s.window} values to look back on, the series has {N}")
            if track.future.shape[1] and len(track.future) < N + steps:
                have = len(track.future) - N
                raise ValueError(f"Forecaster: future has {have} rows after the series, expected {steps}")
            check_reach(track.known, unit, judge.backend.dtype)
        return found

    def _ahead(self, found: Sequence[Track], k: int, steps: int) -> Values:
        """Return forecasts (steps, C) after a series, fed back beyond the horizon."""
        done = list(found)
        track = found[k]
        ahead: list[Values] = []
        count = 0
        while count < steps:
            block, _, _ = self._whole.forecast(done, k, np.array([len(done[k].values)]))
            ahead.append(block[0])
            count += len(block[0])
            now = done[k]
            past = np.concatenate((now.past, np.repeat(now.past[-1:], len(block[0]), axis=0)))
            known = np.concatenate((now.known, block[0]))
            done[k] = track._replace(values=known, known=known, past=past)
        return np.concatenate(ahead)[:steps]

    def _prepared(self, values: Any, beside: Beside, backend: Backend) -> Prepared:
        """Return all that training needs, checked."""
        s = self.settings
        checks.text("Forecaster", "name", self.name)
        checks.flag("Forecaster", "warm_start", self.warm_start)
        kinds = [s.calendar] if s.calendar != "auto" else [False] if beside.dates is None else [True, False]
        variants = [self._lined(tracks.read(values, beside, s.horizon, bool(kind)), backend) for kind in kinds]
        found, scaling, line, rows, _ = min(variants, key=lambda variant: variant[-1])
        data, spread = {}, None
        for name in ("train", "validation"):
            at = [_origins(part[name]) for part in rows]
            end = [part[name].stop for part in rows]
            data[name], spread = predictor.examples(found, scaling, line, s, at, end, spread)
        assert spread is not None
        return Prepared(s, found, scaling, line, network(s, scaling), data, spread, found[0].marks > 0)

    def _lined(
        self, found: list[Track], backend: Backend
    ) -> tuple[list[Track], Scaling, Highway, list[dict[str, slice]], float]:
        """Return checked tracks with their scaling, the best highway, the rows of their parts, and its error."""
        s = self.settings
        rows = [_rows(track, s) for track in found]
        scaling = Scaling.fit(found, s.window, [part["train"].stop for part in rows])
        units = scaling.of(found, s.window)
        for track, unit, part in zip(found, units, rows, strict=True):
            check_reach(track.known, unit, backend.dtype)
            for name, chosen in part.items():
                there = ~np.isnan(highway.targets(track, _origins(chosen), s.horizon, chosen.stop))
                if not np.all(np.any(there, axis=0)):
                    raise ValueError(f"Forecaster: the {name} part of the series has no values to predict")
        lines = _highways(found, scaling, units, s, rows)
        errors = [highway.error(line, found, scaling, units, rows) for line in lines]
        best = int(np.argmin(errors))
        return found, scaling, lines[best], rows, errors[best]

    def _train(
        self,
        made: Prepared,
        backend: Backend,
        data: Examples,
        progress: Callable[[Progress], None] | None,
        validation: Examples | None,
        epochs: int | None = None,
    ) -> Trained:
        """Train a network, with a validation part or for so many epochs."""
        s = made.settings
        mixed, context = precisions.named(s.precision, backend)
        start = predictor.begin(made.model, s, data, backend)
        old = getattr(self, "_judge", None) if self.warm_start else None
        if old is not None and {n: p.shape for n, p in old.params.items()} == {n: p.shape for n, p in start.items()}:
            start = {name: backend.asarray(p) for name, p in old.params.items()}
        options: dict[str, Any] = {}
        if validation is not None:
            options = {"validation": validation, "patience": s.patience, "callbacks": self.callbacks}
            options |= {"checkpoints": self.checkpoints, "resume": self.resume}
        with context:
            return loop.train(
                made.model,
                start,
                data,
                optimizers.adamw(s.learning_rate, weight_decay=s.weight_decay),
                epochs=s.epochs if epochs is None else epochs,
                loss=functools.partial(predictor.loss, s.quantiles),
                clip=s.clip,
                averaging=s.averaging,
                seed=s.seed,
                precision=mixed,
                progress=progress,
                **options,
            )

    def _refitted(
        self, made: Prepared, backend: Backend, epochs: int, progress: Callable[[Progress], None] | None
    ) -> Predictor:
        """Return a network and a highway that are fitted to all rows."""
        s, found = made.settings, made.tracks
        stops = [len(track.values) for track in found]
        units = made.scaling.of(found, s.window)
        origins = [np.arange(s.window, stop) for stop in stops]
        line = made.line
        if s.highway != 0:
            (line,) = highway.fit(found, made.scaling, units, origins, stops, s.horizon, line.order, (line.ridge,))
        data, spread = predictor.examples(found, made.scaling, line, s, origins, stops)
        trained = self._train(made, backend, data, progress, None, max(1, epochs))
        return Predictor(s, backend, made.scaling, line, spread, made.model, trained.params)

    def _outside(self, judge: Predictor, found: Sequence[Track], k: int) -> Values:
        """Return by how much truths lie outside of the judge's intervals, since the training part of a series."""
        s, track = judge.settings, found[k]
        origins = np.arange(_rows(track, s)["validation"].start, len(track.values))
        _, quantiles, scale = judge.forecast(found, k, origins)
        truth = highway.targets(track, origins, s.horizon, len(track.values))
        return intervals.errors(quantiles, truth, scale, s.quantiles)


def network(settings: Settings, scaling: Scaling) -> SequenceModel:
    """Return the network of a forecaster: recurrent layers and a head for each step ahead, target and quantile."""
    s = settings
    outputs = s.horizon * len(scaling.units[0]) * (1 + len(s.quantiles))
    sizes = {name: getattr(s, name) for name in ("hidden_size", "num_layers", "bidirectional", "dropout")}
    return sequence_model("Forecaster", s.cell, width(scaling), outputs, True, **sizes)


def _rows(track: Track, settings: Settings) -> dict[str, slice]:
    """Return the first rows after the windows of each part of a series: those of a part predict into it."""
    window, horizon, N = settings.window, settings.horizon, len(track.values)
    rows = {}
    for name, part in split(N)._asdict().items():
        first = max(window, part.start)
        if first + horizon > part.stop:
            need = horizon if part.start else window + horizon
            raise ValueError(
                f"Forecaster: a window of {window} and a horizon of {horizon} need {need} rows "
                f"in rows {part.start + 1} to {part.stop} of the series"
            )
        rows[name] = slice(first, part.stop)
    return rows


def _origins(rows: slice) -> Origins:
    return np.arange(rows.start, rows.stop)


def _highways(
    found: Sequence[Track],
    scaling: Scaling,
    units: Sequence[Values],
    settings: Settings,
    rows: Sequence[dict[str, slice]],
) -> list[Highway]:
    """Return highways of some lengths and penalties, fitted to the training parts."""
    s = settings
    if s.highway == 0:
        return [highway.none(1, scaling, s.horizon)]
    origins = [_origins(part["train"]) for part in rows]
    stops = [part["train"].stop for part in rows]
    orders = [n for n in (s.window, 2 * s.window, 3 * s.window) if n == s.window or n <= min(stops) // 3]
    return [
        line
        for order in (orders if s.highway == "auto" else [int(s.highway)])
        for line in highway.fit(found, scaling, units, origins, stops, s.horizon, order)
    ]


def _season(found: Sequence[Track]) -> int:
    """Return the season of the first target in the training part of the longest series."""
    track = max(found, key=lambda one: len(one.values))
    return seasons.find(track.known[split(len(track.values)).train, 0])


def _flat(values: Any) -> list[bool]:
    """Return for each series whether it came without an axis of targets."""
    return [np.ndim(one) == 1 for one in (values if tracks.is_several(values) else [values])]
