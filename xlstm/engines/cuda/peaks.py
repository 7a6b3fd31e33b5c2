"""The arithmetic that a GPU does at most, from data sheets: products without sparsity, sums in float32.

The numbers rank ways to divide a product on one card. The peaks of sm_100 are taken to be those of sm_90, since its own
tensor cores want another instruction.
"""

from __future__ import annotations

from typing import NamedTuple


class Peaks(NamedTuple):
    """Operations per microsecond and SM, a product and its sum counted as two."""

    float64: float
    float32: float
    tf32: float
    half: float  # float16, and bfloat16 from sm_80 on


# By compute capability, in a million; 0 where there is none. Peak of the chip, in TFLOP/s, over its SMs.
PEAKS = {
    60: Peaks(0.095, 0.189, 0, 0),  # P100: 5.3 and 10.6 over 56
    70: Peaks(0.098, 0.196, 0, 1.56),  # V100: 7.8, 15.7 and 125 over 80
    75: Peaks(0.006, 0.203, 0, 1.63),  # T4: 0.25, 8.1 and 65 over 40
    80: Peaks(0.090, 0.181, 1.44, 2.89),  # A100: 9.7, 19.5, 156 and 312 over 108
    86: Peaks(0.007, 0.434, 0.87, 1.74),  # A10: 31.2, 62.5 and 125 over 72
    89: Peaks(0.010, 0.645, 1.29, 2.55),  # L40S: 91.6, 183 and 362 over 142
    90: Peaks(0.258, 0.508, 3.75, 7.50),  # H100: 34, 67, 495 and 989 over 132
    100: Peaks(0.250, 0.507, 3.75, 7.50),  # B200: 37 and 75 over 148
    120: Peaks(0.010, 0.665, 1.33, 2.68),  # RTX PRO 6000: 125, 251 and 504 over 188
}

# The share of the peak of tensor cores that `mma.sync` reaches, estimates; sm_90 and sm_100 have a quicker instruction.
MMA, MMA_HOPPER = 0.85, 0.62


def reached(capability: int) -> float:
    """Return the share of the peak of tensor cores that the kernels' instruction reaches, an estimate."""
    return MMA_HOPPER if 90 <= capability < 120 else MMA


def peaks(name: str, capability: int) -> Peaks:
    """Return the peaks of a card; tensor cores of a GeForce sum in float32 at half the rate of its chip.

    Parameters
    ----------
    name : str
        As CUDA gives it: "NVIDIA GeForce RTX 4090".
    capability : int
        90 for sm_90; one that is not known has the peaks of the next lower one.
    """
    found = PEAKS[max((known for known in PEAKS if known <= capability), default=min(PEAKS))]
    share = 0.5 if "GeForce" in name and capability >= 80 else 1.0
    found = found._replace(tf32=share * found.tf32, half=share * found.half)
    return Peaks(*(1e6 * peak for peak in found))
