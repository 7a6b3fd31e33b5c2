"""How a forecaster is fitted: parts of series, the choice of candidates, examples, and the training
of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import Params
from xlstm.data.host import Values
from xlstm.data.series_windows import split
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import base, baselines, predictor, selection
from xlstm.estimators.predictor import Examples, Predictor, Settings
from xlstm.estimators.selection import RollingOrigins
from xlstm.estimators.series_scaling import SeriesScaling, check_reach, names_of
from xlstm.training import Interrupted, Terminated, Trained

ENOUGH = 64  # windows to train on from which on a network is tried
GAIN = 0.99  # greatest error with the network, as a share of that without, at which it is used
WINDOW = 48  # steps that a network looks back by default, where there are enough rows
Parts = dict[str, range]


def longest(rows: int, horizon: int) -> int:
    """Return the longest window that fits into a series of so many rows, with the horizon; below 2
    where none does.
    """
    if rows < 3:
        return 0
    train, validation, test = split(rows)
    if horizon > min(test.start - validation.start, rows - test.start):
        return 0
    return int(train.stop) - horizon


def parts_of(rows: int, settings: Settings, name: str = "the series") -> Parts:
    """Return the first rows after the windows of each part of a series: those of a part predict
    into it.

    If the window and the horizon do not fit, a ValueError names the series and a window that would.
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


def prepared(
    variants: Sequence[list[TimeSeries]], ids: Sequence[str], settings: Settings, backend: Backend
) -> dict[str, Examples]:
    """Return the examples to fit a network to, by "train" and "validation", of series with `ids` as
    names, if any.

    Their predictor has no weights yet. The variant of the series is taken whose best candidate has
    the least error from rolling origins. A ValueError says that a series is too short or constant,
    that a part has nothing to predict, or that a value is out of range.
    """
    if settings.window is None:
        shortest = min(len(series.values) for series in variants[0])
        half = split(max(3, shortest)).train.stop // 2
        settings = replace(settings, window=min(WINDOW, max(2, half)))
    tried = [_variant(several, ids, settings, backend) for several in variants]
    several, parts, predicts = min(
        tried, key=lambda variant: min(variant[2].combination.every_error.values())
    )
    data: dict[str, Examples] = {}
    for name in ("train", "validation"):
        origins = [np.array(part[name]) for part in parts]
        stops = [part[name].stop for part in parts]
        data[name] = predictor.examples(predicts, several, origins, stops)
        predicts = data[name].predictor
    return data


def _variant(
    several: list[TimeSeries], ids: Sequence[str], settings: Settings, backend: Backend
) -> tuple[list[TimeSeries], list[Parts], Predictor]:
    """Return series after checks, with or without features of the calendar, their parts, and a
    predictor without weights, whose candidates are fitted to the training part.
    """
    s = settings
    names = names_of(ids, len(several))
    parts = [
        parts_of(len(series.values), s, name) for series, name in zip(several, names, strict=True)
    ]
    stops = [part["train"].stop for part in parts]
    scaling = SeriesScaling.fit(several, ids, s.window, stops)
    for series, unit, part, name in zip(several, scaling.units, parts, names, strict=True):
        check_reach(series, unit, backend.dtype)
        for kind, rows in part.items():
            there = ~np.isnan(baselines.targets(series, np.array(rows), s.horizon, rows.stop))
            if not np.all(np.any(there, axis=0)):
                raise ValueError(f"Forecaster: the {kind} part of {name} has no values to predict")
    test_begins = [part["validation"].stop for part in parts]
    combination = selection.combined(RollingOrigins(several, scaling, test_begins, s.horizon), s)
    training = RollingOrigins(several, scaling, stops, s.horizon)
    fitted = {
        name: validated._replace(candidate=selection.refit(training, validated.candidate))
        for name, validated in combination.candidates.items()
    }
    combination = replace(combination, candidates=fitted)
    model = predictor.network(s, scaling)
    return several, parts, Predictor(s, backend, scaling, combination, None, None, model, {})


def train(
    data: Examples, start: Params | None, **options: Any
) -> tuple[Trained, Interrupted | Terminated | None]:
    """Train the network of examples, as `base.learn` does; it begins with `start` where those
    weights have the shapes of the network's.
    """
    fitted = data.predictor
    params = predictor.first_weights(fitted)
    if start is not None and _shapes(start) == _shapes(params):
        params = {name: fitted.backend.asarray(array) for name, array in start.items()}
    return base.learn(fitted.settings, fitted.model, params, data, fitted.backend, **options)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in params.items()}


def network_errors(fitted: Predictor, data: Examples) -> dict[str, float]:
    """Return the errors of the "average" of the other candidates, and of what the "network" makes
    of it, on examples.

    They are root mean squares, relative to that of repeating the last value.
    """
    squares = []  # (3, M, H, C): those of the last value, of the average and with the network
    for k, (series, units) in enumerate(zip(data.several, fitted.scaling.units, strict=True)):
        every = data.origins[data.series == k]
        for origins in np.split(every, range(baselines.CHUNK, len(every), baselines.CHUNK)):
            truth = baselines.targets(series, origins, fitted.settings.horizon, int(every[-1]) + 1)
            x, average, scale = fitted.before(series, units, origins)
            network = fitted.finished(x, average, scale)
            last = np.broadcast_to(series.known[origins - 1, None], average.shape)
            squares.append(((np.stack((last, average, network)) - truth) / scale[:, None]) ** 2)
    naive, *errors = (float(np.sqrt(np.nanmean(part))) for part in np.concatenate(squares, axis=1))
    without, beside = (error / max(naive, 1e-12) for error in errors)
    return {"average": without, "network": beside}


def alone(fitted: Predictor) -> Predictor:
    """Return a predictor whose network adds nothing."""
    return replace(fitted, params=predictor.first_weights(fitted, 0.0))


def past_errors(
    fitted: Predictor, several: Sequence[TimeSeries], stops: Sequence[int], network: bool
) -> list[Values]:
    """Return errors (M, H, C) of forecasts of each series, in units, with truths before the rows
    `stops`; NaN where the truth is not known.

    They are those of the average of the other candidates from rolling origins, or of the network
    from the validation part on. The network is not fitted to that part, but stopped by it.
    """
    s = fitted.settings
    if not network:
        return RollingOrigins(several, fitted.scaling, stops, s.horizon).errors(fitted.combination)
    errors = []
    for series, units, stop in zip(several, fitted.scaling.units, stops, strict=True):
        first = parts_of(len(series.values), s)["validation"].start
        origins = np.arange(max(first, stop - selection.ORIGINS), stop)
        truth = baselines.targets(series, origins, s.horizon, stop)
        errors.append((truth - fitted.forecast(series, units, origins)) / units)
    return errors


def refitted(data: Examples) -> Examples:
    """Return examples of all rows of the series of other examples, with candidates that are
    validated anew by them.
    """
    fitted = data.predictor
    s = fitted.settings
    stops = [len(series.values) for series in data.several]
    rolling = RollingOrigins(data.several, fitted.scaling, stops, s.horizon)
    origins = [np.arange(s.window, stop) for stop in stops]
    fitted = replace(fitted, combination=selection.combined(rolling, s), spread=None)
    return predictor.examples(fitted, data.several, origins, stops)


def season_of(several: Sequence[TimeSeries], season: int | str) -> int:
    """Return a season that is set, or that of the first target in the training part of the longest
    series.
    """
    if not isinstance(season, str):
        return season
    longest = max(several, key=lambda series: len(series.values))
    return baselines.season(longest.known[split(len(longest.values)).train, 0])
