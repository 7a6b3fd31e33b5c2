"""The text of a kernel: a template, the sizes it is made for, and the cell as traced.

The templates beside this file have the schedule, loops, exchange and memory, and no formula; a cell comes in as
the functions `step`, `fetch` and so on that are written here from its trace.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from xlstm.ctext import statements
from xlstm.cuda.tiling import Arithmetic, Cell, Tiling
from xlstm.pointwise import Pointwise
from xlstm.tracing import trace

ARRANGE = "xlstm_arrange"  # the kernel in every loop's text that lays weights out for it
BLOCK = 256  # threads of a block of a kernel without a loop
DEVICE = "device.cuh"


class Source(NamedTuple):
    """A kernel that can be compiled."""

    name: str
    text: str
    arrays: tuple[str, ...]  # its arguments after the numbers, in order
    threads: int
    shared: int = 0  # bytes of dynamic shared memory
    blocks: int = 0  # that work together; 0 for any number of them
    cluster: bool = False  # they are one


class Names(NamedTuple):
    """What a kernel's arrays are called. A state s is s_0 before the first step and s_end after the last one."""

    read: tuple[str, ...]
    written: tuple[str, ...]
    real: tuple[str, ...] = ()  # read and written, in the type that is computed in


def cell_of(step: Pointwise, kind: str) -> Cell:
    """What tiling has to know."""
    read = step.after if kind == "backward" else {name: rows for name, rows in step.before.items() if name != "zh"}
    values = sum(rows or 1 for rows in read.values()) + len(step.carried) + 1
    return Cell(int(step.before["zx"] or 1), values)


def names(step: Pointwise, kind: str, loop: bool) -> Names:
    """The arrays of a kernel of a `kind`; without a loop h goes through `product`.

    forward keeps what backward needs, slim the carried states alone, lean nothing; again makes what the cell saves from
    what slim kept, for all steps at once.
    """
    states, split = ("h", *step.carried), "h" in _used(step, kind)
    constant = tuple(name for name in step.before if name not in ("zx", "zh", *states))
    kept = tuple(f"{name}_kept" for name in step.carried)
    first, end = (tuple(f"{name}_{at}" for name in states) for at in ("0", "end"))
    if kind == "backward":
        read = (*constant, "dy", *kept, *step.saved)
        written = ("dZ", "dQ") if _split(step) else ("dZ",)
        if loop:
            return Names((*read, *(f"d{s}" for s in end)), (*written, *(f"d{s}" for s in first)))
        return Names(("product", *read), written, tuple(f"state_{s}" for s in states))
    read = ("zx", *constant)
    if kind == "again":
        return Names(("product", *read, *kept, *(("h_kept",) if split else ())), tuple(step.saved))
    written = ("y", *(kept if kind != "lean" else ()), *(step.saved if kind == "forward" else ()))
    if loop:
        return Names((*read, *first), (*written, *end))
    return Names(("product", *read), written, tuple(f"state_{s}" for s in states))


@functools.cache
def loop(step: Pointwise, kind: str, arithmetic: Arithmetic, tiling: Tiling) -> Source:
    """The kernel of a whole pass, `kind` forward, slim, lean or backward."""
    arrays = names(step, kind, loop=True)
    sizes = {
        **{"WIDTH": tiling.width, "HEADS": tiling.heads, "UNITS": tiling.units, "BLOCKS": tiling.blocks},
        **{"NB": tiling.columns, "M": tiling.M, "K": tiling.K, "THREADS": tiling.threads},
        **{"WARPS_M": tiling.warps_m, "CHUNKS_KEPT": tiling.kept, "COLUMNS_AT_ONCE": tiling.at_once},
        **{"CLUSTER": int(tiling.cluster), "MMA": arithmetic.mma, "TF32": int(arithmetic.tf32)},
    }
    numbers = "const int* offsets, int steps, int width, int group0, unsigned* flags, void* exchange, const void* arranged"
    template = "backward.cu" if kind == "backward" else "forward.cu"
    name = f"xlstm_{kind}"
    dims = f"__cluster_dims__({tiling.blocks}, 1, 1)" if tiling.cluster else ""
    text = "\n".join(
        [
            *_defines(sizes, step, arithmetic, arrays, numbers, name),
            f"#define CLUSTER_DIMENSIONS {dims}",
            f"#define ARRANGE {ARRANGE}",
            *(_file(part) for part in (DEVICE, "arrays.cuh")),
            _cell(step, kind, arithmetic, arrays, loop=True),
            *(_file(part) for part in ("product.cuh", "exchange.cuh", template)),
            f'static_assert(SHARED_BYTES == {tiling.shared}, "shared memory as planned");',
        ]
    )
    everything = (*arrays.read, *arrays.written)
    return Source(name, text, everything, tiling.threads, tiling.shared, tiling.blocks, tiling.cluster)


@functools.cache
def pointwise(step: Pointwise, kind: str, arithmetic: Arithmetic, heads: int, width: int) -> Source:
    """The kernel of one step without the product of h, `kind` forward, slim, lean or backward; or of all, again."""
    arrays = names(step, kind, loop=False)
    sizes = {"WIDTH": width, "HEADS": heads, "THREADS": BLOCK}
    sizes |= {"BACKWARD": int(kind == "backward"), "AGAIN": int(kind == "again")}
    name = f"xlstm_{kind}_step"
    text = "\n".join(
        [
            *_defines(sizes, step, arithmetic, arrays, "long long row0, int count", name),
            *(_file(part) for part in (DEVICE, "arrays.cuh")),
            _cell(step, kind, arithmetic, arrays, loop=False),
            _file("pointwise.cu"),
        ]
    )
    return Source(name, text, (*arrays.read, *arrays.written, *arrays.real), BLOCK)


def _defines(
    sizes: Mapping[str, int], step: Pointwise, arithmetic: Arithmetic, arrays: Names, numbers: str, name: str
) -> list[str]:
    parameters = [
        numbers,
        *(f"const IO* __restrict__ a_{n}" for n in arrays.read),
        *(f"IO* a_{n}" for n in arrays.written),
        *(f"REAL* a_{n}" for n in arrays.real),
    ]
    listed = ", ".join(f"a_{n}" for n in (*arrays.read, *arrays.written, *arrays.real))
    return [
        f"#define REAL {arithmetic.real}",
        f"#define IO {arithmetic.io}",
        f"#define operand_t {arithmetic.operand}",
        f"#define GATES {step.before['zx']}",
        *(f"#define {key} {value}" for key, value in sizes.items()),
        f"#define KERNEL {name}",
        f"#define PARAMETERS {', '.join(parameters)}",
        f"#define ARRAYS {{{listed}}}",
    ]


def _cell(step: Pointwise, kind: str, arithmetic: Arithmetic, arrays: Names, loop: bool) -> str:
    """What the templates know of the cell: its arrays, and functions of one unit of one sequence.

    State is what goes from step to step, Constant what is the same at all steps, Fetched what is read at a step.
    """
    back, again = kind == "backward", kind == "again"
    function = {"backward": step.backward, "slim": step.lean, "lean": step.lean}.get(kind, step.forward)
    inputs = step.after if back else step.before
    lines, outputs = trace(function, inputs)
    states = ("h", *step.carried)
    used = {line.args for line in lines if line.op == "input"}
    constant = {name: rows for name, rows in step.before.items() if name not in ("zx", "zh", *states) and name in inputs}
    fetched = {name: inputs[name] for name in inputs if (name in step.saved or name in step.carried) and back}
    if not back:
        fetched = {"zx": inputs["zx"]}
    fetched = {name: rows for name, rows in fetched.items() if any(n == name for n, _ in used)}
    width = "(HEADS * WIDTH)"

    def place(row_number: str, rows: int | None, row: int | None) -> str:
        if rows is None:
            return f"{row_number} * {width} + unit"
        return f"({row_number} * {rows} + {row}) * {width} + unit"

    def load(name: str, row: int | None) -> str:
        if back and name[1:] in states and name[0] == "d":
            return "dh" if name == "dh" else f"s.{name[1:]}"
        if name in constant:
            return f"k.{name}[{row or 0}]"
        if name in fetched:
            return f"widen(f.{name}[{row or 0}])"
        return f"zh[{row}]" if name == "zh" else f"s.{name}"

    def store(name: str, row: int | None, value: str) -> str:
        if back:
            if name in ("dz", "dzh"):
                array = "dQ" if name == "dzh" else "dZ"
                passed = f" dz[{row}] = {value};" if (name == "dzh") == _split(step) else ""
                return f"put(a.{array}, {place('row', outputs[name], row)}, {value});{passed}"
            return f"after.{'h' if name == 'dh0' else name[1:]} = {value};"
        if name in states:
            return f"after.{name} = {value};"
        return f"put(a.{name}, {place('row', outputs[name], row)}, {value});"

    body = statements(lines, load, store, arithmetic.real)
    if kind in ("forward", "slim"):
        body = [*(f"put(a.{c}_kept, {place('row', None, None)}, s.{c});" for c in step.carried), *body]
    if back:
        body = ["dh += s.h;", "if (a.dy) dh += widen(f.dy[0]);", "after.h = 0;", *body]
    body = ["State after = s;", *body, "s = after;"]
    if kind in ("forward", "slim", "lean"):
        body.append(f"put(a.y, {place('row', None, None)}, s.h);")
    fetch = [
        f"f.{name}[{row or 0}] = a.{_file_name(name, step)}[{place('row', rows, row)}];"
        for name, rows in fetched.items()
        for row in _rows(rows)
    ]
    if back:
        fetched = {"dy": None, **fetched}
        fetch.insert(0, f"if (a.dy) f.dy[0] = a.dy[{place('row', None, None)}];")
    pieces = [
        "DEVICE REAL real(IO v) { return widen(v); }",
        "template <class T> DEVICE void put(T* to, long long at, REAL v) { narrow(to[at], v); }",
        _struct("Arrays", [f"const IO* {n}" for n in arrays.read] + [f"IO* {n}" for n in arrays.written]
                + [f"REAL* {n}" for n in arrays.real]),
        _struct("State", [f"REAL {name}" for name in states]),
        _struct("Constant", [f"REAL {name}[{rows or 1}]" for name, rows in constant.items()]),
        _struct("Fetched", [f"IO {name}[{rows or 1}]" for name, rows in fetched.items()]),
        _function("constants", "Constant& k, const Arrays& a, int unit",
                  [f"k.{name}[{row or 0}] = widen(a.{name}[{row or 0} * {width} + unit]);"
                   for name, rows in constant.items() for row in _rows(rows)]),
        _function("fetch", "Fetched& f, const Arrays& a, long long row, int unit", fetch),
        _function("step", "State& s, const Constant& k, const Fetched& f, "
                  + ("REAL dh, REAL (&dz)[GATES]" if back else "const REAL (&zh)[GATES]")
                  + ", const Arrays& a, long long row, int unit", body),
    ]  # fmt: skip
    at = place("sequence", None, None)
    d = "d" if back else ""
    if loop:
        pieces += [
            _function("start", "State& s, const Arrays& a, long long sequence, int unit",
                      [f"s.{name} = widen(a.{d}{name}_{'end' if back else '0'}[{at}]);" for name in states]),
            _function("finish", f"const State& s, {'REAL dh, ' if back else ''}const Arrays& a, long long sequence, int unit",
                      [f"put(a.{d}{name}_{'0' if back else 'end'}, {at}, {'dh + ' if back and name == 'h' else ''}s.{name});"
                       for name in states]),
        ]  # fmt: skip
    elif again:
        kept = [*step.carried, *(["h"] if "h_kept" in arrays.read else [])]
        pieces.append(_function("recall", "State& s, const Arrays& a, long long row, int unit",
                                [f"s.{name} = widen(a.{name}_kept[{place('row', None, None)}]);" for name in kept]))  # fmt: skip
    else:
        pieces += [
            _function("resume", "State& s, const Arrays& a, long long sequence, int unit",
                      [f"s.{name} = a.state_{name}[{at}];" for name in states]),
            _function("suspend", "const State& s, const Arrays& a, long long sequence, int unit",
                      [f"a.state_{name}[{at}] = s.{name};" for name in states]),
        ]  # fmt: skip
    return "\n".join(pieces)


def _split(step: Pointwise) -> bool:
    """Whether the gradient by the product of h is not that by the product of x."""
    return "dh0" in trace(step.backward, step.after)[1]


def _used(step: Pointwise, kind: str) -> set[str]:
    if kind == "backward":
        return set()
    return {line.args[0] for line in trace(step.forward, step.before)[0] if line.op == "input"}


def _file_name(name: str, step: Pointwise) -> str:
    return f"{name}_kept" if name in step.carried else name


def _rows(rows: int | None) -> Iterable[int | None]:
    return [None] if rows is None else range(rows)


def _struct(name: str, fields: list[str]) -> str:
    return f"struct {name} {{\n" + "".join(f"    {field};\n" for field in fields) + "};"


def _function(name: str, parameters: str, body: list[str]) -> str:
    return f"DEVICE void {name}({parameters}) {{\n" + "".join(f"    {line}\n" for line in body) + "}"


@functools.cache
def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
