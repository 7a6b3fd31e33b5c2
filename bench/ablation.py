"""The gain of each measure: an LSTM forward + backward without it, one at a time.

python -m bench.ablation [--json FILE]
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import xlstm
from bench import cases, run
from bench.cases import LARGE, SHAPES, Case
from xlstm.arrays import cores
from xlstm.cli.timing import interleave
from xlstm.engines.numba import jit

FEW = [(64, 8, 1024, 1024)]  # sequences, for the size of the weights
MEASURES: dict[str, Callable[[], Any]] = {
    "loops compiled": lambda: cases.variable(jit.VARIABLE, "0"),
    "threads": lambda: cases.variable(cores.VARIABLE, "1"),
    "vectors of 64 bytes": lambda: _narrow(),
    "all of these": lambda: _nothing(),
}


@contextlib.contextmanager
def _narrow() -> Iterator[None]:
    """Compile for vectors of 32 bytes."""
    if jit.failure() is not None:
        yield
        return
    from xlstm.engines.numba import vectors

    with cases.variable(vectors.VARIABLE, "32"):
        vectors.shape.cache_clear()
        yield
    vectors.shape.cache_clear()


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in MEASURES:
            if name != "all of these":
                stack.enter_context(MEASURES[name]())
        yield


def without(measure: str, call: Callable[[], None]) -> None:
    """The call without it."""
    with MEASURES[measure]():
        call()


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("without")
    for shape in [*SHAPES, *LARGE, *FEW]:
        case = Case("lstm", *shape)
        call = cases.ours(case, xlstm.backend("numpy"))
        calls = {"xlstm": call} | {name: functools.partial(without, name, call) for name in MEASURES}
        run.finish("without", str(case), interleave(calls, options.rounds), options.json)


if __name__ == "__main__":
    main()
