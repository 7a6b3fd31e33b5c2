"""A stand-in for CuPy on host memory: what runs on a GPU runs here without one, and everything asked of it is counted.

`install()` puts the package `cupy` of this folder in the place of the real one. `pytest` does so where the environment
has XLSTM_TEST_STANDIN=1, and PYTHONPATH does so for other processes. `counted()` counts what a block of code asks of
the device.

These are acted out as CuPy 14 has them:

- arrays of a class of their own: NumPy arrays are refused, and no value reaches the host but by `get`, `item`, `float`
- dtypes of results, by CuPy's own lists of loops and its rule for Python numbers, bfloat16 of ml_dtypes among them
- NaN with the bits that a GPU gives it, and NaN in memory that nobody has written yet
- what is a view, what is a kernel, a copy or a call of cuBLAS, and which operands are copied before a product
- `ElementwiseKernel`, `ReductionKernel`, `RawKernel` and `RawModule`, compiled by g++ (`tests/ctargets.py`,
  `tests/device/`), with the types of their arguments checked; cuBLAS by its definition
- the current stream and allocator of a thread, and memory that one stream fills and another one reads without a wait
- captures: operations of a stream that are kept, and done by each launch of the graph on the same memory; within one no
  wait, no copy to or from the host, no compilation, no function of cuBLAS but by the library (`cuda.cublas.__file__`),
  and no array in a pool that others use; and no launch on memory that was given back
- two devices, each with a card of its own (`cupy.cards`), the current one, and arrays that are on another; the largest
  cluster that a card has room for, cooperative launches and shared memory up to its limits

These are not:

- time, and what happens at the same time: every call is done when it returns
- races, and memory that is read beyond an array's end
- arithmetic of a GPU: fused multiply-add, its exp and tanh, numbers below 2^-126 as zero, the order of sums, TF32
- the text that NVRTC and the driver say, NVRTC itself (`tests/nvrtc.py` has it), and what it takes to compile
- functions that neither xlstm nor its tests use: they are not there
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "XLSTM_TEST_STANDIN"
FOLDER = Path(__file__).parent


def asked_for() -> bool:
    """Whether the environment asks for the stand-in."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def install() -> None:
    """Let `import cupy` find the stand-in, here and in processes that this one starts."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
        paths = [str(FOLDER), str(FOLDER.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def real() -> Any:
    """The CuPy that is installed, for a test of what it has; such a test is skipped on the stand-in."""
    if asked_for():
        pytest.skip("CuPy is acted out here")
    return pytest.importorskip("cupy")


def counted(where: bool = False) -> Any:
    """Count what a `with` block asks of the device; `where` also lists each operation with the line of xlstm."""
    from cupy import _counts

    return _counts.counted(where)
