"""Parity of the ways in which a recurrent layer runs on CuPy: each by its name, in each precision, against NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.namespace import HALVES
from xlstm.engines import cuda

Results = list[np.ndarray]

# Tolerances relative to the largest value. TF32 has 11 bits of each factor of the products of h; float16 has 11 and
# bfloat16 8 bits of everything that is kept, h and gradients of gates among it, over all steps. Of 24 steps of an RNN
# with recurrent dropout, whose masks enlarge h, TF32 leaves 6e-3 by every path, and float16 4e-3.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float32 tf32": 1e-2, "float16": 1e-2, "bfloat16": 8e-2}
LOW = ("float32 tf32", "float16", "bfloat16")
DTYPES = {
    "auto": HALVES,  # the path that the layer chooses, of those that have no other name
    "loop": ("float64", "float32", "float16"),
    "pointwise": ("float64", "float32", "float16", "bfloat16"),
    "plain": ("float64", "float32", "float16"),
    "grid": ("float32", "float32 tf32", "float16", "bfloat16"),
    "cluster": ("float32", "float32 tf32", "float16", "bfloat16"),
}


class Pair(NamedTuple):
    """Results to compare, or why a path has none."""

    path: str
    dtype: str
    expected: Results
    found: Results
    why: str = ""


@dataclass(frozen=True)
class Rounded(Backend):
    """float32 with values that a lower dtype has, so that only what is computed differs."""

    low: str = "float16"

    def asarray(self, values: object, dtype: str | None = None) -> np.ndarray:
        array = super().asarray(values, dtype)
        if array.dtype.kind != "f":
            return array
        if self.low == "bfloat16":
            import ml_dtypes

            return array.astype(ml_dtypes.bfloat16).astype(array.dtype)
        return array.astype(self.low).astype(array.dtype)


def ways(paths: Iterable[str], smooth: bool = True) -> list[tuple[str, str]]:
    """The precisions of each path.

    Without `smooth` lower ones are left out: where a function has kinks, a difference in the last bit decides on
    which side of one a value lies, and the gradient jumps.
    """
    return [(path, dtype) for path in paths for dtype in DTYPES[path] if smooth or dtype not in LOW]


def pairs(
    run: Callable[[Backend], Results], device: Backend, host: Backend, chosen: Iterable[tuple[str, str]]
) -> Iterator[Pair]:
    """Return the results of a function of a backend by each of the chosen ways, beside NumPy's.

    Parameters
    ----------
    device, host : Backend
        CuPy and NumPy.
    """
    expected: dict[str, Results] = {}
    for path, dtype in chosen:
        name, _, products = dtype.partition(" ")
        try:
            with cuda.use(path, products or "float32"):
                found = run(Backend(device.name, device.xp, device.device, name))
        except (ValueError, TypeError, BackendError, ImportError) as error:
            if isinstance(error, ValueError | TypeError) and "was asked for" not in str(error):
                raise
            yield Pair(path, dtype, [], [], str(error))
            continue
        if dtype not in expected:
            expected[dtype] = [to_numpy(a) for a in run(_reference(host, name))]
        arrays = [to_numpy(a) for a in found]
        if name in HALVES:
            arrays = [a.astype("float32") for a in arrays]
        yield Pair(path, dtype, expected[dtype], arrays)


def _reference(host: Backend, dtype: str) -> Backend:
    if dtype in HALVES:
        return Rounded(host.name, host.xp, host.device, "float32", low=dtype)
    return Backend(host.name, host.xp, host.device, dtype)
