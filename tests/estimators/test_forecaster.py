"""The forecaster for real use: covariates, several series and targets, tables, intervals, baselines, interrupts."""

import dataclasses
import os
import signal
import sys

import numpy as np
import pytest

from tests.tables import LIBRARIES, columns_of, table
from xlstm import losses
from xlstm.data import calendars, panels
from xlstm.data.series import bundled, read_csv
from xlstm.data.series_windows import carry_forward, split
from xlstm.estimators import (
    Forecaster,
    NotFittedError,
    Settings,
    baselines,
    compare,
    evaluation,
    sampling,
    selection,
)
from xlstm.estimators.predictor import Predictor
from xlstm.layers.smoothing import ExponentialSmoothing
from xlstm.models.sequence import CELLS
from xlstm.training import Interrupted

QUICK = {
    **{"window": 12, "hidden_size": 8, "epochs": 5, "learning_rate": 0.02, "batch_size": 32, "averaging": 0.9},
    **{"horizon": 6, "backend": "numpy", "candidates": ("linear", "network")},
}


def driven(n=300, seed=0):
    """A series that follows a number which is known in advance, and that number, with 20 more rows."""
    rng = np.random.default_rng(seed)
    price = rng.normal(size=n + 20)
    values = 10 + np.sin(np.arange(n + 20) / 3.0) + price + 0.05 * rng.normal(size=n + 20)
    return values[:n], price


@pytest.fixture(scope="module")
def fitted():
    return Forecaster(**QUICK).fit(driven()[0])


def test_goals_on_sunspots_with_one_epoch(monkeypatch):
    """At 1, 3, 6 and 12 months no worse than the better baseline, and intervals that cover what they promise."""
    monkeypatch.delenv("XLSTM_COMPILE", raising=False)
    values = read_csv(bundled("sunspots")).values
    score = Forecaster(horizon=12, hidden_size=8, epochs=1, refit=False, backend="numpy").fit(values).score(values)
    ahead = np.array([1, 3, 6, 12]) - 1
    assert score.points == 564
    assert score.model[0] <= 19.0
    assert (score.persistence[0], score.autoregression[0]) == pytest.approx((20.1, 18.2), abs=0.05)  # as published
    assert np.all(score.model[ahead] <= np.minimum(score.persistence, score.autoregression)[ahead])
    assert np.all((score.coverage[ahead] >= 0.75) & (score.coverage[ahead] <= 0.85))


def test_windows_end_with_the_series(fitted):
    """The network sees by how much values differ from the last one, in some unit."""
    values = driven()[0]
    x = fitted.windows(values, 3)
    assert x.shape == (12, 3, 1)
    for k in range(3):
        window = values[len(values) - 14 + k :][:12]
        change = window - window[-1]
        np.testing.assert_allclose(x[:-1, k, 0] / x[0, k, 0], change[:-1] / change[0], rtol=1e-4)
    assert fitted.windows(values[:13]).shape == (12, 2, 1)  # there are no more
    assert fitted.model_(fitted.params_, x)[0].shape == (3, fitted.model_.output_size)


def test_what_is_known_in_advance_is_used():
    values, price = driven()
    forecaster, blind = Forecaster(**QUICK).fit(values, future=price[:300]), Forecaster(**QUICK).fit(values)
    assert np.all(forecaster.score(values, future=price[:300]).model < 0.5 * blind.score(values).model)
    found = forecaster.predict(values, 9, future=price[:309])
    changed = price.copy()
    changed[304] += 3
    other = forecaster.predict(values, 9, future=changed[:309])
    assert abs((other - found)[4]) > 1
    with pytest.raises(ValueError, match="future has 0 rows after the series, expected 9"):
        forecaster.predict(values, 9, future=price[:300])
    with pytest.raises(ValueError, match=r"have \[1, 0, 0, 0\] columns, expected \[1, 0, 1, 0\], as in fit"):
        forecaster.predict(values)


def test_past_and_static_numbers_reach_the_network():
    """A change in one of them changes the forecast."""
    values, price = driven()
    lead = np.roll(price[:300], 1)  # today's value of it is in the series
    several = [values, 3 * values]
    beside = {"past": [lead, lead], "static": [[0.0], [1.0]]}
    forecaster = Forecaster(**QUICK).fit(several, **beside)
    found = forecaster.predict(several, **beside)
    other = forecaster.predict(several, past=[lead + 1, lead], static=beside["static"])
    assert np.all(other[0] != found[0])
    np.testing.assert_array_equal(other[1], found[1])
    assert np.all(forecaster.predict(several, past=beside["past"], static=[[1.0], [1.0]])[0] != found[0])


def test_several_targets():
    values, price = driven()
    both = np.stack([values, price[:300]], axis=1)
    forecaster = Forecaster(**QUICK).fit(both)
    score = forecaster.score(both)
    assert (score.model.shape, score.forecasts.shape) == ((6, 2), (60, 6, 2))
    lines = str(score).splitlines()
    assert (len(lines), lines[-1].split()[:4]) == (14, ["6,", "target", "1", f"{score.model[5, 1]:.4g}"])
    assert (forecaster.predict(both, 7).shape, forecaster.predict_quantiles(both).shape) == ((7, 2), (6, 2, 9))
    assert forecaster.n_targets_ == 2


def test_several_series():
    values, _ = driven()
    several = [values, 100 * values[:200]]
    forecaster = Forecaster(**QUICK).fit(several)
    assert [found.shape for found in forecaster.predict(several)] == [(6,), (6,)]
    score = forecaster.score(several)
    np.testing.assert_array_equal(np.bincount(score.series), [60, 40])
    long = dataclasses.replace(score, model=np.ones(100), coverage=np.ones(100), errors={})
    assert [line.split()[0] for line in repr(long).splitlines()[-2:]] == ["11", "100"]
    alone = forecaster.predict([7 * values + 5])  # a series that it was not fitted to, by its own changes
    np.testing.assert_allclose(alone[0], 7 * forecaster.predict([values])[0] + 5, rtol=1e-5)


def test_a_row_that_is_missing_is_a_gap():
    values, _ = driven()
    dates = np.datetime64("2020-01-01") + np.arange(300)
    gaps = [40, 41, 190, 270]
    with_gaps = values.copy()
    with_gaps[gaps] = np.nan
    kept = np.delete(np.arange(300), gaps)
    one = Forecaster(**QUICK).fit(with_gaps, dates=dates)
    two = Forecaster(**QUICK).fit(values[kept], dates=dates[kept])
    assert one.trained_.losses == two.trained_.losses
    np.testing.assert_array_equal(
        one.score(with_gaps, dates=dates).model, two.score(values[kept], dates=dates[kept]).model
    )


@pytest.mark.parametrize(
    ("first", "step", "columns"),
    [("2020", "Y", 0), ("2020-01", "M", 4), ("2020-01-06", "W", 4), ("2020-01-06", "D", 6), ("2020-01-06T00", "h", 8)],
)
def test_features_are_those_that_the_step_can_tell_apart(first, step, columns):
    dates = (np.datetime64(first) + np.arange(60) * np.timedelta64(1, step)).astype(f"datetime64[{step}]")
    calendar = calendars.calendar_of("it", dates)
    seconds = float(np.median(np.diff(calendar.dates.astype("datetime64[s]")).astype(float)))
    found = calendars.features(calendar.dates, seconds)
    assert found.shape == (60, columns)
    assert np.all(np.abs(found) <= 1)
    if step == "D":
        np.testing.assert_allclose(found[:-7, 2], found[7:, 2], atol=1e-12)  # the day of the week comes again
        assert np.ptp(found[:7, 2]) > 1
    assert calendars.after(calendar, 2)[0] > calendar.dates[-1]
    if step == "h":  # in a time zone they are those of its clocks
        zoned = calendars.calendar_of("it", dates + np.timedelta64(5, "h"), "America/New_York")
        series = panels.read_series("it", [np.zeros((60, 1))], [panels.Covariates(dates=zoned)], 0, True)[0]
        np.testing.assert_array_equal(series.future, found)


def test_dates_that_help_are_looked_at_and_others_are_not():
    rng = np.random.default_rng(0)
    dates = np.datetime64("2018-01-01") + np.arange(500)
    weekend = 5.0 * (np.arange(500) % 7 >= 5) + rng.normal(size=500)
    settings = {**QUICK, "window": 4, "epochs": 1}
    forecaster = Forecaster(**settings).fit(weekend, dates=dates)
    assert forecaster.calendar_
    assert np.all(forecaster.score(weekend, dates=dates).model < 1.5)
    walk = np.cumsum(rng.normal(size=500))
    assert not Forecaster(**settings).fit(walk, dates=dates).calendar_


def test_intervals_cover_what_they_promise():
    noise = np.random.default_rng(1).normal(size=1500)
    score = Forecaster(**{**QUICK, "horizon": 2}).fit(noise).score(noise)
    assert np.all(np.abs(score.coverage - 0.8) < 0.05)
    assert np.all(np.diff(score.quantiles, axis=-1) >= 0)
    # The CRPS of a normal distribution that is known is its standard deviation / sqrt(pi).
    np.testing.assert_allclose(score.crps, 1 / np.sqrt(np.pi), rtol=0.15)


def test_rolling_limits_by_hand(rng, monkeypatch):
    """Only errors that are known at an origin count, and only the last of them."""
    monkeypatch.setattr(evaluation, "RECENT", 20)
    monkeypatch.setattr(evaluation, "HORIZONS", 5)
    outside = rng.standard_normal((60, 3, 2, 1))
    outside[rng.random(outside.shape) < 0.2] = np.nan
    found = evaluation.rolling(outside, 30, (0.1, 0.9))
    for i, h, c in np.ndindex(30, 3, 2):
        known = outside[max(0, 30 + i - h - 20) : 30 + i - h, h, c, 0]
        known = np.sort(known[~np.isnan(known)])
        rank = min(len(known), int(np.ceil((len(known) + 1) * 0.8)))
        assert found[i, h, c, 0] == known[rank - 1]
    last = evaluation.adjustment([outside], (0.1, 0.9))
    assert last.shape == (3, 2, 1)
    recent = np.sort(outside[40:, 1, 0, 0])  # NaN last
    count = np.count_nonzero(~np.isnan(recent))
    assert last[1, 0, 0] == recent[min(count, int(np.ceil((count + 1) * 0.8))) - 1]
    assert evaluation.pairs((0.1, 0.3, 0.5, 0.7, 0.9)) == [(0, 4), (1, 3)]


def test_the_linear_baseline_is_ridge_regression(rng):
    """Its coefficients are those of least squares on rows that a penalty adds, and a constant is not shrunk away."""
    values = np.cumsum(rng.standard_normal(200))
    forecaster = Forecaster(**{**QUICK, "linear_baseline": 5, "horizon": 2, "epochs": 1, "refit": False}).fit(values)
    line, unit = forecaster.test_predictor_.combination.parts["linear"], forecaster.scaling_.units[0][0]
    assert (line.order, forecaster.linear_baseline_) == (5, 5)
    at = np.arange(5, 120)
    lags = np.stack([values[at - k] - values[at - 1] for k in (5, 4, 3, 2)], axis=1) / unit
    design = np.concatenate((lags, np.ones((len(at), 1))), axis=1)
    for h in range(2):
        there = at + h < 120
        target = (values[np.minimum(at + h, 199)] - values[at - 1])[there] / unit
        weights = np.full(5, line.light)
        weights[:4] = line.ridge * np.mean(lags**2)
        rows = np.diag(np.sqrt(there.sum() * weights))
        expected, *_ = np.linalg.lstsq(np.concatenate((design[there], rows)), np.concatenate((target, np.zeros(5))))
        np.testing.assert_allclose(line.coefficients[0, h], expected, rtol=1e-6, atol=1e-9)


def test_without_a_linear_baseline_and_without_quantiles():
    values, _ = driven()
    forecaster = Forecaster(**QUICK, linear_baseline=0, quantiles=()).fit(values)
    score = forecaster.score(values)
    assert np.all(score.model < score.persistence)
    assert np.all(np.isnan(score.coverage))
    assert np.isnan(score.interval)
    with pytest.raises(ValueError, match="it was fitted without quantiles"):
        forecaster.predict_quantiles(values)


def test_nothing_is_forecast_below_the_least():
    values = np.maximum(driven()[0] - 10, 0)
    found = [Forecaster(**QUICK, least=least).fit(values) for least in (None, 0.0)]
    free, limited = (one.score(values).quantiles for one in found)
    assert np.min(free) < 0
    assert np.min(limited) == np.min(found[1].predict_quantiles(values)) == 0.0
    np.testing.assert_array_equal(limited, np.maximum(free, 0.0))
    assert np.min(found[1].predict(values, 30)) >= 0


def test_seasons():
    rng = np.random.default_rng(0)
    co2 = carry_forward(read_csv(bundled("co2")).values)
    assert baselines.season(co2) == 52
    assert baselines.season(np.sin(2 * np.pi * np.arange(300) / 25) + 0.01 * np.arange(300)) == 25
    assert baselines.season(rng.normal(size=500)) == 0
    assert baselines.season(np.ones(50)) == baselines.season(np.arange(50.0)) == baselines.season(np.arange(5.0)) == 0
    wave = np.arange(30.0) % 7
    known = np.where(np.arange(30) < 20, wave, np.nan)  # nothing that comes later is looked at
    np.testing.assert_array_equal(baselines.seasonal(known, 7, 10, np.array([20]))[0], wave[20:30])


def test_measures_by_hand(fitted):
    values, _ = driven()
    score = fitted.score(values)
    at, forecasts = score.at[:-5], score.forecasts[:-5]
    truth = values[at[:, None] + np.arange(6)]
    own = score.errors["model"]
    h = 5  # the last step, where every forecast of `forecasts` is all that there is
    np.testing.assert_allclose(own.mae[h], np.mean(np.abs(forecasts - truth)[:, h]), rtol=1e-9)
    np.testing.assert_allclose(own.rmse[h], np.sqrt(np.mean((forecasts - truth)[:, h] ** 2)), rtol=1e-9)
    season = fitted.season_ or 1
    usual = np.mean(np.abs(values[season:240] - values[: 240 - season]))
    np.testing.assert_allclose(own.mase, own.mae / usual, rtol=1e-9)
    sizes = np.abs(forecasts) + np.abs(truth)
    np.testing.assert_allclose(own.smape[h], np.mean(200 * np.abs(forecasts - truth)[:, h] / sizes[:, h]), rtol=1e-9)


def test_predict_sees_the_end_of_the_series_and_score_does_not(fitted):
    """The rows of the test part change the network of `predict` and not that of `score`."""
    values, _ = driven()
    changed = values.copy()
    changed[250:] = changed[250:][::-1]
    other = Forecaster(**QUICK).fit(changed)
    np.testing.assert_array_equal(other.score(values).forecasts, fitted.score(values).forecasts)
    assert np.all(other.predict(values) != fitted.predict(values))
    same = Forecaster(**QUICK, refit=False).fit(changed)
    np.testing.assert_array_equal(same.predict(values), Forecaster(**QUICK, refit=False).fit(values).predict(values))


def test_backtests(fitted):
    values, _ = driven()
    score = fitted.backtest(values, folds=3)
    np.testing.assert_array_equal(score.at, [282, 288, 294])
    assert score.forecasts.shape == (3, 6)
    changed = values.copy()
    changed[294:] = 0.0
    np.testing.assert_array_equal(fitted.backtest(changed, folds=3).forecasts, score.forecasts)
    one = Forecaster(**QUICK).fit(values[:288])
    np.testing.assert_allclose(score.forecasts[1], one.predict(values[:288]), rtol=1e-12)
    np.testing.assert_allclose(score.quantiles[1], one.predict_quantiles(values[:288]), rtol=1e-12)
    with pytest.raises(ValueError, match="50 folds of 6 steps leave nothing of a series to fit to"):
        fitted.backtest(values, folds=50)


@pytest.mark.parametrize(
    ("step", "words"),  # 6 steps in each of 5 epochs, then 9 in each on all rows
    [(17, "signal 2"), (35, "signal 2 stopped the training on all rows; .* the network of epoch [1-5]")],
    ids=["first", "refit"],
)
def test_an_interrupt_leaves_the_best_and_a_run_that_goes_on(fitted, step, words, tmp_path):
    values, seen = driven()[0], []

    def interrupt(now):
        seen.append(now)
        if len(seen) == step:
            os.kill(os.getpid(), signal.SIGINT)

    forecaster = Forecaster(**QUICK, checkpoints=tmp_path / "run")
    with pytest.raises(Interrupted, match=words) as caught:
        forecaster.fit(values, interrupt)
    assert len(caught.value.trained.losses) == len(forecaster.trained_.losses) == min(step, 30)
    assert forecaster.predictor_ is forecaster.test_predictor_
    assert np.all(np.isfinite(forecaster.predict(values)))
    assert np.all(np.isfinite(forecaster.score(values).model))
    again = Forecaster(**QUICK, checkpoints=tmp_path / "run", resume=True).fit(values)
    assert again.trained_.losses == fitted.trained_.losses
    np.testing.assert_array_equal(again.predict(values), fitted.predict(values))


def test_a_warm_start_goes_on(fitted):
    values, _ = driven()
    forecaster = Forecaster(**QUICK, warm_start=True).fit(values)
    first, last = forecaster.trained_.losses[0], forecaster.trained_.validations[-1]
    forecaster.fit(values)
    assert forecaster.trained_.losses[0] < first
    assert forecaster.trained_.validations[0] < 1.1 * last


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_and_its_file(interpreted, cell, tmp_path):
    values, _ = driven(150)
    settings = {**QUICK, "epochs": 1, "num_layers": 2, "dropout": 0.1}
    forecaster = Forecaster(**settings, cell=cell, name="wave").fit(values)
    forecaster.save(tmp_path / "f")
    loaded = Forecaster.load(tmp_path / "f", "numpy")
    assert (loaded.settings, loaded.name, loaded.cell) == (forecaster.settings, "wave", cell)
    np.testing.assert_array_equal(loaded.predict_quantiles(values), forecaster.predict_quantiles(values))
    np.testing.assert_array_equal(loaded.score(values).quantiles, forecaster.score(values).quantiles)


def test_parameters_are_those_of_scikit_learn(fitted):
    sklearn = pytest.importorskip("sklearn.base")
    other = sklearn.clone(Forecaster(window=7, backend="numpy"))
    assert (other.window, other.settings) == (7, Settings(window=7))
    assert other.set_params(window=9).settings.window == 9
    for change, words in (({"window": 1}, "window is 1, expected 2"), ({"quantiles": (0.9, 0.1)}, "rising numbers")):
        with pytest.raises(ValueError, match=words):
            Forecaster(**change).fit(driven()[0])
    with pytest.raises(NotFittedError if "sklearn" not in sys.modules else ValueError, match="not fitted yet"):
        Forecaster().score(driven()[0])


@pytest.mark.filterwarnings("ignore:.*does not inherit from", "ignore:Can't test estimator")
def test_in_scikit_learn_tools():
    selection = pytest.importorskip("sklearn.model_selection")
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    values = driven()[0]
    forecaster = Forecaster(**{**QUICK, "epochs": 1})
    assert {each["status"] for each in checks.check_estimator(forecaster, on_skip=None)} == {"passed"}
    folds = selection.TimeSeriesSplit(2)
    scores = selection.cross_val_score(forecaster, values, cv=folds)
    train, test = list(folds.split(values))[1]
    expected = Forecaster(**{**QUICK, "epochs": 1}).fit(values[train]).score(values[test])
    assert scores[1] == pytest.approx(-np.mean(expected.model))


def test_tables_in_tables_out():
    """Targets go by name, whatever the order of columns."""
    pd = pytest.importorskip("pandas")
    values, price = driven()
    days = pd.date_range("2020-01-01", periods=320, freq="D")
    table = pd.DataFrame({"sales": values, "cost": values[::-1], "price": price[:300]}, index=days[:300])
    later = pd.DataFrame({"price": price[300:306]}, index=days[300:306])
    few = {**QUICK, "epochs": 1}
    forecaster = Forecaster(**few, future="price").fit(table)
    assert list(forecaster.feature_names_in_) == ["sales", "cost"]
    found = forecaster.predict(table, future=later)
    both, dates = table[["sales", "cost"]].to_numpy(), days[:300].values
    plain = Forecaster(**few).fit(both, future=price[:300], dates=dates)
    np.testing.assert_array_equal(found, plain.predict(both, future=price[:306], dates=dates))
    assert list(found.index) == list(days[300:306])
    pd.testing.assert_frame_equal(forecaster.predict(table[["price", "cost", "sales"]], future=later), found)
    with pytest.raises(ValueError, match=r"the targets of the table are sales.*, expected sales, cost, as in fit"):
        forecaster.predict(table.rename(columns={"cost": "x"}), future=later)
    quantiles = forecaster.predict_quantiles(table, future=later)
    assert list(quantiles.columns[:2]) == ["sales 0.1", "sales 0.2"]
    column = Forecaster(**few).fit(table["sales"]).predict(table["sales"], 2)
    assert (type(column), column.name) == (pd.Series, "sales")


def without(*rows):
    """The series with gaps."""
    return np.where(np.isin(np.arange(300), rows), np.nan, driven()[0])


@pytest.mark.parametrize(
    ("values", "beside", "words"),
    [
        (np.full(300, 3.0), {}, "constant at 3"),
        (np.ones((5, 2, 2)), {}, r"shape \(5, 2, 2\), expected \(N,\) or \(N, C\)"),
        (np.where(np.arange(300) == 5, np.inf, without()), {}, r"values\[5\] is inf"),
        (np.where(np.arange(300) == 200, 1e40, without(*range(10))), {}, r"values\[200\] is 1e\+40"),
        (1e-200 * without(), {}, "the series changes by no more than .*e-200, expected 1e-150 or more"),
        (without(*range(300)), {}, "the series has no value in column 0"),
        (without(*range(170, 245)), {}, "validation part of the series has no values"),
        (without(), {"future": np.ones(9)}, "future has 9 rows, expected 300 or more"),
        (without(), {"past": np.full(300, np.inf)}, "past begins with a gap or is infinite"),
        (without(), {"static": [[1], [2, 3]]}, r"^Forecaster: static is ragged, expected real numbers \(S,\)"),
        ([without()] * 2, {"static": np.array(3.0)}, "Forecaster: static is .*, expected one for each of 2 series"),
        (without(), {"static": [np.nan]}, "static has a number that is not finite"),
        (without(), {"dates": np.zeros(300, "datetime64[D]")}, r"dates\[1\] is 1970-01-01, expected a date after 1970"),
        (without(), {"dates": np.r_[np.arange(299), -(2**63)].view("M8[D]")}, r"dates\[299\] is NaT, expected a date"),
        *(
            ([first, second], {}, r"^Forecaster: values is ragged, expected real numbers \(N,\) or \(N, C\)")
            for first, second in ((3.0, without()), ("x", without()), (without(), [without(), [1.0]]))
        ),
        (without(), {"moon": 1}, "argument moon is unknown, expected past, future, static, dates"),
    ],
)
def test_bad_series_are_named(values, beside, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Forecaster(**QUICK).fit(values, **beside)


@pytest.mark.parametrize("name", ["horizon", "quantiles"])
def test_parameters_are_no_arguments_of_a_forecast(fitted, name):
    with pytest.raises(TypeError, match=rf"argument {name} is unknown, .* set in Forecaster\(.*, steps in predict"):
        fitted.predict_quantiles(driven()[0], **{name: 12})


def test_the_loss_is_squares_of_the_mean_and_pinball_of_quantiles(rng):
    from xlstm import gradcheck
    from xlstm.estimators import predictor

    y, target = rng.standard_normal((4, 2 * 3)), rng.standard_normal((4, 2))
    mask = np.array([[True, False], [True, True], [True, True], [False, True]])
    parts = y.reshape(4, 2, 3)
    total = losses.mse(parts[..., 0], target, mask)[0] + losses.pinball(parts[..., 1:], target, mask, (0.1, 0.9))[0]
    assert predictor.loss((0.1, 0.9), y, target, mask)[0] == pytest.approx(float(total), rel=1e-12)
    gradcheck(lambda y: predictor.loss((0.1, 0.9), y, target, mask), lambda dy, d: (d * dy,), (y,))


def test_level_and_scale_of_a_series_do_not_matter(fitted):
    """Also not where there are as many series as were fitted, and for one series among others."""
    values, _ = driven()
    for other in (1e-4 * values, 100 + 5 * values):
        plain = Forecaster(**QUICK).fit(other)
        np.testing.assert_allclose(fitted.predict(other), plain.predict(other), rtol=1e-4)
        np.testing.assert_allclose(fitted.score(other).quantiles, plain.score(other).quantiles, rtol=1e-3)
        np.testing.assert_array_equal(fitted.predict([other, values])[0], fitted.predict(other))


def test_a_series_that_does_not_change_is_forecast(fitted):
    found = fitted.predict([driven()[0], np.ones(100), np.zeros(12)], 9)
    np.testing.assert_array_equal(found[0], fitted.predict(driven()[0], 9))
    np.testing.assert_allclose(found[1], 1, rtol=1e-12)
    np.testing.assert_allclose(found[2], 0, atol=1e-12)


SMALL = {
    "hidden_size": 2,
    "epochs": 1,
    "backend": "numpy",
    "candidates": ("linear", "network"),
    "linear_baseline": 3,
    "quantiles": (0.1, 0.9),
}


def test_a_window_that_fits_is_chosen(tmp_path):
    """The default was 48 steps, which need 85 rows to forecast 3 ahead."""
    long, prices = driven(300)
    for rows, window in {20: 6, 57: 17, 80: 24, 120: 36, 160: 48, 300: 48}.items():
        values, price = driven(rows)
        for horizon in (1, 3, 4, min(12, rows // 5)):
            made = Forecaster(horizon=horizon, **SMALL).examples([values, long], future=[price, prices])
            assert made["train"].predictor.settings.window == window
    values = long[:57]
    forecaster = Forecaster(horizon=3, **SMALL).fit(values)
    assert (forecaster.window, forecaster.window_) == (None, 17)
    forecaster.save(tmp_path / "f")
    assert Forecaster.load(tmp_path / "f", "numpy").window_ == 17
    assert forecaster.backtest(values, 1).model.shape == (3,)


@pytest.mark.parametrize("horizon", [1, 5])
def test_any_length_has_a_window_if_one_fits(horizon):
    model = Forecaster(horizon=horizon, **SMALL)
    for rows in range(1, 41):
        if rows >= 3 and all(p.stop - max(2, p.start) >= horizon for p in split(rows)):
            assert len(model.examples(np.sin(np.arange(rows)))["train"].origins) >= horizon
        else:
            with pytest.raises(ValueError, match=f"horizon of {horizon} need .* rows, the series has {rows}; "):
                model.examples(np.sin(np.arange(rows)))


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (80, {"window": 48, "horizon": 3}, "a window of 48 and a horizon of 3 need 85 rows, .* a window of at most 45"),
        (20, {"horizon": 5}, "a window of 6 and a horizon of 5 need 23 rows, .* expected more rows, or a shorter hor"),
    ],
)
def test_an_error_says_how_many_rows_there_are_and_what_would_fit(rows, settings, words):
    model, long = Forecaster(**settings, **SMALL), driven(300)[0]
    with pytest.raises(ValueError, match=words) as caught:
        model.fit([long, long[:rows]])
    assert f"rows, series 1 has {rows}; " in str(caught.value)
    need = int(str(caught.value).split(" need ")[1].split()[0])
    model.examples(long[:need])
    with pytest.raises(ValueError, match="more rows"):
        model.examples(long[: need - 1])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_column_of_a_wide_table_may_begin_later(library):
    """The other columns are trained on from their own beginning, and nothing depends on rows before any value."""
    frames = pytest.importorskip(library)
    values, price = driven()
    days = np.datetime64("2020-01-01", "us") + np.delete(np.arange(320), 5) * np.timedelta64(1, "D")  # one is missing
    columns = {"day": days[:299], "a": values[:299], "b": np.arange(299.0) ** 1.5, "price": price[:299]}
    columns["b"][:90], columns["a"][39], columns["a"][:20], columns["price"][:3] = np.nan, np.nan, np.nan, np.nan
    later = frames.DataFrame({"day": days[299:305], "price": price[299:305]})
    forecaster = Forecaster(horizon=6, future="price", calendar=True, **SMALL)
    whole, cut = (frames.DataFrame({name: column[k:] for name, column in columns.items()}) for k in (0, 20))
    one, two = forecaster.fit(whole).predict(whole, future=later), forecaster.fit(cut).predict(cut, future=later)
    np.testing.assert_array_equal(one["b"], two["b"])
    np.testing.assert_array_equal(one["day"], two["day"])
    score = forecaster.score(whole)
    np.testing.assert_array_equal(score.at - 21, forecaster.score(cut).at)
    both = np.stack([columns["a"], columns["b"]], axis=1)[20:]
    data = Forecaster(horizon=6, **SMALL).examples(both)["train"]
    assert len(data.origins) == round(0.6 * 279) - 48
    first = data.mask[:, 0::2].any(axis=1), data.mask[:, 1::2].any(axis=1)
    assert (first[0].argmax(), first[1].argmax()) == (0, 70 - 48 - 5)
    changes = [np.mean((both[70 + lag : 167, 1] - both[70 : 167 - lag, 1]) ** 2) for lag in range(1, 48)]
    assert data.predictor.scaling.units[0, 1] == pytest.approx(np.sqrt(np.mean(changes)))
    both[:200, 1] = np.nan  # then it has half of the rows that are trained on
    (one,) = Forecaster(horizon=6, **SMALL).examples(both)["train"].several
    assert (one.begin, np.count_nonzero(np.isnan(one.values[:, 1]))) == (167, 33)
    columns["price"][:91] = np.nan
    with pytest.raises(ValueError, match="future begins with a gap"):
        forecaster.fit(frames.DataFrame(columns))


def walk(rng, steps, start, count=()):
    """Draw the next values of an autoregression of order 1."""
    noise, values = rng.normal(size=(steps, *count)), []
    for k in range(steps):
        values.append(0.8 * (values[-1] if values else start) + noise[k])
    return np.array(values).T


@pytest.mark.parametrize("call", [Forecaster.predict, Forecaster.predict_quantiles, Forecaster.sample])
def test_long_forecasts_say_how_long_they_take(fitted, monkeypatch, caplog, call):
    """And each horizon looks back on as many rows as the one before."""
    rows = []
    base = Predictor.base
    monkeypatch.setattr(Predictor, "base", lambda p, one, *rest: rows.append(len(one.known)) or base(p, one, *rest))
    monkeypatch.setattr(sampling, "LONG", np.inf)
    call(fitted, driven()[0], steps=600)
    assert caplog.messages == []
    assert rows[-1] == rows[-50]
    monkeypatch.setattr(sampling, "LONG", 0.0)
    call(fitted, driven()[0], steps=20)
    (message,) = caplog.messages
    assert message.startswith("Forecaster: 20 steps, 6 at a time, take about ")


def test_sample_paths_of_an_autoregression(tmp_path):
    """Steps, also beyond the horizon, and sums are covered; sums of paths whose steps are drawn one by one are not."""
    rng = np.random.default_rng(0)
    values = walk(rng, 1200, 0.0)
    settings = {"window": 24, "hidden_size": 8, "epochs": 1, "candidates": ("linear", "network")}
    forecaster = Forecaster(**settings, horizon=4, backend="numpy").fit(values)
    whole, shuffled = forecaster.ranks_, rng.permuted(forecaster.ranks_, axis=0)
    inside, sums, alone = [], [], []
    for end in range(900, 1200, 20):
        truth = walk(rng, 12, values[end - 1], (1000,))
        for ranks, covered in ((shuffled, alone), (whole, sums)):
            forecaster.ranks_ = ranks
            paths = forecaster.sample(values[:end], 250, 4 if ranks is shuffled else 12, seed=end)
            low, high = np.quantile(paths[:, :4].sum(axis=1), (0.1, 0.9))
            covered.append(np.mean((truth[:, :4].sum(axis=1) >= low) & (truth[:, :4].sum(axis=1) <= high)))
        low, high = np.quantile(paths, (0.1, 0.9), axis=0)
        inside.append(np.mean((truth >= low) & (truth <= high), axis=0))
    assert np.all(np.abs(np.mean(inside, axis=0) - 0.8) < 0.08)
    assert abs(np.mean(sums) - 0.8) < 0.07
    assert np.mean(alone) < 0.7
    forecaster.ranks_ = whole
    near, far = forecaster.predict_quantiles(values), forecaster.predict_quantiles(values, 12)
    np.testing.assert_array_equal(far[:4], near)
    np.testing.assert_array_equal(forecaster.predict_quantiles(values, 2), near[:2])
    paths = forecaster.sample(values, 4000, 12)
    np.testing.assert_allclose(np.quantile(paths[:, :4], forecaster.quantiles, axis=0).T, near, atol=0.2)
    np.testing.assert_allclose(np.quantile(paths[:, 4:], forecaster.quantiles, axis=0).T, far[4:], atol=0.6)
    forecaster.save(tmp_path / "f")
    np.testing.assert_array_equal(Forecaster.load(tmp_path / "f", "numpy").sample(values, 4000, 12), paths)


def test_sample_paths_of_targets_series_and_tables():
    """A path that is fed back has the forecast of a series that ends with it."""
    values, price = driven(312)
    both = np.stack([values, values[::-1]], axis=1)
    forecaster = Forecaster(**{**QUICK, "epochs": 1}).fit(both[:300], future=price[:300], past=values[:300])
    seen = {"future": price[:312], "past": values[:300]}
    paths = forecaster.sample(both[:300], 3, 12, **seen)
    assert paths.shape == (3, 12, 2)
    series, units = (read[0] for read in forecaster._read(both[:300], seen, 12)[1:])
    again = np.concatenate((both[:300], paths[1, :6])), np.concatenate((values[:300], np.repeat(values[299], 6)))
    one = forecaster._read(again[0], {"future": price[:312], "past": again[1]}, 6)[1][0]
    predictor = forecaster.predictor_
    found = predictor.finished(*sampling.before(predictor, series, units, paths[:, :6]))
    for part, expected in zip(found, predictor.forecast(one, units, np.array([306])), strict=True):
        np.testing.assert_allclose(part[1], expected[0], rtol=1e-5)
    several = Forecaster(**{**QUICK, "epochs": 1}).fit([values, values[:200]])
    found = several.sample([values, values[:200]], 5, 7)
    assert [one.shape for one in found] == [(5, 7), (5, 7)]
    with pytest.raises(ValueError, match=r"fitted with quantiles=\(0.5,\), expected two or more, to draw paths"):
        Forecaster(**{**QUICK, "epochs": 1, "quantiles": (0.5,)}).fit(values).sample(values)


class Mean:
    """A model as those of statsforecast are."""

    def fit(self, y):
        self.mean, self.spread = np.mean(y), 1.2816 * np.std(y)

    def forward(self, y, h, level):
        mean = np.full(h, self.mean)
        return {"mean": mean, "lo-80": mean - self.spread, "hi-80": mean + self.spread}


def test_models_are_compared():
    """By hand; the linear one is a forecaster with that candidate alone."""
    values, given = driven()[0] + np.arange(300) / 100, Mean()
    ours = Forecaster(**{**QUICK, "horizon": 1, "quantiles": (0.5,)})
    found = compare(values, {"ours": ours, "mean": given, "line": "linear"}, 6, season=12)
    assert (ours.horizon, hasattr(given, "mean"), ours.__sklearn_is_fitted__()) == (1, False, False)
    truth = values[np.unique(np.linspace(240, 294, 30).round().astype(int))[:, None] + np.arange(6)]
    np.testing.assert_array_equal(found.truth, truth)
    one, error = found.scores["mean"], truth - np.mean(values[:240])
    scale, spread = np.mean(np.abs(values[12:240] - values[:228])), 1.2816 * np.std(values[:240])
    expected = np.sqrt(np.mean(error**2)), np.mean(np.abs(error)), np.mean(np.abs(error)) / scale
    np.testing.assert_allclose(one[:5], (*expected, np.mean(np.abs(error) <= spread), 2 * spread))
    np.testing.assert_allclose(found.errors["mean"], np.sqrt(np.mean(error**2, axis=0)))
    fitted = Forecaster(**{**QUICK, "quantiles": (0.5,)}).fit(values[:240])
    np.testing.assert_allclose(found.scores["ours"].forecasts[3], fitted.predict([values[: found.at[3]]])[0])
    assert np.isnan(found.scores["ours"].coverage)
    line = Forecaster(horizon=6, backend="numpy", candidates=["linear"]).fit(values[:240])
    np.testing.assert_array_equal(found.scores["line"].forecasts[3], line.predict(values[: found.at[3]]))
    lines = str(found).splitlines()
    assert (len(lines), lines[0]) == (5, "Comparison: 30 forecasts of 6 steps, season of 12")
    assert [line.split()[0] for line in lines[2:]] == sorted(found.scores, key=lambda name: found.scores[name].rmse)


def test_comparisons_take_dates_and_gaps_and_refuse_what_is_no_model(monkeypatch):
    dates, values = np.datetime64("2020-01-01") + np.arange(300), 5.0 * (np.arange(300) % 7 >= 5) + driven()[0] / 50
    values[[3, 250]] = np.nan
    models = {"ours": Forecaster(**{**QUICK, "window": 4, "epochs": 1, "calendar": True}, linear_baseline=4)}
    dated, plain = compare(values, models, 6, dates=dates), compare(values, models, 6)
    assert dated.scores["ours"].rmse != plain.scores["ours"].rmse
    assert np.count_nonzero(np.isnan(dated.truth)) > 0
    assert len(compare(read_csv(bundled("co2")), ["linear"], 4).scores) == 1
    monkeypatch.setitem(sys.modules, "statsforecast", None)
    wide = {"wide": Forecaster(window=200, backend="numpy")}
    for given, models, horizon, words in (
        (values, ["ETS"], 6, "the model 'ETS' needs the package statsforecast; pip install statsforecast"),
        (values, ["moon"], 6, "the model 'moon' is 'moon', expected one of linear, seasonal naive, ETS, ARIMA, Th"),
        (values, {"x": 3}, 6, "the model 'x' is 3, expected"),
        (values, [Mean()], 6, r"models\[0\] is .*, expected a string"),
        (np.r_[values[:240], np.full(60, np.nan)], ["linear"], 6, "the last fifth of the series has no values"),
        (values, [], 6, "compare: models is empty, expected one or more"),
        (values, {}, 6, "compare: models is empty, expected one or more"),
        (values, "linear", 6, "models is 'linear', expected names of linear, seasonal naive"),
        (values, ["linear"], 61, "the last fifth of the series has 60 rows, expected at least horizon=61"),
        (np.ones((50, 2)), ["linear"], 2, "series is 1 of 2 targets, expected 1 of 1 target"),
        (values, wide, 6, r"need .* rows, the series has 240; expected more rows"),
    ):
        with pytest.raises((TypeError, ValueError, ImportError), match=words) as caught:
            compare(given, models, horizon)
    assert caught.value.__notes__ == ["in the model 'wide'"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lo-80": None}, "forward returned mean, hi-80, expected a dict with mean, lo-80, hi-80"),
        ({"mean": ["high", "low"]}, "forward's mean has dtype <U4, expected real numbers"),
        ({"mean": np.ones(1)}, r"forward's mean has shape \(1,\), expected \(H,\) = \(2,\)"),
        ({"mean": None, "lo-80": None, "hi-80": None}, "forward returned {}, expected a dict with mean, lo-80, hi-80"),
    ],
)
def test_forecasts_of_a_model_to_compare_are_named(change, words):
    class Odd(Mean):
        def forward(self, y, h, level):
            return {name: one for name, one in (super().forward(y, h, level) | change).items() if one is not None}

    with pytest.raises((TypeError, ValueError), match=f"^compare: {words}") as caught:
        compare(np.sin(np.arange(60.0)), {"odd": Odd()}, 2)
    assert caught.value.__notes__ == ["in the model 'odd'"]


def test_only_columns_with_a_role_are_read():
    pd = pytest.importorskip("pandas")
    values, _ = driven()
    table = pd.DataFrame({"sales": values, "note": ["dull"] * 300, "size": 1.0})
    settings = {**QUICK, "epochs": 1, "static": "size"}
    found = Forecaster(**settings, targets="sales").fit(table).predict(table)
    expected = Forecaster(**settings).fit(table[["sales", "size"]]).predict(table[["sales", "size"]])
    np.testing.assert_array_equal(found, expected)
    for roles, words in (
        ({"targets": "sales", "static": "moon"}, "column 'moon' is not in the table, which has sales, note, size"),
        ({}, "column 'note' holds String, expected numbers, dates, or names of series .series_id.; leave it out"),
        ({"targets": "sales", "static": "gap"}, "static columns gap have gaps or change"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            Forecaster(**settings | roles).fit(table.assign(gap=np.nan) if "gap" in words else table)


@pytest.mark.parametrize("library", LIBRARIES)
def test_tables_of_several_series(library, tmp_path):
    """Units of a series go with its name, in whatever order names come, and into the file."""
    values, price = driven()
    several, price = [values, 1e3 * values[::-1]], price[20:]
    day = np.datetime64("2020-01-01", "us") + np.arange(306) * np.timedelta64(1, "D")
    columns = {"day": np.tile(day[:300], 2), "shop": np.repeat(["a", "b"], 300), "sales": np.concatenate(several)}
    columns |= {"size": np.repeat([1.0, 2.0], 300), "price": np.tile(price, 2), "rain": np.tile(values, 2)}
    ahead = {"day": np.tile(day[300:], 2), "shop": np.repeat(["a", "b"], 6), "price": np.tile(price[:6], 2)}
    later = table(library, ahead)

    def rows(*order, **change):
        chosen = np.concatenate([np.flatnonzero(columns["shop"] == shop) for shop in order])
        return table(library, {name: change.get(name, column[chosen]) for name, column in columns.items()})

    roles = {"targets": "sales", "past": "rain", "future": ["price"], "static": "size", "series_id": "shop"}
    forecaster = Forecaster(**{**QUICK, "epochs": 1}, **roles).fit(rows("a", "b"))
    found = columns_of(forecaster.predict(rows("a", "b"), future=later))
    assert found["shop"].tolist() == ["a"] * 6 + ["b"] * 6
    np.testing.assert_array_equal(found["day"].astype("datetime64[us]"), ahead["day"])
    covariates = {"past": [values] * 2, "static": [[1.0], [2.0]], "dates": [day[:300]] * 2}
    plain = Forecaster(**{**QUICK, "epochs": 1}).fit(several, future=[price] * 2, **covariates)
    expected = plain.predict(several, future=[np.concatenate((price, price[:6]))] * 2, **covariates)
    np.testing.assert_array_equal(found["sales"], np.concatenate(expected))
    with pytest.raises(ValueError, match="future has 0 rows after series 'a', expected 6"):
        forecaster.predict(rows("a", "b"))
    with pytest.raises(ValueError, match=r"dates\[300\] is 2020-01-01.* name the column .* series_id \(--series-id\)"):
        Forecaster(**QUICK, targets="sales").fit(rows("a", "b"))
    forecaster.save(tmp_path / "f")
    loaded = Forecaster.load(tmp_path / "f", "numpy")
    assert [getattr(loaded, role) for role in roles] == [["sales"], ["rain"], ["price"], ["size"], "shop"]
    assert list(loaded.feature_names_in_) == ["sales"]
    for model in (forecaster, loaded):
        alone = columns_of(model.predict(rows("b"), future=later))
        np.testing.assert_array_equal(alone["sales"], found["sales"][6:])
    new = table(library, {name: ["c"] * 6 if name == "shop" else column[6:] for name, column in ahead.items()})
    unknown = columns_of(forecaster.predict(rows("b", shop=["c"] * 300), future=new))
    np.testing.assert_allclose(unknown["sales"], found["sales"][6:], rtol=1e-6)


def test_an_empty_series_is_named(fitted):
    for call in (Forecaster(**QUICK).fit, fitted.predict, fitted.score):
        with pytest.raises(ValueError, match="the series is empty, expected values"):
            call([np.arange(300.0), []])


@pytest.mark.parametrize(("step", "zone"), [("D", "Europe/Berlin"), ("QE-FEB", None)])
def test_later_covariates_of_every_calendar_are_placed_by_date(step, zone):
    pd = pytest.importorskip("pandas")
    values, price = driven()
    dates = pd.date_range("1990-01-01", periods=306, freq=step, tz=zone, unit="s")
    table = pd.DataFrame({"sales": values, "price": price[:300]}, index=dates[:300])
    later = pd.DataFrame({"price": price[300:306]}, index=dates[300:])
    forecaster = Forecaster(**{**QUICK, "epochs": 1}, future="price").fit(table)
    found = forecaster.predict(table, future=later)
    assert list(found.index) == list(dates[300:])
    pd.testing.assert_frame_equal(forecaster.predict(table, future=later[::-1]), found)


def monthly(n, seed=0):
    """A series with a trend and a season of 12 steps, both of which grow."""
    time, rng = np.arange(n), np.random.default_rng(seed)
    return np.exp(4 + 0.01 * time + 0.2 * np.sin(time * np.pi / 6) + 0.03 * rng.standard_normal(n))


def test_candidates_are_judged_and_averaged(tmp_path):
    values = monthly(92)
    forecaster = Forecaster(horizon=8, backend="numpy").fit(values[:84])  # too few windows for a network
    assert {*forecaster.chosen_} <= {"linear", "smoothing"} == {*forecaster.candidate_errors_}
    assert "trained_" not in vars(forecaster)
    part = forecaster.predictor_.combination.parts["smoothing"]
    assert part.layer.periods == (12,)
    found = forecaster.predict(values[:84])
    assert np.mean((found - values[84:]) ** 2) < 0.3 * np.mean((values[72:80] - values[84:]) ** 2)
    forecaster.save(tmp_path / "one")
    loaded = Forecaster.load(tmp_path / "one", "numpy")
    np.testing.assert_array_equal(loaded.predict(values[:84]), found)
    assert loaded.candidate_errors_ == forecaster.candidate_errors_
    for names in (["smoothing"], ["linear"], ["network"]):
        one = Forecaster(horizon=2, epochs=1, hidden_size=4, backend="numpy", candidates=names).fit(values)
        one.save(tmp_path / "two")
        assert Forecaster.load(tmp_path / "two", "numpy").predict(values, 5).shape == (5,)
        assert ("trained_" in vars(one), "network" in one.chosen_) == (("network" in names),) * 2
        assert one.sample(values, 3, steps=4).shape == (3, 4)
        assert {*one.chosen_} == {*names}
    for names, words in (
        (["ets"], r"candidates\[0\] is 'ets', expected one of"),
        ([], "candidates is empty, expected"),
    ):
        with pytest.raises(ValueError, match=words):
            Forecaster(candidates=names).fit(values)


def test_a_short_series_does_not_limit_the_lags_of_the_others():
    several = [np.tile([0.0, 1, 3, 2, 5, 1, 0], n // 7) + k for k, n in enumerate((140, 105, 42))]
    forecaster = Forecaster(horizon=3, backend="numpy", candidates=["linear"]).fit(several)
    assert forecaster.linear_baseline_ >= 8
    for values, ahead in zip(several, forecaster.predict(several), strict=True):
        np.testing.assert_allclose(ahead, values[:3], atol=0.05)


def test_short_series():
    """From 20 values on a series has all its parts."""
    forecaster = Forecaster(horizon=3, backend="numpy").fit(np.cumsum(np.arange(20.0)))
    assert forecaster.predict(np.cumsum(np.arange(20.0))) == pytest.approx([210, 231, 253], rel=0.1)
    with pytest.raises(ValueError, match="need 13 rows, the series has 8"):
        Forecaster(horizon=3, backend="numpy").fit(np.arange(8.0))


def test_smoothing_is_that_of_the_layer(rng):
    values, shares = 5 + rng.random((40, 2)), {"alpha": 0.3, "beta": 0.2, "phi": 0.9, "gamma": 0.4}
    for periods, multiplicative in (((), False), ((4,), False), ((4,), True)):
        layer = ExponentialSmoothing(3, periods=periods, multiplicative=multiplicative)
        params = {name: np.array([np.log(shares[name] / (1 - shares[name]))]) for name in layer.weights}
        x = values[..., None]
        expected = layer(params, x, layer.initial_state(x))[0]
        numbers = np.array([[0.7 * 0.4, 0.3, 0.3 * 0.2, 0.9]]).T
        np.testing.assert_allclose(selection.smoothed(layer, numbers, values)[:, 0], expected, rtol=1e-12)
        np.testing.assert_allclose(selection.smoothed(layer, numbers, values, 30)[:, 0], expected[30:], rtol=1e-12)


def test_weights_follow_the_latest_errors(rng):
    """By hand: errors that are known at a row, of which eight rows halve the share."""
    ahead, values = rng.standard_normal((2, 12, 3, 1)), rng.standard_normal((20, 1))
    series = panels.TimeSeries(values, values, *[np.empty((20, 0))] * 2, np.empty(0), None)
    rows, usual = np.arange(5, 17), np.array([[1.0], [2.0], [3.0]])
    parts = dict.fromkeys(("smoothing", "linear"))
    found = selection.Combination(parts, np.array([0.5, 0.8]), np.array([1.0, 1.6]), usual)
    weights = found.weights(series, np.ones(1), rows, ahead)
    level = np.array([0.5, 0.5])
    for r, row in enumerate(rows):
        known = [h for h in range(3) if r - h - 1 >= 0]
        if known:
            change = {h: values[row - 1, 0] - values[row - h - 2, 0] for h in known}
            errors = [(ahead[:, r - h - 1, h, 0] - change[h]) ** 2 / usual[h] for h in known]
            level = level + (1 - 0.5 ** (1 / 8)) * (np.mean(errors, axis=0) - level)
        expected = (level * [1.0, 1.6]) ** -2.0
        np.testing.assert_allclose(weights[:, r, 0], expected / expected.sum(), rtol=1e-12)


def test_a_forecast_does_not_depend_on_others(rng):
    """From a row it is the same alone as among those from other rows."""
    values = np.cumsum(rng.standard_normal(240))
    forecaster = Forecaster(horizon=6, backend="numpy", candidates=["linear", "smoothing"]).fit(values)
    assert len(forecaster.chosen_) == 2
    (series,) = panels.read_series("test", [values[:, None]], [panels.Covariates()], 6, False)
    forecast, units, rows = forecaster.predictor_.forecast, forecaster.scaling_.units[0], np.arange(150, 241)
    mean, quantiles, _ = forecast(series, units, rows)
    for k in (0, 60, 90):
        alone = forecast(series, units, rows[k : k + 1])
        np.testing.assert_allclose(alone[0][0], mean[k], rtol=1e-12)
        np.testing.assert_allclose(alone[1][0], quantiles[k], rtol=1e-12)
    np.testing.assert_allclose(forecaster.predict(values), mean[-1, :, 0], rtol=1e-12)


def test_seasons_are_found(rng):
    noise, time = rng.standard_normal(200), np.arange(200)
    for m in (4, 7, 12, 24):
        assert selection.season(np.tile(rng.standard_normal(m) * 5, 60)[:200] + time + noise) == m
    assert selection.season(np.cumsum(noise)) == selection.season(noise) == 0
