"""How the network of a forecaster is trained: by a validation part, then on all rows."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import Params
from xlstm.estimators import base, linear_baseline, predictor
from xlstm.estimators.examples import Examples
from xlstm.estimators.predictor import Predictor
from xlstm.estimators.preparation import Prepared
from xlstm.training import Trained


def train(made: Prepared, backend: Backend, data: Examples, start: Params | None, **options: Any) -> Trained:
    """Train the network of a forecaster.

    Parameters
    ----------
    made : Prepared
    backend : Backend
    data : Examples
    start : dict of str to array, optional
        First weights, where they have the shapes of the network's.
    options : dict
        Further arguments of `training.train`.

    Returns
    -------
    Trained
    """
    s = made.settings
    params = predictor.begin(made.model, s, data, backend)
    if start is not None and {n: p.shape for n, p in start.items()} == {n: p.shape for n, p in params.items()}:
        params = {name: backend.asarray(p) for name, p in start.items()}
    loss = functools.partial(predictor.loss, s.quantiles)
    return base.learn(s, made.model, params, data, backend, loss=loss, **options)


def judge(made: Prepared, backend: Backend, params: Params) -> Predictor:
    """Return the predictor of the network that has not seen the test part."""
    return Predictor(made.settings, backend, made.scaling, made.line, made.spread, made.model, params)


def refitted(made: Prepared, backend: Backend, start: Params | None, epochs: int, progress: Any) -> Predictor:
    """Return a predictor whose network and linear baseline are fitted to all rows, the network for so many epochs."""
    s, tracks, line = made.settings, made.tracks, made.line
    stops = [len(track.values) for track in tracks]
    origins = [np.arange(s.window, stop) for stop in stops]
    if s.linear_baseline != 0:
        units = made.scaling.fitted()
        penalties = [(line.ridge, line.light)]
        (line,) = linear_baseline.fit(tracks, made.scaling, units, origins, stops, s.horizon, line.order, penalties)
    data, spread = predictor.examples(tracks, made.scaling, line, s, origins, stops)
    trained = train(made, backend, data, start, epochs=max(1, epochs), progress=progress)
    return Predictor(s, backend, made.scaling, line, spread, made.model, trained.params)
