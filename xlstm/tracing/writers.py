"""Traces written as C for CUDA or as Python for Numba.

Each operation is written once, in the widest kind of its operands. The kinds of numbers are "float"
and "double"; constants of the trace do not widen others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from xlstm.tracing.symbols import CONDITIONS, Line, UntraceableError

CASTS = {"single": "float", "double": "double"}
LIBM = ("expm1", "log")  # functions of libm in Python: a loop that calls one is not vectorised

ARITHMETIC = {
    **{
        "add": "{} + {}",
        "subtract": "{} - {}",
        "multiply": "{} * {}",
        "divide": "{} / {}",
        "negative": "-{}",
    },
    **{
        "equal": "{} == {}",
        "less": "{} < {}",
        "less_equal": "{} <= {}",
        "single": "{}",
        "double": "{}",
    },
}


class Writer:
    """Writes the lines of a trace.

    Parameters
    ----------
    lines
        As from `trace`.
    load, store
        `load(name, row)` is the expression for an input, `store(name, row, value)` the statement
        that stores an output.
    kinds : {"float", "double"} or dict of str to str
        The kind to compute everything in, or the kind of each input by name.
    default : {"float", "double"}
        The kind of operations on numbers alone.
    """

    LANGUAGE: ClassVar[str]
    FORMS: ClassVar[Mapping[str, str]]  # operations; {k} is the suffix of a kind
    SUFFIXES: ClassVar[Mapping[str, str]]
    LITERAL: ClassVar[str]
    CAST: ClassVar[str]
    ASSIGN: ClassVar[str]
    # The parts of a loop over a row, which `reductions.RowWriter` assembles.
    REDUCTIONS: ClassVar[Mapping[str, tuple[str, str, str]]]
    LOOP: ClassVar[tuple[str, ...]]
    ONCE: ClassVar[tuple[str, ...]] = ()  # around statements for the whole row

    def __init__(
        self,
        lines: Sequence[Line],
        load: Callable[[str, int | None], str],
        store: Callable[[str, int | None, str], str],
        kinds: str | Mapping[str, str],
        default: str = "double",
    ) -> None:
        self.lines = lines
        self.load = load
        self.store = store
        self.forms = self.FORMS
        of_all = kinds if isinstance(kinds, str) else None
        self.default = of_all or default
        # The kinds of variables, None for variables made only of constants.
        self.kinds: dict[str, str | None] = {}
        self.numbers: dict[str, float] = {}
        for to, _, op, args in lines:
            if op == "number":
                self.numbers[to] = args[0]
                self.kinds[to] = of_all
            elif op == "input":
                self.kinds[to] = of_all or kinds[args[0]]
            elif op != "store":
                self.kinds[to] = "bool" if op in CONDITIONS else CASTS.get(op) or self._widest(args)

    def _widest(self, args: Sequence[str]) -> str | None:
        there = {self.kinds[a] for a in args}
        return next((kind for kind in ("double", "float") if kind in there), None)

    def kind(self, v: str) -> str:
        """Return the kind of a variable."""
        return self.kinds[v] or self.default

    def operand(self, v: str, kind: str) -> str:
        """Return a variable or a number in a kind."""
        if v in self.numbers:
            return self.number(self.numbers[v], kind)
        return (
            v
            if self.kinds[v] in (kind, "bool")
            else self.CAST.format(v=v, kind=kind, k=self.SUFFIXES[kind])
        )

    def value(self, line: Line) -> str:
        """Return the expression of an operation or an input."""
        _, _, op, args = line
        if op == "input":
            return self.load(*args)
        if op not in self.forms:
            raise UntraceableError(f"tracing: {op} has no form in {self.LANGUAGE}")
        kind = CASTS.get(op) or self._widest(args) or self.default
        return self.forms[op].format(*(self.operand(a, kind) for a in args), k=self.SUFFIXES[kind])

    def statements(self, lines: Iterable[Line] | None = None) -> list[str]:
        """Return the statements of lines, by default of all of them.

        Raises
        ------
        UntraceableError
            An operation or a number has no form in the language.
        """
        statements = []
        for line in self.lines if lines is None else lines:
            if line.op == "store":
                v = line.args[0]
                statements.append(self.store(line.to, line.row, self.operand(v, self.kind(v))))
            elif line.op != "number":
                statements.append(
                    self.ASSIGN.format(kind=self.kind(line.to), to=line.to, value=self.value(line))
                )
        return statements

    def number(self, value: float, kind: str) -> str:
        """Return a literal."""
        if not math.isfinite(value):
            raise UntraceableError(f"tracing: the number {value} has no form in {self.LANGUAGE}")
        text = self.LITERAL.format(value, k=self.SUFFIXES[kind])
        return f"({text})" if text.startswith("-") else text

    def reduction(self, line: Line) -> tuple[str, str, str]:
        """Return a reduction's statements along a row: before the loop, for each unit, after it."""
        kind = self.kind(line.to)
        names = {
            "to": line.to,
            "kind": kind,
            "k": self.SUFFIXES[kind],
            "value": self.operand(line.args[0], kind),
        }
        begin, gather, end = (form.format(**names) for form in self.REDUCTIONS[line.op])
        return begin, gather, end


class C(Writer):
    """Writes C. Maximum and minimum keep NaN, as in NumPy.

    A block has a row, and `sync_row` adds it up.
    """

    LANGUAGE = "C"
    SUFFIXES: ClassVar = {"float": "f", "double": ""}
    LITERAL = "{!r}{k}"
    CAST = "({kind}){v}"
    ASSIGN = "const {kind} {to} = {value};"
    FORMS: ClassVar = {
        **ARITHMETIC,
        **{"and": "{} && {}", "where": "{} ? {} : {}", "abs": "fabs{k}({})"},
        "maximum": "({0} > {1} || {0} != {0}) ? {0} : {1}",
        "minimum": "({0} < {1} || {0} != {0}) ? {0} : {1}",
        **{name: f"{name}{{k}}({{}})" for name in ("tanh", "exp", "expm1", "log", "log1p", "sqrt")},
    }
    SUM = "{kind} part_{to} = 0;", "part_{to} += {value};"
    WHOLE = "const {kind} {to} = sync_row<{kind}>(part_{to}, ({kind}*)memory, "
    REDUCTIONS: ClassVar = {
        "sum": (*SUM, WHOLE + "false);"),
        "mean": (*SUM, WHOLE + "false) / columns;"),
        "max": (
            "{kind} part_{to} = -1.0f / 0.0f;",
            "part_{to} = ({value} > part_{to} || {value} != {value}) ? {value} : part_{to};",
            WHOLE + "true);",
        ),
    }
    # Without reductions, blocks along y share a row.
    LOOP = (
        (
            "for (int unit = blockIdx.y * blockDim.x + threadIdx.x; unit < columns; unit +="
            " gridDim.y * blockDim.x) {"
        ),
        "}",
    )
    ONCE = "if (threadIdx.x == 0) {", "}"


class Python(Writer):
    """Writes Python for Numba.

    F4, tanh4, exp8 and so on are the types and functions for numbers of 4 and 8 bytes.
    """

    LANGUAGE = "Python"
    SUFFIXES: ClassVar = {"float": "4", "double": "8"}
    LITERAL = "F{k}({!r})"
    CAST = "F{k}({v})"
    ASSIGN = "{to} = {value}"
    FORMS: ClassVar = {
        **ARITHMETIC,
        **{"and": "{} & {}", "where": "{1} if {0} else {2}", "abs": "abs({})"},
        "maximum": "{0} if ({0} > {1}) | ({0} != {0}) else {1}",
        "minimum": "{0} if ({0} < {1}) | ({0} != {0}) else {1}",
        **{name: f"{name}{{k}}({{}})" for name in ("tanh", "exp", "log1p")},
        **{name: f"F{{k}}(math.{name}({{}}))" for name in (*LIBM, "sqrt")},
    }
    REDUCTIONS: ClassVar = {"mean": ("{to} = F{k}(0)", "{to} += {value}", "{to} /= F{k}(columns)")}
    LOOP = ("for unit in range(U(columns)):",)

    def __init__(self, lines: Sequence[Line], *rest: Any, **options: Any) -> None:
        super().__init__(lines, *rest, **options)
        if any(line.op in LIBM for line in lines):  # without vectors libm's exp is faster, too
            self.forms = {**self.FORMS, "exp": "F{k}(math.exp({}))"}
