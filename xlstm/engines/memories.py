"""One pass over the matrix memories of an mLSTM, and the reference engine that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from xlstm.arrays.backend import Portable
from xlstm.arrays.namespace import Array, Namespace, reshape
from xlstm.cells import mlstm
from xlstm.engines import engine
from xlstm.engines.engine import Registered

Start = Sequence[Array]  # C (B, N, K, V), n (B, N, K) and m (B, N)


@dataclass(eq=False)
class MemoryPass(Portable):
    """A pass over matrix memories: the memories, and how their arrays lie.

    Attributes
    ----------
    xp : namespace
    N : int
        The number of heads.
    chunk : int
        The number of steps that are computed together.
    forget : {"sigmoid", "exponential"}
    eps : float
    asked : bool
        Whether the user has asked for an engine. If not, an engine refuses what others do quicker.
    compiled : object
        The kernels of an engine, which `refuses` sets.
    """

    xp: Namespace
    N: int
    chunk: int
    forget: str
    eps: float
    asked: bool = field(default=False, init=False)
    compiled: Any = field(default=None, init=False)

    def by_head(self, x: Sequence[Array]) -> list[Array]:
        """Return q, k, v, i and f in the cell's layout: (B, N, T, F), and gates (B, N, T)."""
        gates = (self.xp.permute_dims(a, (1, 2, 0)) for a in x[3:])
        return [*map(self.heads, x[:3]), *gates]

    def heads(self, a: Array) -> Array:
        """Return a view of (T, B, N F) as (B, N, T, F)."""
        T, B, width = a.shape
        return self.xp.permute_dims(reshape(a, (T, B, self.N, width // self.N)), (1, 2, 0, 3))

    def rows(self, a: Array) -> Array:
        """Return (B, N, T, F) as (T, B, N F), and gates (B, N, T) as (T, B, N)."""
        if a.ndim == 3:
            return self.xp.permute_dims(a, (2, 0, 1))
        B, N, T, F = a.shape
        return reshape(self.xp.permute_dims(a, (2, 0, 1, 3)), (T, B, N * F))


class MemoryTape(NamedTuple):
    """The values that an engine kept for the backward pass."""

    engine: MemoryEngine
    step: MemoryPass
    saved: Any


class MemoryEngine(Protocol):
    """Runs a pass over matrix memories, as an `Engine` runs a recurrence.

    Attributes
    ----------
    name : str
        The name by which you ask for the engine with `use`.
    """

    name: str

    def refuses(self, step: MemoryPass, x: Sequence[Array], state: Start) -> str:
        """Return why the engine cannot run a pass, or "" if it can."""

    def forward(
        self, step: MemoryPass, x: Sequence[Array], state: Start, keep: bool
    ) -> tuple[Array, list[Array], MemoryTape | None]:
        """Run all steps.

        Parameters
        ----------
        step : MemoryPass
        x : arrays
            Queries and keys (T, B, N K), values (T, B, N V), and the pre-activations (T, B, N) of
            the gates i and f.
        state : arrays
            C, n and m before the first step.
        keep : bool
            Whether a backward pass follows.

        Returns
        -------
        h : array (T, B, N V)
        state : list of arrays as `state`
        tape : MemoryTape or None
        """

    def backward(
        self, tape: MemoryTape, dh: Array, dstate: Start | None
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        """Return the gradients with respect to x and to the initial state."""


class Reference:
    """The engine that runs the formulas of `cells/mlstm.py` on any array library."""

    name = "array_api"

    def refuses(self, step: MemoryPass, x: Sequence[Array], state: Start) -> str:
        """Return ""."""
        return ""

    def forward(
        self, step: MemoryPass, x: Sequence[Array], state: Start, keep: bool
    ) -> tuple[Array, list[Array], MemoryTape | None]:
        """Run all steps; see `MemoryEngine`."""
        inputs: Any = (*step.by_head(x), *state)
        h, *end, saved = mlstm.chunkwise(
            step.xp, *inputs, eps=step.eps, forget=step.forget, chunk=step.chunk
        )
        # The arrays kept refer to the final state, too, and the caller may change it.
        end = [step.xp.asarray(s, copy=True) for s in end]
        return step.rows(h), end, MemoryTape(self, step, saved) if keep else None

    def backward(
        self, tape: MemoryTape, dh: Array, dstate: Start | None
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        """Return the gradients; see `MemoryEngine`."""
        step = tape.step
        dC, dn, dm = dstate or (None, None, None)
        dh = step.heads(dh)
        grads = mlstm.chunkwise_bwd(step.xp, dh, dC, dn, dm, tape.saved, step.eps, step.forget)
        return list(map(step.rows, grads[:5])), grads[5:]


REFERENCE = Reference()
# The engines of matrix memories.
MEMORY_ENGINES: list[MemoryEngine | Registered] = [
    Registered("cuda", "CuPy", "xlstm.engines.cuda.chunk_passes:MEMORY"),
    Registered("numba", "NumPy", "xlstm.engines.numba.chunks:MEMORY"),
    REFERENCE,
]


def run_memory(
    step: MemoryPass, x: Sequence[Array], state: Start, keep: bool
) -> tuple[Array, list[Array], MemoryTape | None]:
    """Run a pass over matrix memories by the engine that `use` asks for, or the first that does not
    refuse.

    Parameters and results are those of `MemoryEngine.forward`.
    """
    asked = engine.asked()
    if asked and asked not in [entry.name for entry in MEMORY_ENGINES]:
        asked = None  # an engine that has no matrix memories
    step.asked = asked is not None
    runs: MemoryEngine = engine.first(MEMORY_ENGINES, asked, step, x, state)
    return runs.forward(step, x, state, keep)
