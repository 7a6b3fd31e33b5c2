"""Losses: gradients, PyTorch's values, masks and errors."""

import numpy as np
import pytest

from tests.conftest import make_backend
from xlstm import gradcheck, jvp, losses
from xlstm.arrays.convert import to_numpy

REGRESSIONS = ["mse", "mae", "huber"]
LOSSES = [*REGRESSIONS, "binary_cross_entropy", "pinball", "cross_entropy"]
MASKS = ["none", "steps", "elements", "weights"]


def predictions(name, rng):
    """Predictions and targets of four steps of three sequences."""
    if name == "cross_entropy":
        return 3 * rng.standard_normal((4, 3, 5)), rng.integers(0, 5, (4, 3))
    if name == "binary_cross_entropy":
        return 3 * rng.standard_normal((4, 3, 2)), rng.random((4, 3, 2))
    target = rng.standard_normal((4, 3, 2))
    # |e| stays clear of 0 and of delta, where there is no second derivative
    shape = (4, 3, 2, 3) if name == "pinball" else (4, 3, 2)
    sizes = rng.choice([0.3, 0.7, 1.5, 2.5], shape) * rng.choice([-1.0, 1.0], shape)
    return (target[..., None] if name == "pinball" else target) + sizes, target


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mask", MASKS)
def test_gradients(be, rng, name, mask):
    weights = rng.random((4, 3)) * (rng.random((4, 3)) < 0.6)
    chosen = {
        "none": None,
        "steps": weights > 0,
        "elements": rng.random((4, 3, 2)) < 0.6,
        "weights": weights,
    }[mask]
    if name == "cross_entropy" and mask == "elements":
        chosen = weights > 0.5  # it has a target for each step
    y, target = predictions(name, rng)
    chosen = None if chosen is None else be.asarray(chosen)
    target = be.asarray(target)
    loss = getattr(losses, name)
    gradcheck(lambda y: loss(y, target, chosen), lambda dy, d: (d * dy,), (be.asarray(y),))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mask", ["steps", "weights"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_masked_values_have_no_influence(be, rng, name, mask, bad):
    y, target = (np.concatenate([a] * 200, 1) for a in predictions(name, rng))  # compiled loops
    left_out = rng.random((4, 600)) < 0.5
    chosen = be.asarray(~left_out * (True if mask == "steps" else rng.random((4, 600))))
    v = rng.standard_normal(y.shape)

    def results():
        def loss(y):
            return getattr(losses, name)(y, be.asarray(target), chosen)

        y1 = be.asarray(y)
        if be.name == "array_api_strict":  # its operators refuse dual numbers
            return [*map(to_numpy, loss(y1))]
        return [to_numpy(a) for pair in jvp(loss, (y1,), (be.asarray(v),)) for a in pair]

    expected = results()
    y[left_out] = v[left_out] = bad
    target[left_out] = 9 if name == "cross_entropy" else bad
    for found, clean in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(found, clean)


@pytest.mark.parametrize(
    ("name", "logits", "target", "value", "gradient"),
    [
        ("binary_cross_entropy", [1e4, -1e4, 1e4], [0.0, 0.0, 1.0], 1e4 / 3, [1 / 3, 0.0, 0.0]),
        ("cross_entropy", [[1e4, -1e4, 0.0]], np.array([1]), 2e4, [[1.0, -1.0, 0.0]]),
    ],
)
def test_huge_logits_are_finite(be, name, logits, target, value, gradient):
    found, dz = getattr(losses, name)(be.asarray(logits), be.asarray(target))
    assert float(found) == pytest.approx(value)
    np.testing.assert_allclose(to_numpy(dz), gradient, atol=1e-12)


def test_pinball_is_least_at_quantiles(rng):
    target = rng.standard_normal(999)
    levels = (0.1, 0.5, 0.8)
    best = np.quantile(target, levels)
    least = losses.pinball(np.tile(best, (999, 1)), target, None, levels)[0]
    for shift in (-0.05, 0.05):
        assert losses.pinball(np.tile(best + shift, (999, 1)), target, None, levels)[0] > least
    both = losses.pinball(target[:, None], target[::-1].copy(), None, (0.5,))[0]
    assert both == pytest.approx(losses.mae(target, target[::-1].copy())[0] / 2, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_have_the_dtype_of_predictions_on_cupy(rng, name, dtype):
    be = make_backend("cupy", dtype)
    y, target = map(be.asarray, predictions(name, rng))
    for mask in (None, be.asarray(rng.random((4, 3)) < 0.6)):
        assert str(getattr(losses, name)(y, target, mask)[1].dtype) == dtype


@pytest.mark.parametrize(
    ("name", "peer", "options"),
    [
        ("mse", "mse_loss", {}),
        ("mae", "l1_loss", {}),
        ("binary_cross_entropy", "binary_cross_entropy_with_logits", {}),
        *(("huber", "huber_loss", {"delta": delta}) for delta in (0.2, 0.5, 1.0)),
    ],
)
def test_values_follow_torch(rng, name, peer, options):
    torch = pytest.importorskip("torch")
    y = rng.standard_normal((6, 5))
    target = rng.random((6, 5))
    expected = getattr(torch.nn.functional, peer)(
        torch.tensor(y), torch.tensor(target), **options
    ).item()
    assert getattr(losses, name)(y, target, **options)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("compiled", ["0", "1"])
def test_cross_entropy_of_many_logits_follows_torch(rng, dtype, compiled, monkeypatch):
    """Large enough for a compiled loop."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("XLSTM_COMPILE", compiled)
    logits = (10 * rng.standard_normal((40, 9, 70))).astype(dtype)
    labels = rng.integers(0, 70, (40, 9))
    peer = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        peer.reshape(-1, 70), torch.tensor(labels).reshape(-1)
    )
    expected.backward()
    loss, dlogits = losses.cross_entropy(logits, labels)
    rtol = {"float32": 1e-5, "float64": 1e-12}[dtype]
    assert dlogits.dtype == dtype
    assert loss == pytest.approx(expected.item(), rel=rtol)
    np.testing.assert_allclose(dlogits, peer.grad.numpy(), rtol=rtol, atol=rtol / 1000)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_labels_of_any_integer_dtype(dtype):
    logits = np.random.default_rng(0).standard_normal((9, 260))
    labels = np.arange(247, 256)
    expected, _ = losses.cross_entropy(logits, labels)
    assert losses.cross_entropy(logits, labels.astype(dtype))[0] == expected


def test_a_label_out_of_range_is_nan_unless_masked(be):
    logits = be.asarray(np.zeros((2, 3)))
    labels = be.asarray(np.array([1, -1]))
    assert np.isnan(float(losses.cross_entropy(logits, labels)[0]))
    value, _ = losses.cross_entropy(logits, labels, be.asarray(np.array([True, False])))
    assert float(value) == pytest.approx(np.log(3))


@pytest.mark.parametrize("name", [*REGRESSIONS, "binary_cross_entropy", "cross_entropy"])
def test_a_weight_is_so_many_repetitions(be, rng, name):
    counts = np.array([2, 0, 1, 3])
    every = np.arange(4)
    y = rng.standard_normal((4, 5))
    target = rng.integers(0, 5, 4) if name == "cross_entropy" else rng.standard_normal((4, 5))

    def of(rows, *weights):
        value, dy = getattr(losses, name)(
            *(be.asarray(a) for a in (y[rows], target[rows], *weights))
        )
        return float(value), to_numpy(dy)

    weighted, dy = of(every, counts / 7)
    assert weighted == pytest.approx(of(np.repeat(every, counts))[0], rel=1e-5)
    assert not dy[1].any()
    assert of(every, counts > 0)[0] == pytest.approx(of(counts > 0)[0], rel=1e-12)
    nothing, dy = of(every, counts < 0)
    assert nothing == 0
    assert not dy.any()


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
@pytest.mark.parametrize(
    ("last", "shape"),
    [(False, (4, 3, 2)), (False, (4, 2)), (True, (3, 4, 2)), (True, (4, 3, 2)), (True, (4, 5))],
)
def test_a_wrong_shape_names_the_options_that_decide_about_steps(name, last, shape):
    y = np.zeros((4, 2) if last else (3, 4, 2))
    target = np.zeros(shape)
    hint = "; every_step=True of data and last=False of a SequenceModel mean one for each step"
    hint = "" if shape == (4, 5) else hint
    if name == "cross_entropy":
        target = np.zeros(shape[:-1] if hint else (2,), int)
    with pytest.raises(ValueError, match=rf"{name}: .* shape .*, expected that of .*\){hint}$"):
        getattr(losses, name)(y, target)
