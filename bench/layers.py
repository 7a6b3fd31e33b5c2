"""Layers beside other libraries: forward + backward, sequences of different lengths, and inference.

    python -m bench.layers [CASE ...] [--json FILE]

CASE is one or several of these, by default all:

    lstm, gru, rnn  forward and backward
    stack           an LSTM of 2 layers in both directions
    lengths         an LSTM over sequences of T/4 to T steps, which PyTorch packs and unpacks
    resets          LSTM, GRU, mLSTM and two xLSTM blocks, with a reset before one step in 32, beside
                    the same without resets, and beside PyTorch's loop over steps with masks
    inference       an LSTM forward alone
    scan            a minGRU and a minLSTM beside our GRU
    sequences       gradients of single sequences by one backward pass of an LSTM, beside a plain
                    backward pass, and beside one pass for each sequence

On a GPU, `bench.cudnn` times layers.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import asdict, replace

from bench import cases, peers, run
from bench.cases import LARGE, Case
from xlstm.cli.bench import SIZES
from xlstm.cli.timing import Size

# T, B, D, H
SCANS = [Size(32, 8, 512, 512), Size(4096, 8, 512, 512)]
RESETS = [Size(128, 32, 64, 64), Size(64, 16, 128, 128)]
CASES = ("lstm", "gru", "rnn", "stack", "lengths", "resets", "inference", "scan", "sequences")


def main() -> None:
    parser = run.parser(__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", choices=[*CASES, []], help="all by default"
    )
    options = parser.parse_args()
    for name in options.cases or CASES:
        layers = [name if name in ("gru", "rnn") else "lstm"]
        title = f"{name} forward + backward"
        shapes = (*SIZES, LARGE)
        others = peers.CPU
        settings = {}
        if name == "stack":
            shapes = SIZES
            others = ("torch",)
            settings = {"num_layers": 2, "bidirectional": True}
        elif name == "lengths":
            title = "lstm, lengths T/4 to T"
            shapes = [size for size in SIZES if size.B > 1]  # one sequence has one length
            others = ("torch",)
            settings = {"ragged": True}
        elif name == "resets":
            title = "resets"
            layers = ["lstm", "gru", "mlstm", "xlstm"]
            shapes = RESETS
            settings = {"reset": 1 / 32}
        elif name == "inference":
            title = "lstm inference"
            others = (*peers.CPU, "onnxruntime")
            settings = {"train": False}
        elif name == "scan":
            title = "minGRU forward + backward"
            layers = ["mingru"]
            shapes = SCANS
            others = ()
        elif name == "sequences":
            title = "lstm backward, per sequence"
            shapes = [size for size in SIZES if size.B > 1]
        run.start(title)
        for layer, shape in itertools.product(layers, shapes):
            if layer == "xlstm":
                settings["num_layers"] = 2  # an mLSTM and an sLSTM block
            case = Case(layer, *shape, **settings)
            theirs = {other: functools.partial(peers.PEERS[other], case) for other in others}
            ours = cases.ours(case)
            if name == "scan":
                for kind in ("minlstm", "gru"):
                    call = cases.ours(replace(case, layer=kind))
                    theirs[kind] = lambda call=call: call
                    alone = functools.partial(cases.without_compiling, call)
                    theirs[f"{kind}, NumPy alone"] = alone
            if name == "sequences":
                ours = cases.backward(case, per_sequence=True)
                theirs = {
                    "plain": functools.partial(cases.backward, case),
                    "B passes": functools.partial(cases.backward, case, alone=True),
                }
            if name == "resets":
                title = f"{layer} forward + backward with resets"
                plain = cases.ours(replace(case, reset=0.0))
                theirs = {
                    "plain": lambda plain=plain: plain,
                    "plain, NumPy alone": lambda plain=plain: cases.without_compiling(plain),
                    "torch": theirs["torch"],
                }
            run.beside(title, str(case), ours, theirs, options, case=asdict(case))


if __name__ == "__main__":
    main()
