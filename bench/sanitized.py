"""Every cell by every path over small shapes; `bench.sanitize` runs this under compute-sanitizer.

    python -m bench.sanitized [--paths NAME ...] [--widths H ...]

Each array has memory of its own, so that memory beyond its end belongs to no other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import xlstm
from bench.options import parser_of
from xlstm.arrays import optional_imports
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import BackendError
from xlstm.engines import cuda

T = 4
D = 3
WIDTHS = (5, 40, 130)  # less than a tile, several blocks, and more with units left over
HEADED = (16, 40)  # of an mLSTM
B = 9  # a tile of columns and one more
LENGTHS = [4, 2, 0, 4, 1, 4, 3, 1, 1]
TILES = (
    ("float32", "float32"),
    ("tf32", "float32"),
    ("float32", "float16"),
    ("float32", "bfloat16"),
)
WAYS = {  # of each path: precisions and dtypes
    "pointwise": (("float32", "float32"), ("float32", "float16")),
    "plain": (("float32", "float64"), ("float32", "float32")),
    "grid": TILES,
    "cluster": TILES,
}

MLSTM = "mlstm"  # which has paths of its own
PATHS = (*WAYS, MLSTM)


def layers(H: int) -> dict[str, Any]:
    """One of each cell, by name."""
    cells = {
        "LSTM": xlstm.LSTM(D, H),
        "LSTM, options": xlstm.LSTM(D, H, peepholes=True, clip=2.0, cell_clip=1.5),
        "LSTM, recomputed": xlstm.LSTM(D, H, coupled_input_forget=True, recompute=True),
        "GRU": xlstm.GRU(D, H),
        "RNN": xlstm.RNN(D, H, bidirectional=True),
    }
    return cells | ({"sLSTM": xlstm.sLSTM(D, H, num_heads=2)} if H % 2 == 0 else {})


def work(layer: Any, be: Backend, lengths: list[int] | None) -> None:
    """Forward and backward, and forward alone."""
    rng = np.random.default_rng(0)
    params = layer.init(0, be)
    x = be.asarray(rng.standard_normal((T, B, layer.input_size)))
    y, _, saved = layer.forward(params, x, lengths=lengths)
    layer.backward(params, saved, y)
    layer.forward(params, x, lengths=lengths, train=False)
    be.synchronize()


def run(home: Backend, paths: Sequence[str], widths: Sequence[int] | None) -> Iterator[str]:
    """The name of each thing that ran, or of what cannot and why.

    Parameters
    ----------
    paths : names of PATHS
    widths : units of layers, optional
        By default WIDTHS, and HEADED for the mLSTM, whose two heads need an even number.
    """
    for path in paths:
        for precision, dtype in WAYS.get(path, ()):
            be = replace(home, dtype=dtype)
            for H in widths or WIDTHS:
                for name, layer in layers(H).items():
                    what = f"{name}, H={H}, {path}, {dtype} by {precision}"
                    try:
                        with cuda.use(path, precision):
                            for lengths in (None, LENGTHS):
                                work(layer, be, lengths)
                    except (ValueError, BackendError) as reason:
                        if isinstance(reason, ValueError) and "asked for, but" not in str(reason):
                            raise
                        yield f"not possible: {what}: {reason}"
                    else:
                        yield f"ran: {what}"
    for dtype in ("float32", "float64") if MLSTM in paths else ():
        for H in (H for H in widths or HEADED if H % 2 == 0):
            for lengths in (None, LENGTHS):
                work(
                    xlstm.mLSTM(D, H, num_heads=2, chunk_size=3),
                    replace(home, dtype=dtype),
                    lengths,
                )
            yield f"ran: mLSTM, H={H}, {dtype}"


def selecting(parser: argparse.ArgumentParser) -> None:
    """Add the options that select what runs."""
    parser.add_argument(
        "--paths", nargs="+", choices=PATHS, default=list(PATHS), help="all by default"
    )
    parser.add_argument(
        "--widths",
        nargs="+",
        type=int,
        metavar="H",
        help="units of the layers, by default several",
    )


def main() -> int:
    parser = parser_of(__doc__)
    selecting(parser)
    options = parser.parse_args()
    try:
        be = xlstm.backend("cupy")
    except BackendError as reason:
        raise SystemExit(f"sanitized: {reason}") from None
    optional_imports.cupy().cuda.set_allocator(
        None
    )  # no pool: the sanitizer sees where each array ends
    count = 0
    for line in run(be, options.paths, options.widths):
        print(line, flush=True)
        count += line.startswith("ran")
    print(f"{count} layers ran")
    return int(not count)


if __name__ == "__main__":
    sys.exit(main())
