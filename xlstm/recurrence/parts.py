"""What a pass over a part of the batch leaves behind, run by run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from xlstm.arrays.backend import Array, Namespace, device_of
from xlstm.engines.runs import Run, Runs, reshape

V = TypeVar("V")


class Later(Sequence[V]):
    """A sequence whose items are made whenever they are asked for."""

    def __init__(self, make: Callable[[int], V], length: int) -> None:
        self.make, self.length = make, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: Any) -> Any:
        if not 0 <= k < self.length:
            raise IndexError(k)
        return self.make(k)


class Part(NamedTuple):
    """What a part of the batch went through, run by run."""

    runs: list[Run]
    starts: Sequence[Array]  # h at the start of each run, (P, n)
    ends: Sequence[Sequence[Array]]  # the states at the end of each run
    kept: Sequence[list[Array]]  # of each run: carried states before, and what was saved, at every step: (k, ..., n)
    final: Sequence[Array]  # the state of each sequence at its own end


def beside(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Columns side by side; one array with any is returned as it is."""
    some = [a for a in arrays if a.shape[1]] or arrays[:1]
    return some[0] if len(some) == 1 else xp.concat(some, axis=1)


def before(xp: Namespace, hs: Array, runs: Runs) -> Array:
    """h before every step, (N, P), from hs: h of the sequences of the first step, then that after every step."""
    N = sum(k * n for k, n in runs)
    if len(runs) == 1:
        return hs[:N, :]
    widths = np.repeat([n for _, n in runs], [k for k, _ in runs])
    starts = np.cumsum(widths) - widths
    # Of step t the rows of hs begin where step t - 1 does in y.
    back = starts - np.concatenate(([0], starts[:-1] + runs[0][1]))
    return xp.take(hs, xp.asarray(np.arange(N) - np.repeat(back, widths), device=device_of(hs)), axis=0)


def put(xp: Namespace, rows: Array, run: Run, values: Array) -> None:
    """Write (k, n, ...) to the rows of a run."""
    if run.n == run.width:
        rows[run.at : run.at + run.k * run.n, ...] = reshape(xp, values, (run.k * run.n, *values.shape[2:]))
    else:
        run.steps(xp, rows, 0, run.k)[...] = values
