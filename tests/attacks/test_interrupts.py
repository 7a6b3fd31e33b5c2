"""SIGINT and SIGTERM at random moments of a command: no traceback, the right exit code, no damaged,
no stray file.
"""

import os
import random
import signal
import subprocess
import sys

import pytest

from tests.attacks.bounds import examples
from xlstm import checkpoint
from xlstm.training.folder import read_history

# The command with a signal at the K-th event (a call or a return, of Python or of C) of the main
# thread, whatever the speed of the machine; they count from when the package handles signals. At
# the end it writes how many there were.
DRIVER = """
import signal, sys
number, moment, report = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.argv = ["xlstm", *sys.argv[4:]]
events = 0
def count(frame, event, argument):
    global events
    if not events and signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
        return
    events += 1
    if events == moment:
        sys.setprofile(None)
        signal.raise_signal(number)
sys.setprofile(count)
try:
    from xlstm.cli import main
    main()
finally:
    sys.setprofile(None)
    open(report, "w").write(str(events))
"""
TEXT = [
    "train",
    "text",
    "a.txt",
    "--hidden-size",
    "2",
    "--embedding-size",
    "2",
    "--batch-size",
    "2",
    "--length",
    "8",
]
TEXT += ["--steps", "6", "--every", "2", "--sample", "3", "--backend", "numpy", "-o", "out"]
SERIES = [
    "train",
    "s.csv",
    "--epochs",
    "1",
    "--window",
    "8",
    "--hidden-size",
    "2",
    "--backend",
    "numpy",
    "-o",
    "out",
]
KINDS = {"series": (SERIES, "forecaster"), "text": (TEXT, "text model")}


def run(folder, arguments, number, moment):
    """Exit code, output, standard error and the number of events."""
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("to be or not to be, that is the question. " * 4)
    (folder / "s.csv").write_text("v\n" + "".join(f"{k * k % 7}\n" for k in range(90)))
    terminal = {"FORCE_COLOR": "1"} if moment % 2 else {}  # with a progress bar or without
    environment = {**os.environ, "XLSTM_COMPILE": "0", **terminal}
    command = [sys.executable, "-c", DRIVER, str(int(number)), str(moment), "events", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, env=environment
    )
    report = folder / "events"  # not written where the signal comes while the package is imported
    return (
        done.returncode,
        done.stdout,
        done.stderr,
        int(report.read_text() or 0) if report.exists() else 0,
    )


@pytest.fixture(scope="module", params=KINDS)
def command(request, tmp_path_factory):
    """The arguments of a command, the kind of its model, and the number of its events."""
    arguments, kind = KINDS[request.param]
    code, _, errors, events = run(tmp_path_factory.mktemp("whole"), arguments, signal.SIGINT, 0)
    assert code == 0, errors
    return arguments, kind, events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_at_any_moment_of_training(tmp_path, command, number):
    """Where the command says how to go on, the same command with --resume ends well."""
    arguments, kind, events = command
    rng = random.Random(int(number))
    for k in range(examples(1)):
        folder = tmp_path / str(k)
        # Half of the moments lie in the second half, where files are written and pictures drawn.
        moment = rng.choice((rng.randint(1, events), rng.randint(events // 2, events)))
        code, output, errors, _ = run(folder, arguments, number, moment)
        where = f"at event {moment} of {events}: {code}\n{output}\n{errors}"
        assert "Traceback" not in output + errors, where
        assert code in (0, 128 + number), where
        written = os.listdir(folder / "out") if (folder / "out").exists() else []
        assert not [name for name in written if name.startswith(".")], where
        if "model.safetensors" in written:
            checkpoint.load(folder / "out/model.safetensors", kind)
        for name in {"model.safetensors", "forecast.png"} & {*written}:
            assert (
                f"out/{name} is saved" in errors
                or code == 0
                or not errors.startswith("interrupted;")
            ), where
        if "go on with: " in errors:
            assert errors.strip().endswith(f"go on with: xlstm {' '.join(arguments)} --resume"), (
                where
            )
            code, _, errors, _ = run(folder, [*arguments, "--resume"], number, 0)
            assert code == 0, errors
            assert len(read_history(folder / "out/history.jsonl")) == 6
