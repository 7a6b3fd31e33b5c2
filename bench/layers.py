"""Recurrent layers forward + backward on a backend beside those of `torch.nn` on the same device.

    python -m bench.layers [CASE ...] [--backend numpy|cupy] [--dtype float32] [--json FILE]

CASE is one or several of lstm, gru, rnn, lengths (an LSTM over sequences of T/4 to T steps; PyTorch
packs and unpacks them) and stack (an LSTM of 2 layers in both directions); all by default. On a GPU,
PyTorch runs cuDNN, in strict float32 and with TF32; CuPy's products are strict float32 unless
CUPY_TF32=1.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import xlstm
from bench.timing import interleave, report

SHAPES = [(32, 1, 1, 50), (128, 1, 64, 64), (100, 32, 64, 128), (128, 64, 256, 256), (128, 64, 512, 512)]
GPU_SHAPES = [(512, 64, 512, 512), (1024, 16, 1024, 1024), (128, 256, 256, 256)]
CASES = ("lstm", "gru", "rnn", "lengths", "stack")
STACK = {"num_layers": 2, "bidirectional": True}


def lengths_of(case, shape):
    """Whole numbers from T/4 to T, or None."""
    T, B, _, _ = shape
    return np.random.default_rng(1).integers(T // 4, T + 1, B) if case == "lengths" else None


def ours(backend, case, shape):
    T, B, D, H = shape
    rng = np.random.default_rng(0)
    kind = {"gru": xlstm.GRU, "rnn": xlstm.RNN}.get(case, xlstm.LSTM)
    layer = kind(D, H, **(STACK if case == "stack" else {}))
    params = layer.init(0, backend)
    x, dy = (backend.asarray(rng.standard_normal((T, B, n))) for n in (D, layer.output_size))
    lengths = lengths_of(case, shape)

    def run():
        _, _, saved = layer.forward(params, x, lengths=lengths)
        layer.backward(params, saved, dy)
        backend.synchronize()

    return run


def theirs(device, dtype, case, shape, tf32=False):
    T, B, D, H = shape
    kind = {"gru": torch.nn.GRU, "rnn": torch.nn.RNN}.get(case, torch.nn.LSTM)
    layer = kind(D, H, device=device, dtype=dtype, **(STACK if case == "stack" else {}))
    x = torch.randn(T, B, D, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(T, B, H * (2 if case == "stack" else 1), device=device, dtype=dtype)
    lengths = lengths_of(case, shape)

    def run():
        torch.backends.cudnn.allow_tf32 = tf32
        layer.zero_grad()
        x.grad = None
        if lengths is None:
            y, _ = layer(x)
        else:
            packed, _ = layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
            y, _ = pad_packed_sequence(packed, total_length=T)
        y.backward(dy)
        if device != "cpu":
            torch.cuda.synchronize()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", choices=[*CASES, []], help="all by default")
    parser.add_argument("--backend", default="numpy", choices=["numpy", "cupy"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--json", help="append results to this file")
    options = parser.parse_args()
    backend = xlstm.backend(options.backend, dtype=options.dtype)
    dtype = getattr(torch, options.dtype)
    for case in options.cases or CASES:
        rows = {}
        for shape in SHAPES + (GPU_SHAPES if options.backend == "cupy" else []):
            if case == "lengths" and shape[1] == 1:
                continue  # one sequence has one length
            calls = {"xlstm": ours(backend, case, shape)}
            if options.backend == "cupy":
                calls["cuDNN"] = theirs("cuda", dtype, case, shape)
                if options.dtype == "float32":
                    calls["cuDNN TF32"] = theirs("cuda", dtype, case, shape, tf32=True)
            else:
                calls["torch"] = theirs("cpu", dtype, case, shape)
            rows["T={} B={} D={} H={}".format(*shape) + f" {options.dtype}"] = interleave(calls, rounds=9)
        report(f"{case} forward + backward, {backend}", rows, "xlstm", options.json)


if __name__ == "__main__":
    main()
