"""Tables in files, CSV and Parquet: columns of numbers and of names, and the dates of rows."""

from __future__ import annotations

import contextlib
import csv
import datetime
import functools
import io
import itertools
import math
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.checks import shown
from xlstm.data import calendars, frames, writing
from xlstm.data.calendars import HEADERS, ISO_DATE, is_like_a_date
from xlstm.data.frames import Columns
from xlstm.data.host import Values
from xlstm.data.writing import AnyPath

Text = np.ndarray[Any, Any]  # (N,) of NumPy's variable-length strings

COLUMNS = 10_000  # columns of a file at most
NAME = 1024  # characters of the name of a column at most
BLOCK = 1 << 16  # cells read at a time
# Few bytes of Parquet can hold any number of cells: so many bytes of them are read, and so many for each of the file.
UNPACKED = 1 << 26, 256

# Encodings by the names that declare them; a mark at the beginning of a file is no part of its text.
ENCODINGS = {"utf-8": "utf-8-sig", "utf-16": "utf-16", "latin-1": "latin-1", "cp1252": "cp1252"}
HEADER = "the header"
SAMPLE = 1000  # rows that show whether a column holds dates
INDEX = {"", "index"}


@dataclass(frozen=True)
class Dialect:
    """How a CSV file writes dates, numbers and letters, where that is declared.

    Attributes
    ----------
    date_format : str or None
        The format of dates, as `datetime.strptime` takes it; None reads those in ISO 8601.
    decimal : {".", ","} or None
        The decimal sign; None takes a point, and a comma, too, where semicolons stand between cells.
    encoding : {"utf-8", "utf-16", "latin-1", "cp1252"}

    Raises
    ------
    TypeError, ValueError
        A value is none of these.
    """

    date_format: str | None = None
    decimal: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.date_format is not None and "%" not in checks.text("read", "date_format", self.date_format):
            raise ValueError(f"date_format is {shown(self.date_format)}, expected a format such as '%d/%m/%Y'")
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"decimal is {shown(self.decimal)}, expected '.' or ','")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding is {shown(self.encoding)}, expected one of {', '.join(ENCODINGS)}")


PLAIN = Dialect()


class CsvFile:
    """A CSV file with a header line, and commas, semicolons, tabs or bars between cells, read once.

    A file that is empty, no text in its encoding, malformed or too wide is a ValueError that names file and line.

    Attributes
    ----------
    names : list of str
    rows : int
        Number N of rows under the header that are not blank.
    size : int
        Characters of all cells.
    """

    def __init__(self, path: AnyPath, dialect: Dialect = PLAIN) -> None:
        self.path, self.dialect = Path(path), dialect
        self._lines = array("q")
        self._blocks: list[Text] = []
        try:
            with self.path.open(encoding=ENCODINGS[dialect.encoding], newline="") as file:
                first = file.readline()
                delimiter = max(",;\t|", key=first.count)
                self.decimal = dialect.decimal or ("," if delimiter == ";" else ".")
                reader = csv.reader(itertools.chain([first], file), delimiter=delimiter, strict=True)
                rows = ((reader.line_num, row) for row in reader if row)
                self.names = [cell.strip() for cell in next(rows, (0, []))[1]]
                self._check_header()
                while block := list(itertools.islice(rows, max(1, BLOCK // len(self.names)))):
                    self._add(*zip(*block, strict=True))
        except UnicodeError as error:
            others = " or ".join(name for name in ENCODINGS if name != dialect.encoding)
            problem = f"not {dialect.encoding.upper()} text ({getattr(error, 'reason', error)})"
            raise ValueError(f"{path}: {problem}; if it is in {others}, say so with --encoding (encoding=)") from error
        except csv.Error as error:
            raise ValueError(f"{path}: not a CSV file ({error} after line {reader.line_num})") from error
        self.rows = len(self._lines)
        self.size = int(sum(np.sum(np.strings.str_len(block)) for block in self._blocks))

    def _check_header(self) -> None:
        if not self.names:
            raise ValueError(f"{self.path}: the file is empty, expected a header line and rows")
        check_names(self.path, self.names)
        if all(is_number(cell) or ISO_DATE.fullmatch(cell) or is_like_a_date(cell) for cell in self.names):
            raise ValueError(f"{self.path}: line 1 holds data, expected a header with the names of the columns")

    def _add(self, lines: Sequence[int], rows: Sequence[list[str]]) -> None:
        """Keep rows and the lines in which they end."""
        width = len(self.names)
        if {*map(len, rows)} != {width}:
            line, cells = next((line, len(row)) for line, row in zip(lines, rows, strict=True) if len(row) != width)
            raise ValueError(f"{self.path}: line {line} has {cells} cells, expected {width} as in the header")
        self._lines.extend(lines)
        self._blocks.append(np.strings.strip(np.array(rows, np.dtypes.StringDType())))

    def line(self, row: int) -> str:
        """Name the line of the file in which a row ends, for messages."""
        return f"{self.path}: line {self._lines[row]}"

    def texts(self, name: str) -> list[str]:
        """Return the cells of a column."""
        return [str(cell) for cell in self._cells(*frames.places_of(str(self.path), self.names, [name], HEADER))]

    def numbers(self, names: Sequence[str]) -> Values:
        """Return columns of numbers, (N, C), NaN where a cell is empty."""
        if self.rows == 0:
            raise ValueError(f"{self.path}: 0 rows under the header, expected some")
        return np.stack([self._floats(k) for k in frames.places_of(str(self.path), self.names, names, HEADER)], axis=1)

    def columns(self, names: Sequence[str]) -> Columns:
        """Return columns of numbers with the dates or other labels of rows, which are left out of the numbers."""
        k = self._label
        label = None if k is None else self.names[k]
        wanted = [name for name in names if name != label]
        if self.rows == 0 or not wanted:
            some = f"{self.rows} rows under the header and {len(wanted)} columns of numbers"
            raise ValueError(f"{self.path}: {some}, expected some")
        values = self.numbers(wanted)
        if k is None:
            return Columns(wanted, values)
        dates = calendars.read_dates(self._cells(k), self.line, self.dialect.date_format)
        return Columns(wanted, values, self._cells(k) if dates is None else dates, label)

    @property
    def numeric(self) -> list[str]:
        """The columns in which some cell is a number, but the labels of rows."""
        return [name for k, name in enumerate(self.names) if self._has_numbers[k] and k != self._label]

    @property
    def dated(self) -> list[str]:
        """The columns that hold nothing but dates."""
        samples = {name: self._cells(k)[:SAMPLE] for k, name in enumerate(self.names)}
        return [name for name, cells in samples.items() if len(cells) and all(map(self._is_date, cells))]

    @functools.cached_property
    def _has_numbers(self) -> list[bool]:
        return [any(map(is_number, self._cells(k))) for k in range(len(self.names))]

    @functools.cached_property
    def _label(self) -> int | None:
        """Find the column of dates: the first that is mostly dates, else a first column that holds no numbers.

        Where there is none of these, but a column looks like dates in another notation, a ValueError says so.
        """
        strange = ""
        for k, name in enumerate(self.names if self.rows else ()):
            cells, named = self._cells(k)[:SAMPLE], name.lower() in HEADERS
            is_date = [self._is_date(cell, k == 0) for cell in cells]
            sure = named or self.dialect.date_format is not None or name.lower() in INDEX
            if 2 * sum(is_date) > len(cells) and (sure or any("-" in cell for cell in cells)):
                return k
            number = [is_number(cell) for cell in cells]
            others = [
                row
                for row, cell in enumerate(cells)
                if not is_date[row] and (named or not number[row]) and is_like_a_date(cell, number[row])
            ]
            if others and 2 * (sum(is_date) + len(others)) > len(cells) and not strange:
                strange = f"{self.line(others[0])}, column {name} holds {shown(str(cells[others[0]]))}"
        if self.dialect.date_format is not None:
            raise ValueError(f"{self.path}: no column holds dates of the format {shown(self.dialect.date_format)}")
        if strange:
            raise ValueError(
                f"{strange}, which looks like a date but is not in ISO 8601; say its format with --date-format "
                "(date_format='%d/%m/%Y'), write dates such as 2024-01-31, or leave the column out to take rows as "
                "equal steps in the order of the file"
            )
        is_label = len(self.names) > 1 and (self.names[0].lower() in (*HEADERS, *INDEX) or not self._has_numbers[0])
        return 0 if is_label else None

    def _is_date(self, cell: str, years: bool = False) -> bool:
        """Return whether a cell is a date; `years` takes a whole number of four digits for one."""
        if self.dialect.date_format is None:
            return ISO_DATE.fullmatch(cell) is not None and (years or "-" in cell)
        try:
            return bool(datetime.datetime.strptime(cell, self.dialect.date_format))
        except ValueError:
            return False

    def _cells(self, k: int) -> Text:
        return np.concatenate([np.array([], np.dtypes.StringDType()), *(block[:, k] for block in self._blocks)])

    def _floats(self, k: int) -> Values:
        """Return the numbers of a column, (N,)."""
        cells = self._cells(k)
        texts = cells
        if self.decimal == ",":
            if self.dialect.decimal == ",":  # a point is that of thousands, or a mistake
                texts = np.strings.replace(texts, ".", "x")
            texts = np.strings.replace(texts, ",", ".")
        numbers = np.array([_float(text) for text in texts])
        for row in np.flatnonzero(~np.isfinite(numbers)):
            if cell := str(cells[row]):
                comma = "," in cell and self.decimal == "."
                hint = "; if the comma is a decimal sign, say so with --decimal , (decimal=',')" if comma else ""
                if "." in cell and self.dialect.decimal == ",":
                    hint = "; the decimal sign is a comma, as was said"
                problem = f"column {self.names[k]} holds {shown(cell)}, expected a finite number or nothing for a gap"
                raise ValueError(f"{self.line(int(row))}, {problem}{hint}")
        return numbers


class ParquetFile:
    """A Parquet file, whose columns are read when they are asked for; one that is damaged is a ValueError.

    Attributes
    ----------
    names, numeric, dated : list of str
        All columns, those of numbers, and those of dates.
    rows, size : int
        Rows, and bytes of the file.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = Path(path)
        self._texts: list[str] = []
        with self._opened() as (file, kinds):
            fields, self.rows = file.schema_arrow, file.metadata.num_rows
            check_names(path, fields.names)
            text = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
            self._texts = [field.name for field in fields if any(is_kind(field.type) for is_kind in text)]
            self.dated = [f.name for f in fields if kinds.is_date(f.type) or kinds.is_timestamp(f.type)]
            self.names, self._kinds = fields.names, {field.name: field.type for field in fields}
        self.numeric = frames.numeric(str(path), fields.empty_table())
        self._numbers = {*self.numeric, *(field.name for field in fields if kinds.is_null(field.type))}

    def line(self, row: int) -> str:
        """Name a row, for messages."""
        return f"{self.path}: row {row + 1}"

    def texts(self, name: str) -> list[str]:
        """Return the cells of a column as text, empty where one is missing."""
        frames.places_of(str(self.path), self.names, [name], HEADER)
        with self._opened() as (file, kinds):
            if kinds.is_nested(self._kinds[name]):
                raise TypeError(f"{self.path}: column {shown(name)} holds {self._kinds[name]}, expected names")
            cells: list[str] = []
            for chunk in self._read(file, [name]).column(name).chunks:  # equal texts are in memory once
                coded = chunk if kinds.is_dictionary(chunk.type) else chunk.dictionary_encode()
                words = ["" if word is None else str(word) for word in coded.dictionary.to_pylist()]
                cells += ["" if k is None else words[k] for k in coded.indices.to_pylist()]
        return cells

    def numbers(self, names: Sequence[str]) -> Values:
        """Return columns of numbers, (N, C), NaN where a cell is missing."""
        return self._columns(names, []).values

    def columns(self, names: Sequence[str]) -> Columns:
        """Return columns of numbers with the dates of rows, those that are named or else the one column of dates."""
        dates = [name for name in self.dated if name in names] or self.dated * (len(self.dated) == 1)
        return self._columns([name for name in names if name not in dates], dates)

    def _columns(self, names: Sequence[str], dates: Sequence[str]) -> Columns:
        frames.places_of(str(self.path), self.names, names, HEADER)
        for name in names:
            if name not in self._numbers:
                problem = f"column {shown(name)} holds {self._kinds[name]}, expected numbers"
                raise TypeError(f"{self.path}: {problem}")
        with self._opened() as (file, _):
            table = self._read(file, [*names, *dates])
        return frames.table_of(str(self.path), table, names)

    def _read(self, file: Any, names: Sequence[str]) -> Any:
        """Return some columns, once their size is checked: that of numbers by rows, that of pages as these say it."""
        metadata = file.metadata
        groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
        leaves = (group.column(k) for group in groups for k in range(group.num_columns))
        wanted = {*names}
        size = 8 * metadata.num_rows * len(wanted)
        size += sum(one.total_uncompressed_size for one in leaves if one.path_in_schema in wanted)
        most = UNPACKED[0] + UNPACKED[1] * self.size
        if size > most:
            held = f"holds {size} bytes in {self.size} of the file, expected at most {most}"
            raise ValueError(f"{self.path}: {checks.few(names)} {held}; take fewer rows")
        table = file.read(names)
        table.validate(full=True)
        return table

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Open the file; errors of a damaged one name it."""
        pyarrow, parquet = _pyarrow(self.path)
        with self.path.open("rb") as file:  # the errors of a file that is not there are Python's
            self.size = os.fstat(file.fileno()).st_size
            try:
                # A file of Python would be let go by threads of PyArrow, which abort where Python ends at that moment.
                with pyarrow.OSFile(os.fspath(self.path)) as native:
                    yield parquet.ParquetFile(native, read_dictionary=self._texts), pyarrow.types
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # damaged files raise all three
                problem = " ".join(str(error).split())
                raise ValueError(f"{self.path}: not a readable Parquet file ({problem})") from error


def opened(path: AnyPath, dialect: Dialect = PLAIN) -> CsvFile | ParquetFile:
    """Open a file by its name, which ends with ".parquet" for a Parquet file."""
    return ParquetFile(path) if is_parquet(path) else CsvFile(path, dialect)


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
    return {name: _rising(file, found, rows) for name, rows in by_name(_names(file, column)).items()}


def by_name(names: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the rows that have each name (N,), in the order in which the names come first."""
    found, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    return {str(found[k]): rows[k] for k in np.argsort(first)}


def read_header(path: AnyPath, dialect: Dialect = PLAIN) -> tuple[list[str], list[str]]:
    """Return the names of all columns of a CSV or Parquet file, and of those that hold dates.

    Raises
    ------
    OSError, ValueError, ImportError
        As for `read_table`.
    """
    file = opened(path, dialect)
    return file.names, file.dated


def read_numbers(path: AnyPath, columns: Sequence[str], dialect: Dialect = PLAIN) -> Values:
    """Return columns of numbers (N, C) as `read_table` does, but without a look at dates; NaN where a cell is empty."""
    return opened(path, dialect).numbers(columns)


def read_names(path: AnyPath, column: str, dialect: Dialect = PLAIN) -> np.ndarray[Any, Any]:
    """Return a column of names, such as labels of classes, (N,); numbers are written out.

    Raises
    ------
    OSError, TypeError, ValueError, ImportError
        As for `read_table`, or a cell is empty; names file, column and row.
    """
    return _names(opened(path, dialect), column)


def check_table(path: AnyPath) -> None:
    """Raise unless a table can be written to a path: ValueError, ImportError or OSError."""
    if is_parquet(path):
        _pyarrow(Path(path))
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


def is_parquet(path: AnyPath) -> bool:
    """Return whether the name of a file is that of a Parquet file."""
    return Path(path).suffix.lower() == ".parquet"


def check_names(path: AnyPath, names: Sequence[str]) -> None:
    """Raise ValueError where a file has more columns, or a longer name of one, than is taken."""
    if len(names) > COLUMNS:
        raise ValueError(f"{path}: the header has {len(names)} columns, expected at most {COLUMNS}")
    longest = max(map(len, names), default=0)
    if longest > NAME:
        raise ValueError(f"{path}: the name of a column has {longest} characters, expected at most {NAME}")


def is_number(cell: str) -> bool:
    """Return whether a cell holds a number, with a decimal point or comma."""
    return bool(cell) and not math.isnan(_float(cell.replace(",", ".")))


def _float(text: str) -> float:
    """Return a number, or NaN where a text is none."""
    try:
        return float(text) if text else math.nan  # which is quicker than an error
    except ValueError:
        return math.nan


def _rising(file: CsvFile | ParquetFile, columns: Columns, rows: Any = None) -> Columns:
    """Return some rows, by default all; ValueError where their dates do not rise."""
    part = columns if rows is None else columns.take(rows)
    if part.index is not None and part.index.dtype.kind == "M":
        calendars.check_rising(part.index, lambda row: file.line(row if rows is None else int(rows[row])))
    return part


def _names(file: CsvFile | ParquetFile, column: str) -> np.ndarray[Any, Any]:
    """Return a column of names, (N,), of which each takes as much memory as the longest."""
    cells = file.texts(column)
    if not cells:
        raise ValueError(f"{file.path}: 0 rows, expected some")
    if "" in cells:
        raise ValueError(f"{file.path}: column {shown(column)} is empty in row {cells.index('') + 1}")
    length = len(cells) * max(map(len, cells))
    if length > (most := UNPACKED[0] // 16 + UNPACKED[1] // 16 * file.size):
        problem = f"{len(cells)} names, the longest of {length // len(cells)} characters"
        raise ValueError(f"{file.path}: column {shown(column)} has {problem}, expected {most} in all; take fewer rows")
    return np.array(cells)


def _pyarrow(path: Path) -> tuple[Any, Any]:
    """Return the packages that read and write Parquet files."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: Parquet files need PyArrow and narwhals; pip install pyarrow narwhals") from error
    return pyarrow, parquet
