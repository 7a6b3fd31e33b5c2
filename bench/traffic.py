"""Bytes that a training step of a language model reads and writes on CuPy, counted, by kinds of operations.

    CUDA_ON_CPU_BYTES=1 python -m bench.traffic [B T D V]

It needs no GPU, but the CuPy of cuda_on_cpu, and minutes. A launch counts each byte once for reading and once for
writing, a product those of its operands and its result. Four blocks of width D, the second an sLSTM; V tokens.
"""

from __future__ import annotations

import re
import sys
from collections import Counter

import numpy as np

import cuda_on_cpu
import xlstm
from xlstm.data import Streams
from xlstm.training import Step, optimizers
from xlstm.training.callbacks import Clip

KINDS = {
    "recurrent": r"xlstm_(chunk|forward|backward|arrange)",
    "optimizer": r"xlstm_(each|squares|norm)",
    "others": "",
}


def main() -> None:
    B, T, D, V = (int(size) for size in sys.argv[1:] or (2, 128, 64, 256))
    model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(D, 4, [1], 4), V)
    tokens = np.arange(B * T + 1) * 7919 % V
    batch = next(iter(Streams(tokens[:-1], tokens[1:], B, T).batches()))
    step = Step(model, optimizers.adamw(1e-3), callbacks=[Clip(1.0)], wait=False, graph=False)
    state, _ = step(step.init(model.init(0, xlstm.backend("cupy"))), batch)
    with cuda_on_cpu.counted(names=True) as asked:
        step(state._replace(carried=None), batch)
    found: Counter[str] = Counter()
    for name, line in zip(asked.names, asked.names[1:], strict=False):
        if line.startswith("  = "):
            found[next(kind for kind, names in KINDS.items() if re.search(names, name))] += int(line.split()[1])
    found["products"] = asked.counts["bytes"] - found.total()
    print(f"{asked.counts['bytes'] / 1e6:.1f} MB:", ", ".join(f"{kind} {n / 1e6:.1f}" for kind, n in found.items()))


if __name__ == "__main__":
    main()
