"""A sequence through an LSTM, forward only.

python -m bench.inference [--backend numpy|cupy] [--dtype float32] [--json FILE]
"""

from __future__ import annotations

from bench import peers, run
from bench.cases import GPU_SHAPES, LARGE, SHAPES, Case


def main() -> None:
    options = run.for_layers(__doc__).parse_args()
    cpu = options.backend == "numpy"
    todo = [Case("lstm", *s, options.dtype, train=False) for s in SHAPES + LARGE + ([] if cpu else GPU_SHAPES)]
    run.layers("lstm inference", todo, options, (*peers.CPU, "onnxruntime") if cpu else peers.CUDA)


if __name__ == "__main__":
    main()
