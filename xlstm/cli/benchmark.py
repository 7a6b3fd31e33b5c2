"""Backends compared: one layer forward and backward on each, side by side.

Time, sequences and floating-point operations a second, the share of what a large matrix product of the same
library reaches, peak memory, and from which size on another backend is the faster one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from xlstm.arrays import blas, probe, threads
from xlstm.arrays.backend import Backend, backend, backend_of
from xlstm.arrays.random import generator
from xlstm.cli import peak
from xlstm.cli.timing import Timing, interleave
from xlstm.layers.mlstm import mLSTM
from xlstm.layers.recurrent import GRU, LSTM, RNN, sLSTM

LAYERS: dict[str, type[Any]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "slstm": sLSTM, "mlstm": mLSTM}
SIZES = ((32, 1, 1, 50), (128, 1, 64, 64), (100, 32, 64, 128), (128, 64, 256, 256), (128, 64, 512, 512))


class Size(NamedTuple):
    """Steps, sequences, width of the input, hidden units."""

    T: int
    B: int
    D: int
    H: int

    @classmethod
    def of(cls, text: str) -> Size:
        """From "T,B,D,H".

        Raises
        ------
        ValueError
            It is not four whole numbers from 1 up.
        """
        parts = text.split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() and int(part) for part in parts):
            raise ValueError(f"size: {text!r}, expected four numbers from 1 up: T,B,D,H, such as 128,64,256,256")
        return cls(*map(int, parts))


class Case(NamedTuple):
    """What is timed."""

    layer: str
    size: Size
    dtype: str = "float32"
    train: bool = True  # forward and backward, else a forward pass that keeps nothing

    @property
    def what(self) -> str:
        """In words."""
        return "forward and backward" if self.train else "inference"

    def __str__(self) -> str:
        return f"{self.layer} {','.join(map(str, self.size))} {self.dtype}"


@dataclass(frozen=True)
class Row:
    """What one backend did in one case."""

    case: Case
    backend: str
    device: str
    timing: Timing
    operations: float  # floating-point operations of the matrix products
    product_speed: float  # operations a second of a large product, measured in the same run
    peak: int | None  # bytes
    ratio: float  # its median time over that of the first backend

    @property
    def sequences(self) -> float:
        """A second."""
        return self.case.size.B / self.timing.median

    @property
    def speed(self) -> float:
        """Operations a second."""
        return self.operations / self.timing.median

    @property
    def share(self) -> float:
        """Of the speed of a large matrix product."""
        return self.speed / self.product_speed

    def as_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            **self.case._asdict(),
            "size": self.case.size._asdict(),
            "backend": self.backend,
            "device": self.device,
            "seconds": asdict(self.timing),
            "sequences_per_second": self.sequences,
            "gflops": self.speed / 1e9,
            "product_gflops": self.product_speed / 1e9,
            "share_of_product_speed": self.share,
            "peak_bytes": self.peak,
            "ratio_to_first": self.ratio,
        }


def cases(layers: Sequence[str], sizes: Sequence[Size], dtypes: Sequence[str], train: bool = True) -> list[Case]:
    """All combinations, layer by layer, from little work to much.

    Raises
    ------
    ValueError
        A layer is unknown, or there is nothing to time.
    """
    if unknown := [name for name in layers if name not in LAYERS]:
        raise ValueError(f"layer: {unknown[0]!r} is unknown, expected {', '.join(LAYERS)}")
    found = [
        Case(layer, size, dtype, train)
        for layer in dict.fromkeys(layers)
        for dtype in dict.fromkeys(dtypes)
        for size in dict.fromkeys(sizes)
    ]
    if not found:
        raise ValueError("bench: nothing to time, expected at least one layer, size and dtype")
    return sorted(found, key=lambda case: (layers.index(case.layer), dtypes.index(case.dtype), operations(case)))


def run(
    todo: Sequence[Case],
    backends: Sequence[Backend],
    rounds: int = 9,
    show: Callable[[str], object] = lambda now: None,
    miss: Callable[[str], object] = lambda reason: None,
) -> Iterator[list[Row]]:
    """The rows of each case, a backend each, as they are done.

    A backend that does not have the dtype is left out of a case, and so is one that fails. `show` is told what is going
    on, `miss` what could not be measured and why.
    """
    speeds: dict[tuple[str, str], float] = {}
    for case in todo:
        calls, used = {}, []
        for be in backends:
            try:
                chosen = backend_of(be, case.dtype)
                show(f"{be.name}: {case}")
                work = call(case, chosen)
                work()
                if (be.name, case.dtype) not in speeds:
                    speeds[be.name, case.dtype] = product_speed(chosen)
            except TypeError:
                continue
            except (MemoryError, RuntimeError) as error:
                miss(f"{case}: without {be.name}, {error}")
                continue
            calls[be.name] = work
            used.append(chosen)
        if not used:
            yield []
            continue
        timings = interleave(calls, rounds, show=lambda name, case=case: show(f"{name}: {case}"))  # type: ignore[misc]
        del work
        calls.clear()
        peak.release()
        rows = []
        for be in used:
            show(f"{be.name}: {case}, memory")
            ratio = timings[be.name].median / timings[used[0].name].median
            taken = _peak(case, be, miss)
            speed = speeds[be.name, case.dtype]
            rows.append(Row(case, be.name, str(be), timings[be.name], operations(case), speed, taken, ratio))
        yield rows


def _peak(case: Case, be: Backend, miss: Callable[[str], object]) -> int | None:
    try:
        return peak.of("xlstm.cli.benchmark:prepare", [*case[:1], list(case.size), *case[2:]], be.name)
    except RuntimeError as error:
        miss(f"{case}: memory of {be.name} was not measured, {error}")
        return None


def call(case: Case, be: Backend) -> Callable[[], None]:
    """The work of a case on a backend, finished when it returns; on a CPU, in as many threads as xlstm may use."""
    T, B, D, H = case.size
    if be.name == "torch":
        probe.torch().set_num_threads(threads.available())
    layer = LAYERS[case.layer](D, H)
    params, rng = layer.init(0, be), generator(0)
    x, dy = (be.asarray(rng.standard_normal((T, B, n))) for n in (D, H))

    def work() -> None:
        _, _, saved = layer.forward(params, x, train=case.train)
        if saved is not None:
            layer.backward(params, saved, dy)
        be.synchronize()

    return work


def prepare(case: Sequence[Any], name: str) -> Callable[[], None]:
    """The work of a case, given as a list, in a process of its own (`peak.of`)."""
    layer, size, dtype, train = case
    given = Case(layer, Size(*size), dtype, bool(train))
    be = backend(name, dtype=dtype)
    call(given._replace(size=Size(2, given.size.B, 4, 4)), be)()
    return call(given, be)


def operations(case: Case) -> float:
    """Floating-point operations of the matrix products: 2 for each weight and step, twice as many again backward."""
    T, B, D, H = case.size
    shapes = LAYERS[case.layer](D, H).shapes.values()
    weights = sum(math.prod(n or 0 for n in dims.values()) for dims in shapes if len(dims) == 2)
    return 2.0 * weights * T * B * (3 if case.train else 1)


def product_speed(be: Backend) -> float:
    """Operations a second of a large square matrix product, in as many threads; the median of many."""
    n = 1024 if str(be).endswith("CPU") else 4096
    a, b = (be.asarray(generator(seed).standard_normal((n, n))) for seed in (0, 1))

    def product() -> None:
        be.xp.matmul(a, b)
        be.synchronize()

    timings = blas.limited(threads.available(), lambda: interleave({"product": product}, rounds=3))
    return 2.0 * n**3 / timings["product"].median


def crossover(rows: Sequence[Row]) -> list[str]:
    """From which size on each other backend is faster than the first one, in words.

    Times within 5 % of each other are equal. A backend that wins at some size and does not at a larger one wins only
    from beyond that.
    """
    found = []
    first = rows[0].backend
    groups = dict.fromkeys((r.case.layer, r.case.dtype, r.backend) for r in rows if r.backend != first)
    for layer, dtype, name in groups:
        some = [r for r in rows if (r.case.layer, r.case.dtype, r.backend) == (layer, dtype, name)]
        some.sort(key=lambda r: r.operations)
        wins = [r.ratio < 0.95 for r in some]
        since = next((k for k in range(len(some)) if all(wins[k:])), None)
        if since == 0:
            where = "at every size measured"
        elif since is not None:
            where = f"from T,B,D,H = {','.join(map(str, some[since].case.size))} on"
        elif any(wins):
            sizes = [",".join(map(str, r.case.size)) for r, won in zip(some, wins, strict=True) if won]
            where = f"at T,B,D,H = {' and '.join(sizes)}, but not at the largest size"
        else:
            where = "at no size measured"
        found.append(f"{layer} {dtype}: {name} is faster than {first} {where}")
    return found
