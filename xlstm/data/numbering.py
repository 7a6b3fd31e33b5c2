"""Whole numbers that count the rows of a table: their step, those that follow, and where others lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def step(labels: Any) -> int:
    """Return the step of whole numbers (N,) that rise by the same one from row to row; 0 where labels are others."""
    if labels.dtype.kind not in "iu" or len(labels) < 2:
        return 0
    every = int(labels[1]) - int(labels[0])
    return every if every > 0 and np.all(np.diff(labels.astype(np.int64)) == every) else 0


def counts(rows: Sequence[Any]) -> bool:
    """Return whether the labels of several series, each (N,), count time: they have one step, and end with one number.

    Those of series below each other that only number the rows of their table end with different numbers.
    """
    ends = {(step(labels), labels[-1]) for labels in rows}
    return len(ends) == 1 and min(ends)[0] > 0


def after(labels: Any, steps: int, passed: int = 0) -> Any:
    """Return labels of `steps` rows that begin `passed` rows after the last one.

    They are the next numbers in the step of the labels, or in steps of 1 where they have none; after other labels they
    are the numbers of the rows.
    """
    last = int(labels[-1]) if labels.dtype.kind in "iu" else len(labels) - 1
    return last + (step(labels) or 1) * (passed + np.arange(1, steps + 1))


def steps_after(labels: Any, later: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many steps after the last label each of some numbers lies; 0 for one that is NaN or on no step."""
    known, every = ~np.isnan(later), step(labels)
    ticks = np.where(known, later, 0).astype(np.int64) - labels[-1:].astype(np.int64)
    return np.where(known & (ticks % every == 0), ticks // every, 0)
