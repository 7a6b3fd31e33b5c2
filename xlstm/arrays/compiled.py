"""The modules above this package with compiled loops and products of NumPy arrays.

They are imported when an array is first large enough for them. Each of their functions returns None
to leave the work to NumPy.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

VARIABLE = "XLSTM_COMPILE"  # 0 in the environment forbids Numba, 1 demands it
MODULES = {
    "loops": "xlstm.engines.numba.chains",  # run, walk
    "products": "xlstm.engines.numba.packed_products",  # matmul
}


@functools.cache
def module(name: str) -> Any:
    """Return a module of the table."""
    return importlib.import_module(MODULES[name])
