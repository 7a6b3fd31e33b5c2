"""Our layers as functions of JAX: values and gradients are NumPy's, under every transformation of JAX."""

import gc

import numpy as np
import pytest

import xlstm
from tests.conftest import later
from xlstm.interop.bridge import Bridge
from xlstm.interop.jax import layer as jax_layer
from xlstm.layers.module import Saved
from xlstm.models.sequence import SequenceModel

jax = later("jax")
T, B, D, H = 6, 3, 3, 4
LSTM = xlstm.LSTM(D, H)
DROPPING = xlstm.LSTM(D, H, 2, dropout=0.5)
LSTM_STATE = (0.3 * np.ones((1, B, H)), -0.2 * np.ones((1, B, H)))
CASES = [
    (LSTM, {"state": LSTM_STATE}),
    (LSTM, {"state": (LSTM_STATE[0], None)}),
    (xlstm.GRU(D, H, 2, bidirectional=True, batch_first=True), {"lengths": np.array([6, 0, 2])}),
    (DROPPING, {"seed": 7}),
    (xlstm.xLSTMStack(H, 2, slstm_at=[1], num_heads=2), {}),
    (SequenceModel(xlstm.mLSTM(D, H, num_heads=2), 2, last=True), {}),
]


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def close(found, expected):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def inputs(layer, rng):
    """Parameters and x."""
    params = layer.init(0, "numpy", "float64")
    shape = (B, T) if layer.batch_first else (T, B)
    return params, rng.standard_normal((*shape, layer.input_size))


def loss_of(function, *arguments, **options):
    """Half the sum of squares of y and of the final state: its gradient by them are they themselves."""
    return sum((a**2).sum() for a in jax.tree.leaves(function(*arguments, **options))) / 2


@pytest.mark.parametrize(("layer", "options"), CASES, ids=lambda case: type(case).__name__)
def test_values_and_gradients_are_numpys(rng, layer, options):
    params, x = inputs(layer, rng)
    state = options.get("state")
    y, end, saved = layer.forward(params, x, **options)
    grads, dx, start = layer.backward(params, saved, y, end)
    given = {name: value for name, value in options.items() if name != "state"}
    run = jax_layer(layer)
    close(run(params, x, state, **given), (y, end))
    gradient = jax.jit(jax.grad(lambda *arguments: loss_of(run, *arguments, **given), argnums=(0, 1, 2)))
    expected = None if state is None else tuple(None if s is None else d for s, d in zip(state, start, strict=True))
    close(gradient(params, x, state), (grads, dx, expected))


def test_seeds_and_inference(rng):
    params, x = inputs(DROPPING, rng)
    run, key = jax_layer(DROPPING), jax.random.key(3)
    close(run(params, x, train=False), DROPPING(params, x))
    close(run(params, x, seed=key), run(params, x, seed=jax.random.key_data(key)))
    several = jax.vmap(lambda seed: run(params, x, seed=seed)[0])(np.array([3, 5]))
    close(several, np.stack([DROPPING.forward(params, x, seed=seed)[0] for seed in (3, 5)]))


def test_tokens_have_no_gradient():
    model = xlstm.xLSTMLanguageModel(xlstm.LSTM(H, H), 7)
    params, tokens = model.init(0, "numpy", "float64"), np.array([[1, 2, 3], [4, 5, 6]])
    run = jax_layer(model)
    y, end, saved = model.forward(params, tokens)
    close(jax.jit(jax.grad(lambda p: loss_of(run, p, tokens)))(params), model.backward(params, saved, y, end)[0])


def test_transformations(rng):
    """Batches of x, states and upstream gradients, rematerialisation, parts in a scan, two passes back."""
    params, x = inputs(LSTM, rng)
    run, xs = jax_layer(LSTM), rng.standard_normal((5, T, B, D))
    hs = rng.standard_normal((5, 1, B, H))
    close(jax.vmap(run, in_axes=(None, 0))(params, xs)[0], np.stack([LSTM(params, one)[0] for one in xs]))
    found = jax.jit(jax.vmap(run, in_axes=(None, None, (0, None))))(params, x, (hs, LSTM_STATE[1]))
    close(found[0], np.stack([LSTM(params, x, (h, LSTM_STATE[1]))[0] for h in hs]))

    def loss(params, x):
        return (run(params, x)[0] ** 2).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    each = [gradient(params, one) for one in xs]
    close(jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(params, xs), jax.tree.map(lambda *one: np.stack(one), *each))
    close(jax.grad(jax.checkpoint(loss), argnums=(0, 1))(params, x), gradient(params, x))

    def in_parts(params, x):
        def part(state, x):
            y, state = run(params, x, state)
            return state, (y**2).sum()

        return jax.lax.scan(part, jax.tree.map(np.zeros_like, LSTM_STATE), x.reshape(3, T // 3, B, D))[1].sum()

    close(jax.jit(jax.grad(in_parts, argnums=(0, 1)))(params, x), gradient(params, x))


def test_what_forward_kept_is_used_once_and_only_the_last_is_there(monkeypatch, rng):
    """A backward pass that finds nothing runs the forward pass again; one that never comes leaves one value."""
    passes, forward = [], Bridge.forward

    def counted(*arguments, **options):
        passes.append(options["keep"])
        return forward(*arguments, **options)

    def alive():
        gc.collect()
        return sum(type(one) is Saved and one.layer is layer for one in gc.get_objects())

    monkeypatch.setattr(Bridge, "forward", counted)
    layer = xlstm.LSTM(D, H)
    params, x = inputs(layer, rng)
    run = jax_layer(layer)
    step = jax.jit(jax.value_and_grad(lambda p: loss_of(run, p, x)))
    _, expected = step(params)
    jax.block_until_ready(expected)
    assert passes == [True]
    assert alive() == 0
    several = [jax.vjp(lambda p: loss_of(run, p, x), params)[1] for _ in range(3)]
    assert passes == 4 * [True]
    assert alive() == 1
    for vjp in several:
        close(vjp(1.0)[0], expected)
    assert passes == 6 * [True]
    assert alive() == 0


def test_misuse_is_named(rng):
    params, x = inputs(LSTM, rng)
    run, drop, (xs, _) = jax_layer(LSTM), jax_layer(DROPPING), inputs(DROPPING, rng)
    two = jax.tree.map(lambda a: np.stack([a, a]), params)

    def slope(x):
        return jax.grad(lambda x: (run(params, x)[0] ** 2).sum())(x).sum()

    bad = [
        (lambda: jax_layer(xlstm.Linear(D, H)), TypeError, r"interop.jax.layer: layer is .*, expected one that goes"),
        (lambda: jax.vmap(run, in_axes=(0, None))(two, x), ValueError, "LSTM: vmap is over parameters, expected in_"),
        (lambda: jax.grad(slope)(x), NotImplementedError, "LSTM: a second derivative is asked for, expected first"),
        (lambda: run(params, x[0]), ValueError, r"LSTM: x has shape \(3, 3\), expected \(T, B, D\)"),
        (lambda: run(params, x.astype("float32")), TypeError, "LSTM: .* has dtype .*, expected the same"),
        (lambda: run(params, x, lengths=[9, 1, 1]), ValueError, r"LSTM: lengths\[0\] is 9, expected 0 to T = 6"),
        (lambda: drop(xs, x), ValueError, "LSTM: masks are drawn while training, so forward needs a seed"),
        (lambda: drop(xs, x, seed=0.5), TypeError, "LSTM: seed has dtype float64, expected a whole number or a key"),
    ]
    for call, error, words in bad:
        with pytest.raises(error, match=f"^{words}"):
            call()
