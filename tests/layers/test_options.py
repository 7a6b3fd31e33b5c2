"""Options that do not go together are named. `tests/attacks/test_arguments.py` tries values of all options."""

import pytest

import xlstm
from xlstm.layers.blocks.block import GatedFeedForward
from xlstm.models import ESRNN


@pytest.mark.parametrize(
    ("kind", "sizes", "options", "name"),
    [
        (xlstm.LSTM, (2, 3), {"bidirectional": True, "reverse": True}, "bidirectional and reverse"),
        (xlstm.LSTM, (2, 3), {"dropout": 0.5}, "dropout"),
        (
            xlstm.LSTM,
            (2, 3),
            {"coupled_input_forget": True, "forget_bias": 1.0},
            "forget_bias and coupled_input_forget",
        ),
        (xlstm.LSTM, (2, 3), {"bias": False, "forget_bias": 1.0}, "forget_bias and bias=False"),
        (xlstm.LSTM, (2, 3), {"bias": False, "recurrent_bias": True}, "recurrent_bias and bias=False"),
        (xlstm.LSTM, (2, 3), {"proj_size": 3}, "proj_size"),
        (xlstm.LSTM, (2, 3), {"activations": ("tanh",)}, "activations has 1 names"),
        (xlstm.GRU, (2, 3), {"zoneout": (0.1, 0.1)}, "zoneout has 2 rates"),
        (xlstm.GRU, (2, 3), {"layer_norm": True, "reset_after": False}, "layer_norm and reset_after=False"),
        (xlstm.RNN, (2, 3), {"activations": "tanh(1)"}, "at most 0 parameters"),
        (xlstm.RNN, (2, 3), {"activations": "elu(x)"}, "parameters that are not numbers"),
        (xlstm.RNN, (2, 3), {"activations": "elu(-1)"}, "an alpha above 0"),
        (xlstm.RNN, (2, 3), {"activations": "scaled_tanh(0)"}, "an alpha other than 0"),
        (xlstm.sLSTM, (2, 4), {"activations": ""}, "activations"),
        (xlstm.sLSTM, (2, 4), {"num_heads": 3}, "num_heads"),
        (xlstm.sLSTM, (2, 4), {"zoneout": 0.1}, "zoneout"),
        (xlstm.sLSTM, (2, 4), {"layer_norm": True}, "layer_norm"),
        (xlstm.mLSTM, (2, 5), {"num_heads": 2}, "num_heads"),
        (xlstm.mLSTM, (2, 4), {"dropout": 0.1}, "dropout"),
        (xlstm.mLSTMBlock, (4, 3), {}, "num_heads"),
        (xlstm.mLSTMBlock, (4, 1), {"qkv_block_size": 5}, "qkv_block_size"),
        (xlstm.sLSTMBlock, (5, 2), {}, "num_heads"),
        (xlstm.sLSTMBlock, (4,), {"ffn_dropout": 1.5}, "ffn_dropout"),
        (xlstm.xLSTMStack, (4, 2, [2], 2), {}, "slstm_at"),
        (xlstm.xLSTMLarge, (4, 1, 3), {}, "num_heads"),
        (GatedFeedForward, (4, 4), {"activation": "tanh"}, "activation"),
        (ESRNN, (2,), {"periods": (1,)}, "periods"),
        (ESRNN, (2,), {"periods": (2, 3, 4)}, "periods has 3 entries"),
        (ESRNN, (2,), {"covariates": 1}, "covariates is 1, but hidden_size is 0"),
        (ESRNN, (2,), {"trend": "up"}, "trend"),
        (ESRNN, (2,), {"scale": 0.0}, "scale"),
    ],
)
def test_options_that_do_not_go_together_are_named(kind, sizes, options, name):
    with pytest.raises((ValueError, TypeError), match=f"^({kind.__name__}|activations): .*{name}"):
        kind(*sizes, **options)
