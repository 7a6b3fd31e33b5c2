"""LSTM, GRU, RNN and a stack forward + backward, beside other libraries.

    python -m bench.layers [CASE ...] [--dtype float32] [--json FILE]

CASE is one or several of lstm, gru, rnn and stack (an LSTM of 2 layers in both directions); all by
default. On a GPU, `bench.cudnn` times layers.
"""

from __future__ import annotations

from bench import peers, run
from bench.cases import LARGE, SHAPES, Case

CASES = ("lstm", "gru", "rnn", "stack")


def main() -> None:
    parser = run.for_layers(__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", choices=[*CASES, []], help="all by default"
    )
    options = parser.parse_args()
    for name in options.cases or CASES:
        if name == "stack":
            todo = [
                Case("lstm", *shape, options.dtype, num_layers=2, bidirectional=True)
                for shape in SHAPES
            ]
        else:
            todo = [Case(name, *shape, options.dtype) for shape in SHAPES + LARGE]
        run.layers(
            f"{name} forward + backward",
            todo,
            options,
            ("torch",) if name == "stack" else peers.CPU,
        )


if __name__ == "__main__":
    main()
