"""Latency of one time step of an LSTM, B=1 and H=64, as in a stream.

python -m bench.step [--json FILE]
"""

from __future__ import annotations

import functools

import numpy as np

import xlstm
from bench import run
from bench.peers import module
from xlstm.arrays import cores

B = 1
D = 64
H = 64


def ours():
    layer = xlstm.LSTM(D, H)
    params = layer.init(0, "numpy")
    x = np.random.default_rng(0).standard_normal((B, D)).astype("float32")
    state = layer.step(params, x)[1]
    return lambda: layer.step(params, x, state)


def theirs(gradient: bool):
    torch = module("torch")
    torch.set_num_threads(cores.threads())
    cell = torch.nn.LSTMCell(D, H)
    x = torch.randn(B, D)
    h = torch.zeros(B, H)
    c = torch.zeros(B, H)

    def step():
        with torch.inference_mode(not gradient):
            cell(x, (h, c))

    return step


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("one step")
    peers = {
        "torch": functools.partial(theirs, False),
        "torch with gradient": functools.partial(theirs, True),
    }
    run.beside("one step", f"1,{B},{D},{H} float32", ours(), peers, options, case={})


if __name__ == "__main__":
    main()
