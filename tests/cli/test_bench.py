"""Comparison of backends: what is counted, what is said, what is refused, and what the command
prints and writes.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import xlstm
from bench.peak import peak_memory
from tests.conftest import ROOT
from tests.project.markdown import blocks
from xlstm.cli import bench as timed
from xlstm.cli.bench import Case
from xlstm.cli.timing import Measurement, Size, Timing, interleave
from xlstm.cli.timing import peak_memory as peak_of_call
from xlstm.layers import recurrent

SMALL = "--size 6,2,3,4 --rounds 1"


def test_interleave_takes_turns_and_leaves_out_the_first_call_of_a_block():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "ab"}
    times = interleave(calls, rounds=3, block=0)
    assert "".join(log) == "aabbbbaaaabb"  # the first in turn changes
    assert [t.calls for t in times.values()] == [3, 3]


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3), ("rnn", 1)])
def test_operations(name, gates):
    """Three times PyTorch's own count of the operations of a forward pass."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    T = 3
    B = 2
    D = 5
    H = 4
    linear = torch.nn.Linear(D + H, gates * H, bias=False)
    with FlopCounterMode(display=False) as counter:
        linear(torch.zeros(T * B, D + H))
    assert Case(name, Size(T, B, D, H)).operations == 3 * counter.get_total_flops()


def row(H, backend, ratio):
    case = Case("lstm", Size(8, 2, H, H))
    return Measurement(case, backend, backend, Timing(1.0, ratio, 5), ratio)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((0.5, 0.9, 1.2), "at T,B,D,H = 8,2,16,16 and 8,2,64,64"),
        ((1.5, 0.99, 1.0), "at no size measured"),
    ],
)
def test_sizes_at_which_a_backend_is_faster(ratios, said):
    by_size = zip((16, 64, 256), ratios, strict=True)
    rows = []
    for H, ratio in by_size:
        rows += row(H, "numpy", 1), row(H, "cupy", ratio)
    line = "this library on CuPy arrays is faster than this library on NumPy arrays"
    assert timed.faster(rows) == [f"lstm float32: {line} {said}"]


def test_peak_memory_is_that_of_the_call():
    """A call that holds 64 MB at most, and gives it back."""
    assert 64e6 <= peak_of_call(hold(64), xlstm.backend("numpy")) < 65e6
    if sys.platform.startswith("linux"):
        assert 60e6 < peak_memory(hold, 64) < 80e6


def hold(megabytes):
    size = int(megabytes) * 10**6
    return lambda: np.ones(size, dtype="uint8").sum()


@pytest.fixture
def bench(run):
    return lambda command, *args, code=0: run(f"bench {command}", *args, code=code)


def lines(path="times.json"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_command(bench, tmp_path):
    """torch.nn is a row of its own where it has the layer, and cases are counted where there is no
    terminal.
    """
    pytest.importorskip("torch")
    backends = "--backend numpy --backend torch --backend torch.nn"
    result = bench(f"gru slstm {SMALL} {backends} --json times.json --plot times.png")
    assert result.stderr == "1/2 gru 6,2,3,4 float32\n2/2 slstm 6,2,3,4 float32\n"
    for words in (
        "gru float32, forward and backward",
        "slstm float32",
        "6,2,3,4",
        "compiled loops",
        "times.png",
    ):
        assert words in result.output
    assert "this library on PyTorch tensors is" in result.output  # faster or not
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")
    found = [(line["layer"], line["backend"], line["name"]) for line in lines()]
    ours = [("numpy", "this library on NumPy arrays"), ("torch", "this library on PyTorch tensors")]
    assert found == [("gru", *one) for one in (*ours, ("torch.nn", "torch.nn"))] + [
        ("slstm", *one) for one in ours
    ]
    for line in lines():
        assert line["size"]["T"] == 6
        assert line["seconds"]["best"] > 0
        assert line["gflops"] / line["product_gflops"] == pytest.approx(
            line["share_of_product_speed"]
        )
        assert line["machine"]["packages"]["numpy"] == np.__version__


@pytest.fixture
def unregistered(monkeypatch):
    """Without the cells that other tests register, whose names are those of the page of this
    test.
    """
    builtin = {name: recurrent.LAYERS[name] for name in ("LSTM", "GRU", "RNN", "sLSTM")}
    monkeypatch.setattr(recurrent, "LAYERS", builtin)
    monkeypatch.setattr("xlstm.models.sequence.LAYERS", builtin)


WRONG = {
    "cnn": "bench: cell is 'cnn', expected one of lstm, gru, rnn",
    "--size 1,2,3,0": "'1,2,3,0', expected four whole numbers",
    "--dtype float16 --backend numpy": "backend: float16 on a CPU",
    "--json no/where.json": "no/where.json: not saved, No such file or directory",
    "--plot no/where.png": "no/where.png: not saved, No such file or directory",
    "--import ends.py": "import: ends.py fails, SystemExit: 3",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_bad_input_is_refused_before_any_work(bench, monkeypatch, unregistered, arguments):
    monkeypatch.setattr(timed, "rows_of", lambda *a: pytest.fail("work was done"))
    Path("ends.py").write_text("exit(3)")
    refused = bench(arguments, code=2).stderr
    assert WRONG[arguments] in refused
    assert (refused[:7], refused.count("\n")) == ("error: ", 1)


def test_a_backend_that_fails_is_left_out_and_the_rest_is_kept(bench, monkeypatch):
    """Out of memory in one case; then an interrupt."""
    pytest.importorskip("torch")
    real = timed.layer_call

    def call(case, home, *arrays):
        if home.name == "torch" and case.size.T == 6:
            raise RuntimeError("out of memory")
        if case.size.T == 8:
            raise KeyboardInterrupt
        return real(case, home, *arrays)

    monkeypatch.setattr(timed, "layer_call", call)
    sizes = "--size 2,2,3,4 --size 6,2,3,4 --size 8,2,3,4 --rounds 1"
    result = bench(f"{sizes} --backend numpy --backend torch --json times.json", code=130)
    assert "note: lstm 6,2,3,4 float32: torch fails: out of memory" in result.stdout
    assert "interrupted" in result.stderr
    kept = [(line["size"]["T"], line["backend"], line["peak_bytes"] is None) for line in lines()]
    assert kept == [(2, "numpy", False), (2, "torch", True), (6, "numpy", False)]
    assert "6,2,3,4  this library on NumPy arrays" in result.stdout


def test_cells_of_a_file(bench, tmp_path, unregistered):
    """The cells of docs/cells.md are timed."""
    code = "\n".join(blocks(ROOT / "docs" / "cells.md"))
    (tmp_path / "my_cells.py").write_text(code, encoding="utf-8")
    result = bench(f"HGRN gru --import my_cells.py {SMALL} --backend numpy --json times.json")
    assert "note" not in result.stderr
    assert [line["layer"] for line in lines()] == ["HGRN", "gru"]
    weights = 2 * 4 * 3  # of HGRN, which has no Wh
    first = lines()[0]
    assert first["gflops"] * 1e9 * first["seconds"]["median"] == pytest.approx(
        3 * 2 * weights * 6 * 2
    )
