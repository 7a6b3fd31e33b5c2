"""What ONNX calls the parts of a recurrent layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.cells import activations

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")

# Our name to that of ONNX. A function takes as many of alpha and beta, in this order, as ours takes parameters.
FUNCTIONS = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "affine": "Affine",
    "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu",
    "scaled_tanh": "ScaledTanh",
    "hard_sigmoid": "HardSigmoid",
    "elu": "Elu",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
OURS = {theirs.lower(): ours for ours, theirs in FUNCTIONS.items()}


def library() -> Any:
    """The package onnx."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError("onnx: the package is not installed; pip install onnx") from error
    return onnx


def to_attributes(functions: Sequence[str]) -> dict[str, Any]:
    """Our activations as the attributes of a node."""
    names, values = [], []
    for text in functions:
        name, parameters = activations.parse(text)
        if name == "linear":
            name, parameters = "affine", (1.0, 0.0)
        if name not in FUNCTIONS:
            known = ", ".join(["linear", *FUNCTIONS])
            raise ValueError(f"to_onnx: activation {text!r} is none that ONNX has, which are {known}")
        names.append(FUNCTIONS[name])
        values.append(parameters)
    alpha, beta = [v[0] for v in values if v], [v[1] for v in values if len(v) > 1]
    found: dict[str, Any] = {"activations": names}
    return found | ({"activation_alpha": alpha} if alpha else {}) | ({"activation_beta": beta} if beta else {})


def from_attributes(where: str, names: Sequence[str], alpha: Sequence[float], beta: Sequence[float]) -> tuple[str, ...]:
    """Our activations of the attributes of a node.

    alpha and beta belong, in their order, to those functions that take one, and have ONNX's defaults where
    they are too few.
    """
    rest = {"activation_alpha": list(alpha), "activation_beta": list(beta)}
    found = []
    for theirs in names:
        if theirs.lower() not in OURS:
            raise ValueError(
                f"{where}: activation {shown(theirs)} is unknown, expected one of {', '.join(FUNCTIONS.values())}"
            )
        name, parameters = activations.parse(OURS[theirs.lower()])
        taken = tuple(
            shortest(rest[key].pop(0)) if rest[key] else default for key, default in zip(rest, parameters, strict=False)
        )
        if name == "affine" and taken == (1.0, 0.0):
            name, taken = "linear", ()
        found.append(activations.canonical(f"{name}({', '.join(map(repr, taken))})"))
    for key, surplus in rest.items():
        if surplus:  # whose they are would be a guess
            raise ValueError(f"{where}: {key} has {len(surplus)} values more than {', '.join(names)} take")
    return tuple(found)


def shortest(value: float) -> float:
    """The shortest decimal that is `value` in float32, as attributes are: 0.2 and not 0.20000000298."""
    return float(str(np.float32(value)))
