"""The checker itself: it passes what is right and catches what is wrong."""

import numpy as np
import pytest

from xlstm import gradcheck
from xlstm.testing import GradientError


def forward(x, w):
    return {"sum": x * w, "sine": np.sin(x)}, (x, w)


def right(saved, d):
    x, w = saved
    return d["sum"] * w + d["sine"] * np.cos(x), d["sum"] * x


@pytest.fixture
def inputs(rng):
    return rng.standard_normal((3, 4)), rng.standard_normal((3, 4))


def test_passes_the_right_gradient(inputs):
    assert gradcheck(forward, right, inputs) < 1e-9


def wrong_in_one_element(saved, d):
    dx, dw = right(saved, d)
    dw = dw.copy()
    dw[1, 2] *= 1.0001
    return dx, dw


def blind_to_one_output(saved, d):
    return right(saved, {**d, "sine": 0 * d["sine"]})


@pytest.mark.parametrize(
    ("backward", "named"),
    [
        (wrong_in_one_element, "output sum with respect to input 1"),
        (blind_to_one_output, "output sine with respect to input 0"),
        (lambda saved, d: right(saved, d)[:1], "expected"),
        (lambda saved, d: (right(saved, d)[0].T, right(saved, d)[1]), "shape"),
        (lambda saved, d: (right(saved, d)[0] * np.nan, right(saved, d)[1]), "not finite"),
    ],
)
def test_catches_wrong_gradients(inputs, backward, named):
    with pytest.raises(GradientError, match=named):
        gradcheck(forward, backward, inputs)


def test_none_inputs_and_nestings(be, rng):
    x = be.asarray(rng.standard_normal(3))

    def forward(tree, nothing):
        return (tree["a"][0] * tree["a"][0],), tree

    def backward(tree, d):
        return {"a": (2 * tree["a"][0] * d[0],)}, None

    assert gradcheck(forward, backward, ({"a": (x,)}, None)) < 1e-9


def test_refuses_float32(rng):
    with pytest.raises(TypeError, match="float64"):
        gradcheck(forward, right, (np.ones(2, "float32"), np.ones(2, "float32")))


def test_refuses_what_cannot_be_checked(inputs):
    with pytest.raises(GradientError, match="output 0 is not finite"):
        gradcheck(lambda x: (x * np.nan, x), lambda saved, d: (d,), inputs[:1])
    with pytest.raises(ValueError, match="directions is 0"):
        gradcheck(forward, right, inputs, directions=0)
    with pytest.raises(TypeError, match="input 0 is float, expected a float64 array"):
        gradcheck(forward, right, (1.0, 2.0))


def test_a_gradient_that_drowns_in_rounding_is_refused(inputs):
    with pytest.raises(GradientError, match="drowns in the rounding"):
        gradcheck(lambda x: (x + 1e9, x), lambda saved, d: (1.001 * d,), inputs[:1])


def test_second_order(rng):
    """It passes what is right, and catches gradients of which none is wrong but their derivative."""
    x, w = rng.standard_normal((2, 3, 4))
    assert gradcheck(forward, right, (x, w), order=2) < 1e-7

    def constant_slope(saved, d):
        x, w = saved
        return d["sum"] * w + d["sine"] * cosine_alone(x), d["sum"] * x

    with pytest.raises(
        GradientError, match=r"second derivative, .* gradient of output 0 with respect to input 0"
    ):
        gradcheck(forward, constant_slope, (x, w), order=2)
    gradcheck(lambda x: (3 * x, x), lambda x, d: (3 * d,), (x,), order=2)  # of which all are 0
    with pytest.raises(ValueError, match="order is 3, expected at most 2"):
        gradcheck(forward, right, (x, w), order=3)


def cosine_alone(x):
    """The cosine without its tangent."""
    return np.cos(getattr(x, "value", x))
