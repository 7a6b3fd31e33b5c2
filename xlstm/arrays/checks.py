"""Checks of arguments, whose errors name the caller, the argument, its value and the expectation.

There is one function for each kind of argument. It takes the caller's name, the argument's name and
its value. It returns the value as a plain Python value (an int for a NumPy integer), or raises
ValueError or TypeError. `fields` applies these checks to the fields of a frozen dataclass, so that
equality, hashing and JSON see plain values.

Sizes are at most `LARGEST`, so that the bytes of any weight can be counted in 64 bits, and numbers
of layers at most `DEEPEST`. Numbers are at most `HUGE`, so that float32 holds them. Divisors are at
least `TINY`, so that float32 holds their reciprocals.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

Dims = Mapping[str, int | None]  # the sizes of a shape by their symbols; None allows any size
Kind = Callable[[str, str, Any], Any]

LARGEST = 2**28  # the largest size
DEEPEST = 2**16  # the most layers or blocks in a stack
COUNTED = 2**63 - 1  # the largest count of things that take no memory, such as steps
TINY = 1e-32
HUGE = 1e32
SEEDS = 2**128
NO_NUMBERS = (bool, np.timedelta64)  # types that Python and NumPy count among the whole numbers
SHOWN = 80  # the most characters of a value or of a name in an error
FEW = 16  # the most names in an error


def shown(value: Any) -> str:
    """Return a value as errors show it: its repr, cut if long, or an array's dtype and shape."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, type):
        return f"the class {value.__name__}"[:SHOWN]
    shape = getattr(value, "shape", None)
    dtype = getattr(value, "dtype", None)
    if isinstance(shape, tuple) and shape:
        kind = f"a {type(value).__name__}" if dtype is None else f"an array of {dtype}"
        return f"{kind} of shape {tuple(shape)}"[:SHOWN]
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = SHOWN
    try:
        text = " ".join(short.repr(value).split())
    except ValueError:  # Python writes no number of more than 4300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def fields(config: Any, **kinds: Kind) -> None:
    """Check the named fields of a frozen dataclass, and store their plain values."""
    where = type(config).__name__
    for name, kind in kinds.items():
        object.__setattr__(config, name, kind(where, name, getattr(config, name)))


def whole(low: int, high: int) -> Kind:
    """Return the check of a whole number from `low` to `high`."""

    def kind(where: str, name: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, NO_NUMBERS):
            raise TypeError(f"{where}: {name} is {shown(value)}, expected a whole number")
        number = int(value)
        if number < low:
            raise ValueError(f"{where}: {name} is {shown(value)}, expected {low} or more")
        if number > high:
            raise ValueError(f"{where}: {name} is {shown(value)}, expected at most {high}")
        return number

    return kind


size = whole(1, LARGEST)
size_or_0 = whole(0, LARGEST)
depth = whole(1, DEEPEST)
count = whole(1, COUNTED)
integer = whole(-COUNTED, COUNTED)


def any_number(where: str, name: str, value: Any) -> float:
    """Check a real number; NaN and infinity are allowed."""
    if not isinstance(value, Real) or isinstance(value, NO_NUMBERS):
        raise TypeError(f"{where}: {name} is {shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError:  # no float can hold this whole number or fraction
        return math.inf


def real(low: float, high: float, strict: bool = False) -> Kind:
    """Return the check of a number with low <= value < high, or low < value if `strict`."""

    def kind(where: str, name: str, value: Any) -> float:
        number = any_number(where, name, value)
        if not ((low < number if strict else low <= number) and number < high):
            came = value if isinstance(value, float) else shown(value)
            raise ValueError(
                f"{where}: {name} is {came}, expected {low} {'<' if strict else '<='} {name} <"
                f" {high}"
            )
        return number + 0.0  # turns -0.0 into 0.0

    return kind


rate = real(0, 1)
finite = real(-HUGE, HUGE)
non_negative = real(0, HUGE)
above_0 = real(0, HUGE, strict=True)
divisor = real(TINY, HUGE)
squared = real(0, 1e9)  # float32 holds its square times a layer's values


def accepted(
    accepts: Callable[[Any], bool], expected: str, plain: Callable[[Any], Any] = lambda value: value
) -> Kind:
    """Return the check of a value that `accepts` accepts; `plain` makes it a plain value.

    `expected` names such values in words.
    """

    def kind(where: str, name: str, value: Any) -> Any:
        if not accepts(value):
            raise TypeError(f"{where}: {name} is {shown(value)}, expected {expected}")
        return plain(value)

    return kind


def instance(types: type | tuple[type, ...], expected: str) -> Kind:
    """Return the check of an object of one of the types; `expected` names these in words."""
    return accepted(lambda value: isinstance(value, types), expected)


def having(*names: str, expected: str) -> Kind:
    """Return the check of an object, not a class, that has all these methods.

    `expected` names such objects in words.
    """
    return accepted(
        lambda value: (
            not isinstance(value, type) and all(hasattr(value, method) for method in names)
        ),
        expected,
    )


flag = accepted(lambda value: isinstance(value, bool | np.bool_), "True or False", bool)
text = accepted(lambda value: isinstance(value, str), "a string", str)
function = accepted(lambda value: callable(value) and not isinstance(value, type), "a function")


def path(where: str, name: str, value: Any) -> Path:
    """Check the path of a file or a folder."""
    if (
        not isinstance(value, str | os.PathLike)
        or not os.fspath(value)
        or "\0" in os.fsdecode(value)
    ):
        raise TypeError(f"{where}: {name} is {shown(value)}, expected a path")
    return Path(os.fsdecode(value))


def choice(names: Iterable[str]) -> Kind:
    """Return the check of one of these names."""

    def kind(where: str, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(
                f"{where}: {name} is {shown(value)}, expected one of {', '.join(names)}"
            )
        return str(value)

    return kind


def variable(name: str, allowed: Collection[str]) -> str:
    """Return the value of an environment variable, one of these, or "" if it is not set."""
    value = os.environ.get(name, "")
    if value and value not in allowed:
        raise ValueError(f"{name} is {shown(value)}, expected one of {', '.join(allowed)}")
    return value


def optional(kind: Kind) -> Kind:
    """Return the check of None, or of a value that `kind` accepts."""
    return lambda where, name, value: None if value is None else kind(where, name, value)


def word_or(word: str, kind: Kind) -> Kind:
    """Return the check of a word, or of a value that `kind` accepts."""
    return lambda where, name, value: (
        value if isinstance(value, str) and value == word else kind(where, name, value)
    )


def keeps(where: str, train: Any, keep: Any) -> bool:
    """Return whether a forward pass keeps values for backward: `keep`, by default `train`.

    Both must be True or False.
    """
    train = flag(where, "train", train)
    return bool(train if keep is None else flag(where, "keep", keep))


def saved(where: str, layer: Any, tape: Any, kind: type) -> None:
    """Raise unless `tape` is a `kind` that `forward` of an equal layer returned."""
    if not isinstance(tape, kind):
        raise TypeError(
            f"{where}: backward needs what forward saved, and forward(train=False) saves nothing"
        )
    maker = tape.layer  # type: ignore[attr-defined]
    if maker is not layer and maker != layer:
        raise ValueError(
            f"{where}: saved is what forward of {shown(maker)} kept, expected that of {shown(layer)}"
        )


def beside(where: str, home: Any, params: Mapping[str, Any]) -> None:
    """Raise unless the values that `forward` saved are on the parameters' device.

    A device of None is not known.
    """
    name, first = next(iter(params.items()))
    if home not in (None, first.device):
        raise TypeError(
            f"{where}: saved is on {home} but {name} on {first.device}, expected one device"
        )


def several(
    where: str, name: str, value: Any, expected: str, kind: Kind | None = None, most: int = LARGEST
) -> list[Any]:
    """Return the items of a collection, at most `most`, each checked by `kind`.

    `expected` names such a collection in words.
    """
    flat = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping | type)
    if not flat or (isinstance(value, np.ndarray) and value.ndim != 1):
        raise TypeError(f"{where}: {name} is {shown(value)}, expected {expected}")
    if len(value) > most:
        raise ValueError(f"{where}: {name} has {len(value)} entries, expected at most {most}")
    return (
        list(value)
        if kind is None
        else [kind(where, f"{name}[{k}]", item) for k, item in enumerate(value)]
    )


def rising(least: int) -> Kind:
    """Return the check of at least `least` numbers between 0 and 1 that rise."""

    def kind(where: str, name: str, value: Any) -> tuple[float, ...]:
        expected = "rising numbers between 0 and 1"
        numbers = several(where, name, value, expected, real(0, 1, strict=True))
        if len(numbers) < least or numbers != sorted(set(numbers)):
            raise ValueError(f"{where}: {name} is {shown(value)}, expected {expected}")
        return tuple(numbers)

    return kind


def is_masked(value: Any) -> bool:
    """Return whether a value is a masked array of NumPy.

    NumPy's module for these is imported only if the value is a subclass of arrays.
    """
    is_subclass = isinstance(value, np.ndarray) and type(value) is not np.ndarray
    return is_subclass and isinstance(value, np.ma.MaskedArray)


def unmasked(where: str, name: str, value: Any) -> None:
    """Raise TypeError for a masked array of NumPy: no computation takes its mask into account."""
    if is_masked(value):
        raise TypeError(
            f"{where}: {name} is a masked array, expected an array without a mask, as its filled()"
            " gives"
        )


def host(where: str, name: str, value: Any, expected: str) -> np.ndarray[Any, Any]:
    """Return an argument on the host as a NumPy array.

    `expected` names it in words, with its shape.
    """
    unmasked(where, name, value)
    if isinstance(value, type):
        raise TypeError(f"{where}: {name} is {shown(value)}, expected {expected}")
    if isinstance(value, range) and len(value) > LARGEST:
        raise ValueError(f"{where}: {name} has {len(value)} entries, expected {expected}")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(f"{where}: {name} is ragged, expected {expected}") from None
    if array.ndim > 1 and isinstance(value, list | tuple):
        for k, item in enumerate(value):
            unmasked(where, f"{name}[{k}]", item)
    return array


def seed(where: str, name: str, value: Any) -> Any:
    """Check a whole number from 0 up, or a `numpy.random.Generator`."""
    return value if isinstance(value, np.random.Generator) else seed_number(where, name, value)


def seed_number(where: str, name: str, value: Any) -> int:
    """Check a whole number from 0 up, of at most 128 bits."""
    if (
        not isinstance(value, Integral)
        or isinstance(value, NO_NUMBERS)
        or not 0 <= int(value) < SEEDS
    ):
        raise ValueError(f"{where}: {name} is {shown(value)}, expected a whole number from 0 up")
    return int(value)


def heads(where: str, num_heads: int, named: str = "num_heads", **sizes: int) -> None:
    """Raise ValueError unless the number of heads, the argument `named`, divides every size."""
    for name, value in sizes.items():
        if value % num_heads:
            raise ValueError(
                f"{where}: {name} is {value}, expected a multiple of {named}, {num_heads}"
            )


def shape(where: str, name: str, array: Any, expected: Dims) -> None:
    """Raise unless `array` is an array and has the shape `expected`, a dict of symbol to size."""
    try:
        own = getattr(array, "shape", None)
    except RuntimeError:  # a nested tensor of PyTorch has no shape
        own = None
    if own == tuple(expected.values()):
        return
    if not isinstance(own, tuple):
        raise TypeError(f"{where}: {name} is a {type(array).__name__}, expected an array")
    own = tuple(own)
    pairs = zip(expected.values(), own, strict=False)
    if len(own) == len(expected) and all(n is None or n == m for n, m in pairs):
        return
    symbols = _tuple(expected)
    sizes = _tuple([s if n is None else str(n) for s, n in expected.items()])
    equals = "" if symbols == sizes else f" = {sizes}"
    raise ValueError(f"{where}: {name} has shape {own}, expected {symbols}{equals}")


def mapping(where: str, arrays: Any, name: str = "parameters") -> dict[str, Any]:
    """Return a mapping of names to arrays, at least one, as a dict."""
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"{where}: {name} are a {type(arrays).__name__}, expected a dict of name to array"
        )
    if not arrays:
        raise ValueError(
            f"{where}: {name} are empty, expected a dict of name to array, as from init"
        )
    for key in arrays:
        text(where, f"a name among {name}", key)
    return dict(arrays)


def params(where: str, arrays: Any, expected: Mapping[str, Dims]) -> None:
    """Raise ValueError unless `arrays` has exactly the names and shapes of `expected`."""
    if not isinstance(arrays, Mapping):
        mapping(where, arrays)
    for name, dims in expected.items():
        if name not in arrays:
            raise ValueError(f"{where}: parameter {name} is missing, expected {few(expected)}")
        shape(where, name, arrays[name], dims)
    if len(arrays) > len(expected):
        surplus = next(name for name in arrays if name not in expected)
        raise ValueError(
            f"{where}: parameter {few([str(surplus)])} is unknown, expected {few(expected)}"
        )


def few(names: Iterable[str]) -> str:
    """Return names in one line, with long names cut, and at most `FEW` of them."""
    listed = list(names)
    line = ", ".join(
        name if len(name) <= SHOWN else f"{name[: SHOWN - 3]}..." for name in listed[:FEW]
    )
    return line if len(listed) <= FEW else f"{line} and {len(listed) - FEW} more"


def _tuple(parts: Collection[str]) -> str:
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
