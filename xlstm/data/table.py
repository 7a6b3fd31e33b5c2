"""A CSV file as a table of text, read in blocks of rows: only the columns that are asked for are in memory."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays.checks import shown

Text = np.ndarray[Any, Any]  # (N,) of NumPy's variable-length strings

COLUMNS = 10_000  # columns of a file at most
NAME = 1024  # characters of the name of a column at most
LINE = 1 << 20  # characters of the header line that are searched for the delimiter
BLOCK = 1 << 16  # cells read at a time
SAMPLE = 1000  # rows that show whether a column holds dates

# Encodings by the names that declare them; a mark at the beginning of a file is no part of its text.
ENCODINGS = {"utf-8": "utf-8-sig", "utf-16": "utf-16", "latin-1": "latin-1", "cp1252": "cp1252"}


@dataclass(frozen=True)
class Dialect:
    """How a CSV file writes dates, numbers and letters, where that is declared.

    Attributes
    ----------
    day_first : bool or None
        Whether 01/02/2024 is the first of February or the second of January; None reads such dates only where
        another row shows the order.
    decimal : {".", ","} or None
        The decimal sign; None takes a point, and a comma, too, where semicolons stand between cells.
    encoding : {"utf-8", "utf-16", "latin-1", "cp1252"}

    Raises
    ------
    TypeError, ValueError
        A value is none of these.
    """

    day_first: bool | None = None
    decimal: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.day_first is not None and not isinstance(self.day_first, bool):
            raise TypeError(f"day_first is {shown(self.day_first)}, expected True, False or None")
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"decimal is {shown(self.decimal)}, expected '.' or ','")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding is {shown(self.encoding)}, expected one of {', '.join(ENCODINGS)}")


PLAIN = Dialect()


class Table:
    """A CSV file with a header line, and commas, semicolons, tabs or bars between cells.

    Columns "year" and "month" at the beginning, and "day" after them, become one column "date". A pipe is read into
    memory, as it can be read only once. A file that is empty, no text in its encoding, malformed or too wide is a
    ValueError that names file and line.

    Parameters
    ----------
    path : path
    dialect : Dialect

    Attributes
    ----------
    header : list of str
        Names of the columns.
    rows : int
        Number N of rows under the header that are not blank.
    sample : list of list of str
        The first rows.
    numeric : list of bool
        Whether some cell of a column is a number.
    decimal : str
        The decimal sign: that of the dialect, else a comma where semicolons stand between cells, else a point.
    """

    def __init__(self, path: str | os.PathLike[str], dialect: Dialect = PLAIN) -> None:
        self.path, self.dialect = Path(path), dialect
        with self.path.open("rb") as file:
            self._content = None if file.seekable() else file.read()
        with self._opened() as opened:
            try:
                self._delimiter = max(",;\t|", key=opened.readline(LINE).count)
            except UnicodeError as error:
                raise self._no_text(error, "") from error
        self.decimal = dialect.decimal or ("," if self._delimiter == ";" else ".")
        self.header = [cell.strip() for cell in next(self._rows(), (0, []))[1]]
        if not self.header:
            raise ValueError(f"{path}: the file is empty, expected a header line and rows")
        check_names(path, self.header)
        self._width, self._joined = len(self.header), 0  # columns at the beginning that are parts of one date
        names = [name.lower() for name in self.header[:3]]
        if names[:2] == ["year", "month"]:
            self._joined = 3 if names[2:] == ["day"] else 2
            self.header = ["date", *self.header[self._joined :]]
        self.rows = 0
        self.sample: list[list[str]] = []
        self.numeric = [False] * len(self.header)
        for block in self._blocks():
            self.rows += len(block)
            self.sample += [[cell.strip() for cell in row] for row in block[: SAMPLE - len(self.sample)]]
            for k, found in enumerate(self.numeric):
                self.numeric[k] = found or any(is_number(row[k].strip()) for row in block)

    def blocks(self, *columns: int) -> Iterator[list[list[str]]]:
        """Yield the cells of some columns, block by block, without surrounding blanks."""
        for block in self._blocks():
            yield [[row[column].strip() for row in block] for column in columns]

    def text(self, column: int) -> Text:
        """Return all cells of a column, (N,)."""
        kind = np.dtypes.StringDType()
        parts = [np.array(cells, kind) for (cells,) in self.blocks(column)]
        return np.concatenate([np.array([], kind), *parts])

    def line(self, row: int) -> str:
        """Name the line of the file in which a row under the header ends, for messages."""
        number, _ = next(itertools.islice(self._rows(), row + 1, None))
        return f"{self.path}: line {number}"

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield rows that are not blank, the header first, and the lines in which they end."""
        with self._reader() as reader:
            yield from ((reader.line_num, row) for row in reader if row)

    def _blocks(self) -> Iterator[list[list[str]]]:
        """Yield rows under the header, so many at a time as make BLOCK cells."""
        with self._reader() as reader:
            next(row for row in reader if row)
            while block := list(itertools.islice(reader, max(1, BLOCK // self._width))):
                if set(map(len, block)) != {self._width}:
                    block = [row for row in block if row]
                    if any(len(row) != self._width for row in block):
                        number, row = next(found for found in self._rows() if len(found[1]) != self._width)
                        raise ValueError(
                            f"{self.path}: line {number} has {len(row)} cells, expected {self._width} as in the header"
                        )
                yield [self._join(row) for row in block] if self._joined else block

    def _join(self, row: list[str]) -> list[str]:
        parts = [cell.strip().zfill(2) for cell in row[: self._joined]]
        return ["-".join(parts), *row[self._joined :]]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.TextIOWrapper]:
        binary: Any = self.path.open("rb") if self._content is None else io.BytesIO(self._content)
        with io.TextIOWrapper(binary, encoding=ENCODINGS[self.dialect.encoding], newline="") as file:
            yield file

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Any]:
        with self._opened() as file:
            reader = csv.reader(file, delimiter=self._delimiter, strict=True)
            try:
                yield reader
            except UnicodeError as error:
                raise self._no_text(error, f" after line {reader.line_num}") from error
            except csv.Error as error:
                raise ValueError(f"{self.path}: not a CSV file ({error} after line {reader.line_num})") from error

    def _no_text(self, error: UnicodeError, where: str) -> ValueError:
        """Return the error of a file that is no text in its encoding."""
        encoding = self.dialect.encoding
        others = " or ".join(name for name in ENCODINGS if name != encoding)
        return ValueError(
            f"{self.path}: not {encoding.upper()} text ({getattr(error, 'reason', error)}{where}); "
            f"if it is in {others}, say so with --encoding (encoding=)"
        )


def check_names(path: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Raise ValueError where a file has more columns, or a longer name of one, than is taken."""
    if len(names) > COLUMNS:
        raise ValueError(f"{path}: the header has {len(names)} columns, expected at most {COLUMNS}")
    longest = max(map(len, names), default=0)
    if longest > NAME:
        raise ValueError(f"{path}: the name of a column has {longest} characters, expected at most {NAME}")


def is_number(cell: str) -> bool:
    """Return whether a cell holds a number, with a decimal point or comma."""
    if not cell:  # quicker than an error, for the many empty cells of some tables
        return False
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True
