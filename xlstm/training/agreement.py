"""Places where all ranks meet: they exchange errors, compare settings and receive rank 0's
decisions.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.capture import capturing
from xlstm.arrays.groups import Group, OtherRankError, odd_ranks


class KeepsError(Protocol):
    """A rank that keeps its error until all ranks meet."""

    error: Exception | None


@contextlib.contextmanager
def together(ranks: KeepsError | None) -> Iterator[None]:
    """Note an error that all ranks raise at the same place, so that they can still act together."""
    try:
        yield
    except Exception as error:
        if ranks is not None and not isinstance(error, ApartError):
            ranks.error = error
        raise


@contextlib.contextmanager
def held(ranks: KeepsError | None) -> Iterator[None]:
    """Keep an error of this rank until all ranks meet; without other ranks, or while a graph is
    captured, raise it at once.
    """
    try:
        yield
    except Exception as error:
        if ranks is None or capturing() is not None:
            raise
        ranks.error = error


class ApartError(RuntimeError):
    """An error: ranks have met at different places of the program."""


class Said(NamedTuple):
    """The message of a rank where all meet: the place in words, the rank's error, and a value."""

    place: str
    problem: str | None
    what: Any


def told(group: Group, place: str, error: Exception | None, what: Any = None) -> list[Any]:
    """Return the values that all ranks send at a place; raise this rank's error, or name another
    rank that has one.
    """
    problem = None if error is None else f"{type(error).__name__}: {error}"
    every = group.tell(Said(place, problem, what))
    for rank, said in enumerate(every):
        there = said.place if isinstance(said, Said) else "`tell`"
        if there != place:
            raise ApartError(
                f"rank {rank} of {group.size} is at {there}, rank {group.rank} at {place}; all"
                " ranks are to go through the same steps"
            ) from error
    if error is not None:
        raise error
    for rank, said in enumerate(every):
        if said.problem is not None:
            raise OtherRankError(f"rank {rank} of {group.size} cannot go on: {said.problem}")
    return [said.what for said in every]


def of_first(group: Group | None, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function on rank 0 alone, and return its result with the same bits on all ranks.

    All ranks raise an error of the function.
    """
    if group is None or group.size == 1:
        return function(*args)
    error = None
    pickled = b""
    if group.rank == 0:
        try:
            pickled = pickle.dumps(function(*args))
        except Exception as problem:
            error = problem
    size = told(group, "what rank 0 decides", error, len(pickled))[0]
    numbers = np.frombuffer(bytearray(pickled or size), np.uint8)
    group.share([numbers])
    # Rank 0 also reads it back: the layout of arrays in memory decides how sums are rounded.
    return pickle.loads(numbers.data)


def same(
    group: Group,
    where: str,
    settings: dict[str, Any] | None,
    beside: Any = None,
    error: Exception | None = None,
) -> Any:
    """Return the value that rank 0 sends with its settings; raise ValueError if a rank's settings
    differ from those of most ranks.
    """
    every = told(group, "the comparison of settings", error, (settings, beside))
    for name in every[0][0]:
        values = [of_rank.get(name) for of_rank, _ in every]
        common, odd = odd_ranks(values)
        if odd:
            difference = different(name, values[odd[0]], common, f" of rank {odd[0]}")
            raise ValueError(
                f"{where}: {difference} as on other ranks; give all ranks the same arguments and"
                " the whole data, of which `train` or `Shard` takes the part of each rank"
            )
    return every[0][1]


def different(name: str, there: Any, expected: Any, of: str = "") -> str:
    """Return in words how a setting differs.

    A dict is described by its first entry that differs, a text from shortly before the difference.
    """
    if isinstance(there, dict) and isinstance(expected, dict):
        for key in {**expected, **there}:
            if there.get(key) != expected.get(key):
                return different(f"{name}[{key!r}]", there.get(key), expected.get(key), of)
    if isinstance(there, str) and isinstance(expected, str):
        common = os.path.commonprefix((there, expected))  # noqa: RUF071 (of texts, not of paths)
        start = max(0, len(common) - 32)
        there = there[start:]
        expected = expected[start:]
    return f"{name}{of} is {checks.shown(there)}, expected {checks.shown(expected)}"
