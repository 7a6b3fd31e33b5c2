"""All benchmarks of this machine, each in a process of its own, and their report.

python -m bench [--output FILE] [--rounds N]

Results are JSON lines, in bench/results/<machine>.json by default; a file of that name is replaced when all is done.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from xlstm.arrays import cores
from xlstm.cli import info

MODULES = ("training_step", "step", "layers", "lengths", "inference", "memory", "imports", "published")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bench/results") / f"{name_of_machine()}.json")
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed in turn")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    running = options.output.with_suffix(".part")
    running.unlink(missing_ok=True)
    failed = []
    for module in MODULES:
        command = [sys.executable, "-m", f"bench.{module}", "--json", str(running), "--rounds", str(options.rounds)]
        if subprocess.run(command, check=False).returncode:
            failed.append(module)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; what the others measured is in {running}")
    os.replace(running, options.output)
    subprocess.run([sys.executable, "-m", "bench.report", str(options.output)], check=True)
    print(f"results: {options.output}")


def name_of_machine() -> str:
    """Processor and number of cores, fit for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", f"{info.processor()} {cores.usable()} cores".lower()).strip("-")


if __name__ == "__main__":
    main()
