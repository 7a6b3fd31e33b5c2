"""Names and layouts of the published xLSTM packages, and of transformers: where each of our parameters is there.

In the block-stack package the sLSTM layer's projections named igate and fgate are swapped: the one named fgate feeds
the input gate. Its recurrent kernel has another layout in checkpoints of CUDA's backend than in those of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.layers.blocks.slstm import sLSTMBlock
from xlstm.models.language import xLSTMLanguageModel

Host = np.ndarray[Any, Any]
HEAD = "lm_head.weight"
Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How an array of ours lies there."""

    write: Callable[[Host], Host]
    read: Callable[[Host, Shape], Host]  # given the shape that it has with us


class Piece(NamedTuple):
    """Some rows of a parameter, as an array of theirs."""

    name: str
    rows: slice
    layout: Layout


def _kernel_of_cuda(a: Host, shape: Shape) -> Host:
    G, N, K, _ = shape
    return a.reshape(N, K, G, K).transpose(2, 0, 3, 1)


def _kernel(a: Host, shape: Shape) -> Host:
    G, N, K, _ = shape
    return a.reshape(N, G, K, K).transpose(1, 0, 2, 3)


SAME = Layout(lambda a: a, lambda a, shape: a)
# One channel in of each.
CONV = Layout(lambda a: a[:, None, :], lambda a, shape: a.reshape(shape))
# (4, N, K out, K in) as (N, 4 K out, K in), or (N, K in, 4 K out).
KERNEL = Layout(lambda a: a.transpose(1, 0, 2, 3).reshape(a.shape[1], -1, a.shape[3]), _kernel)
KERNEL_CUDA = Layout(lambda a: a.transpose(1, 3, 0, 2).reshape(a.shape[1], a.shape[3], -1), _kernel_of_cuda)


def bias_of_cuda(N: int) -> Layout:
    """Biases by gate and head as biases by head and gate."""
    return Layout(
        lambda a: a.reshape(4, N, -1).swapaxes(0, 1).ravel(),
        lambda a, shape: a.reshape(N, 4, -1).swapaxes(0, 1).ravel(),
    )


def pieces(model: xLSTMLanguageModel, style: str, shapes: Mapping[str, Shape] | None = None) -> dict[str, list[Piece]]:
    """By each of our names, the arrays of theirs that make it up, one below the other.

    `style` is "xlstm" or "transformers". `shapes` are those of a checkpoint: they tell which of several layouts and
    names it has.
    """
    found: dict[str, list[Piece]] = {}
    given = shapes or {}
    large = isinstance(model.backbone, xLSTMLarge)

    def add(ours: str, *theirs: str, heights: tuple[int, ...] = (), layout: Layout = SAME) -> None:
        """Biases go the way of their weights."""
        for ours_last, last in (("W", "weight"), ("b", "bias"), ("w", "weight")):
            name = f"{ours}.{ours_last}"
            if name in model.shapes:
                ends = np.cumsum(heights) if heights else [None]
                starts = [0, *ends[:-1]]
                same = SAME if ours_last == "b" else layout
                spans = zip(theirs, starts, ends, strict=True)
                found[name] = [Piece(f"{one}.{last}", slice(first, end), same) for one, first, end in spans]

    for k, block in enumerate(model.backbone.blocks):
        ours = f"backbone.blocks.{k}"
        if large:
            _large_block(add, ours, f"backbone.blocks.{k}", block, given)
        else:
            theirs = f"xlstm_block_stack.blocks.{k}"
            add(f"{ours}.norm", f"{theirs}.xlstm_norm")
            add(f"{ours}.conv", f"{theirs}.xlstm.conv1d.conv", layout=CONV)
            if isinstance(block, sLSTMBlock):
                _slstm_block(add, found, ours, theirs, block, given)
            else:
                _mlstm_block(add, found, ours, theirs, block)
    add("backbone.norm", "backbone.out_norm" if large else "xlstm_block_stack.post_blocks_norm")
    embedding = embedding_of(model, style)
    if model.tied and embedding not in given and HEAD in given:
        embedding = HEAD
    add("embedding", embedding.removesuffix(".weight"))
    add("head", HEAD.removesuffix(".weight"))
    return found


def embedding_of(model: xLSTMLanguageModel, style: str) -> str:
    """The name of the embedding there."""
    if not isinstance(model.backbone, xLSTMLarge):
        return "token_embedding.weight"
    return "backbone.embeddings.weight" if style == "transformers" else "embedding.weight"


def _mlstm_block(add: Any, found: Any, ours: str, theirs: str, block: Any) -> None:
    N = block.num_heads
    for name, there in {"up": "proj_up", "down": "proj_down", "q": "q_proj", "k": "k_proj", "v": "v_proj"}.items():
        add(f"{ours}.{name}", f"{theirs}.xlstm.{there}")
    cell = f"{theirs}.xlstm.mlstm_cell"
    add(f"{ours}.gates", f"{cell}.igate", f"{cell}.fgate", heights=(N, N))
    add(f"{ours}.outnorm", f"{cell}.outnorm")
    found[f"{ours}.skip"] = [Piece(f"{theirs}.xlstm.learnable_skip", slice(None), SAME)]


def _slstm_block(add: Any, found: Any, ours: str, theirs: str, block: Any, given: Mapping[str, Shape]) -> None:
    for name, there in {"i": "fgate", "f": "igate", "z": "zgate", "o": "ogate"}.items():
        add(f"{ours}.{name}", f"{theirs}.xlstm.{there}")
    cell = f"{theirs}.xlstm.slstm_cell"
    K = block.size // block.num_heads
    cuda = given.get(f"{cell}._recurrent_kernel_") == (block.num_heads, K, 4 * K)
    layouts = (KERNEL_CUDA, bias_of_cuda(block.num_heads)) if cuda else (KERNEL, SAME)
    for name, there, layout in zip(("Wh", "b"), ("_recurrent_kernel_", "_bias_"), layouts, strict=True):
        found[f"{ours}.cell.{name}"] = [Piece(f"{cell}.{there}", slice(None), layout)]
    add(f"{ours}.outnorm", f"{theirs}.xlstm.group_norm")
    add(f"{ours}.ffn_norm", f"{theirs}.ffn_norm")
    add(f"{ours}.ffn.up", f"{theirs}.ffn.proj_up")
    add(f"{ours}.ffn.down", f"{theirs}.ffn.proj_down")


def _large_block(add: Any, ours: str, theirs: str, block: Any, given: Mapping[str, Shape]) -> None:
    layer, QK, V, N, U = f"{theirs}.mlstm_layer", block.qk_size, block.v_size, block.num_heads, block.ffn_size
    add(f"{ours}.norm", f"{theirs}.norm_mlstm")
    if f"{layer}.qkv_opreact.weight" in given:  # weights fused there too
        add(f"{ours}.qkvo", f"{layer}.qkv_opreact")
        add(f"{ours}.gates", f"{layer}.ifgate_preact")
        add(f"{ours}.ffn.up", f"{theirs}.ffn.proj_up_gate_z")
    else:
        add(f"{ours}.qkvo", *(f"{layer}.{name}" for name in ("q", "k", "v", "ogate_preact")), heights=(QK, QK, V, V))
        add(f"{ours}.gates", f"{layer}.igate_preact", f"{layer}.fgate_preact", heights=(N, N))
        add(f"{ours}.ffn.up", f"{theirs}.ffn.proj_up_gate", f"{theirs}.ffn.proj_up", heights=(U, U))
    add(f"{ours}.outnorm", f"{layer}.multihead_norm")
    add(f"{ours}.down", f"{layer}.out_proj")
    add(f"{ours}.ffn_norm", f"{theirs}.norm_ffn")
    add(f"{ours}.ffn.down", f"{theirs}.ffn.proj_down")


def written(model: xLSTMLanguageModel, style: str, arrays: Mapping[str, Host]) -> dict[str, Host]:
    """Arrays under our names, such as parameters or their gradients, as they are there."""
    found = {}
    for name, some in pieces(model, style).items():
        for piece in some:
            found[piece.name] = piece.layout.write(np.asarray(arrays[name])[piece.rows])
    if model.tied:  # it is there twice; transformers 5 would draw a head that is missing
        found[HEAD] = found[embedding_of(model, style)]
    return found


def expected(model: xLSTMLanguageModel, style: str, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes that the arrays of a checkpoint should have."""
    found = {}
    for name, some in pieces(model, style, shapes).items():
        nothing = np.broadcast_to(np.float32(0), [n or 0 for n in model.shapes[name].values()])
        for piece in some:
            found[piece.name] = _shape(piece, nothing)
    return found


def _shape(piece: Piece, nothing: Host) -> Shape:
    return tuple(piece.layout.write(nothing[piece.rows]).shape)
