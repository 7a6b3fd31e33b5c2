"""Objects that are named by text, and imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any


def imported(place: str) -> Any:
    """Return the object at "module:name"."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def attribute(module: str, places: Mapping[str, str], name: str) -> Any:
    """Return an attribute of a module that is defined in a module below it, for its `__getattr__`.

    `places` has the modules below by the names of attributes.
    """
    if name not in places:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return imported(f"{module}.{places[name]}:{name}")
