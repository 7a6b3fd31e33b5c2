"""The forecaster for real use: covariates, several series and targets, tables, intervals, baselines, interrupts."""

import dataclasses
import os
import pickle
import signal

import numpy as np
import pytest

from xlstm import losses
from xlstm.data import calendars
from xlstm.data.series import bundled, read_csv
from xlstm.data.series_windows import carry_forward, split
from xlstm.estimators import Forecaster, NotFittedError, SeriesError, Settings, baselines, evaluation
from xlstm.training import Interrupted

QUICK = {
    **{"window": 12, "hidden_size": 8, "epochs": 5, "learning_rate": 0.02, "batch_size": 32, "averaging": 0.9},
    **{"horizon": 6, "backend": "numpy"},
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
    assert np.all(score.model[ahead] <= np.minimum(score.persistence, score.autoregression)[ahead])
    assert np.all((score.coverage[ahead] >= 0.75) & (score.coverage[ahead] <= 0.85))
    assert score.interval == pytest.approx(0.8)


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
    with pytest.raises(ValueError, match="count is 0, expected 1 or more"):
        fitted.windows(values, 0)
    assert fitted.model_(fitted.params_, x)[0].shape == (3, fitted.model_.output_size)


def test_what_is_known_in_advance_is_used():
    values, price = driven()
    score = Forecaster(**QUICK).fit(values, future=price[:300]).score(values, future=price[:300])
    blind = Forecaster(**QUICK).fit(values).score(values)
    assert np.all(score.model < 0.5 * blind.model)


def test_what_will_be_known_is_asked_for():
    values, price = driven()
    forecaster = Forecaster(**QUICK).fit(values, future=price[:300])
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


def test_several_targets_and_several_series():
    values, price = driven()
    both = np.stack([values, price[:300]], axis=1)
    forecaster = Forecaster(**QUICK).fit(both)
    score = forecaster.score(both)
    assert (score.model.shape, score.forecasts.shape) == ((6, 2), (60, 6, 2))
    lines = str(score).splitlines()
    assert lines[0] == "Score: root mean square errors of 60 forecasts"
    assert lines[1].split() == ["step", "model", "persistence", "autoregression", "seasonal", "coverage"]
    assert len(lines) == 14
    assert lines[-1].split()[:4] == ["6,", "target", "1", f"{score.model[5, 1]:.4g}"]
    assert (forecaster.predict(both, 7).shape, forecaster.predict_quantiles(both).shape) == ((7, 2), (6, 2, 9))
    assert forecaster.n_targets_ == 2
    several = [values, 100 * values[:200]]
    forecaster = Forecaster(**QUICK).fit(several)
    one, two = forecaster.predict(several)
    assert one.shape == two.shape == (6,)
    score = forecaster.score(several)
    assert repr(score) == str(score)
    assert str(score).splitlines()[2].split()[:2] == ["1", f"{score.model[0]:.4g}"]
    long = dataclasses.replace(score, model=np.ones(100), coverage=np.ones(100), errors={})
    assert [line.split()[0] for line in repr(long).splitlines()[-2:]] == ["11", "100"]
    np.testing.assert_array_equal(np.bincount(score.series), [60, 40])
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
    line, unit = forecaster._test_predictor.line, forecaster.scaling_.units[0][0]
    assert (line.order, forecaster.linear_baseline_) == (5, 5)
    at = np.arange(12, 120)
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
    forecaster = Forecaster(**QUICK, linear_baseline=0, quantiles=(), scaling="series").fit(values)
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


@pytest.mark.parametrize("refit", [True, False])
def test_backtests(fitted, refit):
    values, _ = driven()
    score = fitted.backtest(values, folds=3, refit=refit)
    np.testing.assert_array_equal(score.at, [282, 288, 294])
    assert score.forecasts.shape == (3, 6)
    changed = values.copy()
    changed[294:] = 0.0
    other = fitted.backtest(changed, folds=3, refit=refit)
    np.testing.assert_array_equal(other.forecasts, score.forecasts)
    if refit:
        one = Forecaster(**QUICK).fit(values[:288])
        np.testing.assert_allclose(score.forecasts[1], one.predict(values[:288]), rtol=1e-12)
        np.testing.assert_allclose(score.quantiles[1], one.predict_quantiles(values[:288]), rtol=1e-12)
    with pytest.raises(ValueError, match="folds"):
        fitted.backtest(values, folds=50, refit=refit)


@pytest.mark.parametrize("phase", ["first", "refit"])
def test_after_an_interrupt_it_has_what_was_best(phase):
    values, _ = driven()
    seen = []

    def interrupt(now):
        seen.append(now.epoch)
        if len(seen) == (20 if phase == "first" else 40):  # 6 steps an epoch, then 9
            os.kill(os.getpid(), signal.SIGINT)

    forecaster = Forecaster(**QUICK)
    with pytest.raises(Interrupted):
        forecaster.fit(values, interrupt)
    assert (len(forecaster.trained_.losses) == 20) == (phase == "first")
    assert forecaster._predictor is forecaster._test_predictor
    assert np.all(np.isfinite(forecaster.predict(values)))
    assert np.all(np.isfinite(forecaster.score(values).model))


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    values, _ = driven()
    whole = Forecaster(**QUICK).fit(values)

    def interrupt(now):
        if now.total == 17:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        Forecaster(**QUICK, checkpoints=tmp_path).fit(values, interrupt)
    again = Forecaster(**QUICK, checkpoints=tmp_path, resume=True).fit(values)
    assert again.trained_.losses == whole.trained_.losses
    np.testing.assert_array_equal(again.predict(values), whole.predict(values))


def test_a_warm_start_goes_on(fitted):
    values, _ = driven()
    forecaster = Forecaster(**QUICK, warm_start=True).fit(values)
    first, last = forecaster.trained_.losses[0], forecaster.trained_.validations[-1]
    forecaster.fit(values)
    assert forecaster.trained_.losses[0] < first
    assert forecaster.trained_.validations[0] < 1.1 * last


@pytest.mark.parametrize("cell", ["gru", "slstm", "mlstm", "xlstm"])
def test_every_cell(cell, tmp_path):
    values, _ = driven()
    forecaster = Forecaster(**{**QUICK, "epochs": 1}, cell=cell, num_layers=2, dropout=0.1).fit(values)
    forecaster.save(tmp_path / "f")
    loaded = Forecaster.load(tmp_path / "f", "numpy")
    assert loaded.cell == cell
    np.testing.assert_array_equal(loaded.predict_quantiles(values), forecaster.predict_quantiles(values))
    np.testing.assert_array_equal(loaded.score(values).quantiles, forecaster.score(values).quantiles)


def test_parameters_are_those_of_scikit_learn(fitted):
    sklearn = pytest.importorskip("sklearn.base")
    assert fitted.get_params()["window"] == 12
    other = sklearn.clone(Forecaster(window=7, backend="numpy"))
    assert (other.window, other.settings) == (7, Settings(window=7))
    other.set_params(window=9)
    assert other.settings.window == 9
    with pytest.raises(ValueError, match="'moon' is no parameter"):
        other.set_params(moon=1)
    with pytest.raises(ValueError, match="window is 0, expected 2 or more"):
        Forecaster(window=0).fit(driven()[0])
    with pytest.raises(ValueError, match=r"quantiles is .*, expected rising numbers"):
        Forecaster(quantiles=(0.9, 0.1)).fit(driven()[0])
    with pytest.raises((NotFittedError, ValueError), match="not fitted yet"):
        Forecaster().score(driven()[0])
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_quantiles(driven()[0]), fitted.predict_quantiles(driven()[0]))


@pytest.mark.filterwarnings("ignore:.*does not inherit from", "ignore:Can't test estimator")
def test_in_scikit_learn_tools():
    selection = pytest.importorskip("sklearn.model_selection")
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    values = driven()[0]
    forecaster = Forecaster(**{**QUICK, "epochs": 1})
    found = checks.check_estimator(forecaster, on_skip=None)
    assert [each["status"] for each in found] == ["passed"] * len(found)
    folds = selection.TimeSeriesSplit(2)
    scores = selection.cross_val_score(forecaster, values, cv=folds)
    train, test = list(folds.split(values))[1]
    expected = Forecaster(**{**QUICK, "epochs": 1}).fit(values[train]).score(values[test])
    assert scores[1] == pytest.approx(-np.mean(expected.model))
    search = selection.GridSearchCV(forecaster, {"hidden_size": [2, 3]}, cv=folds).fit(values)
    assert search.best_estimator_.predict(values).shape == (forecaster.horizon,)


def test_tables_in_tables_out():
    pd = pytest.importorskip("pandas")
    values, price = driven()
    days = pd.date_range("2020-01-01", periods=320, freq="D")
    table = pd.DataFrame({"sales": values, "price": price[:300]}, index=days[:300])
    later = pd.DataFrame({"price": price[300:306]}, index=days[300:306])
    forecaster = Forecaster(**QUICK, future="price").fit(table)
    assert list(forecaster.feature_names_in_) == ["sales"]
    found = forecaster.predict(table, future=later)
    plain = Forecaster(**QUICK).fit(values, future=price[:300], dates=days[:300].values)
    expected = plain.predict(values, future=price[:306], dates=days[:300].values)
    np.testing.assert_array_equal(found["sales"], expected)
    assert list(found.index) == list(days[300:306])
    quantiles = forecaster.predict_quantiles(table, future=later)
    assert list(quantiles.columns[:2]) == ["sales 0.1", "sales 0.2"]
    column = Forecaster(**QUICK).fit(table["sales"]).predict(table["sales"], 2)
    assert (type(column), column.name) == (pd.Series, "sales")
    with pytest.raises(ValueError, match=r"column .moon. is not in the table, which has sales, price"):
        Forecaster(**QUICK, targets="moon").fit(table)


def test_a_table_of_several_series():
    pl = pytest.importorskip("polars")
    values, _ = driven()
    days = np.datetime64("2020-01-01", "us") + np.arange(300) * np.timedelta64(1, "D")
    table = pl.DataFrame(
        {"day": np.tile(days, 2), "shop": ["a"] * 300 + ["b"] * 300, "sales": np.concatenate((values, 5 * values))}
    )
    forecaster = Forecaster(**QUICK, series_id="shop").fit(table)
    found = forecaster.predict(table, 2)
    assert found.columns == ["day", "shop", "sales"]
    assert found["shop"].to_list() == ["a", "a", "b", "b"]
    assert found["day"].to_list() == 2 * (days[-1] + np.arange(1, 3) * np.timedelta64(1, "D")).tolist()
    expected = Forecaster(**QUICK).fit([values, 5 * values], dates=[days, days])
    arrays = expected.predict([values, 5 * values], 2, dates=[days, days])
    np.testing.assert_array_equal(found["sales"], np.concatenate(arrays))
    with pytest.raises(ValueError, match="column 'town' is not in the table"):
        Forecaster(**QUICK, series_id="town").fit(table)


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"past": np.ones(9)}, "past has 9 rows, expected 300"),
        ({"future": np.ones(9)}, "future has 9 rows, expected 300 or more"),
        ({"past": np.full(300, np.inf)}, "past begins with a gap or is infinite"),
        ({"static": [np.nan]}, "static has a number that is not finite"),
        ({"dates": np.arange(300)}, "dates is an array of int64"),
        ({"dates": np.zeros(300, "datetime64[D]")}, r"dates\[1\] is 1970-01-01, expected a date after 1970-01-01"),
        ({"dates": np.datetime64("2020-01-01") + np.arange(9)}, "dates has 9 rows, expected 300"),
        ({"moon": 1}, "moon is no argument, expected some of past, future, static, dates"),
    ],
)
def test_what_is_beside_a_series_is_checked(beside, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Forecaster(**QUICK).fit(driven()[0], **beside)


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


def test_units_of_named_series_go_with_their_names():
    pd = pytest.importorskip("pandas")
    values, _ = driven()
    table = pd.DataFrame({"shop": ["a"] * 300 + ["b"] * 300, "sales": np.concatenate((values, 1e3 * values[::-1]))})
    forecaster = Forecaster(**QUICK, series_id="shop")
    found = forecaster.fit(table).predict(table, 2)
    turned = forecaster.predict(pd.concat((table[300:], table[:300]), ignore_index=True), 2)
    np.testing.assert_array_equal(turned["sales"], found["sales"][[2, 3, 0, 1]])
    alone = table[300:].reset_index(drop=True)
    np.testing.assert_array_equal(forecaster.predict(alone, 2)["sales"], found["sales"][2:])
    changed = alone.assign(shop="c")
    np.testing.assert_allclose(forecaster.predict(changed, 2)["sales"], found["sales"][2:], rtol=1e-6)


def test_a_series_that_does_not_change_is_forecast(fitted):
    values, _ = driven()
    found = fitted.predict([values, np.ones(100), np.zeros(12)], 9)
    np.testing.assert_array_equal(found[0], fitted.predict(values, 9))
    np.testing.assert_allclose(found[1], 1, rtol=1e-12)
    np.testing.assert_allclose(found[2], 0, atol=1e-12)


SMALL = {"hidden_size": 2, "epochs": 1, "backend": "numpy", "linear_baseline": 3, "quantiles": (0.1, 0.9)}


@pytest.mark.parametrize(("rows", "window"), [(20, 6), (57, 17), (80, 24), (120, 36), (160, 48), (300, 48)])
def test_a_window_that_fits_is_chosen(rows, window, tmp_path):
    """The default was 48 steps, which need 85 rows to forecast 3 ahead."""
    values, price = driven(rows)
    for horizon in (1, 3, 4, min(12, rows // 5)):
        made = Forecaster(horizon=horizon, **SMALL).examples([values, driven(300)[0]], future=[price, driven(300)[1]])
        assert made["train"].window == window
    forecaster = Forecaster(horizon=3, **SMALL).fit(values)
    assert (forecaster.window, forecaster.window_) == (None, window)
    forecaster.save(tmp_path / "f")
    again = Forecaster.load(tmp_path / "f", "numpy")
    assert again.window_ == window
    np.testing.assert_array_equal(again.predict(values), forecaster.predict(values))
    assert forecaster.backtest(values, 1).model.shape == (3,)


def test_any_length_has_a_window_if_one_fits():
    for rows in range(1, 61):
        for horizon in (1, 2, 5, 12):
            model = Forecaster(horizon=horizon, **SMALL)
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
        model.fit(long[:rows])
    assert f"rows, the series has {rows}; " in str(caught.value)
    with pytest.raises(ValueError, match=words) as caught:
        model.fit([long, long[:rows]])
    assert f"rows, series 1 has {rows}; " in str(caught.value)
    need = int(str(caught.value).split(" need ")[1].split()[0])
    model.examples(long[:need])
    with pytest.raises(ValueError, match="more rows"):
        model.examples(long[: need - 1])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_column_of_a_wide_table_may_begin_later(library):
    """Rows before the first value of some target are left out, as in a file of one series."""
    frames = pytest.importorskip(library)
    values, price = driven()
    days = np.datetime64("2020-01-01", "us") + np.delete(np.arange(320), 5) * np.timedelta64(1, "D")  # one is missing
    columns = {"day": days[:299], "a": values[:299], "b": np.arange(299.0) ** 1.5, "price": price[:299]}
    columns["b"][:20], columns["a"][19], columns["price"][:3] = np.nan, np.nan, np.nan
    later = frames.DataFrame({"day": days[299:305], "price": price[299:305]})
    forecaster = Forecaster(horizon=6, future="price", calendar=True, **SMALL)
    whole, cut = (frames.DataFrame({name: column[k:] for name, column in columns.items()}) for k in (0, 20))
    one, two = forecaster.fit(whole).predict(whole, future=later), forecaster.fit(cut).predict(cut, future=later)
    np.testing.assert_array_equal(one["b"], two["b"])
    np.testing.assert_array_equal(one["day"], two["day"])
    np.testing.assert_array_equal(forecaster.score(whole).at - 21, forecaster.score(cut).at)
    np.testing.assert_array_equal(forecaster.score(whole).forecasts, forecaster.score(cut).forecasts)
    columns["price"][:21] = np.nan
    with pytest.raises(ValueError, match="future begins with a gap"):
        forecaster.fit(frames.DataFrame(columns))


def test_a_value_out_of_reach_is_named_by_its_row():
    values = np.where(np.arange(300) < 10, np.nan, driven()[0])
    values[200] = 1e40
    with pytest.raises(SeriesError, match=r"values\[200\] is 1e\+40"):
        Forecaster(horizon=3, **SMALL).fit(values)


def test_only_columns_with_a_role_are_read():
    pd = pytest.importorskip("pandas")
    values, _ = driven()
    table = pd.DataFrame({"sales": values, "note": ["dull"] * 300, "size": 1.0})
    settings = {**QUICK, "epochs": 1, "static": "size"}
    found = Forecaster(**settings, targets="sales").fit(table).predict(table)
    expected = Forecaster(**settings).fit(table[["sales", "size"]]).predict(table[["sales", "size"]])
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="column 'moon' is not in the table, which has sales, size"):
        Forecaster(**{**settings, "static": "moon"}).fit(table[["sales", "size"]])
    with pytest.raises(TypeError, match="column 'note' holds String"):
        Forecaster(**settings).fit(table)
    with pytest.raises(ValueError, match="static column 'size' has missing values"):
        Forecaster(**settings, targets="sales").fit(table.assign(size=np.nan))


def test_targets_of_a_table_go_by_name():
    pd = pytest.importorskip("pandas")
    values, price = driven()
    table = pd.DataFrame({"sales": values, "price": price[:300]})
    forecaster = Forecaster(**{**QUICK, "epochs": 1}).fit(table)
    found = forecaster.predict(table)
    pd.testing.assert_frame_equal(forecaster.predict(table[["price", "sales"]]), found)
    for other in (table.rename(columns={"price": "cost"}), table[["sales"]], table.assign(more=1.0)):
        with pytest.raises(ValueError, match=r"the targets of the table are sales.*, expected sales, price, as in fit"):
            forecaster.predict(other)
    np.testing.assert_array_equal(forecaster.predict(table.to_numpy()), found)


def test_a_loaded_forecaster_reads_the_tables_that_it_was_fitted_to(tmp_path):
    pd = pytest.importorskip("pandas")
    values, price = driven()
    several = [values, values[::-1]]
    columns = {"shop": ["a"] * 300 + ["b"] * 300, "size": [1.0] * 300 + [2.0] * 300}
    columns |= {"sales": np.concatenate(several), "price": np.tile(price[:300], 2), "rain": np.tile(price[20:], 2)}
    table = pd.DataFrame(columns)
    later = pd.DataFrame({"shop": ["a"] * 6 + ["b"] * 6, "price": np.tile(price[300:306], 2)})
    roles = {"past": "rain", "future": ["price"], "static": "size", "series_id": "shop"}
    forecaster = Forecaster(**{**QUICK, "epochs": 1}, **roles).fit(table)
    forecaster.save(tmp_path / "f")
    loaded = Forecaster.load(tmp_path / "f", "numpy")
    assert (loaded.past, loaded.future, loaded.targets, loaded.series_id) == (["rain"], ["price"], None, "shop")
    assert list(loaded.feature_names_in_) == ["sales"]
    turned = pd.concat((table[300:], table[:300]), ignore_index=True)
    for rows in (table, turned):
        pd.testing.assert_frame_equal(loaded.predict(rows, future=later), forecaster.predict(rows, future=later))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"checkpoints": 3}, "checkpoints is 3, expected a path"),
        ({"checkpoints": "FILE"}, "File exists"),
        ({"checkpoints": "RUN"}, "holds a run already"),
        ({"resume": True}, "checkpoints names no folder to resume from"),
        ({"callbacks": [3]}, r"callbacks\[0\] is 3, expected a training.Callback or a function"),
    ],
)
def test_how_training_is_kept_is_checked_before_any_work(wrong, words, tmp_path, monkeypatch):
    (tmp_path / "FILE").touch()
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "step-000000001.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(baselines, "fit", lambda *_: pytest.fail("the linear_baseline is fitted"))
    with pytest.raises((TypeError, ValueError, OSError), match=words):
        Forecaster(**QUICK, **wrong).fit(driven()[0])


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupt_of_the_second_training_says_what_there_is(fitted, kept, tmp_path):
    values, _ = driven()
    seen = []

    def interrupt(now):
        seen.append(now.total)
        if seen.count(1) == 2 and now.total == 5:  # 6 steps an epoch, then 9
            os.kill(os.getpid(), signal.SIGINT)

    checkpoints = {"checkpoints": tmp_path / "run"} if kept else {}
    words = (
        "signal 2 stopped the training on all rows; the forecaster has the network of epoch [1-5], which has not seen"
    )
    with pytest.raises(Interrupted, match=words) as caught:
        Forecaster(**QUICK, **checkpoints).fit(values, interrupt)
    assert ("resume=True goes on" in str(caught.value)) == kept
    assert len(caught.value.trained.losses) == 30
    if kept:
        again = Forecaster(**QUICK, **checkpoints, resume=True).fit(values)
        np.testing.assert_array_equal(again.predict(values), fitted.predict(values))


@pytest.mark.parametrize("empty", [[], np.empty(0), np.empty((0, 2)), [np.arange(300.0), []]])
def test_an_empty_series_is_named(fitted, empty):
    for call in (Forecaster(**QUICK).fit, fitted.predict, fitted.score):
        with pytest.raises(ValueError, match="the series is empty, expected values"):
            call(empty)


STEPS = [("h", "Europe/Berlin"), ("D", "Europe/Berlin"), ("MS", None), ("ME", None), ("ME", "UTC"), ("QE-FEB", None)]


@pytest.mark.parametrize(("step", "zone"), [*STEPS, ("YE", None), ("SMS", None), ("W", None), ("B", None)])
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
