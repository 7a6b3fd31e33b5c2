"""Every layer with every option, on every engine and path: a batch of any size gives what its sequences give alone."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import xlstm
from tests.conftest import BACKENDS, force, make_backend
from tests.layers.test_blocks import POINTWISE, SEQUENCES, SLSTM, params_of
from tests.registry import EVERY, OPTIONS, alone, flat, input_of, make
from xlstm.arrays.convert import to_numpy
from xlstm.engines.numba import jit
from xlstm.layers.gated import Recurrent
from xlstm.layers.sequence import SequenceLayer

STACK = {"num_layers": 2, "direction": "bidirectional"}
LAYERS = {kind: [make(kind, options) for options in [*alone(kind), STACK]] for kind in OPTIONS}
LAYERS["sLSTM"] = [xlstm.sLSTM(2, 4, **options) for options in [*SLSTM, {"num_heads": 2, "recompute": True}]]
OTHERS = [layer for layer in dict.fromkeys([*SEQUENCES, *POINTWISE, *EVERY]) if not isinstance(layer, Recurrent)]
LAYERS["with time"] = [layer for layer in OTHERS if isinstance(layer, SequenceLayer)]
LAYERS["without time"] = [layer for layer in OTHERS if not isinstance(layer, SequenceLayer)]
# How layers of NumPy arrays run: XLSTM_COMPILE, and the plan that is forced.
NUMPY = {
    "numpy": ("0", None),
    "numpy in parts": ("0", "parts"),
    "compiled": ("1", None),
    "compiled in parts": ("1", "parts"),
    "compiled and shared": ("1", "shared"),
}
needs_numba = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
WAYS = [pytest.param(way, marks=needs_numba) if value == "1" else way for way, (value, _) in NUMPY.items()]
T, N = 3, 5
LENGTHS = np.array([3, 1, 0, 2, 3])  # of the N sequences that batches are made of


class Same(np.random.Generator):
    """It draws the same mask for every step of every sequence, so that masks do not depend on the batch."""

    def __init__(self):
        super().__init__(np.random.Philox(0))  # of a PCG64 a kernel would draw the numbers

    def random(self, size, dtype):
        return np.broadcast_to(0.37 * np.arange(1, size[-1] + 1) % 1, size).astype(dtype)


def nested(leaves, found):
    """The next of the arrays `found`, in tuples as the leaves are."""
    return tuple(next(found) if hasattr(leaf, "before") else nested(leaf, found) for leaf in leaves)


def leaf_axes(leaves):
    """The axis of sequences of each array of a state."""
    return [k for leaf in leaves for k in ([len(leaf.before)] if hasattr(leaf, "before") else leaf_axes(leaf))]


def axes(layer):
    """The axis of sequences of x, that of y, and that of each array of the state."""
    if not isinstance(layer, SequenceLayer):
        return 0, 0, []
    axis = 0 if layer.batch_first else 1
    return axis, 0 if getattr(layer, "last", False) else axis, leaf_axes(layer.states)


@functools.cache
def given(layer):
    """Parameters, x, the gradient of y, a state, and the gradient of the final state, of N sequences."""
    rng, be = np.random.default_rng(5), make_backend("numpy")
    params, x, end = params_of(layer, be, rng), input_of(layer, be, rng, T, N), ()
    if isinstance(layer, SequenceLayer):
        y, end = layer(params, x)
    else:
        y = layer(params, x := np.moveaxis(x, 0, 1))
    state, dend = ([0.5 + rng.random(a.shape) for a in flat(end)] for _ in range(2))  # a normaliser is positive
    return params, x, rng.standard_normal(y.shape), state, dend


def results(layer, be, chosen, lengths=None, steps=T):
    """The results of all calls with some of the sequences: by name, (the axis of sequences or None, array)."""
    on_x, on_y, on_states = axes(layer)
    params, x, dy, *states = given(layer)
    params = {name: be.asarray(p) for name, p in params.items()}
    x = be.asarray(np.take(np.take(x, chosen, on_x), range(steps), 1 - on_x))
    dy = np.take(dy, chosen, on_y)
    if not getattr(layer, "last", False):
        dy = np.take(dy, range(steps), 1 - on_y)
    dy = be.asarray(dy)
    if not isinstance(layer, SequenceLayer):
        y, saved = layer.forward(params, x)
        grads, dx = layer.backward(params, saved, dy)
        found, after = {"y": (0, y), "dx": (0, dx), "inferred y": (0, layer(params, x))}, {}
    else:
        state, dend = (
            nested(layer.states, (be.asarray(np.take(a, chosen, axis)) for a, axis in zip(s, on_states, strict=True)))
            for s in states
        )
        y, end, saved = layer.forward(params, x, state, lengths=lengths, seed=Same())
        grads, dx, start = layer.backward(params, saved, dy, dend)
        inferred, last = layer(params, x, state, lengths=lengths)
        found = {"y": (on_y, y), "dx": (on_x, dx), "inferred y": (on_y, inferred)}
        after = {"end": end, "dstart": start, "inferred end": last}
        if layer.directions == ("",):
            once, after["end of step"] = layer.step(params, x[:, 0, ...] if layer.batch_first else x[0, ...], state)
            found["y of step"] = (0, once)
    found |= {f"{n} {k}": pair for n, s in after.items() for k, pair in enumerate(zip(on_states, flat(s), strict=True))}
    found |= {f"d{name}": (None, g) for name, g in grads.items()}
    return {name: (axis, to_numpy(a)) for name, (axis, a) in found.items() if a is not None}  # tokens have no gradient


@functools.cache
def alone_each(layer, ragged):
    """The results of all sequences, each alone and cut at its end if `ragged`, by the reference engine on NumPy."""
    be, found = make_backend("numpy"), []
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
    axes = {name: axis for name, (axis, _) in found[0].items()}
    arrays = {name: [one[name][1] for one in found] for name in axes}
    return {name: np.stack(a) if axes[name] is None else np.concatenate(a, axes[name]) for name, a in arrays.items()}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("sizes", [(0, 1, 16), (2, 17), (15, 64)], ids=str)
@pytest.mark.parametrize("way", [*(WAYS if "numpy" in BACKENDS else []), *(b for b in BACKENDS if b != "numpy")])
def test_a_batch_is_its_sequences(monkeypatch, rng, way, sizes, kind):
    """Outputs, states and their gradients; gradients of parameters are the sums of those of the sequences."""
    be = make_backend("numpy" if way in NUMPY else way)
    for layer in LAYERS[kind]:
        for ragged in (False, True) if isinstance(layer, SequenceLayer) else (False,):
            each = alone_each(layer, ragged)
            for B in sizes:
                chosen = rng.integers(N, size=B)
                with monkeypatch.context() as patch:
                    compiled, plan = NUMPY.get(way, ("0", None))
                    patch.setenv(jit.VARIABLE, compiled)
                    if plan:
                        force(plan, patch)
                    found = results(layer, be, chosen, LENGTHS[chosen] if ragged else None)
                assert found.keys() == each.keys()
                for name, (axis, array) in found.items():
                    expected = np.take(each[name], chosen, axis or 0)
                    expected = np.sum(expected, 0) if axis is None else expected
                    assert array.shape == expected.shape, f"{layer}, B = {B}, ragged: {ragged}, {name}"
                    limit = 1e-10 * max(1.0, np.max(np.abs(expected), initial=0))
                    error = np.max(np.abs(array - expected), initial=0)
                    assert error <= limit, f"{layer}, B = {B}, ragged: {ragged}, {name} by {error}"
