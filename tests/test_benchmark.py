"""Comparison of backends: what is counted, what is said, what is refused, and what the command prints and writes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import xlstm
from tests.docs import blocks
from xlstm.cli import benchmark, machine, peak, peers
from xlstm.cli.app import app
from xlstm.cli.benchmark import Case, Row, Size
from xlstm.cli.timing import Timing, interleave
from xlstm.estimators import plots
from xlstm.layers import recurrent

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux keeps account of peak memory")


def test_interleave_takes_turns_and_leaves_out_the_first_call_of_a_block():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "ab"}
    seen = []
    found = interleave(calls, rounds=3, block=0, show=seen.append)
    assert "".join(log) == "aabbbbaaaabb"  # the first in turn changes
    assert "".join(seen) == "abbaab"
    assert [t.calls for t in found.values()] == [3, 3]
    slow = interleave({"sleep": lambda: time.sleep(0.01)}, rounds=2, block=0)["sleep"]
    assert 0.01 <= slow.best <= slow.median < 1


def test_operations():
    """PyTorch's own count of the operations of a forward pass, and three times that with backward."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    T, B, D, H = 3, 2, 5, 4
    for name, gates in (("lstm", 4), ("gru", 3), ("rnn", 1)):
        linear = torch.nn.Linear(D + H, gates * H, bias=False)
        with FlopCounterMode(display=False) as counter:
            linear(torch.zeros(T * B, D + H))
        expected = counter.get_total_flops()
        assert benchmark.operations(Case(name, Size(T, B, D, H), train=False)) == expected
        assert benchmark.operations(Case(name, Size(T, B, D, H))) == 3 * expected


def row(H, backend, ratio, dtype="float32"):
    case = Case("lstm", Size(8, 2, H, H), dtype)
    return Row(case, backend, backend, Timing(1.0, ratio, 5), benchmark.operations(case), 1e9, None, ratio)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((3.0, 0.9, 0.2), "lstm float32: {cupy} is faster than {numpy} from T,B,D,H = 8,2,64,64 on"),
        ((0.9, 1.2, 0.2), "lstm float32: {cupy} is faster than {numpy} from T,B,D,H = 8,2,256,256 on"),
        ((0.5, 0.9, 0.2), "lstm float32: {cupy} is faster than {numpy} at every size measured"),
        ((0.5, 0.9, 1.2), "lstm float32: {cupy} is faster than {numpy} at T,B,D,H = 8,2,16,16 and 8,2,64,64, but not"),
        ((1.5, 0.99, 1.0), "lstm float32: {cupy} is faster than {numpy} at no size measured"),
    ],
)
def test_from_which_size_on_a_backend_wins(ratios, said):
    rows = [
        r for H, ratio in zip((16, 64, 256), ratios, strict=True) for r in (row(H, "numpy", 1), row(H, "cupy", ratio))
    ]
    (found,) = benchmark.crossover(rows)
    assert found.startswith(said.format(**benchmark.WORDS))


def test_rows_derive_from_what_was_measured():
    one = row(16, "numpy", 2.0)
    assert one.sequences == 1.0
    assert one.speed == one.operations / 2
    assert one.share == one.speed / 1e9
    assert json.loads(json.dumps(one.as_dict()))["size"] == {"T": 8, "B": 2, "D": 16, "H": 16}


@linux
def test_peak_memory_is_that_of_the_call():
    """A call that holds 64 MB at most, and gives it back."""
    taken = peak.of("tests.test_benchmark:hold", 64)
    assert 60e6 < taken < 80e6
    with pytest.raises(RuntimeError, match=r"tests.test_benchmark:fail\('why',\): .*ValueError: why"):
        peak.of("tests.test_benchmark:fail", "why")


def hold(megabytes):
    return lambda: np.ones(megabytes * 10**6, dtype="uint8").sum()


def fail(reason):
    raise ValueError(reason)


def test_what_a_result_depends_on():
    found = json.loads(json.dumps(machine.describe()))
    assert found["xlstm"] == xlstm.__version__
    assert found["packages"]["numpy"] == np.__version__
    assert found["cores"] >= 1
    assert found["threads"] >= 1
    assert found["processor"]
    assert found["backend numpy"] == "numpy on CPU"
    assert "not installed" not in found["packages"].values()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def run(*args):
        return CliRunner().invoke(app, ["bench", *map(str, args)])

    return run


def test_the_command(bench, tmp_path):
    pytest.importorskip("torch")
    arguments = ("lstm", "gru", "--size", "6,2,3,4", "--rounds", 1)
    backends = ("--backend", "numpy", "--backend", "torch")
    result = bench(*arguments, *backends, "--json", "times.json", "--plot", "times.png")
    assert result.exit_code == 0, result.output
    for words in ("lstm float32, forward and backward", "gru float32", "6,2,3,4", "compiled loops", "times.png"):
        assert words in result.output
    assert "this library on PyTorch tensors is" in result.output  # faster or not: said for both layers
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (tmp_path / "times.json").read_text().splitlines()]
    assert [(r["layer"], r["size"]["T"], r["backend"]) for r in lines] == [
        (layer, 6, name) for layer in ("lstm", "gru") for name in ("numpy", "torch")
    ]
    for line in lines:
        assert line["seconds"]["best"] > 0
        assert line["gflops"] > 0
        assert line["product_gflops"] > 0
        assert line["machine"]["packages"]["numpy"] == np.__version__
    small = ("--size", "6,2,3,4", "--size", "2,2,3,4", "--rounds", 1)
    result = bench("rnn", *small, "--backend", "numpy", "--inference", "--json", "times.json")
    assert result.exit_code == 0, result.output
    assert "rnn float32, inference" in result.output
    lines = [json.loads(line) for line in (tmp_path / "times.json").read_text().splitlines()[4:]]  # appended
    assert [line["size"]["T"] for line in lines] == [2, 6]  # from little work to much


def test_rows_are_named_for_what_runs_in_them(bench, tmp_path, monkeypatch):
    """torch.nn is a row of its own where it has the layer, and cases are counted where there is no terminal."""
    pytest.importorskip("torch")
    monkeypatch.setattr(benchmark.peak, "of", lambda *a: None)
    names = ("numpy", "torch", "torch.nn")
    rows = [word for name in names for word in ("--backend", name)]
    result = bench("gru", "slstm", "--size", "6,2,3,4", "--rounds", 1, *rows, "--json", "t.json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "t.json").read_text().splitlines()]
    assert [(line["layer"], line["name"]) for line in lines] == [
        ("gru", "this library on NumPy arrays"),
        ("gru", "this library on PyTorch tensors"),
        ("gru", "torch.nn"),
        ("slstm", "this library on NumPy arrays"),
        ("slstm", "this library on PyTorch tensors"),
    ]
    assert result.stderr == "1/2 gru 6,2,3,4 float32\n2/2 slstm 6,2,3,4 float32\n"


@pytest.mark.parametrize("layer", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("train", [True, False])
def test_torch_nn_does_the_same_work(layer, train, monkeypatch):
    """Its layer has the sizes of the case, and in training gradients of weights and of the input."""
    torch = pytest.importorskip("torch")
    made = []
    real = getattr(torch.nn, peers.LAYERS[layer])
    monkeypatch.setattr(torch.nn, peers.LAYERS[layer], lambda *sizes: made.append(real(*sizes)) or made[-1])
    seen, wanted = [], []
    monkeypatch.setattr(torch.Tensor, "requires_grad_", lambda x, flag: wanted.append((tuple(x.shape), flag)))
    monkeypatch.setattr(torch.Tensor, "backward", lambda y, dy: seen.append((y, torch.autograd.backward(y, dy))))
    case = Case(layer, Size(3, 2, 5, 4), train=train)
    work, _ = benchmark.runner("torch.nn", "float32").prepared(case)
    work()
    work()
    assert (made[0].input_size, made[0].hidden_size) == (5, 4)
    assert ((3, 2, 5), train) in wanted
    assert len(seen) == 2 * train
    assert all((p.grad is not None) == train for p in made[0].parameters())
    if train:
        assert seen[0][0].shape == (3, 2, 4)


def test_sizes_are_drawn_by_their_work(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **o: figures.append(figure))
    rows = [r for H in (256, 16, 64) for r in (row(H, "numpy", 1.0), row(H, "torch.nn", 0.5))]
    plots.comparison(tmp_path / "p.png", rows)
    (axes,) = figures[0].axes
    work = sorted(r.operations for r in rows[::2])
    assert axes.get_xscale() == "log"
    for line in axes.lines:
        assert list(line.get_xdata()) == work
    ticks = dict(zip(axes.get_xticks(), (label.get_text() for label in axes.get_xticklabels()), strict=True))
    assert [ticks[w] for w in work] == ["8,2,16,16", "8,2,64,64", "8,2,256,256"]
    assert [line.get_label() for line in axes.lines] == ["this library on NumPy arrays, numpy", "torch.nn, torch.nn"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cnn",), "layer: 'cnn' is unknown, expected lstm, gru, rnn"),
        (("--size", "1,2"), "size: '1,2', expected four numbers from 1 up: T,B,D,H"),
        (("--size", "1,2,3,0"), "size: '1,2,3,0', expected four numbers"),
        (("--dtype", "int8"), "dtype 'int8' is not supported"),
        (("--dtype", "float16", "--backend", "numpy"), "numpy: backend: float16 on a CPU"),
        (("--plot", "a.xyz"), "a.xyz: ends in '.xyz', expected one of ."),
        (("--backend", "tpu"), "'tpu' is not a backend"),
        (("--json", "no/where.json"), "no/where.json: not saved, No such file or directory"),
        (("--plot", "no/where.png"), "no/where.png: not saved, No such file or directory"),
    ],
)
def test_bad_input_is_refused_before_any_work(bench, monkeypatch, arguments, said):
    monkeypatch.setattr(benchmark, "run", lambda *a: pytest.fail("work was done"))
    result = bench(*arguments)
    assert result.exit_code == 2
    assert f"error: {said}" in result.stderr or said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_backend_that_fails_is_left_out_and_the_rest_is_kept(bench, monkeypatch, tmp_path):
    """Out of memory in one case, and in the measurement of memory; then an interrupt."""
    pytest.importorskip("torch")
    real = benchmark.call

    def call(case, be):
        if be.name == "torch" and case.size.T == 6:
            raise RuntimeError("out of memory")
        if case.size.T == 8:
            raise KeyboardInterrupt
        return real(case, be)

    def of(*arguments):
        raise RuntimeError("the process died")

    monkeypatch.setattr(benchmark, "call", call)
    monkeypatch.setattr(benchmark.peak, "of", of)
    sizes = [word for T in (2, 6, 8) for word in ("--size", f"{T},2,3,4")]
    result = bench(*sizes, "--rounds", 1, "--backend", "numpy", "--backend", "torch", "--json", "times.json")
    assert result.exit_code == 130
    assert "note: lstm 6,2,3,4 float32: without torch, out of memory" in result.stderr
    assert "note: lstm 2,2,3,4 float32: memory of numpy was not measured, the process died" in result.stderr
    assert "interrupted" in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "times.json").read_text().splitlines()]
    assert [(line["size"]["T"], line["backend"], line["peak_bytes"]) for line in lines] == [
        (2, "numpy", None),
        (2, "torch", None),
        (6, "numpy", None),
    ]
    assert "6,2,3,4  this library on NumPy arrays" in result.stdout


def test_a_dtype_that_some_backends_lack(bench, monkeypatch):
    monkeypatch.setattr(benchmark.peak, "of", lambda *a: None)
    result = bench("--size", "2,2,3,4", "--rounds", 1, "--backend", "numpy", "--dtype", "float16", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "without numpy: backend: float16 on a CPU" in result.output
    assert "lstm float32, forward and backward" in result.output
    assert "lstm float16" not in result.output


@pytest.fixture
def unregistered(monkeypatch):
    """Without the cells that other tests register, whose names are those of the page of this test."""
    builtin = {name: layer for name, layer in recurrent.LAYERS.items() if not hasattr(layer, "CELL")}
    monkeypatch.setattr(recurrent, "LAYERS", builtin)


def test_cells_of_a_file(bench, tmp_path, unregistered):
    """The cells of docs/cells.md are timed, and their memory is measured in a process that runs the file too."""
    code = "\n".join(blocks(Path(__file__).parents[1] / "docs" / "cells.md"))
    (tmp_path / "my_cells.py").write_text(code, encoding="utf-8")
    arguments = ("--size", "6,2,3,4", "--rounds", 1, "--backend", "numpy", "--json", "times.json")
    result = bench("LiGRU", "MinGRU", "gru", "--import", "my_cells.py", *arguments)
    assert result.exit_code == 0, result.output
    assert "note" not in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "times.json").read_text().splitlines()]
    assert [line["layer"] for line in lines] == ["LiGRU", "MinGRU", "gru"]
    if sys.platform.startswith("linux"):
        assert all(line["peak_bytes"] is not None for line in lines)
    weights = 2 * 4 * 3  # of MinGRU, which has no Wh
    assert lines[1]["gflops"] * 1e9 * lines[1]["seconds"]["median"] == pytest.approx(3 * 2 * weights * 6 * 2)


def test_files_that_cannot_be_imported(bench, tmp_path, monkeypatch, unregistered):
    monkeypatch.setattr(benchmark, "run", lambda *a: pytest.fail("work was done"))
    for name, text in {"fails.py": "1 / 0", "ends.py": "exit(3)", "grammar.py": "class", "none.py": ""}.items():
        (tmp_path / name).write_text(text)
    for name, said in {
        "there is none.py": "there is none.py: No such file or directory",
        "fails.py": "import: fails.py fails, ZeroDivisionError: division by zero",
        "ends.py": "import: ends.py fails, SystemExit: 3",
        "grammar.py": "import: grammar.py fails, SyntaxError: invalid syntax",
        "none.py": "layer: 'LiGRU' is unknown, expected lstm, gru, rnn, slstm, mlstm\n",
    }.items():
        result = bench("LiGRU", "--import", name)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_info_shows_loops_and_threads():
    command = [sys.executable, "-m", "xlstm", "info"]
    environment = {**os.environ, "XLSTM_COMPILE": "0", "XLSTM_NUM_THREADS": "3"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "threads           3\n" in result.stdout
    assert "compiled loops    no: XLSTM_COMPILE=0\n" in result.stdout
    environment = {**os.environ, "XLSTM_COMPILE": "2", "XLSTM_NUM_THREADS": "two"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "threads           refused: XLSTM_NUM_THREADS: 'two' is not a number" in result.stdout
    assert "compiled loops    refused: XLSTM_COMPILE: '2', expected 0 or 1\n" in result.stdout
