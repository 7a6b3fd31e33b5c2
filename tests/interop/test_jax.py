"""Our layers as functions of JAX: values and gradients are NumPy's, under every transformation of
JAX.
"""

import weakref

import numpy as np
import pytest

import xlstm
from tests.conftest import later
from tests.registry import EVERY, input_of, run
from xlstm.interop.bridge import Bridge
from xlstm.interop.jax import layer as jax_layer
from xlstm.layers.sequence import SequenceLayer

jax = later("jax")
pytestmark = pytest.mark.usefixtures("interpreted")
T = 6
B = 3
D = 3
H = 4
LSTM = xlstm.LSTM(D, H)
DROPPING = xlstm.LSTM(D, H, 2, dropout=0.5)
LSTM_STATE = (0.3 * np.ones((1, B, H)), -0.2 * np.ones((1, B, H)))


CASES = [
    (LSTM, {"state": LSTM_STATE}),
    (LSTM, {"state": (LSTM_STATE[0], None)}),
    (xlstm.GRU(D, H, 2, bidirectional=True, batch_first=True), {"lengths": np.array([6, 0, 2])}),
    (LSTM, {"state": LSTM_STATE, "resets": np.eye(T, B, -2) > 0}),
    (DROPPING, {"seed": 7}),
    *((layer, {"seed": 3}) for layer in EVERY if isinstance(layer, SequenceLayer)),
]


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def close(found, expected):
    found = jax.tree.leaves(found)
    expected = jax.tree.leaves(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def inputs(layer, rng):
    """Parameters and x."""
    numpy = xlstm.backend("numpy", dtype="float64")
    return layer.init(0, numpy), input_of(layer, numpy, rng, T, B)


def loss_of(function, *arguments, **options):
    """Half the sum of squares of y and of the final state: its gradient with respect to them is
    they themselves.
    """
    return sum((a**2).sum() for a in jax.tree.leaves(function(*arguments, **options))) / 2


@pytest.mark.parametrize(("layer", "options"), CASES, ids=lambda case: type(case).__name__)
def test_values_and_gradients_are_numpys(rng, layer, options):
    params, x = inputs(layer, rng)
    state = options.get("state")
    given = {name: value for name, value in options.items() if name != "state"}
    found = run(layer, params, x, **options)
    ours = jax_layer(layer)
    end, start = (
        [a for name, a in found.items() if name.startswith(part)] for part in ("end ", "dstart ")
    )
    traced = jax.jit(lambda options: ours(params, x, state, **options))
    close(traced(given), [found["y"], *end])
    grads = [{name: found[f"d{name}"] for name in params}]
    if "dx" in found:  # tokens have none
        grads.append(found["dx"])
    if state:
        grads += [d for s, d in zip(state, start, strict=True) if s is not None]
    wanted = (0, 1, 2) if "dx" in found else (0, 2)
    gradient = jax.jit(
        jax.grad(lambda *arguments: loss_of(ours, *arguments, **given), argnums=wanted)
    )
    close(gradient(params, x, state), grads)


@pytest.mark.parametrize(("layer", "options"), CASES, ids=lambda case: type(case).__name__)
def test_derivatives_of_both_passes_are_ours(rng, layer, options):
    params, x = inputs(layer, rng)
    direction = {name: rng.standard_normal(p.shape) for name, p in params.items()}

    def ours(params):
        return jax_layer(layer)(params, x, **options)

    def gradients(params, dy, dend):
        saved = layer.forward(params, x, **options)[2]
        return layer.backward(params, saved, dy, dend)[0]

    outputs, tangent = xlstm.jvp(
        lambda p: layer.forward(p, x, **options)[:2], (params,), (direction,)
    )
    derived, push = jax.linearize(ours, params)
    close((derived, push(direction)), (outputs, tangent))
    gradient = jax.grad(lambda p: loss_of(ours, p))
    derived = jax.jit(lambda p, v: jax.jvp(gradient, (p,), (v,))[1])(params, direction)
    # JAX adds these terms, which nearly cancel in a deep stack
    curvature = xlstm.jvp(lambda p: gradients(p, *outputs), (params,), (direction,))[1]
    gauss_newton = gradients(params, *tangent)
    close(derived, {name: curvature[name] + gauss_newton[name] for name in params})


def scanned(params, x):
    """The LSTM as a scan of JAX."""

    def step(state, x):
        h, c = state
        z = x @ params["0.Wx"].T + h @ params["0.Wh"].T + params["0.b"]
        i, o, f, g = jax.numpy.split(z, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
        h = jax.nn.sigmoid(o) * jax.numpy.tanh(c)
        return (h, c), h

    end, y = jax.lax.scan(step, (jax.numpy.zeros((B, H)),) * 2, x)
    return y, end


def product(loss, params, x):
    return jax.jvp(jax.grad(loss, (0, 1)), (params, x), (params, x))


def penalty(loss, params, x):
    return (jax.grad(loss, 1)(params, x) ** 2).sum()


@pytest.mark.parametrize(
    "of",
    [
        product,
        lambda loss, params, x: jax.hessian(loss)(params, x),
        lambda loss, params, x: jax.grad(lambda p: jax.jvp(loss, (p, x), (p, x))[1])(params),
        lambda loss, params, x: jax.jacrev(lambda p: penalty(loss, p, x))(params),
        lambda loss, *inputs: product(lambda *both: penalty(loss, *both), *inputs),
        lambda loss, params, x: jax.vmap(lambda x: product(loss, params, x))(
            jax.numpy.stack([x, -x])
        ),
    ],
)
def test_derivatives_of_derivatives_are_those_of_a_scan(rng, of):
    """Products, the Hessian, gradients of gradients, third derivatives."""
    params, x = inputs(LSTM, rng)
    ours = jax_layer(LSTM)
    derived, expected = (
        jax.jit(lambda *inputs, run=run: of(lambda *both: loss_of(run, *both), *inputs))(params, x)
        for run in (ours, scanned)
    )
    close(derived, expected)


def test_seeds_and_inference(rng):
    params, x = inputs(DROPPING, rng)
    ours = jax_layer(DROPPING)
    key = jax.random.key(3)
    close(ours(params, x, train=False), DROPPING(params, x))
    places = np.array([0, 2, 2, T])
    cut = jax.jit(lambda places: ours(params, x[:, :1], train=False, cu_seqlens=places))
    close(cut(places), DROPPING(params, x[:, :1], cu_seqlens=places))
    close(ours(params, x, seed=key), ours(params, x, seed=jax.random.key_data(key)))
    several = jax.vmap(lambda seed: ours(params, x, seed=seed)[0])(np.array([3, 5]))
    close(several, np.stack([DROPPING.forward(params, x, seed=seed)[0] for seed in (3, 5)]))


def test_transformations(rng):
    """Batches of x, states and upstream gradients, rematerialisation, parts in a scan, two passes
    back.
    """
    params, x = inputs(LSTM, rng)
    ours = jax_layer(LSTM)
    xs = rng.standard_normal((5, T, B, D))
    hs = rng.standard_normal((5, 1, B, H))
    close(
        jax.vmap(ours, in_axes=(None, 0))(params, xs)[0],
        np.stack([LSTM(params, one)[0] for one in xs]),
    )
    found = jax.jit(jax.vmap(ours, in_axes=(None, None, (0, None))))(params, x, (hs, LSTM_STATE[1]))
    close(found[0], np.stack([LSTM(params, x, (h, LSTM_STATE[1]))[0] for h in hs]))

    def loss(params, x):
        return (ours(params, x)[0] ** 2).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    each = [gradient(params, one) for one in xs]
    close(
        jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(params, xs),
        jax.tree.map(lambda *one: np.stack(one), *each),
    )
    close(jax.grad(jax.checkpoint(loss), argnums=(0, 1))(params, x), gradient(params, x))

    def in_parts(params, x):
        def part(state, x):
            y, state = ours(params, x, state)
            return state, (y**2).sum()

        return jax.lax.scan(
            part, jax.tree.map(np.zeros_like, LSTM_STATE), x.reshape(3, T // 3, B, D)
        )[1].sum()

    close(jax.jit(jax.grad(in_parts, argnums=(0, 1)))(params, x), gradient(params, x))


def test_misuse_is_named(rng):
    params, x = inputs(LSTM, rng)
    ours = jax_layer(LSTM)
    two = jax.tree.map(lambda a: np.stack([a, a]), params)

    for call, words in (
        (lambda: jax_layer(xlstm.Linear(D, H)), "interop.jax.layer: layer is"),
        (lambda: jax.vmap(ours, in_axes=(0, None))(two, x), "LSTM: vmap is over parameters"),
        (lambda: ours(params, x, lengths=[9, 1, 1]), r"LSTM: lengths\[0\] is 9"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^{words}"):
            call()


def test_what_forward_kept_is_used_once_and_only_the_last_is_there(monkeypatch, rng):
    """A backward pass that finds nothing runs the forward pass again; one that never comes leaves
    one value.
    """
    passes = []
    kept = weakref.WeakSet()
    forward = Bridge.forward

    def counted(*arguments, **options):
        outputs, saved = forward(*arguments, **options)
        passes.append(options["keep"])
        kept.add(saved)
        return outputs, saved

    monkeypatch.setattr(Bridge, "forward", counted)
    params, x = inputs(LSTM, rng)
    run = jax_layer(LSTM)
    step = jax.jit(jax.value_and_grad(lambda p: loss_of(run, p, x)))
    _, expected = step(params)
    jax.block_until_ready(expected)
    assert (passes, len(kept)) == ([True], 0)
    several = [jax.vjp(lambda p: loss_of(run, p, x), params)[1] for _ in range(3)]
    assert (passes, len(kept)) == (4 * [True], 1)
    for vjp in several:
        close(vjp(1.0)[0], expected)
    assert (passes, len(kept)) == (6 * [True], 0)
