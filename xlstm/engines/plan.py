"""How the loops of a layer run: compiled or not, in how many threads, each with what part of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from xlstm.arrays import blas, threads
from xlstm.arrays.backend import Array, Namespace
from xlstm.arrays.threads import SOLO, Team

R = TypeVar("R")

# All of these were measured on two cores. Up to so many multiplications by a recurrent weight in all steps nothing is
# planned: BLAS uses one thread by itself.
TINY = blas.SMALL
# A part of the batch has at least so many sequences, and in a loop that is not compiled at least so many units:
# there threads hand the interpreter to each other between calls, which has to be worth it.
COLUMNS = 8
UNITS = 8192
# So many weights do not fit the cache of a core: two threads share the rows of each product, not the batch.
HUGE = 1 << 21


class Plan(NamedTuple):
    """For one layer, all its directions."""

    threads: int = 1  # of ours to work in
    blas: int = 0  # threads of each product meanwhile; 0 for as many as it has
    parts: int = 1  # of the batch, for each direction
    compiled: bool = False
    shared: bool = False  # each recurrent product is shared out among our threads, in a compiled loop
    turn: bool = False  # with blas 0: products are so large that their bits depend on how many it has

    @classmethod
    def of(cls, xp: Namespace, weights: Sequence[Array], D: int, P: int, B: int, N: int, compilable: bool) -> Plan:
        """For directions with recurrent `weights` of h (P, B), x (N, D), and a batch of B sequences.

        A compiled loop has threads of our own, which sleep while they wait, or one: threads of BLAS spin, and beside
        another busy program a skinny product on two of them takes up to a hundred times as long as on one. NumPy's loop
        has threads of our own where half of them or more have work; elsewhere its products are left to BLAS's threads.

        Raises
        ------
        ValueError
            XLSTM_NUM_THREADS is no number of threads, whether or not there is work for several.
        """
        W = weights[0]
        threads.given()
        if xp is not np:
            return cls(compiled=compilable)
        if W.size * N <= TINY:
            largest = math.prod(W.shape[:-1]) * N * max(D, W.shape[-1])  # multiplications of a product
            return cls(compiled=compilable, turn=largest > blas.SINGLE)
        most = threads.available()
        if compilable and W.size * N <= threads.LARGE:
            return cls(blas=1, compiled=True)
        if compilable and W.ndim == 2 and W.size > HUGE and W.size * B >= threads.LARGE and len(weights) < most:
            return cls(most, 1, compiled=True, shared=True)
        parts = max(1, min(most // len(weights), B // COLUMNS))
        work = min(most, parts * len(weights))
        busy = work == most or 1 < work >= most / 2
        if compilable:
            return cls(most, 1, parts, compiled=True)
        if busy and P * (B // parts) >= UNITS:
            return cls(most, 1, parts)
        return cls(blas=most)

    def run(self, team: Team, tasks: Sequence[Callable[[], R]]) -> list[R]:
        """The results of tasks: side by side, or one after the other where each of them takes the whole team."""
        return [task() for task in tasks] if self.shared else team.run(tasks)

    def work(self, call: Callable[[Team], R]) -> R:
        """The result of a call with the threads, while BLAS is limited."""
        if self.blas:
            return threads.work(self.threads, call, self.blas)
        return blas.in_turn(lambda: call(SOLO)) if self.turn else call(SOLO)
