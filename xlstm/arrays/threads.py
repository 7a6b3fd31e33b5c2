"""Work on several cores: the number of threads, and how parts of a piece of work are shared out among them.

NumPy's products and large element-by-element calls let go of the interpreter, compiled loops do so altogether:
two directions of a layer, or two parts of a batch, can run side by side.

The process keeps a few worker threads. How work is divided depends on the settings alone; who does a part does not
matter, for the calling thread does whatever no worker has begun. So results have the same bits when workers are busy,
when there are fewer cores than parts, or when no thread can be started any more because the process ends. Nothing here
waits for a lock that an interrupted piece of the same thread may hold, so signal handlers may run layers and raise
errors at any moment.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from xlstm.arrays import blas, checks, cores, workspace
from xlstm.arrays.namespace import Array

VARIABLE = "XLSTM_NUM_THREADS"
MOST = 1024  # the largest number that the variable may have

# Multiplications from which on a product is shared out: to wake a thread costs as much as some millions.
LARGE = 10**7

# Seconds for which a waiting thread asks again and again before it goes to sleep. To wake one takes 0.1 ms, handing
# work to one that asks takes 2 us; where there are fewer cores than threads, one that asks keeps others from working.
SPIN = 2e-4
# Seconds after which a layer in a signal handler gives up waiting for workers.
PATIENCE = 60.0

R = TypeVar("R")


class Team:
    """A division of work into `size` parts, which so many workers and the calling thread do side by side."""

    def __init__(self, size: int, workers: int = 0) -> None:
        self.size, self._workers = size, workers

    def run(self, tasks: Sequence[Callable[[], R]]) -> list[R]:
        """Return the results of all tasks, which run side by side where the team has several threads.

        An error of a task, or one that a signal handler raises meanwhile, is raised once no task runs any more.
        """
        if not self._workers or len(tasks) < 2:
            return [task() for task in tasks]
        shared = _Shared(tasks, min(self._workers, len(tasks) - 1))
        try:
            shared.begin()
        finally:
            blas.surely(shared.end)
        return shared.results()

    def share(self, n: int, do: Callable[[int, int], object]) -> None:
        """Call `do(first, last)` for each part of range(n), side by side."""
        self.run([functools.partial(do, *self._cut(n, k)) for k in range(self.size)])

    def product(self, a: Array, b: Array, out: Array) -> None:
        """Compute the matrix product out = a @ b, its rows shared out."""
        self.share(a.shape[0], lambda i, j: blas.product(a[i:j, :], b, out[i:j, :]))

    def products(self, pairs: Sequence[tuple[Array, Array]]) -> list[Array]:
        """Return the matrix products a @ b of all pairs, the rows of each shared out where that is worth it."""
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
    """Return a @ b; large NumPy arrays wait for their turn, and BLAS has as many threads as xlstm may use."""
    if not isinstance(a, np.ndarray) or math.prod(a.shape) * b.shape[-1] <= blas.SINGLE:
        return a @ b
    return work(1, lambda _: a @ b, available())


def work(size: int, call: Callable[[Team], R], products: int = 1) -> R:
    """Return the result of a call with a team of `size`, during which each product has `products` BLAS threads.

    There are no more BLAS threads than cores. Callers in other threads wait for their turn.
    """
    threads = min(products, cores.usable())

    def run() -> R:
        # A signal handler that interrupts a team must not change the number of BLAS threads under its workers.
        with _paused() if blas.limit() not in (None, threads) else contextlib.nullcontext():
            workers = _employ(size - 1)
            for _ in range(workers):
                _jobs.put(_pause)  # they wake up while the work is prepared
            return blas.limited(threads, functools.partial(call, Team(size, workers)))

    return blas.in_turn(run)


class _Shared(Generic[R]):
    """Tasks that several threads do, each of them once, by whoever takes it first."""

    def __init__(self, tasks: Sequence[Callable[[], R]], helpers: int) -> None:
        self._todo = list(enumerate(tasks))[::-1]  # a task is begun by who takes it from here, which is atomic
        self._results: dict[int, R] = {}
        self._errors: dict[int, BaseException] = {}
        self._context = contextvars.copy_context()  # the floating-point error state of NumPy goes along with it
        self._busy = [threading.Lock() for _ in range(helpers)]  # each is held by a worker that does a task

    def begin(self) -> None:
        """Call workers for help, and do tasks until none is left."""
        for busy in self._busy:
            _jobs.put(functools.partial(self._help, busy))
        while self._do():
            pass

    def _help(self, busy: threading.Lock) -> None:
        """Do a task in a worker, which is free for other jobs before the next one."""
        with busy:
            self._context.copy().run(self._do)
        if self._todo:
            _jobs.put(functools.partial(self._help, busy))

    def _do(self) -> bool:
        """Do a task that nobody has begun; return False where there is none."""
        try:
            k, task = self._todo.pop()
        except IndexError:
            return False
        try:
            self._results[k] = task()
        except BaseException as error:
            self._errors[k] = error
            self._todo.clear()
        return True

    def end(self) -> None:
        """Let nobody begin another task, and wait for the workers that have begun one."""
        self._todo.clear()
        for busy in self._busy:
            deadline = time.perf_counter() + SPIN
            while busy.locked() and time.perf_counter() < deadline:
                _pause()
            with busy:  # sleeps where a worker has it
                pass

    def results(self) -> list[R]:
        """Return the results in the order of the tasks, once, or raise the error of the first task that failed."""
        # Nothing may stay here: a worker that never came still refers to this object, and an error to the stack.
        found, self._results = self._results, {}
        errors, self._errors = self._errors, {}
        if errors:
            raise errors.pop(min(errors))
        return [found[k] for k in range(len(found))]


class _Worker:
    """A daemon thread that does jobs as they come."""

    def __init__(self) -> None:
        self.free = threading.Lock()  # held while it does a job
        self._claims = [True]  # until a thread has begun: to take from a list is atomic

    @property
    def begun(self) -> bool:
        """Whether a thread works."""
        return not self._claims

    def run(self) -> None:
        """Work in this thread, unless another one has begun to."""
        try:
            self._claims.pop()
        except IndexError:
            return
        jobs = _jobs
        while True:
            deadline = time.perf_counter() + SPIN
            while jobs.empty() and time.perf_counter() < deadline:
                _pause()
            self._do(jobs.get())  # sleeps where there is none

    def _do(self, job: Callable[[], object]) -> None:
        """Do a job; in a function of its own, so that nothing refers to a job that is done."""
        with self.free:
            job()


_jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
_workers: list[_Worker] = []


def _employ(wanted: int) -> int:
    """Return the number of workers, at most as many as are wanted and one less than there are cores.

    They are started when they are needed first. An interrupt may have left one whose thread was not started; it is
    started now. When the process ends, threads stand still and none can be started.
    """
    if wanted <= 0 or sys.is_finalizing():
        return 0
    wanted = min(wanted, cores.usable() - 1)
    while len(_workers) < wanted:
        _workers.append(_Worker())
    for worker in _workers[:wanted]:
        if not worker.begun:
            try:
                threading.Thread(target=worker.run, name="xlstm", daemon=True).start()
            except RuntimeError:  # there can be no more threads
                return sum(worker.begun for worker in _workers[:wanted])
    return wanted


@contextlib.contextmanager
def _paused() -> Iterator[None]:
    """Keep all workers from doing anything meanwhile, after waiting for those that do something."""
    with contextlib.ExitStack() as stack:
        for worker in () if sys.is_finalizing() else tuple(_workers):
            if not worker.free.acquire(timeout=PATIENCE):
                raise RuntimeError("a layer in a signal handler waits for threads that do not finish")
            stack.callback(worker.free.release)
        yield


# The forks that run at the moment: the first, and those of signal handlers within it. Only the owner of the turn forks.
_forks: list[contextlib.ExitStack] = []


def _before_fork() -> None:
    """Wait until no other thread computes, and until no worker is within a job.

    In the child their locks would stay as they are for good, and a job that a worker has begun would never end.
    """
    blas.before_fork()
    _forks.append(contextlib.ExitStack())
    if len(_forks) == 1:
        _forks[0].enter_context(_paused())


def _after_fork(in_child: bool) -> None:
    global _jobs
    if in_child:
        _workers.clear()
        _jobs = queue.SimpleQueue()
    _forks.pop().close()
    blas.after_fork(in_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=functools.partial(_after_fork, False),
        after_in_child=functools.partial(_after_fork, True),
    )

# Lets other threads run, without the interpreter's lock.
_pause: Any = getattr(os, "sched_yield", functools.partial(time.sleep, 0))
