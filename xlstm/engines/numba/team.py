"""Call compiled functions on several cores, with worker threads that start within a microsecond.

Only one thread at a time can run the interpreter. Handing it to a thread that sleeps takes some 100
us, as long as many products take. So `work_queue` hands over functions, with their arguments in
memory, without the interpreter.

Signal handlers may run layers and raise errors at any moment, so this file holds no lock. A fork
needs no preparation: the child begins without workers.
"""

from __future__ import annotations

import array
import ctypes
import functools
import inspect
import itertools
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from ctypes import addressof, c_char
from queue import SimpleQueue
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from xlstm.arrays import cores
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import jit, work_queue

PIECES = 8  # pieces of a job per thread, so that all threads end at about the same time
WORTH = 1 << 21  # least multiplications of a piece, 20 us
# least multiplications of a shared job, 40 us: a sleeping worker takes 5 us to wake
LARGE = 1 << 22

# The numbers by which threads share work (`work_queue.py`), in cache lines of their own. They are
# never freed: a worker may look at them until the process ends.
queue = np.zeros(40, np.int64)
ctypes.pythonapi.Py_IncRef(ctypes.py_object(queue))

# A call: the number n of its items; its compiled function, called as `function(*arguments, first,
# last)`; the arguments (numbers, contiguous arrays, and tuples of them); and how many of the n
# items stay together, or 0 for one part per thread.
Call = tuple[int, Callable[..., None], tuple[Any, ...], int]
# Arguments, then `first` and `last`. A function that takes the address of integers gets these as an
# array.
Piece = tuple["tuple[Any, ...] | array.array[int]", int, int]


def share(calls: Sequence[Call], work: int) -> None:
    """Run calls on as many threads as `work` multiplications are worth.

    Raises
    ------
    MemoryError
        A function had no memory; results are incomplete.
    """
    size = cores.threads() if work > LARGE else 1
    if size == 1:
        for n, function, arguments, _ in calls:
            function(*arguments, 0, n)
        return
    most = max(size, min(PIECES * size, work // WORTH) // len(calls))
    jobs = []
    for n, function, arguments, unit in calls:
        unit = unit or max(1, -(-n // size))
        units = -(-n // unit)
        pieces = max(1, min(units, most))
        cuts = [min(n, units * k // pieces * unit) for k in range(pieces + 1)]
        jobs.append(
            (function, [(arguments, first, last) for first, last in itertools.pairwise(cuts)])
        )
    run_parallel(jobs, size)


def run_parallel(jobs: Sequence[tuple[Callable[..., None], Sequence[Piece]]], size: int) -> None:
    """Call compiled functions, each for several pieces of its work, on `size` threads.

    Raises
    ------
    MemoryError
        A function had no memory; results are incomplete.
    """
    helpers = employ(size - 1, _compiled().help_others) if size > 1 else 0
    if not helpers:
        for function, pieces in jobs:
            for arguments, first, last in pieces:
                if isinstance(arguments, array.array):
                    function(arguments.buffer_info()[0], first, last)
                else:
                    function(*arguments, first, last)
        return
    rows = array.array("q")
    tables = {}
    for function, pieces in jobs:
        for arguments, first, last in pieces:
            key = id(function), id(arguments)
            if isinstance(arguments, array.array):
                tables[key] = _address(function), arguments
            elif key not in tables:
                numbers: list[int] = []
                entry = _entry(function, _enter(arguments, numbers))
                tables[key] = entry, array.array("q", numbers)
            entry, table = tables[key]
            rows.extend((entry, table.buffer_info()[0], first, last))
    if _compiled().lead(queue, rows.buffer_info()[0], helpers, len(rows) // 4):
        raise MemoryError("a compiled function of xlstm had no memory")


def address(numbers: Array) -> int:
    """Return the address of the first number of an array."""
    try:
        return addressof(c_char.from_buffer(numbers))  # four times as fast as the other way
    except (TypeError, ValueError):  # the array is read-only, not contiguous, or empty
        return int(numbers.__array_interface__["data"][0])


def _enter(arguments: tuple[Any, ...], numbers: list[int]) -> tuple[Any, ...]:
    """Append to `numbers` everything from which arguments can be made again, and return their
    kinds.

    The kind of an array is its dtype and number of axes; the kind of a tuple is the kinds of its
    parts.
    """
    kinds: list[Any] = []
    for value in arguments:
        if isinstance(value, np.ndarray):
            if not value.flags.c_contiguous:
                raise ValueError("an array of a call is not contiguous")
            numbers.append(address(value))
            numbers.extend(value.shape)
            kinds.append((value.dtype, value.ndim))
        elif type(value) is tuple:
            kinds.append(_enter(value, numbers))
        else:
            numbers.append(operator.index(value))
            kinds.append(bool if type(value) is bool else int)
    return tuple(kinds)


def _expression(kind: Any, places: Iterator[int]) -> str:
    """Return the source that makes an argument again from the next places of a table."""
    if isinstance(kind, tuple) and kind and isinstance(kind[0], np.dtype):
        dtype, axes = kind
        pointer = {"f4": "at4", "f8": "at8", "i8": "at_integer"}[dtype.str[1:]]
        first = f"{pointer}(table[{next(places)}])"
        return f"carray({first}, ({''.join(f'table[{next(places)}], ' for _ in range(axes))}))"
    if isinstance(kind, tuple):
        return f"({''.join(_expression(part, places) + ', ' for part in kind)})"
    return f"table[{next(places)}]{' != 0' if kind is bool else ''}"


@functools.cache
def _entry(function: Any, kind: tuple[Any, ...]) -> int:
    """Return the address of a function that takes the address of its arguments, and calls
    `function` with them.
    """
    places = itertools.count()
    arguments = "".join(_expression(part, places) + ", " for part in kind)
    source = f"""def entry(at, first, last):
    table = carray(at_integer(at), ({next(places)},))
    function({arguments}first, last)
"""
    module = jit.new_module(
        f"{function.__module__}.{function.__name__}", {"function": function}, source
    )
    jit.bind(module, (module.entry,), counted=True)
    return _address(module.entry)


@functools.cache
def _address(function: Any) -> int:
    """Return the address of a function that takes the address of its arguments, `first` and
    `last`.
    """
    from numba import types

    from xlstm.engines.numba import llvm

    return int(llvm.address(function, types.void(*[types.int64] * 3)))


@functools.cache
def _compiled() -> ModuleType:
    """Return the functions of `work_queue.py`, compiled."""
    names = {name: value for name, value in vars(work_queue).items() if isinstance(value, int)}
    module = jit.new_module(inspect.getsource(work_queue), names)
    jit.bind(
        module, [f for f in vars(work_queue).values() if isinstance(f, FunctionType)], counted=True
    )
    module.help_others(queue)  # compiled here, not by a worker
    return module


class Worker(threading.Thread):
    """A daemon thread that helps with calls; if there are none for a while, it sleeps until a bell
    wakes it.
    """

    def __init__(self, help_others: Callable[..., None]) -> None:
        super().__init__(name="xlstm", daemon=True)
        self.help_others = help_others
        self.bell = SimpleQueue[None]()
        self.asleep = False

    def run(self) -> None:
        """Help until the process ends."""
        while True:
            self.help_others(queue)
            self.asleep = True
            self.help_others(queue)  # a thread may just have seen this worker awake
            self.bell.get()
            self.asleep = False


workers: list[Worker] = []


def employ(wanted: int, help_others: Callable[..., None]) -> int:
    """Return the number of awake workers: at most `wanted`, and at most one less than there are
    cores.

    Workers start when they are first needed, and run a function of `work_queue.py` again and again.
    An interrupt may leave a worker that is never used again. When the process ends, threads stop
    and none can start.
    """
    if wanted <= 0 or sys.is_finalizing():
        return 0
    wanted = min(wanted, cores.usable() - 1)
    try:
        while len(workers) < wanted:
            worker = Worker(help_others)
            worker.start()
            workers.append(worker)
    except RuntimeError:  # no more threads can start
        wanted = len(workers)
    for worker in workers[:wanted]:
        if worker.asleep:
            worker.bell.put(None)
    return wanted


def _forget() -> None:
    """Forget the workers of the parent process, and their work."""
    workers.clear()
    queue[:] = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
