"""The command line as a process: files that are whole, exit codes, signals, and readers who go
away.
"""

import contextlib
import os
import signal
import subprocess
import sys
from shlex import split

import pytest

import xlstm
from tests.cli.commands import CLASSES, QUICK, SERIES, TEXT, write_files
from xlstm import plots
from xlstm.estimators import Forecaster
from xlstm.plots import figures
from xlstm.training import loop
from xlstm.training.folder import read_history

MODEL = "xlstm-output/model.safetensors"
PICTURE = "xlstm-output/forecast.png"
SHORT = ["train", "s.csv", *QUICK]
pytestmark = pytest.mark.skipif(not figures.available(), reason="matplotlib is not installed")
needs_pipes = pytest.mark.skipif(
    not hasattr(os, "mkfifo"), reason="this system has no pipes with names"
)


@pytest.fixture(autouse=True)
def files(tmp_path):
    """A text, a table and a short series, whose column has a name beyond ASCII."""
    write_files(tmp_path)


def started(folder, *args, program=("-m", "xlstm"), coding="utf-8", **options):
    """The command line in a process of its own."""
    environment = {**os.environ, "XLSTM_COMPILE": "0", "PYTHONIOENCODING": coding}
    whole = [sys.executable, *program, *map(str, args)]
    return subprocess.Popen(
        whole, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE, **options
    )


def command(folder, *args, **options):
    """Its exit code and standard error."""
    process = started(folder, *args, **options)
    errors = process.communicate(timeout=600)[1]
    return process.returncode, errors


# Files are whole


@pytest.mark.parametrize("kind", ["train", "train forecast", "train text a.txt"])
def test_no_model_is_written_over(run, tmp_path, kind):
    """The folder holds no run, or the file is that of another command."""
    (tmp_path / MODEL).parent.mkdir()
    (tmp_path / MODEL).write_text("precious")
    found = run(f"{kind} --output xlstm-output", code=2).stderr
    assert found == (
        "error: xlstm-output: holds a model already; --overwrite replaces it, and --output names"
        " another folder\n"
    )
    assert (tmp_path / MODEL).read_text() == "precious"


def test_two_processes_train_into_one_folder(tmp_path):
    both = [started(tmp_path, *SHORT, "--seed", seed, stdout=subprocess.DEVNULL) for seed in (1, 2)]
    codes = sorted(process.communicate(timeout=600) and process.returncode for process in both)
    # the later one is refused where the other one has saved its model by then
    assert codes in ([0, 0], [0, 2])
    assert sorted(os.listdir(tmp_path / "xlstm-output")) == ["forecast.png", "model.safetensors"]
    assert Forecaster.load(tmp_path / MODEL, "numpy").settings.seed in (1, 2)


@pytest.mark.parametrize(
    ("owner", "name", "error", "said"),
    [
        (Forecaster, "score", KeyboardInterrupt(), "interrupted"),
        (Forecaster, "score", ValueError("no"), "error: no"),
        (plots, "forecast", RuntimeError("no"), "error: RuntimeError: no"),
    ],
)
def test_the_model_is_saved_before_comparison_and_picture(
    run, monkeypatch, owner, name, error, said
):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(owner, name, fail)
    result = run(*SHORT, code=130 if said == "interrupted" else 1)
    assert result.stderr == f"{said}; {MODEL} is saved\n"
    assert Forecaster.load(MODEL, "numpy").settings.window == 12


def test_an_interrupt_before_the_model_is_saved(run, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupt)
    assert run(*SHORT, code=130).stderr == "interrupted; nothing was saved\n"
    assert not (tmp_path / MODEL).exists()


# Readers who go away


@contextlib.contextmanager
def closed_pipe():
    """A stream whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_a_reader_who_goes_away_costs_no_training(tmp_path):
    """As `xlstm train | head -1`, which ends with the first line; a full disk; and a terminal
    without a letter.
    """
    with closed_pipe() as pipe:
        assert command(tmp_path, *SHORT, stdout=pipe) == (141, "")
    assert sorted(os.listdir(tmp_path / "xlstm-output")) == ["forecast.png", "model.safetensors"]
    with open("/dev/full", "w") as full:
        found = [command(tmp_path, *SHORT, "-o", "full", stdout=full)]
    found.append(
        command(tmp_path, *SHORT, "-o", "ascii", stdout=subprocess.DEVNULL, coding="ascii")
    )
    for (code, errors), folder, words in zip(
        found, ("full", "ascii"), ("No space left", "'ascii' codec"), strict=True
    ):
        assert code == 1
        assert errors.startswith(f"error: the results could not be printed, {words}")
        assert errors.endswith(
            f"; {folder}/model.safetensors is saved; {folder}/forecast.png is saved\n"
        )


def test_readers_who_go_away_end_a_command_quietly(tmp_path):
    model = xlstm.xLSTMLanguageModel(xlstm.LSTM(4, 4), vocab_size=5)
    xlstm.models.save(tmp_path / "l", model, model.init(backend="numpy"))
    with closed_pipe() as pipe:
        assert command(tmp_path, "generate", "l", "--prompt", "1", stdout=pipe) == (141, "")
    shell = f"{sys.executable} -m xlstm generate l --prompt 1 >&-"
    done = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True)
    words = "error: generate: standard output is closed, there is nowhere to print to\n"
    assert (done.returncode, done.stderr) == (2, words)


@pytest.fixture
def no_waiting():
    """A reader of a pipe would wait for ever for somebody who writes to it; here, for a minute."""

    def ends(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ends)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@needs_pipes
@pytest.mark.usefixtures("no_waiting")
def test_a_pipe_in_the_folder_of_a_run(run, tmp_path):
    (tmp_path / "r").mkdir()
    os.mkfifo(tmp_path / "r/history.jsonl")
    assert "r/history.jsonl: it is not a regular file\n" in run(*TEXT, "-o", "r", code=2).stderr


@needs_pipes
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("words", ["p.csv", "p.parquet", "text p.txt"])
def test_pipes_with_names_are_refused_before_they_are_opened(run, tmp_path, words):
    name = split(words)[-1]
    os.mkfifo(tmp_path / name)
    errors = run(f"train {words}", code=2).stderr
    assert (
        f"{name}: it is a pipe with a name, to which perhaps nobody writes; expected a file"
        in errors
    )


# Signals and warnings

# The command with a signal, or two, after its third step. The second one comes while the run is
# saved.
SIGNALS = """
import signal, sys
from xlstm.training import loop
numbers = [getattr(signal, name) for name in sys.argv.pop(1).split()]
count, save = loop.TrainingRun._count, loop.TrainingRun._save
def _count(self, taken):
    stop = count(self, taken)
    if self.total == 3 and numbers:
        signal.raise_signal(numbers[0])
    return stop
def _save(self, *rest):
    if self.total == 3 and numbers[1:]:
        signal.raise_signal(numbers.pop())
    save(self, *rest)
loop.TrainingRun._count, loop.TrainingRun._save = _count, _save
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
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    run, tmp_path, monkeypatch, number, args
):
    monkeypatch.setenv("XLSTM_COMPILE", "0")  # as in the process that is stopped
    run(*args, "-o", "whole")
    code, errors = stopped(tmp_path, [number], [*args, "-o", "o u t"])
    assert code == 128 + number
    words = " ".join(map(str, [*args, "-o", "'o u t'", "--resume"]))
    cause = "interrupted" if number == signal.SIGINT else "terminated"
    assert errors == f"{cause}; o u t/model.safetensors is saved; go on with: xlstm {words}\n"
    assert [line["total"] for line in read_history(tmp_path / "o u t/history.jsonl")] == [1, 2, 3]
    run(*args, "-o", "o u t", "--resume")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (
        tmp_path / "o u t/model.safetensors"
    ).read_bytes()


ALONE = [*SHORT, "--batch-size", "32"]


@pytest.mark.parametrize("args", [ALONE, TEXT], ids=["a model alone", "a run"])
def test_the_model_that_is_overwritten_stays_until_the_new_one_is_complete(
    run, tmp_path, monkeypatch, args
):
    monkeypatch.setenv("XLSTM_COMPILE", "0")  # as in the process that is stopped
    folder = tmp_path / "out"
    model = folder / "model.safetensors"
    run(*args, "-o", "out")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for wrong in (["--hidden-size", "0"], ["--graph", "on"]):
        run(*args, "-o", "out", "--overwrite", *wrong, code=2)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    anew = [*args, "--seed", "1", "-o", "out"]
    code, errors = stopped(tmp_path, [signal.SIGINT], [*anew, "--overwrite"])
    assert (code, model.read_bytes()) == (130, before[model])
    if args is ALONE:
        assert errors == "interrupted; nothing was saved\n"
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
        run(*anew, "--overwrite")
    else:
        assert errors == f"interrupted; go on with: xlstm {' '.join(anew)} --resume\n"
        assert [line["total"] for line in read_history(folder / "history.jsonl")] == [1, 2, 3]
        run(*anew, "--resume")
    run(*anew[:-1], "whole")
    assert (
        model.read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes() != before[model]
    )


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_stops_at_once(tmp_path, second):
    cause = "interrupted" if second == signal.SIGINT else "terminated"
    assert stopped(tmp_path, [signal.SIGINT, second], TEXT) == (
        128 + second,
        f"{cause}; nothing was saved\n",
    )
    assert sorted(os.listdir(tmp_path / "xlstm-text")) == ["history.jsonl"]
