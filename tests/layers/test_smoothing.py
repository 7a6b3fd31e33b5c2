"""Exponential smoothing, and ESRNN on it: numbers of statsmodels, initial states, compiled
loops.
"""

import numpy as np
import pytest

import xlstm
from tests.registry import agree, given, run
from xlstm.arrays.convert import to_numpy
from xlstm.models import ESRNN

OPTIONS = [
    {"trend": "none"},
    {"trend": "linear", "periods": (3,), "multiplicative": True},
    {"trend": "damped", "periods": (2, 4)},
    {"trend": "damped", "multiplicative": True},
    {"trend": "none", "periods": (4,)},
]


def test_numbers_of_statsmodels(be):
    """ETSModel of statsmodels 0.15.0, smooth([0.4, 0.12, 0.3, 0.9]) from the same initial state."""
    t = np.arange(24)
    series = np.round(50 + 1.5 * t + 10 * np.sin(t * np.pi / 2) + 3 * np.cos(t**2), 2)
    shares = {"alpha": 0.4, "beta": 0.12 / 0.4, "phi": 0.9, "gamma": 0.3 / 0.6}
    params = {name: be.asarray([np.log(share / (1 - share))]) for name, share in shares.items()}
    state = [[48.0]], [[1.2]], [[3.0], [9.0], [-2.0], [-10.0]]
    layer = xlstm.ExponentialSmoothing(6, periods=(4,))
    x = be.asarray(series[:, None, None])
    y, end, saved = layer.forward(params, x, tuple(map(be.asarray, state)))
    ahead = [87.2868874, 100.89551245, 90.4888211, 80.34196463, 92.18456391, 105.30342131]
    np.testing.assert_allclose(to_numpy(y)[-1, 0], ahead, rtol=1e-9)
    errors = to_numpy(saved.errors)[[0, 1, 10, 23], 0]
    np.testing.assert_allclose(
        series[[0, 1, 10, 23]] - errors, [52.08, 59.51936, 63.43839127, 73.38367279], rtol=1e-9
    )
    last = 84.0900389880135, 1.7582187310560267, 1.61445155, 13.79891943, 2.11048662, -9.18993715
    np.testing.assert_allclose(np.concatenate([to_numpy(s)[:, 0] for s in end]), last, rtol=1e-8)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_series_without_noise_is_forecast_from_its_beginning(be, options):
    """Level, trend and seasons are found, so that no step has an error, whatever the
    coefficients.
    """
    layer = xlstm.ExponentialSmoothing(4, **options)
    t = np.arange(30)
    series = np.full(34, 5.0)
    series[:] += 0.1 * np.arange(34) * (options["trend"] == "linear")
    for m in layer.periods:
        series += np.resize(np.arange(m) - (m - 1) / 2, 34)
    series = np.exp(series) if layer.multiplicative else series
    x = be.asarray(np.stack((series[:30], 2 * series[:30]), axis=1)[..., None])
    params = layer.init(0, be)
    y, _ = layer(params, x, layer.initial_state(x))
    ahead = series[t[:, None] + 1 + np.arange(4)]
    np.testing.assert_allclose(to_numpy(y), np.stack((ahead, 2 * ahead), axis=1), rtol=1e-9)
    padded = be.asarray(np.where(np.arange(2)[None, :, None] == 0, to_numpy(x), np.nan))
    first = layer.initial_state(padded, [30, 0])
    assert all(not np.any(to_numpy(s)[:, 1]) for s in first)
    agree(
        dict(enumerate(s[:, 0] for s in first)),
        dict(enumerate(s[:, 0] for s in layer.initial_state(x))),
        1e-12,
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_loops_give_the_same(rng, monkeypatch, options, dtype):
    """Also where series lie one after the other in memory, and past the end of a sequence."""
    pytest.importorskip("numba")
    be = xlstm.backend("numpy", dtype=dtype)
    layer = xlstm.ExponentialSmoothing(5, **options)
    params, x, state = given(layer, be, rng, 40, 2)
    found = []
    for compiled in ("0", "1"):
        monkeypatch.setenv("XLSTM_COMPILE", compiled)
        for given_x in (x, np.asfortranarray(x)):
            found += [run(layer, params, given_x, state, lengths) for lengths in (None, [0, 9])]
    for one, other in zip(found[2:], found[:2] * 3, strict=True):
        agree(one, other, 1e-12 if dtype == "float64" else 1e-4)


def test_training_begins_at_holt_winters(rng):
    """The first forecasts of a model are those of smoothing alone."""
    be = xlstm.backend("numpy", dtype="float64")
    series = 10 + np.sin(np.arange(120) * 0.7) + 0.05 * rng.standard_normal(120)
    x = be.asarray(series[:, None, None])
    smoothing = xlstm.ExponentialSmoothing(2, trend="none")
    model = ESRNN(2, 8, trend="none", scale=0.5)
    params = model.init(0, be)
    state = model.initial_state(x)
    plain, _ = smoothing(smoothing.init(0, be), x, smoothing.initial_state(x))
    np.testing.assert_array_equal(to_numpy(model(params, x, state)[0]), to_numpy(plain))


BOTH = pytest.mark.parametrize(
    "layer", [xlstm.ExponentialSmoothing(2, periods=(3,)), ESRNN(2, 4)], ids=["layer", "model"]
)


@BOTH
def test_a_batch_without_sequences_has_an_initial_state(layer, be):
    x = be.asarray(np.ones((12, 0, 1)))
    y, _ = layer(layer.init(0, be), x, layer.initial_state(x))
    assert tuple(y.shape) == (12, 0, 2)


@BOTH
@pytest.mark.parametrize(
    ("x", "lengths", "name"),
    [
        *(
            (np.ones((12, 2, 1)), lengths, "lengths")
            for lengths in ([5], [99, 3], [1.5, 2.5], [True, False])
        ),
        *((np.ones(shape), None, "x") for shape in ((12, 2), (0, 2, 1), (12, 2, 2))),
        (np.ones((12, 2, 1), "int64"), None, "x"),  # which would cut off the level of a series
    ],
)
def test_an_initial_state_refuses_what_forward_does(layer, x, lengths, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{type(layer).__name__}: {name}\W"):
        layer.initial_state(x, lengths)


def test_what_is_not_above_zero_or_no_number_is_named():
    layer = xlstm.ExponentialSmoothing(multiplicative=True)
    params = layer.init(0, "numpy", "float64")
    x = np.ones((12, 1, 1))
    x[3] = 0
    for call in (lambda: layer(params, x), lambda: layer.initial_state(x)):
        with pytest.raises(ValueError, match=r"^ExponentialSmoothing: x has 0\.0"):
            call()
    with pytest.raises(ValueError, match=r"^ExponentialSmoothing: x has nan"):
        xlstm.ExponentialSmoothing().initial_state(x * np.nan)
