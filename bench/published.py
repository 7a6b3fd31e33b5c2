"""mLSTM, sLSTM and a block stack's training step beside the published xLSTM packages, on the CPU.

    python -m bench.published --peer FOLDER [--json FILE]

The package has the import name of this project, so it runs in a process of its own, which waits while
ours runs:

    pip install --target FOLDER --no-deps xlstm mlstm_kernels && pip install einops torch

Cases are those that the package can run without a GPU: mLSTM's native chunkwise code (with the
gradient that is written by hand there, and with autograd's), the vanilla sLSTM cell, and four
blocks, one of them sLSTM, with AdamW.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

import xlstm
from bench import mlstm, run
from bench.peak import peak_memory
from bench.workers import Theirs
from xlstm.cli.timing import interleave
from xlstm.training import optimizers

CASES = {
    "mlstm": [(4, 4, 1024, 64), (1, 4, 4096, 64)],  # B, heads, T, K
    "slstm": [(64, 16, 128, 4), (128, 32, 256, 4)],  # T, B, H, heads
    "stack": [(8, 256, 128)],  # B, T, D
}
LENGTHS = (1024, 2048, 4096, 8192)  # of memory
PEERS = {"mlstm": ("by hand", "autograd"), "slstm": ("vanilla",), "stack": ("vanilla",)}
VOCABULARY = 256


def ours(kind: str, sizes: tuple[int, ...]) -> Callable[[], object]:
    """A call of forward + backward, or of a training step."""
    rng = np.random.default_rng(0)
    if kind == "mlstm":
        B, N, T, K = sizes
        inputs = mlstm.arrays(B, N, T, K, K)
        case = mlstm.Case(B, N, T, K, K)
        return mlstm.Ours(case, inputs, xlstm.backend("numpy", dtype="float32")).call
    if kind == "slstm":
        T, B, H, N = sizes
        recurrence = xlstm.sLSTMBlock(H, N).parts["cell"]
        params = recurrence.init(0, "numpy")
        x = rng.standard_normal((T, B, 4 * H), dtype=np.float32)
        dy = np.ones((T, B, H), np.float32)

        def call() -> None:
            _, _, saved = recurrence.forward(params, x)
            recurrence.backward(params, saved, dy)

        return call
    B, T, D = sizes
    model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(D, 4, [1], 4, eps=1e-6), VOCABULARY)
    params = model.init(0, "numpy")
    adam = optimizers.adamw(1e-3)
    state = adam.init(params)
    tokens = rng.integers(0, VOCABULARY, (B, T))

    def call() -> None:
        nonlocal params, state
        logits, _, saved = model.forward(params, tokens)
        _, dlogits = model.loss(logits, tokens)
        grads, _, _ = model.backward(params, saved, dlogits)
        params, state = adam.update(params, grads, state)

    return call


def prepare(sizes: tuple[int, ...]) -> Callable[[], object]:
    """For `peak_memory`."""
    ours("mlstm", (1, 1, 128, 64))()
    return ours("mlstm", sizes)


def main() -> None:
    options = run.for_packages(__doc__, "XLSTM_BENCH_PEER").parse_args()
    run.start("beside the published packages")
    missing = {}
    peers: dict[str, tuple[str, ...]] = {}
    if options.peer is None:
        missing = run.without_packages(__doc__)
    else:
        peers = PEERS
        theirs = Theirs("published_worker.py", Path(options.peer).resolve(), os.path.sep)
        theirs.ask("ready")
    for kind, cases in CASES.items():
        for sizes in cases:
            calls: dict[str, Callable[[], object]] = {"xlstm": ours(kind, sizes)}
            for peer in peers.get(kind, ()):
                theirs.ask("make", kind, peer, sizes)
                calls[peer] = functools.partial(theirs.ask, "run", kind, peer, sizes)
            name = f"{kind} {','.join(map(str, sizes))}"
            timings = interleave(calls, options.rounds)
            case = {"sizes": sizes}
            run.record("published", name, timings, options.json, missing=missing, case=case)
            if peers:
                theirs.ask("forget")
    for T in LENGTHS:
        peak = peak_memory(prepare, (1, 4, T, 64))
        if peak is not None:
            name = f"mlstm 1,4,{T},64"
            run.record(
                "published memory",
                name,
                {"xlstm": peak},
                options.json,
                missing={},
                case={"T": T},
                unit="bytes",
            )


if __name__ == "__main__":
    main()
