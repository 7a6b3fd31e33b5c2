"""Pictures of networks: parameters, gates, saturation, memory and gradients, and the numbers in
them.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

import xlstm
from tests.conftest import later
from tests.plots.drawn import LAYERS, B, D, H, T, ran, texts
from xlstm import plots
from xlstm.cells import gru
from xlstm.models import SequenceModel
from xlstm.plots.activity import traces

later("matplotlib")


@pytest.mark.parametrize("name", LAYERS)
def test_numbers_are_the_same_on_every_backend(be, x, name):
    layer = LAYERS[name]
    params, saved = ran(layer, x)
    given = {key: be.asarray(p) for key, p in params.items()}
    _, _, kept = layer.forward(given, be.asarray(x), train=False, keep=True)
    (one,) = traces("test", saved)
    (other,) = traces("test", kept)
    for key, values in {**one.gates, **one.states}.items():
        np.testing.assert_allclose(
            {**other.gates, **other.states}[key], values, rtol=1e-9, atol=1e-12
        )
    assert (one.retained is None) == (other.retained is None)
    if one.retained is not None:
        np.testing.assert_allclose(other.retained, one.retained, rtol=1e-9)
    rows = plots.gradient_norms(layer, params, x)
    for row, same in zip(rows, plots.gradient_norms(layer, given, be.asarray(x)), strict=True):
        np.testing.assert_allclose(same.norms, row.norms, rtol=1e-9)
    assert plots.parameter_table(given) == plots.parameter_table(params)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def test_parameters_have_their_numbers_and_a_panel_each():
    params = {"0.Wx": np.array([[3.0, -4.0]]), "0.b": np.arange(6.0)}
    first, second = plots.parameter_table(params)
    assert first == ("0.Wx", (1, 2), 5.0, -0.5, 3.5, -4.0, 3.0)
    assert second.shape == (6,)
    figure = plots.parameters(params)
    assert [sum(patch.get_height() for patch in axes.patches) for axes in figure.axes] == [2, 6]
    assert "0.Wx\n1 x 2, norm 5" in texts(figure)


def test_gates_are_drawn_as_saved(x):
    _, saved = ran(xlstm.LSTM(D, H), x, lengths=[7, 5, 2])
    panels = [axes for axes in plots.gates(saved, sequence=1).axes if axes.images]
    assert [axes.get_title(loc="left").split()[1] for axes in panels] == [*"iofghc"]
    drawn = [*saved.gates[:5, :, 1].swapaxes(0, 1), saved.h[:5, 1], saved.c[:5, 1]]
    for axes, values in zip(panels, drawn, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), values.T)
    assert panels[0].images[0].get_clim() == (0, 1)
    assert panels[3].images[0].get_clim() == (drawn[3].min(), drawn[3].max())


def test_layers_are_named_as_their_parameters(x):
    params, saved = ran(xlstm.LSTM(D, H, 2, bidirectional=True), x)
    assert plots.layers_of(saved) == ["0", "0.reverse", "1", "1.reverse"]
    assert {name.rpartition(".")[0] for name in params} == set(plots.layers_of(saved))
    drawn = plots.gates(saved, "1.reverse").axes[0].images[0].get_array()
    np.testing.assert_array_equal(drawn, saved["1.reverse"].gates[:, 0, 0].T)
    stack = xlstm.xLSTMStack(8, 2, slstm_at=[1], num_heads=2)
    _, saved = ran(SequenceModel(stack, 1, inputs=D), x)
    assert plots.layers_of(saved) == ["recurrent.blocks.0", "recurrent.blocks.1.cell"]
    assert len(plots.gates(saved, "recurrent.blocks.0").axes) == 2 * 2


def test_gates_of_an_mlstm_are_those_of_its_weights(x):
    layer = xlstm.mLSTM(D, H, num_heads=2)
    params = layer.init(seed=1, backend="numpy", dtype="float64")
    params = {name: p + np.random.default_rng(2).normal(size=p.shape) for name, p in params.items()}
    saved = layer.forward(params, x, keep=True, train=False)[2]
    a = x @ params["0.Wx"].T + params["0.b"]
    (trace,) = traces("test", saved)
    np.testing.assert_allclose(trace.gates["log i"], a[..., -4:-2], rtol=1e-12)
    np.testing.assert_allclose(trace.gates["f"], sigmoid(a[..., -2:]), rtol=1e-12)
    np.testing.assert_allclose(trace.gates["o"], sigmoid(a[..., 3 * H : 4 * H]), rtol=1e-12)


def test_saturation_counts_values_before_the_ends(x):
    layer = xlstm.GRU(D, H)
    lengths = [7, 5, 2]
    params = {
        name: 6 * p for name, p in layer.init(seed=0, backend="numpy", dtype="float64").items()
    }
    saved = layer.forward(params, x, keep=True, train=False, lengths=lengths)[2]
    rows = plots.saturation_table(saved)
    assert [(row.layer, row.gate) for row in rows] == [("0", "z"), ("0", "r")]
    for k, row in enumerate(rows):
        values = np.concatenate([saved.gates[:n, k, b].ravel() for b, n in enumerate(lengths)])
        assert row.below == np.mean(values < 0.05)
        assert row.above == np.mean(values > 0.95)
        assert 0 < row.below < 1
    (axes,) = plots.saturation(saved).axes
    widths = [patch.get_width() for patch in axes.patches]
    np.testing.assert_allclose(
        widths, 100 * np.array([rows[1].below, rows[0].below, rows[1].above, rows[0].above])
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0  r", "0  z"]


@pytest.mark.parametrize(
    ("name", "gates"),
    [
        ("lstm", "iof"),
        ("coupled", "io"),
        ("gru", "zr"),
        ("reset before", "zr"),
        ("slstm", "o"),
        ("mlstm", "fo"),
    ],
)
def test_gates_that_are_shares(x, name, gates):
    _, saved = ran(LAYERS[name], x)
    assert "".join(row.gate for row in plots.saturation_table(saved)) == gates


def test_memory_is_the_mean_forget_gate(x):
    expected = {
        "lstm": lambda g: g[:, 2],
        "coupled": lambda g: 1 - g[:, 0],
        "gru": lambda g: g[:, 0],
    }
    for name, of in {**expected, "reset before": expected["gru"]}.items():
        _, saved = ran(LAYERS[name], x)
        rows = plots.memory_table(saved)
        means = of(saved.gates).mean(axis=(0, 1))
        np.testing.assert_allclose([row.forget for row in rows], means, rtol=1e-12)
        np.testing.assert_allclose([row.steps for row in rows], -1 / np.log(means), rtol=1e-12)
        assert [row.unit for row in rows] == list(range(H))
    _, saved = ran(xlstm.LSTM(D, H, bidirectional=True), x, lengths=[2, 7, 5])
    for name in ("0", "0.reverse"):  # in the order of time
        np.testing.assert_array_equal(saved[name].retained, saved[name].gates[:, 2])


@pytest.mark.parametrize("name", ["slstm", "exponential"])
def test_memory_of_an_slstm_is_that_before_stabilising(x, name):
    params, saved = ran(LAYERS[name], x)
    h0 = np.concatenate((np.zeros((1, B, H)), saved.h[:-1]))
    a = (x @ params["0.Wx"].T + h0 @ params["0.Wh"][:, 0].reshape(4 * H, H).T + params["0.b"])[
        ..., H : 2 * H
    ]
    f = sigmoid(a) if name == "slstm" else np.exp(a)
    means = f.mean(axis=(0, 1))
    rows = plots.memory_table(saved)
    np.testing.assert_allclose([row.forget for row in rows], means, rtol=1e-12)
    assert [row.steps == math.inf for row in rows] == list(means > 1)
    assert any(means > 1) == (name == "exponential")


def test_memory_is_drawn_by_layer(x):
    """Units that forget nothing are counted."""
    layer = xlstm.LSTM(D, H, 2)
    params = layer.init(seed=0, backend="numpy", dtype="float64")
    params["0.b"][2 * H] = 100.0  # the forget gate of unit 0 is 1
    saved = layer.forward(params, x, keep=True, train=False)[2]
    rows = plots.memory_table(saved)
    assert rows[0] == ("0", 0, 1.0, math.inf)
    first, second = plots.memory(saved).axes
    heights = [sum(patch.get_height() for patch in axes.patches) for axes in (first, second)]
    assert heights == [H - 1, H]
    assert "1 of 4 infinite" in first.get_title(loc="left")
    median = np.median([row.steps for row in rows if row.layer == "1"])
    assert f"median {median:.3g} steps" in second.get_title(loc="left")
    assert first.lines[0].get_xdata()[0] == T


@dataclass(frozen=True)
class Leaky(gru.Cell):
    """A cell of a user, which says which gates are shares and what it keeps."""

    SHARES = ("r",)

    def retained(self, xp, saved):
        return saved.s[1, ...]


def test_cells_of_users_say_what_they_keep(x):
    layer = xlstm.register_cell(Leaky, "Leaky")(D, H)
    _, saved = ran(layer, x)
    assert [row.gate for row in plots.saturation_table(saved)] == ["r"]
    means = saved.gates[:, 1].mean(axis=(0, 1))
    np.testing.assert_allclose([row.forget for row in plots.memory_table(saved)], means, rtol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_inputs_as_in_one_pass(x, name):
    layer = LAYERS[name]
    params, saved = ran(layer, x)
    end = np.random.default_rng(5).normal(size=(B, layer.output_size))
    dy = np.zeros((T, B, layer.output_size))
    dy[-1] = end
    _, dx, _ = layer.backward(params, saved, dy)
    rows = {(row.of, row.layer): row for row in plots.gradient_norms(layer, params, x, end)}
    np.testing.assert_allclose(
        rows["x", ""].norms, np.linalg.norm(dx.reshape(T, -1), axis=1), rtol=1e-9
    )
    first, last = rows["x", ""].norms[[0, -1]]
    assert rows["x", ""].factor == pytest.approx((first / last) ** (1 / (T - 1)))
    for row in plots.gradient_norms(
        replace(layer, batch_first=True), params, x.swapaxes(0, 1), end
    ):
        np.testing.assert_allclose(row.norms, rows[row.of, row.layer].norms, rtol=1e-12)


def test_gradients_of_states_are_those_of_a_cut(x):
    """The gradient with respect to a state is that of the initial state of what comes after it."""
    layer = xlstm.LSTM(D, H, 2)
    params, _ = ran(layer, x)
    end = np.random.default_rng(5).normal(size=(B, H))
    rows = {(row.of, row.layer): row.norms for row in plots.gradient_norms(layer, params, x, end)}
    assert set(rows) == {("x", ""), ("h", "0"), ("h", "1"), ("c", "0"), ("c", "1")}
    for t in range(T - 1):
        _, state, _ = layer.forward(params, x[: t + 1], train=False)
        _, _, saved = layer.forward(params, x[t + 1 :], state, train=False, keep=True)
        dy = np.zeros((T - t - 1, B, H))
        dy[-1] = end
        _, _, (dh, dc) = layer.backward(params, saved, dy)
        for k in range(2):
            np.testing.assert_allclose(rows["h", str(k)][t], np.linalg.norm(dh[k]), rtol=1e-9)
            np.testing.assert_allclose(rows["c", str(k)][t], np.linalg.norm(dc[k]), rtol=1e-9)


def test_gradients_of_models(x):
    model = SequenceModel(xlstm.GRU(D, H), 2, last=True)
    params, _ = ran(model, x)
    assert {row.of for row in plots.gradient_norms(model, params, x)} == {"h", "x"}
    stack = xlstm.xLSTMLanguageModel(
        xlstm.xLSTMStack(8, 2, slstm_at=[1], num_heads=2), vocab_size=5
    )
    tokens = np.random.default_rng(0).integers(0, 5, (2, T))
    params = stack.init(backend="numpy", dtype="float64")
    # recurrent weights of blocks are 0 at first
    params = {name: p + 0.1 for name, p in params.items()}
    rows = plots.gradient_norms(stack, params, tokens)
    # and no x
    assert sorted((row.of, row.layer) for row in rows) == [("C", "0"), ("c", "1"), ("h", "1")]
    assert all(np.all(row.norms > 0) for row in rows)
