"""Worker threads of the process, which do tasks beside the thread that has them.

Signal handlers may run layers and raise errors at any moment. So nothing here waits for a lock that an interrupted
function of the same thread may hold, except for the locks of workers in `paused`; what must not be done halfway is one
operation of a list, a dict or a `SimpleQueue`, which is atomic. A fork waits until workers stand still.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from xlstm.arrays import blas, cores

# Seconds for which a waiting thread asks again and again before it goes to sleep. To wake one takes 0.1 ms, handing
# work to one that asks takes 2 us; where there are fewer cores than threads, one that asks keeps others from working.
SPIN = 2e-4
# Seconds after which a layer in a signal handler gives up waiting for workers.
PATIENCE = 60.0
SIZE, RINGS = 40, 32  # of `board`

R = TypeVar("R")


def run(tasks: Sequence[Callable[[], R]], helpers: int) -> list[R]:
    """Return the results of all tasks, with the help of so many workers.

    An error of a task, or one that a signal handler raises meanwhile, is raised once no task runs any more.
    """
    shared = _Shared(tasks, helpers)
    try:
        shared.begin()
    finally:
        try:
            blas.surely(shared.end)
        finally:  # a signal handler may raise before the first line of `surely`
            shared.end()
    return shared.results()


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
            _call(functools.partial(self._help, busy))
        while self._do():
            pass

    def _help(self, busy: threading.Lock) -> None:
        """Do a task in a worker, which is free for other jobs before the next one."""
        with busy:
            self._context.copy().run(self._do)
        if self._todo:
            _call(functools.partial(self._help, busy))

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
        self.asleep = False
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
        mine = jobs
        while True:
            self._look(mine)
            self.asleep = True
            job = mine.get()  # sleeps where there is none
            self.asleep = False
            self._do(job)

    def _look(self, mine: queue.SimpleQueue[Callable[[], object]]) -> None:
        """Wait for a job for a while, and help compiled code meanwhile."""
        rings, deadline = int(board[RINGS]), time.perf_counter() + SPIN
        while mine.empty() and time.perf_counter() < deadline:
            if helping is None:
                _pause()
            else:
                helping(rings)

    def _do(self, job: Callable[[], object]) -> None:
        """Do a job; in a function of its own, so that nothing refers to a job that is done."""
        with self.free:
            job()


def _call(job: Callable[[], object]) -> None:
    """Have a worker do a job."""
    jobs.put(job)
    board[RINGS] += 1


# Numbers that compiled code shares work by, in cache lines of their own, and the place of the number of jobs so far. It
# is never given back: a worker may look at it until the process ends.
board = np.zeros(SIZE, np.int64)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(board))
# Helps compiled code until there was nothing to do for a while, or the number of jobs is no longer the one that is
# given. An engine that compiles sets it.
helping: Callable[[int], None] | None = None
jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
workers: list[_Worker] = []


def employ(wanted: int) -> int:
    """Wake workers, and return their number: at most as many as are wanted, and one less than there are cores.

    They are started when they are needed first. An interrupt may have left one whose thread was not started; it is
    started now. When the process ends, threads stand still and none can be started.
    """
    if wanted <= 0 or sys.is_finalizing():
        return 0
    wanted = min(wanted, cores.usable() - 1)
    while len(workers) < wanted:
        workers.append(_Worker())
    try:
        for worker in workers[:wanted]:
            if not worker.begun:
                threading.Thread(target=worker.run, name="xlstm", daemon=True).start()
    except RuntimeError:  # there can be no more threads
        wanted = sum(worker.begun for worker in workers[:wanted])
    for worker in workers[:wanted]:
        if worker.asleep:
            jobs.put(_pause)  # a job that does nothing
    return wanted


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Keep all workers from doing anything meanwhile, after waiting for those that do something."""
    with contextlib.ExitStack() as stack:
        for worker in () if sys.is_finalizing() else tuple(workers):
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
        _forks[0].enter_context(paused())


def _after_fork(in_child: bool) -> None:
    global jobs
    if in_child:
        workers.clear()
        jobs = queue.SimpleQueue()
        board[:] = 0
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
