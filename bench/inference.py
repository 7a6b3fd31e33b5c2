"""A sequence through an LSTM, forward only.

python -m bench.inference [--dtype float32] [--json FILE]
"""

from __future__ import annotations

from bench import peers, run
from bench.cases import LARGE, SHAPES, Case


def main() -> None:
    options = run.for_layers(__doc__).parse_args()
    todo = [Case("lstm", *shape, options.dtype, train=False) for shape in SHAPES + LARGE]
    run.layers("lstm inference", todo, options, (*peers.CPU, "onnxruntime"))


if __name__ == "__main__":
    main()
