"""The baseline of the benchmark is what it says: it gives the notebook's recorded numbers."""

import numpy as np
import pytest

from bench import notebook
from tests.conftest import DATA


@pytest.mark.parametrize("case", ["d1_h50", "d3_h8"])
def test_the_baseline_is_the_notebook(case):
    with np.load(DATA / f"seed_lstm_{case}.npz") as file:
        golden = dict(file)
    p = {f"{kind}{k}": golden[f"{kind}{k}"].copy() for kind in "UWb" for k in notebook.GATES}
    losses = [notebook.step(p, golden["x"], golden["y_true"], float(golden["sgd_lr"])) for _ in range(25)]
    np.testing.assert_allclose(losses, golden["sgd_losses"], rtol=1e-12)
    for name, array in p.items():
        np.testing.assert_allclose(array, golden[f"after_{name}"], rtol=1e-12, atol=1e-12)
