"""Traces written as C: one assignment a line, each operation once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from xlstm.tracing.symbols import CONDITIONS, Line, UntraceableError

# Operations as C expressions. F stands for the end of a function's name: "f" for floats, nothing for doubles. Maximum
# and minimum keep NaN, as NumPy's do.
FORMS = {
    **{"add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "negative": "-{}"},
    **{"less": "{} < {}", "less_equal": "{} <= {}", "and": "{} && {}", "where": "{} ? {} : {}"},
    "maximum": "({0} > {1} || {0} != {0}) ? {0} : {1}",
    "minimum": "({0} < {1} || {0} != {0}) ? {0} : {1}",
    "abs": "fabsF({})",
    **dict.fromkeys(("single", "double"), "{}"),
    **{name: f"{name}F({{}})" for name in ("tanh", "exp", "expm1", "log", "log1p", "sqrt")},
}
SUFFIXES = {"float": "f", "double": ""}
CASTS = {"single": "float", "double": "double"}


def statements(
    lines: Sequence[Line],
    load: Callable[[str, int | None], str],
    store: Callable[[str, int | None, str], str],
    real: str | Mapping[str, str] = "float",
    kinds: dict[str, str | None] | None = None,
) -> list[str]:
    """Return the statements of a trace.

    Parameters
    ----------
    lines
        As from `trace`.
    load, store
        `load(name, row)` is the expression of an input, `store(name, row, value)` the statement that takes an output.
    real : {"float", "double"} or dict of str to str
        The type that is computed in, or that of each input by name: then each operation is in the widest type of its
        operands, where numbers widen none.
    kinds : dict, optional
        The types of variables that there are already, to which those of the statements are added.

    Raises
    ------
    UntraceableError
        An operation has no form in C.
    """
    all_in = real if isinstance(real, str) else None
    # Types of variables; a number has none of its own, unless all have the same.
    kinds = {} if kinds is None else kinds
    found = []
    for to, row, op, args in lines:
        if op == "store":
            found.append(store(to, row, args[0]))
            continue
        kind: str | None
        if op == "input":
            kind = real if isinstance(real, str) else real[args[0]]
            value = load(*args)
        elif op == "number":
            kind = all_in
            value = number(args[0], SUFFIXES[kind or "double"])
        elif op in FORMS:
            kind = CASTS.get(op) or _widest([kinds[a] for a in args])
            form = FORMS[op].replace("F(", f"{SUFFIXES[kind or 'double']}(")
            value = form.format(*(a if kinds[a] in (kind, "bool") else f"({kind or 'double'}){a}" for a in args))
        else:
            raise UntraceableError(f"tracing: {op} has no form in C")
        kinds[to] = "bool" if op in CONDITIONS else kind
        found.append(f"const {kinds[to] or 'double'} {to} = {value};")
    return found


def _widest(kinds: Sequence[str | None]) -> str | None:
    return "double" if "double" in kinds else "float" if "float" in kinds else None


def number(value: float, suffix: str) -> str:
    """Return a literal; a negative one is in brackets."""
    if not math.isfinite(value):
        raise UntraceableError(f"tracing: the number {value} has no form in C")
    text = f"{value!r}{suffix}"
    return f"({text})" if value < 0 else text
