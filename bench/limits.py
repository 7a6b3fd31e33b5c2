"""Limits: the least time of a pass on a card, from formulas and data sheets.

With D = H an LSTM multiplies 16 T B H^2 forward and twice that backward, a GRU three quarters of
it. Every step waits once for the other blocks; a step backward waits one and a half times as long.
An mLSTM reads and writes its matrix memory at every step, in registers at best, so only its arrays
have to come from memory and go there. Peaks are of the quickest card of a kind: a slower clock is
slower than the limit.
"""

from __future__ import annotations

from typing import NamedTuple

from xlstm.engines.cuda import tiling
from xlstm.engines.cuda.tiling import Device, peaks

PEAK = {"fp32": "float32", "TF32": "tf32", "fp16": "half", "bf16": "half"}  # fields of Peaks
WIDEST = 512  # units whose weights fit the largest cluster
FLOPS = {"lstm": 16, "gru": 12}  # of a forward pass, times T B H^2


class Work(NamedTuple):
    """The least that a pass does."""

    flops: float
    moved: float = 0.0  # bytes from memory and to it
    waits: float = 0.0  # of blocks for one another


class Rates(NamedTuple):
    """The most that a card does."""

    flops: float  # a second
    moved: float | None  # bytes a second, None where they are not known
    wait: float  # seconds

    def seconds(self, work: Work) -> float:
        """The time of a pass at least."""
        moving = 0.0 if self.moved is None else work.moved / self.moved
        return max(work.flops / self.flops, moving) + work.waits * self.wait


def recurrent(layer: str, T: int, B: int, H: int) -> tuple[Work, Work]:
    """Return the work of a layer, "lstm" or "gru", with D = H."""
    flops = float(FLOPS[layer] * T * B * H**2)
    return Work(flops, 0.0, T), Work(2 * flops, 0.0, 1.5 * T)


def mlstm(B: int, N: int, T: int, K: int, V: int, size: int) -> tuple[Work, Work]:
    """Return the work of N heads with keys of K and values of V numbers of `size` bytes.

    Forward each step adds k v^T to C and reads q C: 4 K V. Backward it does so for the gradients of
    C, q, k and v. Forward reads q, k, v and two gates and writes h; backward reads them and dh, and
    writes the gradients.
    """
    heads = T * B * N
    forward = Work(heads * 4.0 * K * V, heads * size * (2.0 * K + 2 * V + 2))
    return forward, Work(heads * 8.0 * K * V, heads * size * (4.0 * K + 3 * V + 4))


def language(weights: float, tokens: int, steps: int) -> tuple[Work, Work]:
    """Return the work of a language model with so many weights in products, and steps in loops of
    its sLSTM layers.
    """
    return Work(2.0 * weights * tokens, 0.0, steps), Work(4.0 * weights * tokens, 0.0, 1.5 * steps)


def token(weights: float, B: int, size: int) -> Work:
    """Return the work of one token of B sequences: all weights are read."""
    return Work(2.0 * weights * B, weights * size)


def way(H: int, device: Device) -> str:
    """How the blocks that share H units are taken to meet: in a cluster, or across the grid."""
    return "cluster" if H <= WIDEST and device.cluster else "grid"


def rates(
    device: Device, precision: str, H: int, wait: float | None, moved: float | None
) -> Rates | None:
    """Return the rates of a card, or None where it has no such precision.

    Parameters
    ----------
    device : Device
    precision : str
        A name of PEAK.
    H : int
        Units, which decide how blocks meet.
    wait : float or None
        Seconds that blocks take for one another, measured, or else the estimate that paths are
        chosen by.
    moved : float or None
        Bytes a second, measured.
    """
    peak = getattr(peaks(device.name, device.capability), PEAK[precision]) * device.sms * 1e6
    wait = tiling.SYNC[way(H, device) == "cluster"] * 1e-6 if wait is None else wait
    return Rates(peak, moved, wait) if peak else None
