"""The two passes of any layer of the registry, which other libraries' modules of it have to give."""

from __future__ import annotations

from typing import Any

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
