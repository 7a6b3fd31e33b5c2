"""Series as users give them, arrays or tables, as the rows that a TiRex sees, and forecasts in the
same kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreign import is_foreign
from xlstm.arrays.namespace import Params
from xlstm.data import frames
from xlstm.data.host import LARGEST, Values
from xlstm.data.panels import Covariates, Panel, Roles, TimeSeries
from xlstm.models.tirex import transforms
from xlstm.models.tirex.transforms import Mask

FORMS = {
    1: "(L,), (B, L), or a list of (L,)",
    2: "(L,), (B, L), (B, V, L), or a list of (L,) or (V, L)",
}
MEDIAN = (0.5,)
COPIED = 1 << 23  # values of series that are copied at once


class HorizonWarning(RuntimeWarning):
    """A forecast reaches further than the model was trained for, or than it sees values of the
    series.
    """


class Forecast(NamedTuple):
    """Forecasts of the steps after the end of series, in float64 on the host.

    Those of a table are tables of the same library.

    Attributes
    ----------
    quantiles : array (..., H, Q), list of arrays, or table
        The axes are those of the series, with those of the forecast in the place of the time. It is
        a list where series of several targets differ in their number.
    mean : array (..., H), list of arrays, or table
        The median, which the published packages call so.
    levels : tuple of Q floats
        The levels of the quantiles.
    """

    quantiles: Any
    mean: Any
    levels: tuple[float, ...]


class Series(NamedTuple):
    """Series of one call as rows (V, L), the axes that each came with, and whether one came without
    a list.
    """

    rows: list[Values]
    axes: list[int]
    single: bool

    def forecast(
        self, q: Sequence[Values], trained: Sequence[float], levels: tuple[float, ...]
    ) -> Forecast:
        """Return quantiles (V, H, Q) of trained levels for each series as a forecast of other
        levels.
        """
        median = [transforms.between(one, trained, MEDIAN)[..., 0] for one in q]
        return Forecast(
            self._like([transforms.between(one, trained, levels) for one in q]),
            self._like(median),
            levels,
        )

    def _like(self, results: Sequence[Values]) -> Any:
        """Return results (V, ...) of each series in the layout of the series: an array, or a list
        where they differ.
        """
        shaped = [
            one[0] if axes == 1 else one for one, axes in zip(results, self.axes, strict=True)
        ]
        if self.single:
            return shaped[0]
        return np.stack(shaped) if len({one.shape for one in shaped}) == 1 else shaped


def read_arrays(where: str, series: Any, most: int, name: str = "series") -> Series:
    """Return one series, or several, each of at most so many axes, 1 or 2; `name` is that of the
    argument.

    Raises
    ------
    TypeError, ValueError
        They are no such thing, a series has no values, or a value is beyond 1e150.
    """
    if isinstance(series, np.ndarray) and series.dtype == object and series.ndim == 1:
        series = list(series)
    first = series[0] if isinstance(series, list | tuple) and len(series) else 0.0
    if not isinstance(first, list | tuple | range) and not np.ndim(first):
        array = _numbers(where, name, series, FORMS[most])
        if array.ndim == 1:
            return Series([_row(where, name, array, 1)], [1], True)
        if not 2 <= array.ndim <= most + 1:
            raise ValueError(f"{where}: {name} has shape {array.shape}, expected {FORMS[most]}")
        series = list(array)
    if len(series) == 0:
        raise ValueError(f"{where}: {name} is empty, expected {FORMS[most]}")
    arrays = [_numbers(where, f"{name}[{k}]", one, FORMS[most]) for k, one in enumerate(series)]
    rows = [_row(where, f"{name}[{k}]", one, most) for k, one in enumerate(arrays)]
    return Series(rows, [one.ndim for one in arrays], False)


def _numbers(where: str, name: str, given: Any, expected: str) -> Values:
    """Return numbers of any kind as float64 on the host, NaN for those that are missing or
    masked.
    """
    if frames.has_columns(given):
        advice = "forecast takes one table, with series_id for several series"
        raise TypeError(f"{where}: {name} is a table, expected {expected}; {advice}")
    if checks.is_masked(given):
        given = np.where(np.ma.getmaskarray(given), np.nan, np.ma.getdata(given))
    elsewhere = not isinstance(given, np.ndarray) and (
        hasattr(given, "__dlpack__") or is_foreign(given)
    )
    array = checks.host(where, name, to_numpy(given) if elsewhere else given, expected)
    try:
        if array.dtype.kind not in "fiubO" or not array.ndim:
            raise TypeError
        return array.astype(np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        if frames.is_table(given):  # a column with missing values of its library's own kind
            return frames.table_of(f"{where}: {name}", given).values[:, 0]
        raise TypeError(
            f"{where}: {name} is {checks.shown(given)}, expected numbers {expected}"
        ) from None


def _row(where: str, name: str, array: Values, most: int) -> Values:
    """Return a series as (V, L), with NaN for infinity."""
    if array.ndim > most or 0 in array.shape:
        expected = "(L,)" if most == 1 else "(L,) or (V, L)"
        raise ValueError(
            f"{where}: {name} has shape {array.shape}, expected {expected}, of one value or more"
        )
    array = np.where(np.isinf(array), np.nan, array)
    beyond = np.argwhere(np.abs(array) > LARGEST)
    if len(beyond):
        at = [int(k) for k in beyond[0]]
        expected = f"numbers from {-LARGEST:g} to {LARGEST:g}"
        raise ValueError(f"{where}: {name}{at} is {array[tuple(at)]:g}, expected {expected}")
    return array.reshape(-1, array.shape[-1])


class Item(NamedTuple):
    """Series that are forecast together: targets (V, L), past covariates (P, L), and those known
    later (F, L + H).
    """

    target: Values
    past: Values
    future: Values

    def until(self, end: int, most: int | None = None) -> Item:
        """Return the last `most` steps of the item, or all, as it was before step `end`, with what
        is known later.
        """
        start = 0 if most is None else max(0, end - most)
        return Item(self.target[:, start:end], self.past[:, start:end], self.future[:, start:])


def read_items(
    where: str, model: Any, series: Any, past: Any = None, future: Any = None, horizon: int = 0
) -> tuple[Series, list[Item]]:
    """Return targets as they were given, and each with its covariates; those of TiRex-1 are single
    series.

    Raises
    ------
    TypeError, ValueError
        The series are none, or covariates are not as long as they have to be, or the model takes
        none.
    """
    read = read_arrays(where, series, 2 if model.COVARIATES else 1)
    for name, given in (("past", past), ("future", future)):
        if given is not None and not model.COVARIATES:
            expected = "expected None: TiRex takes no covariates, TiRex2 does"
            raise ValueError(f"{where}: {name} is {checks.shown(given)}, {expected}")
    before = _covariates(where, "past", past, read)
    later = _covariates(where, "future", future, read)
    items = [Item(*parts) for parts in zip(read.rows, before, later, strict=True)]
    for k, item in enumerate(items):
        L = item.target.shape[1]
        entry = "" if read.single else f"[{k}]"
        steps = item.past.shape[1]
        known = item.future.shape[1]
        if steps != L:
            raise ValueError(
                f"{where}: past{entry} has {steps} steps, expected {L}, as many as the series"
            )
        if len(item.future) and known < L + horizon:
            those = "those of the series and of the horizon" if horizon else "those of the series"
            raise ValueError(
                f"{where}: future{entry} has {known} steps, expected {L + horizon} or more, {those}"
            )
    return read, items


def _covariates(where: str, name: str, given: Any, series: Series) -> list[Values]:
    """Return the covariates of each series, (K, N); K is 0 where it has none."""
    count = len(series.rows)
    each: Any = [given] * count if given is None or series.single else given
    if not isinstance(each, list | tuple) and not (hasattr(each, "shape") and len(each.shape) > 1):
        raise TypeError(
            f"{where}: {name} is {checks.shown(each)}, expected one entry for each of {count}"
            " series"
        )
    if len(each) != count:
        raise ValueError(
            f"{where}: {name} has {len(each)} entries, expected one for each of {count} series"
        )
    found = []
    for k, (one, row) in enumerate(zip(each, series.rows, strict=True)):
        entry = name if series.single else f"{name}[{k}]"
        none = np.empty((0, row.shape[1]))
        found.append(
            none
            if one is None
            else _row(where, entry, _numbers(where, entry, one, "(N,) or (K, N)"), 2)
        )
    return found


class Rows(NamedTuple):
    """The rows of items: targets, past and future covariates of the first, then those of the
    second, and so on.

    Attributes
    ----------
    x : array (R, N)
        Windows that end with the steps to forecast.
    targets : bool array (R,)
        Which rows are forecast.
    known : bool array (R,)
        Which are covariates with values among the steps to forecast.
    groups : whole numbers (R,)
        The item of each row.
    """

    x: Values
    targets: Mask
    known: Mask
    groups: np.ndarray[Any, Any]

    @classmethod
    def of(cls, item: Item, horizon: int, ahead: int, context: int) -> Rows:
        """Return the rows of an item.

        Parameters
        ----------
        item : Item
        horizon : int
            Steps H to forecast, at most `ahead`.
        ahead : int
            Steps at the end of the window that are forecast or left over.
        context : int
            Steps before them, those of the window.
        """
        width = context + ahead
        x = [transforms.last(row, width, ahead) for row in (*item.target, *item.past)]
        end = item.target.shape[1] + horizon
        x += [
            transforms.last(row[:end], width, ahead - horizon + max(0, end - len(row)))
            for row in item.future
        ]
        windows = np.stack(x)
        targets = np.arange(len(x)) < len(item.target)
        known = ~targets & np.any(~np.isnan(windows[:, context:]), axis=1)
        return cls(windows, targets, known, np.zeros(len(x), np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Return the rows of several items, each in a group of its own."""
        whole = cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return whole._replace(
            groups=np.repeat(np.arange(len(parts)), [len(part.x) for part in parts])
        )

    @property
    def marks(self) -> dict[str, Any]:
        """The arguments of `TiRex2.forward` that say which rows belong together."""
        return {"groups": self.groups, "targets": self.targets, "known": self.known}


def is_table(where: str, name: str, series: Any, **names: Any) -> bool:
    """Return whether an argument is a table; raise ValueError where it is not, and one of `names`
    is there for it.
    """
    if frames.has_columns(series):
        return True
    for other, given in names.items():
        if given is not None:
            raise ValueError(
                f"{where}: {other} is {checks.shown(given)}, expected None, as {name} is no table"
            )
    return False


def read_table(
    where: str,
    model: Any,
    table: Any,
    covariates: Covariates,
    roles: Roles,
    steps: int = 0,
    fitted: Sequence[str] = (),
    later: str = "future",
) -> tuple[Panel, list[TimeSeries]]:
    """Return series as they were given and as time series, with `steps` rows ahead; see
    `data.panels.Panel`.

    Raises
    ------
    ValueError, TypeError
        As of `Panel.of` and `Panel.read`, or covariates are not those that
        the model takes.
    """
    panel = Panel.of(where, table, covariates, roles, fitted, later)
    series = panel.read(where, steps, gaps=True)
    for k, one in enumerate(series):
        if one.static.size:
            raise ValueError(f"{where}: static has {one.static.size} numbers, expected none")
        columns = one.past.shape[1] + one.future.shape[1]
        if columns and not model.COVARIATES:
            problem = f"past and future have {columns} columns"
            raise ValueError(
                f"{where}: {problem}, expected none: TiRex takes no covariates, TiRex2 does"
            )
        more = len(one.future) - len(one.values)
        if one.future.shape[1] and more < steps:
            owner = "the series"
            if panel.roles.id_name:
                owner = f"series {checks.shown(panel.labels[k])}"
            raise ValueError(f"{where}: {later} has {more} rows after {owner}, expected {steps}")
    return panel, series


def arguments(model: Any, ends: Sequence[tuple[TimeSeries, int]], steps: int = 0) -> dict[str, Any]:
    """Return series, past and future, as `forecast` takes them, of the first rows of each and
    `steps` later ones.

    Those of a model without covariates are the targets, each by itself.
    """
    if not model.COVARIATES:
        return {"series": [column for one, end in ends for column in one.values[:end].T]}
    more = [max(0, end + steps - len(one.future)) for one, end in ends]
    return {
        "series": [one.values[:end].T for one, end in ends],
        "past": [one.past[:end].T if one.past.size else None for one, end in ends],
        "future": [
            (
                np.pad(one.future.T, ((0, 0), (0, n)), constant_values=np.nan)
                if one.future.size
                else None
            )
            for (one, _), n in zip(ends, more, strict=True)
        ],
    }


class Pretrained(NamedTuple):
    """A TiRex with its parameters, and the keywords of its forecasts of tables and of time
    series.
    """

    model: Any
    params: Params
    options: Mapping[str, Any]

    def after(self, panel: Panel, series: Sequence[TimeSeries], steps: int) -> Forecast:
        """Return forecasts after the ends of series, in the kind that the series came in."""
        median, q = self._at([(one, len(one.values)) for one in series], steps)
        levels = self.options["quantiles"]
        suffixes = [f" {level:g}" for level in levels]
        quantiles = panel.forecast_frame(list(q), series, suffixes)
        return Forecast(quantiles, panel.forecast_frame(list(median), series), levels)

    def forecast(
        self, series: TimeSeries, origins: Sequence[int], steps: int
    ) -> tuple[Values, Values]:
        """Return the median (M, H, C) and quantiles (M, H, C, Q) after the rows before each
        origin.
        """
        n = max(1, COPIED // series.values.size)
        parts = [
            self._at([(series, end) for end in origins[k : k + n]], steps)
            for k in range(0, len(origins), n)
        ]
        median, q = (np.concatenate(part) for part in zip(*parts, strict=True))
        return median, q

    def _at(self, ends: Sequence[tuple[TimeSeries, int]], steps: int) -> tuple[Values, Values]:
        """Return the median (M, H, C) and quantiles (M, H, C, Q) after the first rows of each
        series.
        """
        found = self.model.forecast(
            self.params, horizon=steps, **arguments(self.model, ends, steps), **self.options
        )
        shape = (len(ends), -1, steps, len(found.levels))
        return found.mean.reshape(shape[:3]).swapaxes(1, 2), found.quantiles.reshape(
            shape
        ).swapaxes(1, 2)


def forecast_table(
    model: Any,
    params: Params,
    table: Any,
    horizon: int,
    roles: Roles,
    later: Any,
    quantiles: Any,
    **options: Any,
) -> Forecast:
    """Run `forecast` of a model, which describes the arguments, on a table."""
    where = type(model).__name__
    horizon = checks.size(where, "horizon", horizon)
    roles = roles.checked(where)
    levels = transforms.levels_of(where, quantiles, model.quantiles)
    if not (frames.has_columns(later) if roles.future else later is None):
        ahead = f"a table with the {horizon} rows ahead of the columns of future"
        expected = ahead if roles.future else "None, as future names no column"
        raise TypeError(f"{where}: later is {checks.shown(later)}, expected {expected}")
    panel, series = read_table(
        where, model, table, Covariates(future=later), roles, horizon, later="later"
    )
    return Pretrained(model, params, {**options, "quantiles": levels}).after(panel, series, horizon)
