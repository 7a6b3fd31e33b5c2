"""A forecaster that is trained once for all modules, and the series that it has seen."""

import numpy as np
import pytest

from xlstm import checkpoint
from xlstm.estimators import Forecaster

LEARNS = {
    **{
        "window": 12,
        "hidden_size": 8,
        "epochs": 5,
        "learning_rate": 0.02,
        "batch_size": 32,
        "averaging": 0.9,
    },
    **{"horizon": 6, "backend": "numpy", "candidates": ("linear", "network")},
}
QUICK = {**LEARNS, "epochs": 1}
SMALL = {
    **{"hidden_size": 2, "epochs": 1, "backend": "numpy", "candidates": ("linear", "network")},
    **{"linear_baseline": 3, "quantiles": (0.1, 0.9)},
}


def driven(n=300, seed=0):
    """A series that follows a number which is known in advance, and that number, with 20 more
    rows.
    """
    rng = np.random.default_rng(seed)
    price = rng.normal(size=n + 20)
    values = 10 + np.sin(np.arange(n + 20) / 3.0) + price + 0.05 * rng.normal(size=n + 20)
    return values[:n], price


def rewrite(path, kind, place, change):
    """Change a part of the tree of a file, at a place such as "fitted.params"."""
    arrays, config = checkpoint.load(path, kind)
    tree = checkpoint.unpack(config["tree"], arrays, lambda array, dtype: array)
    part = tree
    for name in place.split("."):
        part = part[name]
    part |= change
    content, arrays = checkpoint.pack(tree)
    checkpoint.save(path, arrays, kind, {"tree": content})


@pytest.fixture
def values():
    return driven()[0]


@pytest.fixture(scope="session")
def fitted():
    """For tests that leave it as it is."""
    return Forecaster(**LEARNS).fit(driven()[0])
