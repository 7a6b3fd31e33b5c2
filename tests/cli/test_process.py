"""The command line as a process: files that are whole, exit codes, signals, and readers who go away."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import xlstm
from tests.cli.commands import CLASSES, QUICK, SERIES, TEXT, VERSE, write_files
from xlstm import plots
from xlstm.data.series import bundled
from xlstm.estimators import Forecaster
from xlstm.plots import figures
from xlstm.training import loop
from xlstm.training.folder import read_history

MODEL, PICTURE = "xlstm-output/model.safetensors", "xlstm-output/forecast.png"
SHORT = ["train", "s.csv", *QUICK]
pytestmark = pytest.mark.skipif(not figures.available(), reason="matplotlib is not installed")


@pytest.fixture
def series(tmp_path):
    """A folder with a short series, whose column has a name beyond ASCII, and with a text."""
    (tmp_path / "s.csv").write_text("\u03bb\n" + "".join(f"{k % 7}\n" for k in range(100)), encoding="utf-8")
    (tmp_path / "a.txt").write_text(VERSE)
    return tmp_path


def started(folder, *args, program=("-m", "xlstm"), coding="utf-8", **options):
    """The command line in a process of its own."""
    environment = {**os.environ, "XLSTM_COMPILE": "0", "PYTHONIOENCODING": coding}
    whole = [sys.executable, *program, *map(str, args)]
    return subprocess.Popen(whole, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, **options)


def command(folder, *args, **options):
    """Its exit code and standard error."""
    process = started(folder, *args, **options)
    errors = process.communicate(timeout=120)[1]
    return process.returncode, errors


# Files are whole


def test_killed_training_leaves_a_whole_model_or_none(series):
    process = started(series, *SHORT, "--epochs", 300, "--patience", 300, "--seed", 1, stdout=subprocess.DEVNULL)
    time.sleep(2.5)
    process.kill()
    process.communicate()
    assert not (series / MODEL).exists() or Forecaster.load(series / MODEL, "numpy").settings.seed == 1


@pytest.mark.parametrize("kind", [[], ["forecast"], ["text", "a.txt"]], ids=" ".join)
def test_no_model_is_written_over(run, series, kind):
    """The folder holds no run, or the file is that of another command."""
    (series / MODEL).parent.mkdir()
    (series / MODEL).write_text("precious")
    found = run("train", *kind, "--output", "xlstm-output", code=2).stderr
    assert found == "error: xlstm-output: holds a model already; --output names another folder\n"
    assert (series / MODEL).read_text() == "precious"


def test_two_processes_train_into_one_folder(series):
    both = [started(series, *SHORT, "--seed", seed, stdout=subprocess.DEVNULL) for seed in (1, 2)]
    codes = sorted(process.communicate(timeout=120) and process.returncode for process in both)
    assert codes in ([0, 0], [0, 2])  # the later one is refused where the other one has saved its model by then
    assert sorted(os.listdir(series / "xlstm-output")) == ["forecast.png", "model.safetensors"]
    assert Forecaster.load(series / MODEL, "numpy").settings.seed in (1, 2)


@pytest.mark.parametrize(
    ("owner", "name", "error", "said"),
    [
        (Forecaster, "score", KeyboardInterrupt(), "interrupted"),
        (Forecaster, "score", ValueError("no"), "error: no"),
        (plots, "forecast", RuntimeError("no"), "error: RuntimeError: no"),
    ],
)
def test_the_model_is_saved_before_comparison_and_picture(run, monkeypatch, owner, name, error, said):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(owner, name, fail)
    result = run("train", *QUICK, code=130 if said == "interrupted" else 1)
    assert result.stderr == f"{said}; {MODEL} is saved\n"
    assert Forecaster.load(MODEL, "numpy").settings.window == 12


def test_an_interrupt_before_the_model_is_saved(run, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupt)
    assert run("train", *QUICK, code=130).stderr == "interrupted; nothing was saved\n"
    assert not (tmp_path / MODEL).exists()


# Readers who go away


@contextlib.contextmanager
def closed_pipe():
    """A stream whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_a_reader_who_goes_away_costs_no_training(series):
    """As `xlstm train | head -1`, which ends with the first line; a full disk; and a terminal without a letter."""
    saved = f"{MODEL} is saved; {PICTURE} is saved\n"
    words = "error: the results could not be printed, "
    with closed_pipe() as pipe:
        assert command(series, *SHORT, stdout=pipe) == (141, "")
    assert sorted(os.listdir(series / "xlstm-output")) == ["forecast.png", "model.safetensors"]
    shutil.rmtree(series / "xlstm-output")
    with open("/dev/full", "w") as full:
        assert command(series, *SHORT, stdout=full) == (1, f"{words}No space left on device; {saved}")
    shutil.rmtree(series / "xlstm-output")
    code, errors = command(series, *SHORT, stdout=subprocess.DEVNULL, coding="ascii")
    assert code == 1
    assert errors.startswith(f"{words}'ascii' codec can't encode")
    assert errors.endswith(saved)


@pytest.mark.parametrize("name", ["--version", "predict", "generate"])
def test_readers_who_go_away_end_a_command_quietly(series, name):
    Forecaster(window=12, hidden_size=2, epochs=1, backend="numpy", name="v").fit(np.arange(100.0) % 7).save(
        series / "m"
    )
    model = xlstm.xLSTMLanguageModel(xlstm.LSTM(4, 4), vocab_size=5)
    xlstm.models.save(series / "l", model, model.init(backend="numpy"))
    args = {"--version": [], "predict": ["m", bundled("sunspots")], "generate": ["l", "--prompt", "1"]}[name]
    with closed_pipe() as pipe:
        assert command(series, name, *args, stdout=pipe) == (
            141,
            "note: the model was trained on v, this is sunspots\n" * (name == "predict"),
        )
    if name != "--version":
        shell = f"{sys.executable} -m xlstm {name} {' '.join(map(str, args))} >&-"
        done = subprocess.run(shell, shell=True, cwd=series, capture_output=True, text=True)
        words = f"error: {name}: standard output is closed, there is nowhere to print to\n"
        assert (done.returncode, done.stderr) == (2, words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_folder_of_a_run(series):
    """A reader would wait for ever for somebody who writes to them."""
    (series / "r").mkdir()
    os.mkfifo(series / "r/history.jsonl")
    code, errors = command(series, *TEXT, "-o", "r")
    assert code == 2
    assert "r/history.jsonl: it is not a regular file\n" in errors


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize("args", [["p.csv"], ["p.parquet"], ["text", "p.txt"]], ids=" ".join)
def test_pipes_with_names_are_refused_before_they_are_opened(series, args):
    os.mkfifo(series / args[-1])
    code, errors = command(series, "train", *args)
    assert code == 2
    assert f"{args[-1]}: it is a pipe with a name, to which perhaps nobody writes; expected a file" in errors


# Signals and warnings

# The command with a signal, or two, after its third step. The second one comes while the run is saved.
SIGNALS = """
import signal, sys
from xlstm.training import loop
numbers = [getattr(signal, name) for name in sys.argv.pop(1).split()]
count, save = loop.Run._count, loop.Run._save
def _count(self, taken):
    count(self, taken)
    if self.total == 3 and numbers:
        signal.raise_signal(numbers[0])
def _save(self, *rest):
    if self.total == 3 and numbers[1:]:
        signal.raise_signal(numbers.pop())
    save(self, *rest)
loop.Run._count, loop.Run._save = _count, _save
sys.argv[0] = "xlstm"
from xlstm.cli import main
main()
"""


def stopped(folder, numbers, args):
    names = " ".join(number.name for number in numbers)
    return command(folder, names, *args, program=("-c", SIGNALS), stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("number", "args"),
    [(signal.SIGINT, TEXT), (signal.SIGTERM, CLASSES), (signal.SIGHUP, SERIES)],
    ids=["SIGINT-text", "SIGTERM-classify", "SIGHUP-forecast"],
)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(run, tmp_path, monkeypatch, number, args):
    monkeypatch.setenv("XLSTM_COMPILE", "0")  # as in the process that is stopped
    write_files(tmp_path)
    run(*args, "-o", "whole")
    code, errors = stopped(tmp_path, [number], [*args, "-o", "o u t"])
    assert code == 128 + number
    words = " ".join(map(str, [*args, "-o", "'o u t'", "--resume"]))
    cause = "interrupted" if number == signal.SIGINT else "terminated"
    assert errors == f"{cause}; o u t/model.safetensors is saved; go on with: xlstm {words}\n"
    assert [line["total"] for line in read_history(tmp_path / "o u t/history.jsonl")] == [1, 2, 3]
    run(*args, "-o", "o u t", "--resume")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "o u t/model.safetensors").read_bytes()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_stops_at_once(series, second):
    assert stopped(series, [signal.SIGINT, second], TEXT) == (128 + second, "interrupted; nothing was saved\n")
    assert sorted(os.listdir(series / "xlstm-text")) == ["history.jsonl"]


FULL = """
import sys
from xlstm import checkpoint
real = checkpoint.save
def save(path, *rest):
    if "step-" in str(path):
        raise OSError(28, "No space left on device", str(path))
    real(path, *rest)
checkpoint.save = save
sys.argv[0] = "xlstm"
from xlstm.cli import main
main()
"""


def test_warnings_are_lines(series):
    code, errors = command(series, *TEXT, program=("-c", FULL), stdout=subprocess.DEVNULL)
    lines = errors.splitlines()
    assert (code, len(lines)) == (0, 2)
    assert all(line.startswith("warning: train: ") and "No space left on device" in line for line in lines)
