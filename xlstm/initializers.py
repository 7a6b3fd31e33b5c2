"""Initial weights by name, drawn on the host so that a seed means the same on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Draw = Callable[["np.random.Generator", str, int, int, int], np.ndarray[Any, Any]]  # np.random loads on first use


def _uniform(rng: np.random.Generator, kind: str, gates: int, H: int, D: int) -> np.ndarray[Any, Any]:
    """U(-1/sqrt(H), 1/sqrt(H)) for every parameter, as `torch.nn.LSTM`."""
    shape = {"Wx": (gates * H, D), "Wh": (gates * H, H), "b": (gates * H,)}[kind]
    return rng.uniform(-(H**-0.5), H**-0.5, shape)


def _notebook(rng: np.random.Generator, kind: str, gates: int, H: int, D: int) -> np.ndarray[Any, Any]:
    """Input weights N(0, 2/(D+H)), recurrent weights N(0, 1/H), both variances; bias zero."""
    if kind == "b":
        return np.zeros(gates * H)
    if kind == "Wx":
        return rng.normal(0.0, (2 / (D + H)) ** 0.5, (gates * H, D))
    return rng.normal(0.0, H**-0.5, (gates * H, H))


RECURRENT: dict[str, Draw] = {"uniform": _uniform, "notebook": _notebook}


def recurrent(name: str) -> Draw:
    """The initialiser `name` of a recurrent layer: `draw(rng, "Wx" | "Wh" | "b", gates, H, D)`.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    if name not in RECURRENT:
        raise ValueError(f"initializer: {name!r} is unknown, expected one of {', '.join(RECURRENT)}")
    return RECURRENT[name]


def linear(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weight (O, I) and bias (O,) of a linear layer from U(-1/sqrt(I), 1/sqrt(I)), as `torch.nn.Linear`."""
    bound = inputs**-0.5
    return rng.uniform(-bound, bound, (outputs, inputs)), rng.uniform(-bound, bound, outputs)
