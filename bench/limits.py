"""Limits: the time that a pass of a recurrent layer takes at least on a card. Formulas, and estimates for an H100.

With D = H an LSTM multiplies 16 T B H^2 forward and twice that backward, a GRU three quarters of it. Every step waits
once for the other blocks, backward one and a half times as long. Peaks are of data sheets, dense and without sparsity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# FLOP a second of a precision. H100 (SXM) and H200 have the same chip; other cards are not known here.
HOPPER = {"fp32": 67e12, "TF32": 495e12, "fp16": 989e12, "bf16": 989e12}
PEAKS: Mapping[str, Mapping[str, float]] = {"H100": HOPPER, "H200": HOPPER}
SLOWER = ("PCIe", "NVL", "MIG")  # cards of these names have other peaks
SYNC = {"cluster": 0.6e-6, "grid": 1.2e-6}  # seconds to exchange and to wait for one another at a step: estimates
WIDEST = 512  # units whose weights fit the largest cluster
FLOPS = {"lstm": 16, "gru": 12}  # of a forward pass, times T B H^2


class Limit(NamedTuple):
    """Seconds."""

    forward: float
    backward: float

    def of(self, train: bool) -> float:
        """The time of forward and backward, or of forward alone."""
        return self.forward + self.backward if train else self.forward


def way(H: int) -> str:
    """How the blocks that share H units are taken to meet: in a cluster, or across the grid."""
    return "cluster" if H <= WIDEST else "grid"


def peak(card: str, precision: str) -> float | None:
    """FLOP a second of a card by its name, or None where it is not known."""
    if any(word in card for word in SLOWER):
        return None
    return next((peaks[precision] for name, peaks in PEAKS.items() if name in card), None)


def limit(layer: str, T: int, B: int, H: int, flop_rate: float, sync: float) -> Limit:
    """Return the limits of a layer, "lstm" or "gru", with D = H.

    Parameters
    ----------
    flop_rate : float
        FLOP a second.
    sync : float
        Seconds that the blocks take for one another at a step.
    """
    forward = FLOPS[layer] * T * B * H**2 / flop_rate
    return Limit(forward + T * sync, 2 * forward + 1.5 * T * sync)


def estimate(card: str, precision: str, layer: str, T: int, B: int, H: int, sync: float | None = None) -> Limit | None:
    """With the card's peak, and with the estimate of `SYNC` unless another is given; None for unknown cards."""
    rate = peak(card, precision)
    return None if rate is None else limit(layer, T, B, H, rate, SYNC[way(H)] if sync is None else sync)
