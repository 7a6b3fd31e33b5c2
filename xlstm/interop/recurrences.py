"""The engine of arrays that write a program; recurrences run the reference engine's step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from xlstm.arrays.namespace import Array, Namespace
from xlstm.engines import engine
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Step
from xlstm.engines.tape import Widths


class OneStep(engine.Engine):
    """An engine that runs single steps of recurrences on arrays that write them down."""

    name = "written"

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def refuses(self, step: Step, widths: Widths) -> str:
        """Return the reason why it cannot run a step, or ""."""
        return "" if step.xp is self.xp else f"it is for {self.xp.__name__}"

    def forward(
        self, step: Step, x: Array, state: Sequence[Array], widths: Widths, keep: str
    ) -> tuple[Array, list[Array], Any]:
        """Write one step; see `Engine`."""
        y, after = ARRAY_API.step(step, x, tuple(s.T for s in state))
        return y, [s.T for s in after], None

    def backward(self, tape: Any, dy: Any, dstate: Any) -> Any:
        """Raise NotImplementedError, since a written program has no gradients."""
        raise NotImplementedError


@contextlib.contextmanager
def run_by(chosen: engine.Engine) -> Iterator[None]:
    """Let an engine run all recurrences in this context, whichever was chosen before."""
    engine.ENGINES.insert(0, chosen)
    try:
        with engine.use(chosen.name):
            yield
    finally:
        engine.ENGINES.remove(chosen)
