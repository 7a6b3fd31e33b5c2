"""Latency of one time step of an LSTM, B=1 and H=64, as in a stream.

python -m bench.step [--json FILE]
"""

from __future__ import annotations

import numpy as np

import xlstm
from bench import run
from bench.cases import without_compiling
from bench.peers import MissingError, module
from xlstm.arrays import cores
from xlstm.cli.timing import interleave
from xlstm.engines.numba import jit

B = 1
D = 64
H = 64
REPEAT = 50


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


def repeated(call):
    """Many in one, so that the clock does not count."""

    def run():
        for _ in range(REPEAT):
            call()

    return run


def main() -> None:
    options = run.parser(__doc__).parse_args()
    run.start("one step")
    mine = repeated(ours())
    calls = {"xlstm": mine}
    missing = {}
    if jit.enabled():
        calls["xlstm, NumPy alone"] = without_compiling(mine)
    try:
        calls |= {"torch": repeated(theirs(False)), "torch with gradient": repeated(theirs(True))}
    except MissingError as reason:
        missing["torch"] = str(reason)
    timings = {
        name: type(t)(t.best / REPEAT, t.median / REPEAT, t.calls * REPEAT)
        for name, t in interleave(calls, options.rounds).items()
    }
    run.finish("one step", f"1,{B},{D},{H} float32", timings, options.json, missing)


if __name__ == "__main__":
    main()
