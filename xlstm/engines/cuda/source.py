"""The text of a kernel: a template, the sizes it is made for, and the cell as traced.

The templates beside this file have the schedule, loops, exchange and memory, and no formula; `cell.py` has what
comes in of a cell.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from xlstm.engines.cuda.cell import CellText, Names
from xlstm.engines.cuda.tiling import Arithmetic, Tiling
from xlstm.engines.pointwise import Pointwise

ARRANGE = "xlstm_arrange"  # the kernel in every loop's text that lays weights out for it
BLOCK = 256  # threads of a block of a kernel without a loop


class Source(NamedTuple):
    """A kernel that can be compiled."""

    name: str
    text: str
    arrays: tuple[str, ...]  # its arguments after those of the schedule, in order; the cell's numbers come last
    shared: int = 0  # bytes of dynamic shared memory
    blocks: int = 0  # that work together; 0 for any number of them
    cluster: bool = False  # they are one


@functools.cache
def loop(step: Pointwise, kind: str, arithmetic: Arithmetic, tiling: Tiling) -> Source:
    """The kernel of a whole pass, of one of `cell.KINDS` but again."""
    cell = CellText(step, kind, arithmetic.real, loop=True)
    sizes = {
        **{"WIDTH": tiling.width, "HEADS": tiling.heads, "UNITS": tiling.units, "BLOCKS": tiling.blocks},
        **{"NB": tiling.columns, "M": tiling.M, "K": tiling.K, "THREADS": tiling.threads},
        **{"WARPS_M": tiling.warps_m, "CHUNKS_KEPT": tiling.kept, "COLUMNS_AT_ONCE": tiling.at_once},
        **{"CLUSTER": int(tiling.cluster), "MMA": arithmetic.mma, "TF32": int(arithmetic.tf32)},
        "ARRANGE": ARRANGE,
        "CLUSTER_DIMENSIONS": f"__cluster_dims__({tiling.blocks}, 1, 1)" if tiling.cluster else "",
    }
    numbers = (
        "const int* offsets, int steps, int width, int group0, unsigned* flags, void* exchange, const void* arranged"
    )
    template = "backward.cu" if cell.back else "forward.cu"
    end = f'static_assert(SHARED_BYTES == {tiling.shared}, "shared memory as planned");'
    name, files = f"xlstm_{kind}", ("product.cuh", "exchange.cuh", "cells.cuh", template)
    text = _text(name, cell, arithmetic, sizes, numbers, files, end)
    return Source(name, text, cell.names.all, tiling.shared, tiling.blocks, tiling.cluster)


@functools.cache
def pointwise(step: Pointwise, kind: str, arithmetic: Arithmetic, heads: int, width: int) -> Source:
    """The kernel of one step without the product of h, of one of `cell.KINDS`."""
    cell = CellText(step, kind, arithmetic.real, loop=False)
    sizes = {"WIDTH": width, "HEADS": heads, "THREADS": BLOCK}
    sizes |= {"BACKWARD": int(cell.back), "AGAIN": int(kind == "again")}
    name = f"xlstm_{kind}_step"
    text = _text(name, cell, arithmetic, sizes, "long long row0, int count", ("pointwise.cu",), "")
    return Source(name, text, cell.names.all)


def _text(
    name: str,
    cell: CellText,
    arithmetic: Arithmetic,
    sizes: Mapping[str, object],
    numbers: str,
    files: tuple[str, ...],
    end: str,
) -> str:
    types = {"REAL": arithmetic.real, "IO": arithmetic.io, "operand_t": arithmetic.operand}
    more = {"GATES": cell.step.before["zx"], "KERNEL": name, **_parameters(cell.names, numbers)}
    defines = [f"#define {key} {value}" for key, value in {**types, **sizes, **more}.items()]
    shared = [file(part) for part in ("device.cuh", "arrays.cuh")]
    return "\n".join([*defines, *shared, str(cell), *(file(part) for part in files), end])


def _parameters(names: Names, numbers: str) -> dict[str, str]:
    """Of a kernel, and how they become its struct of arrays."""
    listed = [
        numbers,
        *(f"const IO* __restrict__ a_{name}" for name in names.read),
        *(f"IO* a_{name}" for name in names.written),
        *(f"REAL* a_{name}" for name in names.real),
        *(f"REAL a_{name}" for name in names.numbers),
    ]
    return {"PARAMETERS": ", ".join(listed), "ARRAYS": f"{{{', '.join(f'a_{name}' for name in names.all)}}}"}


@functools.cache
def file(name: str) -> str:
    """A template."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
