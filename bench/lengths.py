"""An LSTM forward + backward over sequences of T/4 to T steps; PyTorch packs and unpacks them.

python -m bench.lengths [--backend numpy|cupy] [--dtype float32] [--json FILE]
"""

from __future__ import annotations

from bench import peers, run
from bench.cases import GPU_SHAPES, SHAPES, Case


def main() -> None:
    options = run.for_layers(__doc__).parse_args()
    cpu = options.backend == "numpy"
    # one sequence has one length
    shapes = [shape for shape in SHAPES + ([] if cpu else GPU_SHAPES) if shape[1] > 1]
    todo = [Case("lstm", *shape, options.dtype, ragged=True) for shape in shapes]
    run.layers("lstm, lengths T/4 to T", todo, options, ("torch",) if cpu else peers.CUDA)


if __name__ == "__main__":
    main()
