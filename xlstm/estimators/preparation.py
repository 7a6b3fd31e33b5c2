"""Series made ready for a forecaster: parts, scaling, the linear highway, the network, and examples to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xlstm.data.host import Values
from xlstm.data.preparation import split
from xlstm.data.tracks import Track
from xlstm.data.values import check_reach
from xlstm.estimators import highway, predictor, seasons
from xlstm.estimators.examples import Examples, width
from xlstm.estimators.highway import Highway
from xlstm.estimators.scaling import Origins, Scaling
from xlstm.estimators.settings import Settings
from xlstm.models.network import sequence_model
from xlstm.models.sequence import SequenceModel

Parts = dict[str, slice]


class Lined(NamedTuple):
    """Tracks with their scaling and a highway, and its error on the validation part."""

    tracks: list[Track]
    parts: list[Parts]
    scaling: Scaling
    line: Highway
    error: float


class Prepared(NamedTuple):
    """All that the parts of training share."""

    settings: Settings
    tracks: list[Track]
    scaling: Scaling
    line: Highway
    model: SequenceModel
    train: Examples
    validation: Examples
    spread: Values


def parts_of(rows: int, settings: Settings) -> Parts:
    """Return the first rows after the windows of each part of a series: those of a part predict into it."""
    window, horizon = settings.window, settings.horizon
    found = {}
    for name, part in split(rows)._asdict().items():
        first = max(window, part.start)
        if first + horizon > part.stop:
            need = horizon if part.start else window + horizon
            raise ValueError(
                f"Forecaster: a window of {window} and a horizon of {horizon} need {need} rows "
                f"in rows {part.start + 1} to {part.stop} of the series"
            )
        found[name] = slice(first, part.stop)
    return found


def origins_of(rows: slice) -> Origins:
    """Return rows as an array."""
    return np.arange(rows.start, rows.stop)


def lined(tracks: list[Track], ids: Sequence[str], settings: Settings, dtype: str) -> Lined:
    """Return checked tracks, whose names are `ids` if they have some, with their scaling and the best highway.

    Raises
    ------
    ValueError
        A series is too short or constant, a part has nothing to predict, or a value is out of range.
    """
    s = settings
    parts = [parts_of(len(track.values), s) for track in tracks]
    stops = [part["train"].stop for part in parts]
    scaling = Scaling.fit(tracks, ids, s.window, stops)
    units = scaling.fitted()
    for track, unit, part in zip(tracks, units, parts, strict=True):
        check_reach("Forecaster", track.known, unit, dtype)
        for name, rows in part.items():
            there = ~np.isnan(highway.targets(track, origins_of(rows), s.horizon, rows.stop))
            if not np.all(np.any(there, axis=0)):
                raise ValueError(f"Forecaster: the {name} part of the series has no values to predict")
    if s.highway == 0:
        lines = [highway.none(1, scaling, s.horizon)]
    else:
        origins = [origins_of(part["train"]) for part in parts]
        usual = [n for n in (s.window, 2 * s.window, 3 * s.window) if n == s.window or n <= min(stops) // 3]
        orders = usual if isinstance(s.highway, str) else [s.highway]
        lines = [
            line
            for order in orders
            for line in highway.fit(tracks, scaling, units, origins, stops, s.horizon, order, highway.PENALTIES)
        ]
    errors = [highway.error(line, tracks, scaling, units, parts) for line in lines]
    best = int(np.argmin(errors))
    return Lined(tracks, parts, scaling, lines[best], errors[best])


def prepared(variants: Sequence[list[Track]], ids: Sequence[str], settings: Settings, dtype: str) -> Prepared:
    """Return a network for tracks, and the examples to train and to judge it by.

    The variant of the tracks is taken whose highway forecasts the validation part best.

    Raises
    ------
    ValueError
        As `lined` does.
    """
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


def season_of(tracks: Sequence[Track], asked: int | str) -> int:
    """Return the season that was asked for, or that of the first target in the training part of the longest series."""
    if not isinstance(asked, str):
        return asked
    track = max(tracks, key=lambda one: len(one.values))
    return seasons.find(track.known[split(len(track.values)).train, 0])
