"""Names and layouts of the published xLSTM packages and of transformers: where each of our parameters is there.

In the block-stack package the sLSTM layer's projections named igate and fgate are swapped: the one named fgate feeds
the input gate. Its recurrent kernel has another layout in checkpoints of CUDA's backend than in those of the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from xlstm.interop import pieces as pieces_of
from xlstm.interop.pieces import LAST, Host, Layout, Piece, Shape
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.layers.blocks.slstm_block import sLSTMBlock
from xlstm.models.language import xLSTMLanguageModel

HEAD = "lm_head.weight"

# By our name within a block the name of theirs, or of several that lie one below the other in ours.
MLSTM = {
    "norm": "xlstm_norm",
    "skip": "xlstm.learnable_skip",
    "up": "xlstm.proj_up",
    "conv": "xlstm.conv1d.conv",
    **{name: f"xlstm.{name}_proj" for name in "qkv"},
    "gates": "xlstm.mlstm_cell.igate xlstm.mlstm_cell.fgate",
    "outnorm": "xlstm.mlstm_cell.outnorm",
    "down": "xlstm.proj_down",
}
SLSTM = {
    "norm": "xlstm_norm",
    "conv": "xlstm.conv1d.conv",
    **{name: f"xlstm.{there}gate" for name, there in zip("ifzo", "fizo", strict=True)},
    "cell.Wh": "xlstm.slstm_cell._recurrent_kernel_",
    "cell.b": "xlstm.slstm_cell._bias_",
    "outnorm": "xlstm.group_norm",
    "ffn_norm": "ffn_norm",
    "ffn.up": "ffn.proj_up",
    "ffn.down": "ffn.proj_down",
}
LARGE = {
    "norm": "norm_mlstm",
    "qkvo": "mlstm_layer.q mlstm_layer.k mlstm_layer.v mlstm_layer.ogate_preact",
    "gates": "mlstm_layer.igate_preact mlstm_layer.fgate_preact",
    "outnorm": "mlstm_layer.multihead_norm",
    "down": "mlstm_layer.out_proj",
    "ffn_norm": "norm_ffn",
    "ffn.up": "ffn.proj_up_gate ffn.proj_up",
    "ffn.down": "ffn.proj_down",
}
FUSED = {"qkvo": "mlstm_layer.qkv_opreact", "gates": "mlstm_layer.ifgate_preact", "ffn.up": "ffn.proj_up_gate_z"}


def pieces(model: xLSTMLanguageModel, style: str, shapes: Mapping[str, Shape] | None = None) -> dict[str, list[Piece]]:
    """Return by each of our names the arrays of theirs that make it up, one below the other.

    The style is "xlstm" or "transformers". The shapes of a checkpoint tell which of several layouts and names it has.
    """
    given = shapes or {}
    found: dict[str, list[Piece]] = {}
    theirs = _theirs(model, style, given)
    for ours, dims in model.shapes.items():
        shape, (part, _, last) = tuple(n or 0 for n in dims.values()), ours.rpartition(".")
        # A parameter that belongs to no part of a block, but to the block, has no ending there.
        listed = theirs[ours] if ours in theirs else [f"{name}.{LAST[last]}" for name in theirs[part]]
        heights = [shape[0] // len(listed)] * len(listed)
        if len(listed) == 4:  # q, k, v and o
            heights = [*[model.backbone.qk_size] * 2, *[model.backbone.v_size] * 2]
        layouts = [_layout(model, ours, name, (n, *shape[1:]), given) for name, n in zip(listed, heights, strict=True)]
        some = pieces_of.below(listed, heights, shape[1:])
        found[ours] = [piece._replace(layout=layout) for piece, layout in zip(some, layouts, strict=True)]
    return found


def _theirs(model: xLSTMLanguageModel, style: str, given: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Return their names by ours, without the endings of weights and biases."""
    large = isinstance(model.backbone, xLSTMLarge)
    embedding = embedding_of(model, style)
    if model.tied and embedding not in given and HEAD in given:
        embedding = HEAD
    found = {"embedding": [embedding.removesuffix(".weight")], "head": [HEAD.removesuffix(".weight")]}
    found["backbone.norm"] = ["backbone.out_norm" if large else "xlstm_block_stack.post_blocks_norm"]
    for k, block in enumerate(model.backbone.blocks):
        prefix = f"{'backbone' if large else 'xlstm_block_stack'}.blocks.{k}."
        table = LARGE if large else SLSTM if isinstance(block, sLSTMBlock) else MLSTM
        if f"{prefix}{FUSED['qkvo']}.weight" in given:  # weights are fused there too
            table = table | FUSED
        for ours, names in table.items():
            found[f"backbone.blocks.{k}.{ours}"] = [prefix + name for name in names.split()]
    return found


def _layout(model: xLSTMLanguageModel, ours: str, theirs: str, shape: Shape, given: Mapping[str, Shape]) -> Layout:
    """Return the layout of an array that has the shape `shape` with us."""
    same = tuple(range(len(shape)))
    if ours.endswith(".conv.W"):  # (D, K), with one channel in of each there
        return Layout(shape, same, (shape[0], 1, shape[1]))
    if ".cell." not in ours:
        return Layout(shape, same, shape)
    N = model.backbone.blocks[int(ours.split(".")[2])].num_heads
    K = model.backbone.size // N
    cuda = given.get(theirs.replace("_bias_", "_recurrent_kernel_")) == (N, K, 4 * K)
    if ours.endswith(".b"):  # by gate and head, or by head and gate
        return Layout((4, N, K), (1, 0, 2) if cuda else (0, 1, 2), shape)
    # (4, N, K out, K in), as (N, 4 K out, K in) or (N, K in, 4 K out)
    return Layout(shape, (1, 3, 0, 2), (N, K, 4 * K)) if cuda else Layout(shape, (1, 0, 2, 3), (N, 4 * K, K))


def embedding_of(model: xLSTMLanguageModel, style: str) -> str:
    """Return the name of the embedding there."""
    if not isinstance(model.backbone, xLSTMLarge):
        return "token_embedding.weight"
    return "backbone.embeddings.weight" if style == "transformers" else "embedding.weight"


def written(model: xLSTMLanguageModel, style: str, arrays: Mapping[str, Host]) -> dict[str, Host]:
    """Return arrays under our names, such as parameters or their gradients, as they are there."""
    found = pieces_of.written(pieces(model, style), arrays)
    if model.tied:  # it is there twice; transformers 5 would draw a head that is missing
        found[HEAD] = found[embedding_of(model, style)]
    return found
