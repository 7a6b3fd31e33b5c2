"""Calls of compiled functions on several cores: a worker that waits begins within a microsecond.

The interpreter can run in one thread alone. To hand it from one thread to the next takes some 100 us where a thread has
to be woken, as long as many a product takes. So functions, with their arguments in memory, are handed over by `board`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import pool, threads
from xlstm.arrays.namespace import Array
from xlstm.engines.numba import board, jit

TURNS = 2000  # times that a worker looks for work before it sleeps, some 0.5 ms
PIECES = 8  # of a job, for each thread, so that all end at about the same time
WORTH = 1 << 21  # multiplications that a piece is worth, 20 us


class Call(NamedTuple):
    """A call of a compiled function, `function(*given, first, last)`, for what it does from a first to a last one."""

    n: int | None  # how many there are; None where the function takes no first and last one, and does all at once
    function: Callable[..., None]
    given: tuple[Any, ...]  # numbers, contiguous arrays, and tuples of them
    unit: int = 1  # so many are done together

    def __call__(self) -> None:
        """Do all of it in this thread."""
        self.function(*self.given, *(() if self.n is None else (0, self.n)))


def share(calls: Sequence[Call], work: int) -> None:
    """Do calls on as many threads as so many multiplications are worth.

    Raises
    ------
    MemoryError
        A function had no memory; results are incomplete.
    """
    size = threads.wanted() if work > threads.LARGE else 1
    pieces = min(PIECES * size, max(size, work // WORTH), max(-(-(call.n or 1) // call.unit) for call in calls))
    _run(calls, size, pieces, False)


def together(calls: Sequence[Call]) -> None:
    """Do calls, each as a whole in one thread, on as many threads as there are calls.

    Raises
    ------
    MemoryError
        A function had no memory; results are incomplete.
    """
    _run(calls, len(calls), len(calls), True)


def _run(calls: Sequence[Call], size: int, pieces: int, apart: bool) -> None:
    helpers = pool.employ(size - 1) if pieces > 1 else 0
    if not helpers:
        for call in calls:
            call()
        return
    job, tables = np.empty((len(calls), 4), np.int64), []
    for k, call in enumerate(calls):
        numbers: list[int] = []
        kind = _enter(call.given, numbers)
        tables.append(np.array(numbers, np.int64))
        entry = _entry(call.function, kind, call.n is not None)
        job[k] = entry, _address(tables[-1]), 1 if call.n is None else call.n, call.unit
    if _compiled().lead(pool.board, _address(job), len(calls), apart, helpers, pieces):
        raise MemoryError("a compiled function of xlstm had no memory")


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _enter(value: Any, numbers: list[int]) -> Any:
    """Append what is needed to make an argument again from numbers, and return its kind."""
    if isinstance(value, tuple):
        return tuple([_enter(one, numbers) for one in value])
    if isinstance(value, np.ndarray):
        numbers += (_address(value), *value.shape)
        return value.dtype.str[1:] + str(value.ndim)
    numbers.append(int(value))
    return type(value) is bool


def _expression(kind: Any, places: Iterator[int]) -> str:
    """Return the source that makes an argument again, from the next places of a table."""
    if isinstance(kind, tuple):
        return f"({''.join(_expression(one, places) + ', ' for one in kind)})"
    first = f"table[{next(places)}]"
    if not isinstance(kind, str):
        return f"{first} != 0" if kind else first
    shape = "".join(f"table[{next(places)}], " for _ in range(int(kind[2:])))
    return f"carray({kind[:2]}({first}), ({shape}))"


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

    from xlstm.engines.numba import pointers

    return {"carray": numba.carray, "f4": pointers.at4, "f8": pointers.at8, "i8": pointers.at_integer}


@functools.cache
def _compiled() -> ModuleType:
    """Return the functions of `board.py`, compiled; from now on workers look at the board."""
    from xlstm.engines.numba import atomics, pointers, vectors

    found = jit.new_module("".join(inspect.getsource(module) for module in (board, atomics, pointers, vectors)))
    places = {name: value for name, value in vars(board).items() if isinstance(value, int)}
    found.__dict__.update(_common(), **places, integers=pointers.at_integer, call_part=vectors.call_part)
    names = ("count_up", "count_of", "put", "swap", "let_others_run")
    found.__dict__.update({name: getattr(atomics, name) for name in names})
    functions = (board.part, board.take, board.lead, board.help_others)
    jit.bind(found, tuple(f for f in functions if isinstance(f, FunctionType)), counted=True)
    # Compiled here: a worker would wait for the compiler, and with it a fork.
    found.help_others(np.zeros(pool.SIZE, np.int64), 1, 0, 0)
    pool.helping = functools.partial(_help, found.help_others)
    return found


def _help(compiled: Callable[..., None], worker: int, rings: int) -> None:
    compiled(pool.board, worker, rings, TURNS)
