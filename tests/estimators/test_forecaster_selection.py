"""The candidates of a forecaster and how it chooses: linear, exponential smoothing, seasons, dates,
and the network.
"""

import numpy as np
import pytest

from tests.estimators.conftest import QUICK
from xlstm.data.panels import Panel
from xlstm.data.series import bundled, read_csv
from xlstm.data.series_windows import carry_forward
from xlstm.data.time_series import Covariates
from xlstm.estimators import Forecaster, baselines, compare, seasons, selection, smoothing
from xlstm.layers.smoothing import ExponentialSmoothing


def test_dates_that_help_are_looked_at_and_others_are_not():
    rng = np.random.default_rng(0)
    dates = np.datetime64("2018-01-01") + np.arange(500)
    weekend = 5.0 * (np.arange(500) % 7 >= 5) + rng.normal(size=500)
    settings = {**QUICK, "window": 4, "candidates": ["linear"]}
    forecaster = Forecaster(**settings).fit(weekend, dates=dates)
    assert forecaster.calendar_
    assert np.all(forecaster.score(weekend, dates=dates).model < 1.5)
    walk = np.cumsum(rng.normal(size=500))
    assert not Forecaster(**settings).fit(walk, dates=dates).calendar_


def test_the_linear_baseline_is_ridge_regression(rng):
    """Its coefficients are those of least squares on rows that a penalty adds, and a constant is
    not shrunk away.
    """
    values = np.cumsum(rng.standard_normal(200))
    forecaster = Forecaster(**{**QUICK, "linear_baseline": 5, "horizon": 2, "refit": False}).fit(
        values
    )
    line = forecaster.test_predictor_.combination.candidates["linear"].candidate
    unit = forecaster.scaling_.units[0][0]
    assert (line.order, forecaster.linear_baseline_) == (5, 5)
    at = np.arange(5, 160)
    lags = np.stack([values[at - k] - values[at - 1] for k in (5, 4, 3, 2)], axis=1) / unit
    design = np.concatenate((lags, np.ones((len(at), 1))), axis=1)
    for h in range(2):
        there = at + h < 160
        target = (values[np.minimum(at + h, 199)] - values[at - 1])[there] / unit
        weights = np.full(5, line.covariate_ridge)
        weights[:4] = line.ridge * np.mean(lags**2)
        rows = np.diag(np.sqrt(there.sum() * weights))
        expected, *_ = np.linalg.lstsq(
            np.concatenate((design[there], rows)), np.concatenate((target, np.zeros(5)))
        )
        np.testing.assert_allclose(line.coefficients[0, h], expected, rtol=1e-6, atol=1e-9)


def test_a_short_series_does_not_limit_the_lags_of_the_others():
    several = [np.tile([0.0, 1, 3, 2, 5, 1, 0], n // 7) + k for k, n in enumerate((140, 105, 42))]
    options = {"horizon": 3, "backend": "numpy", "candidates": ["linear"]}
    forecaster = Forecaster(season=0, **options).fit(several)
    assert forecaster.linear_baseline_ >= 8
    for values, ahead in zip(several, forecaster.predict(several), strict=True):
        np.testing.assert_allclose(ahead, values[:3], atol=0.05)


def test_seasons(rng):
    co2 = carry_forward(read_csv(bundled("co2")).values)
    assert seasons.find(co2) == (52,)
    noise = rng.standard_normal(500)
    time = np.arange(500)
    assert seasons.autocorrelated(np.sin(2 * np.pi * time[:300] / 25) + 0.01 * time[:300]) == 25
    for none in (noise, np.ones(50), np.arange(50.0), np.arange(5.0)):
        assert seasons.autocorrelated(none) == 0
        assert seasons.find(none) == ()
    wave = np.arange(30.0) % 7
    known = np.where(np.arange(30) < 20, wave, np.nan)  # nothing that comes later is looked at
    np.testing.assert_array_equal(baselines.seasonal(known, 7, 10, np.array([20]))[0], wave[20:30])
    noise = noise[:200]
    time = time[:200]
    for m in (4, 7, 12, 24):
        season = np.tile(rng.standard_normal(m) * 5, 60)[:200]
        assert seasons.find(season + time + noise) == (m,)
    walks = np.cumsum(rng.standard_normal((50, 200)), axis=1)
    assert sum(seasons.find(walk) != () for walk in [*walks, *np.diff(walks)]) <= 6


def hours(weeks, seed=0):
    """Hours with a day, which is another one at weekends, and noise."""
    time = np.arange(168 * weeks)
    rng = np.random.default_rng(seed)
    day = np.sin(time * np.pi / 12) + (time % 24 == 8)
    return np.where(time // 24 % 7 < 5, 3 * day, day) + 0.2 * rng.standard_normal(len(time))


def test_two_seasons(tmp_path):
    """Those of hours are found in less than two weeks, and a weekend is not forecast as a day of
    work.
    """
    values = hours(5)
    assert seasons.find(values[:260]) == (24, 168)
    past = values[: 168 * 4 + 5 * 24]
    options = {"horizon": 24, "quantiles": (), "backend": "numpy"}
    candidates = ["linear", "smoothing", "theta"]
    error = {}
    for season in ("auto", 24, (24, 168)):
        forecaster = Forecaster(season=season, candidates=candidates, **options).fit(past)
        error[season] = np.std(forecaster.predict(past) - values[len(past) :][:24])
        assert forecaster.season_ == ((24, 168) if season == "auto" else season)
    assert error["auto"] == error[24, 168] < 0.5 * error[24]
    forecaster.save(tmp_path / "m")
    loaded = Forecaster.load(tmp_path / "m", "numpy")
    assert (loaded.season_, loaded.season) == ((24, 168), (24, 168))
    np.testing.assert_array_equal(loaded.predict(past), forecaster.predict(past))
    for bad in ((24, 1), (4, 12, 24), ("week",)):
        with pytest.raises((ValueError, TypeError), match="season"):
            Forecaster(season=bad).fit(past)
    words = "season is {}, expected 'auto', a whole number, or two whole numbers"
    for bad in ("x", None, 1.5):
        with pytest.raises(TypeError, match=words.format(repr(bad))):
            Forecaster(season=bad).fit(past)
        with pytest.raises(TypeError, match=words.format(repr(bad))):
            compare(past, ["linear"], 2, season=bad)


def test_smoothing_is_that_of_the_layer(rng):
    values = 5 + rng.random((40, 2))
    shares = {"alpha": 0.3, "beta": 0.2, "phi": 0.9, "gamma": 0.4}
    for periods, multiplicative in (((), False), ((4,), False), ((4,), True)):
        layer = ExponentialSmoothing(3, periods=periods, multiplicative=multiplicative)
        params = {
            name: np.array([np.log(shares[name] / (1 - shares[name]))]) for name in layer.weights
        }
        x = values[..., None]
        expected = layer(params, x, layer.initial_state(x[:12]))[0]
        gammas = [0.7 * 0.4] * len(periods)
        numbers = np.array([[*gammas, 0.3, 0.3 * 0.2, 0.9, 0.0]]).T
        for begin in (0, 30):
            smoother = smoothing.Smoother(layer, numbers, 12)
            parts = [
                smoother.ahead(x[:, None], k) for x, k in ((values[:33], begin), (values[33:], 0))
            ]
            np.testing.assert_allclose(parts[0][:, 0], expected[begin:33], rtol=1e-12)
            np.testing.assert_allclose(parts[1][:, 0], expected[33:], rtol=1e-12)


def test_smoothing_does_not_see_later_rows(rng):
    """Neither where a series is shorter than three seasons, nor by the limits of a logarithm; and a
    season that is nearly as long as a series does not explain noise.
    """
    options = {"horizon": 2, "window": 8, "candidates": ["smoothing"], "backend": "numpy"}
    time = np.arange(300)
    day = np.exp(1 + np.sin(time * np.pi / 12) / 2 + 0.1 * rng.standard_normal(300))
    forecaster = Forecaster(season=24, **options).fit(day)
    for length, row in ((60, 55), (300, 270)):
        values = day[:length].copy()
        values[row - 7 : row - 1] *= 0.002
        later = values.copy()
        later[row:] *= 0.001
        before, after = (forecaster.score([each]).forecasts for each in (values, later))
        first = round(0.8 * length)
        np.testing.assert_array_equal(before[: row - first + 1], after[: row - first + 1])
    found = Forecaster(season=36, **options).fit(rng.standard_normal(60))
    assert found.candidate_errors_["smoothing"] > 0.5


@pytest.mark.parametrize("candidates", ["auto", ["linear"], ["smoothing"], ["theta"]])
def test_a_season_that_is_given_is_used(rng, candidates):
    """By each candidate, whatever the step of the dates and the errors with other seasons."""
    pd = pytest.importorskip("pandas")
    months = pd.date_range("2000-01-01", periods=120, freq="MS")
    walk = pd.Series(np.cumsum(rng.standard_normal(120)), months)
    options = {"candidates": candidates, "backend": "numpy"}
    assert Forecaster(**options).fit(walk).season_ == 0
    for season in (7, (7, 12)):
        forecaster = Forecaster(**options, season=season).fit(walk)
        assert forecaster.season_ == season
        several = forecaster.predictor_.combination.candidates.values()
        assert {each.candidate.seasons for each in several} == {seasons.listed(season)}


@pytest.mark.parametrize(
    ("season", "candidates", "words"),
    [
        (73, "auto", "season is 73, which needs 98 rows before the test part, the series has 96"),
        ((7, 80), ["theta"], "season is 80, which needs 107 rows"),
        (10**5, ["linear"], "season is 100000, which needs 133334 rows"),
        (7, ["network"], "season is 7, and no candidate uses it; expected 'auto', or linear, "),
        (12, ["smoothing"], "season is 12, and no candidate uses it"),
    ],
)
def test_a_season_that_cannot_be_used_is_refused(rng, monkeypatch, season, candidates, words):
    if season == 12:
        monkeypatch.setattr(smoothing, "ROWS", 10)  # steps that it smooths at most
    walk = np.cumsum(rng.standard_normal(120))
    forecaster = Forecaster(season=season, candidates=candidates, backend="numpy")
    with pytest.raises(ValueError, match=words):
        forecaster.fit(walk)
    if season == 73:  # the longest season that fits
        assert forecaster.set_params(season=72).fit(walk).season_ == 72
        with pytest.warns(UserWarning, match="season is 72, .* series 1 has 32; smoothing and"):
            forecaster.fit([walk, walk[:40]])


def test_theta_adds_half_of_the_slope_of_a_line(rng):
    """Hyndman & Billah 2003: simple exponential smoothing with drift."""
    values = np.cumsum(rng.standard_normal((30, 1)), axis=0)
    layer = ExponentialSmoothing(4)
    ahead = []
    for drift in (0.0, 0.5):
        smoother = smoothing.Smoother(layer, np.array([[0.4, 0.0, 0.0, drift]]).T, 10)
        parts = [smoother.ahead(x[:, None])[-1, 0, 0] for x in (values[:20], values[20:])]
        ahead.append(parts)
    for k, rows in enumerate((20, 30)):
        slope = np.polyfit(np.arange(rows), values[:rows, 0], 1)[0]
        rise = ahead[1][k] - ahead[0][k]
        np.testing.assert_allclose(rise, slope / 2 * np.arange(1, 5), rtol=1e-9)


def test_weights_are_those_of_errors():
    validated = {name: selection.Validated(None, error) for name, error in (("a", 1.0), ("b", 2.0))}
    np.testing.assert_allclose(
        selection.Combination(validated, 3.0).weights, [8 / 9, 1 / 9], rtol=1e-12
    )


def monthly(n, seed=0):
    """A series with a trend and a season of 12 steps, both of which grow."""
    time = np.arange(n)
    rng = np.random.default_rng(seed)
    return np.exp(4 + 0.01 * time + 0.2 * np.sin(time * np.pi / 6) + 0.03 * rng.standard_normal(n))


def test_candidates_are_validated_and_averaged():
    values = monthly(92)
    # too few windows for a network
    forecaster = Forecaster(horizon=8, backend="numpy").fit(values[:84])
    names = {"linear", "smoothing", "theta"}
    assert {*forecaster.chosen_} <= names == {*forecaster.candidate_errors_}
    assert "trained_" not in vars(forecaster)
    assert forecaster.predictor_.combination.candidates["smoothing"].candidate.layer.periods == (
        12,
    )
    found = forecaster.predict(values[:84])
    assert np.mean((found - values[84:]) ** 2) < 0.3 * np.mean((values[72:80] - values[84:]) ** 2)


@pytest.mark.parametrize("name", ["smoothing", "theta", "linear", "network"])
def test_one_candidate_alone(tmp_path, name):
    values = monthly(92)
    forecaster = Forecaster(horizon=2, epochs=1, hidden_size=4, backend="numpy", candidates=[name])
    forecaster.fit(values).save(tmp_path / "m")
    loaded = Forecaster.load(tmp_path / "m", "numpy")
    np.testing.assert_array_equal(loaded.predict(values, 5), forecaster.predict(values, 5))
    assert loaded.candidate_errors_ == forecaster.candidate_errors_
    assert "trained_" in vars(forecaster) or name != "network"
    assert forecaster.sample(values, 3, steps=4).shape == (3, 4)
    assert [*forecaster.chosen_] == [name]
    assert (forecaster.linear_baseline_ > 0) == (name == "linear")


def test_a_forecast_does_not_depend_on_others(rng):
    """From a row it is the same alone as among those from other rows."""
    values = np.cumsum(rng.standard_normal(240))
    forecaster = Forecaster(horizon=6, backend="numpy", candidates=["linear", "smoothing"]).fit(
        values
    )
    assert len(forecaster.chosen_) == 2
    panel = Panel.from_arrays("test", values[:, None], Covariates())
    (series,) = panel.read("test", 6)
    forecast = forecaster.predictor_.forecast
    units = forecaster.scaling_.units[0]
    rows = np.arange(150, 241)
    mean = forecast(series, units, rows)
    for k in (0, 60, 90):
        alone = forecast(series, units, rows[k : k + 1])
        np.testing.assert_allclose(alone[0], mean[k], rtol=1e-12)
    np.testing.assert_allclose(forecaster.predict(values), mean[-1, :, 0], rtol=1e-12)
