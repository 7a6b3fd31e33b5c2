"""LSTM forward + backward on a backend beside `torch.nn.LSTM` on the same device.

    python -m bench.layers [--backend numpy|cupy] [--dtype float32] [--json FILE]

On a GPU, PyTorch runs cuDNN, in strict float32 and with TF32; CuPy's products are strict float32
unless CUPY_TF32=1.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import xlstm
from bench.timing import interleave, report

SHAPES = [(32, 1, 1, 50), (128, 1, 64, 64), (100, 32, 64, 128), (128, 64, 256, 256), (128, 64, 512, 512)]
GPU_SHAPES = [(512, 64, 512, 512), (1024, 16, 1024, 1024), (128, 256, 256, 256)]


def ours(backend, shape):
    T, B, D, H = shape
    rng = np.random.default_rng(0)
    layer = xlstm.LSTM(D, H)
    params = layer.init(0, backend)
    x, dy = (backend.asarray(rng.standard_normal((T, B, n))) for n in (D, H))

    def run():
        _, _, saved = layer.forward(params, x)
        layer.backward(params, saved, dy)
        backend.synchronize()

    return run


def theirs(device, dtype, shape, tf32=False):
    T, B, D, H = shape
    layer = torch.nn.LSTM(D, H, device=device, dtype=dtype)
    x = torch.randn(T, B, D, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(T, B, H, device=device, dtype=dtype)

    def run():
        torch.backends.cudnn.allow_tf32 = tf32
        layer.zero_grad()
        x.grad = None
        layer(x)[0].backward(dy)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="numpy", choices=["numpy", "cupy"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--json", help="append results to this file")
    options = parser.parse_args()
    backend = xlstm.backend(options.backend, dtype=options.dtype)
    dtype = getattr(torch, options.dtype)
    rows = {}
    for shape in SHAPES + (GPU_SHAPES if options.backend == "cupy" else []):
        calls = {"xlstm": ours(backend, shape)}
        if options.backend == "cupy":
            calls["cuDNN"] = theirs("cuda", dtype, shape)
            if options.dtype == "float32":
                calls["cuDNN TF32"] = theirs("cuda", dtype, shape, tf32=True)
        else:
            calls["torch"] = theirs("cpu", dtype, shape)
        rows["T={} B={} D={} H={}".format(*shape) + f" {options.dtype}"] = interleave(calls)
    report(f"LSTM forward + backward, {backend}", rows, "xlstm", options.json)


if __name__ == "__main__":
    main()
