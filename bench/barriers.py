"""How long blocks of a kernel wait for one another on a card, with the barriers of the loops,
and how fast memory is copied.

    python -m bench.barriers [--json FILE]

It needs a CUDA machine. A kernel that only waits runs for few and for many steps; the difference of
the two times is the time of the barriers alone. On sm_90 the program also says how many clusters of
each size run at once, if each block takes as much shared memory as it may. Clusters beyond that
number wait for others to end.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import xlstm
from bench import rows
from bench.options import parser_of
from xlstm.arrays import optional_imports
from xlstm.arrays.backend import Backend
from xlstm.arrays.cuda import device as device_code
from xlstm.engines import cuda
from xlstm.engines.cuda import launch
from xlstm.engines.cuda.kernel_source import KernelSource, template

CLUSTERS = (1, 2, 4, 8, 16)
GRIDS = (2, 16, 32, 64, 128)
THREADS = 256
FEW = 500
MANY = 10500  # barriers
ROUNDS = 7
STAY = 2_000_000  # nanoseconds that a cluster is there
MANY_CLUSTERS = 256
COPIED = 1 << 28  # bytes of a copy
COPIES = 8


@functools.cache
def source(blocks: int, cluster: bool, what: str = "barriers", shared: int = 0) -> KernelSource:
    """The kernel for groups of `blocks` that meet, or ("resident") the one that counts clusters."""
    sizes = {"BLOCKS": blocks, "THREADS": THREADS, "CLUSTER": int(cluster)}
    text = "\n".join(
        [
            *(f"#define {name} {value}" for name, value in sizes.items()),
            f"#define KERNEL xlstm_{what}",
            f"#define CLUSTER_DIMENSIONS {f'__cluster_dims__({blocks}, 1, 1)' if cluster else ''}",
            device_code.TEXT,
            template("exchange.cuh"),
            Path(__file__).with_name(f"{what}.cu").read_text(encoding="utf-8"),
        ]
    )
    return KernelSource(f"xlstm_{what}", text, (), shared, blocks, cluster)


def wait(be: Backend, blocks: int, cluster: bool, steps: int) -> Any:
    """Let blocks meet so often; an array with the barriers that each block passed."""
    flags = _zeros(be, blocks)
    met = _zeros(be, blocks)
    late = _zeros(be, 1)
    kernel = source(blocks, cluster, shared=16 + 32 * blocks)
    launch.launch(kernel, (blocks, 1), THREADS, [np.int32(steps), flags, met, late])
    return met


def latency(be: Backend, blocks: int, cluster: bool) -> float:
    """Microseconds of a barrier, the median of many differences."""
    microseconds = []
    for _ in range(ROUNDS + 1):
        few, many = (_seconds(be, lambda n=n: wait(be, blocks, cluster, n)) for n in (FEW, MANY))
        microseconds.append((many - few) / (MANY - FEW) * 1e6)
    met = be.xp.min(wait(be, blocks, cluster, FEW))
    if int(met) != FEW:
        raise RuntimeError(f"barriers: a block of {blocks} passed {int(met)} barriers of {FEW}")
    return statistics.median(microseconds[1:])


def at_once(be: Backend, blocks: int) -> int:
    """Return how many clusters of so many blocks the device has at once, each block with an SM of
    its own.
    """
    counts = _zeros(be, 2)
    kernel = source(blocks, True, "resident", launch.current().shared)
    launch.launch(kernel, (blocks, MANY_CLUSTERS), THREADS, [np.int64(STAY), counts])
    be.synchronize()
    return int(counts[1])


def copy_rate(be: Backend) -> float:
    """Bytes a second that copies within the device read and write, the median of some."""
    xp = be.xp
    a, b = (xp.zeros((COPIED // 4,), dtype=xp.float32, device=be.device) for _ in range(2))

    def copy() -> None:
        for _ in range(COPIES):
            b[...] = a

    seconds = [_seconds(be, copy) for _ in range(ROUNDS + 1)]
    return 2 * COPIED * COPIES / max(statistics.median(seconds[1:]), 1e-9)


def measure(be: Backend, done: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Measure everything, fit for JSON: microseconds by number of blocks, clusters at once, and
    bytes a second.

    `done` is given what there is after every measurement.
    """
    device = launch.device(be.xp, be.asarray([0.0]))
    if device is None:
        raise RuntimeError(f"barriers: {be} has no kernels")
    record: dict[str, Any] = {"threads": THREADS, "copied": copy_rate(be), "grid": {}}
    done(record)
    for n in dict.fromkeys([*(n for n in GRIDS if n <= device.sms), device.sms]):
        record["grid"][str(n)] = latency(be, n, False)
        done(record)
    if device.cluster:
        record["cluster"] = {}
        record["clusters at once"] = {}
        record["failed"] = {}
        for n in CLUSTERS:
            try:
                record["cluster"][str(n)] = latency(be, n, True)
                record["clusters at once"][str(n)] = at_once(be, n)
            except cuda.CudaError as error:
                record["failed"][str(n)] = str(error)
            done(record)
    return record


def table(record: dict[str, Any]) -> list[str]:
    """In words, a line each."""
    lines = [
        f"copies read and write {record['copied'] / 1e9:.0f} GB/s",
        f"{'blocks that meet':24s} {'us a barrier':>14s} {'at once':>8s}",
    ]
    lines += [f"{f'{n}, across the grid':24s} {us:14.2f}" for n, us in record["grid"].items()]
    many = record.get("clusters at once", {})
    clusters = record.get("cluster", {})
    lines += [
        f"{f'{n}, in a cluster':24s} {us:14.2f} {many.get(n, ''):>8}" for n, us in clusters.items()
    ]
    return lines + [
        f"cluster of {n} blocks: {reason}" for n, reason in record.get("failed", {}).items()
    ]


def _zeros(be: Backend, n: int) -> Any:
    return be.xp.zeros((n,), dtype=be.xp.uint32, device=be.device)


def _seconds(be: Backend, call: Callable[[], object]) -> float:
    """Between two events on the device."""
    cuda_ = optional_imports.cupy().cuda
    start = cuda_.Event()
    end = cuda_.Event()
    be.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(cuda_.get_elapsed_time(start, end)) / 1e3


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    options = parser.parse_args()
    try:
        be = rows.card()
    except xlstm.BackendError as reason:
        raise SystemExit(f"barriers: {reason}") from None
    print("\n".join(table(measure(be, functools.partial(rows.keep, options.json)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
