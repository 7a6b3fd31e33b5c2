"""SIGINT and SIGTERM at random moments of a command: no traceback, the right exit code, no damaged, no stray file."""

import os
import random
import signal
import subprocess
import sys

import pytest

from tests.attacks.bounds import examples
from xlstm.training import checkpoint
from xlstm.training.folder import read_history

# The command with a signal at the K-th event (a call or a return, of Python or of C) of the main thread, whatever the
# speed of the machine; they count from when the package handles signals. At the end it writes how many there were.
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
TEXT = ["train", "text", "a.txt", "--hidden-size", "2", "--embedding-size", "2", "--batch-size", "2", "--length", "8"]
TEXT += ["--steps", "6", "--every", "2", "--sample", "3", "--backend", "numpy", "-o", "out"]
TRAIN = ["train", "--epochs", "1", "--window", "8", "--hidden-size", "2", "--backend", "numpy", "-o", "out"]


def run(folder, arguments, number, moment):
    """Exit code, standard output, standard error and the number of events."""
    terminal = {"FORCE_COLOR": "1"} if moment % 2 else {}  # with a progress bar or without
    environment = {**os.environ, "XLSTM_COMPILE": "0", **terminal}
    command = [sys.executable, "-c", DRIVER, str(int(number)), str(moment), "events", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    report = folder / "events"  # not written where the signal comes while the package is imported
    return done.returncode, done.stdout, done.stderr, int(report.read_text() or 0) if report.exists() else 0


def text(folder):
    (folder / "a.txt").write_text("to be or not to be, that is the question. " * 4)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """How many events the command has."""
    code, _, errors, found = run(tmp_path_factory.mktemp("whole"), TRAIN, signal.SIGINT, 0)
    assert code == 0, errors
    return found


@pytest.fixture(scope="module")
def events_of_text(tmp_path_factory):
    """How many events the training of a text has."""
    folder = tmp_path_factory.mktemp("text")
    text(folder)
    code, _, errors, found = run(folder, TEXT, signal.SIGINT, 0)
    assert code == 0, errors
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_at_any_moment_of_training(tmp_path, events, number):
    rng = random.Random(int(number))
    for _ in range(examples(1)):
        # Half of the moments lie in the second half, where files are written and pictures drawn.
        moment = rng.choice((rng.randint(1, events), rng.randint(events // 2, events)))
        code, output, errors, _ = run(tmp_path, TRAIN, number, moment)
        where = f"at event {moment} of {events}: {code}\n{output}\n{errors}"
        assert "Traceback" not in output + errors, where
        assert code in (0, 128 + number), where
        written = sorted(os.listdir(tmp_path / "out")) if (tmp_path / "out").exists() else []
        assert set(written) <= {"model.safetensors", "forecast.png"}, where
        if "model.safetensors" in written:
            checkpoint.load(tmp_path / "out/model.safetensors", "forecaster")
        for name in written:
            saved = f"{os.path.join('out', name)} is saved" in errors or code == 0
            assert saved or not errors.startswith("interrupted;"), where
            os.remove(tmp_path / "out" / name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_at_any_moment_of_training_a_text(tmp_path, events_of_text, number):
    """Where the command says how to go on, the same command with --resume ends well."""
    rng = random.Random(int(number))
    for k in range(examples(1)):
        folder = tmp_path / str(k)
        folder.mkdir()
        text(folder)
        moment = rng.randint(1, events_of_text)
        code, output, errors, _ = run(folder, TEXT, number, moment)
        where = f"at event {moment} of {events_of_text}: {code}\n{output}\n{errors}"
        assert "Traceback" not in output + errors, where
        assert code in (0, 128 + number), where
        written = sorted(os.listdir(folder / "out")) if (folder / "out").exists() else []
        assert not [name for name in written if name.startswith(".")], where
        if "model.safetensors" in written:
            checkpoint.load(folder / "out/model.safetensors", "text model")
            assert code == 0 or "out/model.safetensors is saved" in errors or not errors.startswith("interrupted;"), (
                where
            )
        if "go on with: " in errors:
            again = errors.strip().rpartition("go on with: xlstm ")[2]
            assert again == " ".join([*TEXT, "--resume"]), where
            code, _, errors, _ = run(folder, [*TEXT, "--resume"], number, 0)
            assert code == 0, errors
            assert len(read_history(folder / "out/history.jsonl")) == 6
