"""Quantiles, sample paths, and forecasts beyond the horizon."""

import collections
import copy
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from tests.estimators.conftest import LEARNS, QUICK
from xlstm.data.panels import Panel
from xlstm.data.time_series import Covariates
from xlstm.estimators import (
    Forecaster,
    evaluation,
    intervals,
    linear,
    sampling,
    smoothing,
)
from xlstm.estimators.intervals import Intervals
from xlstm.models.sequence import SequenceModel


def test_intervals_cover_what_they_promise():
    noise = np.random.default_rng(1).normal(size=1500)
    score = Forecaster(**{**LEARNS, "horizon": 2}).fit(noise).score(noise)
    assert np.all(np.abs(score.coverage - 0.8) < 0.05)
    assert np.all(np.diff(score.quantiles, axis=-1) >= 0)
    # The CRPS of a normal distribution that is known is its standard deviation / sqrt(pi).
    np.testing.assert_allclose(score.crps, 1 / np.sqrt(np.pi), rtol=0.15)


def test_each_series_of_a_panel_has_its_own_spread(tmp_path, rng):
    """Two series have one season and noise of 1 and 10; both the rows of `fit` and later ones count."""
    season = 100 * np.sin(np.arange(2000) * np.pi / 6)
    both = [season + noise * rng.standard_normal(2000) for noise in (1, 10)]
    forecaster = Forecaster(season=12, candidates=["linear"], backend="numpy")
    forecaster.fit([values[:1600] for values in both]).save(tmp_path / "m")
    score = forecaster.score([values[:1600] for values in both])
    covered = [each["coverage"][0] for each in score.by_series]
    loaded = Forecaster.load(tmp_path / "m", "numpy")
    inside = []
    for end in range(1600, 2000):
        ahead = loaded.predict_quantiles([values[:end] for values in both])
        inside.append([q[0, 0] <= y[end] <= q[0, -1] for q, y in zip(ahead, both, strict=True)])
    np.testing.assert_allclose([covered, np.mean(inside, axis=0)], 0.8, atol=0.05)


def test_the_spread_of_few_errors_is_that_of_all_series(rng):
    """It is drawn to the pooled one, as a geometric mean with the weights of the average."""
    several = [np.ones((200, 1, 1)), 3 * np.ones((200, 1, 1))]
    intervals = Intervals.of(several, (0.1, 0.9))
    squares = np.array([1, 9]) / 5
    np.testing.assert_allclose(intervals.spread**2, 5)
    np.testing.assert_allclose(intervals.scales[:, 0], squares)
    width = intervals.width(3 * np.ones((2, 1, 1)))  # one error is known at the second forecast
    np.testing.assert_allclose(width[0], 1)
    share = 1 - 0.5 ** (1 / 8)
    start = squares[1] ** share
    np.testing.assert_allclose(width[1] ** 2, (1 - share) * start + share * squares[1])


def test_intervals_of_few_errors_by_hand(rng):
    """Few errors are drawn to a normal distribution, and their quantiles are wider."""
    errors = rng.standard_normal((12, 2, 1)) * [[1.0], [3.0]] + 0.5
    errors[10, 1] = errors[11] = np.nan
    low, middle, high = (0.1, 0.5, 0.8)
    intervals = Intervals.of([errors], (low, middle, high))
    squares = [np.mean(errors[: 11 - h, h] ** 2) for h in range(2)]
    np.testing.assert_allclose(intervals.spread[:, 0] ** 2, squares)
    (known,) = intervals.standardized([errors])
    known = known[~np.isnan(known)]
    n = 1.5 * 21 / 4
    normal = NormalDist(0, np.sqrt(np.mean(known**2)))
    mixed = [
        (n * np.quantile(known, q) + 4 * normal.inv_cdf(q)) / (n + 4) for q in (low, middle, high)
    ]
    z = [NormalDist().inv_cdf(q) for q in (low, middle, high)]
    expected = [
        mixed[1] + (each - mixed[1]) * (1 + (score**2 + 1) / 4 / n)
        for each, score in zip(mixed, z, strict=True)
    ]
    np.testing.assert_allclose(intervals.levels[0], expected)


def test_widths_follow_the_errors_that_are_known(rng):
    errors = rng.standard_normal((200, 3, 2))
    errors[100:, :, 1] *= 1.8
    intervals = Intervals(np.ones((3, 2)), np.empty((2, 0)))
    width = intervals.width(errors)
    np.testing.assert_allclose(np.mean(width[150:], axis=0), (1, 1.8), atol=0.15)
    later = errors.copy()
    for h in range(3):
        later[120 - h :, h] = np.nan  # forecasts of values from row 120 on
    np.testing.assert_array_equal(intervals.width(later)[:121], width[:121])
    np.testing.assert_allclose(intervals.width(1e9 * errors)[60:], 4.0, rtol=0.05)


def test_quantiles_that_are_missing(values):
    forecaster = Forecaster(**LEARNS, linear_baseline=0, quantiles=()).fit(values)
    score = forecaster.score(values)
    assert np.all(score.model < score.persistence)
    assert np.all(np.isnan(score.coverage))
    assert np.isnan(score.interval)
    with pytest.raises(ValueError, match="fitted without quantiles"):
        forecaster.predict_quantiles(values)


def test_quantiles_that_were_not_learned(fitted, values):
    """They are between those that were, and those of a normal distribution beyond them."""
    learned = fitted.predict_quantiles(values, 8)
    others = fitted.predict_quantiles(values, 8, [0.05, 0.1, 0.35, 0.9, 0.999])
    assert np.all(np.diff(others) > 0)
    np.testing.assert_array_equal(others[:, [1, 3]], learned[:, [0, 8]])
    score = intervals.NORMAL
    deciles = score(fitted.quantiles)
    for few, all_learned in zip(others[:6], learned, strict=False):
        np.testing.assert_allclose(few[2], np.interp(score(0.35), deciles, all_learned))
        below = (all_learned[0] - all_learned[4]) * score(0.05) / score(0.1)
        np.testing.assert_allclose(few[0], all_learned[4] + below)
    for wrong in ([], [0.0, 0.5], [0.5, 0.2]):
        with pytest.raises(ValueError, match="quantiles"):
            fitted.predict_quantiles(values, quantiles=wrong)


def test_nothing_is_forecast_below_the_least(values):
    values = np.maximum(values - 10, 0)
    found = [Forecaster(**QUICK, least=least).fit(values) for least in (None, 0.0)]
    free, limited = (one.score(values).quantiles for one in found)
    assert np.min(free) < 0
    assert np.min(limited) == np.min(found[1].predict_quantiles(values, 6, [0.01])) == 0.0
    assert np.min(found[1].predict(values, 30)) >= 0


def test_forecasts_beyond_the_horizon_begin_with_those_of_the_horizon(fitted, values):
    near = fitted.predict(values)
    far = fitted.predict(values, 14)
    assert far.shape == (14,)
    np.testing.assert_array_equal(far[:6], near)
    near = fitted.predict_quantiles(values)
    far = fitted.predict_quantiles(values, 12)
    np.testing.assert_array_equal(far[:6], near)
    np.testing.assert_array_equal(fitted.predict_quantiles(values, 2), near[:2])
    paths = fitted.sample(values, 4000, 12)
    np.testing.assert_allclose(
        np.quantile(paths[:, :6], fitted.quantiles, axis=0).T, near, atol=0.2
    )
    np.testing.assert_allclose(
        np.quantile(paths[:, 6:], fitted.quantiles, axis=0).T, far[6:], atol=0.6
    )


def test_a_round_costs_what_it_adds(fitted, values, monkeypatch):
    """Smoothing reads each value once, and paths go through each method together, however many
    steps and paths there are. A network that does not forecast is not run.
    """
    calls = collections.Counter()

    def count(owner, name):
        function = getattr(owner, name)

        def counted(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    count(smoothing, "step")
    count(linear, "_design")
    count(SequenceModel, "forward")
    smooth = {**LEARNS, "candidates": ("linear", "smoothing"), "season": 0}
    smooth = Forecaster(**smooth).fit(values)
    for steps in (60, 120):
        for forecaster, of_smoothing in ((fitted, False), (smooth, True)):
            for before, n in ((0, None), (1, 5), (1, 50)):  # `sample` also forecasts the intervals
                rounds = before + steps // 6
                calls.clear()
                forecaster.sample(values, n, steps) if n else forecaster.predict(values, steps)
                expected = {"_design": rounds, "forward": rounds}
                if of_smoothing:
                    rows = (1 + before) * len(values) + steps - 6
                    expected = {"_design": rounds, "step": rows}
                assert calls == expected


def test_each_path_is_that_of_a_longer_series(rng, monkeypatch):
    """Fed back beyond the horizon, with two targets and covariates: as if it had been observed."""
    time = np.arange(330)
    price = rng.normal(size=330)
    values = 50 + price[:300, None] + 5 * np.sin(time[:300, None] / 6 * np.pi)
    values = values + rng.normal(size=(300, 2)).cumsum(axis=0) / 5
    values[[40, 299]] = np.nan
    wind = rng.normal(size=300)
    names = ["linear", "smoothing", "theta", "network"]
    options = {**QUICK, "candidates": names, "season": 12, "dtype": "float64"}
    forecaster = Forecaster(**options).fit(values, past=wind, future=price)
    monkeypatch.setattr(smoothing, "ROWS", 200)  # a series may be longer
    rise = np.arange(9)
    monkeypatch.setattr(sampling, "draw", lambda q, *_: q[rise % len(q), ..., rise])
    paths = forecaster.sample(values, 9, 24, past=wind, future=price)  # each has its own level
    p = forecaster.predictor_
    (series,) = Panel.from_arrays("test", values, Covariates(wind, price)).read("test", 6)
    units = forecaster.scaling_.of([series], [], 12)[0]
    N = len(series.values)
    width = evaluation.rolling(p, series, units, N, N + 1)[1]
    for k, path in enumerate(paths):
        longer = np.concatenate((series.known, path))
        past = np.concatenate((series.past, np.repeat(series.past[-1:], 24, axis=0)))
        longer = series._replace(values=longer, known=longer, past=past)
        mean = p.forecast(longer, units, N + np.arange(0, 24, 6))
        found = p.quantiles(mean, width)[..., k]
        np.testing.assert_allclose(path.reshape(4, 6, 2), found, rtol=1e-10)


def test_forecasts_that_overflow_are_an_error(fitted, values):
    """Where intervals are to be wider than numbers can be."""
    wide = copy.copy(fitted)
    intervals = fitted.predictor_.intervals
    far = intervals._replace(levels=np.full_like(intervals.levels, 1e308))
    wide.predictor_ = replace(fitted.predictor_, intervals=far)
    series = 1000 * values
    assert np.isfinite(wide.predict(series)).all()
    for call in (wide.predict_quantiles, wide.sample):
        with (
            np.errstate(all="ignore"),
            pytest.raises(FloatingPointError, match="the forecast is not finite"),
        ):
            call(series)


def walk(rng, steps, start, count=()):
    """Draw the next values of an autoregression of order 1."""
    noise = rng.normal(size=(steps, *count))
    values = []
    for k in range(steps):
        values.append(0.8 * (values[-1] if values else start) + noise[k])
    return np.array(values).T


def test_sample_paths_of_an_autoregression():
    """Steps, also beyond the horizon, and sums are covered; sums of paths whose steps are drawn one
    by one are not.
    """
    rng = np.random.default_rng(0)
    values = walk(rng, 1200, 0.0)
    settings = {"window": 24, "hidden_size": 8, "epochs": 1, "candidates": ("linear", "network")}
    forecaster = Forecaster(**settings, horizon=4, backend="numpy").fit(values)
    whole = forecaster.ranks_
    shuffled = rng.permuted(forecaster.ranks_, axis=0)
    inside = []
    sums = []
    alone = []
    for end in range(900, 1200, 20):
        truth = walk(rng, 12, values[end - 1], (1000,))
        for ranks, covered in ((shuffled, alone), (whole, sums)):
            forecaster.ranks_ = ranks
            paths = forecaster.sample(values[:end], 250, 4 if ranks is shuffled else 12, seed=end)
            low, high = np.quantile(paths[:, :4].sum(axis=1), (0.1, 0.9))
            covered.append(
                np.mean((truth[:, :4].sum(axis=1) >= low) & (truth[:, :4].sum(axis=1) <= high))
            )
        low, high = np.quantile(paths, (0.1, 0.9), axis=0)
        inside.append(np.mean((truth >= low) & (truth <= high), axis=0))
    assert np.all(np.abs(np.mean(inside, axis=0) - 0.8) < 0.08)
    assert abs(np.mean(sums) - 0.8) < 0.07
    assert np.mean(alone) < 0.7
