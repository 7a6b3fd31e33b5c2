"""minLSTM and minGRU against the log-space scan of the paper in PyTorch, and scans by doubling."""

import dataclasses

import numpy as np
import pytest

import xlstm
from tests import registry
from xlstm.cells.linear_scan import scan, scan_bwd
from xlstm.models.sequence import layer_of

KINDS = ("minLSTM", "minGRU")
D, H, T, B = 3, 5, 40, 4


def in_log_space(torch, kind, z):
    """All steps of h from pre-activations (T, B, gates, H), by cumulative sums of logarithms."""
    softplus = torch.nn.functional.softplus
    *gates, candidate = z.unbind(2)
    if kind == "minGRU":
        log_a, log_i = -softplus(gates[0]), -softplus(-gates[0])
    else:
        ratio = softplus(-gates[0]) - softplus(-gates[1])
        log_a, log_i = -softplus(ratio), -softplus(-ratio)
    log_n = torch.where(candidate >= 0, (candidate.relu() + 0.5).log(), -softplus(-candidate))
    total = log_a.cumsum(0)
    return (total + (log_i + log_n - total).logcumsumexp(0)).exp()


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("interpreted")
def test_numbers_and_gradients_are_those_of_the_paper(rng, kind, scale):
    torch = pytest.importorskip("torch")
    layer = getattr(xlstm, kind)(D, H)
    params = {name: scale * rng.standard_normal(p.shape) for name, p in layer.init(0).items()}
    x = rng.standard_normal((T, B, D))
    dy = rng.standard_normal((T, B, H))
    y, _, saved = layer.forward(params, x)
    grads, dx, _ = layer.backward(params, saved, dy)
    theirs = {name: torch.tensor(a, requires_grad=True) for name, a in {**params, "x": x}.items()}
    z = theirs["x"] @ theirs["0.Wx"].T + theirs["0.b"]
    h = in_log_space(torch, kind, z.reshape(T, B, -1, H))
    h.backward(torch.tensor(dy))
    expected = {name: a.grad.numpy() for name, a in theirs.items()}
    registry.agree({"y": y}, {"y": h.detach().numpy()}, 1e-10)
    registry.agree({**grads, "x": dx}, expected, 1e-8)


@pytest.mark.parametrize("log_space", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("interpreted")
def test_large_pre_activations_neither_overflow_nor_divide_by_zero(kind, log_space):
    layer = getattr(xlstm, kind)(1, 9, log_space=log_space)
    gates = len(next(iter(layer.cells.values())).GATES)
    values = np.array([-1e3, -80.0, 1e3])
    values = np.array([-1e3, -80.0, 1e3])
    pairs = np.stack(np.meshgrid(values, values)).reshape(2, 9)
    params = {"0.Wx": np.resize(pairs, (gates * 9, 1)), "0.b": np.zeros(gates * 9)}
    y, (h,), saved = layer.forward(params, np.ones((T, B, 1)))
    grads, dx, (dh,) = layer.backward(params, saved, np.ones_like(y), (h,))
    for a in (y, h, dx, dh, *grads.values()):
        assert np.all(np.isfinite(a))
    assert not log_space or np.all(y >= 0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_doubling_gives_the_numbers_of_a_loop(rng, monkeypatch, steps):
    """The way of a GPU, with a coefficient of 0."""
    a = rng.random((steps, 3, 2))
    a[-1] = 0
    b, dy = rng.standard_normal((2, steps, 3, 2))
    h0, dend = rng.standard_normal((2, 3, 2))
    expected = scan(np, a, b, h0), *scan_bwd(np, a, dy, dend)
    monkeypatch.setattr("xlstm.cells.linear_scan.doubles", lambda xp: True)
    for one, other in zip((scan(np, a, b, h0), *scan_bwd(np, a, dy, dend)), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_models_have_them_by_name_and_options_without_a_meaning_are_refused(kind):
    layer = layer_of("test", kind.lower(), D, H)
    assert layer == getattr(xlstm, kind)(D, H)
    refused = {"clip": 1.0, "layer_norm": True, "recurrent_bias": True, "recurrent_dropout": 0.1}
    for option, value in refused.items():
        with pytest.raises(ValueError, match=f"{kind}: {option} is .*its cell has no"):
            dataclasses.replace(layer, **{option: value})
