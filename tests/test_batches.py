"""Products of NumPy arrays by compiled tiles: matrices that lie in any way, for every length of vectors."""

import itertools

import numpy as np
import pytest

from tests.guards import PRODUCTS
from xlstm.arrays import cores
from xlstm.arrays import matmul as products
from xlstm.engines.numba import jit, tiled_matmul

pytestmark = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
ROUNDING = {"float32": 4e-6, "float64": 8e-15}


@pytest.fixture(autouse=True)
def all_of_them(monkeypatch):
    """Small and narrow ones are multiplied by tiles too."""
    monkeypatch.setenv(jit.VARIABLE, "1")
    monkeypatch.setattr(tiled_matmul, "SMALL", 0)
    monkeypatch.setattr(tiled_matmul, "NARROW", 0)
    tiled_matmul._plan.cache_clear()
    yield
    tiled_matmul._plan.cache_clear()


def operands(rng, batch, rows, columns, dtype):
    """Arrays of one shape that lie in memory in all ways that tiles take."""

    def make(*shape):
        return rng.standard_normal(shape).astype(dtype)

    yield make(*batch, rows, columns)
    yield make(*batch, columns, rows).swapaxes(-1, -2)
    yield make(*batch, rows, columns + 3)[..., 1:-2]
    yield make(*batch, columns, rows + 2).swapaxes(-1, -2)[..., :-2, :]
    yield np.broadcast_to(make(rows, columns), (*batch, rows, columns))
    yield np.moveaxis(make(rows, *batch, columns), 0, -2)  # as a layer has them
    yield make(*batch[:-1], 1, rows, columns)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_batches(rng, length, dtype):
    for (M, K, N), batch in zip(PRODUCTS, itertools.cycle(((3,), (2, 3))), strict=False):
        for a, b in itertools.product(operands(rng, batch, M, K, dtype), operands(rng, batch, K, N, dtype)):
            expected, scale = a @ b, np.maximum(np.abs(a) @ np.abs(b), 1)
            found = tiled_matmul.run(a, b)
            assert found.dtype == dtype
            assert np.all(np.abs(found - expected) <= ROUNDING[dtype] * scale)
            room = np.full_like(found, 3.0)
            assert tiled_matmul.run(a, b, room) is room
            assert np.all(np.abs(room - 3 - expected) <= 2 * ROUNDING[dtype] * np.maximum(scale, 3))


@pytest.mark.parametrize(
    "shapes", [((7, 40, 70), (7, 70, 33)), ((200, 70), (70, 90)), ((2, 7, 40, 70), (7, 70, 33))], ids=str
)
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, rng, shapes):
    a, b = (rng.standard_normal(shape, "float32") for shape in shapes)
    found = []
    for count in (1, 2, 3, 7):
        monkeypatch.setenv(cores.VARIABLE, str(count))
        found.append(tiled_matmul.run(a, b))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    np.testing.assert_allclose(found[0], a @ b, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(products.matmul(np, a, b), found[0])


def test_what_is_left_to_numpy(monkeypatch, rng):
    a, b = rng.standard_normal((2, 9, 9)), rng.standard_normal((2, 9, 9))
    assert tiled_matmul.run(a, b) is not None
    for x, y in (
        (a.astype(int), b.astype(int)),
        (a.astype("f4"), b),
        (a[0, 0], b[0]),
        (a[..., ::2], b[:, :5]),
        (a, b[:, :5]),
    ):
        assert tiled_matmul.run(x, y) is None
    assert tiled_matmul.run(a, b, np.zeros((2, 9, 18))[..., ::2]) is None
    assert tiled_matmul.run(a, b, np.zeros((2, 9, 9), "f4")) is None
    assert tiled_matmul.run(a.astype(">f8"), b.astype(">f8")) is None
    with pytest.raises(ValueError, match="matmul"):
        products.matmul(np, a, b[:, :5])
    with monkeypatch.context() as patch:
        patch.setattr(tiled_matmul, "SMALL", 2 * 9**3 + 1)
        tiled_matmul._plan.cache_clear()
        assert tiled_matmul.run(a, b) is None
        patch.setattr(tiled_matmul, "SMALL", 0)
        patch.setattr(tiled_matmul, "NARROW", 10)
        tiled_matmul._plan.cache_clear()
        assert tiled_matmul.run(a, b) is None
    monkeypatch.setenv(jit.VARIABLE, "0")
    assert tiled_matmul.run(a, b) is None
