"""Results of a sequence that do not depend on its batch, of everything that goes through time."""

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.layers.test_contract import SEQUENCES, everywhere, leaves, like
from tests.registry import EVERY, flat, given, state_of, steps, time_axis
from xlstm.arrays.convert import to_numpy
from xlstm.engines.numba import jit

WIDE = [
    xlstm.LSTM(1, 50),
    xlstm.GRU(16, 40, 2, bidirectional=True),
    xlstm.sLSTM(32, 64, num_heads=4),
    xlstm.mLSTM(32, 64, num_heads=4),
    xlstm.xLSTMStack(64, 2, [1], 2),
]
T = 12
ON = {"batch_invariant": True}


def results(layer, be, data, lengths, chosen, length):
    """All results of some of the sequences, cut after `length` steps, by name, with sequences first
    and then time.
    """
    time = time_axis(layer)
    of_y = (0,) if getattr(layer, "last", False) else (1 - time, time)
    of_states = [(len(leaf.before),) for leaf in leaves(layer.states)]
    params, x, dy, *states = data

    def part(array, axes):
        array = np.take(to_numpy(array), chosen, axes[0])
        array = np.take(array, range(length), axes[1]) if len(axes) == 2 else array
        return be.asarray(array, str(array.dtype))

    x = part(x, (1 - time, time))
    state, dend = (like(s, map(part, flat(s), of_states)) for s in states)
    options = {"lengths": lengths[chosen], **ON}
    y, end, saved = layer.forward(params, x, state, False, keep=True, **options)
    grads, dx, start = layer.backward(params, saved, part(dy, of_y), dend, per_sequence=True)
    named = {name: (g, (0,)) for name, g in grads.items()}
    inferred, last = layer(params, x, state, **options)
    named |= {"y": (y, of_y), "inferred": (inferred, of_y), "dx": (dx, (1 - time, time))}
    after = ()
    if steps(layer):
        first, after = layer.step(params, x[:, 0, ...] if time else x[0, ...], state, **ON)
        named["step"] = first, (0,)
    for name, arrays in {"end": end, "dstart": start, "last": last, "after": after}.items():
        pairs = zip(flat(arrays), of_states, strict=False)
        named |= {f"{name} {k}": pair for k, pair in enumerate(pairs)}
    return {
        name: np.moveaxis(to_numpy(a), axes, range(len(axes)))
        for name, (a, axes) in named.items()
        if a is not None
    }


@everywhere([*SEQUENCES, *WIDE])
def test_bits_do_not_depend_on_the_batch(monkeypatch, be, rng, layer):
    """Neither on its size, its order and its padding, nor on what else is in it."""
    others = [(be, "0")] if layer in EVERY or be.name != "numpy" else []
    ways = [(make_backend("numpy", f), c) for f in ("float32", "float64") for c in ("0", "1")]
    for way, compiled in ways if be.name == "numpy" else others:
        if compiled == "1" and jit.failure():
            continue
        monkeypatch.setenv(jit.VARIABLE, compiled)
        B = int(rng.integers(2, 41))
        lengths = rng.integers(0, T + 1, B)
        params, x, state = given(layer, way, rng, T, B)
        y, _ = layer(params, x)
        dy = rng.standard_normal(y.shape).astype(way.dtype)
        data = params, x, dy, state, state_of(layer, way, rng, B)
        whole = results(layer, way, data, lengths, np.arange(B), T)
        for n in (1, rng.integers(1, B)):
            chosen = rng.permutation(B)[:n]
            length = max(1, *lengths[chosen])
            for name, a in results(layer, way, data, lengths, chosen, length).items():
                expected = whole[name][chosen]
                if a.shape != expected.shape:
                    expected = expected[:, :length]
                np.testing.assert_array_equal(a, expected, f"{layer}, {name}")


def test_it_is_asked_for_by_an_argument_or_a_context(be, rng):
    """The argument of a call comes first; the values of each sequence can be read."""
    layer = xlstm.LSTM(3, 4)
    params, x, _ = given(layer, be, rng)
    y, _, saved = layer.forward(params, x, **ON)
    with xlstm.batch_invariant():
        _, _, within = layer.forward(params, x)
        _, _, without = layer.forward(params, x, batch_invariant=False)
        with xlstm.batch_invariant(False):
            _, _, again = layer.forward(params, x)
    h = [to_numpy(sequence.h) for sequence in within.sequences]
    np.testing.assert_array_equal(np.concatenate(h, 1), to_numpy(y))
    assert without.h.shape == again.h.shape == y.shape
    whole, *_ = layer.backward(params, saved, y)
    each, *_ = layer.backward(params, saved, y, per_sequence=True)
    for name, g in whole.items():
        np.testing.assert_allclose(to_numpy(each[name]).sum(0), to_numpy(g), rtol=1e-12)


def test_an_empty_batch_has_no_sequences(be, rng):
    layer = xlstm.LSTM(3, 4)
    params, x, _ = given(layer, be, rng, B=0)
    y, _, saved = layer.forward(params, x, **ON)
    assert layer.backward(params, saved, y)[1].shape == x.shape
    assert layer.step(params, x[0, ...], **ON)[0].shape == (0, 4)


def test_sequences_that_share_anything_are_refused(be, rng):
    layer = xlstm.LSTM(3, 4, 2, dropout=0.5)
    params, x, _ = given(layer, be, rng)
    with pytest.raises(ValueError, match=r"LSTM: batch_invariant is True.* masks are drawn"):
        layer.forward(params, x, seed=0, **ON)
    with pytest.raises(TypeError, match="LSTM: batch_invariant is 1, expected True or False"):
        layer(params, x, batch_invariant=1)
    model = next(layer for layer in SEQUENCES if layer._has_groups)
    params, tokens, _ = given(model, be, rng)
    with pytest.raises(ValueError, match=r"TiRex2: batch_invariant is True.* groups"):
        model.forward(params, tokens, groups=[0, 0, 1], **ON)
    linear = xlstm.Linear(3, 4)
    with xlstm.batch_invariant():
        with pytest.raises(ValueError, match=r"TiRex2: batch_invariant is True.* rows"):
            model.forecast(params, np.arange(9.0), 2)
        with pytest.raises(ValueError, match=r"Linear: batch_invariant is True.* axis"):
            linear.forward(linear.init(), x)
