"""The options and helpers that all residual blocks of xLSTM share."""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array
from xlstm.layers import initializers
from xlstm.layers.linear import Linear
from xlstm.layers.masks import dropout
from xlstm.layers.module import SameWidth, Weight
from xlstm.layers.sequence import SequenceLayer

MULTIPLE = 64  # inner widths are multiples of this


@dataclass(frozen=True)
class Block(SameWidth, SequenceLayer):
    """The base of the blocks of a stack; a block knows how many there are, and which of them it is."""

    size: int
    num_heads: int = 4
    _: KW_ONLY
    conv_kernel_size: int = 4
    dropout: float = 0.0
    num_blocks: int = 1
    index: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.index >= self.num_blocks:
            where = type(self).__name__
            raise ValueError(f"{where}: index is {self.index}, expected less than num_blocks, {self.num_blocks}")

    @functools.cached_property
    def random(self) -> bool:
        return self.dropout > 0

    @property
    def _small(self) -> float:
        """Standard deviation of initial weights (Nguyen & Salazar 2019)."""
        return math.sqrt(2 / (5 * self.size))

    @staticmethod
    def _drop(rng: np.random.Generator | None, y: Array, rate: float) -> tuple[Array, Array | None]:
        """Return y through a mask of dropout, and the mask, which is None where none is drawn."""
        mask = dropout(rng, rate, tuple(y.shape), y)
        return (y if mask is None else y * mask), mask


class GatesOfHeads(Linear):
    """The pre-activations of the input and the forget gates of N heads, by `W` (2N, I) and `b` (2N,) in this order.

    At first W is 0, and b is drawn by `initializers.mlstm_bias`.
    """

    def __init__(self, input_size: int, num_heads: int) -> None:
        super().__init__(input_size, 2 * num_heads)

    @property
    def weights(self) -> dict[str, Weight]:
        found = super().weights
        b: Weight = found["b"][0], lambda rng, shape: initializers.mlstm_bias(rng, shape[0] // 2)
        return {"W": (found["W"][0], initializers.constant(0.0)), "b": b}


def widened(where: str, name: str, factor: float, size: int) -> int:
    """Return an inner width, `factor` times `size` rounded up to a multiple of 64; `name` is that of the factor.

    Raises
    ------
    ValueError
        The width is larger than any size may be.
    """
    if factor * size > checks.LARGEST:
        raise ValueError(f"{where}: {name} is {factor}, expected at most {checks.LARGEST / size:g} for size {size}")
    return max(MULTIPLE, round_up(factor * size, MULTIPLE))  # for a tiny factor the product rounds to 0


def round_up(size: float, multiple: int) -> int:
    """Return the least multiple of `multiple` that is at least `size`."""
    return multiple * math.ceil(size / multiple)
