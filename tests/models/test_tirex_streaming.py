"""Streams of TiRex: forecasts of series that grow, beside those of whole windows."""

import dataclasses

import numpy as np
import pytest

from tests.tirex import FIRST, SECOND
from xlstm.models import TiRex


def whole(model, params, series, horizon):
    """The forecast that a fresh stream gives."""
    options = (
        {"rollout": -(-horizon // model.patch_size)}
        if isinstance(model, TiRex)
        else {"differencing": False}
    )
    return model.forecast(params, series, horizon, **options)


@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["TiRex", "TiRex2"])
@pytest.mark.parametrize("L", [3, 8, 21])
def test_a_fresh_stream_forecasts_as_the_model_does(be, rng, model, L):
    """From a short series, from a window, and from more; values are missing, and quantiles are
    chosen.
    """
    params = model.init(0, be)
    x = rng.standard_normal((3, L))
    x[0, 1] = np.nan
    for horizon in (1, 5):
        found = model.stream(params, x).forecast(horizon)
        np.testing.assert_allclose(
            found.quantiles, whole(model, params, x, horizon).quantiles, rtol=1e-9, atol=1e-9
        )
    assert model.stream(params, x[1]).forecast(3, quantiles=[0.5]).quantiles.shape == (3, 1)


@pytest.mark.parametrize("model", [FIRST, SECOND], ids=["TiRex", "TiRex2"])
def test_new_values_cost_a_token_and_change_nothing_else(monkeypatch, rng, model):
    """While its units are frozen a state is that of a whole pass over all values, of which a longer
    window has as many missing ones before them.
    """
    params = model.init(0, "numpy", "float64")
    x = rng.standard_normal((2, 6))
    stream = model.stream(params, x[:, :4], renew=0)
    units = stream._now().units
    monkeypatch.setattr(type(model.scaler), "units", lambda self, rows: units)
    tokens = []
    forward = type(model).forward

    def counted(self, params, x, *rest, **options):
        tokens.append(x.shape[1])
        return forward(self, params, x, *rest, **options)

    for t, context in ((4, 8), (5, 10)):
        stream.push(x[:, t])
        longer = dataclasses.replace(model, context=context)
        expected = whole(longer, params, x[:, : t + 1], 5).quantiles
        monkeypatch.setattr(type(model), "forward", counted)
        np.testing.assert_allclose(stream.forecast(5).quantiles, expected, rtol=1e-9, atol=1e-9)
        monkeypatch.setattr(type(model), "forward", forward)
    assert stream.count == 2
    # a missing patch and three; then one more; and two of the horizon each
    assert tokens == [1, 3, 2, 1, 2]


def test_units_are_renewed(rng):
    """With `renew` a forecast is that of the last window again, as after a long while; without it a
    jump shows.
    """
    params = FIRST.init(0, "numpy", "float64")
    x = np.concatenate((rng.standard_normal(20), 1000 + rng.standard_normal(12)))
    assert FIRST.stream(params, x).renew == 1
    expected = FIRST.forecast(params, x, 2).quantiles
    steps = (x[20:22], x[22:30], x[30:])
    for renew, pushed, same in ((12, steps, True), (0, steps, False), (0, [x[20:]], True)):
        stream = FIRST.stream(params, x[:20], renew=renew)
        stream.forecast(2)
        for part in pushed:
            stream.push(part)
            found = stream.forecast(2).quantiles
        assert np.allclose(found, expected, rtol=1e-9 if same else 1e-3, atol=0) == same


@pytest.mark.parametrize(
    ("series", "values"),
    [(np.arange(9.0), "a"), (np.arange(9.0), np.ones((1, 3))), (np.ones((2, 9)), 3.0)],
)
def test_values_that_are_no_next_ones_are_named(series, values):
    with pytest.raises((TypeError, ValueError), match=r"TiRex\.stream: values"):
        FIRST.stream(FIRST.init(0, "numpy"), series).push(values)
