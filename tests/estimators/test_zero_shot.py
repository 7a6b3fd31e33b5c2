"""Forecasts of pretrained models through the estimator and the command line: series and tables in,
tables out.
"""

import pickle

import numpy as np
import pytest

from tests.conftest import DATA
from tests.tables import LIBRARIES, columns_of, long_columns, table
from xlstm.data.table import write_table
from xlstm.estimators import Forecaster, ZeroShotForecaster
from xlstm.interop import tirex

ONE = DATA / "tirex1" / "a"
TWO = DATA / "tirex2" / "a"


def of(checkpoint, **options):
    return ZeroShotForecaster(checkpoint, "numpy", "float64", **options)


@pytest.fixture(scope="module")
def one():
    return of(ONE, horizon=5).fit()


@pytest.fixture(scope="module")
def two():
    return of(TWO, horizon=5).fit()


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(50, 3)).cumsum(axis=0)


def load(checkpoint):
    return tirex.load(checkpoint, backend="numpy", dtype="float64")


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_series_and_their_forecasts(one, two, x):
    """One target, several, several series; those of TiRex-2 see each other."""
    model, params = load(ONE)
    expected = model.forecast(params, x.T, 5)
    assert one.predict(x[:, 0]).shape == (5,)
    same(one.predict(x), expected.mean.T)
    same(one.predict_quantiles(x), expected.quantiles.swapaxes(0, 1))
    same(one.predict(x[:, 0], steps=9), model.forecast(params, x[:, 0], 9).mean)
    both = one.predict([x[:, 0], x[20:, 1]])
    assert [found.shape for found in both] == [(5,), (5,)]
    same(both[1], model.forecast(params, x[20:, 1], 5).mean)
    model, params = load(TWO)
    same(two.predict(x), model.forecast(params, x.T[None], 5).mean[0].T)
    same(two.predict(x[:, 0]), model.forecast(params, x[:, 0], 5).mean)
    assert np.max(np.abs(two.predict(x)[:, 0] - two.predict(x[:, 0]))) > 1e-6
    assert of(ONE).predict(x[:, 0]).shape == (4,)  # a patch


@pytest.mark.parametrize("kind", ["series", "targets", "several", "table"])
def test_quantiles_of_a_call(kind, one, x):
    """They are in the order and shape of `Forecaster`, and others than those of the constructor."""
    frames = pytest.importorskip("pandas")
    given = {
        "series": x[:, 0],
        "targets": x[:, :2],
        "several": [x[:, 0], x[20:, 1]],
        "table": frames.DataFrame(x[:, :2], columns=["a", "b"]),
    }[kind]
    levels = [0.1, 0.25, 0.9]
    found = of(ONE, horizon=5, quantiles=[0.5], options={"quantiles": [0.3]}).predict_quantiles(
        given, quantiles=levels
    )
    fitted = Forecaster(horizon=5, candidates=["linear"], backend="numpy").fit(given)
    like = fitted.predict_quantiles(given, quantiles=levels)
    deciles = one.predict_quantiles(given)
    if kind == "table":
        assert [*found.columns] == [*like.columns]
        found, like, deciles = (
            each.to_numpy().reshape(5, 2, -1) for each in (found, like, deciles)
        )
    for each, same_shape, nine in zip(
        *(each if kind == "several" else [each] for each in (found, like, deciles)), strict=True
    ):
        assert each.shape == same_shape.shape
        same(each, np.stack((nine[..., 0], nine[..., 1:3].mean(-1), nine[..., 8]), axis=-1))


def test_covariates(two, x):
    model, params = load(TWO)
    price = np.sin(np.arange(55))
    found = two.predict_quantiles(x[:, 0], past=x[:, 1:], future=price)
    same(found, model.forecast(params, x[:, 0], 5, past=x[:, 1:].T, future=price).quantiles)
    several = two.predict_quantiles([x[:, 0], x[10:, 1]], future=[price, price[10:]])
    same(several[1], model.forecast(params, x[10:, 1], 5, future=price[10:]).quantiles)
    gaps = np.where(np.arange(55) % 5 == 0, np.nan, price)  # the first one, too
    same(two.predict(x[:, 0], future=gaps), model.forecast(params, x[:, 0], 5, future=gaps).mean)


def test_gaps_are_missing_values(one, x):
    """Also at the beginning, and where dates leave rows out."""
    model, params = load(ONE)
    gaps = np.where(np.isin(np.arange(50), [0, 1, 30, 31, 49]), np.nan, x[:, 0])
    expected = model.forecast(params, gaps, 5).mean
    same(one.predict(gaps), expected)
    there = ~np.isnan(gaps) | (np.arange(50) == 49)
    dates = np.datetime64("2024-01-01") + np.arange(50)
    same(one.predict(gaps[there], dates=dates[there]), expected)
    score = one.score(np.where(np.arange(50) < 20, np.nan, x[:, 0]))
    assert np.all(np.isfinite([score.model, score.persistence, score.autoregression]))


def same_tables(found, expected):
    """They are of one library, with the same columns in the same order, and the same labels of
    rows.
    """
    assert type(found) is type(expected)
    if hasattr(found, "index"):
        np.testing.assert_array_equal(found.index, expected.index)
    found = columns_of(found)
    expected = columns_of(expected)
    assert list(found) == list(expected)
    for name, column in found.items():
        np.testing.assert_array_equal(column, expected[name])


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("checkpoint", [ONE, TWO])
def test_models_take_wide_tables(checkpoint, library, dated, x):
    """With rows missing between dates, and in the order of the columns, as the estimator does."""
    days = np.datetime64("2024-02-20") + np.arange(50)
    rows = np.flatnonzero(~np.isin(np.arange(50), [7, 8, 30]))
    columns = {"day": days.astype("datetime64[us]")[rows]} if dated else {}
    given = table(library, columns | {"b": x[rows, 1], "a": x[rows, 0]})
    model, params = load(checkpoint)
    found = model.forecast(params, given, 5, quantiles=[0.1, 0.45])
    estimator = of(checkpoint, horizon=5, quantiles=[0.1, 0.45])
    same_tables(found.quantiles, estimator.predict_quantiles(given))
    same_tables(found.mean, estimator.predict(given))
    placed = (
        np.where(np.isin(np.arange(50), rows), x[:, 1::-1].T, np.nan) if dated else x[rows, 1::-1].T
    )
    expected = model.forecast(params, placed[None] if checkpoint == TWO else placed, 5).mean
    columns = columns_of(found.mean)
    same([columns["b"], columns["a"]], expected.reshape(2, 5))


@pytest.mark.parametrize("order", ["shops", "days"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_long_tables(library, order, two, x):
    """In any order of rows and of `later`; the model makes the tables of the estimator."""
    every = long_columns(np.pad(x, ((0, 5), (0, 0))), order, (55, 45)) | {
        "visitors": np.sin(np.arange(100.0))
    }
    so_far = every["day"] < np.datetime64("2024-01-01") + np.where(every["shop"] == "north", 50, 40)
    given = table(library, {name: column[so_far] for name, column in every.items()})
    later = table(
        library, {name: column[~so_far][::-1] for name, column in every.items() if name != "sales"}
    )
    shops = of(TWO, horizon=5, targets="sales", future="price", series_id="shop")
    found = columns_of(shops.predict(given, future=later))
    assert set(found) == {"shop", "day", "sales"}
    assert found["shop"].tolist() == ["north"] * 5 + ["south"] * 5
    assert [str(day)[:10] for day in found["day"][[0, 5]]] == ["2024-02-20", "2024-02-10"]
    price = [np.cos(np.arange(55)), np.cos(np.arange(45) + 1)]
    same(found["sales"], np.concatenate(two.predict([x[:, 0], x[:40, 1]], future=price)))
    assert shops.backtest(given, 2).series.tolist() == [0, 0, 1, 1]
    roles = {"targets": "sales", "series_id": "shop", "past": ["visitors"], "future": "price"}
    model, params = load(TWO)
    made = model.forecast(params, given, 5, later=later, sign_flip=True, **roles)
    estimator = of(TWO, horizon=5, options={"sign_flip": True}, **roles)
    same_tables(made.quantiles, estimator.predict_quantiles(given, future=later))
    same_tables(made.mean, estimator.predict(given, future=later))
    assert np.max(np.abs(found["sales"] - columns_of(made.mean)["sales"])) > 1e-6  # visitors count


@pytest.mark.parametrize(
    ("labels", "ahead"),
    [
        ([3, 5, 7], [9, 11]),
        ([3, 2, 1], [2, 3]),
        (["u", "v", "w"], [3, 4]),
        (["2024-01-30", "2024-01-31"], ["2024-02-01", "2024-02-02"]),
    ],
)
def test_labels_after_those_of_an_index(labels, ahead):
    """Whole numbers go on in their step, and dates."""
    pandas = pytest.importorskip("pandas")
    index, after = (
        (pandas.DatetimeIndex if "-" in str(one[0]) else pandas.Index)(one, name="i")
        for one in (labels, ahead)
    )
    model, params = load(ONE)
    found = model.forecast(
        params, pandas.DataFrame({"a": np.arange(len(labels))}, index=index), 2
    ).mean
    assert found.index.tolist() == after.tolist()
    assert found.index.name == "i"


@pytest.mark.parametrize("shops", ["ababb", "aabbaabbb", "aaabb"])
def test_an_index_that_only_numbers_rows_labels_no_series(shops):
    """In whatever order its rows are."""
    pandas = pytest.importorskip("pandas")
    model, params = load(ONE)
    given = pandas.DataFrame({"shop": list(shops), "a": np.arange(float(len(shops)))})
    found = model.forecast(params, given, 2, series_id="shop").mean
    assert found.index.equals(pandas.RangeIndex(4))
    expected = model.forecast(
        params, [given["a"][given["shop"] == shop].to_numpy() for shop in "ab"], 2
    ).mean
    np.testing.assert_array_equal(found["a"], np.concatenate(expected))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"day": range(1, 6)},
            " has a row for 2024-02-11.*, expected 2024-02-10.*, the next step of the series",
        ),
        ({"shop": ["south"] * 3 + ["east"] * 2}, " has 3 rows after series 'south', expected 5"),
    ],
)
def test_later_rows_that_do_not_fit_are_refused(changes, words, x):
    columns = {"shop": ["south"] * 5, "day": range(5), "price": np.ones(5)} | changes
    columns["day"] = np.datetime64("2024-02-10", "us") + np.array(columns["day"]) * np.timedelta64(
        1, "D"
    )
    later = table("polars", columns)
    given = table("polars", long_columns(x, "shops", (0, 40)))
    roles = {"targets": "sales", "future": "price", "series_id": "shop"}
    with pytest.raises(ValueError, match=f"^ZeroShotForecaster: future{words}"):
        of(TWO, horizon=5, **roles).predict(given, future=later)


def test_scores_are_those_of_forecasts(two, x):
    """Each forecast sees what comes before it, beside the same baselines."""
    price = np.sin(np.arange(50))  # nobody knows it after the end
    model, params = load(TWO)
    score = two.score(x[:, 0], stride=3, future=price)
    assert score.at.tolist() == [40, 43, 46, 49]
    for at, forecast, quantiles in zip(score.at, score.forecasts, score.quantiles, strict=True):
        known = np.concatenate((price, np.full(5, np.nan)))[: at + 5]
        expected = model.forecast(params, x[:at, 0], 5, future=known)
        same(forecast, expected.mean)
        same(quantiles, expected.quantiles)
    truth = np.concatenate((x[:, 0], np.full(5, np.nan)))[score.at[:, None] + np.arange(5)]
    same(score.model, np.sqrt(np.nanmean((score.forecasts - truth) ** 2, axis=0)))
    same(score.persistence, np.sqrt(np.nanmean((x[score.at - 1, 0, None] - truth) ** 2, axis=0)))
    assert score.interval == pytest.approx(0.8)
    assert two.score(x, stride=5).model.shape == (5, 3)
    score = two.backtest(x[:, 0], folds=3)
    assert score.at.tolist() == [35, 40, 45]
    same(score.forecasts[1], two.predict(x[:40, 0]))
    assert score.item() == -np.mean(score.model)


def test_conventions_of_scikit_learn(one, x):
    base = pytest.importorskip("sklearn.base")
    again = base.clone(one)
    assert again.get_params() == one.get_params()
    copied = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(copied.predict(x), one.predict(x))
    again.set_params(checkpoint=TWO)
    assert np.any(again.predict(x) != one.predict(x))
    model, params = load(ONE)
    own = ZeroShotForecaster((model, params), horizon=5)
    same(own.predict(x[:5]), one.predict(x[:5]))
    params["input.output.b"] = params["input.output.b"] * 2 + 1  # others may change these
    same(own.predict(x[:5]), model.forecast(params, x[:5].T, 5).mean.T)


def test_columns_of_fit_are_those_of_later_tables(x):
    pandas = pytest.importorskip("pandas")
    given = pandas.DataFrame(x, columns=list("abc"))
    fitted = of(ONE, horizon=5).fit(given)
    assert list(fitted.predict(given[["c", "a", "b"]]).columns) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="the targets of the table are a, b, expected a, b, c"):
        fitted.predict(given[["a", "b"]])


@pytest.mark.parametrize(
    ("options", "arguments", "words"),
    [
        ({}, {"horizon": 12}, "argument horizon is unknown.* set in ZeroShotForecaster"),
        (
            {"checkpoint": ONE},
            {"past": np.ones(3)},
            "past and future have 1 columns, expected none: TiRex",
        ),
        ({"quantiles": [0.95]}, {}, r"quantiles\[0\] is 0.95"),
        (
            {},
            {"quantiles": [0.5, 0.95]},
            r"quantiles\[1\] is 0.95, expected 0.1 to 0.9, as the model was trained",
        ),
        ({}, {"quantiles": [0.5, 0.2]}, r"quantiles is \[0.5, 0.2\], expected rising numbers"),
        ({}, {"quantiles": []}, r"quantiles is \[\], expected rising numbers"),
    ],
)
def test_wrong_arguments_are_named(options, arguments, words):
    with pytest.raises((TypeError, ValueError), match=f"^ZeroShotForecaster: {words}"):
        of(**{"checkpoint": TWO} | options).predict_quantiles(np.ones(3), **arguments)


@pytest.fixture(name="run")
def _run(run):
    return lambda *args, code=0: run("forecast", *args, "--backend", "numpy", code=code)


def test_the_command_forecasts_a_long_table(run, x):
    """Rows after the last sales say what is known in advance: prices, for 5 days more."""
    every = long_columns(np.pad(x, ((0, 5), (0, 0))), "days", (55, 45))
    ends = np.datetime64("2024-01-01") + np.where(every["shop"] == "north", 50, 40)
    given = {name: column.tolist() for name, column in every.items() if name != "day"}
    given["day"] = every["day"].astype("datetime64[D]").tolist()
    given["sales"] = np.where(every["day"] < ends, every["sales"], None).tolist()
    write_table("shops.csv", given)
    roles = [
        "--target",
        "sales",
        "--future",
        "price",
        "--series-id",
        "shop",
        "--horizon",
        5,
        "--quantiles",
        "0.1",
    ]
    lines = run(TWO, "shops.csv", *roles, "--dtype", "float64").stdout.splitlines()
    assert [line.split(",")[:2] for line in lines[1:7:5]] == [
        ["north", "2024-02-20"],
        ["south", "2024-02-10"],
    ]
    price = [np.cos(np.arange(55)), np.cos(np.arange(45) + 1)]
    expected = np.concatenate(of(TWO, horizon=5).predict([x[:, 0], x[:40, 1]], future=price))
    np.testing.assert_allclose(
        [float(line.split(",")[2]) for line in lines[1:]], expected, rtol=1e-6
    )


def test_the_command_says_which_columns_it_leaves_out(run, x):
    """Those without a number, where no target is named."""
    write_table(
        "t.csv",
        {"a": x[:, 0].tolist(), "none": [""] * 50, "note": ["new"] * 50, "b": x[:, 1].tolist()},
    )
    result = run(TWO, "t.csv", "--quantiles", "0.5", "--quiet")
    assert result.stdout.startswith("time,a,a 0.5,b,b 0.5\n")
    assert "not forecast: none, note\n" in result.stderr
    again = run(TWO, "t.csv", "--target", "a", "--target", "b", "--quantiles", "0.5")
    assert (again.stdout, again.stderr) == (result.stdout, "")
    refused = run(TWO, "t.csv", "--target", "a", "--target", "none", code=2).stderr
    assert "column 'none' has no value to forecast from" in refused
    assert "a.txt: ends in '.txt'" in run(TWO, "t.csv", "-o", "a.txt", code=2).stderr
