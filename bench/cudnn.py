"""LSTM and GRU beside cuDNN's, which PyTorch runs: float32, TF32, float16 and bfloat16, with and
without a CUDA graph.

    python -m bench.cudnn [--seconds N] [--json FILE]

It needs a CUDA machine with CuPy and PyTorch. Both sides have the same weights and inputs, and
their results are compared. The most important cases come first. If N seconds do not suffice, the
other cases are listed as left out.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import xlstm
from bench import rows
from bench.events import Clock, Side
from bench.peers import MissingError, module
from bench.rows import OURS, OURS_CAPTURED, PRECISIONS, agreement
from xlstm import precision
from xlstm.arrays import optional_imports
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.cuda.cuda_graph import Recorder
from xlstm.engines import cuda
from xlstm.engines.cuda.cuda_engine import CudaTape
from xlstm.interop.torch import to_torch
from xlstm.models.sequence import layer_of

# T, B, H; D = H. Others have published times of the third.
SHAPES = ((512, 64, 512), (1024, 16, 1024), (1024, 16, 768), (128, 256, 256), (100, 32, 128))
EAGER = "cuDNN"
CAPTURED = "cuDNN captured"
WARM = 3  # calls before a capture


@dataclass(frozen=True)
class Case:
    """One thing that is timed."""

    layer: str
    T: int
    B: int
    H: int
    precision: str
    train: bool = True
    forced: bool = False  # each path by its name, too

    def __str__(self) -> str:
        what = "fwd+bwd" if self.train else "forward"
        each = ", each path" if self.forced else ""
        return f"{self.layer} {self.T},{self.B},{self.H} {self.precision} {what}{each}"


def cases() -> list[Case]:
    """Return all cases, the most important first."""
    order = [
        ("lstm", True, False),
        ("gru", True, False),
        ("lstm", False, False),
        ("lstm", True, True),
        ("gru", False, False),
    ]
    return [
        Case(layer, *shape, name, train, forced)
        for layer, train, forced in order
        for shape in SHAPES
        for name in PRECISIONS
    ]


class Torch:
    """PyTorch's layer with given weights."""

    def __init__(
        self, case: Case, weights: dict[str, np.ndarray], x: np.ndarray, dy: np.ndarray, device: str
    ) -> None:
        torch = module("torch")
        self.torch = torch
        self.case = case
        self.device = device
        dtype = getattr(torch, PRECISIONS[case.precision])
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.layer]
        self.layer = kind(case.H, case.H, device=device, dtype=dtype)
        self.layer.load_state_dict(
            {n: torch.from_numpy(np.array(a, dtype="float32")) for n, a in weights.items()}
        )
        self.layer.train(case.train)
        self.x, self.dy = (torch.from_numpy(a).to(device, dtype) for a in (x, dy))
        self.x.requires_grad_(case.train)
        self.y: Any = None
        self.by_cudnn = bool(torch.cudnn_is_acceptable(self.x))

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """TF32 or not, as the case says, for everything that PyTorch multiplies."""
        cudnn = self.torch.backends.cudnn
        products = self.torch.backends.cuda.matmul
        before = cudnn.allow_tf32, products.allow_tf32
        cudnn.allow_tf32 = products.allow_tf32 = self.case.precision == "TF32"
        try:
            yield
        finally:
            cudnn.allow_tf32, products.allow_tf32 = before

    def eager(self) -> None:
        """Ask for the work, call by call."""
        if not self.case.train:
            with self.torch.no_grad():
                self.y = self.layer(self.x)[0]
            return
        self.layer.zero_grad(set_to_none=True)
        self.x.grad = None
        self.y = self.layer(self.x)[0]
        self.y.backward(self.dy)

    def captured(self) -> Callable[[], object]:
        """A call that asks for the same as one graph; raises RuntimeError where there is none."""
        cuda_ = self.torch.cuda
        with self.around():
            stream = cuda_.Stream()
            stream.wait_stream(cuda_.current_stream())
            with cuda_.stream(stream):
                for _ in range(WARM):
                    self.eager()
            cuda_.current_stream().wait_stream(stream)
            cuda_.synchronize()
            graph = cuda_.CUDAGraph()
            with cuda_.graph(graph):
                self.eager()
            graph.replay()
            cuda_.synchronize()
        return graph.replay  # type: ignore[no-any-return]

    def results(self) -> dict[str, np.ndarray]:
        """Return the results of the last call, on the host."""
        results = {"y": self.y}
        if self.case.train:
            results["dx"] = self.x.grad
            results |= {f"d{name}": p.grad for name, p in self.layer.named_parameters()}
        return {name: a.detach().float().cpu().numpy() for name, a in results.items()}


class Ours:
    """xlstm's layer, on the GPU."""

    def __init__(self, case: Case, x: np.ndarray, dy: np.ndarray) -> None:
        self.case = case
        be = xlstm.backend("cupy", dtype=PRECISIONS[case.precision])
        self.layer = layer_of("bench", case.layer, case.H, case.H)
        self.params = self.layer.init(0, be)
        self.x = be.asarray(x)
        self.dy = be.asarray(dy)

    @contextlib.contextmanager
    def around(self, path: str = "auto") -> Iterator[None]:
        """Run by a path, in the precision of the case."""
        tf32 = self.case.precision == "TF32"
        with cuda.use(path, "tf32" if tf32 else "float32"), precision.tf32(tf32):
            yield

    def call(self) -> None:
        """Ask for the work."""
        self.y, _, saved = self.layer.forward(self.params, self.x, train=self.case.train)
        if self.case.train:
            self.grads, self.dx, _ = self.layer.backward(self.params, saved, self.dy)

    def captured(self) -> Callable[[], object]:
        """A call that asks for the same as one graph; raises RuntimeError where there is none."""
        recorder = Recorder()
        with self.around(), recorder.rehearsal():
            self.call()
            return recorder.capture(self.call).launch

    def choice(self) -> dict[str, Any]:
        """The path that is chosen, how it divides the work, and why others are not taken."""
        _, _, saved = self.layer.forward(self.params, self.x)
        tape = next(iter(saved.kept.values())).tape
        if not isinstance(tape, CudaTape):
            return {"path": "loop"}
        choice = tape.choice
        row = {"path": choice.path, "arithmetic": choice.arithmetic.name, "others": choice.others}
        for name in ("forward", "backward"):
            if (tiling := getattr(choice, name)) is not None:
                row[name] = {**asdict(tiling), "shared": tiling.shared, "time": tiling.time}
        return row

    def results(self) -> dict[str, np.ndarray]:
        """Return the results of the last call, under PyTorch's names."""
        results = {"y": self.y}
        if self.case.train:
            grads = to_torch(self.layer, {name: to_numpy(g) for name, g in self.grads.items()})
            results |= {"dx": self.dx, **{f"d{name}": g for name, g in grads.items()}}
        return {name: to_numpy(a).astype("float32") for name, a in results.items()}


def measure(case: Case, clock: Clock, until: float, device: str = "cuda") -> dict[str, Any]:
    """The row of a case, fit for JSON: times by side, what is missing and why, path, and
    agreement.
    """
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((case.T, case.B, case.H)).astype("float32") for _ in range(2))
    ours = Ours(case, x, dy)
    weights = to_torch(ours.layer, {name: to_numpy(p) for name, p in ours.params.items()})
    theirs = Torch(case, weights, x, dy, device)
    row = {**rows.head(case), "peer by cuDNN": theirs.by_cudnn}
    sides = {OURS: Side(ours.call, ours.around), EAGER: Side(theirs.eager, theirs.around)}
    with ours.around():
        row["choice"] = ours.choice()
        ours.call()
    with theirs.around():
        theirs.eager()
    row["difference"] = agreement(ours.results(), theirs.results())
    if not case.forced:
        for name, side in ((CAPTURED, theirs), (OURS_CAPTURED, ours)):
            try:
                sides[name] = Side(side.captured(), side.around)
            except RuntimeError as error:
                row["missing"][name] = f"no graph of it: {optional_imports.first_line(error)}"
    for path in cuda.PATHS if case.forced else ():
        if path == row["choice"]["path"]:
            continue
        try:
            with ours.around(path):
                ours.call()
        except (ValueError, TypeError, cuda.CudaError) as reason:
            row["missing"][f"{OURS} {path}"] = str(reason)
        else:
            sides[f"{OURS} {path}"] = Side(ours.call, lambda path=path: ours.around(path))
    return {**row, "seconds": rows.seconds_of(sides, clock, until)}


def peer_is_there() -> None:
    """Raise MissingError unless PyTorch has a device."""
    if not module("torch").cuda.is_available():
        raise MissingError("PyTorch has no CUDA device")


def main() -> int:
    return rows.main("cudnn", __doc__, cases(), measure, peer_is_there)


if __name__ == "__main__":
    sys.exit(main())
