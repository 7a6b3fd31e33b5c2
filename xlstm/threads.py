"""Work on several cores: how many threads, and BLAS kept to one thread each while they work.

NumPy's products and large element-by-element calls let go of the interpreter, compiled loops do so altogether:
two directions of a layer, or two parts of a batch, can run side by side.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from xlstm import blas, workspace
from xlstm.backend import Array

VARIABLE = "XLSTM_NUM_THREADS"

# Multiplications from which on a product is shared out: to wake a thread costs as much as some millions.
LARGE = 10**7

R = TypeVar("R")

_lock = threading.Lock()  # the number of BLAS threads is one for the process


class Team:
    """So many threads, the calling one among them. The others wait for work without going to sleep.

    To wake a thread takes 0.1 ms, as long as many a product; handing work to one that waits takes 2 us.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._tasks: list[Callable[[], object] | None] = [None] * (size - 1)
        self._errors: list[BaseException] = []
        self._over = False

    def run(self, tasks: Sequence[Callable[[], R]]) -> list[R]:
        """The results of all tasks, which run side by side where the team has several threads.

        Not from within a task: every thread has one at a time.
        """
        if any(self._tasks):
            raise RuntimeError("a task of a team cannot give it work")
        results: list[Any] = [None] * len(tasks)

        def do(share: Sequence[int]) -> None:
            for k in share:
                results[k] = tasks[k]()

        # The floating-point error state of NumPy goes along with the context.
        for other in range(min(self.size, len(tasks)) - 1):
            context, share = contextvars.copy_context(), range(other + 1, len(tasks), self.size)
            self._tasks[other] = functools.partial(context.run, do, share)
            _pause()
        try:
            do(range(0, len(tasks), self.size))
        finally:
            while any(self._tasks):  # nobody works on after an error
                _pause()
        if self._errors:
            raise self._errors.pop()
        return results

    def wait(self, other: int) -> None:
        """What the other threads do until it is over."""
        while not self._over:
            task = self._tasks[other]
            if task is None:
                _pause()
                continue
            try:
                task()
            except BaseException as error:
                self._errors.append(error)
            self._tasks[other] = None

    def dismiss(self) -> None:
        """No more work."""
        self._over = True

    def share(self, n: int, do: Callable[[int, int], object]) -> None:
        """`do(first, last)` for parts of range(n), side by side."""
        self.run([functools.partial(do, *self._cut(n, k)) for k in range(self.size)])

    def product(self, a: Array, b: Array, out: Array) -> None:
        """The matrix product out = a @ b, rows of it shared out."""
        self.share(a.shape[0], lambda i, j: blas.product(a[i:j, :], b, out[i:j, :]))

    def products(self, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
        """The matrix products a @ b of all pairs, rows of each shared out where that is worth it."""
        if self.size == 1 or sum(a.shape[0] * a.shape[1] * b.shape[1] for a, b in pairs) < LARGE:
            return [a @ b for a, b in pairs]
        outs = [workspace.empty(np, (a.shape[0], b.shape[1]), a) for a, b in pairs]

        def do(k: int) -> None:
            for (a, b), out in zip(pairs, outs, strict=True):
                i, j = self._cut(a.shape[0], k)
                blas.product(a[i:j, :], b, out[i:j, :])

        self.run([functools.partial(do, k) for k in range(self.size)])
        return outs

    def _cut(self, n: int, k: int) -> tuple[int, int]:
        return n * k // self.size, n * (k + 1) // self.size


SOLO = Team(1)


def available() -> int:
    """How many threads xlstm may use: XLSTM_NUM_THREADS, else as many as BLAS.

    Raises
    ------
    ValueError
        The variable is not a whole number from 1 up.
    """
    given = os.environ.get(VARIABLE)
    if not given:
        return blas.threads()
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{VARIABLE}: {given!r} is not a number of threads, expected 1 or more")
    return int(given)


@contextlib.contextmanager
def team(size: int, products: int = 1) -> Iterator[Team]:
    """`size` threads to work in, each with `products` BLAS threads; BLAS has what it had before afterwards."""
    with _lock, blas.limited(products):
        if size == 1:
            yield SOLO
            return
        chosen = Team(size)
        waiting: list[Future[None]] = []
        try:
            waiting.extend(_pool(size - 1).submit(chosen.wait, other) for other in range(size - 1))
            _pause()  # they wake up meanwhile
            yield chosen
        finally:
            chosen.dismiss()
            for future in waiting:
                future.result()


@functools.cache
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="xlstm")


def _after_fork() -> None:
    """The threads of a pool stay behind in the parent, and one of them may have held the lock and limited BLAS."""
    global _lock
    _lock = threading.Lock()
    _pool.cache_clear()
    blas.unlimited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# Lets others run, without the interpreter's lock.
_pause = getattr(os, "sched_yield", functools.partial(time.sleep, 0))
