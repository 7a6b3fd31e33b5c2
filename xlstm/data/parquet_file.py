"""Parquet files: columns of numbers and of names, and the dates of rows, read by PyArrow within bounds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xlstm.arrays import checks
from xlstm.data import frames
from xlstm.data.csv_file import check_names
from xlstm.data.frames import Columns
from xlstm.data.host import Values
from xlstm.data.writing import AnyPath

# Few bytes of Parquet can hold any number of cells: so many bytes of them are read, and so many for each of the file.
UNPACKED = 1 << 26, 256


class ParquetFile:
    """A Parquet file, whose columns are read when they are asked for; one that is damaged is a ValueError.

    Attributes
    ----------
    names, numeric, dated : list of str
        All columns, those of numbers, and those of dates.
    rows : int
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = Path(path)
        self._texts: list[str] = []
        with self._opened() as (file, kinds):
            fields, self.rows = file.schema_arrow, file.metadata.num_rows
            check_names(path, fields.names)
            text = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
            number = (kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_boolean)
            self._texts, self.numeric, self.dated = (
                [field.name for field in fields if any(is_kind(field.type) for is_kind in those)]
                for those in (text, number, (kinds.is_date, kinds.is_timestamp))
            )
            self.names = fields.names

    def line(self, row: int) -> str:
        """Name a row, for messages."""
        return f"{self.path}: row {row + 1}"

    def texts(self, name: str) -> Sequence[str]:
        """Return the cells of a column as text, empty where one is missing; equal ones are in memory once."""
        column, cells = self._table([name]).column(name), []
        if column.type.num_fields:
            raise TypeError(f"{self.path}: column {checks.shown(name)} holds {column.type}, expected names")
        for chunk in column.chunks:
            coded = chunk if hasattr(chunk, "dictionary") else chunk.dictionary_encode()
            words = ["" if word is None else str(word) for word in coded.dictionary.to_pylist()]
            cells += ["" if k is None else words[k] for k in coded.indices.to_pylist()]
        return cells

    def numbers(self, names: Sequence[str]) -> Values:
        """Return columns of numbers, (N, C), NaN where a cell is missing."""
        return frames.table_of(str(self.path), self._table(names), names).values

    def columns(self, names: Sequence[str]) -> Columns:
        """Return columns of numbers with the dates of rows, those that are named or else the one column of dates."""
        dates = [name for name in self.dated if name in names] or self.dated * (len(self.dated) == 1)
        wanted = [name for name in names if name not in dates]
        return frames.table_of(str(self.path), self._table([*wanted, *dates]), wanted)

    def _table(self, names: Sequence[str]) -> Any:
        """Return some columns, once their size is checked: that of numbers by rows, that of pages as these say it."""
        frames.places_of(str(self.path), self.names, names, "the header")
        with self._opened() as (file, _):
            metadata, wanted = file.metadata, {*names}
            groups = (metadata.row_group(g) for g in range(metadata.num_row_groups))
            leaves = (group.column(k) for group in groups for k in range(group.num_columns))
            sizes = [one.total_uncompressed_size for one in leaves if one.path_in_schema.partition(".")[0] in wanted]
            size, most = 8 * metadata.num_rows * len(wanted) + sum(sizes), UNPACKED[0] + UNPACKED[1] * self._size
            if size > most:
                held = f"holds {size} bytes in {self._size} of the file, expected at most {most}"
                raise ValueError(f"{self.path}: {checks.few(names)} {held}; take fewer rows")
            table = file.read(names)
            table.validate(full=True)
            return table

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Open the file; errors of a damaged one name it."""
        pyarrow, parquet = packages(self.path)
        with self.path.open("rb") as file:  # the errors of a file that is not there are Python's
            self._size = os.fstat(file.fileno()).st_size
        try:
            # A file of Python would be let go by threads of PyArrow, which abort where Python ends at that moment.
            with pyarrow.OSFile(os.fspath(self.path)) as native:
                yield parquet.ParquetFile(native, read_dictionary=self._texts), pyarrow.types
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # damaged files raise all three
            problem = " ".join(str(error).split())
            raise ValueError(f"{self.path}: not a readable Parquet file ({problem})") from error


def is_parquet(path: AnyPath) -> bool:
    """Return whether the name of a file is that of a Parquet file."""
    return Path(path).suffix.lower() == ".parquet"


def packages(path: Path) -> tuple[Any, Any]:
    """Return the packages that read and write Parquet files."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: Parquet files need PyArrow and narwhals; pip install pyarrow narwhals") from error
    return pyarrow, parquet
