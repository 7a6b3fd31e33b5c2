"""Tables in files, CSV and Parquet: columns of numbers and of names, and the dates of rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars, parquet_file, writing
from xlstm.data.csv_file import PLAIN, CsvFile, Dialect
from xlstm.data.frames import Columns, grouped
from xlstm.data.parquet_file import ParquetFile, is_parquet
from xlstm.data.writing import AnyPath

Names = np.ndarray[Any, Any]


def opened(path: AnyPath, dialect: Dialect = PLAIN) -> CsvFile | ParquetFile:
    """Open a file by its name, which ends with ".parquet" for a Parquet file."""
    if not is_parquet(path):
        return CsvFile(path, dialect)
    if dialect != PLAIN:
        raise ValueError(f"{path}: is a Parquet file; date_format, decimal and encoding go with a CSV file")
    return ParquetFile(path)


def read_table(
    path: AnyPath,
    columns: Sequence[str] | None = None,
    *,
    date_format: str | None = None,
    decimal: str | None = None,
    encoding: str = "utf-8",
) -> Columns:
    """Read columns of numbers from a CSV or a Parquet file.

    A CSV file is one as `xlstm.series.read_csv` takes it: with a header, and commas, semicolons, tabs or bars between
    cells. A column of dates gives the labels of the rows. The rows stay as they are in the file.

    Parameters
    ----------
    path : path
        Its name ends with ".parquet" for a Parquet file, and with anything else for a CSV file.
    columns : list of str, optional
        Names of the columns, in the order in which they are wanted; by default all but the dates. Dates are
        labels of the rows whether they are named or not.
    date_format, decimal, encoding : optional
        As for `xlstm.series.read_csv`; a Parquet file needs none of them.

    Returns
    -------
    Columns

    Raises
    ------
    OSError
        The file cannot be read.
    TypeError, ValueError
        The file is malformed, a column is unknown or does not hold numbers, or dates do not rise.
    ImportError
        The packages for Parquet files, PyArrow and narwhals, are not installed.
    """
    if columns is not None:
        columns = checks.several(str(path), "columns", columns, "a list of names", checks.LARGEST)
    file = opened(path, Dialect(date_format, decimal, encoding))
    return _rising(file, file.columns(file.names if columns is None else columns))


def read_groups(
    path: AnyPath, column: str | None = None, columns: Sequence[str] | None = None, dialect: Dialect = PLAIN
) -> dict[str, Columns]:
    """Read a table of several series below each other, as `read_table` does, by the names in a column.

    Parameters
    ----------
    path : path
    column : str, optional
        The column that tells series apart; by default the table is one series, named "".
    columns : list of str, optional
        Names of columns of numbers; by default all that hold some, but dates and the names. Text is left out.
    dialect : Dialect
        How a CSV file is written.

    Returns
    -------
    dict of str to Columns
        In the order in which the names come first. The dates of each have to rise.

    Raises
    ------
    OSError, TypeError, ValueError, ImportError
        As for `read_table`, or a name is missing.
    """
    file = opened(path, dialect)
    found = file.columns([name for name in file.numeric if name != column] if columns is None else columns)
    if column is None:
        return {"": _rising(file, found)}
    return {name: _rising(file, found, rows) for name, rows in grouped(names_in(file, column)).items()}


def names_in(file: CsvFile | ParquetFile, column: str) -> Names:
    """Return a column of names, such as labels of classes, (N,); numbers are written out.

    A cell that is empty is a ValueError that names file, column and row.
    """
    cells = file.texts(column)
    if "" in cells:
        raise ValueError(f"{file.path}: column {checks.shown(column)} is empty in row {cells.index('') + 1}")
    return np.array(cells, object)


def check_table(path: AnyPath) -> None:
    """Raise unless a table can be written to a path: ValueError, ImportError or OSError."""
    if is_parquet(path):
        parquet_file.packages(Path(path))
    elif Path(path).suffix.lower() != ".csv":
        raise ValueError(f"{path}: ends in {Path(path).suffix!r}, expected .csv or .parquet")
    writing.check(path)


def write_table(path: AnyPath, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write a table to a CSV or Parquet file, whole or not at all.

    Parameters
    ----------
    path : path
        Its name ends in ".csv" or ".parquet".
    columns : dict of str to list
        Text or numbers, as many in each column.

    Raises
    ------
    ValueError, ImportError, OSError
        As for `check_table`.
    """
    check_table(path)
    if not is_parquet(path):
        writing.write(path, as_csv(columns).encode())
        return
    pyarrow, parquet = parquet_file.packages(Path(path))
    with writing.whole(path) as temporary:
        parquet.write_table(pyarrow.table({name: list(cells) for name, cells in columns.items()}), temporary)


def as_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table as the text of a CSV file; numbers have nine digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row])
    return text.getvalue()


def _rising(file: CsvFile | ParquetFile, columns: Columns, rows: Any = None) -> Columns:
    """Return some rows, by default all; ValueError where their dates do not rise."""
    part = columns if rows is None else columns.take(rows)
    if part.index is not None and part.index.dtype.kind == "M":
        calendars.check_rising(part.index, lambda row: file.line(row if rows is None else int(rows[row])))
    return part
