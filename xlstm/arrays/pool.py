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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from xlstm.arrays import blas, cores

# Seconds after which a layer in a signal handler gives up waiting for workers.
PATIENCE = 60.0
RINGS, SLEEPERS, SIZE = 32, 40, 40 + 1024  # places of `board`, and their number

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
        self.waits = False  # at `jobs`, or is about to
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
        mine, seen, place, lock = jobs, board, SLEEPERS + workers.index(self), _held_lock()
        while True:
            rings = int(seen[RINGS])  # before the look at the jobs: one that comes later is not missed
            self.waits = True
            try:
                job = mine.get(compiled is None)
            except queue.Empty:
                self.waits = False
                compiled.help_others(seen, place, lock, rings)
            else:
                self.waits = False
                with self.free:
                    job()
                del job  # nothing refers to one that is done


def _held_lock() -> int:
    """Return the address of a lock that is held, which compiled code can use without the interpreter."""
    api = ctypes.pythonapi
    api.PyThread_allocate_lock.restype = ctypes.c_void_p
    lock = int(api.PyThread_allocate_lock())
    api.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return lock


def _call(job: Callable[[], object]) -> None:
    """Have a worker do a job."""
    jobs.put(job)
    if compiled is not None:
        compiled.ring(board, len(workers))


# Numbers that compiled code shares work by, in cache lines of their own, among them the number of jobs so far and a
# place for each worker that sleeps. It is never given back: a worker may look at it until the process ends.
board = np.zeros(SIZE, np.int64)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(board))
# The functions of `engines/numba/board.py` once they are compiled: workers then wait in them instead of at `jobs`.
compiled: Any = None
jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
workers: list[_Worker] = []


def wait_in(functions: Any) -> None:
    """Have workers help compiled code from now on while they wait for jobs."""
    global compiled
    compiled = functions
    _leave()


def _leave() -> None:
    """Do a job that comes again until no worker waits at the jobs."""
    if any(worker.waits for worker in workers):
        jobs.put(_leave)


def employ(wanted: int) -> int:
    """Return the number of workers: at most as many as are wanted, and one less than there are cores.

    They are started when they are needed first. An interrupt may have left one whose thread was not started; it is
    started now. When the process ends, threads stand still and none can be started.
    """
    if wanted <= 0 or sys.is_finalizing():
        return 0
    wanted = min(wanted, cores.usable() - 1, SIZE - SLEEPERS)
    while len(workers) < wanted:
        workers.append(_Worker())
    try:
        for worker in workers[:wanted]:
            if not worker.begun:
                threading.Thread(target=worker.run, name="xlstm", daemon=True).start()
    except RuntimeError:  # there can be no more threads
        wanted = sum(worker.begun for worker in workers[:wanted])
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
