"""Checkpoints of the published xLSTM packages, block stacks and the large architecture, without
PyTorch.

In the block-stack package, the sLSTM layer's projections named igate and fgate are swapped: fgate
feeds the input gate. The layout of its recurrent kernel differs between checkpoints of the CUDA
backend and of the other backend.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.checks import shown
from xlstm.arrays.namespace import Params
from xlstm.data import reading
from xlstm.data.tensors import Host, Tensors
from xlstm.data.writing import AnyPath
from xlstm.interop import published
from xlstm.interop.published import Layout, Pieces, Shape, Shards, options, values
from xlstm.layers.blocks.block import round_up
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.layers.blocks.stack import sLSTMBlock, xLSTMStack
from xlstm.models.language import xLSTMLanguageModel

__all__ = ["load", "save"]

Config = Mapping[str, Any]

CONFIGS = ("config.json", "config.yaml")
HEAD = "lm_head.weight"

# The package's name for each name within a block here, or several names of arrays that are stacked
# here.
MLSTM_NAMES = {
    "norm": "xlstm_norm",
    "skip": "xlstm.learnable_skip",
    "up": "xlstm.proj_up",
    "conv": "xlstm.conv1d.conv",
    "q": "xlstm.q_proj",
    "k": "xlstm.k_proj",
    "v": "xlstm.v_proj",
    "gates": "xlstm.mlstm_cell.igate xlstm.mlstm_cell.fgate",
    "outnorm": "xlstm.mlstm_cell.outnorm",
    "down": "xlstm.proj_down",
}
SLSTM_NAMES = {
    "norm": "xlstm_norm",
    "conv": "xlstm.conv1d.conv",
    "i": "xlstm.fgate",
    "f": "xlstm.igate",
    "z": "xlstm.zgate",
    "o": "xlstm.ogate",
    "cell.Wh": "xlstm.slstm_cell._recurrent_kernel_",
    "cell.b": "xlstm.slstm_cell._bias_",
    "outnorm": "xlstm.group_norm",
    "ffn_norm": "ffn_norm",
    "ffn.up": "ffn.proj_up",
    "ffn.down": "ffn.proj_down",
}
LARGE_NAMES = {
    "norm": "norm_mlstm",
    "qkvo": "mlstm_layer.q mlstm_layer.k mlstm_layer.v mlstm_layer.ogate_preact",
    "gates": "mlstm_layer.igate_preact mlstm_layer.fgate_preact",
    "outnorm": "mlstm_layer.multihead_norm",
    "down": "mlstm_layer.out_proj",
    "ffn_norm": "norm_ffn",
    "ffn.up": "ffn.proj_up_gate ffn.proj_up",
    "ffn.down": "ffn.proj_down",
}
# the most steps for the block-stack package; this library has no limit, and no array depends on it
CONTEXT = 2048
EPS = 1e-6  # fixed in the block-stack package

# This library's name of each activation of a feed-forward layer.
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "relu^2": "square_relu",
    "selu": "selu",
    "sigmoid": "sigmoid",
    "swish": "silu",
}
# Keys without an option here, with the only value that this library supports.
FIXED: dict[str, Any] = {
    "round_proj_up_dim_up": True,
    "round_proj_up_to_multiple_of": 64,
    "function": "slstm",
    "gradient_recurrent_cut": False,
    "gradient_recurrent_clipval": None,
    "forward_clipval": None,
    "group_norm_weight": True,
    "ff_type": "ffn_gated",
    "num_states": 4,
    "num_gates": 4,
    "initial_val": 0.0,
    "input_shape": "BSGNH",
    "output_shape": "BNSH",
    "weight_mode": "single",
    "inference_state_dtype": "float32",  # with bfloat16, logits are off by a tenth
}
# The same for transformers: keys of older configurations.
FIXED_OLDER: dict[str, Any] = {
    "add_embedding_dropout": False,
    "add_post_norm": False,
    "add_qk_norm": False,
    "lm_head_bias": False,
    "add_post_blocks_norm": True,
    "quantization_config": None,
}
# Keys that do not change results, or that repeat a key of the model in a block's configuration.
IGNORED = {
    "context_length",
    "weight_decay_on_embedding",
    "embedding_dim",
    "bias",
    "dropout",
    "hidden_size",
    "backend",
    "bias_init",
    "recurrent_weight_init",
    "batch_size",
    "internal_input_shape",
    "constants",
    "enable_automatic_mixed_precision",
    "dtype",
    *(f"dtype_{part}" for part in "brwgsa"),
}
IGNORED_LARGE = {
    "norm_reduction_force_float32",
    "chunkwise_kernel",
    "sequence_kernel",
    "step_kernel",
    "mode",
    "return_last_states",
    "autocast_kernel_dtype",
}
# Options here by the package's names: for blocks of a block stack, for the stack, and for a
# configuration in one dict.
MLSTM = published.table(
    "num_heads",
    "proj_factor",
    conv1d_kernel_size="conv_kernel_size",
    qkv_proj_blocksize="qkv_block_size",
)
SLSTM = published.table(num_heads="slstm_num_heads", conv1d_kernel_size="slstm_conv_kernel_size")
FEED_FORWARD = published.table(
    proj_factor="ffn_proj_factor", act_fn="ffn_activation", dropout="ffn_dropout"
)
STACK = published.table(
    "num_blocks",
    "slstm_at",
    "bias",
    "dropout",
    embedding_dim="size",
    add_post_blocks_norm="post_norm",
)
FLAT = published.table(
    "num_heads",
    conv1d_kernel_size="conv_kernel_size",
    qkv_proj_blocksize="qkv_block_size",
    mlstm_proj_factor="proj_factor",
    slstm_ffn_proj_factor="ffn_proj_factor",
    slstm_ffn_act="ffn_activation",
)
# keys of the whole model here
WHOLE = {"vocab_size", "tie_weights", "add_embedding_dropout", "mlstm_block", "slstm_block"}
# The same for a large model, and the values of missing keys. A factor times the width is a width.
LARGE = published.table(
    "num_blocks",
    "num_heads",
    "norm_eps",
    "eps",
    "chunk_size",  # 64 there; here it follows the heads
    embedding_dim="size",
    use_bias="bias",
    add_out_norm="post_norm",
    gate_soft_cap="gate_cap",
)
DEFAULTS = {
    "norm_eps": 1e-6,
    "eps": 1e-6,
    "qk_dim_factor": 0.5,
    "v_dim_factor": 1.0,
    "ffn_proj_factor": 2.6667,
    "ffn_round_up_to_multiple_of": 64,
    "output_logit_soft_cap": 30.0,
}
# In transformers, defaults differ, two keys have other names, and dozens do not describe the model.
DEFAULTS_TRANSFORMERS = {
    "embedding_dim": 4096,
    "num_blocks": 32,
    "num_heads": 8,
    "vocab_size": 50304,
    "ffn_proj_factor": 2.667,
    "tie_word_embeddings": False,
}
RENAMED = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}
ONLY_LARGE = (LARGE.keys() | DEFAULTS.keys() | IGNORED_LARGE) - (STACK.keys() | FLAT.keys())


@reading.brief()
def load(
    path: AnyPath,
    config: Mapping[str, Any] | None = None,
    *,
    backend: str | Backend | None = None,
    dtype: str | None = None,
) -> tuple[xLSTMLanguageModel, Params]:
    """Load a language model from a published checkpoint.

    Parameters
    ----------
    path : path
        A safetensors file, or a folder with `model.safetensors` or its shards. The arrays have the
        names of the package `xlstm` (block stacks and `xLSTMLarge`), or of `xLSTMForCausalLM` in
        transformers. Arrays are read one at a time, and may stay in their file until they are used.
        Until then, you may replace the file, but do not change it in-place.
    config : dict, optional
        The configuration, in the form of the package or of transformers. By default it is read from
        `config.json` or `config.yaml` beside the checkpoint; for a file `NAME.safetensors`, also
        from `NAME_config.json`.
    backend : str or Backend, optional
        The backend of the parameters, or its name as for `xlstm.backend`; by default "auto".
    dtype : str, optional
        The dtype of the parameters; by default the checkpoint's dtype, or float32 if that is
        narrower.

    Returns
    -------
    model : xLSTMLanguageModel
        `model.forward(params, tokens)` with tokens (B, T) gives logits (B, T, V).
    params : dict of str to array

    Raises
    ------
    OSError, ValueError, TypeError
        The checkpoint does not exist or is damaged; arrays are missing, surplus, misshapen or not
        finite; or a key of the configuration is unknown. Names and shapes are checked before
        anything is read.
    """
    path = Path(path)
    shards = Shards(path, map(Tensors, published.files_of(path)))
    large = any(name.startswith("backbone.") for name in shards.shapes)
    config = published.config_beside(path, CONFIGS) if config is None else config
    model, style = model_of(config, large)
    theirs = _pieces(model, style, shards.shapes)
    published.check(theirs, shards, {HEAD, _embedding(model, style)} if model.tied else ())
    if model.tied and not _same_head(model, style, shards):
        model = dataclasses.replace(model, tied=False)
        theirs = _pieces(model, style, shards.shapes)
    return model, published.params(theirs, shards, model.shapes, backend, dtype)


def save(path: AnyPath, model: xLSTMLanguageModel, params: Params) -> None:
    """Save a language model as a checkpoint that the published package loads.

    Parameters
    ----------
    path : path
        A folder, or a file `NAME.safetensors`. A folder gets `model.safetensors`, `config.json`
        and, for an `xLSTMLarge`, the `config.yaml` that the package's loader reads. A file gets
        `NAME_config.json` beside it. Each file is written completely or not at all, and files are
        replaced once all are on the disk. If the system refuses to replace one file, the files
        before it are new already.
    model : xLSTMLanguageModel
        The model; its backbone is an `xLSTMStack` or `xLSTMLarge`.
    params : dict
        Its parameters, on any backend.

    Raises
    ------
    ValueError, TypeError
        The package cannot express the model, or the parameters do not belong to the model.
    OSError
        The folder cannot be written to, or a file cannot be replaced.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, xLSTMStack | xLSTMLarge):
        raise TypeError(
            f"save: model is {model!r}, expected an xLSTMLanguageModel of an xLSTMStack or"
            " xLSTMLarge"
        )
    model.namespace(params, {})
    config = config_of(model)
    arrays = exported(model, params)
    # YAML reads 1e-06 as a string
    text = re.sub(r"(: \d+)e", r"\1.0e", json.dumps(config, indent=2))
    published.write(Path(path), arrays, text, as_yaml=isinstance(backbone, xLSTMLarge))


def _same_head(model: xLSTMLanguageModel, style: str, shards: Shards) -> bool:
    """Return whether a tied model's head is the embedding; transformers 5 always stores both."""
    embedding = _embedding(model, style)
    both = {HEAD, embedding} <= set(shards.shapes)
    if not both or np.array_equal(shards.read(HEAD), shards.read(embedding)):
        return True
    if style == "transformers" and shards.shapes[HEAD] == shards.shapes[embedding]:
        return False
    raise ValueError(
        f"{shards.path}: {HEAD} is another array than {embedding}, expected the same as it is tied"
    )


def exported(model: xLSTMLanguageModel, arrays: Params) -> dict[str, Host]:
    """Return arrays under this library's names, such as parameters or gradients, in the package's
    layout.
    """
    theirs = published.exported(_pieces(model, "xlstm", {}), arrays)
    return {**theirs, HEAD: theirs[_embedding(model, "xlstm")]} if model.tied else theirs


def _pieces(model: xLSTMLanguageModel, style: str, shapes: Mapping[str, Shape]) -> Pieces:
    """Return the package's arrays of which each parameter is made.

    The style is "xlstm" or "transformers". The shapes of a checkpoint show which of several layouts
    and names it uses.
    """
    large = isinstance(model.backbone, xLSTMLarge)
    embedding = _embedding(model, style)
    if model.tied and embedding not in shapes and HEAD in shapes:
        embedding = HEAD
    names = {"embedding.W": [embedding], "head.W": [HEAD]}
    there = "backbone" if large else "xlstm_block_stack"
    names["backbone.norm"] = [f"{there}.{'out_norm' if large else 'post_blocks_norm'}"]
    for k, block in enumerate(model.backbone.blocks):
        table = SLSTM_NAMES if isinstance(block, sLSTMBlock) else MLSTM_NAMES
        table = LARGE_NAMES if large else table
        names |= published.block(f"backbone.blocks.{k}.", f"{there}.blocks.{k}.", table)

    def layout(ours: str, theirs: str, shape: Shape) -> Layout | None:
        if ours.endswith(".conv.W"):  # (D, K) here; (D, 1, K) there
            return shape, (0, 1), (shape[0], 1, shape[1])
        if ".cell." not in ours:
            return None
        N = model.backbone.blocks[int(ours.split(".")[2])].num_heads
        K = model.backbone.size // N
        cuda = shapes.get(theirs.replace("_bias_", "_recurrent_kernel_")) == (N, K, 4 * K)
        if ours.endswith(".b"):  # ordered by gate and head, or by head and gate
            return (4, N, K), (1, 0, 2) if cuda else (0, 1, 2), shape
        # (4, N, K out, K in), as (N, 4 K out, K in) or (N, K in, 4 K out)
        if cuda:
            return shape, (1, 3, 0, 2), (N, K, 4 * K)
        return shape, (1, 0, 2, 3), (N, 4 * K, K)

    return published.pieces_of(model.shapes, names, getattr(model.backbone, "v_size", 0), layout)


def _embedding(model: xLSTMLanguageModel, style: str) -> str:
    """Return the package's name of the embedding."""
    if not isinstance(model.backbone, xLSTMLarge):
        return "token_embedding.weight"
    return "backbone.embeddings.weight" if style == "transformers" else "embedding.weight"


@reading.brief()
def model_of(config: Config, large: bool = False) -> tuple[xLSTMLanguageModel, str]:
    """Return the model of a configuration, and the style of its names, "xlstm" or "transformers".

    With `large`, it is a large model even if all keys that distinguish it from a block stack are
    missing. It raises ValueError or TypeError if the configuration is not one of the package, has
    an unknown key, or a value that this library cannot express.
    """
    checks.instance(Mapping, "a dict")("load", "config", config)
    kind = config.get("model_type")
    if kind not in (None, "xlstm"):
        raise ValueError(f"config: model_type is {shown(kind)}, expected 'xlstm'")
    if kind == "xlstm":
        return _large(config, True), "transformers"
    if large or config.keys() & ONLY_LARGE:
        return _large(config, False), "xlstm"
    return _stack(config), "xlstm"


def config_of(model: xLSTMLanguageModel) -> dict[str, Any]:
    """Return a model's configuration for the package; raise ValueError if the package cannot
    express it.
    """
    return _large_config(model) if isinstance(model.backbone, xLSTMLarge) else _stack_config(model)


def _stack(config: Config) -> xLSTMLanguageModel:
    """Return the model of a block stack's configuration, with a dict for each kind of block or with
    none.
    """
    nested = any(config.get(name) is not None for name in ("mlstm_block", "slstm_block"))
    names = STACK if nested else STACK | FLAT
    settings: dict[str, Any] = {"num_blocks": 1, "size": 128}
    settings |= options(config, "config", names, IGNORED | WHOLE, FIXED, ["vocab_size"])
    if nested:
        settings |= _blocks(config)
    else:
        settings["slstm_num_heads"] = settings.get("num_heads", 4)
        settings["slstm_conv_kernel_size"] = settings.get("conv_kernel_size", 4)
    num_blocks = published.blocks("config", "num_blocks", settings["num_blocks"])
    if settings.get("slstm_at") == "all":
        settings["slstm_at"] = range(num_blocks)
    if "ffn_activation" in settings:
        name = checks.choice(ACTIVATIONS)("config", "act_fn", settings["ffn_activation"])
        settings["ffn_activation"] = ACTIVATIONS[name]
    dropout = config.get("dropout", 0.0)
    if settings.get("ffn_dropout") == dropout:
        settings["ffn_dropout"] = None
    backbone = xLSTMStack(**settings, eps=EPS)
    dropped = config.get("add_embedding_dropout", False)
    rate = dropout if checks.flag("config", "add_embedding_dropout", dropped) else 0.0
    tied = config.get("tie_weights", False)
    return xLSTMLanguageModel(backbone, config["vocab_size"], tied=tied, embedding_dropout=rate)


def _blocks(config: Config) -> dict[str, Any]:
    """Return the options of the blocks, from the configuration's dict for each kind."""
    mlstm = config.get("mlstm_block")
    slstm = config.get("slstm_block")
    settings: dict[str, Any] = {"slstm_at": "all"}
    if mlstm is not None:
        settings = _block(mlstm, "config.mlstm_block", "mlstm", MLSTM)
    if slstm is None:
        if config.get("slstm_at"):
            raise ValueError(
                f"config: slstm_at is {shown(config['slstm_at'])}, but there is no slstm_block"
            )
        return settings
    settings |= {"slstm_num_heads": 4, "slstm_conv_kernel_size": 4, "ffn_dropout": 0.0}
    settings |= _block(slstm, "config.slstm_block", "slstm", SLSTM)
    feed = slstm.get("feedforward", {})
    if feed is None:
        return settings | {"ffn_proj_factor": 0.0, "ffn_dropout": None}
    where = "config.slstm_block.feedforward"
    return settings | options(feed, where, FEED_FORWARD, IGNORED, {**FIXED, "bias": False})


def _block(block: Any, where: str, kind: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of a kind of block."""
    options(block, where, dict.fromkeys((kind, "feedforward"), ""), IGNORED, FIXED)
    return options(block.get(kind) or {}, f"{where}.{kind}", names, IGNORED, FIXED)


def _stack_config(model: xLSTMLanguageModel) -> dict[str, Any]:
    backbone = model.backbone
    if model.logit_cap is not None or backbone.eps != EPS:
        came = f"logit_cap={model.logit_cap}, eps={backbone.eps}"
        raise ValueError(
            f"save: the block-stack package has no {came}, expected logit_cap=None, eps={EPS}"
        )
    if model.embedding_dropout not in (0.0, backbone.dropout):
        raise ValueError(
            f"save: embedding_dropout is {model.embedding_dropout}, expected 0 or that of the"
            " blocks"
        )
    every = len(backbone.slstm_at) == backbone.num_blocks
    some = bool(backbone.slstm_at)
    mlstm = values(backbone, MLSTM)
    slstm = values(backbone, SLSTM)
    slstm = {name: mlstm[name] if value is None else value for name, value in slstm.items()}
    slstm["backend"] = "vanilla"  # the recurrent kernel has its layout
    feed = None
    if backbone.ffn_proj_factor:
        act = next(name for name, ours in ACTIVATIONS.items() if ours == backbone.ffn_activation)
        dropout = backbone.dropout if backbone.ffn_dropout is None else backbone.ffn_dropout
        feed = {**values(backbone, FEED_FORWARD), "act_fn": act, "dropout": dropout}
    return {
        **values(backbone, STACK),
        "context_length": CONTEXT,
        "vocab_size": model.vocab_size,
        "mlstm_block": None if every else {"mlstm": mlstm},
        "slstm_block": {"slstm": slstm, "feedforward": feed} if some else None,
        "tie_weights": model.tied,
        "add_embedding_dropout": model.embedding_dropout > 0,
    }


def _large(config: Config, transformers: bool) -> xLSTMLanguageModel:
    if transformers:
        renamed = {
            ours: config[name] for name, ours in RENAMED.items() if config.get(name) is not None
        }
        config = {**DEFAULTS, **DEFAULTS_TRANSFORMERS, **config, **renamed}
        # The last norm is always there, whatever the configuration says.
        names = {theirs: ours for theirs, ours in LARGE.items() if ours != "post_norm"}
        ignored = None
        fixed = FIXED | FIXED_OLDER
    else:
        config = {**DEFAULTS, **config}
        names = LARGE
        ignored = {*DEFAULTS, *IGNORED_LARGE, "vocab_size"}
        fixed = FIXED
    required = ("embedding_dim", "num_blocks", "num_heads", "vocab_size")
    settings = options(config, "config", names, ignored, fixed, required)
    if config.get("cell_norm_eps") is not None:
        published.only("config", "cell_norm_eps", config["cell_norm_eps"], config["norm_eps"])
    published.blocks("config", "num_blocks", config["num_blocks"])
    D = checks.size("config", "embedding_dim", config["embedding_dim"])
    factors = ("qk_dim_factor", "v_dim_factor", "ffn_proj_factor")
    qk, v, ffn = (D * checks.non_negative("config", name, config[name]) for name in factors)
    multiple = checks.size(
        "config", "ffn_round_up_to_multiple_of", config["ffn_round_up_to_multiple_of"]
    )
    backbone = xLSTMLarge(
        **settings,
        qk_size=int(qk),
        v_size=int(v),
        ffn_size=round_up(math.floor(ffn), multiple),
        post_norm_bias=False if transformers and settings.get("bias") else None,
    )
    tied = transformers and config["tie_word_embeddings"]
    return xLSTMLanguageModel(
        backbone, config["vocab_size"], tied=tied, logit_cap=config["output_logit_soft_cap"]
    )


def _large_config(model: xLSTMLanguageModel) -> dict[str, Any]:
    backbone = model.backbone
    has_own = backbone.post_norm and backbone.post_norm_bias is not None
    bias = backbone.post_norm_bias if has_own else backbone.bias
    for name, value, expected in (
        ("tied", model.tied, False),
        ("embedding_dropout", model.embedding_dropout, 0.0),
        ("post_norm_bias", bias, backbone.bias),
    ):
        if value != expected:
            raise ValueError(
                f"save: {name} is {value}, expected {expected} as in the package's large model"
            )
    D = backbone.size
    config = {
        **values(backbone, LARGE),
        "vocab_size": model.vocab_size,
        "qk_dim_factor": published.factor(D, backbone.qk_size),
        "v_dim_factor": published.factor(D, backbone.v_size),
        "ffn_proj_factor": published.factor(D, backbone.ffn_size),
        "ffn_round_up_to_multiple_of": 1,
        "output_logit_soft_cap": model.logit_cap,
    }
    if backbone.chunk_size is None:
        del config["chunk_size"]
    return config
