"""The linear layer."""

import numpy as np
import pytest

import xlstm
from xlstm.arrays.convert import to_numpy


@pytest.mark.parametrize("outer", [(), (3,), (2, 4), (0, 3)])
def test_gradient(be, rng, outer):
    layer = xlstm.Linear(3, 2)
    params = layer.init(1, be)
    x = be.asarray(rng.standard_normal((*outer, 3)))

    def forward(params, x):
        y, saved = layer.forward(params, x)
        return y, (params, saved)

    xlstm.gradcheck(forward, lambda saved, dy: layer.backward(*saved, dy), (params, x))


def test_value(be, rng):
    layer = xlstm.Linear(3, 2)
    params = layer.init(1, be)
    x = rng.standard_normal((5, 4, 3))
    y, _ = layer.forward(params, be.asarray(x))
    expected = np.einsum("tbi,oi->tbo", x, to_numpy(params["W"])) + to_numpy(params["b"])
    np.testing.assert_allclose(to_numpy(y), expected, rtol=1e-12, atol=1e-14)


def test_bad_input_is_named(rng):
    layer = xlstm.Linear(3, 2)
    params = layer.init(1, "numpy", "float64")
    with pytest.raises(ValueError, match=r"x has shape \(4, 2\), expected \(\.\.\., I\) = \(\.\.\., 3\)"):
        layer.forward(params, np.zeros((4, 2)))
    with pytest.raises(ValueError, match="b is missing"):
        layer.forward({"W": params["W"]}, np.zeros((4, 3)))
    _, saved = layer.forward(params, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"dy has shape \(4, 3\), expected that of y, \(4, 2\)"):
        layer.backward(params, saved, np.zeros((4, 3)))
