"""Batches prepared in a thread while others are trained with."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data.batches import BATCHES, Batch, Batches


@dataclass(frozen=True)
class Prefetch:
    """Other data, whose next batches are prepared in a thread.

    Batches, their order and the random numbers that they take are those of the data alone, bit for bit. An error in
    the data is raised where its batch would have come. The thread ends with the epoch, or when its batches are no
    longer asked for.

    This is for data that read files or wait for something else. Data that hold arrays gain nothing: their batches
    take about 2 % of the time in which a small LSTM trains with them (`Windows`).

    Parameters
    ----------
    data : Batches
        Data whose batches take time to come.
    ahead : int
        Batches that are prepared ahead.

    Raises
    ------
    TypeError, ValueError
        These are no data, or `ahead` is no whole number from 1 up.
    """

    data: Batches
    ahead: int = 2

    def __post_init__(self) -> None:
        checks.fields(self, data=BATCHES, ahead=checks.size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.data)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch of the data; after each batch `rng` is in the state that the data alone would leave it in."""
        own = copy.deepcopy(rng)  # the thread draws ahead of the caller
        inner = iter(self.data.batches(own))
        thread = ThreadPoolExecutor(1, "xlstm-prefetch")
        try:
            coming = deque(thread.submit(_next, inner, own) for _ in range(self.ahead))
            while True:
                batch, state = coming.popleft().result()
                if rng is not None:
                    rng.bit_generator.state = state
                if batch is None:
                    return
                coming.append(thread.submit(_next, inner, own))
                yield batch
        finally:
            thread.shutdown(cancel_futures=True)  # waits for the batch that is being prepared


def _next(inner: Iterator[Batch], rng: np.random.Generator | None) -> tuple[Batch | None, Any]:
    """Return the next batch, or None at the end, and the state of `rng` after it."""
    batch = next(inner, None)
    return batch, None if rng is None else rng.bit_generator.state
