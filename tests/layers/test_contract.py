"""Passes of every layer, block, stack and model: gradients, lengths, steps, states, masks, dtypes.

A test of `everywhere` runs all of the table on NumPy, and one or more of every kind on the other
backends. `tests/engines/test_batch_sizes.py` compares backends and engines.
"""

import numpy as np
import pytest

import xlstm
from tests.conftest import BACKENDS, make_backend
from tests.registry import (
    EVERY,
    OPTIONS,
    TABLE,
    agree,
    check,
    flat,
    given,
    inputs_of,
    largest,
    make,
    numbered,
    pairwise,
    run,
    state_of,
    steps,
    takes_tokens,
    through_time,
    time_axis,
)
from xlstm.arrays.convert import to_numpy
from xlstm.layers.announcements import announced
from xlstm.layers.blocks.block import Backbone
from xlstm.layers.gated import Recurrent
from xlstm.layers.sequence import Leaf

pytestmark = pytest.mark.usefixtures("interpreted")
SEQUENCES = [layer for layer in TABLE if through_time(layer)]
LENGTHS = [3, 0, 5]


def everywhere(layers):
    """All layers on NumPy, and those of `EVERY` on each other backend."""
    cases = {
        f"{name}-{k}-{type(layer).__name__}": (name, layer)
        for name in BACKENDS
        for k, layer in enumerate(layers)
        if name == "numpy" or layer in EVERY
    }
    return pytest.mark.parametrize(
        ("be", "layer"), list(cases.values()), ids=list(cases), indirect=["be"]
    )


def same(found, expected):
    for a, b in zip(flat((found,)), flat((expected,)), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def options_of(layer, lengths=None):
    """Arguments of forward: a seed, and lengths."""
    return {"seed": 1, "lengths": lengths} if through_time(layer) else {}


# Gradients


@pytest.mark.parametrize(
    ("layer", "lengths"),
    [
        *((layer, LENGTHS if through_time(layer) else None) for layer in TABLE),
        *((layer, None) for layer in EVERY if through_time(layer)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gradient(rng, layer, lengths):
    """By x, every parameter and every initial state, from y and every final state."""
    check(layer, *given(layer, make_backend("numpy"), rng), lengths=lengths)


@pytest.mark.parametrize("layer", **numbered(SEQUENCES))
def test_gradients_that_are_announced_early_are_final(rng, layer):
    """Also where the parts of sequences run apart; layers, blocks and heads announce all their own."""
    params, x, _ = given(layer, make_backend("numpy"), rng, T=5)
    resets = np.zeros((3, 5) if layer.batch_first else (5, 3), bool)
    resets[1] = True
    names = {id(p): name for name, p in params.items()}
    for options in ({}, {"resets": resets}, {"batch_invariant": True}):
        early = {}

        def note(p, grads, early=early):
            assert early.keys().isdisjoint(names[id(p[name])] for name in grads)
            early |= {names[id(p[name])]: g.copy() for name, g in grads.items()}

        y, _, saved = layer.forward(params, x, train=False, keep=True, **options)
        with announced(note):
            grads, *_ = layer.backward(params, saved, y)
        same(tuple(early.values()), tuple(grads[name] for name in early))
        whole = isinstance(layer, Recurrent | Backbone) and "batch_invariant" not in options
        rest = [name for name in grads if not name.startswith("input.")]  # the first part of all
        assert not whole or early.keys() == set(rest)


@pytest.mark.parametrize("kind", OPTIONS)
def test_gradient_of_every_pair_of_options(kind):
    combinations = pairwise(kind)
    assert len(combinations) > 8
    for k, options in enumerate(combinations):
        layer = make(kind, options)
        rng = np.random.default_rng(k)
        lengths = None if k % 2 else [3, 0, 2]
        try:
            check(layer, *inputs_of(layer, make_backend("numpy"), rng, 3, 3), lengths=lengths)
        except AssertionError as error:
            raise AssertionError(f"{layer}: {error}") from error


@pytest.mark.parametrize("layer", **numbered([layer for layer in TABLE if not through_time(layer)]))
def test_layers_without_time_take_any_shape(rng, layer):
    """A vector alone, and arrays of vectors, give the same."""
    be = make_backend("numpy")
    params, x, _ = given(layer, be, rng, 1, 1)
    one = x[0, 0]
    many = np.broadcast_to(x, (2, 3, 1, 1, *x.shape[2:]))
    y, saved = layer.forward(params, one)
    _, dx = layer.backward(params, saved, y)
    ys, saved = layer.forward(params, many)
    _, dxs = layer.backward(params, saved, ys)
    np.testing.assert_allclose(ys, np.broadcast_to(y, ys.shape), rtol=1e-12, atol=1e-14)
    if not takes_tokens(layer):
        np.testing.assert_allclose(dxs, np.broadcast_to(dx, many.shape), rtol=1e-12, atol=1e-14)


@everywhere(SEQUENCES)
def test_a_missing_gradient_is_zero(be, rng, layer):
    params, x, _ = given(layer, be, rng)
    y, end, saved = layer.forward(params, x, train=False, keep=True)
    grads, _, start = layer.backward(params, saved, None)
    assert all(not np.any(to_numpy(g)) for g in [*grads.values(), *flat(start)])
    found, _, _ = layer.backward(params, saved, None, end)
    expected, _, _ = layer.backward(params, saved, be.xp.zeros_like(y), end)
    same(tuple(found.values()), tuple(expected.values()))


# Time


def past(array, lengths, time, value, more=0):
    """The array with a value past each end, and so many steps more."""
    array = np.moveaxis(to_numpy(array), time, 0)
    longer = np.concatenate((array, array[:more]))
    for b, n in enumerate(lengths):
        longer[n:, b] = value
    return np.moveaxis(longer, 0, time)


@everywhere(SEQUENCES)
@pytest.mark.parametrize("begun", [False, True], ids=["from rest", "from a state"])
def test_what_lies_past_an_end_does_not_matter(be, rng, layer, begun):
    """Not even if it is no number, bit for bit; a sequence without steps keeps its state and passes
    its gradient on.
    """
    time = time_axis(layer)
    params, x, state = given(layer, be, rng)
    dend = state_of(layer, be, rng)
    none = LENGTHS.index(0)
    y, _ = layer(params, x)
    timed = ("y", "dx") if y.shape[:2] == x.shape[:2] else ("dx",)
    dy = rng.standard_normal(y.shape)
    spoiled = past(x, LENGTHS, time, 99 if takes_tokens(layer) else np.nan)
    found = []
    for one, d in (
        (x, dy),
        (
            be.asarray(spoiled, str(spoiled.dtype)),
            past(dy, LENGTHS, time, np.nan) if "y" in timed else dy,
        ),
    ):
        found.append(
            run(layer, params, one, state if begun else None, LENGTHS, be.asarray(d), dend, seed=4)
        )
    agree(*found)
    for name in found[0].keys() & timed:
        assert not np.any(past(found[0][name], LENGTHS, time, 0) - found[0][name])
    for k, (leaf, *arrays) in enumerate(
        zip(leaves(layer.states), flat(dend), flat(state), strict=True)
    ):
        arrays += [found[0][f"dstart {k}"], found[0][f"end {k}"]]
        d, s, dstart, end = (np.take(to_numpy(a), none, len(leaf.before)) for a in arrays)
        if "y" in timed:  # else y is made from the state
            # That of m is a sum over C and n less the same sum.
            np.testing.assert_allclose(
                dstart, d, rtol=1e-9 if leaf.name == "m" else 0, err_msg=leaf.name
            )
        np.testing.assert_array_equal(end, s if begun else np.full_like(s, leaf.rest))


def leaves(states):
    return [one for leaf in states for one in ([leaf] if isinstance(leaf, Leaf) else leaves(leaf))]


@everywhere([layer for layer in TABLE if steps(layer)])
def test_steps_are_the_whole_sequence(be, rng, layer):
    """From rest, as text and forecasts are made, and from a state, with a pass over the rest behind
    them.
    """
    time = time_axis(layer)
    last = getattr(layer, "last", False)
    params, x, state = given(layer, be, rng, 6)
    for before in (None, state):
        y, end = layer(params, x, before)
        found = []
        state = before
        for t in range(4):
            one, state = layer.step(params, x[:, t, ...] if time else x[t, ...], state)
            found.append(to_numpy(one))
        rest, state = layer(params, x[:, 4:, ...] if time else x[4:, ...], state)
        whole = (
            to_numpy(rest)
            if last
            else np.concatenate((np.stack(found, time), to_numpy(rest)), time)
        )
        np.testing.assert_allclose(whole, to_numpy(y), rtol=1e-9, atol=1e-11)
        for a, b in zip(flat(state), flat(end), strict=True):
            np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-9, atol=1e-11)


@everywhere(TABLE)
def test_inference_is_forward_without_masks(be, rng, layer):
    """y and the state, from rest and from a state; nothing else is returned."""
    params, x, state = given(layer, be, rng)
    if not through_time(layer):
        same(layer(params, x), layer.forward(params, x)[0])
        return
    for before, lengths in (
        (None, None),
        (state, LENGTHS),
        (state, be.asarray(np.array(LENGTHS), "int64")),
    ):
        *expected, saved = layer.forward(params, x, before, train=False, lengths=lengths)
        assert saved is None
        same(layer(params, x, before, lengths=lengths), tuple(expected))
    same(layer(params, x, state, lengths=LENGTHS), tuple(expected))


@pytest.mark.parametrize("layer", **numbered(SEQUENCES))
def test_a_missing_state_is_the_one_before_the_first_step(rng, layer):
    """None, None in place of any part, and a list instead of a tuple."""
    params, x, _ = given(layer, make_backend("numpy"), rng)
    expected = layer(params, x)
    y, _, saved = layer.forward(params, x, train=False, keep=True)
    grads, *_ = layer.backward(params, saved, y)
    nothing = [None] * len(layer.states)
    for some in (nothing, tuple(nothing)):
        same(layer(params, x, some), expected)
        same(tuple(layer.backward(params, saved, y, some)[0].values()), tuple(grads.values()))


@pytest.mark.parametrize("layer", **numbered(TABLE))
def test_what_is_given_and_returned_is_the_callers(rng, layer):
    """Changed in place, it changes no gradient."""
    be = xlstm.backend("numpy", dtype="float64")
    params, x, state = given(layer, be, rng)
    found = []
    for spoil in (False, True):
        before = tuple(np.array(a) for a in flat(state))
        if not through_time(layer):
            y, saved = layer.forward(params, x)
            found.append(layer.backward(params, saved, np.array(y)))
            continue
        y, end, saved = layer.forward(params, x, like(state, iter(before)), train=False, keep=True)
        dy = np.array(y)
        dend = like(end, iter([np.array(a) for a in flat(end)]))
        if spoil:
            for a in (*before, *flat(end)):
                a[...] = 7
        found.append(layer.backward(params, saved, dy, dend))
    for one, other in zip(
        *(flat((tuple(grads.values()), *rest)) for grads, *rest in found), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def like(state, arrays):
    """The next arrays, in tuples as those of a state are."""
    return tuple(like(part, arrays) if isinstance(part, tuple) else next(arrays) for part in state)


# Seeds and dtypes


@everywhere([layer for layer in SEQUENCES if layer.random])
def test_masks_come_from_the_seed_alone(be, rng, layer):
    """They are NumPy's on every backend."""
    params, x, state = given(layer, make_backend("numpy"), rng, 6, 8)
    expected = run(layer, params, x, state, seed=1)
    state = like(state, map(be.asarray, flat(state)))
    params = {name: be.asarray(p) for name, p in params.items()}
    x = be.asarray(x, str(x.dtype))
    agree(run(layer, params, x, state, seed=1), expected, 1e-10)
    other, still = (
        layer.forward(params, x, state, train=train, seed=2)[0] for train in (True, False)
    )
    assert not np.allclose(to_numpy(other), expected["y"])
    same(still, layer(params, x, state)[0])
    with pytest.raises(ValueError, match="needs a seed"):
        layer.forward(params, x, state)


@everywhere(TABLE)
def test_float32_is_near_float64(be, rng, layer):
    """Within 1e-5 in cells, and in norms of few numbers within what these make of it; all results
    are float32.
    """
    _, x, state = given(layer, make_backend("numpy"), rng, 12)
    params = layer.init(0, "numpy", "float64")
    wide = run(layer, params, x, state, **options_of(layer))

    def narrow(a):
        return be.asarray(a, "float32" if a.dtype == "float64" else "int64")

    params = {name: narrow(p) for name, p in params.items()}
    state = like(state, map(narrow, flat(state)))
    found = run(layer, params, narrow(x), state, dy=narrow(wide["y"]), **options_of(layer))
    assert {a.dtype for a in found.values()} == {np.dtype("float32")}
    agree(found, wide, 1e-5 if isinstance(layer, Recurrent) else 1e-2, largest, least=1.0)


@everywhere(TABLE)
def test_equal_seeds_give_equal_parameters(be, layer):
    for name, array in layer.init(5, be).items():
        assert to_numpy(array).tobytes() == layer.init(5, "numpy", "float64")[name].tobytes()
