"""The commands as a user meets them: what they print and write, their options, and how they refuse wrong input."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import xlstm
from tests.cli.commands import CLASSES, QUICK, SMALL, TEXT, VERSE, steps_of_sequences, write_files
from xlstm.cli import sources
from xlstm.cli.app import app
from xlstm.cli.console import out, put
from xlstm.data.series import bundled
from xlstm.data.table import names_in, opened, write_table
from xlstm.estimators import (
    Forecaster,
    SequenceClassifier,
    TextModel,
)
from xlstm.plots import figures
from xlstm.training.folder import read_history

PICTURES = {"forecast.png"} if figures.available() else set()
CLASSIFIED, LAYOUT = "xlstm-classify/model.safetensors", {"features": ["x", "y"], "label": "kind", "sequence": "id"}


@pytest.fixture(autouse=True)
def files(tmp_path):
    """A text and a table in the folder of a test."""
    write_files(tmp_path)


def read_json(result):
    return json.loads(result.stdout)


# The main job, and other forecasts of series


def test_train_then_predict(run, tmp_path):
    result = run("train", *QUICK)
    assert "backend: numpy on CPU, float32 (asked for)" in result.output
    assert "sunspots, 2820 months from 1749-01 to 1983-12" in result.output
    rolling = r"candidates: linear [0-9.]+, smoothing [0-9.]+ from rolling origins; average [0-9.]+, network "
    assert re.search(rolling + r"[0-9.]+ on the validation part \(repeating", result.output)
    for words in ("1 month ahead", "20.09", "autoregression of 24", "18.21"):
        assert words in result.output
    assert re.search(r"[│┃] +model [│┃] persistence [│┃]", result.output)
    assert {*os.listdir(tmp_path / "xlstm-output")} == {"model.safetensors", *PICTURES}
    for picture in PICTURES:
        assert (tmp_path / "xlstm-output" / picture).read_bytes().startswith(b"\x89PNG")
    lines = run("predict", "xlstm-output/model.safetensors", bundled("sunspots"), "--steps", 3).stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["month", "1984-01", "1984-02", "1984-03"]
    loaded = Forecaster.load("xlstm-output/model.safetensors", "numpy")
    values = loaded.predict(np.loadtxt(bundled("sunspots"), delimiter=",", skiprows=1, usecols=1), 3)
    np.testing.assert_allclose([float(line.split(",")[1]) for line in lines[1:]], values, rtol=1e-5)
    found = read_json(run("train", *QUICK, "--json", "-o", "again"))
    assert (found["model"], found["window"]) == ("again/model.safetensors", 12)
    assert found["rmse"]["persistence"][0] == pytest.approx(20.09, abs=0.01)


def test_a_short_series_and_its_holidays(run, tmp_path):
    """No network is trained, which would make the folder; the table names none then."""
    pytest.importorskip("holidays")
    rows = "".join(f"2024-0{1 + k // 28}-{1 + k % 28:02},{k % 7 + k * k % 3}\n" for k in range(60))
    (tmp_path / "s.csv").write_text("day,v\n" + rows)
    result = run("train", "forecast", "s.csv", "--holidays", "DE", "--backend", "numpy", "-o", "m")
    assert "model: m/model.safetensors" in result.output
    assert "LSTM" not in result.output
    assert re.search(r"candidates: [^;]* from rolling origins \(repeating", result.output)
    assert Forecaster.load("m/model.safetensors", "numpy").holidays == "DE"
    assert run("forecast", "m", "s.csv").stdout.count("\n2024-03-05,") == 1
    assert 'holidays is "XX", expect' in run("train", "s.csv", "--holidays", "XX", code=2).stderr.replace("'", '"')


def test_a_csv_with_gaps_and_a_horizon(run):
    result = run("train", bundled("co2"), *QUICK, "--horizon", 8, "-o", "deep/er")
    assert "2284 weeks from 1958-03-29 to 2001-12-29, 59 of them gaps" in result.output
    for words in ("8 weeks ahead", "season of 52", "persistence", "autoregression"):
        assert words in result.output
    assert len(run("predict", "deep/er", bundled("co2")).stdout.splitlines()) == 9


def test_several_columns(run, tmp_path):
    rows = "".join(f"2001-{1 + k // 28:02}-{1 + k % 28:02},{k % 7},{k * 0.1 + k % 3}\n" for k in range(300))
    (tmp_path / "two.csv").write_text("day,a,b\n" + rows)
    words = "several columns hold numbers, choose one of a, b with --column"
    assert words in run("train", "two.csv", *QUICK, code=2).stderr
    run("train", "two.csv", *QUICK, "--column", "b")
    assert run("predict", "xlstm-output", "two.csv").stdout.startswith("day,b\n")  # as it was trained on
    assert run("predict", "xlstm-output", "two.csv", "--column", "a").stdout.startswith("day,a\n")


def test_how_a_table_is_written_is_said(run, tmp_path):
    rows = "".join(f"01/{1 + k % 12:02}/{1990 + k // 12}\t{k % 7},{k % 3}\n" for k in range(200))
    (tmp_path / "s.csv").write_text("Datum\tgr\u00f6\u00dfe\n" + rows, encoding="utf-16")
    said = ["--encoding", "utf-16", "--date-format", "%d/%m/%Y", "--decimal", ","]
    assert "in utf-16 or latin-1" in run("train", "s.csv", *QUICK, code=2).stderr
    assert "say its format with --date-format" in run("train", "s.csv", *QUICK, *said[:2], code=2).stderr
    result = run("train", "forecast", "s.csv", *QUICK, *said)
    assert "gr\u00f6\u00dfe, 200 months from 1990-01-01 to 2006-08-01" in result.output
    assert "\n2006-09-01," in run("predict", "xlstm-forecast", "s.csv", "--steps", 1, *said).stdout
    run("evaluate", "xlstm-forecast", "s.csv", *said)


def test_forecasts_as_a_table_and_their_errors(run):
    fitted = Forecaster(window=12, horizon=3, hidden_size=2, epochs=1, backend="numpy", name="sunspots")
    fitted.fit(np.sin(np.arange(100.0))).save("m")
    printed = run("predict", "m", bundled("sunspots"), "--steps", 3).stdout
    run("predict", "m", bundled("sunspots"), "--steps", 3, "--output", "p.csv")
    assert Path("p.csv").read_text() == printed
    lines = run("predict", "m", bundled("sunspots"), "--steps", 2, "--intervals").stdout.splitlines()
    assert lines[0] == "month,sunspots," + ",".join(f"sunspots 0.{k}" for k in range(1, 10))
    assert [line.split(",")[:2] for line in lines[:3]] == [line.split(",") for line in printed.splitlines()[:3]]
    shares = [[float(cell) for cell in line.split(",")[2:]] for line in lines[1:]]
    assert np.all(np.diff(shares, axis=1) >= 0)
    found = read_json(run("evaluate", "m", bundled("sunspots"), "--json"))
    assert (found["kind"], found["forecasts"], len(found["coverage"])) == ("forecaster", 564, 3)
    assert found["rmse"]["persistence"][0] == pytest.approx(20.09, abs=0.01)
    found = run("evaluate", "m", bundled("sunspots"))
    assert "20.09" in found.stdout
    assert "trained on" not in found.stderr


SHOPS = ["--target", "sales", "--target", "lost", "--past", "visits", "--future", "price", "--static", "size"]
SHOPS += ["--series-id", "shop"]


def shops(rng, ahead=0):
    """Two shops of 90 and 80 days, and days of which the price alone is known."""
    columns = {name: [] for name in ("shop", "day", "sales", "lost", "visits", "price", "size")}
    for shop, days in ((7, 90), (8, 80)):
        t = np.arange(days + ahead)
        known = np.where(t < days, 1.0, np.nan)
        columns["shop"].append(np.full(len(t), shop))
        columns["day"].append(np.datetime64("2024-01-01") + t)
        for name in ("sales", "lost", "visits"):
            columns[name].append(known * (np.sin(t) + rng.normal(size=len(t))))
        columns["price"].append(np.cos(t / 3))
        columns["size"].append(np.full(len(t), shop))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_series_targets_and_covariates(run, rng, suffix):
    """Commands make of a file what Python makes of the table, and keep the name and type of days and of shops."""
    pd = pytest.importorskip("pandas")
    whole = pd.DataFrame(shops(rng, ahead=9))
    past, later = whole[whole.sales.notna()], whole[whole.sales.isna()][["shop", "day", "price"]]
    write = {"csv": "to_csv", "parquet": "to_parquet"}[suffix]
    for name, table in (("whole", whole), ("past", past), ("later", later)):
        getattr(table, write)(f"{name}.{suffix}", index=False)
    result = run("train", "forecast", f"past.{suffix}", *SHOPS, *QUICK, "--horizon", 3, "-o", "m")
    for words in ("sales, lost, 2 series of 80 to 90 days", "sales, 1 day ahead", "lost, 3 days ahead"):
        assert words in result.stdout
    again = run("train", "forecast", f"whole.{suffix}", *SHOPS, *QUICK, "--horizon", 3, "-o", "again", "--json")
    assert (read_json(again)["targets"], len(read_json(again)["rmse"]["model"][0])) == (["sales", "lost"], 2)
    model = Forecaster.load("m/model.safetensors", "numpy")
    at = ["m", f"past.{suffix}", "--future-file", f"later.{suffix}"]
    for steps in (3, 5):
        expected = model.predict(past, steps, future=later)
        for table in (at[1:], [f"whole.{suffix}"]):
            run("predict", "m", *table, "--steps", steps, "-o", f"ahead.{suffix}")
            found = pd.read_csv("ahead.csv") if suffix == "csv" else pd.read_parquet("ahead.parquet")
            pd.testing.assert_frame_equal(
                found.astype({"day": "datetime64[us]"}),
                expected.reset_index(drop=True).astype({"day": "datetime64[us]"})[["shop", "day", "sales", "lost"]],
            )
    if suffix == "parquet":
        types = [opened(name).kinds for name in ("ahead.parquet", "past.parquet")]
        assert [types[0][name] for name in ("shop", "day")] == [types[1][name] for name in ("shop", "day")]
    lines = run("forecast", *at, "--quantiles", "0.1,0.9").stdout.splitlines()
    assert lines[0] == "shop,day,sales,sales 0.1,sales 0.9,lost,lost 0.1,lost 0.9"
    assert lines == run("forecast", "m", f"whole.{suffix}", "--quantiles", "0.9,0.1").stdout.splitlines()
    far = run("forecast", *at, "--quantiles", "0.1,0.9", "--horizon", 5).stdout.splitlines()  # beyond the horizon
    expected = model.predict_quantiles(past, 5, future=later)["sales 0.9"]
    np.testing.assert_allclose([float(line.split(",")[4]) for line in far[1:]], expected, rtol=1e-6)
    note = run("evaluate", "m", f"past.{suffix}").stderr
    assert f"note: the model was trained on past.{suffix}; these are errors on its test part" in note
    run("export", "m")
    run("inspect", "m", f"whole.{suffix}")
    for args, words in (
        (
            ["predict", *at[:2]],
            "price: known for 0 steps after sales of 7 ends, expected 3; add rows without",
        ),
        (["inspect", *at[:2]], "price: known for 0 steps after sales of 7 ends, expected 3"),
        (["predict", *at, "--steps", 10], "price: known for 9 steps after sales of 7 ends, expected 10"),
        (["predict", *at, "--column", "sales"], "forecasts sales, lost, expected no --column"),
        (["forecast", *at, "--target", "sales"], "is a trained forecaster, which takes no --target"),
        (["forecast", *at, "--quantiles", "0.15"], "has no quantile 0.15, expected some of [0.1, 0.2"),
        (
            ["train", "forecast", *at[1:2], "--target", "sales"],
            "the column that tells them apart in series_id (--",
        ),
    ):
        assert words in run(*args, code=2).stderr


# Texts, and sequences with labels


def test_text(run, tmp_path):
    result = run(*TEXT)
    assert re.search("^trained: 12 batches in [0-9.]+ s$", result.stdout, re.MULTILINE)  # nothing says which was best
    for words in ("nats a character, perplexity", "model: xlstm-text/model", "sample:\nt"):
        assert words in result.stdout
    assert sorted(os.listdir(tmp_path / "xlstm-text"))[:2] == ["history.jsonl", "model.safetensors"]
    model = TextModel.load("xlstm-text/model.safetensors", "numpy")
    for path in ("xlstm-text/model.safetensors", "xlstm-text"):
        result = run("generate", path, "--prompt", "the c", "--max-tokens", 7)
        assert result.stdout == model.generate("the c", 7, temperature=0) + "\n"
    (tmp_path / "b.txt").write_text("a rat sat on the cat")
    found = read_json(run("evaluate", "xlstm-text", "b.txt", "--json"))
    nats = model.nats("a rat sat on the cat")
    assert found == {"kind": "text model", "nats": nats, "perplexity": pytest.approx(np.exp(nats))}
    assert "trained on a.txt, so it knows most of it\n" in run("evaluate", "xlstm-text", "a.txt").stderr
    assert f"b.txt: {nats:.4f} nats a character" in run("evaluate", "xlstm-text", "b.txt").stdout


def test_a_longer_run_goes_on_where_the_shorter_one_ended(run, tmp_path):
    run(*TEXT, "-o", "one", "--steps", 32, "--every", 5)  # one pass over the text
    found = read_json(run(*TEXT, "-o", "one", "--steps", 40, "--resume", "--json"))
    other = read_json(run(*TEXT, "-o", "two", "--steps", 40, "--json"))
    assert found["steps"] == other["steps"] == 40
    assert found["nats"] == other["nats"]
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    assert len(read_history(tmp_path / "one/history.jsonl")) == len(read_history(tmp_path / "two/history.jsonl"))


def test_a_model_that_knows_nothing(run):
    """A perplexity beyond all numbers is none."""
    found = read_json(run(*TEXT, "--lr", "1e5", "--json"))
    assert found["nats"] > 1000
    assert found["perplexity"] is None


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_classes_of_sequences_by_steps(run, suffix):
    table = f"long.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        pytest.importorskip("narwhals")
        write_table(table, steps_of_sequences())
    result = run(*[table if word == "long.csv" else word for word in CLASSES], "--epochs", 30, "--columns", "x")
    assert re.search(r"trained: 60 batches in [0-9.]+ s$", result.stdout, re.MULTILINE)  # nothing was validated
    assert "accuracy: 100.00% of 12 sequences" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if "down" in line or "up" in line]
    assert [row[1::2] for row in rows[1:]] == [["down", "6", "0"], ["up", "0", "6"]]
    assert read_json(run("evaluate", CLASSIFIED, table, "--json")) == {
        **{"kind": "sequence classifier", "sequences": 60, "accuracy": 1.0, "classes": ["down", "up"]},
        "confusion": [[30, 0], [0, 30]],
    }
    lines = [line.split(",") for line in run("predict", CLASSIFIED, table).stdout.splitlines()]
    assert lines[0] == ["id", "kind", "p(down)", "p(up)"]
    assert [line[:2] for line in lines[1:4]] == [["s0", "down"], ["s1", "up"], ["s2", "down"]]
    assert float(lines[1][2]) + float(lines[1][3]) == pytest.approx(1)
    run("predict", CLASSIFIED, table, "-o", f"found.{suffix}")
    assert names_in(opened(f"found.{suffix}"), "kind").tolist() == ["down", "up"] * 30


def test_classes_of_rows_with_decimal_commas(run, tmp_path):
    """Each row is a sequence, of which one column is no number and no label."""
    values = (np.arange(60)[:, None] % 3 - 1) * np.arange(5) + 0.1 * np.random.default_rng(0).normal(size=(60, 5))
    rows = [";".join(f"{value:.6f}".replace(".", ",") for value in row) for row in values]
    text = "\n".join(f"2024-01-0{1 + k % 2};{row};k\u00e4se{k % 3}" for k, row in enumerate(rows))
    (tmp_path / "wide.csv").write_text("day;t0;t1;t2;t3;t4;art\n" + text, encoding="utf-8")
    words = ("--label", "art", "--backend", "numpy", "--epochs", 30, "--hidden-size", 8, "--json")
    found = read_json(run("train", "classify", "wide.csv", *words))
    assert (found["accuracy"], found["confusion"]) == (1.0, [[4, 0, 0], [0, 4, 0], [0, 0, 4]])
    lines = [line.split(",") for line in run("predict", CLASSIFIED, "wide.csv").stdout.splitlines()]
    assert lines[0] == ["row", "art", "p(k\u00e4se0)", "p(k\u00e4se1)", "p(k\u00e4se2)"]
    assert [line[:2] for line in lines[1:4]] == [["1", "k\u00e4se0"], ["2", "k\u00e4se1"], ["3", "k\u00e4se2"]]
    assert "column t0 holds '0," in run("evaluate", CLASSIFIED, "wide.csv", "--decimal", ".", code=2).stderr


def test_sequences_are_put_together_in_the_order_of_their_rows(tmp_path):
    """Rows of several sequences may alternate; columns of dates are no features, and may begin anew."""
    cells = {"id": [*"babab"], "kind": [*"21212"], "day": ["2024-01-01"] * 5, "x": [1, 2, 3, 4, 5], "y": [0.5] * 5}
    write_table(tmp_path / "t.csv", cells)
    layout = sources.Layout.of(tmp_path / "t.csv", "kind", "id", None)
    assert layout.features == ["x", "y"]
    sequences, names, labels = layout.read(tmp_path / "t.csv")
    assert (names, labels.tolist()) == (["b", "a"], ["2", "1"])
    assert [rows[:, 0].tolist() for rows in sequences] == [[1, 3, 5], [2, 4]]


def test_held_out_sequences_are_the_same_share_of_each_class():
    labels = np.array(["a"] * 30 + ["b"] * 10)
    rows, test = sources.held_out(labels, 0.2, 0)
    assert sorted([*rows, *test]) == list(range(40))
    assert labels[test].tolist() == ["a"] * 6 + ["b"] * 2
    assert sources.held_out(labels, 0.2, 1)[1].tolist() != test.tolist()
    assert sources.held_out(labels, 0.0, 0)[1].tolist() == []


# Options


def test_options_of_the_main_job(run, tmp_path):
    words = ["--cell", "gru", "--num-layers", 2, "--dropout", 0.1, "--linear-baseline", 5, "--season", 12]
    words += ["--least", -3, "--no-refit", "--horizon", 4, *QUICK, "-o", "run"]
    assert run("train", "forecast", bundled("sunspots"), *words, "--quiet").output == ""
    assert {"model.safetensors", "history.jsonl", *PICTURES} <= {*os.listdir(tmp_path / "run")}
    settings = Forecaster.load("run/model.safetensors", "numpy").settings
    assert (settings.epochs, settings.window, settings.hidden_size) == (1, 12, 3)
    assert (settings.cell, settings.num_layers, settings.dropout, settings.linear_baseline) == ("gru", 2, 0.1, 5)
    assert (settings.season, settings.least, settings.refit) == (12, -3.0, False)


def test_quiet_and_json(run):
    assert run(*TEXT, "--quiet").output == ""
    result = run(*TEXT, "-o", "two", "--json", "-q")
    assert json.loads(result.stdout)["model"] == "two/model.safetensors"
    assert result.stderr == ""
    assert out.quiet is False  # it ends with its command


def test_info(run, monkeypatch):
    text, found = run("info").output, read_json(run("info", "--json"))
    for words in (xlstm.__version__, np.__version__, "backend numpy", "backend cupy", "auto chooses"):
        assert words in text
    assert found["backend numpy"] == "numpy on CPU"
    assert found["packages"]["numpy"] == np.__version__
    found = read_json(run("info", "--explain", "lstm", 64, 8, 64, "float32", "--card", "h100", "--json"))
    assert found["path"] == "cluster"
    monkeypatch.setenv("XLSTM_NUM_THREADS", "two")
    assert run("info", code=2).stderr.startswith("error: XLSTM_NUM_THREADS: 'two'")


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


def test_every_command_has_help(run):
    for path in [(), *commands(typer.main.get_command(app))]:
        text = run(*path, "-h").stdout
        words = {(): ["Commands:\n  train "], ("train",): ["--window", "forecast", "text", "classify"]}
        assert all(word in text for word in ("Usage:", "--help", *words.get(path, ()))), path
        assert "..." not in text.partition("Commands:")[2], path  # each is a whole sentence


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tr"], "train"),
        (["train", "te"], "text"),
        (["train", "--epo"], "--epochs"),
        (["train", "sales.csv", "--hor"], "--horizon"),
    ],
)
def test_completion(words, found):
    asked = {"COMP_WORDS": " ".join(["xlstm", *words]), "COMP_CWORD": f"{len(words)}"}
    environment = {"_XLSTM_COMPLETE": "complete_bash", **asked}
    assert CliRunner().invoke(app, [], env=environment, prog_name="xlstm").stdout.split() == [found]


# Wrong input

WRONG = [
    (["nosuch"], "No such command 'nosuch'"),
    (["train", "nosuch.csv"], "error: nosuch.csv: No such file or directory"),
    (["train", "nan.csv"], "nan.csv: line 3, column v holds 'nan'"),
    (["train", "long.csv", "--target", "z"], "long.csv: column 'z' is not in the header"),
    (["train", "long.csv", "--target", "x", "--column", "y"], "--column is y beside --target, expected one of them"),
    (["train", "long.csv", "--past", "x", "--past", "y"], "long.csv: all columns of numbers are covariates"),
    (["predict", "series", "long.csv", "--future-file", "few.csv"], "few.csv: no column is known in advance"),
    (["train", "--seed", "-1"], "seed: expected a whole number from 0 up, got -1"),
    (["train", "-o", "empty"], "error: empty/model.safetensors: not saved, Not a directory"),
    (["train", "-o", "/proc/xlstm"], "/proc/xlstm"),
    (["train", "-o", "there", "--resume"], "error: there: holds no run to resume; `xlstm train KIND` begins one"),
    (["train", "big.csv"], "error: v, day 2001-10-08: Forecaster: values[280] is 1e+300"),
    (["train", "forecast", bundled("co2"), "-o", "there"], "there: holds a run already; --resume goes on with it"),
    (["train", "forecast", bundled("co2"), "-o", "there", "--resume"], "is of another run"),
    (["train", "text"], "Missing argument"),
    (["train", "text", "binary"], "binary: not UTF-8 text (invalid start byte at byte 0)"),
    (["train", "text", "a.txt", "--resume"], "xlstm-text: holds no run to resume"),
    (["train", "text", "a.txt", *SMALL, "-o", "busy"], "busy/model.safetensors: not saved, it is not a regular file"),
    (["train", "text", "a.txt", "--steps", "0"], "steps is 0"),
    (["train", "text", "a.txt", "--graph", "yes"], "train: graph is 'yes', expected one of auto, on, off"),
    (["train", "text", "a.txt", *SMALL, "--graph", "on"], "Step: graph is True, which needs arrays of CuPy"),
    (["train", "classify", "long.csv", "--label", "kin"], "column 'kin' is not in the header, which has id, kind, day"),
    (["train", "classify", "long.csv", "--label", "kind", "--columns", "kind"], "expected different columns"),
    (["train", "classify", "few.csv", "--label", "kind"], "no class has enough sequences to hold out 20%, the largest"),
    (["train", "classify", "gap.csv", "--label", "kind"], "gap.csv: column 'x' is empty in row 2"),
    (["train", "classify", "mixed.csv", "--label", "kind", "--sequence", "id"], "sequence 's' has labels a, b"),
    (["evaluate", "text", "a.txt", "--column", "x"], "text: is a text model, which takes no --column"),
    (["evaluate", "classes", "relabelled.csv"], "relabelled.csv: label 'left' is not one of those that classes knows"),
    (["predict", "series", "t.parquet", "--date-format", "%d/%m/%Y"], "t.parquet: is a Parquet file; date_format"),
    (["evaluate", "plain", "long.csv"], "plain: says nothing of a table, expected a model of `xlstm train classify`"),
    (
        ["predict", "there/step-000000002.safetensors", "long.csv"],
        "kind is 'training', which is for xlstm train --resume",
    ),
    (["predict", "classes", "long.csv", "--steps", "3"], "classes: is a sequence classifier, which takes no --steps"),
    (["generate", "net", "--prompt", "1"], "net: holds LSTM(2, 3), expected a language model; xlstm export"),
    (["generate", "text", "--prompt", "a", "--bytes"], "text: is a text model, which takes no --bytes"),
    (
        ["generate", "series", "--prompt", "a"],
        "kind is 'forecaster', which is for xlstm predict, forecast,",
    ),
    (["import", "weights.pt"], "weights.pt: not read without PyTorch (File is not a zip file)"),
    (["info", "--card", "h100"], "info: --card goes with --explain"),
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
    classifier.save(folder / "classes", LAYOUT)
    net = xlstm.LSTM(2, 3)
    xlstm.models.save(folder / "net", net, net.init(0, "numpy"))
    forecaster = Forecaster(window=4, horizon=2, hidden_size=2, epochs=1, backend="numpy", name="sunspots")
    forecaster.fit(np.sin(np.arange(60.0))).save(folder / "series")
    return folder


DAYS = np.datetime64("2001-01-01") + np.arange(300)
FILES = {
    **{"empty": "", "nan.csv": "date,v\n2001,1\n2002,nan\n2003,3\n", "weights.pt": "PK\x03\x04 of torch.save"},
    **{"few.csv": "kind,x\na,1\nb,2\n", "gap.csv": "kind,x\na,1\nb,\nb,3\n"},
    **{"mixed.csv": "id,kind,x\ns,a,1\ns,b,2\n", "relabelled.csv": "id,kind,x,y\ns,left,1,2\n"},
    "big.csv": "day,v\n" + "".join(f"{day},{1e300 if k == 280 else k % 7}\n" for k, day in enumerate(DAYS)),
}


@pytest.mark.parametrize(("args", "words"), WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_wrong_input_is_one_line_and_exit_code_2(run, tmp_path, models, args, words):
    for name in ("text", "plain", "classes", "series", "net"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    (tmp_path / "there").symlink_to(models / "there")
    (tmp_path / "busy/model.safetensors").mkdir(parents=True)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    before = sorted(os.listdir(tmp_path))
    usual = ["--backend", "numpy"] if args[0] == "train" and len(args) > 2 else []
    result = run(*args, *usual, code=2)
    (error,) = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert result.stdout == "" or words in ("is of another run", "/proc/xlstm")  # found after the first lines
    assert sorted(os.listdir(tmp_path)) == before


def test_kinds_name_commands_that_there_are():
    known = {*typer.main.get_command(app).commands}
    named = {name for commands in sources.COMMANDS.values() for name in commands}
    assert {name.split()[0] for name in named} <= known


# Output


def test_names_of_files_do_not_change_the_terminal(run):
    """Control characters are shown as escapes, in errors, warnings and tables."""
    evil, shown = "\x1b[31mred\x07\u202e\x9b2J", r"\x1b[31mred\x07\u202e\x9b2J"
    write_table("evil.csv", {evil: [1.0, 2.0], "b": [3.0, 4.0]})
    error = run("train", "evil.csv", "--column", "none", code=2).stderr
    write_table("long.csv", {"id": [k // 2 for k in range(80)], "kind": [evil, evil, "b", "b"] * 20, "x": [*range(80)]})
    table = run(*CLASSES, "-o", "classes").stdout
    for text in (error, table):
        assert shown in text
        assert "\x1b" not in text


def test_data_are_printed_as_they_are_but_on_a_terminal(monkeypatch, capsys):
    for terminal, expected in ((False, "\x1b[2Ja\tb\n"), (True, "\\x1b[2Ja\tb\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        put("\x1b[2Ja\tb\n")
        assert capsys.readouterr().out == expected
