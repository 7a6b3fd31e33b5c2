"""Parts of blocks, blocks and stacks: PyTorch's numbers, initial values, options, errors."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import xlstm
from tests.registry import check, given
from xlstm.arrays.convert import to_numpy
from xlstm.layers.conv import CausalConv
from xlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm
from xlstm.layers.sequence import complete


def test_gradient_of_a_limited_mlstm(be, rng, monkeypatch):
    """With a limit so low that it matters to half of all inputs, in both layers."""
    monkeypatch.setattr("xlstm.layers.matrix_memory.fourth_root", lambda xp, dtype: 0.6)
    layer = xlstm.mLSTM(2, 4, 2, num_heads=2, chunk_size=2, dropout=0.3)
    check(layer, *given(layer, be, rng, 4))


def test_a_state_on_a_gpu_takes_no_more_memory_than_its_arrays(monkeypatch):
    """Each value is filled in by one launch; the m of an mLSTM is much smaller than its C."""
    layer, made = xlstm.mLSTM(4, 64, num_heads=2), {}
    monkeypatch.setattr("xlstm.layers.sequence.fuse.compiles", lambda xp: True)
    views = "xlstm.layers.sequence.foreach.views"  # of parts of a longer array, which are made from addresses on a GPU
    monkeypatch.setattr(views, lambda a, shapes, starts: [a[starts[0] :][: math.prod(shapes[0])].reshape(shapes[0])])
    gpu = SimpleNamespace(
        reshape=np.reshape,
        zeros=lambda n, **how: made.setdefault(0.0, np.zeros(n, **how)),
        full=lambda n, value, **how: made.setdefault(value, np.full(n, value, **how)),
    )
    C, n, m = complete("mLSTM", gpu, "state", None, layer.states, 3, layer.init(0, "numpy"))
    assert {value: a.size for value, a in made.items()} == {0.0: C.size + n.size, -np.inf: 64}
    np.testing.assert_array_equal(m, np.full((1, 3, 2), -np.inf))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "norm", [LayerNorm(96), RMSNorm(96), MultiHeadNorm(96, num_heads=3)], ids=lambda n: type(n).__name__
)
def test_rows_of_a_norm_do_not_depend_on_others(rng, norm, dtype):
    """Also where there are so many that the loop is compiled, and one holds NaN or squares that are infinite."""
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
    x, w = rng.standard_normal((5, 3, 6)), rng.standard_normal(6)
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
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


def test_initial_values():
    stack = xlstm.xLSTMStack(16, 3, [1], 2)
    params = stack.init(0, "numpy", "float64")
    bias = params["blocks.1.cell.b"].reshape(4, 2, 8)
    k = np.arange(8) / 7
    np.testing.assert_allclose(bias[1], [5 - 12 * k ** (0.3 + 1.3 / 2)] * 2)
    np.testing.assert_array_equal(bias[[0, 2, 3]], 0)
    np.testing.assert_array_equal(params["blocks.1.cell.Wh"], 0)
    np.testing.assert_allclose(params["blocks.0.gates.b"][2:], [3, 6])
    assert not params["blocks.0.gates.W"].any()
    assert abs(params["blocks.0.up.W"].std() - (2 / 80) ** 0.5) < 0.02
    assert abs(params["blocks.0.down.W"].std() - 2 / 3 / 4) < 0.02


def test_dropout_of_the_feed_forward_layer():
    """By default as that of the sLSTM, else a rate of its own."""
    for dropout, ffn_dropout, expected in (
        (0.5, None, "1 1"),
        (0.5, 0.0, "1 0"),
        (0.0, 0.5, "0 1"),
        (0.0, None, "0 0"),
    ):
        stack = xlstm.xLSTMStack(4, 1, [0], 2, dropout=dropout, ffn_dropout=ffn_dropout)
        assert stack.random == ("1" in expected)
        _, _, saved = stack.forward(stack.init(backend="numpy"), np.ones((3, 2, 4), "float32"), seed=0)
        masks = saved["blocks.0"].mask, saved["blocks.0"].ffn_mask
        assert " ".join(str(int(mask is not None)) for mask in masks) == expected


def test_the_smallest_factor_gives_a_width():
    """Divided by 64 it is 0, which no layer has."""
    assert xlstm.mLSTMBlock(4, 2, proj_factor=5e-324).inner == 64
    stack = xlstm.xLSTMStack(4, 2, [1], 2, proj_factor=5e-324, ffn_proj_factor=5e-324)
    assert all(array.size for array in stack.init(0, "numpy").values())


def test_value_of_a_linear_map(be, rng):
    layer = xlstm.Linear(3, 2)
    params = layer.init(1, be)
    x = rng.standard_normal((5, 4, 3))
    y, _ = layer.forward(params, be.asarray(x))
    expected = np.einsum("tbi,oi->tbo", x, to_numpy(params["W"])) + to_numpy(params["b"])
    np.testing.assert_allclose(to_numpy(y), expected, rtol=1e-12, atol=1e-14)
