"""Work on several cores: the number of threads, and how parts of a piece of work are shared out among them.

NumPy's products and large element-by-element calls let go of the interpreter, compiled loops do so altogether:
two directions of a layer, or two parts of a batch, can run side by side.

How work is divided depends on the settings alone. Who does a part does not matter, for the calling thread does whatever
no worker (`pool`) has begun. So results have the same bits when workers are busy, when there are fewer cores than
parts, or when no thread can be started any more because the process ends.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from xlstm.arrays import blas, checks, cores, pool
from xlstm.arrays import matmul as products
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import Array, Namespace, namespace_of

VARIABLE = "XLSTM_NUM_THREADS"
MOST = 1024  # the largest number that the variable may have

# Multiplications from which on a product is shared out: to wake a thread costs as much as some millions.
LARGE = 10**7

R = TypeVar("R")


class Team:
    """Some workers and the calling thread, which do tasks side by side."""

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers

    def run(self, tasks: Sequence[Callable[[], R]]) -> list[R]:
        """Return the results of all tasks, which run side by side where the team has several threads.

        An error of a task, or one that a signal handler raises meanwhile, is raised once no task runs any more.
        """
        if not self._workers or len(tasks) < 2:
            return [task() for task in tasks]
        return pool.run(tasks, min(self._workers, len(tasks) - 1))


SOLO = Team()


def given() -> int | None:
    """Return XLSTM_NUM_THREADS, or None where it is not set or empty.

    Raises
    ------
    ValueError
        The variable is not a whole number from 1 to 1024.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdecimal() and 0 < len(digits) <= len(str(MOST)) and int(digits) <= MOST):
        raise ValueError(f"{VARIABLE}: {checks.shown(text)} is not a number of threads, expected 1 to {MOST}")
    return int(digits)


def wanted() -> int:
    """Return into how many parts compiled loops divide large work: XLSTM_NUM_THREADS, else the number of cores."""
    return given() or cores.usable()


def team(size: int) -> Team:
    """Return a team of `size` threads for work that calls no BLAS."""
    return SOLO if size == 1 else Team(pool.employ(size - 1))


def available() -> int:
    """Return how many threads xlstm may use: XLSTM_NUM_THREADS, else as many as BLAS and no more than there are cores.

    Work is divided into so many parts. No more threads than cores take part in it (`cores.usable`).

    Raises
    ------
    ValueError
        The variable is not a whole number from 1 to 1024.
    """
    found = given()
    return min(blas.in_turn(blas.threads), cores.usable()) if found is None else found


def matmul(a: Array, b: Array) -> Array:
    """Return a @ b; large products of NumPy arrays are shared out among as many threads as xlstm may use.

    The threads are xlstm's own, each with a product of compiled tiles or of one BLAS thread: OpenBLAS's threads ask for
    work for 0.1 s after each product, and keep the cores from whatever comes next.
    """
    multiplications = math.prod(a.shape) * b.shape[-1]
    if not isinstance(a, np.ndarray):
        return products.matmul(namespace_of(a), a, b)
    found = products.compiled(a, b, None, True) if products.compiled else None
    if found is not None:
        return found
    if multiplications <= blas.SINGLE:
        return a @ b
    size = available() if multiplications > LARGE and a.ndim == b.ndim else 1
    if size == 1:
        return work(1, lambda _: a @ b)
    out = np.empty((*a.shape[:-1], b.shape[-1]), np.result_type(a, b))
    batch = a.ndim > 2 and a.shape[0] >= size

    def share(k: int) -> None:
        n = a.shape[0 if batch else -2]
        part = slice(n * k // size, n * (k + 1) // size)
        if batch:
            np.matmul(a[part], b[part], out=out[part])
        else:
            np.matmul(a[..., part, :], b, out=out[..., part, :])

    work(size, lambda team: team.run([functools.partial(share, k) for k in range(size)]))
    return out


def multiply(xp: Namespace, triples: Sequence[tuple[Array, Array, Array]]) -> None:
    """Set each `out` of (a, b, out), NumPy or CuPy arrays of one dtype, to a @ b.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    triples : sequence of (array (n, M, K), array (n, K, N), array (n, M, N))
        The rows of an `out` are contiguous; those of its matrices may have other numbers between them.
    """
    if compiles(xp):
        for a, b, out in triples:
            products.multiply(a, b, out)
    elif products.compiled_into is None or not products.compiled_into(triples):
        for a, b, out in triples:
            out[...] = matmul(a, b)


def work(size: int, call: Callable[[Team], R], products: int = 1) -> R:
    """Return the result of a call with a team of `size`, during which each product has `products` BLAS threads.

    There are no more BLAS threads than cores. Callers in other threads wait for their turn.
    """
    threads = min(products, cores.usable())

    def run() -> R:
        # A signal handler that interrupts a team must not change the number of BLAS threads under its workers.
        with pool.paused() if blas.limit() not in (None, threads) else contextlib.nullcontext():
            workers = pool.employ(size - 1)
            return blas.limited(threads, functools.partial(call, Team(workers)))

    return blas.in_turn(run)
