"""The LSTM of the NumPy notebook that this project began as, written as the notebook wrote it.

Each gate has its own arrays, and the code runs one sequence, step by step, forward and backward.
`xlstm compare` and the benchmarks measure this library against it. It returns the numbers that were
recorded from the notebook's functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xlstm.cells.lstm import Cell

Values = np.ndarray[Any, Any]
Weights = dict[str, Values]  # Uf (D, H), Wf (H, H), bf (1, H), and so on for each gate

GATES = "fiog"
OURS = {"U": "Wx", "W": "Wh", "b": "b"}


def sigmoid(x: Values) -> Values:
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def forward(p: Weights, x: Values) -> tuple[Values, Values, Weights]:
    """Run a sequence x (T, D); return h and c (T + 1, 1, H), each with its initial zeros, and gates
    (T, 1, H).
    """
    T = len(x)
    H = len(p["Wf"])
    h = np.zeros((T + 1, 1, H))
    c = np.zeros((T + 1, 1, H))
    gates = {k: np.zeros((T, 1, H)) for k in GATES}
    for t in range(T):
        for k in GATES:
            z = x[t : t + 1] @ p[f"U{k}"] + h[t] @ p[f"W{k}"] + p[f"b{k}"]
            gates[k][t] = np.tanh(z) if k == "g" else sigmoid(z)
        c[t + 1] = gates["f"][t] * c[t] + gates["i"][t] * gates["g"][t]
        h[t + 1] = gates["o"][t] * np.tanh(c[t + 1])
    return h, c, gates


def backward(
    p: Weights, x: Values, h: Values, c: Values, gates: Weights, dy: Values
) -> tuple[Weights, Values]:
    """Return the gradients with respect to the weights, by name, and dx (T, D), given dy (T, H)."""
    grads = {name: np.zeros_like(a) for name, a in p.items()}
    dx = np.zeros_like(x)
    dh_next = np.zeros_like(h[0])
    dc_next = np.zeros_like(c[0])
    for t in range(len(x) - 1, -1, -1):
        f, i, o, g = (gates[k][t] for k in GATES)
        u = np.tanh(c[t + 1])
        dh = dy[t : t + 1] + dh_next
        dc = dh * o * (1 - u * u) + dc_next
        dz = {
            "f": dc * c[t] * f * (1 - f),
            "i": dc * g * i * (1 - i),
            "o": dh * u * o * (1 - o),
            "g": dc * i * (1 - g * g),
        }
        dh_next = np.zeros_like(dh)
        for k in GATES:
            grads[f"U{k}"] += x[t : t + 1].T @ dz[k]
            grads[f"W{k}"] += h[t].T @ dz[k]
            grads[f"b{k}"] += dz[k]
            dx[t : t + 1] += dz[k] @ p[f"U{k}"].T
            dh_next += dz[k] @ p[f"W{k}"].T
        dc_next = dc * f
    return grads, dx


def update(p: Weights, grads: Weights, rate: float) -> Weights:
    """Return the weights after a step of gradient descent."""
    return {name: a - rate * grads[name] for name, a in p.items()}


def step(p: Weights, x: Values, target: Values, rate: float) -> tuple[Weights, float]:
    """Take the notebook's training step; return the new weights, and the mean squared error before
    it.

    The notebook takes 2 (y - target) as the gradient of the loss with respect to y, and divides the
    weights' gradients by T.
    """
    h, c, gates = forward(p, x)
    y = h[1:, 0]
    grads, _ = backward(p, x, h, c, gates, 2 * (y - target))
    return update(p, grads, rate / len(x)), float(np.mean((y - target) ** 2))


def by_gate(params: Weights) -> Weights:
    """Return parameters of `xlstm.LSTM`, whose gates are rows, as the notebook's weights."""
    p = {}
    for kind, name in OURS.items():
        for k, rows in zip(Cell.GATES, np.split(params[f"0.{name}"], len(Cell.GATES)), strict=True):
            p[f"{kind}{k}"] = np.atleast_2d(rows.T)
    return p


def stacked(p: Mapping[str, Values], prefix: str = "") -> Weights:
    """Return the notebook's weights as parameters of `xlstm.LSTM`.

    With a `prefix`, use the arrays whose names begin with it.
    """
    params = {}
    for kind, name in OURS.items():
        rows = np.concatenate([p[f"{prefix}{kind}{k}"].T for k in Cell.GATES])
        params[f"0.{name}"] = rows[:, 0] if kind == "b" else rows
    return params
