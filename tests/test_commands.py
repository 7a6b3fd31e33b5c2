"""Commands of text, classification and runs, files of options, and how commands refuse wrong input."""

import json
import os
import signal
import subprocess
import sys
import tomllib
import typing
from importlib.util import find_spec

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import xlstm
from xlstm.cli import sources
from xlstm.cli.app import app
from xlstm.cli.console import out, put
from xlstm.data.files import write_table
from xlstm.data.series import bundled
from xlstm.estimators import (
    Forecaster,
    SequenceClassifier,
    SequenceRegressor,
    Settings,
    TextModel,
    TiRexTrainer,
    plots,
)
from xlstm.plots.results import counted
from xlstm.training import checkpoint
from xlstm.training.folder import read_history

TEXT = ["train", "text", "a.txt", "--backend", "numpy", "--hidden-size", 8, "--embedding-size", 4, "--batch-size", 4]
TEXT += ["--length", 8, "--steps", 12, "--sample", 5]
CLASSES = ["train", "classify", "long.csv", "--label", "kind", "--sequence", "id", "--backend", "numpy"]
CLASSES += ["--hidden-size", 8, "--epochs", 2]
SMALL = ["--hidden-size", 8, "--batch-size", 4, "--length", 8]
SERIES = ["train", "forecast", bundled("sunspots"), "--backend", "numpy", "--window", 12, "--epochs", 1]
SERIES += ["--hidden-size", 3]
TIREX = ["train", "tirex", "--backend", "numpy", "--size", 8, "--num-heads", 2, "--num-blocks", 1, "--patch-size", 4]
TIREX += ["--context-length", 32, "--horizon", 8, "--batch-size", 4, "--steps", 7, "--every", 4]
VERSE = "the cat sat on the mat and saw a rat. " * 30


def steps_of_sequences(seed=0):
    """60 sequences of two classes, which rise and fall."""
    rng = np.random.default_rng(seed)
    columns = {"id": [], "kind": [], "day": [], "x": [], "y": []}
    for k in range(60):
        for t in range(rng.integers(4, 9)):
            row = (f"s{k}", ("down", "up")[k % 2], f"2024-01-{t + 1:02}", (2 * (k % 2) - 1) * t, rng.normal())
            for name, cell in zip(columns, row, strict=True):
                columns[name].append(cell)
    return columns


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(VERSE)
    write_table("long.csv", steps_of_sequences())

    def run(*args, code=0):
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.exit_code == code, result.output + str(result.exception)
        return result

    return run


def test_text(run, tmp_path):
    result = run(*TEXT)
    for words in (
        "trained: 12 batches",
        "nats a character, perplexity",
        "model: xlstm-text/model.safetensors",
        "sample:\nt",
    ):
        assert words in result.stdout
    assert sorted(os.listdir(tmp_path / "xlstm-text"))[:3] == ["history.jsonl", "model.safetensors", "options.toml"]
    model = TextModel.load("xlstm-text/model.safetensors", "numpy")
    result = run("generate", "xlstm-text/model.safetensors", "--prompt", "the c", "--max-tokens", 7)
    assert result.stdout == model.generate("the c", 7, temperature=0) + "\n"
    assert run("generate", "xlstm-text", "--prompt", "the c", "--max-tokens", 7).stdout == result.stdout  # its folder
    (tmp_path / "b.txt").write_text("a rat sat on the cat")
    found = json.loads(run("evaluate", "xlstm-text/model.safetensors", "b.txt", "--json").stdout)
    assert found["kind"] == "text model"
    assert found["nats"] == model.nats("a rat sat on the cat")
    assert found["perplexity"] == pytest.approx(np.exp(found["nats"]))
    assert (
        f"b.txt: {found['nats']:.4f} nats a character"
        in run("evaluate", "xlstm-text/model.safetensors", "b.txt").stdout
    )


def test_a_longer_run_goes_on_where_the_shorter_one_ended(run, tmp_path):
    run(*TEXT, "-o", "one", "--steps", 32, "--every", 5)  # one pass over the text
    found = json.loads(run(*TEXT, "-o", "one", "--steps", 40, "--resume", "--json").stdout)
    other = json.loads(run(*TEXT, "-o", "two", "--steps", 40, "--json").stdout)
    assert found["steps"] == other["steps"] == 40
    assert found["nats"] == other["nats"]
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert len(read_history(tmp_path / "one/history.jsonl")) == len(read_history(tmp_path / "two/history.jsonl"))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_classes_of_sequences_by_steps(run, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        pytest.importorskip("narwhals")
        write_table("long.parquet", steps_of_sequences())
    words = [f"long.{suffix}" if word == "long.csv" else word for word in CLASSES]
    result = run(*words, "--epochs", 30, "--columns", "x")
    assert "on 48 sequences" in result.stdout
    assert "accuracy: 100.00% of 12 sequences" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if "down" in line or "up" in line]
    assert rows[1][1::2] == ["down", "6", "0"]
    assert rows[2][1::2] == ["up", "0", "6"]
    model = "xlstm-classify/model.safetensors"
    found = json.loads(run("evaluate", model, f"long.{suffix}", "--json").stdout)
    assert found == {
        **{"kind": "sequence classifier", "sequences": 60, "accuracy": 1.0, "classes": ["down", "up"]},
        "confusion": [[30, 0], [0, 30]],
    }
    lines = run("predict", model, f"long.{suffix}").stdout.splitlines()
    assert lines[0] == "id,kind,p(down),p(up)"
    assert [line.split(",")[:2] for line in lines[1:4]] == [["s0", "down"], ["s1", "up"], ["s2", "down"]]
    first = [float(cell) for cell in lines[1].split(",")[2:]]
    assert sum(first) == pytest.approx(1)
    assert first[0] > 0.5
    run("predict", model, f"long.{suffix}", "-o", f"found.{suffix}")
    again = sources.read_names(f"found.{suffix}", "kind").tolist()
    assert again == ["down", "up"] * 30


def test_sequences_are_put_together_in_the_order_of_their_rows(tmp_path):
    """Rows of several sequences may alternate; columns of dates are no features, and may begin anew."""
    cells = {"id": [*"babab"], "kind": [*"21212"], "day": ["2024-01-01"] * 5, "x": [1, 2, 3, 4, 5], "y": [0.5] * 5}
    write_table(tmp_path / "t.csv", cells)
    layout = sources.Layout.of(tmp_path / "t.csv", "kind", "id", None)
    assert layout.features == ["x", "y"]
    found = layout.read(tmp_path / "t.csv")
    assert (found.names, found.labels.tolist()) == (["b", "a"], ["2", "1"])
    assert [rows[:, 0].tolist() for rows in found.sequences] == [[1, 3, 5], [2, 4]]


def test_held_out_sequences_are_the_same_share_of_each_class():
    labels = np.array(["a"] * 30 + ["b"] * 10)
    rows, test = sources.held_out(labels, 0.2, 0)
    assert sorted([*rows, *test]) == list(range(40))
    assert labels[test].tolist() == ["a"] * 6 + ["b"] * 2
    assert sources.held_out(labels, 0.2, 1)[1].tolist() != test.tolist()
    assert sources.held_out(labels, 0.0, 0)[1].tolist() == []


def test_confusion_has_a_row_for_each_label():
    truth, found = np.array(["a", "a", "b", "a"]), np.array(["b", "b", "b", "a"])
    assert counted(truth.tolist(), found.tolist(), ["a", "b", "c"]).tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]


def test_classes_of_rows(run):
    rng = np.random.default_rng(0)
    table = {"label": [f"{k % 3}" for k in range(60)]}
    table |= {f"t{t}": [(k % 3 - 1) * t + 0.1 * rng.normal() for k in range(60)] for t in range(5)}
    write_table("wide.csv", table)
    words = ("train", "classify", "wide.csv", "--label", "label", "--backend", "numpy", "--epochs", 30, "--json")
    found = json.loads(run(*words, "--hidden-size", 8).stdout)
    assert found["accuracy"] == 1.0
    assert found["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    lines = run("predict", found["model"], "wide.csv").stdout.splitlines()
    assert lines[0] == "row,label,p(0),p(1),p(2)"
    assert [line.split(",")[:2] for line in lines[1:5]] == [["1", "0"], ["2", "1"], ["3", "2"], ["4", "0"]]


def test_forecasts_as_a_table_and_their_errors(run):
    fitted = Forecaster(Settings(12, 3, hidden_size=2, epochs=1), "numpy", name="sunspots")
    fitted.fit(np.sin(np.arange(100.0))).save("m")
    printed = run("predict", "m", bundled("sunspots"), "--steps", 3).stdout
    run("predict", "m", bundled("sunspots"), "--steps", 3, "--output", "p.csv")
    with open("p.csv") as file:
        assert file.read() == printed
    lines = run("predict", "m", bundled("sunspots"), "--steps", 2, "--intervals").stdout.splitlines()
    assert lines[0] == "time,sunspots," + ",".join(f"sunspots 0.{k}" for k in range(1, 10))
    assert [line.split(",")[:2] for line in lines[:3]] == [line.split(",") for line in printed.splitlines()[:3]]
    shares = [[float(cell) for cell in line.split(",")[2:]] for line in lines[1:]]
    assert np.all(np.diff(shares, axis=1) >= 0)
    found = json.loads(run("evaluate", "m", bundled("sunspots"), "--json").stdout)
    assert (found["kind"], found["forecasts"]) == ("forecaster", 564)
    assert len(found["coverage"]) == 3
    assert found["rmse"]["persistence"][0] == pytest.approx(20.09, abs=0.01)
    assert "20.09" in run("evaluate", "m", bundled("sunspots")).stdout


def test_options_of_a_file(run, tmp_path):
    """The command line beats the file; --save-config writes what --config reads, required options too."""
    (tmp_path / "o.toml").write_text('cell = "gru"\nsteps = 3\nlearning-rate = 1\nhidden-size = 6\n')
    run(*[word for word in TEXT if word != "--steps" and word != 12], "--config", "o.toml", "--save-config", "s.toml")
    model = TextModel.load("xlstm-text/model.safetensors", "numpy")
    assert (model.cell, model.steps, model.learning_rate, model.hidden_size) == ("gru", 3, 1.0, 8)
    saved = tomllib.loads((tmp_path / "s.toml").read_text())
    assert (saved["cell"], saved["steps"], saved["hidden-size"], saved["embedding-size"]) == ("gru", 3, 8, 4)
    assert not {"config", "save-config", "resume", "json", "quiet", "file"} & saved.keys()
    assert (tmp_path / "xlstm-text/options.toml").read_text() == (tmp_path / "s.toml").read_text()
    run("train", "text", "a.txt", "--config", "s.toml", "-o", "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "xlstm-text/model.safetensors"
    ).read_bytes()
    run(*CLASSES, "--no-standardize", "--save-config", "c.toml")
    run("train", "classify", "long.csv", "--config", "c.toml", "-o", "other")
    assert SequenceClassifier.load("other/model.safetensors", "numpy").standardize is False


def test_options_of_the_main_job(run, tmp_path):
    (tmp_path / "o.toml").write_text('epochs = 1\nwindow = 12\nhidden-size = 3\nbackend = "numpy"\noutput = "out"\n')
    result = run("train", "--config", "o.toml", "--window", 10)
    assert "1 month ahead" in result.stdout
    settings = Forecaster.load("out/model.safetensors", "numpy").settings
    assert (settings.epochs, settings.window, settings.hidden_size) == (1, 10, 3)
    result = run("train", "forecast", bundled("sunspots"), "--config", "o.toml", "-o", "run", "--quiet")
    assert result.output == ""
    files = {"model.safetensors"} | ({"forecast.png"} if plots.available() else set())
    assert {*os.listdir(tmp_path / "out")} == files
    assert files | {"history.jsonl", "options.toml"} <= {*os.listdir(tmp_path / "run")}


def test_a_forecaster_of_all_options(run):
    words = [
        "--cell",
        "gru",
        "--num-layers",
        2,
        "--dropout",
        0.1,
        "--linear-baseline",
        5,
        "--season",
        12,
        "--least",
        -3,
    ]
    words += ["--no-refit", "--scaling", "series", "--horizon", 4, "--epochs", 1, "--window", 12, "--hidden-size", 3]
    run("train", "forecast", bundled("sunspots"), *words, "--backend", "numpy", "--quiet")
    settings = Forecaster.load("xlstm-forecast/model.safetensors", "numpy").settings
    assert (settings.cell, settings.num_layers, settings.dropout, settings.linear_baseline) == ("gru", 2, 0.1, 5)
    assert (settings.season, settings.least, settings.refit, settings.scaling) == (12, -3.0, False, "series")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz = 3", "o.toml: key 'stepz' is unknown, expected some of output, resume, sample"),
        ('steps = "3"', "o.toml: steps is '3', expected a whole number"),
        ("steps = 3.5", "o.toml: steps is 3.5, expected a whole number"),
        ("steps = true", "o.toml: steps is True, expected a whole number"),
        ("learning-rate = 'fast'", "o.toml: learning-rate is 'fast', expected a number"),
        ("cell = 3", "o.toml: cell is 3, expected text"),
        ("resume = 1", "o.toml: resume is 1, expected true or false"),
        ("output = []", "o.toml: output is [], expected text"),
        ("config = 'p.toml'", "o.toml: key 'config' is unknown"),
        ("[model]\ncell = 'gru'", "o.toml: key 'model' is unknown"),
        ("steps: 3", "o.toml: not a readable TOML file (Expected '=' after a key"),
        ("a = " + "[" * 5000, "o.toml: not a readable TOML file"),
        ("steps = 0", "steps is 0"),
        ("cell = 'nosuch'", "cell is 'nosuch', expected one of lstm, gru"),
        (b"\xff", "o.toml: not a readable TOML file"),
    ],
)
def test_wrong_files_of_options(run, tmp_path, text, words):
    (tmp_path / "o.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    result = run("train", "text", "a.txt", *SMALL, "--backend", "numpy", "--config", "o.toml", code=2)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not (tmp_path / "xlstm-text").exists()


WRONG = [
    (["train", "nosuch.csv"], "nosuch.csv"),
    (["train", "text"], "Missing argument"),
    (["train", "text", "nosuch.txt"], "error: nosuch.txt: No such file or directory"),
    (["train", "text", "."], "Is a directory"),
    (["train", "text", "empty"], "empty: the file is empty, expected a text"),
    (["train", "text", "binary"], "binary: not UTF-8 text (invalid start byte at byte 0)"),
    (["train", "text", "short.txt"], "the text has 4 tokens to learn from, expected 8193 or more"),
    (["train", "text", "short.txt", "--resume"], "xlstm-text: holds no run to resume"),
    (["train", "text", "a.txt", *SMALL, "-o", "empty"], "error: empty: it is a file, expected a folder"),
    (["train", "text", "a.txt", *SMALL, "-o", "empty/x"], "empty/x"),
    (["train", "text", "a.txt", *SMALL, "-o", "/proc/xlstm"], "/proc/xlstm"),
    (["train", "text", "a.txt", *SMALL, "-o", "there"], "there: holds a run already; --resume goes on with it"),
    (["train", "text", "a.txt", *SMALL, "-o", "there", "--resume"], "is of another run: its model is"),
    (["train", "text", "a.txt", *SMALL, "-o", "busy"], "busy/model.safetensors: not saved, it is a folder"),
    (["train", "text", "a.txt", *SMALL, "--cell", "lstmm"], "cell is 'lstmm', expected one of lstm, gru, rnn"),
    (["train", "text", "a.txt", *SMALL, "--steps", "0"], "steps is 0"),
    (["train", "text", "a.txt", *SMALL, "--steps", "many"], "Invalid value for '--steps'"),
    (["train", "text", "a.txt", *SMALL, "--schedule", "linear"], "schedule is 'linear', expected one of constant, co"),
    (["train", "text", "a.txt", *SMALL, "--dropout", "1.5"], "dropout is 1.5"),
    (["train", "text", "a.txt", *SMALL, "--tokens", "words"], "tokens is 'words', expected 'characters', 'bytes' or"),
    (["train", "text", "a.txt", *SMALL, "--every", "0"], "every is 0"),
    (["train", "text", "a.txt", *SMALL, "--sample", "-1"], "Invalid value for '--sample'"),
    (["train", "text", "a.txt", *SMALL, "--lr", "0"], "learning_rate is 0.0, expected 0 < learning_rate"),
    (["train", "text", "a.txt", "--stepz", "3"], "No such option"),
    (["train", "text", "a.txt", "--config", "nosuch.toml"], "error: nosuch.toml: No such file or directory"),
    (["train", "text", "a.txt", *SMALL, "--save-config", "no/o.toml"], "no/o.toml"),
    (["train", "classify", "long.csv"], "Missing option '--label'"),
    (["train", "classify", "nosuch.csv", "--label", "kind"], "error: nosuch.csv: No such file or directory"),
    (["train", "classify", "empty", "--label", "kind"], "empty: the file is empty"),
    (["train", "classify", "header.csv", "--label", "kind"], "header.csv: 0 rows under the header, expected some"),
    (["train", "classify", "long.csv", "--label", "kin"], "column 'kin' is not in the header, which has id, kind, day"),
    (["train", "classify", "long.csv", "--label", "kind", "--sequence", "who"], "column 'who' is not in the header"),
    (["train", "classify", "long.csv", "--label", "kind", "--sequence", "kind"], "label and sequence are both 'kind'"),
    (["train", "classify", "long.csv", "--label", "kind"], "line 2, column id holds 's0', expected a finite number"),
    (["train", "classify", "long.csv", "--label", "kind", "--columns", "x,z"], "column 'z' is not in the header"),
    (["train", "classify", "long.csv", "--label", "kind", "--columns", "kind"], "column 'kind' is label or sequence"),
    (["train", "classify", "one.csv", "--label", "kind"], "all labels are a, expected two classes or more"),
    (["train", "classify", "few.csv", "--label", "kind"], "no class has enough sequences to hold out 20%, the largest"),
    (["train", "classify", "gap.csv", "--label", "kind"], "gap.csv: column 'x' is empty in row 2"),
    (["train", "classify", "nolabel.csv", "--label", "kind"], "nolabel.csv: column 'kind' is empty in row 3"),
    (["train", "classify", "alone.csv", "--label", "kind"], "no column is left for features, the header has kind"),
    (
        ["train", "classify", "mixed.csv", "--label", "kind", "--sequence", "id"],
        "sequence 's' has labels a, b",
    ),
    pytest.param(
        ["train", "classify", "garbage.parquet", "--label", "kind"],
        "garbage.parquet: not a readable Parquet file",
        marks=pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed"),
    ),
    ([*CLASSES, "--test-fraction", "2"], "Invalid value for '--test-fraction'"),
    ([*CLASSES, "--cell", "mlstm", "--bidirectional"], "bidirectional is True, but cell 'mlstm' goes forward"),
    ([*CLASSES, "--backend", "abacus"], "'abacus' is not a backend"),
    ([*CLASSES, "--dtype", "float16"], "float16 on a CPU"),
    ([*CLASSES, "--resume"], "xlstm-classify: holds no run to resume"),
    (["evaluate", "nosuch", "a.txt"], "nosuch: no such file"),
    (["evaluate", "text", "nosuch.txt"], "error: nosuch.txt: No such file or directory"),
    (["train", "nosuch.csv"], "error: nosuch.csv: No such file or directory"),
    (["evaluate", "text", "other.txt"], "'Z' is not one of the"),
    (["evaluate", "text", "a.txt", "--column", "x"], "text: is a text model, --column goes with a forecaster"),
    (["evaluate", "text", "a.txt", "--encoding", "latin-1"], "text: is a text model, --day-first, --month-first"),
    (["evaluate", "classes", "relabelled.csv"], "relabelled.csv: label 'left' is not one of those that classes knows"),
    (["evaluate", "classes", "one.csv"], "one.csv: column 'y' is not in the header"),
    (["evaluate", "plain", "long.csv"], "plain: says nothing of a table, expected a model of `xlstm train classify`"),
    (["predict", "text", "long.csv"], "text: is a text model, which is for xlstm generate, evaluate, inspect, not for"),
    (
        ["evaluate", "values", "long.csv"],
        "values: is a sequence regressor, which is for xlstm inspect, not for xlstm ev",
    ),
    (
        ["generate", "series", "--prompt", "a"],
        "series: is a forecaster, which is for xlstm predict, evaluate, export, ",
    ),
    (
        ["generate", "net", "--prompt", "1"],
        "net: holds LSTM(2, 3), expected a language model; xlstm export and inspect",
    ),
    (["generate", "nosuch", "--prompt", "a"], "error: nosuch: no such file or folder"),
    (["generate", "long.csv", "--prompt", "a"], "error: long.csv: not a readable safetensors file"),
    (["generate", "there", "--prompt", "a"], "error: there: no checkpoint in it, expected model.safetensors"),
    (
        ["forecast", "series", "long.csv"],
        "series: is a forecaster, which is for xlstm predict, evaluate, export, inspec",
    ),
    (
        ["forecast", "net", "long.csv"],
        "net: is a network, which is for xlstm generate, export, inspect, not for xlstm fore",
    ),
    (
        ["predict", "there/step-000000002.safetensors", "long.csv"],
        "is a checkpoint of training, which is for xlstm train ",
    ),
    (
        ["export", "classes", "--to", "onnx"],
        "classes: is a sequence classifier, which is for xlstm predict, evaluate, in",
    ),
    (
        ["export", "text", "--to", "onnx"],
        "text: is a text model, which is for xlstm generate, evaluate, inspect, not for",
    ),
    (
        ["import", "series"],
        "series: is a forecaster, which is for xlstm predict, evaluate, export, inspect, not for xlstm im",
    ),
    (
        ["import", "weights.pt"],
        "weights.pt: a pickled file, which can run code when it is read; save it with safetensors.",
    ),
    (["predict", "classes", "long.csv", "--steps", "3"], "classes: is a classifier, --column, --steps and --interva"),
    (
        ["predict", "series", bundled("sunspots"), "--steps", "9", "--intervals"],
        "intervals end at the horizon, 2",
    ),
    (["train", "forecast", "short.csv"], "Forecaster: "),
    (["train", "forecast", "long.csv"], "several columns hold numbers, choose one of x, y with --column"),
    (["train", "forecast", bundled("co2"), "-o", "there"], "there: holds a run already; --resume goes on with it"),
    (["train", "forecast", bundled("co2"), "-o", "there", "--resume"], "is of another run"),
    (["train", "forecast", bundled("co2"), "--cell", "lstmm"], "'lstmm'"),
    (["train", "forecast", bundled("co2"), "--linear-baseline", "some"], "linear_baseline is 'some'"),
    (["train", "forecast", bundled("co2"), "--horizon", "0"], "horizon is 0"),
    (["predict", "classes", "long.csv", "-o", "p.txt"], "p.txt: ends in '.txt', expected .csv or .parquet"),
    (["predict", "classes", "long.csv", "-o", "no/p.csv"], "no/p.csv"),
    (["generate", "text", "--prompt", "Z"], "'Z' is not one of the"),
    (["generate", "text", "--prompt", ""], "error: "),
    (["generate", "text", "--prompt", "a", "--bytes"], "text: is a text model with tokens of its own, not for --stop"),
    (["generate", "text", "--prompt", "a", "--temperature", "-1"], "temperature is -1"),
    (["runs"], "holds no run, which has a file history.jsonl"),
    (["runs", "nosuch"], "nosuch: no such folder"),
    (["runs", "torn"], "none of the runs has a readable history"),
    (["nosuch"], "No such command 'nosuch'"),
    (["--nosuch"], "No such option"),
    (["bench", "--rounds", "0"], "Invalid value for '--rounds'"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of models and a run, made once."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 4, "embedding_size": 4, "batch_size": 2, "length": 4, "steps": 2, "backend": "numpy"}
    TextModel(**sizes, checkpoints=folder / "there").fit(VERSE).save(folder / "text")
    classifier = SequenceClassifier(hidden_size=4, epochs=1, backend="numpy")
    classifier.fit(np.arange(24.0).reshape(4, 3, 2), ["down", "up"] * 2)
    classifier.save(folder / "plain")
    classifier.save(folder / "classes", {"features": ["x", "y"], "label": "kind", "sequence": "id"})
    regressor = SequenceRegressor(hidden_size=4, epochs=1, backend="numpy")
    regressor.fit(np.arange(24.0).reshape(4, 3, 2), np.arange(4.0)).save(folder / "values")
    net = xlstm.LSTM(2, 3)
    xlstm.models.save(folder / "net", net, net.init(0, "numpy"))
    forecaster = Forecaster(window=4, horizon=2, hidden_size=2, epochs=1, backend="numpy", name="sunspots")
    forecaster.fit(np.sin(np.arange(60.0))).save(folder / "series")
    return folder


@pytest.mark.parametrize(("args", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_wrong_input_is_one_line_and_exit_code_2(run, tmp_path, models, args, words):
    for name in ("text", "plain", "classes", "values", "series", "net"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    if args[0] != "runs" or len(args) > 1:
        (tmp_path / "there").symlink_to(models / "there")
        (tmp_path / "torn").mkdir()
        (tmp_path / "torn/history.jsonl").write_text("nonsense\n")
    (tmp_path / "busy/model.safetensors").mkdir(parents=True)
    files = {
        **{"empty": "", "short.txt": "abcd", "header.csv": "kind,x\n", "one.csv": "kind,x\na,1\na,2\na,3\n"},
        **{
            "few.csv": "kind,x\na,1\nb,2\n",
            "gap.csv": "kind,x\na,1\nb,\nb,3\n",
            "nolabel.csv": "kind,x\na,1\nb,2\n,3\n",
        },
        **{"alone.csv": "kind\na\nb\n", "mixed.csv": "id,kind,x\ns,a,1\ns,b,2\n", "garbage.parquet": "garbage"},
        **{"short.csv": "v\n1\n2\n4\n", "other.txt": "the Zebra", "relabelled.csv": "id,kind,x,y\ns,left,1,2\n"},
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "weights.pt").write_bytes(b"PK\x03\x04 of torch.save")
    before = sorted(os.listdir(tmp_path))
    usual = ["--backend", "numpy"] if args[0] == "train" and len(args) > 2 and "--backend" not in args else []
    result = run(*args, *usual, code=2)
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: "), result.stderr
    assert words in lines[-1]
    assert len(lines) == (2 if "torn" in args else 1)
    assert result.stdout == "" or "another run" in words  # found once it is said what is trained
    assert sorted(os.listdir(tmp_path)) == before


def test_kinds_name_commands_that_there_are():
    known = {*typer.main.get_command(app).commands}
    named = {name for _, commands in sources.KINDS.values() for name in commands}
    assert {name.split()[0] for name in named} <= known


def test_a_model_that_knows_nothing(run):
    """A perplexity beyond all numbers is none."""
    found = json.loads(run(*TEXT, "--lr", "1e5", "--json").stdout)
    assert found["nats"] > 1000
    assert found["perplexity"] is None


def test_quiet_and_json(run):
    assert run(*TEXT, "--quiet").output == ""
    result = run(*TEXT, "-o", "two", "--json", "-q")
    assert json.loads(result.stdout)["model"] == "two/model.safetensors"
    assert result.stderr == ""
    assert out.quiet is False  # it ends with its command


def test_json_of_the_main_job_and_of_the_machine(run):
    words = ["--epochs", 1, "--window", 12, "--hidden-size", 3, "--backend", "numpy", "--json"]
    found = json.loads(run("train", *words).stdout)
    assert (found["model"], found["window"]) == ("xlstm-output/model.safetensors", 12)
    assert found["rmse"]["persistence"][0] == pytest.approx(20.09, abs=0.01)
    found = json.loads(run("info", "--json").stdout)
    assert found["backend numpy"] == "numpy on CPU"
    assert found["packages"]["numpy"] == np.__version__
    found = json.loads(run("info", "--explain", "lstm", 64, 8, 64, "float32", "--card", "h100", "--json").stdout)
    assert "kernel" in " ".join(map(str, found.values()))


def test_the_window_of_a_short_series_is_printed(run):
    write_table("short.csv", {"v": np.sin(np.arange(80.0)).tolist()})
    quick = ["--epochs", 1, "--hidden-size", 2, "--backend", "numpy"]
    for command in (["train", "short.csv"], ["train", "forecast", "short.csv"]):
        assert "with a window of 24\n" in run(*command, *quick).stdout
    words = "a window of 48 and a horizon of 4 need 86 rows, the series has 80; expected more rows, or a window of at"
    assert words in run("train", "short.csv", *quick, "--window", 48, code=2).stderr


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [*commands(typer.main.get_command(app))], ids=" ".join)
def test_every_command_has_help(run, path):
    result = run(*path, "-h")
    assert "Usage:" in result.stdout
    assert "--help" in result.stdout
    if path == ("train",):
        for words in ("--window", "forecast", "text", "classify", "tirex"):
            assert words in result.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], "train"),
        (["train", "te"], "text"),
        (["train", "--epo"], "--epochs"),
        (["train", "text", "--ste"], "--steps"),
        (["train", "sales.csv", "--hor"], "--horizon"),
    ],
)
def test_completion(words, found):
    code = "import sys; sys.argv = ['xlstm']\nfrom xlstm.cli import main\nmain()"
    asked = {
        "_XLSTM_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["xlstm", *words]),
        "COMP_CWORD": f"{len(words)}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == [found]


def test_runs(run, tmp_path):
    run(*TEXT, "-o", "r/one")
    run(*TEXT, "-o", "r/two", "--cell", "gru", "--steps", 9)
    (tmp_path / "r/three").mkdir()
    (tmp_path / "r/three/history.jsonl").write_text(
        '{"total": 1, "epoch": 1, "loss": 2.0, "norm": 1.0, "seconds": 0.5}\n'
        '{"total": 1, "epoch": 1, "validation": 0.25, "seconds": 0.7}\n'
        '{"total": 2, "epoch": 2, "validation": 0.5, "seconds": 1.0}\n'
    )
    rows = {row["run"]: row for row in json.loads(run("runs", "r", "--json").stdout)}
    assert list(rows) == ["r/one", "r/three", "r/two"]
    assert {k: v for k, v in rows["r/three"].items() if k != "settings"} == {
        **{"run": "r/three", "steps": 2, "epoch": 2, "loss": 2.0, "best": 0.25, "best_epoch": 1, "seconds": 1.0},
    }
    assert (rows["r/one"]["steps"], rows["r/two"]["steps"]) == (12, 9)
    assert (rows["r/one"]["settings"]["cell"], rows["r/two"]["settings"]["cell"]) == ("lstm", "gru")
    lines = run("runs", "r/one", "r/two").stdout.splitlines()
    heading = next(line.split() for line in lines if "run" in line)
    assert heading[-2:] == ["cell", "steps"]
    assert "embedding-size" not in heading
    assert next(line.split() for line in lines if "r/two" in line)[-2:] == ["gru", "9"]


HOSTILE = {
    "deep": '{"total": ' + "[" * 100_000,
    "long number": '{"total": 1, "loss": 1' + "0" * 4000 + "}",
    "longer number": '{"total": 1, "loss": 1' + "0" * 40_000 + "}",
    "infinite number": '{"total": 1, "loss": 1e999}',
    "other kinds": '{"total": 1, "loss": "low"}',
    "part of a batch": '{"total": 1.5, "loss": 1}',
    "before the first": '{"total": -1, "loss": 1}',
    "no UTF-8": b"\xff",
    "list": "[]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_histories(run, tmp_path, name):
    """The run is left out with a word, and its training goes on from a checkpoint."""
    run(*TEXT, "-o", "r/one")
    run(*TEXT, "-o", "r/two")
    line = HOSTILE[name]
    with open("r/two/history.jsonl", "ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    result = run("runs", "r", "--json")
    assert [row["run"] for row in json.loads(result.stdout)] == ["r/one"]
    assert result.stderr.startswith("note: r/two/history.jsonl: line 13 is not readable (")
    assert len(result.stderr) < 300
    run(*TEXT, "-o", "r/two", "--steps", 15, "--resume")
    assert [row["steps"] for row in json.loads(run("runs", "r", "--json").stdout)] == [12, 15]


@pytest.mark.parametrize(
    "options",
    [
        "a = " + "[" * 100_000,
        "steps = 1" + "0" * 4000,
        "steps = 1" + "0" * 5000,
        "steps = 0x1" + "0" * 5000,
        "x" * (2 << 20),
        b"\xff",
        "steps",
    ],
    ids=["deep", "long number", "longer number", "long hexadecimal number", "long", "no UTF-8", "no TOML"],
)
def test_hostile_options_of_runs(run, options):
    run(*TEXT, "-o", "r/one")
    run(*TEXT, "-o", "r/two")
    with open("r/two/options.toml", "wb") as file:
        file.write(options if isinstance(options, bytes) else options.encode())
    result = run("runs", "r")
    assert "r/one" in result.stdout
    assert "r/two" not in result.stdout
    assert result.stderr.startswith("note: r/two/options.toml: ")
    assert len(result.stderr) < 300


def test_runs_as_json_have_no_nan(run, tmp_path):
    run(*TEXT, "-o", "r/one")
    with open("r/one/history.jsonl", "a") as file:
        file.write(
            '{"total": 13, "epoch": NaN, "loss": NaN, "norm": -Infinity, "validation": NaN, "seconds": Infinity}\n'
        )
    (tmp_path / "r/one/options.toml").write_text("rate = nan\nmost = [inf]\nday = 2024-01-31\n")
    (row,) = json.loads(run("runs", "r", "--json").stdout, parse_constant=lambda text: pytest.fail(text))
    assert (row["steps"], row["epoch"], row["loss"], row["best"], row["seconds"]) == (13, None, None, None, None)
    assert row["settings"] == {"rate": None, "most": [None], "day": "2024-01-31"}
    assert run("runs", "r").stdout.splitlines()[-2].split() == ["r/one", "13", "-", "-", "-", "-", "-"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipes_in_the_folder_of_a_run(tmp_path):
    """A reader would wait for ever for somebody who writes to them."""
    pipes = "import os, sys; from xlstm.cli.app import main; [os.mkfifo(p) for p in sys.argv.pop().split()]; main()"
    for name in ("history.jsonl", "options.toml"):
        (tmp_path / "r").mkdir(exist_ok=True)
        (tmp_path / "a.txt").write_text(VERSE)
        for words in (["runs", "r"], [*map(str, TEXT), "-o", "r"]):
            for path in (tmp_path / "r").iterdir():
                path.unlink()
            if name == "options.toml":
                (tmp_path / "r/history.jsonl").write_text('{"total": 1, "loss": 1.0}\n')
            command = [sys.executable, "-c", pipes, *words, f"r/{name}"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
            if words[0] == "runs":
                assert done.stderr.startswith(f"note: r/{name}: it is not a regular file\n"), done.stderr
            if name == "history.jsonl" or words[0] == "runs":
                assert (done.returncode, "it is not a regular file" in done.stderr) == (2, True), done.stderr


def test_names_of_files_do_not_change_the_terminal(run, tmp_path):
    """Control characters are shown as escapes, in errors, warnings, tables and notes; JSON has its own."""
    pytest.importorskip("pyarrow")
    evil = "\x1b[31mred\x07\u202e\x9b2J"
    shown = r"\x1b[31mred\x07\u202e\x9b2J"
    write_table("evil.csv", {evil: [1.0, 2.0], "b": [3.0, 4.0]})
    write_table("evil.parquet", {evil: [1.0, 2.0], "b": [3.0, 4.0]})
    for table in ("evil.csv", "evil.parquet"):
        error = run("train", table, "--column", "none", code=2).stderr
        assert shown in error
        assert "\x1b" not in error
    write_table("long.csv", {"id": [k // 2 for k in range(80)], "kind": [evil, evil, "b", "b"] * 20, "x": [*range(80)]})
    result = run(*CLASSES, "-o", "classes")
    assert shown in result.stdout
    assert "\x1b" not in result.stdout
    (tmp_path / "r" / evil).mkdir(parents=True)
    (tmp_path / "r" / evil / "history.jsonl").write_text('{"total": 1, "loss": 1.0}\n')
    assert shown in run("runs", "r").stdout
    assert json.loads(run("runs", "r", "--json").stdout)[0]["run"] == f"r/{evil}"


def test_data_are_printed_as_they_are_but_on_a_terminal(monkeypatch, capsys):
    for terminal, expected in ((False, "\x1b[2Ja\tb\n"), (True, "\\x1b[2Ja\tb\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        put("\x1b[2Ja\tb\n")
        assert capsys.readouterr().out == expected


def test_curves_of_runs(run, tmp_path):
    pytest.importorskip("matplotlib")
    run(*TEXT, "-o", "r/one", "--quiet")
    run("runs", "r", "--plot", "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "ends in '.txt'" in run("runs", "r", "--plot", "curves.txt", code=2).stderr


def test_a_tirex_from_nothing_forecasts_a_table(run):
    """And its loss is that which is shown, and less than that of random weights."""
    found = json.loads(run(*TIREX, "-o", "net", "--steps", 40, "--json").stdout)
    assert found["steps"] == 40
    assert found["loss"] < 0.95 * found["random_loss"]
    table = run("forecast", found["model"], bundled("co2"), "--horizon", 3).stdout.splitlines()
    assert len(table) == 4
    assert "0.9" in table[0]


def test_runs_from_python(run, models):
    (row,) = json.loads(run("runs", models / "there", "--json").stdout)
    assert row["steps"] == 2
    assert row["settings"]["model"].startswith("xLSTMLanguageModel(")


def test_a_full_disk_does_not_end_training(run, monkeypatch):
    real = checkpoint.save

    def save(path, *args):
        if "step-" in str(path):
            raise OSError(28, "No space left on device", str(path))
        real(path, *args)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        found = json.loads(run(*TEXT, "--json").stdout)
    assert "step 12 is not on disk" in found["unsaved"]
    TextModel.load(found["model"], "numpy")


FULL = """
import sys
from xlstm.training import checkpoint
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


def test_warnings_are_lines(tmp_path):
    (tmp_path / "a.txt").write_text(VERSE)
    done = subprocess.run(
        [sys.executable, "-c", FULL, *map(str, TEXT)],
        cwd=tmp_path,
        env={**os.environ, "XLSTM_COMPILE": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("warning: train: ") and "No space left on device" in line for line in lines)


# The command with a signal, or two, after its third step. The second one comes while the run is saved.
SIGNALS = """
import signal, sys
from xlstm.training import run
numbers = [getattr(signal, name) for name in sys.argv.pop(1).split()]
count, save = run.Run._count, run.Run._save
def _count(self, taken):
    count(self, taken)
    if self.total == 3 and numbers:
        signal.raise_signal(numbers[0])
def _save(self, *rest):
    if self.total == 3 and numbers[1:]:
        signal.raise_signal(numbers.pop())
    save(self, *rest)
run.Run._count, run.Run._save = _count, _save
sys.argv[0] = "xlstm"
from xlstm.cli import main
main()
"""


def stopped(folder, numbers, args):
    (folder / "signals.py").write_text(SIGNALS)
    environment = {**os.environ, "XLSTM_COMPILE": "0"}
    command = [sys.executable, "signals.py", " ".join(number.name for number in numbers), *map(str, args)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("args", [TEXT, CLASSES, SERIES, TIREX], ids=["text", "classify", "forecast", "tirex"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(run, tmp_path, number, args):
    assert stopped(tmp_path, [], [*args, "-o", "whole"]).returncode == 0
    done = stopped(tmp_path, [number], [*args, "-o", "o u t"])
    assert done.returncode == 128 + number
    words = " ".join(map(str, [*args, "-o", "'o u t'", "--resume"]))
    picture = ", o u t/forecast.png is not saved" if args is SERIES and plots.available() else ""
    what = "interrupted" if number == signal.SIGINT else "terminated"
    assert done.stderr == f"{what}; o u t/model.safetensors is saved{picture}; go on with: xlstm {words}\n"
    assert [line["total"] for line in read_history(tmp_path / "o u t/history.jsonl")] == [1, 2, 3]
    assert stopped(tmp_path, [], [*args, "-o", "o u t", "--resume"]).returncode == 0
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "o u t/model.safetensors").read_bytes()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_stops_at_once(tmp_path, second):
    (tmp_path / "a.txt").write_text(VERSE)
    done = stopped(tmp_path, [signal.SIGINT, second], TEXT)
    assert (done.returncode, done.stderr) == (128 + second, "interrupted; nothing was saved\n")
    assert sorted(os.listdir(tmp_path / "xlstm-text")) == ["history.jsonl", "options.toml"]


def test_options_are_those_of_the_estimators():
    """Every option of a parameter has its default and its type."""
    group = typer.main.get_command(app).commands["train"].commands
    kinds = {"text": TextModel, "classify": SequenceClassifier, "forecast": Settings, "tirex": TiRexTrainer}
    for name, estimator in kinds.items():
        hints, made = typing.get_type_hints(estimator.__init__), estimator()
        settings = [p for p in group[name].params if p.name in hints and p.name != "horizon"]
        assert len(settings) > 15
        for parameter in settings:
            assert parameter.default == getattr(made, parameter.name), parameter.name
