"""The command line, as a user meets it: output, files, exit codes and one-line errors."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import xlstm
from xlstm import plots, training
from xlstm.cli.app import app
from xlstm.data.series import bundled, read_csv
from xlstm.estimators import Forecaster
from xlstm.training import loop

QUICK = ["--epochs", "2", "--window", "12", "--hidden-size", "4", "--backend", "numpy"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args):
        return CliRunner().invoke(app, [str(a) for a in args])

    return run


def test_train_then_predict(run, tmp_path):
    result = run("train", *QUICK)
    assert result.exit_code == 0, result.output
    assert "backend: numpy on CPU, float32 (asked for)" in result.output
    assert "sunspots, 2820 months from 1749-01 to 1983-12" in result.output
    for words in ("1 month ahead", "LSTM", "persistence", "20.09", "autoregression of 24", "18.21"):
        assert words in result.output
    assert sorted(os.listdir(tmp_path / "xlstm-output")) == ["forecast.png", "model.safetensors"]
    assert (tmp_path / "xlstm-output" / "forecast.png").read_bytes().startswith(b"\x89PNG")

    result = run("predict", "xlstm-output/model.safetensors", bundled("sunspots"), "--steps", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["time", "1984-01", "1984-02", "1984-03"]
    loaded = Forecaster.load("xlstm-output/model.safetensors", "numpy")
    values = loaded.predict(np.loadtxt(bundled("sunspots"), delimiter=",", skiprows=1, usecols=1), 3)
    np.testing.assert_allclose([float(line.split(",")[1]) for line in lines[1:]], values, rtol=1e-5)


def test_a_csv_with_gaps_and_a_horizon(run):
    result = run("train", bundled("co2"), *QUICK, "--horizon", 8, "-o", "deep/er")
    assert result.exit_code == 0, result.output
    assert "2284 weeks from 1958-03-29 to 2001-12-29, 59 of them gaps" in result.output
    assert "8 weeks ahead" in result.output
    result = run("predict", "deep/er/model.safetensors", bundled("co2"))
    assert len(result.stdout.splitlines()) == 9


def test_several_columns(run, tmp_path):
    rows = "".join(f"2001-{1 + k // 28:02}-{1 + k % 28:02},{k % 7},{k * 0.1 + k % 3}\n" for k in range(300))
    (tmp_path / "two.csv").write_text("day,a,b\n" + rows)
    result = run("train", "two.csv", *QUICK)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "several columns hold numbers, choose one of a, b with --column" in result.stderr
    assert run("train", "two.csv", *QUICK, "--column", "b").exit_code == 0
    result = run("predict", "xlstm-output/model.safetensors", "two.csv")  # b, as it was trained on
    assert result.stdout.startswith("time,b\n")
    assert run("predict", "xlstm-output/model.safetensors", "two.csv", "--column", "a").stdout.startswith("time,a\n")


def test_how_a_table_is_written_is_said(run, tmp_path):
    rows = "".join(f"01/{1 + k % 12:02}/{1990 + k // 12}\t{k % 7},{k % 3}\n" for k in range(200))
    (tmp_path / "s.csv").write_text("Datum\tgr\u00f6\u00dfe\n" + rows, encoding="utf-16")
    said = ["--encoding", "utf-16", "--date-format", "%d/%m/%Y", "--decimal", ","]
    for count, words in enumerate(
        ("in utf-16 or latin-1", "say its format with --date-format", "say so with --decimal ,")
    ):
        result = run("train", "s.csv", *QUICK, *said[: (0, 2, 4)[count]])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert words in result.stderr
    result = run("train", "s.csv", *QUICK, *said)
    assert result.exit_code == 0, result.output
    assert "gr\u00f6\u00dfe, 200 months from 1990-01-01 to 2006-08-01" in result.output
    model = "xlstm-output/model.safetensors"
    result = run("predict", model, "s.csv", "--steps", 1, *said)
    assert result.stdout.splitlines()[1].startswith("2006-09-01,"), result.output
    assert run("evaluate", model, "s.csv", *said).exit_code == 0
    result = run("train", "forecast", "s.csv", *QUICK, *said)
    assert result.exit_code == 0, result.output
    options = (tmp_path / "xlstm-forecast/options.toml").read_text()
    assert 'date-format = "%d/%m/%Y"\n' in options
    assert 'decimal = ","\nencoding = "utf-16"\n' in options
    again = run("train", "s.csv", *QUICK, "--config", "xlstm-forecast/options.toml", "-o", "again")
    assert "200 months from 1990-01" in again.output
    assert run("predict", model, "s.csv", "--encoding", "hex").stderr.startswith("error: encoding is 'hex'")


def test_sequences_of_a_table_with_decimal_commas(run, tmp_path):
    rows = "".join(f"3{k % 2}.1.2024;{k % 2},5;{k},25;k\u00e4se{k % 2}\n" for k in range(40))
    (tmp_path / "t.csv").write_text("tag;a;b;art\n" + rows, encoding="latin-1")
    said = ["--encoding", "latin-1", "--date-format", "%d.%m.%Y", "--decimal", ","]
    result = run("train", "classify", "t.csv", "--label", "art", "--epochs", 2, "--backend", "numpy", *said)
    assert result.exit_code == 0, result.output
    model = "xlstm-classify/model.safetensors"
    result = run("predict", model, "t.csv", *said)
    assert "p(k\u00e4se0)" in result.stdout
    assert run("evaluate", model, "t.csv", *said).exit_code == 0
    result = run("predict", model, "t.csv", *said[:4], "--decimal", ".")
    assert "column a holds '0,5'" in result.stderr


def test_info(run):
    result = run("info")
    assert result.exit_code == 0
    for words in (xlstm.__version__, np.__version__, "backend numpy", "backend cupy", "auto chooses"):
        assert words in result.output


def test_same_seed_same_file(run, tmp_path):
    for folder in "ab":
        assert run("train", *QUICK, "--seed", 4, "-o", folder).exit_code == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "absent.csv"], "absent.csv"),
        (["train", "empty.csv"], "empty.csv: the file is empty"),
        (["train", "one.csv"], "one.csv: 1 rows under the header"),
        (["train", "nan.csv"], "nan.csv: line 3, column v holds 'nan'"),
        (["train", "constant.csv"], "constant at 5"),
        (["train", "folder"], "folder"),
        (["train", "--column", "moon"], "column 'moon' is not in the header"),
        (["train", "--window", "3000"], "a window of 3000"),
        (["train", "--window", "0"], "window is 0"),
        (["train", "--hidden-size", "-3"], "hidden_size is -3"),
        (["train", "--epochs", "0"], "epochs is 0"),
        (["train", "--learning-rate", "0"], "learning_rate is 0.0, expected 0 < learning_rate"),
        (["train", "--learning-rate", "1e30"], "is not finite"),
        (["train", "--seed", "-1"], "seed: expected a whole number from 0 up, got -1"),
        (["train", "--backend", "abacus"], "'abacus' is not a backend"),
        (["train", "--backend", "numpy", "--dtype", "float16"], "float16 on a CPU"),
        (["train", "--dtype", "int8"], "dtype 'int8'"),
        (["train", "-o", "one.csv"], "one.csv"),
        (["train", "-o", "/proc/xlstm"], "/proc/xlstm"),
        (["predict", "absent", "one.csv"], "absent: no such file"),
        (["predict", "garbage", "one.csv"], "garbage: not a readable safetensors file"),
        (["predict", "other", "one.csv"], "other: not an xlstm model file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, args, words):
    from safetensors.numpy import save_file

    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "one.csv").write_text("date,v\n2001,1\n")
    (tmp_path / "nan.csv").write_text("date,v\n2001,1\n2002,nan\n2003,3\n")
    (tmp_path / "constant.csv").write_text("v\n" + "5\n" * 500)
    (tmp_path / "folder").mkdir()
    (tmp_path / "garbage").write_bytes(b"garbage")
    save_file({"a": np.ones(1)}, tmp_path / "other")
    (tmp_path / "xlstm-output").mkdir()
    (tmp_path / "xlstm-output/model.safetensors").write_text("precious")
    if "--backend" not in args:
        args = [*args, "--backend", "numpy"]
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in result.output
    assert (tmp_path / "xlstm-output/model.safetensors").read_text() == "precious"


TRAIN = [sys.executable, "-m", "xlstm", "train", *QUICK[2:]]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A model as the command writes it."""
    folder = tmp_path_factory.mktemp("before")
    subprocess.run([*TRAIN, "--epochs", "1", "-o", str(folder)], check=True, capture_output=True)
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("delay", [0.5, 1.5, 2.5])
def test_killed_training_leaves_the_old_model(tmp_path, before, delay):
    model = tmp_path / "model.safetensors"
    model.write_bytes(before)
    command = [*TRAIN, "--epochs", "3", "--seed", "1", "-o", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    after = Forecaster.load(model, "numpy")  # whole, whether old or new
    assert model.read_bytes() == before or after.settings.seed == 1


def command(folder, *args, coding="utf-8", **options):
    """The command line in a process of its own."""
    environment = {**os.environ, "XLSTM_COMPILE": "0", "PYTHONIOENCODING": coding}
    whole = [sys.executable, "-m", "xlstm", *map(str, args)]
    return subprocess.run(whole, cwd=folder, text=True, env=environment, stderr=subprocess.PIPE, timeout=120, **options)


@contextlib.contextmanager
def closed_pipe():
    """A stream whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_a_reader_who_goes_away_costs_no_training(tmp_path):
    """As `xlstm train | head -1`, which ends with the first line."""
    with closed_pipe() as pipe:
        done = command(tmp_path, "train", *QUICK, stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")
    assert sorted(os.listdir(tmp_path / "xlstm-output")) == ["forecast.png", "model.safetensors"]
    with open("/dev/full", "w") as full:
        done = command(tmp_path, "train", *QUICK, "-o", "full", stdout=full)
    assert done.returncode == 1
    words = "error: the results could not be printed, No space left on device; "
    assert done.stderr == f"{words}full/model.safetensors is saved, full/forecast.png is saved\n"
    assert sorted(os.listdir(tmp_path / "full")) == ["forecast.png", "model.safetensors"]
    rows = "".join(f"{k % 7}\n" for k in range(100))
    (tmp_path / "s.csv").write_text("\u03bb\n" + rows, encoding="utf-8")
    done = command(tmp_path, "train", "s.csv", *QUICK, "-o", "ascii", stdout=subprocess.DEVNULL, coding="ascii")
    assert done.returncode == 1
    assert "error: the results could not be printed, 'ascii' codec can't encode" in done.stderr
    assert done.stderr.endswith("ascii/model.safetensors is saved, ascii/forecast.png is saved\n")


@pytest.mark.parametrize(
    "args", [["info"], ["predict", "m", bundled("sunspots")], ["generate", "l", "--prompt", "1 2"]]
)
def test_readers_who_go_away_end_a_command_quietly(tmp_path, args):
    if args[0] == "predict":
        forecaster = Forecaster(window=12, hidden_size=2, epochs=1, backend="numpy", name="sunspots")
        forecaster.fit(np.sin(np.arange(100.0))).save(tmp_path / "m")
    if args[0] == "generate":
        model = xlstm.xLSTMLanguageModel(xlstm.LSTM(4, 4), vocab_size=5)
        xlstm.models.save(tmp_path / "l", model, model.init(backend="numpy"))
    with closed_pipe() as pipe:
        done = command(tmp_path, *args, stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")
    if args[0] != "info":
        shell = f"{sys.executable} -m xlstm {' '.join(map(str, args)).replace('1 2', repr('1 2'))} >&-"
        done = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (
            2,
            f"error: {args[0]}: standard output is closed, there is nowhere to print to\n",
        )


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("no"), RuntimeError("no")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("where", ["score", "forecast"])
def test_the_model_is_saved_before_comparison_and_picture(run, tmp_path, monkeypatch, where, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(*((Forecaster, "score") if where == "score" else (plots, "forecast")), fail)
    result = run("train", *QUICK)
    what = {"KeyboardInterrupt": "interrupted", "ValueError": "error: no", "RuntimeError": "error: RuntimeError: no"}
    files = "xlstm-output/model.safetensors is saved, xlstm-output/forecast.png is not saved"
    assert result.stderr == f"{what[type(error).__name__]}; {files}\n"
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert Forecaster.load(tmp_path / "xlstm-output/model.safetensors", "numpy").settings.window == 12


def test_an_interrupt_before_the_model_is_saved(run, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupt)
    (tmp_path / "xlstm-output").mkdir()
    (tmp_path / "xlstm-output/model.safetensors").write_text("precious")
    result = run("train", *QUICK)
    assert (result.exit_code, result.stderr) == (130, "interrupted; nothing was saved\n")
    assert (tmp_path / "xlstm-output/model.safetensors").read_text() == "precious"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(training.Interrupted, 130, "interrupted; "), (training.Terminated, 143, "terminated; ")],
)
def test_a_signal_while_training_saves_the_best_so_far(run, tmp_path, monkeypatch, error, code, words):
    fit = Forecaster.fit

    def stop(forecaster, *args, **options):
        fit(forecaster, *args, **options)
        raise error("stopped", forecaster.trained_, code - 128)

    monkeypatch.setattr(Forecaster, "fit", stop)
    result = run("train", *QUICK)
    assert result.exit_code == code
    assert f"{words}xlstm-output/model.safetensors is saved" in result.stderr
    assert Forecaster.load(tmp_path / "xlstm-output/model.safetensors", "numpy").settings.window == 12


def test_a_picture_is_whole_or_not_at_all(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(figure, path, **options):
        Path(path).write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    (tmp_path / "p.png").write_text("old")
    series = read_csv(bundled("sunspots"))
    with pytest.raises(OSError, match=r"not saved, No space left on device: .*p\.png"):
        plots.save(plots.forecast(series, np.arange(100), series.values[:100]), tmp_path / "p.png")
    assert os.listdir(tmp_path) == ["p.png"]
    assert (tmp_path / "p.png").read_text() == "old"


@pytest.mark.parametrize(("cell", "words"), [("1e300", "values[280] is 1e+300"), ("1e40", "values[280] is 1e+40")])
def test_a_value_out_of_all_proportion_is_dated(run, tmp_path, cell, words):
    values = [f"{k % 7}" for k in range(300)]
    values[280] = cell
    dates = np.datetime64("2001-01-01") + np.arange(300)
    rows = "".join(f"{date},{value}\n" for date, value in zip(dates, values, strict=True))
    (tmp_path / "s.csv").write_text("day,v\n" + rows)
    result = run("train", "s.csv", *QUICK)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: v, day 2001-10-08: Forecaster: {words}")
    assert not (tmp_path / "xlstm-output").exists()


def test_two_processes_train_into_one_folder(tmp_path):
    whole = [sys.executable, "-m", "xlstm", "train", *QUICK]
    environment = {**os.environ, "XLSTM_COMPILE": "0"}
    both = [subprocess.Popen([*whole, "--seed", str(seed)], cwd=tmp_path, env=environment) for seed in (1, 2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert sorted(os.listdir(tmp_path / "xlstm-output")) == ["forecast.png", "model.safetensors"]
    assert Forecaster.load(tmp_path / "xlstm-output/model.safetensors", "numpy").settings.seed in (1, 2)
