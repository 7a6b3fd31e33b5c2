"""TiRex: everything from series to tokens, and from the network's output to forecasts."""

import json

import numpy as np
import pytest

from tests.conftest import DATA
from xlstm.models.tirex import calibration, resampling, trends, windows
from xlstm.models.tirex.rows import Item, rows
from xlstm.models.tirex.scaling import RobustScaler, StandardScaler

ONES = {name: DATA / "tirex1" / name for name in "abc"}
TWOS = {name: DATA / "tirex2" / name for name in "abc"}
EXACT = 1e-10  # of a row's largest value


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
    close(resampling.upsampled(forecast, factor, 200).T, io[f"{name}_fc_up"][:, :200], 1e-6)
