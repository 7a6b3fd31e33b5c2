"""TiRex: everything from series to tokens, and from the network's output to forecasts."""

import json

import numpy as np
import pytest

from tests.conftest import DATA
from xlstm.interop import tirex
from xlstm.models.tirex import calibration, resampling, windows
from xlstm.models.tirex.rows import Item, rows
from xlstm.models.tirex.scaling import RobustScaler, StandardScaler

ONES = {name: DATA / "tirex1" / name for name in "abc"}
TWOS = {name: DATA / "tirex2" / name for name in "abc"}
EXACT, SINGLE = 1e-10, 2e-5  # of the largest value of a row


def close(found, expected, most=EXACT):
    """Differences are at most so large a share of the largest value of each row."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    size = np.nanmax(np.abs(expected.reshape(len(expected), -1)), axis=1, initial=0.0)
    error = np.nanmax(np.abs(found - expected).reshape(len(expected), -1), axis=1, initial=0.0)
    assert np.all(error <= most * size), (error / size).max()


def golden(folder):
    return json.loads((folder / "config.json").read_text()), dict(np.load(folder / "io.npz"))


def series(io):
    """The series of TiRex-1's golden files, without the missing values that align them."""
    return [row[len(row) - n :].astype(np.float64) for row, n in zip(io["context"], io["lengths"], strict=True)]


def items(io):
    """The items of TiRex-2's golden files."""
    found = []
    for k in range(int(io["n_series"])):
        target = io[f"s{k}_target"].astype(np.float64)
        none = np.empty((0, target.shape[1]))
        found.append(Item(target, *(io.get(f"s{k}_{name}", none).astype(np.float64) for name in ("past", "future"))))
    return found


@pytest.mark.parametrize("name", "abc")
def test_windows_scaler_and_tokens_of_tirex_1(name):
    config, io = golden(ONES[name])
    P = config["model_config"]["input_patch_size"]
    x = np.stack([windows.last(row, config["train_ctx_len"]) for row in series(io)])
    scaler = StandardScaler()
    units = scaler.units(x)
    close(units.loc, io["loc_f64"])
    close(units.scale, io["scale_f64"])
    scaled = scaler.scaled(x, units)
    most = EXACT if io["tokens_f64"].dtype == np.float64 else 1e-7  # some were recorded in single precision
    close(scaled, io["tokens_f64"].reshape(len(x), -1), most)
    found = windows.tokens(scaled, P)
    values, there = found[..., :P], found[..., P:]
    np.testing.assert_array_equal(values, np.nan_to_num(scaled).reshape(values.shape))
    np.testing.assert_array_equal(there, ~np.isnan(io["tokens_f64"]))
    head = io["head_f64"][:, -1].reshape(len(x), -1, P).swapaxes(1, 2).astype(np.float64)  # (B, P, Q)
    close(scaler.restored(head, units), io[f"q_h{P}_f64"], 10 * most)


@pytest.mark.parametrize("name", "abc")
def test_rows_scaler_and_calibration_of_tirex_2(name):
    config, io = golden(TWOS[name])
    H, way = io["pred"].shape[2], "diff" if config["tta_diff"] else "plain"
    sizes = (H, config["future_len"], config["context_len"])
    np.testing.assert_array_equal(rows(items(io), *sizes, True).summed, io["trend"])
    found = rows(items(io), *sizes, config["tta_diff"])
    close(found.x, io["x"])
    np.testing.assert_array_equal(found.groups + 1, io["group"])
    np.testing.assert_array_equal(found.targets, io["target_mask"])
    np.testing.assert_array_equal(found.known, io["known_mask"])
    options = config["scaler_cfg"]
    scaler = RobustScaler(
        options.get("use_arcsinh", False), options.get("binaryaware", False), options.get("eps", 1e-8)
    )
    units = scaler.units(found.x)
    close(units.loc, io["loc"])
    close(units.scale, io["scale"])
    np.testing.assert_array_equal(units.binary, io.get("binary", np.zeros_like(units.binary)))
    close(scaler.scaled(found.x, units), io["scaled"])
    q = io["pred"][io["target_mask"]].swapaxes(1, 2)  # (V, H, Q)
    summed = calibration.summed(q, found.latest)
    made = np.where(found.summed[:, None, None], summed, calibration.calibrated(q))
    close(made, io[f"q_h{H}_{way}_f64"].swapaxes(1, 2))


@pytest.mark.parametrize("name", "abc")
def test_resampling(name):
    """The rate, the series at that rate, and a forecast brought back, which were recorded in single precision."""
    io = np.load(DATA / "tirex1" / "resample.npz")
    x = io[f"{name}_x"].astype(np.float64)
    factor = resampling.factor(x, 200)
    assert factor == io[f"{name}_factor"]
    close(resampling.downsampled(x, factor)[None], io[f"{name}_resampled"][None], 2e-6)
    forecast = io[f"{name}_fc"].T.astype(np.float64)
    assert resampling.steps(200, factor) == len(forecast)
    close(resampling.upsampled(forecast, factor, 200).T, io[f"{name}_fc_up"][:, :200], SINGLE)


def model(folder, dtype="float64"):
    return tirex.load(folder, backend="numpy", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", "abc")
def test_forecasts_of_tirex_1(name, dtype):
    """Every horizon, and every number of patches at once."""
    _, io = golden(ONES[name])
    own, params = model(ONES[name], dtype)
    for key in (key for key in io if key.startswith("q_h") and key.endswith(f"_{dtype[0]}{dtype[-2:]}")):
        horizon, _, rollout = key[3:-4].partition("_r")
        found = own.forecast(params, series(io), int(horizon), rollout=int(rollout or 1))
        close(found.quantiles, io[key], EXACT if dtype == "float64" else SINGLE)
        np.testing.assert_array_equal(found.mean, found.quantiles[..., found.levels.index(0.5)])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", "abc")
@pytest.mark.filterwarnings("ignore::xlstm.models.HorizonWarning")
def test_forecasts_of_tirex_2(name, dtype):
    """Every horizon, every option, with items of several targets and with covariates."""
    _, io = golden(TWOS[name])
    own, params = model(TWOS[name], dtype)
    ways = {
        "plain": {"sign_flip": False, "differencing": False},
        "flip": {"sign_flip": True, "differencing": False},
        "diff": {"sign_flip": False, "differencing": True},
        "flipdiff": {"sign_flip": True, "differencing": True},
        "nopad": {"pad_context": False},
    }
    given = items(io)
    past = [item.past if len(item.past) else None for item in given]
    future = [item.future if len(item.future) else None for item in given]
    keys = [key for key in io if key.startswith("q_h") and key.endswith(f"_{dtype[0]}{dtype[-2:]}")]
    assert len(keys) > 6
    for key in keys:
        horizon, _, way = key[3:-4].partition("_")
        H = min(int(horizon), own.horizon)  # the published package goes no further
        found = own.forecast(params, [i.target for i in given], H, past=past, future=future, **ways.get(way, {}))
        rows = np.concatenate(found.quantiles).swapaxes(1, 2)
        close(rows, io[key], EXACT if dtype == "float64" else SINGLE)
