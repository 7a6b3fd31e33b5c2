"""Series that a forecaster takes: covariates, gaps, several targets and series, any length and
scale; refusals.
"""

import numpy as np
import pytest

from tests.estimators.conftest import LEARNS, QUICK, SMALL, driven
from xlstm.data.series_windows import split
from xlstm.estimators import Forecaster, SeriesError
from xlstm.estimators.forecaster import examples


def test_what_is_known_in_advance_is_used():
    values, price = driven()
    forecaster = Forecaster(**LEARNS).fit(values, future=price[:300])
    blind = Forecaster(**LEARNS).fit(values)
    assert np.all(
        forecaster.score(values, future=price[:300]).model < 0.5 * blind.score(values).model
    )
    found = forecaster.predict(values, 9, future=price[:309])
    changed = price.copy()
    changed[304] += 3
    other = forecaster.predict(values, 9, future=changed[:309])
    assert abs((other - found)[4]) > 1


def test_past_and_static_numbers_reach_the_network():
    """A change in one of them changes the forecast."""
    values, price = driven()
    lead = np.roll(price[:300], 1)  # today's value of it is in the series
    several = [values, 3 * values]
    beside = {"past": [lead, lead], "static": [[0.0], [1.0]]}
    forecaster = Forecaster(**LEARNS).fit(several, **beside)
    found = forecaster.predict(several, **beside)
    other = forecaster.predict(several, past=[lead + 1, lead], static=beside["static"])
    assert np.all(other[0] != found[0])
    np.testing.assert_array_equal(other[1], found[1])
    assert np.all(
        forecaster.predict(several, past=beside["past"], static=[[1.0], [1.0]])[0] != found[0]
    )


def test_several_targets():
    values, price = driven()
    both = np.stack([values, price[:300]], axis=1)
    forecaster = Forecaster(**QUICK).fit(both)
    score = forecaster.score(both)
    assert (score.model.shape, score.forecasts.shape) == ((6, 2), (60, 6, 2))
    assert (forecaster.predict(both, 7).shape, forecaster.predict_quantiles(both).shape) == (
        (7, 2),
        (6, 2, 9),
    )


def test_several_series(values):
    several = [values, 100 * values[:200]]
    forecaster = Forecaster(**QUICK).fit(several)
    assert [found.shape for found in forecaster.predict(several)] == [(6,), (6,)]
    assert [one.shape for one in forecaster.sample(several, 5, 7)] == [(5, 7), (5, 7)]
    score = forecaster.score(several)
    np.testing.assert_array_equal(np.bincount(score.series), [60, 40])
    # a series that it was not fitted to, by its own changes
    alone = forecaster.predict([7 * values + 5])
    np.testing.assert_allclose(alone[0], 7 * forecaster.predict([values])[0] + 5, rtol=1e-5)


def test_level_and_scale_of_a_series_do_not_matter(fitted, values):
    """Also not where there are as many series as were fitted, and for one series among others."""
    for other in (1e-4 * values, 100 + 5 * values):
        plain = Forecaster(**LEARNS).fit(other)
        np.testing.assert_allclose(fitted.predict(other), plain.predict(other), rtol=1e-4)
        np.testing.assert_allclose(
            fitted.score([other]).quantiles, plain.score(other).quantiles, rtol=1e-3
        )
        np.testing.assert_array_equal(fitted.predict([other, values])[0], fitted.predict(other))


def test_a_series_that_does_not_change_is_forecast(fitted, values):
    found = fitted.predict([values, np.ones(100), np.zeros(12)], 9)
    np.testing.assert_array_equal(found[0], fitted.predict(values, 9))
    np.testing.assert_allclose(found[1], 1, rtol=1e-12)
    np.testing.assert_allclose(found[2], 0, atol=1e-12)


def test_a_row_that_is_missing_is_a_gap(values):
    dates = np.datetime64("2020-01-01") + np.arange(300)
    gaps = [40, 41, 190, 270]
    with_gaps = values.copy()
    with_gaps[gaps] = np.nan
    kept = np.delete(np.arange(300), gaps)
    one = Forecaster(**LEARNS).fit(with_gaps, dates=dates)
    two = Forecaster(**LEARNS).fit(values[kept], dates=dates[kept])
    assert one.trained_.losses == two.trained_.losses
    np.testing.assert_array_equal(
        one.score(with_gaps, dates=dates).model, two.score(values[kept], dates=dates[kept]).model
    )


def test_gaps_are_no_targets_and_not_scored():
    """By hand: which targets count, and persistence on what is there."""
    gaps = (100, 101, 250, 260)
    values = without(*gaps)
    forecaster = Forecaster(**{**QUICK, "horizon": 1})
    data = examples(forecaster, values)
    for part, rows in (("train", range(90, 180)), ("validation", range(180, 240))):
        np.testing.assert_array_equal(data[part].origins, rows)
        np.testing.assert_array_equal(data[part].mask[:, 0], ~np.isnan(values[rows]))
    score = forecaster.fit(values).score(values)
    known = values.copy()
    for k in gaps:
        known[k] = known[k - 1]
    errors = [(known[k - 1] - values[k]) ** 2 for k in range(240, 300) if not np.isnan(values[k])]
    assert score.persistence[0] == pytest.approx(np.mean(errors) ** 0.5, rel=1e-12)
    assert score.points == len(errors) == 58


def test_a_window_that_fits_is_chosen(tmp_path):
    """The default was 48 steps, which need 85 rows to forecast 3 ahead."""
    long, prices = driven(300)
    for rows, window in {20: 6, 57: 17, 80: 24, 120: 36, 160: 48, 300: 48}.items():
        values, price = driven(rows)
        for horizon in (1, 3, 4, min(12, rows // 5)):
            made = examples(
                Forecaster(horizon=horizon, **SMALL), [values, long], future=[price, prices]
            )
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
            assert len(examples(model, np.sin(np.arange(rows)))["train"].origins) >= horizon
        else:
            with pytest.raises(
                ValueError, match=f"horizon of {horizon} need .* rows, the series has {rows}; "
            ):
                examples(model, np.sin(np.arange(rows)))


# Rows of the parts for training, validation and testing.
@pytest.mark.parametrize(("row", "value"), [(10, -1e160), (200, 1e60), (299, 1e60)])
def test_a_value_out_of_all_proportion_is_named(fitted, values, row, value):
    values[row] = value
    words = rf"values\[{row}\] is {value:g}".replace("+", r"\+")
    for call in (fitted.score, fitted.predict, Forecaster(**QUICK).fit):
        with pytest.raises(SeriesError, match=words) as caught:
            call(values)
        assert caught.value.row == row


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", 1e15), ("float64", 1e60), ("float64", 1e149)]
)
def test_a_large_value_gives_finite_results(values, dtype, value):
    values[290] = value
    forecaster = Forecaster(**QUICK, dtype=dtype).fit(values)
    score = forecaster.score(values)
    for found in (
        score.model,
        score.persistence,
        score.autoregression,
        forecaster.predict(values, 3),
    ):
        assert np.all(np.isfinite(found))


def without(*rows):
    """The series with gaps."""
    return np.where(np.isin(np.arange(300), rows), np.nan, driven()[0])


@pytest.mark.parametrize(
    ("values", "beside", "words"),
    [
        (np.where(np.arange(300) == 5, np.inf, without()), {}, r"values\[5\] is inf"),
        (1e-200 * without(), {}, "the series changes by no more than .*e-200"),
        (without(*range(170, 245)), {}, "validation part of the series has no values"),
        (without(), {"past": np.full(300, np.inf)}, "past begins with a gap or is infinite"),
        (without(), {"static": [np.nan]}, "is nan, expected finite numbers"),
        (without(), {"dates": np.zeros(300, "datetime64[D]")}, r"dates\[1\] is 1970-01-01"),
        (
            without(),
            {"dates": np.r_[np.arange(299), -(2**63)].view("M8[D]")},
            r"dates\[299\] is NaT",
        ),
        (without(), {"horizon": 12}, "argument horizon is unknown.* set in Forecaster"),
    ],
)
def test_bad_series_are_named(values, beside, words):
    with pytest.raises((TypeError, ValueError), match=words):
        Forecaster(**QUICK).fit(values, **beside)
