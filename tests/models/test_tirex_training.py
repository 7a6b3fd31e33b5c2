"""Training of TiRex: windows and targets, the loss, fine-tuning of all, of the head and of
adapters.
"""

import dataclasses
import pickle

import numpy as np
import pytest

import xlstm
from tests.conftest import make_backend
from tests.tirex import WIDER
from xlstm.data.series import synthetic
from xlstm.models import TiRex, TiRex2
from xlstm.models.tirex import PatchWindows
from xlstm.models.tirex.variates import Groups
from xlstm.training import LowRank, evaluate
from xlstm.training.loop import first_batch

MODEL = TiRex(8, 2, 2, patch_size=2, quantiles=(0.1, 0.5, 0.9), input_ff_size=8, context=16)
SECOND = TiRex2(8, [("mlstm", 2, 2), ("slstm", 2, 2)], horizon=4, **WIDER)


def test_windows_and_targets():
    """Each token of a window has the next patch as its target, in the units of the window."""
    row = np.arange(30.0) ** 2
    row[20] = np.nan
    before = np.concatenate((np.full(16, np.nan), row))
    data = PatchWindows(MODEL, row, stride=3, batch_size=4)
    batches = list(data.batches())
    assert len(batches) == len(data) == 3
    ends = range(28, 1, -3)
    windows = [(batch, b) for batch in batches for b in range(batch.x.shape[1])]
    for end, (batch, b) in zip(ends, windows, strict=True):
        seen = before[end : end + 16]
        loc = np.nanmean(seen)
        scale = np.nanstd(seen)
        x, y = (((a - loc) / scale).reshape(8, 2) for a in (seen, before[end + 2 : end + 18]))
        np.testing.assert_allclose(batch.x[:, b, :2], np.nan_to_num(x), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(batch.x[:, b, 2:], ~np.isnan(x))
        np.testing.assert_array_equal(batch.mask[:, b], ~np.isnan(y))
        np.testing.assert_allclose(batch.target[:, b], np.nan_to_num(y), rtol=1e-12, atol=1e-12)


def test_hidden_patches():
    """The last ones of a window are missing and stay targets; all of the horizon where nothing is
    drawn.
    """
    row = np.arange(40.0)
    (batch,) = PatchWindows(MODEL, row, horizon=6, stride=40).batches()
    np.testing.assert_array_equal(batch.x[:, 0, 2], [1] * 6 + [0] * 2)
    assert np.all(batch.mask)
    drawn = [
        next(PatchWindows(MODEL, row, horizon=6, stride=40).batches(np.random.default_rng(k)))
        for k in range(20)
    ]
    assert {int(np.sum(batch.x[:, 0, 2] == 0)) for batch in drawn} == {0, 1, 2}


def test_what_may_be_a_target():
    """Only what comes since; windows whose targets all come before are left out."""
    data = PatchWindows(MODEL, [np.arange(40.0), np.arange(9.0)], since=[33, 0])
    (batch,) = data.batches()
    counted = np.flatnonzero([np.any(batch.mask[:, b]) for b in range(batch.x.shape[1])])
    assert len(counted) == batch.x.shape[1]
    assert np.sum(batch.mask[:, 0]) == 7  # of the values 24 to 39


def test_the_loss_is_pinball_of_each_value(be, rng):
    y = rng.standard_normal((2, 3, 3, 2))
    target = rng.standard_normal((2, 3, 2))
    mask = rng.random((2, 3, 2)) < 0.7
    value, dy = MODEL.loss(be.asarray(y), be.asarray(target), be.xp.asarray(mask, device=be.device))
    e = target[:, :, None] - y
    q = np.array([0.1, 0.5, 0.9])[:, None]
    expected = np.sum(mask[:, :, None] * np.maximum(q * e, (q - 1) * e)) / np.sum(mask)
    np.testing.assert_allclose(float(value), expected, rtol=1e-12)
    xlstm.gradcheck(
        lambda y: (MODEL.loss(y, be.asarray(target))[0], y),
        lambda y, d: (d * MODEL.loss(y, be.asarray(target))[1],),
        (be.asarray(y),),
    )
    assert tuple(dy.shape) == y.shape


@pytest.mark.parametrize("model", [xlstm.LSTM(2, 3), MODEL], ids=["LSTM", "TiRex"])
def test_gradient_of_adapters(be, rng, model):
    params = {
        name: be.asarray(p + 0.3 * rng.standard_normal(p.shape))
        for name, p in model.draw(rng).items()
    }
    adapters = LowRank(model, params, 1, scale=0.7, names=["0.W?", "*.up.W", "*.cell.Wh", "*.i.W"])
    given = {
        name: be.asarray(rng.standard_normal(tuple(p.shape))) for name, p in adapters.init().items()
    }
    assert set(given) == set(adapters.shapes)
    x = be.asarray(rng.standard_normal((3, 2, model.input_size)))

    def forward(params, x):
        y, _, saved = adapters.forward(params, x, resets=np.eye(3, 2) > 0)
        return y, (params, saved)

    xlstm.gradcheck(
        forward, lambda saved, dy: adapters.backward(*saved, dy)[:2], (given, x), directions=1
    )


def test_adapters_begin_as_nothing_and_are_merged(rng):
    be = make_backend("numpy")
    params = MODEL.init(0, be)
    x = be.asarray(rng.standard_normal((2, 5, 4)))
    adapters = LowRank(MODEL, params, 2)
    given = adapters.init()
    np.testing.assert_array_equal(adapters.forward(given, x)[0], MODEL(params, x)[0])
    given = {name: p + 0.1 for name, p in given.items()}
    y, _, _ = adapters.forward(given, x, train=False)
    np.testing.assert_allclose(MODEL(adapters.merged(given), x)[0], y, rtol=1e-12)
    assert not np.allclose(y, MODEL(params, x)[0])
    wide = LowRank(xlstm.LSTM(2, 900), xlstm.LSTM(2, 900).init(0, be), 2, names=["*.Wh"])
    np.testing.assert_allclose(np.std(wide.init()["0.Wh.A"]), 1 / 30, rtol=0.1)
    again = pickle.loads(pickle.dumps(adapters))
    np.testing.assert_array_equal(again.forward(given, x)[0], y)


def series_of(rng, count=4, n=120):
    """Series that a model can learn: a season each, whose shape is the same, and a little noise."""
    t = np.arange(n)
    return [
        np.sign(np.sin(2 * np.pi * (t + 3 * k) / 12)) + 0.05 * rng.standard_normal(n)
        for k in range(count)
    ]


def trained(params, weights, unused=()):
    """The names of the parameters that fine-tuning is to change; those that begin or go on with
    `unused` stay.
    """
    names = {name for name in params if not any(part in name for part in unused)}
    if weights == "head":
        return {name for name in names if name.startswith("output.")}
    if weights == "adapters":
        return {
            name
            for name in names
            if name.endswith((".W", ".Wh")) and min(params[name].shape[-2:]) > 2
        }
    return names


def changed(params, tuned):
    return {name for name in params if not np.array_equal(params[name], tuned.params[name])}


OPTIONS = {"horizon": 4, "learning_rate": 1e-2, "rank": 2}


@pytest.mark.parametrize("model", [MODEL, SECOND], ids=["TiRex", "TiRex2"])
@pytest.mark.parametrize("weights", ["all", "head", "adapters"])
def test_fine_tuning_lowers_the_held_out_loss(rng, model, weights):
    """On series that it did not see, too; and it changes what it is to change."""
    series = series_of(rng)
    series[0][5:9] = np.nan
    params = model.init(0, "numpy")
    tuned, again = (
        model.fine_tune(params, series, weights=weights, epochs=3, **OPTIONS) for _ in range(2)
    )
    later = PatchWindows(model, series_of(rng, 1), horizon=4)
    assert evaluate(model, tuned.params, later) < 0.9 * evaluate(model, params, later)
    assert len(tuned.validations) == 3
    assert min(tuned.validations) == tuned.validations[tuned.best_epoch - 1]
    assert changed(params, tuned) == trained(params, weights, (".mixer.", ".combination."))
    assert again.losses == tuned.losses


def items_of(rng):
    """An item of two targets with covariates of both kinds, and one of a target with a known
    covariate.
    """
    first = rng.standard_normal((2, 30)), rng.standard_normal((2, 30)), rng.standard_normal((1, 33))
    second = rng.standard_normal((1, 17)), None, rng.standard_normal(17)
    series, past, future = zip(first, second, strict=True)
    return list(series), {"past": list(past), "future": list(future)}


@pytest.mark.parametrize("hidden", [0, 1])
def test_windows_of_groups_are_those_of_forecasts(monkeypatch, rng, hidden):
    """The network sees the tokens, rows and groups of a forecast of the patches that are hidden,
    which are targets.
    """
    series, beside = items_of(rng)
    ahead = 2 + 2 * hidden  # the steps of the patches that are hidden, and of the one after
    (batch,) = PatchWindows(SECOND, series, horizon=ahead, stride=40, **beside).batches()
    seen = []
    read = TiRex2.read
    monkeypatch.setattr(
        TiRex2, "read", lambda *args: seen.append((args[2], args[-1])) or read(*args)
    )
    own = dataclasses.replace(SECOND, context=SECOND.context + 2 - ahead, horizon=ahead)
    past = [None if one is None else one[:, :-ahead] for one in beside["past"]]
    options = {"past": past, "future": beside["future"], "differencing": False, "batch_size": 9}
    own.forecast(
        SECOND.init(0, "numpy", "float64"), [one[:, :-ahead] for one in series], ahead, **options
    )
    ((x, groups),) = seen
    np.testing.assert_allclose(batch.x, x.swapaxes(0, 1), rtol=1e-12, atol=1e-12)
    given = Groups.of("", len(x), **batch.options)
    for one, other in zip(
        (given.rows, given.known, *given.sizes),
        (groups.rows, groups.known, *groups.sizes),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    targets = batch.options["targets"]
    assert targets.tolist() == [True, True, False, False, False, True, False]
    assert not np.any(batch.mask[:, ~targets])
    assert not np.any(batch.mask[-1])  # nothing comes after the last token
    rows = np.full((3, 30), np.nan)
    rows[:2] = series[0]
    rows[2, -17:] = series[1][0]
    window = rows[:, -18:]
    units = SECOND.scaler.units(np.where(np.arange(18) < 18 - ahead, window, np.nan))
    expected = SECOND.scaler.scaled(window, units).reshape(3, -1, 2)[:, 1:].swapaxes(0, 1)
    np.testing.assert_array_equal(batch.mask[:-1, targets], ~np.isnan(expected))
    np.testing.assert_allclose(
        batch.target[:-1, targets], np.nan_to_num(expected), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("weights", ["all", "head", "adapters"])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_trained_with_groups(rng, weights, known):
    """Variate mixers too, and `combination` where covariates are known in advance."""
    series, beside = items_of(rng)
    params = SECOND.init(0, "numpy")
    beside = beside if known else {"past": beside["past"]}
    tuned = SECOND.fine_tune(params, series, weights=weights, epochs=1, **beside, **OPTIONS)
    assert changed(params, tuned) == trained(params, weights, () if known else (".combination.",))


def test_other_groups_are_other_data(rng):
    """Checkpoints tell rows that belong together from the same rows alone."""
    x = rng.standard_normal((2, 30))
    found = {first_batch(PatchWindows(SECOND, series, stride=40)) for series in (x, x[None])}
    assert len(found) == 2


def test_synthetic_series(rng):
    """All finite but for gaps, none constant, and of many sizes."""
    found = synthetic(rng, 200, 64)
    assert found.shape == (200, 64)
    gaps = np.any(np.isnan(found), axis=1)
    assert 5 < np.sum(gaps) < 50
    scale = np.nanstd(found, axis=1)
    assert np.all(scale > 0)
    assert np.nanmax(scale) / np.nanmin(scale) > 1e3


@pytest.mark.parametrize("name", ["past", "future"])
def test_covariates_shorter_than_their_series_are_refused(name):
    with pytest.raises(ValueError, match=f"TiRex2.fine_tune: {name} has 49 steps, expected 50"):
        SECOND.fine_tune(SECOND.init(0, "numpy"), np.arange(50.0), **{name: np.ones(49)})
