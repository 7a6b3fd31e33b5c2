"""Tables in CSV and Parquet files: columns of numbers and names, and the dates of rows."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks, optional_imports
from xlstm.data import calendars, frames, reading, writing
from xlstm.data.csv_file import PLAIN, CsvFile, Dialect, check_names
from xlstm.data.frames import Columns, Rows, grouped
from xlstm.data.host import Host, Values
from xlstm.data.writing import AnyPath

# A few bytes of Parquet can hold any number of cells. At most so many bytes of cells are read, and
# at most so many for each byte of the file.
UNPACKED = 1 << 26, 256


class ParquetFile:
    """A Parquet file whose columns are read on request; a damaged file raises ValueError.

    Attributes
    ----------
    names, numeric, dated : list of str
        The names of all columns, of columns of numbers, and of columns of dates.
    rows : int
    kinds : dict of str to pyarrow.DataType
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = Path(path)
        self._texts: list[str] = []
        with self._opened() as (file, kinds):
            fields = file.schema_arrow
            self.rows = file.metadata.num_rows
            check_names(path, fields.names)
            text = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
            number = (kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_boolean)
            self._texts, self.numeric, self.dated = (
                [field.name for field in fields if any(is_kind(field.type) for is_kind in those)]
                for those in (text, number, (kinds.is_date, kinds.is_timestamp))
            )
            self.names = fields.names
            self.kinds = {field.name: field.type for field in fields}

    def line(self, row: int) -> str:
        """Return the name of a row, for messages."""
        return f"{self.path}: row {row + 1}"

    def texts(self, name: str) -> Sequence[str]:
        """Return a column's cells as text, empty for missing cells; equal texts share memory."""
        column = self._table([name]).column(name)
        if column.type.num_fields:
            raise TypeError(
                f"{self.path}: column {checks.shown(name)} holds {column.type}, expected names"
            )
        cells = []
        for chunk in column.chunks:
            coded = chunk if hasattr(chunk, "dictionary") else chunk.dictionary_encode()
            words = ["" if word is None else str(word) for word in coded.dictionary.to_pylist()]
            cells += ["" if k is None else words[k] for k in coded.indices.to_pylist()]
        return cells

    def numbers(self, names: Sequence[str]) -> Values:
        """Return columns of numbers, (N, C), with NaN for missing cells."""
        return frames.table_of(str(self.path), self._table(names), names).values

    def columns(self, names: Sequence[str], texts: Sequence[str] = ()) -> Columns:
        """Return columns of numbers, with the named or the first column of dates as labels of rows.

        Columns in `texts` may be text.
        """
        dates = [name for name in self.dated if name in names] or self.dated[:1]
        wanted = [name for name in names if name not in dates]
        table = self._table([*wanted, *dates])
        return frames.table_of(str(self.path), table, wanted, texts=texts)

    def _table(self, names: Sequence[str]) -> Any:
        """Return some columns after a check of their size, computed from the rows and from the
        pages' own sizes.
        """
        frames.places_of(str(self.path), self.names, names, "the header")
        with self._opened() as (file, _):
            metadata = file.metadata
            wanted = {*names}
            size = 8 * metadata.num_rows * len(wanted)
            for group in map(metadata.row_group, range(metadata.num_row_groups)):
                for leaf in map(group.column, range(group.num_columns)):
                    if leaf.path_in_schema.partition(".")[0] in wanted:
                        size += leaf.total_uncompressed_size
            most = UNPACKED[0] + UNPACKED[1] * self._size
            if size > most:
                raise ValueError(
                    f"{self.path}: {checks.few(names)} holds {size} bytes in {self._size} of the"
                    f" file, expected at most {most}; take fewer rows"
                )
            table = file.read(names)
            table.validate(full=True)
            return table

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Open the file; if it is damaged, errors name it."""
        pyarrow, parquet = packages(self.path)
        with self.path.open("rb") as file:  # a missing file raises Python's errors
            self._size = os.fstat(file.fileno()).st_size
        try:
            # Threads of PyArrow would release a Python file object, and abort if Python exits at
            # that moment.
            with pyarrow.OSFile(os.fspath(self.path)) as native:
                yield parquet.ParquetFile(native, read_dictionary=self._texts), pyarrow.types
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            # Damaged files raise any of these three.
            raise ValueError(
                f"{self.path}: not a readable Parquet file ({' '.join(str(error).split())})"
            ) from error


def is_parquet(path: AnyPath) -> bool:
    """Return whether a file's name is that of a Parquet file."""
    return Path(path).suffix.lower() == ".parquet"


def packages(path: Path) -> tuple[Any, Any]:
    """Return the packages PyArrow and narwhals, which read and write Parquet files."""
    try:
        library = optional_imports.pyarrow()
    except ImportError as error:
        raise ImportError(
            f"{path}: Parquet files need PyArrow and narwhals; pip install pyarrow narwhals"
        ) from error
    return library, library.parquet


def opened(path: AnyPath, dialect: Dialect = PLAIN) -> CsvFile | ParquetFile:
    """Open a table's file: Parquet if its name ends with ".parquet", otherwise CSV."""
    path = checks.path("read", "path", path)
    reading.readable(path)
    if not is_parquet(path):
        return CsvFile(path, dialect)
    if dialect != PLAIN:
        raise ValueError(
            f"{path}: is a Parquet file; date_format, decimal and encoding go with a CSV file"
        )
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

    A CSV file has a header, and commas, semicolons, tabs or bars separate its cells, as in
    `xlstm.series.read_csv`. A column of dates becomes the labels of the rows. The rows stay as they
    are in the file.

    Parameters
    ----------
    path : path
        A Parquet file if its name ends with ".parquet", otherwise a CSV file. "-" is a CSV file on
        standard input.
    columns : list of str, optional
        Names of the columns, in the wanted order; by default all except the dates. Dates are always
        labels of the rows, even if you name their column.
    date_format, decimal, encoding : optional
        As for `xlstm.series.read_csv`; do not give them for a Parquet file.

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
        columns = checks.several(str(path), "columns", columns, "a list of names", checks.text)
    file = opened(path, Dialect(date_format, decimal, encoding))
    table = file.columns(file.names if columns is None else columns)
    if table.dates is not None:
        calendars.check_rising(table.dates, file.line, calendars.SEVERAL)
    return table


def rows_by(file: CsvFile | ParquetFile, column: str) -> dict[str, Rows]:
    """Return the rows of each series by the names in a column; names keep the order of their first
    rows.

    Without a column, all rows belong to one series, named "".
    """
    return grouped(names_in(file, column)) if column else {"": np.arange(file.rows)}


def names_in(file: CsvFile | ParquetFile, column: str) -> Host:
    """Return a column of names, such as class labels, (N,); numbers become text.

    If a cell is empty, a ValueError names file, column and row.
    """
    cells = file.texts(column)
    if "" in cells:
        raise ValueError(
            f"{file.path}: column {checks.shown(column)} is empty in row {cells.index('') + 1}"
        )
    return np.array(cells, object)


def check_table(path: AnyPath) -> None:
    """Raise ValueError, ImportError or OSError unless a table can be written to a path."""
    if is_parquet(path):
        packages(Path(path))
    elif Path(path).suffix.lower() != ".csv":
        raise ValueError(f"{path}: ends in {Path(path).suffix!r}, expected .csv or .parquet")
    writing.check(path)


def write_table(
    path: AnyPath, columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, Any] | None = None
) -> None:
    """Write a table to a CSV or Parquet file, completely or not at all.

    Parameters
    ----------
    path : path
        The file; its name ends in ".csv" or ".parquet".
    columns : dict of str to list
        Text, numbers or dates; all columns have the same length.
    kinds : dict of str to pyarrow.DataType, optional
        Types of columns of a Parquet file; by default the types of their values.

    Raises
    ------
    ValueError, ImportError, OSError
        The table cannot be written there; `check_table` raises the same errors in advance.
    """
    if not is_parquet(path):
        writing.write(path, as_csv(columns).encode())
        return
    pyarrow, parquet = packages(Path(path))
    with writing.whole(path) as temporary:
        arrays = {name: pyarrow.array(cells) for name, cells in columns.items()}
        arrays |= {name: arrays[name].cast(kind) for name, kind in (kinds or {}).items()}
        parquet.write_table(pyarrow.table(arrays), temporary)


def as_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a table as the text of a CSV file; numbers have nine digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row])
    return text.getvalue()
