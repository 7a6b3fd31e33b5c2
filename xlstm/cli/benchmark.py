"""Backends and `torch.nn` compared: one layer forward and backward on each, side by side.

Time, sequences and floating-point operations a second, the share of the speed that a large matrix product of the same
library reaches, peak memory, and from which size on another backend is the faster one.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

from xlstm.arrays import cores, probe
from xlstm.arrays.backend import Backend, backend, backend_of
from xlstm.arrays.convert import BackendError
from xlstm.arrays.random import generator
from xlstm.cli import peak, peers
from xlstm.cli.timing import Timing, interleave
from xlstm.layers import recurrent
from xlstm.layers.matrix_memory import mLSTM
from xlstm.layers.recurrent import GRU, LSTM, RNN, sLSTM

LAYERS: dict[str, type[Any]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "slstm": sLSTM, "mlstm": mLSTM}
SIZES = ((32, 1, 1, 50), (128, 1, 64, 64), (100, 32, 64, 128), (128, 64, 256, 256), (128, 64, 512, 512))

# Rows are named for what runs in them.
WORDS = {
    **{"numpy": "this library on NumPy arrays", "cupy": "this library on CuPy arrays"},
    **{"torch": "this library on PyTorch tensors", peers.TORCH: peers.TORCH},
}


class Runner(NamedTuple):
    """The subject of a row: this library on a backend, or `torch.nn` on the tensors of one."""

    name: str  # that of the backend, or "torch.nn"
    backend: Backend

    def prepared(self, case: Case) -> tuple[Callable[[], None], Backend]:
        """Return the work of a case, and the backend with its dtype; TypeError if it has no such dtype or layer."""
        chosen = backend_of(self.backend, case.dtype)
        if chosen.name == "torch":
            probe.torch().set_num_threads(cores.threads())
        return (peers.call if self.name == peers.TORCH else call)(case, chosen), chosen


def runner(name: str, dtype: str) -> Runner:
    """Return a runner by its name; raises as `backend` does, and where CuPy has no card to time."""
    made = backend("torch" if name == peers.TORCH else name, dtype=dtype)
    if name == "cupy" and "CPU" in str(made):
        raise BackendError(f"cupy: {made}, whose times are not those of a GPU")
    return Runner(name, made)


class Size(NamedTuple):
    """Steps, sequences, width of the input, hidden units."""

    T: int
    B: int
    D: int
    H: int

    @classmethod
    def of(cls, text: str) -> Size:
        """Read "T,B,D,H"; ValueError unless it is four whole numbers from 1 up."""
        parts = text.split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() and int(part) for part in parts):
            raise ValueError(f"size: {text!r}, expected four numbers from 1 up: T,B,D,H, such as 128,64,256,256")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return ",".join(map(str, self))


class Case(NamedTuple):
    """A layer to time, forward and backward, or else (`train` is False) forward alone."""

    layer: str
    size: Size
    dtype: str = "float32"
    train: bool = True

    @property
    def what(self) -> str:
        """The passes that are timed, in words."""
        return "forward and backward" if self.train else "inference"

    def __str__(self) -> str:
        return f"{self.layer} {self.size} {self.dtype}"


@dataclass(frozen=True)
class Row:
    """The result of one backend, or of `torch.nn`, in one case."""

    case: Case
    backend: str
    device: str
    timing: Timing
    operations: float  # floating-point operations of the matrix products
    product_speed: float  # operations a second of a large product, measured in the same run
    peak: int | None  # bytes
    ratio: float  # its median time over that of the first backend

    @property
    def name(self) -> str:
        """The thing that was timed, in words."""
        return WORDS[self.backend]

    @property
    def sequences(self) -> float:
        """Sequences a second."""
        return self.case.size.B / self.timing.median

    @property
    def speed(self) -> float:
        """Operations a second."""
        return self.operations / self.timing.median

    @property
    def share(self) -> float:
        """The speed over that of a large matrix product."""
        return self.speed / self.product_speed

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            **self.case._asdict(),
            "size": self.case.size._asdict(),
            "backend": self.backend,
            "name": self.name,
            "device": self.device,
            "seconds": asdict(self.timing),
            "sequences_per_second": self.sequences,
            "gflops": self.speed / 1e9,
            "product_gflops": self.product_speed / 1e9,
            "share_of_product_speed": self.share,
            "peak_bytes": self.peak,
            "ratio_to_first": self.ratio,
        }


def groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Return rows by key, in the order in which they come."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def known() -> dict[str, type[Any]]:
    """Return the layers that can be timed, by name: those of the library, then those of registered cells."""
    return LAYERS | {name: layer for name, layer in recurrent.LAYERS.items() if layer not in LAYERS.values()}


def load(path: Path) -> None:
    """Run a Python file, which registers cells with `xlstm.register_cell`.

    Raises
    ------
    OSError
        The file cannot be read.
    ImportError
        It fails; the message names the error.
    """
    name = f"xlstm_bench_{path.stem}"
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes find their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, OSError) and error.filename == str(path):
            raise
        raise ImportError(f"import: {path} fails, {type(error).__name__}: {error}") from error


def cases(layers: Sequence[str], sizes: Sequence[Size], dtypes: Sequence[str], train: bool = True) -> list[Case]:
    """Return all combinations, layer by layer, from little work to much; ValueError if a layer is unknown."""
    if unknown := [name for name in layers if name not in known()]:
        raise ValueError(f"layer: {unknown[0]!r} is unknown, expected {', '.join(known())}")
    unique = {Case(layer, size, dtype, train): None for layer in layers for dtype in dtypes for size in sizes}
    if not unique:
        raise ValueError("bench: nothing to time, expected at least one layer, size and dtype")
    return sorted(unique, key=lambda case: (layers.index(case.layer), dtypes.index(case.dtype), operations(case)))


def run(
    todo: Sequence[Case],
    runners: Sequence[Runner],
    rounds: int = 9,
    show: Callable[[str], object] = lambda now: None,
    miss: Callable[[str], object] = lambda reason: None,
    files: Sequence[Path] = (),
) -> Iterator[list[Row]]:
    """Yield the rows of each case, one a runner, as they are done.

    A runner that does not have the dtype or the layer is left out of a case, and so is one that fails. `show` is told
    what is being done, `miss` what could not be measured and why. `files` have been loaded, and are loaded again in the
    process that measures memory.
    """
    speeds: dict[tuple[str, str], float] = {}
    for case in todo:
        calls: dict[str, Callable[[], None]] = {}
        used: list[Runner] = []
        for one in runners:
            show(f"{one.name}: {case}")
            try:
                work, chosen = one.prepared(case)
                work()
                if (chosen.name, case.dtype) not in speeds:
                    speeds[chosen.name, case.dtype] = product_speed(chosen)
            except TypeError:
                continue
            except (MemoryError, RuntimeError) as error:
                miss(f"{case}: without {one.name}, {error}")
                continue
            calls[one.name] = work
            used.append(Runner(one.name, chosen))
        if not used:
            yield []
            continue
        timings = interleave(calls, rounds, show=lambda name, case=case: show(f"{name}: {case}"))  # type: ignore[misc]
        del work
        calls.clear()
        peak.release()
        rows = []
        for name, be in used:
            show(f"{name}: {case}, memory")
            ratio = timings[name].median / timings[used[0].name].median
            taken, speed = _peak(case, name, miss, files), speeds[be.name, case.dtype]
            rows.append(Row(case, name, str(be), timings[name], operations(case), speed, taken, ratio))
        yield rows


def _peak(case: Case, name: str, miss: Callable[[str], object], files: Sequence[Path]) -> int | None:
    given = [case.layer, list(case.size), case.dtype, case.train]
    try:
        return peak.of("xlstm.cli.benchmark:prepare", given, name, [str(file) for file in files])
    except RuntimeError as error:
        miss(f"{case}: memory of {name} was not measured, {error}")
        return None


def call(case: Case, be: Backend) -> Callable[[], None]:
    """Return the work of a case, finished when it returns; on a CPU, in as many threads as xlstm may use."""
    T, B, D, H = case.size
    layer = known()[case.layer](D, H)
    params, rng = layer.init(0, be), generator(0)
    x, dy = (be.asarray(rng.standard_normal((T, B, n))) for n in (D, H))

    def work() -> None:
        _, _, saved = layer.forward(params, x, train=case.train)
        if saved is not None:
            layer.backward(params, saved, dy)
        be.synchronize()

    return work


def prepare(case: Sequence[Any], name: str, files: Sequence[str] = ()) -> Callable[[], None]:
    """Return the work of a case, given as a list, for a process of its own (`peak.of`), which loads the files first."""
    for file in files:
        load(Path(file))
    layer, size, dtype, train = case
    given, chosen = Case(layer, Size(*size), dtype, bool(train)), runner(name, dtype)
    chosen.prepared(given._replace(size=Size(2, given.size.B, 4, 4)))[0]()
    return chosen.prepared(given)[0]


def operations(case: Case) -> float:
    """Return the operations of the matrix products: 2 for each weight and step, and twice as many again backward."""
    T, B, D, H = case.size
    shapes = known()[case.layer](D, H).shapes.values()
    weights = sum(math.prod(n or 0 for n in dims.values()) for dims in shapes if len(dims) == 2)
    return 2.0 * weights * T * B * (3 if case.train else 1)


def product_speed(be: Backend) -> float:
    """Return the operations a second of a large square matrix product, in as many threads; the median of many."""
    n = 1024 if str(be).endswith("CPU") else 4096
    a, b = (be.asarray(generator(seed).standard_normal((n, n))) for seed in (0, 1))

    def product() -> None:
        be.xp.matmul(a, b)
        be.synchronize()

    timings = interleave({"product": product}, rounds=3)
    return 2.0 * n**3 / timings["product"].median


def crossover(rows: Sequence[Row]) -> list[str]:
    """Say from which size on each other row is faster than the first one.

    Times within 5 % of each other are equal. A backend that wins at some size and does not at a larger one wins only
    from beyond that.
    """
    found, first = [], rows[0].backend
    others = (r for r in rows if r.backend != first)
    for (layer, dtype, name), some in groups(others, lambda r: (r.case.layer, r.case.dtype, r.backend)).items():
        some.sort(key=lambda r: r.operations)
        wins = [r.ratio < 0.95 for r in some]
        since = next((k for k in range(len(some)) if all(wins[k:])), None)
        if since is not None:
            where = f"from T,B,D,H = {some[since].case.size} on" if since else "at every size measured"
        elif any(wins):
            sizes = " and ".join(str(r.case.size) for r, won in zip(some, wins, strict=True) if won)
            where = f"at T,B,D,H = {sizes}, but not at the largest size"
        else:
            where = "at no size measured"
        found.append(f"{layer} {dtype}: {WORDS[name]} is faster than {WORDS[first]} {where}")
    return found
