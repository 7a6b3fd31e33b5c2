"""Calls of compiled functions on several cores: a worker that waits begins within a microsecond.

The interpreter can run in one thread alone. To hand it from one thread to the next takes some 100 us where a thread has
to be woken, as long as many a product takes. So functions, with their arguments in memory, are handed over by
`work_queue`.
"""

from __future__ import annotations

import array
import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from ctypes import addressof, c_char
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from xlstm.arrays import cores
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import jit, work_queue, workers

PIECES = 8  # of a job, for each thread, so that all end at about the same time
WORTH = 1 << 21  # multiplications that a piece is worth, 20 us
LARGE = 1 << 22  # multiplications from which on a job is shared, 40 us: a worker that sleeps costs 5 us to wake

# The number n of what a call does, its compiled function, which is called as `function(*given, first, last)`, what is
# given (numbers, contiguous arrays, and tuples of them), and how many of the n stay together, or 0 for a part a thread.
Call = tuple[int, Callable[..., None], tuple[Any, ...], int]


def share(calls: Sequence[Call], work: int) -> None:
    """Do calls on as many threads as so many multiplications are worth.

    Raises
    ------
    MemoryError
        A function had no memory; results are incomplete.
    """
    size = cores.threads() if work > LARGE else 1
    helpers = workers.employ(size - 1, _compiled().help_others) if size > 1 else 0
    if not helpers:
        for n, function, given, _ in calls:
            function(*given, 0, n)
        return
    calls = [(n, function, given, unit or max(1, -(-n // size))) for n, function, given, unit in calls]
    fewest = min(-(-n // unit) for n, _, _, unit in calls)
    _lead(calls, helpers, max(size, min(PIECES * size, work // WORTH, fewest)), False)


def together(function: Callable[..., None], given: Sequence[tuple[Any, ...]]) -> None:
    """Call a compiled function with several lists of arguments, on as many threads.

    Raises
    ------
    MemoryError
        A function had no memory; results are incomplete.
    """
    helpers = workers.employ(len(given) - 1, _compiled().help_others) if len(given) > 1 else 0
    if helpers:
        _lead([(1, function, own, 1) for own in given], helpers, len(given), True)
    else:
        for own in given:
            function(*own)


def _lead(calls: Sequence[Call], helpers: int, pieces: int, apart: bool) -> None:
    """Do calls with so many helpers, in pieces of all of them, or each by itself, without a first and a last one."""
    job, tables = array.array("q"), []
    for n, function, given, unit in calls:
        numbers: list[int] = []
        entry = _entry(function, _enter(given, numbers), not apart)
        tables.append(table := array.array("q", numbers))
        job.extend((entry, table.buffer_info()[0], n, unit))
    if _compiled().lead(workers.queue, job.buffer_info()[0], len(calls), apart, helpers, pieces):
        raise MemoryError("a compiled function of xlstm had no memory")


def address(numbers: Array) -> int:
    """Return where the numbers of an array begin."""
    try:
        return addressof(c_char.from_buffer(numbers))  # in a fourth of the time of the other way
    except (TypeError, ValueError):  # it is read-only, not contiguous, or empty
        return int(numbers.__array_interface__["data"][0])


def _enter(given: tuple[Any, ...], numbers: list[int]) -> tuple[Any, ...]:
    """Append what is needed to make arguments again from numbers, and return their kinds.

    The kind of an array is its dtype and number of axes, that of a tuple the kinds within it.
    """
    kinds: list[Any] = []
    for value in given:
        if type(value) is int:
            numbers.append(value)
            kinds.append(int)
        elif isinstance(value, np.ndarray):
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
    """Return the source that makes an argument again, from the next places of a table."""
    if isinstance(kind, tuple) and kind and isinstance(kind[0], np.dtype):
        dtype, axes = kind
        first = f"{dtype.str[1:]}(table[{next(places)}])"
        return f"carray({first}, ({''.join(f'table[{next(places)}], ' for _ in range(axes))}))"
    if isinstance(kind, tuple):
        return f"({''.join(_expression(one, places) + ', ' for one in kind)})"
    return f"table[{next(places)}]{' != 0' if kind is bool else ''}"


@functools.cache
def _entry(function: Any, kind: tuple[Any, ...], ranged: bool) -> int:
    """Return the address of a function that takes the address of its arguments, and calls another one with them."""
    from numba import types

    from xlstm.engines.numba import vectors

    places = itertools.count()
    arguments = "".join(_expression(one, places) + ", " for one in kind)
    source = f"""def entry(at, first, last):
    table = carray(i8(at), ({next(places)},))
    function({arguments}{"first, last" if ranged else ""})
"""
    found = jit.new_module(f"{function.__module__}.{function.__name__}{source}")
    found.__dict__.update(_common(), function=function)
    exec(source, found.__dict__)
    jit.bind(found, (found.entry,), counted=True)
    return int(vectors.address(found.entry, types.void(*[types.int64] * 3)))


def _common() -> dict[str, Any]:
    import numba

    from xlstm.engines.numba import shared_memory

    return {"carray": numba.carray, "f4": shared_memory.at4, "f8": shared_memory.at8, "i8": shared_memory.at_integer}


@functools.cache
def _compiled() -> ModuleType:
    """Return the functions of `work_queue.py`, compiled."""
    from xlstm.engines.numba import shared_memory, vectors

    found = jit.new_module("".join(inspect.getsource(module) for module in (work_queue, shared_memory, vectors)))
    places = {name: value for name, value in vars(work_queue).items() if isinstance(value, int)}
    found.__dict__.update(_common(), **places, integers=shared_memory.at_integer, call_part=vectors.call_part)
    names = ("count_up", "count_of", "put", "swap", "let_others_run", "acquire", "release")
    found.__dict__.update({name: getattr(shared_memory, name) for name in names})
    own = tuple(f for name, f in vars(work_queue).items() if isinstance(f, FunctionType) and name not in vars(found))
    jit.bind(found, own, counted=True)
    found.help_others(workers.queue, 0, 0)  # compiled here, and not by a worker
    return found
