"""Layers, models, what forward saved, and backends are pickled, copied and deep-copied; the copies work."""

import copy
import pickle

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.registry import EVERY, alone, input_of, make
from xlstm.arrays.convert import to_numpy
from xlstm.layers.sequence import SequenceLayer

WAYS = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def forward(layer, params, x):
    """y and what is saved."""
    options = {"seed": 1, "lengths": [3, 1, 2]} if isinstance(layer, SequenceLayer) else {}
    y, *_, saved = layer.forward(params, x, **options)
    return y, saved


OPTIONS = [make(kind, options) for kind in ("LSTM", "GRU", "RNN") for options in alone(kind)]


@pytest.mark.parametrize("layer", EVERY, ids=lambda layer: str(layer)[:60])
def test_a_copy_goes_on_where_the_layer_was(be, rng, layer):
    """Also with what forward saved, for a backward pass of the copy."""
    check(be, rng, layer)


@pytest.mark.parametrize("layer", OPTIONS, ids=lambda layer: str(layer)[:60])
def test_copies_have_all_options(rng, layer):
    check(make_backend("numpy"), rng, layer)


def check(be, rng, layer):
    params, x = layer.init(0, be), input_of(layer, be, rng)
    y, saved = forward(layer, params, x)
    copies = {way: (copied(layer), copied(saved)) for way, copied in WAYS.items()}
    expected, *_ = layer.backward(params, saved, y)
    for way, (again, kept) in copies.items():
        assert again == layer, way
        assert hash(again) == hash(layer), way
        found, *_ = again.backward(params, kept, y)
        assert list(found) == list(expected), way
        for name, grad in expected.items():
            np.testing.assert_array_equal(to_numpy(found[name]), to_numpy(grad), err_msg=f"{way} {name}")
        np.testing.assert_array_equal(to_numpy(forward(again, params, x)[0]), to_numpy(y), err_msg=way)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_by_name_is_in_the_copy(rng, way):
    layer = xlstm.LSTM(2, 3, 2, bidirectional=True)
    _, saved = forward(layer, layer.init(0, "numpy"), rng.standard_normal((3, 3, 2)).astype("float32"))
    again = WAYS[way](saved)
    for name in ("0", "0.reverse", "1", "1.reverse"):
        for values in ("gates", "c", "h"):
            np.testing.assert_array_equal(getattr(again[name], values), getattr(saved[name], values))


@pytest.mark.parametrize("way", WAYS)
def test_backends_are_copied(be, way):
    again = WAYS[way](be)
    assert again == be
    assert again.xp is be.xp
    np.testing.assert_array_equal(to_numpy(again.asarray([1.0, 2.0])), [1.0, 2.0])
    assert again.synchronize() is None
    assert WAYS[way](make_backend("numpy")) == make_backend("numpy")
