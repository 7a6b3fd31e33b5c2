"""The notebook's program on any backend: 25 steps of gradient descent, beside the notebook's
losses.

    python -m xlstm.examples.notebook [--backend cupy]

The notebook divides the gradients of the sum of squares by T; this library takes the gradients of
the mean. They differ by a factor of H, so the learning rate here is H times the notebook's.
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from typing import Any

import numpy as np

import xlstm
from xlstm import losses, optim
from xlstm.examples.gate_by_gate import stacked

# Inputs, weights, and the results of the notebook's functions.
RECORDED = files("xlstm") / "data" / "datasets" / "notebook.npz"


def train(recorded: Any, home: xlstm.Backend) -> tuple[list[float], dict[str, Any]]:
    """Train on the notebook's arrays, given by name; return the loss of each step and the last
    weights.
    """
    D, H = recorded["Uf"].shape
    lstm = xlstm.LSTM(D, H)
    params = {name: home.asarray(p) for name, p in stacked(recorded).items()}
    x = home.asarray(recorded["x"][:, None])  # (T, 1, D)
    target = home.asarray(recorded["y_true"][:, None])  # (T, 1, H)
    optimizer = optim.sgd(float(recorded["sgd_lr"]) * H)
    state = optimizer.init(params)
    history = []
    for _ in recorded["sgd_losses"]:
        y, _, saved = lstm.forward(params, x)
        loss, dy = losses.mse(y, target)
        grads, _, _ = lstm.backward(params, saved, dy)
        params, state = optimizer.update(params, grads, state)
        history.append(float(loss))
    return history, params


def main() -> None:
    """Train, and print each loss beside the recorded one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy or torch")
    home = xlstm.backend(parser.parse_args().backend, dtype="float64")
    with RECORDED.open("rb") as file, np.load(file) as recorded:
        history, _ = train(recorded, home)
        for k, (loss, expected) in enumerate(zip(history, recorded["sgd_losses"], strict=True), 1):
            sys.stdout.write(f"step {k:2d}: loss {loss:.15f}, recorded {expected:.15f}\n")


if __name__ == "__main__":
    main()
