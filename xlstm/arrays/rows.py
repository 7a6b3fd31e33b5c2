"""Functions that take means and maxima along rows: one compiled loop over NumPy arrays, one kernel on CuPy.

A block of the kernel has one row. A mean needs the whole row before whatever depends on it, so the trace of the
function is divided into stages: each is a loop over the row, at the end of which the block's threads add up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import axes, device, fuse, probe
from xlstm.arrays.namespace import SINGLE, Array, Namespace, device_of
from xlstm.tracing.c import statements
from xlstm.tracing.rows import REDUCTIONS, Rows, SingleRows
from xlstm.tracing.symbols import Line, UntraceableError

OUTER, MOST = 3, 256  # axes of rows, and threads of a block at most

# The sum or the maximum of a value of all threads of a block, of which there are a power of two.
SYNC = """
template <class T>
__device__ __forceinline__ T sync_row(T v, T* room, bool largest) {
    __syncthreads();
    room[threadIdx.x] = v;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) {
            const T a = room[threadIdx.x], b = room[threadIdx.x + half];
            room[threadIdx.x] = largest ? (a > b || a != a ? a : b) : a + b;
        }
    }
    __syncthreads();
    return room[0];
}
"""
TEXT = """
struct Layout {{
    long long shape[{outer}];           // of the rows
    long long steps[{arrays}][{outer}];  // of each array along these axes, in elements
    long long along[{arrays}];          // and along a row
}};
extern "C" __global__ void {name}(const Layout layout, long long columns{parameters}) {{
    __shared__ double memory[{threads}];
    const long long row = blockIdx.x;
    const long long i2 = row % layout.shape[2], i1 = row / layout.shape[2] % layout.shape[1];
    const long long i0 = row / layout.shape[2] / layout.shape[1];
    {begin}
    {body}
}}
"""


def by_rows(xp: Namespace, function: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
    """Return `function(xp, *arrays, **options)`, which may take sums, means and maxima along the last axis.

    It keeps that axis. It runs in one compiled loop where NumPy's arrays are large, and in one kernel on CuPy; sums and
    maxima are for CuPy alone. Where `axis` is among the options, that axis takes the place of the last one.
    """
    axis = options.get("axis", -1)
    if isinstance(axis, int) and axis >= 0 and fuse.compiles(xp):
        found = by_rows(xp, function, *(xp.moveaxis(a, axis, -1) for a in arrays), **{**options, "axis": -1})
        back = tuple(xp.moveaxis(a, -1, axis) for a in fuse.listed(found))
        return back[0] if len(back) == 1 else back
    found = _launched(function, arrays, options) if fuse.compiles(xp) else None
    found = fuse.looped(xp, function, arrays, None, 0, options) if found is None else found
    return function(xp, *arrays, **options) if found is None else found


class _Source(NamedTuple):
    """A kernel for some dtypes, and the dtypes of its results and whether they have one number for a row."""

    begin: str
    body: str
    results: tuple[tuple[Any, bool], ...]


def _launched(function: Callable[..., Any], arrays: Sequence[Array], options: dict[str, Any]) -> Any:
    """Return the results from one launch, or None where there is no kernel for these arrays."""
    dtypes = tuple(a.dtype for a in arrays)
    if not all(map(device.known, dtypes)):
        return None
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    if math.prod(shape) == 0:
        return None
    single = tuple(a.ndim == 0 or a.shape[-1] == 1 for a in arrays)
    layout = _layout(shape, [(a.shape, [step // a.itemsize for step in a.strides]) for a in arrays])
    made = _source(function, dtypes, single, tuple(options.items()))
    if layout is None or made is None or all(single):
        return None
    threads = min(MOST, 1 << max(5, (shape[-1] - 1).bit_length()))
    with device_of(arrays[0]):
        found = [probe.cupy().empty((*shape[:-1], 1 if one else shape[-1]), dtype) for dtype, one in made.results]
        kernel = _kernel(function, dtypes, single, tuple(options.items()), threads)
        kernel((math.prod(shape[:-1]),), (threads,), (layout, np.int64(shape[-1]), *arrays, *found))
    return found[0] if len(found) == 1 else tuple(found)


def _layout(shape: Sequence[int], arrays: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Any:
    """Return `Layout` from the shapes and steps of arrays, or None where their rows have too many axes."""
    steps = [axes.broadcast(shape, own, step) for own, step in arrays]
    sizes, along = axes.joined(range(len(shape) - 1), shape, steps)
    if len(sizes) > OUTER:
        return None
    found = np.zeros((), _struct(len(arrays)))
    found["shape"] = [1] * (OUTER - len(sizes)) + sizes
    for k, (far, step) in enumerate(zip(along, steps, strict=True)):
        found["steps"][k] = [0] * (OUTER - len(far)) + far
        found["along"][k] = step[-1]
    return found


@functools.cache
def _struct(arrays: int) -> np.dtype[Any]:
    return np.dtype([("shape", "i8", (OUTER,)), ("steps", "i8", (arrays, OUTER)), ("along", "i8", (arrays,))])


@functools.cache
def _source(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    single: tuple[bool, ...],
    options: tuple[tuple[str, Any], ...],
) -> _Source | None:
    """Return the kernel of a function, or None where its trace has something else."""
    inputs = [f"x{k}" for k in range(len(dtypes))]
    try:
        lines = fuse.traced(function, len(dtypes), options, SingleRows if set(dtypes) == {SINGLE} else Rows)
    except UntraceableError:
        return None
    results = fuse.results(function, dtypes, dict(options))
    real = {name: fuse.real(dtype) for name, dtype in zip(inputs, dtypes, strict=True)}

    def load(name: str, _: int | None) -> str:
        return f"widen({name}[{'0' if name in writer.single else f'unit * layout.along[{name[1:]}]'}])"

    def store(name: str, _: int | None, value: str) -> str:
        return f"narrow({name}[{'row' if name in writer.single else 'row * columns + unit'}], {value});"

    writer = Writer(lines, {name for name, one in zip(inputs, single, strict=True) if one}, real, load, store)
    begin = [
        f"x{k} += i0 * layout.steps[{k}][0] + i1 * layout.steps[{k}][1] + i2 * layout.steps[{k}][2];"
        for k in range(len(dtypes))
    ]
    body = writer.body()
    ones = [f"y{k}" in writer.single for k in range(len(results))]
    return _Source("\n    ".join(begin), "\n    ".join(body), tuple(zip(results, ones, strict=True)))


class Writer:
    """Writes a trace as C for one row of `columns` units.

    Parameters
    ----------
    lines : sequence of Line
    single : set of str
        The inputs that have one number for a row.
    real : dict of str to str
        The C type of each input.
    load, store : callable
        As `statements` takes them.
    everywhere : bool
        Whether outputs that are one number for a row are stored for every unit, instead of once.

    Attributes
    ----------
    single : set of str
        Inputs and outputs that have one number for a row.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        single: set[str],
        real: Mapping[str, str],
        load: Callable[[str, int | None], str],
        store: Callable[[str, int | None, str], str],
        everywhere: bool = False,
    ) -> None:
        self.single, self.real, self.load, self.store = set(single), real, load, store
        self.stores = [line for line in lines if line.op == "store"]
        self.lines = {line.to: line for line in lines if line.op != "store"}
        self.stage: dict[str, int] = {}  # the number of reductions that a variable has to wait for
        self.varies: dict[str, bool] = {}
        self.kinds: dict[str, str | None] = {}
        for to, line in self.lines.items():
            known = line.op in ("input", "number")
            self.stage[to] = 0 if known else max(self.stage[a] for a in line.args)
            self.varies[to] = any(self.varies[a] for a in line.args) if not known else self._varies(line)
            if line.op in REDUCTIONS:
                self.stage[to], self.varies[to] = self.stage[to] + 1, False
        if not everywhere:
            self.single |= {line.to for line in self.stores if not self.varies[line.args[0]]}

    def _varies(self, line: Line) -> bool:
        return line.op == "input" and line.args[0] not in self.single

    def body(self) -> list[str]:
        """Return the statements."""
        found: list[str] = []
        last = max(self.stage.values())
        for stage in range(last + 1):
            alone = [v for v, line in self.lines.items() if self._alone(v, line, stage)]
            found += self._statements([self.lines[v] for v in alone])
            now = [line for line in self.lines.values() if line.op in REDUCTIONS and self.stage[line.to] == stage + 1]
            stores = [line for line in self.stores if line.to not in self.single] if stage == last else []
            needed = self._needed([line.args[0] for line in (*now, *stores)])
            inner = self._statements([self.lines[v] for v in needed], dict(self.kinds), stores, now)
            start = {"sum": "0", "mean": "0", "max": "-1.0f / 0.0f"}
            found += [f"{self._kind(line)} part_{line.to} = {start[line.op]};" for line in now]
            if now or stores:
                found += ["for (long long unit = threadIdx.x; unit < columns; unit += blockDim.x) {"]
                found += [*(f"    {line}" for line in inner), "}"]
            for line in now:
                kind, largest = self._kind(line), str(line.op == "max").lower()
                share = " / columns" if line.op == "mean" else ""
                sum_ = f"sync_row<{kind}>(part_{line.to}, ({kind}*)memory, {largest})"
                found.append(f"const {kind} {line.to} = {sum_}{share};")
                self.kinds[line.to] = kind
        ones = [line for line in self.stores if line.to in self.single]
        if ones:
            found.append(f"if (threadIdx.x == 0) {{ {' '.join(self._statements([], None, ones))} }}")
        return found

    def _alone(self, v: str, line: Line, stage: int) -> bool:
        return not self.varies[v] and self.stage[v] == stage and line.op not in REDUCTIONS

    def _kind(self, line: Line) -> str:
        return "double" if self._wide(line.args[0]) else "float"

    def _wide(self, v: str) -> bool:
        line = self.lines[v]
        if line.op in ("single", "double"):
            return line.op == "double"
        if line.op == "number":
            return False
        return self.real[line.args[0]] == "double" if line.op == "input" else any(self._wide(a) for a in line.args)

    def _statements(
        self,
        lines: Sequence[Line],
        kinds: dict[str, str | None] | None = None,
        stores: Sequence[Line] = (),
        reductions: Sequence[Line] = (),
    ) -> list[str]:
        """Return statements for lines, for stores, and for what reductions gather."""
        gathered = [Line(f"part_{line.to}", None, "store", (line.args[0],)) for line in reductions]
        largest = {f"part_{line.to}" for line in reductions if line.op == "max"}

        def store(name: str, row: int | None, value: str) -> str:
            if name in largest:
                return f"{name} = ({value} > {name} || {value} != {value}) ? {value} : {name};"
            return f"{name} += {value};" if name.startswith("part_") else self.store(name, row, value)

        kinds = self.kinds if kinds is None else kinds
        return statements([*lines, *gathered, *stores], self.load, store, self.real, kinds)

    def _needed(self, roots: Sequence[str]) -> list[str]:
        """Return the variables that change along a row and on which these depend, in the order of the trace."""
        todo, found = list(roots), set()
        while todo:
            v = todo.pop()
            if self.varies[v] and v not in found:
                found.add(v)
                todo += [] if self.lines[v].op == "input" else self.lines[v].args
        return [v for v in self.lines if v in found]


@functools.cache
def _kernel(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    single: tuple[bool, ...],
    options: tuple[tuple[str, Any], ...],
    threads: int,
) -> Any:
    name = f"xlstm_rows_{function.__name__.strip('_')}"
    return probe.cupy().RawKernel(text(function, dtypes, single, options, threads), name, backend="nvrtc")


def text(
    function: Callable[..., Any],
    dtypes: tuple[Any, ...],
    single: tuple[bool, ...],
    options: tuple[tuple[str, Any], ...],
    threads: int,
) -> str:
    """Return the text of a kernel for blocks of so many threads; `single` has which arrays are one number for a row."""
    made = _source(function, dtypes, single, options)
    assert made is not None
    parameters = [f"const {device.type_of(dtype)}* x{k}" for k, dtype in enumerate(dtypes)]
    parameters += [f"{device.type_of(dtype)}* y{k}" for k, (dtype, _) in enumerate(made.results)]
    return (
        device.TEXT
        + SYNC
        + TEXT.format(
            name=f"xlstm_rows_{function.__name__.strip('_')}",
            **{"outer": OUTER, "arrays": len(dtypes), "threads": threads, "begin": made.begin, "body": made.body},
            parameters="".join(f", {p}" for p in parameters),
        )
    )
