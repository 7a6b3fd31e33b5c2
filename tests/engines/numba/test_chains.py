"""Chains of operations as compiled loops: values, shapes, dtypes and memory as NumPy's; products on
several threads.
"""

import numpy as np
import pytest

import xlstm
from tests.registry import flat
from xlstm.arrays import cores
from xlstm.arrays.fuse import fuse, listed
from xlstm.arrays.rows import summed
from xlstm.cells.activations import FEED_FORWARD
from xlstm.cells.normalization import MEAN_AND_VARIANCE, MEAN_SQUARE, normalize, normalize_bwd
from xlstm.engines.numba import chains, jit

pytestmark = pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure()))
SINGLE = np.dtype("f4")
DOUBLE = np.dtype("f8")
TOLERANCE = {SINGLE: 2e-6, DOUBLE: 1e-13}


@pytest.fixture(params=[1, 3])
def size(request, monkeypatch):
    """Threads, which share whatever is compiled."""
    monkeypatch.setenv(cores.VARIABLE, str(request.param))
    monkeypatch.setattr(chains, "SHARED", 1)
    return request.param


@pytest.mark.parametrize("first", ["1", "3"])
def test_equal_bits_however_many_threads_share_the_rows(monkeypatch, rng, first):
    """Whichever number of threads is first to compile a function."""

    def means(xp, x, y):
        return xp.mean(x * y, axis=-1, keepdims=True) * x

    def sums(xp, x, y):
        return x + y, x * y

    monkeypatch.setenv(jit.VARIABLE, "1")
    monkeypatch.setattr(chains, "SHARED", 1)
    monkeypatch.setattr(cores, "usable", lambda: 2)
    x, y = (rng.standard_normal((70, 40, 130)).astype("f4") for _ in range(2))
    found = []
    for count in (first, "1", "2", "3"):
        monkeypatch.setenv(cores.VARIABLE, count)
        results = [chains.run(means, (x, y)), *chains.run(sums, (x, y), 1)]
        found.append([result.tobytes() for result in results])
    assert all(other == found[0] for other in found[1:])


@pytest.fixture
def ran(monkeypatch):
    """Whether each function ran in a compiled loop, which it may whatever the environment says."""
    monkeypatch.setenv(jit.VARIABLE, "1")
    compiled = chains.run
    found = []

    def run(function, *rest):
        result = compiled(function, *rest)
        found.append(result is not None)
        return result

    monkeypatch.setattr(chains, "run", run)
    return found


def mixed(xp, a, b, c, scale, dtype):
    """Numbers that float32 does not have, conditions, and float64 made narrower."""
    d = xp.minimum(xp.exp(-xp.abs(a)) * scale + 1, xp.full_like(a, 0.1) * b)
    d *= 3
    return (
        xp.astype(d, dtype),
        xp.astype(d * xp.astype(a < b, dtype), dtype) + xp.tanh(c),
        xp.where(a > b, a, b),
    )


def product(xp, a, b):
    return a * b


def close(found, expected):
    found = listed(found)
    expected = listed(expected)
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(x, y, rtol=TOLERANCE[y.dtype], atol=TOLERANCE[y.dtype])


SHAPES = {
    "one axis": [(40000,)] * 3,
    "rows": [(130, 7, 40), (40,), (130, 1, 1)],
    "outer products": [(50, 9, 1, 31), (50, 9, 30, 1), (30, 31)],
    "columns": [(300, 1, 70), (300, 2, 70), ()],
}


@pytest.mark.parametrize(
    ("shapes", "dtypes"),
    [
        *((name, ("f4", "f4", "f4")) for name in SHAPES),
        *(("outer products", dtypes) for dtypes in (("f8", "f8", "f8"), ("f8", "f4", "f4"))),
        ("rows", ("f4", "f8", "f4")),
    ],
    ids=str,
)
def test_values_are_those_of_numpy(size, ran, rng, dtypes, shapes):
    shapes = SHAPES[shapes]
    arrays = [rng.standard_normal(shape).astype(d) for shape, d in zip(shapes, dtypes, strict=True)]
    expected = np.broadcast_shapes(*shapes)
    arrays[0] = arrays[0] + np.zeros(
        expected if shapes[0] != (50, 9, 1, 31) else shapes[0], dtypes[0]
    )
    given = [np.asarray(a) for a in arrays]
    close(fuse(np, mixed, *given, scale=0.3, dtype=SINGLE), mixed(np, *given, 0.3, SINGLE))
    assert ran == [True]


def test_arrays_in_any_order_of_memory(size, ran, rng):
    a = rng.standard_normal((40, 60, 50)).transpose(1, 2, 0)
    b = rng.standard_normal((60, 50, 80))[..., ::2]
    found = fuse(np, product, a, np.ascontiguousarray(b))  # columns of a are not those of b
    np.testing.assert_array_equal(found, a * b)
    wide = rng.standard_normal((300, 2, 64))
    np.testing.assert_array_equal(
        fuse(np, product, wide[..., 32:], wide[..., :32]), wide[..., 32:] * wide[..., :32]
    )
    assert ran == [False, True]
    np.testing.assert_array_equal(fuse(np, product, wide[::-1], wide), wide[::-1] * wide)
    assert ran[-1] is False


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("shape", [(400, 60), (30, 14, 50), (20001, 1), (1, 20000)], ids=str)
def test_sums_over_all_axes_but_the_last(size, ran, rng, dtype, shape):
    a, b = rng.standard_normal((2, *shape)).astype(dtype)
    found = summed(np, lambda xp, a, b: (a - b, a * b), a, b)
    assert found[0].shape == shape
    np.testing.assert_array_equal(found[0], a - b)
    expected = np.sum(a.astype("f8") * b, axis=tuple(range(a.ndim - 1)))
    np.testing.assert_allclose(found[1], expected, atol=300 * TOLERANCE[dtype])
    assert found[1].dtype == dtype


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("shape", [(400, 60), (30, 14, 50), (9, 5, 7, 129)], ids=str)
@pytest.mark.parametrize("norm", [MEAN_AND_VARIANCE, MEAN_SQUARE])
def test_norms(size, ran, rng, monkeypatch, dtype, shape, norm):
    x, dn = (3 + rng.standard_normal((2, *shape))).astype(dtype)
    n, r = normalize(np, x, -1, norm)
    dx = normalize_bwd(np, dn, n, r, -1, norm)
    assert ran == [True, True]
    monkeypatch.setenv(jit.VARIABLE, "0")
    close((n, r), normalize(np, x, -1, norm))
    close(dx, normalize_bwd(np, dn, n, r, -1, norm))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("name", FEED_FORWARD)
def test_activations(ran, rng, dtype, name):
    def both(xp, dy, x):
        y = FEED_FORWARD[name].fwd(xp, x)
        return y, FEED_FORWARD[name].bwd(xp, dy, x, y)

    dy, x = (4 * rng.standard_normal((2, 40000))).astype(dtype)
    close(fuse(np, both, dy, x), both(np, dy, x))
    assert ran == [True] or name == "selu"  # which calls libm


def test_nan_stays(ran):
    x = np.full(40000, np.nan, "f4")
    assert np.isnan(
        fuse(np, lambda xp, a: xp.maximum(xp.minimum(a, xp.zeros_like(a)), -xp.ones_like(a)), x)
    ).all()
    assert ran == [True]


@pytest.mark.parametrize("block", [xlstm.mLSTMBlock(64, 2), xlstm.sLSTMBlock(64, 2)])
def test_layers_with_and_without(monkeypatch, rng, block):
    """Large enough that all of it is compiled, with a final state and its gradient."""
    x, dy = rng.standard_normal((2, 150, 5, 64))
    params = block.init(0, "numpy", "float64")
    params = {name: p + 0.1 * rng.standard_normal(p.shape) for name, p in params.items()}
    found = []
    for value in ("1", "0"):
        monkeypatch.setenv("XLSTM_COMPILE", value)
        y, state, saved = block.forward(params, x)
        grads, dx, dstate = block.backward(params, saved, dy, state)
        found.append([y, dx, *flat(state), *flat(dstate), *(grads[name] for name in sorted(grads))])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())
