"""Estimators around a pretrained TiRex: forecasts without training, and features of series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self, Unpack

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import dtype_text
from xlstm.arrays.namespace import DType, Params
from xlstm.data import frames
from xlstm.data.host import Host, Values
from xlstm.data.panels import Panel
from xlstm.data.series_windows import split
from xlstm.data.time_series import CovariateArguments, Covariates, TimeSeries
from xlstm.estimators import baselines, evaluation, fitting
from xlstm.estimators.base import (
    CHECKS,
    AnyPath,
    Estimator,
    Export,
    SeriesEstimator,
    names_array,
    roles_of,
)
from xlstm.estimators.evaluation import Forecasts, Score
from xlstm.estimators.series_scaling import check_changes, names_of
from xlstm.interop import tirex
from xlstm.models.tirex import PrefixStateCache, TiRex, TiRex2, items
from xlstm.models.tirex.items import Pretrained
from xlstm.models.tirex.transforms import levels_of

FEWEST = 3  # least rows before the first forecast of a score, for the baselines
FORECASTER = "ZeroShotForecaster"
FEATURES = "TiRexFeatures"

Checkpoint = AnyPath | tuple[TiRex | TiRex2, Params]


def load_model(
    where: str, checkpoint: Checkpoint, backend: str | Backend | None, dtype: DType | None
) -> tuple[TiRex | TiRex2, Params]:
    """Return the pretrained model of an estimator with its parameters; a pair of both is returned
    unchanged.

    Raises
    ------
    OSError, ValueError, TypeError
        The checkpoint cannot be read or is not a TiRex.
    """
    if not isinstance(checkpoint, tuple):
        return tirex.load(
            checkpoint, backend=backend, dtype=None if dtype is None else dtype_text(where, dtype)
        )
    if len(checkpoint) != 2:
        raise ValueError(
            f"{where}: checkpoint has {len(checkpoint)} parts, expected a model and its parameters"
        )
    model, params = checkpoint
    checks.instance((TiRex, TiRex2), "a TiRex or a TiRex2")(where, "model", model)
    return model, params


@dataclass(eq=False, repr=False)
class ZeroShotForecaster(SeriesEstimator):
    """Forecast series with a pretrained TiRex, without training on them.

    It takes series and tables, and returns forecasts and scores, like `Forecaster`. You need not
    call `fit` before `predict`, `score` and `backtest`. TiRex-2 forecasts the targets of a series
    together, and uses covariates. TiRex-1 forecasts each target by itself, and takes no covariates.
    A series may have gaps (NaN) anywhere; the network sees them as missing values.

    Parameters
    ----------
    checkpoint : path, or pair of a model and its parameters
        A published checkpoint, as for `xlstm.interop.tirex.load`, or a `TiRex` or `TiRex2` in
        memory with its parameters.
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}, optional
        The dtype of the weights, by default that of the checkpoint.
    name : str
        A name for the series.
    horizon : int, optional
        Steps ahead to forecast, by default one patch of the model: 32 steps in published models.
    quantiles : list of float, optional
        Rising levels within the range that the model was trained for; by default all levels that it
        was trained for.
    batch_size : int, optional
        Most windows that the network sees at once, by default 16 on a CPU and 512 on a GPU.
    options : dict, optional
        Further options of the model's `forecast`, such as `{"rollout": 2}` or `{"sign_flip":
        True}`.
    season : int or "auto"
        Steps of the season for the seasonal naive forecast, one of the baselines of scores; 0 for
        none. With "auto", it is found in the first 60 % of the series.
    targets, past, future : list of str, optional
        Names of columns, if you give a table. `targets` are the columns to predict, by default all
        columns without another role. `past` are covariates that are known up to the last value, and
        `future` covariates that are known in advance. A column has one role. If you give `targets`,
        columns without a role are not read.
    series_id : str, optional
        The column that tells several series of a table apart.

    Attributes
    ----------
    model_ : TiRex or TiRex2
        The model.
    params_ : dict of str to array
        Parameters of the model.
    feature_names_in_ : array of str
        Names of the targets, if `fit` was given a table.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.models import TiRex
    >>> model = TiRex(16, 2, 2, patch_size=4, input_ff_size=24, context=32)
    >>> forecaster = ZeroShotForecaster((model, model.init(backend="numpy")), horizon=6)
    >>> values = np.sin(np.arange(100) / 5)
    >>> forecaster.predict(values).shape, forecaster.predict_quantiles(values).shape
    ((6,), (6, 9))
    """

    checkpoint: Checkpoint
    backend: str | Backend | None = None
    dtype: DType | None = None
    _: KW_ONLY
    horizon: int | None = None
    quantiles: Sequence[float] | None = None
    batch_size: int | None = None
    options: dict[str, Any] | None = None
    season: int | str = "auto"

    def fit(self, values: Any = None, **covariates: Unpack[CovariateArguments]) -> Self:
        """Load the checkpoint, and remember the columns of a table, without any training.

        Parameters
        ----------
        values, covariates : optional
            As for `predict`. Tables of later calls must have the same targets.

        Returns
        -------
        ZeroShotForecaster
            The forecaster itself.

        Raises
        ------
        OSError, ValueError, TypeError
            As for `predict`.
        """
        network = self._network()
        columns = None
        if values is not None:
            columns = names_array(self._read(network, values, covariates, 0, [])[0].names)
        return self._become(model_=network.model, params_=network.params, feature_names_in_=columns)

    def predict(
        self, values: Any, steps: int | None = None, **covariates: Unpack[CovariateArguments]
    ) -> Any:
        """Return forecasts, as medians, of the values after the end of a series.

        Parameters
        ----------
        values : array (N,) or (N, C), list of such arrays, or table
            One series with one target (N,) or with C targets (N, C), or several series. NaN marks a
            gap, which may be anywhere. Missing dates become gaps.
        steps : int, optional
            Number of values to predict, by default the horizon.
        covariates : past, future, dates
            As for `Forecaster.predict`. `past` (N, P) are covariates that are known up to the last
            value. `future` (N + steps, F) are covariates that are known in advance. `dates` (N,)
            are rising dates. If you give several series, each of these is a list with one entry for
            each series. If `values` is a table, `future` is a table of the rows to predict alone,
            in any order if they have dates.

        Returns
        -------
        array (steps,) or (steps, C), list of such arrays, or table
            A table has the dates of the predicted values.

        Raises
        ------
        OSError, ValueError, TypeError
            The checkpoint cannot be read. A series or a parameter is out of range. There are
            covariates, and the model takes none.
        """
        return self._after(values, steps, covariates).mean

    def predict_quantiles(
        self,
        values: Any,
        steps: int | None = None,
        quantiles: Sequence[float] | None = None,
        **covariates: Unpack[CovariateArguments],
    ) -> Any:
        """Return forecast quantiles of the values after the end of a series.

        They are the model's own quantiles, which may cross. Levels between two that the model was
        trained for are interpolated linearly.

        Parameters
        ----------
        values, steps, covariates
            As for `predict`.
        quantiles : list of float, optional
            Rising levels within the range that the model was trained for, which is 0.1 to 0.9 in
            published models; by default the parameter `quantiles`.

        Returns
        -------
        array (steps, Q) or (steps, C, Q), list of such arrays, or table
            In the order of `quantiles`. Column names of a table end with the quantile.

        Raises
        ------
        OSError, ValueError, TypeError
            As for `predict`. `quantiles` is empty, does not rise, or has a level outside of the
            trained range.
        """
        return self._after(values, steps, covariates, quantiles).quantiles

    def score(
        self, values: Any, stride: int = 1, **covariates: Unpack[CovariateArguments]
    ) -> Score:
        """Return errors on the last 20 % of a series, beside those of the baselines of
        `Forecaster.score`.

        Parameters
        ----------
        values, covariates
            As for `predict`; `future` needs no rows after the series.
        stride : int
            Rows between the beginnings of two forecasts. The time grows with the number of
            forecasts.

        Returns
        -------
        Score

        Raises
        ------
        OSError, ValueError, TypeError
            As for `predict`.
        """
        stride = checks.size(FORECASTER, "stride", stride)
        return self._scored(
            values,
            covariates,
            lambda rows, horizon: np.arange(split(rows).test.start, rows, stride),
        )

    def backtest(
        self, values: Any, folds: int = 5, **covariates: Unpack[CovariateArguments]
    ) -> Score:
        """Return errors of forecasts of the last horizons of a series, each from the rows before
        it.

        Parameters
        ----------
        values, covariates
            As for `score`.
        folds : int
            Number of forecasts of each series; the last one ends with the series.

        Returns
        -------
        Score

        Raises
        ------
        OSError, ValueError, TypeError
            As for `predict`, or the series is too short for the folds.
        """
        folds = checks.count(FORECASTER, "folds", folds)
        return self._scored(
            values, covariates, lambda rows, horizon: rows - horizon * np.arange(folds, 0, -1)
        )

    def _for_export(self, lengths: bool) -> Export:
        """Return the metadata, inputs and formula that `interop.onnx.to_onnx` writes beside the
        network, whose input is tokens of scaled patches.
        """
        return {"kind": FORECASTER}, {}, None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles, without the checkpoint's content, which is read
        again.
        """
        return {
            name: value for name, value in vars(self).items() if name not in ("_source", "_loaded")
        }

    def _after(
        self,
        values: Any,
        steps: int | None,
        covariates: CovariateArguments,
        quantiles: Sequence[float] | None = None,
    ) -> Any:
        """Return forecasts after the end of series, in the form in which the series came."""
        network = self._network(quantiles)
        steps = self._horizon(network) if steps is None else checks.size(FORECASTER, "steps", steps)
        return network.after(*self._read(network, values, covariates, steps), steps)

    def _scored(
        self, values: Any, covariates: CovariateArguments, origins: Callable[[int, int], Host]
    ) -> Score:
        """Return the score of forecasts of each series from the rows `origins(N, horizon)`, for its
        N rows.
        """
        network = self._network()
        H = self._horizon(network)
        season = CHECKS["season"](FORECASTER, "season", self.season)
        panel, several = self._read(network, values, covariates, 0)
        forecasts = []
        for series in several:
            N = len(series.values)
            at = origins(N, H)
            if at[0] < FEWEST:
                raise ValueError(
                    f"{FORECASTER}: a series of {N} rows has {max(0, at[0])} before the first"
                    f" forecast, expected {FEWEST}"
                )
            truth = baselines.targets(series, at, H, N)
            forecasts.append(Forecasts(at, *network.forecast(series, at.tolist(), H), truth))
        firsts = [int(each.at[0]) for each in forecasts]
        periods = fitting.seasons_of(several, firsts, season)
        return evaluation.score(several, forecasts, network.options["quantiles"], periods, panel)

    def _read(
        self,
        network: Pretrained,
        values: Any,
        covariates: CovariateArguments,
        steps: int,
        fitted: Sequence[str] | None = None,
    ) -> tuple[Panel, list[TimeSeries]]:
        """Return series as they came and as arrays, with `steps` rows ahead."""
        checks.text(FORECASTER, "name", self.name)
        beside = Covariates.of(FORECASTER, covariates)
        fitted = self._names() if fitted is None else fitted
        panel, several = items.read_table(
            FORECASTER, network.model, values, beside, roles_of(self), steps, fitted
        )
        for series, name in zip(several, names_of(panel.ids, len(several)), strict=True):
            check_changes(FORECASTER, series.known, name)
        return panel, several

    def _horizon(self, network: Pretrained) -> int:
        horizon = network.model.patch_size if self.horizon is None else self.horizon
        return int(checks.size(FORECASTER, "horizon", horizon))

    def _network(self, quantiles: Sequence[float] | None = None) -> Pretrained:
        """Return the model with its parameters and options; a checkpoint is read only once.

        The levels are `quantiles`, by default those of the estimator.
        """
        source = self.checkpoint, self.backend, self.dtype
        if isinstance(self.checkpoint, tuple):
            model, params = load_model(FORECASTER, *source)
            starts = None  # the caller may change these parameters
        else:
            if getattr(self, "_source", None) != source:
                model, params = load_model(FORECASTER, *source)
                self._source = source
                self._loaded = (model, params, PrefixStateCache(model, params))
            model, params, starts = self._loaded
        rising = checks.optional(CHECKS["quantiles"])(FORECASTER, "quantiles", self.quantiles)
        own = {"batch_size": self.batch_size, "quantiles": rising, "starts": starts}
        own |= CHECKS["options"](FORECASTER, "options", self.options) or {}
        if quantiles is not None:
            own["quantiles"] = checks.rising(1)(FORECASTER, "quantiles", quantiles)
        own["quantiles"] = levels_of(FORECASTER, own["quantiles"], model.quantiles)
        return Pretrained(model, params, own)


def _rows(X: Any) -> Any:
    """Return a list of series; each row of a table is one."""
    return frames.table_of(FEATURES, X).values if frames.has_columns(X) else X


def _variates(X: Any) -> int:
    """Return the number of variates, which all series must share; raise ValueError if they do
    not.
    """
    series = items.read_arrays(FEATURES, X, 2)
    counts = {len(rows) for rows in series.rows}
    if series.single or len(counts) > 1:
        kinds = "one series" if series.single else f"series with {sorted(counts)} variates"
        raise ValueError(f"{FEATURES}: X is {kinds}, expected several with one number of variates")
    return counts.pop()


@dataclass(eq=False, repr=False)
class TiRexFeatures(Estimator):
    """Embeddings of series by a pretrained TiRex: features for any classifier or regressor of
    scikit-learn.

    A feature is one of the D units of a block, averaged over time; `TiRex.embed` describes the
    computation. `fit` trains nothing.

    Parameters
    ----------
    checkpoint : path, or pair of a model and its parameters
        A published checkpoint, as for `xlstm.interop.tirex.load`, or a `TiRex` or `TiRex2` in
        memory with its parameters.
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}, optional
        The dtype of the weights, by default that of the checkpoint.
    batch_size : int
        Most series that the network sees at once.

    Attributes
    ----------
    model_ : TiRex or TiRex2
        The model.
    params_ : dict of str to array
        Parameters of the model.
    n_variates_ : int
        Number of variates of each series in `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.models import TiRex
    >>> model = TiRex(16, 2, 2, patch_size=4, input_ff_size=24, context=32)
    >>> features = TiRexFeatures((model, model.init(backend="numpy")))
    >>> features.fit_transform(np.sin(np.arange(100) / 5).reshape(4, 25)).shape
    (4, 32)
    """

    checkpoint: Checkpoint
    backend: str | Backend | None = None
    dtype: DType | None = None
    _: KW_ONLY
    batch_size: int = 64

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the checkpoint, and check the series.

        Parameters
        ----------
        X : array (S, L) or (S, V, L), list of S arrays (L,) or (V, L), or table
            S series of V variates and L steps; NaN marks missing values. A table has a row for each
            series.
        y : object, optional
            It is not used.

        Returns
        -------
        TiRexFeatures
            The estimator itself.

        Raises
        ------
        OSError, ValueError, TypeError
            The checkpoint cannot be read, or X has none of these forms.
        """
        model, params = load_model(FEATURES, self.checkpoint, self.backend, self.dtype)
        return self._become(model_=model, n_variates_=_variates(_rows(X)), params_=params)

    def transform(self, X: Any) -> Values:
        """Return the features of series.

        Parameters
        ----------
        X : array (S, L) or (S, V, L), list of S arrays (L,) or (V, L), or table
            Series of any length, with as many variates as in `fit`.

        Returns
        -------
        array (S, blocks * V * D)
            float64. The features of the first block come first, and within a block those of the
            first variate.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            `fit` was not called, or X has another form or number of variates.
        """
        X = _rows(X)
        count = _variates(X)
        if count != self.n_variates_:
            raise ValueError(
                f"{FEATURES}: series have {count} variates, expected {self.n_variates_}, as in fit"
            )
        return np.asarray(self.model_.embed(self.params_, X, batch_size=self.batch_size))

    def fit_transform(self, X: Any, y: Any = None) -> Values:
        """Return `fit(X).transform(X)`, with the parameters, results and errors of both.

        Parameters
        ----------
        X : array (S, L) or (S, V, L), list of S arrays (L,) or (V, L), or table
            As for `fit`.
        y : object, optional
            It is not used.

        Returns
        -------
        array (S, blocks * V * D)
            As for `transform`.
        """
        return self.fit(X).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> Host:
        """Return the names of the features, such as "block3_unit17", or "block3_variate1_unit17" if
        there are several variates.

        Parameters
        ----------
        input_features : object, optional
            It is not used.

        Returns
        -------
        array of str
        """
        model = self.model_
        count = self.n_variates_
        variates = [""] if count == 1 else [f"_variate{v}" for v in range(count)]
        names = [
            f"block{k}{v}_unit{d}"
            for k in range(model.num_blocks)
            for v in variates
            for d in range(model.size)
        ]
        return np.array(names, dtype=object)
