"""Shape checks at the door, worded the same everywhere: who, which array, what came, what was expected."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from xlstm.backend import Array

# A dimension that can be anything is None; otherwise the number it must be, under its symbol.
Dims = Mapping[str, int | None]

LARGEST = 2**28  # of a size
HUGE = 1e30  # of a number
SHOWN = 80  # characters of a value in an error


def shown(value: Any) -> str:
    """A value in an error: its repr, short however large the value is; an array by dtype and shape."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, type):
        return f"the class {value.__name__}"[:SHOWN]
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and shape and dtype is not None:
        return f"an array of {dtype} of shape {tuple(shape)}"[:SHOWN]
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = SHOWN
    try:
        text = " ".join(short.repr(value).split())
    except ValueError:  # Python writes out no number of more than 4300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def shape(where: str, name: str, array: Array, expected: Dims) -> None:
    """Raise ValueError unless `array` has the shape `expected`, a dict of symbol to size."""
    if array.shape == tuple(expected.values()):
        return
    found = tuple(array.shape)
    if len(found) == len(expected) and all(n is None or n == m for n, m in zip(expected.values(), found, strict=True)):
        return
    symbols = _tuple(expected)
    sizes = _tuple([s if n is None else str(n) for s, n in expected.items()])
    equals = "" if symbols == sizes else f" = {sizes}"
    raise ValueError(f"{where}: {name} has shape {found}, expected {symbols}{equals}")


def params(where: str, given: Any, expected: Mapping[str, Dims]) -> None:
    """Raise ValueError unless `given` has exactly the names and shapes of `expected`."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{where}: parameters are a {type(given).__name__}, expected a dict of name to array")
    for name, dims in expected.items():
        if name not in given:
            raise ValueError(f"{where}: parameter {name} is missing, expected {_few(expected)}")
        if not hasattr(given[name], "shape"):
            raise TypeError(f"{where}: {name} is a {type(given[name]).__name__}, expected an array")
        shape(where, name, given[name], dims)
    if len(given) > len(expected):
        surplus = next(name for name in given if name not in expected)
        raise ValueError(f"{where}: parameter {surplus} is unknown, expected {_few(expected)}")


def _few(names: Mapping[str, Any]) -> str:
    """Names in a line, not all of very many."""
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 16 else f"{', '.join(listed[:16])} and {len(listed) - 16} more"


def positive(where: str, **sizes: Any) -> None:
    """Raise unless every size is a whole number from 1 up."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise TypeError(f"{where}: {name} is {shown(size)}, expected a whole number")
        if size < 1:
            raise ValueError(f"{where}: {name} is {shown(size)}, expected 1 or more")
        if int(size) > LARGEST:
            raise ValueError(f"{where}: {name} is {shown(size)}, expected at most {LARGEST}")


def optional(where: str, **sizes: Any) -> None:
    """As `positive`, for sizes that may be None."""
    positive(where, **{name: size for name, size in sizes.items() if size is not None})


def heads(where: str, num_heads: Any, **sizes: Any) -> None:
    """Raise unless `num_heads` is a whole number from 1 up that divides every size."""
    positive(where, num_heads=num_heads)
    for name, size in sizes.items():
        if size % num_heads:
            raise ValueError(f"{where}: {name} is {size}, expected a multiple of num_heads, {num_heads}")


def one_of(where: str, known: Iterable[str], **values: Any) -> None:
    """Raise ValueError unless every value is one of the known names."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{where}: {name} is {shown(value)}, expected one of {', '.join(known)}")


def number(where: str, low: float, high: float, strict: bool = False, **values: Any) -> None:
    """Raise unless every value is a number with low <= value < high, or low < value if `strict`."""
    for name, value in values.items():
        if not isinstance(value, int | float | Real) or isinstance(value, bool):
            raise TypeError(f"{where}: {name} is {shown(value)}, expected a number")
        given: Any = value  # compared as it is: a whole number may be too large for a float
        above, most = low < given if strict else low <= given, min(high, HUGE)
        if not (above and given < most):
            expected = f"{low} {'<' if strict else '<='} {name} < {most}"
            raise ValueError(f"{where}: {name} is {shown(value)}, expected {expected}")


def _tuple(parts: Any) -> str:
    parts = list(parts)
    return f"({', '.join(parts)},)" if len(parts) == 1 else f"({', '.join(parts)})"
