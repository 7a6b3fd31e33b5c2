"""Tables read from files: CSV and Parquet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xlstm.arrays import checks
from xlstm.data import dates
from xlstm.data.frames import Columns, table_of
from xlstm.data.series import column_numbers
from xlstm.data.table import Table


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Columns:
    """Read columns of numbers from a CSV or a Parquet file.

    A CSV file is one as `xlstm.series.read_csv` takes it: with a header, and commas, semicolons, tabs or bars between
    cells. A column of dates, which has to be in ISO 8601 in a CSV file, gives the labels of the rows. The rows stay as
    they are in the file.

    Parameters
    ----------
    path : path
        Its name ends with ".parquet" for a Parquet file, and with anything else for a CSV file.
    columns : list of str, optional
        Names of the columns, in the order in which they are wanted; by default all but the dates. Dates are
        labels of the rows whether they are named or not.

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
    return (_parquet if Path(path).suffix.lower() == ".parquet" else _csv)(Path(path), wanted)


def _csv(path: Path, wanted: list[str] | None) -> Columns:
    table = Table(path)
    dates.check_header(table)
    date = dates.column(table) if table.rows else None
    label = None if date is None else table.header[date]
    wanted = [name for name in (table.header if wanted is None else wanted) if name != label]
    if table.rows == 0 or not wanted:
        raise ValueError(f"{path}: {table.rows} rows under the header and {len(wanted)} columns, expected some")
    for name in wanted:
        if table.header.count(name) != 1:
            problem = "is not in" if name not in table.header else "is more than once in"
            raise ValueError(
                f"{path}: column {checks.shown(name)} {problem} the header, which has {checks.few(table.header)}"
            )
    values = np.stack([column_numbers(table, table.header.index(name)) for name in wanted], axis=1)
    if date is None:
        return Columns(wanted, values)
    text = table.text(date)
    found = dates.read(text, table.line)
    return Columns(wanted, values, text if found is None else found, label)


def _parquet(path: Path, wanted: list[str] | None) -> Columns:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path}: Parquet files need PyArrow and narwhals; pip install pyarrow narwhals") from error
    with path.open("rb") as file:
        try:
            found = parquet.ParquetFile(file)
            names = found.schema_arrow.names
            chosen = names if wanted is None else wanted
            unknown = [name for name in chosen if name not in names]
            kinds = pyarrow.types
            dated = [f.name for f in found.schema_arrow if kinds.is_date(f.type) or kinds.is_timestamp(f.type)]
            chosen = [*chosen, *(dated if len(dated) == 1 and dated[0] not in chosen else [])]
            table = None if unknown else found.read(chosen)
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path}: not a readable Parquet file ({error})") from error
    if unknown:
        raise ValueError(f"{path}: column {checks.shown(unknown[0])} is not in the file, which has {checks.few(names)}")
    return table_of(str(path), table)
