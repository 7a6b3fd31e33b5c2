"""The checks of all options of layers, by the name of an option, which means the same in every layer."""

from __future__ import annotations

from xlstm.arrays import checks
from xlstm.cells.activations import FEED_FORWARD, FORGET

CHECKS: dict[str, checks.Kind] = {
    **dict.fromkeys(("input_size", "hidden_size", "output_size", "size", "kernel_size", "vocab_size"), checks.size),
    **dict.fromkeys(("num_heads", "qkv_block_size"), checks.size),
    **dict.fromkeys(("num_layers", "num_blocks"), checks.depth),
    **dict.fromkeys(("proj_size", "conv_kernel_size", "index"), checks.size_or_0),
    **dict.fromkeys(("qk_size", "v_size", "ffn_size", "chunk_size", "slstm_num_heads"), checks.optional(checks.size)),
    "slstm_conv_kernel_size": checks.optional(checks.size_or_0),
    **dict.fromkeys(("bidirectional", "reverse", "batch_first", "bias", "residual", "layer_norm"), checks.flag),
    **dict.fromkeys(("recompute", "peepholes", "coupled_input_forget", "reset_after"), checks.flag),
    **dict.fromkeys(("post_norm", "last", "tied"), checks.flag),
    **dict.fromkeys(("recurrent_bias", "post_norm_bias"), checks.optional(checks.flag)),
    **dict.fromkeys(("dropout", "recurrent_dropout", "embedding_dropout"), checks.rate),
    "ffn_dropout": checks.optional(checks.rate),
    **dict.fromkeys(("clip", "cell_clip"), checks.optional(checks.above_0)),
    **dict.fromkeys(("gate_cap", "logit_cap"), checks.optional(checks.divisor)),
    "std": checks.optional(checks.squared),
    "eps": checks.non_negative,
    "norm_eps": checks.divisor,
    "proj_factor": checks.above_0,
    "ffn_proj_factor": checks.non_negative,
    "forget_gate": checks.choice(FORGET),
    "forget_bias": checks.optional(checks.finite),
    **dict.fromkeys(("ffn_activation", "activation"), checks.choice(FEED_FORWARD)),
    "recurrent_init": checks.choice(("zeros", "uniform")),
}
