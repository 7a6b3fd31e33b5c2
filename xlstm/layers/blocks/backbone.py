"""Backbone, the base of stacks of blocks, and the stack of the xLSTM paper."""

from __future__ import annotations

import functools
from collections.abc import Sequence as Several
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Params
from xlstm.layers.blocks.mlstm_block import mLSTMBlock
from xlstm.layers.blocks.slstm_block import sLSTMBlock
from xlstm.layers.module import SameWidth
from xlstm.layers.norm import LayerNorm
from xlstm.layers.sequence import Derivatives, SequenceLayer, State
from xlstm.recurrence.packing import Span


class Backbone(SameWidth, SequenceLayer):
    """Blocks on top of each other, and a norm. Subclasses have the fields `size` and `num_blocks`.

    Parameters are `blocks.{k}....` and `norm.w`; the state is a tuple of the states of the blocks.
    """

    num_blocks: int

    @functools.cached_property
    def blocks(self) -> list[Any]:
        """The blocks, the first at the input."""
        raise NotImplementedError

    @property
    def norm(self) -> Any:
        """The norm after the last block, or None."""
        raise NotImplementedError

    def _made(self, kind: Any, **own: Any) -> Any:
        """Return a block with those options of the stack that its class has."""
        given = {f.name: getattr(self, f.name) for f in fields(self)} | own  # type: ignore[arg-type]
        return kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given})

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        found = {f"blocks.{k}": block for k, block in enumerate(self.blocks)}
        return found | ({} if self.norm is None else {"norm": self.norm})

    @functools.cached_property
    def states(self) -> State:
        return tuple(block.states for block in self.blocks)

    def scan(self, p: Params, x: Array, state: State, span: Span) -> tuple[Array, State, Any]:
        ends = []
        kept: dict[str, Any] = {}
        for k, start in enumerate(state):
            x, end = self.along(f"blocks.{k}", p, x, start, span, kept)
            if not span.keep:
                kept.clear()
            ends.append(end)
        if "norm" in self.parts:
            x = self.through(span.xp, "norm", p, x, kept)
        return x, tuple(ends), kept

    def scan_bwd(self, p: Params, kept: Any, dy: Array, dstate: State | None, span: Span) -> Derivatives:
        grads: Params = {}
        if "norm" in self.parts:
            dy = self.through_bwd(span.xp, "norm", p, kept, dy, grads)
        starts = []
        for k in range(self.num_blocks - 1, -1, -1):
            end = None if dstate is None else dstate[k]
            dy, start = self.along_bwd(f"blocks.{k}", p, kept, dy, end, span, grads)
            starts.append(start)
        return grads, dy, tuple(starts[::-1])


@dataclass(frozen=True)
class xLSTMStack(Backbone):  # noqa: N801
    """mLSTM and sLSTM blocks in any order (Beck et al. 2024), then a LayerNorm.

    Parameters
    ----------
    size : int
        Width D of x and y.
    num_blocks : int
        Number of blocks.
    slstm_at : sequence of int
        The places of sLSTM blocks, counted from 0; all other blocks are mLSTM blocks.
    num_heads : int
        Number of heads of every block.
    conv_kernel_size, proj_factor, qkv_block_size, bias, eps, chunk_size
        Options of `mLSTMBlock`.
    slstm_num_heads, slstm_conv_kernel_size, ffn_proj_factor, ffn_activation, recurrent_init, ffn_dropout
        Options of `sLSTMBlock`; the first two are by default those of mLSTM blocks.
    dropout : float
        Rate of dropout of every block.
    post_norm : bool
        Whether there is a norm after the last block.
    """

    size: int
    num_blocks: int
    slstm_at: Several[int] = ()
    num_heads: int = 4
    _: KW_ONLY
    conv_kernel_size: int = 4
    proj_factor: float = 2.0
    qkv_block_size: int = 4
    bias: bool = False
    eps: float = 0.0
    chunk_size: int | None = None
    slstm_num_heads: int | None = None
    slstm_conv_kernel_size: int | None = None
    ffn_proj_factor: float = 1.3
    ffn_activation: str = "gelu"
    recurrent_init: str = "zeros"
    dropout: float = 0.0
    ffn_dropout: float | None = None
    post_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        places = checks.several("xLSTMStack", "slstm_at", self.slstm_at, "numbers of blocks", self.num_blocks)
        numbers = sorted(checks.integer("xLSTMStack", "slstm_at", k) for k in places)
        for k in numbers:
            if not 0 <= k < self.num_blocks:
                last = f"{self.num_blocks - 1}, as num_blocks is {self.num_blocks}"
                raise ValueError(f"xLSTMStack: slstm_at has {k}, expected 0 to {last}")
        object.__setattr__(self, "slstm_at", tuple(numbers))
        if len(self._slstm) != len(self.slstm_at):
            raise ValueError(f"xLSTMStack: slstm_at is {checks.shown(self.slstm_at)}, expected each block once")
        if self.slstm_at and self.slstm_num_heads is not None:
            checks.heads("xLSTMStack", self.slstm_num_heads, "slstm_num_heads", size=self.size)
        one_of_each = {k in self._slstm: k for k in range(self.num_blocks)}
        for k in one_of_each.values():
            self._block(k)  # checks its options

    @functools.cached_property
    def blocks(self) -> list[Any]:
        return [self._block(k) for k in range(self.num_blocks)]

    @functools.cached_property
    def _slstm(self) -> frozenset[int]:
        return frozenset(self.slstm_at)

    def _block(self, k: int) -> Any:
        if k not in self._slstm:
            return self._made(mLSTMBlock, index=k)
        heads, width = self.slstm_num_heads, self.slstm_conv_kernel_size
        return self._made(
            sLSTMBlock,
            index=k,
            num_heads=self.num_heads if heads is None else heads,
            conv_kernel_size=self.conv_kernel_size if width is None else width,
        )

    @property
    def norm(self) -> Any:
        return LayerNorm(self.size, residual=True) if self.post_norm else None
