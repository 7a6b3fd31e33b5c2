"""The texts of the kernels of a chunkwise mLSTM: templates in `chunks/`, with formulas as C.

Formulas are traces of `cells/mlstm_formulas.py`. Templates move numbers and multiply matrices.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.cuda import device
from xlstm.arrays.cuda.row_kernel_text import SYNC
from xlstm.cells.mlstm_formulas import by_name, kinds, options_of, taken
from xlstm.engines.cuda.kernel_source import KernelSource, template
from xlstm.tracing.array_functions import Formula, traced
from xlstm.tracing.writers import C

THREADS = 256
LARGEST = 64  # most steps of a chunk
FORMULAS = {  # the formulas in each kind of kernel
    "gates": ("forget", "accumulate", "written", "m_after", "stabilise", "read_write", "keep"),
    "states": ("state",),
    "within": ("decay", "quotient", "denominator"),
    "states_bwd": ("state", "quotient"),
    "within_bwd": ("decay", "quotient", "scale_add"),
    "maximum_bwd": ("state", "m_bwd", "from_before"),
    "shares_bwd": ("m_bwd", "from_before", "add_to_last", "is_largest", "share"),
    "gates_bwd": ("b_bwd", "add", "forget_bwd"),
}
KINDS = tuple(FORMULAS)
TILED = ("states", "within", "states_bwd", "within_bwd")  # kernels with products of matrices


class ChunkArithmetic(NamedTuple):
    """How a layer's numbers are multiplied: the type of elements in memory, and of the parts of a
    number.
    """

    io: str
    operand: str
    planes: int  # parts of a number

    @property
    def kind(self) -> str:
        """The beginning of the names of these kernels, for `kernel_fallback`."""
        return f"chunks {self.io} {self.planes} "


CHUNK_ARITHMETIC = {  # by dtype and precision
    ("float16", "float32"): ChunkArithmetic("half_t", "half_t", 1),
    ("bfloat16", "float32"): ChunkArithmetic("bf16_t", "bf16_t", 1),
    ("float32", "float32"): ChunkArithmetic("float", "bf16_t", 3),
    ("float32", "tf32"): ChunkArithmetic("float", "bf16_t", 2),
}


class ChunkShape(NamedTuple):
    """The memories of a layer, the steps of a chunk (16, 32 or 64), and the layout of their
    arrays.
    """

    heads: int
    K: int
    V: int
    L: int
    pack: int  # neighbours in memory that are read at once


def steps_of(chunk: int) -> int:
    """Return the steps of a chunk in the kernels, from the number that was asked for."""
    return next(L for L in (16, 32, LARGEST) if chunk <= L or L == LARGEST)


@functools.cache
def source(
    kind: str, arithmetic: ChunkArithmetic, shape: ChunkShape, forget: str, eps: float
) -> tuple[KernelSource, int]:
    """Return a kernel, and the number of tiles of a chunk's work, or of a state; each tile has its
    own block.
    """
    heads, K, V, L, pack = shape
    planes = arithmetic.planes
    name = f"xlstm_chunk_{kind}"
    slab = min(64 if planes == 1 else 32, max(_tile(K), _tile(V)))
    state_k = min(64, _tile(K))
    tile_v = _tile(V)
    columns = min(64 if planes > 2 else 128, max(_tile(K), _tile(V)))

    def tile(rows: int, columns: int) -> int:
        return 2 * planes * rows * (columns + 8)

    base = kind.removesuffix("_bwd")
    # Tiles that take turns share memory.
    if kind == "within":
        room = max(tile(L, slab), tile(slab, tile_v))
    else:
        room = max(tile(L, slab), tile(columns, slab), tile(slab, columns))
    beside = THREADS // 32 // (L // 16) * 4  # threads with numbers of the same row
    shared = {
        "gates": 16 * THREADS + 8,
        "states": tile(L, state_k) + tile(L, tile_v) + 4 * THREADS,
        "within": tile(L, L) + tile(L, slab) + room + 4 * (THREADS // L + 1) * L,
        "within_bwd": 2 * tile(L, L) + tile(L, slab) + room + 4 * L * beside,
        "maximum_bwd": 8 * THREADS + 4,
        "shares_bwd": 20 * L,
        "gates_bwd": 0,
    }
    states = -(-K // state_k) * -(-V // tile_v)
    file = base if base == "states" else kind
    tiles = {"states": states, "within": -(-V // tile_v)}.get(file, 1)
    defines = {
        "IO": arithmetic.io,
        "operand_t": arithmetic.operand,
        "KERNEL": name,
        "BACKWARD": int(base != kind),
        "HALVES": int(planes == 1),
        "THROUGH_MAXIMUM": int(kind in ("maximum_bwd", "shares_bwd")),
    }
    sizes = {
        "HEADS": heads,
        "K": K,
        "V": V,
        "L": L,
        "THREADS": THREADS,
        "PLANES": planes,
        "PACK": pack,
        "SHARED_PLANNED": shared[file],
        "ROOM": room,
        "SLAB": slab,
        "DEPTH": min(L, slab),
        "STATE_K": state_k,
        "TILE_V": tile_v,
        "COLUMNS": columns,
        "TILES": states,
    }
    formulas = by_name(forget)
    options = {"root": K**-0.5, "eps": eps, **options_of(np.dtype("float32"))}
    text = [
        device.TEXT,
        *(f"#define {key} {value}" for key, value in defines.items()),
        *(f"constexpr int {key} = {value};" for key, value in sizes.items()),
        template("chunks/arrays.cuh"),
        *(_function(formula, formulas[formula], options) for formula in FORMULAS[kind]),
        SYNC,
        template("chunks/tiles.cuh" if kind in TILED else "chunks/gates.cuh"),
        template(f"chunks/{file}.cu"),
    ]
    return KernelSource(name, "\n".join(text), shared=shared[file]), tiles


def _tile(size: int) -> int:
    """Return the width of the tile for a width: 16, 32, 64 or 128."""
    return next(n for n in (16, 32, 64, 128) if size <= n or n == 128)


def _function(name: str, formula: Formula, options: dict[str, Any]) -> str:
    """Return a formula as a function of C, which writes its results to references."""
    inputs = kinds(formula, "float", "double")
    lines = traced(formula, len(inputs), tuple(taken(formula, options).items()))
    types = {f"x{k}": kind for k, kind in enumerate(inputs.values())}
    writer = C(lines, lambda x, _: x, lambda y, _, value: f"{y} = {value};", types, default="float")
    parameters = [f"{kind} {x}" for x, kind in types.items()]
    parameters += [
        f"{writer.kind(line.args[0])}& {line.to}" for line in lines if line.op == "store"
    ]
    body = "".join(f"    {line}\n" for line in writer.statements())
    return f"DEVICE void {name}({', '.join(parameters)}) {{\n{body}}}"
