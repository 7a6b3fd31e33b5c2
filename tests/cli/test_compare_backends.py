"""`xlstm compare`: every row has the numbers of float64 NumPy, a wrong one is found, and one that
must run is named.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_backend
from xlstm.arrays.convert import BackendError
from xlstm.cli import compare_backends as compared
from xlstm.cli import timing
from xlstm.examples import gate_by_gate

PROGRAMS = (
    compared.Program("the notebook's program", timing.Size(4, 1, 1, 5), "float64"),
    compared.Program("a model", timing.Size(4, 2, 3, 5), "float32", is_model=True),
)


@pytest.fixture
def compare(run, monkeypatch):
    """The command with small programs."""
    monkeypatch.setattr(compared, "PROGRAMS", PROGRAMS)
    monkeypatch.setattr(
        timing, "interleave", lambda calls, rounds: INTERLEAVE(calls, rounds, block=0.0)
    )
    return lambda options="", code=0: run(f"compare --rounds 1 {options}", code=code)


INTERLEAVE = timing.interleave


def test_every_row_has_the_numbers_of_float64(compare):
    pytest.importorskip("matplotlib")
    result = compare("--json rows.json --report page.html --plot times.png")
    rows = [json.loads(line) for line in Path("rows.json").read_text().splitlines()]
    assert [row["row"] for row in rows if "notebook" in row["program"]][:2] == ["notebook", "numpy"]
    assert next(row["row"] for row in rows if "a model" in row["program"]) == "numpy"
    for row in rows:
        assert row["agrees"]
        assert row["seconds"] is None or row["seconds"]["median"] > 0
        assert row["machine"]["packages"]["numpy"] == np.__version__
    assert [*rows[0]["differences"]] == [
        "y",
        "i",
        "o",
        "f",
        "g",
        "dx",
        "dWx",
        "dWh",
        "db",
        "Wx",
        "Wh",
        "b",
    ]
    assert {"dhead.W", "dhead.b", "Wx", "head.W"} <= {*rows[-1]["differences"]}
    assert f"{len(rows)} of {len(rows)} rows agree" in result.output
    assert (
        "rows agree with float64 NumPy, within 1e-12 in float64 and 1e-05 in float32"
        in result.output
    )
    page = Path("page.html").read_text()
    assert "packages          numpy " in page
    assert "rows agree" in page
    assert Path("times.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", [1e-9, np.inf])
def test_a_wrong_number_is_found(compare, monkeypatch, wrong):
    """One row alone is wrong, and the exit code says so; products of what is not finite end no
    command.
    """
    monkeypatch.setattr(gate_by_gate, "sigmoid", lambda x: 1 / (1 + np.exp(-x)) + wrong)
    lines = [line for line in compare(code=1).stdout.splitlines() if "wrong: " in line]
    assert [line.rpartition(":")[0] for line in lines] == [f"wrong: {PROGRAMS[0]}, notebook"]


def test_a_row_that_fails_is_named(compare, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("an illegal address")

    monkeypatch.setattr(gate_by_gate, "forward", broken)
    output = compare("--json rows.json", code=1).output
    assert "notebook fails: an illegal address" in output
    first = json.loads(Path("rows.json").read_text().splitlines()[0])
    assert first["row"] == "notebook"
    assert first["differences"]["y"] is None  # JSON has no infinity
    assert not first["agrees"]


def test_a_row_that_must_run(compare, monkeypatch):
    def missing(name, dtype):
        if name == "cupy":
            raise BackendError("cupy: no card")
        return BACKEND(name, dtype=dtype)

    monkeypatch.setattr(timing, "backend", missing)
    assert "without cupy: no card" in compare().output
    assert "error: cupy: no card" in compare("--require cupy", code=2).stderr
    assert "--require is 'jax', expected one of" in compare("--require jax", code=2).stderr


BACKEND = timing.backend


def test_a_row_on_cupy(compare):
    home = make_backend("cupy")
    compare("--require cupy --json rows.json")
    rows = [json.loads(line) for line in Path("rows.json").read_text().splitlines()]
    of_cupy = [row for row in rows if row["row"] == "cupy"]
    assert len(of_cupy) == len(PROGRAMS)
    for row in of_cupy:
        assert row["agrees"]
        assert row["peak_bytes"] > 0
        assert (row["seconds"] is None) == ("CPU" in str(home))
