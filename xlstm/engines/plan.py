"""How the reference shares a CPU: a table of named rules, of which the first that applies is taken."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from xlstm.arrays import blas, threads
from xlstm.arrays.namespace import Array
from xlstm.engines.step import Step

A = TypeVar("A")
R = TypeVar("R")

# Measured on two cores. Up to so many multiplications by a recurrent weight in all steps BLAS uses one thread anyway.
TINY = blas.SMALL
# A part of the batch has at least so many sequences, and so many units: threads hand the interpreter to each other
# between calls, which has to be worth it.
COLUMNS, UNITS = 8, 8192


class Rule(NamedTuple):
    """How the reference runs on a CPU: `parts` of the batch side by side, and BLAS's threads, 0 for any."""

    name: str
    parts: int = 1
    blas: int = 0  # threads of a product of one step
    whole: int = 0  # threads of a product over all steps
    turn: bool = False  # the bits of a product depend on BLAS's threads: callers in other threads wait

    def run(self, call: Callable[[A], R], parts: Sequence[A]) -> list[R]:
        """Return what the call makes of each part, side by side where there are several."""
        if self.blas:
            tasks = [functools.partial(call, part) for part in parts]
            return threads.work(self.parts, lambda team: team.run(tasks), self.blas)
        return self._alone(lambda: [call(part) for part in parts])

    def products(self, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
        """Return the products a @ b of matrices, each over all steps."""
        if self.whole:
            return threads.work(1, lambda _: [a @ b for a, b in pairs], self.whole)
        return self._alone(lambda: [a @ b for a, b in pairs])

    def _alone(self, call: Callable[[], R]) -> R:
        return blas.in_turn(call) if self.turn else call()


def choose(step: Step, x: Array, B: int) -> Rule:
    """Return the rule for x (N, D) of B sequences.

    Raises
    ------
    ValueError
        XLSTM_NUM_THREADS is no number of threads.
    """
    threads.given()
    if step.xp is not np:
        return SOLO
    N, D = x.shape
    if step.Wh.size * N <= TINY:
        # Nothing is large enough for a second thread (bench.training_step, bench.step).
        largest = math.prod(step.Wh.shape[:-1]) * N * max(D, step.Wh.shape[-1])
        return Rule("small", turn=largest > blas.SINGLE)
    most = threads.available()
    parts = max(1, min(most, B // COLUMNS))
    if parts > 1 and 2 * parts >= most and step.P * (B // parts) >= UNITS:
        # Two parts of the batch on two cores take 0.55 of the time of one (bench.layers, T=128 B=64 H=256).
        return Rule("parts of the batch", parts, 1, most)
    return Rule("BLAS's threads", 1, most, most)


SOLO = Rule("other libraries")
