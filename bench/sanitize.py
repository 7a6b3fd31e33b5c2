"""The kernels under NVIDIA's compute-sanitizer: memory out of bounds, and races in shared memory.

    python -m bench.sanitize [--tools memcheck racecheck] [--paths grid cluster] [--widths 5 130]
                             [--seconds N] [--output FOLDER]

Needs a CUDA machine and compute-sanitizer, which comes with the CUDA toolkit, on PATH or in
CUDA_HOME. Runs `bench.sanitized` under each tool and sums up what was found. All paths and several
widths take long, since every access is checked: `--paths` and `--widths` select some. Exit status:
0 nothing, 1 findings, 2 a tool did not run to its end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import xlstm
from bench import rows, sanitized
from bench.options import parser_of

PROGRAM = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FINDINGS = 99  # exit status of compute-sanitizer where there are any


class Report(NamedTuple):
    """The findings of one tool."""

    tool: str
    errors: int | None  # None: it did not run to its end
    kernels: dict[str, int]  # findings by kernel
    said: str

    @property
    def status(self) -> int:
        return 2 if self.errors is None else int(self.errors > 0)

    def __str__(self) -> str:
        if self.errors is None:
            return f"{self.tool}: did not run to its end: {self.said}"
        where = ", ".join(f"{name} {n}" for name, n in self.kernels.items())
        return f"{self.tool}: {self.errors} findings{f' ({where})' if where else ''}; {self.said}"


def find() -> str:
    """The program.

    Raises
    ------
    FileNotFoundError
        It is in none of the places.
    """
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [f"{home}/{folder}" for folder in ("bin", PROGRAM, f"extras/{PROGRAM}")]
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=os.pathsep.join(folders))
    if program is None:
        raise FileNotFoundError(
            f"{PROGRAM} is neither on PATH nor in {home}; it comes with the CUDA toolkit (apt:"
            " cuda-sanitizer, conda: cuda-sanitizer-api); CUDA_HOME says where that is"
        )
    return program


def understand(tool: str, code: int, text: str) -> Report:
    """Return the report of a run.

    Parameters
    ----------
    code : int
        Its exit status.
    text : str
        The text that it printed.
    """
    summaries = re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text)
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1].removeprefix("=========").strip() if lines else "it said nothing"
    ran = re.findall(r"^\d+ layers ran$", text, re.MULTILINE)
    if not summaries or not ran or code not in (0, FINDINGS):
        return Report(tool, None, {}, f"exit status {code}: {last}")
    errors = sum(int(a or b) for a, b in summaries)
    places = [line for line in lines if line.startswith("=====") and re.search(r"\bat .*0x", line)]
    names = [re.search(r"\bxlstm_\w+", line) for line in places if "Host Frame" not in line]
    kernels = Counter(name.group() if name else "others" for name in names)
    if code == FINDINGS:
        errors = max(errors, 1)
    return Report(tool, errors, dict(kernels), ran[0])


def run(
    program: str, tool: str, selected: list[str], seconds: float, folder: Path | None
) -> Report:
    """One tool over the layers that these options of `bench.sanitized` select."""
    own = f"--tool {tool} --error-exitcode {FINDINGS} --target-processes all"
    words = [program, *own.split(), sys.executable, "-m", "bench.sanitized", *selected]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return Report(tool, None, {}, f"stopped after {seconds:.0f} s")
    text = done.stdout + done.stderr
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"sanitize-{tool}.txt").write_text(text, encoding="utf-8")
    report = understand(tool, done.returncode, text)
    if report.status:
        print("\n".join(text.splitlines()[-40:]))
    return report


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=["memcheck", "racecheck"])
    sanitized.selecting(parser)
    parser.add_argument("--seconds", type=float, default=1800, help="of each tool")
    parser.add_argument("--output", type=Path, help="keep all that the tools say in this folder")
    options = parser.parse_args()
    try:
        program = find()
        be = rows.card()
    except (FileNotFoundError, xlstm.BackendError) as reason:
        raise SystemExit(f"sanitize: {reason}") from None
    print(f"{program} on {be}", flush=True)
    reports = []
    selected = ["--paths", *options.paths]
    if options.widths:
        selected += ["--widths", *map(str, options.widths)]
    for tool in options.tools:
        reports.append(run(program, tool, selected, options.seconds, options.output))
        print(reports[-1], flush=True)
    return max(report.status for report in reports)


if __name__ == "__main__":
    sys.exit(main())
