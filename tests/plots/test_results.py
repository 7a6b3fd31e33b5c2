"""Pictures of results: how training went, confusion, errors and forecasts, and the numbers in
them.
"""

import json
import math

import numpy as np
import pytest

from tests.conftest import later
from tests.plots.drawn import overlapping, texts
from tests.tables import LIBRARIES, columns_of, long_columns, table
from xlstm import plots
from xlstm.data.frames import Columns
from xlstm.data.panels import Panel
from xlstm.data.series import series_of
from xlstm.estimators import Forecaster
from xlstm.plots.results import smoothed

later("matplotlib")


def test_curves_are_those_of_the_history(run, tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    found = plots.course(tmp_path)
    assert found.loss.tolist() == [
        [line["total"], line["loss"]] for line in lines if "loss" in line
    ]
    assert found.norm.tolist() == [
        [line["total"], line["norm"]] for line in lines if "norm" in line
    ]
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
    with pytest.raises(
        ValueError, match=r"history\.jsonl has no losses, expected the history of a run that made a"
    ):
        plots.curves(tmp_path)


def test_confusion_counts_pairs():
    truth = ["b", "a", "b", "b"]
    predicted = ["b", "b", "a", "b"]
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
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [
        [[1, 1], [2, 2]],
        [[1, 2], [2, 3]],
    ]
    assert {"days ahead", "RMSE (kg)", "LSTM", "persistence"} <= set(texts(figure))


def test_results_of_a_fitted_forecaster_are_drawn(monkeypatch):
    """Two series of two targets, from a table: a fan for each, errors by target, and how training
    went.
    """
    columns = long_columns(
        np.random.default_rng(0).normal(size=(140, 2)).cumsum(axis=0), "days", (140, 130)
    )
    # a name that ends as one of a column of quantiles may
    columns = {"shop 1": columns.pop("shop"), **columns}
    given = table(LIBRARIES[0], columns)  # tests/data reads those of every library
    quick = {
        "window": 8,
        "horizon": 3,
        "hidden_size": 2,
        "epochs": 1,
        "refit": False,
        "backend": "numpy",
    }
    forecaster = Forecaster(series_id="shop 1", candidates=("network",), **quick).fit(given)
    figure = plots.fans(given, forecaster.predict_quantiles(given))
    titles = [axes.get_title(loc="left").partition(":")[0] for axes in figure.axes]
    assert titles == ["sales of north", "price of north", "sales of south", "price of south"]
    median = columns_of(forecaster.predict_quantiles(given))["price 0.5"]
    np.testing.assert_array_equal(figure.axes[3].lines[1].get_ydata()[1:], median[3:])
    reads = []
    read = Panel.read
    monkeypatch.setattr(Panel, "read", lambda *args, **o: reads.append(1) or read(*args, **o))
    axes = forecaster.plot(given, steps=4, last=9)
    assert len(reads) == 1
    assert overlapping(axes[0].figure) == []
    assert [f"{ax.get_ylabel()} of {ax.get_title(loc='left')}" for ax in axes] == titles
    ahead = columns_of(forecaster.predict_quantiles(given, 4))
    assert len(axes[3].lines[0].get_ydata()) == 9
    np.testing.assert_array_equal(axes[3].lines[1].get_ydata()[1:], ahead["price 0.5"][4:])
    np.testing.assert_array_equal(axes[3].lines[1].get_xdata()[1:], ahead["day"][4:])
    score = forecaster.score(given)
    assert [f"{target} of {series}" for series, target in score.frame().index] == titles
    errors = plots.forecast_errors(score.errors, measure="MAE")
    assert len(errors.axes) == 2
    np.testing.assert_array_equal(
        errors.axes[1].lines[0].get_ydata(), score.errors["model"].mae[:, 1]
    )
    assert [line.strip()[:8] for line in repr(score).splitlines()[2:4]] == ["1, sales", "1, price"]
    assert len(plots.curves(forecaster).axes) == len(plots.curves(forecaster.trained_).axes)
    with pytest.raises(
        ValueError, match=r"fans: ahead has columns .*, expected those of predict_quantiles"
    ):
        plots.fans(given, given)


def test_the_first_of_many_series_are_plotted(rng, caplog):
    """Without a median the mean, and on axes that are given."""
    several = [*rng.normal(size=(13, 40))]
    forecaster = Forecaster(horizon=2, candidates=["linear"], quantiles=(), backend="numpy")
    axes = forecaster.fit(several).plot(several)
    assert "plot draws the first 12 of 13 series" in caplog.text
    assert forecaster.plot(several[11], ax=axes[0]) is axes[0]
    ahead = forecaster.predict(several[11])
    for drawn in (axes[11].lines[1], axes[0].lines[3]):
        np.testing.assert_array_equal(drawn.get_ydata()[1:], ahead)
    with pytest.raises(ValueError, match="ax has 12 Axes, expected 1"):
        forecaster.plot(several[0], ax=axes)


DATES = {
    "years": np.arange("1880", "1980", dtype="datetime64[Y]"),
    "months": np.arange("1980-01", "1995-01", dtype="datetime64[M]"),
    "days": np.datetime64("2020-01-01") + np.arange(400),
    "steps": np.arange(300),
    "hours": np.datetime64("2020-01-01T00:00") + 60 * np.arange(800),
}


@pytest.mark.parametrize("name", DATES)
def test_forecasts_are_drawn_near_and_far_with_their_errors(rng, name):
    """The last step ahead as well as the first; each interval and line has a colour and a name of
    its own.
    """
    dates = DATES[name]
    H = 12
    series = series_of("v", Columns(["v"], rng.normal(size=(len(dates), 1)), dates))
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
    for words in (
        "truth",
        f"1 {step} ahead",
        f"12 {name} ahead",
        "80 %",
        "60 %",
        "40 %",
        "20 %",
        "median",
    ):
        assert words in texts(figure)
    # the truth is in the last panel, too
    lines = [line for axes in figure.axes for line in axes.lines][:-2]
    shades = [tuple(area.get_facecolor()[0]) for area in figure.axes[2].collections]
    assert len({*shades, *(line.get_color() for line in lines)}) == len(lines) + 4
