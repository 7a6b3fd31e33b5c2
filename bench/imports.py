"""Time to import a package in a new process, that of Python itself taken off.

python -m bench.imports [--json FILE]
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys

from bench import run
from xlstm.cli.timing import Timing, interleave

PACKAGES = {"xlstm": "xlstm", "NumPy": "numpy", "torch": "torch", "JAX": "jax", "Keras": "keras"}


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("import")
    names = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]
    missing = {name: "not installed" for name in PACKAGES if name not in names}
    environment = {"KERAS_BACKEND": "jax", **os.environ}
    codes = {"python": "pass"} | {name: f"import {PACKAGES[name]}" for name in names}
    run_python = functools.partial(subprocess.run, check=True, env=environment)
    calls = {
        name: functools.partial(run_python, [sys.executable, "-c", code])
        for name, code in codes.items()
    }
    timings = interleave(calls, options.rounds, block=0)
    python = timings.pop("python")
    imports = {
        n: Timing(t.best - python.best, t.median - python.median, t.calls)
        for n, t in timings.items()
    }
    run.record("import", "import", imports, options.json, missing=missing, case={})


if __name__ == "__main__":
    main()
