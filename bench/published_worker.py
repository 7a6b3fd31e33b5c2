"""The published xLSTM packages, run by `bench.published` in a process of their own: requests and
answers, JSON lines.

It imports nothing of this project, whose import name is theirs.
"""

import json
import sys

sys.path[0] = sys.argv[1]

import torch  # noqa: E402
from mlstm_kernels.torch.chunkwise.native import fwbw  # noqa: E402
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig  # noqa: E402

from xlstm import (  # type: ignore[attr-defined]  # noqa: E402
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)


def mlstm(peer, sizes):
    """Native chunkwise code."""
    B, N, T, K = sizes
    kernels = {
        "by hand": "mlstm_chunkwise__native_custbw",
        "autograd": "mlstm_chunkwise__native_autograd",
    }
    kernel = getattr(fwbw, kernels[peer])
    q, k, v = (torch.randn(B, N, T, K, requires_grad=True) for _ in range(3))
    i, f = (torch.randn(B, N, T, requires_grad=True) for _ in range(2))
    dh = torch.randn(B, N, T, K)

    def call():
        h = kernel(q, k, v, i, f + 4, chunk_size=64, autocast_kernel_dtype=torch.float32)
        (h[0] if isinstance(h, tuple) else h).backward(dh)

    return call


def slstm(peer, sizes):
    """The vanilla cell, from pre-activations."""
    T, B, H, N = sizes
    cell = sLSTMCell(sLSTMCellConfig(hidden_size=H, num_heads=N, backend=peer, dtype="float32"))
    x = torch.randn(B, T, 4 * H, requires_grad=True)

    def call():
        y, _ = cell(x)
        y.sum().backward()

    return call


def stack(peer, sizes):
    """A training step of four blocks, the second an sLSTM."""
    B, T, D = sizes
    config = xLSTMLMModelConfig(
        vocab_size=256,
        context_length=T,
        num_blocks=4,
        embedding_dim=D,
        slstm_at=[1],
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=4)),
        slstm_block=sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(num_heads=4, backend=peer),
            feedforward=FeedForwardConfig(proj_factor=1.3),
        ),
    )
    model = xLSTMLMModel(config)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(0, 256, (B, T))

    def call():
        adam.zero_grad()
        logits = model(tokens)
        torch.nn.functional.cross_entropy(logits.reshape(-1, 256), tokens.reshape(-1)).backward()
        adam.step()

    return call


def main():
    torch.set_num_threads(int(sys.argv[2]))
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the packages print is no answer
    calls = {}
    for line in sys.stdin:
        what, *request = json.loads(line)
        if what == "make":
            calls[json.dumps(request)] = globals()[request[0]](*request[1:])
        elif what == "run":
            calls[json.dumps(request)]()
        elif what == "forget":
            calls.clear()
        print(json.dumps("done"), file=answers, flush=True)


if __name__ == "__main__":
    main()
