"""Tables in files: CSV and Parquet."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import calendars, dates, writing
from xlstm.data.frames import Columns, groups, numeric, table_of
from xlstm.data.host import Values
from xlstm.data.series import Series, column_numbers, read_csv, series_of
from xlstm.data.table import PLAIN, Dialect, Table, check_names

# Few bytes of Parquet can hold any number of cells: so many are taken, and so many more for each byte of the file.
CELLS = 1 << 22, 32
LENGTH = 16  # bytes of text that are taken, for each cell that is


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    day_first: bool | None = None,
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
    day_first, decimal, encoding : optional
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
    wanted = (
        None if columns is None else checks.several(str(path), "columns", columns, "a list of names", checks.LARGEST)
    )
    dialect = Dialect(day_first, decimal, encoding)
    return _parquet(Path(path), wanted) if is_parquet(path) else _csv(Path(path), wanted, dialect)


def read_groups(
    path: str | os.PathLike[str],
    column: str | None = None,
    columns: Sequence[str] | None = None,
    dialect: Dialect = PLAIN,
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
    where = str(path)
    if is_parquet(path):
        table = _opened(Path(path), lambda names, dated: names)[2]
        parts = {"": table} if column is None else groups(where, table, column)
        wanted = [name for name in numeric(where, table) if name != column] if columns is None else columns
        return {str(name): table_of(where, part, wanted) for name, part in parts.items()}
    read = _Read(Path(path), dialect)
    found = read.numbers([name for name in read.numeric if name != column] if columns is None else columns)
    if column is None:
        return {"": read.columns(*found)}
    return {name: read.columns(*found, rows) for name, rows in by_name(read_names(path, column, dialect)).items()}


def by_name(names: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the rows that have each name (N,), in the order in which the names come first."""
    found, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    return {str(found[k]): rows[k] for k in np.argsort(first)}


def read_series(
    path: str | os.PathLike[str],
    column: str | None = None,
    usual: str | None = None,
    *,
    day_first: bool | None = None,
    decimal: str | None = None,
    encoding: str = "utf-8",
) -> Series:
    """Read one column of a CSV or Parquet file as a series, as `xlstm.series.read_csv` does.

    Parameters
    ----------
    path : path
    column : str, optional
        Name of the column; not needed if only one holds numbers.
    usual : str, optional
        Taken if no column is named, several hold numbers, and this is one of them.
    day_first, decimal, encoding : optional
        As for `xlstm.series.read_csv`; a Parquet file needs none of them.

    Returns
    -------
    Series

    Raises
    ------
    OSError, TypeError, ValueError, ImportError
        As for `read_csv` and `read_table`.
    """
    if not is_parquet(path):
        return read_csv(path, column, usual, day_first=day_first, decimal=decimal, encoding=encoding)
    found = read_groups(path)[""] if column is None else read_table(path, [column])
    if len(found.names) > 1 and usual not in found.names:
        names = checks.few(found.names)
        raise ValueError(f"{path}: several columns hold numbers, choose one of {names} with --column")
    name = found.names[0] if usual not in found.names else str(usual)
    text = None
    if found.index is not None and found.index.dtype.kind == "M":
        shown, _ = calendars.local(found.index, found.zone)
        text = np.datetime_as_string(calendars.coarsest(shown)).astype(np.dtypes.StringDType())
    values = found.values[:, found.names.index(name)]
    return series_of(f"{path}: column {name}", name, values, text, lambda row: f"{path}: row {row + 1}")


def read_header(path: str | os.PathLike[str], dialect: Dialect = PLAIN) -> tuple[list[str], list[str]]:
    """Return the names of all columns of a CSV or Parquet file, and of those that hold dates.

    Raises
    ------
    OSError, ValueError, ImportError
        As for `read_table`.
    """
    if is_parquet(path):
        names, dated, _ = _opened(Path(path), lambda names, dated: [])
        return names, dated
    table = Table(path, dialect)
    dates.check_header(table)
    cells = zip(*table.sample, strict=True) if table.sample else [()] * len(table.header)
    found = {name: column for name, column in zip(table.header, cells, strict=True) if column}
    return table.header, [name for name, column in found.items() if all(map(dates.is_date, column))]


def read_numbers(path: str | os.PathLike[str], columns: Sequence[str], dialect: Dialect = PLAIN) -> Values:
    """Read columns of numbers as `read_table` does, but without a look at dates.

    Parameters
    ----------
    path : path
    columns : list of str
    dialect : Dialect
        How a CSV file is written.

    Returns
    -------
    array (N, C)
        NaN where a cell is empty.

    Raises
    ------
    OSError, TypeError, ValueError, ImportError
        As for `read_table`.
    """
    if is_parquet(path):
        chosen = _opened(Path(path), lambda names, dated: [names[k] for k in _places(path, columns, names)])[2]
        return table_of(str(path), chosen).values
    table = Table(path, dialect)
    places = _places(path, columns, table.header)
    if table.rows == 0:
        raise ValueError(f"{path}: 0 rows under the header, expected some")
    return column_numbers(table, places)


def read_names(path: str | os.PathLike[str], column: str, dialect: Dialect = PLAIN) -> np.ndarray[Any, Any]:
    """Read a column of names, such as labels of classes.

    Parameters
    ----------
    path : path
        As for `read_table`.
    column : str
    dialect : Dialect
        How a CSV file is written.

    Returns
    -------
    array (N,) of str
        Numbers are written out.

    Raises
    ------
    OSError, TypeError, ValueError, ImportError
        As for `read_table`, or a cell is empty; names file, column and row.
    """
    if is_parquet(path):
        _, _, table = _opened(Path(path), lambda names, dated: [names[_places(path, [column], names)[0]]])
        cells = ["" if cell is None else str(cell) for cell in table.column(column).to_pylist()]
    else:
        read = Table(path, dialect)
        cells = [str(cell) for cell in read.text(*_places(path, [column], read.header))]
    if not cells:
        raise ValueError(f"{path}: 0 rows, expected some")
    if "" in cells:
        raise ValueError(f"{path}: column {checks.shown(column)} is empty in row {cells.index('') + 1}")
    return np.array(cells)


def check_table(path: str | os.PathLike[str]) -> None:
    """Raise unless a table can be written to a path: ValueError, ImportError or OSError."""
    if is_parquet(path):
        _pyarrow(Path(path))
    elif Path(path).suffix.lower() != ".csv":
        raise ValueError(f"{path}: ends in {Path(path).suffix!r}, expected .csv or .parquet")
    writing.check(path)


def write_table(path: str | os.PathLike[str], columns: Mapping[str, Sequence[Any]]) -> None:
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
    pyarrow, parquet = _pyarrow(Path(path))
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


def is_parquet(path: str | os.PathLike[str]) -> bool:
    """Return whether the name of a file is that of a Parquet file."""
    return Path(path).suffix.lower() == ".parquet"


def _places(path: str | os.PathLike[str], columns: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the places of columns, each of which has to be in the header once."""
    counts, places = Counter(names), {name: k for k, name in enumerate(names)}
    for name in columns:
        if counts[name] != 1:
            problem = "is more than once in" if counts[name] else "is not in"
            raise ValueError(f"{path}: column {checks.shown(name)} {problem} the header, which has {checks.few(names)}")
    return [places[name] for name in columns]


class _Read:
    """A CSV file with its column of dates."""

    def __init__(self, path: Path, dialect: Dialect) -> None:
        self.path, self.table = path, Table(path, dialect)
        dates.check_header(self.table)
        self.date = dates.column(self.table) if self.table.rows else None
        self.label = None if self.date is None else self.table.header[self.date]
        self.text = None if self.date is None else dates.text(self.table, self.date)

    @property
    def numeric(self) -> list[str]:
        """The columns that hold numbers, but no dates."""
        pairs = zip(self.table.header, self.table.numeric, strict=True)
        return [name for name, holds in pairs if holds and name != self.label]

    def numbers(self, names: Sequence[str]) -> tuple[list[str], Values]:
        """Return the names of columns of numbers, and the numbers (N, C); dates are left out."""
        wanted = [name for name in names if name != self.label]
        if self.table.rows == 0 or not wanted:
            some = f"{self.table.rows} rows under the header and {len(wanted)} columns of numbers"
            raise ValueError(f"{self.path}: {some}, expected some")
        return wanted, column_numbers(self.table, _places(self.path, wanted, self.table.header))

    def columns(self, names: list[str], numbers: Values, rows: Any = slice(None)) -> Columns:
        """Return some rows of columns of numbers, with their dates."""
        values = numbers[rows]
        if self.text is None:
            return Columns(names, values)
        text, numbered = self.text[rows], np.arange(self.table.rows)[rows]
        found = dates.read(text, lambda row: self.table.line(int(numbered[row])))
        return Columns(names, values, text if found is None else found, self.label)


def _csv(path: Path, wanted: list[str] | None, dialect: Dialect) -> Columns:
    read = _Read(path, dialect)
    return read.columns(*read.numbers(read.table.header if wanted is None else wanted))


def _parquet(path: Path, wanted: list[str] | None) -> Columns:
    def choose(names: list[str], dated: list[str]) -> list[str]:
        chosen = names if wanted is None else wanted
        for name in chosen:
            if name not in names:
                raise ValueError(
                    f"{path}: column {checks.shown(name)} is not in the file, which has {checks.few(names)}"
                )
        return [*chosen, *(dated if len(dated) == 1 and dated[0] not in chosen else [])]

    return table_of(str(path), _opened(path, choose)[2])


def _opened(path: Path, choose: Callable[[list[str], list[str]], list[str]]) -> tuple[list[str], list[str], Any]:
    """Return the names of all columns of a Parquet file, those of dates, and the columns that are chosen by them."""
    pyarrow, parquet = _pyarrow(path)
    with path.open("rb") as file:
        try:
            fields, kinds = parquet.read_schema(file), pyarrow.types
            dated = [f.name for f in fields if kinds.is_date(f.type) or kinds.is_timestamp(f.type)]
            names = fields.names
            check_names(path, names)
            stored = {f.name: f.type.value_type if kinds.is_dictionary(f.type) else f.type for f in fields}
            some = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
            texts = {name for name, kind in stored.items() if any(is_kind(kind) for is_kind in some)}
            found = parquet.ParquetFile(file, read_dictionary=[*texts])  # equal texts take memory once
            chosen, size = choose(names, dated), os.fstat(file.fileno()).st_size
            cells, most = len(chosen) * found.metadata.num_rows, CELLS[0] + CELLS[1] * size
            if nested := tuple(f"{name}." for name in chosen if kinds.is_nested(fields.field(name).type)):
                leaves = (found.metadata.row_group(g) for g in range(found.num_row_groups))
                leaves = (group.column(k) for group in leaves for k in range(group.num_columns))
                cells += sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.startswith(nested))
            if cells > most:
                raise ValueError(f"{path}: has {cells} cells in {size} bytes, expected at most {most}; take fewer rows")
            table = found.read(chosen)
            table.validate(full=True)
            for name in texts.intersection(table.column_names):
                length = sum(map(_length, table[name].chunks))
                if length > LENGTH * most:
                    column = f"column {checks.shown(name)} has {length} bytes of text"
                    raise ValueError(f"{path}: {column}, expected at most {LENGTH * most}; take fewer rows")
            table = table.cast(pyarrow.schema(map(fields.field, table.column_names), table.schema.metadata))
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # of damaged files they are all three
            raise ValueError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error
    return names, dated, table


def _length(texts: Any) -> int:
    """Return the bytes of all texts of a dictionary array together."""
    from pyarrow import compute

    lengths = compute.cast(compute.binary_length(texts.dictionary), "int64")
    return compute.sum(lengths.take(texts.indices), min_count=0).as_py() or 0


def _pyarrow(path: Path) -> tuple[Any, Any]:
    """Return the packages that read and write Parquet files."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: Parquet files need PyArrow and narwhals; pip install pyarrow narwhals") from error
    return pyarrow, parquet
