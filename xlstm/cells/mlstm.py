"""The mLSTM cell: a matrix memory without a recurrent weight (Beck et al. 2024, eqs. 19 to 27).

    C = f C0 + i k v^T      n = f n0 + i k      h = C^T q / max(|n q|, 1)      i = exp(i~), f = sigmoid(f~)

with k divided by sqrt(K). C and n are kept divided by exp(m), so that nothing overflows (appendix A.3 there);
m = -inf with C = n = 0 is the state before the first step, and a step with i~ = -inf writes nothing.

Two forms of the same function: `step`, one step, and `chunkwise`, which works on chunks of `chunk` steps by matrix
products and has a loop over chunks only; one chunk of all steps is the parallel form. Axes before those named are
free: q and k (..., T, K), v (..., T, V), i and f (..., T), C (..., K, V), n (..., K), m (...). In `chunkwise` a log f
below -10^5 counts as that: it lets nothing through either.
"""

from __future__ import annotations

from xlstm.cells.mlstm_chunks import CHUNK, chunkwise, chunkwise_bwd
from xlstm.cells.mlstm_step import step, step_bwd

__all__ = ["CHUNK", "STATES", "chunkwise", "chunkwise_bwd", "step", "step_bwd"]

STATES = ("C", "n", "m")
