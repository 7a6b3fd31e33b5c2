"""The modules above this package with compiled loops, kernels and products, by array library, and
those of dual numbers and of several ranks.

They are imported when arrays first need them. A function of a module for NumPy returns None to
leave the work to NumPy.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

VARIABLE = "XLSTM_COMPILE"  # 0 in the environment forbids Numba, 1 demands it
MODULES = {
    "numpy.loops": "xlstm.engines.numba.chains",  # run, walk
    "numpy.products": "xlstm.engines.numba.packed_products",  # matmul
    "cupy.check": "xlstm.engines.cuda.check",  # first_training
    "cupy.choice": "xlstm.engines.cuda.choice",  # use
    "cupy.concat": "xlstm.arrays.cuda.concat_kernel",  # concat
    "cupy.foreach": "xlstm.arrays.cuda.foreach_kernels",  # apply, norm, views
    "cupy.fuse": "xlstm.arrays.cuda.fused_kernels",  # fuse, total
    "cupy.gather": "xlstm.arrays.cuda.gather_kernels",  # gather, add_rows
    "cupy.graphs": "xlstm.training.graphs",  # Graphs
    "cupy.products": "xlstm.arrays.cuda.products",  # matmul, multiply, packed
    "cupy.random": "xlstm.arrays.cuda.random_kernels",  # bernoulli
    "cupy.rows": "xlstm.arrays.cuda.row_kernels",  # summed
    "cupy.waits": "xlstm.arrays.cuda.waits",  # look
    "jvp.cells": "xlstm.engines.compiled_cell",  # CompiledCell
    "jvp.tangents": "xlstm.arrays.tangents",  # jvp
    "ranks.steps": "xlstm.training.parallel",  # all_reduce
    "tables": "xlstm.data.frames",  # has_columns, has_text, is_on_gpu, is_table, table_of
}


@functools.cache
def module(name: str) -> Any:
    """Return a module of the table."""
    return importlib.import_module(MODULES[name])
