"""Parts of blocks, blocks and stacks: gradients, PyTorch's numbers, lengths, steps, errors."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.registry import OPTIONS, PATCHES, alone, flat, make, numbered
from xlstm.arrays.convert import to_numpy
from xlstm.layers.blocks.block import GatedFeedForward, ResidualFeedForward
from xlstm.layers.conv import CausalConv
from xlstm.layers.linear import Embedding, HeadwiseLinear, Linear
from xlstm.layers.norm import LayerNorm, MultiHeadNorm, RMSNorm
from xlstm.layers.sequence import Leaf, complete
from xlstm.models import SequenceModel, TiRex, TiRex2

POINTWISE = [
    Linear(4, 3, bias=False, std=0.1),
    HeadwiseLinear(6, 2),
    HeadwiseLinear(6, 3, bias=True),
    LayerNorm(4),
    LayerNorm(4, residual=True, bias=True, eps=0.1),
    RMSNorm(4, bias=True),
    MultiHeadNorm(6, num_heads=2, residual=True),
    *(GatedFeedForward(4, 3, activation=name) for name in ("gelu", "silu", "relu", "square_relu", "sigmoid", "selu")),
    GatedFeedForward(4, 3, bias=True),
    *(ResidualFeedForward(4, 3, 5, activation=name) for name in ("gelu", "silu", "relu")),
]
SLSTM = [
    {},
    {"num_heads": 2},
    {"num_heads": 4, "forget_gate": "exponential"},
    {"num_heads": 2, "num_layers": 2, "bidirectional": True},
    {"num_heads": 2, "batch_first": True, "bias": False, "recurrent_dropout": 0.4},
    {"num_layers": 2, "reverse": True, "dropout": 0.3},
]
SEQUENCES = [
    CausalConv(2),
    CausalConv(3, 1),
    CausalConv(2, 6),
    xlstm.mLSTM(2, 4),
    xlstm.mLSTM(2, 4, 2, num_heads=2, qk_size=6, chunk_size=2, eps=0.1),
    xlstm.mLSTM(2, 3, 2, num_heads=3, batch_first=True, bias=False, dropout=0.3, forget_gate="exponential"),
    xlstm.mLSTMBlock(3, 2, chunk_size=2, proj_factor=1.0, qkv_block_size=2),
    xlstm.mLSTMBlock(3, 1, bias=True, dropout=0.3, eps=0.1, conv_kernel_size=1),
    xlstm.sLSTMBlock(4, 2),
    xlstm.sLSTMBlock(4, 1, dropout=0.3, conv_kernel_size=0, recurrent_init="uniform"),
    xlstm.sLSTMBlock(4, 4, ffn_proj_factor=0),
    xlstm.xLSTMStack(4, 2, [1], 2, chunk_size=3),
    xlstm.xLSTMStack(4, 2, [0], 2, dropout=0.2, post_norm=False, bias=True),
    xlstm.xLSTMLarge(4, 2, 2, chunk_size=3),
    xlstm.xLSTMLarge(4, 1, 1, bias=True, gate_cap=None, qk_size=3, v_size=5, post_norm=False),
    xlstm.xLSTMLarge(4, 1, 1, bias=True, post_norm_bias=False),
    xlstm.sLSTMBlock(4, 1, ffn_dropout=0.3),
    TiRex(4, 2, 2, **PATCHES),
    TiRex2(4, [("slstm", 2, 1), ("mlstm", 2, 2)], output_ff_size=5, horizon=2, **PATCHES),
    *(xlstm.sLSTM(2, 4, **options) for options in SLSTM),
    *(
        SequenceModel(make(kind, {"num_layers": 2, "direction": "bidirectional"}), 2, last=last)
        for kind in OPTIONS
        for last in (False, True)
    ),
]
EACH_STEP = [layer for layer in SEQUENCES if not getattr(layer, "last", False)]
STREAMS = [layer for layer in SEQUENCES if layer.directions == ("",)]
WITH_OPTIONS = [layer for kind in OPTIONS for o in alone(kind) if (layer := make(kind, o)).directions == ("",)]


def params_of(layer, be, rng):
    """Random, but such that nothing is far from where gradients are of a size."""
    return {name: be.asarray(p + 0.5 * rng.standard_normal(p.shape)) for name, p in layer.draw(rng).items()}


def like(be, rng, state):
    """A random state; normalisers are positive."""
    if isinstance(state, tuple):
        return tuple(like(be, rng, part) for part in state)
    return be.asarray(0.5 + rng.random(tuple(state.shape)))


@pytest.mark.parametrize("layer", **numbered(POINTWISE))
@pytest.mark.parametrize("outer", [(), (3, 2)], ids=["vector", "array"])
def test_pointwise_gradient(be, rng, layer, outer):
    params, x = params_of(layer, be, rng), be.asarray(rng.standard_normal((*outer, layer.input_size)))

    def forward(params, x):
        y, saved = layer.forward(params, x)
        return y, (params, saved)

    xlstm.gradcheck(forward, lambda saved, dy: layer.backward(*saved, dy), (params, x))


@pytest.mark.parametrize("layer", **numbered(SEQUENCES))
@pytest.mark.parametrize("lengths", [None, [3, 0, 5]], ids=["", "lengths"])
def test_gradient(rng, layer, lengths):
    """By x, every parameter and every initial state, from y and every final state."""
    be = make_backend("numpy")
    params, outer = params_of(layer, be, rng), (3, 5) if layer.batch_first else (5, 3)
    x = be.asarray(rng.standard_normal((*outer, layer.input_size)))
    _, end, _ = layer.forward(params, x, seed=1)
    state = like(be, rng, end)

    def forward(params, x, state):
        y, end, saved = layer.forward(params, x, state, lengths=lengths, seed=1)
        return (y, end), (params, saved)

    xlstm.gradcheck(forward, lambda saved, d: layer.backward(*saved, *d), (params, x, state), directions=1)


def test_gradient_of_a_limited_mlstm(be, rng, monkeypatch):
    """With a limit so low that it matters to half of all inputs, in both layers."""
    monkeypatch.setattr("xlstm.layers.matrix_memory.fourth_root", lambda xp, dtype: 0.6)
    layer = xlstm.mLSTM(2, 4, 2, num_heads=2, chunk_size=2, dropout=0.3)
    params, x = params_of(layer, be, rng), be.asarray(rng.standard_normal((4, 3, 2)))

    def forward(params, x):
        y, end, saved = layer.forward(params, x, seed=1)
        return (y, end), (params, saved)

    xlstm.gradcheck(forward, lambda saved, d: layer.backward(*saved, *d)[:2], (params, x), directions=1)


@pytest.mark.parametrize("layer", **numbered(STREAMS))
def test_steps_are_the_whole_sequence(be, rng, layer):
    compare_steps(be, rng, layer)


@pytest.mark.parametrize("layer", **numbered(WITH_OPTIONS))
def test_steps_with_each_option_are_the_whole_sequence(rng, layer):
    compare_steps(make_backend("numpy"), rng, layer)


def compare_steps(be, rng, layer):
    params, B = params_of(layer, be, rng), 3
    x = rng.standard_normal((7, B, layer.input_size))
    y, end, saved = layer.forward(params, be.asarray(x.swapaxes(0, 1) if layer.batch_first else x), train=False)
    assert saved is None
    y = to_numpy(y).swapaxes(0, 1) if layer.batch_first else to_numpy(y)
    state = None
    for t in range(7):
        now, state = layer.step(params, be.asarray(x[t]), state)
        np.testing.assert_allclose(to_numpy(now), y[t], rtol=1e-10, atol=1e-11)
    for a, b in zip(flat(state), flat(end), strict=True):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("layer", **numbered(EACH_STEP))
def test_what_lies_past_an_end_does_not_matter(rng, layer):
    """Not even if it is no number; and a batch of one sequence gives the same."""
    be, lengths = make_backend("numpy"), np.array([4, 0, 6])
    params = params_of(layer, be, rng)
    x = rng.standard_normal((6, 3, layer.input_size))
    swap = (lambda a: a.swapaxes(0, 1)) if layer.batch_first else (lambda a: a)
    y, end, saved = layer.forward(params, swap(x), lengths=lengths, train=False, keep=True)
    dstate = like(be, rng, end)
    grads, dx, start = layer.backward(params, saved, np.ones_like(y), dstate)
    spoiled = np.where((np.arange(6)[:, None] < lengths)[..., None], x, np.nan)
    y2, end2, saved2 = layer.forward(params, swap(spoiled), lengths=lengths, train=False, keep=True)
    dy = np.where(swap((np.arange(6)[:, None] < lengths)[..., None]), 1.0, np.nan)
    dy = np.broadcast_to(dy.reshape(dy.shape[:2] + (1,) * (y.ndim - 2)), y.shape)
    grads2, dx2, start2 = layer.backward(params, saved2, dy, dstate)
    assert np.all(swap(y)[4:, 0] == 0)
    assert np.all(swap(dx)[4:, 0] == 0)
    for a, b in zip(
        [y, dx, *flat(end), *flat(start), *grads.values()],
        [y2, dx2, *flat(end2), *flat(start2), *grads2.values()],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    alone, _, _ = layer.forward(params, swap(x[:4, :1]), train=False)
    np.testing.assert_allclose(swap(alone)[:, 0], swap(y)[:4, 0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("layer", **numbered(EACH_STEP))
@pytest.mark.parametrize("begun", [False, True], ids=["from rest", "from a state"])
@pytest.mark.parametrize("lengths", [[0], [3, 0, 5]], ids=["alone", "among others"])
def test_a_sequence_without_steps_keeps_its_state_and_passes_its_gradient_on(rng, layer, begun, lengths):
    """The state after it is that before it, also where m is -inf, and so are their gradients.

    On NumPy: tests/layers/test_cupy_dtypes.py has such a sequence on CuPy.
    """
    be, B, at = make_backend("numpy"), len(lengths), lengths.index(0)
    params, outer = params_of(layer, be, rng), (B, 5) if layer.batch_first else (5, B)
    x = be.asarray(rng.standard_normal((*outer, layer.input_size)))
    state = like(be, rng, layer.forward(params, x, seed=1)[1]) if begun else None
    y, end, saved = layer.forward(params, x, state, lengths=lengths, seed=1)
    dend = like(be, rng, end)
    _, _, dstart = layer.backward(params, saved, be.xp.ones_like(y), dend)
    for leaf, *of_leaf in zip(leaves(layer), *map(flat, (dend, dstart, end, state if begun else end)), strict=True):
        axis = list(leaf.dims(None)).index("B")
        d, d0, s, s0 = (np.take(to_numpy(a), at, axis) for a in of_leaf)
        # That of m is a sum over C and n less the same sum.
        np.testing.assert_allclose(d0, d, rtol=1e-9 if leaf.name == "m" else 0, err_msg=leaf.name)
        np.testing.assert_array_equal(s, s0)


def leaves(layer):
    def walk(part):
        return [one for leaf in part for one in ([leaf] if isinstance(leaf, Leaf) else walk(leaf))]

    return walk(layer.states)


@pytest.mark.parametrize("layer", **numbered([*SEQUENCES, SequenceModel(xlstm.LSTM(2, 3), 2, last=True)]))
def test_what_is_returned_is_the_callers(rng, layer):
    """Changed in place, it changes no gradient."""
    be = make_backend("numpy")
    params, x = params_of(layer, be, rng), rng.standard_normal((3, 5, layer.input_size))
    x = x if layer.batch_first else x.swapaxes(0, 1)
    found = []
    for spoil in (False, True):
        y, end, saved = layer.forward(params, x, train=False, keep=True)
        dstate = like(be, np.random.default_rng(0), end)
        dy = np.array(y)
        if spoil:
            for a in flat(end):
                a[...] = 7
        grads, dx, _ = layer.backward(params, saved, dy, dstate)
        found.append([dx, *grads.values()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


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


def test_embedding_gradient(be, rng):
    layer = Embedding(5, 3)
    tokens = be.asarray(rng.integers(0, 5, (4, 6)))

    def forward(params):
        y, saved = layer.forward(params, tokens)
        return y, (params, saved)

    xlstm.gradcheck(forward, lambda saved, dy: (layer.backward(*saved, dy)[0],), (layer.init(0, be),))


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xlstm.mLSTM(2, 5, num_heads=2), "mLSTM: hidden_size is 5, expected a multiple of num_heads, 2"),
        (lambda: xlstm.mLSTM(2, 4, dropout=0.1), "mLSTM: dropout is 0.1 but acts between layers"),
        (lambda: xlstm.mLSTM(2, 4, forget_gate="x"), "mLSTM: forget_gate is 'x', expected one of sigmoid, exponential"),
        (lambda: xlstm.mLSTMBlock(4, 3), "mLSTMBlock: inner is 64, expected a multiple of num_heads, 3"),
        (lambda: xlstm.mLSTMBlock(4, 1, qkv_block_size=5), "inner is 64, expected a multiple of qkv_block_size, 5"),
        (lambda: xlstm.sLSTMBlock(5, 2), "sLSTMBlock: size is 5, expected a multiple of num_heads, 2"),
        (lambda: xlstm.xLSTMStack(4, 2, [2], 2), "slstm_at.0. is 2, expected at most 1"),
        (lambda: xlstm.xLSTMStack(4, 0), "num_blocks is 0, expected 1 or more"),
        (lambda: xlstm.xLSTMLarge(4, 1, 3), "xLSTMLarge: qk_size is 2, expected a multiple of num_heads, 3"),
        (lambda: GatedFeedForward(4, 4, activation="tanh"), "activation is 'tanh', expected one of gelu, silu"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_bad_input_is_named(rng):
    layer = xlstm.xLSTMStack(4, 2, [1], 2)
    params, x = layer.init(0, "numpy"), np.zeros((3, 2, 4), "float32")
    _, _, saved = layer.forward(params, x)
    with pytest.raises(ValueError, match=r"state\[0\]\[1\] C has shape"):
        layer.forward(params, x, ((None, (np.zeros((1, 2, 3, 3), "float32"), None, None)), None))
    with pytest.raises(TypeError, match=r"state\[1\]\[1\] h has dtype float64"):
        layer.forward(params, x, (None, (None, (np.zeros((2, 4)), None, None, None))))
    with pytest.raises(ValueError, match=r"blocks\.0\.up\.W is missing"):
        layer.forward({n: p for n, p in params.items() if n != "blocks.0.up.W"}, x)
    with pytest.raises(ValueError, match="expected that of xLSTMStack"):
        xlstm.xLSTMStack(4, 2, [0], 2).backward(params, saved, x)


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
    with pytest.raises(ValueError, match=r"sLSTMBlock: ffn_dropout is 1\.5, expected 0 <= ffn_dropout < 1"):
        xlstm.sLSTMBlock(4, ffn_dropout=1.5)


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


def test_bad_input_of_a_linear_map_is_named():
    layer = xlstm.Linear(3, 2)
    params = layer.init(1, "numpy", "float64")
    with pytest.raises(ValueError, match=r"x has shape \(4, 2\), expected \(\.\.\., I\) = \(\.\.\., 3\)"):
        layer.forward(params, np.zeros((4, 2)))
    with pytest.raises(ValueError, match="b is missing"):
        layer.forward({"W": params["W"]}, np.zeros((4, 3)))
    _, saved = layer.forward(params, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"dy has shape \(4, 3\), expected that of y, \(4, 2\)"):
        layer.backward(params, saved, np.zeros((4, 3)))
