"""Losses: gradients, PyTorch's values, masks and errors."""

import numpy as np
import pytest

from tests.conftest import make_backend
from xlstm import gradcheck, losses
from xlstm.arrays.convert import to_numpy

REGRESSIONS = ["mse", "mae", "huber"]


def masks(rng):
    weights = rng.random((4, 3)) * (rng.random((4, 3)) < 0.6)
    return {"none": None, "steps": weights > 0, "elements": rng.random((4, 3, 2)) < 0.6, "weights": weights}


@pytest.mark.parametrize("name", [*REGRESSIONS, "pinball"])
@pytest.mark.parametrize("mask", ["none", "steps", "elements", "weights"])
def test_regression_gradient(be, rng, name, mask):
    loss, shape = getattr(losses, name), (4, 3, 2, 3) if name == "pinball" else (4, 3, 2)
    target = be.asarray(rng.standard_normal((4, 3, 2)))
    chosen = masks(rng)[mask]
    chosen = None if chosen is None else be.asarray(chosen)
    # |e| stays clear of 0 and of delta, where there is no second derivative
    sizes = rng.choice([0.3, 0.7, 1.5, 2.5], shape) * rng.choice([-1.0, 1.0], shape)
    y = (target[..., None] if name == "pinball" else target) + be.asarray(sizes)
    gradcheck(lambda y: loss(y, target, chosen), lambda dy, d: (d * dy,), (y,))


def test_binary_cross_entropy(be, rng):
    """Its gradient is exact with every mask, and it is finite for huge logits."""
    logits, target = be.asarray(3 * rng.standard_normal((4, 3, 2))), be.asarray(rng.random((4, 3, 2)))
    for mask in masks(rng).values():
        chosen = None if mask is None else be.asarray(mask)
        gradcheck(lambda z, m=chosen: losses.binary_cross_entropy(z, target, m), lambda dz, d: (d * dz,), (logits,))
    value, dz = losses.binary_cross_entropy(be.asarray([1e4, -1e4, 1e4]), be.asarray([0.0, 0.0, 1.0]))
    assert float(value) == pytest.approx(1e4 / 3)
    np.testing.assert_allclose(to_numpy(dz), [1 / 3, 0.0, 0.0], atol=1e-12)


def test_pinball_is_least_at_quantiles(rng):
    target = rng.standard_normal(999)
    levels = (0.1, 0.5, 0.8)
    best = np.quantile(target, levels)
    least = losses.pinball(np.tile(best, (999, 1)), target, None, levels)[0]
    for shift in (-0.05, 0.05):
        assert losses.pinball(np.tile(best + shift, (999, 1)), target, None, levels)[0] > least
    both = losses.pinball(target[:, None], target[::-1].copy(), None, (0.5,))[0]
    assert both == pytest.approx(losses.mae(target, target[::-1].copy())[0] / 2, rel=1e-12)
    with pytest.raises(ValueError, match=r"pinball: y has shape \(3, 2\), expected .* \(3, 3\)"):
        losses.pinball(np.ones((3, 2)), np.ones(3), None, levels)


def test_cross_entropy_gradient(be, rng):
    labels = be.asarray(rng.integers(0, 5, (4, 3)))
    mask = be.asarray(rng.random((4, 3)) < 0.6)
    logits = be.asarray(3 * rng.standard_normal((4, 3, 5)))
    weights = be.asarray(masks(rng)["weights"])
    for chosen in (None, mask, weights):
        gradcheck(lambda z, m=chosen: losses.cross_entropy(z, labels, m), lambda dz, d: (d * dz,), (logits,))


@pytest.mark.parametrize("name", [*REGRESSIONS, "binary_cross_entropy", "pinball", "cross_entropy"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_have_the_dtype_of_predictions_on_cupy(rng, name, dtype):
    be = make_backend("cupy", dtype)
    y = be.asarray(rng.standard_normal((4, 3)))
    target = be.asarray(rng.random((4,) if name == "pinball" else (4, 3)))
    target = be.asarray(rng.integers(0, 3, 4)) if name == "cross_entropy" else target
    mask = be.asarray(np.array([True, False, True, True]))
    for chosen in (None, mask):
        assert str(getattr(losses, name)(y, target, chosen)[1].dtype) == dtype


def test_values_follow_torch(rng):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    y, target = rng.standard_normal((2, 6, 5))
    ty, tt = torch.tensor(y), torch.tensor(target)
    assert losses.mse(y, target)[0] == pytest.approx(f.mse_loss(ty, tt).item(), rel=1e-12)
    assert losses.mae(y, target)[0] == pytest.approx(f.l1_loss(ty, tt).item(), rel=1e-12)
    shares = rng.random((6, 5))
    expected = f.binary_cross_entropy_with_logits(ty, torch.tensor(shares)).item()
    assert losses.binary_cross_entropy(y, shares)[0] == pytest.approx(expected, rel=1e-12)
    for delta in (0.5, 1.0, 2.0):
        expected = f.huber_loss(ty, tt, delta=delta).item()
        assert losses.huber(y, target, delta=delta)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("compiled", ["0", "1"])
def test_cross_entropy_of_many_logits_follows_torch(rng, dtype, compiled, monkeypatch):
    """Large enough for a compiled loop."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("XLSTM_COMPILE", compiled)
    logits, labels = (10 * rng.standard_normal((40, 9, 70))).astype(dtype), rng.integers(0, 70, (40, 9))
    peer = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(peer.reshape(-1, 70), torch.tensor(labels).reshape(-1))
    expected.backward()
    loss, dlogits = losses.cross_entropy(logits, labels)
    rtol = {"float32": 1e-5, "float64": 1e-12}[dtype]
    assert dlogits.dtype == dtype
    assert loss == pytest.approx(expected.item(), rel=rtol)
    np.testing.assert_allclose(dlogits, peer.grad.numpy(), rtol=rtol, atol=rtol / 1000)


def test_cross_entropy_of_huge_logits_is_finite(be):
    logits = be.asarray([[1e4, -1e4, 0.0]])
    value, dz = losses.cross_entropy(logits, be.asarray(np.array([1])))
    assert float(value) == pytest.approx(2e4)
    np.testing.assert_allclose(to_numpy(dz), [[1.0, -1.0, 0.0]], atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: losses.mse(np.zeros(3), np.zeros(4)), ValueError, r"target has shape \(4,\), expected that of y"),
        (lambda: losses.mse(np.zeros(3), np.zeros(3, "float32")), TypeError, "target has dtype float32"),
        (
            lambda: losses.mse(np.zeros(3), np.zeros(3), np.ones(3, "int64")),
            TypeError,
            "mask has dtype int64",
        ),
        (lambda: losses.mse(np.zeros(3), np.zeros(3), np.ones(2, bool)), ValueError, "mask has shape"),
        (lambda: losses.huber(np.zeros(3), np.zeros(3), delta=0), ValueError, "delta is 0"),
        (lambda: losses.cross_entropy(np.zeros((3, 2)), np.zeros(3)), TypeError, "labels has dtype float64"),
        (lambda: losses.cross_entropy(np.zeros((3, 2)), np.zeros((3, 2), int)), ValueError, "labels have shape"),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_labels_of_any_integer_dtype(dtype):
    logits = np.random.default_rng(0).standard_normal((9, 260))
    labels = np.arange(247, 256)
    expected, _ = losses.cross_entropy(logits, labels)
    assert losses.cross_entropy(logits, labels.astype(dtype))[0] == expected


def test_a_label_out_of_range_is_nan_unless_masked(be):
    logits, labels = be.asarray(np.zeros((2, 3))), be.asarray(np.array([1, -1]))
    assert np.isnan(float(losses.cross_entropy(logits, labels)[0]))
    value, _ = losses.cross_entropy(logits, labels, be.asarray(np.array([True, False])))
    assert float(value) == pytest.approx(np.log(3))


@pytest.mark.parametrize("name", [*REGRESSIONS, "binary_cross_entropy", "cross_entropy"])
def test_a_weight_is_so_many_repetitions(be, rng, name):
    loss = getattr(losses, name)
    counts = np.array([2, 0, 1, 3])
    y = rng.standard_normal((4, 5))
    target = rng.integers(0, 5, 4) if name == "cross_entropy" else rng.standard_normal((4, 5))
    weighted, dy = loss(be.asarray(y), be.asarray(target), be.asarray(counts / 7))
    repeated, _ = loss(be.asarray(np.repeat(y, counts, 0)), be.asarray(np.repeat(target, counts, 0)))
    assert float(weighted) == pytest.approx(float(repeated), rel=1e-5)
    assert not to_numpy(dy)[1].any()
    masked, _ = loss(be.asarray(y), be.asarray(target), be.asarray(counts > 0))
    alone, _ = loss(be.asarray(y[counts > 0]), be.asarray(target[counts > 0]))
    assert float(masked) == pytest.approx(float(alone), rel=1e-12)
    nothing, dy = loss(be.asarray(y), be.asarray(target), be.asarray(counts < 0))
    assert float(nothing) == 0
    assert not to_numpy(dy).any()
