"""The gain of each measure: an LSTM forward + backward without it, one at a time.

python -m bench.ablation [--json FILE]
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import xlstm
from bench import cases, run
from bench.cases import LARGE, SHAPES, Case
from xlstm.arrays import blas, threads
from xlstm.cli.timing import interleave
from xlstm.engines import plan
from xlstm.engines.numba import jit


def _whole(R: int, K: int, n: int) -> tuple[int, int]:
    return R, 1


def _undivided() -> Any:
    """Take rules that divide the batch for ones that leave the products to the threads of BLAS."""
    choose = plan.choose

    def changed(*arguments: Any, **options: Any) -> plan.Rule:
        found = choose(*arguments, **options)
        return found._replace(parts=1, blas=threads.available(), team=1) if found.parts > 1 else found

    return mock.patch.object(plan, "choose", changed)


MEASURES: dict[str, Callable[[], Any]] = {
    "loops compiled": lambda: cases.variable(jit.VARIABLE, "0"),
    "threads": lambda: cases.variable(threads.VARIABLE, "1"),
    "work divided": lambda: _undivided(),
    "products in tiles": lambda: mock.patch.object(blas, "tiles", _whole),
    "all of these": lambda: _nothing(),
}


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
    for shape in [*SHAPES, *LARGE, (64, 8, 1024, 1024)]:
        case = Case("lstm", *shape)
        call = cases.ours(case, xlstm.backend("numpy"))
        calls = {"xlstm": call} | {name: functools.partial(without, name, call) for name in MEASURES}
        run.finish("without", str(case), interleave(calls, options.rounds), options.json)


if __name__ == "__main__":
    main()
