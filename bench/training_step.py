"""One training step of the notebook's size: T=32, B=1, D=1, H=50, float64, mean squared error, SGD.

python -m bench.training_step [--json FILE]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import xlstm
from bench import notebook
from bench.timing import interleave, report
from xlstm import losses, optim

T, D, H, RATE = 32, 1, 50, 0.05


def cases():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((T, D)), 0.1 * rng.standard_normal((T, H))

    layer = xlstm.LSTM(D, H, initializer="notebook")
    optimizer = optim.sgd(RATE)
    ours = {"params": layer.init(0, "numpy", "float64")}
    ours["state"] = optimizer.init(ours["params"])
    x3, target3 = x[:, None, :], target[:, None, :]

    def xlstm_step():
        y, _, saved = layer.forward(ours["params"], x3)
        loss, dy = losses.mse(y, target3)
        grads, _, _ = layer.backward(ours["params"], saved, dy)
        ours["params"], ours["state"] = optimizer.update(ours["params"], grads, ours["state"])
        return float(loss)

    p = {f"{kind}{k}": 0.1 * rng.standard_normal((rows, H)) for k in "fiog" for kind, rows in (("U", D), ("W", H))}
    p |= {f"b{k}": np.zeros((1, H)) for k in "fiog"}

    peer = torch.nn.LSTM(D, H, dtype=torch.float64)
    sgd = torch.optim.SGD(peer.parameters(), lr=RATE)
    tx, tt = torch.tensor(x3), torch.tensor(target3)

    def torch_step():
        sgd.zero_grad()
        loss = torch.nn.functional.mse_loss(peer(tx)[0], tt)
        loss.backward()
        sgd.step()
        return loss.item()

    return {"xlstm": xlstm_step, "notebook": lambda: notebook.step(p, x, target, RATE), "torch": torch_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="append results to this file")
    report("training step", {f"T={T} B=1 D={D} H={H} float64": interleave(cases())}, "xlstm", parser.parse_args().json)


if __name__ == "__main__":
    main()
