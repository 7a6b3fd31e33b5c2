"""Keys of configurations that other libraries write: their defaults, the values that they take, and our options."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from xlstm.arrays import checks
from xlstm.arrays.checks import shown


class Key(NamedTuple):
    """A key: the value where it is missing, the check of a value, and our option of the same meaning."""

    usual: Any
    check: checks.Kind
    ours: str = ""


Keys = dict[str, Key]


def anything(where: str, name: str, value: Any) -> Any:
    """Return a value that is checked elsewhere."""
    return value


def needed(check: checks.Kind, ours: str = "") -> Key:
    """Return a key without which there is no model."""
    return Key(_Missing, check, ours)


class _Missing:
    """The default of a key that has none."""


def take(
    config: Any, known: Keys, where: str, ignored: Collection[str] = (), fixed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the values of the known keys, with defaults where they are missing.

    `ignored` are keys that change nothing here, and `fixed` those that have no option here, with the only value that
    ours amounts to. Raise ValueError or TypeError if a key is unknown or missing, a value is of another type or out of
    range, or it means something that ours has no option for.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"{where}: is a {type(config).__name__}, expected a dict")
    for name, value in config.items():
        if not isinstance(name, str):
            raise TypeError(f"{where}: key {shown(name)} is a {type(name).__name__}, expected text")
        if name in known or name in ignored or name.startswith("_"):
            continue
        if fixed is None or name not in fixed:
            raise ValueError(f"{where}: key {shown(name)} is unknown, expected some of {', '.join(known)}")
        only(where, name, value, fixed[name])
    missing = [name for name, key in known.items() if key.usual is _Missing and config.get(name) is None]
    given = {name: config.get(name, key.usual) for name, key in known.items() if name not in missing}
    found = {name: known[name].check(where, name, value) for name, value in given.items()}
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    return found


def only(where: str, name: str, value: Any, expected: Any) -> None:
    """Raise ValueError unless a key that ours has no option for has the one value that ours amounts to."""
    if value != expected:
        raise ValueError(f"{where}: {name} is {shown(value)}, which xlstm cannot express, expected {expected!r}")


def options(values: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """Return values of theirs under the names of our options."""
    return {key.ours: values[name] for name, key in keys.items() if key.ours}


def values(made: Any, keys: Keys) -> dict[str, Any]:
    """Return the options of a layer of ours under their names."""
    return {name: getattr(made, key.ours) for name, key in keys.items() if key.ours}


def factor(D: int, size: int) -> float:
    """Return a number that makes `size` of D when the product is rounded down."""
    factor = size / D
    return factor if int(D * factor) == size else math.nextafter(factor, math.inf)
