"""The keys of configurations of the published packages and of transformers, and the values that they take."""

from __future__ import annotations

from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.checks import shown
from xlstm.interop import keys
from xlstm.interop.keys import Key, Keys, anything, needed


def _places(where: str, name: str, value: Any) -> Any:
    """Return numbers of blocks, or "all"."""
    numbers = isinstance(value, list | tuple | range) and all(type(k) is int for k in value)
    if not (value == "all" or numbers):
        raise TypeError(f"{where}: {name} is {shown(value)}, expected numbers of blocks or 'all'")
    return value


def _activation(where: str, name: str, value: Any) -> Any:
    return checks.choice(ACTIVATIONS)(where, name, checks.text(where, name, value))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Our name of each activation of a feed-forward layer.
ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "relu^2": "square_relu", "sigmoid": "sigmoid", "swish": "silu"}
ACTIVATIONS |= {"selu": "selu"}
# A block stack, with a dict for each of its blocks; and its keys where all is in one dict.
STACK: Keys = {
    "num_blocks": Key(1, checks.size, "num_blocks"),
    "embedding_dim": Key(128, checks.size, "size"),
    "vocab_size": needed(checks.size),
    "slstm_at": Key((), _places),
    "add_post_blocks_norm": Key(True, checks.flag, "post_norm"),
    "bias": Key(False, checks.flag, "bias"),
    "dropout": Key(0.0, checks.non_negative, "dropout"),
    "tie_weights": Key(False, checks.flag),
    "add_embedding_dropout": Key(False, checks.flag),
    "mlstm_block": Key(None, anything),
    "slstm_block": Key(None, anything),
}
MLSTM: Keys = {
    "num_heads": Key(4, checks.size, "num_heads"),
    "conv1d_kernel_size": Key(4, checks.size_or_0, "conv_kernel_size"),
    "qkv_proj_blocksize": Key(4, checks.size, "qkv_block_size"),
    "proj_factor": Key(2.0, checks.non_negative, "proj_factor"),
}
SLSTM: Keys = {
    "num_heads": Key(4, checks.size, "slstm_num_heads"),
    "conv1d_kernel_size": Key(4, checks.size_or_0, "slstm_conv_kernel_size"),  # 0 where there is no convolution
}
BLOCK: Keys = {"mlstm": Key({}, anything), "slstm": Key({}, anything), "feedforward": Key({}, anything)}
FEED_FORWARD: Keys = {
    "proj_factor": Key(1.3, checks.non_negative, "ffn_proj_factor"),
    "act_fn": Key("gelu", _activation),
    "dropout": Key(0.0, checks.non_negative),
    "bias": Key(False, checks.flag),
}
FLAT: Keys = {
    **{name: MLSTM[name]._replace(ours="") for name in ("num_heads", "conv1d_kernel_size", "qkv_proj_blocksize")},
    "mlstm_proj_factor": Key(2.0, checks.non_negative),
    "slstm_ffn_proj_factor": Key(1.3, checks.non_negative),
    "slstm_ffn_act": Key("gelu", _activation),
}
# A large model. The factors times the width are widths.
LARGE: Keys = {
    "embedding_dim": needed(checks.size, "size"),
    "num_heads": needed(checks.size, "num_heads"),
    "num_blocks": needed(checks.size, "num_blocks"),
    "vocab_size": needed(checks.size),
    "use_bias": Key(False, checks.flag, "bias"),
    "norm_eps": Key(1e-6, checks.non_negative, "norm_eps"),
    "add_out_norm": Key(True, checks.flag, "post_norm"),
    "qk_dim_factor": Key(0.5, checks.non_negative),
    "v_dim_factor": Key(1.0, checks.non_negative),
    "chunk_size": Key(None, checks.optional(checks.size), "chunk_size"),  # theirs is then 64, ours follows the heads
    "eps": Key(1e-6, checks.non_negative, "eps"),
    "ffn_proj_factor": Key(2.6667, checks.non_negative),
    "ffn_round_up_to_multiple_of": Key(64, checks.size),
    "gate_soft_cap": Key(15.0, checks.optional(checks.non_negative), "gate_cap"),
    "output_logit_soft_cap": Key(30.0, checks.optional(checks.non_negative)),
}
# The same in transformers, where defaults differ and two keys have other names.
TRANSFORMERS: Keys = {
    **LARGE,
    "embedding_dim": Key(4096, checks.size, "size"),
    "num_blocks": Key(32, checks.size, "num_blocks"),
    "num_heads": Key(8, checks.size, "num_heads"),
    "vocab_size": Key(50304, checks.size),
    "ffn_proj_factor": Key(2.667, checks.non_negative),
    "tie_word_embeddings": Key(False, checks.flag),
}
RENAMED = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}

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
# In transformers those of any model, and some of its older xLSTM in the last two lines.
IGNORED_TRANSFORMERS = IGNORED_LARGE | _words(
    """
    model_type architectures torch_dtype dtype transformers_version use_cache auto_map bos_token_id eos_token_id
    pad_token_id sep_token_id max_inference_chunksize _name_or_path force_bos_token_insert name_or_path id2label
    label2id problem_type finetuning_task output_attentions output_hidden_states return_dict is_decoder
    is_encoder_decoder add_cross_attention cross_attention_hidden_size chunk_size_feed_forward task_specific_params
    tie_encoder_decoder tokenizer_class prefix pruned_heads torchscript use_bfloat16 max_length min_length do_sample
    temperature top_k top_p typical_p num_beams num_beam_groups diversity_penalty early_stopping length_penalty
    repetition_penalty encoder_no_repeat_ngram_size no_repeat_ngram_size bad_words_ids suppress_tokens
    begin_suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values num_return_sequences
    exponential_decay_length_penalty decoder_start_token_id output_scores return_dict_in_generate
    add_forward_backend_padding head_dim igate_bias_init_range mlstm_round_up_to_multiple_of
    forward_backend_name step_backend_name
    """
)


def take(config: Any, known: Keys, where: str, ignored: frozenset[str] = IGNORED) -> dict[str, Any]:
    """Return the values of the known keys as `keys.take` does, with the ignored and the fixed keys of the packages."""
    return keys.take(config, known, where, ignored, FIXED)
