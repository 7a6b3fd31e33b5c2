"""The commands as a user meets them: what they print and write, and their options."""

import json
import os
import re
import sys
from pathlib import Path
from shlex import split

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import xlstm
from tests.cli.commands import (
    CLASSES,
    QUICK,
    SERIES,
    TEXT,
    steps_of_sequences,
    trainer,
    write_files,
)
from xlstm import models
from xlstm.cli import sources
from xlstm.cli.app import app
from xlstm.cli.console import out, put
from xlstm.data.series import bundled
from xlstm.data.table import opened, write_table
from xlstm.estimators import Forecaster, TextModel
from xlstm.interop.c import to_c
from xlstm.plots import figures

PICTURES = {"forecast.png"} if figures.available() else set()
SHOPS = split(
    "--target sales --target lost --past visits --future price --static size --series-id shop"
    " --horizon 3"
)
TRAINED = {
    "series": SERIES,
    "shops": ["train", "forecast", "past.csv", *SHOPS, *QUICK],
    "text": TEXT,
    "classes": [*CLASSES, "--epochs", "30", "--columns", "x"],
}


@pytest.fixture(autouse=True)
def files(tmp_path):
    """A text, a table and a series in the folder of a test."""
    write_files(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that returns the folder of a command that has trained, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    write_files(folder)
    return trainer(folder, TRAINED)


def read_json(result):
    return json.loads(result.stdout)


# Forecasts of series


def test_the_main_job(run, tmp_path):
    result = run("train", *QUICK)
    assert "sunspots, 2820 months from 1749-01 to 1983-12" in result.output
    rolling = (
        r"candidates: smoothing [0-9.]+, theta [0-9.]+, linear [0-9.]+ from rolling origins;"
        r" average [0-9.]+, network "
    )
    assert re.search(rolling + r"[0-9.]+ on the validation part \(repeating", result.output)
    for words in ("1 month ahead", "20.09", "autoregression of 24", "18.21"):
        assert words in result.output
    assert re.search(r"[│┃] +model [│┃] persistence [│┃]", result.output)
    assert {*os.listdir(tmp_path / "xlstm-output")} == {"model.safetensors", *PICTURES}
    for picture in PICTURES:
        assert (tmp_path / "xlstm-output" / picture).read_bytes().startswith(b"\x89PNG")
    lines = run(
        "predict xlstm-output/model.safetensors --steps 3", bundled("sunspots")
    ).stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["month", "1984-01", "1984-02", "1984-03"]
    loaded = Forecaster.load("xlstm-output/model.safetensors", "numpy")
    values = loaded.predict(
        np.loadtxt(bundled("sunspots"), delimiter=",", skiprows=1, usecols=1), 3
    )
    np.testing.assert_allclose([float(line.split(",")[1]) for line in lines[1:]], values, rtol=1e-5)


def test_a_short_series_and_its_holidays(run, tmp_path):
    """No network is trained, which would make the folder; the table names none then."""
    pytest.importorskip("holidays")
    rows = "".join(f"2024-0{1 + k // 28}-{1 + k % 28:02},{k % 7 + k * k % 3}\n" for k in range(60))
    (tmp_path / "s.csv").write_text("day,v\n" + rows)
    result = run("train forecast s.csv --holidays DE --season 7,14 --backend numpy -o m")
    assert "model: m/model.safetensors" in result.output
    assert "LSTM" not in result.output
    assert re.search(r"candidates: [^;]* from rolling origins \(repeating", result.output)
    loaded = Forecaster.load("m/model.safetensors", "numpy")
    assert (loaded.holidays, loaded.season_) == ("DE", (7, 14))
    assert run("forecast m s.csv").stdout.count("\n2024-03-05,") == 1
    assert "holidays is" in run("train s.csv --holidays XX", code=2).stderr


def test_how_a_table_is_written_is_said(run, tmp_path):
    """With gaps, and a column that is chosen among several."""
    cells = [f"{k % 7},{k % 3}" if k % 90 else "" for k in range(1, 201)]
    rows = "".join(
        f"01/{1 + k % 12:02}/{1990 + k // 12}\t{cell}\t{k}\n" for k, cell in enumerate(cells)
    )
    (tmp_path / "s.csv").write_text("Datum\tgr\u00f6\u00dfe\tb\n" + rows, encoding="utf-16")
    said = split("--encoding utf-16 --date-format %d/%m/%Y --decimal ,")
    assert "in utf-16 or latin-1" in run("train s.csv", *QUICK, code=2).stderr
    assert (
        "choose one of gr\u00f6\u00dfe, b with --column"
        in run("train s.csv", *QUICK, *said, code=2).stderr
    )
    result = run(
        "train forecast s.csv --horizon 8 --candidates network --column gr\u00f6\u00dfe",
        *QUICK,
        *said,
    )
    assert "LSTM" not in result.output
    assert (
        "gr\u00f6\u00dfe, 200 months from 1990-01-01 to 2006-08-01, 2 of them gaps" in result.output
    )
    assert "8 months ahead" in result.output
    # of the column that it knows
    lines = run("predict xlstm-forecast s.csv", *said).stdout.splitlines()
    assert [len(lines), lines[0], lines[1].partition(",")[0]] == [
        9,
        "Datum,gr\u00f6\u00dfe",
        "2006-09-01",
    ]
    assert run("predict xlstm-forecast s.csv --column b", *said).stdout.startswith("Datum,b\n")
    run("evaluate xlstm-forecast s.csv", *said)


def test_intervals_and_errors(run):
    fitted = Forecaster(
        window=12, horizon=3, hidden_size=2, epochs=1, backend="numpy", name="sunspots"
    )
    fitted.fit(np.sin(np.arange(100.0))).save("m")
    printed, with_intervals = (
        run(f"predict m {words}", bundled("sunspots")).stdout for words in ("", "--intervals")
    )
    lines = [line.split(",") for line in with_intervals.splitlines()]
    assert lines[0] == ["month", "sunspots", *(f"sunspots 0.{k}" for k in range(1, 10))]
    assert [line[:2] for line in lines] == [line.split(",") for line in printed.splitlines()]
    assert np.all(np.diff([[float(cell) for cell in line[2:]] for line in lines[1:]], axis=1) >= 0)
    piped = bundled("sunspots").read_text()
    options = "m - --json --quantiles .5,.05"
    found, other = (
        read_json(run(f"{name} {options}", text=piped)) for name in ("predict", "forecast")
    )
    assert (found["horizon"], found["quantiles"]) == (3, [0.05, 0.5])
    medians = [float(line[6]) for line in lines[1:]]
    np.testing.assert_allclose(found["forecasts"]["sunspots 0.5"], medians)
    assert other == found
    found = run("evaluate m", bundled("sunspots"))
    assert "20.09" in found.stdout
    assert "trained on" not in found.stderr
    found = read_json(run("evaluate m --json", bundled("sunspots")))
    assert (found["kind"], found["forecasts"], len(found["coverage"])) == ("forecaster", 564, 3)


@pytest.fixture(scope="module")
def shops(trained):
    """Tables of two shops of 90 and 80 days, and of days of which the price alone is known; a
    trained model.
    """
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    folder = trained("series")[0].parent
    rng = np.random.default_rng(7)
    tables = []
    for shop, days in ((7, 90), (8, 80)):
        t = np.arange(days + 9)
        known = {name: np.sin(t) + rng.normal(size=len(t)) for name in ("sales", "lost", "visits")}
        columns = {
            "shop": shop,
            "day": np.datetime64("2024-01-01") + t,
            **known,
            "price": np.cos(t / 3),
            "size": shop,
        }
        tables.append(pd.DataFrame(columns))
        tables[-1].loc[t >= days, [*known]] = np.nan
    whole = pd.concat(tables)
    past = whole[whole.sales.notna()]
    later = whole[whole.sales.isna()][["shop", "day", "price"]]
    for name, table in (("whole", whole), ("past", past), ("later", later)):
        table.to_csv(folder / f"{name}.csv", index=False)
        table.to_parquet(folder / f"{name}.parquet", index=False)
    model, result = trained("shops")
    return folder, model, result.stdout, past, later


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_forecasts_of_tables_are_those_of_python(run, shops, suffix):
    """And they keep the name and type of days and of shops."""
    pd = pytest.importorskip("pandas")
    folder, path, _, past, later = shops
    model = Forecaster.load(path / "model.safetensors", "numpy")
    file = folder / f"past.{suffix}"
    for steps in (3, 5):  # within the horizon and beyond
        expected = model.predict(past, steps, future=later).reset_index(drop=True)
        for table in (
            [file, "--future-file", folder / f"later.{suffix}"],
            [folder / f"whole.{suffix}"],
        ):
            run("predict", path, *table, "--steps", steps, "-o", f"ahead.{suffix}")
            found = (
                pd.read_csv("ahead.csv") if suffix == "csv" else pd.read_parquet("ahead.parquet")
            )
            found, wanted = (frame.astype({"day": "datetime64[us]"}) for frame in (found, expected))
            pd.testing.assert_frame_equal(found, wanted[["shop", "day", "sales", "lost"]])
    if suffix == "parquet":
        types = [opened(name).kinds for name in ("ahead.parquet", file)]
        assert [types[0][name] for name in ("shop", "day")] == [
            types[1][name] for name in ("shop", "day")
        ]


def test_series_targets_and_covariates(run, shops):
    folder, path, printed, past, later = shops
    for words in (
        "test RMSSE on the last 20 %",
        "sales, lost, 2 series of 80 to 90 days",
        "sales, 1 day ahead",
        "lost, 3 days ahead",
    ):
        assert words in printed
    whole, file, ahead = (folder / f"{name}.csv" for name in ("whole", "past", "later"))
    again = read_json(run("train forecast -o again --json", whole, *SHOPS, *QUICK))
    assert (again["targets"], len(again["rmse"]["model"][0])) == (["sales", "lost"], 2)
    at = [path, file, "--future-file", ahead]
    lines = run("forecast", *at, "--quantiles", "0.1,0.9").stdout.splitlines()
    assert lines[0] == "shop,day,sales,sales 0.1,sales 0.9,lost,lost 0.1,lost 0.9"
    assert lines == run("forecast --quantiles 0.9,0.1", path, whole).stdout.splitlines()
    # beyond the horizon
    far = run("forecast", *at, "--quantiles", "0.1,0.9", "--horizon", 5).stdout.splitlines()
    model = Forecaster.load(path / "model.safetensors", "numpy")
    expected = model.predict_quantiles(past, 5, future=later)["sales 0.9"]
    np.testing.assert_allclose([float(line.split(",")[4]) for line in far[1:]], expected, rtol=1e-6)
    assert "past.csv; these are errors on its test part" in run("evaluate", path, file).stderr
    run("export --output exported", path)
    run("inspect", path, whole)
    for args, words in (
        (
            ["predict", path, file],
            "price: known for 0 steps after sales of 7 ends, expected 3; add rows without",
        ),
        (
            ["predict", *at, "--steps", 10],
            "price: known for 9 steps after sales of 7 ends, expected 10",
        ),
        (["forecast", *at, "--quantiles", "0.15,1"], "quantiles[1] is 1.0, expected 0 <"),
        (
            ["train", "forecast", file, "--target", "sales"],
            "the column that tells them apart in series_id (--",
        ),
    ):
        assert words in run(*args, code=2).stderr


def test_export_to_c(run, tmp_path):
    """Files are those of `to_c`, and the numbers that are printed are those of the program."""
    layer = xlstm.LSTM(2, 3)
    params = layer.init(backend="numpy")
    models.save(tmp_path / "m.safetensors", layer, params)
    printed = run("export m.safetensors --to c --weights int8 --no-libm --name lstm").stdout
    options = {"weights": "int8", "libm": False, "name": "lstm"}
    program = to_c(layer, params, tmp_path / "m2.c", **options)
    assert (tmp_path / "m.h").read_text() == program.header
    assert (tmp_path / "m.c").read_text() == program.source.replace("m2.h", "m.h")
    for line in (
        "wrote: m.h",
        f"flash: {program.weight_bytes} bytes of constants (int8)",
        f"rounding: {program.weight_error:.2%} of the weights",
        f"RAM: {program.state_bytes} bytes of state, {program.stack_bytes} of local arrays",
        f"operations: {program.operations} a step",
        "wrote: m.c",
    ):
        assert line in printed
    for command in ("--name lstm", "--weights int8", "--no-libm", "--steps 3"):
        assert "is for --to c" in run(f"export m.safetensors {command}", code=2).stderr


# Texts, and sequences with labels


def test_text(run, tmp_path, trained):
    folder, result = trained("text")
    # nothing says which was best
    assert re.search("^trained: 12 batches in [0-9.]+ s$", result.stdout, re.MULTILINE)
    for words in ("nats a character, perplexity", "model: text/model", "sample:\nt"):
        assert words in result.stdout
    assert sorted(os.listdir(folder))[:2] == ["history.jsonl", "model.safetensors"]
    model = TextModel.load(folder / "model.safetensors", "numpy")
    for path in (folder / "model.safetensors", folder):
        result = run("generate --max-tokens 7", path, "--prompt", "the c")
        assert result.stdout == model.generate("the c", 7, temperature=0) + "\n"
    (tmp_path / "b.txt").write_text("a rat sat on the cat")
    found = read_json(run("evaluate", folder, "b.txt", "--json"))
    nats = model.nats("a rat sat on the cat")
    assert found == {"kind": "text model", "nats": nats, "perplexity": pytest.approx(np.exp(nats))}
    warning = "trained on a.txt, so its answers on that file are not a fair test\n"
    assert warning in run("evaluate", folder, "a.txt").stderr
    assert f"b.txt: {nats:.4f} nats a character" in run("evaluate", folder, "b.txt").stdout


def test_a_model_that_knows_nothing(run):
    """A perplexity beyond all numbers is none."""
    found = read_json(run(*TEXT, "--lr", "1e5", "--json", "--quiet"))
    assert (found["model"], found["perplexity"], found["nats"] > 1000) == (
        "xlstm-text/model.safetensors",
        None,
        True,
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_classes_of_sequences_by_steps(run, trained, suffix):
    folder, result = trained("classes")
    # nothing was validated
    assert re.search(r"trained: 60 batches in [0-9.]+ s$", result.stdout, re.MULTILINE)
    assert "accuracy: 100.00% of 12 sequences" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if "down" in line or "up" in line]
    assert [row[1::2] for row in rows[1:]] == [["down", "6", "0"], ["up", "0", "6"]]
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        pytest.importorskip("narwhals")
        write_table("long.parquet", steps_of_sequences())
    labels = read_json(run("predict --json", folder, f"long.{suffix}"))["labels"]
    assert labels["kind"] == ["down", "up"] * 30
    assert read_json(run("evaluate --json", folder, f"long.{suffix}")) == {
        **{
            "kind": "sequence classifier",
            "sequences": 60,
            "accuracy": 1.0,
            "classes": ["down", "up"],
        },
        "confusion": [[30, 0], [0, 30]],
    }
    lines = [
        line.split(",") for line in run("predict", folder, f"long.{suffix}").stdout.splitlines()
    ]
    assert lines[0] == ["id", "kind", "p(down)", "p(up)"]
    assert [line[:2] for line in lines[1:]] == [[f"s{k}", ("down", "up")[k % 2]] for k in range(60)]
    assert float(lines[1][2]) + float(lines[1][3]) == pytest.approx(1)


def test_classes_of_rows_with_decimal_commas(run, tmp_path):
    """Each row is a sequence, of which one column is no number and no label."""
    values = (np.arange(60)[:, None] % 3 - 1) * np.arange(5) + 0.1 * np.random.default_rng(
        0
    ).normal(size=(60, 5))
    rows = [";".join(f"{value:.6f}".replace(".", ",") for value in row) for row in values]
    text = "\n".join(f"2024-01-0{1 + k % 2};{row};k\u00e4se{k % 3}" for k, row in enumerate(rows))
    (tmp_path / "wide.csv").write_text("day;t0;t1;t2;t3;t4;art\n" + text, encoding="utf-8")
    found = read_json(
        run(
            "train classify wide.csv --label art --backend numpy --epochs 30 --hidden-size 8 --json"
            " -o m"
        )
    )
    assert (found["accuracy"], found["confusion"]) == (1.0, [[4, 0, 0], [0, 4, 0], [0, 0, 4]])
    lines = [line.split(",")[:2] for line in run("predict m wide.csv").stdout.splitlines()]
    assert lines[:3] == [["row", "art"], ["1", "k\u00e4se0"], ["2", "k\u00e4se1"]]


def test_sequences_are_put_together_in_the_order_of_their_rows(tmp_path):
    """Rows of several sequences may alternate; columns of dates are no features, and may begin
    anew.
    """
    cells = {
        "id": [*"babab"],
        "kind": [*"21212"],
        "day": ["2024-01-01"] * 5,
        "x": [1, 2, 3, 4, 5],
        "y": [0.5] * 5,
    }
    write_table(tmp_path / "t.csv", cells)
    layout = sources.SequenceTable.of(tmp_path / "t.csv", "kind", "id", None)
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


# Options


def test_options_of_forecasts(run, tmp_path):
    run("train s.csv -o out", *QUICK, "--window", 10)
    settings = Forecaster.load("out/model.safetensors", "numpy").settings
    assert (settings.epochs, settings.window, settings.hidden_size) == (1, 10, 3)
    assert {*os.listdir(tmp_path / "out")} == {"model.safetensors", *PICTURES}
    options = (
        "--cell gru --num-layers 2 --dropout 0.1 --linear-baseline 5 --season 12 --least -3"
        " --no-refit --quantiles .95,.05"
    )
    run("train forecast s.csv -o run", *QUICK, *split(options))
    assert {"model.safetensors", "history.jsonl", *PICTURES} <= {*os.listdir(tmp_path / "run")}
    settings = Forecaster.load("run/model.safetensors", "numpy").settings
    assert (settings.cell, settings.num_layers, settings.dropout, settings.linear_baseline) == (
        "gru",
        2,
        0.1,
        5,
    )
    assert (settings.season, settings.least, settings.refit) == (12, -3.0, False)
    assert settings.quantiles == (0.05, 0.95)


def test_a_quiet_command_says_nothing(run, trained):
    """The same command writes the same bytes."""
    folder, _ = trained("text")
    assert run(*TEXT, "--quiet", "-o", "again").output == ""
    assert out.quiet is False  # it ends with its command
    assert (
        Path("again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    )


# Help, and what is printed


def test_info(run):
    text = run("info").output
    found = read_json(run("info --json"))
    for words in (
        xlstm.__version__,
        np.__version__,
        "backend numpy",
        "backend cupy",
        "auto chooses",
    ):
        assert words in text
    assert found["backend numpy"] == "numpy on CPU"
    assert found["packages"]["numpy"] == np.__version__
    found = read_json(run("info --explain lstm 64 8 64 float32 --card h100 --json"))
    assert found["path"] == "cluster"


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


def test_every_command_has_help(run):
    for path in [(), *commands(typer.main.get_command(app))]:
        text = run(*path, "-h").stdout
        words = {
            (): ["Commands:\n  train "],
            ("train",): ["--window", "forecast", "text", "classify"],
        }
        assert all(word in text for word in ("Usage:", "--help", *words.get(path, ()))), path
        assert "..." not in text.partition("Commands:")[2], path  # each is a whole sentence


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("tr", "train"),
        ("train te", "text"),
        ("train --epo", "--epochs"),
        ("train sales.csv --hor", "--horizon"),
    ],
)
def test_completion(words, found):
    asked = {"COMP_WORDS": f"xlstm {words}", "COMP_CWORD": str(len(words.split()))}
    environment = {"_XLSTM_COMPLETE": "complete_bash", **asked}
    assert CliRunner().invoke(app, [], env=environment, prog_name="xlstm").stdout.split() == [found]


def test_names_of_files_do_not_change_the_terminal(run):
    """Control characters are shown as escapes, in errors, warnings and tables."""
    evil = "\x1b[31mred\x07\u202e\x9b2J"
    shown = r"\x1b[31mred\x07\u202e\x9b2J"
    write_table("evil.csv", {evil: [1.0, 2.0], "b": [3.0, 4.0]})
    error = run("train evil.csv --column none", code=2).stderr
    write_table(
        "long.csv",
        {"id": [k // 2 for k in range(80)], "kind": [evil, evil, "b", "b"] * 20, "x": [*range(80)]},
    )
    table = run(*CLASSES, "-o", "classes").stdout
    for text in (error, table):
        assert shown in text
        assert "\x1b" not in text


def test_data_are_printed_as_they_are_but_on_a_terminal(monkeypatch, capsys):
    for terminal, expected in ((False, "\x1b[2Ja\tb\n"), (True, "\\x1b[2Ja\tb\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        put("\x1b[2Ja\tb\n")
        assert capsys.readouterr().out == expected
