"""The text of a kernel: a template of this folder, the sizes it is made for, and the cell as C made from its trace.

The templates have the schedule, the exchange and the memory, and no formula. The cell comes in as structs and functions
for one unit of one sequence: State goes from step to step, Constant is the same at all steps, Fetched is read and
Result is written at each step. The function `step` is the trace of the cell; the other functions move numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from xlstm.arrays import device
from xlstm.engines.cuda.tiling import Arithmetic, Tiling
from xlstm.engines.pointwise import Pointwise, Rows
from xlstm.tracing.c import statements
from xlstm.tracing.symbols import trace

# "forward" keeps what backward needs, "slim" keeps the carried states alone, and "lean" nothing. "again" makes what the
# cell saves from what slim kept, for all steps at once.
KINDS = ("forward", "slim", "lean", "again", "backward")
ARRANGE = "xlstm_arrange"  # the kernel in every loop's text that lays weights out for it
BLOCK = 256  # threads of a block of a kernel without a loop
LOOP = "const int* offsets, int steps, int width, int group0, unsigned* flags, void* exchange, const void* arranged"
STEP = "long long row0, int count"
DTYPES = {"int": "int32", "unsigned": "uint32", "long long": "int64", "void": ""}  # of C types
DTYPES |= {"float": "float32", "double": "float64", "half_t": "float16", "bf16_t": "bfloat16"}


class Parameter(NamedTuple):
    """A parameter of a kernel: its name, and the dtype of the array that it takes, "" where any will do."""

    name: str
    dtype: str


class Source(NamedTuple):
    """A kernel that can be compiled."""

    name: str
    text: str
    arrays: tuple[str, ...]  # its arguments after those of the schedule, in order; the cell's numbers come last
    shared: int = 0  # bytes of dynamic shared memory
    blocks: int = 0  # that work together; 0 for any number of them
    cluster: bool = False  # whether they are a cluster
    parameters: tuple[Parameter, ...] = ()


@functools.cache
def loop(step: Pointwise, kind: str, tiling: Tiling) -> Source:
    """Return the kernel of a whole pass, of any kind but "again"."""
    sizes = {
        **{"WIDTH": tiling.width, "HEADS": tiling.heads, "UNITS": tiling.units, "BLOCKS": tiling.blocks},
        **{"NB": tiling.columns, "M": tiling.M, "K": tiling.K, "THREADS": tiling.threads},
        **{"WARPS_M": tiling.warps_m, "CHUNKS_KEPT": tiling.kept, "COLUMNS_AT_ONCE": tiling.at_once},
        "K_LANES": tiling.lanes,
        "SCALE_CHUNKS": tiling.same_scale,
        **{"CLUSTER": int(tiling.cluster), "MMA": tiling.arithmetic.mma, "TF32": int(tiling.arithmetic.tf32)},
        "ARRANGE": ARRANGE,
        "CLUSTER_DIMENSIONS": f"__cluster_dims__({tiling.blocks}, 1, 1)" if tiling.cluster else "",
        "SHARED_PLANNED": tiling.shared,
    }
    schedule = "backward.cu" if kind == "backward" else "forward.cu"
    files = ("factors.cuh", "product.cuh", "exchange.cuh", "cells.cuh", schedule)
    made = _source(step, kind, tiling.arithmetic, sizes, files)
    return made._replace(shared=tiling.shared, blocks=tiling.blocks, cluster=tiling.cluster)


@functools.cache
def pointwise(step: Pointwise, kind: str, arithmetic: Arithmetic, heads: int, width: int) -> Source:
    """Return the kernel of one step without the product of h."""
    sizes = {"WIDTH": width, "HEADS": heads, "THREADS": BLOCK, "BACKWARD": int(kind == "backward")}
    return _source(step, kind, arithmetic, sizes, ("pointwise.cu",))


def _source(step: Pointwise, kind: str, a: Arithmetic, sizes: Mapping[str, object], files: tuple[str, ...]) -> Source:
    loop = "MMA" in sizes
    cell, name = _Cell(step, kind, a.real, loop), f"xlstm_{kind}{'' if loop else '_step'}"
    names = [array for _, array in cell.arrays]
    arguments = ", ".join([LOOP if loop else STEP, *(f"{type_} a_{array}" for type_, array in cell.arrays)])
    defines = {
        **{"REAL": a.real, "IO": a.io, "operand_t": a.operand, "GATES": step.before["zx"], "KERNEL": name, **sizes},
        **{"PARAMETERS": arguments, "ARRAYS": f"{{{', '.join(f'a_{array}' for array in names)}}}"},
        "ALL": "(HEADS * WIDTH)",  # units of all heads
    }
    lines = [f"#define {key} {value}" for key, value in defines.items()]
    text = "\n".join([*lines, file("device.cuh"), cell.text(), *(file(part) for part in files)])
    return Source(name, text, tuple(names), parameters=tuple(_parameter(one, a) for one in arguments.split(", ")))


def _parameter(declared: str, a: Arithmetic) -> Parameter:
    """Return a parameter from its declaration, such as "const IO* a_zx"."""
    type_, _, name = declared.replace("const ", "").replace(" __restrict__", "").rpartition(" ")
    type_ = type_.removesuffix("*")
    return Parameter(name.removeprefix("a_"), DTYPES[{"IO": a.io, "REAL": a.real}.get(type_, type_)])


@functools.cache
def file(name: str) -> str:
    """Return the text of a template."""
    if name == "device.cuh":
        return device.TEXT
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


class _Cell:
    """A cell in a kernel of one kind: the arrays of the kernel, and the C functions.

    Arrays are named as in `engines/pointwise.py`, the cell's own parameters, biases and numbers with the prefix `p_`. A
    kernel reads the states, backward their gradients, from `before_` + name and leaves them in `after_` + name. Where
    each step has a kernel of its own, both are one array, in the type that is computed in, and `product` is what the
    array library made of h or of dz.
    """

    def __init__(self, step: Pointwise, kind: str, real: str, loop: bool) -> None:
        self.kind, self.real, self.back = kind, real, kind == "backward"
        inputs = step.after if self.back else step.before
        lean = step.lean if kind in ("slim", "lean") else step.forward
        self.lines, outputs = trace(step.backward if self.back else lean, inputs)
        used = {line.args[0] for line in self.lines if line.op == "input"}
        self.states = ("h", *step.carried)
        self.passed_on = "dzh" if "dzh" in outputs else "dz"  # the gradient by the product of h
        each = (*(("dy", *step.carried, *step.saved) if self.back else ("zx",)), *step.shares)
        self.fetched: Rows = {name: inputs.get(name) for name in each if name in used or name == "dy"}
        constant = used & (step.before.keys() - {"zx", "zh", *self.states, *step.shares})
        self.constant: Rows = {f"p_{name}": step.before[name] for name in step.before if name in constant}
        self.numbers = [f"p_{name}" for name in step.numbers if name in used]
        kept = {"forward": ("y", *step.carried), "slim": ("y", *step.carried), "lean": ("y",)}.get(kind, ())
        made = ("dz", "dzh") if self.back else step.saved
        self.results: Rows = dict.fromkeys(kept) | {name: outputs[name] for name in made if name in outputs}
        io = "IO" if loop or kind == "again" else "REAL"
        self.ends = () if kind == "again" else self.states  # the states that the kernel leaves
        read = [*self.fetched, *(name for name in self.constant if name not in self.numbers)]
        self.arrays = [  # types and names
            *(("const IO* __restrict__", name) for name in (*read, *(() if loop else ("product",)))),
            *((f"const {io}*", f"before_{name}") for name in self.states),
            *(("IO*", name) for name in self.results),
            *((f"{io}*", f"after_{name}") for name in self.ends),
            *(("REAL", name) for name in self.numbers),
        ]

    def text(self) -> str:
        """Return the structs and functions."""
        arrays, row, sequence = "const Arrays& a", "const Arrays& a, long long row, int unit", "long long at, int unit"
        product = "REAL dh, REAL (&dz)[GATES]" if self.back else "const REAL (&zh)[GATES]"
        given = {name: rows for name, rows in self.constant.items() if name not in self.numbers}
        constants = _each(given, "k.{name}[{row}] = widen(a.{name}[{row} * ALL + unit]);")
        constants += [f"k.{name}[0] = a.{name};" for name in self.numbers]
        start = [f"s.{name} = widen(a.before_{name}[at * ALL + unit]);" for name in self.states]
        finish = [f"narrow(a.after_{name}[at * ALL + unit], s.{name});" for name in self.ends]
        return "\n".join(
            [
                _struct("Arrays", (f"{type_.removesuffix(' __restrict__')} {name}" for type_, name in self.arrays)),
                _struct("State", (f"REAL {name}" for name in self.states)),
                _struct("Constant", _fields("REAL", self.constant)),
                _struct("Fetched", _fields("IO", self.fetched)),
                _struct("Result", _fields("IO", self.results)),
                _function(f"constants(Constant& k, {arrays}, int unit)", constants),
                # Numbers stay in the type of memory here: then nothing waits for them yet.
                _function(f"fetch(Fetched& f, {row})", _each(self.fetched, "f.{name}[{row}] = a.{name}[{at}];")),
                _function(f"step(State& s, const Constant& k, const Fetched& f, {product}, Result& r)", self._step()),
                _function(f"keep(const Result& r, {row})", _each(self.results, "a.{name}[{at}] = r.{name}[{row}];")),
                _function(f"start(State& s, {arrays}, {sequence})", start),
                _function(f"finish(const State& s, {arrays}, {sequence})", finish),
            ]
        )

    def _step(self) -> list[str]:
        before, after = ["State after = s;"], ["s = after;"]
        if self.back:  # s.h is the gradient of h that does not pass through the product
            before += ["dh += s.h;", "dh += widen(f.dy[0]);", "after.h = 0;"]
        else:
            before += [f"narrow(r.{name}[0], s.{name});" for name in self.states if name in self.results]
            after += ["narrow(r.y[0], s.h);"] if "y" in self.results else []
        return [*before, *statements(self.lines, self._load, self._store, self.real), *after]

    def _load(self, name: str, row: int | None) -> str:
        if name in self.fetched:
            return f"widen(f.{name}[{row or 0}])"
        if f"p_{name}" in self.constant:
            return f"k.p_{name}[{row or 0}]"
        if name == "zh":
            return f"zh[{row}]"
        if self.back:
            return "dh" if name == "dh" else f"s.{name[1:]}"
        return f"s.{name}"

    def _store(self, name: str, row: int | None, value: str) -> str:
        if name in self.results and name not in self.states:
            passed_on = f" dz[{row}] = {value};" if name == self.passed_on else ""
            return f"narrow(r.{name}[{row or 0}], {value});{passed_on}"
        to = "h" if name == "dh0" else name[1:] if self.back else name
        return f"after.{to} = {value};"


def _each(arrays: Rows, form: str) -> list[str]:
    """Return a statement for each row of each array; `at` is the place of a unit in an array (N, rows, H)."""
    return [
        form.format(name=name, row=row, at=f"(row * {rows or 1} + {row}) * ALL + unit")
        for name, rows in arrays.items()
        for row in range(rows or 1)
    ]


def _fields(type_: str, arrays: Rows) -> Iterable[str]:
    return (f"{type_} {name}[{rows or 1}]" for name, rows in arrays.items())


def _struct(name: str, fields: Iterable[str]) -> str:
    return f"struct {name} {{\n" + "".join(f"    {field};\n" for field in fields) + "};"


def _function(head: str, body: list[str]) -> str:
    return f"DEVICE void {head} {{\n" + "".join(f"    {line}\n" for line in body) + "}"
