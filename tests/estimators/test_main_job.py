"""The forecaster from Python."""

import copy
import pickle

import numpy as np
import pytest

from xlstm import checkpoint
from xlstm.arrays.convert import to_numpy
from xlstm.estimators import Forecaster, SeriesError

QUICK = {"window": 12, "hidden_size": 8, "epochs": 10, "learning_rate": 0.02, "batch_size": 16, "averaging": 0.9}


def wave(n=300, gaps=()):
    v = 10 + np.sin(np.arange(n) / 3.0) + 0.01 * np.arange(n)
    v[list(gaps)] = np.nan
    return v


@pytest.fixture(scope="module")
def fitted():
    return Forecaster(**QUICK, horizon=3, backend="numpy", name="wave").fit(wave())


def test_feeding_back_extends_the_horizon(fitted):
    first = fitted.predict(wave(), 3)
    longer = fitted.predict(wave(), 7)
    np.testing.assert_array_equal(longer[:3], first)
    assert len(longer) == 7
    pd = pytest.importorskip("pandas")  # a series with a name keeps its units, however long it is
    table = pd.DataFrame({"place": "pier", "level": wave()})
    named = Forecaster(**QUICK, horizon=3, backend="numpy", series_id="place").fit(table)
    ahead = named.predict(table, 6)
    np.testing.assert_allclose(ahead["level"], longer[:6], rtol=1e-12)
    again = named.predict(pd.concat((table, ahead[:3]), ignore_index=True), 3)
    np.testing.assert_allclose(again["level"], ahead["level"][3:], rtol=1e-12)


def test_forecasts_do_not_see_the_future(fitted):
    """Values from a forecast on cannot change it."""
    v = wave()
    score = fitted.score(v)
    at, forecasts = score.at, score.forecasts
    assert (at[0], at[-1]) == (240, 299)
    changed = v.copy()
    changed[270:] = 99.0
    other = fitted.score(changed).forecasts
    np.testing.assert_array_equal(other[at <= 270], forecasts[at <= 270])
    assert np.all(other[at > 270] != forecasts[at > 270])


def test_every_backend_gives_the_same_model(be):
    few = {**QUICK, "horizon": 3, "epochs": 3, "dtype": "float64"}
    other, reference = (Forecaster(**few, backend=backend).fit(wave(120)) for backend in (be, "numpy"))
    for name, p in reference.params_.items():
        np.testing.assert_allclose(to_numpy(other.params_[name]), p, rtol=1e-6, atol=1e-9)


def test_a_fit_that_fails_changes_nothing(fitted):
    before = fitted.predict(wave())

    def interrupt(now):
        if now.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted.fit(1000 * wave(), interrupt)
    np.testing.assert_array_equal(fitted.predict(wave()), before)


def test_load_refuses_damaged_files(fitted, tmp_path):
    """tests/attacks/test_hostile_files.py damages descriptions."""
    path = tmp_path / "model.safetensors"
    fitted.save(path)
    arrays, config = checkpoint.load(path, "forecaster")
    bias = next(name for name in arrays if name.endswith("head.b"))
    nothing = {"adjustment", "linear_baseline", "test.spread", "scaling.past"}
    for name, array, words in [
        *((name, None, f"{name.removeprefix('test.')} is missing") for name in sorted(nothing)),
        (bias, np.zeros(7, "float32"), r"head\.b has shape \(7,\), expected \(O,\) = \(30,\)"),
        (bias, np.full(30, np.nan, "float32"), r"head\.b is not finite"),
        ("scaling.units", np.zeros((1, 1)), "scaling.units has 0, expected scales above 0"),
        ("scaling.units", np.ones((1, 2)), "adjustment has shape"),
        ("scaling.past", np.ones((1, 1)), r"scaling.past has shape \(1, 1\), expected \(2, K\)"),
        ("scaling.static", np.ones((2, 99)), "linear_baseline has shape"),
        ("spread", np.ones((3, 1), "float32"), "spread has dtype float32"),
    ]:
        kept = {key: kept for key, kept in arrays.items() if key != name}
        checkpoint.save(path, kept if array is None else kept | {name: array}, "forecaster", config)
        with pytest.raises(ValueError, match=f"not a sound forecaster .*{words}"):
            Forecaster.load(path)


def test_forecasts_that_overflow_are_an_error(fitted, tmp_path):
    """Where a file says that intervals are to be wider than numbers can be."""
    fitted.save(tmp_path / "m")
    arrays, config = checkpoint.load(tmp_path / "m", "forecaster")
    checkpoint.save(tmp_path / "m", arrays | {"adjustment": arrays["adjustment"] * 0 + 1e308}, "forecaster", config)
    loaded, series = Forecaster.load(tmp_path / "m"), 1000 * wave()
    assert np.isfinite(loaded.predict(series)).all()
    for call in (loaded.predict_quantiles, loaded.sample, loaded.export_inputs):
        with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="the forecast is not finite"):
            call(series)


def test_gaps_are_no_targets_and_not_scored():
    """By hand: which targets count, and persistence on what is there."""
    v = wave(gaps=(50, 51, 250, 260))
    forecaster = Forecaster(**QUICK, backend="numpy")
    data = forecaster.examples(v)
    window = forecaster.settings.window
    np.testing.assert_array_equal(data["train"].mask[:, 0], ~np.isnan(v[window:180]))
    assert np.count_nonzero(~data["train"].mask) == 2
    score = forecaster.fit(v).score(v)
    known = v.copy()
    for k in (50, 51, 250, 260):
        known[k] = known[k - 1]
    errors = [(known[k - 1] - v[k]) ** 2 for k in range(240, 300) if not np.isnan(v[k])]
    assert score.persistence[0] == pytest.approx(np.mean(errors) ** 0.5, rel=1e-12)
    assert score.points == len(errors) == 58


# Rows of the parts for training, validation and testing.
@pytest.mark.parametrize(("row", "value"), [(10, 1e300), (10, -1e160), (200, 1e60), (299, 1e60)])
def test_a_value_out_of_all_proportion_is_named(fitted, row, value):
    values = wave()
    values[row] = value
    words = rf"values\[{row}\] is {value:g}".replace("+", r"\+")
    for call in (fitted.score, fitted.predict, Forecaster(**QUICK, backend="numpy").fit):
        with pytest.raises(SeriesError, match=words) as caught:
            call(values)
        assert caught.value.row == row


@pytest.mark.parametrize(("dtype", "value"), [("float32", 1e15), ("float64", 1e60), ("float64", 1e149)])
def test_a_large_value_gives_finite_results(dtype, value):
    values = wave()
    values[290] = value
    forecaster = Forecaster(**QUICK, backend="numpy", dtype=dtype).fit(values)
    score = forecaster.score(values)
    for found in (score.model, score.persistence, score.autoregression, forecaster.predict(values, 3)):
        assert np.all(np.isfinite(found))


@pytest.mark.parametrize("again", [lambda o: pickle.loads(pickle.dumps(o)), copy.copy, copy.deepcopy])
def test_forecasters_are_pickled_and_copied(fitted, again):
    """Before fit and after; what is made of one does not touch the other."""
    new = again(Forecaster(**QUICK, seed=5, backend="numpy", name="new"))
    assert (new.settings.seed, new.name, hasattr(new, "params_")) == (5, "new", False)
    other = again(fitted)
    assert (other.settings, other.name, other.season_) == (fitted.settings, fitted.name, fitted.season_)
    assert other.trained_.losses == fitted.trained_.losses
    before = fitted.predict_quantiles(wave())
    np.testing.assert_array_equal(other.predict_quantiles(wave()), before)
    other.fit(10 * wave())
    np.testing.assert_array_equal(fitted.predict_quantiles(wave()), before)


def test_errors_that_name_a_value_are_pickled():
    error = pickle.loads(pickle.dumps(SeriesError("ZeroShotForecaster", 3, 1e300, "too far")))
    assert (error.row, str(error)) == (3, "ZeroShotForecaster: values[3] is 1e+300, too far")
