"""Halves on the stand-in for CuPy: the mLSTM, blocks, models of them, and their checkpoints, beside float32."""

from __future__ import annotations

import numpy as np
import pytest

import xlstm
from tests import gpu
from tests.test_interop_nxai import NXAI
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import dtype_name
from xlstm.interop import nxai
from xlstm.layers.blocks.feedforward import ResidualFeedForward
from xlstm.layers.conv import CausalConv
from xlstm.layers.norm import MultiHeadNorm, RMSNorm
from xlstm.layers.sequence import SequenceLayer
from xlstm.models import SequenceModel

gpu.needed()

# They are shares of norms: rounding to 2^-9 or 2^-12, many times, of numbers that partly cancel.
TOLERANCE = {"bfloat16": 0.25, "float16": 0.06}
STACK, LARGE = xlstm.xLSTMStack(16, 2, [1], 2), xlstm.xLSTMLarge(16, 2, 2, eps=1e-6, norm_eps=0.01)
LAYERS = [
    xlstm.mLSTM(6, 16, 2, num_heads=2, qk_size=8, chunk_size=4),
    xlstm.mLSTM(6, 16, num_heads=2, chunk_size=4, eps=0.1, forget_gate="exponential"),
    xlstm.mLSTMBlock(16, 2),
    xlstm.sLSTMBlock(16, 2),
    STACK,
    LARGE,
    SequenceModel(xlstm.mLSTM(8, 16, num_heads=2), 3, last=True, inputs=2),
    xlstm.xLSTMLanguageModel(STACK, 7, logit_cap=2.0),
    xlstm.xLSTMLanguageModel(LARGE, 7, tied=True),
    CausalConv(8),
    RMSNorm(16, residual=True, bias=True),
    MultiHeadNorm(16, num_heads=2),
    ResidualFeedForward(8, 16, 4),
]


def flat(state):
    """The arrays of a state."""
    return [a for part in state for a in (flat(part) if isinstance(part, tuple) else [part])]


def close(found, expected, tolerance, name):
    """Compare arrays by the norm of their difference."""
    assert found.shape == expected.shape
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(found), finite), name
    a, b = found[finite], expected[finite]
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-4, name


def run(layer, values, x, dtype, rng, lengths):
    """Results by name; those that have the dtype of the parameters are checked to have it."""
    be = xlstm.backend("cupy", dtype=dtype)
    params = {name: be.asarray(p) for name, p in values.items()}
    x = be.xp.asarray(x) if x.dtype.kind == "i" else be.asarray(x)
    found = {}
    if isinstance(layer, SequenceLayer):
        y, state, saved = layer.forward(params, x, train=False, keep=True, lengths=lengths)
        grads, dx, dstate = layer.backward(params, saved, be.asarray(rng.standard_normal(y.shape)))
        own = [layer(params, x, state)[0]]  # it goes on from its own states
        found |= {f"state {k}": a for k, a in enumerate(flat(state))}
        found |= {f"dstate {k}": a for k, a in enumerate(flat(dstate))}
    else:
        y, saved = layer.forward(params, x)
        grads, dx = layer.backward(params, saved, be.asarray(rng.standard_normal(y.shape)))
        own = []
    given = {"y": y, **grads} if dx is None else {"y": y, "dx": dx, **grads}
    assert {dtype_name(a.dtype) for a in (*own, *given.values())} == {dtype}
    return {name: to_numpy(a) for name, a in (found | given).items()}


@pytest.mark.parametrize("lengths", [None, [9, 0, 5]], ids=["full", "lengths"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_every_layer(layer, lengths, rng):
    """Results and gradients have the dtype of the parameters, and the numbers of float32 but for rounding."""
    if lengths and not isinstance(layer, SequenceLayer):
        pytest.skip("it has no time")
    low = xlstm.backend("cupy", dtype="bfloat16")  # numbers that it has
    values = {}
    for name, p in layer.draw(rng).items():
        p = (
            0 * p if name.endswith("gates.b") else p
        )  # at first gates are closed, and all that they let through is noise
        values[name] = to_numpy(low.asarray(p + 0.1 * rng.standard_normal(p.shape)))
    outer = (3, 9) if getattr(layer, "batch_first", False) else (9, 3)
    if isinstance(layer, xlstm.xLSTMLanguageModel):
        x = rng.integers(0, 7, outer)
    else:
        x = to_numpy(low.asarray(rng.standard_normal((*outer, layer.input_size))))
    exact = run(layer, values, x, "float32", np.random.default_rng(1), lengths)
    for dtype, tolerance in TOLERANCE.items():
        found = run(layer, values, x, dtype, np.random.default_rng(1), lengths)
        for name, a in exact.items():
            close(found[name], a, tolerance, name)


def test_the_state_of_an_mlstm_is_float32():
    """A sum over many steps would lose what is added to it late."""
    be = xlstm.backend("cupy", dtype="bfloat16")
    layer = xlstm.mLSTM(4, 16, num_heads=2)
    params = layer.init(0, be)
    params["0.b"][-2:] = 50.0  # nothing is forgotten
    x = be.asarray(np.ones((600, 1, 4)))
    _, whole = layer(params, x)
    state = None
    for k in range(600):
        _, state = layer.step(params, x[k], state)
    assert {dtype_name(a.dtype) for a in (*whole, *state)} == {"float32"}
    for k, (a, b) in enumerate(zip(state, whole, strict=True)):
        close(to_numpy(a), to_numpy(b), 0.01, f"state {k}")
    low = tuple(be.asarray(to_numpy(a)) for a in whole)
    with pytest.raises(TypeError, match="mLSTM: state C has dtype bfloat16, expected float32, as it is summed up"):
        layer(params, x, low)


def test_a_checkpoint_in_bfloat16(tmp_path):
    """It is written, read and run as bfloat16, and writes what its float32 numbers write."""
    pytest.importorskip("torch")
    be = xlstm.backend("cupy", dtype="bfloat16")
    model, params = nxai.load(NXAI / "large.safetensors", backend="cupy", dtype="bfloat16")
    assert {dtype_name(p.dtype) for p in params.values()} == {"bfloat16"}
    nxai.save(tmp_path, model, params)
    again, same = nxai.load(tmp_path, backend=be)
    assert again == model
    assert all(np.array_equal(to_numpy(same[name]), to_numpy(p)) for name, p in params.items())
    wide = {name: xlstm.backend("cupy").asarray(to_numpy(p)) for name, p in params.items()}
    tokens = be.xp.asarray(np.arange(12).reshape(2, 6) % model.vocab_size)
    logits, exact = (to_numpy(model(p, tokens)[0]) for p in (params, wide))
    close(logits, exact, 0.1, "logits")
    written, _ = model.generate(params, [[1, 2, 3]], 4)
    assert written.shape == (1, 7)
