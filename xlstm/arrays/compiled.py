"""Where loops and products of NumPy arrays are compiled, which is above this package.

The modules of the table are imported when an array is first large enough for them; each of their
functions returns None where it leaves the work to NumPy.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

MODULES = {
    "loops": "xlstm.engines.numba.chains",  # run, walk
    "products": "xlstm.engines.numba.packed_products",  # matmul
}


@functools.cache
def module(name: str) -> Any:
    """Return a module of the table."""
    return importlib.import_module(MODULES[name])
