"""How a forecaster is trained: what it learns, what it sees, backends, interrupts and the tools of
scikit-learn.
"""

import numpy as np
import pytest

from tests.estimators.conftest import LEARNS, QUICK
from xlstm.arrays.convert import to_numpy
from xlstm.data.series import bundled, read_csv
from xlstm.estimators import Forecaster, baselines, fitting
from xlstm.estimators.forecaster import examples, windows
from xlstm.estimators.predictor import Predictor


def test_goals_on_sunspots_with_one_epoch(monkeypatch):
    """At 1, 3, 6 and 12 months no worse than the better baseline, and intervals that cover what
    they promise.
    """
    monkeypatch.delenv("XLSTM_COMPILE", raising=False)
    values = read_csv(bundled("sunspots")).values
    score = (
        Forecaster(
            horizon=12,
            hidden_size=8,
            epochs=1,
            refit=False,
            candidates=("linear", "network"),
            backend="numpy",
        )
        .fit(values)
        .score(values)
    )
    ahead = np.array([1, 3, 6, 12]) - 1
    assert score.points == 564
    assert score.model[0] <= 19.0
    # as published
    assert (score.persistence[0], score.autoregression[0]) == pytest.approx((20.1, 18.2), abs=0.05)
    assert np.all(score.model[ahead] <= np.minimum(score.persistence, score.autoregression)[ahead])
    assert np.all((score.coverage[ahead] >= 0.75) & (score.coverage[ahead] <= 0.85))


def test_windows_end_with_the_series(fitted, values):
    """The network sees by how much values differ from the last one, in some unit."""
    x = windows(fitted, values, 3)
    assert x.shape == (12, 3, 1)
    for k in range(3):
        window = values[len(values) - 14 + k :][:12]
        change = window - window[-1]
        np.testing.assert_allclose(x[:-1, k, 0] / x[0, k, 0], change[:-1] / change[0], rtol=1e-4)
    assert windows(fitted, values[:13]).shape == (12, 2, 1)  # there are no more
    assert fitted.model_(fitted.params_, x)[0].shape == (3, fitted.model_.output_size)


def test_every_backend_gives_the_same_model(be, values):
    few = {**LEARNS, "epochs": 3, "dtype": "float64"}
    other, reference = (
        Forecaster(**{**few, "backend": b}).fit(values[:120]) for b in (be, "numpy")
    )
    for name, p in reference.params_.items():
        np.testing.assert_allclose(to_numpy(other.params_[name]), p, rtol=1e-6, atol=1e-9)


def test_predict_sees_the_end_of_the_series_and_score_does_not(fitted, values):
    """The rows of the test part change the network of `predict` and not that of `score`."""
    changed = values.copy()
    changed[250:] = changed[250:][::-1]
    other = Forecaster(**LEARNS).fit(changed)
    np.testing.assert_array_equal(other.score(values).forecasts, fitted.score(values).forecasts)
    assert np.all(other.predict(values) != fitted.predict(values))
    one, two = (
        Forecaster(**QUICK, refit=False).fit(seen).predict(values) for seen in (values, changed)
    )
    np.testing.assert_array_equal(one, two)


def test_a_network_has_to_help_in_both_halves(values, monkeypatch):
    """It learns what candidates leave that were fitted to earlier rows, and gets half of the best
    share.
    """
    forecaster = Forecaster(**QUICK)
    data = examples(forecaster, values)["validation"]
    left = []

    def added(self, series, units, origins):
        """Twice what the candidates leave, in the second half with the sign of `late`."""
        change = baselines.changes(series, origins, 6, 240, units)
        left.append(change - self.combination.apply(series, self.scaling, units, origins))
        return units * np.nan_to_num(left[-1]) * (2 if origins[0] < 210 else 2 * late)

    monkeypatch.setattr(Predictor, "added", added)
    late = 1
    share, errors = fitting.network_share(data.predictor, data)
    assert share == pytest.approx(0.25)
    assert errors["network"] == pytest.approx(errors["average"] / 2)
    scale = data.predictor.spread * data.scale[:, None]
    target = np.where(data.mask, data.target, np.nan).reshape(scale.shape) * scale
    unit = data.predictor.scaling.units
    np.testing.assert_allclose(np.concatenate(left) * unit, target, rtol=1e-9)
    late = -0.1
    assert fitting.network_share(data.predictor, data)[0] == 0


@pytest.mark.filterwarnings("ignore:.*does not inherit from", "ignore:Can't test estimator")
def test_scikit_learn_checks():
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    assert {
        each["status"] for each in checks.check_estimator(Forecaster(**QUICK), on_skip=None)
    } == {"passed"}
