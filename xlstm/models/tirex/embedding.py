"""Embeddings of series: what the blocks of a TiRex make of a series, as the published package's classifiers use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.namespace import Params
from xlstm.cells.normalization import normalize
from xlstm.data import frames
from xlstm.data.host import Values
from xlstm.data.panels import Roles
from xlstm.models.tirex import series, tables, windows
from xlstm.models.tirex.batching import batches
from xlstm.models.tirex.running import Starts

TINY = 1e-30  # a block's vector of zeros is divided by it


def embed(model: Any, params: Params, given: Any, batch_size: int, targets: Any, series_id: Any) -> Any:
    """Run `embed` of a TiRex, which describes the arguments."""
    where = f"{type(model).__name__}.embed"
    batch_size = checks.size(where, "batch_size", batch_size)
    if tables.is_one(where, "series", given, targets=targets, series_id=series_id):
        named = Named.of(where, model, given, Roles(targets, series_id=series_id))
        made = _features(where, model, params, named.rows, batch_size).T
        columns = dict(zip(names(model, len(named.rows[0])), made, strict=True))
        return frames.plain_like(given, {named.column: named.names, **columns})
    found = series.read(where, given, 2)
    features = _features(where, model, params, found.rows, batch_size)
    return features[0] if found.single else features


class Named(NamedTuple):
    """The series of a table: those that `series_id` names, with all of their targets, or else each column by itself.

    Attributes
    ----------
    column : str
        The column of their names.
    names : array (S,)
    rows : list of array (V, L)
    """

    column: str
    names: np.ndarray[Any, Any]
    rows: list[Values]

    @classmethod
    def of(cls, where: str, model: Any, table: Any, roles: Roles) -> Named:
        """Return the series of a table; errors are those of `forecast`, and name the caller, `where`."""
        found = tables.Table.of(where, model, table, roles)
        if found.given.id_name:
            return cls(found.given.id_name, np.array(found.given.labels), [track.values.T for track in found.found])
        return cls("series", np.array(found.given.names), [column[None] for column in found.columns])


def names(model: Any, variates: int) -> list[str]:
    """Return the names of features: "block3_unit17", and of several variates "block3_variate1_unit17"."""
    each = [f"_variate{v}" for v in range(variates)] if variates > 1 else [""]
    return [f"block{k}{v}_unit{d}" for k in range(model.num_blocks) for v in each for d in range(model.size)]


def _features(where: str, model: Any, params: Params, each: Sequence[Values], batch_size: int) -> Values:
    """Return the features of series (V, L), (S, blocks * V * D)."""
    counts = {len(rows) for rows in each}
    if len(counts) > 1:
        raise ValueError(f"{where}: series have {sorted(counts)} variates, expected one number of them")
    means = _means(Starts(model, params, kept=False), [row for rows in each for row in rows], batch_size)
    norms = np.linalg.norm(means, axis=-1, keepdims=True)
    unit = (means / np.maximum(norms, TINY)).reshape(len(each), *counts, *means.shape[1:])  # (S, V, blocks, D)
    features: Values = normalize(np, unit.swapaxes(1, 2).reshape(len(each), -1), -1)[0]
    return features


def _means(starts: Starts, rows: list[Values], batch_size: int) -> Values:
    """Return the mean of the output of each block over the tokens of each row, (R, blocks, D), in float64."""
    model: Any = starts.model
    P, T = model.patch_size, model.context // model.patch_size
    tokens = np.array([min(T, -(-len(row) // P)) for row in rows])  # those that hold values of each row
    x = np.stack([windows.last(row, model.context) for row in rows])
    leads = np.minimum([windows.leading(row, P, T - 1) for row in x], T - tokens)
    found = np.empty((len(rows), model.num_blocks, model.size))
    for batch in batches(leads, np.ones_like(leads), T, batch_size):
        some = x[batch.entries]
        scaled = model.scaler.scaled(some, model.scaler.units(some))
        given = like(windows.tokens(scaled, P)[:, batch.lead :], starts.like)
        levels, _ = model.hidden(starts.params, given, starts.after(batch.lead, len(some)))
        for k, level in enumerate(levels[1:]):
            host = to_numpy(level).astype(np.float64)
            found[batch.entries, k] = [
                row[-n:].mean(axis=0) for row, n in zip(host, tokens[batch.entries], strict=True)
            ]
    return found
