"""Shape checks at the door, worded the same everywhere: who, which array, what came, what was expected."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from xlstm.backend import Array

# A dimension that can be anything is None; otherwise the number it must be, under its symbol.
Dims = Mapping[str, int | None]
LARGEST = 2**40  # a size; products of several still fit the arithmetic that they meet
LONGEST = 600  # characters of a message about a file, whatever the file holds


class _Short(reprlib.Repr):
    """Values as messages show them: parts of long ones, and no digits of a number that has too many."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxstring, self.maxother = 3, 6, 100, 300

    def repr_int(self, x: int, level: int) -> str:
        """A number, or its length."""
        return repr(x) if x.bit_length() < 200 else f"a number of {x.bit_length()} bits"


shown = _Short().repr


def cut(text: str) -> str:
    """A message without its middle where it is too long, and with escapes for what cannot be printed."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


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
            raise ValueError(f"{where}: parameter {name} is missing, expected {few(expected)}")
        if not hasattr(given[name], "shape"):
            raise TypeError(f"{where}: {name} is a {type(given[name]).__name__}, expected an array")
        shape(where, name, given[name], dims)
    if len(given) > len(expected):
        surplus = next(name for name in given if name not in expected)
        raise ValueError(f"{where}: parameter {surplus} is unknown, expected {few(expected)}")


def few(names: Iterable[str]) -> str:
    """Names in a line, not all of very many."""
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 16 else f"{', '.join(listed[:16])} and {len(listed) - 16} more"


def positive(where: str, **sizes: Any) -> None:
    """Raise unless every size is a whole number from 1 up."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise TypeError(f"{where}: {name} is {shown(size)}, expected a whole number")
        if not 1 <= int(size) <= LARGEST:
            bound = "1 or more" if size < 1 else f"at most {LARGEST}"
            raise ValueError(f"{where}: {name} is {shown(int(size))}, expected {bound}")


def optional(where: str, **sizes: Any) -> None:
    """As `positive`, for sizes that may be None."""
    positive(where, **{name: size for name, size in sizes.items() if size is not None})


def depth(where: str, layer: Any, count: int) -> None:
    """Raise ValueError if a layer has more layers or blocks than there are arrays, before all names are listed."""
    name = "num_blocks" if hasattr(layer, "num_blocks") else "num_layers"
    if getattr(layer, name) > count:
        raise ValueError(f"{where}: {name} is {getattr(layer, name)}, but the file has {count} arrays")


def heads(where: str, num_heads: Any, **sizes: Any) -> None:
    """Raise unless `num_heads` is a whole number from 1 up that divides every size."""
    positive(where, num_heads=num_heads, **sizes)
    for name, size in sizes.items():
        if size % num_heads:
            raise ValueError(f"{where}: {name} is {size}, expected a multiple of num_heads, {num_heads}")


def one_of(where: str, known: Iterable[str], **values: Any) -> None:
    """Raise ValueError unless every value is one of the known names."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{where}: {name} is {shown(value)}, expected one of {', '.join(known)}")


def number(where: str, low: float, high: float, strict: bool = False, **values: Any) -> None:
    """Raise unless every value is a number with low <= value < high, or low < value if `strict`."""
    for name, value in values.items():
        if not isinstance(value, int | float | Real) or isinstance(value, bool):
            raise TypeError(f"{where}: {name} is {shown(value)}, expected a number")
        given: Any = value  # compared as it is: a whole number may be too large for a float
        above = low < given if strict else low <= given
        if not (above and given < high and abs(given) <= sys.float_info.max):
            expected = f"{low} {'<' if strict else '<='} {name} < {high}"
            raise ValueError(f"{where}: {name} is {shown(value)}, expected {expected}")


def _tuple(parts: Any) -> str:
    parts = list(parts)
    return f"({', '.join(parts)},)" if len(parts) == 1 else f"({', '.join(parts)})"
