"""Tables of pandas, Polars and PyArrow: columns as numbers, and numbers as a table of the same
kind.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy

Rows = np.ndarray[Any, np.dtype[np.int64]]
LIBRARIES = ("pandas", "polars", "pyarrow", "modin", "cudf")


@dataclass(frozen=True, eq=False)
class Columns:
    """The numbers of a table, with the names of its columns and the labels of its rows.

    Attributes
    ----------
    names : list of str
        Names of the columns of numbers.
    values : float64 array (N, C)
        The numbers, with NaN for a missing one. If a column may be text and is, the array holds
        objects, with "" for a missing text.
    index : array (N,) or None
        Dates or other labels of the rows. They come from the index of pandas, or from the one
        column of dates, which takes precedence over an index of whole numbers. None if rows have no
        labels, or only their numbers.
    index_name : str or None
        The name of the index, or of the column of dates.
    zone : str or None
        The time zone of the table's dates; `index` has them in UTC.
    """

    names: list[str]
    values: np.ndarray[Any, np.dtype[np.floating[Any]]] = field(repr=False)
    index: np.ndarray[Any, Any] | None = field(default=None, repr=False)
    index_name: str | None = None
    zone: str | None = None

    @property
    def dates(self) -> Any:
        """The index if it holds dates, otherwise None."""
        return self.index if self.index is not None and self.index.dtype.kind == "M" else None

    def take(self, rows: Any) -> Columns:
        """Return some of the rows."""
        index = None if self.index is None else self.index[rows]
        return replace(self, values=self.values[rows], index=index)

    def numbers(self, where: str, names: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return the named columns, (N, K), as objects if one of them is text.

        If a column is missing, a ValueError of the caller `where` names it.
        """
        values = self.values[:, places_of(where, self.names, names)]
        return values if has_text(values) else values.astype(np.float64, copy=False)


def is_table(given: Any) -> bool:
    """Return whether an object is a table, or one column, of pandas, Polars or another table
    library.

    Parameters
    ----------
    given : object

    Returns
    -------
    bool
    """
    kinds = () if isinstance(given, type) else type(given).__mro__
    return any(kind.__module__.partition(".")[0] in LIBRARIES for kind in kinds)


def is_on_gpu(given: Any) -> bool:
    """Return whether an object is a column on a GPU, as in cuDF, which NumPy may not read."""
    return hasattr(type(given), "__cuda_array_interface__") and hasattr(given, "to_numpy")


def has_columns(given: Any) -> bool:
    """Return whether an object is a table with columns, not a single column.

    Parameters
    ----------
    given : object

    Returns
    -------
    bool
    """
    return is_table(given) and hasattr(given, "columns")


def table_of(
    where: str,
    given: Any,
    only: Sequence[str] | None = None,
    without: str | None = "",
    texts: Sequence[str] | None = (),
) -> Columns:
    """Return the columns of a table as numbers.

    A column of dates and the index of pandas are labels of the rows, not numbers.

    Parameters
    ----------
    where : str
        The caller, for errors.
    given : table
        A table or one column of pandas, Polars, PyArrow, or another library that narwhals knows.
    only : list of str, optional
        The columns of numbers to read; by default all. These may consist of missing values alone.
    without : str, optional
        A column to leave out.
    texts : list of str, optional
        Columns that may hold text or categories; None for all.

    Returns
    -------
    Columns

    Raises
    ------
    TypeError
        `given` is not a table, or a column holds text or other objects; the error names the column.
    ValueError
        There are no numbers, a column of `only` is missing, two columns have the same name or hold
        dates, or a number is infinite.
    ImportError
        The package narwhals is not installed.
    """
    nw, frame, _, index, dated, is_moved = framed(where, given)
    labels_of = index.name if is_moved else dated
    places_of(where, frame.columns, [name for name in only or () if name != labels_of])
    wanted = {*frame.columns} - {without} if only is None else {*only}
    names = [name for name in frame.columns if name in wanted and name != labels_of]
    if not names or len(frame) == 0:
        raise ValueError(
            f"{where}: the table has {len(frame)} rows and {len(names)} columns of numbers,"
            " expected some"
        )
    arrays = []
    for name in names:
        may_be_text = texts is None or name in texts
        cells = frame.get_column(name)
        may_be_empty = may_be_text or only is not None
        arrays.append(_cells(where, nw, name, cells, may_be_empty, may_be_text))
    columns = Columns([*map(str, names)], np.stack(arrays, axis=1))
    if index is not None:
        labels = index.to_timestamp() if hasattr(index, "to_timestamp") else index  # of periods
        zone = getattr(labels, "tz", None)
        labels = labels if zone is None else labels.tz_convert(None)
        dated = index.name
    elif dated is not None:
        labels = frame.get_column(dated)
        zone = labels.dtype.time_zone if labels.dtype == nw.Datetime else None
        if zone is not None:
            labels = labels.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    else:
        return columns
    return replace(
        columns,
        index=labels.to_numpy(),
        index_name=None if dated is None else str(dated),
        zone=zone and str(zone),
    )


def table_like(given: Any, columns: Mapping[str, Any], index: Any = None) -> Any:
    """Return numbers as a table of the same library as `given`, with its rows' labels or new ones.

    Parameters
    ----------
    given : table
        As for `table_of`.
    columns : dict of str to array (N,)
        The numbers of each column, by name.
    index : array (N,), optional
        Labels of the rows, such as the dates after `given`; by default the labels of `given`. They
        become the index of pandas, or the column in which `given` has its dates.

    Returns
    -------
    table
        A single column if `given` is one and `columns` has one entry, otherwise a table.

    Raises
    ------
    ValueError
        The rows of `given` have labels, `index` is not given, and the numbers of rows differ.
    TypeError, ImportError
        As for `table_of`.
    """
    where = "table_like"
    nw, frame, is_column, old, dated, is_moved = framed(where, given)
    arrays: dict[str, Any] = {name: to_numpy(column) for name, column in columns.items()}
    length = max(map(len, arrays.values()))
    if index is None and length != len(frame) and (old is not None or dated is not None):
        raise ValueError(
            f"{where}: columns have {length} rows, expected {len(frame)}, or index= with their"
            " labels"
        )
    space = nw.get_native_namespace(frame)
    if old is None and dated is not None:
        dates = nw.to_native(frame.get_column(dated)) if index is None else index
        table = nw.from_dict({dated: dates, **arrays}, native_namespace=space)
        if index is not None:
            dates = _dates_like(nw, table.get_column(dated), frame.schema[dated])
            table = table.with_columns(dates)
    else:
        table = nw.from_dict(arrays, native_namespace=space)
    if is_column and len(columns) == 1:
        table = table.get_column(next(iter(columns)))
    table = nw.to_native(table)
    if old is not None:  # pandas and libraries like it
        if index is not None:
            old = _index_like(space.Index(index, name=old.name), old, is_moved)
        table.index = old
    elif index is not None and hasattr(table, "index"):
        table.index = space.Index(index)
    return table.reset_index() if is_moved else table


def names_of(where: str, table: Any) -> list[str]:
    """Return the names of all columns of a table, without its index."""
    return [*map(str, framed(where, table).frame.columns)]


def load_pandas(where: str) -> Any:
    """Return pandas; if it is not installed, the ImportError names the caller and the extra."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            f"{where}: dates need pandas, and so do frames of scores; the extra tables brings it: pip"
            " install 'xlstm-xp[tables]'"
        ) from error
    return pandas


def rows_by(where: str, table: Any, column: str) -> dict[Any, Rows]:
    """Return the rows for each value of a column; raise ValueError if the column is missing or has
    gaps.
    """
    _, frame, _, index, _, is_moved = framed(where, table)
    if is_moved and index.name == column:
        return grouped(index)
    places_of(where, frame.columns, [column])
    labels = frame.get_column(column)
    if labels.is_null().any():
        raise ValueError(
            f"{where}: column {checks.shown(column)} has missing values, expected the name of a"
            " group"
        )
    return grouped(labels.to_list())


def grouped(labels: Iterable[Any]) -> dict[Any, Rows]:
    """Return the row numbers for each label; labels keep the order of their first rows."""
    rows = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    return {label: np.array(places) for label, places in rows.items()}


def has_text(cells: Any) -> bool:
    """Return whether an array holds objects, some of them text."""
    return cells.dtype == object and any(isinstance(cell, str) for cell in cells.flat)


def places_of(
    where: str, names: Iterable[Any], wanted: Sequence[str], of: str = "the table"
) -> list[int]:
    """Return the positions of wanted columns among all names; raise ValueError unless each occurs
    once.
    """
    listed = [*map(str, names)]
    counts = Counter(listed)
    places = {name: k for k, name in enumerate(listed)}
    for name in wanted:
        if counts[name] != 1:
            problem = "is more than once in" if counts[name] else "is not in"
            raise ValueError(
                f"{where}: column {checks.shown(name)} {problem} {of}, which has"
                f" {checks.few(listed)}"
            )
    return [places[name] for name in wanted]


class _Frame(NamedTuple):
    """A table in the form of narwhals.

    Attributes
    ----------
    nw : module
        narwhals.
    frame : narwhals.DataFrame
    is_column : bool
        Whether it was given as a single column.
    index : pandas.Index or None
        The labels of the rows of pandas. Its dates are always here, since narwhals knows neither
        all of pandas's time zones nor its periods.
    dated : str or None
        The column of dates of another library.
    is_moved : bool
        Whether a column of pandas became the index.
    """

    nw: Any
    frame: Any
    is_column: bool
    index: Any
    dated: Any
    is_moved: bool


def framed(where: str, table: Any) -> _Frame:
    """Return a table in the form of narwhals; raise TypeError if it is not a table."""
    try:
        import narwhals.stable.v1 as nw
    except ImportError as error:
        raise ImportError(
            f"{where}: tables need narwhals, which the extra tables brings: pip install"
            " 'xlstm-xp[tables]'"
        ) from error
    try:
        frame = nw.from_native(table, eager_only=True, allow_series=True)
        is_column = isinstance(frame, nw.Series)
        frame = frame.to_frame() if is_column else frame
        schema = frame.schema  # raises if two columns have the same name
    except Exception as error:  # its kind depends on the version of narwhals
        raise TypeError(
            f"{where}: {checks.shown(type(table))} is not taken as a table"
            f" ({' '.join(str(error).split())})"
        ) from error
    native = nw.to_native(frame)
    dated = []
    for name, dtype in schema.items():
        own = getattr(native[name], "dtype", None) if dtype == nw.Unknown else None
        is_date = getattr(own, "kind", "") == "M" or hasattr(own, "freq")
        if is_date or dtype in (nw.Date, nw.Datetime):
            dated.append(name)
    if len(dated) > 1:
        raise ValueError(
            f"{where}: columns {checks.few(map(str, dated))} hold dates, expected at most one"
            " column of dates"
        )
    index = getattr(native, "index", None)
    is_numbers = getattr(getattr(index, "dtype", None), "kind", "O") in "iu"
    if type(index).__name__ == "RangeIndex" or (dated and is_numbers):
        index = None
    is_moved = bool(dated) and index is None and hasattr(native, "set_index")
    if is_moved:
        native = native.set_index(dated.pop())
        frame = nw.from_native(native)
        index = native.index
    is_date = getattr(getattr(index, "dtype", None), "kind", "") == "M"
    if is_date and not hasattr(index, "tz"):  # dates of PyArrow
        index = load_pandas(where).DatetimeIndex(index)
    return _Frame(nw, frame, is_column, index, next(iter(dated), None), is_moved)


def _cells(
    where: str, nw: Any, name: Any, cells: Any, may_be_empty: bool, may_be_text: bool
) -> Any:
    """Return the cells of a column as float64 (N,), with NaN for a missing cell, or as text, with
    "".

    Other cells raise an error. As text, 1 and 1.0 have the same name.
    """
    column = checks.shown(str(name))
    if may_be_empty and cells.is_null().all():  # its dtype then means nothing
        return np.full(len(cells), np.nan)
    if may_be_text and cells.dtype in (nw.String, nw.Categorical, nw.Enum):
        # a gap turns whole numbers into floats, but their names stay the same
        names = (str(cell).removesuffix(".0" * isinstance(cell, float)) for cell in cells.to_list())
        words = np.array([*names], object)
        words[cells.is_null().to_numpy()] = ""
        return words
    if not (cells.dtype.is_numeric() or cells.dtype == nw.Boolean):
        expected = "numbers, dates, or names of series (series_id); leave it out or encode it"
        if may_be_text:
            objects = cells.to_list()
            is_null = cells.is_null().to_list()
            odd = (k for k, cell in enumerate(objects) if not (is_null[k] or isinstance(cell, str)))
            first = next(odd, 0)
            expected = f"all numbers or all text; row {first} is {checks.shown(objects[first])}"
        raise TypeError(f"{where}: column {column} holds {cells.dtype}, expected {expected}")
    try:
        numbers = np.asarray(cells.cast(nw.Float64).to_numpy(), np.float64)
    except ValueError as error:  # PyArrow casts no whole number that float64 does not have
        raise ValueError(f"{where}: column {column} does not go into float64 ({error})") from error
    for row in np.flatnonzero(np.isinf(numbers)):
        raise ValueError(
            f"{where}: column {column} is {numbers[row]:g} in row {row}, expected a finite number,"
            " or none for a gap"
        )
    return numbers


def _dates_like(nw: Any, dates: Any, dtype: Any) -> Any:
    """Return dates in the dtype of another column; dates without a time zone are in UTC."""
    if dtype == nw.Date:
        return dates.cast(nw.Date)
    dates = dates.cast(nw.Datetime(dtype.time_unit))
    if dtype.time_zone is not None:
        dates = dates.dt.replace_time_zone("UTC").dt.convert_time_zone(dtype.time_zone)
    return dates


def _index_like(index: Any, old: Any, is_column: bool) -> Any:
    """Return an index of pandas with the time zone or the periods of `old`, and a column's dtype.

    Dates without a zone are in UTC.
    """
    if hasattr(old, "to_timestamp") and hasattr(index, "to_period"):
        return index.to_period(old.freq)
    if getattr(old, "tz", None) is not None and getattr(index, "tz", old.tz) is None:
        return index.tz_localize("UTC").tz_convert(old.tz).astype(old.dtype)
    return index.astype(old.dtype) if is_column else index
