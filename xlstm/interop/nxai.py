"""Checkpoints of the published xLSTM packages, of block stacks and of the large architecture, without PyTorch.

In the block-stack package the sLSTM layer's projections named igate and fgate are swapped: the one named fgate feeds
the input gate. Its recurrent kernel has another layout in checkpoints of CUDA's backend than in those of the other.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import reading
from xlstm.data.tensors import Tensors
from xlstm.interop import published
from xlstm.interop.nxai_config import config_of, model_of
from xlstm.interop.published import Host, Layout, Pieces, Shape, Shards, config_beside, files_of, places
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.layers.blocks.stack import sLSTMBlock, xLSTMStack
from xlstm.models.language import xLSTMLanguageModel

STYLES = ("xlstm", "transformers")
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


@reading.brief()
def load(
    path: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    *,
    backend: str | Backend | None = None,
    dtype: str | None = None,
) -> tuple[xLSTMLanguageModel, Params]:
    """Read a language model from a published checkpoint.

    Parameters
    ----------
    path : path
        A safetensors file, or a folder with `model.safetensors` or shards of it, whose arrays have the names of the
        package `xlstm` (block stacks and `xLSTMLarge`, weights single or fused) or of `xLSTMForCausalLM` in
        transformers. Arrays are read one at a time, and may stay in their file until they are used: it may be
        replaced, but nobody may change it in its place meanwhile.
    config : dict, optional
        The configuration, as the package or transformers has it. By default it is read from `config.json` or
        `config.yaml` beside the checkpoint, or for a file `NAME.safetensors` also from `NAME_config.json`.
    backend : str or Backend, optional
        Where the parameters are put: a name as for `xlstm.backend`, by default "auto".
    dtype : str, optional
        The dtype of the parameters; by default that of the checkpoint, and float32 for narrower ones.

    Returns
    -------
    model : xLSTMLanguageModel
        `model.forward(params, tokens)` with tokens (B, T) gives logits (B, T, V).
    params : dict of str to array

    Raises
    ------
    OSError, ValueError, TypeError
        There is no such checkpoint, it is damaged, arrays are missing, surplus, misshapen or not finite, or a key of
        the configuration is unknown. Names and shapes are checked before anything is read.
    """
    path = Path(path)
    shards = Shards(path, map(Tensors, files_of(path)))
    large = any(name.startswith("backbone.") for name in shards.shapes)
    described = config_beside(path, instead=", or config=") if config is None else config
    model, style = model_of(described, most=len(shards.shapes), large=large)
    theirs = _pieces(model, style, shards.shapes)
    published.check(theirs, shards, {HEAD, _embedding(model, style)} if model.tied else ())
    if model.tied and not _same_head(model, style, shards):
        model = dataclasses.replace(model, tied=False)
        theirs = _pieces(model, style, shards.shapes)
    return model, published.params(theirs, shards, model.shapes, backend, dtype)


def save(path: str | os.PathLike[str], model: xLSTMLanguageModel, params: Params, *, style: str = "xlstm") -> None:
    """Write a checkpoint that the published package loads, or with `style="transformers"` transformers.

    Parameters
    ----------
    path : path
        A folder, which gets `model.safetensors`, `config.json` and, for an `xLSTMLarge` in the style of the package,
        the `config.yaml` that its loader reads; or a file `NAME.safetensors`, which gets `NAME_config.json` beside
        it. Each is written whole or not at all. They are replaced once all are on the disk; if the system refuses to
        replace one of them, those before it are new already.
    model : xLSTMLanguageModel
        Its backbone is an `xLSTMStack` or `xLSTMLarge`.
    params : dict
        Its parameters, on any backend.
    style : {"xlstm", "transformers"}
        The package whose names and configuration are written.

    Raises
    ------
    ValueError, TypeError
        The other package cannot express the model, or the parameters are not those of the model.
    OSError
        The folder cannot be written to, or a file cannot be replaced.
    """
    checks.choice(STYLES)("save", "style", style)
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, xLSTMStack | xLSTMLarge):
        raise TypeError(f"save: model is {model!r}, expected an xLSTMLanguageModel of an xLSTMStack or xLSTMLarge")
    model.namespace(params, {})
    config = config_of(model, style)
    arrays = exported(model, {name: to_numpy(p) for name, p in params.items()}, style)
    file, beside = places(Path(path))
    texts = {beside: json.dumps(config, indent=2)}
    if beside.name == "config.json" and style == "xlstm" and isinstance(backbone, xLSTMLarge):
        texts[beside.with_name("config.yaml")] = _yaml(config)
    published.write(file, arrays, texts)


def _yaml(config: Mapping[str, Any]) -> str:
    """Return a configuration without others in it as YAML, where 1e-06 would be a string."""
    lines = "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())
    return re.sub(r"(: \d+)e", r"\1.0e", lines)


def _same_head(model: xLSTMLanguageModel, style: str, shards: Shards) -> bool:
    """Say whether the head of a tied model is the embedding; transformers 5 keeps them apart whatever it is told."""
    embedding = _embedding(model, style)
    both = {HEAD, embedding} <= set(shards.shapes)
    if not both or np.array_equal(shards.read(HEAD), shards.read(embedding)):
        return True
    if style == "transformers" and shards.shapes[HEAD] == shards.shapes[embedding]:
        return False
    raise ValueError(f"{shards.path}: {HEAD} is another array than {embedding}, expected the same as it is tied")


def exported(model: xLSTMLanguageModel, arrays: Mapping[str, Host], style: str = "xlstm") -> dict[str, Host]:
    """Return arrays under our names, such as parameters or their gradients, as they are there."""
    theirs = published.exported(_pieces(model, style, {}), arrays)
    if model.tied:  # it is there twice; transformers 5 would draw a head that is missing
        theirs[HEAD] = theirs[_embedding(model, style)]
    return theirs


def _pieces(model: xLSTMLanguageModel, style: str, shapes: Mapping[str, Shape]) -> Pieces:
    """Return where each of our parameters is there.

    The style is "xlstm" or "transformers". The shapes of a checkpoint tell which of several layouts and names it has.
    """
    large = isinstance(model.backbone, xLSTMLarge)
    embedding = _embedding(model, style)
    if model.tied and embedding not in shapes and HEAD in shapes:
        embedding = HEAD
    names = {"embedding.W": [embedding], "head.W": [HEAD]}
    names["backbone.norm"] = ["backbone.out_norm" if large else "xlstm_block_stack.post_blocks_norm"]
    for k, block in enumerate(model.backbone.blocks):
        prefix = f"{'backbone' if large else 'xlstm_block_stack'}.blocks.{k}."
        table = LARGE if large else SLSTM if isinstance(block, sLSTMBlock) else MLSTM
        if f"{prefix}{FUSED['qkvo']}.weight" in shapes:  # weights are fused there too
            table = table | FUSED
        names |= published.block(f"backbone.blocks.{k}.", prefix, table)

    def layout(ours: str, theirs: str, shape: Shape) -> Layout | None:
        if ours.endswith(".conv.W"):  # (D, K), with one channel in of each there
            return Layout(shape, (0, 1), (shape[0], 1, shape[1]))
        if ".cell." not in ours:
            return None
        N = model.backbone.blocks[int(ours.split(".")[2])].num_heads
        K = model.backbone.size // N
        cuda = shapes.get(theirs.replace("_bias_", "_recurrent_kernel_")) == (N, K, 4 * K)
        if ours.endswith(".b"):  # by gate and head, or by head and gate
            return Layout((4, N, K), (1, 0, 2) if cuda else (0, 1, 2), shape)
        # (4, N, K out, K in), as (N, 4 K out, K in) or (N, K in, 4 K out)
        return Layout(shape, (1, 3, 0, 2), (N, K, 4 * K)) if cuda else Layout(shape, (1, 0, 2, 3), (N, 4 * K, K))

    return published.pieces_of(model.shapes, names, getattr(model.backbone, "v_size", 0), layout)


def _embedding(model: xLSTMLanguageModel, style: str) -> str:
    """Return the name of the embedding there."""
    if not isinstance(model.backbone, xLSTMLarge):
        return "token_embedding.weight"
    return "backbone.embeddings.weight" if style == "transformers" else "embedding.weight"
