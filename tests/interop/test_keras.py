"""Weights from and to Keras 3, as arrays and in files, and through them: outputs equal Keras'."""

import itertools
import os
import tracemalloc
import types
import zipfile

import numpy as np
import pytest

import xlstm
from tests.conftest import later
from xlstm.interop.keras import from_keras, to_keras
from xlstm.models.sequence import SequenceModel

torch = later("torch")
os.environ["KERAS_BACKEND"] = "torch"
keras = later("keras")
h5py = pytest.importorskip("h5py")
# Keras' parameters as NumPy arrays, on its PyTorch backend
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("interpreted"),
]

D = 3
H = 4
T = 6
B = 5
LENGTHS = [4, 6, 1, 6, 3]
KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
ACTIVATIONS = (
    "tanh",
    "sigmoid",
    "relu",
    "linear",
    "hard_sigmoid",
    "elu",
    "selu",
    "softsign",
    "softplus",
)
# Kinds with each direction, with and without a mask and a bias; and each activation.
CASES = [
    *itertools.product(
        [("lstm", {}), ("gru", {}), ("gru", {"reset_after": False}), ("rnn", {})],
        ("forward", "go_backwards", "bidirectional"),
        (None, LENGTHS),
        (True, False),
    ),
    (
        ("lstm", {"recurrent_activation": "hard_sigmoid", "activation": "softsign"}),
        "bidirectional",
        LENGTHS,
        True,
    ),
    (
        ("gru", {"recurrent_activation": "hard_sigmoid", "activation": "elu"}),
        "bidirectional",
        LENGTHS,
        True,
    ),
    *(
        (("rnn", {"activation": name}), "forward", None, True)
        for name in (*ACTIVATIONS, "exponential", "leaky_relu")
    ),
]


def keras_layer(kind, **options):
    return getattr(keras.layers, KINDS[kind])(
        H, return_sequences=True, return_state=True, dtype="float64", **options
    )


def randomised(layer, rng, features=D):
    """Built, with random weights, the bias too."""
    layer.build((None, None, features))
    layer.set_weights([0.3 * rng.standard_normal(w.shape) for w in layer.get_weights()])
    return layer


def host(tensor):
    return tensor.detach().numpy()


def bits(arrays):
    return [(a.shape, a.dtype, a.tobytes()) for a in arrays]


@pytest.mark.parametrize(("layer", "direction", "lengths", "use_bias"), CASES, ids=str)
def test_outputs_and_states_are_kerass(monkeypatch, rng, layer, direction, lengths, use_bias):
    kind, options = layer
    # but for this, Keras' own matrix product is float32 on its PyTorch backend, of float64 too
    monkeypatch.setattr("keras.src.backend.numpy.matmul", torch.matmul)
    inner = keras_layer(
        kind, use_bias=use_bias, go_backwards=direction == "go_backwards", **options
    )
    theirs = randomised(
        (
            keras.layers.Bidirectional(inner, dtype="float64")
            if direction == "bidirectional"
            else inner
        ),
        rng,
    )
    layer, params = from_keras(theirs)
    assert layer.batch_first
    assert layer.reverse == (direction == "go_backwards")
    x = 0.7 * rng.standard_normal((B, T, D))
    mask = None if lengths is None else np.arange(T) < np.array(lengths)[:, None]
    expected, *states = map(
        host, theirs(keras.ops.convert_to_tensor(x, dtype="float64"), mask=mask)
    )
    y, end, _ = layer.forward(params, x, lengths=lengths)
    if direction == "go_backwards":
        expected = expected[:, ::-1]
    there = np.ones((B, T), bool) if mask is None else mask
    # Keras repeats the state before the first step it sees
    if mask is not None and direction == "go_backwards":
        expected = np.where(mask[:, :, None], expected, 0)
    np.testing.assert_allclose(y[there], expected[there], rtol=1e-10, atol=1e-10)
    assert not np.any(y[~there])
    ours = [s[k] for k in range(len(layer.directions)) for s in end]
    for found, their in zip(ours, states, strict=True):
        np.testing.assert_allclose(found, their, rtol=1e-10, atol=1e-10)
    assert bits(to_keras(layer, params)) == bits(theirs.get_weights())


def stack_of(kind, levels, both, use_bias=True, **options):
    """A Keras model of equal layers with a Dense head, with random weights."""
    model = keras.Sequential([keras.Input((None, D))])
    for _ in range(levels):
        layer = getattr(keras.layers, KINDS[kind])(
            H, return_sequences=True, use_bias=use_bias, **options
        )
        model.add(keras.layers.Bidirectional(layer) if both else layer)
    model.add(keras.layers.Dense(2))
    rng = np.random.default_rng(0)
    model.set_weights([0.5 * rng.standard_normal(w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_files(tmp_path, rng, kind, levels, both, use_bias):
    """Keras' files are read, and ours are loaded by Keras, to the same bits and the same
    predictions.
    """
    theirs = stack_of(kind, levels, both, use_bias)
    theirs.save_weights(tmp_path / "their.weights.h5")
    theirs.save(tmp_path / "their.keras")
    recurrent = theirs.get_weights()[:-2]
    expected = from_keras(recurrent, kind, bidirectional=both)
    for source in (
        theirs,
        tmp_path / "their.weights.h5",
        tmp_path / "their.keras",
    ):
        layer, params = from_keras(source)
        assert layer == expected[0]
        assert list(params) == list(layer.shapes)
        assert bits(params.values()) == bits(expected[1].values())
    assert (layer.num_layers, len(layer.directions), layer.bias) == (
        levels,
        2 if both else 1,
        use_bias,
    )
    assert bits(to_keras(layer, params)) == bits(recurrent)

    model = SequenceModel(layer, 2)
    weights = {f"recurrent.{n}": p for n, p in params.items()}
    weights |= {"head.W": rng.standard_normal((2, layer.output_size)).astype("float32")}
    weights |= {"head.b": rng.standard_normal(2).astype("float32")}
    arrays = to_keras(model, weights, tmp_path / "our.weights.h5")
    other = stack_of(kind, levels, both, use_bias)
    other.load_weights(tmp_path / "our.weights.h5")
    assert bits(other.get_weights()) == bits(arrays)
    x = rng.standard_normal((B, T, D)).astype("float32")
    y, _, _ = model.forward(weights, x, train=False)
    np.testing.assert_allclose(host(other(x)), y, rtol=1e-5, atol=1e-5)


def test_nested_and_functional_models(tmp_path):
    """Layers are found in models in models, and by name where there are several."""
    inner = keras.Sequential(
        [keras.Input((None, D)), keras.layers.GRU(H, return_sequences=True, name="inside")]
    )
    x = keras.Input((None, D))
    y = keras.layers.TimeDistributed(keras.layers.Dense(5))(inner(x))
    y = keras.layers.LSTM(H, name="outside", activation="relu", dropout=0.1)(y)
    model = keras.Model(x, keras.layers.Dense(1)(y))
    described = tmp_path / "model.keras"
    plain = tmp_path / "model.weights.h5"
    model.save(described)
    model.save_weights(plain)
    for path, inside, outside in (
        (described, "inside", "outside"),
        (plain, "sequential/gru", "lstm"),
    ):
        layer, params = from_keras(path, name=inside)
        assert layer == xlstm.GRU(D, H, batch_first=True)
        assert bits(to_keras(layer, params)) == bits(inner.get_weights())
        layer, _ = from_keras(path, "lstm", name=outside)
        assert layer.activations == (("sigmoid", "relu", "relu") if path == described else None)
        with pytest.raises(ValueError, match=f"'foo', found .*{outside}"):
            from_keras(path, name="foo")


def test_a_file_in_a_newer_hdf5_format(tmp_path, good):
    with (
        h5py.File(good) as old,
        h5py.File(tmp_path / "new.weights.h5", "w", libver="latest") as new,
    ):
        old.copy("layers", new)
    (layer, params), (again, same) = map(from_keras, (good, tmp_path / "new.weights.h5"))
    assert (again, bits(same.values())) == (layer, bits(params.values()))


def test_what_keras_does_not_have(rng):
    """Two biases become one; layers in reverse are written one by one."""
    layer = xlstm.LSTM(D, H, recurrent_bias=True, batch_first=True)
    params = layer.init(0, "numpy", "float64")
    x = rng.standard_normal((B, T, D))
    again, single = from_keras(to_keras(layer, params), "lstm")
    np.testing.assert_allclose(again(single, x)[0], layer(params, x)[0], rtol=1e-12)
    stack = xlstm.GRU(D, H, 2, reverse=True)
    with pytest.raises(ValueError, match="reverse is True in a stack"):
        to_keras(stack, stack.init(0, "numpy"))


def two_ways(kind):
    """A built layer with another one backwards, of another activation."""
    layer = kind(H)
    other = kind(H, activation="relu", go_backwards=True)
    return randomised(
        keras.layers.Bidirectional(layer, backward_layer=other), np.random.default_rng(0)
    )


K = np.zeros((D, 4 * H))
R = np.zeros((H, 4 * H))
V = np.zeros(4 * H)
GRU = [np.zeros((n, 3 * H)) for n in (D, H)]


@pytest.mark.parametrize(
    ("source", "arguments", "words"),
    [
        ([K, R, V], {"kind": "gru"}, "layer 0: kernel has shape"),
        ([K], {"kind": "lstm"}, "arrays have shapes"),
        (lambda: keras.layers.LSTM(2, activation="gelu"), {}, "activation 'gelu'"),
        (lambda: keras.layers.Bidirectional(keras.layers.LSTM(2), merge_mode="sum"), {}, "merge_mode 'sum'"),
        (lambda: two_ways(keras.layers.SimpleRNN), {}, "backward_layer"),
    ],
)  # fmt: skip
def test_misfits_are_named(source, arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        from_keras(source() if isinstance(source, types.FunctionType) else source, **arguments)


def test_options_of_arrays():
    """The caller tells what arrays do not show; float16 is widened."""
    layer, params = from_keras([a.astype("float16") for a in GRU], "gru", reset_after=False)
    assert layer == xlstm.GRU(D, H, batch_first=True, bias=False, reset_after=False)
    assert params["0.Wx"].dtype == np.float32


@pytest.fixture
def good(tmp_path):
    """A file of one LSTM, to be spoilt."""
    layer = xlstm.LSTM(D, H)
    to_keras(layer, layer.init(0, "numpy"), tmp_path / "good.weights.h5")
    assert from_keras(tmp_path / "good.weights.h5")[0] == xlstm.LSTM(D, H, batch_first=True)
    return tmp_path / "good.weights.h5"


CONFIG = ("config.json", b"{}")
WEIGHTS = ("model.weights.h5", bytes(2**24))


@pytest.mark.parametrize(
    ("entries", "method", "words"),
    [
        ([CONFIG, CONFIG], zipfile.ZIP_STORED, "config.json is there 2 times"),
        ([CONFIG, WEIGHTS], zipfile.ZIP_DEFLATED, "is compressed, which Keras' are not"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_compressed_archives_are_refused(tmp_path, entries, method, words):
    """An entry takes no more memory than the file has bytes."""
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, blob in entries:
            archive.writestr(name, blob)
    tracemalloc.start()
    with pytest.raises(ValueError, match=words):
        from_keras(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**22


def test_a_damaged_heap_is_refused(good):
    """HDF5 would not return."""
    looping = bytearray(good.read_bytes())
    heap = looping.index(b"HEAP")
    free, start = (int.from_bytes(looping[heap + k : heap + k + 8], "little") for k in (16, 24))
    looping[start + free : start + free + 8] = free.to_bytes(8, "little")
    for content, words in (
        (b"garbage", "not a readable HDF5 file"),
        (bytes(looping), "free space loop"),
    ):
        good.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            from_keras(good)


def test_what_is_no_stack_is_not_taken_for_one(tmp_path):
    """A layer between, or layers side by side: their widths fit, but they are no stack."""
    lstm = keras.layers.LSTM
    x = keras.Input((None, H))
    beside = keras.Model(x, keras.layers.Add()([lstm(H)(x), lstm(H)(x)]))
    between = [
        keras.Input((None, D)),
        lstm(H, return_sequences=True),
        keras.layers.Dense(H),
        lstm(H),
    ]
    for model in (keras.Sequential(between), beside):
        model.save(tmp_path / "model.keras")
        for source in (model, tmp_path / "model.keras"):
            with pytest.raises(ValueError, match="the layers form no stack, name one of them"):
                from_keras(source)
    between[2] = keras.layers.Dropout(0.5)
    assert from_keras(keras.Sequential(between))[0] == xlstm.LSTM(D, H, 2, batch_first=True)
