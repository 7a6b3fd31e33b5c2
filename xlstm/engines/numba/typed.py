"""Traces written as Python whose numbers have types: each operation is in the widest dtype of its operands, as on CuPy.

Names of functions end in 4 or 8, the bytes of a number; `helpers` has these functions.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from xlstm.arrays import fuse
from xlstm.engines.numba import jit, maths
from xlstm.engines.numba.codegen import FORMS
from xlstm.tracing.symbols import CONDITIONS, Line

HELPERS = ("tanh", "exp", "log1p")  # functions of `maths.py`
KINDS: dict[Any, str] = {np.dtype("float32"): "4", np.dtype("float64"): "8"}  # bytes of a number, which end names


class Writer:
    """Writes the operations of a trace as expressions, in the order of the trace.

    Attributes
    ----------
    types : dict
        The kind of each variable: "4", "8" or "bool", and None of numbers alone.
    """

    def __init__(self) -> None:
        self.types: dict[str, str | None] = {}
        self._numbers: dict[str, float] = {}

    def number(self, line: Line) -> None:
        """Take note of a number, which stands where it is used."""
        self._numbers[line.to], self.types[line.to] = line.args[0], None

    def expression(self, line: Line) -> str:
        """Return an operation as an expression, and take note of its type."""
        op, args = line.op, line.args
        wide = max((self.types[a] or "" for a in args if self.types[a] != "bool"), default="")
        kind = {"double": "8", "single": "4"}.get(op, wide) or "8"  # of numbers alone
        self.types[line.to] = "bool" if op in CONDITIONS else kind if wide or op in ("double", "single") else None
        if op == "mean":
            form = "{}"
        elif op in HELPERS:
            form = f"{op}{kind}({{}})"
        else:
            form = "{}" if op in ("double", "single") else FORMS[op].replace("F(", f"F{kind}(")
        return form.format(*(self.operand(a, kind) for a in args))

    def operand(self, name: str, kind: str) -> str:
        """Return a variable or a number as a number of a kind."""
        if name in self._numbers:
            return f"F{kind}({self._numbers[name]!r})"
        return name if self.types[name] in (kind, "bool") else f"F{kind}({name})"


def function(
    name: str, formula: Callable[..., Any], inputs: Mapping[str, str], real: str, options: Mapping[str, Any]
) -> str:
    """Return the source of a formula as a function of single numbers.

    Parameters
    ----------
    name : str
    formula : callable
        Pure and element by element, `formula(xp, *arrays, **options)`.
    inputs : dict of str to str
        The kind of each argument, "4" or "8".
    real : str
        The kind of results that are computed from conditions and numbers alone.
    options : dict
        Options of the formula.
    """
    writer, body, given = Writer(), [], list(inputs)
    stores: list[str] = []
    for line in fuse.traced(formula, len(inputs), tuple(options.items())):
        if line.op == "number":
            writer.number(line)
        elif line.op == "input":
            k = int(line.args[0][1:])
            writer.types[line.to] = inputs[given[k]]
            body.append(f"{line.to} = {given[k]}")
        elif line.op == "store":
            stores.append(writer.operand(line.args[0], writer.types[line.args[0]] or real))
        else:
            body.append(f"{line.to} = {writer.expression(line)}")
    text = [f"def {name}({', '.join(given)}):", *(f"    {one}" for one in body), f"    return {', '.join(stores)}"]
    return "\n".join([*text, ""])


@functools.cache
def helpers() -> ModuleType:
    """Return a module with the functions that the expressions call."""
    import numba

    from xlstm.engines.numba import pointers

    found = jit.new_module("".join(inspect.getsource(module) for module in (maths, pointers)))
    for dtype, kind in KINDS.items():
        own = jit.new_module(f"{found.__name__} {dtype}")
        jit.bind_maths(own, str(dtype))
        found.__dict__.update({f"F{kind}": dtype.type, **{f"{name}{kind}": getattr(own, name) for name in HELPERS}})
    found.__dict__.update(at4=pointers.at4, at8=pointers.at8, carray=numba.carray, U=np.uintp, math=math)
    return found
