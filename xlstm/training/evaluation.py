"""The mean loss of a model over data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xlstm.arrays.namespace import Params
from xlstm.data.batches import BATCHES, Batches
from xlstm.training.feed import Feed, Loss, loss_of


def mean_loss(model: Any, params: Params, data: Batches, loss: Loss | None, stopped: Callable[[], bool]) -> float:
    """Return the mean loss, or NaN where `stopped` says after a batch that nobody needs it any more."""
    feed = Feed.of("evaluate", model, params)
    BATCHES("evaluate", "data", data)
    loss = loss_of("evaluate", model, loss)
    total, count, state = 0.0, 0.0, None
    for batch in feed.batches(data, "evaluate", ": batch"):
        with np.errstate(over="ignore", invalid="ignore"):  # the caller sees it in the result
            y, state, _ = feed.forward(params, batch, state, train=False)
            value, _ = loss(y, batch.target, batch.mask)
        total += batch.weight * float(value)
        count += batch.weight
        if stopped():
            return math.nan
    return total / count
