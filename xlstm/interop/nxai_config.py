"""Configurations of the published xLSTM packages and of transformers, as models of ours and the reverse."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.checks import shown
from xlstm.data import reading
from xlstm.interop.published import BLOCKS, Key, Table, anything, factor, few_blocks, only, options, take, values
from xlstm.layers.blocks.block import round_up
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.layers.blocks.stack import xLSTMStack
from xlstm.models.language import xLSTMLanguageModel

Config = Mapping[str, Any]

CONTEXT = 2048  # steps that the block-stack package is to take at most; ours has no limit, and no array depends on it
EPS = 1e-6  # of the block-stack package, which has no option for it
CACHE_MULTIPLE = 64  # transformers takes the widths of states to be multiples of this


def _places(where: str, name: str, value: Any) -> Any:
    """Return numbers of blocks, or "all"."""
    numbers = isinstance(value, list | tuple | range) and all(type(k) is int for k in value)
    if not (value == "all" or numbers):
        raise TypeError(f"{where}: {name} is {shown(value)}, expected numbers of blocks or 'all'")
    return value


def _activation(where: str, name: str, value: Any) -> Any:
    return ACTIVATIONS[checks.choice(ACTIVATIONS)(where, name, checks.text(where, name, value))]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Our name of each activation of a feed-forward layer.
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "relu^2": "square_relu", "sigmoid": "sigmoid", "swish": "silu"}
ACTIVATIONS |= {"selu": "selu"}
# Keys that have no option here, with the only value that ours amounts to.
FIXED: dict[str, Any] = {
    **{"round_proj_up_dim_up": True, "round_proj_up_to_multiple_of": 64, "function": "slstm"},
    **{"gradient_recurrent_cut": False, "gradient_recurrent_clipval": None, "forward_clipval": None},
    **{"group_norm_weight": True, "ff_type": "ffn_gated", "num_states": 4, "num_gates": 4, "initial_val": 0.0},
    **{"input_shape": "BSGNH", "output_shape": "BNSH"},
    "inference_state_dtype": "float32",  # with bfloat16 logits are off by a tenth
}
# The same of transformers: keys of older configurations.
FIXED_OLDER: dict[str, Any] = {
    **dict.fromkeys(("add_embedding_dropout", "add_post_norm", "add_qk_norm", "lm_head_bias"), False),
    **{"add_post_blocks_norm": True, "quantization_config": None},
}
# Keys that change no result, or repeat one of the model in the configuration of a block.
IGNORED = _words(
    """
    context_length weight_decay_on_embedding embedding_dim bias dropout hidden_size backend bias_init
    recurrent_weight_init batch_size internal_input_shape constants enable_automatic_mixed_precision
    dtype dtype_b dtype_r dtype_w dtype_g dtype_s dtype_a
    """
)
IGNORED_LARGE = _words(
    """
    norm_reduction_force_float32 chunkwise_kernel sequence_kernel step_kernel mode return_last_states
    autocast_kernel_dtype weight_mode
    """
)
_table = functools.partial(Table, ignored=IGNORED, fixed=FIXED, usual={})
# The layers of a block stack.
MLSTM = _table(
    {
        "num_heads": Key(checks.size, "num_heads", 4),
        "conv1d_kernel_size": Key(checks.size_or_0, "conv_kernel_size", 4),
        "qkv_proj_blocksize": Key(checks.size, "qkv_block_size", 4),
        "proj_factor": Key(checks.non_negative, "proj_factor", 2.0),
    }
)
SLSTM = _table(
    {
        "num_heads": Key(checks.size, "slstm_num_heads", 4),
        "conv1d_kernel_size": Key(checks.size_or_0, "slstm_conv_kernel_size", 4),  # 0 where there is no convolution
    }
)
FEED_FORWARD = _table(
    {
        "proj_factor": Key(checks.non_negative, "ffn_proj_factor", 1.3),
        "act_fn": Key(_activation, "ffn_activation", "gelu"),
        "dropout": Key(checks.non_negative, "ffn_dropout", 0.0),
    },
    fixed={**FIXED, "bias": False},
)
MLSTM_BLOCK = Table({"mlstm": MLSTM})
SLSTM_BLOCK = Table({"slstm": SLSTM, "feedforward": Key(anything, usual={})})
# A block stack, with a dict for each of its blocks; and its keys where all is in one dict.
STACK = _table(
    {
        "num_blocks": Key(checks.size, "num_blocks", 1),
        "embedding_dim": Key(checks.size, "size", 128),
        "vocab_size": Key(checks.size),
        "slstm_at": Key(_places, "slstm_at", ()),
        "add_post_blocks_norm": Key(checks.flag, "post_norm", True),
        "bias": Key(checks.flag, "bias", False),
        "dropout": Key(checks.non_negative, "dropout", 0.0),
        "tie_weights": Key(checks.flag, usual=False),
        "add_embedding_dropout": Key(checks.flag, usual=False),
        "mlstm_block": Key(anything, usual=None),
        "slstm_block": Key(anything, usual=None),
    }
)
FLAT = STACK._replace(
    keys={
        **STACK.keys,
        **{name: key for name, key in MLSTM.keys.items() if name != "proj_factor"},
        "mlstm_proj_factor": MLSTM.keys["proj_factor"],
        "slstm_ffn_proj_factor": FEED_FORWARD.keys["proj_factor"],
        "slstm_ffn_act": FEED_FORWARD.keys["act_fn"],
    }
)
# A large model. The factors times the width are widths.
LARGE = Table(
    {
        "embedding_dim": Key(checks.size, "size"),
        "num_heads": Key(checks.size, "num_heads"),
        "num_blocks": Key(checks.size, "num_blocks"),
        "vocab_size": Key(checks.size),
        "use_bias": Key(checks.flag, "bias", False),
        "norm_eps": Key(checks.non_negative, "norm_eps", 1e-6),
        "add_out_norm": Key(checks.flag, "post_norm", True),
        "qk_dim_factor": Key(checks.non_negative, usual=0.5),
        "v_dim_factor": Key(checks.non_negative, usual=1.0),
        "chunk_size": Key(
            checks.optional(checks.size), "chunk_size", None
        ),  # theirs is then 64, ours follows the heads
        "eps": Key(checks.non_negative, "eps", 1e-6),
        "ffn_proj_factor": Key(checks.non_negative, usual=2.6667),
        "ffn_round_up_to_multiple_of": Key(checks.size, usual=64),
        "gate_soft_cap": Key(checks.optional(checks.non_negative), "gate_cap", 15.0),
        "output_logit_soft_cap": Key(checks.optional(checks.non_negative), usual=30.0),
    },
    IGNORED_LARGE,
    FIXED,
)
# The same in transformers, where defaults differ, two keys have other names, and dozens say nothing of a model.
TRANSFORMERS = Table(
    {
        **{name: key for name, key in LARGE.keys.items() if name != "add_out_norm"},  # there is a norm whatever it says
        "embedding_dim": Key(checks.size, "size", 4096),
        "num_blocks": Key(checks.size, "num_blocks", 32),
        "num_heads": Key(checks.size, "num_heads", 8),
        "vocab_size": Key(checks.size, usual=50304),
        "ffn_proj_factor": Key(checks.non_negative, usual=2.667),
        "tie_word_embeddings": Key(checks.flag, usual=False),
    },
    ignored=None,
    fixed=FIXED | FIXED_OLDER,
)
RENAMED = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}
ONLY_LARGE = (LARGE.keys.keys() | IGNORED_LARGE) - FLAT.keys.keys()


@reading.brief()
def model_of(
    config: Config, where: str = "config", most: int = BLOCKS, large: bool = False
) -> tuple[xLSTMLanguageModel, str]:
    """Return the model that a configuration describes, and whose names its checkpoint has: "xlstm" or "transformers".

    Messages call the configuration `where`. It may have `most` blocks, such as the number of arrays in the checkpoint.
    With `large` it is a large model, though all keys that tell it from a block stack have been left out. Raise
    ValueError or TypeError if it is none of theirs, has an unknown key, or a value that ours cannot express.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"{where}: is a {type(config).__name__}, expected a dict")
    if config.get("model_type") not in (None, "xlstm"):
        raise ValueError(f"{where}: model_type is {shown(config['model_type'])}, expected 'xlstm'")
    for name in ("num_blocks", "num_hidden_layers"):
        few_blocks(where, name, config.get(name), most)
    if config.get("model_type") == "xlstm":
        return _large(config, where, True), "transformers"
    if large or config.keys() & ONLY_LARGE:
        return _large(config, where, False), "xlstm"
    return _stack(config, where), "xlstm"


def config_of(model: xLSTMLanguageModel, style: str = "xlstm") -> dict[str, Any]:
    """Return the configuration of a model, the reverse of `model_of`; raise ValueError if theirs cannot express it."""
    if isinstance(model.backbone, xLSTMLarge):
        return _large_config(model, style)
    if style != "xlstm":
        raise ValueError("save: transformers has no block stack, only xLSTMLarge")
    return _stack_config(model)


def _stack(config: Config, where: str) -> xLSTMLanguageModel:
    """Return the model of a block stack's configuration, which has a dict for each kind of block, or none at all."""
    nested = config.get("mlstm_block") is not None or config.get("slstm_block") is not None
    config = take(config, STACK if nested else FLAT, where)
    chosen, dropout = options(config, STACK if nested else FLAT), config["dropout"]
    if nested:
        no_slstm = config["slstm_block"] is None
        mlstm = {} if config["mlstm_block"] is None else config["mlstm_block"]
        mlstm = take(mlstm, MLSTM_BLOCK, f"{where}.mlstm_block")
        slstm = {"feedforward": {"dropout": dropout}} if no_slstm else config["slstm_block"]
        slstm = take(slstm, SLSTM_BLOCK, f"{where}.slstm_block")
        feed = {"proj_factor": 0.0, "dropout": dropout} if slstm["feedforward"] is None else slstm["feedforward"]
        feed = take(feed, FEED_FORWARD, f"{where}.slstm_block.feedforward")
        chosen |= options(mlstm, MLSTM_BLOCK) | options(slstm, SLSTM_BLOCK) | options(feed, FEED_FORWARD)
        if config["mlstm_block"] is None:
            chosen["slstm_at"] = "all"
        if no_slstm and chosen["slstm_at"]:
            raise ValueError(f"{where}: slstm_at is {shown(chosen['slstm_at'])}, but there is no slstm_block")
    else:
        chosen |= {f"slstm_{name}": chosen[name] for name in ("num_heads", "conv_kernel_size")}
    if chosen["slstm_at"] == "all":
        chosen["slstm_at"] = range(config["num_blocks"])
    if chosen.get("ffn_dropout") == dropout:
        chosen["ffn_dropout"] = None
    backbone = xLSTMStack(**chosen, eps=EPS)
    rate = config["dropout"] if config["add_embedding_dropout"] else 0.0
    return xLSTMLanguageModel(backbone, config["vocab_size"], tied=config["tie_weights"], embedding_dropout=rate)


def _stack_config(model: xLSTMLanguageModel) -> dict[str, Any]:
    backbone = model.backbone
    if model.logit_cap is not None or backbone.eps != EPS:
        came = f"logit_cap={model.logit_cap}, eps={backbone.eps}"
        raise ValueError(f"save: the block-stack package has no {came}, expected logit_cap=None, eps={EPS}")
    if model.embedding_dropout not in (0.0, backbone.dropout):
        raise ValueError(f"save: embedding_dropout is {model.embedding_dropout}, expected 0 or that of the blocks")
    every, some = len(backbone.slstm_at) == backbone.num_blocks, bool(backbone.slstm_at)
    mlstm, slstm = values(backbone, MLSTM), values(backbone, SLSTM)
    slstm = {name: mlstm[name] if value is None else value for name, value in slstm.items()}
    if 1 in [block["conv1d_kernel_size"] for block, there in ((mlstm, not every), (slstm, some)) if there]:
        raise ValueError("save: conv_kernel_size is 1, expected 2 or more as the block-stack package fails with 1")
    slstm["backend"] = "vanilla"  # whose layout the recurrent kernel has
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


def _large(config: Config, where: str, transformers: bool) -> xLSTMLanguageModel:
    if transformers:
        config = {**config, **{ours: config[name] for name, ours in RENAMED.items() if config.get(name) is not None}}
    table, cell_eps = TRANSFORMERS if transformers else LARGE, config.get("cell_norm_eps")
    config = take(config, table, where)
    if cell_eps is not None:
        only(where, "cell_norm_eps", cell_eps, config["norm_eps"])
    D = config["embedding_dim"]
    backbone = xLSTMLarge(
        **options(config, table),
        qk_size=int(D * config["qk_dim_factor"]),
        v_size=int(D * config["v_dim_factor"]),
        ffn_size=round_up(math.floor(D * config["ffn_proj_factor"]), config["ffn_round_up_to_multiple_of"]),
        post_norm_bias=False if transformers and config["use_bias"] else None,
    )
    tied = transformers and config["tie_word_embeddings"]
    return xLSTMLanguageModel(backbone, config["vocab_size"], tied=tied, logit_cap=config["output_logit_soft_cap"])


def _large_config(model: xLSTMLanguageModel, style: str) -> dict[str, Any]:
    backbone = model.backbone
    if model.tied and style == "xlstm":
        raise ValueError("save: the package's large model has no tied head, expected tied=False")
    if model.embedding_dropout:
        raise ValueError(f"save: embedding_dropout is {model.embedding_dropout}, which a large model there has not")
    bias = backbone.bias if backbone.post_norm_bias is None else backbone.post_norm_bias
    expected = backbone.bias and style == "xlstm"
    if backbone.post_norm and bias != expected:
        reason = "transformers has none there" if style == "transformers" else "the package has all biases or none"
        raise ValueError(f"save: post_norm_bias is {bias}, expected {expected} as {reason}")
    sizes = {"qk_dim_factor": "qk_size", "v_dim_factor": "v_size", "ffn_proj_factor": "ffn_size"}
    config = {
        **values(backbone, LARGE),
        "vocab_size": model.vocab_size,
        **{name: factor(backbone.size, getattr(backbone, ours)) for name, ours in sizes.items()},
        "ffn_round_up_to_multiple_of": 1,
        "output_logit_soft_cap": model.logit_cap,
    }
    if config["chunk_size"] is None:
        del config["chunk_size"]
    return config if style == "xlstm" else _transformers(config, model)


def _transformers(config: dict[str, Any], model: xLSTMLanguageModel) -> dict[str, Any]:
    """Return the configuration of a large model as transformers has it."""
    backbone = model.backbone
    if not backbone.post_norm:
        raise ValueError("save: post_norm is False, expected True as transformers has that norm whatever is configured")
    for name, cap in (("gate_cap", backbone.gate_cap), ("logit_cap", model.logit_cap)):
        if cap is None:
            raise ValueError(f"save: {name} is None, expected a number as transformers 5 takes no other")
    N = backbone.num_heads
    fits = all(round_up(size, CACHE_MULTIPLE) // N == size // N for size in (backbone.qk_size, backbone.v_size))
    return {
        "model_type": "xlstm",
        "architectures": ["xLSTMForCausalLM"],
        **config,
        **{name: config[ours] for name, ours in RENAMED.items()},
        "tie_word_embeddings": model.tied,
        "use_cache": fits,  # it would fail where states are not as wide as its cache
    }
