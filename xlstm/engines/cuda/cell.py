"""A cell as the templates know it: the arrays of a kernel, and C functions of one unit of one sequence.

State is what goes from step to step, Constant what is the same at all steps, Fetched what is read at a step and Result
what is written. The function `step` is the trace of the cell; the others move numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from xlstm.engines.cuda.tiling import Cell
from xlstm.engines.pointwise import Pointwise
from xlstm.tracing.c import statements
from xlstm.tracing.symbols import Line, trace

# forward keeps what backward needs, slim the carried states alone, lean nothing; again makes what the cell saves from
# what slim kept, for all steps at once.
KINDS = ("forward", "slim", "lean", "again", "backward")
WIDTH = "(HEADS * WIDTH)"  # units of all heads


class Names(NamedTuple):
    """What a kernel's arrays are called. A state s is s_0 before the first step and s_end after the last one."""

    read: tuple[str, ...]
    written: tuple[str, ...]
    real: tuple[str, ...] = ()  # read and written, in the type that is computed in
    numbers: tuple[str, ...] = ()  # no arrays: numbers among the cell's options, in the type that is computed in

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.read, *self.written, *self.real, *self.numbers)


@dataclass(frozen=True)
class CellText:
    """Of a step, for a kernel of a `kind`; without a `loop` the product of h comes as an array, `product`."""

    step: Pointwise
    kind: str
    real: str
    loop: bool

    @property
    def back(self) -> bool:
        return self.kind == "backward"

    @property
    def states(self) -> tuple[str, ...]:
        return ("h", *self.step.carried)

    @functools.cached_property
    def split(self) -> bool:
        """Whether the gradient by the product of h is not that by the product of x."""
        return "dzh" in self.step.gradients

    @functools.cached_property
    def inputs(self) -> Mapping[str, int | None]:
        return self.step.after if self.back else self.step.before

    @functools.cached_property
    def traced(self) -> tuple[list[Line], dict[str, int | None]]:
        lean = self.step.lean if self.kind in ("slim", "lean") else self.step.forward
        return trace(self.step.backward if self.back else lean, self.inputs)

    @functools.cached_property
    def used(self) -> set[str]:
        """Inputs that the traced function reads."""
        return {line.args[0] for line in self.traced[0] if line.op == "input"}

    @functools.cached_property
    def constant(self) -> dict[str, int | None]:
        """The parameters that the cell itself uses, and the biases, of a unit."""
        rest = ("zx", "zh", *self.states, *self.step.numbers)
        return {name: rows for name, rows in self.step.before.items() if name not in rest}

    @functools.cached_property
    def numbers(self) -> tuple[str, ...]:
        """Those of the cell that the traced function reads."""
        return tuple(name for name in self.step.numbers if name in self.used)

    @functools.cached_property
    def fetched(self) -> dict[str, int | None]:
        """Inputs that are read at each step, and are of use."""
        names = (*self.step.carried, *self.step.saved) if self.back else ("zx",)
        return {name: self.inputs[name] for name in names if name in self.used}

    @functools.cached_property
    def results(self) -> dict[str, int | None]:
        """Arrays of every step that are written, and their rows."""
        outputs = self.traced[1]
        if self.back:
            return {"dZ": outputs["dz"], **({"dQ": outputs["dzh"]} if self.split else {})}
        found: dict[str, int | None] = {} if self.kind == "again" else {"y": None}
        if self.kind in ("forward", "slim"):
            found |= {f"{name}_kept": None for name in self.step.carried}
        return found | {name: rows for name, rows in outputs.items() if name not in self.states}

    @functools.cached_property
    def names(self) -> Names:
        return self._arrays._replace(numbers=self.numbers)

    @functools.cached_property
    def _arrays(self) -> Names:
        kept, written = tuple(f"{name}_kept" for name in self.step.carried), tuple(self.results)
        first, end = (tuple(f"{name}_{at}" for name in self.states) for at in ("0", "end"))
        real = tuple(f"state_{name}" for name in self.states)
        if self.back:
            read: tuple[str, ...] = (*self.constant, "dy", *kept, *self.step.saved)
            if self.loop:
                return Names((*read, *(f"d{s}" for s in end)), (*written, *(f"d{s}" for s in first)))
            return Names(("product", *read), written, real)
        read = ("zx", *self.constant)
        if self.kind == "again":
            return Names(("product", *read, *(f"{name}_kept" for name in self._recalled)), written)
        if self.loop:
            return Names((*read, *first), (*written, *end))
        return Names(("product", *read), written, real)

    def __str__(self) -> str:
        arrays, row, sequence = self.names, "const Arrays& a, long long row, int unit", "long long sequence, int unit"
        product = "REAL dh, REAL (&dz)[GATES]" if self.back else "const REAL (&zh)[GATES]"
        fetched = {"dy": None, **self.fetched} if self.back else self.fetched
        types = (("const IO*", arrays.read), ("IO*", arrays.written), ("REAL*", arrays.real), ("REAL", arrays.numbers))
        numbers = [f"REAL {name}" for name in arrays.numbers]
        constants = [*(f"REAL {name}[{rows or 1}]" for name, rows in self.constant.items()), *numbers]
        return "\n".join(
            [
                _struct("Arrays", [f"{kind} {name}" for kind, names in types for name in names]),
                _struct("State", [f"REAL {name}" for name in self.states]),
                _struct("Constant", constants),
                _struct("Fetched", [f"IO {name}[{rows or 1}]" for name, rows in fetched.items()]),
                _struct("Result", [f"IO {name}[{rows or 1}]" for name, rows in self.results.items()]),
                _function("constants", "Constant& k, const Arrays& a, int unit", self._constants()),
                _function("fetch", f"Fetched& f, {row}", self._fetch()),
                _function("step", f"State& s, const Constant& k, const Fetched& f, {product}, Result& r", self._step()),
                _function("keep", f"const Result& r, {row}", self._keep()),
                *self._ends(sequence, row),
            ]
        )

    def _constants(self) -> list[str]:
        return [
            f"k.{name}[{row or 0}] = widen(a.{name}[{row or 0} * {WIDTH} + unit]);"
            for name, rows in self.constant.items()
            for row in _rows(rows)
        ] + [f"k.{name} = a.{name};" for name in self.numbers]

    def _fetch(self) -> list[str]:
        """Numbers stay in the type of memory: nothing waits for them here."""
        dy = f"f.dy[0] = a.dy ? a.dy[{_place(None, None)}] : IO();"
        return [dy] * self.back + [
            f"f.{name}[{row or 0}] = a.{f'{name}_kept' if name in self.states else name}[{_place(rows, row)}];"
            for name, rows in self.fetched.items()
            for row in _rows(rows)
        ]

    def _step(self) -> list[str]:
        before, after = ["State after = s;"], ["s = after;"]
        if self.back:
            before += ["dh += s.h;", "dh += widen(f.dy[0]);", "after.h = 0;"]
        if self.kind in ("forward", "slim"):
            before += [f"narrow(r.{c}_kept[0], s.{c});" for c in self.step.carried]
        if self.kind in ("forward", "slim", "lean"):
            after.append("narrow(r.y[0], s.h);")
        return [*before, *statements(self.traced[0], self._load, self._store, self.real), *after]

    def _load(self, name: str, row: int | None) -> str:
        if name in self.numbers:
            return f"k.{name}"
        if name in self.constant:
            return f"k.{name}[{row or 0}]"
        if name in self.fetched:
            return f"widen(f.{name}[{row or 0}])"
        if name == "zh":
            return f"zh[{row}]"
        return "dh" if name == "dh" else f"s.{name.removeprefix('d')}"

    def _store(self, name: str, row: int | None, value: str) -> str:
        if name in ("dz", "dzh"):
            passed = f" dz[{row}] = {value};" if (name == "dzh") == self.split else ""
            return f"narrow(r.{'dQ' if name == 'dzh' else 'dZ'}[{row}], {value});{passed}"
        if self.back:
            return f"after.{'h' if name == 'dh0' else name.removeprefix('d')} = {value};"
        return f"after.{name} = {value};" if name in self.states else f"narrow(r.{name}[{row or 0}], {value});"

    def _keep(self) -> list[str]:
        return [
            f"a.{name}[{_place(rows, row)}] = r.{name}[{row or 0}];"
            for name, rows in self.results.items()
            for row in _rows(rows)
        ]

    def _ends(self, sequence: str, row: str) -> list[str]:
        """How a state gets into a kernel and out of it."""
        at, d = _place(None, None, "sequence"), "d" if self.back else ""
        if self.kind == "again":
            found = [f"s.{name} = widen(a.{name}_kept[{_place(None, None)}]);" for name in self._recalled]
            return [_function("recall", f"State& s, {row}", found)]
        if not self.loop:
            read = [f"s.{name} = a.state_{name}[{at}];" for name in self.states]
            written = [f"a.state_{name}[{at}] = s.{name};" for name in self.states]
            return [
                _function("resume", f"State& s, const Arrays& a, {sequence}", read),
                _function("suspend", f"const State& s, const Arrays& a, {sequence}", written),
            ]
        before, after = ("end", "0") if self.back else ("0", "end")
        read = [f"s.{name} = widen(a.{d}{name}_{before}[{at}]);" for name in self.states]
        written = [
            f"narrow(a.{d}{name}_{after}[{at}], {'dh + ' if self.back and name == 'h' else ''}s.{name});"
            for name in self.states
        ]
        return [
            _function("start", f"State& s, const Arrays& a, {sequence}", read),
            _function("finish", f"const State& s, {'REAL dh, ' * self.back}const Arrays& a, {sequence}", written),
        ]

    @functools.cached_property
    def _recalled(self) -> tuple[str, ...]:
        """States that `again` needs of every step."""
        return (*self.step.carried, *(("h",) if "h" in self.used else ()))


def cell_of(step: Pointwise, kind: str) -> Cell:
    """What tiling has to know; `kind` is forward or backward."""
    inputs, rest = (step.after if kind == "backward" else step.before), ("zh", *step.numbers)
    read = {name: rows for name, rows in inputs.items() if name not in rest}
    values = sum(rows or 1 for rows in read.values()) + len(step.carried) + 1
    return Cell(int(step.before["zx"] or 1), values)


def _place(rows: int | None, row: int | None, of: str = "row") -> str:
    """The place of a unit in an array (N, rows, H), or (N, H) without rows."""
    return f"{of} * {WIDTH} + unit" if rows is None else f"({of} * {rows} + {row}) * {WIDTH} + unit"


def _rows(rows: int | None) -> Iterable[int | None]:
    return [None] if rows is None else range(rows)


def _struct(name: str, fields: list[str]) -> str:
    return f"struct {name} {{\n" + "".join(f"    {field};\n" for field in fields) + "};"


def _function(name: str, parameters: str, body: list[str]) -> str:
    return f"DEVICE void {name}({parameters}) {{\n" + "".join(f"    {line}\n" for line in body) + "}"
