"""The GPU check in one command, within 10 minutes: results, races, barriers, graphs, tests, then
times beside other libraries.

    python -m bench.gpu [--output FOLDER] [--parts NAME ...] [--seconds N]

It needs a CUDA machine with CuPy; pytest for the tests, PyTorch for cuDNN's times, and
mlstm_kernels for the times of its mLSTM. Parts that check results come before cuDNN's times, and
all tests are the last of them.

After every part it writes gpu-CARD.json and gpu-CARD-parity.json to FOLDER (bench/results by
default). They name card, driver and versions. At the end it prints a table, and the last 40 lines
of each part that failed. It stops a part that is slow, leaves out a part for which no time is left,
and says both. Exit status: 0 all is well, 1 something failed, 2 something was cut short or left
out.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xlstm
from bench import gpu_table, rows
from bench.options import file_name, parser_of
from xlstm.arrays import cores, optional_imports
from xlstm.cli import info
from xlstm.engines.cuda import launch

TOTAL = 590.0  # seconds; the table and the versions take some more
GRACE = 5.0  # seconds that a part has for its last words when it is told to stop
SLACK = 12.0  # seconds of a part's time that it needs to begin and to end
TAIL = 40  # lines that are kept of a part that failed
OK = "ok"
FAILED = "FAILED"
CUT = "CUT SHORT"
OUT = "LEFT OUT"


class Part(NamedTuple):
    """A part of the check, and the time that it may take."""

    name: str
    most: float  # seconds it may take
    # seconds that are left to it when parts before it are slow; with less it is not begun
    least: float


PARTS = (
    Part("parity", 80, 30),
    Part("dtypes", 60, 30),
    Part("races", 60, 20),
    Part("barriers", 40, 10),
    Part("graphs", 40, 20),
    Part("language", 60, 40),
    Part("tests", 150, 40),
    Part("cudnn", 400, 120),  # at least 25 of its cases, which take 4 seconds each at most
    Part("mlstm", 60, 30),
    Part("main job", 45, 15),
)
MEASURED = ("barriers", "cudnn", "mlstm", "language")  # parts with a record of their own
# Files of tests that are parts: half precision with lengths, and the bits of graphs beside single
# calls.
TESTS = {
    "dtypes": "tests/layers/test_cupy_dtypes.py",
    "graphs": "tests/arrays/test_cupy_graphs.py tests/training/test_cupy_steps.py",
    "tests": "tests",
}
# Packages that parts need.
PACKAGES = {**dict.fromkeys(TESTS, "pytest"), "cudnn": "torch", "main job": "typer"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Outcome(NamedTuple):
    """How a part went."""

    name: str
    result: str
    seconds: float
    said: str  # its last line, or why it was left out
    tail: list[str]  # its last lines, if it failed


Run = Callable[[list[str], float, Mapping[str, str]], tuple[str, str, list[str]]]


def command(name: str, seconds: float, room: Path) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of a part; it writes its files for the record into
    `room`.

    Raises
    ------
    ImportError
        Something that it needs is not installed.
    """
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ImportError(f"{package} is not installed")
    own = f"--seconds {max(seconds - SLACK, 1.0)}"
    processes = max(1, min(8, cores.usable() - 1))
    words = f"-m bench.{name}"
    rest = ["--json", str(room / f"{name}.json")]
    environment = {}
    if name == "main job":
        words = "-m xlstm train --backend cupy"
        rest = ["--output", str(room / name)]
    elif name == "races":
        words = f"-m bench.sanitize --tools racecheck synccheck --paths grid cluster {own}"
        rest = ["--widths", "40"]
    elif name == "parity":
        words = f"-m tests.parity --require cupy --brief --processes {processes} {own}"
        environment = ONE_THREAD
    elif name in TESTS:
        words = f"-m pytest {TESTS[name]} -q -k cupy --tb=short -p no:cacheprovider"
        rest = ["-n", str(processes)] if importlib.util.find_spec("xdist") else []
        environment = {**ONE_THREAD, "XLSTM_TEST_REQUIRE": "cupy"}
    elif name != "barriers":
        words += f" {own}"
    return [*words.split(), *rest], environment


def run(
    argv: list[str], seconds: float, environment: Mapping[str, str]
) -> tuple[str, str, list[str]]:
    """Run a Python process, pass on what it prints, and return its result, its last line that is
    not blank, and its last lines if it failed.

    A process that takes longer than `seconds` is stopped.
    """
    process = subprocess.Popen(
        [sys.executable, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        start_new_session=True,  # that processes of its own are stopped with it
    )
    late = threading.Event()
    tail = collections.deque[str](maxlen=TAIL)

    def stop() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, stop)
    timer.start()
    with process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            tail.append(line.rstrip())
        code = process.wait()
    timer.cancel()
    timer.join()
    said = next((line.strip() for line in reversed(tail) if line), "")
    result = OK if code == 0 else FAILED
    if late.is_set():
        result = FAILED if " failed" in said else CUT
        said = f"stopped after {seconds:.0f} s: {said}"
    elif result == FAILED:
        said = f"exit status {code}: {said}"
    return result, said, list(tail) if result == FAILED else []


def check(
    names: list[str],
    end: float,
    make: Callable[[str, float], tuple[list[str], dict[str, str]]],
    done: Callable[[list[Outcome]], object],
    execute: Run = run,
    now: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Run the parts of these names in turn until `end`, so that those after a part get their least;
    `done` is told after every one.
    """
    outcomes: list[Outcome] = []
    todo = [part for part in PARTS if part.name in names]
    for k, part in enumerate(todo):
        begun = now()
        left = end - begun
        seconds = min(part.most, left - sum(later.least for later in todo[k + 1 :]))
        result = OUT
        said = f"{max(left, 0):.0f} seconds were left"
        tail: list[str] = []
        if seconds >= part.least:
            print(f"\n{part.name}: at most {seconds:.0f} s", flush=True)
            try:
                argv, environment = make(part.name, seconds)
                result, said, tail = execute(argv, seconds, environment)
            except ImportError as reason:
                said = str(reason)
            except Exception as error:  # the parts after it are run
                traceback.print_exc()
                result = FAILED
                said = optional_imports.first_line(error)
                tail = traceback.format_exc().splitlines()[-TAIL:]
        outcomes.append(Outcome(part.name, result, now() - begun, said, tail))
        done(outcomes)
    return outcomes


def status(outcomes: list[Outcome], left_out: bool) -> int:
    """The exit status."""
    results = {outcome.result for outcome in outcomes}
    if FAILED in results:
        return 1
    return 2 if left_out or results & {CUT, OUT} else 0


def smi() -> str:
    """Card, driver, clocks and power as nvidia-smi has them."""
    fields = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.check_output(words, text=True, timeout=20).strip()


def attempt(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or its error as text; the error is shown."""
    try:
        return call()
    except Exception as error:  # measurements matter more
        traceback.print_exc()
        return optional_imports.first_line(error)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    parser.add_argument(
        "--parts", nargs="+", choices=[part.name for part in PARTS], default=[p.name for p in PARTS]
    )
    parser.add_argument("--seconds", type=float, default=TOTAL, help="of all parts together")
    options = parser.parse_args()
    begun = time.monotonic()
    try:
        backend = rows.card()
    except xlstm.BackendError as reason:
        raise SystemExit(f"gpu: {reason}") from None
    card = str(backend).partition("(")[2].removesuffix(")")
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{file_name(card)}.json"
    record: dict[str, Any] = {
        "card": card,
        "begun": time.strftime("%Y-%m-%d %H:%M:%S"),
        "nvidia-smi": attempt(smi),
        "device": attempt(lambda: launch.current()._asdict()),
        "machine": attempt(info.describe),
    }
    print(f"GPU check on {backend}, at most {options.seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)

        def done(outcomes: list[Outcome]) -> None:
            record["parts"] = [outcome._asdict() for outcome in outcomes]
            record.update({part: rows.read(room / f"{part}.json") for part in MEASURED})
            rows.keep(path, record)
            if (room / "parity.json").exists():
                shutil.copy(room / "parity.json", path.with_name(f"{path.stem}-parity.json"))

        end = begun + options.seconds
        outcomes = check(options.parts, end, functools.partial(command, room=room), done)
        records = [rows.read(room / "parity.json"), *(record[part] for part in MEASURED)]
    left_out = any(part and part.get("left out") for part in records)
    print(
        f"\n{attempt(lambda: gpu_table.text(record))}\n\n{time.monotonic() - begun:.0f} s in all; {path}"
    )
    return status(outcomes, left_out)


if __name__ == "__main__":
    sys.exit(main())
