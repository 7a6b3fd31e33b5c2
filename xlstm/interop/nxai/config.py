"""Configurations of the published xLSTM packages and of transformers, as models of ours and the reverse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xlstm.arrays.checks import shown
from xlstm.data import reading
from xlstm.interop.keys import factor, only, options, values
from xlstm.interop.nxai import keys
from xlstm.interop.nxai.keys import take
from xlstm.layers.blocks.backbone import xLSTMStack
from xlstm.layers.blocks.block import round_up
from xlstm.layers.blocks.large import xLSTMLarge
from xlstm.models.language import xLSTMLanguageModel

Config = Mapping[str, Any]

BLOCKS = 1 << 10  # more than any model has
CONTEXT = 2048  # steps that the block-stack package is to take at most; ours has no limit, and no array depends on it
EPS = 1e-6  # of the block-stack package, which has no option for it
CACHE_MULTIPLE = 64  # transformers takes the widths of states to be multiples of this
ONLY_LARGE = (keys.LARGE.keys() | keys.IGNORED_LARGE) - keys.STACK.keys() - keys.FLAT.keys()


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
    for name in ("num_blocks", "num_hidden_layers"):  # before any block is made
        blocks = config.get(name)
        if isinstance(blocks, int) and blocks > min(most, BLOCKS):
            raise ValueError(f"{where}: {name} is {shown(blocks)}, expected at most {min(most, BLOCKS)}")
    if config.get("model_type") == "xlstm":
        return _large(_renamed(config, where), where, True), "transformers"
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
    own = take(config, keys.STACK if nested else keys.STACK | keys.FLAT, where)
    at = own["slstm_at"]
    if nested:
        blocks = {}
        for name in ("mlstm_block", "slstm_block"):
            given = {"feedforward": {"dropout": own["dropout"]}} if own[name] is None else own[name]
            blocks[name] = take(given, keys.BLOCK, f"{where} {name}", frozenset())
        mlstm = take(blocks["mlstm_block"]["mlstm"], keys.MLSTM, f"{where} mlstm_block.mlstm")
        slstm = take(blocks["slstm_block"]["slstm"], keys.SLSTM, f"{where} slstm_block.slstm")
        feed = blocks["slstm_block"]["feedforward"]
        feed = {"proj_factor": 0.0, "dropout": own["dropout"]} if feed is None else feed
        feed = take(feed, keys.FEED_FORWARD, f"{where} slstm_block.feedforward")
        only(f"{where} slstm_block.feedforward", "bias", feed["bias"], False)
        if own["mlstm_block"] is None:
            at = "all"
        if own["slstm_block"] is None and at:
            raise ValueError(f"{where}: slstm_at is {shown(at)}, but there is no slstm_block")
    else:
        mlstm, slstm = {**own, "proj_factor": own["mlstm_proj_factor"]}, own
        feed = {"proj_factor": own["slstm_ffn_proj_factor"], "act_fn": own["slstm_ffn_act"], "dropout": own["dropout"]}
    backbone = xLSTMStack(
        **options(own, keys.STACK),
        **options(mlstm, keys.MLSTM),
        **options(slstm, keys.SLSTM),
        **options(feed, keys.FEED_FORWARD),
        slstm_at=range(own["num_blocks"]) if at == "all" else at,
        eps=EPS,
        ffn_activation=keys.ACTIVATIONS[feed["act_fn"]],
        ffn_dropout=None if feed["dropout"] == own["dropout"] else feed["dropout"],
    )
    rate = own["dropout"] if own["add_embedding_dropout"] else 0.0
    return xLSTMLanguageModel(backbone, own["vocab_size"], tied=own["tie_weights"], embedding_dropout=rate)


def _stack_config(model: xLSTMLanguageModel) -> dict[str, Any]:
    backbone = model.backbone
    if model.logit_cap is not None or backbone.eps != EPS:
        given = f"logit_cap={model.logit_cap}, eps={backbone.eps}"
        raise ValueError(f"save: the block-stack package has no {given}, expected logit_cap=None, eps={EPS}")
    if model.embedding_dropout not in (0.0, backbone.dropout):
        raise ValueError(f"save: embedding_dropout is {model.embedding_dropout}, expected 0 or that of the blocks")
    every, some = len(backbone.slstm_at) == backbone.num_blocks, bool(backbone.slstm_at)
    mlstm, slstm = values(backbone, keys.MLSTM), values(backbone, keys.SLSTM)
    slstm = {name: mlstm[name] if value is None else value for name, value in slstm.items()}
    if 1 in [block["conv1d_kernel_size"] for block, there in ((mlstm, not every), (slstm, some)) if there]:
        raise ValueError("save: conv_kernel_size is 1, expected 2 or more as the block-stack package fails with 1")
    slstm["backend"] = "vanilla"  # whose layout the recurrent kernel has
    feed = None
    if backbone.ffn_proj_factor:
        act = next(name for name, ours in keys.ACTIVATIONS.items() if ours == backbone.ffn_activation)
        dropout = backbone.dropout if backbone.ffn_dropout is None else backbone.ffn_dropout
        feed = {**values(backbone, keys.FEED_FORWARD), "act_fn": act, "dropout": dropout}
    return {
        **values(backbone, keys.STACK),
        "context_length": CONTEXT,
        "vocab_size": model.vocab_size,
        "slstm_at": list(backbone.slstm_at),
        "mlstm_block": None if every else {"mlstm": mlstm},
        "slstm_block": {"slstm": slstm, "feedforward": feed} if some else None,
        "tie_weights": model.tied,
        "add_embedding_dropout": model.embedding_dropout > 0,
    }


def _renamed(config: Config, where: str) -> dict[str, Any]:
    """Return a configuration of transformers under the names of the package, without keys that say nothing."""
    given = dict(config)
    given.pop("add_out_norm", None)  # there is a norm whatever it says
    for name, ours in keys.RENAMED.items():
        value, other = given.pop(name, None), given.get(ours)
        if None not in (value, other) and value != other:
            both = f"{name} is {shown(value)} and {ours} {shown(other)}"
            raise ValueError(f"{where}: {both}, expected the same")
        given[ours] = other if value is None else value
        if given[ours] is None:
            del given[ours]
    for name, value in {**keys.FIXED_OLDER, "cell_norm_eps": given.get("norm_eps", 1e-6)}.items():
        only(where, name, given.pop(name, value), value)
    return given


def _large(config: Config, where: str, transformers: bool) -> xLSTMLanguageModel:
    known, ignored = keys.LARGE, keys.IGNORED_LARGE
    if transformers:
        known, ignored = keys.TRANSFORMERS, keys.IGNORED_TRANSFORMERS
    own = take(config, known, where, ignored)
    D = own["embedding_dim"]
    backbone = xLSTMLarge(
        **options(own, keys.LARGE),
        qk_size=int(D * own["qk_dim_factor"]),
        v_size=int(D * own["v_dim_factor"]),
        ffn_size=round_up(math.floor(D * own["ffn_proj_factor"]), own["ffn_round_up_to_multiple_of"]),
        post_norm_bias=False if transformers and own["use_bias"] else None,
    )
    tied = transformers and own["tie_word_embeddings"]
    return xLSTMLanguageModel(backbone, own["vocab_size"], tied=tied, logit_cap=own["output_logit_soft_cap"])


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
        **values(backbone, keys.LARGE),
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
        **{name: config[ours] for name, ours in keys.RENAMED.items()},
        "tie_word_embeddings": model.tied,
        "use_cache": fits,  # it would fail where states are not as wide as its cache
    }
