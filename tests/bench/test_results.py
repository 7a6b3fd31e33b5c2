"""The benchmarks measure what they say: peers compute the same, tables say what was measured."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import network, peers, ranks, report
from bench.cases import Case
from tests.conftest import ROOT
from xlstm import optim, training
from xlstm.cli.timing import Size


def test_onnxruntime_runs_the_same_layer():
    pytest.importorskip("onnxruntime")
    case = Case("lstm", 4, 2, 3, 5, train=False)
    layer = case.layer_of()
    y, _, _ = layer.forward(layer.init(0, "numpy"), case.arrays()[0])
    np.testing.assert_allclose(peers.PEERS["onnxruntime"](case)()[0], y, rtol=1e-5, atol=1e-6)


def test_layers_from_measurement_to_page(tmp_path, monkeypatch):
    """One case of each kind, timed, written, read, and put where a page has its marks."""
    pytest.importorskip("torch")
    layers = importlib.import_module("bench.layers")
    monkeypatch.setattr(layers, "SIZES", [Size(3, 2, 4, 5)])
    monkeypatch.setattr(layers, "LARGE", (3, 1, 2, 2))
    monkeypatch.setattr(layers.peers, "CPU", ("torch",))
    results = tmp_path / "results.json"
    page = tmp_path / "speed.md"
    cases = ("lstm", "stack", "lengths", "inference")
    argv = ["layers", *cases, "--rounds", "1", "--json", str(results)]
    monkeypatch.setattr(sys, "argv", argv)
    layers.main()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [*dict.fromkeys(line["bench"] for line in lines)] == [
        "lstm forward + backward",
        "stack forward + backward",
        "lstm, lengths T/4 to T",
        "lstm inference",
    ]
    assert all(line["precision"] == "float32" and line["unit"] == "seconds" for line in lines)
    assert {"xlstm", "torch"} <= set(lines[0]["results"])
    lines[0]["results"] = {
        "xlstm": {"median": 0.004},
        "torch": {"median": 0.008},
        report.ALONE: {"median": 0.016},
        report.PRODUCTS: {"median": 0.0032},
    }
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page.write_text(f"before\n{report.START}old\n{report.END}after\n")
    monkeypatch.setattr(sys, "argv", ["report", str(results), "--page", str(page)])
    report.main()
    before, made, after = re.split(f"{report.START}|{report.END}", page.read_text())
    assert (before, after) == ("before\n", "after\n")
    assert "| 3,2,4,5 float32 | 4 | 0.50 | 2.00 | 1.25 |" in made


def test_times_of_ranks_by_hand(monkeypatch):
    """Sums of 1024 bytes take two seconds, and one of three seconds of both passes is the forward
    pass.
    """
    wires = network.Network(1.0, 10.0)
    assert wires.seconds("sum", 80, 8) == 2 * (3 + 7)
    assert wires.seconds("gather_parts", 80, 8) == 3 + 7
    assert wires.seconds("gather_parts", 1 << 20, 8) == pytest.approx(7 + 7 / 8 * (1 << 20) / 10)
    monkeypatch.setattr(network, "NETWORKS", {"slow": network.Network(0.0, 7 / 8 * 1024)})
    monkeypatch.setattr(network.parallel, "BUCKET", 512)
    params = {"first": np.zeros(128), "second": np.zeros(128)}
    for overlaps, seconds in ((False, 3 + 2), (True, 3 + 1)):
        setting = network.Setting("slow", 8, None, overlaps)
        assert network.predicted(setting, params, 3.0, 0.5) == seconds + 0.5


def test_equal_ranks_train_as_one(monkeypatch):
    """The double of other ranks returns what they would have sent."""
    monkeypatch.setattr(network.parallel.AllReduce, "check", 0.0)
    model, data = ranks.lstm(2, 3, 4, 5, 2)
    weights = []
    for group in (None, network.EqualRanks(network.Setting("none", 4, None, True))):
        step = training.TrainStep(model, optim.adam(1e-2), group=group)
        state = step.init(model.init(0, "numpy", "float64"))
        for batch in data.batches():
            state, _ = step(state, batch if group is None else group.part(batch))
        weights.append(state.params)
    for name, w in weights[0].items():
        np.testing.assert_allclose(weights[1][name], w, rtol=1e-10, atol=1e-12)


def test_the_page_says_what_the_results_say():
    """The tables of docs/speed.md are made from the files that it names by `python -m
    bench.report`.
    """
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    block = text.split(report.START)[1].split(report.END)[0]
    paths = [Path(name) for name in re.findall(r"bench/results/[\w-]+\.json", block)]
    assert block == report.text(
        [line for path in paths for line in report.read(ROOT / path)], paths
    )


# Programs that run here, and on CuPy in test_cupy_programs.py; and two workers, which run inside
# packages that are not installed here.
ELSEWHERE = {
    *("layers", "report"),
    *("gpu", "barriers", "cudnn", "mlstm", "language", "sanitize", "sanitized"),
    *("published_worker", "tirex_worker"),
}


def test_the_table_of_programs_is_whole():
    """bench/README.md has a line for each program, and test_programs.py runs each, or another file
    does.
    """
    here = ROOT / "bench"
    programs = {
        path.stem
        for path in here.glob("*.py")
        if "if __name__ ==" in path.read_text(encoding="utf-8")
    }
    listed = re.findall(
        r"^\| `(\w+)` \|", (here / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {name for name in programs if not name.endswith("_worker")} - {"__main__"} == set(listed)
    assert programs >= ELSEWHERE
    text = Path(__file__).with_name("test_programs.py").read_text(encoding="utf-8")
    assert not [name for name in programs - ELSEWHERE if f'"{name}"' not in text]
