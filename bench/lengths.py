"""An LSTM forward + backward over sequences of T/4 to T steps; PyTorch packs and unpacks them.

python -m bench.lengths [--dtype float32] [--json FILE]
"""

from __future__ import annotations

from bench import run
from bench.cases import SHAPES, Case


def main() -> None:
    options = run.for_layers(__doc__).parse_args()
    several = [shape for shape in SHAPES if shape[1] > 1]  # one sequence has one length
    todo = [Case("lstm", *shape, options.dtype, ragged=True) for shape in several]
    run.layers("lstm, lengths T/4 to T", todo, options, ("torch",))


if __name__ == "__main__":
    main()
