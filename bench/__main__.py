"""Every usable backend side by side, the notebook's size first; then five benchmarks beside
other libraries, and a report.

python -m bench [--output FILE] [--rounds N]

Each runs in a process of its own. Results are JSON lines in bench/results/<machine>.json by
default; the results of `xlstm compare` lie beside it in <machine>-compare.json. When all is done,
they replace files of these names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.options import file_name, parser_of
from xlstm.arrays import cores
from xlstm.cli import info

MODULES = (
    "training_step",
    "step",
    "layers",
    "memory",
    "published",
)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("bench/results") / f"{name_of_machine()}.json"
    )
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed in turn")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    running = options.output.with_suffix(".part")
    running.unlink(missing_ok=True)
    compared = options.output.with_name(f"{options.output.stem}-compare.part")
    compared.unlink(missing_ok=True)
    files = {"xlstm compare": compared, **{f"bench.{module}": running for module in MODULES}}
    failed = []
    for program, file in files.items():
        command = [sys.executable, "-m", *program.split(), "--json", str(file)]
        command += ["--rounds", str(options.rounds)]
        if subprocess.run(command, check=False).returncode:
            failed.append(program)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; what the others measured is in {running}")
    os.replace(running, options.output)
    os.replace(compared, compared.with_suffix(".json"))
    subprocess.run([sys.executable, "-m", "bench.report", str(options.output)], check=True)
    print(f"results: {options.output}")


def name_of_machine() -> str:
    """Processor and number of cores, fit for a file's name."""
    return file_name(f"{info.processor()} {cores.usable()} cores")


if __name__ == "__main__":
    main()
