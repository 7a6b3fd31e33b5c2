"""A CSV file as a table of text, read in blocks of rows: only the columns that are asked for are in memory."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Text = np.ndarray[Any, Any]  # (N,) of NumPy's variable-length strings

COLUMNS = 10_000  # columns of a file at most
LINE = 1 << 20  # characters of the header line that are searched for the delimiter
BLOCK = 1 << 16  # cells read at a time
SAMPLE = 1000  # rows that show whether a column holds dates


@dataclass(frozen=True)
class Table:
    """A CSV file with a header, all of whose rows have as many cells.

    Attributes
    ----------
    path : Path
        The file, for messages.
    header : list of str
        Names of the columns.
    rows : int
        Rows under the header that are not blank, N.
    sample : list of list of str
        The first rows.
    numeric : list of bool
        Whether some cell of a column is a number.
    decimal : str
        The decimal sign: a comma where semicolons stand between cells, else a point.
    """

    path: Path
    header: list[str]
    rows: int
    sample: list[list[str]] = field(repr=False)
    numeric: list[bool] = field(repr=False)
    decimal: str
    source: _Source = field(repr=False)

    def blocks(self, column: int) -> Iterator[list[str]]:
        """Cells of a column, block by block, without surrounding blanks."""
        for block in self.source.blocks():
            yield [row[column].strip() for row in block]

    def text(self, column: int) -> Text:
        """All cells of a column, (N,)."""
        return np.concatenate([_text([]), *map(_text, self.blocks(column))])

    def line(self, row: int) -> str:
        """Name the line of the file in which a row ends, for messages."""
        return self.source.line(row)


@dataclass
class _Source:
    """Where the rows of a table come from: a file, or the bytes of a pipe, which can be read only once."""

    path: Path
    content: bytes | None
    delimiter: str = ","
    width: int = 0
    joined: int = 0  # columns at the beginning that are parts of one date

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Rows that are not blank, the header first, and the lines in which they end."""
        with self._reader() as reader:
            for row in reader:
                if row:
                    yield reader.line_num, row

    def blocks(self) -> Iterator[list[list[str]]]:
        """Rows under the header, so many at a time as make BLOCK cells."""
        with self._reader() as reader:
            next(row for row in reader if row)
            while block := list(itertools.islice(reader, max(1, BLOCK // self.width))):
                if set(map(len, block)) != {self.width}:
                    block = [row for row in block if row]
                    if any(len(row) != self.width for row in block):
                        self._refuse_width()
                yield [self._join(row) for row in block] if self.joined else block

    def line(self, row: int) -> str:
        """Name the line in which a row under the header ends."""
        number, _ = next(itertools.islice(self.rows(), row + 1, None))
        return f"{self.path}: line {number}"

    def first_line(self) -> str:
        """The line at the beginning, or what is looked at of it."""
        with self._opened() as file:
            try:
                return file.readline(LINE)
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.path}: not UTF-8 text ({error.reason})") from error

    def _refuse_width(self) -> None:
        number, row = next((number, row) for number, row in self.rows() if len(row) != self.width)
        raise ValueError(
            f"{self.path}: line {number} has {len(row)} cells, expected {self.width} as in the header"
        ) from None

    def _join(self, row: list[str]) -> list[str]:
        parts = [cell.strip().zfill(2) for cell in row[: self.joined]]
        return ["-".join(parts), *row[self.joined :]]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.TextIOWrapper]:
        binary: Any = self.path.open("rb") if self.content is None else io.BytesIO(self.content)
        with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
            yield file

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Any]:
        with self._opened() as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            try:
                yield reader
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{self.path}: not UTF-8 text ({error.reason} after line {reader.line_num})"
                ) from error
            except csv.Error as error:
                raise ValueError(f"{self.path}: not a CSV file ({error} after line {reader.line_num})") from error


def read(path: str | os.PathLike[str]) -> Table:
    """Read a CSV file with a header line, and commas, semicolons, tabs or bars between cells.

    Columns "year" and "month" at the beginning, and "day" after them, become one column "date".

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is empty, is not UTF-8 text, is malformed, or has too many columns. Names file and line.
    """
    path = Path(path)
    with path.open("rb") as file:
        source = _Source(path, None if file.seekable() else file.read())
    source.delimiter = max(",;\t|", key=source.first_line().count)
    header = [cell.strip() for cell in next(source.rows(), (0, []))[1]]
    if not header:
        raise ValueError(f"{path}: the file is empty, expected a header line and rows")
    if len(header) > COLUMNS:
        raise ValueError(f"{path}: the header has {len(header)} columns, expected at most {COLUMNS}")
    source.width = len(header)
    if [name.lower() for name in header[:2]] == ["year", "month"]:
        source.joined = 3 if header[2:3] and header[2].lower() == "day" else 2
        header = ["date", *header[source.joined :]]
    rows = 0
    sample: list[list[str]] = []
    numeric = [False] * len(header)
    for block in source.blocks():
        rows += len(block)
        sample += [[cell.strip() for cell in row] for row in block[: SAMPLE - len(sample)]]
        for k, found in enumerate(numeric):
            if not found:
                numeric[k] = any(is_number(row[k].strip()) for row in block)
    return Table(path, header, rows, sample, numeric, "," if source.delimiter == ";" else ".", source)


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, with a decimal point or comma."""
    if not cell:  # quicker than an error, for the many empty cells of some tables
        return False
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _text(cells: list[str]) -> Text:
    return np.array(cells, dtype=np.dtypes.StringDType())
