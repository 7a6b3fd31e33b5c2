"""A CSV file as columns of text, read row by row so that memory stays near the size of the file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Text = np.ndarray[Any, Any]  # (N,) of NumPy's variable-length strings

COLUMNS = 10_000  # columns of a file at most
LINE = 1 << 20  # characters of the header line that are searched for the delimiter
BLOCK = 65536  # cells turned from lists into arrays at a time


class Table(NamedTuple):
    """The cells of a CSV file, without surrounding blanks.

    Attributes
    ----------
    path : Path
        The file, for messages.
    header : list of str
        Names of the columns.
    columns : list of array (N,)
        Cells of each column as text.
    lines : int64 array (N,)
        Line of the file in which each row ends.
    decimal : str
        The decimal sign: a comma where semicolons stand between cells, else a point.
    """

    path: Path
    header: list[str]
    columns: list[Text]
    lines: np.ndarray[Any, np.dtype[np.int64]]
    decimal: str

    def select(self, rows: slice) -> Table:
        """Some of the rows."""
        return self._replace(columns=[column[rows] for column in self.columns], lines=self.lines[rows])

    def line(self, row: int) -> str:
        """Where a row is, for messages."""
        return f"{self.path}: line {self.lines[row]}"


def read(path: str | os.PathLike[str]) -> Table:
    """Read a CSV file with a header line, and commas, semicolons, tabs or bars between cells.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        The file is empty, is not UTF-8 text, is malformed, or has too many columns. Names file and line.
    """
    path = Path(path)
    reader: Any = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = max(",;\t|", key=file.readline(LINE).count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [cell.strip() for cell in next((row for row in reader if row), [])]
            if not header:
                raise ValueError(f"{path}: the file is empty, expected a header line and rows")
            if len(header) > COLUMNS:
                raise ValueError(f"{path}: the header has {len(header)} columns, expected at most {COLUMNS}")
            parts: list[list[Text]] = [[_text([])] for _ in header]
            lines: list[np.ndarray[Any, np.dtype[np.int64]]] = []
            for rows, ends in _blocks(path, reader, len(header)):
                for cells, column in zip(zip(*rows, strict=True), parts, strict=True):
                    column.append(_text([cell.strip() for cell in cells]))
                lines.append(np.array(ends, dtype=np.int64))
    except UnicodeDecodeError as error:
        where = "" if reader is None else f" after line {reader.line_num}"
        raise ValueError(f"{path}: not UTF-8 text ({error.reason}{where})") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file ({error} after line {reader.line_num})") from error
    columns = []
    for column in parts:
        columns.append(np.concatenate(column))
        column.clear()  # a large table is not in memory twice
    return Table(
        path, header, columns, np.concatenate([np.zeros(0, np.int64), *lines]), "," if delimiter == ";" else "."
    )


def _blocks(path: Path, reader: Any, width: int) -> Iterator[tuple[list[list[str]], list[int]]]:
    """Rows that have cells, and the lines in which they end, so many at a time as make BLOCK cells."""
    rows: list[list[str]] = []
    ends: list[int] = []
    for row in reader:
        if not row:
            continue
        if len(row) != width:
            raise ValueError(f"{path}: line {reader.line_num} has {len(row)} cells, expected {width} as in the header")
        rows.append(row)
        ends.append(reader.line_num)
        if len(rows) * width >= BLOCK:
            yield rows, ends
            rows, ends = [], []
    if rows:
        yield rows, ends


def _text(cells: list[str]) -> Text:
    return np.array(cells, dtype=np.dtypes.StringDType())
