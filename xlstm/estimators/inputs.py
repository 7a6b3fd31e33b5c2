"""Convert X, y and sample weights, in scikit-learn's forms, to sequences and targets."""

from __future__ import annotations

import itertools
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.data.frames import is_on_gpu
from xlstm.data.host import LARGEST, Host
from xlstm.data.series_windows import carry_forward

FORMS = "(N, T, D), (N, T) or a list of (T, D)"
MANY = (
    "Reshape your data either using array.reshape(-1, 1) if it has one feature or array.reshape(1,"
    " -1) if it is one row"
)


class InputSequences(NamedTuple):
    """Sequences (T_i, D) of float64, or lists of symbols, and the form in which they came.

    Attributes
    ----------
    rows : list of array (T_i, D), or list of lists of symbols
    is_table : bool
        Whether X was a table (N, T) whose columns are steps.
    features : int
        The number of features as scikit-learn counts them: the columns of a table, or else the
        width D.
    names : list of str or None
        The names of the columns of a table.
    """

    rows: list[Any]
    is_table: bool
    features: int
    names: list[str] | None = None


def sequences(where: str, X: Any, tables: bool = True, missing: bool = False) -> InputSequences:
    """Return X as a list of sequences.

    Parameters
    ----------
    where : str
        The caller, for errors.
    X : array (N, T, D), list of N arrays (T_i, D) or (T_i,), or table or array (N, T), D = 1
        An array of objects (N,) and a Series of pandas or Polars count as lists.
    tables : bool
        Whether a list of lists of equal length counts as the rows of a table.
    missing : bool
        Whether numbers may be NaN.

    Returns
    -------
    InputSequences

    Raises
    ------
    TypeError, ValueError
        X has none of these forms. A number is missing although `missing` is False, is infinite, or
        is so large that its square overflows.
    """
    if hasattr(X, "toarray"):
        raise TypeError(f"{where}: X is sparse, which is not supported; X.toarray() makes it dense")
    if hasattr(X, "to_numpy") and not hasattr(X, "columns"):
        X = X.to_numpy()
    is_held = isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1
    if is_held or (isinstance(X, list | tuple) and not (tables and _is_regular(X))):
        return _of_list(where, X, missing)
    array = _numbers(where, "X", X)
    if array.ndim and len(array) == 0:
        raise ValueError(
            f"{where}: X has shape {array.shape}, found 0 sample(s) while a minimum of 1 is"
            " required."
        )
    if array.ndim not in (2, 3):
        raise ValueError(f"{where}: X has shape {array.shape}, expected {FORMS}. {MANY}.")
    if 0 in array.shape:
        raise ValueError(
            f"{where}: X: 0 feature(s) (shape={array.shape}) while a minimum of 1 is required."
        )
    _finite(where, "X", array, missing)
    if array.ndim == 2:
        return InputSequences(list(array[:, :, None]), True, array.shape[1], _names(X))
    return InputSequences(list(array), False, array.shape[2])


def scaled(row: Host, mean: Host, std: Host, average: Host | None) -> Host:
    """Return a sequence (T, D) scaled by mean and deviation, and with an indicator of missing
    numbers (T, 2D) if you give averages.

    With averages, the last value of the feature replaces NaN; before the first value, its average
    does. A second column for each feature is 1 at the steps where it was NaN, else 0 (Lipton et al.
    2016; "forward" in Che et al. 2018).

    Parameters
    ----------
    row : array (T, D)
    mean, std : array (D,) or (T, 1)
    average : array (D,) or (T, 1), optional
    """
    if average is None:
        return np.asarray((row - mean) / std)
    last = carry_forward(row)
    filled = np.where(np.isnan(last), average, last)
    return np.concatenate(((filled - mean) / std, np.isnan(row)), axis=1)


def _of_list(where: str, X: Any, missing: bool) -> InputSequences:
    """Return a list of arrays as sequences."""
    rows = [_numbers(where, f"X[{k}]", row) for k, row in enumerate(X)]
    if not rows:
        raise ValueError(
            f"{where}: X is empty, found 0 sample(s) while a minimum of 1 is required."
        )
    rows = [row[:, None] if row.ndim == 1 else row for row in rows]
    for k, row in enumerate(rows):
        if row.ndim != 2 or row.shape[1] != rows[0].shape[-1] or 0 in row.shape:
            raise ValueError(
                f"{where}: X[{k}] has shape {row.shape} and X[0] {rows[0].shape}, expected (T, D)"
                " with one D, and a step at least"
            )
        _finite(where, f"X[{k}]", row, missing)
    return InputSequences(rows, False, rows[0].shape[1])


def classified(where: str, y: Any, lengths: list[int], every_step: bool | None) -> tuple[str, Host]:
    """Return the kind of target that y holds, by the rules of `SequenceClassifier`, and its labels.

    Parameters
    ----------
    where : str
        The caller, for errors.
    y : array (N,), (N, T) or (N, L), or list of arrays (T_i,)
    lengths : list of int
        Steps of each of the N sequences.
    every_step : bool, optional
        Whether y has a label for each step; by default its form decides.

    Returns
    -------
    kind : {"sequence", "step", "multilabel"}
    labels : array (N,), (sum of T_i,) for all steps one after another, or float64 (N, L) of 0 and 1

    Raises
    ------
    ValueError
        The number of labels is wrong, a label is missing, or labels are of several kinds.
    """
    rows = _rows(where, y, each=bool(every_step))
    widths = [len(row) for row in rows]
    if every_step is None:
        every_step = max(widths, default=0) > 1 and (widths == lengths or len({*widths}) > 1)
    if every_step:
        for k, (width, T) in enumerate(itertools.zip_longest(widths, lengths, fillvalue=0)):
            if width != T:
                raise ValueError(
                    f"{where}: y[{k}] has {width} labels, expected {T}, one for each step of X[{k}]"
                )
        listed = (
            row if isinstance(row, list | tuple) else _host(where, "y", row).tolist()
            for row in rows
        )
        return "step", labels(where, [*itertools.chain(*listed)], sum(lengths), "y flattened")
    if max(widths, default=0) <= 1:
        return "sequence", labels(where, y, len(lengths))
    array = _column(where, y, len(lengths), True)
    other = array[~np.isin(array, (0, 1))] if array.dtype.kind in "biuf" else array
    if other.size:
        raise ValueError(
            f"{where}: y has shape {array.shape} and holds {other.flat[0]!s:.80}, expected (N,), or"
            " (N, L) of 0 and 1, or (N, T) with a label for each step"
        )
    return "multilabel", array.astype(np.float64)


def labels(where: str, y: Any, count: int, name: str = "y") -> Host:
    """Return labels on the host, (N,).

    Raises
    ------
    ValueError
        The number of labels is not `count`, a label is missing, or labels are of several kinds.
    """
    array = _column(where, y, count, False, name)
    listed = y if isinstance(y, list | tuple) else array.tolist()
    for k, label in enumerate(listed):
        if label is None or (isinstance(label, float) and label != label):
            raise ValueError(
                f"{where}: y contains NaN or None: {name}[{k}] is {label}, expected a label"
            )
        if isinstance(label, str) != isinstance(listed[0], str):
            raise ValueError(
                f"{where}: {name}[{k}] is {checks.shown(label)} and {name}[0]"
                f" {checks.shown(listed[0])}, expected labels of one kind: text or numbers"
            )
    if array.dtype.kind == "f":
        _finite(where, name, array)
    return array


def targets(where: str, y: Any, count: int) -> Host:
    """Return targets on the host as float64, (N,) or (N, O); raise ValueError or TypeError as
    `sequences` does.
    """
    array = _numbers(where, "y", _column(where, y, count, True))
    _finite(where, "y", array)
    return array


def weights(
    where: str, sample_weight: Any, count: int, lengths: list[int] | None = None
) -> Host | None:
    """Return the weights of samples (N,), or None; raise ValueError unless all are numbers of at
    least 0.

    With the `lengths` of sequences, every step is a sample, (sum of T_i,). Each step may then have
    its own weight, or each sequence one weight for all of its steps.
    """
    if sample_weight is None:
        return None
    if lengths is not None:
        rows = _rows(where, sample_weight, "sample_weight", "weight")
        if [len(row) for row in rows] != lengths:
            of_sequences: Any = weights(where, sample_weight, count)
            return np.repeat(of_sequences, lengths)
        sample_weight = np.concatenate([_host(where, "sample_weight", row) for row in rows])
        count = sum(lengths)
    numbers = _numbers(where, "sample_weight", sample_weight)
    if numbers.shape != (count,):
        raise ValueError(
            f"{where}: sample_weight has shape {numbers.shape}, expected (N,) = ({count},)"
        )
    if not (np.all(numbers >= 0) and np.any(numbers)):
        raise ValueError(
            f"{where}: sample_weight has {numbers.min():g}, expected weights from 0 up, and some"
            " above zero"
        )
    return numbers


def is_foreign(X: Any) -> bool:
    """Return whether X is an array of another library than NumPy; tables are not."""
    return (
        hasattr(X, "dtype")
        and not isinstance(X, np.ndarray)
        and (is_on_gpu(X) or not hasattr(X, "to_numpy"))
    )


def _is_regular(X: Any) -> bool:
    """Return whether a list holds the rows of a table, and neither arrays nor sequences of unequal
    length.
    """
    return len(
        {len(row) if isinstance(row, list | tuple) else None for row in X}
    ) == 1 and not hasattr(X[0], "shape")


def _rows(
    where: str, values: Any, name: str = "y", entry: str = "label", each: bool = False
) -> list[Any]:
    """Return the rows of an array or of a list, or an empty list if no entry is a row.

    With `each`, every entry must be a row. `entry` names an entry in error messages.

    Raises
    ------
    ValueError
        Some entries are rows and others are not, or `each` is set and none is.
    """
    is_list = isinstance(values, list | tuple)
    rows = [*(values if is_list else np.atleast_1d(_host(where, name, values)))]
    are_rows = [hasattr(row, "__len__") and not isinstance(row, str | bytes | dict) for row in rows]
    if (each or any(are_rows)) and not all(are_rows):
        k = are_rows.index(False)
        raise ValueError(
            f"{where}: {name}[{k}] is the {entry} {checks.shown(rows[k])}, expected a list of"
            f" {entry}s"
        )
    return rows if any(are_rows) else []


def _column(where: str, y: Any, count: int, columns: bool, name: str = "y") -> Host:
    """Return y on the host, (N,), or (N, O) if several `columns` are allowed."""
    if y is None:
        raise ValueError(f"{where}: requires y to be passed, but the target y is None")
    array = _host(where, name, y)
    if array.ndim == 2 and array.shape[1] == 1 and not columns:
        words = "A column-vector y was passed when a 1d array was expected; it is taken as (N,)"
        # If scikit-learn is imported, the warning is of its class.
        sklearn = sys.modules.get("sklearn.exceptions")
        warnings.warn(words, getattr(sklearn, "DataConversionWarning", UserWarning), stacklevel=6)
        array = array[:, 0]
    if array.ndim != 1 and not (columns and array.ndim == 2):
        raise ValueError(
            f"{where}: {name} has shape {array.shape}, expected (N,){' or (N, O)' * columns}"
        )
    if len(array) != count:
        raise ValueError(
            f"{where}: Found input variables with inconsistent numbers of samples: [{count},"
            f" {len(array)}]"
        )
    return array


def _host(where: str, name: str, values: Any) -> Host:
    """Return an array on the host."""
    checks.unmasked(where, name, values)
    try:
        return np.asarray(to_numpy(values) if is_foreign(values) else values)
    except (TypeError, ValueError) as error:
        problem = "its entries differ in shape" if "inhomogeneous" in str(error) else error
        raise ValueError(
            f"{where}: {name} is {checks.shown(values)}, expected an array ({problem})"
        ) from error


def _numbers(where: str, name: str, values: Any) -> Host:
    """Return float64 numbers on the host."""
    array = _host(where, name, values)
    texts = [v for v in array.flat if isinstance(v, str)] if array.dtype.kind in "OU" else []
    if texts and name.startswith("X"):
        raise ValueError(
            f"{where}: {name} has the text {checks.shown(str(texts[0]))}, expected quantities; symbols="
            " says how texts are read"
        )
    if array.dtype.kind == "c":
        raise ValueError(f"{where}: {name}: Complex data not supported")
    pandas = sys.modules.get("pandas")
    if pandas and array.dtype == object:
        array = np.where(pandas.isna(array), np.nan, array)  # its NA is no number
    try:
        return array.astype(np.float64, copy=False)
    except (TypeError, ValueError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{where}: {name} has dtype {array.dtype}, expected real numbers ({error})"
        ) from error


def _finite(where: str, name: str, array: Host, missing: bool | None = None) -> None:
    """Raise ValueError unless all numbers are finite and not too large.

    With `missing`, NaN is allowed. If `missing` is False, the error says how to allow it.
    """
    bad = np.isinf(array) if missing else ~np.isfinite(array)
    if np.any(bad):
        at = np.argwhere(bad)[0].tolist()
        problem = "NaN" if np.isnan(array[bad][0]) else "infinity"
        advice = "; missing='indicator' takes missing values as NaN" * (missing is False)
        raise ValueError(
            f"{where}: {name} contains {problem} at {at}, expected finite numbers{advice}"
        )
    most = np.nanmax(np.abs(array), initial=0)
    if most > LARGEST:
        raise ValueError(
            f"{where}: {name} has {most:g} or its negative, expected numbers up to {LARGEST:g} in"
            " size"
        )


def _names(X: Any) -> list[str] | None:
    """Return the names of columns if all of them are text, else None."""
    names = [*getattr(X, "columns", ())]
    return names if names and all(isinstance(name, str) for name in names) else None
