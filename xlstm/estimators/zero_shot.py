"""The forecaster that needs no training: a pretrained network, with the data and the scores of `Forecaster`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self, Unpack

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import DType, Params
from xlstm.data.covariates import CovariateArguments, Covariates, TimeSeries
from xlstm.data.panels import Given
from xlstm.data.series_windows import split
from xlstm.estimators import baselines, fitting, scores
from xlstm.estimators.base import CHECKS, AnyPath, Host, SeriesEstimator
from xlstm.estimators.scores import Forecasts, Score
from xlstm.estimators.series_scaling import check_changes, names_of
from xlstm.estimators.tirex_estimators import model_of
from xlstm.models.tirex import PrefixStateCache, TiRex, TiRex2, items
from xlstm.models.tirex.items import Pretrained
from xlstm.models.tirex.transforms import levels_of

WHERE = "ZeroShotForecaster"
FEWEST = 3  # rows before the first forecast of a score, for the baselines
# Options of forecasts that only one of the models has.
OWN: dict[type[Any], tuple[str, ...]] = {TiRex: ("rollout", "resample"), TiRex2: ("sign_flip", "differencing")}


@dataclass(eq=False, repr=False)
class ZeroShotForecaster(SeriesEstimator):
    """Forecast series with a pretrained TiRex, without any training on them.

    It takes series and tables, and returns forecasts and scores, as `Forecaster` does. TiRex-2 lets the targets and the
    covariates of a series see each other; TiRex-1 forecasts each target by itself and takes no covariates. Gaps (NaN)
    are missing values to the network, anywhere. `predict`, `score` and `backtest` need no `fit`.

    Parameters
    ----------
    checkpoint : path, optional
        A published checkpoint, as `xlstm.interop.tirex.load` takes it.
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}, optional
        By default that of the checkpoint.
    name : str
        A name for the series.
    model, params : TiRex or TiRex2, and dict of str to array, optional
        A model and its parameters in the place of a checkpoint.
    horizon : int, optional
        Steps ahead that are forecast, by default a patch of the model, which is 32 steps in published ones.
    quantiles : list of float, optional
        Rising levels within those that the model was trained for, which are the default.
    batch_size : int, optional
        Windows that the network sees at once, at most: by default 16 on a CPU and 512 on a GPU.
    rollout, resample : optional
        Options of `TiRex.forecast`.
    sign_flip, differencing : optional
        Options of `TiRex2.forecast`.
    season : int or "auto"
        Steps of a season, of which the seasonal naive forecast is made that scores compare with; 0 for none. With
        "auto" it is found in the first 60 % of the series.
    targets, past, future : list of str, optional
        In tables, names of columns, of which each has one role: those to predict, by default all others; covariates
        that are known up to the last value; and covariates that are known in advance. With `targets` columns without a
        role are not read.
    series_id : str, optional
        The column of tables that tells several series apart.

    Attributes
    ----------
    model_ : TiRex or TiRex2
    params_ : dict of str to array
        Parameters of the model.
    feature_names_in_ : array of str
        Names of targets, where `fit` was given a table.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.models import TiRex
    >>> model = TiRex(16, 2, 2, patch_size=4, input_ff_size=24, context=32)
    >>> forecaster = ZeroShotForecaster(model=model, params=model.init(backend="numpy"), horizon=6)
    >>> values = np.sin(np.arange(100) / 5)
    >>> forecaster.predict(values).shape, forecaster.predict_quantiles(values).shape
    ((6,), (6, 9))
    """

    checkpoint: AnyPath | None = None
    backend: str | Backend | None = None
    dtype: DType | None = None
    _: KW_ONLY
    model: TiRex | TiRex2 | None = None
    params: Params | None = None
    horizon: int | None = None
    quantiles: Sequence[float] | None = None
    batch_size: int | None = None
    rollout: int | None = None
    resample: str | None = None
    sign_flip: bool | None = None
    differencing: bool | None = None
    season: int | str = "auto"

    def fit(self, values: Any = None, **covariates: Unpack[CovariateArguments]) -> Self:
        """Load the checkpoint, and remember the columns of a table; nothing is trained.

        Parameters
        ----------
        values, covariates : optional
            As for `predict`. Tables of later calls are to have the same targets.

        Returns
        -------
        ZeroShotForecaster
            Itself.

        Raises
        ------
        OSError, ValueError, TypeError
            As for `predict`.
        """
        network = self._network()
        names: Sequence[Any] = []
        if values is not None:
            names = self._read(network, values, covariates, 0, [])[0].names
        columns = np.array(names, dtype=object) if names else None
        self._become(model_=network.model, params_=network.params, feature_names_in_=columns)
        return self

    def predict(self, values: Any, steps: int | None = None, **covariates: Unpack[CovariateArguments]) -> Any:
        """Return the medians of the values after the end of a series.

        Parameters
        ----------
        values : array (N,) or (N, C), list of such arrays, or table
            A series of one target, of several, or several series. NaN is a gap, which may be anywhere. Rows that are
            missing between dates become gaps.
        steps : int, optional
            How many values; by default as many as the horizon.
        covariates : past, future, dates
            As for `Forecaster.predict`: `past` (N, P) are covariates that are known up to the last value, `future`
            (N + steps, F) those that are known in advance, and `dates` (N,) rising dates. Where there are several
            series, these are lists with one entry for each. With a table `future` is a table of the rows that are
            predicted, in any order if they have dates.

        Returns
        -------
        array (steps,) or (steps, C), list of such arrays, or table
            A table has the dates that follow.

        Raises
        ------
        OSError, ValueError, TypeError
            The checkpoint cannot be read, a series is out of range, there are covariates and the model takes none, or a
            parameter is out of range.
        """
        return self._after(values, steps, covariates, False)

    def predict_quantiles(self, values: Any, steps: int | None = None, **covariates: Unpack[CovariateArguments]) -> Any:
        """Return quantiles of the values after the end of a series; they may cross, as the model gives them.

        Parameters
        ----------
        values, steps, covariates
            As for `predict`.

        Returns
        -------
        array (steps, Q) or (steps, C, Q), list of such arrays, or table
            In the order of the parameter `quantiles`; columns of a table have the quantile at the end of their names.

        Raises
        ------
        OSError, ValueError, TypeError
            As for `predict`.
        """
        return self._after(values, steps, covariates, True)

    def score(self, values: Any, stride: int = 1, **covariates: Unpack[CovariateArguments]) -> Score:
        """Return errors on the last 20 % of a series beside those of baselines, which are those of `Forecaster.score`.

        Parameters
        ----------
        values, covariates
            As for `predict`; `future` needs no rows after the series.
        stride : int
            Rows from the beginning of one forecast to that of the next. The time is that of so many forecasts.

        Returns
        -------
        Score

        Raises
        ------
        OSError, ValueError, TypeError
            As for `predict`.
        """
        stride = checks.size(WHERE, "stride", stride)
        return self._scored(values, covariates, lambda rows, horizon: np.arange(split(rows).test.start, rows, stride))

    def backtest(self, values: Any, folds: int = 5, **covariates: Unpack[CovariateArguments]) -> Score:
        """Return errors of forecasts from rolling origins, one horizon after another at the end of the series.

        Parameters
        ----------
        values, covariates
            As for `score`.
        folds : int
            How many forecasts of each series.

        Returns
        -------
        Score

        Raises
        ------
        OSError, ValueError, TypeError
            As for `predict`; there is not enough room for the folds.
        """
        folds = checks.count(WHERE, "folds", folds)
        return self._scored(values, covariates, lambda rows, horizon: rows - horizon * np.arange(folds, 0, -1))

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles have: all but the checkpoint's content, which is read again."""
        return {name: value for name, value in vars(self).items() if name not in ("_held", "_loaded")}

    def _after(self, values: Any, steps: int | None, covariates: CovariateArguments, quantiles: bool) -> Any:
        """Return forecasts after the end of series in the kind that the series came in."""
        network = self._network()
        steps = self._horizon(network) if steps is None else checks.size(WHERE, "steps", steps)
        ahead = network.after(*self._read(network, values, covariates, steps), steps)
        return ahead.quantiles if quantiles else ahead.mean

    def _scored(self, values: Any, covariates: CovariateArguments, origins: Callable[[int, int], Host]) -> Score:
        """Return the score of forecasts of each series at the rows that `origins` gives by its rows and the horizon."""
        network = self._network()
        H, season = self._horizon(network), CHECKS["season"](WHERE, "season", self.season)
        given, several = self._read(network, values, covariates, 0)
        forecasts = []
        for series in several:
            N = len(series.values)
            at = origins(N, H)
            if at[0] < FEWEST:
                problem = f"a series of {N} rows has {max(0, at[0])} before the first forecast"
                raise ValueError(f"{WHERE}: {problem}, expected {FEWEST}")
            truth = baselines.targets(series, at, H, N)
            forecasts.append(Forecasts(at, *network.forecast(series, at.tolist(), H), truth))
        season = fitting.season_of(several, season)
        return scores.score(several, forecasts, network.options["quantiles"], season, all(given.flat))

    def _read(
        self,
        network: Pretrained,
        values: Any,
        covariates: CovariateArguments,
        steps: int,
        fitted: Sequence[str] | None = None,
    ) -> tuple[Given, list[TimeSeries]]:
        """Return series as they were given and as arrays, with `steps` rows ahead."""
        checks.text(WHERE, "name", self.name)
        known, fitted = Covariates.of(WHERE, covariates), self._names() if fitted is None else fitted
        given, several = items.read_table(WHERE, network.model, values, known, self._roles(), steps, fitted)
        for series, name in zip(several, names_of(given.ids, len(several)), strict=True):
            check_changes(WHERE, series.known, name)
        return given, several

    def _horizon(self, network: Pretrained) -> int:
        given = network.model.patch_size if self.horizon is None else self.horizon
        return int(checks.size(WHERE, "horizon", given))

    def _network(self) -> Pretrained:
        """Return the model with its parameters and options; a checkpoint is read once."""
        held, own = (self.checkpoint, self.backend, self.dtype), self.model is not None or self.params is not None
        if self.checkpoint is None or own:
            model, params = model_of(WHERE, self)
            starts = None  # others may change these parameters
        else:
            if getattr(self, "_held", None) != held:
                model, params = model_of(WHERE, self)
                self._held, self._loaded = held, (model, params, PrefixStateCache(model, params))
            model, params, starts = self._loaded
        return Pretrained(model, params, {**self._options(model), "starts": starts})

    def _options(self, model: TiRex | TiRex2) -> dict[str, Any]:
        """Return the options of forecasts; raise where one goes with another model."""
        options: dict[str, Any] = {"batch_size": self.batch_size}
        for kind, names in OWN.items():
            for name in names:
                value = getattr(self, name)
                if value is None:
                    continue
                if not isinstance(model, kind):
                    expected = f"expected None, as the model is a {type(model).__name__}"
                    raise ValueError(f"{WHERE}: {name} is {checks.shown(value)}, {expected}")
                options[name] = value
        quantiles = levels_of(WHERE, self.quantiles, model.quantiles)
        if list(quantiles) != sorted(set(quantiles)):
            raise ValueError(f"{WHERE}: quantiles is {checks.shown(self.quantiles)}, expected rising numbers")
        return options | {"quantiles": quantiles}
