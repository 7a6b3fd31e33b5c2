"""Training steps of many ranks: a model of their time beside a simulation that runs the real code.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m bench.network
    [--rounds N] [--models NAME ...] [--ranks N ...] [--megabytes N] [--json FILE]

A process plays one of many equal ranks, each on a machine of its own, and computes its share of a
batch on one core. The network is a double: a sum returns what equal ranks would have sent, in the
time that a latency and a bandwidth give. This time is added to the processor time of the rank and of
the thread that runs its sums, so that other work on the machine does not count.

The efficiency is the time of a step without other ranks over the time of a step with them. It may
be above 1, since ranks share the update of large models. A network that takes no time ("none") shows
the work of a rank for its sums, which the model leaves out. `--megabytes` is the size of a bucket of
gradients in the rows with "overlap", which sum buckets beside the backward pass.

Collectives take the time that they have in MPICH (Thakur, Rabenseifner and Gropp 2005,
https://doi.org/10.1177/1094342005051521). An array is summed by recursive halving and doubling after
Rabenseifner; parts go to each rank by themselves if they have 512 kB or more together. In the model
the backward pass is two thirds of both passes. A bucket is ready when the backward pass has come as
far as the bucket's end among the parameters.

The rows of a GPU are estimates by the model alone, for an assumed speed.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from bench import run
from bench.ranks import lstm, text
from xlstm import optim, training
from xlstm.arrays.groups import Part
from xlstm.arrays.namespace import Params
from xlstm.data import Batch
from xlstm.training import parallel
from xlstm.training.buffer import ROOM, Layout

# MPICH sends each rank its part by itself in arrays of `LONG` bytes or more; of an exchange it sends
# parts of up to `MEDIUM` bytes `AT_ONCE` at a time.
LONG = 1 << 19
MEDIUM = 1 << 15
AT_ONCE = 32
# The function that makes a model and its data, the sequences of a rank, and other sizes.
MODELS: dict[str, Any] = {
    "LSTM 0.3M": (lstm, 16, 50, 32, 256, 1),
    "LSTM 13.7M": (lstm, 16, 20, 256, 1024, 2),
    "xLSTM LM 13M": (text, 2, 512, 8),
}
FLOPS = 1e14  # of a GPU in products: assumed
MEMORY = 2e12  # bytes a second of a GPU: assumed
TOKENS = 16_384  # of a GPU in a step
RANKS = (8, 64, 512)


class Network(NamedTuple):
    """The links of ranks: seconds of a message, and bytes a second in each direction."""

    latency: float
    bandwidth: float

    def seconds(self, method: str, size: float, ranks: int) -> float:
        """Return the time of a method of a group on a whole array of so many bytes."""
        messages = math.log2(ranks)
        moved = (ranks - 1) / ranks * size / self.bandwidth
        if method == "sum":
            return 2 * (messages * self.latency + moved)
        if method == "exchange":
            messages = ranks - 1 if size > MEDIUM * ranks else math.ceil((ranks - 1) / AT_ONCE)
        elif size >= LONG:
            messages = ranks - 1
        return messages * self.latency + moved


NETWORKS = {
    "none": Network(0.0, math.inf),
    "25GbE": Network(20e-6, 2.8e9),
    "400G InfiniBand": Network(3e-6, 45e9),
}


class Setting(NamedTuple):
    """The network, how many ranks there are, and how gradients go to them."""

    network: str
    ranks: int
    gradients: str | None
    overlaps: bool


Row = tuple[str, Setting, float, dict[str, float]]


class EqualRanks:
    """The group of rank 0 where all ranks are alike."""

    rank = local_rank = 0

    def __init__(self, setting: Setting) -> None:
        self.network = NETWORKS[setting.network]
        self.size = setting.ranks
        self.machines = setting.ranks if setting.overlaps else 1  # as steps overlap between them
        self.beside = ThreadPoolExecutor(1)
        self.waited = 0.0  # seconds so far in which the rank did not compute
        self.free = 0.0  # when the network has done all that was begun beside the rank

    @property
    def now(self) -> float:
        """The time of the rank in seconds."""
        return time.thread_time() + self.waited

    def part(self, batch: Batch) -> Batch:
        """Return a batch as the part of a larger one."""
        B = batch.x.shape[1]
        total = float(batch.target.size * self.size)
        return batch._replace(part=Part(total, B * self.size, slice(0, B)))

    def sum(self, a: Any) -> None:
        """Sum an array over all ranks."""
        self._wait("sum", a)
        a *= self.size

    def sum_part(self, a: Any, out: Any) -> None:
        """Sum a part of an array over all ranks."""
        self._wait("sum_part", a)
        np.multiply(a[: out.size], self.size, out=out)

    def gather_parts(self, part: Any, out: Any) -> None:
        """Put the parts of all ranks side by side; of weights, those before the first step."""
        self._wait("gather_parts", out)
        if out.dtype == self.weights.dtype:
            start = (out.ctypes.data - out.base.ctypes.data) // out.itemsize
            out[...] = self.weights[start : start + out.size]
        else:
            out.reshape(self.size, -1)[...] = part

    def exchange(self, a: Any, out: Any) -> None:
        """Send every rank its part."""
        self._wait("exchange", a)
        out.reshape(self.size, -1)[...] = a[: a.size // self.size]

    def later(self, function: Callable[..., None], *arrays: Any) -> Callable[[], None]:
        """Run a function in a thread, which shares the core with the rank."""
        begun = self.now
        seconds = self._seconds(function.__name__, arrays[0])
        computing = self.beside.submit(seconds_of, function, *arrays)

        def wait() -> None:
            self.waited += computing.result()
            self.free = max(self.free, begun) + seconds
            self.waited += max(0.0, self.free - self.now)

        return wait

    def tell(self, what: Any) -> list[Any]:
        """Return what all ranks tell."""
        return [what] * self.size

    def share(self, arrays: Sequence[Any]) -> None:
        """Leave the arrays as they are."""

    def _wait(self, method: str, whole: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self.waited += self._seconds(method, whole)

    def _seconds(self, method: str, whole: Any) -> float:
        return self.network.seconds(method, whole.nbytes, self.size)


def seconds_of(function: Callable[..., object], *args: Any) -> float:
    """Return the processor time of this thread for a call."""
    begin = time.thread_time()
    function(*args)
    return time.thread_time() - begin


def settings(networks: Iterable[str], ranks: Iterable[int]) -> list[Setting]:
    """Return all settings with these networks and numbers of ranks."""
    ways = itertools.product(networks, ranks, (None, "bfloat16"), (False, True))
    return list(itertools.starmap(Setting, ways))


def predicted(setting: Setting, params: Params, passes: float, update: float) -> float:
    """Return the seconds of a step by the model.

    Parameters
    ----------
    setting : Setting
    params : dict of str to array
    passes, update : float
        The seconds of forward and backward, and of an update of all weights.
    """
    name, ranks, gradients, overlaps = setting
    seconds = functools.partial(NETWORKS[name].seconds, ranks=ranks)
    shapes = {name: p.shape for name, p in params.items()}
    layout = Layout(shapes, ranks, parallel.bucket_bytes(ranks) // 4 if overlaps else None)
    sizes = [4 * (b.place.stop - b.place.start) for b in reversed(layout.buckets)]
    shards = sum(sizes) >= 4 * parallel.LEAST
    fewer = 2 if gradients else 1  # bytes
    method = "exchange" if gradients else "sum_part" if shards else "sum"
    ready = end = passes / 3
    for size in sizes:
        ready += passes * 2 / 3 * size / sum(sizes)
        end = max(end, ready) + seconds(method, size / fewer)
    if gradients or shards:
        end += seconds("sum", 8 * ROOM)
    if shards:
        return end + update / ranks + sum(seconds("gather_parts", size) for size in sizes)
    if gradients:
        end += sum(seconds("gather_parts", size / fewer) for size in sizes)
    return end + update


def step_of(model: Any, batches: Iterable[Batch], **options: Any) -> Callable[[], float]:
    """Return a call that takes a training step, and returns its seconds on one core."""
    step = training.TrainStep(model, optim.adam(1e-4), **options)
    state = step.init(model.init(0, "numpy", "float32"))
    if (reduce := state.runtime.ranks) is not None:
        reduce.group.weights = np.zeros_like(reduce.buffer)
        for name, place in reduce.layout.named(reduce.group.weights).items():
            place[...] = state.params[name]
    turns = itertools.cycle(batches)
    group = step.group

    def take() -> None:
        nonlocal state
        state, _ = step(state, next(turns))

    def call() -> float:
        waited = 0.0 if group is None else group.waited
        seconds = seconds_of(take)
        return seconds if group is None else seconds + group.waited - waited

    return call


def simulate(name: str, settings: Iterable[Setting], rounds: int) -> Iterator[Row]:
    """Yield rows with the efficiency by the model and by the simulation."""
    make, batch, *sizes = MODELS[name]
    model, data = make(batch, *sizes)
    params = model.init(0, "numpy", "float32")
    optimizer = optim.adam(1e-4)
    moments = optimizer.init(params)
    for _, several in itertools.groupby(settings, lambda setting: setting[:2]):
        calls: dict[Any, Callable[[], float]] = {
            "alone": step_of(model, list(data.batches())),
            "update": lambda: seconds_of(optimizer.update, params, params, moments),
        }
        for setting in several:
            group = EqualRanks(setting)
            batches = [group.part(b) for b in data.batches()]
            options = {"group": group, "gradients": setting.gradients}
            calls[setting] = step_of(model, batches, **options)
        for call in calls.values():
            call()  # compiled code is loaded
        turns = [{key: call() for key, call in calls.items()} for _ in range(rounds)]
        times = {key: statistics.median(turn[key] for turn in turns) for key in calls}
        alone = times.pop("alone")
        update = times.pop("update")
        for setting, seconds in times.items():
            by_model = alone / predicted(setting, params, alone - update, update)
            yield name, setting, alone, {"model": by_model, "simulation": alone / seconds}


def estimate() -> Iterator[Row]:
    """Yield rows of a GPU with the efficiency by the model."""
    model, _ = text(1, 768, 12, vocab_size=32_000)
    params = model.init(0, "numpy", "float32")
    size = sum(p.size for p in params.values())
    passes = 6 * (size - params["embedding.W"].size) * TOKENS / FLOPS
    update = 7 * 4 * size / MEMORY  # four arrays are read, and three written
    for setting in settings([*NETWORKS][1:], RANKS):
        alone = passes + update
        by_model = alone / predicted(setting, params, passes, update)
        yield "xLSTM LM 92M, GPU", setting, alone, {"model": by_model}


def main() -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--megabytes", type=float, default=parallel.BUCKET / 2**20)
    options = parser.parse_args()
    bucket = int(options.megabytes * 2**20)
    with (
        mock.patch.object(parallel, "BUCKET", bucket),
        # numbers that cancel where ranks differ
        mock.patch.object(parallel.AllReduce, "check", 0.0),
    ):
        several = settings(NETWORKS, options.ranks)
        rows = (simulate(name, several, options.rounds) for name in options.models)
        for name, setting, alone, efficiencies in itertools.chain(*rows, estimate()):
            case = setting._asdict() | {"bucket": bucket}
            cells = "  ".join(f"{key} {value:6.1%}" for key, value in efficiencies.items())
            print(
                f"{name:18s} {setting.network:16s} {setting.ranks:4d}"
                f" {setting.gradients or 'float32':9s} {'overlap' * setting.overlaps:8s}"
                f" {alone * 1e3:7.1f} ms  {cells}",
                flush=True,
            )
            line = {"bench": "network", "name": name, "case": case, "alone": alone}
            run.append(options.json, line | efficiencies)


if __name__ == "__main__":
    main()
