"""Every layer with every option, on every engine and path: a batch of any size gives what its
sequences give alone.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

import xlstm
from tests.conftest import BACKENDS, force, make_backend
from tests.layers.test_contract import leaves, like, past
from tests.registry import (
    EVERY,
    TABLE,
    WITH_OPTIONS,
    flat,
    given,
    largest,
    numbered,
    run,
    state_of,
    steps,
    takes_tokens,
    through_time,
    time_axis,
)
from xlstm.arrays.convert import to_numpy
from xlstm.engines.numba import jit
from xlstm.layers.gated import Recurrent

LAYERS = {**WITH_OPTIONS, "sLSTM": [layer for layer in TABLE if isinstance(layer, xlstm.sLSTM)]}
OTHERS = [layer for layer in TABLE if not isinstance(layer, Recurrent)]
LAYERS["with time"] = [layer for layer in OTHERS if through_time(layer)]
LAYERS["without time"] = [layer for layer in OTHERS if not through_time(layer)]
# How layers of NumPy arrays run: XLSTM_COMPILE, and the plan that is forced.
NUMPY = {
    "numpy": ("0", None),
    "numpy in parts": ("0", "parts"),
    "compiled": ("1", None),
    "compiled in parts": ("1", "parts"),
    "compiled and shared": ("1", "shared"),
}
needs_numba = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
WAYS = [
    pytest.param(way, marks=needs_numba) if value == "1" else way
    for way, (value, _) in NUMPY.items()
]
T = 3
N = 5
LENGTHS = np.array([3, 1, 0, 2, 3])  # of the N sequences that batches are made of


class Same(np.random.Generator):
    """It draws the same mask for every step of every sequence, so that masks do not depend on the
    batch.
    """

    def __init__(self):
        super().__init__(np.random.Philox(0))  # of a PCG64 a kernel would draw the numbers

    def random(self, size, dtype):
        return np.broadcast_to(0.37 * np.arange(1, size[-1] + 1) % 1, size).astype(dtype)


@functools.cache
def data_of(layer):
    """Parameters, x, the gradient of y, a state, and the gradient of the final state, of N
    sequences.
    """
    rng = np.random.default_rng(5)
    be = make_backend("numpy")
    params, x, state = given(layer, be, rng, T, N)
    y, *_ = flat((layer(params, x),))
    return params, x, rng.standard_normal(y.shape), state, state_of(layer, be, rng, N)


def results(layer, be, chosen, lengths=None, length=T, **options):
    """The results of all calls with some of the sequences: by name, (the axis of sequences or None,
    array). Options are those of `run`, by default a seed.
    """
    time = time_axis(layer)
    last = getattr(layer, "last", False)
    on_y = 0 if last else 1 - time
    on_states = [len(leaf.before) for leaf in leaves(getattr(layer, "states", ()))]
    params, x, dy, *states = data_of(layer)
    params = {name: be.asarray(p) for name, p in params.items()}
    x = np.take(np.take(x, chosen, 1 - time), range(length), time)
    dy = np.take(dy, chosen, on_y)
    dy = dy if last else np.take(dy, range(length), time)
    first = np.take(x, 0, time)
    if lengths is not None:  # what lies past an end does not matter
        x = past(x, lengths, time, 99 if takes_tokens(layer) else np.nan)
        dy = dy if last else past(dy, lengths, time, np.nan)
    tokens = str(x.dtype) if takes_tokens(layer) else None
    x = be.asarray(x, tokens)
    dy = be.asarray(dy)
    state, dend = (
        like(
            s,
            (
                be.asarray(np.take(a, chosen, axis))
                for a, axis in zip(flat(s), on_states, strict=True)
            ),
        )
        for s in states
    )
    found = run(layer, params, x, state, lengths, dy, dend, **options or {"seed": Same()})
    named = {"dx": 1 - time, "y of step": 0, "y": on_y, "inferred y": on_y}
    if through_time(layer):
        y, end = layer(params, x, state, lengths=lengths)
        found |= {"inferred y": y} | {f"inferred end {k}": s for k, s in enumerate(flat(end))}
    if steps(layer):
        y, end = layer.step(params, be.asarray(first, tokens), state)
        found |= {"y of step": y} | {f"end of step {k}": s for k, s in enumerate(flat(end))}
    for k, axis in enumerate(on_states):
        named |= {
            f"{which} {k}": axis for which in ("end", "dstart", "inferred end", "end of step")
        }
    return {name: (named.get(name), to_numpy(a)) for name, a in found.items()}


@functools.cache
def alone_each(layer, ragged):
    """The results of all sequences, each alone and cut at its end if `ragged`, by the reference
    engine on NumPy.
    """
    be = make_backend("numpy")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(jit.VARIABLE, "0")
        for k, n in enumerate(LENGTHS if ragged else [T] * N):
            one = results(layer, be, [k], [0] if n == 0 else None, n or T)
            if 0 < n < T:  # past its end there is what a sequence without steps has there
                none = results(layer, be, [k], [0])
                for name in ("y", "dx", "inferred y"):
                    if name in one and none[name][1].shape != one[name][1].shape:
                        axis, a = one[name]
                        rest = np.take(none[name][1], range(n, T), 1 - axis)
                        one[name] = axis, np.concatenate((a, rest), 1 - axis)
            found.append(one)
    arrays = {name: (axis, [one[name][1] for one in found]) for name, (axis, _) in found[0].items()}
    return {
        name: np.stack(a) if axis is None else np.concatenate(a, axis)
        for name, (axis, a) in arrays.items()
    }


EVERYWHERE = [*(WAYS if "numpy" in BACKENDS else []), *(b for b in BACKENDS if b != "numpy")]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("sizes", [(0, 1, 16), (2, 17), (15, 64)], ids=str)
@pytest.mark.parametrize("way", EVERYWHERE)
def test_a_batch_is_its_sequences(monkeypatch, rng, way, sizes, kind):
    """Outputs, states and their gradients; gradients of parameters are the sums of those of the
    sequences.

    With lengths and without, where a layer takes them.
    """
    be = make_backend("numpy" if way in NUMPY else way)
    compiled, plan = NUMPY.get(way, ("0", None))
    for layer, ragged in itertools.product(LAYERS[kind], (False, True)):
        if ragged and not through_time(layer):
            continue
        each = alone_each(layer, ragged)
        for B in sizes:
            chosen = rng.integers(N, size=B)
            with monkeypatch.context() as patch:
                patch.setenv(jit.VARIABLE, compiled)
                if plan:
                    force(plan, patch)
                found = results(layer, be, chosen, LENGTHS[chosen] if ragged else None)
            assert found.keys() == each.keys()
            for name, (axis, array) in found.items():
                expected = np.take(each[name], chosen, axis or 0)
                expected = np.sum(expected, 0) if axis is None else expected
                assert array.shape == expected.shape, f"{layer}, B = {B}, {name}"
                limit = 1e-10 * max(1.0, largest(expected))
                assert largest(array - expected) <= limit, f"{layer}, B = {B}, {name}"


WIDE = [
    xlstm.LSTM(1, 50),
    xlstm.GRU(16, 40, 2, bidirectional=True),
    xlstm.sLSTM(32, 64, num_heads=4),
    xlstm.mLSTM(32, 64, num_heads=4),
    xlstm.xLSTMStack(64, 2, [1], 2),
]


@pytest.mark.parametrize("layer", **numbered([*filter(through_time, EVERY), *WIDE]))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("way", EVERYWHERE)
def test_bits_do_not_depend_on_the_batch(monkeypatch, rng, way, dtype, layer):
    """Neither on its size, its order and its padding, nor on what else is in it."""
    be = make_backend("numpy" if way in NUMPY else way, dtype)
    compiled, plan = NUMPY.get(way, ("0", None))
    monkeypatch.setenv(jit.VARIABLE, compiled)
    if plan:
        force(plan, monkeypatch)
    options = {"train": False, "keep": True, "each": True}
    chosen = rng.integers(N, size=rng.integers(2, 21))
    with xlstm.batch_invariant():
        batch = results(layer, be, chosen, LENGTHS[chosen], **options)
        for some in (chosen[-1:], rng.permutation(chosen)):
            length = max(1, *LENGTHS[some])
            of_some = results(layer, be, some, LENGTHS[some], length, **options)
            places = [np.flatnonzero(chosen == k)[0] for k in some]
            for name, (axis, array) in of_some.items():
                expected = np.take(batch[name][1], places, axis or 0)
                if array.shape != expected.shape:  # padding
                    expected = np.take(expected, range(length), 1 - axis)
                np.testing.assert_array_equal(array, expected, f"{layer}, {name}")
