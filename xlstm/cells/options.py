"""The numbers among the options of cells, which all gated recurrent layers treat alike.

A number such as `clip` changes what a cell computes, but not the operations that compute it. Code made from a trace of
a cell takes these numbers as arguments, so that it is compiled once for all of their values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

from xlstm.arrays.namespace import Array, Namespace
from xlstm.cells.activations import PARAMETERS, Activation, Pair, clamp, pair, parse


class Options:
    """Base of a cell, which is a frozen dataclass; its activations, where it has any, are the field `activations`."""

    @functools.cached_property
    def numbers(self) -> dict[str, float]:
        """Options that are numbers, by name: fields, and parameters of activations such as `alpha0` of the first."""
        found = {name: float(value) for name, value in self._fields.items() if type(value) in (int, float)}
        for k, (_, values) in enumerate(self._activations):
            found |= {f"{name}{k}": value for name, value in zip(PARAMETERS, values, strict=False)}
        return found

    @functools.cached_property
    def form(self) -> Self:
        """The cell with 1 for each number: cells with the same form run in the same compiled code."""
        return self.given(dict.fromkeys(self.numbers, 1.0))

    def given(self, numbers: Mapping[str, Any]) -> Self:
        """The cell with these values of all its `numbers`; they may be arrays or symbols."""
        changed: dict[str, Any] = {name: value for name, value in numbers.items() if name in self._fields}
        if self._activations:
            changed["activations"] = tuple(
                Activation(name, tuple(numbers[f"{parameter}{k}"] for parameter in PARAMETERS[: len(values)]))
                for k, (name, values) in enumerate(self._activations)
            )
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    @functools.cached_property
    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @functools.cached_property
    def _activations(self) -> tuple[Activation, ...]:
        return tuple(parse(one) for one in self._fields.get("activations", ()))

    def _rows(self, xp: Namespace, z: Array | None, *rows: int) -> list[Array | None]:
        """Return rows of pre-activations within `clip`, or None each where no activation needs its input."""
        if z is None or not any(pair.from_input for pair in self._pairs):
            return [None] * len(rows)
        clip = self._fields["clip"]
        return [z[k, ...] if clip is None else clamp(xp, z[k, ...], clip) for k in rows]

    @functools.cached_property
    def _pairs(self) -> tuple[Pair, ...]:
        return tuple(pair(one) for one in self._activations)
