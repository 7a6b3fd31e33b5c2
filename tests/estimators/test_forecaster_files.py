"""Files and copies of a forecaster."""

import copy
import pickle

import numpy as np
import pytest

from tests.estimators.conftest import QUICK
from xlstm import checkpoint
from xlstm.estimators import Forecaster, SeriesError
from xlstm.models.sequence import CELLS


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_and_its_file(interpreted, cell, tmp_path, values):
    values = values[:150]
    forecaster = Forecaster(**QUICK, num_layers=2, dropout=0.1, cell=cell, name="wave").fit(values)
    forecaster.save(tmp_path / "f")
    loaded = Forecaster.load(tmp_path / "f", "numpy")
    assert (loaded.settings, loaded.name, loaded.cell) == (forecaster.settings, "wave", cell)
    np.testing.assert_array_equal(loaded.predict_quantiles(values), forecaster.predict_quantiles(values))
    np.testing.assert_array_equal(loaded.score(values).quantiles, forecaster.score(values).quantiles)
    np.testing.assert_array_equal(loaded.sample(values, 4, 12), forecaster.sample(values, 4, 12))


def test_load_refuses_damaged_files(fitted, tmp_path):
    """tests/attacks/test_hostile_files.py damages descriptions."""
    path = tmp_path / "model.safetensors"
    fitted.save(path)
    arrays, config = checkpoint.load(path, "forecaster")
    bias = next(name for name in arrays if name.endswith("head.b"))
    for name, array, words in [
        *((name, None, "is missing") for name in ("adjustment", "linear_baseline", "test.spread", "scaling.past")),
        (bias, np.zeros(7, "float32"), r"head\.b has shape"),
        (bias, np.full_like(arrays[bias], np.nan), r"head\.b is not finite"),
        ("scaling.units", np.zeros((1, 1)), "scaling.units has 0"),
        ("scaling.units", np.ones((1, 2)), "adjustment has shape"),
        ("scaling.past", np.ones((1, 1)), r"scaling.past has shape"),
        ("scaling.static", np.ones((2, 99)), "linear_baseline has shape"),
        ("spread", arrays["spread"].astype("float32"), "spread has dtype float32"),
    ]:
        kept = {key: kept for key, kept in arrays.items() if key != name}
        checkpoint.save(path, kept if array is None else kept | {name: array}, "forecaster", config)
        with pytest.raises(ValueError, match=f"not a sound forecaster .*{words}"):
            Forecaster.load(path)


def test_forecasts_that_overflow_are_an_error(fitted, values, tmp_path):
    """Where a file says that intervals are to be wider than numbers can be."""
    fitted.save(tmp_path / "m")
    arrays, config = checkpoint.load(tmp_path / "m", "forecaster")
    checkpoint.save(tmp_path / "m", arrays | {"adjustment": arrays["adjustment"] * 0 + 1e308}, "forecaster", config)
    loaded, series = Forecaster.load(tmp_path / "m"), 1000 * values
    assert np.isfinite(loaded.predict(series)).all()
    for call in (loaded.predict_quantiles, loaded.sample, loaded.export_inputs):
        with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="the forecast is not finite"):
            call(series)


@pytest.mark.parametrize("again", [lambda o: pickle.loads(pickle.dumps(o)), copy.copy, copy.deepcopy])
def test_forecasters_are_pickled_and_copied(fitted, values, again):
    """Before fit and after; what is made of one does not touch the other."""
    new = again(Forecaster(**QUICK, seed=5, name="new"))
    assert (new.settings.seed, new.name, hasattr(new, "params_")) == (5, "new", False)
    other = again(fitted)
    assert (other.settings, other.name, other.season_) == (fitted.settings, fitted.name, fitted.season_)
    assert other.trained_.losses == fitted.trained_.losses
    before = fitted.predict_quantiles(values)
    np.testing.assert_array_equal(other.predict_quantiles(values), before)
    other.set_params(epochs=1).fit(10 * values)
    np.testing.assert_array_equal(fitted.predict_quantiles(values), before)


def test_errors_that_name_a_value_are_pickled():
    error = pickle.loads(pickle.dumps(SeriesError("ZeroShotForecaster", 3, 1e300, "too far")))
    assert (error.row, str(error)) == (3, "ZeroShotForecaster: values[3] is 1e+300, too far")
