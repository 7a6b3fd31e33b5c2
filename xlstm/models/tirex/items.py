"""Series from users' arrays and tables as rows for a TiRex, and forecasts of the same kind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreign import is_foreign
from xlstm.arrays.namespace import Params
from xlstm.data import frames
from xlstm.data.host import LARGEST, Host, Values, floats
from xlstm.data.panels import Panel, Roles
from xlstm.data.time_series import Covariates, TimeSeries
from xlstm.models.tirex import transforms
from xlstm.models.tirex.transforms import Mask

FORMS = {
    1: "(L,), (B, L), or a list of (L,)",
    2: "(L,), (B, L), (B, V, L), or a list of (L,) or (V, L)",
}
MEDIAN = (0.5,)
COPIED = 1 << 23  # the most values of series that are copied at once


class HorizonWarning(RuntimeWarning):
    """A warning: a forecast is longer than the trained horizon,
    or so long that its last windows hold no value of the series."""


class Forecast(NamedTuple):
    """Forecasts of the steps after the end of series, as float64 on the host.

    For a table, they are tables of the same library.

    Attributes
    ----------
    quantiles : array (..., H, Q), list of arrays, or table
        The quantiles. The axes are those of the series, with (H, Q) in place of time. If series
        differ in their number of targets, it is a list.
    mean : array (..., H), list of arrays, or table
        The median, which the published packages call the mean.
    levels : tuple of Q floats
        The levels of the quantiles, between 0 and 1.
    """

    quantiles: Any
    mean: Any
    levels: tuple[float, ...]


class SeriesBatch(NamedTuple):
    """The series of one call as rows (V, L), with the given number of axes of each.

    It also says whether a single series was given, not a list.
    """

    rows: list[Values]
    axes: list[int]
    single: bool

    def forecast(
        self, q: Sequence[Values], trained: Sequence[float], levels: tuple[float, ...]
    ) -> Forecast:
        """Return a forecast at other levels, made of quantiles (V, H, Q) at trained levels."""
        quantiles = [transforms.between(values, trained, levels) for values in q]
        median = [transforms.between(values, trained, MEDIAN)[..., 0] for values in q]
        return Forecast(self._like(quantiles), self._like(median), levels)

    def _like(self, results: Sequence[Values]) -> Any:
        """Return results (V, ...) of each series in the layout of the series: an array, or a list
        if they differ.
        """
        pairs = zip(results, self.axes, strict=True)
        shaped = [result[0] if axes == 1 else result for result, axes in pairs]
        if self.single:
            return shaped[0]
        return np.stack(shaped) if len({result.shape for result in shaped}) == 1 else shaped


def read_arrays(where: str, series: Any, most: int, name: str = "series") -> SeriesBatch:
    """Return one or several series, each with at most `most` axes, 1 or 2; `name` is the argument's
    name.

    Raises
    ------
    TypeError, ValueError
        The argument is not series, a series has no values, or a value is beyond 1e150.
    """
    expected = FORMS[most]
    if isinstance(series, np.ndarray) and series.dtype == object and series.ndim == 1:
        series = list(series)
    first = series[0] if isinstance(series, list | tuple) and len(series) else 0.0
    if not isinstance(first, list | tuple | range) and not np.ndim(first):
        array = _numbers(where, name, series, expected)
        if array.ndim == 1:
            return SeriesBatch([_row(where, name, array, 1)], [1], True)
        if not 2 <= array.ndim <= most + 1:
            raise ValueError(f"{where}: {name} has shape {array.shape}, expected {expected}")
        series = list(array)
    if len(series) == 0:
        raise ValueError(f"{where}: {name} is empty, expected {expected}")
    batch = SeriesBatch([], [], False)
    for k, value in enumerate(series):
        array = _numbers(where, f"{name}[{k}]", value, expected)
        batch.axes.append(array.ndim)
        batch.rows.append(_row(where, f"{name}[{k}]", array, most))
    return batch


def _numbers(where: str, name: str, value: Any, expected: str) -> Values:
    """Return numbers of any kind as float64 on the host, with NaN for missing or masked ones."""
    if frames.has_columns(value):
        raise TypeError(
            f"{where}: {name} is a table, expected {expected}; forecast takes one table, with"
            " series_id for several series"
        )
    if checks.is_masked(value):
        value = np.where(np.ma.getmaskarray(value), np.nan, np.ma.getdata(value))
    if hasattr(value, "__dlpack__") or is_foreign(value):
        value = to_numpy(value)
    try:
        array = floats(where, name, value, expected)
    except TypeError:
        if frames.is_table(value):  # a column whose library has its own missing values
            return frames.table_of(f"{where}: {name}", value).values[:, 0]
        raise
    if not array.ndim:
        raise TypeError(f"{where}: {name} is {checks.shown(value)}, expected numbers {expected}")
    return array


def _row(where: str, name: str, array: Values, most: int) -> Values:
    """Return a series as (V, L), with NaN for infinity."""
    if array.ndim > most or 0 in array.shape:
        expected = "(L,)" if most == 1 else "(L,) or (V, L)"
        raise ValueError(
            f"{where}: {name} has shape {array.shape}, expected {expected}, of one value or more"
        )
    array = np.where(np.isinf(array), np.nan, array)
    for at in np.argwhere(np.abs(array) > LARGEST).tolist():
        raise ValueError(
            f"{where}: {name}{at} is {array[*at]:g}, expected numbers from {-LARGEST:g} to"
            f" {LARGEST:g}"
        )
    return array.reshape(-1, array.shape[-1])


class Item(NamedTuple):
    """Series that are forecast together: targets (V, L), past covariates (P, L), and future
    covariates (F, L + H).
    """

    target: Values
    past: Values
    future: Values

    def until(self, end: int, most: int | None = None) -> Item:
        """Return the item's last `most` steps, or all, before `end`, with future covariates."""
        start = 0 if most is None else max(0, end - most)
        return Item(self.target[:, start:end], self.past[:, start:end], self.future[:, start:])


def read_items(
    where: str, model: Any, series: Any, past: Any = None, future: Any = None, horizon: int = 0
) -> tuple[SeriesBatch, list[Item]]:
    """Return targets as given, and the items of targets and covariates; items of TiRex-1 are single
    series.

    Raises
    ------
    TypeError, ValueError
        `series` are not series, covariates have the wrong length, or the model takes no covariates.
    """
    batch = read_arrays(where, series, 2 if model.COVARIATES else 1)
    beside = Covariates(past, future)
    for name, value in beside._asdict().items():
        if value is not None and not model.COVARIATES:
            raise ValueError(
                f"{where}: {name} is {checks.shown(value)}, expected None: TiRex takes no"
                " covariates, TiRex2 does"
            )
    items = []
    each = [beside] if batch.single else beside.each(where, len(batch.rows))
    for k, (target, covariates) in enumerate(zip(batch.rows, each, strict=True)):
        L = target.shape[1]
        entry = "" if batch.single else f"[{k}]"
        past = _covariate(where, f"past{entry}", covariates.past, L)
        future = _covariate(where, f"future{entry}", covariates.future, L + horizon)
        if past.shape[1] != L:
            raise ValueError(
                f"{where}: past{entry} has {past.shape[1]} steps, expected {L}, as many as the"
                " series"
            )
        if future.shape[1] < L + horizon:
            raise ValueError(
                f"{where}: future{entry} has {future.shape[1]} steps, expected {L + horizon} or"
                f" more, {L} of the series and {horizon} of the horizon"
            )
        items.append(Item(target, past, future))
    return batch, items


def _covariate(where: str, name: str, value: Any, steps: int) -> Values:
    """Return the covariates of a series, (K, N); K is 0 if it has none."""
    if value is None:
        return np.empty((0, steps))
    return _row(where, name, _numbers(where, name, value, "(N,) or (K, N)"), 2)


class ItemRows(NamedTuple):
    """The rows of items: targets, past and future covariates of the first item, then of the second,
    and so on.

    Attributes
    ----------
    x : array (R, N)
        Windows that end with the steps to forecast.
    targets : bool array (R,)
        Whether each row is forecast.
    known : bool array (R,)
        Whether each row is a covariate with values in the steps to forecast.
    groups : whole numbers (R,)
        The item of each row.
    """

    x: Values
    targets: Mask
    known: Mask
    groups: Host

    @classmethod
    def of(cls, item: Item, horizon: int, ahead: int, context: int) -> ItemRows:
        """Return the rows of an item.

        Parameters
        ----------
        item : Item
        horizon : int
            Steps H to forecast, at most `ahead`.
        ahead : int
            Steps at the end of the window that are forecast or unused.
        context : int
            Steps of the window before these.
        """
        width = context + ahead
        end = item.target.shape[1] + horizon
        windows = np.stack(
            [
                transforms.last(row[:end], width, ahead - horizon + max(0, end - len(row)))
                for row in itertools.chain(*item)
            ]
        )
        targets = np.arange(len(windows)) < len(item.target)
        known = ~targets & np.any(~np.isnan(windows[:, context:]), axis=1)
        return cls(windows, targets, known, np.zeros(len(windows), np.int64))

    @classmethod
    def joined(cls, parts: Sequence[ItemRows]) -> ItemRows:
        """Return the rows of several items, each item in its own group."""
        whole = cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return whole._replace(
            groups=np.repeat(np.arange(len(parts)), [len(part.x) for part in parts])
        )

    @property
    def marks(self) -> dict[str, Any]:
        """The arguments of `TiRex2.forward` that say which rows belong together."""
        return {"groups": self.groups, "targets": self.targets, "known": self.known}


def is_table(where: str, series: Any, **names: Any) -> bool:
    """Return whether series are a table; if not, raise ValueError for arguments `names` that need
    one.
    """
    if frames.has_columns(series):
        return True
    for name, value in names.items():
        if value is not None:
            raise ValueError(
                f"{where}: {name} is {checks.shown(value)}, expected None, as series is no table"
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
    """Return series as given and as time series, with `steps` rows ahead; see `data.panels.Panel`.

    Raises
    ------
    ValueError, TypeError
        As for `Panel.of` and `Panel.read`, or the model does not take the covariates.
    """
    panel = Panel.of(where, table, covariates, roles, fitted, later)
    series = panel.read(where, steps, gaps=True)
    for k, read in enumerate(series):
        if read.static.size:
            raise ValueError(f"{where}: static has {read.static.size} numbers, expected none")
        columns = read.past.shape[1] + read.future.shape[1]
        if columns and not model.COVARIATES:
            raise ValueError(
                f"{where}: past and future have {columns} columns, expected none: TiRex takes no"
                " covariates, TiRex2 does"
            )
        more = len(read.future) - len(read.values)
        if read.future.shape[1] and more < steps:
            owner = f"series {panel.ids[k]!r}" if panel.ids else "the series"
            raise ValueError(f"{where}: {later} has {more} rows after {owner}, expected {steps}")
    return panel, series


class Pretrained(NamedTuple):
    """A TiRex with its parameters, and the keywords of its forecasts."""

    model: Any
    params: Params
    options: Mapping[str, Any]

    def after(self, panel: Panel, series: Sequence[TimeSeries], steps: int) -> Forecast:
        """Return forecasts after the ends of series, in the kind of the given series."""
        median, q = self._at([(read, len(read.values)) for read in series], steps)
        levels = self.options["quantiles"]
        quantiles = panel.forecast_frame(list(q), [f" {level:g}" for level in levels])
        return Forecast(quantiles, panel.forecast_frame(list(median)), levels)

    def forecast(
        self, series: TimeSeries, origins: Sequence[int], steps: int
    ) -> tuple[Values, Values]:
        """Return the median (M, H, C) and quantiles (M, H, C, Q) of forecasts from each origin."""
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

        A model without covariates sees each target separately.
        """
        if self.model.COVARIATES:
            arguments = {
                "series": [series.values[:end].T for series, end in ends],
                "past": [series.past[:end].T if series.past.size else None for series, end in ends],
                "future": [_until(series.future, end + steps) for series, end in ends],
            }
        else:
            arguments = {"series": [row for series, end in ends for row in series.values[:end].T]}
        ahead = self.model.forecast(self.params, horizon=steps, **arguments, **self.options)
        shape = (len(ends), -1, steps, len(ahead.levels))
        median = ahead.mean.reshape(shape[:3]).swapaxes(1, 2)
        return median, ahead.quantiles.reshape(shape).swapaxes(1, 2)


def _until(future: Values, rows: int) -> Values | None:
    """Return future covariates (K, N) with `rows` rows or more; missing values are NaN."""
    if not future.size:
        return None
    more = max(0, rows - len(future))
    return np.pad(future.T, ((0, 0), (0, more)), constant_values=np.nan)


def forecast_table(
    model: Any,
    params: Params,
    table: Any,
    horizon: int,
    roles: Roles,
    later: Any,
    **options: Any,
) -> Forecast:
    """Run `forecast` of a model on a table; that method describes the arguments."""
    where = type(model).__name__
    roles = roles.checked(where)
    if not (frames.has_columns(later) if roles.future else later is None):
        raise TypeError(
            f"{where}: later is {checks.shown(later)}, expected a table with the {horizon} rows"
            " ahead of the columns of future, or None where it names no column"
        )
    panel, series = read_table(
        where, model, table, Covariates(future=later), roles, horizon, later="later"
    )
    return Pretrained(model, params, options).after(panel, series, horizon)
