"""Options of which one would do nothing beside another, or make wrong gradients, are refused by
name.

`tests/attacks/test_arguments.py` tries values of all options.
"""

import pytest

import xlstm
from xlstm.models import ESRNN, SequenceModel


@pytest.mark.parametrize(
    ("kind", "sizes", "options", "name"),
    [
        (xlstm.LSTM, (2, 3), {"bidirectional": True, "reverse": True}, "bidirectional and reverse"),
        (xlstm.LSTM, (2, 3), {"dropout": 0.5}, "dropout"),
        (
            xlstm.LSTM,
            (2, 3),
            {"coupled_input_forget": True, "forget_bias": 1.0},
            "forget_bias is 1.0, but coupled_input_forget",
        ),
        (xlstm.LSTM, (2, 3), {"bias": False, "forget_bias": 1.0}, "forget_bias .* bias=False"),
        (
            xlstm.LSTM,
            (2, 3),
            {"bias": False, "recurrent_bias": True},
            "recurrent_bias and bias=False",
        ),
        (
            xlstm.GRU,
            (2, 3),
            {"layer_norm": True, "reset_after": False},
            "layer_norm is True, but reset_after=False",
        ),
        (xlstm.RNN, (2, 3), {"activations": "elu(-1)"}, "an alpha above 0"),
        (xlstm.RNN, (2, 3), {"activations": "scaled_tanh(0)"}, "an alpha other than 0"),
        (xlstm.sLSTM, (2, 4), {"zoneout": 0.1}, "zoneout"),
        (xlstm.sLSTM, (2, 4), {"layer_norm": True}, "layer_norm"),
        (xlstm.mLSTM, (2, 4), {"dropout": 0.1}, "dropout"),
        (ESRNN, (2,), {"covariates": 1}, "covariates is 1, but hidden_size is 0"),
        (
            SequenceModel,
            (xlstm.LSTM(2, 3), 1),
            {"inputs": 2, "symbols": 3},
            "inputs is 2 and symbols 3, expected one",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(kind, sizes, options, name):
    with pytest.raises((ValueError, TypeError), match=f"^({kind.__name__}|activations): .*{name}"):
        kind(*sizes, **options)
