"""The table of layers: every layer, block, stack and model, with what it can do, and what tests of
all of them share.

A new kind joins by a line of `EVERY`, other options by a line of `VARIANTS`, options of recurrent
layers by one of `OPTIONS`. `tests/layers/test_contract.py` and `test_contract_objects.py` run all
of `TABLE`, `tests/engines/test_batch_sizes.py` does so on every engine, and
`tests/training/test_models.py` trains.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np

import xlstm
from tests.conftest import covering
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import HALVES
from xlstm.layers.blocks.block import GatedFeedForward, ResidualFeedForward
from xlstm.layers.conv import CausalConv
from xlstm.layers.embedding import Embedding
from xlstm.layers.linear import HeadwiseLinear
from xlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm
from xlstm.layers.sequence import Leaf, SequenceLayer
from xlstm.models import ESRNN, SequenceModel, TiRex, TiRex2, model_files

# Every option with the values worth a test, the first being the default.
COMMON = {
    "num_layers": (1, 2),
    "direction": ("", "bidirectional", "reverse"),
    "batch_first": (False, True),
    "bias": (True, False),
    "recurrent_bias": (None, True),
    "dropout": (0.0, 0.4),
    "recurrent_dropout": (0.0, 0.4),
    "zoneout": (0.0, 0.3),
    "layer_norm": (False, True),
    "clip": (None, 0.8),
    "recompute": (False, True),
}
# of a layer without a product of h
MINIMAL = {
    name: COMMON[name]
    for name in (
        "num_layers",
        "direction",
        "batch_first",
        "bias",
        "dropout",
        "zoneout",
        "recompute",
    )
} | {"log_space": (True, False)}
OPTIONS = {
    "LSTM": {
        **COMMON,
        "activations": (None, ("hard_sigmoid(0.3, 0.5)", "softsign", "elu")),
        "proj_size": (0, 2),
        "peepholes": (False, True),
        "coupled_input_forget": (False, True),
        "cell_clip": (None, 0.7),
    },
    "GRU": {
        **COMMON,
        "activations": (None, ("hard_sigmoid", "softsign")),
        "reset_after": (True, False),
    },
    "RNN": {**COMMON, "activations": (None, "relu")},
    "minLSTM": MINIMAL,
    "minGRU": MINIMAL,
}


def make(kind: str, options: dict, D: int = 2, H: int = 3):
    """A layer, or None where the options exclude one another."""
    options = dict(options)
    direction = options.pop("direction", "")
    if direction:
        options[direction] = True
    try:
        return getattr(xlstm, kind)(D, H, **options)
    except ValueError:
        return None


def alone(kind: str) -> list[dict]:
    """The default, and every other value of every option by itself."""
    found = [{name: value} for name, values in OPTIONS[kind].items() for value in values[1:]]
    # dropout acts between layers only
    return [{}] + [{**one, "num_layers": 2} if "dropout" in one else one for one in found]


def pairwise(kind: str, only: Collection[str] = ()) -> list[dict]:
    """Combinations in which every two values of two options that go together occur together; of
    some options only.
    """
    factors = {name: values for name, values in OPTIONS[kind].items() if not only or name in only}
    rng = np.random.default_rng(0)
    drawn = {}
    for _ in range(1000):
        options = {name: values[rng.integers(len(values))] for name, values in factors.items()}
        if make(kind, options) is not None:
            drawn[len(drawn)] = options
    return [
        drawn[k] for k in covering({k: list(options.items()) for k, options in drawn.items()}, 2)
    ]


def inputs_of(layer, be, rng, T, B, scale=0.7):
    """Parameters of size `scale`, x and an initial state of an LSTM, GRU, RNN or the like, all
    random.
    """
    outer = (B, T) if layer.batch_first else (T, B)
    params = {
        n: be.asarray(scale * rng.standard_normal(to_numpy(p).shape))
        for n, p in layer.init(0, be).items()
    }
    x = be.asarray(rng.standard_normal((*outer, layer.input_size)))
    L = layer.num_layers * len(layer.directions)
    state = tuple(be.asarray(rng.standard_normal((L, B, size))) for size in layer.state_sizes)
    return params, x, state


def check(layer, params, x, state=(), lengths=None, seed=3, directions=1, order=1, **options):
    """gradcheck with cotangents on y and every final state, by x, every parameter and every initial
    state.
    """
    tokens = takes_tokens(layer)

    def forward(params, given, state):
        given = x if tokens else given
        if through_time(layer):
            y, end, saved = layer.forward(
                params, given, state, lengths=lengths, seed=seed, **options
            )
        else:
            y, saved = layer.forward(params, given)
            end = ()
        return (y, end), (params, saved)

    def backward(kept, d):
        dy, dend = d
        grads, dx, *dstart = layer.backward(*kept, dy, *([dend] if through_time(layer) else []))
        return grads, dx, *(dstart or [()])

    return xlstm.gradcheck(
        forward,
        backward,
        (params, None if tokens else x, state),
        directions=directions,
        order=order,
    )


def run(
    layer,
    params,
    x,
    state=None,
    lengths=None,
    dy=None,
    dstate=None,
    kept=False,
    each=False,
    **options,
):
    """Everything that forward and backward return, and what is kept between them, by name, on the
    host; gradients of parameters of `each` sequence or of all.
    """
    if through_time(layer):
        y, end, saved = layer.forward(params, x, state, lengths=lengths, **options)
        dend = end if dstate is None else dstate
        dy = y if dy is None else dy
        grads, dx, start = layer.backward(params, saved, dy, dend, per_sequence=each)
    else:
        y, saved = layer.forward(params, x)
        end = ()
        start = ()
        grads, dx = layer.backward(params, saved, y if dy is None else dy)
    found = {"y": y, "dx": dx, **{f"d{name}": g for name, g in grads.items()}}
    found |= {f"end {k}": s for k, s in enumerate(flat(end))} | {
        f"dstart {k}": s for k, s in enumerate(flat(start))
    }
    if kept:
        parts = ("gates", "h", *layer.CELL.STATES[1:])
        found |= {
            f"{name} {part}": getattr(one, part)
            for name, one in saved.kept.items()
            for part in parts
        }
    # tokens have no gradient
    return {name: to_numpy(a) for name, a in found.items() if a is not None}


def largest(a):
    return np.max(np.abs(a), initial=0.0)


def agree(found, expected, tolerance=0.0, size=np.linalg.norm, least=1e-3):
    """Compare arrays by name: the size of a difference with that of an array, or with `least`; bits
    without.
    """
    assert found.keys() == expected.keys()
    for name, b in expected.items():
        a, b = (to_numpy(one).astype("float64") for one in (found[name], b))
        finite = np.isfinite(b)
        assert a.shape == b.shape, name
        np.testing.assert_array_equal(a[~finite], b[~finite], err_msg=name)
        gap = size(a[finite] - b[finite])
        assert gap <= tolerance * max(size(b[finite]), least), (name, gap)


def flat(state):
    """The arrays of a state."""
    return [a for part in state for a in (flat(part) if isinstance(part, tuple) else [part])]


def numbered(layers):
    """The arguments of `parametrize` for layers."""
    return {
        "argvalues": layers,
        "ids": [f"{k}-{type(layer).__name__}" for k, layer in enumerate(layers)],
    }


PATCHES = {"patch_size": 2, "quantiles": (0.2, 0.5), "input_ff_size": 3, "context": 4}
STACK = xlstm.xLSTMStack(4, 2, [1], 2, dropout=0.2)
TWO_WAYS = {"num_layers": 2, "direction": "bidirectional"}
# One or more of every kind of layer, block, stack and model: a new one joins by a line.
EVERY = [
    xlstm.LSTM(2, 3),
    xlstm.LSTM(2, 3, 2, bidirectional=True, peepholes=True),
    xlstm.LSTM(2, 3, proj_size=2, batch_first=True),
    xlstm.GRU(2, 3, 2, dropout=0.2),
    xlstm.RNN(2, 3, reverse=True),
    xlstm.minLSTM(2, 3, 2, dropout=0.2),
    xlstm.minGRU(2, 3, bidirectional=True),
    xlstm.sLSTM(2, 4, num_heads=2),
    xlstm.mLSTM(2, 4, 2, num_heads=2, dropout=0.2),
    xlstm.mLSTMBlock(4, 2),
    xlstm.sLSTMBlock(4, 2),
    STACK,
    xlstm.xLSTMLarge(4, 2, 2),
    CausalConv(2),
    xlstm.ExponentialSmoothing(3, periods=(2,)),
    SequenceModel(xlstm.LSTM(2, 4), 3),
    SequenceModel(xlstm.GRU(2, 4, 2, bidirectional=True), 3, last=True),
    SequenceModel(STACK, 3),
    SequenceModel(xlstm.mLSTM(2, 4, num_heads=2), 3, last=True),
    SequenceModel(STACK, 3, last=True, inputs=2),
    SequenceModel(xlstm.LSTM(3, 4, bidirectional=True, batch_first=True), 3, symbols=7),
    SequenceModel(xlstm.GRU(3, 4, batch_first=True), 3, last=True, symbols=7),
    xlstm.xLSTMLanguageModel(STACK, 7),
    xlstm.xLSTMLanguageModel(xlstm.LSTM(4, 4), 7, tied=True, logit_cap=2.0, batch_first=False),
    ESRNN(3, 4, periods=(2, 3), covariates=1),
    TiRex(4, 2, 2, **PATCHES),
    TiRex2(4, [("slstm", 2, 1), ("mlstm", 2, 2)], output_ff_size=5, horizon=2, **PATCHES),
    xlstm.Linear(4, 2),
    HeadwiseLinear(4, 2),
    LayerNorm(4),
    RMSNorm(4),
    MultiHeadNorm(4, num_heads=2),
    GatedFeedForward(4, 6),
    ResidualFeedForward(4, 6, 3),
    Embedding(7, 4),
]
# The same with other options. Those of the LSTM, GRU and RNN are above.
VARIANTS = [
    xlstm.Linear(4, 3, bias=False, std=0.1),
    HeadwiseLinear(6, 3, bias=True),
    LayerNorm(4, residual=True, bias=True, eps=0.1),
    RMSNorm(4, bias=True),
    MultiHeadNorm(6, num_heads=2, residual=True),
    *(
        GatedFeedForward(4, 3, activation=name)
        for name in ("silu", "relu", "square_relu", "sigmoid", "selu")
    ),
    GatedFeedForward(4, 3, bias=True),
    *(ResidualFeedForward(4, 3, 5, activation=name) for name in ("gelu", "silu")),
    CausalConv(3, 1),
    CausalConv(2, 6),
    xlstm.mLSTM(2, 4),
    xlstm.mLSTM(2, 4, 2, num_heads=2, qk_size=6, chunk_size=2, eps=0.1),
    xlstm.mLSTM(
        2, 3, 2, num_heads=3, batch_first=True, bias=False, dropout=0.3, forget_gate="exponential"
    ),
    xlstm.mLSTMBlock(3, 2, chunk_size=2, proj_factor=1.0, qkv_block_size=2),
    xlstm.mLSTMBlock(3, 1, bias=True, dropout=0.3, eps=0.1, conv_kernel_size=1),
    xlstm.sLSTMBlock(4, 1, dropout=0.3, conv_kernel_size=0, recurrent_init="uniform"),
    xlstm.sLSTMBlock(4, 4, ffn_proj_factor=0),
    xlstm.sLSTMBlock(4, 1, ffn_dropout=0.3),
    xlstm.xLSTMStack(4, 2, [1], 2, chunk_size=3),
    xlstm.xLSTMStack(4, 2, [0], 2, dropout=0.2, post_norm=False, bias=True),
    xlstm.xLSTMLarge(4, 2, 2, chunk_size=3),
    xlstm.xLSTMLarge(4, 1, 1, bias=True, gate_cap=None, qk_size=3, v_size=5, post_norm=False),
    xlstm.xLSTMLarge(4, 1, 1, bias=True, post_norm_bias=False),
    xlstm.sLSTM(2, 4),
    xlstm.sLSTM(2, 4, num_heads=2, recompute=True),
    xlstm.sLSTM(2, 4, num_heads=4, forget_gate="exponential"),
    xlstm.sLSTM(2, 4, 2, num_heads=2, bidirectional=True),
    xlstm.sLSTM(2, 4, num_heads=2, batch_first=True, bias=False, recurrent_dropout=0.4),
    xlstm.sLSTM(2, 4, 2, reverse=True, dropout=0.3),
    *(
        SequenceModel(make(kind, TWO_WAYS), 2, last=last)
        for kind in OPTIONS
        for last in (False, True)
    ),
    SequenceModel(STACK, 3, symbols=7),
    SequenceModel(xlstm.mLSTM(3, 4, num_heads=2), 2, last=True, symbols=7, embedding_dropout=0.3),
    xlstm.xLSTMLanguageModel(STACK, 7, tied=True, logit_cap=2.0, embedding_dropout=0.3),
    xlstm.xLSTMLanguageModel(xlstm.xLSTMLarge(4, 2, 2), 7, logit_cap=30.0, batch_first=False),
    xlstm.xLSTMLanguageModel(xlstm.LSTM(3, 4, num_layers=2), 7),
    xlstm.ExponentialSmoothing(5, trend="none"),
    xlstm.ExponentialSmoothing(5, trend="linear", periods=(3,), multiplicative=True),
    xlstm.ExponentialSmoothing(5, periods=(2, 4)),
    xlstm.ExponentialSmoothing(5, multiplicative=True),
    ESRNN(3, trend="linear", periods=(2,)),
    ESRNN(3, 4, periods=(2, 3), multiplicative=True, covariates=2, scale=0.7),
    ESRNN(3, 4, trend="none", cell="gru", num_layers=2, dropout=0.3),
    ESRNN(3, 4, cell="xlstm", covariates=1, scale=2.0),
]
WITH_OPTIONS = {
    kind: [make(kind, options) for options in [*alone(kind), TWO_WAYS]] for kind in OPTIONS
}
TABLE = list(dict.fromkeys([*EVERY, *VARIANTS, *itertools.chain(*WITH_OPTIONS.values())]))


# Abilities of a layer.


def through_time(layer):
    """Whether it has a state, lengths and a seed."""
    return isinstance(layer, SequenceLayer)


def steps(layer):
    """Whether it goes on from a state, a step at a time."""
    return through_time(layer) and layer.directions == ("",)


def takes_tokens(layer):
    return layer.symbols is not None


def has_file(layer):
    """Whether `models.save` takes it."""
    try:
        model_files.config_of("save", layer)
    except TypeError:
        return False
    return True


def time_axis(layer):
    """The axis of time of x; that of sequences is the other."""
    return 1 if getattr(layer, "batch_first", False) else 0


def input_of(layer, be, rng, T=3, B=3):
    """x, or tokens. Where what smoothing sees is above 0, so is x."""
    outer = (B, T) if time_axis(layer) else (T, B)
    if takes_tokens(layer):
        return be.asarray(rng.integers(0, 7, outer))
    x = rng.standard_normal((*outer, layer.input_size))
    return be.asarray(
        np.exp(0.3 * x) if isinstance(layer, xlstm.ExponentialSmoothing | ESRNN) else x
    )


def params_of(layer, be, rng):
    """Random, but such that nothing is far from where gradients are of a size."""
    return {
        name: be.asarray(p + 0.5 * rng.standard_normal(p.shape))
        for name, p in layer.draw(rng).items()
    }


def state_of(layer, be, rng, B=3):
    """A random state; normalisers are positive."""

    def drawn(part):
        if not isinstance(part, Leaf):
            return tuple(map(drawn, part))
        values = 0.5 + rng.random(tuple(part.dims(B).values()))
        return be.asarray(values, "float32" if part.wide and be.dtype in HALVES else None)

    return drawn(layer.states) if through_time(layer) else ()


def given(layer, be, rng, T=5, B=3):
    """Parameters, x and an initial state, all random, of any layer."""
    return params_of(layer, be, rng), input_of(layer, be, rng, T, B), state_of(layer, be, rng, B)
