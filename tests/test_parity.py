"""Parity: its measure, its time, and the paths of a GPU, here on a CPU."""

import numpy as np

from tests import parity
from tests.conftest import make_backend


def test_difference_is_relative_and_sees_everything():
    a = np.array([1e-4, 2e-4])
    assert parity.difference([a], [a]) == 0.0
    np.testing.assert_allclose(parity.difference([a], [a * (1 + 1e-3)]), 1e-3, rtol=1e-6)
    for other in (a.astype("float32"), a[:1], np.array([np.nan, 2e-4])):
        assert parity.difference([a], [other]) == np.inf
    assert parity.difference([a, a], [a, 2 * a]) == 1.0


def test_a_case_that_fails_is_a_row_and_after_a_time_there_is_none(monkeypatch):
    monkeypatch.setitem(parity.CASES, "broken", parity.Case(None))
    (row,) = parity.rows_of("broken")
    assert not row["ok"]
    assert row["error"].startswith("AttributeError")
    assert parity.rows_of("broken", until=0.0) is None


def test_every_path_has_a_row_for_each_dtype_or_a_reason(monkeypatch, xp):
    few = {
        "loop": ("float16",),
        "pointwise": (),
        "plain": ("float32",),
        "grid": (),
        "cluster": ("float32 tf32",),
    }
    monkeypatch.setattr(parity, "DTYPES", few)
    name = "RNN layer_norm=True"
    rows = parity.by_path(make_backend("cupy"), make_backend("numpy"), name)
    assert all(row["ok"] for row in rows)
    ways = [("loop", "float16"), ("plain", "float32"), ("cluster", "float32 tf32")]
    assert [(row["case"], row["dtype"]) for row in rows] == [
        (f"{name} [{path}]", dtype) for path, dtype in ways
    ]
    assert [row["dtype"] for row in rows if "impossible" in row] == ["float32", "float32 tf32"]


def test_one_path_of_each_case_makes_all_of_them():
    """Halves with lengths are among them."""
    ways = {name: case.ways() for name, case in parity.CASES.items() if case.paths}
    met = {name: some[list(parity.CASES).index(name) % len(some)] for name, some in ways.items()}
    assert set(met.values()) == {way for some in ways.values() for way in some}
    assert ("auto", "bfloat16") in [way for name, way in met.items() if "lengths" in name]


def test_a_backend_that_must_work(monkeypatch, capsys):
    """It is named with the reason, before anything is compared; else the last line names what was
    not compared.
    """
    usable = parity.backends()
    monkeypatch.setattr(parity, "backends", lambda: {**usable, "cupy": "no card"})
    monkeypatch.setattr(parity, "CASES", {})
    monkeypatch.setattr("sys.argv", ["parity", "--require", "cupy"])
    assert parity.main() == 1
    assert (
        capsys.readouterr().out.splitlines()[-1] == "cupy is required and was not compared: no card"
    )
    monkeypatch.setattr("sys.argv", ["parity", "--require", "numpy"])
    assert parity.main() == 0
    assert "cupy, no card" in capsys.readouterr().out.splitlines()[-1]
