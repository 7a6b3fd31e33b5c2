"""The forecaster: series and their future, with fit, predict and score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self, Unpack

import numpy as np

from xlstm import precision as precisions
from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array, DType, Namespace, Params
from xlstm.arrays.ranks.groups import Group
from xlstm.data.host import Values, check_reach
from xlstm.data.panels import Panel
from xlstm.data.time_series import CovariateArguments, Covariates, TimeSeries
from xlstm.estimators import baselines, evaluation, fitting, predictor, sampling, selection
from xlstm.estimators.base import (
    OF_TRAIN,
    AnyPath,
    FiledEstimator,
    Host,
    SeriesEstimator,
    column_names,
    errors_by_name,
    pop_array,
)
from xlstm.estimators.evaluation import Forecasts, Score
from xlstm.estimators.predictor import Predictor, Settings
from xlstm.estimators.selection import Combination
from xlstm.estimators.series_scaling import Scaling, names_of
from xlstm.training import Callback, Interrupted, Progress, Terminated

TEST = "test."  # before the names of arrays of the network that has not seen the test part


@dataclass(eq=False, repr=False, kw_only=True)
class Forecaster(SeriesEstimator, FiledEstimator, Settings):
    """Forecast series with a linear autoregression, exponential smoothing and a recurrent network.

    `fit` judges these candidates by forecasts from rolling origins. It takes the average of the
    linear autoregression and of exponential smoothing, weighted at each step by their latest
    errors, or only one of them where the other one is clearly worse. A network predicts what these
    leave of the mean and quantiles of the next `horizon` values at once (LSTNet, Lai et al. 2018;
    ES-RNN, Smyl 2020), where that lowers the validation error. It sees by how much each of the last
    `window` values differs from the latest one, in units of the window's own changes, and
    covariates.

    The first 60 % of a series are trained on, and the next 20 % decide when to stop and whether the
    network is used. The last 20 % are for `score`, whose predictor has not seen them. `predict` has
    a second one, for which all is fitted to all rows, unless `refit` is False. Intervals are
    widened by errors of the past (Romano et al. 2019).

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
    targets, past, future, static : list of str, optional
        In tables, names of columns, of which each has one role: those to predict, by default all
        others; covariates that are known up to the last value; covariates that are known in
        advance; and numbers that do not change within a series. With `targets` columns without a
        role are not read.
    series_id : str, optional
        The column of tables that tells several series apart.
    holidays : str, optional
        A country, such as "DE", or a part of one, such as "DE-BY", in codes of ISO 3166, whose
        public holidays are a covariate that is known in advance: 1 on a holiday, and the share of
        such days in longer steps. Dates are needed then, and the package holidays.
    checkpoints : path, optional
        A folder for checkpoints of training, as for `training.train`.
    resume : bool
        Go on from the newest checkpoint there.
    graph : bool or "auto"
        Capture steps in CUDA graphs, as for `training.train`.
    callbacks : list of Callback or callable
        As for `training.train`; they see the training that validation ends.
    warm_start : bool
        Begin with the weights of the last fit, where they have the right shapes.

    Attributes
    ----------
    trained_ : Trained
        How the training of the network went that validation ended; not there where none was
        trained.
    params_ : dict of str to array
        Weights of the network that `predict` has.
    scaling_ : Scaling
        Units of values and covariates.
    chosen_ : array of str
        Names of the candidates that forecast.
    candidate_errors_ : dict of str to float
        The errors by which they were chosen, relative to repeating the last value (root mean
        squares): those of "linear" and "smoothing" from rolling origins, and on the validation part
        those of their "average" and of what the "network" makes of it.
    window_ : int
        Steps that the network looks back.
    season_ : int
        Steps of a season; 0 for none.
    calendar_ : bool
        Whether dates are looked at.
    linear_baseline_ : int
        Steps that the linear autoregression looks back to; 0 where it is not chosen.
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

    KIND = "forecaster"
    _facts: ClassVar = {
        "feature_names_in_": column_names,
        "season_": checks.size_or_0,
        "calendar_": checks.flag,
        "series_names_": column_names,
        "chosen_": column_names,
        "candidate_errors_": errors_by_name,
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
        """The parameters that decide how it is built and trained, checked."""
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    def fit(
        self,
        values: Any,
        progress: Callable[[Progress], None] | None = None,
        group: Group | None = None,
        **covariates: Unpack[CovariateArguments],
    ) -> Self:
        """Train on a series, or on several.

        Parameters
        ----------
        values : array (N,) or (N, C), list of such arrays, or table
            A series of one target, of several, or several series. NaN is a gap, which is bridged by
            the value before it and never a target; rows before the first value of some target are
            left out. Dates in a table are looked at.
        progress : callable, optional
            Called with a `training.Progress` after every step.
        group : Group, optional
            The ranks that train together, each with the same arguments, as for `training.train`.
        covariates : past, future, static, dates
            `past` (N, P) are covariates that are known up to the last value, `future` (N or more,
            F) those that are known in advance, `static` (S,) numbers that do not change, and
            `dates` (N,) rising dates, of which features of the calendar are made; rows that are
            missing become gaps. Where there are several series, these are lists with one entry for
            each. In a table they are columns.

        Returns
        -------
        Forecaster
            Itself.

        Raises
        ------
        ValueError
            A series is too short for the window, constant, or not finite, or a value is so large,
            or so far from the others, that its square overflows; a `SeriesError` names it. A
            parameter is out of range.
        FloatingPointError
            Training diverged.
        TypeError, BackendError
            The backend does not have the precision.
        Interrupted, Terminated
            Ctrl-C or SIGTERM ended training. The forecaster is fitted then, with the best weights
            so far.
        """
        checks.optional(checks.function)("Forecaster", "progress", progress)
        backend, given, variants = self._to_fit(values, covariates)
        self._fit(variants, given, backend, progress, group)
        return self

    def examples(
        self, values: Any, **covariates: Unpack[CovariateArguments]
    ) -> dict[str, predictor.Examples]:
        """Return the windows to train on, and those to validate with, by "train" and "validation".

        Parameters
        ----------
        values, covariates
            As for `fit`.

        Returns
        -------
        dict of str to Examples

        Raises
        ------
        ValueError, TypeError, BackendError
            As `fit` does.
        """
        backend, given, variants = self._to_fit(values, covariates)
        return fitting.prepared(variants, given.ids, self.settings, backend)

    def predict(
        self, values: Any, steps: int | None = None, **covariates: Unpack[CovariateArguments]
    ) -> Any:
        """Return the values after the end of a series.

        Beyond the horizon the predictions are fed back as if they had been observed, and past
        covariates stay as they are. If all steps will take more than ten seconds, a warning in the
        log says how long, after a second.

        Parameters
        ----------
        values : array (N,) or (N, C), list of such arrays, or table
            As for `fit`. A series that is shorter than the linear baseline looks back is taken as
            constant before its beginning. Series of a table with the name of a fitted one have its
            units; all others are measured as in `fit`, so that neither their level nor their scale
            matters.
        steps : int, optional
            How many values; by default as many as the horizon.
        covariates : past, future, static, dates
            As for `fit`; `future` has the rows that are predicted, too, (N + steps, F). With a
            table it is a table of the rows that are predicted, in any order if they have dates.

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
        steps = (
            self.predictor_.settings.horizon
            if steps is None
            else checks.size("Forecaster", "steps", steps)
        )
        given, several, units = self._read(values, covariates, steps)
        return given.forecast_frame(
            [self._ahead(*one, steps) for one in zip(several, units, strict=True)], several
        )

    def predict_quantiles(
        self, values: Any, steps: int | None = None, **covariates: Unpack[CovariateArguments]
    ) -> Any:
        """Return quantiles of the values after the end of a series.

        Beyond the horizon they are those of paths that are fed back, as `sample` draws them with
        the parameter `seed`.

        Parameters
        ----------
        values, steps, covariates
            As for `predict`.

        Returns
        -------
        array (steps, Q) or (steps, C, Q), list of such arrays, or table
            In the order of the parameter `quantiles`; columns of a table have the quantile at the
            end of their names.

        Raises
        ------
        ValueError
            As for `predict`, or there are no quantiles.
        FloatingPointError
            The forecast is not finite.
        """
        s = self.predictor_.settings
        if not s.quantiles:
            raise ValueError(
                "Forecaster: it was fitted without quantiles, expected quantiles=(0.1, 0.9) or"
                " others"
            )
        steps = s.horizon if steps is None else checks.size("Forecaster", "steps", steps)
        given, several, units = self._read(values, covariates, steps)
        found = [self._next(*one) for one in zip(several, units, strict=True)]
        ahead = [quantiles[:steps] for quantiles, _ in found]
        if steps > s.horizon:
            each = zip(several, units, found, strict=True)
            drawn = [
                self._paths(one, u, sampling.PATHS, steps, [s.seed], width)
                for one, u, (_, width) in each
            ]
            later = [np.quantile(paths[:, s.horizon :], s.quantiles, axis=0) for paths in drawn]
            ahead = [
                np.concatenate((one, np.moveaxis(q, 0, -1)))
                for one, q in zip(ahead, later, strict=True)
            ]
        return given.forecast_frame(ahead, several, [f" {q:g}" for q in s.quantiles])

    def sample(
        self,
        values: Any,
        n: int = 100,
        steps: int | None = None,
        seed: int = 0,
        **covariates: Unpack[CovariateArguments],
    ) -> Any:
        """Return sample paths of the values after the end of a series.

        Each step of the horizon has the distribution that the quantiles of `predict_quantiles`
        describe, between and beyond which it goes on as a normal one does. Errors of the steps of
        one forecast go together, and so do those of several targets: the steps of a path have the
        levels that the truth had in one of the forecasts that `fit` judges, drawn at random, so
        that sums and maxima over a path have the right spread, too (Schefzik et al. 2013). Beyond
        the horizon a path is fed back as if it had been observed, and past covariates stay as they
        are. Paths of several series are drawn independently of each other.

        Parameters
        ----------
        values, steps, covariates
            As for `predict`.
        n : int
            The number of paths.
        seed : int
            Equal seeds draw equal paths.

        Returns
        -------
        array (n, steps) or (n, steps, C), or list of such arrays
            An array for each series; for a table without `series_id` one (n, steps, C), with the
            targets in its order.

        Raises
        ------
        ValueError
            As for `predict`, or there are fewer than two quantiles.
        FloatingPointError
            A forecast is not finite.
        """
        s = self.predictor_.settings
        n = checks.size("Forecaster", "n", n)
        steps = s.horizon if steps is None else checks.size("Forecaster", "steps", steps)
        seed = checks.seed_number("Forecaster", "seed", seed)
        given, several, units = self._read(values, covariates, steps)
        drawn = [
            self._paths(*one, n, steps, [seed, k])
            for k, one in enumerate(zip(several, units, strict=True))
        ]
        shaped = [one[..., 0] if flat else one for one, flat in zip(drawn, given.flat, strict=True)]
        return (
            shaped[0]
            if given.single or (given.table is not None and not given.roles.id_name)
            else shaped
        )

    def windows(
        self, values: Any, count: int = 64, **covariates: Unpack[CovariateArguments]
    ) -> Array:
        """Return the last windows of a series, or of the first of several, as the network sees
        them.

        Parameters
        ----------
        values, covariates
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
        s = self.predictor_.settings
        count = checks.size("Forecaster", "count", count)
        _, several, units = self._read(values, covariates, s.horizon)
        N = len(several[0].values)
        return self.predictor_.windows(
            several[0], units[0], np.arange(max(s.window, N - count + 1), N + 1)
        )[0]

    def score(self, values: Any, **covariates: Unpack[CovariateArguments]) -> Score:
        """Return errors on the test part beside those of baselines, by the network that has not
        seen it.

        Baselines repeat the last value or the last season, or are a linear autoregression with 24
        coefficients (fewer in a short series) and a constant for each step ahead, fitted on all
        that comes before the test part.

        Parameters
        ----------
        values, covariates
            As for `fit`.

        Returns
        -------
        Score
        """
        given, several, units = self._read(values, covariates, 0)
        judge = self.test_predictor_
        forecasts = [
            evaluation.of_test_part(judge, *one) for one in zip(several, units, strict=True)
        ]
        return evaluation.score(several, forecasts, judge.settings.quantiles, self.season_, given)

    def backtest(
        self, values: Any, folds: int = 5, **covariates: Unpack[CovariateArguments]
    ) -> Score:
        """Return errors of forecasts from rolling origins, one horizon after another at the end of
        the series.

        A forecaster with the same parameters is fitted to all that comes before each forecast.

        Parameters
        ----------
        values, covariates
            As for `fit`.
        folds : int
            How many forecasts of each series.

        Returns
        -------
        Score

        Raises
        ------
        ValueError, TypeError, BackendError
            As for `fit` and `predict`; there is not enough room for the folds.
        """
        folds = checks.count("Forecaster", "folds", folds)
        backend, given, variants = self._to_fit(values, covariates)
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
                [series.until(end) for series, end in zip(some, ends, strict=True)]
                for some in variants
            ]
            one = type(self)(**{**self.get_params(), "checkpoints": None, "resume": False})
            one._fit(cut, given, backend, None)
            chosen = cut[-1] if one.calendar_ else cut[0]
            units = one.scaling_.of(chosen, given.ids, one.window_)
            parts = zip(ends, chosen, units, strict=True)
            rounds.append(
                [
                    (end, one._ahead(part, u, s.horizon), one._next(part, u)[0])
                    for end, part, u in parts
                ]
            )
        forecasts = []
        for series, each in zip(variants[0], zip(*rounds, strict=True), strict=True):
            at, mean, quantiles = (np.array(part) for part in zip(*each, strict=True))
            truth = baselines.targets(series, at, s.horizon, len(series.values))
            forecasts.append(Forecasts(at, mean, quantiles, truth))
        season = fitting.season_of(variants[0], s.season)
        return evaluation.score(variants[0], forecasts, s.quantiles, season, given)

    def export_inputs(
        self, values: Any, **covariates: Unpack[CovariateArguments]
    ) -> dict[str, Host]:
        """Return the inputs by name of the file that `interop.onnx.to_onnx` writes, for the values
        after each series.

        Parameters
        ----------
        values, covariates
            As for `predict`.

        Returns
        -------
        dict of str to array
            `x` (window, S, D), the windows as the network sees them; `base` (S, H, C), the
            forecasts without the network; `scale` (S, C), that of the windows; and where there are
            quantiles `width` (S, C), by how much recent errors change them.

        Raises
        ------
        ValueError, TypeError
            As `predict` does.
        """
        p = self.predictor_
        _, several, units = self._read(values, covariates, p.settings.horizon)
        pairs = zip(several, units, strict=True)
        x, base, scale = zip(
            *(p.before(one, u, np.array([len(one.values)])) for one, u in pairs), strict=True
        )
        found = {"x": np.concatenate([to_numpy(one) for one in x], axis=1, dtype=np.float32)}
        found |= {"base": np.concatenate(base), "scale": np.concatenate(scale)}
        widths = (
            [self._next(*one)[1] for one in zip(several, units, strict=True)]
            if p.settings.quantiles
            else []
        )
        return found | ({"width": np.concatenate(widths)} if widths else {})

    def for_export(
        self, lengths: bool
    ) -> tuple[dict[str, str], dict[str, Any], Callable[..., Any]]:
        p = self.predictor_
        if lengths:
            raise ValueError(
                f"Forecaster: lengths is True, expected False: windows have {p.settings.window}"
                " steps"
            )
        given: dict[str, Any] = {
            "x": ((p.settings.window, "batch", p.model.input_size), np.float32)
        }
        given["base"] = ("batch", *p.spread.shape), np.float64
        given["scale"] = ("batch", self.n_targets_), np.float64
        if p.settings.quantiles:
            given["width"] = given["scale"]
        about = super().for_export(lengths)[0] | {
            "quantiles": json.dumps(list(p.settings.quantiles))
        }
        return about, given, self._exported

    def _exported(
        self,
        xp: Namespace,
        run: Callable[..., Any],
        x: Array,
        base: Array,
        scale: Array,
        width: Any = None,
    ) -> dict[str, Any]:
        """Return the outputs of an exported file."""
        mean, quantiles = self.predictor_.after(xp, run(x), base, scale)
        if width is None:
            return {"mean": mean}
        return {"mean": mean, "quantiles": self._calibrated(xp, mean, quantiles, scale, width)}

    def _settings(self) -> dict[str, Any]:
        fitted = asdict(self.predictor_.settings) | {"dtype": self.predictor_.backend.dtype}
        return self.checked() | fitted | self._roles().parameters()

    def _content(self) -> dict[str, Any]:
        """Return the arrays of both networks, once if they are the same."""
        networks = {"": self.predictor_}
        if self.test_predictor_ is not self.predictor_:
            networks[TEST] = self.test_predictor_
        scaling = {
            f"scaling.{name}": array
            for name, array in self.scaling_._asdict().items()
            if name != "ids"
        }
        arrays: dict[str, Any] = {"adjustment": self.adjustment_, "ranks": self.ranks_, **scaling}
        for prefix, one in networks.items():
            own = one.params | one.combination.arrays() | {"spread": one.spread}
            arrays |= {f"{prefix}{name}": array for name, array in own.items()}
        return arrays

    def _restore(self, arrays: dict[str, Host]) -> Params:
        checks.size("settings", "window", self.window)
        s = self.settings
        names = self._names()
        ids = [*vars(self).get("series_names_", ())]
        parts = {
            "units": pop_array(
                arrays, "scaling.units", {"S": len(ids) or None, "C": len(names) or None}
            )
        }
        for name in ("past", "future", "static"):
            parts[name] = pop_array(arrays, f"scaling.{name}", {"2": 2, "K": None})
        for name, part in parts.items():
            if not np.all((part if name == "units" else part[1]) > 0):
                raise ValueError(f"scaling.{name} has {np.min(part):g}, expected scales above 0")
        scaling = Scaling(**parts, ids=ids)
        self._roles()
        self.model_ = predictor.network(s, scaling)
        sizes = {
            "H": s.horizon,
            "C": scaling.units.shape[1],
            "P": len(evaluation.pairs(s.quantiles)),
        }
        adjustment = pop_array(arrays, "adjustment", sizes)
        ranks = pop_array(arrays, "ranks", {"K": None, "H": sizes["H"], "C": sizes["C"]})
        test = {
            name.removeprefix(TEST): arrays.pop(name)
            for name in list(arrays)
            if name.startswith(TEST)
        }
        final = self._restored(arrays, scaling)
        self._keep(
            self._restored(test, scaling) if test else final, final, adjustment, ranks_=ranks
        )
        return final.params

    def _restored(self, arrays: dict[str, Host], scaling: Scaling) -> Predictor:
        """Return the predictor of one network of a file; all arrays that are no weights are taken
        out of `arrays`.
        """
        s = self.settings
        C = scaling.units.shape[1]
        H = s.horizon
        others = scaling.static.shape[1] + scaling.future.shape[1]
        spread = pop_array(arrays, "spread", {"H": H, "C": C})
        backend = backend_of(self.backend, self.dtype)
        found = Combination.of_arrays(arrays, C, H, others)
        return Predictor(s, backend, scaling, found, spread, self.model_, self._weights(arrays))

    def _keep(self, test: Predictor, final: Predictor, adjustment: Values, **facts: Any) -> None:
        """Store what was fitted."""
        self._become(
            test_predictor_=test,
            predictor_=final,
            adjustment_=adjustment,
            params_=final.params,
            model_=final.model,
            scaling_=final.scaling,
            window_=final.settings.window,
            linear_baseline_=test.combination.order,
            n_targets_=final.spread.shape[1],
            **facts,
        )

    def _to_fit(
        self, values: Any, covariates: CovariateArguments
    ) -> tuple[Backend, Panel, list[list[TimeSeries]]]:
        """Return the backend, series as they were given, and series to train on, after checks of
        all parameters.

        The series come without a look at the calendar, and where there are dates also with one.
        """
        self.checked()
        backend = backend_of(self.backend, self.dtype)
        precisions.named(self.precision, backend)  # raises where the backend does not have it
        given = Panel.of(
            "Forecaster", values, Covariates.of("Forecaster", covariates), self._roles()
        )
        looks = [self.calendar] if isinstance(self.calendar, bool) else [False, True]
        variants = [self._series(given, self.horizon, look) for look in looks]
        return backend, given, variants if variants[-1][0].marks else variants[:1]

    def _series(self, panel: Panel, more: int, look: bool) -> list[TimeSeries]:
        return panel.read("Forecaster", more, look, holidays=self.holidays)

    def _fit(
        self,
        variants: list[list[TimeSeries]],
        given: Panel,
        backend: Backend,
        progress: Callable[[Progress], None] | None,
        group: Group | None = None,
    ) -> None:
        """Train on series and store the result, also where a signal ends it."""
        start = (
            self.test_predictor_.params
            if self.warm_start and self.__sklearn_is_fitted__()
            else None
        )
        data = fitting.prepared(variants, given.ids, self.settings, backend)
        train = data["train"]
        several = data["train"].several
        s = data["train"].predictor.settings
        stop: BaseException | None = None
        trained = None
        epochs = 0
        errors = dict[str, float]()
        test = final = fitting.alone(data["validation"].predictor, train)
        run: dict[str, Any] = {"progress": progress, "group": group}
        if fitting.tries_network(train):
            more = {name: getattr(self, name) for name in OF_TRAIN} | {
                "epochs": s.epochs,
                "patience": s.patience,
            }
            try:
                trained = fitting.train(train, start, validation=data["validation"], **more, **run)
            except (Interrupted, Terminated) as error:
                stop = error
                trained = error.trained
            beside = replace(test, params=trained.params)
            errors = fitting.network_errors(beside, data["validation"])
            if (
                not isinstance(s.candidates, str)
                or errors["network"] < fitting.GAIN * errors["average"]
            ):
                test = beside
                final = beside
                epochs = max(1, trained.best_epoch)
        if s.refit and stop is None:
            rows = fitting.refitted(train)
            final = fitting.alone(rows.predictor, rows)
            try:
                if epochs:
                    params = fitting.train(
                        rows, start, epochs=epochs, graph=self.graph, **run
                    ).params
                    final = replace(final, params=params)
            except (Interrupted, Terminated) as error:
                final = test
                problem = (
                    f"the training on all rows; the forecaster has the network of epoch {epochs}"
                )
                stop = type(error)(
                    f"Forecaster: signal {error.signal} stopped {problem}", trained, error.signal
                )
        outside = [
            evaluation.last_errors(test, *one)
            for one in zip(several, test.scaling.units, strict=True)
        ]
        adjustment = evaluation.adjustment(outside, s.quantiles)
        season = fitting.season_of(several, s.season)
        names, ids = (
            np.array(some, dtype=object) if some else None for some in (given.names, given.ids)
        )
        allowed = {
            name: e
            for name, e in final.combination.every_error.items()
            if selection.allows(s, name)
        }
        used = [name for name in final.combination.parts if name in allowed]
        chosen = np.array([*used, *["network"] * bool(epochs)], dtype=object)
        facts: dict[str, Any] = {
            "chosen_": chosen,
            "candidate_errors_": errors | allowed,
            "ranks_": sampling.ranks(test, several),
            "season_": season,
            "calendar_": several[0].marks > 0,
            "feature_names_in_": names,
            "series_names_": ids,
        }
        self._keep(test, final, adjustment, trained_=trained, **facts)
        if stop is not None:
            raise stop

    def _read(
        self, values: Any, covariates: CovariateArguments, steps: int
    ) -> tuple[Panel, list[TimeSeries], list[Values]]:
        """Return series to predict after, with `steps` rows ahead, and their units; raise unless
        they go with `fit`.
        """
        s = self.test_predictor_.settings
        scaling = self.scaling_
        beside = Covariates.of("Forecaster", covariates)
        given = Panel.of("Forecaster", values, beside, self._roles(), self._names())
        ahead = max(steps, s.horizon)
        several = self._series(given, ahead, self.calendar_)
        fitted = [
            scaling.units.shape[1],
            *(len(part[0]) for part in (scaling.past, scaling.future, scaling.static)),
        ]
        for series, name in zip(several, names_of(given.ids, len(several)), strict=True):
            N = len(series.values)
            widths = [
                series.values.shape[1],
                series.past.shape[1],
                series.future.shape[1],
                len(series.static),
            ]
            if widths != fitted:
                names = "values, past, future (with what dates give) and static"
                raise ValueError(
                    f"Forecaster: {names} have {widths} columns, expected {fitted}, as in fit"
                )
            if s.window > N:
                raise ValueError(
                    f"Forecaster: a forecast needs {s.window} values to look back on, {name}"
                    f" has {N}"
                )
            if series.future.shape[1] and len(series.future) < N + steps:
                rows = len(series.future) - N
                raise ValueError(
                    f"Forecaster: future has {rows} rows after {name}, expected {steps}"
                )
        units = scaling.of(several, given.ids, s.window)
        for series, unit in zip(several, units, strict=True):
            check_reach(
                "Forecaster", series.known, unit, self.predictor_.backend.dtype, series.begin
            )
        return given, several, units

    def _next(self, series: TimeSeries, units: Values) -> tuple[Values, Values]:
        """Return calibrated quantiles (H, C, Q) after the end of a series, and their width (1, C).

        By that its latest errors change the distances of quantiles from the mean.
        """
        s = self.predictor_.settings
        N = len(series.values)
        rows = np.arange(max(s.window, N - selection.memory(s.horizon)), N + 1)
        mean, quantiles, scale = self.predictor_.forecast(series, units, rows)
        levels = self._calibrated(np, mean, quantiles, scale, np.ones((1, 1)))
        width = evaluation.width(
            mean, levels, baselines.targets(series, rows, s.horizon, N), s.quantiles
        )
        return (
            predictor.finite(self._calibrated(np, mean[-1:], quantiles[-1:], scale[-1:], width)[0]),
            width,
        )

    def _paths(
        self,
        series: TimeSeries,
        units: Values,
        n: int,
        steps: int,
        seed: list[int],
        width: Values | None = None,
    ) -> Values:
        """Return sample paths (n, steps, C) after a series; beyond the horizon each is fed back as
        if observed.
        """
        p = self.predictor_
        rng = np.random.default_rng(seed)
        if len(levels := p.settings.quantiles) < 2:
            raise ValueError(
                f"Forecaster: it was fitted with quantiles={levels}, expected two or more, to draw"
                " paths"
            )
        width = self._next(series, units)[1] if width is None else width

        def drawn(mean: Values, quantiles: Values, scale: Values) -> Values:
            calibrated = self._calibrated(np, mean, quantiles, scale, width)
            paths = sampling.draw(calibrated, levels, self.ranks_, rng, n)
            predictor.finite(paths)
            return np.asarray(p.limited(np, paths))

        return self._fed_back(series, units, n, steps, drawn)

    def _fed_back(
        self,
        series: TimeSeries,
        units: Values,
        n: int,
        steps: int,
        values: Callable[[Values, Values, Values], Values],
    ) -> Values:
        """Return n paths (n, steps, C) after a series; `values` has those of a horizon from what is
        forecast of it.
        """
        p = self.predictor_
        H = self.predictor_.settings.horizon
        ahead: Values = np.empty((n, -(-steps // H) * H, self.n_targets_))
        for t in sampling.announced(steps, H):
            known = ahead[: n if t else 1, :t]
            ahead[:, t : t + H] = values(*p.finished(*sampling.before(p, series, units, known)))
        return ahead[:, :steps]

    def _calibrated(
        self, xp: Namespace, mean: Array, quantiles: Array, scale: Array, width: Array
    ) -> Array:
        """Return calibrated quantiles (M, H, C, Q), of which recent errors change the distances
        from the mean.
        """
        wide = evaluation.widen(
            xp, quantiles, scale, self.adjustment_, self.predictor_.settings.quantiles
        )
        return self.predictor_.limited(
            xp, mean[..., None] + (wide - mean[..., None]) * width[:, None, :, None]
        )

    def _ahead(self, series: TimeSeries, units: Values, steps: int) -> Values:
        """Return forecasts (steps, C) after a series, fed back beyond the horizon."""
        return np.asarray(
            self._fed_back(series, units, 1, steps, lambda mean, quantiles, scale: mean)[0]
        )
