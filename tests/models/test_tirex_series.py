"""TiRex: everything from series to tokens, and from the network's output to forecasts."""

import math

import numpy as np
import pytest

from tests.conftest import DATA
from tests.tirex import golden
from xlstm.models import HorizonWarning, TiRex
from xlstm.models.tirex import PrefixStateCache, prediction, transforms
from xlstm.models.tirex.items import Item
from xlstm.models.tirex.transforms import Scaler

EXACT = 1e-10
SINGLE = 2e-5  # of the largest value of a row
BLIND = pytest.mark.filterwarnings("ignore:TiRex. the last steps")  # horizons beyond the context


def close(found, expected, most=EXACT):
    """Differences are at most so large a share of the largest value of each row."""
    found = np.asarray(found)
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    size = np.nanmax(np.abs(expected.reshape(len(expected), -1)), axis=1, initial=0.0)
    error = np.nanmax(np.abs(found - expected).reshape(len(expected), -1), axis=1, initial=0.0)
    assert np.all(error <= most * size), (error / size).max()


def series(io):
    """The series of TiRex-1's golden files, without the missing values that align them."""
    return [
        row[len(row) - n :].astype(np.float64)
        for row, n in zip(io["context"], io["lengths"], strict=True)
    ]


def items(io):
    """The items of TiRex-2's golden files."""
    found = []
    for k in range(int(io["n_series"])):
        target = io[f"s{k}_target"].astype(np.float64)
        none = np.empty((0, target.shape[1]))
        found.append(
            Item(
                target,
                *(io.get(f"s{k}_{name}", none).astype(np.float64) for name in ("past", "future")),
            )
        )
    return found


@pytest.mark.parametrize("name", "abc")
def test_resampling(name):
    """The rate, the series at that rate, and a forecast brought back, which were recorded in single
    precision.
    """
    io = np.load(DATA / "tirex1" / "resample.npz")
    x = io[f"{name}_x"].astype(np.float64)
    factor = transforms.rate_of(x, 200)
    assert factor == io[f"{name}_factor"]
    close(transforms.downsampled(x, factor)[None], io[f"{name}_resampled"][None], 2e-6)
    forecast = io[f"{name}_fc"].T.astype(np.float64)
    assert math.ceil(200 * factor) == len(forecast)
    close(transforms.upsampled(forecast, factor, 200).T, io[f"{name}_fc_up"][:, :200], SINGLE)


def beside(given):
    """The covariates of items as arguments of `TiRex2.forecast`."""
    return {
        name: [getattr(i, name) if len(getattr(i, name)) else None for i in given]
        for name in ("past", "future")
    }


def recorded(io, dtype):
    """The names of recorded forecasts, with the horizon and what follows it."""
    end = f"_{dtype[0]}{dtype[-2:]}"
    for key in io:
        if key.startswith("q_h") and key.endswith(end):
            horizon, _, way = key.removeprefix("q_h").removesuffix(end).partition("_")
            yield key, int(horizon), way


@pytest.fixture(params=["usual", "late"])
def starts(request, monkeypatch):
    """Makes the argument `starts`; with "late" every row starts after its leading tokens."""
    if request.param == "usual":
        return lambda model, params: None
    monkeypatch.setattr(prediction, "CALL", 0)
    return PrefixStateCache


WAYS = {
    "": {},
    "plain": {"sign_flip": False, "differencing": False},
    "flip": {"sign_flip": True, "differencing": False},
    "diff": {"sign_flip": False, "differencing": True},
    "flipdiff": {"sign_flip": True, "differencing": True},
    "nopad": {"pad_context": False},
}


@BLIND
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [f"tirex{k}/{name}" for k in (1, 2) for name in "abc"])
def test_forecasts_are_the_recorded_ones(name, dtype, starts):
    """Every horizon and number of patches at once; every option, with items of several targets and
    with covariates.
    """
    own, params, io = golden(name, dtype=dtype)
    kept = starts(own, params)
    seen = set()
    most = EXACT if dtype == "float64" else SINGLE
    for key, horizon, way in recorded(io, dtype):
        if isinstance(own, TiRex):
            rollout = int(way.removeprefix("r") or 1)
            found = own.forecast(
                params, series(io), horizon, rollout=rollout, batch_size=7, starts=kept
            )
            close(found.quantiles, io[key], most)
            np.testing.assert_array_equal(found.mean, found.quantiles[..., found.levels.index(0.5)])
        else:
            given = items(io)
            options = {**beside(given), **WAYS[way], "starts": kept, "batch_size": 9}
            H = min(horizon, own.horizon)  # the published package goes no further
            found = own.forecast(params, [item.target for item in given], H, **options)
            close(np.concatenate(found.quantiles).swapaxes(1, 2), io[key], most)
        seen.add(way)
    assert seen == set(WAYS) or isinstance(own, TiRex)


def test_late_starts_are_taken(monkeypatch, one):
    """The network sees fewer tokens where there are enough short series, by default of 16 at once
    on a CPU.
    """
    own, params = one
    seen = []
    read = TiRex.read
    monkeypatch.setattr(TiRex, "read", lambda *given: seen.append(given[2].shape) or read(*given))
    short = np.arange(10.0)
    expected = own.forecast(params, [short] * 2, 4).quantiles
    found = own.forecast(params, [short] * 18, 4).quantiles
    assert seen == [(2, 8, 8), (16, 3, 8), (2, 3, 8)]
    close(found, np.repeat(expected[:1], 18, axis=0), 1e-12)


@pytest.fixture(scope="module")
def one():
    return golden("tirex1/a")[:2]


@pytest.fixture(scope="module")
def two():
    return golden("tirex2/a")[:2]


@pytest.mark.parametrize("which", ["one", "two"])
def test_series_of_every_kind(request, which):
    """One series, several, lists of unequal ones; numbers of any kind; missing values of any
    kind.
    """
    own, params = request.getfixturevalue(which)

    def forecast(series):
        return own.forecast(params, series, 6).quantiles

    x = np.random.default_rng(0).normal(size=(3, 40)).round(1)
    whole, first = (own.forecast(params, series, 6) for series in (x, x[0]))
    assert (whole.quantiles.shape, whole.mean.shape, whole.levels) == (
        (3, 6, 9),
        (3, 6),
        own.quantiles,
    )
    close(first.quantiles, whole.quantiles[0], 1e-12)
    close(forecast([x[0], x[1, 5:], list(x[2, 20:])])[1], forecast(x[1, 5:]), 1e-12)
    gaps = np.where(np.arange(40) % 7 == 3, np.nan, x[0])
    numbers = np.arange(40) % 5
    listed = [None if np.isnan(v) else v for v in gaps]
    for series, others in (
        (gaps, (np.where(np.isnan(gaps), np.inf, gaps), listed, np.ma.masked_invalid(gaps))),
        (numbers.astype(float), (numbers, numbers.astype("float16"))),
    ):
        for other in others:
            np.testing.assert_array_equal(forecast(other), forecast(series))
    for given in ([np.full(5, np.nan), np.zeros(1)], [[1e150, -1e150, 3], [1e-300, 2e-300]]):
        assert np.all(np.isfinite(forecast(given)))


def test_items_of_several_targets(two):
    """The axes of forecasts are those of the series; where items differ, forecasts are a list."""
    own, params = two
    x = np.random.default_rng(0).normal(size=(2, 3, 30))
    price = np.random.default_rng(1).normal(size=40)

    def forecast(series, **covariates):
        return own.forecast(params, series, 5, **covariates).quantiles

    found = own.forecast(params, x, 5)
    mixed = own.forecast(params, [x[0], x[1, 0], x[1, :2, 4:]], 5)
    assert [q.shape for q in mixed.quantiles] == [(3, 5, 9), (5, 9), (2, 5, 9)]
    close(mixed.quantiles[0], found.quantiles[0], 1e-12)
    single = forecast(x[0, 0], past=x[1, 0], future=price)
    several = forecast([x[0, 0], x[0, 1]], past=[x[1], None], future=[price, None])
    assert np.max(np.abs(several[0] - single)) > 1e-4  # other covariates
    later = np.where(np.arange(40) < 35, price, 9.0)
    # nobody looks further than the horizon
    close(forecast(x[0, 0], past=x[1, 0], future=later), single, 1e-12)


def test_any_quantiles(one):
    own, params = one
    x = np.random.default_rng(0).normal(size=40)
    usual = own.forecast(params, x, 6)
    found = own.forecast(params, x, 6, quantiles=[0.9, 0.12, 0.5, 0.1])
    assert found.levels == (0.9, 0.12, 0.5, 0.1)
    q = usual.quantiles
    np.testing.assert_allclose(found.quantiles[:, 1], 0.8 * q[:, 0] + 0.2 * q[:, 1])
    np.testing.assert_array_equal(found.quantiles[:, [0, 2, 3]], q[:, [8, 4, 0]])
    np.testing.assert_array_equal(found.mean, usual.mean)
    assert own.forecast(params, x, 6, quantiles=()).quantiles.shape == (6, 0)


@pytest.mark.parametrize(("ratio", "factor"), [(2, 1 / 10), (3, 1 / 3)])
def test_an_overtone_gives_way_to_its_octave(ratio, factor):
    """The lower of two peaks an octave apart counts, and the higher of others."""
    at = np.arange(6400) * 2 * np.pi / 640
    found = transforms.rate_of(np.sin(at) + 2 * np.sin(ratio * at), 200)
    assert found == pytest.approx(factor, rel=1e-6)


@BLIND
def test_resampled_forecasts(one):
    """A series is forecast at the lower rate, and those without a long period as they are."""
    own, params = one
    at = np.arange(2400)
    slow = np.sin(at * 2 * np.pi / 640)
    quick = np.sin(at * 2 * np.pi / 20)
    factor = transforms.rate_of(slow, 120)
    assert factor == transforms.FACTORS[8]
    found = own.forecast(params, [slow, quick], 120, resample="frequency").quantiles
    low = own.forecast(params, transforms.downsampled(slow, factor), 14).quantiles
    close(found[0], transforms.upsampled(low, factor, 120))
    close(found[1], own.forecast(params, quick, 120).quantiles)
    # the last bin, of 2 steps, counts once
    assert transforms.rate_of(slow + 7 * (-1.0) ** at, 120) == factor
    assert transforms.rate_of(slow, 99) == transforms.rate_of(slow[:1999], 120) == 1
    assert (
        transforms.rate_of(np.full(2400, np.nan), 120)
        == transforms.rate_of(np.ones(2400), 120)
        == 1
    )


def test_beyond_the_trained_horizon(two):
    """More missing patches follow, and the warning says so."""
    own, params = two
    x = np.random.default_rng(0).normal(size=(2, 40))
    with pytest.warns(
        HorizonWarning, match="horizon is 25, and the model was trained for 16 steps at most"
    ):
        found = own.forecast(params, x, 25).quantiles
    assert found.shape == (2, 25, 9)
    close(found[:, :16], own.forecast(params, x, 16).quantiles, 1e-12)


def test_windows_without_a_value(one):
    """Those after as many steps as the context has; they are all the same, and the warning says
    so.
    """
    own, params = one
    assert own.context == 32
    x = np.random.default_rng(0).normal(100, 1, 50)
    usual = own.forecast(params, x, 32).quantiles
    with pytest.warns(
        HorizonWarning, match="TiRex: the last steps come from windows of 32 values"
    ) as found:
        longer = own.forecast(params, x, 40).quantiles
    assert found[0].filename == __file__
    close(longer[:32], usual)
    np.testing.assert_array_equal(longer[32:36], longer[36:])
    assert np.max(np.abs(longer[32:])) < 50 < np.min(np.abs(usual))
    own.forecast(params, x, 40, rollout=10)


X = np.arange(30.0)


@pytest.mark.parametrize(
    ("which", "arguments", "name"),
    [
        ("one", {"quantiles": [0.05]}, r"quantiles\[0\]"),
        ("two", {"series": [np.ones((2, 3)) * [1, 1, 2e150]]}, r"series\[0\]\[0, 2\]"),
        ("two", {"past": X[1:]}, "past has 29 steps"),
        ("two", {"future": X}, "future has 30 steps"),
    ],
)
def test_bad_arguments_are_named_before_any_work(request, monkeypatch, which, arguments, name):
    own, params = request.getfixturevalue(which)
    monkeypatch.setattr(type(own), "read", None)
    with pytest.raises(ValueError, match=f"{type(own).__name__}: {name}"):
        own.forecast(**{"params": params, "series": X, "horizon": 4, **arguments})


def test_a_column_with_missing_values_of_its_own_kind(one):
    pandas = pytest.importorskip("pandas")
    own, params = one
    gaps = pandas.Series([1, None, 3, 4], dtype="Int64")
    expected = own.forecast(params, [1, np.nan, 3, 4], 4).quantiles
    np.testing.assert_array_equal(own.forecast(params, gaps, 4).quantiles, expected)


def test_the_middle_quantile_is_the_one_by_position():
    """An even number of quantiles has the upper one as its middle; the others go away from it with
    the steps.
    """
    q = np.broadcast_to([1.0, 2.0, 4.0, 8.0], (2, 4))
    expected = 4 + np.sqrt(0.9) * np.array([[1.0], [2**0.02]]) * (q - 4)
    np.testing.assert_allclose(transforms.calibrated(q), expected, rtol=1e-14)


def test_a_constant_has_no_deviation():
    """Also where the mean of so many equal numbers is rounded."""
    rows = np.full((1, 30), 0.1)
    units = Scaler().units(rows)
    assert units.loc == 0.1
    assert units.scale == 0.1 + 1e-5
    np.testing.assert_array_equal(Scaler().scaled(rows, units), 0.0)
    scaler = Scaler(True, True, 1e-8)
    assert scaler.units(rows).scale == 1e-8


def test_large_outputs_stay_finite():
    """Beyond 20 the hyperbolic sine is that of 20."""
    scaler = Scaler(True, False, 1e-8)
    units = scaler.units(np.array([[1.0, 3.0]]))
    found = scaler.restored(np.array([[[-1e3, 20.0, 1e3]]]), units)
    np.testing.assert_allclose(found, 2 + np.sinh([[[-20, 20, 20]]]))
