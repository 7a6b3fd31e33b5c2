"""How the steps of one direction share a CPU: a table of named rules, of which the first that applies is taken."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from xlstm.arrays import blas, threads
from xlstm.arrays.namespace import Array
from xlstm.arrays.threads import Team
from xlstm.engines.step import Step

A = TypeVar("A")
R = TypeVar("R")

# Measured on two cores. Up to so many multiplications by a recurrent weight in all steps BLAS uses one thread anyway.
TINY = blas.SMALL
# A part of the batch has at least so many sequences, and in a loop that is not compiled at least so many units: there
# threads hand the interpreter to each other between calls, which has to be worth it.
COLUMNS = 8
UNITS = 8192
# So many weights do not fit the cache of a core: all threads share the rows of each product, instead of the batch.
HUGE = 1 << 21


class Rule(NamedTuple):
    """How to run: `parts` of the batch side by side, each product in `blas` threads of BLAS, 0 for as BLAS likes."""

    name: str
    parts: int = 1
    blas: int = 0
    turn: bool = False  # the bits of a product depend on BLAS's threads: callers in other threads wait
    team: int = 1  # threads of ours for products over all steps
    shared: bool = False  # the team shares each product of a step, in a compiled loop

    def run(self, call: Callable[[A], R], parts: Sequence[A]) -> list[R]:
        """Return what the call makes of each part, side by side where there are several."""
        if not self.blas and not self.turn:
            return [call(part) for part in parts]
        return self._work(self.parts, lambda team: team.run([functools.partial(call, part) for part in parts]))

    def together(self, call: Callable[[Team], A]) -> A:
        """Return what the call makes with the whole team."""
        return self._work(self.team, call)

    def products(self, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
        """Return the products a @ b of matrices, each over all steps."""
        return self._work(self.team, lambda team: team.products(pairs))

    def _work(self, size: int, call: Callable[[Team], R]) -> R:
        if self.blas:
            return threads.work(size, call, self.blas)
        return blas.in_turn(functools.partial(call, threads.SOLO)) if self.turn else call(threads.SOLO)


def choose(step: Step, x: Array, B: int, compiled: bool) -> Rule:
    """Return the rule for x (N, D) of B sequences, in a loop that is compiled or not.

    Raises
    ------
    ValueError
        XLSTM_NUM_THREADS is no number of threads.
    """
    threads.given()
    if step.xp is not np:
        return SOLO
    N, D = x.shape
    work = step.Wh.size * N
    if work <= TINY:
        # Nothing is large enough for a second thread (bench.training_step, bench.step).
        largest = math.prod(step.Wh.shape[:-1]) * N * max(D, step.Wh.shape[-1])
        return Rule("small", turn=largest > blas.SINGLE)
    if compiled and work <= threads.LARGE:
        # Threads of BLAS spin: beside another program a skinny product takes up to a hundred times as long on two.
        return Rule("one thread", blas=1)
    most = threads.available()
    if compiled and not step.heads and most > 1 and step.Wh.size > HUGE and step.Wh.size * B >= threads.LARGE:
        # 0.85 of the time of parts of the batch at T,B,D,H = 64,32,1024,1024 and 0.6 at 64,8,1024,1024, on a Xeon.
        return Rule("products shared", blas=1, team=most, shared=True)
    parts = max(1, min(most, B // COLUMNS))
    if compiled or (parts > 1 and 2 * parts >= most and step.P * (B // parts) >= UNITS):
        # Two parts of the batch on two cores take 0.55 of the time of one (bench.layers, T=128 B=64 H=256).
        return Rule("parts of the batch", parts, blas=1, team=most)
    return Rule("BLAS's threads", blas=most)


SOLO = Rule("other libraries")
