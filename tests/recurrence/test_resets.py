"""Sequences with resets: each part gives what it gives as a sequence of its own."""

import itertools

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.layers.test_contract import LENGTHS, SEQUENCES, everywhere, leaves, like, same
from tests.registry import (
    EVERY,
    agree,
    check,
    flat,
    given,
    state_of,
    steps,
    takes_tokens,
    through_time,
    time_axis,
)
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.groups import Part
from xlstm.arrays.random import of_part
from xlstm.layers.module import masks
from xlstm.models import TiRex2

T = 5
RESETS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], bool
)  # of three sequences, the first one from its first step on
KEPT = {"train": False, "keep": True}
QUANTITIES = [layer for layer in EVERY if through_time(layer) and not takes_tokens(layer)]


def parts_of(lengths):
    """Sequence, first step, end, and whether it begins at rest, of every part."""
    parts = []
    for b, end in enumerate([T] * 3 if lengths is None else lengths):
        cuts = [0, *(t for t in range(1, end) if RESETS[t, b]), end]
        for t0, t1 in itertools.pairwise(cuts):
            parts.append((b, t0, t1, t0 > 0 or (end > 0 and RESETS[0, b])))
    return parts


def columns(state, layer, places, rest):
    """States with the sequences at places, or with None what is before the first step, or zeros."""
    taken = []
    for array, leaf in zip(flat(state), leaves(layer.states), strict=True):
        moved = np.moveaxis(to_numpy(array), len(leaf.before), 0)
        none = np.full_like(moved[0], leaf.rest if rest else 0.0)
        picked = np.stack([none if b is None else moved[b] for b in places])
        taken.append(np.moveaxis(picked, 0, len(leaf.before)))
    return taken


def cut(array, parts, axis):
    """(T, B, ...) as a batch of parts, time first."""
    rows = np.moveaxis(to_numpy(array), axis, 0)
    batch = np.zeros((T, len(parts), *rows.shape[2:]), rows.dtype)
    batch[:] = rows[0, 0]  # of which smoothing takes the logarithm
    for k, (b, t0, t1, _) in enumerate(parts):
        batch[: t1 - t0, k] = rows[t0:t1, b]
    return np.moveaxis(batch, 0, axis)


def joined(batch, parts, axis):
    """The way back, with zeros past the ends."""
    rows = np.moveaxis(to_numpy(batch), axis, 0)
    array = np.zeros((T, 3, *rows.shape[2:]), rows.dtype)
    for k, (b, t0, t1, _) in enumerate(parts):
        array[t0:t1, b] = rows[: t1 - t0, k]
    return np.moveaxis(array, 0, axis)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@everywhere(SEQUENCES)
def test_parts_are_sequences(be, layer, rng, lengths):
    axis = time_axis(layer)
    resets = RESETS.T if axis else RESETS
    params, x, state = given(layer, be, rng, T)
    dend = state_of(layer, be, rng)
    y, end, saved = layer.forward(params, x, state, lengths=lengths, resets=resets, **KEPT)
    dy = rng.standard_normal(y.shape)
    grads, dx, start = layer.backward(params, saved, be.asarray(dy), dend)
    each, *_ = layer.backward(params, saved, be.asarray(dy), dend, per_sequence=True)

    parts = parts_of(lengths)
    last = [k for k, part in enumerate(parts) if part[0] != (parts[k + 1 :] or [[3]])[0][0]]
    first = [k for k, part in enumerate(parts) if part[1] == 0]
    began = columns(state, layer, [None if part[3] else part[0] for part in parts], rest=True)
    ended = [part[0] if k in last else None for k, part in enumerate(parts)]
    began, ends = (
        like(state, map(be.asarray, arrays))
        for arrays in (began, columns(dend, layer, ended, rest=False))
    )
    at_ends = dy.ndim == 2
    dys = (
        np.stack([np.zeros(dy.shape[1]) if b is None else dy[b] for b in ended])
        if at_ends
        else cut(dy, parts, axis)
    )
    spans = [part[2] - part[1] for part in parts]
    ys, after, kept = layer.forward(
        params, be.asarray(cut(x, parts, axis)), began, lengths=spans, **KEPT
    )
    whole, dxs, before = layer.backward(params, kept, be.asarray(dys), ends)
    alone, *_ = layer.backward(params, kept, be.asarray(dys), ends, per_sequence=True)
    sums = {name: np.zeros((3, *g.shape)) for name, g in grads.items()}
    for name, g in alone.items():
        np.add.at(sums[name], [part[0] for part in parts], to_numpy(g))
    came = {"y": y, "end": flat(end), "start": flat(start), **grads}
    expected = {
        "y": to_numpy(ys)[last] if at_ends else joined(ys, parts, axis),
        "end": columns(after, layer, last, rest=False),
        "start": columns(before, layer, [None if parts[k][3] else k for k in first], rest=False),
        **whole,
    }
    if dx is not None:
        came["dx"] = dx
        expected["dx"] = joined(dxs, parts, axis)
    for name in ("end", "start"):
        for k, pair in enumerate(zip(came.pop(name), expected.pop(name), strict=True)):
            came[f"{name} {k}"], expected[f"{name} {k}"] = pair
    agree(came, expected, 1e-11, least=1)
    agree(each, sums, 1e-11, least=1)


@pytest.mark.parametrize("compiled", ["0", "1"])
@pytest.mark.parametrize("layer", [layer for layer in EVERY if through_time(layer)], ids=repr)
def test_parts_have_the_bits_of_calls(monkeypatch, rng, layer, compiled):
    monkeypatch.setenv("XLSTM_COMPILE", compiled)
    axis = time_axis(layer)
    resets = RESETS.T if axis else RESETS
    be = make_backend("numpy")
    params, x, state = given(layer, be, rng, T)
    dstate = state_of(layer, be, rng)
    options = {"lengths": LENGTHS, "batch_invariant": True}
    y, end, saved = layer.forward(params, x, state, resets=resets, **options, **KEPT)
    dy = rng.standard_normal(y.shape)
    grads, dx, _ = layer.backward(params, saved, dy, dstate, per_sequence=True)
    sums = {name: np.zeros_like(g) for name, g in grads.items()}
    for b, t0, t1, rests in parts_of(LENGTHS):
        here = (b, slice(t0, t1)) if axis else (slice(t0, t1), b)
        start = None if rests else like(state, iter(columns(state, layer, [b], rest=True)))
        part = np.ascontiguousarray(np.expand_dims(x[here], 1 - axis))
        if not part.size:
            continue
        alone, after, kept = layer.forward(params, part, start, **KEPT)
        if y.ndim == 2:
            d = dy[b : b + 1] if t1 == LENGTHS[b] else np.zeros_like(alone)
        else:
            np.testing.assert_array_equal(np.expand_dims(y[here], 1 - axis), alone)
            d = np.ascontiguousarray(np.expand_dims(dy[here], 1 - axis))
        dend = None
        if t1 == LENGTHS[b]:
            same(tuple(columns(end, layer, [b], rest=True)), tuple(flat(after)))
            dend = like(end, iter(columns(dstate, layer, [b], rest=True)))
        each, dpart, _ = layer.backward(params, kept, d, dend, per_sequence=True)
        if dx is not None:
            np.testing.assert_array_equal(np.expand_dims(dx[here], 1 - axis), dpart)
        for name, g in each.items():
            sums[name][b] += g[0]
    some = np.array(LENGTHS) > 0
    same(tuple(g[some] for g in grads.values()), tuple(g[some] for g in sums.values()))


@pytest.mark.parametrize("layer", [layer for layer in EVERY if through_time(layer)], ids=repr)
def test_gradient(rng, layer):
    """With all masks."""
    resets = RESETS.T if time_axis(layer) else RESETS
    check(layer, *given(layer, make_backend("numpy"), rng, T), LENGTHS, resets=resets)


@everywhere([layer for layer in EVERY if through_time(layer) and steps(layer)])
def test_a_step_is_reset(be, layer, rng):
    params, x, state = given(layer, be, rng, 1)
    resets = np.array([True, False, True])
    y, end = layer(params, x, state, resets=resets[:, None] if time_axis(layer) else resets[None])
    step = x[:, 0, ...] if time_axis(layer) else x[0, ...]
    found = layer.step(params, step, state, resets=be.asarray(resets, "bool"))
    y = y[:, 0, ...] if time_axis(layer) and y.ndim > 2 else y[0, ...] if y.ndim > 2 else y
    agree(
        {str(k): a for k, a in enumerate(flat(found))},
        {str(k): a for k, a in enumerate(flat((y, end)))},
        1e-12,
    )


def test_places_of_documents_are_resets(be, rng):
    layer = xlstm.xLSTMStack(4, 2, [1], 2)
    params, x, state = given(layer, be, rng, T, 1)
    resets = np.array([[False], [False], [True], [False], [True]])
    same(
        layer(params, x, state, cu_seqlens=[0, 2, 2, 4, 5]), layer(params, x, state, resets=resets)
    )


def test_no_cut_changes_nothing(be, rng):
    layer = xlstm.LSTM(2, 3, 2, bidirectional=True)
    params, x, state = given(layer, be, rng, T)
    same(layer(params, x, state, resets=np.zeros((T, 3), bool)), layer(params, x, state))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"resets": RESETS[:4]}, ValueError, r"shape \(4, 3\), expected \(T, B\) = \(5, 3\)"),
        ({"resets": RESETS.astype(int)}, TypeError, "dtype int64, expected booleans"),
        ({"resets": "no"}, TypeError, "dtype <U2"),
        ({"cu_seqlens": [0, 5]}, ValueError, "expected B of 1, got 3"),
        ({"cu_seqlens": [0, 5], "resets": RESETS}, ValueError, "exclude one another"),
    ],
)
def test_wrong_resets(be, rng, options, error, match):
    layer = xlstm.LSTM(2, 3)
    params, x, _ = given(layer, be, rng, T)
    with pytest.raises(error, match=f"LSTM: .*{match}"):
        layer(params, x, **options)


@pytest.mark.parametrize("places", [[1, 5], [0, 4], [0, 3, 2, 5], [5], [0.0, 5.0], [[0, 5]]])
def test_wrong_places_of_documents(be, rng, places):
    layer = xlstm.GRU(2, 3)
    params, x, _ = given(layer, be, rng, T, 1)
    with pytest.raises((TypeError, ValueError), match="GRU: cu_seqlens "):
        layer(params, x, cu_seqlens=places)


def test_groups_exclude_resets(rng):
    model = next(layer for layer in EVERY if isinstance(layer, TiRex2))
    params, x, _ = given(model, make_backend("numpy"), rng, T)
    with pytest.raises(ValueError, match="groups"):
        model.forward(params, x, resets=RESETS.T, groups=[0, 0, 1])


def test_ranks_draw_the_masks_of_the_whole_batch(rng):
    """Also one whose sequences have no reset, beside lengths."""
    layer = xlstm.LSTM(2, 3, 2, dropout=0.4, zoneout=0.4, recurrent_dropout=0.4)
    params, x, _ = given(layer, make_backend("numpy"), rng, T, 4)
    resets = np.zeros((T, 4), bool)
    resets[2, 3] = True
    lengths = np.array([5, 3, 4, 5])
    whole, *_ = layer.forward(params, x, lengths=lengths, resets=resets, seed=7)
    for own in (slice(0, 2), slice(2, 4)):
        seed = of_part(masks("test", 7), Part(1.0, 4, own, lengths))
        options = {"lengths": lengths[own], "resets": resets[:, own], "seed": seed}
        y, *_ = layer.forward(params, x[:, own], **options)
        np.testing.assert_allclose(y, whole[:, own], rtol=1e-12)


@pytest.mark.parametrize("layer", QUANTITIES, ids=repr)
def test_nan_stays_in_its_sequence(rng, layer):
    axis = time_axis(layer)
    params, x, _ = given(layer, make_backend("numpy"), rng, T)
    x = x.copy()
    x[0, 0] = np.nan
    resets = RESETS.T if axis else RESETS
    with np.errstate(invalid="ignore"):
        y, _, saved = layer.forward(params, x, lengths=[5, 3, 4], resets=resets, **KEPT)
        grads, dx, _ = layer.backward(params, saved, np.ones_like(y), per_sequence=True)
    assert all(np.all(np.isfinite(g[1:])) for g in grads.values())
    assert np.all(np.isfinite(dx[1:] if axis else dx[:, 1:]))
