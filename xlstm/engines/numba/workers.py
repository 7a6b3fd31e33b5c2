"""Worker threads of the process: they help with calls of compiled code, and sleep while there are none.

Signal handlers may run layers and raise errors at any moment, so nothing here holds a lock. A fork needs no
preparation: the child begins without workers.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

from xlstm.arrays import cores

# The numbers that threads share work by (`work_queue.py`), in cache lines of their own. They are never given back: a
# worker may look at them until the process ends.
queue = np.zeros(40, np.int64)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(queue))


class Worker(threading.Thread):
    """A daemon thread that helps with calls, and sleeps at a bell when there were none for a while."""

    def __init__(self, help_others: Callable[..., None]) -> None:
        super().__init__(name="xlstm", daemon=True)
        self.help_others, self.bell, self.asleep = help_others, SimpleQueue[None](), False

    def run(self) -> None:
        """Help until the process ends."""
        while True:
            self.help_others(queue)
            self.asleep = True
            self.help_others(queue)  # with the call of a thread that has just seen it awake
            self.bell.get()
            self.asleep = False


workers: list[Worker] = []


def employ(wanted: int, help_others: Callable[..., None]) -> int:
    """Return the number of workers, which are awake: at most as many as are wanted, and one less than there are cores.

    They are started when they are needed first, and run a function of `work_queue.py` again and again. An interrupt may
    leave one that is never asked again. When the process ends, threads stand still and none can be started.
    """
    if wanted <= 0 or sys.is_finalizing():
        return 0
    wanted = min(wanted, cores.usable() - 1)
    try:
        while len(workers) < wanted:
            worker = Worker(help_others)
            worker.start()
            workers.append(worker)
    except RuntimeError:  # there can be no more threads
        wanted = len(workers)
    for worker in workers[:wanted]:
        if worker.asleep:
            worker.bell.put(None)
    return wanted


def _forget() -> None:
    """Forget the workers of the parent, and what they were doing."""
    workers.clear()
    queue[:] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
