"""Embeddings of series: what the blocks of a TiRex make of a series, as the published package's classifiers use it."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.namespace import Params
from xlstm.cells.normalization import normalize
from xlstm.data.host import Values
from xlstm.models.tirex import series, windows
from xlstm.models.tirex.batching import batches
from xlstm.models.tirex.running import Starts

TINY = 1e-30  # a block's vector of zeros is divided by it


def embed(model: Any, params: Params, given: Any, batch_size: int) -> Values:
    """Run `embed` of a TiRex, which describes the arguments."""
    where = f"{type(model).__name__}.embed"
    batch_size = checks.size(where, "batch_size", batch_size)
    found = series.read(where, given, 2)
    counts = {len(rows) for rows in found.rows}
    if len(counts) > 1:
        raise ValueError(f"{where}: series have {sorted(counts)} variates, expected one number of them")
    means = _means(Starts(model, params, kept=False), [row for rows in found.rows for row in rows], batch_size)
    norms = np.linalg.norm(means, axis=-1, keepdims=True)
    unit = (means / np.maximum(norms, TINY)).reshape(len(found.rows), *counts, *means.shape[1:])  # (S, V, blocks, D)
    flat = unit.swapaxes(1, 2).reshape(len(found.rows), -1)
    features: Values = normalize(np, flat, -1)[0]
    return features[0] if found.single else features


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
