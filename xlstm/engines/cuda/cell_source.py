"""The text of a kernel: a template of this folder, its sizes, and the cell as C from its trace.

The templates have the schedule, the exchange and the memory, but no formula. In a kernel of all
steps, the cell is structs and functions for one unit of one sequence. State passes from step to
step, Constant is the same at all steps, Fetched is read and Result is written at each step. The
function `step` is the trace of the cell; the other functions move numbers. A kernel of one step has
one function, for all units of a sequence.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import ClassVar

from xlstm.arrays.cuda import device
from xlstm.arrays.cuda.row_kernel_text import SYNC
from xlstm.engines.cuda import kernel_source
from xlstm.engines.cuda.kernel_source import KernelSource
from xlstm.engines.cuda.tiling import Arithmetic, Tiling
from xlstm.engines.pointwise import Pointwise, Rows
from xlstm.tracing.reductions import RowWriter
from xlstm.tracing.symbols import trace
from xlstm.tracing.writers import C

# "forward" keeps the values that backward needs, "slim" keeps only the carried states, and "lean"
# keeps nothing. "again" computes the cell's saved values from those of "slim", for all steps at
# once. If a cell has a product of its own, "factor" and "factor_bwd" compute the other factor of
# its matrix.
KINDS = ("forward", "slim", "lean", "again", "backward")
FACTORS = ("factor", "factor_bwd")
BACK = ("backward", "factor_bwd")
KEEP_H = ("forward", "slim", "lean")  # after every step
KEEP_STATES = ("forward", "slim")
ARRANGE = "xlstm_arrange"  # the kernel that lays out weights, in the text of every loop
MOST = 256  # most threads in a block of a kernel without a loop
LOOP = (
    "const int* offsets, int steps, int width, int group0, unsigned* flags, void* exchange, const"
    " void* arranged, unsigned* late, unsigned number"
)
STEP = "long long row0, int count"
SCAN = "const int* offsets, int steps, int width"


@functools.cache
def loop(step: Pointwise, kind: str, tiling: Tiling, keep_h: bool = False) -> KernelSource:
    """Return the kernel of a whole pass, of any kind except "again".

    With `keep_h`, the kernel also keeps h before every step.
    """
    sizes = {
        "WIDTH": tiling.width,
        "HEADS": tiling.heads,
        "UNITS": tiling.units,
        "BLOCKS": tiling.blocks,
        "NB": tiling.columns,
        "M": tiling.M,
        "K": tiling.K,
        "THREADS": tiling.threads,
        "GATES": step.before["zx"],
        "WARPS_M": tiling.warps_m,
        "CHUNKS_KEPT": tiling.in_registers,
        "SCALE_CHUNKS": tiling.same_scale,
        "CLUSTER": int(tiling.cluster),
        "MMA": tiling.arithmetic.mma,
        "TF32": int(tiling.arithmetic.tf32),
        "ARRANGE": ARRANGE,
        "CLUSTER_DIMENSIONS": f"__cluster_dims__({tiling.blocks}, 1, 1)" if tiling.cluster else "",
        "SHARED_PLANNED": tiling.shared,
    }
    schedule = "backward.cu" if kind == "backward" else "forward.cu"
    files = (
        "factors.cuh",
        "product.cuh",
        "exchange.cuh",
        "offsets.cuh",
        "cells.cuh",
        schedule,
    )
    cell = _Loop(step, kind, tiling.arithmetic.real, keep_h)
    source = _source(cell, f"xlstm_{kind}", LOOP, tiling.arithmetic, sizes, files)
    return source._replace(shared=tiling.shared, blocks=tiling.blocks, cluster=tiling.cluster)


@functools.cache
def scan(step: Pointwise, kind: str, tiling: Tiling, keep_h: bool = False) -> KernelSource:
    """Return the kernel of a whole pass of a cell without a product with h; arguments are as for
    `loop`.
    """
    sizes = {
        "WIDTH": tiling.width,
        "HEADS": tiling.heads,
        "THREADS": tiling.threads,
        "GATES": step.before["zx"],
        "BACK": int(kind == "backward"),
    }
    cell = _Loop(step, kind, tiling.arithmetic.real, keep_h)
    files = ("offsets.cuh", "scan.cu")
    return _source(cell, f"xlstm_{kind}_scan", SCAN, tiling.arithmetic, sizes, files)


@functools.cache
def pointwise(
    step: Pointwise, kind: str, arithmetic: Arithmetic, heads: int, width: int, keep_h: bool = False
) -> KernelSource:
    """Return the kernel of one step without the product with h; each block has one sequence."""
    sizes = {
        "WIDTH": width,
        "HEADS": heads,
        "THREADS": threads_of(heads * width),
        "ROWS": step.before["zh"],
    }
    cell = _Step(step, kind, arithmetic.real, keep_h)
    return _source(cell, f"xlstm_{kind}_step", STEP, arithmetic, sizes, ("step.cu",))


def threads_of(units: int) -> int:
    """Return the threads in a block of a kernel without a loop: a power of two."""
    return min(MOST, 1 << max(5, (units - 1).bit_length()))


def _source(
    cell: _Loop | _Step,
    name: str,
    schedule: str,
    a: Arithmetic,
    sizes: Mapping[str, object],
    files: tuple[str, ...],
) -> KernelSource:
    names = [array for _, array in cell.arrays]
    arguments = ", ".join([schedule, *(f"{type_} a_{array}" for type_, array in cell.arrays)])
    defines = {
        "REAL": a.real,
        "IO": a.io,
        "operand_t": a.io,
        "KERNEL": name,
        **sizes,
        "PARAMETERS": arguments,
        "ARRAYS": f"{{{', '.join(f'a_{array}' for array in names)}}}",
        "ALL": "(HEADS * WIDTH)",  # units of all heads
    }
    text = [
        *(f"#define {key} {value}" for key, value in defines.items()),
        device.TEXT,
        cell.text(),
        *map(kernel_source.template, files),
    ]
    return KernelSource(name, "\n".join(text), tuple(names))


class _Cell:
    """A cell in a kernel of one kind: the arrays of the kernel, and C code for them.

    Arrays are named as in `engines/pointwise.py`. The cell's own parameters, biases and numbers
    have the prefix `p_`. A kernel reads the states (in the backward pass, their gradients) from
    `before_` + name and writes them to `after_` + name.

    If each step has its own kernel, both are one array, in the type of the arithmetic. `product` is
    then the result of the array library for h or for dz. `drop` and `inner` have a row for each
    sequence of the step.
    """

    loop: ClassVar[bool]

    def __init__(self, step: Pointwise, kind: str, real: str, keep_h: bool) -> None:
        self.real = real
        self.back = kind in BACK
        inputs = step.after if self.back else step.before
        around = step.around
        function = {
            "slim": step.lean,
            "lean": step.lean,
            "backward": step.backward,
            "factor": step.factor,
            "factor_bwd": step.factor_bwd,
        }.get(kind, step.forward)
        self.lines, outputs = trace(function, inputs, step.library)
        used = {line.args[0] for line in self.lines if line.op == "input"}
        self.inside = ("h", *step.carried)
        self.states = step.carried if around.projected else self.inside  # of the kernel
        # the mask of a projection does not belong to these units
        drop = around.drop and not around.projected
        self.beside = tuple(
            name for name in ("drop", "inner") if name in used or (name == "drop" and drop)
        )
        # The gradient that passes through the product with h.
        self.passed_on = next(name for name in ("da", "dzh", "dz") if name in step.gradients)
        dy = () if around.projected else ("dy",)
        each = (*((*dy, *step.carried, *step.saved) if self.back else ("zx",)), *step.shares)
        self.fetched: Rows = {
            name: inputs.get(name) for name in each if name in used or name == "dy"
        }
        anew = {"zx", "zh", "drop", "inner", *self.inside, *step.shares}  # new at every step
        self.constant: Rows = {
            f"p_{name}": rows
            for name, rows in step.before.items()
            if name in used and name not in anew
        }
        self.numbers = [f"p_{name}" for name in step.numbers if name in used]
        self.y = "out" if around.projected else "y"  # the name under which h after the step is kept
        states_kept = [self.y] if kind in KEEP_H else []
        if kind in KEEP_STATES:
            states_kept += [*step.carried, *["h"] * keep_h]
        computed = ("dz", "dzh", "da") if self.back else step.saved
        self.results: Rows = dict.fromkeys(states_kept) | {
            name: outputs[name] for name in computed if name in outputs
        }
        # the states that the kernel writes at its end
        self.ends = () if kind == "again" or "factor" in outputs else self.states
        self.arrays = self._arrays(
            "IO" if self.loop or kind == "again" else "REAL", "factor" in outputs
        )

    def _arrays(self, state: str, factor: bool) -> list[tuple[str, str]]:
        """Return types and names of the arguments; `state` is the type of states."""
        read = [
            *self.fetched,
            *(name for name in self.constant if name not in self.numbers),
            *self.beside,
            *([] if self.loop else ["product"]),
        ]
        return [
            *(("const IO* __restrict__", name) for name in read),
            *((f"const {state}*", f"before_{name}") for name in self.states),
            *(("IO*", name) for name in self.results),
            *((f"{state}*", f"after_{name}") for name in self.ends),
            *[("IO*", "after_factor")] * factor,
            *(("REAL", name) for name in self.numbers),
        ]

    def struct_of_arrays(self) -> str:
        return _struct(
            "Arrays",
            (f"{type_.removesuffix(' __restrict__')} {name}" for type_, name in self.arrays),
        )


class _Loop(_Cell):
    """A cell in a kernel of all steps: functions for one unit of one sequence."""

    loop = True

    def text(self) -> str:
        """Return the structs and functions."""
        arrays = "const Arrays& a"
        row = "const Arrays& a, long long row, int unit"
        sequence = "long long at, int unit"
        product = "REAL dh, REAL (&dz)[GATES]" if self.back else "const REAL (&zh)[GATES]"
        vectors = {name: rows for name, rows in self.constant.items() if name not in self.numbers}
        constants = _each(vectors, "k.{name}[{row}] = widen(a.{name}[{row} * ALL + unit]);")
        constants += [f"k.{name}[0] = a.{name};" for name in self.numbers]
        start = [f"s.{name} = widen(a.before_{name}[at * ALL + unit]);" for name in self.states]
        start += [f"s.{name} = widen(a.{name}[at * ALL + unit]);" for name in self.beside]
        finish = [f"narrow(a.after_{name}[at * ALL + unit], s.{name});" for name in self.ends]
        first = (
            "return"
            f" widen(a.before_h[at]){' * widen(a.drop[at])' if 'drop' in self.beside else ''};"
        )
        return "\n".join(
            [
                self.struct_of_arrays(),
                _struct("State", (f"REAL {name}" for name in (*self.inside, *self.beside))),
                _struct("Constant", _fields("REAL", self.constant)),
                _struct("Fetched", _fields("IO", self.fetched)),
                _struct("Result", _fields("IO", self.results)),
                _function(f"constants(Constant& k, {arrays}, int unit)", constants),
                # Numbers keep their type in memory here, so that nothing waits for them yet.
                _function(
                    f"fetch(Fetched& f, {row})",
                    _each(self.fetched, "f.{name}[{row}] = a.{name}[{at}];"),
                ),
                # The mask of recurrent dropout is between h and its product.
                _function(
                    "masked(const State& s, REAL h)", [f"return {self._masked('h')};"], "REAL"
                ),
                _function("first_h(const Arrays& a, long long at)", [first], "REAL"),
                _function(
                    f"step(State& s, const Constant& k, const Fetched& f, {product}, Result& r)",
                    self._step(),
                ),
                _function(
                    f"keep(const Result& r, {row})",
                    _each(self.results, "a.{name}[{at}] = r.{name}[{row}];"),
                ),
                _function(f"start(State& s, {arrays}, {sequence})", start),
                _function(f"finish(const State& s, {arrays}, {sequence})", finish),
            ]
        )

    def _step(self) -> list[str]:
        before = ["State after = s;"]
        after = ["s = after;"]
        if self.back:  # s.h is the part of the gradient of h beside the product
            before += [f"dh = {self._masked('dh')} + s.h + widen(f.dy[0]);", "after.h = 0;"]
        else:
            before += [
                f"narrow(r.{name}[0], {self._masked('s.h') if name == 'h' else f's.{name}'});"
                for name in self.inside
                if name in self.results
            ]
            after += [f"narrow(r.{self.y}[0], s.h);"] if self.y in self.results else []
        return [*before, *C(self.lines, self._load, self._store, self.real).statements(), *after]

    def _masked(self, h: str) -> str:
        return f"{h} * s.drop" if "drop" in self.beside else h

    def _load(self, name: str, row: int | None) -> str:
        if name in self.fetched:
            return f"widen(f.{name}[{row or 0}])"
        if name in self.beside:
            return f"s.{name}"
        if f"p_{name}" in self.constant:
            return f"k.p_{name}[{row or 0}]"
        if name == "zh":
            return f"zh[{row}]"
        if self.back:
            return "dh" if name == "dh" else f"s.{name[1:]}"
        return f"s.{name}"

    def _store(self, name: str, row: int | None, value: str) -> str:
        if name in self.results and name not in self.inside:
            passed_on = f" dz[{row}] = {value};" if name == self.passed_on else ""
            return f"narrow(r.{name}[{row or 0}], {value});{passed_on}"
        to = "h" if name == "dh0" else name[1:] if self.back else name
        return f"after.{to} = {value};"


class _Step(_Cell):
    """A cell in a kernel of one step; a block has one whole sequence, so that means along units are
    possible.
    """

    loop = False

    def text(self) -> str:
        """Return the structs, and the function for a sequence."""
        inputs = {str(line.args[0]) for line in self.lines if line.op == "input"}
        single = {name for name in inputs if f"p_{name}" in self.numbers}
        body = RowWriter(
            C(self.lines, self._load, self._store, self.real), single, everywhere=True
        ).body()
        head = "sync_units(const Arrays& a, long long row, long long column, double* memory)"
        return "\n".join(
            [SYNC, self.struct_of_arrays(), _function(head, ["const int columns = ALL;", *body])]
        )

    def _load(self, name: str, row: int | None) -> str:
        at = "column * ALL + unit"
        if name in self.fetched:
            return f"widen(a.{name}[{_place(self.fetched[name], row)}])"
        if f"p_{name}" in self.numbers:
            return f"a.p_{name}"
        if f"p_{name}" in self.constant:
            return f"widen(a.p_{name}[{row or 0} * ALL + unit])"
        if name == "zh":
            return f"widen(a.product[(column * ROWS + {row}) * ALL + unit])"
        if name in self.beside:
            return f"widen(a.{name}[{at}])"
        if self.back and name == "dh":  # through its product, beside it, and through y
            product = f"widen(a.product[{at}])"
            if "h" not in self.states:  # before its projection
                return product
            return (
                f"{self._masked(product)} + widen(a.before_h[{at}]) +"
                f" widen(a.dy[{_place(None, None)}])"
            )
        return f"widen(a.before_{name[1:] if self.back else name}[{at}])"

    def _masked(self, h: str) -> str:
        return f"{h} * widen(a.drop[column * ALL + unit])" if "drop" in self.beside else h

    def _store(self, name: str, row: int | None, value: str) -> str:
        at = "column * ALL + unit"
        first = _place(None, None)
        if name == "factor":
            return f"narrow(a.after_factor[{at}], {value});"
        if name in self.results and name not in self.inside:
            text = f"narrow(a.{name}[{_place(self.results[name], row)}], {value});"
            h_passes = any(line.to == "dh0" for line in self.lines)
            if name == "dz" and not row and "h" in self.ends and not h_passes:
                text += f" narrow(a.after_h[{at}], REAL(0));"
            return text
        to = "h" if name == "dh0" else name[1:] if self.back else name
        text = ""
        if to in self.results:  # before the step
            before = f"widen(a.before_{to}[{at}])"
            text += f"narrow(a.{to}[{first}], {self._masked(before) if to == 'h' else before}); "
        if to == "h" and self.y in self.results:
            text += f"narrow(a.{self.y}[{first}], {value}); "
        return text + (f"narrow(a.after_{to}[{at}], {value});" if to in self.ends else "")


def _place(rows: int | None, row: int | None) -> str:
    """Return the place of a unit in an array (N, rows, H)."""
    return f"(row * {rows or 1} + {row or 0}) * ALL + unit"


def _each(arrays: Rows, form: str) -> list[str]:
    """Return a statement for each row of each array.

    In it, `at` is the place of a unit in an array (N, rows, H).
    """
    return [
        form.format(name=name, row=row, at=_place(rows, row))
        for name, rows in arrays.items()
        for row in range(rows or 1)
    ]


def _fields(type_: str, arrays: Rows) -> Iterable[str]:
    return (f"{type_} {name}[{rows or 1}]" for name, rows in arrays.items())


def _struct(name: str, fields: Iterable[str]) -> str:
    return f"struct {name} {{\n" + "".join(f"    {field};\n" for field in fields) + "};"


def _function(head: str, body: list[str], result: str = "void") -> str:
    return f"DEVICE {result} {head} {{\n" + "".join(f"    {line}\n" for line in body) + "}"
