"""Parts of blocks, blocks and stacks: PyTorch's numbers, initial values, rows of norms, the limit
of an mLSTM.
"""

import numpy as np
import pytest

import xlstm
from tests.registry import check, given
from xlstm.layers.conv import CausalConv
from xlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm


def test_gradient_of_a_limited_mlstm(be, rng, monkeypatch):
    """With a limit so low that it matters to half of all inputs, in both layers."""
    monkeypatch.setattr("xlstm.layers.matrix_memory.fourth_root", lambda xp, dtype: 0.6)
    layer = xlstm.mLSTM(2, 4, 2, num_heads=2, chunk_size=2, dropout=0.3)
    check(layer, *given(layer, be, rng, 4))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_gradients_of_an_mlstm_are_exact_up_to_the_largest_number(rng, monkeypatch, num_layers):
    """Where q is 0, each layer multiplies the gradient by products of k and v, up to r^2."""
    r = float(np.finfo("float32").max) ** 0.25
    monkeypatch.setattr("xlstm.layers.matrix_memory.fourth_root", lambda xp, dtype: r)
    layer = xlstm.mLSTM(4, 4, num_layers, bias=False)
    params = layer.init(0, "numpy", "float64")
    x = 1e17 * rng.standard_normal((6, 2, 4))
    x[3::2] = 0

    def gradients(dtype):
        low = {name: p.astype(dtype) for name, p in params.items()}
        y, _, saved = layer.forward(low, x.astype(dtype))
        grads, dx, _ = layer.backward(low, saved, np.ones_like(y))
        return [y, dx, *grads.values()]

    expected = gradients("float64")
    assert np.abs(expected[1]).max() > r ** (2 * num_layers) / 1e5
    for found, exact in zip(gradients("float32"), expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "norm",
    [LayerNorm(96), RMSNorm(96), MultiHeadNorm(96, num_heads=3)],
    ids=lambda n: type(n).__name__,
)
def test_rows_of_a_norm_do_not_depend_on_others(rng, norm, dtype):
    """Also where there are so many that the loop is compiled, and one holds NaN or squares that are
    infinite.
    """
    params = norm.init(0, "numpy", dtype)
    x = rng.standard_normal((4096, 96)).astype(dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    y, saved = norm.forward(params, x)
    _, dx = norm.backward(params, saved, dy)
    most = np.finfo(dtype).max / 4
    for odd in (np.nan, np.linspace(-most, most, 96)):
        changed = x.copy()
        changed[7] = odd
        found, saved = norm.forward(params, changed)
        _, dfound = norm.backward(params, saved, dy)
        for one, other in ((y, found), (dx, dfound)):
            np.testing.assert_array_equal(np.delete(one, 7, axis=0), np.delete(other, 7, axis=0))
        assert np.all(np.isfinite(found[7]) == (odd is not np.nan))


def test_norms_and_convolution_follow_torch(rng):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    x = rng.standard_normal((5, 3, 6))
    w = rng.standard_normal(6)
    tx = torch.from_numpy(x)
    tw = torch.from_numpy(w)
    pairs = [
        (LayerNorm(6, residual=True), F.layer_norm(tx, (6,), 1 + tw)),
        (RMSNorm(6, eps=1e-6), F.rms_norm(tx, (6,), tw, 1e-6)),
        (MultiHeadNorm(6, num_heads=3), F.group_norm(tx.reshape(15, 6), 3, tw).reshape(5, 3, 6)),
    ]
    for layer, expected in pairs:
        found, _ = layer.forward({"w": w}, x)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-10, atol=1e-12)
    W = rng.standard_normal((6, 4))
    y, _, _ = CausalConv(6).forward({"W": W, "b": w}, x)
    padded = F.pad(tx.permute(1, 2, 0), (3, 0))
    expected = F.conv1d(padded, torch.from_numpy(W[:, None, :]), tw, groups=6).permute(2, 0, 1)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-10, atol=1e-12)


def test_the_feed_forward_layer_has_the_dropout_of_the_slstm():
    """Unless it has a rate of its own."""
    for dropout, ffn_dropout, expected in ((0.5, None, 0.5), (0.5, 0.0, 0.0)):
        stack = xlstm.xLSTMStack(4, 1, [0], 2, dropout=dropout, ffn_dropout=ffn_dropout)
        assert stack.parts["blocks.0"].ffn_rate == expected


def test_initial_values():
    stack = xlstm.xLSTMStack(16, 3, [1], 2)
    params = stack.init(0, "numpy", "float64")
    bias = params["blocks.1.cell.b"].reshape(4, 2, 8)
    k = np.arange(8) / 7
    np.testing.assert_allclose(bias[1], [5 - 12 * k ** (0.3 + 1.3 / 2)] * 2)
    np.testing.assert_array_equal(bias[[0, 2, 3]], 0)
    np.testing.assert_array_equal(params["blocks.1.cell.Wh"], 0)
    np.testing.assert_allclose(params["blocks.0.gates.b"][2:], [3, 6])
    assert np.all(xlstm.sLSTM(1, 4, forget_bias=2.0).init(0, "numpy")["0.b"][4:8] == 2)
    assert not params["blocks.0.gates.W"].any()
    assert abs(params["blocks.0.up.W"].std() - (2 / 80) ** 0.5) < 0.02
    assert abs(params["blocks.0.down.W"].std() - 2 / 3 / 4) < 0.02
