"""The mLSTM cell: a matrix memory without a recurrent weight (Beck et al. 2024, eqs. 19 to 27).

    C = f C0 + i v k^T   (19)       n = f n0 + i k    (20)       h = C q / max(|n q|, 1)   (21)
    i = exp(i~)          (25)       f = sigmoid(f~)   (26)       k is divided by sqrt(K)   (23)

The layer makes q, k and v (22 to 24) and has the output gate (27). C is kept transposed, (K, V). C and n are divided by
exp(m), so that nothing overflows (15 to 17, and appendix A.3); m = -inf with C = n = 0 is the state before the first
step, and a step with i~ = -inf writes nothing.

There are two forms of the same function. `step` computes one step. `chunkwise` computes all steps: it takes `chunk`
steps at once by matrix products and loops over the chunks; with a single chunk it is the parallel form. Axes before
those named are free: q and k (..., T, K), v (..., T, V), i and f (..., T), C (..., K, V), n (..., K), m (...).
`chunkwise` raises a log f below -10^5 to -10^5, which lets nothing through either.
"""

from __future__ import annotations

from xlstm.cells.mlstm_chunks import CHUNK, chunkwise, chunkwise_bwd
from xlstm.cells.mlstm_step import step, step_bwd

__all__ = ["CHUNK", "STATES", "chunkwise", "chunkwise_bwd", "step", "step_bwd"]

STATES = ("C", "n", "m")
