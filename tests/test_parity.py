"""The parts of parity: its measure, its order and time, and the paths of a GPU, here on a CPU."""

import numpy as np
import pytest

from tests import parity, parity_paths
from tests.conftest import make_backend
from tests.parity import difference


def test_difference_is_relative_and_sees_everything():
    a = np.array([1e-4, 2e-4])
    assert difference([a], [a]) == 0.0
    np.testing.assert_allclose(difference([a], [a * (1 + 1e-3)]), 1e-3, rtol=1e-6)
    assert difference([a], [a.astype("float32")]) == np.inf
    assert difference([a], [a[:1]]) == np.inf
    assert difference([a], [np.array([np.nan, 2e-4])]) == np.inf
    assert difference([a, a], [a, 2 * a]) == 1.0


def test_what_there_is_no_time_for_is_named():
    pytest.importorskip("array_api_strict")
    rows, left_out = parity.run_all(["linear", "mse"], 1, 60)
    assert list(dict.fromkeys(row["function"] for row in rows)) == ["linear", "mse"]
    assert all(row["ok"] for row in rows)
    assert not left_out
    assert parity.run_all(["linear", "mse"], 1, -1) == ([], ["linear", "mse"])


def test_a_function_that_fails_is_a_row(monkeypatch):
    monkeypatch.setitem(parity.FUNCTIONS, "broken", lambda be: 1 / 0)
    (row,) = parity.rows_of("broken")
    assert not row["ok"]
    assert row["error"].startswith("ZeroDivisionError")


@pytest.mark.parametrize("name", ["RNN", "RNN zoneout=0.3", "RNN layer_norm=True", "RNN activations=relu"])
def test_every_path_has_a_row_for_each_precision_or_a_reason(monkeypatch, xp, name):
    few = {
        "loop": ("float16",),
        "pointwise": (),
        "plain": ("float32",),
        "grid": (),
        "cluster": ("float32 tf32", "float16"),
    }
    monkeypatch.setattr(parity_paths, "DTYPES", few)
    rows = parity.by_path(make_backend("cupy"), make_backend("numpy"), name)
    assert all(row["ok"] for row in rows)
    low = name != "RNN activations=relu"  # which has a kink
    expected = [(p, d) for p, dtypes in few.items() for d in dtypes if low or d == "float32"]
    assert [(row["function"], row["dtype"]) for row in rows] == [(f"{name} [{p}]", d) for p, d in expected]
    assert [row["dtype"] for row in rows if "impossible" in row] == (
        [d for p, d in expected if p != "loop"] if "layer_norm" in name else []
    )


def test_few_paths_are_others_for_each_layer(monkeypatch):
    """Together they are all of them, and halves with lengths are among them."""
    met = []
    monkeypatch.setattr(parity_paths, "pairs", lambda run, device, host, chosen: met.append(chosen) or [])
    for name in [*parity.RECURRENT, *parity.WIDE, *parity.SEQUENCES]:
        parity.by_path(make_backend("numpy"), make_backend("numpy"), name, 2)
    assert {len(chosen) for chosen in met} == {2}
    assert {way for chosen in met for way in chosen} >= set(parity_paths.ways(parity.cuda.PATHS))
    assert ("auto", "bfloat16") in met[-1]
    assert parity.SEQUENCES[-1] == "xLSTM large lengths"


def test_inputs_of_a_lower_dtype_are_rounded():
    pytest.importorskip("ml_dtypes")
    for low, value in (("float16", 1 + 2**-10), ("bfloat16", 1 + 2**-7)):
        be = parity_paths.Rounded("numpy", np, "cpu", "float32", low=low)
        array = be.asarray([value, value + 2**-13, 0.0])
        assert array.dtype == "float32"
        np.testing.assert_array_equal(array, [value, value, 0.0])
        assert be.asarray([1, 2]).dtype.kind == "i"
