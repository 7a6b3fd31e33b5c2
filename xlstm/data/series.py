"""Series at equal steps of time: columns of files, dated where these have dates, the bundled ones,
synthetic ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.checks import few
from xlstm.data import calendars
from xlstm.data.calendars import Calendar, Line
from xlstm.data.csv_file import CsvFile, Dialect
from xlstm.data.frames import Columns
from xlstm.data.host import Host, Values
from xlstm.data.table import ParquetFile, opened
from xlstm.data.writing import AnyPath

DATASETS = ("sunspots", "co2")
SHORTEST_SEASON = 4.0  # steps of a period of a synthetic series
HARMONICS = 3  # of a season
LONGEST_GAP = 0.1  # as a share of the series


@dataclass(frozen=True)
class Series:
    """Values at equal steps of time.

    Attributes
    ----------
    name : str
        The column's name.
    values : float64 array (N,)
        NaN where there is a gap.
    index : array (N,)
        The date of each row, another label, or its number where the file has none.
    calendar : Calendar or None
        The steps of the dates, of which `offset` is one of pandas; None without dates.
    note : str
        Changes to the rows in words; empty if there are none.
    """

    name: str
    values: Values
    index: Host
    calendar: Calendar | None = None
    note: str = ""

    @cached_property
    def labels(self) -> list[str]:
        """The index as text."""
        return [*map(str, self.index)]

    @property
    def step(self) -> str:
        """The time from one row to the next, such as "month"; "step" where that has no name."""
        return "step" if self.calendar is None else self.calendar.step

    @property
    def gaps(self) -> int:
        """The number of rows without a value."""
        return int(np.count_nonzero(np.isnan(self.values)))

    def after(self, steps: int) -> list[str]:
        """Return the labels of the `steps` rows that would come after the last one, in their time
        zone.
        """
        if self.calendar is None:
            return [f"+{k}" for k in range(1, steps + 1)]
        dates = self.calendar.following(steps)
        if self.calendar.zone is None:
            return [*map(str, dates.to_numpy().astype(self.index.dtype))]
        return [date.isoformat() for date in dates]


def bundled(name: str) -> Path:
    """Return the path of a CSV file of the package.

    Parameters
    ----------
    name : {"sunspots", "co2"}
        Monthly sunspots, 1749-1983, or weekly CO2, 1958-2001.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        There is no such series.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset: {name!r} is unknown, expected one of {', '.join(DATASETS)}")
    return Path(__file__).parent / "datasets" / f"{name}.csv"


def read_csv(
    path: AnyPath,
    column: str | None = None,
    usual: str | None = None,
    *,
    date_format: str | None = None,
    decimal: str | None = None,
    encoding: str = "utf-8",
) -> Series:
    """Read one column of a CSV or Parquet file as a series.

    The file has a header, and commas, semicolons, tabs or bars between cells. Dates are in ISO
    8601, or in the format `date_format`; those with a zone become those of UTC. Rows that are
    missing from the steps of the dates become gaps, weekends excepted where no row falls on one.
    An empty cell is a gap; gaps at both ends are dropped.

    Parameters
    ----------
    path : path
    column : str, optional
        Name of the column; not needed if only one holds numbers.
    usual : str, optional
        Taken if no column is named, several hold numbers, and this is one of them.
    date_format : str, optional
        The format of dates, such as "%d/%m/%Y", as `datetime.datetime.strptime` takes it.
    decimal : {".", ","}, optional
        The decimal sign; by default a point, and a comma, too, where semicolons stand between
        cells.
    encoding : {"utf-8", "utf-16", "latin-1", "cp1252"}
        How letters are stored.

    Returns
    -------
    Series

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is empty or malformed, the column is unknown or could be several, a cell is not a
        finite number, dates do not rise or are irregular, or a gap is too long. Names file, row
        and column.
    TypeError
        `path` is no path, or `column` no text.
    ImportError
        There are dates, and pandas is not installed.
    """
    file = opened(path, Dialect(date_format, decimal, encoding))
    if column is None:
        column = only_column(file, file.numeric, usual)
    name = checks.text(str(path), "column", column)
    columns = file.columns([name])
    places = np.flatnonzero(~np.isnan(columns.values[:, 0]))
    if places.size == 0:
        raise ValueError(f"{file.path}: column {name} has no numbers")
    begin = places[0]
    columns = columns.take(slice(begin, places[-1] + 1))
    return series_of(name, columns, line=lambda row: file.line(begin + row))


def only_column(
    file: CsvFile | ParquetFile, numeric: Sequence[str], usual: str | None = None
) -> str:
    """Return the one column that holds numbers, or of several the usual one; ValueError if that is
    not clear.
    """
    if file.rows < 2:
        raise ValueError(f"{file.path}: {file.rows} rows under the header, expected a series")
    if not numeric:
        raise ValueError(f"{file.path}: no column holds numbers; the header has {few(file.names)}")
    names = numeric if len(numeric) == 1 else [name for name in numeric if name == usual]
    if len(names) != 1:
        raise ValueError(
            f"{file.path}: several columns hold numbers, choose one of {few(numeric)} with --column"
        )
    return names[0]


def series_of(
    name: str, columns: Columns, calendar: Calendar | None = None, line: Line | None = None
) -> Series:
    """Return one column of a table as a series, with the calendar of its dates where that is made;
    `line` names a row, for errors.
    """
    values = columns.numbers(name, [name])[:, 0]
    index = columns.index
    if index is None:
        return Series(name, values, np.arange(1, len(values) + 1))
    if columns.dates is None:
        numbered = any(str(label).isdigit() for label in index)
        note = "no ISO 8601 dates, rows taken as equal steps; --date-format says another notation"
        return Series(name, values, index, note="" if numbered else note)
    if len(index) == 1:
        return Series(name, values, index, note="a single date, which has no step")
    if calendar is None:
        calendar = calendars.calendar_of(name, index, columns.zone, line=line)
    full = calendar.placed(values[:, None])[:, 0]
    missing = len(full) - len(values)
    note = f"{missing} rows missing from the file" if missing else ""
    dates = calendars.on_clocks(calendar.dates)
    if calendar.zone is None:  # years and months stay what they are
        dates = dates.astype(index.dtype)
    return Series(name, full, calendars.coarsest(dates), calendar, note)


def synthetic(rng: np.random.Generator, count: int, length: int) -> Values:
    """Draw series.

    Parameters
    ----------
    rng : numpy.random.Generator
    count, length : int

    Returns
    -------
    array (count, length)
        Their sizes are between 0.001 and 1000, and their levels up to ten times that. A tenth have
        a gap, of NaN.
    """
    return np.stack([_one(rng, length) for _ in range(count)])


def _one(rng: np.random.Generator, n: int) -> Values:
    t = np.arange(n, dtype=np.float64)
    x: Values = np.zeros(n)
    if rng.random() < 0.5:
        x += rng.normal(scale=2.0) * t / n
    for _ in range(rng.integers(0, 3)):
        x += rng.lognormal(-0.5, 0.7) * _season(rng, t)
    if rng.random() < 0.2:
        x *= 1 + rng.uniform(0, 1.5) * t / n  # seasons that grow
    if rng.random() < 0.4:
        x += rng.lognormal(-0.5, 0.7) * np.cumsum(rng.normal(size=n)) / np.sqrt(n)
    if rng.random() < 0.25:
        for at in rng.integers(0, n, rng.integers(1, 4)):
            x[at:] += rng.normal()
    x += np.exp(rng.uniform(-4.0, 0.0)) * rng.normal(size=n)
    x = float(10.0 ** rng.uniform(-3, 3)) * (x + rng.uniform(-10, 10))
    if rng.random() < 0.1:
        start = rng.integers(0, n)
        x[start : start + rng.integers(1, max(2, int(LONGEST_GAP * n)))] = np.nan
    return x


def _season(rng: np.random.Generator, t: Values) -> Values:
    """Return a periodic series about 0, with harmonics."""
    longest = max(SHORTEST_SEASON + 1, len(t) / 3)
    angle = 2 * np.pi * t / np.exp(rng.uniform(np.log(SHORTEST_SEASON), np.log(longest)))
    count = int(rng.integers(1, HARMONICS + 1))
    waves = [np.sin(k * angle + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 1 + count)]
    return np.asarray(np.sum(waves, axis=0))
