"""Series made ready for a forecaster: parts, scaling, the linear baseline, the network, and examples to train on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from xlstm.data.covariates import TimeSeries
from xlstm.data.host import Values, check_reach
from xlstm.data.series_windows import split
from xlstm.estimators import linear_baseline, predictor, seasons
from xlstm.estimators.examples import Examples, width
from xlstm.estimators.linear_baseline import LinearBaseline
from xlstm.estimators.scaling import Origins, Scaling, names
from xlstm.estimators.settings import Settings
from xlstm.models.sequence import SequenceModel, sequence_model

WINDOW = 48  # steps that a network looks back by default, where there are enough rows
Parts = dict[str, slice]


class Lined(NamedTuple):
    """Tracks with their scaling and a linear_baseline, and its error on the validation part."""

    tracks: list[TimeSeries]
    parts: list[Parts]
    scaling: Scaling
    line: LinearBaseline
    error: float


class Prepared(NamedTuple):
    """All that the parts of training share."""

    settings: Settings
    tracks: list[TimeSeries]
    scaling: Scaling
    line: LinearBaseline
    model: SequenceModel
    train: Examples
    validation: Examples
    spread: Values


def longest(rows: int, horizon: int) -> int:
    """Return the longest window that fits into a series of so many rows, with the horizon; below 2 where none does."""
    if rows < 3:
        return 0
    train, validation, test = split(rows)
    return train.stop - horizon if horizon <= min(test.start - validation.start, rows - test.start) else 0


def parts_of(rows: int, settings: Settings, name: str = "the series") -> Parts:
    """Return the first rows after the windows of each part of a series: those of a part predict into it.

    Raises
    ------
    ValueError
        The window and the horizon do not fit, which names the series and the settings that would.
    """
    window, horizon = settings.window, settings.horizon
    fits = longest(rows, horizon)
    if fits < window:
        least = max(rows + 1, 5 * horizon - 3, 5 * (window + horizon) // 3 - 3)
        need = next(n for n in itertools.count(least) if longest(n, horizon) >= window)
        advice = f"a window of at most {fits}" if fits >= 2 else "a shorter horizon"
        problem = f"a window of {window} and a horizon of {horizon} need {need} rows, {name} has {rows}"
        raise ValueError(f"Forecaster: {problem}; expected more rows, or {advice}")
    return {name: slice(max(window, part.start), part.stop) for name, part in split(rows)._asdict().items()}


def origins_of(rows: slice) -> Origins:
    """Return rows as an array."""
    return np.arange(rows.start, rows.stop)


def lined(tracks: list[TimeSeries], ids: Sequence[str], settings: Settings, dtype: str) -> Lined:
    """Return checked tracks, whose names are `ids` if they have some, with their scaling and the best linear baseline.

    Raises
    ------
    ValueError
        A series is too short or constant, a part has nothing to predict, or a value is out of range.
    """
    s, named = settings, names(ids, len(tracks))
    parts = [parts_of(len(track.values), s, name) for track, name in zip(tracks, named, strict=True)]
    stops = [part["train"].stop for part in parts]
    scaling = Scaling.fit(tracks, ids, s.window, stops)
    units = scaling.fitted()
    for track, unit, part, name in zip(tracks, units, parts, named, strict=True):
        check_reach("Forecaster", track.known, unit, dtype, track.begin)
        for kind, rows in part.items():
            there = ~np.isnan(linear_baseline.targets(track, origins_of(rows), s.horizon, rows.stop))
            if not np.all(np.any(there, axis=0)):
                raise ValueError(f"Forecaster: the {kind} part of {name} has no values to predict")
    if s.linear_baseline == 0:
        lines = [linear_baseline.none(1, scaling, s.horizon)]
    else:
        origins = [origins_of(part["train"]) for part in parts]
        usual = [n for n in (s.window, 2 * s.window, 3 * s.window) if n == s.window or n <= min(stops) // 3]
        orders = usual if isinstance(s.linear_baseline, str) else [s.linear_baseline]
        lines = [
            line
            for order in orders
            for line in linear_baseline.fit(
                tracks, scaling, units, origins, stops, s.horizon, order, linear_baseline.PENALTIES
            )
        ]
    errors = [linear_baseline.error(line, tracks, scaling, units, parts) for line in lines]
    best = int(np.argmin(errors))
    return Lined(tracks, parts, scaling, lines[best], errors[best])


def prepared(variants: Sequence[list[TimeSeries]], ids: Sequence[str], settings: Settings, dtype: str) -> Prepared:
    """Return a network for tracks, and the examples to train and to judge it by.

    The variant of the tracks is taken whose linear baseline forecasts the validation part best.

    Raises
    ------
    ValueError
        As `lined` does.
    """
    if settings.window is None:
        shortest = min(len(track.values) for track in variants[0])
        settings = replace(settings, window=min(WINDOW, max(2, split(max(3, shortest)).train.stop // 2)))
    found = min((lined(tracks, ids, settings, dtype) for tracks in variants), key=lambda one: one.error)
    examples: list[Examples] = []
    spread: Values | None = None
    for name in ("train", "validation"):
        at = [origins_of(part[name]) for part in found.parts]
        stops = [part[name].stop for part in found.parts]
        made, spread = predictor.examples(found.tracks, found.scaling, found.line, settings, at, stops, spread)
        examples.append(made)
    assert spread is not None
    train, validation = examples
    model = network(settings, found.scaling)
    return Prepared(settings, found.tracks, found.scaling, found.line, model, train, validation, spread)


def network(settings: Settings, scaling: Scaling) -> SequenceModel:
    """Return the network of a forecaster: recurrent layers and a head for each step ahead, target and quantile."""
    s = settings
    outputs = s.horizon * len(scaling.units[0]) * (1 + len(s.quantiles))
    sizes = {name: getattr(s, name) for name in ("hidden_size", "num_layers", "bidirectional", "dropout")}
    return sequence_model("Forecaster", s.cell, width(scaling), outputs, True, **sizes)


def season_of(tracks: Sequence[TimeSeries], asked: int | str) -> int:
    """Return the season that was asked for, or that of the first target in the training part of the longest series."""
    if not isinstance(asked, str):
        return asked
    track = max(tracks, key=lambda one: len(one.values))
    return seasons.find(track.known[split(len(track.values)).train, 0])
