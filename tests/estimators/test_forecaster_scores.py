"""Scores, backtests, and forecasters beside other models."""

import numpy as np
import pytest

from tests.estimators.conftest import QUICK, driven
from xlstm.data.series import bundled, read_csv
from xlstm.estimators import Forecaster, compare


def test_measures_by_hand(fitted, values):
    score = fitted.score(values)
    at = score.at[:-5]
    forecasts = score.forecasts[:-5]
    truth = values[at[:, None] + np.arange(6)]
    own = score.errors["model"]
    h = 5  # the last step, where every forecast of `forecasts` is all that there is
    np.testing.assert_allclose(own.mae[h], np.mean(np.abs(forecasts - truth)[:, h]), rtol=1e-9)
    np.testing.assert_allclose(
        own.rmse[h], np.sqrt(np.mean((forecasts - truth)[:, h] ** 2)), rtol=1e-9
    )
    season = fitted.season_ or 1
    usual = np.mean(np.abs(values[season:240] - values[: 240 - season]))
    np.testing.assert_allclose(own.mase, own.mae / usual, rtol=1e-9)
    sizes = np.abs(forecasts) + np.abs(truth)
    np.testing.assert_allclose(
        own.smape[h], np.mean(200 * np.abs(forecasts - truth)[:, h] / sizes[:, h]), rtol=1e-9
    )


def test_series_count_alike_whatever_their_levels(fitted, values):
    pytest.importorskip("pandas")
    score = fitted.score([values, 1e3 * values])
    frame = score.frame()
    season = fitted.season_ or 1
    scale = np.sqrt(np.mean((values[season:240] - values[: 240 - season]) ** 2))
    truth = np.append(values, np.full(5, np.nan))[240 + np.arange(60)[:, None] + np.arange(6)]
    rmse = np.sqrt(np.nanmean((fitted.score(values).forecasts - truth) ** 2))
    np.testing.assert_allclose(frame.rmse, [rmse, 1e3 * rmse], rtol=1e-6)
    np.testing.assert_allclose(frame.rmsse, rmse / scale, rtol=1e-6)
    assert score.item() == -np.mean(score.errors["model"].rmsse)
    assert "root mean square scaled errors of 120" in repr(score)


def test_forecasts_do_not_see_the_future(fitted, values):
    """Values from a forecast on cannot change it."""
    score = fitted.score(values)
    at = score.at
    forecasts = score.forecasts
    assert (at[0], at[-1]) == (240, 299)
    values[270:] = 99.0
    other = fitted.score(values).forecasts
    np.testing.assert_array_equal(other[at <= 270], forecasts[at <= 270])
    assert np.all(other[at > 270] != forecasts[at > 270])


def test_rows_after_those_of_fit_are_all_judged():
    """As the folds of scikit-learn, with covariates and dates; others are other series."""
    pytest.importorskip("pandas")
    folds = pytest.importorskip("sklearn.model_selection")
    values, price = driven()
    forecaster = Forecaster(**QUICK).fit(values[:150])
    score = forecaster.score(values[150:225])
    assert (score.points, score.at[0], score.at[-1]) == (75, 0, 74)
    np.testing.assert_allclose(score.forecasts[0], forecaster.predict(values[:150]), rtol=1e-6)
    changed = np.append(values[150:180], np.nan)
    # float32 sums of a batch of another size may have other last bits
    np.testing.assert_allclose(forecaster.score(changed).forecasts, score.forecasts[:31], rtol=1e-6)
    assert forecaster.score([values[150:225]]).points == 15
    with pytest.raises(ValueError, match=r"has 5 rows after .*, expected 6 or more"):
        forecaster.score(values[150:155])
    cv = {"cv": folds.TimeSeriesSplit(3), "error_score": "raise"}
    search = folds.GridSearchCV(Forecaster(**QUICK), {"window": [6, 12]}, **cv).fit(values)
    assert search.cv_results_["split1_test_score"][1] == pytest.approx(score.item())
    assert search.score(values).points == 60
    days = np.datetime64("2020-01-01") + np.arange(300)
    forecaster.fit(values[:150], future=price[:150], dates=days[:150])
    for gap, points in ((0, 75), (1, 15)):
        fold = slice(150 + gap, 225 + gap)
        later = forecaster.score(values[fold], future=price[fold], dates=days[fold])
        assert later.points == points


def panel(*names, rows=slice(None), dates=True, gap=0):
    """A long table of shops, which `driven` makes, with as many rows as days."""
    pandas = pytest.importorskip("pandas")
    days = np.datetime64("2020-01-01") + np.arange(300)
    parts = []
    for k, name in enumerate(names):
        values, price = driven(seed=k)
        shop = {"shop": name, "sales": 10**k * values, "price": price[:300]}
        part = pandas.DataFrame({"day": days} | shop if dates else shop)[rows]
        parts.append(part[gap * k :])
    return pandas.concat(parts)


@pytest.mark.parametrize("dates", [True, False])
def test_rows_after_those_of_fit_are_judged_in_each_series_of_a_table(dates):
    """Each has its own rows of `fit` as history, in whatever order and number series come."""
    roles = {"series_id": "shop", "targets": "sales", "future": "price"}
    fit = slice(0, 150)
    later = slice(150, 180)
    forecaster = Forecaster(**QUICK, **roles, calendar=False)
    forecaster.fit(panel("a", "b", rows=fit, dates=dates))
    score = forecaster.score(panel("a", "b", rows=later, dates=dates))
    assert score.points == 60
    np.testing.assert_array_equal(score.at, [*range(30)] * 2)
    assert np.all(score.errors["model"].rmsse < score.errors["persistence"].rmsse)
    ahead = forecaster.predict(
        panel("a", "b", rows=fit, dates=dates),
        future=panel("a", "b", rows=slice(150, 156), dates=dates).drop(columns="sales"),
    )
    np.testing.assert_allclose(score.forecasts[::30].ravel(), ahead["sales"], rtol=1e-6)
    frame = score.frame()
    assert frame.index.get_level_values("series").tolist() == ["a", "b"]
    some = panel("a", "b", rows=later, dates=dates)
    alone = forecaster.score(some[some.shop == "b"])
    np.testing.assert_array_equal(alone.forecasts, score.forecasts[30:])
    np.testing.assert_array_equal(alone.frame(), frame.iloc[1:])
    assert forecaster.score(panel("a", "b", rows=fit, dates=dates)).points == 60  # the test part
    problems = {
        "'a' has 5 rows after": panel("a", "b", rows=slice(150, 155), dates=dates),
        "'c' does not begin right after rows of fit": panel("a", "c", rows=later, dates=dates),
    }
    if dates:
        problems["'b' does not begin right after rows of"] = panel("a", "b", rows=later, gap=1)
    for words, table in problems.items():
        with pytest.raises(ValueError, match=f"^Forecaster: series {words}"):
            forecaster.score(table)


def test_backtests(values):
    forecaster = Forecaster(**QUICK)
    score = forecaster.backtest(values, folds=3)
    np.testing.assert_array_equal(score.at, [282, 288, 294])
    assert score.forecasts.shape == (3, 6)
    changed = values.copy()
    changed[294:] = 0.0
    np.testing.assert_array_equal(forecaster.backtest(changed, folds=3).forecasts, score.forecasts)
    one = Forecaster(**QUICK).fit(values[:288])
    np.testing.assert_allclose(score.forecasts[1], one.predict(values[:288]), rtol=1e-12)
    np.testing.assert_allclose(score.quantiles[1], one.predict_quantiles(values[:288]), rtol=1e-12)


class Mean:
    """A model as those of statsforecast are."""

    def fit(self, y):
        self.mean = np.mean(y)
        self.spread = 1.2816 * np.std(y)

    def forward(self, y, h, level):
        mean = np.full(h, self.mean)
        return {"mean": mean, "lo-80": mean - self.spread, "hi-80": mean + self.spread}


def test_models_are_compared(values):
    """By hand; the linear one is a forecaster with that candidate alone."""
    values = values + np.arange(300) / 100
    given = Mean()
    ours = Forecaster(**{**QUICK, "horizon": 1, "quantiles": (0.5,)})
    found = compare(values, {"ours": ours, "mean": given, "line": "linear"}, 6, season=12)
    assert (ours.horizon, hasattr(given, "mean"), ours.__sklearn_is_fitted__()) == (1, False, False)
    truth = values[np.unique(np.linspace(240, 294, 30).round().astype(int))[:, None] + np.arange(6)]
    np.testing.assert_array_equal(found.truth, truth)
    one = found.scores["mean"]
    error = truth - np.mean(values[:240])
    scale = np.mean(np.abs(values[12:240] - values[:228]))
    spread = 1.2816 * np.std(values[:240])
    expected = np.sqrt(np.mean(error**2)), np.mean(np.abs(error)), np.mean(np.abs(error)) / scale
    np.testing.assert_allclose(one[:5], (*expected, np.mean(np.abs(error) <= spread), 2 * spread))
    np.testing.assert_allclose(found.errors["mean"], np.sqrt(np.mean(error**2, axis=0)))
    assert np.isnan(found.scores["ours"].coverage)
    line = Forecaster(horizon=6, backend="numpy", candidates=["linear"], season=12)
    line.fit(values[:240])
    np.testing.assert_array_equal(
        found.scores["line"].forecasts[3], line.predict(values[: found.at[3]])
    )
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[2:]] == sorted(
        found.scores, key=lambda name: found.scores[name].rmse
    )


def test_comparisons_take_dates_and_gaps(values):
    dates = np.datetime64("2020-01-01") + np.arange(300)
    values = 5.0 * (np.arange(300) % 7 >= 5) + values / 50
    values[[3, 250]] = np.nan
    models = {"ours": Forecaster(**{**QUICK, "window": 4, "calendar": True}, linear_baseline=4)}
    dated = compare(values, models, 6, dates=dates)
    plain = compare(values, models, 6)
    assert dated.scores["ours"].rmse != plain.scores["ours"].rmse
    assert np.isnan(dated.truth).any()
    assert len(compare(read_csv(bundled("co2")), ["linear"], 4).scores) == 1


class Odd(Mean):
    """A model whose forecasts are not as expected."""

    def __init__(self, **change):
        self.change = change

    def forward(self, y, h, level):
        result = super().forward(y, h, level) | self.change
        return {name: values for name, values in result.items() if values is not None}


WAVE = np.sin(np.arange(300.0))


@pytest.mark.parametrize(
    ("given", "models", "words"),
    [
        (
            np.where(np.arange(300) < 240, WAVE, np.nan),
            ["linear"],
            "the last fifth of the series has no values",
        ),
        (WAVE, {"odd": Odd(**{"lo-80": None})}, "^compare: forward returned mean, hi-80, expected"),
        (WAVE, {"odd": Odd(mean=np.ones(1))}, r"^compare: forward's mean has shape \(1,\)"),
    ],
)
def test_comparisons_that_are_refused(given, models, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        compare(given, models, 6)
    assert getattr(caught.value, "__notes__", []) == ["in the model 'odd'"] * ("odd" in models)
