"""The two passes of any layer of the registry, which other libraries' modules of it have to give; bits of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xlstm.arrays.namespace import leaves
from xlstm.layers.module import Module
from xlstm.layers.sequence import SequenceLayer


def passes(layer: Module, params: Any, x: Any, state: Any = None, **options: Any) -> tuple[list[Any], Any, Any, Any]:
    """Return y with the final state, and gradients by parameters, x and initial state of half their sum of squares."""
    if not isinstance(layer, SequenceLayer):
        y, saved = layer.forward(params, x)
        grads, dx = layer.backward(params, saved, y)
        return [y], grads, dx, []
    y, end, saved = layer.forward(params, x, state, **options)
    grads, dx, start = layer.backward(params, saved, y, end)  # the gradients by y and the state are y and the state
    return [y, *leaves(end)], grads, dx, list(leaves(start))


def same_bits(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that there are the same arrays under the same names."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)
