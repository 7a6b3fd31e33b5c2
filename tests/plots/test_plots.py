"""Pictures: labels, numbers in what is drawn, colours in grey, and files."""

import json
import math
import os
from dataclasses import dataclass

import numpy as np
import pytest

import xlstm
from tests.conftest import later
from tests.tables import LIBRARIES, columns_of, long_columns, table
from xlstm import optim, plots, training
from xlstm.cells import gru
from xlstm.data.batches import Windows
from xlstm.data.frames import Columns
from xlstm.data.series import series_of
from xlstm.estimators import Forecaster
from xlstm.models import SequenceModel
from xlstm.plots import figures
from xlstm.plots.activity import traces
from xlstm.plots.results import smoothed

matplotlib = later("matplotlib")
T, B, D, H = 7, 3, 2, 4
LAYERS = {
    "lstm": xlstm.LSTM(D, H),
    "coupled": xlstm.LSTM(D, H, coupled_input_forget=True),
    "peepholes": xlstm.LSTM(D, H, peepholes=True, activations=("tanh", "tanh", "tanh")),
    "gru": xlstm.GRU(D, H),
    "reset before": xlstm.GRU(D, H, reset_after=False),
    "slstm": xlstm.sLSTM(D, H),
    "exponential": xlstm.sLSTM(D, H, forget_gate="exponential"),
    "mlstm": xlstm.mLSTM(D, H, num_heads=2),
    "rnn": xlstm.RNN(D, H),
}


@pytest.fixture
def x(rng):
    return rng.normal(size=(T, B, D))


def ran(layer, x, **options):
    params = layer.init(seed=1, backend="numpy", dtype="float64")
    return params, layer.forward(params, x, keep=True, train=False, **options)[2]


def texts(figure):
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


@pytest.mark.parametrize("name", LAYERS)
def test_numbers_are_the_same_on_every_backend(be, x, name):
    layer = LAYERS[name]
    params, saved = ran(layer, x)
    given = {key: be.asarray(p) for key, p in params.items()}
    _, _, kept = layer.forward(given, be.asarray(x), train=False, keep=True)
    (one,), (other,) = traces("test", saved), traces("test", kept)
    for key, values in {**one.gates, **one.states}.items():
        np.testing.assert_allclose({**other.gates, **other.states}[key], values, rtol=1e-9, atol=1e-12)
    assert (one.retained is None) == (other.retained is None)
    if one.retained is not None:
        np.testing.assert_allclose(other.retained, one.retained, rtol=1e-9)
    rows = plots.gradient_norms(layer, params, x)
    for row, same in zip(rows, plots.gradient_norms(layer, given, be.asarray(x)), strict=True):
        np.testing.assert_allclose(same.norms, row.norms, rtol=1e-9)
    assert plots.parameter_table(given) == plots.parameter_table(params)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


# Parameters


def test_parameters_have_their_numbers_and_a_panel_each():
    params = {"0.Wx": np.array([[3.0, -4.0]]), "0.b": np.arange(6.0)}
    first, second = plots.parameter_table(params)
    assert first == ("0.Wx", (1, 2), 5.0, -0.5, 3.5, -4.0, 3.0)
    assert second.shape == (6,)
    figure = plots.parameters(params)
    assert [sum(patch.get_height() for patch in axes.patches) for axes in figure.axes] == [2, 6]
    assert "0.Wx\n1 x 2, norm 5" in texts(figure)


# Gates


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
    _, saved = ran(xlstm.mLSTMBlock(8, num_heads=2), np.ones((T, B, 8)))
    assert plots.layers_of(saved) == ["mLSTMBlock"]
    _, saved = ran(xlstm.RNN(D, H), x)
    assert len([axes for axes in plots.gates(saved).axes if axes.images]) == 1  # h


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


# Saturation


def test_saturation_counts_values_before_the_ends(x):
    layer, lengths = xlstm.GRU(D, H), [7, 5, 2]
    params = {name: 6 * p for name, p in layer.init(seed=0, backend="numpy", dtype="float64").items()}
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
    np.testing.assert_allclose(widths, 100 * np.array([rows[1].below, rows[0].below, rows[1].above, rows[0].above]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0  r", "0  z"]


@pytest.mark.parametrize(
    ("name", "gates"),
    [("lstm", "iof"), ("coupled", "io"), ("gru", "zr"), ("reset before", "zr"), ("slstm", "o"), ("mlstm", "fo")],
)
def test_gates_that_are_shares(x, name, gates):
    _, saved = ran(LAYERS[name], x)
    assert "".join(row.gate for row in plots.saturation_table(saved)) == gates


# Memory


def test_memory_is_the_mean_forget_gate(x):
    expected = {"lstm": lambda g: g[:, 2], "coupled": lambda g: 1 - g[:, 0], "gru": lambda g: g[:, 0]}
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
    a = (x @ params["0.Wx"].T + h0 @ params["0.Wh"][:, 0].reshape(4 * H, H).T + params["0.b"])[..., H : 2 * H]
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
    assert [sum(patch.get_height() for patch in axes.patches) for axes in (first, second)] == [H - 1, H]
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


# Gradients


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_inputs_as_in_one_pass(x, name):
    layer = LAYERS[name]
    params, saved = ran(layer, x)
    end = np.random.default_rng(5).normal(size=(B, layer.output_size))
    dy = np.zeros((T, B, layer.output_size))
    dy[-1] = end
    _, dx, _ = layer.backward(params, saved, dy)
    rows = {(row.of, row.layer): row for row in plots.gradient_norms(layer, params, x, end)}
    np.testing.assert_allclose(rows["x", ""].norms, np.linalg.norm(dx.reshape(T, -1), axis=1), rtol=1e-9)
    first, last = rows["x", ""].norms[[0, -1]]
    assert rows["x", ""].factor == pytest.approx((first / last) ** (1 / (T - 1)))


def test_gradients_of_states_are_those_of_a_cut(x):
    """The gradient by a state is that of the initial state of what comes after it."""
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


def test_gradients_with_batch_first(x):
    layer = xlstm.LSTM(D, H)
    params = layer.init(seed=1, backend="numpy", dtype="float64")
    rows = plots.gradient_norms(layer, params, x, seed=3)
    swapped = plots.gradient_norms(xlstm.LSTM(D, H, batch_first=True), params, x.swapaxes(0, 1), seed=3)
    for row, other in zip(rows, swapped, strict=True):
        np.testing.assert_allclose(row.norms, other.norms, rtol=1e-12)


def test_gradients_of_models(x):
    model = SequenceModel(xlstm.GRU(D, H), 2, last=True)
    params, _ = ran(model, x)
    assert {row.of for row in plots.gradient_norms(model, params, x)} == {"h", "x"}
    stack = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(8, 2, slstm_at=[1], num_heads=2), vocab_size=5)
    tokens = np.random.default_rng(0).integers(0, 5, (2, T))
    params = stack.init(backend="numpy", dtype="float64")
    params = {name: p + 0.1 for name, p in params.items()}  # recurrent weights of blocks are 0 at first
    rows = plots.gradient_norms(stack, params, tokens)
    assert sorted((row.of, row.layer) for row in rows) == [("C", "0"), ("c", "1"), ("h", "1")]  # and no x
    assert all(np.all(row.norms > 0) for row in rows)


def test_gradients_are_drawn_on_a_logarithmic_axis(x):
    runs = {}
    for name in ("lstm", "rnn"):
        runs[name] = plots.gradient_norms(LAYERS[name], ran(LAYERS[name], x)[0], x)
    figure = plots.gradients(runs)
    assert [axes.get_yscale() for axes in figure.axes] == ["log"] * 3  # h, c, x
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 2]
    h = next(row for row in runs["rnn"] if row.of == "h")
    np.testing.assert_array_equal(figure.axes[0].lines[1].get_ydata(), h.norms)
    assert f"rnn layer 0: {h.factor:.3g}" in texts(figure)


# Training


@pytest.fixture
def run(rng, tmp_path):
    model = SequenceModel(xlstm.RNN(D, 3), 1, last=True)
    data = Windows(rng.normal(size=(24, 5, D)), rng.normal(size=(24, 1)), batch_size=4)
    start = model.init(backend="numpy")
    return training.train(model, start, data, optim.adam(1e-2), epochs=4, validation=data, checkpoints=tmp_path)


def test_curves_are_those_of_the_history(run, tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    found = plots.course(tmp_path)
    assert found.loss.tolist() == [[line["total"], line["loss"]] for line in lines if "loss" in line]
    assert found.norm.tolist() == [[line["total"], line["norm"]] for line in lines if "norm" in line]
    assert found.validation.tolist() == [[6 * k, v] for k, v in enumerate(run.validations, 1)]
    own = plots.course(run)
    assert own.loss.tolist() == found.loss.tolist()
    assert own.validation.tolist() == found.validation.tolist()
    assert len(own.norm) == 0
    assert len(plots.curves(run).axes) == 2
    figure = plots.curves({"a": tmp_path, "b": tmp_path / "history.jsonl"})
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), found.loss[:, 1])
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_xydata(), found.validation)
    assert {"a", "b"} <= set(texts(figure))


def test_smoothed_curves_are_means_around_each_value(run, rng, tmp_path):
    values = rng.normal(size=20)
    expected = [values[k - r : k + r + 1].mean() for k in range(20) for r in [min(2, k, 19 - k)]]
    np.testing.assert_allclose(smoothed(values, 5), expected, rtol=1e-12)
    run.losses[:3] = [math.nan, math.inf, 3.0]
    assert plots.course(run).loss[0].tolist() == [3, 3]
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"history\.jsonl has no losses, expected the history of a run that made a"):
        plots.curves(tmp_path)


# Results


def test_confusion_counts_pairs():
    truth, predicted = ["b", "a", "b", "b"], ["b", "b", "a", "b"]
    labels, counts = plots.confusion_counts(truth, predicted)
    assert (labels, counts.tolist()) == (["a", "b"], [[0, 1], [1, 2]])
    labels, counts = plots.confusion_counts(np.array(truth), np.array(predicted), ["b", "a", "c"])
    assert counts.tolist() == [[2, 1, 0], [1, 0, 0], [0, 0, 0]]
    (axes, *_) = plots.confusion(truth, predicted).axes
    assert [t.get_text() for t in axes.texts] == ["0\n0 %", "1\n100 %", "1\n33 %", "2\n67 %"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b"]
    assert "2 of 4 right" in axes.get_title(loc="left")


def test_errors_of_forecasts_are_drawn_by_horizon():
    figure = plots.forecast_errors({"LSTM": [1.0, 2.0], "persistence": [2.0, 3.0]}, "kg", "day")
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [[[1, 1], [2, 2]], [[1, 2], [2, 3]]]
    assert {"days ahead", "RMSE (kg)", "LSTM", "persistence"} <= set(texts(figure))


@pytest.mark.parametrize("library", LIBRARIES)
def test_results_of_a_fitted_forecaster_are_drawn(library):
    """Two series of two targets, from a table: a fan for each, errors by target, and how training went."""
    columns = long_columns(np.random.default_rng(0).normal(size=(140, 2)).cumsum(axis=0), "days", (140, 130))
    columns = {"shop 1": columns.pop("shop"), **columns}  # a name that ends as one of a column of quantiles may
    given = table(library, columns)
    quick = {"window": 8, "horizon": 3, "hidden_size": 2, "epochs": 1, "refit": False, "backend": "numpy"}
    forecaster = Forecaster(series_id="shop 1", candidates=("network",), **quick).fit(given)
    figure = plots.fans(given, forecaster.predict_quantiles(given))
    titles = [axes.get_title(loc="left").partition(":")[0] for axes in figure.axes]
    assert titles == ["sales of north", "price of north", "sales of south", "price of south"]
    median = columns_of(forecaster.predict_quantiles(given))["price 0.5"]
    np.testing.assert_array_equal(figure.axes[3].lines[1].get_ydata()[1:], median[3:])
    score = forecaster.score(given)
    errors = plots.forecast_errors(score.errors, measure="MAE")
    assert len(errors.axes) == 2
    np.testing.assert_array_equal(errors.axes[1].lines[0].get_ydata(), score.errors["model"].mae[:, 1])
    assert [line.strip()[:8] for line in repr(score).splitlines()[2:4]] == ["1, sales", "1, price"]
    assert len(plots.curves(forecaster).axes) == len(plots.curves(forecaster.trained_).axes)
    with pytest.raises(ValueError, match=r"fans: ahead has columns .*, expected those of predict_quantiles"):
        plots.fans(given, given)


# Wrong arguments

LSTM = xlstm.LSTM(D, H)
BOTH = xlstm.LSTM(D, H, bidirectional=True)
START = LSTM.init(backend="numpy", dtype="float64")
X = np.random.default_rng(3).normal(size=(T, B, D))


def kept(layer):
    return ran(layer, X)[1]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: plots.parameters({"W": np.array([1.0, math.nan])}), ValueError, "W is .*, expected finite numbers"),
        (lambda: plots.parameters({f"{k}": X for k in range(121)}), ValueError, "121 parameters, expected at most 120"),
        (lambda: plots.gates(kept(xlstm.LSTM(D, H, 2))), ValueError, "gates: layer is None, expected one of 0, 1"),
        (lambda: plots.gates(kept(LSTM), "2"), ValueError, "layer is '2', expected one of 0"),
        (lambda: plots.gates(linear()), TypeError, "gates: saved is .* expected what forward of a recurrent layer kee"),
        (lambda: plots.saturation(kept(LAYERS["rnn"])), ValueError, r"saturation: RNN\(2, 4\) has no gate with values"),
        (lambda: plots.memory(kept(LAYERS["rnn"])), ValueError, r"RNN\(2, 4\) has no forget gate, .* with `retained`"),
        (lambda: plots.gradient_norms(LSTM, START, X[:2]), ValueError, r"x is .* \(2, 3, 2\), expected 3 time steps"),
        (lambda: plots.gradient_norms(LSTM, START, X, np.ones((3, 5))), ValueError, r"dy has shape \(3, 5\), expected"),
        (lambda: plots.gradient_norms(BOTH, START, X), ValueError, "has a reverse direction, expected a layer without"),
        (lambda: plots.gradients({}), ValueError, r"norms is \{\}, expected what gradient_norms returns"),
        (lambda: plots.curves({}), ValueError, "runs are empty"),
        (lambda: plots.curves([1, 2]), TypeError, r"run is \[1, 2\], expected a path"),
        (lambda: plots.confusion(["a"], ["c"], ["a", "b"]), ValueError, "label 'c' is unknown, expected one of a, b"),
        (lambda: plots.confusion(["a"], ["a"], []), ValueError, "the label 'a' is unknown, expected one of"),
        (lambda: plots.confusion(["a"], ["a"], 3), TypeError, "confusion: labels is 3, expected a list of labels"),
        (lambda: plots.confusion(["a"], ["a"], [["a"]]), TypeError, "confusion: labels are whole numbers or text, all"),
        (
            lambda: plots.confusion(["a"], [1]),
            TypeError,
            "labels are whole numbers or text, all of one kind",
        ),
        (lambda: plots.confusion(["a"], ["a", "b"]), ValueError, r"truth and predicted have shapes \(1,\) and \(2,\)"),
        (lambda: plots.forecast_errors({}), ValueError, "forecast_errors: errors are empty"),
        (lambda: plots.forecast_errors({"a": [[[1.0]]]}), ValueError, r"a has shape \(1, 1, 1\), expected \(N,\) or"),
        (lambda: plots.forecast_errors({"a": [1.0], "b": [[1.0, 2.0]]}), ValueError, r"expected \(H, C\) with one C"),
        (lambda: plots.save(plots.parameters(START), "a.doc"), ValueError, r"a\.doc: ends in '\.doc', expected one of"),
        (lambda: plots.save(plots.parameters(START), "absent/a.png"), OSError, r"absent/a\.png"),
        (lambda: plots.save(3, "a.png"), TypeError, "figure is 3, expected a figure of matplotlib"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, monkeypatch, call, error, words):
    """And no file is left behind."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        call()
    assert os.listdir(tmp_path) == []


def linear():
    """Return the values that a layer without gates keeps."""
    layer = xlstm.Linear(D, H)
    return layer.forward(layer.init(backend="numpy", dtype="float64"), X)[1]


DATES = {
    "years": np.arange("1880", "1980", dtype="datetime64[Y]"),
    "months": np.arange("1980-01", "1995-01", dtype="datetime64[M]"),
    "days": np.datetime64("2020-01-01") + np.arange(400),
    "steps": np.arange(300),
    "hours": np.datetime64("2020-01-01T00:00") + 60 * np.arange(800),
}


@pytest.mark.parametrize("name", DATES)
def test_forecasts_are_drawn_near_and_far_with_their_errors(rng, name):
    """The last step ahead as well as the first; each interval and line has a colour and a name of its own."""
    dates, H = DATES[name], 12
    series = series_of("v", Columns(["v"], rng.normal(size=(len(dates), 1)), dates), str)
    at = np.arange(4 * len(dates) // 5, len(dates))
    forecasts = rng.normal(size=(len(at), H))
    errors = {"model": np.arange(1.0, 1 + H), "persistence": np.arange(2.0, 2 + H)}
    fan = plots.Fan(np.sort(rng.normal(size=(H, 9))), np.arange(1, 10) / 10)
    figure = plots.forecast(series, at, forecasts, fan, errors)
    assert overlapping(figure) == []
    truth, near, far = figure.axes[0].lines
    shown = len(truth.get_ydata())
    assert shown == min(len(at), 200)
    np.testing.assert_array_equal(near.get_ydata(), forecasts[-shown:, 0])
    np.testing.assert_array_equal(far.get_ydata(), forecasts[-shown : 1 - H, -1])
    assert far.get_xdata()[-1] == truth.get_xdata()[-1]
    np.testing.assert_array_equal(figure.axes[1].lines[1].get_ydata(), errors["persistence"])
    step = name.removesuffix("s")
    for words in ("truth", f"1 {step} ahead", f"12 {name} ahead", "80 %", "60 %", "40 %", "20 %", "median"):
        assert words in texts(figure)
    lines = [line for axes in figure.axes for line in axes.lines][:-2]  # the truth is in the last panel, too
    shades = [tuple(area.get_facecolor()[0]) for area in figure.axes[2].collections]
    assert len({*shades, *(line.get_color() for line in lines)}) == len(lines) + 4


# Look and files


def lightness(color):
    return float(np.dot(matplotlib.colors.to_rgb(color), (0.299, 0.587, 0.114)))


def test_colours_survive_a_print_in_grey():
    grey = [lightness(line["color"]) for line in figures.LINES]
    assert np.min(np.diff(grey)) > 0.08
    assert len({str(line["linestyle"]) for line in figures.LINES}) == len(figures.LINES)
    assert len({line["marker"] for line in figures.LINES}) == len(figures.LINES)
    assert abs(lightness(figures.DARK) - lightness(figures.LIGHT)) > 0.3
    shades = [lightness(c) for c in matplotlib.colormaps[figures.COLOURS](np.linspace(0, 1, 20))[:, :3]]
    assert np.all(np.diff(shades) > 0)


def overlapping(figure):
    """Return the texts of tick labels, titles and labels that lie on top of one another."""
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        names = [axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            names += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes += [(t.get_text(), t.get_window_extent()) for t in names if t.get_visible() and t.get_text()]
    pairs = [(a, b) for k, (a, one) in enumerate(boxes) for b, other in boxes[:k] if one.overlaps(other)]
    inside = figure.bbox.padded(1)
    return pairs + [a for a, box in boxes if not (inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1))]


def test_labels_do_not_collide_and_have_two_sizes(interpreted, x, run, tmp_path):
    """Also those between powers of ten, which are there where an axis spans less than one."""
    _, saved = ran(xlstm.LSTM(D, H, 2), x)
    stack = SequenceModel(xlstm.xLSTMStack(8, 2, slstm_at=[1], num_heads=2), 1, inputs=D)
    params, activity = ran(stack, x)
    narrow = plots.networks.GradientNorm("h", "0", np.linspace(0.2, 0.9, 9), 1.1)
    for figure in (
        plots.gates(saved, "1"),
        plots.gradients([narrow]),
        plots.saturation(activity),
        plots.memory(activity),
        plots.parameters({name: params[name] for name in sorted(params, key=len)[-8:]}),  # the longest names
        plots.gradients(plots.gradient_norms(stack, params, x)),
        plots.curves({"a": tmp_path, "b": run}),
        plots.forecast_errors({"a": np.arange(1.0, 40), "b": np.arange(2.0, 41)}),
    ):
        assert overlapping(figure) == []
        ticks = [tick for axes in figure.axes for tick in axes.yaxis.get_minorticklabels()]
        shown = [text for text in [*figure.findobj(matplotlib.text.Text), *ticks] if text.get_text()]
        assert {text.get_fontsize() for text in shown} == {figures.SMALL, figures.TEXT}


@pytest.mark.parametrize(
    ("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")], ids=["png", "svg", "pdf"]
)
def test_equal_figures_are_equal_files(tmp_path, suffix, begin):
    for name in "ab":
        plots.save(plots.parameters({"W": np.arange(9.0)}), tmp_path / f"{name}.{suffix}")
    a, b = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert a.startswith(begin)
    assert a == b


def test_names_are_no_formulas(tmp_path):
    name = r"$\price_1$"  # matplotlib knows no such symbol
    plots.save(plots.forecast_errors({name: [1.0, 2.0]}, unit=name, step=name), tmp_path / "a.png")
