"""ONNX's names of the inputs and of the activations of a recurrent layer; its gate orders are ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.cells import activations

GATE_COUNTS = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
DIRECTIONS = {"forward": ("",), "reverse": ("reverse.",), "bidirectional": ("", "reverse.")}
# ONNX's name of each of our activations, such as LeakyRelu. Both take their parameters in the same order, alpha, beta.
FUNCTIONS = {
    name: name.title().replace("_", "")
    for name in (
        *("sigmoid", "tanh", "relu", "affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid"),
        *("elu", "softsign", "softplus"),
    )
}
BY_THEIRS = {theirs.lower(): ours for ours, theirs in FUNCTIONS.items()}


def library() -> Any:
    """Import the package onnx, or raise an error that says how to install it."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError("onnx: the package is not installed; pip install onnx") from error
    return onnx


def to_attributes(functions: Sequence[str]) -> dict[str, Any]:
    """Return activations of ours as attributes of a node."""
    found: dict[str, list[Any]] = {"activations": [], "activation_alpha": [], "activation_beta": []}
    for text in functions:
        name, values = activations.parse(text)
        if name == "linear":
            name, values = "affine", (1.0, 0.0)
        if name not in FUNCTIONS:
            known = ", ".join(["linear", *FUNCTIONS])
            raise ValueError(f"to_onnx: activation {text!r} is none that ONNX has, which are {known}")
        for key, value in zip(found, (FUNCTIONS[name], *values), strict=False):
            found[key].append(value)
    return {key: values for key, values in found.items() if values}


def from_attributes(where: str, names: Sequence[str], alpha: Sequence[float], beta: Sequence[float]) -> tuple[str, ...]:
    """Return the activations that the attributes of a node name.

    The values of alpha and beta belong, in their order, to those functions that take one. Where there are too few
    values, functions have ONNX's defaults.
    """
    rest = {"activation_alpha": list(alpha), "activation_beta": list(beta)}
    found = []
    for theirs in names:
        if theirs.lower() not in BY_THEIRS:
            raise ValueError(
                f"{where}: activation {shown(theirs)} is unknown, expected one of {', '.join(FUNCTIONS.values())}"
            )
        name, defaults = activations.parse(BY_THEIRS[theirs.lower()])
        taken = tuple(
            shortest(values.pop(0)) if values else default
            for values, default in zip(rest.values(), defaults, strict=False)
        )
        if name == "affine" and taken == (1.0, 0.0):
            name, taken = "linear", ()
        found.append(activations.canonical(f"{name}({', '.join(map(repr, taken))})"))
    for key, surplus in rest.items():
        if surplus:  # which function they belong to would be a guess
            raise ValueError(f"{where}: {key} has {len(surplus)} values more than {', '.join(names)} take")
    return tuple(found)


def shortest(value: float) -> float:
    """Return the shortest decimal that is `value` in float32, the type of attributes: 0.2, not 0.20000000298."""
    return float(str(np.float32(value)))
