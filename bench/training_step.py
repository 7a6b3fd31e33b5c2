"""One training step of the notebook's size: T=32, B=1, D=1, H=50, float64, mean squared error, SGD.

python -m bench.training_step [--json FILE]
"""

from __future__ import annotations

import functools

import numpy as np

import xlstm
from bench import run
from bench.peers import module
from xlstm import losses
from xlstm.arrays import cores
from xlstm.examples import gate_by_gate
from xlstm.training import optimizers

T = 32
D = 1
H = 50
RATE = 0.05


def ours(x, target):
    layer = xlstm.LSTM(D, H, initializer="notebook")
    optimizer = optimizers.sgd(RATE)
    params = layer.init(0, "numpy", "float64")
    state = optimizer.init(params)

    def step():
        nonlocal params, state
        y, _, saved = layer.forward(params, x)
        loss, dy = losses.mse(y, target)
        grads, _, _ = layer.backward(params, saved, dy)
        params, state = optimizer.update(params, grads, state)
        return float(loss)

    return step


def baseline(x, target):
    params = xlstm.LSTM(D, H, initializer="notebook").init(0, "numpy", "float64")
    weights = gate_by_gate.by_gate(params)

    def step():
        nonlocal weights
        weights, loss = gate_by_gate.step(weights, x[:, 0], target[:, 0], RATE)
        return loss

    return step


def theirs(x, target):
    torch = module("torch")
    torch.set_num_threads(cores.threads())
    layer = torch.nn.LSTM(D, H, dtype=torch.float64)
    sgd = torch.optim.SGD(layer.parameters(), lr=RATE)
    x = torch.tensor(x)
    target = torch.tensor(target)

    def step():
        sgd.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(x)[0], target)
        loss.backward()
        sgd.step()
        return loss.item()

    return step


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("training step")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, 1, D))
    target = 0.1 * rng.standard_normal((T, 1, H))
    peers = {
        "notebook": functools.partial(baseline, x, target),
        "torch": functools.partial(theirs, x, target),
    }
    name = f"{T},1,{D},{H} float64"
    run.beside("training step", name, ours(x, target), peers, options, case={}, precision="float64")


if __name__ == "__main__":
    main()
