"""Two ways to do one thing on a GPU, side by side: sums of columns, one product, and the gradient of an embedding.

    python -m bench.choices [--seconds N] [--json FILE]

Needs a CUDA machine with CuPy. The first way of each is that of xlstm. Sizes are those of a step of the language model
of `bench.language`: 16 sequences of 512 tokens, 768 wide, 16384 tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import xlstm
from bench import rows
from bench.events import Clock, Side, side_by_side
from bench.rows import PRECISIONS
from xlstm.arrays import probe
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.gather import add_rows
from xlstm.arrays.matmul import matmul

N, D, V = 8192, 768, 16384
Ways = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """One thing that is timed."""

    what: str
    N: int
    D: int
    V: int
    precision: str

    def __str__(self) -> str:
        return f"{self.what} {self.N},{self.D} {self.precision}"


def cases() -> list[Case]:
    sizes = {"column sums": (D, 2 * D), "product": (D,), "embedding": (D,)}
    return [Case(w, N, width, V, name) for name in ("bf16", "fp32") for w, some in sizes.items() for width in some]


def ways(case: Case) -> Ways:
    be, rng = xlstm.backend("cupy", dtype=PRECISIONS[case.precision]), np.random.default_rng(0)
    xp, x = be.xp, be.asarray(rng.standard_normal((case.N, case.D)))
    if case.what == "column sums":
        ones = be.asarray(np.ones((1, case.N)))
        return {"sum": lambda: xp.sum(x, axis=0), "product with ones": lambda: (ones @ x)[0, ...]}
    if case.what == "product":
        W = be.asarray(rng.standard_normal((case.D, case.D)) / case.D**0.5)
        return {"strided batch of one": lambda: matmul(xp, x[None, ...], W)[0, ...], "GemmEx": lambda: x @ W}
    tokens = rng.integers(0, case.V, case.N)
    places = xp.asarray(tokens)

    def sorted_segments() -> Any:
        order = xp.asarray(np.argsort(tokens, kind="stable"))  # the host has tokens, too
        found = xp.zeros((case.V, case.D), dtype=xp.float32)
        probe.cupy().add.at(found, places[order], xp.astype(x[order, ...], xp.float32))
        return found

    return {"product": lambda: add_rows(xp, places, x, case.V), "sorted, atomic": sorted_segments}


def measure(case: Case, clock: Clock, until: float = float("inf")) -> dict[str, Any]:
    """The row of a case, fit for JSON: times by way, and the difference of their results."""
    both = ways(case)
    one, other = (to_numpy(way()).astype("float32") for way in both.values())
    found = side_by_side({n: Side(w) for n, w in both.items()}, clock, until=min(until, clock.now() + rows.LONGEST))
    return {
        **rows.head(case),
        "difference": rows.agreement({"result": one}, {"result": other}),
        "seconds": {name: asdict(times) for name, times in found.items()},
    }


def main() -> int:
    return rows.main("choices", __doc__, cases(), measure)


if __name__ == "__main__":
    sys.exit(main())
