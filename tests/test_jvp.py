"""`xlstm.jvp` and `xlstm.hvp` of functions in general; those of layers are in
tests/layers/test_second_derivatives.py.
"""

import copy
import operator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

import xlstm
from xlstm import losses
from xlstm.arrays import dual
from xlstm.arrays.namespace import namespace_of

A = np.array([[0.7, 1.3, 0.4], [2.1, 0.6, 0.9]])
DA = np.array([[0.2, -0.5, 1.1], [-0.3, 0.8, 0.6]])
AT = [1, 0, 1]
# Arguments of the functions that do not take one array alone; x is (2, 3).
CALLS = {
    **{name: lambda xp, f, x: f(x, xp.sin(x) + 1) for name in ("add", "subtract", "multiply")},
    **{name: lambda xp, f, x: f(1.5 + x, xp.exp(x)) for name in ("divide", "pow")},
    **{name: lambda xp, f, x: f(x, 1 / x) for name in ("maximum", "minimum")},
    **{name: lambda xp, f, x: f(x, axis=0) for name in ("max", "min")},
    "clip": lambda xp, f, x: f(x, 0.5, 1.2) * x**0,
    "where": lambda xp, f, x: f(x > 0.8, x * x, -x),
    "matmul": lambda xp, f, x: f(x, x.T * x.T),
    "broadcast_to": lambda xp, f, x: f(x, (4, 2, 3)),
    "concat": lambda xp, f, x: f([x, A, x * x], axis=1),
    "stack": lambda xp, f, x: f([x, A, x * x], axis=1),
    "cumulative_sum": lambda xp, f, x: f(x, axis=1),
    "expand_dims": lambda xp, f, x: f(x, axis=1),
    "moveaxis": lambda xp, f, x: f(x, 0, 1),
    "permute_dims": lambda xp, f, x: f(x, (1, 0)),
    "repeat": lambda xp, f, x: f(x, 2, axis=0),
    "reshape": lambda xp, f, x: f(x, (3, 2)),
    "roll": lambda xp, f, x: f(x, 1, axis=1),
    "squeeze": lambda xp, f, x: f(x[:1, :], axis=0),
    "take": lambda xp, f, x: f(x, np.array(AT), axis=1),
    "take_along_axis": lambda xp, f, x: f(x, np.array([AT, AT]), axis=1),
    "tile": lambda xp, f, x: f(x, (2, 1)),
}


@pytest.mark.parametrize("name", [*dual.JOINT, *dual.PARTIAL, *dual.LINEAR, "max", "min", "clip"])
def test_every_rule_is_the_difference(name):
    call = CALLS.get(name, lambda xp, f, x: f(x))

    def f(x):
        xp = namespace_of(x)
        return call(xp, getattr(xp, name), x)

    step = 1e-6
    y, dy = xlstm.jvp(f, (A,), (DA,))
    np.testing.assert_array_equal(y, f(A))
    np.testing.assert_allclose(dy, (f(A + step * DA) - f(A - step * DA)) / (2 * step), rtol=1e-8)


def test_third_derivatives_and_functions_of_numpy():
    """A derivative within a derivative keeps both directions apart."""

    def slope(x):
        return xlstm.jvp(lambda y: np.sum(np.sin(y) * x), (x,), (DA,))[1]

    _, second = xlstm.jvp(slope, (A,), (DA,))
    expected = np.sum(-np.sin(A) * A * DA**2 + np.cos(A) * DA**2)
    np.testing.assert_allclose(second, expected, rtol=1e-14)
    power = xlstm.jvp(lambda x: xlstm.jvp(slope, (x,), (DA,))[1], (A,), (DA,))[1]
    np.testing.assert_allclose(power, np.sum((-np.cos(A) * A - 2 * np.sin(A)) * DA**3), rtol=1e-14)


class Pair(NamedTuple):
    h: np.ndarray
    c: np.ndarray


def test_nestings_keep_their_order_and_arguments_their_values():
    def f(pair, options):
        pair.h[...] += 1  # of a copy
        return {**options, "z": pair.h * pair.c}

    arguments = Pair(A.copy(), A), {"b": A, "a": A}
    _, dout = xlstm.jvp(f, arguments, (Pair(arguments[0].h, DA), arguments[1]))
    assert list(dout) == ["b", "a", "z"]
    np.testing.assert_allclose(dout["z"], A * A + (A + 1) * DA, rtol=1e-14)
    np.testing.assert_array_equal(arguments[0].h, A)


@pytest.mark.parametrize("f", [np.multiply, lambda x, y: np.concatenate([x, y]) * 2, np.maximum])
def test_functions_of_numpy_of_an_outer_and_an_inner_number(f):
    def both(x):
        return xlstm.jvp(lambda y: f(x, y), (x * 1,), (DA,))[1]

    _, dout = xlstm.jvp(both, (A,), (DA,))
    step = 1e-6
    np.testing.assert_allclose(
        dout, (both(A + step * DA) - both(A - step * DA)) / (2 * step), atol=1e-9
    )


def test_an_outer_number_is_known_in_another_thread():
    def f(x):
        def inner():
            return xlstm.jvp(lambda y: x * y * y, (x * 1,), (np.ones_like(A),))[1]

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inner).result()

    np.testing.assert_allclose(xlstm.jvp(f, (A,), (DA,))[1], 4 * A * DA, rtol=1e-14)


def test_arrays_that_are_written_to():
    """Operators in place go through views, as in NumPy."""

    def f(x):
        y = namespace_of(x).zeros_like(x)
        row = y[0, :]
        row += x[1, :]
        row *= row
        row -= 1
        row /= x[0, :]
        y[1, :] = x.mean(axis=0)
        total = x.sum()
        total += x[0, 0]
        copied = copy.deepcopy(y)
        y **= 1
        y[...] -= copied - y
        return y, total

    (y, total), (dy, dtotal) = xlstm.jvp(f, (A,), (DA,))
    np.testing.assert_allclose((total, dtotal), [a.sum() + a[0, 0] for a in (A, DA)], rtol=1e-14)
    row = (A[1] ** 2 - 1) / A[0]
    np.testing.assert_allclose(y, [row, A.mean(axis=0)], rtol=1e-14)
    drow = (2 * A[1] * DA[1] - row * DA[0]) / A[0]
    np.testing.assert_allclose(dy, [drow, DA.mean(axis=0)], rtol=1e-14)


def test_hvp_of_a_trained_loss_in_float32(rng):
    """A loss as users write it, with a branch on its value."""
    layer = xlstm.LSTM(2, 4)
    params = layer.init(0, "numpy")
    x = rng.standard_normal((6, 3, 2)).astype("float32")

    def loss(params):
        y, _, saved = layer.forward(params, x)
        value, dy = losses.huber(y, np.ones_like(y), delta=0.5)
        assert value > 0
        return value, layer.backward(params, saved, dy)[0]

    wide = {name: p.astype("float64") for name, p in params.items()}
    v = {name: rng.standard_normal(p.shape).astype("float32") for name, p in params.items()}
    hv = xlstm.hvp(loss, params, v)
    assert {name: (a.shape, a.dtype) for name, a in hv.items()} == {
        name: (p.shape, p.dtype) for name, p in params.items()
    }
    x = x.astype("float64")
    exact = xlstm.hvp(loss, wide, {name: a.astype("float64") for name, a in v.items()})
    for name, a in exact.items():
        np.testing.assert_allclose(hv[name], a, atol=2e-6)


def test_what_does_not_depend_on_an_argument_has_a_tangent_of_zero():
    out, dout = xlstm.jvp(lambda x, n: {"a": [x * n], "b": n, "c": None}, (A, A), (DA, None))
    np.testing.assert_array_equal(dout["a"][0], DA * A)
    np.testing.assert_array_equal(dout["b"], np.zeros_like(A))
    assert out["c"] is dout["c"] is None


def kept(_=None):
    """Return a dual number of a call that has returned."""
    numbers = []
    xlstm.jvp(lambda x: numbers.append(x) or x, (A,), (DA,))
    return numbers[0]


def in_a_thread(x):
    """Differentiate a function of x, of which the inner call does not know, in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(xlstm.jvp, lambda y: x * y, (A,), (DA,)).result()[1]


def layer_with(x):
    """Run a layer on an old number beside parameters with a tangent."""
    layer = xlstm.RNN(3, 2)
    params = layer.init(0, "numpy", "float64")
    return xlstm.jvp(lambda params: layer(params, x[None])[0], (params,), (params,))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        *(
            (lambda f=f: xlstm.jvp(f, (A,), (A,)), TypeError, "^jvp: .* of (a|two) calls? ")
            for f in (
                kept,
                in_a_thread,
                lambda x: x * kept(),
                lambda x: kept() + 1,
                lambda x: np.where(A > 1, x, kept()),
                lambda x: np.concatenate([kept(), x]),
                lambda x: kept().sum(),
            )
        ),
        (lambda: layer_with(kept()), TypeError, "^jvp: .* of a call that has returned"),
        (lambda: xlstm.jvp(np.sin, (kept(),), (A,)), TypeError, "of a call that has returned"),
        *(
            (lambda f=f: xlstm.jvp(f, (A,), (A,)), TypeError, "numbers are complex128, .* real")
            for f in (
                lambda x: abs(x * 1j),
                lambda x: np.exp(A * 1j) * x,
                lambda x: x.astype("complex128"),
            )
        ),
        (lambda: xlstm.jvp(np.sin, (A * 1j,), (A,)), TypeError, r"primals\[0\] has .*complex128"),
        (lambda: xlstm.hvp(lambda x: (0, x * float(x[0, 0])), A, A), TypeError, r"float\(\)"),
        (lambda: xlstm.jvp(3, (A,), (A,)), TypeError, "f is 3, expected a function"),
        (lambda: xlstm.jvp(np.sin, A, A), TypeError, "primals is .* expected a tuple"),
        (lambda: xlstm.jvp(np.sin, (A,), A), TypeError, "tangents is .* expected a tuple"),
        (lambda: xlstm.jvp(np.sin, (A,), ()), ValueError, "has nothing, expected .* has, 0"),
        (lambda: xlstm.jvp(np.sin, ({"a": A},), ({"b": A},)), ValueError, r"s\[0\] has b, .* a$"),
        (lambda: xlstm.jvp(np.sin, (A,), (A.T,)), ValueError, r"tangents\[0\] has shape \(3, 2\)"),
        (lambda: xlstm.jvp(np.sin, (A,), (A.astype("float32"),)), TypeError, "float32 but"),
        (lambda: xlstm.jvp(np.sin, ([1, 2],), ([0, 1],)), TypeError, "expected an array"),
        (lambda: xlstm.jvp(lambda x: 0.7, (A,), (A,)), TypeError, "function returned 0.7 at 0"),
        (lambda: xlstm.jvp(lambda x: float(x.sum()), (A,), (A,)), TypeError, "float()"),
        (lambda: xlstm.jvp(np.asarray, (A,), (A,)), TypeError, "array of NumPy"),
        (
            lambda: xlstm.jvp(
                lambda x: xlstm.jvp(lambda y: operator.iadd(x * 1, y), (x,), (A,)), (A,), (A,)
            ),
            TypeError,
            "a number of an outer function is written to",
        ),
        *(
            (lambda f=f: xlstm.jvp(f, (A,), (A,)), TypeError, "arguments alone|has no derivative")
            for f in (
                np.prod,
                np.linalg.norm,
                np.add.reduce,
                lambda x: np.hstack([x, x]),
                lambda x: np.full_like(A, x[0, 0]),
                lambda x: np.sum(x, initial=x[0, 0]),
                lambda x: np.exp(x, out=np.empty_like(A)),
                lambda x: np.add(x, x, where=A > 1),
                lambda x: operator.iadd(np.zeros((2, 3)), x),
            )
        ),
        (lambda: xlstm.hvp(np.sum, A, A), TypeError, r"expected a tuple \(value, gradients\)"),
        (
            lambda: xlstm.hvp(lambda x: (0, x[0]), A, A),
            ValueError,
            "other names or shapes than params",
        ),
        (lambda: xlstm.hvp(np.sum, {"a": A}, {"a": A.T}), ValueError, r"hvp: v\['a'\] has shape"),
    ],
)
def test_errors(call, error, text):
    with pytest.raises(error, match=text):
        call()
