"""LSTM, GRU, RNN and a stack forward + backward, beside other libraries on the same device.

    python -m bench.layers [CASE ...] [--backend numpy|cupy] [--dtype float32] [--json FILE]

CASE is one or several of lstm, gru, rnn and stack (an LSTM of 2 layers in both directions); all by
default. At H >= 256 the layer's own matrix products alone are timed too. On a GPU, PyTorch runs cuDNN:
in strict float32, with TF32, in float16 and in bfloat16; CuPy's products are strict float32 unless CUPY_TF32=1.
"""

from __future__ import annotations

from bench import peers, products, run
from bench.cases import GPU_SHAPES, LARGE, SHAPES, Case

CASES = ("lstm", "gru", "rnn", "stack")


def main() -> None:
    parser = run.for_layers(__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help="all by default")
    options = parser.parse_args()
    cpu = options.backend == "numpy"

    def own(case: Case) -> dict:
        return {"its products alone": products.alone(case)} if cpu and case.H >= 256 else {}

    for name in options.cases or CASES:
        shapes = SHAPES + ([] if name == "stack" else LARGE) + ([] if cpu else GPU_SHAPES)
        if name == "stack":
            todo = [Case("lstm", *s, options.dtype, num_layers=2, bidirectional=True) for s in shapes]
        else:
            todo = [Case(name, *s, options.dtype) for s in shapes]
        names = peers.CUDA if not cpu else ("torch",) if name == "stack" else peers.CPU
        run.layers(f"{name} forward + backward", todo, options, names, own)


if __name__ == "__main__":
    main()
