"""Our layers as layers of Keras: trained on PyTorch, saved, and loaded and trained on JAX in
another process.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import xlstm
from tests.conftest import ROOT, later
from tests.registry import EVERY, input_of, numbered
from xlstm.interop.keras import layer as keras_layer
from xlstm.layers.sequence import SequenceLayer

torch = later("torch")
os.environ["KERAS_BACKEND"] = "torch"
keras = later("keras")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("interpreted"),
]

B = 8
T = 6
D = 3
H = 4
ON_JAX = """
import sys
import keras
import numpy as np
import xlstm.interop.keras_layer

assert keras.config.backend() == "jax"
net, data = keras.models.load_model(sys.argv[1], compile=False), np.load(sys.argv[2])
net.compile(keras.optimizers.Adam(0.02), "mse")
np.testing.assert_allclose(net(data["x"]), data["y"], rtol=1e-5, atol=1e-6)
first, second = net.fit(data["x"], data["target"], epochs=2, verbose=0).history["loss"]
assert second < first
"""


@pytest.mark.parametrize(
    "layer", **numbered([layer for layer in EVERY if isinstance(layer, SequenceLayer)])
)
def test_values_and_gradients_are_ours(rng, layer):
    """With time or batch first; x of Keras is batch first."""
    made = keras_layer(layer, seed=3, dtype="float64", name="ours")
    numpy = xlstm.backend("numpy", dtype="float64")
    params = layer.init(3, numpy)
    x = input_of(layer, numpy, rng)
    for name, variable in made.params.items():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), params[name])
    assert [weight.path for weight in made.weights] == [
        f"ours/{name.replace('.', '_')}" for name in params
    ]
    expected, _, saved = layer.forward(params, x, train=False, keep=True)
    grads, *_ = layer.backward(params, saved, expected)

    def ordered(array):
        return (
            array
            if layer.batch_first or (array.ndim < 3 and array.dtype == np.float64)
            else array.swapaxes(0, 1)
        )

    y = made(torch.tensor(ordered(x)))
    assert tuple(y.shape) == made.compute_output_shape(ordered(x).shape)
    np.testing.assert_allclose(y.detach().numpy(), ordered(expected), rtol=1e-12, atol=1e-12)
    (y**2 / 2).sum().backward()
    for name, grad in grads.items():
        np.testing.assert_allclose(
            made.params[name].value.grad.numpy(), grad, rtol=1e-10, atol=1e-12
        )


def test_training_saving_and_loading(tmp_path, rng):
    """Masks are drawn while training alone, others at each call."""
    x = rng.standard_normal((32, T, D)).astype("float32")
    target = x.sum((1, 2), keepdims=True)[..., 0]
    layer = xlstm.LSTM(D, 16, 2, dropout=0.3, activations=("sigmoid", "tanh", "tanh"))
    ours = keras_layer(layer, name="ours")
    net = keras.Sequential(
        [keras.Input((None, D)), ours, keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1)]
    )
    net.compile(keras.optimizers.Adam(0.02), "mse")
    losses = net.fit(x, target, epochs=3, verbose=0, shuffle=False).history["loss"]
    assert losses[-1] < losses[0]
    drawn = [keras.ops.convert_to_numpy(ours(x, training=True)) for _ in range(2)]
    assert not np.array_equal(*drawn)
    path = tmp_path / "net.keras"
    data = tmp_path / "data.npz"
    net.save(path)
    y = net.predict(x, verbose=0)
    again = keras.models.load_model(path)
    np.testing.assert_array_equal(again.predict(x, verbose=0), y)
    assert again.get_layer("ours").layer == layer
    pytest.importorskip("jax")
    np.savez(data, x=x, y=y, target=target)
    environment = {**os.environ, "KERAS_BACKEND": "jax", "XLSTM_COMPILE": "0"}
    command = [sys.executable, "-c", ON_JAX, str(path), str(data)]
    found = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def subclassed(*layers):
    """A model that calls layers one after the other, whose shapes Keras does not know before."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.all = layers

        def call(self, x):
            for layer in self.all:
                x = layer(x)
            return x

    return Model()


def test_summary_of_a_subclassed_model():
    net = subclassed(keras_layer(xlstm.LSTM(D, H)))
    lines = []
    net(np.ones((B, T, D), "float32"))
    net.summary(print_fn=lines.append)
    assert f"({B}, {T}, {H})" in "".join(lines)


def test_a_mask_is_refused():
    """A model whose shapes are known is refused as it is made, another one at its first call."""
    with pytest.raises(
        ValueError, match="x of ours has a mask, expected none: leave out Masking and mask_zero"
    ):
        keras.Sequential(
            [
                keras.Input((T, D)),
                keras.layers.Masking(),
                keras_layer(xlstm.LSTM(D, H), name="ours"),
            ]
        )
    net = subclassed(
        keras.layers.Embedding(5, D, mask_zero=True), keras_layer(xlstm.LSTM(D, H), name="ours")
    )
    with pytest.raises(ValueError, match="x of ours has a mask"):
        net(np.ones((B, T), "int32"))


HUGE = {"layer": "LSTM", "options": {"input_size": D, "hidden_size": 10**8}}
DEEP = {"layer": "LSTM", "options": {"input_size": D, "hidden_size": 1, "num_layers": 60_000}}


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("null", "layer is"),
        (None, "layer is"),
        (json.dumps(HUGE), "no memory"),
        (json.dumps(DEEP), "num_layers is 60000, expected a model of at most 4096 arrays"),
    ],
)
def test_configurations_that_describe_no_layer(description, words):
    made = keras_layer(xlstm.LSTM(D, H))
    with pytest.raises((TypeError, ValueError), match=words):
        type(made).from_config({**made.get_config(), "layer": description})


def test_misuse_is_named(monkeypatch):
    with pytest.raises(ValueError, match="the dtype policy is mixed_bfloat16"):
        keras_layer(xlstm.LSTM(D, H), dtype="mixed_bfloat16")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    code = "import xlstm, xlstm.interop.keras as bridge; bridge.layer(xlstm.LSTM(3, 4))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "interop.keras.layer: the backend of Keras is tensorflow" in found.stderr
