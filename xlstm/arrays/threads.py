"""Work on several cores: how many threads, and how the parts of a piece of work are shared out among them.

NumPy's products and large element-by-element calls let go of the interpreter, compiled loops do so altogether:
two directions of a layer, or two parts of a batch, can run side by side.

The process keeps a few worker threads. How work is divided depends on the settings alone; who does a part does not
matter, for the calling thread does whatever no worker has begun. So results have the same bits when workers are busy,
when there are fewer cores than parts, or when no thread can be started any more because the process ends.
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
from xlstm.arrays.backend import Array

VARIABLE = "XLSTM_NUM_THREADS"
MOST = 1024  # the largest number that the variable may have

# Multiplications from which on a product is shared out: to wake a thread costs as much as some millions.
LARGE = 10**7

# Seconds for which a thread that waits asks again and again before it goes to sleep. To wake one takes 0.1 ms, handing
# work to one that asks takes 2 us; where there are fewer cores than threads, whoever asks keeps others from working.
SPIN = 2e-4
# Seconds after which a layer in a signal handler gives up waiting for workers.
PATIENCE = 60.0

R = TypeVar("R")


class Team:
    """A division of work into `size` parts, which so many workers and the calling thread do side by side."""

    def __init__(self, size: int, workers: int = 0) -> None:
        self.size, self._workers = size, workers

    def run(self, tasks: Sequence[Callable[[], R]]) -> list[R]:
        """The results of all tasks, which run side by side where the team has several threads.

        An error of a task, or one that a signal handler raises meanwhile, is raised once no task runs any more.
        """
        if not self._workers or len(tasks) < 2:
            return [task() for task in tasks]
        jobs = [_Job(task) for task in tasks]
        try:
            for job in jobs[1:]:
                _jobs.put(job)
            for job in jobs:
                if not job.do():
                    break
        finally:
            _end(jobs)
        return [job.result() for job in jobs]

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


def given() -> int | None:
    """XLSTM_NUM_THREADS, or None where it is not set or empty.

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
    """How many threads xlstm may use: XLSTM_NUM_THREADS, else as many as BLAS and no more than there are cores.

    Work is divided into so many parts. No more threads than cores take part in it (`cores.usable`).

    Raises
    ------
    ValueError
        The variable is not a whole number from 1 to 1024.
    """
    found = given()
    if found is None:
        found = min(blas.in_turn(blas.threads), cores.usable())
    return found


def matmul(a: Array, b: Array) -> Array:
    """a @ b; large NumPy arrays wait for their turn, and BLAS has as many threads as xlstm may use."""
    if not isinstance(a, np.ndarray) or math.prod(a.shape) * b.shape[-1] <= blas.SINGLE:
        return a @ b
    return work(1, lambda _: a @ b, available())


def work(size: int, call: Callable[[Team], R], products: int = 1) -> R:
    """The result of a call with a team of `size`; each product meanwhile has `products` BLAS threads.

    There are no more BLAS threads than cores. Callers in other threads wait for their turn.
    """
    threads = min(products, cores.usable())

    def run() -> R:
        # A signal handler that interrupts a team must not change the number of BLAS threads under its workers.
        with _paused() if blas.limit() not in (None, threads) else contextlib.nullcontext():
            workers = _employ(size - 1)
            for _ in range(workers):
                _jobs.put(_wake)  # they wake up while the work is prepared
            return blas.limited(threads, functools.partial(call, Team(size, workers)))

    return blas.in_turn(run)


class _Job(Generic[R]):
    """A task that is done once, by whoever begins it first: a worker, or the thread whose task it is."""

    def __init__(self, task: Callable[[], R]) -> None:
        # The floating-point error state of NumPy goes along with the context.
        self._context = contextvars.copy_context()
        self._tasks = [task]  # until somebody begins: to take from a list is atomic
        self._busy = threading.Lock()  # held by the worker that does it
        self._result: R
        self._error: BaseException | None = None

    def __call__(self) -> None:
        """Do it in a worker."""
        with self._busy:
            self._context.run(self.do)

    def do(self) -> bool:
        """Do it, unless somebody has begun; False where it fails."""
        try:
            task = self._tasks.pop()
        except IndexError:
            return True
        try:
            self._result = task()
        except BaseException as error:
            self._error = error
        return self._error is None

    def end(self) -> None:
        """Nobody begins it any more, and a worker that has begun is waited for."""
        self._tasks.clear()
        deadline = time.perf_counter() + SPIN
        while self._busy.locked() and time.perf_counter() < deadline:
            _pause()
        with self._busy:  # sleeps where a worker has it
            pass

    def result(self) -> R:
        """Give what the task returned, once; its error is raised."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # the error refers to the stack, and that to this job
        found = self._result
        del self._result  # the job may wait in vain for a worker yet
        return found


def _end(jobs: Sequence[_Job[Any]]) -> None:
    """End all jobs, whatever a signal handler raises meanwhile; its last error is raised afterwards."""
    late: BaseException | None = None
    while True:
        try:
            for job in jobs:
                job.end()
            break
        except BaseException as error:
            late = error
    if late is not None:
        raise late


class _Worker:
    """A daemon thread that does jobs as they come."""

    def __init__(self, jobs: queue.SimpleQueue[Callable[[], object]]) -> None:
        self.free = threading.Lock()  # held while it does a job
        self._jobs = jobs
        self._claims = [True]  # to take from a list is atomic
        self.thread = threading.Thread(target=self._run, name="xlstm", daemon=True)

    def claim(self) -> bool:
        """True for whoever asks first: its thread, which then works, or a caller that failed to start the thread."""
        try:
            return self._claims.pop()
        except IndexError:
            return False

    def _run(self) -> None:
        if not self.claim():
            return
        while True:
            deadline = time.perf_counter() + SPIN
            while self._jobs.empty() and time.perf_counter() < deadline:
                _pause()
            self._do(self._jobs.get())  # sleeps where there is none

    def _do(self, job: Callable[[], object]) -> None:  # by itself, so that nothing refers to a job that is done
        with self.free:
            job()


_jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
_workers: list[_Worker] = []


def _employ(wanted: int) -> int:
    """How many workers there are for as many as are wanted; no more than there are cores beside that of the caller.

    They are started when they are needed first. When the process ends no thread can be started any more.
    """
    if wanted <= 0 or sys.is_finalizing():  # then threads stand still
        return 0
    wanted = min(wanted, cores.usable() - 1)
    while len(_workers) < wanted:
        worker = _Worker(_jobs)
        _workers.append(worker)
        try:
            worker.thread.start()
        except BaseException as error:  # an interrupt, too
            if worker.claim():
                _workers.remove(worker)
            if not isinstance(error, RuntimeError):
                raise
            break
    return min(wanted, len(_workers))


@contextlib.contextmanager
def _paused() -> Iterator[None]:
    """No worker does anything meanwhile; those that do something are waited for."""
    with contextlib.ExitStack() as stack:
        for worker in () if sys.is_finalizing() else tuple(_workers):
            if not worker.free.acquire(timeout=PATIENCE):
                raise RuntimeError("a layer in a signal handler waits for threads that do not finish")
            stack.callback(worker.free.release)
        yield


def _wake() -> None:
    """A job that only wakes a worker."""


def _before_fork() -> None:
    """Wait until no worker is within a job: it stays behind in the parent, and its job would never end in the child."""
    pause = contextlib.ExitStack()
    _forks.pauses.append(pause)
    pause.enter_context(_paused())


def _after_fork() -> None:
    _forks.pauses.pop().close()


def _after_fork_in_child() -> None:
    global _jobs
    _workers.clear()
    _jobs = queue.SimpleQueue()
    _after_fork()


class _Forks(threading.local):
    """The forks that a thread is in: several threads may fork at once, and a signal handler within a fork."""

    def __init__(self) -> None:
        self.pauses: list[contextlib.ExitStack] = []


_forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)

# Lets others run, without the interpreter's lock.
_pause = getattr(os, "sched_yield", functools.partial(time.sleep, 0))
