"""Configurations of the published xLSTM packages and of transformers, as models of ours and the reverse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.checks import shown
from xlstm.data import reading
from xlstm.layers.blocks.block import MULTIPLE, round_up
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.layers.blocks.stack import xLSTMStack
from xlstm.models.language import xLSTMLanguageModel

Config = Mapping[str, Any]

BLOCKS = 1 << 10  # more than any model has
CONTEXT = 2048  # steps that the block-stack package is to take at most; ours has no limit, and no array depends on it
EPS = 1e-6  # of the block-stack package, which has no option for it
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "relu^2": "square_relu", "sigmoid": "sigmoid", "swish": "silu"}
ACTIVATIONS |= {"selu": "selu"}

# Keys of a block stack, and values they have where they are missing.
STACK: dict[str, Any] = {
    **{"num_blocks": 1, "embedding_dim": 128, "vocab_size": None, "slstm_at": (), "add_post_blocks_norm": True},
    **{"bias": False, "dropout": 0.0, "tie_weights": False, "add_embedding_dropout": False},
    **{"mlstm_block": None, "slstm_block": None},
}
# The same in one dict without those of blocks.
FLAT: dict[str, Any] = {
    **{"num_heads": 4, "conv1d_kernel_size": 4, "qkv_proj_blocksize": 4, "mlstm_proj_factor": 2.0},
    **{"slstm_ffn_proj_factor": 1.3, "slstm_ffn_act": "gelu"},
}
MLSTM: dict[str, Any] = {"num_heads": 4, "conv1d_kernel_size": 4, "qkv_proj_blocksize": 4, "proj_factor": 2.0}
SLSTM: dict[str, Any] = {"num_heads": 4, "conv1d_kernel_size": 4}
FEED_FORWARD: dict[str, Any] = {"proj_factor": 1.3, "act_fn": "gelu", "dropout": 0.0, "bias": False}
# Values that ours has no option for; others are refused.
FIXED: dict[str, Any] = {
    **{"round_proj_up_dim_up": True, "round_proj_up_to_multiple_of": MULTIPLE, "function": "slstm"},
    **{"gradient_recurrent_cut": False, "gradient_recurrent_clipval": None, "forward_clipval": None},
    **{"group_norm_weight": True, "ff_type": "ffn_gated", "num_states": 4, "num_gates": 4, "initial_val": 0.0},
    **{"input_shape": "BSGNH", "output_shape": "BNSH"},
    "inference_state_dtype": "float32",  # with bfloat16 logits are off by a tenth
}
# What changes no result, or is set from above.
LEFT = {"context_length", "weight_decay_on_embedding", "embedding_dim", "bias", "dropout", "hidden_size", "backend"}
LEFT |= {"bias_init", "recurrent_weight_init", "batch_size", "internal_input_shape", "constants"}
LEFT |= {"enable_automatic_mixed_precision", *(f"dtype{s}" for s in ("", *(f"_{t}" for t in "brwgsa")))}

LARGE: dict[str, Any] = {
    **{"embedding_dim": None, "num_heads": None, "num_blocks": None, "vocab_size": None, "use_bias": False},
    **{"norm_eps": 1e-6, "add_out_norm": True, "qk_dim_factor": 0.5, "v_dim_factor": 1.0},
    "chunk_size": None,  # theirs is then 64, ours by the width of heads
    **{"eps": 1e-6, "ffn_proj_factor": 2.6667, "ffn_round_up_to_multiple_of": 64, "gate_soft_cap": 15.0},
    **{"output_logit_soft_cap": 30.0},
}
# transformers' names of the same, and its defaults where they differ.
TRANSFORMERS = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}
TRANSFORMERS_DEFAULTS: dict[str, Any] = {"embedding_dim": 4096, "num_blocks": 32, "num_heads": 8, "vocab_size": 50304}
TRANSFORMERS_DEFAULTS |= {"ffn_proj_factor": 2.667, "tie_word_embeddings": False}
CACHE_MULTIPLE = 64  # of which transformers takes the widths of states to be
CAPS = ("gate_soft_cap", "output_logit_soft_cap")  # null where there is none
LARGE_LEFT = {"norm_reduction_force_float32", "chunkwise_kernel", "sequence_kernel", "step_kernel", "mode"}
LARGE_LEFT |= {"return_last_states", "autocast_kernel_dtype", "weight_mode"}
# Of any model of transformers.
GENERAL = {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "use_cache", "auto_map"}
GENERAL |= {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "max_inference_chunksize", "_name_or_path"}
GENERAL |= {"force_bos_token_insert", "name_or_path", "id2label", "label2id", "problem_type", "finetuning_task"}
GENERAL |= {"output_attentions", "output_hidden_states", "return_dict", "is_decoder", "is_encoder_decoder"}
GENERAL |= {"add_cross_attention", "cross_attention_hidden_size", "chunk_size_feed_forward", "task_specific_params"}
GENERAL |= {"tie_encoder_decoder", "tokenizer_class", "prefix", "pruned_heads", "torchscript", "use_bfloat16"}
GENERAL |= {"max_length", "min_length", "do_sample", "temperature", "top_k", "top_p", "typical_p", "num_beams"}
GENERAL |= {"num_beam_groups", "diversity_penalty", "early_stopping", "length_penalty", "repetition_penalty"}
GENERAL |= {"encoder_no_repeat_ngram_size", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens"}
GENERAL |= {"begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"}
GENERAL |= {"exponential_decay_length_penalty", "decoder_start_token_id", "num_return_sequences", "output_scores"}
GENERAL |= {"return_dict_in_generate"}
# Keys of older configurations of transformers' xLSTM that change nothing.
GENERAL |= {"add_forward_backend_padding", "head_dim", "igate_bias_init_range", "mlstm_round_up_to_multiple_of"}
GENERAL |= {"forward_backend_name", "step_backend_name"}
# And such as would change results, with the values of a model that has none of that.
OLDER: dict[str, Any] = {
    "add_embedding_dropout": False,
    "add_post_norm": False,
    "add_qk_norm": False,
    "lm_head_bias": False,
}
OLDER |= {"add_post_blocks_norm": True, "quantization_config": None}


@reading.brief()
def model_of(
    config: Config, where: str = "config", most: int = BLOCKS, large: bool = False
) -> tuple[xLSTMLanguageModel, str]:
    """The model that a configuration describes, and whose names its checkpoint has: "xlstm" or "transformers".

    `most` bounds the number of blocks, such as the number of arrays in the checkpoint. With `large` it is a large
    model, though all keys that tell it from a block stack have been left out.

    Raises
    ------
    ValueError, TypeError
        It is none of theirs, has an unknown key, or a value that ours cannot express.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"{where}: is a {type(config).__name__}, expected a dict")
    if config.get("model_type") not in (None, "xlstm"):
        raise ValueError(f"{where}: model_type is {shown(config['model_type'])}, expected 'xlstm'")
    for name in ("num_blocks", "num_hidden_layers"):  # before any block is made
        blocks = config.get(name)
        if isinstance(blocks, int) and blocks > min(most, BLOCKS):
            raise ValueError(f"{where}: {name} is {shown(blocks)}, expected at most {min(most, BLOCKS)}")
    if large or config.get("model_type") == "xlstm" or set(config) & (set(LARGE) | LARGE_LEFT) - set(STACK) - set(FLAT):
        return _large(config, where)
    return _stack(config, where), "xlstm"


def config_of(model: xLSTMLanguageModel, style: str = "xlstm") -> dict[str, Any]:
    """The reverse of `model_of`."""
    if isinstance(model.backbone, xLSTMLarge):
        return _large_config(model, style)
    if style != "xlstm":
        raise ValueError("save: transformers has no block stack, only xLSTMLarge")
    return _stack_config(model)


def _stack(config: Config, where: str) -> xLSTMLanguageModel:
    nested = config.get("mlstm_block") is not None or config.get("slstm_block") is not None
    own = _take(config, STACK if nested else STACK | FLAT, where)
    at, blocks = own["slstm_at"], own["num_blocks"]
    if nested:
        mlstm = _take(_within(own["mlstm_block"], "mlstm", where), MLSTM, f"{where} mlstm_block.mlstm")
        slstm = _take(_within(own["slstm_block"], "slstm", where), SLSTM, f"{where} slstm_block.slstm")
        feed: Any = {"dropout": own["dropout"]}
        if own["slstm_block"] is not None:
            feed = own["slstm_block"].get("feedforward", {})
            feed = {"proj_factor": 0.0, "dropout": own["dropout"]} if feed is None else feed
        feed = _take(feed, FEED_FORWARD, f"{where} slstm_block.feedforward")
        _only(f"{where} slstm_block.feedforward", "bias", feed["bias"], False)
        if own["mlstm_block"] is None:
            at = "all"
        if own["slstm_block"] is None and at:
            raise ValueError(f"{where}: slstm_at is {shown(at)}, but there is no slstm_block")
    else:
        mlstm = {**own, "proj_factor": own["mlstm_proj_factor"]}
        slstm, act = own, own["slstm_ffn_act"]
        feed = {"proj_factor": own["slstm_ffn_proj_factor"], "act_fn": act, "dropout": own["dropout"]}
    if feed["act_fn"] not in ACTIVATIONS:
        raise ValueError(f"{where}: act_fn is {feed['act_fn']!r}, expected one of {', '.join(ACTIVATIONS)}")
    backbone = xLSTMStack(
        own["embedding_dim"],
        blocks,
        slstm_at=range(blocks) if at == "all" else at,
        num_heads=mlstm["num_heads"],
        conv_kernel_size=mlstm["conv1d_kernel_size"],
        proj_factor=mlstm["proj_factor"],
        qkv_block_size=mlstm["qkv_proj_blocksize"],
        bias=own["bias"],
        eps=EPS,
        slstm_num_heads=slstm["num_heads"],
        slstm_conv_kernel_size=slstm["conv1d_kernel_size"],
        ffn_proj_factor=feed["proj_factor"],
        ffn_activation=ACTIVATIONS[feed["act_fn"]],
        dropout=own["dropout"],
        ffn_dropout=None if feed["dropout"] == own["dropout"] else feed["dropout"],
        post_norm=own["add_post_blocks_norm"],
    )
    rate = own["dropout"] if own["add_embedding_dropout"] else 0.0
    vocab_size = _needed(own, "vocab_size", where)
    return xLSTMLanguageModel(backbone, vocab_size, tied=own["tie_weights"], embedding_dropout=rate)


def _stack_config(model: xLSTMLanguageModel) -> dict[str, Any]:
    backbone = model.backbone
    if model.logit_cap is not None or backbone.eps != EPS:
        given = f"logit_cap={model.logit_cap}, eps={backbone.eps}"
        raise ValueError(f"save: the block-stack package has no {given}, expected logit_cap=None, eps={EPS}")
    if model.embedding_dropout not in (0.0, backbone.dropout):
        raise ValueError(f"save: embedding_dropout is {model.embedding_dropout}, expected 0 or that of the blocks")
    heads, kernel = backbone.slstm_num_heads, backbone.slstm_conv_kernel_size
    heads = backbone.num_heads if heads is None else heads
    kernel = backbone.conv_kernel_size if kernel is None else kernel
    every = len(backbone.slstm_at) == backbone.num_blocks
    kernels = [kernel] * bool(backbone.slstm_at) + [backbone.conv_kernel_size] * (not every)
    if 1 in kernels:
        raise ValueError("save: conv_kernel_size is 1, expected 2 or more as the block-stack package fails with 1")
    act = next(name for name, ours in ACTIVATIONS.items() if ours == backbone.ffn_activation)
    mlstm = {
        "num_heads": backbone.num_heads,
        "conv1d_kernel_size": backbone.conv_kernel_size,
        "qkv_proj_blocksize": backbone.qkv_block_size,
        "proj_factor": backbone.proj_factor,
    }
    slstm = {
        "num_heads": heads,
        "conv1d_kernel_size": kernel,
        "backend": "vanilla",  # whose layout the recurrent kernel has
    }
    feed = None
    if backbone.ffn_proj_factor:
        dropout = backbone.dropout if backbone.ffn_dropout is None else backbone.ffn_dropout
        feed = {"proj_factor": backbone.ffn_proj_factor, "act_fn": act, "dropout": dropout}
    return {
        "context_length": CONTEXT,
        "vocab_size": model.vocab_size,
        "embedding_dim": backbone.size,
        "num_blocks": backbone.num_blocks,
        "slstm_at": list(backbone.slstm_at),
        "mlstm_block": None if every else {"mlstm": mlstm},
        "slstm_block": {"slstm": slstm, "feedforward": feed} if backbone.slstm_at else None,
        "bias": backbone.bias,
        "dropout": backbone.dropout,
        "add_post_blocks_norm": backbone.post_norm,
        "tie_weights": model.tied,
        "add_embedding_dropout": model.embedding_dropout > 0,
    }


def _large(config: Config, where: str) -> tuple[xLSTMLanguageModel, str]:
    transformers = config.get("model_type") == "xlstm"
    known, left = dict(LARGE), set(LARGE_LEFT)
    given = dict(config)
    if transformers:
        known |= TRANSFORMERS_DEFAULTS
        left |= GENERAL
        given.pop("add_out_norm", None)  # there is a norm whatever it says
        for name, ours in TRANSFORMERS.items():
            value = given.pop(name, None)
            if value is not None and given.get(ours) not in (None, value):
                both = f"{name} is {shown(value)} and {ours} {shown(given[ours])}"
                raise ValueError(f"{where}: {both}, expected the same")
            if value is not None:
                given[ours] = value
            elif given.get(ours, 0) is None:
                del given[ours]
        usual = {**OLDER, "cell_norm_eps": given.get("norm_eps", LARGE["norm_eps"])}
        for name, value in usual.items():
            _only(where, name, given.pop(name, value), value)
    own = _take(given, known, where, left)
    for name in ("embedding_dim", "num_heads", "num_blocks", "vocab_size"):
        _needed(own, name, where)
    D = own["embedding_dim"]
    backbone = xLSTMLarge(
        D,
        own["num_blocks"],
        own["num_heads"],
        qk_size=int(D * own["qk_dim_factor"]),
        v_size=int(D * own["v_dim_factor"]),
        ffn_size=round_up(math.floor(D * own["ffn_proj_factor"]), own["ffn_round_up_to_multiple_of"]),
        gate_cap=own["gate_soft_cap"],
        bias=own["use_bias"],
        norm_eps=own["norm_eps"],
        eps=own["eps"],
        chunk_size=own["chunk_size"],
        post_norm=own["add_out_norm"],
        post_norm_bias=False if transformers and own["use_bias"] else None,
    )
    tied = transformers and own["tie_word_embeddings"]
    model = xLSTMLanguageModel(backbone, own["vocab_size"], tied=tied, logit_cap=own["output_logit_soft_cap"])
    return model, "transformers" if transformers else "xlstm"


def _large_config(model: xLSTMLanguageModel, style: str) -> dict[str, Any]:
    backbone = model.backbone
    D = backbone.size
    if model.tied and style == "xlstm":
        raise ValueError("save: the package's large model has no tied head, expected tied=False")
    if model.embedding_dropout:
        raise ValueError(f"save: embedding_dropout is {model.embedding_dropout}, which a large model there has not")
    bias = backbone.bias if backbone.post_norm_bias is None else backbone.post_norm_bias
    expected = backbone.bias and style == "xlstm"
    if backbone.post_norm and bias != expected:
        reason = "transformers has none there" if style == "transformers" else "the package has all biases or none"
        raise ValueError(f"save: post_norm_bias is {bias}, expected {expected} as {reason}")
    config = {
        "embedding_dim": D,
        "num_heads": backbone.num_heads,
        "num_blocks": backbone.num_blocks,
        "vocab_size": model.vocab_size,
        "use_bias": backbone.bias,
        "norm_eps": backbone.norm_eps,
        "add_out_norm": backbone.post_norm,
        "qk_dim_factor": _factor(D, backbone.qk_size),
        "v_dim_factor": _factor(D, backbone.v_size),
        "eps": backbone.eps,
        "ffn_proj_factor": _factor(D, backbone.ffn_size),
        "ffn_round_up_to_multiple_of": 1,
        "gate_soft_cap": backbone.gate_cap,
        "output_logit_soft_cap": model.logit_cap,
    }
    if backbone.chunk_size is not None:
        config["chunk_size"] = backbone.chunk_size
    return config if style == "xlstm" else _transformers(config, model)


def _transformers(config: dict[str, Any], model: xLSTMLanguageModel) -> dict[str, Any]:
    """The configuration of a large model as transformers has it."""
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
        "hidden_size": backbone.size,
        "num_hidden_layers": backbone.num_blocks,
        "tie_word_embeddings": model.tied,
        "use_cache": fits,  # it would fail where states are not as wide as its cache
    }


def _factor(D: int, size: int) -> float:
    """A number that D is multiplied by, and the product rounded down, to be `size`."""
    factor = size / D
    return factor if int(D * factor) == size else math.nextafter(factor, math.inf)


def _take(config: Any, known: dict[str, Any], where: str, left: set[str] = LEFT) -> dict[str, Any]:
    """Values by the known keys; others that change nothing are left out, and those that do are refused."""
    if not isinstance(config, Mapping):
        raise TypeError(f"{where}: is a {type(config).__name__}, expected a dict")
    for name, value in config.items():
        if not isinstance(name, str):
            raise TypeError(f"{where}: key {shown(name)} is a {type(name).__name__}, expected text")
        if name in known or name in left or name.startswith("_"):
            continue
        if name not in FIXED:
            raise ValueError(f"{where}: key {shown(name)} is unknown, expected some of {', '.join(known)}")
        _only(where, name, value, FIXED[name])
    found = {name: config.get(name, usual) for name, usual in known.items()}
    for name, value in found.items():
        _typed(where, name, value, known[name])
    return found


def _only(where: str, name: str, value: Any, expected: Any) -> None:
    """Raise ValueError unless a key that ours has no option for has the value that ours amounts to."""
    if value != expected:
        raise ValueError(f"{where}: {name} is {shown(value)}, which xlstm cannot express, expected {expected!r}")


def _typed(where: str, name: str, value: Any, usual: Any) -> None:
    """Raise unless a value is of the kind of its default, which says what the key takes; some may be None."""
    if value is None and (usual is None or name in CAPS):
        return
    if name == "slstm_at":
        numbers = isinstance(value, list | tuple | range) and all(type(k) is int for k in value)
        if not (value == "all" or numbers):
            raise TypeError(f"{where}: slstm_at is {shown(value)}, expected numbers of blocks or 'all'")
    elif isinstance(usual, bool):
        checks.flag(where, name, value)
    elif isinstance(usual, str):
        checks.text(where, name, value)
    elif name in ("mlstm_block", "slstm_block"):
        return
    elif usual is None or isinstance(usual, int):
        if name != "conv1d_kernel_size" or value != 0:  # there an sLSTM block has none
            checks.size(where, name, value)
    else:
        checks.non_negative(where, name, value)


def _within(block: Any, name: str, where: str) -> Any:
    """The part of a block's configuration that is named so."""
    if block is None:
        return {}
    if not isinstance(block, Mapping):
        raise TypeError(f"{where} {name}_block: is a {type(block).__name__}, expected a dict")
    unknown = [key for key in block if key not in ("mlstm", "slstm", "feedforward") and not str(key).startswith("_")]
    if unknown:
        raise ValueError(f"{where} {name}_block: key {shown(unknown[0])} is unknown, expected {name}")
    return block.get(name, {})


def _needed(own: dict[str, Any], name: str, where: str) -> Any:
    if own[name] is None:
        raise ValueError(f"{where}: {name} is missing")
    return own[name]
