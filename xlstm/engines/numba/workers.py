"""Worker threads of the process: they help with calls of compiled code, and sleep within it while there are none.

Signal handlers may run layers and raise errors at any moment, so nothing here waits for a lock; what must not be done
halfway is one operation of a list, which is atomic. A fork needs no preparation: the child begins without workers.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable

import numpy as np

from xlstm.arrays import cores

SLEEPERS, SIZE = 40, 40 + 1024  # the first place of `queue` for a worker, and the number of places

# The numbers that threads share work by (`work_queue.py`), in cache lines of their own, and a place for each worker
# that sleeps. It is never given back: a worker may look at it until the process ends.
queue = np.zeros(SIZE, np.int64)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(queue))


class Worker:
    """A daemon thread that helps with calls."""

    def __init__(self) -> None:
        self._claims = [True]  # until a thread has begun: to take from a list is atomic

    @property
    def begun(self) -> bool:
        """Whether a thread works."""
        return not self._claims

    def run(self, help_others: Callable[..., None], place: int) -> None:
        """Work in this thread, unless another one has begun to."""
        try:
            self._claims.pop()
        except IndexError:
            return
        help_others(queue, SLEEPERS + place, _held_lock())


workers: list[Worker] = []


def employ(wanted: int, help_others: Callable[..., None]) -> int:
    """Return the number of workers: at most as many as are wanted, and one less than there are cores.

    They are started when they are needed first, and run a function of `work_queue.py` until the process ends. An
    interrupt may have left one whose thread was not started; it is started now. When the process ends, threads stand
    still and none can be started.
    """
    if wanted <= 0 or sys.is_finalizing():
        return 0
    wanted = min(wanted, cores.usable() - 1, SIZE - SLEEPERS)
    while len(workers) < wanted:
        workers.append(Worker())
    try:
        for place, worker in enumerate(workers[:wanted]):
            if not worker.begun:
                given = help_others, place
                threading.Thread(target=worker.run, args=given, name="xlstm", daemon=True).start()
    except RuntimeError:  # there can be no more threads
        wanted = sum(worker.begun for worker in workers[:wanted])
    return wanted


def _held_lock() -> int:
    """Return the address of a lock that is held, which compiled code can use without the interpreter."""
    api = ctypes.pythonapi
    api.PyThread_allocate_lock.restype = ctypes.c_void_p
    lock = int(api.PyThread_allocate_lock())
    api.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return lock


def _forget() -> None:
    """Forget the workers of the parent, and what they were doing."""
    workers.clear()
    queue[:] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
