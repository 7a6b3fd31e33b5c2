"""Series at equal steps of time: read from files with or without dates, bundled, or synthetic."""

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
SHORTEST_SEASON = 4.0  # fewest steps in a period of a synthetic series
HARMONICS = 3  # of a season of a synthetic series
LONGEST_GAP = 0.1  # share of a synthetic series


@dataclass(frozen=True)
class Series:
    """Values at equal steps of time.

    Attributes
    ----------
    name : str
        The column's name.
    values : float64 array (N,)
        The values; NaN is a gap.
    index : array (N,)
        The date of each row, or another label, or the row's number if the file has no labels.
    calendar : Calendar or None
        The steps of the dates; its `offset` is an offset of pandas. None without dates.
    note : str
        Changes made to the rows, in words; empty if there are none.
    """

    name: str
    values: Values
    index: Host
    calendar: Calendar | None = None
    note: str = ""

    @cached_property
    def labels(self) -> list[str]:
        """The index as text, one entry for each row."""
        return [*map(str, self.index)]

    @property
    def step(self) -> str:
        """The name of the time from one row to the next, such as "month"; "step" if it has none."""
        return "step" if self.calendar is None else self.calendar.step

    @property
    def gaps(self) -> int:
        """The number of rows without a value."""
        return int(np.count_nonzero(np.isnan(self.values)))

    def after(self, steps: int) -> list[str]:
        """Return the labels of the next `steps` rows after the last one, in their time zone."""
        if self.calendar is None:
            return [f"+{k}" for k in range(1, steps + 1)]
        dates = self.calendar.following(steps)
        if self.calendar.zone is None:
            return [*map(str, dates.to_numpy().astype(self.index.dtype))]
        return [date.isoformat() for date in dates]


def bundled(name: str) -> Path:
    """Return the path of a bundled CSV file.

    Parameters
    ----------
    name : {"sunspots", "co2"}
        "sunspots": monthly numbers, 1749-1983; "co2": weekly CO2, 1958-2001.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        No bundled series has this name.
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

    A CSV file has a header, and commas, semicolons, tabs or bars separate its cells. Dates are in
    ISO 8601 or in the format `date_format`, and others are refused; dates with a time zone are
    converted to UTC. If the dates skip steps, the missing rows become gaps. Weekends are no gaps if
    no row falls on a weekend. An empty cell is a gap. Gaps at both ends are dropped.

    Parameters
    ----------
    path : path
    column : str, optional
        The name of the column. You can leave it out if only one column holds numbers.
    usual : str, optional
        The column to use if `column` is not given and several columns, this one included, hold
        numbers.
    date_format : str, optional
        The format of dates, such as "%d/%m/%Y", as for `datetime.datetime.strptime`.
    decimal : {".", ","}, optional
        The decimal sign. By default it is a point; if semicolons separate cells, also a comma.
    encoding : {"utf-8", "utf-16", "latin-1", "cp1252"}
        The encoding of the file.

    Returns
    -------
    Series

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is empty or malformed, the column is unknown or ambiguous, a cell is not a finite
        number, dates do not rise or are irregular, or a gap is too long. The error names file, row
        and column.
    TypeError
        `path` is not a path, or `column` is not a text.
    ImportError
        The file has dates, and pandas is not installed.
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
    """Return the only column that holds numbers, or among several the usual one.

    It raises ValueError if that is not clear.
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
    """Return one column of a table as a series, with a calendar if it has dates; `line` names a row
    in errors.
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
    if calendar.zone is None:  # years and months keep their unit
        dates = dates.astype(index.dtype)
    return Series(name, full, calendars.coarsest(dates), calendar, note)


def synthetic(rng: np.random.Generator, count: int, length: int) -> Values:
    """Draw random series with trends, seasons, random walks, jumps and noise.

    Parameters
    ----------
    rng : numpy.random.Generator
    count, length : int

    Returns
    -------
    array (count, length)
        The series. Their scales lie between 0.001 and 1000, and their levels reach ten times the
        scale. A tenth of them have a gap, filled with NaN.
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
        x *= 1 + rng.uniform(0, 1.5) * t / n  # seasons with growing amplitude
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
    """Return a periodic series around 0, with harmonics."""
    longest = max(SHORTEST_SEASON + 1, len(t) / 3)
    angle = 2 * np.pi * t / np.exp(rng.uniform(np.log(SHORTEST_SEASON), np.log(longest)))
    count = int(rng.integers(1, HARMONICS + 1))
    waves = [np.sin(k * angle + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 1 + count)]
    return np.asarray(np.sum(waves, axis=0))
