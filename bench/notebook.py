"""Baseline: a training step in the manner of the NumPy notebook this project began as.

Written for the benchmark only: separate arrays for every gate, one sequence, one step at a time. It
gives the notebook's recorded numbers (tests/test_bench.py).
"""

from __future__ import annotations

import numpy as np

GATES = "fiog"


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def forward(p, x):
    T, H = len(x), p["Wf"].shape[0]
    h, c = np.zeros((T + 1, 1, H)), np.zeros((T + 1, 1, H))
    gates = {k: np.zeros((T, 1, H)) for k in GATES}
    for t in range(T):
        for k in GATES:
            z = x[t : t + 1] @ p[f"U{k}"] + h[t] @ p[f"W{k}"] + p[f"b{k}"]
            gates[k][t] = np.tanh(z) if k == "g" else sigmoid(z)
        c[t + 1] = gates["f"][t] * c[t] + gates["i"][t] * gates["g"][t]
        h[t + 1] = gates["o"][t] * np.tanh(c[t + 1])
    return h, c, gates


def backward(p, x, h, c, gates, dy):
    T = len(x)
    grads = {name: np.zeros_like(a) for name, a in p.items()}
    dh_next, dc_next = np.zeros_like(h[0]), np.zeros_like(c[0])
    for t in range(T - 1, -1, -1):
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
            dh_next += dz[k] @ p[f"W{k}"].T
        dc_next = dc * f
    return grads


def step(p, x, target, rate):
    """Forward, backward, update in place; the loss before."""
    h, c, gates = forward(p, x)
    y = h[1:, 0]
    grads = backward(p, x, h, c, gates, 2 * (y - target))
    for name, grad in grads.items():
        p[name] -= rate * grad / len(x)
    return np.mean((y - target) ** 2)
