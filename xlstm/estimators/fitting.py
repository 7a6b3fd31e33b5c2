"""How a forecaster is fitted: parts of series, the choice of candidates, examples, and the training
of the network.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import Params
from xlstm.data.host import Values, check_reach
from xlstm.data.series_windows import split
from xlstm.data.time_series import TimeSeries
from xlstm.estimators import base, baselines, predictor, selection
from xlstm.estimators.predictor import Examples, Predictor, Settings
from xlstm.estimators.selection import Combination, Trial
from xlstm.estimators.series_scaling import Scaling, names_of
from xlstm.training import Trained

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
    return (
        train.stop - horizon
        if horizon <= min(test.start - validation.start, rows - test.start)
        else 0
    )


def parts_of(rows: int, settings: Settings, name: str = "the series") -> Parts:
    """Return the first rows after the windows of each part of a series: those of a part predict
    into it.

    If the window and the horizon do not fit, a ValueError names the series and the settings that
    would.
    """
    window = settings.window
    horizon = settings.horizon
    fits = longest(rows, horizon)
    if fits < window:
        least = max(rows + 1, 5 * horizon - 3, 5 * (window + horizon) // 3 - 3)
        need = next(n for n in itertools.count(least) if longest(n, horizon) >= window)
        advice = f"a window of at most {fits}" if fits >= 2 else "a shorter horizon"
        problem = (
            f"a window of {window} and a horizon of {horizon} need {need} rows, {name} has {rows}"
        )
        raise ValueError(f"Forecaster: {problem}; expected more rows, or {advice}")
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
        settings = replace(
            settings, window=min(WINDOW, max(2, split(max(3, shortest)).train.stop // 2))
        )
    tried = [_candidate(several, ids, settings, backend.dtype) for several in variants]
    _, several, parts, scaling, combination = min(tried, key=lambda one: one[0])
    predicts = Predictor(
        settings, backend, scaling, combination, None, predictor.network(settings, scaling), {}
    )
    data: dict[str, Examples] = {}
    for name in ("train", "validation"):
        origins, stops = zip(
            *((np.array(part[name]), part[name].stop) for part in parts), strict=True
        )
        data[name] = predictor.examples(predicts, several, origins, stops)
        predicts = data[name].predictor
    return data


def _candidate(
    several: list[TimeSeries], ids: Sequence[str], settings: Settings, dtype: str
) -> tuple[float, list[TimeSeries], list[Parts], Scaling, Combination]:
    """Return the error of the best candidate before the test part, series after checks, their
    parts, scaling, and all.

    The candidates are fitted to the training part.
    """
    s = settings
    named = names_of(ids, len(several))
    parts = [
        parts_of(len(series.values), s, name) for series, name in zip(several, named, strict=True)
    ]
    stops = [part["train"].stop for part in parts]
    scaling = Scaling.fit(several, ids, s.window, stops)
    for series, unit, part, name in zip(several, scaling.units, parts, named, strict=True):
        check_reach("Forecaster", series.known, unit, dtype, series.begin)
        for kind, rows in part.items():
            there = ~np.isnan(baselines.targets(series, np.array(rows), s.horizon, rows.stop))
            if not np.all(np.any(there, axis=0)):
                raise ValueError(f"Forecaster: the {kind} part of {name} has no values to predict")
    known = Trial(several, scaling, [part["validation"].stop for part in parts], s.horizon)
    found = selection.combined(known, s)
    before = Trial(several, scaling, stops, s.horizon)
    fitted = {name: selection.refit(before, part) for name, part in found.parts.items()}
    return float(np.min(found.errors)), several, parts, scaling, replace(found, parts=fitted)


def train(data: Examples, start: Params | None, **options: Any) -> Trained:
    """Train the network of examples; it begins with `start` where those weights have the shapes of
    the network's.

    The options are those of `training.train`.
    """
    one = data.predictor
    params = predictor.first_weights(one, data)
    if start is not None and {n: p.shape for n, p in start.items()} == {
        n: p.shape for n, p in params.items()
    }:
        params = {name: one.backend.asarray(p) for name, p in start.items()}
    loss = functools.partial(predictor.loss, one.settings.quantiles)
    return base.learn(one.settings, one.model, params, data, one.backend, loss=loss, **options)


def tries_network(data: Examples) -> bool:
    """Return whether a network is to be trained: where it is named, or where there are enough
    windows to choose it.
    """
    named = data.predictor.settings.candidates
    return len(data.origins) >= ENOUGH if isinstance(named, str) else "network" in named


def network_errors(one: Predictor, data: Examples) -> dict[str, float]:
    """Return the errors of the average of the other candidates, and of what the network makes of
    it, on examples.

    They are root mean squares, relative to that of repeating the last value.
    """
    squares: dict[str, list[Values]] = {"repeated": [], "average": [], "network": []}
    for k, (series, units) in enumerate(zip(data.several, one.scaling.units, strict=True)):
        every = data.origins[data.series == k]
        for origins in np.split(every, range(baselines.CHUNK, len(every), baselines.CHUNK)):
            truth = baselines.targets(series, origins, one.settings.horizon, int(every[-1]) + 1)
            x, average, scale = one.before(series, units, origins)
            network, _, _ = one.finished(x, average, scale)
            found = {
                "repeated": series.known[origins - 1, None],
                "average": average,
                "network": network,
            }
            for name, ahead in found.items():
                squares[name].append(((ahead - truth) / scale[:, None]) ** 2)
    repeated, *errors = (
        float(np.sqrt(np.nanmean(np.concatenate(parts)))) for parts in squares.values()
    )
    return dict(
        zip(("average", "network"), np.divide(errors, max(repeated, 1e-12)).tolist(), strict=True)
    )


def alone(one: Predictor, data: Examples) -> Predictor:
    """Return a predictor whose network adds nothing, but knows the quantiles of the targets of
    examples.
    """
    params = predictor.first_weights(one, data)
    return replace(one, params=params | {"head.W": 0 * params["head.W"]})


def refitted(data: Examples) -> Examples:
    """Return examples of all rows of the series of other examples, with candidates that are judged
    anew by them.
    """
    one = data.predictor
    s = data.predictor.settings
    several = data.several
    stops = [len(series.values) for series in several]
    trial = Trial(several, one.scaling, stops, s.horizon)
    found = selection.combined(trial, s)
    origins = [np.arange(s.window, stop) for stop in stops]
    return predictor.examples(replace(one, combination=found, spread=None), several, origins, stops)


def season_of(several: Sequence[TimeSeries], season: int | str) -> int:
    """Return a season that is given, or that of the first target in the training part of the
    longest series.
    """
    if not isinstance(season, str):
        return season
    series = max(several, key=lambda one: len(one.values))
    return baselines.season(series.known[split(len(series.values)).train, 0])
