"""Every cell by every path over small shapes: what `bench.sanitize` runs under compute-sanitizer.

    python -m bench.sanitized

Each array has memory of its own, so that what lies beyond one is nobody's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import xlstm
from xlstm.arrays import probe
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError
from xlstm.engines import cuda

T, D = 4, 3
WIDTHS = (5, 40, 130)  # less than a tile, several blocks, and more with units left over
B = 9  # a tile of columns and one more
LENGTHS = [4, 2, 0, 4, 1, 4, 3, 1, 1]
WAYS = {  # of each path: precisions and dtypes
    "pointwise": (("float32", "float32"), ("float32", "float16")),
    "plain": (("float32", "float64"), ("float32", "float32"), ("float32", "float16")),
    "grid": (("float32", "float32"), ("tf32", "float32"), ("float32", "float16"), ("float32", "bfloat16")),
    "cluster": (("float32", "float32"), ("tf32", "float32"), ("float32", "float16"), ("float32", "bfloat16")),
}


def layers(H: int) -> dict[str, Any]:
    """One of each cell, by name."""
    found = {
        "LSTM": xlstm.LSTM(D, H),
        "LSTM, options": xlstm.LSTM(D, H, peepholes=True, clip=2.0, cell_clip=1.5),
        "LSTM, recomputed": xlstm.LSTM(D, H, coupled_input_forget=True, recompute=True),
        "GRU": xlstm.GRU(D, H),
        "RNN": xlstm.RNN(D, H, bidirectional=True),
    }
    return found | ({"sLSTM": xlstm.sLSTM(D, H, num_heads=2)} if H % 2 == 0 else {})


def work(layer: Any, be: Backend, lengths: list[int] | None) -> None:
    """Forward and backward, and forward alone."""
    rng = np.random.default_rng(0)
    params = layer.init(0, be)
    x = be.asarray(rng.standard_normal((T, B, layer.input_size)))
    y, _, saved = layer.forward(params, x, lengths=lengths)
    layer.backward(params, saved, y)
    layer.forward(params, x, lengths=lengths, train=False)
    be.synchronize()


def run(home: Backend, widths: tuple[int, ...] = WIDTHS) -> Iterator[str]:
    """The name of each thing that ran, or of what cannot and why."""
    for path, ways in WAYS.items():
        for precision, dtype in ways:
            be = Backend(home.name, home.xp, home.device, dtype)
            for H in widths:
                for name, layer in layers(H).items():
                    what = f"{name}, H={H}, {path}, {dtype}{' as TF32' if precision == 'tf32' else ''}"
                    try:
                        with cuda.use(path, precision):
                            for lengths in (None, LENGTHS):
                                work(layer, be, lengths)
                    except (ValueError, BackendError) as reason:
                        if isinstance(reason, ValueError) and "was asked for, but" not in str(reason):
                            raise
                        yield f"not possible: {what}: {reason}"
                    else:
                        yield f"ran: {what}"
    for dtype in ("float32", "float64"):
        be = Backend(home.name, home.xp, home.device, dtype)
        for H in (16, 40):
            work(xlstm.mLSTM(D, H, num_heads=2, chunk_size=3), be, None)
            work(xlstm.mLSTM(D, H, num_heads=2, chunk_size=3), be, LENGTHS)
            yield f"ran: mLSTM, H={H}, {dtype}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        be = xlstm.backend("cupy")
    except BackendError as reason:
        raise SystemExit(f"sanitized: {reason}") from None
    probe.cupy().cuda.set_allocator(None)  # no pool: the sanitizer sees where each array ends
    count = 0
    for line in run(be):
        print(line, flush=True)
        count += line.startswith("ran")
    print(f"{count} layers ran")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
