"""Small models of TiRex, and its golden files: what the published packages compute with random
weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.conftest import DATA
from xlstm.interop import tirex
from xlstm.models import TiRex, TiRex2

SIZES: dict[str, Any] = {
    "patch_size": 2,
    "quantiles": (0.1, 0.5, 0.9),
    "input_ff_size": 3,
    "context": 8,
}
# The sizes of a model that tests of training use.
WIDER: dict[str, Any] = {
    "patch_size": 2,
    "quantiles": (0.1, 0.5, 0.9),
    "input_ff_size": 8,
    "output_ff_size": 8,
    "context": 16,
}
FIRST = TiRex(4, 2, 2, **SIZES)
SECOND = TiRex2(4, [("mlstm", 2, 2), ("slstm", 1, 1)], output_ff_size=5, horizon=6, **SIZES)


def golden(which: str, be: Any = "numpy", dtype: str = "float64") -> tuple[Any, Any, Any]:
    """The model, its parameters and the recorded arrays of "tirex1/a" and so on."""
    model, params = tirex.load(DATA / which, backend=be, dtype=dtype)
    return model, params, np.load(DATA / which / "io.npz")


def written(model: Any, arrays: Any) -> dict[str, np.ndarray]:
    """Arrays under our names, such as gradients, under theirs."""
    return tirex.exported(model, arrays)


def gradients(which: str) -> dict[str, np.ndarray]:
    """The recorded gradients, by their names."""
    found = load_file(DATA / which / "grads.safetensors")
    return {tirex.canonical(name): array for name, array in found.items()}


def tokens(scaled: np.ndarray, patch_size: int) -> np.ndarray:
    """Tokens of scaled rows with NaN, (B, T P) or (B, T, P)."""
    patches = scaled.reshape(len(scaled), -1, patch_size)
    return np.concatenate((np.nan_to_num(patches), ~np.isnan(patches)), axis=-1)


def rows(io: Any) -> dict[str, Any]:
    """The groups and marks of the rows of TiRex-2."""
    return {"groups": io["group"], "targets": io["target_mask"], "known": io["known_mask"]}


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value of its row."""
    found, expected = (a.reshape(len(a), -1).astype(np.float64) for a in (found, expected))
    return float(np.max(np.max(abs(found - expected), axis=1) / np.max(abs(expected), axis=1)))
