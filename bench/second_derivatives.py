"""Products of a vector with the Hessian with respect to all parameters: beside one gradient on
the same engine, and beside PyTorch's double backward.

    python -m bench.second_derivatives [--json FILE]

Both run on the reference engine, with compiled loops or, under XLSTM_COMPILE=0, without. Memory is
the peak of NumPy's arrays.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, replace

from bench import cases, peers, run
from bench.cases import Case
from xlstm.arrays.backend import backend
from xlstm.cli.timing import peak_memory
from xlstm.engines import engine

CASES = (
    Case("lstm", 32, 32, 1, 50),
    Case("lstm", 64, 32, 64, 128),
    Case("lstm", 64, 64, 128, 256),
    Case("gru", 64, 32, 64, 128),
    Case("slstm", 64, 32, 64, 128),
    Case("mlstm", 64, 32, 64, 128),
    Case("xlstm", 64, 32, 128, 128, num_layers=2),
)
TITLE = "Hessian-vector product"


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start(TITLE)
    home = backend("numpy")
    for case in CASES:
        name = f"{case.layer} {case}"
        gradient = engine.use("array_api")(cases.ours(case))
        case = replace(case, second=True)
        product = cases.ours(case)
        others = {"gradient": lambda call=gradient: call}
        if case.layer in ("lstm", "gru"):
            others["torch"] = functools.partial(peers.torch_call, case)
        run.beside(TITLE, name, product, others, options, case=asdict(case))
        peaks = {"xlstm": peak_memory(product, home), "gradient": peak_memory(gradient, home)}
        about = {"unit": "bytes", "missing": {}, "case": asdict(case)}
        run.record(f"{TITLE}, memory", name, peaks, options.json, **about)


if __name__ == "__main__":
    main()
