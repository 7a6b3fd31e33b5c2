"""Every program of `bench` runs from its command line to its end, with small sizes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bench
from xlstm.cli.bench import interleave
from xlstm.models import TiRex, TiRex2

SHAPES = [(3, 2, 4, 5)]
TEXT = "to be or not to be, that is the question:\n" * 40
# Those that run in test_bench.py, test_bench_tasks.py and test_launch.py, and on CuPy in test_cupy_runs.py; and two
# workers, which run inside packages that are not installed here; and a count that takes minutes.
ELSEWHERE = {
    *("layers", "report", "tasks", "ranks"),
    *("gpu", "barriers", "choices", "cudnn", "mlstm", "language", "sanitize", "sanitized", "host"),
    *("published_worker", "tirex_worker"),
    "traffic",
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs a program with arguments, and returns what it wrote as JSON lines."""
    monkeypatch.setattr(interleave, "__defaults__", (1, 0.0))  # rounds and seconds of a block

    def call(name, *arguments, where="--json"):
        path = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), where, str(path)])
        importlib.import_module(f"bench.{name}").main()
        return [json.loads(line) for line in path.read_text().splitlines()]

    return call


def sizes(monkeypatch, name, **values):
    for size, value in values.items():
        monkeypatch.setattr(f"bench.{name}.{size}", value)


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("training_step", {}),
        ("step", {"REPEAT": 2}),
        ("imports", {"PACKAGES": {"xlstm": "xlstm", "another": "no_such_package"}}),
        ("lengths", {"SHAPES": SHAPES}),
        ("bridges", {"SIZES": SHAPES}),
        ("inference", {"SHAPES": SHAPES, "LARGE": []}),
        ("memory", {"SHAPES": [*SHAPES, *SHAPES, *SHAPES], "LARGE": []}),
    ],
)
def test_times_and_memory(run, monkeypatch, name, small):
    monkeypatch.setattr("bench.peers.CPU", ("torch",))
    sizes(monkeypatch, name, **small)
    lines = run(name, "--rounds", 1)
    assert lines
    assert all(line["results"]["xlstm"]["median"] > 0 for line in lines)


def test_who_takes_part(run, monkeypatch):
    """A worker joins the first of two calls, and none the second."""
    sizes(monkeypatch, "threads", SHAPES={(3, 2, 4, 5): 2})
    lines = run("threads", "--rounds", 2)
    assert [line["results"]["xlstm, in turn"]["calls"] for line in lines] == [4, 4]
    threads = importlib.import_module("bench.threads")
    counts, seen = threads.Counts(), np.zeros_like(threads.team.queue)
    monkeypatch.setattr(threads.team, "queue", seen)
    monkeypatch.setattr(threads.team, "_lead", lambda rows, helpers: None)
    for left in (0, 1):
        seen[threads.work_queue.OPEN] = left << 2 * threads.work_queue.SHIFT
        with threads.watched(counts):
            threads.team._lead([], 1)
        counts.end()
    assert str(counts) == "on one core 1 of 2 calls"


def test_the_published_packages(run, monkeypatch):
    small = {"mlstm": [(1, 2, 8, 4)], "slstm": [(3, 2, 4, 2)], "stack": [(2, 4, 8)]}
    sizes(monkeypatch, "published", CASES=small, LENGTHS=(64,))
    lines = run("published", "--rounds", 1)
    assert [line["name"] for line in lines] == ["mlstm 1,2,8,4", "slstm 3,2,4,2", "stack 2,4,8", "mlstm 1,4,64,64"]
    assert "pip install" in lines[0]["missing"]["published"]


def test_a_text(run, tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 60)
    (line,) = run("text", path, "--steps", 1)
    assert line["nats"].keys() == {"xlstm", "torch"}


def test_forecasts_of_bundled_series(run, monkeypatch):
    measure = importlib.import_module("bench.bundled").measure
    small = {"hidden_size": 2, "epochs": 1}
    sizes(monkeypatch, "bundled", AHEAD={"sunspots": (1, 2)})
    sizes(monkeypatch, "bundled", measure=lambda *given: measure(*given, **small))
    (line,) = run("bundled", "--seeds", 0)
    assert len(line["rmse"]["model"]) == 2


class RepeatsLast:
    """A stand-in for `NeuralForecast`: every forecast is the last value, and its interval 1 to each side."""

    def __init__(self, models, freq):
        (self.given,) = models
        assert freq == 1

    def fit(self, table):
        assert list(table.ds) == list(range(80))

    def predict(self, table):
        h, last = self.given["h"], table.y.iloc[-1]
        bounds = {"median": 0, "lo-80": -1, "hi-80": 1}
        return type(table)({f"NHITS-{name}": np.full(h, last + more) for name, more in bounds.items()})


def test_forecasts(run, monkeypatch, capsys):
    """A peer that fails is left out of its means, and its error is kept; N-HITS runs where it is asked for."""
    pytest.importorskip("sklearn")
    pytest.importorskip("pandas")
    series = importlib.import_module("bench.forecast_series")
    quick = importlib.import_module("xlstm.estimators").Forecaster
    values = np.sin(np.arange(100) / 3) + 0.01 * np.arange(100)
    load = {"load": lambda final: [series.Series("wave", "yearly", values)]}
    sizes(monkeypatch, "forecasts", Forecaster=lambda **given: quick(epochs=1, hidden_size=2, **given), **load)
    sizes(monkeypatch, "forecasts", PEERS=("ridge", "failing"))
    monkeypatch.setitem(sys.modules, "neuralforecast", None)
    with pytest.raises(SystemExit):
        run("forecasts", "--neural")
    assert "--neural needs the package neuralforecast" in capsys.readouterr().err
    models = {"NHITS": lambda h, size, **given: {"h": h, "size": size, **given}}
    for name, found in (
        ("neuralforecast", {"NeuralForecast": RepeatsLast, "__spec__": "installed"}),
        ("neuralforecast.losses.pytorch", {"MQLoss": lambda level: level}),
        ("neuralforecast.models", models),
    ):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**found))
    (line,) = run("forecasts", "--neural")
    neural = line["scores"]["N-HITS"]
    truth, last = values[80:][np.arange(15)[:, None] + np.arange(6)], values[79:94, None]
    assert np.isclose(neural["rmse"], np.sqrt(np.mean((truth - last) ** 2)))
    assert neural["coverage"] == np.mean(abs(truth - last) <= 1)
    assert "xlstm over the best peer, N-HITS among them: " in capsys.readouterr().out
    (line,) = run("forecasts")
    assert line["horizon"] == 6
    assert line["scores"].keys() == {"xlstm", "ridge", "failing"}
    assert 0 < line["scores"]["ridge"]["rmse"] < line["scores"]["xlstm"]["rmse"]
    assert line["scores"]["failing"]["error"].startswith("ValueError: compare: the model 'failing' is 'failing', expec")


def test_digits(run, monkeypatch):
    pytest.importorskip("sklearn")
    of = importlib.import_module("bench.digits").sequences
    sizes(monkeypatch, "digits", sequences=lambda least: tuple(a[:20] for a in of(least)))
    assert [line["case"] for line in run("digits", "--splits", 1)] == ["8 rows", "6 to 8 rows"]


FIRST = TiRex(16, 1, 2, patch_size=4, quantiles=(0.1, 0.5, 0.9), input_ff_size=8, context=512)
SECOND = TiRex2(8, [("mlstm", 2, 2), ("slstm", 2, 2)], patch_size=4, quantiles=(0.1, 0.5, 0.9), context=512)


def test_forecasts_of_tirex(run, monkeypatch):
    for name in ("tirex", "tirex_savings"):
        sizes(monkeypatch, name, TiRex=lambda *given: FIRST, TiRex2=lambda *given: SECOND)
    sizes(monkeypatch, "tirex", HORIZONS={"tirex1": 4, "tirex2": 8}, CONTEXT=64)
    lines = run("tirex", "--rounds", 1, "--series", 2)
    assert {line["bench"] for line in lines} == {
        *("tirex", "tirex processors", "tirex memory, beyond", "tirex memory, peak", "tirex import and load")
    }
    lines = run("tirex_savings", "--rounds", 1)
    assert {"xlstm", "without it"} == set(lines[0]["results"])


def test_learning_of_tirex(run, monkeypatch, tmp_path):
    from xlstm.interop import tirex

    tirex.save(tmp_path / "model.safetensors", FIRST, FIRST.init(0, "numpy"))
    sizes(monkeypatch, "tirex_learning", SERIES=("sunspots",), STREAMED=0.985, FITTED=0.9, RENEWALS=(0, 8))
    sizes(monkeypatch, "tirex_learning", TUNING={"horizon": 32, "stride": 200, "epochs": 1})
    lines = run("tirex_learning", tmp_path / "model.safetensors")
    assert [line["what"] for line in lines][:3] == ["whole windows", "stream, renew=0", "stream, renew=8"]


def test_two_versions_in_turn(monkeypatch, capsys):
    """The last commit beside the tree as it is."""
    if not (Path(bench.__file__).parents[1] / ".git").exists():
        pytest.skip("this is no checkout of Git")
    arguments = ["against", "HEAD", "--rounds", "1", "--only", "RNN 32,1,1,50 inference"]
    monkeypatch.setattr(sys, "argv", arguments)
    importlib.import_module("bench.against").main()
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("RNN 32,1,1,50 inference")
    assert float(last.split()[-1]) > 0


def test_all_in_turn(run, monkeypatch):
    """Each in a process of its own, which is acted out here; what the others measured is kept where one fails."""
    from bench import __main__

    def acted(command, check):
        if command[2] != "bench.report":
            with Path(command[command.index("--json") + 1]).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"bench": command[2]}) + "\n")
        return SimpleNamespace(returncode=int(command[2] == "bench.lengths" and broken))

    monkeypatch.setattr(__main__, "name_of_machine", lambda: "machine")  # whose name Python may ask a process for
    monkeypatch.setattr(__main__.subprocess, "run", acted)
    broken = False
    assert [line["bench"] for line in run("__main__", where="--output")] == [f"bench.{m}" for m in __main__.MODULES]
    broken = True
    with pytest.raises(SystemExit, match=r"failed: bench\.lengths; what the others measured is in"):
        run("__main__", where="--output")


def test_none_is_forgotten():
    """Each file of `bench` that is a program is named in this file."""
    text = Path(__file__).read_text(encoding="utf-8")
    files = Path(bench.__file__).parent.glob("*.py")
    programs = {path.stem for path in files if "if __name__ ==" in path.read_text(encoding="utf-8")}
    assert programs >= ELSEWHERE
    assert not [name for name in programs if f'"{name}"' not in text]
