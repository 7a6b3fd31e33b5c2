"""Real series to forecast, yearly to hourly, which Python packages bring as files; no series has
settings of its own.

A few constants that hold for all of them, such as the rate at which errors are forgotten, were
chosen with these series in view.

The packages are pydataset (the series of R), sktime, vega_datasets and bokeh_sampledata. They are
not imported, since some print, or make folders; their files are read. Series of statsmodels are
kept apart for a final check.
"""

from __future__ import annotations

import importlib.util
import itertools
import tarfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from xlstm.data.series import bundled, read_csv

# By frequency: steps of a season, and how many steps ahead a forecast goes at most.
SEASONS = {"yearly": 1, "quarterly": 4, "monthly": 12, "weekly": 52, "daily": 7, "hourly": 24}
HORIZONS = {"yearly": 6, "quarterly": 8, "monthly": 18, "weekly": 13, "daily": 14, "hourly": 48}
LONGEST = 2000  # values that are taken of a series, the last ones; the peers take minutes for more


class Series(NamedTuple):
    """A series, and how far ahead it is forecast."""

    name: str
    frequency: str
    values: np.ndarray

    @property
    def season(self) -> int:
        return SEASONS[self.frequency]

    @property
    def horizon(self) -> int:
        return min(HORIZONS[self.frequency], len(self.values) // 8)


def folder(package: str) -> Path:
    """Return the folder of an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"{package} is not installed, but series are read from it: nox -s forecasts installs it"
        )
    return Path(spec.origin).parent


def of_r() -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the series of R and of its packages."""
    columns = {
        "yearly": (
            "datasets/discoveries datasets/LakeHuron datasets/lynx datasets/nhtemp datasets/Nile "
            "datasets/sunspot.year datasets/treering"
        ),
        "quarterly": "datasets/austres datasets/JohnsonJohnson datasets/presidents datasets/UKgas",
        "monthly": (
            "datasets/AirPassengers datasets/nottem datasets/UKDriverDeaths datasets/USAccDeaths"
            " datasets/co2 datasets/sunspot.month MASS/deaths boot/manaus"
        ),
    }
    with tarfile.open(folder("pydataset") / "resources.tar.gz") as archive:
        members = {member.name.partition("csv/")[2]: member for member in archive.getmembers()}
        for frequency, paths in columns.items():
            for path in paths.split():
                name = path.partition("/")[2]
                yield (
                    name,
                    frequency,
                    pd.read_csv(archive.extractfile(members[f"{path}.csv"]))[name],
                )


def of_tables() -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield series that are columns of CSV files."""
    vega = folder("vega_datasets") / "_data"
    bokeh = folder("bokeh_sampledata") / "_data"
    sktime = folder("sktime") / "datasets" / "data"
    for path, frequency, columns in (
        (
            sktime / "Uschange/Uschange.csv",
            "quarterly",
            ("Consumption", "Income", "Production", "Savings"),
        ),
        (sktime / "PBS_dataset/PBS_dataset.csv", "monthly", ("Scripts",)),
        (sktime / "ShampooSales/ShampooSales.csv", "monthly", ("Sales",)),
        (vega / "us-employment.csv", "monthly", ("construction", "manufacturing", "retail_trade")),
        (vega / "seattle-weather.csv", "daily", ("temp_max", "wind")),
        (vega / "seattle-temps.csv", "hourly", ("temp",)),
        (vega / "sf-temps.csv", "hourly", ("temp",)),
        (bokeh / "us_marriages_divorces.csv", "yearly", ("Marriages", "Divorces")),
        (bokeh / "lincoln_weather.csv", "daily", ("TMAX",)),
    ):
        table = pd.read_csv(path)
        for column in columns:
            yield f"{path.stem} {column}", frequency, table[column]
    months = pd.read_csv(bokeh / "unemployment1948.csv").iloc[:, 2:14]
    yield "unemployment", "monthly", months.to_numpy(float).reshape(-1)
    # it has a value each half hour
    sea = pd.read_csv(bokeh / "sea_surface_temperature.csv.gz").iloc[::2, 1]
    yield "sea_surface_temperature", "hourly", sea


def bundled_here() -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the weekly series of xlstm, which defaults have seen; the packages have none."""
    yield "co2 weekly", "weekly", read_csv(bundled("co2")).values


def of_statsmodels() -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield series of statsmodels, which nothing was chosen by: they are for a final check."""
    data = folder("statsmodels") / "datasets"
    for name, frequency, columns in (
        (
            "macrodata",
            "quarterly",
            ("realgdp", "realcons", "realinv", "cpi", "m1", "tbilrate", "unemp", "infl"),
        ),
        ("interest_inflation", "quarterly", ("Dp", "R")),
        ("danish_data", "quarterly", ("lrm", "ibo")),
        ("copper", "yearly", ("WORLDCONSUMPTION", "COPPERPRICE")),
    ):
        table = import_module(f"statsmodels.datasets.{name}").load_pandas().data
        for column in columns:
            yield f"{name} {column}", frequency, table[column]
    months = pd.read_csv(data / "elnino/elnino.csv").iloc[:, 1:]
    yield "elnino", "monthly", months.to_numpy(float).reshape(-1)


def load(*, final: bool = False) -> list[Series]:
    """Return all series, or those of the final check; gaps within one are bridged by straight
    lines.

    Some peers take no gaps.
    """
    series = []
    sources = (of_statsmodels(),) if final else (of_r(), of_tables(), bundled_here())
    for name, frequency, values in itertools.chain(*sources):
        whole = pd.Series(np.asarray(values, float)).interpolate(limit_area="inside").dropna()
        series.append(Series(name, frequency, whole.to_numpy()[-LONGEST:]))
    return series
