"""The benchmarks measure what they say: peers compute the same, tables say what was measured."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import cases, notebook, peers, products, report
from bench.cases import Case
from tests.conftest import DATA
from xlstm.cli.bench import Timing, interleave


@pytest.mark.parametrize("case", ["d1_h50", "d3_h8"])
def test_the_baseline_is_the_notebook(case):
    with np.load(DATA / f"seed_lstm_{case}.npz") as file:
        golden = dict(file)
    p = {f"{kind}{k}": golden[f"{kind}{k}"].copy() for kind in "UWb" for k in notebook.GATES}
    losses = [notebook.step(p, golden["x"], golden["y_true"], float(golden["sgd_lr"])) for _ in range(25)]
    np.testing.assert_allclose(losses, golden["sgd_losses"], rtol=1e-12)
    for name, array in p.items():
        np.testing.assert_allclose(array, golden[f"after_{name}"], rtol=1e-12, atol=1e-12)


# In a process of its own: JAX has threads, and forbids to fork from then on.
SAME_AS_JAX = """
import numpy as np
from bench.cases import Case
from bench.peers import PEERS
for kind in ("lstm", "gru", "rnn"):
    case = Case(kind, 5, 3, 4, 6)
    layer = case.layer_of()
    params, (x, dy) = layer.init(0, "numpy"), case.arrays()
    y, _, saved = layer.forward(params, x)
    grads, dx, _ = layer.backward(params, saved, dy)
    found, found_dx = PEERS["JAX"](case)()
    np.testing.assert_allclose(PEERS["JAX"](Case(kind, 5, 3, 4, 6, train=False))(), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found_dx, dx, rtol=1e-4, atol=1e-5)
    for name, grad in grads.items():
        np.testing.assert_allclose(found[name.removeprefix("0.")], grad, rtol=1e-4, atol=1e-5)
    gradients, dx = PEERS["Keras"](case)()
    assert [g.shape for g in gradients][:2] == [(4, len(grads["0.b"])), (6, len(grads["0.b"]))]
    assert dx.shape == (3, 5, 4)
"""


def test_the_scan_by_jax_and_the_layer_by_keras():
    pytest.importorskip("jax")
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "-c", SAME_AS_JAX], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("case", [Case("gru", 4, 2, 3, 5), Case("lstm", 4, 2, 3, 5, ragged=True)], ids=str)
def test_peers_that_are_there_run_and_the_others_say_why(case):
    found, missing = peers.calls(case, tuple(peers.PEERS)[:5])
    assert set(found) | set(missing) == set(tuple(peers.PEERS)[:5])
    for call in found.values():
        call()
    assert all(missing.values())


def test_onnxruntime_runs_the_same_layer():
    pytest.importorskip("onnxruntime")
    case = Case("lstm", 4, 2, 3, 5, train=False)
    layer = case.layer_of()
    y, _, _ = layer.forward(layer.init(0, "numpy"), case.arrays()[0])
    np.testing.assert_allclose(peers.PEERS["onnxruntime"](case)()[0], y, rtol=1e-5, atol=1e-6)


def test_a_library_that_is_not_installed_is_named():
    with pytest.raises(peers.MissingError, match="no_such_library is not installed"):
        peers.module("no_such_library")


def test_products_alone_are_those_of_the_layer(monkeypatch):
    """Counted by the multiplications that they ask NumPy for."""
    from xlstm.cli import bench

    count = []
    real = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out: count.append(2 * a.size * b.shape[1]) or real(a, b, out=out))
    products.alone(Case("lstm", 6, 2, 3, 5))()
    assert sum(count) == bench.Case("lstm", bench.Size(6, 2, 3, 5)).operations


def test_layers_from_measurement_to_page(tmp_path, monkeypatch, capsys):
    """One case of each kind, timed, written, read, drawn, and put where a page has its marks."""
    pytest.importorskip("torch")
    layers = importlib.import_module("bench.layers")
    for name in ("SHAPES", "LARGE"):
        monkeypatch.setattr(layers, name, [(3, 2, 4, 5)] if name == "SHAPES" else [])
    monkeypatch.setattr(layers.peers, "CPU", ("torch",))
    results, page = tmp_path / "results.json", tmp_path / "speed.md"
    monkeypatch.setattr(sys, "argv", ["layers", "lstm", "stack", "--rounds", "1", "--json", str(results)])
    layers.main()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["bench"] for line in lines] == ["lstm forward + backward", "stack forward + backward"]
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
    picture = tmp_path / "results.png"
    monkeypatch.setattr(sys, "argv", ["report", str(results), "--page", str(page), "--plot", str(picture)])
    report.main()
    assert "| 3,2,4,5 float32 | 4 | 0.50 | 2.00 | 1.25 |" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith(f"before\n{report.START}")
    assert text.endswith(f"{report.END}after\n")
    assert "old" not in text
    assert "| 3,2,4,5 float32 | 4 | 0.50 | 2.00 | 1.25 |" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_growth_from_measurement_to_picture(tmp_path, monkeypatch, capsys):
    growth = importlib.import_module("bench.growth")
    for letter in "TBH":
        monkeypatch.setattr(growth, letter, [1, 2, 3])
    results, picture = tmp_path / "results.json", tmp_path / "growth.png"
    monkeypatch.setattr(sys, "argv", ["growth", "--rounds", "1", "--json", str(results), "--plot", str(picture)])
    monkeypatch.setattr(growth, "interleave", lambda calls, rounds: interleave(calls, rounds, 0.0))
    growth.main()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert report.benches(lines) == ["growth with T", "growth with B", "growth with H"]
    assert len(lines) == 12
    assert [line["case"]["B"] for line in lines[3:6]] == [1, 2, 3]
    out = capsys.readouterr().out
    assert out.count("both at most 1.3 |") == 4
    assert out.count("time per unit grows by") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_growth_compares_times_per_unit():
    growth = importlib.import_module("bench.growth")
    sweep = growth.Sweep("B", "B", [Case("lstm", 4, B, 3, 5) for B in (2, 3, 8)])
    case = sweep.cases[0]
    assert growth.unit(case, Timing(1e-6, 2e-6, 1)) == pytest.approx(1e6 / (3 * 4 * 2 * 20 * (3 + 5)))
    share = np.log(3 / 2) / np.log(8 / 2)
    assert growth.rows(sweep, [16.0, 12.0, 9.0]) == [
        ["", "1.33", "", ""],
        ["0.75", "1.33", f"{0.75 ** (1 - share) * (4 / 3) ** share:.2f}", "miss"],
        ["0.75", "", "", ""],
    ]
    assert growth.rows(sweep, [10.0, 12.0, 10.0])[1][3] == "pass"
    assert growth.growth([3.0, 2.0, 2.5, 2.2]) == 1.25
    assert growth.verdict(1.3) == "pass"
    assert growth.verdict(1.31) == "miss"


def test_beside_a_busy_process(tmp_path, monkeypatch, capsys):
    busy = importlib.import_module("bench.busy")
    for name in ("SHAPES", "LARGE"):
        monkeypatch.setattr(busy, name, [(3, 2, 4, 5)])
    monkeypatch.setattr(busy, "interleave", lambda calls, rounds: interleave(calls, rounds, 0.0))
    results = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["busy", "--rounds", "2", "--json", str(results)])
    busy.main()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["bench"] for line in lines] == ["beside a busy process"] * 2
    assert all(list(line["results"]) == ["xlstm", "idle"] for line in lines)
    assert all(timing["calls"] >= 2 for line in lines for timing in line["results"].values())
    assert "times the idle time: " in capsys.readouterr().out


def test_a_busy_process_ends_with_its_block(monkeypatch):
    busy = importlib.import_module("bench.busy")
    started = []
    real = busy.subprocess.Popen

    def popen(*args, **options):
        started.append(real(*args, **options))
        return started[-1]

    def interrupted():
        with busy.busy():
            assert started[0].poll() is None
            raise KeyboardInterrupt

    monkeypatch.setattr(busy.subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert started[0].returncode is not None


def test_a_report_without_any_peer():
    results = {"xlstm": {"median": 0.002}, report.ALONE: {"median": 0.003}}
    lines = [{"bench": "one step", "name": "1,1,64,64", "case": {}, "unit": "seconds", "results": results}]
    assert "| 1,1,64,64 | 2 |\n" in report.details(lines)
    assert "| one step |\n" in report.summary(lines)


def test_an_environment_variable_is_put_back(monkeypatch):
    monkeypatch.delenv("XLSTM_COMPILE", raising=False)
    seen = []
    cases.without_compiling(lambda: seen.append(cases.os.environ["XLSTM_COMPILE"]))()
    assert seen == ["0"]
    assert "XLSTM_COMPILE" not in cases.os.environ


def test_the_page_says_what_the_results_say():
    """The tables of docs/speed.md are made from the files that it names by `python -m bench.report`."""
    root = DATA.parent.parent
    text = (root / "docs" / "speed.md").read_text(encoding="utf-8")
    block = text.split(report.START)[1].split(report.END)[0]
    paths = [Path(name) for name in re.findall(r"bench/results/[\w-]+\.json", block)]
    assert block == report.text([line for path in paths for line in report.read(root / path)], paths)
