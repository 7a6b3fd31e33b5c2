"""Tests of recurrent layers share this: options, inputs, and the gradient check of everything at once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

import xlstm
from tests.conftest import covering
from xlstm.arrays.convert import to_numpy
from xlstm.layers.blocks.block import GatedFeedForward, ResidualFeedForward
from xlstm.layers.conv import CausalConv
from xlstm.layers.linear import Embedding, HeadwiseLinear
from xlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm
from xlstm.models import ESRNN, SequenceModel, TiRex, TiRex2

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
OPTIONS = {
    "LSTM": {
        **COMMON,
        "activations": (None, ("hard_sigmoid(0.3, 0.5)", "softsign", "elu")),
        "proj_size": (0, 2),
        "peepholes": (False, True),
        "coupled_input_forget": (False, True),
        "cell_clip": (None, 0.7),
    },
    "GRU": {**COMMON, "activations": (None, ("hard_sigmoid", "softsign")), "reset_after": (True, False)},
    "RNN": {**COMMON, "activations": (None, "relu")},
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


# Options that change the step of a cell as it is compiled; each combination of them takes time to compile.
COMPILED = ("bias", "recurrent_bias", "clip", "activations", "peepholes", "coupled_input_forget", "cell_clip")


def pairwise(kind: str, only: Collection[str] = ()) -> list[dict]:
    """Combinations in which every two values of two options that go together occur together; of some options only."""
    factors = {name: values for name, values in OPTIONS[kind].items() if not only or name in only}
    rng, drawn = np.random.default_rng(0), {}
    for _ in range(1000):
        options = {name: values[rng.integers(len(values))] for name, values in factors.items()}
        if make(kind, options) is not None:
            drawn[len(drawn)] = options
    return [drawn[k] for k in covering({k: list(options.items()) for k, options in drawn.items()}, 2)]


def inputs_of(layer, be, rng, T, B, scale=0.7):
    """Parameters of size `scale`, x and an initial state, all random."""
    outer = (B, T) if layer.batch_first else (T, B)
    params = {n: be.asarray(scale * rng.standard_normal(to_numpy(p).shape)) for n, p in layer.init(0, be).items()}
    x = be.asarray(rng.standard_normal((*outer, layer.input_size)))
    L = layer.num_layers * len(layer.directions)
    state = tuple(be.asarray(rng.standard_normal((L, B, size))) for size in layer.state_sizes)
    return params, x, state


def check(layer, params, x, state, lengths=None, seed=3, directions=1):
    """gradcheck with cotangents on y and every final state, by x, every parameter and every initial state."""

    def forward(params, x, state):
        y, end, saved = layer.forward(params, x, state, lengths=lengths, seed=seed)
        return (y, end), (params, saved)

    return xlstm.gradcheck(
        forward, lambda saved, d: layer.backward(*saved, *d), (params, x, state), directions=directions
    )


def run(layer, params, x, state=None, lengths=None, dy=None, dstate=None, kept=False, **options):
    """Everything that forward and backward return, and what is kept between them, by name, on the host."""
    y, end, saved = layer.forward(params, x, state, lengths=lengths, **options)
    grads, dx, start = layer.backward(params, saved, y if dy is None else dy, end if dstate is None else dstate)
    found = {"y": y, "dx": dx, **{f"d{name}": g for name, g in grads.items()}}
    found |= {f"end {k}": s for k, s in enumerate(end)} | {f"dstart {k}": s for k, s in enumerate(start)}
    if kept:
        parts = ("gates", "h", *layer.CELL.STATES[1:])
        found |= {f"{name} {part}": getattr(one, part) for name, one in saved.kept.items() for part in parts}
    return {name: to_numpy(a) for name, a in found.items()}


def largest(a):
    return np.max(np.abs(a), initial=0.0)


def agree(found, expected, tolerance=0.0, size=np.linalg.norm, least=1e-3):
    """Compare arrays by name: the size of a difference with that of an array, or with `least`; bits without."""
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
    return {"argvalues": layers, "ids": [f"{k}-{type(layer).__name__}" for k, layer in enumerate(layers)]}


PATCHES = {"patch_size": 2, "quantiles": (0.2, 0.5), "input_ff_size": 3, "context": 4}
STACK = xlstm.xLSTMStack(4, 2, [1], 2, dropout=0.2)
# One or more of every kind of layer and model.
EVERY = [
    xlstm.LSTM(2, 3),
    xlstm.LSTM(2, 3, 2, bidirectional=True, peepholes=True),
    xlstm.LSTM(2, 3, proj_size=2, batch_first=True),
    xlstm.GRU(2, 3, 2, dropout=0.2),
    xlstm.RNN(2, 3, reverse=True),
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


def input_of(layer, be, rng, T=3, B=3):
    """x, or tokens."""
    outer = (B, T) if getattr(layer, "batch_first", False) else (T, B)
    if isinstance(layer, Embedding | xlstm.xLSTMLanguageModel):
        return be.asarray(rng.integers(0, 7, outer))
    return be.asarray(rng.standard_normal((*outer, layer.input_size)))
