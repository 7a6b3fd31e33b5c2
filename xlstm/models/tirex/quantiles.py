"""Quantiles of any level from those that a model was trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.host import Values

MOST = 10_000  # levels at most


def levels(where: str, given: Any, trained: Sequence[float]) -> tuple[float, ...]:
    """Return levels of quantiles, by default those that a model was trained for.

    Raises
    ------
    TypeError, ValueError
        They are no numbers, or one lies outside of the trained ones.
    """
    if given is None:
        return tuple(trained)
    flat = given.tolist() if isinstance(given, np.ndarray) else given
    found = checks.several(where, "quantiles", flat, "a list of numbers between 0 and 1", MOST)
    for k, level in enumerate(found):
        found[k] = checks.any_number(where, f"quantiles[{k}]", level)
        if not trained[0] <= found[k] <= trained[-1]:
            problem = f"expected {trained[0]:g} to {trained[-1]:g}, the range that the model was trained for"
            raise ValueError(f"{where}: quantiles[{k}] is {found[k]:g}, {problem}")
    return tuple(found)


def between(q: Values, trained: Sequence[float], wanted: Sequence[float]) -> Values:
    """Return quantiles (..., W) of the wanted levels from those of trained ones (..., Q), linearly between two."""
    if tuple(wanted) == tuple(trained):
        return q
    known, level = np.array(trained), np.array(wanted, dtype=np.float64)
    upper = np.minimum(np.searchsorted(known, level), len(known) - 1)
    lower = np.maximum(upper - 1, 0)
    span = known[upper] - known[lower]
    share = np.where(span > 0, (level - known[lower]) / np.where(span > 0, span, 1.0), 1.0)
    return np.where(share == 1, q[..., upper], q[..., lower] * (1 - share) + q[..., upper] * share)
