"""The heads of an mLSTM, forward and backward, beside the published Triton kernels if they are
installed.

    python -m bench.mlstm [--seconds N] [--json FILE]

It needs a CUDA machine with CuPy. The kernels come with `pip install mlstm_kernels einops torch
triton`; without them, a row says so. They multiply float32 in TF32, so they have no row in float32.
Both sides have the same queries, keys, values and gates. The outputs and the gradients with respect
to the values are compared. The kernels' other gradients leave out the path through the denominator.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

import xlstm
from bench import rows
from bench.events import Clock, Side
from bench.peers import MissingError, module
from bench.rows import OURS, PRECISIONS
from xlstm import precision
from xlstm.arrays import optional_imports
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.layers.matrix_memory import MatrixMemory
from xlstm.layers.sequence import complete
from xlstm.recurrence.packing import Packing, Span

# B, heads, T, K, V: heads of xLSTM 7B, one long text of it, and a small model.
SHAPES = ((4, 8, 2048, 256, 512), (1, 8, 8192, 256, 512), (16, 4, 512, 128, 128))
KERNELS = ("xl_chunk", "limit_chunk")
FORGET = 4.0  # added to the gates f, so that they forget little
INPUTS = ("q", "k", "v", "i", "f")


@dataclass(frozen=True)
class Case:
    """One thing that is timed."""

    B: int
    N: int
    T: int
    K: int
    V: int
    precision: str = "fp32"
    train: bool = True
    layer: str = "mlstm"

    def __str__(self) -> str:
        what = "fwd+bwd" if self.train else "forward"
        return f"{self.layer} {self.B},{self.N},{self.T},{self.K},{self.V} {self.precision} {what}"


def cases() -> list[Case]:
    """Return all cases, the most important first."""
    return [
        Case(*shape, name, train)
        for train in (True, False)
        for shape in SHAPES
        for name in PRECISIONS
    ]


@functools.lru_cache(maxsize=1)  # to draw them takes longer than to run a kernel
def arrays(B: int, N: int, T: int, K: int, V: int) -> dict[str, np.ndarray]:
    """Inputs and the gradient of h, (B, N, T, width) or (B, N, T)."""
    rng = np.random.default_rng(0)
    widths = {"q": (K,), "k": (K,), "v": (V,), "i": (), "f": (), "dh": (V,)}
    drawn = {
        name: rng.standard_normal((B, N, T, *width), dtype=np.float32)
        for name, width in widths.items()
    }
    drawn["f"] += FORGET
    return drawn


def by_rows(a: np.ndarray) -> np.ndarray:
    """(B, N, T, F) as (T, B, N F), and (B, N, T) as (T, B, N)."""
    rows_ = np.moveaxis(a, 2, 0)
    return np.ascontiguousarray(rows_.reshape(*rows_.shape[:2], -1))


class Ours:
    """xlstm's heads."""

    def __init__(self, case: Case, inputs: dict[str, np.ndarray], be: Backend) -> None:
        self.case = case
        self.memory = MatrixMemory(case.N, case.K, case.V)
        self.inputs = {name: be.asarray(by_rows(a)) for name, a in inputs.items()}
        self.state = complete(
            "bench", be.xp, "state", None, self.memory.states, case.B, self.inputs
        )
        self.span = Span(be.xp, Packing.of("bench", None, case.T, case.B), keep=case.train)
        self.h: Any = None
        self.grads: tuple[Any, ...] = ()

    def call(self) -> None:
        """Ask for the work."""
        self.h, _, saved = self.memory.run(
            *(self.inputs[name] for name in INPUTS), self.state, self.span
        )
        if self.case.train:
            self.grads, _ = self.memory.run_bwd(saved, self.inputs["dh"], None, self.span)

    def results(self) -> dict[str, np.ndarray]:
        """Return the results of the last call that are compared."""
        results = {"h": self.h}
        if self.case.train:
            results["dv"] = self.grads[INPUTS.index("v")]
        return {name: to_numpy(a).astype("float32") for name, a in results.items()}


class Published:
    """A kernel of the published package."""

    def __init__(self, case: Case, inputs: dict[str, np.ndarray], kernel: str, device: str) -> None:
        """Put the arrays onto the device.

        Raises
        ------
        MissingError
            The package is not installed, or has no such kernel or precision.
        """
        if case.precision == "fp32":
            raise MissingError("products of float32 are TF32 there")
        torch = module("torch")
        there = module("mlstm_kernels.torch.chunkwise")
        if not hasattr(there, name := f"mlstm_chunkwise__{kernel}"):
            raise MissingError(f"mlstm_kernels has no {name}; it needs Triton")
        self.case = case
        self.kernel = getattr(there, name)
        self.dtype = getattr(torch, PRECISIONS[case.precision])
        self.inputs = {
            name: torch.from_numpy(a).to(device, self.dtype) for name, a in inputs.items()
        }
        for name in INPUTS:
            self.inputs[name].requires_grad_(case.train)
        self.h: Any = None

    def call(self) -> None:
        """Ask for the work."""
        for name in INPUTS:
            self.inputs[name].grad = None
        self.h = self.kernel(
            *(self.inputs[name] for name in INPUTS), autocast_kernel_dtype=self.dtype
        )
        if self.case.train:
            self.h.backward(self.inputs["dh"])

    def results(self) -> dict[str, np.ndarray]:
        """Return the same of theirs."""
        results = {"h": self.h}
        if self.case.train:
            results["dv"] = self.inputs["v"].grad
        return {name: by_rows(a.detach().float().cpu().numpy()) for name, a in results.items()}


def measure(case: Case, clock: Clock, until: float, device: str = "cuda") -> dict[str, Any]:
    """The row of a case, fit for JSON: times by side, what is missing and why, and agreement."""
    inputs = arrays(case.B, case.N, case.T, case.K, case.V)
    ours = Ours(case, inputs, xlstm.backend("cupy", dtype=PRECISIONS[case.precision]))
    row = rows.head(case)
    tf32 = functools.partial(precision.tf32, case.precision == "TF32")
    sides = {OURS: Side(ours.call, tf32)}
    with tf32():
        ours.call()
    results = ours.results()
    for kernel in KERNELS:
        try:
            theirs = Published(case, inputs, kernel, device)
            theirs.call()
            gap = rows.agreement(results, theirs.results())
        except MissingError as reason:
            row["missing"][kernel] = str(reason)
        except Exception as error:  # Triton has errors of its own
            row["missing"][kernel] = f"it failed: {optional_imports.first_line(error)}"
        else:
            sides[kernel] = Side(theirs.call)
            row["difference"] = max(row.get("difference", 0.0), gap)
    return {**row, "seconds": rows.seconds_of(sides, clock, until)}


def main() -> int:
    return rows.main("mlstm", __doc__, cases(), measure)


if __name__ == "__main__":
    sys.exit(main())
