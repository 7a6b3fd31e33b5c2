"""CSV files: columns of numbers and names, the dates of rows, and line numbers for errors."""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import math
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.checks import shown
from xlstm.data import calendars, frames
from xlstm.data.calendars import ISO_DATE
from xlstm.data.frames import Columns
from xlstm.data.host import Values
from xlstm.data.writing import AnyPath

COLUMNS = 10_000  # the most columns of a file
NAME = 1024  # the most characters in the name of a column
# Encodings by the names that declare them; a byte-order mark is not part of the text.
ENCODINGS = {"utf-8": "utf-8-sig", "utf-16": "utf-16", "latin-1": "latin-1", "cp1252": "cp1252"}
# headers of columns of labels and of dates
HEADERS = {
    "",
    "index",
    "date",
    "datetime",
    "time",
    "timestamp",
    "year",
    "month",
    "week",
    "day",
    "hour",
    "ds",
}


@dataclass(frozen=True)
class Dialect:
    """The conventions of a CSV file for dates, numbers and letters.

    Attributes
    ----------
    date_format : str or None
        The format of dates, such as %d/%m/%Y, as for `datetime.strptime`; by default ISO 8601.
    decimal : {".", ","} or None
        The decimal sign. By default it is a point; if semicolons separate cells, also a comma.
    encoding : {"utf-8", "utf-16", "latin-1", "cp1252"}
        The encoding of the file.

    Raises
    ------
    TypeError, ValueError
        A value is not one of these.
    """

    date_format: str | None = None
    decimal: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        signs = checks.optional(checks.choice((".", ",")))
        checks.fields(
            self,
            date_format=checks.optional(checks.text),
            decimal=signs,
            encoding=checks.choice(ENCODINGS),
        )


PLAIN = Dialect()
STANDARD_INPUT = Path("-")


def _text_of(path: Path, encoding: str) -> TextIO:
    """Open a text file; "-" means standard input, which stays open."""
    if path != STANDARD_INPUT:
        return path.open(encoding=encoding, newline="")
    if sys.stdin is None:
        raise OSError(f"{path}: standard input is closed, expected a table on it")
    return io.TextIOWrapper(io.BytesIO(sys.stdin.buffer.read()), encoding, newline="")


class CsvFile:
    """A CSV file with a header line and cells separated by commas, semicolons, tabs or bars, read
    once.

    If the file is empty, not text in its encoding, malformed or too wide, a ValueError names file
    and line.

    Attributes
    ----------
    names : list of str
    rows : int
        The number N of rows under the header that are not blank.
    kinds : dict
        An empty dict, since cells of a CSV file have no types.
    """

    kinds: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, path: AnyPath, dialect: Dialect = PLAIN) -> None:
        self.path = Path(path)
        self.dialect = dialect
        self._lines = array("q")
        # The cells of all rows are one list: a list for each row would slow the garbage collector.
        cells: list[str] = []
        try:
            with _text_of(self.path, ENCODINGS[dialect.encoding]) as file:
                first = file.readline()
                delimiter = max(",;\t|", key=first.count)
                reader = csv.reader(
                    itertools.chain([first], file), delimiter=delimiter, strict=True
                )
                self.names = [cell.strip() for cell in next(filter(None, reader), [])]
                self._check_header()
                for row in filter(None, reader):
                    if len(row) != len(self.names):
                        raise ValueError(
                            f"{path}: line {reader.line_num} has {len(row)} cells, expected"
                            f" {len(self.names)} as in the header"
                        )
                    self._lines.append(reader.line_num)
                    cells += row
        except UnicodeError as error:
            others = " or ".join(name for name in ENCODINGS if name != dialect.encoding)
            raise ValueError(
                f"{path}: not {dialect.encoding.upper()} text ({getattr(error, 'reason', error)});"
                f" if it is in {others}, say so with --encoding (encoding=)"
            ) from error
        except csv.Error as error:
            raise ValueError(
                f"{path}: not a CSV file ({error} after line {reader.line_num})"
            ) from error
        self.rows, width = len(self._lines), len(self.names)
        self._cells = [[cell.strip() for cell in cells[k::width]] for k in range(width)]
        self._signs = {}
        if dialect.decimal == ",":  # a point then separates thousands, or is a mistake
            self._signs = str.maketrans(",.", ".x")
        elif dialect.decimal is None and delimiter == ";":
            self._signs = str.maketrans(",", ".")

    def _check_header(self) -> None:
        if not self.names:
            raise ValueError(f"{self.path}: the file is empty, expected a header line and rows")
        check_names(self.path, self.names)
        if all(is_number(cell) or ISO_DATE.fullmatch(cell) for cell in self.names):
            raise ValueError(
                f"{self.path}: line 1 holds data, expected a header with the names of the columns"
            )

    def line(self, row: int) -> str:
        """Return the name, for messages, of the line in which a row ends."""
        return f"{self.path}: line {self._lines[row]}"

    def _places(self, names: Sequence[str]) -> list[int]:
        return frames.places_of(str(self.path), self.names, names, "the header")

    def texts(self, name: str) -> Sequence[str]:
        """Return the cells of a column."""
        return self._cells[self._places([name])[0]]

    def numbers(self, names: Sequence[str], texts: Sequence[str] = ()) -> Values:
        """Return columns of numbers, (N, C), with NaN for empty cells.

        Columns in `texts` may be text; they are text if no cell is a number.
        """
        if self.rows == 0 or not names:
            raise ValueError(
                f"{self.path}: {self.rows} rows under the header and {len(names)} columns of"
                " numbers, expected some"
            )
        return np.stack(
            [self._numbers(k, self.names[k] in texts) for k in self._places(names)], axis=1
        )

    def columns(self, names: Sequence[str], texts: Sequence[str] = ()) -> Columns:
        """Return columns of numbers, without the column of dates or other labels, which label the
        rows.

        Columns in `texts` may be text.
        """
        k, is_date = self._label
        if k is None or self.names[k] in texts:
            return Columns([*names], self.numbers(names, texts))
        label = self.names[k]
        wanted = [name for name in names if name != label]
        values = self.numbers(wanted, texts)
        if not is_date:
            return Columns(wanted, values, np.array(self._cells[k], object), label)
        dates, zone = calendars.read_dates(self._cells[k], self.line, self.dialect.date_format)
        return Columns(wanted, values, dates, label, zone)

    @property
    def numeric(self) -> list[str]:
        """The columns with a number in some cell, except the labels of rows and unnamed row
        numbers.
        """
        return [
            name
            for k, name in enumerate(self.names)
            if name and k != self._label[0] and any(map(is_number, self._cells[k]))
        ]

    @property
    def dated(self) -> list[str]:
        """The column of dates, if there is one."""
        k, is_date = self._label
        return [self.names[k]] if k is not None and is_date else []

    @cached_property
    def _label(self) -> tuple[int | None, bool]:
        """The first column that begins with a date, otherwise the first column if it holds no
        numbers; and whether it holds dates.
        """
        for k, (name, cells) in enumerate(zip(self.names, self._cells, strict=True)):
            is_first = not any(self.names[:k]) and name.lower() in HEADERS
            years = is_first and {*map(len, cells)} == {4}
            if self._is_date(next(filter(None, cells), ""), years):
                return k, True
        if self.dialect.date_format is not None:
            raise ValueError(
                f"{self.path}: no column holds dates of the format"
                f" {shown(self.dialect.date_format)}, expected a column of them; a format is such"
                " as '%d/%m/%Y', with each directive once"
            )
        for k, cells in enumerate(self._cells):
            if calendars.is_date(next(filter(None, cells), "")):
                return k, True  # in another notation, which `columns` refuses
        named = self.names[0].lower() in HEADERS
        is_label = len(self.names) > 1 and (named or not any(map(is_number, self._cells[0])))
        return (0 if is_label else None), False

    def _is_date(self, cell: str, years: bool) -> bool:
        """Return whether a cell is a date; with `years`, a whole number of four digits also is."""
        if self.dialect.date_format is None:
            return ISO_DATE.fullmatch(cell) is not None and (years or "-" in cell)
        try:
            return bool(datetime.datetime.strptime(cell, self.dialect.date_format))
        except (ValueError, re.error):  # re.error: a directive comes twice
            return False

    def _numbers(self, k: int, may_be_text: bool) -> Any:
        """Return the numbers of a column, or its text, (N,)."""
        cells = self._cells[k]
        if may_be_text and any(cells) and not any(map(is_number, cells)):
            return np.array(cells, object)
        points = [cell.translate(self._signs) for cell in cells] if self._signs else cells
        numbers = np.array([*map(_float, points)])
        for row in map(int, np.flatnonzero(~np.isfinite(numbers))):
            if cell := cells[row]:
                hint = ""
                if "," in cell and not self._signs:
                    hint = "; if the comma is a decimal sign, say so with --decimal , (decimal=',')"
                raise ValueError(
                    f"{self.line(row)}, column {self.names[k]} holds {shown(cell)}, expected a"
                    f" finite number or nothing for a gap{hint}"
                )
        return numbers


def check_names(path: AnyPath, names: Sequence[str]) -> None:
    """Raise ValueError if a file has too many columns, or a column's name is too long."""
    if len(names) > COLUMNS:
        raise ValueError(f"{path}: the header has {len(names)} columns, expected at most {COLUMNS}")
    longest = max(map(len, names), default=0)
    if longest > NAME:
        raise ValueError(
            f"{path}: the name of a column has {longest} characters, expected at most {NAME}"
        )


def is_number(cell: str) -> bool:
    """Return whether a cell holds a number with a decimal point or comma."""
    return not math.isnan(_float(cell.replace(",", ".")))


def _float(text: str) -> float:
    """Return a text as a number, or NaN if it is not one."""
    try:
        return float(text) if text else math.nan  # quicker than catching an error
    except ValueError:
        return math.nan
