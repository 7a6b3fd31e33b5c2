"""Fit a forecaster: divide series, choose candidates, train the network, and judge it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.groups import Group
from xlstm.arrays.namespace import Params
from xlstm.data.host import Host, Values
from xlstm.data.series_windows import split
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import base, baselines, predictor, sampling, seasons, selection
from xlstm.estimators.intervals import Intervals
from xlstm.estimators.predictor import Examples, Predictor, Settings
from xlstm.estimators.rolling_origins import FOLDS, RollingOrigins
from xlstm.estimators.selection import Combination
from xlstm.estimators.series_scaling import SeriesScaling, check_reach, names_of
from xlstm.estimators.smoothing import ROWS
from xlstm.training import Interrupted, Terminated, Trained
from xlstm.training.agreement import of_first

ENOUGH = 64  # least number of training windows with which a network is tried
# A network is used if it lowers the error by at least this share over one horizon, and by this
# share / sqrt(n) over n horizons: differences by chance shrink likewise.
GAIN = 0.12
SHRINK = 0.5  # the network's output is scaled by this share of the best factor in hindsight
LONG = 2000  # most rows for which candidates are fitted again, fold by fold
WINDOW = 48  # default steps that a network looks back, if there are enough rows
Parts = dict[str, range]


def longest(rows: int, horizon: int) -> int:
    """Return the longest window that fits into a series of `rows` rows with this horizon; below 2
    if none fits.
    """
    if rows < 3:
        return 0
    train, validation, test = split(rows)
    if horizon > min(test.start - validation.start, rows - test.start):
        return 0
    return int(train.stop) - horizon


def parts_of(rows: int, settings: Settings, name: str = "the series") -> Parts:
    """Return the rows of each part of a series for which there is a full window before them.

    If the window and the horizon do not fit, a ValueError names the series and a window that would
    fit.
    """
    window = settings.window
    horizon = settings.horizon
    fits = longest(rows, horizon)
    if fits < window:
        advice = f"a window of at most {fits}" if fits >= 2 else "a shorter horizon"
        raise ValueError(
            f"Forecaster: a window of {window} and a horizon of {horizon} need more rows, {name} has"
            f" {rows}; expected more, or {advice}"
        )
    return {
        part: range(max(window, span.start), span.stop)
        for part, span in split(rows)._asdict().items()
    }


class Prepared(NamedTuple):
    """Series after checks, with their fitted candidates but without a trained network.

    Attributes
    ----------
    several : list of TimeSeries
    parts : list of Parts
        The parts of each series.
    rolling : RollingOrigins
        The origins before the test part by which candidates were chosen.
    predictor : Predictor
        Its candidates are fitted to all rows before the test part, and its network adds nothing.
    """

    several: list[TimeSeries]
    parts: list[Parts]
    rolling: RollingOrigins
    predictor: Predictor

    @property
    def windows(self) -> int:
        """The number of windows to train a network on."""
        return sum(len(part["train"]) for part in self.parts) // 2


def prepared(
    variants: Sequence[list[TimeSeries]],
    ids: Sequence[str],
    settings: Settings,
    backend: Backend,
    group: Group | None = None,
) -> Prepared:
    """Return everything that is fitted before the network; `ids` are the names of the series, if
    they have some.

    The variant of the series is chosen whose best candidate has the smallest error from rolling
    origins; rank 0 of a group decides. A ValueError says that a series is too short or constant,
    that a part has nothing to predict, or that a value is out of range.
    """
    if settings.window is None:
        shortest = min(len(series.values) for series in variants[0])
        half = split(max(3, shortest)).train.stop // 2
        settings = replace(settings, window=min(WINDOW, max(2, half)))
    number, scaling, periods, combination = of_first(
        group, _best, variants, ids, settings, backend.dtype
    )
    fixed = not isinstance(settings.season, str)
    if fixed and combination.seasons != periods:
        raise ValueError(
            f"Forecaster: season is {settings.season}, and no candidate uses it; expected 'auto', or"
            f" linear, smoothing or theta (the last two up to {ROWS} steps) among the candidates"
        )
    several = variants[number]
    parts = [parts_of(len(series.values), settings) for series in several]
    ends = [part["test"].start for part in parts]
    rolling = RollingOrigins(several, scaling, ends, settings.horizon, periods, fixed)
    model = predictor.network(settings, scaling)
    fitted = alone(Predictor(settings, backend, scaling, combination, None, None, model, {}))
    return Prepared(several, parts, rolling, fitted)


def _best(
    variants: Sequence[list[TimeSeries]], ids: Sequence[str], settings: Settings, dtype: str
) -> tuple[int, SeriesScaling, tuple[int, ...], Combination]:
    """Return the number of the best variant, and its scaling, seasons and candidates."""
    tried = [_variant(several, ids, settings, dtype) for several in variants]
    least = [min(combination.every_error.values()) for _, combination in tried]
    number = least.index(min(least))
    rolling, combination = tried[number]
    return number, rolling.scaling, rolling.seasons, combination


def _variant(
    several: list[TimeSeries], ids: Sequence[str], s: Settings, dtype: str
) -> tuple[RollingOrigins, Combination]:
    """Check one variant of the series, with or without features of the calendar; return its rolling
    origins and its candidates.
    """
    names = names_of(ids, len(several))
    parts = [
        parts_of(len(series.values), s, name) for series, name in zip(several, names, strict=True)
    ]
    scaling = SeriesScaling.fit(several, ids, s.window, [part["train"].stop for part in parts])
    for series, unit, part, name in zip(several, scaling.units, parts, names, strict=True):
        check_reach(series, unit, dtype)
        for kind, rows in part.items():
            there = ~np.isnan(baselines.targets(series, np.array(rows), s.horizon, rows.stop))
            if not np.all(np.any(there, axis=0)):
                raise ValueError(f"Forecaster: the {kind} part of {name} has no values to predict")
    ends = [part["test"].start for part in parts]
    periods = seasons_of(several, ends, s.season)
    fixed = not isinstance(s.season, str)
    needed = -(-4 * max(periods, default=0) // 3)  # so that the first fold begins after the season
    short = [pair for pair in zip(ends, names, strict=True) if fixed and pair[0] < needed]
    if short:
        given, name = max(short)
        problem = (
            f"Forecaster: season is {max(periods)}, which needs {needed} rows before the test part,"
            f" {name} has {given}"
        )
        if len(short) == len(ends):
            raise ValueError(f"{problem}; expected a shorter season, or 'auto'")
        warnings.warn(
            f"{problem}; smoothing and theta forecast it, and shorter ones, without it",
            stacklevel=2,
        )
    rolling = RollingOrigins(several, scaling, ends, s.horizon, periods, fixed)
    return rolling, selection.combined(rolling, s)


def alone(fitted: Predictor) -> Predictor:
    """Return a predictor whose network adds nothing."""
    spread = np.ones((fitted.settings.horizon, fitted.scaling.units.shape[1]))
    return replace(fitted, spread=spread, params=predictor.first_weights(fitted, 0.0))


def examples(data: Prepared, group: Group | None = None) -> dict[str, Examples]:
    """Return the training and the validation examples of the network, by "train" and "validation";
    rank 0 of a group makes them.

    Each target is a residual of candidates that were fitted to earlier rows, since errors on rows
    that a candidate is fitted to are too small. The first rows of a long series are an exception:
    there candidates have seen many more rows than they have coefficients.
    """
    numbers = of_first(group, _examples, data)
    return {
        name: Examples(replace(data.predictor, **of_predictor), data.several, **arrays)
        for name, (of_predictor, arrays) in numbers.items()
    }


def _examples(data: Prepared) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return for each part the fields of its predictor that differ, and the arrays of its
    examples.
    """
    s = data.predictor.settings
    stops = [part["train"].stop for part in data.parts]
    training = replace(data.rolling, stops=stops, most=LONG)
    combination = selection.refitted(training, data.predictor.combination)
    before = replace(data.predictor, combination=combination)
    cuts = [np.maximum(cut, s.window) for cut in training.cuts]
    cuts[0] = np.where(np.array(stops) - cuts[0] < LONG, cuts[0], s.window)
    folds = [
        (combination.before_fold(k), [*map(np.arange, cuts[k], cuts[k + 1])]) for k in range(FOLDS)
    ]
    train = predictor.examples(before, data.several, folds, stops)
    rows = [np.array(part["validation"]) for part in data.parts]
    ends = [part["validation"].stop for part in data.parts]
    spread = train.predictor.spread
    validation = predictor.examples(before, data.several, [(combination, rows)], ends, spread)
    own = "combination", "spread"
    arrays = "series", "origins", "scale", "target", "mask"
    return {
        name: (
            {field: getattr(each.predictor, field) for field in own},
            {field: getattr(each, field) for field in arrays},
        )
        for name, each in {"train": train, "validation": validation}.items()
    }


def train(
    data: Examples, start: Params | None, **options: Any
) -> tuple[Trained, Interrupted | Terminated | None]:
    """Train the network on examples, as `base.learn` does.

    It begins with the weights `start`, if they have the shapes of the network's weights.
    """
    fitted = data.predictor
    params = predictor.first_weights(fitted)
    if start is not None and _shapes(start) == _shapes(params):
        params = {name: fitted.backend.asarray(array) for name, array in start.items()}
    return base.learn(fitted.settings, fitted.model, params, data, fitted.backend, **options)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in params.items()}


def network_share(fitted: Predictor, data: Examples) -> tuple[float, dict[str, float]]:
    """Return the factor that scales the network's output, 0 if the network does not help, and two
    errors on the examples.

    The factor is SHRINK times the best one in hindsight. It must lower the error in both halves of
    the examples. The errors are "average", without the network, and "network", with the factor.
    They are root mean squares, relative to repeating the last value.
    """
    sums = []  # sums of products of errors without the network and of its output
    horizon = fitted.settings.horizon
    for k, (series, units) in enumerate(zip(data.several, fitted.scaling.units, strict=True)):
        every = data.origins[data.series == k]
        for origins in np.array_split(every, 2):
            naive = baselines.changes(series, origins, horizon, int(every[-1]) + 1, units)
            left = naive - fitted.combination.apply(series, fitted.scaling, units, origins)
            added = fitted.added(series, units, origins) / units
            pairs = ((naive, naive), (left, left), (left, added), (added, added))
            sums.append([np.nansum(a * b + 0 * naive) for a, b in pairs])
    halves = np.array(sums).reshape(-1, 2, 4).sum(axis=0)
    naive, without, product, square = halves.sum(axis=0)
    share = SHRINK * float(np.clip(product / max(square, 1e-300), 0.0, 1.0))
    after = halves[:, 1] - 2 * share * halves[:, 2] + share**2 * halves[:, 3]
    errors = np.sqrt(np.array([without, after.sum()]) / max(naive, 1e-300))
    least = GAIN / np.sqrt(len(data.origins) / horizon)
    helps = np.all(after < halves[:, 1]) and errors[1] < (1 - least) * errors[0]
    return share if helps else 0.0, dict(zip(("average", "network"), errors.tolist(), strict=True))


def past_errors(fitted: Predictor, rolling: RollingOrigins, network: bool) -> list[Values]:
    """Return errors (M, H, C) of forecasts of each series from rolling origins, in units; NaN if
    the truth is not known.

    The candidates of each forecast were fitted to earlier rows. With a network, errors begin with
    the validation part, which the network was not fitted to.
    """
    errors = selection.past_errors(rolling, fitted.combination)
    if not network:
        return errors
    several = zip(rolling.several, fitted.scaling.units, rolling.cuts[0], strict=True)
    for k, (series, units, begin) in enumerate(several):
        first = parts_of(len(series.values), fitted.settings)["validation"].start
        errors[k] = errors[k][max(0, first - begin) :]
        origins = np.arange(max(first, begin), rolling.stops[k])
        errors[k] -= fitted.added(series, units, origins) / units
    return errors


def of_all_rows(data: Prepared) -> tuple[RollingOrigins, Combination]:
    """Return rolling origins up to the end of the series, and the candidates that they validate."""
    s = data.predictor.settings
    ends = [len(series.values) for series in data.several]
    periods = seasons_of(data.several, ends, s.season)
    rolling = replace(data.rolling, stops=ends, seasons=periods)
    return rolling, selection.combined(rolling, s)


class Judged(NamedTuple):
    """The decisions that past errors make after training.

    Attributes
    ----------
    share : float
        The factor that scales the network's output.
    errors : dict of str to float
        The errors of `network_share`; empty without a network.
    test_intervals : Intervals
        Intervals of the predictor that has not seen the test part.
    combination : Combination
        The candidates of `predict`.
    intervals : Intervals
        Intervals of `predict`.
    ranks : array (K, H, C)
        Ranks of the errors of `predict`, from which sample paths are drawn.
    """

    share: float
    errors: dict[str, float]
    test_intervals: Intervals
    combination: Combination
    intervals: Intervals
    ranks: Host


def judged(
    data: Prepared, network: Predictor | None, validation: Examples | None, refit: bool
) -> Judged:
    """Return what past errors decide: whether a trained network is used, and the intervals.

    With `refit`, the candidates of `predict` are fitted to all rows.
    """
    fitted = data.predictor
    s = fitted.settings
    combination = fitted.combination
    share = 0.0
    errors = dict[str, float]()
    if network is not None and validation is not None:
        share, errors = network_share(network, validation)
        share = share if isinstance(s.candidates, str) else 1.0
        fitted = network.shared(share, combination)
    past = past_errors(fitted, data.rolling, share > 0)
    intervals = test_intervals = Intervals.of(past, s.quantiles)
    if refit:
        rolling, combination = of_all_rows(data)
        past = past_errors(replace(fitted, combination=combination), rolling, share > 0)
        intervals = Intervals.of(past, s.quantiles)
    ranks = sampling.ranks(intervals.standardized(past))
    return Judged(share, errors, test_intervals, combination, intervals, ranks)


def seasons_of(
    several: Sequence[TimeSeries], stops: Sequence[int], season: int | tuple[int, ...] | str
) -> tuple[int, ...]:
    """Return the seasons that the parameter sets; with "auto", those of the first target of the
    longest series before the rows `stops`.
    """
    if not isinstance(season, str):
        return seasons.listed(season)
    longest = int(np.argmax(stops))
    return seasons.find(several[longest].known[: stops[longest], 0])
