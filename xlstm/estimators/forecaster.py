"""The forecaster: series and their future, with fit, predict and score."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, Self, Unpack

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.namespace import Array, DType, Params
from xlstm.data import covariates, panels, reading
from xlstm.data.covariates import CovariateArguments, Covariates, TimeSeries
from xlstm.data.host import Values, check_reach
from xlstm.data.panels import Given, Roles
from xlstm.estimators import evaluation, fitting, intervals, preparation, scores, storage
from xlstm.estimators.base import Estimator
from xlstm.estimators.examples import Examples
from xlstm.estimators.predictor import Predictor
from xlstm.estimators.scores import Score
from xlstm.estimators.settings import DECILES, Settings
from xlstm.training import Callback, Interrupted, Progress, Terminated, Trained, loop
from xlstm.training import precision as precisions

KIND = storage.KIND


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
precision, cell, num_layers, bidirectional, dropout, quantiles, scaling, linear_baseline, season, calendar, least, refit
        As for `Settings`.
    targets, past, future, static : list of str, optional
        In tables, names of columns, of which each has one role: those to predict, by default all others; covariates
        that are known up to the last value; covariates that are known in advance; and numbers that do not change
        within a series. With `targets` columns without a role are not read.
    series_id : str, optional
        The column of tables that tells several series apart.
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
    window_ : int
        Steps that the network looks back.
    season_ : int
        Steps of a season; 0 for none.
    calendar_ : bool
        Whether dates are looked at.
    linear_baseline_ : int
        Steps that the linear autoregression looks back to.
    n_targets_ : int
        Columns that are predicted.
    feature_names_in_ : array of str
        Their names, where there was a table.

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

    _takes = ("one_d_array",)  # rows of a table are steps, not samples

    def __init__(
        self,
        settings: Settings | None = None,
        backend: str | Backend | None = None,
        dtype: DType | None = None,
        name: str = "",
        *,
        window: int | None = Settings.window,
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
        precision: str | None = Settings.precision,
        cell: str = Settings.cell,
        num_layers: int = Settings.num_layers,
        bidirectional: bool = Settings.bidirectional,
        dropout: float = Settings.dropout,
        quantiles: Sequence[float] = DECILES,
        scaling: str = Settings.scaling,
        linear_baseline: int | str = Settings.linear_baseline,
        season: int | str = Settings.season,
        calendar: bool | str = Settings.calendar,
        least: float | None = Settings.least,
        refit: bool = Settings.refit,
        targets: str | Sequence[str] | None = None,
        past: str | Sequence[str] | None = None,
        future: str | Sequence[str] | None = None,
        static: str | Sequence[str] | None = None,
        series_id: str | None = None,
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
        self.dropout, self.quantiles, self.scaling, self.linear_baseline = dropout, quantiles, scaling, linear_baseline
        self.season, self.calendar, self.least, self.refit = season, calendar, least, refit
        self.targets, self.past, self.future, self.static = targets, past, future, static
        self.series_id = series_id
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
        self, values: Any, progress: Callable[[Progress], None] | None = None, **beside: Unpack[CovariateArguments]
    ) -> Self:
        """Train on a series, or on several.

        Parameters
        ----------
        values : array (N,) or (N, C), list of such arrays, or table
            A series of one target, of several, or several series. NaN is a gap, which is bridged by the value before it
            and never a target; rows before the first value of some target are left out. Dates in a table are looked at.
        progress : callable, optional
            Called with a `training.Progress` after every step.
        beside : past, future, static, dates
            `past` (N, P) are covariates that are known up to the last value, `future` (N or more, F) those that are
            known in advance, `static` (S,) numbers that do not change, and `dates` (N,) rising dates, of which features
            of the calendar are made; rows that are missing become gaps. Where there are several series, these are
            lists with one entry for each. In a table they are columns.

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
        s, backend = self.settings, self._backend()
        given = panels.given("Forecaster", values, Covariates.of("Forecaster", beside), self._roles())
        variants = self._variants(given, s)
        self._fit(variants, given, s, backend, progress)
        return self

    def examples(self, values: Any, **beside: Unpack[CovariateArguments]) -> dict[str, Examples]:
        """Return the windows to train on, and those to validate with, by "train" and "validation".

        Parameters
        ----------
        values, beside
            As for `fit`.

        Returns
        -------
        dict of str to Examples

        Raises
        ------
        ValueError, TypeError, BackendError
            As `fit` does.
        """
        s, backend = self.settings, self._backend()
        given = panels.given("Forecaster", values, Covariates.of("Forecaster", beside), self._roles())
        made = preparation.prepared(self._variants(given, s), given.ids, s, backend.dtype)
        return {"train": made.train, "validation": made.validation}

    def predict(self, values: Any, steps: int | None = None, **beside: Unpack[CovariateArguments]) -> Any:
        """Return the values after the end of a series.

        Beyond the horizon the predictions are fed back as if they had been observed, and past covariates stay as they
        are.

        Parameters
        ----------
        values : array (N,) or (N, C), list of such arrays, or table
            As for `fit`. A series that is shorter than the linear baseline looks back is taken as constant before its
            beginning. Series of a table with the name of a fitted one have its units; all others are measured as in
            `fit`, so that neither their level nor their scale matters.
        steps : int, optional
            How many values; by default as many as the horizon.
        beside : past, future, static, dates
            As for `fit`; `future` has the rows that are predicted, too, (N + steps, F). With a table it is a table of
            the rows that are predicted, in any order if they have dates.

        Returns
        -------
        array (steps,) or (steps, C), list of such arrays, or table

        Raises
        ------
        ValueError
            It is not fitted, or the series is shorter than the window or out of range.
        FloatingPointError
            The forecast is not finite.
        """
        self._check_fitted()
        steps = self._whole.settings.horizon if steps is None else checks.size("Forecaster", "steps", steps)
        given, found, units = self._read(values, Covariates.of("Forecaster", beside), steps)
        return given.like([self._ahead(*one, steps) for one in zip(found, units, strict=True)], found)

    def predict_quantiles(self, values: Any, **beside: Unpack[CovariateArguments]) -> Any:
        """Return quantiles of the values of the horizon after the end of a series.

        Parameters
        ----------
        values, beside
            As for `predict`.

        Returns
        -------
        array (horizon, Q) or (horizon, C, Q), list of such arrays, or table
            In the order of the parameter `quantiles`; columns of a table have the quantile at the end of their names.

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
        given, found, units = self._read(values, Covariates.of("Forecaster", beside), s.horizon)
        ahead = [self._next(*one)[1] for one in zip(found, units, strict=True)]
        return given.like(ahead, found, [f" {q:g}" for q in s.quantiles])

    def forecasts(self, values: Any, **beside: Unpack[CovariateArguments]) -> tuple[np.ndarray[Any, Any], Values]:
        """Return all forecasts over the test part, by the network that has not seen it.

        Parameters
        ----------
        values, beside
            As for `fit`.

        Returns
        -------
        at : array (N,)
            Positions of the first value of each forecast.
        forecasts : array (N, horizon) or (N, horizon, C)
            Those of several series follow each other.
        """
        self._check_fitted()
        given, found, units = self._read(values, Covariates.of("Forecaster", beside), 0)
        s, parts = self._judge.settings, []
        for track, unit in zip(found, units, strict=True):
            first = preparation.parts_of(len(track.values), s)["test"].start
            at = np.arange(first, len(track.values) - s.horizon + 1)
            parts.append((at + track.begin, self._judge.forecast(track, unit, at)[0]))
        at, forecasts = (np.concatenate(part) for part in zip(*parts, strict=True))
        return at, forecasts[:, :, 0] if all(given.flat) else forecasts

    def windows(self, values: Any, count: int = 64, **beside: Unpack[CovariateArguments]) -> Array:
        """Return the last windows of a series, or of the first of several, as the network sees them.

        Parameters
        ----------
        values, beside
            As for `predict`.
        count : int
            The number of windows, at most; the last one ends with the series.

        Returns
        -------
        array (window, M, D)
            Input of `model` with `params_`, such as `xlstm.plots` asks for.

        Raises
        ------
        ValueError, TypeError
            As `predict` does.
        """
        self._check_fitted()
        s, count = self._whole.settings, checks.size("Forecaster", "count", count)
        _, found, units = self._read(values, Covariates.of("Forecaster", beside), s.horizon)
        N = len(found[0].values)
        return self._whole.seen(found[0], units[0], np.arange(max(s.window, N - count + 1), N + 1))[0]

    def score(self, values: Any, **beside: Unpack[CovariateArguments]) -> Score:
        """Return errors on the test part beside those of baselines, by the network that has not seen it.

        Baselines repeat the last value or the last season, or are a linear autoregression with 24 coefficients (fewer
        in a short series) and a constant for each step ahead, fitted on all that comes before the test part.

        Parameters
        ----------
        values, beside
            As for `fit`.

        Returns
        -------
        Score
        """
        self._check_fitted()
        given, found, units = self._read(values, Covariates.of("Forecaster", beside), 0)
        judged = [evaluation.tested(self._judge, *one) for one in zip(found, units, strict=True)]
        return scores.score(found, judged, self._judge.settings.quantiles, self.season_, all(given.flat))

    def backtest(self, values: Any, folds: int = 5, refit: bool = True, **beside: Unpack[CovariateArguments]) -> Score:
        """Return errors of forecasts from rolling origins, one horizon after another at the end of the series.

        Parameters
        ----------
        values, beside
            As for `fit`.
        folds : int
            How many forecasts of each series.
        refit : bool
            Fit a forecaster with the same parameters to all that comes before each forecast. Without, the network of
            `score` makes them, and they are to lie in the test part.

        Returns
        -------
        Score

        Raises
        ------
        ValueError, TypeError, BackendError
            As for `fit` and `predict`; there is not enough room for the folds.
        """
        folds, refit = checks.count("Forecaster", "folds", folds), checks.flag("Forecaster", "refit", refit)
        if not refit:
            self._check_fitted()
            given, found, units = self._read(values, Covariates.of("Forecaster", beside), 0)
            judged = [evaluation.tested(self._judge, *one) for one in zip(found, units, strict=True)]
            judged = [evaluation.last(one, folds, self._judge.settings.horizon) for one in judged]
            return scores.score(found, judged, self._judge.settings.quantiles, self.season_, all(given.flat))
        s, backend = self.settings, self._backend()
        given = panels.given("Forecaster", values, Covariates.of("Forecaster", beside), self._roles())
        variants, rounds = self._variants(given, s), []
        for back in range(folds, 0, -1):
            ends = [len(track.values) - back * s.horizon for track in variants[0]]
            if min(ends) < 1:
                raise ValueError(f"Forecaster: {folds} folds of {s.horizon} steps leave nothing of a series to fit to")
            cut = [[track.until(end) for track, end in zip(some, ends, strict=True)] for some in variants]
            one = type(self)(**{**self.get_params(), "checkpoints": None, "resume": False})
            one._fit(cut, given, s, backend, None)
            chosen = cut[-1] if one.calendar_ else cut[0]
            units = one.scaling_.of(chosen, given.ids, one.window_)
            rounds.append([(end, *one._next(track, u)) for end, track, u in zip(ends, chosen, units, strict=True)])
        judged = [
            evaluation.joined(track, each) for track, each in zip(variants[0], zip(*rounds, strict=True), strict=True)
        ]
        return scores.score(
            variants[0], judged, s.quantiles, preparation.season_of(variants[0], s.season), all(given.flat)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, scaling, settings, name and roles of columns to a safetensors file, whole or not at all."""
        self._check_fitted()
        about = {"name": self.name, "settings": asdict(self._whole.settings), "dtype": self._whole.backend.dtype}
        storage.save(
            path,
            self._judge,
            self._whole,
            self._adjustment,
            about
            | {"season": self.season_, "calendar": self.calendar_, "roles": self._roles()._asdict()}
            | {"names": [*vars(self).get("feature_names_in_", ())]},
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
        found = storage.load(path, backend, preparation.network)
        s = found.judge.settings
        made = cls(s, found.judge.backend, found.judge.backend.dtype, found.name, **found.roles.given())
        made._keep(found.judge, found.whole, found.adjustment, found.season, found.calendar, found.names)
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

    def _keep(
        self, judge: Predictor, whole: Predictor, adjustment: Values, season: int, calendar: bool, names: Sequence[str]
    ) -> None:
        """Store what was fitted."""
        self._judge, self._whole, self._adjustment = judge, whole, adjustment
        self.params_, self.scaling_, self.model = whole.params, judge.scaling, judge.model
        self.window_, self.season_, self.calendar_ = whole.settings.window, season, calendar
        self.linear_baseline_, self.n_targets_ = judge.line.order, judge.spread.shape[1]
        vars(self).pop("feature_names_in_", None)  # those of an earlier fit
        if names:
            self.feature_names_in_ = np.array(names, dtype=object)

    def _backend(self) -> Backend:
        """Return the backend, after a check that it has the precision."""
        backend = backend_of(self.backend, self.dtype)
        precisions.named(self.settings.precision, backend)
        return backend

    def _roles(self) -> Roles:
        return Roles(self.targets, self.past, self.future, self.static, self.series_id).checked("Forecaster")

    def _warm(self) -> bool:
        """Return whether the weights of an earlier fit are to be the first ones, after checks of what is no setting."""
        checks.text("Forecaster", "name", self.name)
        checks.flag("Forecaster", "resume", self.resume)
        return checks.flag("Forecaster", "warm_start", self.warm_start) and self.__sklearn_is_fitted__()

    def _variants(self, given: Given, settings: Settings) -> list[list[TimeSeries]]:
        """Return tracks to train on, without a look at the calendar and with one where there are dates."""
        looks = [settings.calendar] if isinstance(settings.calendar, bool) else [False, True]
        found = [
            covariates.read_series("Forecaster", given.values, given.covariates, settings.horizon, look)
            for look in looks
        ]
        return found if found[-1][0].marks else found[:1]

    def _fit(
        self,
        variants: list[list[TimeSeries]],
        given: Given,
        s: Settings,
        backend: Backend,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        """Train on tracks and store the result, also where a signal ends it."""
        start = self._judge.params if self._warm() else None
        loop.check_run(self.callbacks, self.checkpoints, self.resume)
        made = preparation.prepared(variants, given.ids, s, backend.dtype)
        stop: BaseException | None = None
        options: dict[str, Any] = {"patience": s.patience, "callbacks": self.callbacks, "resume": self.resume}
        options |= {"epochs": s.epochs, "checkpoints": self.checkpoints, "progress": progress}
        try:
            trained = fitting.train(made, backend, made.train, start, validation=made.validation, **options)
        except (Interrupted, Terminated) as error:
            stop, trained = error, error.trained
        judge = whole = fitting.judge(made, backend, trained.params)
        if s.refit and stop is None:
            try:
                whole = fitting.refitted(made, backend, start, trained.best_epoch, progress)
            except (Interrupted, Terminated) as error:
                stop = type(error)(self._farewell(trained, error.signal), trained, error.signal)
        units = made.scaling.fitted()
        outside = [evaluation.unseen(judge, *one).outside for one in zip(made.tracks, units, strict=True)]
        adjustment = intervals.adjustment(outside, s.quantiles)
        season = preparation.season_of(made.tracks, s.season)
        self._keep(judge, whole, adjustment, season, made.tracks[0].marks > 0, given.names)
        self.trained_ = trained
        if stop is not None:
            raise stop

    def _farewell(self, trained: Trained, number: int) -> str:
        """Return what there is after a signal stopped the training on all rows."""
        more = "" if self.checkpoints is None else f"; resume=True goes on from {self.checkpoints}"
        has = f"the network of epoch {trained.best_epoch}, which has not seen the last rows"
        return f"Forecaster: signal {number} stopped the training on all rows; the forecaster has {has}{more}"

    def _read(self, values: Any, beside: Covariates, steps: int) -> tuple[Given, list[TimeSeries], list[Values]]:
        """Return tracks to predict after, with `steps` rows ahead, and their units.

        An error is raised unless they go with the fitted ones.
        """
        given = panels.given("Forecaster", values, beside, self._roles(), list(vars(self).get("feature_names_in_", ())))
        s, scaling = self._judge.settings, self._judge.scaling
        found = covariates.read_series(
            "Forecaster", given.values, given.covariates, max(steps, s.horizon), self.calendar_
        )
        fitted = [len(scaling.units[0]), *(len(part[0]) for part in (scaling.past, scaling.future, scaling.static))]
        for track in found:
            N = len(track.values)
            widths = [track.values.shape[1], track.past.shape[1], track.future.shape[1], len(track.static)]
            if widths != fitted:
                names = "values, past, future (with what dates give) and static"
                raise ValueError(f"Forecaster: {names} have {widths} columns, expected {fitted}, as in fit")
            if s.window > N:
                raise ValueError(f"Forecaster: a forecast needs {s.window} values to look back on, the series has {N}")
            if track.future.shape[1] and len(track.future) < N + steps:
                have = len(track.future) - N
                raise ValueError(f"Forecaster: future has {have} rows after the series, expected {steps}")
        units = scaling.of(found, given.ids, s.window)
        for track, unit in zip(found, units, strict=True):
            check_reach("Forecaster", track.known, unit, self._judge.backend.dtype, track.begin)
        return given, found, units

    def _next(self, track: TimeSeries, units: Values) -> tuple[Values, Values]:
        """Return the mean (H, C) and calibrated quantiles (H, C, Q) after the end of a series."""
        mean, quantiles, scale = self._whole.forecast(track, units, np.array([len(track.values)]))
        quantiles = intervals.widen(quantiles, scale, self._adjustment, self._whole.settings.quantiles)
        return mean[0], self._whole.limited(quantiles)[0]

    def _ahead(self, track: TimeSeries, units: Values, steps: int) -> Values:
        """Return forecasts (steps, C) after a series, fed back beyond the horizon."""
        ahead = np.empty((0, self.n_targets_))
        while len(ahead) < steps:
            block = self._next(track, units)[0]
            ahead = np.concatenate((ahead, block))
            known = np.concatenate((track.known, block))
            past = np.concatenate((track.past, np.repeat(track.past[-1:], len(block), axis=0)))
            track = track._replace(values=known, known=known, past=past)
        return ahead[:steps]
