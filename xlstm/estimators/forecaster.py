"""Forecaster: fit one or several series, and predict their next values."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self, Unpack

import numpy as np

from xlstm import precision as precisions
from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.groups import Group
from xlstm.arrays.namespace import Array, DType, Namespace, Params
from xlstm.data.categories import encoded
from xlstm.data.host import Values
from xlstm.data.panels import Panel
from xlstm.data.series_windows import split
from xlstm.data.time_series import CovariateArguments, Covariates, TimeSeries
from xlstm.estimators import evaluation, fitting, predictor, sampling, seasons, selection
from xlstm.estimators.base import (
    OF_TRAIN,
    AnyPath,
    Export,
    FiledEstimator,
    SeriesEstimator,
    array_of,
    checked,
    column_names,
    errors_by_name,
    names_array,
    positive,
    roles_of,
    subtree,
)
from xlstm.estimators.evaluation import Score
from xlstm.estimators.intervals import Intervals, error_rows
from xlstm.estimators.predictor import Predictor, Settings
from xlstm.estimators.selection import Combination
from xlstm.estimators.series_scaling import SeriesScaling, check_reach, names_of, own_units
from xlstm.plots import results
from xlstm.training import Callback, Progress
from xlstm.training.agreement import of_first
from xlstm.training.callbacks import PROGRESS


@dataclass(eq=False, repr=False, kw_only=True)
class Forecaster(SeriesEstimator, FiledEstimator, Settings):
    """Forecast series with a linear autoregression, exponential smoothing, the Theta method and a
    recurrent network.

    `fit` judges the first three methods by forecasts from rolling origins, that is from many rows
    of the past. It averages them with weights of 1 / e^p, where e is the mean square error of each
    and p is 3 or more.

    The network then learns the residuals of this average, for the next `horizon` values at once
    (LSTNet, Lai et al. 2018; ES-RNN, Smyl 2020). Its input is the last `window` values, each minus
    the latest one and in units of the window's own changes, and the covariates.

    Validation decides whether the network forecasts, too. `fit` computes the factor by which the
    network's output would best be scaled on the validation part, and takes half of it. The network
    is used, with this half, under two conditions:

    - The error on the validation part falls by at least 12 % / sqrt(n), where n is the number of
      horizons in the part.
    - The error falls in both halves of the part.

    `fit` divides a series by time:

    - The first 60 % are for training the network. The residuals there come from methods that were
      fitted to earlier rows.
    - The next 20 % are the validation part. It also decides when training stops.
    - The last 20 % are the test part for `score`, which uses a predictor that has not seen them.

    `predict` uses a second predictor. For it, all methods but the network are chosen and fitted
    once more on all rows, unless `refit` is False. Intervals are quantiles of the errors that past
    forecasts made, scaled by the most recent errors (split conformal prediction, Vovk et al. 2005).
    The methods behind these past forecasts were fitted to earlier rows.

    Parameters
    ----------
    window, horizon, hidden_size, epochs, patience, learning_rate, weight_decay, batch_size, \
clip, averaging, seed, precision, cell, num_layers, bidirectional, dropout, candidates, \
quantiles, linear_baseline, season, calendar, least, refit
        As for `Settings`.
    name : str
        A name for the series, kept in the model file.
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}, optional
        The dtype of the network's weights.
    targets, past, future, static : list of str, optional
        Names of columns, if you give a table. `targets` are the columns to predict, by default all
        columns without another role. `past` are covariates that are known up to the last value,
        `future` covariates that are known in advance, and `static` covariates that do not change
        within a series. A column has one role. Text and categories in `future` and `static` are
        symbols, and numbers are quantities. If you give `targets`, columns without a role are not
        read.
    series_id : str, optional
        The column that tells several series of a table apart.
    holidays : str, optional
        A country, such as "DE", or a part of one, such as "DE-BY", in codes of ISO 3166. Its public
        holidays become a covariate that is known in advance: 1 on a holiday, and the share of
        holidays in longer steps. This needs dates and the package holidays.
    checkpoints : path, optional
        A folder for checkpoints of training, as for `training.train`.
    resume : bool
        Continue from the newest checkpoint in that folder.
    graph : bool or "auto"
        Capture steps in CUDA graphs, as for `training.train`.
    callbacks : list of Callback or callable
        As for `training.train`; they see the training of the network.
    warm_start : bool
        Begin with the weights of the last fit, if they have the right shapes.

    Attributes
    ----------
    trained_ : Trained
        How the training of the network went; missing if `fit` trained no network.
    params_ : dict of str to array
        Weights of the network. Its head is zero if the network does not forecast.
    scaling_ : SeriesScaling
        Units of values and covariates.
    chosen_ : array of str
        Names of the candidates that forecast.
    candidate_errors_ : dict of str to float
        Root mean square errors, relative to repeating the last value. The errors of "linear",
        "smoothing" and "theta" come from rolling origins and set the weights. Two more come from
        the validation part: "average" without the network, and "network" with it.
    window_ : int
        Steps that the network looks back.
    season_ : int or tuple of two int
        Steps of the season or of the two seasons in use; 0 for none.
    calendar_ : bool
        Whether features of the calendar are in use.
    linear_baseline_ : int
        Steps that the linear autoregression looks back; 0 if it is no candidate.
    categories_ : dict of str to dict
        The share of each category in the rows of `fit`, by the name of its column of text, or by a
        name such as "static[0]" without a table. A missing category is "", and the category of a
        float 1.0 is "1". In forecasts an unknown category counts as an average one, and a warning
        names its column.
    n_targets_ : int
        Number of columns that are predicted.
    feature_names_in_ : array of str
        Their names, if `fit` was given a table.

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

    KIND = "forecaster"
    _facts: ClassVar = {
        "feature_names_in_": column_names,
        "season_": seasons.check,
        "calendar_": checks.flag,
        "series_names_": column_names,
        "chosen_": column_names,
        "candidate_errors_": errors_by_name,
        "categories_": lambda where, name, value: {
            column: errors_by_name(where, f"{name}.{column}", shares)
            for column, shares in dict(value or {}).items()
        },
    }
    static: str | Sequence[str] | None = None
    holidays: str | None = None
    backend: str | Backend | None = None
    dtype: DType | None = None
    callbacks: Iterable[Callback | Callable[[Progress], object]] = ()
    checkpoints: AnyPath | None = None
    resume: bool = False
    graph: bool | str = "auto"
    warm_start: bool = False

    @property
    def settings(self) -> Settings:
        """The parameters that decide how the forecaster is built and trained, checked."""
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    def fit(
        self,
        values: Any,
        progress: Callable[[Progress], object] | bool | str | None = "auto",
        group: Group | None = None,
        **covariates: Unpack[CovariateArguments],
    ) -> Self:
        """Train on a series, or on several.

        Parameters
        ----------
        values : array (N,) or (N, C), list of such arrays, or table
            One series with one target (N,) or with C targets (N, C), or several series. NaN marks a
            gap: the value before it fills it, and it is never a target. Rows before the first value
            of any target are left out. The dates of a table are used.
        progress : callable, bool or "auto"
            A function that `fit` calls with a `training.Progress` after every step of the network,
            or whether there is a progress bar. By default there is one on a terminal, as for
            `training.train`.
        group : Group, optional
            The ranks that train together, each with the same arguments, as for `training.train`.
        covariates : past, future, static, dates
            `past` (N, P) are covariates that are known up to the last value. `future` (N or more,
            F) are covariates that are known in advance. `static` (S,) are covariates that do not
            change. `dates` (N,) are rising dates, from which features of the calendar are made;
            missing dates become gaps. If you give several series, each of these is a list with one
            entry for each series. If you give a table, these are its columns, and the constructor
            names them. A single column as `values`, such as a Series of pandas, may have `past`,
            `future` and `static` beside it. Their rows are matched by position, whatever their
            index. Text in `future` and `static` is a category.

        Returns
        -------
        Forecaster
            Itself.

        Raises
        ------
        ValueError
            A series is too short for the window or for a given season, or constant. A value is not
            finite, or so large or so far from the others that its square overflows; a `SeriesError`
            names the value. A parameter is out of range.
        FloatingPointError
            Training diverged.
        TypeError, BackendError
            The backend does not support the precision.
        Interrupted, Terminated
            Ctrl-C or SIGTERM ended training. The forecaster is then fitted with the best weights so
            far.
        """
        PROGRESS("Forecaster", "progress", progress)
        backend, panel, variants = self._to_fit(values, covariates)
        return self._fit(variants, panel, backend, progress, group)

    def predict(
        self, values: Any, steps: int | None = None, **covariates: Unpack[CovariateArguments]
    ) -> Any:
        """Return forecasts of the values after the end of a series.

        Beyond the horizon, predictions are fed back as if they had been observed, and past
        covariates keep their last values. If all steps will take more than ten seconds, a warning
        in the log says so after a second, with the expected time.

        Parameters
        ----------
        values : array (N,) or (N, C), list of such arrays, or table
            As for `fit`. If a series is shorter than the linear autoregression looks back, it
            counts as constant before its beginning. A series of a table that has the name of a
            fitted series keeps the units of that series. All others are measured as in `fit`, so
            that neither their level nor their scale matters.
        steps : int, optional
            Number of values to predict, by default the horizon.
        covariates : past, future, static, dates
            As for `fit`, but `future` (N + steps, F) also has the rows to predict. If `values` is a
            table, `future` is a table of the rows to predict alone, in any order if they have
            dates. If `values` is a single column, `future` is as for an array.

        Returns
        -------
        array (steps,) or (steps, C), list of such arrays, or table

        Raises
        ------
        ValueError
            The forecaster is not fitted, or the series is shorter than the window or out of range.
        FloatingPointError
            The forecast is not finite.
        """
        steps = self._steps(steps)
        panel, pairs = self._read(values, covariates, steps)
        return panel.forecast_frame([self._paths(*pair, steps)[0] for pair in pairs])

    def predict_quantiles(
        self,
        values: Any,
        steps: int | None = None,
        quantiles: Sequence[float] | None = None,
        **covariates: Unpack[CovariateArguments],
    ) -> Any:
        """Return forecast quantiles of the values after the end of a series.

        A quantile that `fit` did not learn is interpolated between two that it learned. Beyond the
        outermost learned ones, quantiles continue like those of a normal distribution. Beyond the
        horizon, all quantiles come from 1000 sample paths, which `sample` draws with the parameter
        `seed`.

        Parameters
        ----------
        values, steps, covariates
            As for `predict`.
        quantiles : list of float, optional
            Rising levels between 0 and 1, by default the parameter `quantiles`, which `fit`
            learned. Other levels need two or more learned ones.

        Returns
        -------
        array (steps, Q) or (steps, C, Q), list of such arrays, or table
            In the order of `quantiles`. Column names of a table end with the quantile.

        Raises
        ------
        ValueError
            As for `predict`. `quantiles` is empty, does not rise, or has a level outside the range
            between 0 and 1. `fit` learned too few quantiles.
        FloatingPointError
            The forecast is not finite.
        """
        s = self.predictor_.settings
        if not s.quantiles:
            raise ValueError(
                "Forecaster: it was fitted without quantiles, expected quantiles=(0.1, 0.9) or"
                " others"
            )
        check = checks.rising(1)
        levels = check("Forecaster", "quantiles", s.quantiles if quantiles is None else quantiles)
        if levels != s.quantiles:
            self._check_learned("for other quantiles")
        steps = self._steps(steps)
        panel, pairs = self._read(values, covariates, steps)
        ahead = self._quantiles(pairs, steps, levels)
        return panel.forecast_frame(ahead, [f" {q:g}" for q in levels])

    def _quantiles(
        self, pairs: Sequence[tuple[TimeSeries, Values]], steps: int, levels: Sequence[float]
    ) -> list[Values]:
        """Return forecast quantiles (steps, C, Q) of each series, which comes with its units."""
        s = self.predictor_.settings
        ahead = []
        for series, units in pairs:
            learned, width = self._next(series, units)
            forecast = learned[:steps]
            if levels != s.quantiles:
                others = np.array(levels)[:, None, None]
                forecast = sampling.at_levels(forecast[None], s.quantiles, others)
                forecast = self.predictor_.limited(np.moveaxis(forecast, 0, -1))
            if steps > s.horizon:
                paths = self._paths(series, units, steps, width, sampling.PATHS, [s.seed])
                later = np.quantile(paths[:, s.horizon :], levels, axis=0)
                forecast = np.concatenate((forecast, np.moveaxis(later, 0, -1)))
            ahead.append(predictor.finite(forecast))
        return ahead

    def plot(
        self,
        values: Any,
        steps: int | None = None,
        *,
        ax: Any = None,
        last: int | None = None,
        **covariates: Unpack[CovariateArguments],
    ) -> Any:
        """Draw the end of a series, and the median and the intervals of its forecast.

        If the median is not among the quantiles, the mean is drawn. Each target of each series has
        its own axes. If there are more than twelve, the first twelve are drawn, and a warning in
        the log says so.

        Parameters
        ----------
        values, steps, covariates
            As for `predict`.
        ax : Axes, or array or list of Axes, optional
            Where to draw. By default this is a new figure of pyplot. A notebook shows it; elsewhere
            call `matplotlib.pyplot.show()`.
        last : int, optional
            Number of values of the series that are drawn, by default three times the steps, and at
            least 24.

        Returns
        -------
        matplotlib.axes.Axes, or array of them
            An array (n,) if there are several targets or series.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ValueError, TypeError, FloatingPointError
            As for `predict`, or the number of axes in `ax` is not the number that is drawn.
        """
        steps = self._steps(steps)
        last = checks.optional(checks.size)("Forecaster", "last", last)
        beside = Covariates.of("Forecaster", covariates)
        panel = Panel.of("Forecaster", values, beside, roles_of(self), self._names())
        first = panel.first(-(-results.AXES // self.n_targets_))
        levels = self.predictor_.settings.quantiles
        pairs = self._read(first, {}, steps)[1]
        means = np.stack([self._paths(*pair, steps)[0] for pair in pairs])
        quantiles = self._quantiles(pairs, steps, levels) if levels else []
        fan = results.Fan(np.reshape(quantiles, (*means.shape, len(levels))), levels, means)
        return results.ends(panel, [series for series, _ in pairs], fan, ax, last)

    def sample(
        self,
        values: Any,
        n: int = 100,
        steps: int | None = None,
        seed: int = 0,
        **covariates: Unpack[CovariateArguments],
    ) -> Any:
        """Return sample paths of the values after the end of a series.

        Each step of the horizon has the distribution that `predict_quantiles` describes. Between
        its quantiles and beyond them, the distribution continues like a normal one.

        Errors of successive steps, and of several targets, are correlated, and so are the steps of
        a path: each path takes its quantile levels from one past forecast of `fit`, drawn at
        random. So sums and maxima over a path have the right spread, too (Schefzik et al. 2013).

        Beyond the horizon, a path is fed back as if it had been observed, and past covariates keep
        their last values. Paths of several series are drawn independently of each other.

        Parameters
        ----------
        values, steps, covariates
            As for `predict`.
        n : int
            The number of paths.
        seed : int
            Seed of the random numbers: equal seeds draw equal paths.

        Returns
        -------
        array (n, steps) or (n, steps, C), or list of such arrays
            An array for each series. A table without `series_id` gives one array (n, steps, C),
            with the targets in the order of the table.

        Raises
        ------
        ValueError
            As for `predict`, or `fit` learned fewer than two quantiles.
        FloatingPointError
            A forecast is not finite.
        """
        n = checks.size("Forecaster", "n", n)
        steps = self._steps(steps)
        seed = checks.seed_number("Forecaster", "seed", seed)
        panel, pairs = self._read(values, covariates, steps)
        drawn = [
            self._paths(*pair, steps, self._next(*pair)[1], n, [seed, k])
            for k, pair in enumerate(pairs)
        ]
        shaped = [
            paths[..., 0] if flat else paths for paths, flat in zip(drawn, panel.flat, strict=True)
        ]
        return shaped[0] if panel.alone else shaped

    def score(self, values: Any, y: None = None, **covariates: Unpack[CovariateArguments]) -> Score:
        """Return errors on rows that the network has not seen, beside those of baselines.

        By default, `score` judges the test part of each series, the last 20 %. It uses the
        predictor that has not seen the test part of `fit`.

        If you give the rows that follow those of `fit`, `score` judges all of them. It then uses
        the predictor of `predict`, with the rows of `fit` as history. This is how `GridSearchCV`
        and `cross_val_score` of scikit-learn compare forecasters on the folds of a
        `TimeSeriesSplit`.

        `values` count as following rows under two conditions: `fit` and `score` both get one array
        or table, and `values` do not begin like the rows of `fit`. The first 60 % of these are
        compared. Values with dates count as following rows if they begin at the next date. If a
        table has `series_id`, names say which rows each series follows. Either all series of the
        table follow their rows of `fit`, or none. Without dates, one that does not begin like its
        rows of `fit` is enough.

        Series of a list have no names, so `score` always judges their test part. To judge the test
        part of another series, put it into a list, `score([values])`. A forecaster that comes from
        a file does not have the rows of `fit`, and always judges the test part.

        There are three baselines: the last value repeated, the last season repeated, and a linear
        autoregression. The autoregression has 24 coefficients (fewer in a short series) and a
        constant for each step ahead, and is fitted to all rows before the judged ones.

        Parameters
        ----------
        values, covariates
            As for `fit`.
        y : None
            scikit-learn passes it; it is not used, since a series is its own target.

        Returns
        -------
        Score

        Raises
        ------
        ValueError, TypeError
            As for `fit`. `y` is not None. Fewer rows than the horizon follow those of `fit`. Some
            series of a table follow their rows of `fit`, and others do not.
        """
        if y is not None:
            raise TypeError(
                f"Forecaster: y is {checks.shown(y)}, expected None: values are their own target"
            )
        panel, pairs = self._read(values, covariates, 0)
        several = [series for series, _ in pairs]
        p = self.test_predictor_
        judged = self.predictor_ if several[0].begin < 0 else p
        forecasts = [evaluation.of_judged_rows(judged, *pair) for pair in pairs]
        periods = p.combination.seasons
        return evaluation.score(several, forecasts, p.settings.quantiles, periods, panel)

    def backtest(
        self, values: Any, folds: int = 5, **covariates: Unpack[CovariateArguments]
    ) -> Score:
        """Return errors of forecasts of the last horizons of a series, each by a forecaster that is
        fitted to the rows before it.

        Each fold is one horizon, and the last fold ends with the series. For each fold, a
        forecaster with the same parameters is fitted to all rows before it.

        Parameters
        ----------
        values, covariates
            As for `fit`.
        folds : int
            Number of forecasts of each series.

        Returns
        -------
        Score

        Raises
        ------
        ValueError, TypeError, BackendError
            As for `fit` and `predict`, or the series is too short for the folds.
        """
        folds = checks.count("Forecaster", "folds", folds)
        backend, panel, variants = self._to_fit(values, covariates)
        s = self.settings
        rounds = []
        for back in range(folds, 0, -1):
            ends = [len(series.values) - back * s.horizon for series in variants[0]]
            if min(ends) < 1:
                raise ValueError(
                    f"Forecaster: {folds} folds of {s.horizon} steps leave nothing of a series to"
                    " fit to"
                )
            cut = [
                [series.until(end) for series, end in zip(several, ends, strict=True)]
                for several in variants
            ]
            fitted = type(self)(**self.get_params() | {"checkpoints": None, "resume": False})
            fitted._fit(cut, panel, backend, None)
            units = fitted.scaling_.of(cut[0], panel.ids, fitted.window_)
            rows = zip(variants[-1 if fitted.calendar_ else 0], units, ends, strict=True)
            rounds.append(
                [
                    evaluation.rolling(fitted.predictor_, series, u, end, end + 1)[0]._replace(
                        mean=fitted._paths(series.until(end), u, s.horizon)
                    )
                    for series, u, end in rows
                ]
            )
        forecasts = [evaluation.joined(parts) for parts in zip(*rounds, strict=True)]
        firsts = [int(each.at[0]) for each in forecasts]
        periods = fitting.seasons_of(variants[0], firsts, s.season)
        return evaluation.score(variants[0], forecasts, s.quantiles, periods, panel)

    def _for_export(self, lengths: bool, history: int | None = None) -> Export:
        """Return the metadata, inputs and formula that `interop.onnx.to_onnx` writes around the
        network.

        Parameters
        ----------
        lengths : bool
            False, as all series have one length.
        history : int, optional
            Number of values of a series that the exported file takes. By default it is the longest
            of the window, the linear autoregression and four seasons, plus the rows whose errors
            set the width of intervals.
        """
        p = self.predictor_
        s = p.settings
        back = max(s.window, p.combination.order, *(4 * m for m in seasons.listed(self.season_)))
        check = checks.whole(s.window, checks.LARGEST)
        whole = back + error_rows(s.horizon)
        N = check("Forecaster", "history", whole if history is None else history)
        refused = {
            "lengths": lengths,
            "a calendar": self.calendar_,
            "holidays": self.holidays,
            "columns of text": self.categories_,
        }
        for name, there in refused.items():
            if there:
                raise ValueError(
                    f"Forecaster: it has {name}, expected a forecaster without for a file of ONNX"
                )
        rows = {"values": [N], "past": [N], "future": [N + s.horizon], "static": []}
        inputs: dict[str, Any] = {
            name: (("batch", *n, part.shape[1]), np.float64)
            for (name, n), part in zip(rows.items(), p.scaling, strict=False)
            if part.shape[1]
        }
        about = super()._for_export(lengths)[0]
        about["quantiles"] = json.dumps(list(s.quantiles))
        return about, inputs, self._exported

    def _exported(self, xp: Namespace, run: Callable[..., Any], *inputs: Array) -> dict[str, Any]:
        """Return the outputs of an exported file, which forecasts one series after another."""
        p = self.predictor_
        s = p.settings
        network = run if "network" in self.chosen_ else None
        exported = predictor.Exported(**vars(p) | {"backend": xp}, run=network)
        N = inputs[0].shape[1]
        gaps = np.zeros((N, self.n_targets_))  # an exported forecaster takes no gaps
        future = np.empty((N + s.horizon, 0))
        without = TimeSeries(gaps, gaps, gaps[:, :0], future, np.empty(0), None)

        def ahead(rows: list[Any], _: Any) -> list[Any]:
            beside = {a.name: row for a, row in zip(inputs, rows, strict=True)}
            series = without._replace(known=beside.pop("values"), **beside)
            units = own_units(series, s.window)
            forecasts, _ = evaluation.rolling(exported, series, units, N, N + 1)
            return [getattr(forecasts, name)[0] for name in outputs]

        outputs = ["mean", "quantiles"][: 1 + bool(s.quantiles)]
        return dict(zip(outputs, xp.scan(ahead, inputs), strict=True))

    def _settings(self) -> dict[str, Any]:
        fitted = asdict(self.predictor_.settings) | {"dtype": self.predictor_.backend.dtype}
        return checked(self) | fitted | roles_of(self).parameters()

    def _fitted(self) -> dict[str, Any]:
        """Return the arrays of both predictors, only once if both are the same."""
        scaling = self.scaling_._asdict()
        del scaling["ids"]
        arrays = _arrays_of(self.predictor_)
        if self.test_predictor_ is not self.predictor_:
            arrays["test"] = _arrays_of(self.test_predictor_)
        arrays |= {f"scaling.{name}": array for name, array in scaling.items()}
        return arrays | {"ranks": self.ranks_}

    def _restore(self, fitted: dict[str, Any]) -> Params:
        checks.size("settings", "window", self.window)
        roles_of(self)
        s = self.settings
        ids = [*vars(self).get("series_names_", ())]
        sizes = {"S": len(ids) or None, "C": len(self._names()) or None}
        parts = {"units": array_of(fitted, "scaling.units", sizes)}
        for name in ("past", "future", "static"):
            parts[name] = array_of(fitted, f"scaling.{name}", {"2": 2, "K": None})
        for name, part in parts.items():
            positive(f"scaling.{name}", part if name == "units" else part[1])
        scaling = SeriesScaling(**parts, ids=ids)
        self.model_ = predictor.network(s, scaling)
        H = s.horizon
        C = scaling.units.shape[1]
        ranks = array_of(fitted, "ranks", {"K": None, "H": H, "C": C})
        K = len(ranks)
        if K == 0 or np.min(ranks) < 0 or np.max(ranks) > K - 1:
            raise ValueError(
                f"ranks has {K} rows with other numbers than those from 0 to {K - 1}, expected one"
                " row or more, and ranks among the rows"
            )
        final = self._predictor(fitted, scaling)
        test = self._predictor(subtree(fitted, "test"), scaling) if "test" in fitted else final
        self._keep(test, final, ranks_=ranks)
        return final.params

    def _predictor(self, arrays: dict[str, Any], scaling: SeriesScaling) -> Predictor:
        """Return one predictor from its arrays in a file."""
        s = self.settings
        C = scaling.units.shape[1]
        others = scaling.static.shape[1] + scaling.future.shape[1]
        spread, errors = (
            positive(name, array_of(arrays, name, {"H": s.horizon, "C": C}))
            for name in ("spread", "intervals.spread")
        )
        levels = array_of(arrays, "intervals.levels", {"C": C, "Q": len(s.quantiles)})
        fall = np.max(-np.diff(levels), initial=0.0)
        if fall > 0:
            raise ValueError(
                f"intervals.levels falls by {fall:g} from one quantile to the next, expected that"
                " it rises"
            )
        backend = backend_of(self.backend, self.dtype)
        combination = Combination.of_arrays(arrays, C, s.horizon, others)
        name = "intervals.scales"  # files of version 0.1.0 lack it
        scales = array_of({name: np.ones((2, C))} | arrays, name, {"2": 2, "C": C})
        intervals = Intervals(errors, levels, positive(name, scales))
        params = self._weights(arrays)
        return Predictor(s, backend, scaling, combination, spread, intervals, self.model_, params)

    def _keep(self, test: Predictor, final: Predictor, **facts: Any) -> Self:
        """Store both predictors, what follows from them, and `facts`, as `_become` does."""
        return self._become(
            test_predictor_=test,
            predictor_=final,
            params_=final.params,
            model_=final.model,
            scaling_=final.scaling,
            window_=final.settings.window,
            linear_baseline_=test.combination.order,
            n_targets_=final.spread.shape[1],
            **facts,
        )

    def _before(self, panel: Panel, later: Sequence[TimeSeries]) -> list[tuple[TimeSeries, Values]]:
        """Return the rows of `fit` before each series, with their units; an empty list if no series
        follows them. `score` says when.
        """
        history = vars(self).get("_history", {})
        names = panel.ids or [""] * panel.alone
        pairs = [(history.get(name), series) for name, series in zip(names, later, strict=False)]
        if not any(rows and _follows(rows[0], series) for rows, series in pairs):
            return []
        for (rows, series), name in zip(pairs, names_of(panel.ids, len(pairs)), strict=True):
            # without dates, one series that begins otherwise shows that all rows are later ones
            if not rows or (series.calendar is not None and not _follows(rows[0], series)):
                raise ValueError(
                    f"Forecaster: {name} does not begin right after rows of fit, as other series"
                    " do; expected all or none, so leave it out, or give it empty rows before"
                )
        return [rows for rows, _ in pairs]

    def _to_fit(
        self, values: Any, covariates: CovariateArguments
    ) -> tuple[Backend, Panel, list[list[TimeSeries]]]:
        """Check all parameters; return the backend, the series as given, and variants of the series
        to fit.

        The first variant is without features of the calendar. If there are dates, the second has
        them.
        """
        checked(self)
        backend = backend_of(self.backend, self.dtype)
        precisions.named(self.precision, backend)  # raises if the backend lacks it
        beside = Covariates.of("Forecaster", covariates)
        panel = encoded("Forecaster", Panel.of("Forecaster", values, beside, roles_of(self)))
        looks = [self.calendar] if isinstance(self.calendar, bool) else [False, True]
        variants = [
            panel.read("Forecaster", self.horizon, look, holidays=self.holidays) for look in looks
        ]
        return backend, panel, variants if variants[-1][0].marks else variants[:1]

    def _fit(
        self,
        variants: list[list[TimeSeries]],
        panel: Panel,
        backend: Backend,
        progress: Any,
        group: Group | None = None,
    ) -> Self:
        """Train on series and store the result, also if a signal ends training."""
        is_warm = self.warm_start and self.__sklearn_is_fitted__()
        # the trained weights, also if validation rejected them
        last = vars(self).get("trained_") or self.test_predictor_ if is_warm else None
        start = None if last is None else last.params
        data = fitting.prepared(variants, panel.ids, self.settings, backend, group)
        test = data.predictor
        s = test.settings
        trained = stop = network = validation = None
        chooses = isinstance(s.candidates, str)  # whether validation decides about the network
        if data.windows >= fitting.ENOUGH if chooses else "network" in s.candidates:
            examples = fitting.examples(data, group)
            validation = examples["validation"]
            options = {name: getattr(self, name) for name in OF_TRAIN}
            options |= {"progress": progress, "group": group, "validation": validation}
            options |= {"epochs": s.epochs, "patience": s.patience}
            trained, stop = fitting.train(examples["train"], start, **options)
            network = replace(validation.predictor, params=trained.params)
        refit = s.refit and stop is None
        judged = of_first(group, fitting.judged, data, network, validation, refit)
        if network is not None:
            test = network.shared(judged.share, test.combination)
        final = test = replace(test, intervals=judged.test_intervals)
        if refit:
            final = replace(test, combination=judged.combination, intervals=judged.intervals)
        allowed = {
            name: error
            for name, error in final.combination.every_error.items()
            if selection.allows(s, name)
        }
        histories = zip(data.several, test.scaling.units, strict=True)
        return self._keep(
            test,
            final,
            stop=stop,
            trained_=trained,
            chosen_=np.array([*allowed, *["network"] * (judged.share > 0)], dtype=object),
            candidate_errors_=judged.errors | allowed,
            ranks_=judged.ranks,
            season_=seasons.parameter(final.combination.seasons),
            calendar_=data.several[0].marks > 0,
            feature_names_in_=names_array(panel.names),
            series_names_=names_array(panel.ids),
            categories_=panel.categories,
            # series of a list have no names by which `score` could find them again
            _history=dict(zip(panel.ids or [""] * panel.alone, histories, strict=False)),
        )

    def _read(
        self, values: Any, covariates: CovariateArguments, steps: int
    ) -> tuple[Panel, list[tuple[TimeSeries, Values]]]:
        """Return the series to predict, with `steps` rows ahead, and each with its units; raise
        unless they fit those of `fit`.

        With 0 steps, for `score`, series that follow the rows of `fit` come with these rows before
        them.
        """
        s = self.test_predictor_.settings
        scaling = self.scaling_
        beside = Covariates.of("Forecaster", covariates)
        panel = Panel.of("Forecaster", values, beside, roles_of(self), self._names())
        panel = encoded("Forecaster", panel, self.categories_)
        rows_of = functools.partial(
            panel.read, "Forecaster", max(steps, s.horizon), self.calendar_, holidays=self.holidays
        )
        several = rows_of()
        before = [] if steps else self._before(panel, several)
        if before:
            later = zip(before, rows_of(gaps=True), strict=True)
            pairs = [(rows.continued(series), units) for (rows, units), series in later]
        else:
            pairs = list(zip(several, scaling.of(several, panel.ids, s.window), strict=True))
        fitted = [part.shape[1] for part in scaling[:4]]
        for (series, units), name in zip(pairs, names_of(panel.ids, len(several)), strict=True):
            N = len(series.values)
            parts = (series.values, series.past, series.future, series.static)
            widths = [part.shape[-1] for part in parts]
            if widths != fitted:
                raise ValueError(
                    "Forecaster: values, past, future (with what dates give) and static, with a"
                    f" column for each category, have {widths} columns, expected {fitted}, as in fit"
                )
            if s.window > N:
                raise ValueError(
                    f"Forecaster: a forecast needs {s.window} values to look back on, {name}"
                    f" has {N}"
                )
            after = N + series.begin
            if series.begin < 0 and after < s.horizon:
                raise ValueError(
                    f"Forecaster: {name} has {after} rows after those of fit, such as a fold,"
                    f" expected {s.horizon} or more, as many as the horizon"
                )
            if series.future.shape[1] and len(series.future) < N + steps:
                rows = len(series.future) - N
                raise ValueError(
                    f"Forecaster: future has {rows} rows after {name}, expected {steps}"
                )
            check_reach(series, units, self.predictor_.backend.dtype)
        return panel, pairs

    def _steps(self, steps: int | None) -> int:
        """Return the number of steps to forecast, by default the horizon."""
        horizon: int = self.predictor_.settings.horizon
        return horizon if steps is None else checks.size("Forecaster", "steps", steps)

    def _next(self, series: TimeSeries, units: Values) -> tuple[Values, Values]:
        """Return quantiles (H, C, Q) after the end of a series, and the width (1, C) of its
        intervals.
        """
        N = len(series.values)
        ahead, width = evaluation.rolling(self.predictor_, series, units, N, N + 1)
        return predictor.finite(ahead.quantiles[0]), width

    def _check_learned(self, purpose: str) -> None:
        """Raise ValueError unless `fit` learned two or more quantiles."""
        levels = self.predictor_.settings.quantiles
        if len(levels) < 2:
            raise ValueError(
                f"Forecaster: it was fitted with quantiles={levels}, expected two or more, {purpose}"
            )

    def _paths(
        self,
        series: TimeSeries,
        units: Values,
        steps: int,
        width: Values | None = None,
        n: int = 1,
        seed: Sequence[int] = (),
    ) -> Values:
        """Return n paths (n, steps, C) after a series: sample paths if you give the `width` of
        intervals, else means.

        Beyond the horizon each path is fed back as if it had been observed.
        """
        p = self.predictor_
        if width is not None:
            self._check_learned("to draw paths")
        rng = np.random.default_rng(seed)
        H = p.settings.horizon
        carried = replace(p, combination=p.combination.carried(len(series.values)))
        ahead: Values = np.empty((-(-steps // H) * H, n, self.n_targets_))
        for t in sampling.announced(steps, H):
            values = sampling.after(carried, series, units, ahead[:t, : n if t else 1])
            if width is not None:
                quantiles = p.quantiles(values, width)
                drawn = sampling.draw(quantiles, p.settings.quantiles, self.ranks_, rng, n)
                values = p.limited(predictor.finite(drawn))
            ahead[t : t + H] = values.swapaxes(0, 1)
        return ahead[:steps].swapaxes(0, 1)


def _follows(before: TimeSeries, later: TimeSeries) -> bool:
    """Return whether a series counts as the rows after those of `fit`; `score` says when."""
    if [part.shape[1:] for part in before[:4]] != [part.shape[1:] for part in later[:4]]:
        return False
    if before.calendar is not None and later.calendar is not None:
        return bool(before.calendar.following(1)[0] == later.calendar.dates[0])
    n = min(len(later.values), split(len(before.values)).train.stop)
    return not np.array_equal(before.values[:n], later.values[:n], equal_nan=True)


def examples(
    forecaster: Forecaster, values: Any, **covariates: Unpack[CovariateArguments]
) -> dict[str, predictor.Examples]:
    """Return the training windows and the validation windows of a forecaster, by the names "train"
    and "validation".

    Parameters
    ----------
    forecaster : Forecaster
    values, covariates
        As for `Forecaster.fit`.

    Returns
    -------
    dict of str to Examples

    Raises
    ------
    ValueError, TypeError, BackendError
        As `Forecaster.fit` does.
    """
    backend, panel, variants = forecaster._to_fit(values, covariates)
    return fitting.examples(fitting.prepared(variants, panel.ids, forecaster.settings, backend))


def windows(
    forecaster: Forecaster, values: Any, count: int = 64, **covariates: Unpack[CovariateArguments]
) -> Array:
    """Return the last windows of a series, or of the first of several series, as the network of a
    forecaster sees them.

    Parameters
    ----------
    forecaster : Forecaster
    values, covariates
        As for `Forecaster.predict`.
    count : int
        Most windows to return; the last one ends with the series.

    Returns
    -------
    array (window, M, D)
        Input of `model_` with `params_`, as functions of `xlstm.plots` take it.

    Raises
    ------
    ValueError, TypeError
        As `Forecaster.predict` does.
    """
    s = forecaster.predictor_.settings
    count = checks.size("Forecaster", "count", count)
    _, pairs = forecaster._read(values, covariates, s.horizon)
    series, units = pairs[0]
    N = len(series.values)
    origins = np.arange(max(s.window, N - count + 1), N + 1)
    return forecaster.predictor_.windows(series, units, origins)[0]


def _arrays_of(fitted: Predictor) -> dict[str, Any]:
    """Return the arrays of one predictor for a file."""
    intervals = {f"intervals.{name}": array for name, array in fitted.intervals._asdict().items()}
    arrays = fitted.combination.arrays() | intervals
    return {"params": fitted.params, "spread": fitted.spread, **arrays}
