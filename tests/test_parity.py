"""The measure that parity uses."""

import numpy as np

from tests.parity import difference


def test_difference_is_relative_and_sees_everything():
    a = np.array([1e-4, 2e-4])
    assert difference([a], [a]) == 0.0
    np.testing.assert_allclose(difference([a], [a * (1 + 1e-3)]), 1e-3, rtol=1e-6)
    assert difference([a], [a.astype("float32")]) == np.inf
    assert difference([a], [a[:1]]) == np.inf
    assert difference([a], [np.array([np.nan, 2e-4])]) == np.inf
    assert difference([a, a], [a, 2 * a]) == 1.0
