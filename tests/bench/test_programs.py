"""Every program of `bench` runs from its command line to its end, with small sizes."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import network, ranks, tasks
from bench.cases import Case
from bench.tasks_data import TASKS
from tests.conftest import ROOT
from tests.distributed import launcher
from xlstm.cli.timing import interleave
from xlstm.models import TiRex, TiRex2

SMALL = tasks.Recipe(16, 8, 2, 1e-2, 1e-2, 0.01, 4, 2, growth=0.5, warmup=1, check=1, sequences=3)


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
        ("step", {}),
        ("memory", {"SIZES": [], "LARGE": (3, 2, 4, 5)}),
        ("second_derivatives", {"CASES": [Case("gru", 3, 2, 4, 5), Case("xlstm", 3, 2, 4, 4)]}),
    ],
)
def test_times_and_memory(run, monkeypatch, name, small):
    monkeypatch.setattr("bench.peers.CPU", ("torch",))
    sizes(monkeypatch, name, **small)
    lines = run(name, "--rounds", 1)
    assert lines
    assert all(line["results"]["xlstm"]["median"] > 0 for line in lines)


def test_footprint(run, monkeypatch, capfd):
    """A library whose program fails is named, and the others are measured."""
    libraries = {"Python": ("", "pass"), "broken": ("", "raise SystemExit(3)")}
    sizes(monkeypatch, "footprint", LIBRARIES=libraries)
    (line,) = run("footprint", "--rounds", 1)
    assert line["name"] == "Python"
    assert line["packages"] == []
    assert line["bytes"] > 0
    assert 0 < line["results"]["best"] <= line["results"]["median"]
    assert "without broken: " in capfd.readouterr().out


@launcher.needed
def test_ranks(run):
    lines = run("ranks", "--rounds", 1, "--seconds", 0.01, "--models", "LSTM 20k", "--ranks", 2)
    ways = [(line["case"]["way"], line["case"]["ranks"]) for line in lines]
    assert ways[1:] == [("strong", 1), ("strong", 2), ("weak", 2)]
    assert lines[1]["efficiency"] == 1
    assert all(0 < line["sums"] + line["waiting"] < 1 for line in lines[2:])


def test_many_ranks(run, monkeypatch):
    sizes(monkeypatch, "network", MODELS={"small": (ranks.lstm, 2, 3, 4, 5, 2)})
    monkeypatch.setattr(network, "estimate", list)
    lines = run("network", "--rounds", 1, "--ranks", 4, "--megabytes", 2e-4)
    assert len(lines) == 3 * 2 * 2
    assert all(line["model"] <= 1 for line in lines)


def test_the_published_packages(run, monkeypatch):
    small = {"mlstm": [(1, 2, 8, 4)], "slstm": [(3, 2, 4, 2)], "stack": [(2, 4, 8)]}
    sizes(monkeypatch, "published", CASES=small, LENGTHS=(64,))
    lines = run("published", "--rounds", 1)
    assert [line["name"] for line in lines] == [
        "mlstm 1,2,8,4",
        "slstm 3,2,4,2",
        "stack 2,4,8",
        "mlstm 1,4,64,64",
    ]
    assert "pip install" in lines[0]["missing"]["published"]


def test_forecasts(run, monkeypatch):
    """A peer that fails is left out of its means, and its error is kept."""
    pytest.importorskip("sklearn")
    pytest.importorskip("pandas")
    series = importlib.import_module("bench.forecast_series")
    quick = importlib.import_module("xlstm.estimators").Forecaster
    values = np.sin(np.arange(100) / 3) + 0.01 * np.arange(100)
    load = {"load": lambda which: [series.Series("wave", "yearly", values)]}
    sizes(
        monkeypatch,
        "forecasts",
        Forecaster=lambda **given: quick(epochs=1, hidden_size=2, **given),
        **load,
    )
    sizes(monkeypatch, "forecasts", PEERS=("ridge", "failing"))
    (line,) = run("forecasts")
    assert line["horizon"] == 6
    assert line["scores"].keys() == {"xlstm", "ridge", "failing"}
    assert 0 < line["scores"]["ridge"]["rmse"] < line["scores"]["xlstm"]["rmse"]
    assert line["scores"]["failing"]["error"].startswith(
        "ValueError: compare: the model 'failing' is 'failing', expec"
    )


FIRST = TiRex(16, 1, 2, patch_size=4, quantiles=(0.1, 0.5, 0.9), input_ff_size=8, context=512)
SECOND = TiRex2(
    8, [("mlstm", 2, 2), ("slstm", 2, 2)], patch_size=4, quantiles=(0.1, 0.5, 0.9), context=512
)


def test_forecasts_of_tirex(run, monkeypatch):
    sizes(monkeypatch, "tirex", TiRex=lambda *given: FIRST, TiRex2=lambda *given: SECOND)
    sizes(monkeypatch, "tirex", HORIZONS={"tirex1": 4, "tirex2": 8}, CONTEXT=64)
    lines = run("tirex", "--rounds", 1, "--series", 2)
    assert {line["bench"] for line in lines} == {
        *(
            "tirex",
            "tirex processors",
            "tirex memory, beyond",
            "tirex memory, peak",
            "tirex import and load",
        )
    }


def test_two_versions_in_turn(monkeypatch, capsys):
    """The last commit beside the tree as it is."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout of Git")
    arguments = ["against", "HEAD", "--rounds", "1", "--only", "RNN 32,1,1,50 inference"]
    monkeypatch.setattr(sys, "argv", arguments)
    importlib.import_module("bench.against").main()
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("RNN 32,1,1,50 inference")
    assert float(last.split()[-1]) > 0


def test_all_in_turn(run, monkeypatch):
    """Each in a process of its own, which is acted out here; what the others measured is kept where
    one fails.
    """
    from bench import __main__

    def acted(command, check):
        if command[2] != "bench.report":
            with Path(command[command.index("--json") + 1]).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"bench": command[2]}) + "\n")
        return SimpleNamespace(returncode=int(command[2] == "bench.memory" and broken))

    # whose name Python may ask a process for
    monkeypatch.setattr(__main__, "name_of_machine", lambda: "machine")
    monkeypatch.setattr(__main__.subprocess, "run", acted)
    broken = False
    assert [line["bench"] for line in run("__main__", where="--output")] == [
        f"bench.{m}" for m in __main__.MODULES
    ]
    broken = True
    with pytest.raises(SystemExit, match=r"failed: bench\.memory; what the others measured is in"):
        run("__main__", where="--output")


def test_all_tasks_from_training_to_results(tmp_path, monkeypatch, capsys):
    """Each task and model with small sizes, twice with the same numbers."""
    for name, task in TASKS.items():
        monkeypatch.setitem(
            tasks.TASKS, name, replace(task, tests=(72,) if task.prefixes else (64, 72))
        )
    monkeypatch.setattr(tasks, "RECIPES", dict.fromkeys(TASKS, SMALL))
    runs = []
    for k in range(2):
        results = tmp_path / f"{k}.json"
        monkeypatch.setattr(sys, "argv", ["tasks", "--json", str(results)])
        tasks.main()
        runs.append([json.loads(line) for line in results.read_text().splitlines()])
    assert "parity, mLSTM: accuracy" in capsys.readouterr().out
    assert [(line["task"], line["model"]) for line in runs[0]] == [
        (t, m) for t in TASKS for m in tasks.MODELS
    ]
    for one, two in zip(*runs, strict=True):
        assert {"bench", "name", "case", "seed", "precision", "results", "machine"} <= set(one)
        assert one["case"]["lr"] == SMALL.lr
        assert one["results"].pop("seconds") > 0
        two["results"].pop("seconds")
        assert one == two
        assert one["results"]["steps"] == 2
        lengths = [int(T) for T in one["results"]["by length"]]
        expected = {
            "parity": list(range(3, 73)),
            "arithmetic": list(range(3, 72, 2)),
            "recall": [64, 72],
        }
        assert lengths == expected[one["task"]]
