"""The text of a kernel for a function along rows, and for sums of its results over all rows.

A function may take means and maxima along a row. A mean needs the whole row before the operations
that depend on it, so one block of the kernel takes a whole row, and the trace of the function is
divided into stages, each a loop over the row. Without means and maxima, a thread takes one column.
In both cases a block goes through some rows one after the other.

If results are summed over rows, each block writes the sums of its own rows. The last of `FAN`
blocks to end adds up the sums of these blocks. The last of `FAN` such blocks adds up the next
level, and so on. This takes one launch, no wait, and an order of summation that follows from shapes
alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xlstm.arrays.cuda import device
from xlstm.arrays.namespace import Shape
from xlstm.tracing.array_functions import ArrayFunction, Formula, Lengths, Options
from xlstm.tracing.reductions import REDUCTIONS, RowWriter
from xlstm.tracing.writers import C

MOST = 256
FAN = 32  # the most threads of a block, and the number of blocks whose sums one block adds up

# The sum or the maximum of a value over all threads of a block; their number is a power of two.
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
    long long rows, columns, chunk, tiles;  // blocks along x have `chunk` rows, those along y heads and their tiles
    long long shape[{outer}];               // of the rows
    struct {{ long long steps[{outer}], head, along, apart; }} of[{arrays}];  // for each array, in elements
}};
extern "C" __global__ void {name}(const Layout layout{parameters}) {{
    __shared__ double memory[{most}];
    const int columns = layout.columns, tiles = layout.tiles, width = (int)gridDim.y / tiles * columns;
    const int head = (int)blockIdx.y / tiles, tile = (int)blockIdx.y % tiles, first = blockIdx.x * layout.chunk;
    const int last = first + layout.chunk < layout.rows ? first + layout.chunk : layout.rows;
    {begin}
    for (int row = first; row < last; row++) {{
        {body}
    }}
    {end}
}}
"""
SUMS = """
    __shared__ bool ends;
    const int from = head * columns + tile * blockDim.x + threadIdx.x;
    const int to = tile + 1 < tiles ? head * columns + (tile + 1) * (int)blockDim.x : (head + 1) * columns;
    unsigned* counter = counters + blockIdx.y * ((gridDim.x + {fan} - 1) / {fan} + 1);
    for (int blocks = gridDim.x, apart = 1, me = blockIdx.x; blocks > 1; apart *= {fan}, me /= {fan}) {{
        const int group = me / {fan}, count = blocks - group * {fan} < {fan} ? blocks - group * {fan} : {fan};
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) {{
            ends = atomicAdd(counter + group, 1) + 1 == count;
            if (ends) counter[group] = 0;
        }}
        __syncthreads();
        if (!ends) return;
        __threadfence();
        for (int at = from; at < to; at += blockDim.x)
            for (int slot = 0; slot < {slots}; slot++) {{
                // What other blocks wrote: a volatile number is not read from a cache that does not know of it.
                volatile {real}* some = sums + ((long long)group * {fan} * apart * {slots} + slot) * width + at;
                {real} sum = some[0];
                for (int k = 1; k < count; k++) sum += some[(long long)k * apart * {slots} * width];
                some[0] = sum;
            }}
        blocks = (blocks + {fan} - 1) / {fan};
        counter += blocks;
    }}
    for (int at = from; at < to; at += blockDim.x) {{
        {results}
    }}
"""


class WholeRow(C):
    """Writes C for a block with a whole row."""

    LOOP = "for (int unit = threadIdx.x; unit < columns; unit += blockDim.x) {", "}"


class RowResult(NamedTuple):
    """A result of a function."""

    dtype: Any
    length: int | None  # length of its leading axis
    single: bool  # whether it has one number for a row
    summed: bool

    def shape(self, shape: Shape, keep: int) -> Shape:
        """Return its shape, from the shape of all arrays broadcast together."""
        leading = () if self.length is None else (self.length,)
        if self.summed:
            return (*shape[-keep:], *leading)
        return (*leading, *shape[:-1], 1 if self.single else shape[-1])


class RowKernel:
    """The text of a kernel for a function of arrays x0, x1, ..., which gives y0, y1, ...

    Parameters
    ----------
    function, dtypes, options
        As for `fuse`; `dtypes` has the dtype of each array.
    single : tuple of bool
        Which arrays have one number for a row.
    leading : tuple of int or None
        The lengths of leading axes that the function splits up.
    sums : int
        The number of results, counted from the last, that are summed over rows.

    Attributes
    ----------
    results : dict of str to RowResult
    whole : bool
        Whether a block must have a whole row.
    slots : list of (str, int or None)
        The names of results that are summed, and places in their leading axes.
    real : {"float", "double"}
        The type of sums.
    """

    def __init__(
        self,
        function: Formula,
        dtypes: tuple[Any, ...],
        options: Options,
        single: tuple[bool, ...],
        leading: Lengths,
        sums: int = 0,
    ) -> None:
        traced = ArrayFunction(function, dtypes, options, leading, rows=True)
        self.name = f"xlstm_rows_{traced.name}"
        self.writer = WholeRow(traced.lines, self._load, self._store, traced.kinds)
        singles = (name for name, is_single in zip(traced.inputs, single, strict=True) if is_single)
        self.rows = RowWriter(self.writer, set(singles))
        stores = [line for line in traced.lines if line.op == "store"]
        lengths = {line.to: None if line.row is None else line.row + 1 for line in stores}
        first = len(traced.outputs) - sums
        self.results = {
            name: RowResult(dtype, lengths[name], name in self.rows.single, k >= first)
            for k, (name, dtype) in enumerate(traced.outputs.items())
        }
        self.slots = [(line.to, line.row) for line in stores if self.results[line.to].summed]
        doubles = [name for name, _ in self.slots if traced.kinds[name] == "double"]
        self.real = "double" if doubles else "float"
        reduces = any(line.op in REDUCTIONS for line in traced.lines)
        self.whole = reduces or any(result.single for result in self.results.values())
        self.types = {x: f"const {device.type_of(dtype)}*" for x, dtype in traced.inputs.items()}
        self.types |= {y: f"{device.type_of(dtype)}*" for y, dtype in traced.outputs.items()}
        # Inputs and results, whose layout is an argument of the kernel; sums are contiguous.
        sums_of = {name for name, _ in self.slots}
        self.lying = [name for name in self.types if name not in sums_of]

    def text(self, outer: int, fixed: frozenset[int]) -> str:
        """Return the text for rows with `outer` loops.

        `fixed` has the numbers of arrays that are the same for all rows.
        """
        still = {f"x{k}" for k in fixed}
        begin = [self._pointer(name, 0) for name in self.lying if name in still]
        body = ["int rest = row;"]
        for k in range(outer - 1, -1, -1):
            size = f"(int)layout.shape[{k}]"
            body.append(f"const int i{k} = rest % {size}; rest /= {size};")
        body += [self._pointer(name, outer) for name in self.lying if name not in still]
        # Sums come after the arrays with a layout argument, as they are the last results.
        parameters = [f"{type_} {name}" for name, type_ in self.types.items()]
        count = len(self.slots)
        if count:
            parameters += [f"{self.real}* sums", "unsigned* counters"]
            place = f"(long long)blockIdx.x * {count} * width + head * columns"
            begin.append(f"{self.real}* mine = sums + {place};")
        first, row, end = ([], self.rows.body(), []) if self.whole else self._one_column(still)
        if count:
            results = []
            for slot, (name, part) in enumerate(self.slots):
                at = "at" if part is None else f"at * {self.results[name].length} + {part}"
                results.append(f"narrow({name}[{at}], sums[{slot} * width + at]);")
            stored = "\n        ".join(results)
            end.append(SUMS.format(fan=FAN, slots=count, real=self.real, results=stored))
        kernel = TEXT.format(
            name=self.name,
            parameters="".join(f", {parameter}" for parameter in parameters),
            outer=outer,
            arrays=len(self.lying),
            most=MOST,
            begin="\n    ".join([*begin, *first]),
            body="\n        ".join([*body, *row]),
            end="\n    ".join(end),
        )
        return device.TEXT + SYNC + kernel

    def _one_column(self, still: set[str]) -> tuple[list[str], list[str], list[str]]:
        """Return a thread's statements for one column: before its rows, for each row, and after."""
        lines = self.writer.lines
        early = [line for line in lines if line.op == "input" and line.args[0] in still]
        slots = range(len(self.slots))
        begin = [
            "const int unit = tile * blockDim.x + threadIdx.x;",
            *(f"{self.real} sum_{k} = 0;" for k in slots),
            "if (unit < columns) {",
            *self.writer.statements(early),
        ]
        row = self.writer.statements(line for line in lines if line not in early)
        return begin, row, [*(f"mine[{k} * width + unit] = sum_{k};" for k in slots), "}"]

    def _pointer(self, name: str, outer: int) -> str:
        """Return the statement that finds an array's numbers in a row, from the loops' indices."""
        layout = f"layout.of[{self.lying.index(name)}]"
        steps = "".join(f" + i{k} * {layout}.steps[{k}]" for k in range(outer))
        return f"{self.types[name]} at_{name} = {name} + head * {layout}.head{steps};"

    def _load(self, name: str, row: int | None) -> str:
        return f"widen({self._at(name, row)})"

    def _store(self, name: str, row: int | None, value: str) -> str:
        if not self.results[name].summed:
            return f"narrow({self._at(name, row)}, {value});"
        slot = self.slots.index((name, row))
        if not self.whole:
            return f"sum_{slot} += {value};"
        mine = f"mine[{slot} * width + unit]"
        return f"{mine} = {value} + (row == first ? 0 : {mine});"

    def _at(self, name: str, row: int | None) -> str:
        layout = f"layout.of[{self.lying.index(name)}]"
        unit = "0" if name in self.rows.single else f"unit * {layout}.along"
        return f"at_{name}[{unit}{'' if row is None else f' + {row} * {layout}.apart'}]"
