"""The candidates of a forecaster and how it chooses: linear, exponential smoothing, seasons, dates,
and the network.
"""

import numpy as np
import pytest

from tests.estimators.conftest import QUICK
from xlstm.data.panels import Panel
from xlstm.data.series import bundled, read_csv
from xlstm.data.series_windows import carry_forward
from xlstm.data.time_series import Covariates, TimeSeries
from xlstm.estimators import Forecaster, baselines, selection
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
    at = np.arange(5, 120)
    lags = np.stack([values[at - k] - values[at - 1] for k in (5, 4, 3, 2)], axis=1) / unit
    design = np.concatenate((lags, np.ones((len(at), 1))), axis=1)
    for h in range(2):
        there = at + h < 120
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
    forecaster = Forecaster(horizon=3, backend="numpy", candidates=["linear"]).fit(several)
    assert forecaster.linear_baseline_ >= 8
    for values, ahead in zip(several, forecaster.predict(several), strict=True):
        np.testing.assert_allclose(ahead, values[:3], atol=0.05)


def test_seasons(rng):
    co2 = carry_forward(read_csv(bundled("co2")).values)
    assert baselines.season(co2) == 52
    noise = rng.standard_normal(500)
    time = np.arange(500)
    assert baselines.season(np.sin(2 * np.pi * time[:300] / 25) + 0.01 * time[:300]) == 25
    for none in (noise, np.ones(50), np.arange(50.0), np.arange(5.0)):
        assert baselines.season(none) == 0
    wave = np.arange(30.0) % 7
    known = np.where(np.arange(30) < 20, wave, np.nan)  # nothing that comes later is looked at
    np.testing.assert_array_equal(baselines.seasonal(known, 7, 10, np.array([20]))[0], wave[20:30])
    noise = noise[:200]
    time = time[:200]
    for m in (4, 7, 12, 24):
        assert selection.season(np.tile(rng.standard_normal(m) * 5, 60)[:200] + time + noise) == m
    assert selection.season(np.cumsum(noise)) == selection.season(noise) == 0


def test_smoothing_is_that_of_the_layer(rng):
    values = 5 + rng.random((40, 2))
    shares = {"alpha": 0.3, "beta": 0.2, "phi": 0.9, "gamma": 0.4}
    for periods, multiplicative in (((), False), ((4,), False), ((4,), True)):
        layer = ExponentialSmoothing(3, periods=periods, multiplicative=multiplicative)
        params = {
            name: np.array([np.log(shares[name] / (1 - shares[name]))]) for name in layer.weights
        }
        x = values[..., None]
        expected = layer(params, x, layer.initial_state(x))[0]
        numbers = np.array([[0.7 * 0.4, 0.3, 0.3 * 0.2, 0.9]]).T
        np.testing.assert_allclose(
            selection.smoothed(layer, numbers, values)[:, 0], expected, rtol=1e-12
        )
        np.testing.assert_allclose(
            selection.smoothed(layer, numbers, values, 30)[:, 0], expected[30:], rtol=1e-12
        )


def test_weights_follow_the_latest_errors(rng):
    """By hand: errors that are known at a row, of which eight rows halve the share."""
    ahead = rng.standard_normal((2, 12, 3, 1))
    values = rng.standard_normal((20, 1))
    series = TimeSeries(values, values, *[np.empty((20, 0))] * 2, np.empty(0), None)
    rows = np.arange(5, 17)
    usual = np.array([[1.0], [2.0], [3.0]])
    candidates = {
        "smoothing": selection.Validated(None, 0.5, 1.0),
        "linear": selection.Validated(None, 0.8, 1.6),
    }
    weights = selection.Combination(candidates, usual).weights(series, np.ones(1), rows, ahead)
    level = np.array([0.5, 0.5])
    for r, row in enumerate(rows):
        known = [h for h in range(3) if r - h - 1 >= 0]
        if known:
            change = {h: values[row - 1, 0] - values[row - h - 2, 0] for h in known}
            errors = [(ahead[:, r - h - 1, h, 0] - change[h]) ** 2 / usual[h] for h in known]
            level = level + (1 - 0.5 ** (1 / 8)) * (np.mean(errors, axis=0) - level)
        expected = (level * [1.0, 1.6]) ** -2.0
        np.testing.assert_allclose(weights[:, r, 0], expected / expected.sum(), rtol=1e-12)


def monthly(n, seed=0):
    """A series with a trend and a season of 12 steps, both of which grow."""
    time = np.arange(n)
    rng = np.random.default_rng(seed)
    return np.exp(4 + 0.01 * time + 0.2 * np.sin(time * np.pi / 6) + 0.03 * rng.standard_normal(n))


def test_candidates_are_validated_and_averaged():
    values = monthly(92)
    # too few windows for a network
    forecaster = Forecaster(horizon=8, backend="numpy").fit(values[:84])
    assert {*forecaster.chosen_} <= {"linear", "smoothing"} == {*forecaster.candidate_errors_}
    assert "trained_" not in vars(forecaster)
    assert forecaster.predictor_.combination.candidates["smoothing"].candidate.layer.periods == (
        12,
    )
    found = forecaster.predict(values[:84])
    assert np.mean((found - values[84:]) ** 2) < 0.3 * np.mean((values[72:80] - values[84:]) ** 2)


@pytest.mark.parametrize("name", ["smoothing", "linear", "network"])
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
