"""X, y and weights as scikit-learn and its users give them, made into sequences and targets."""

from __future__ import annotations

import sys
import warnings
from numbers import Number
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.data.frames import is_on_gpu
from xlstm.data.host import LARGEST

Host = np.ndarray[Any, Any]
FORMS = "(N, T, D), (N, T) or a list of (T, D)"
MANY = (
    "Reshape your data either using array.reshape(-1, 1) if it has one feature or array.reshape(1, -1) if it is one row"
)


class Sequences(NamedTuple):
    """Sequences (T_i, D) of float64, and how they were given.

    Attributes
    ----------
    rows : list of array (T_i, D)
    steps : int or None
        The number of steps T, where X was a table (N, T) whose columns are steps.
    names : list of str or None
        The names of the columns of such a table.
    """

    rows: list[Host]
    steps: int | None
    names: list[str] | None

    @property
    def width(self) -> int:
        """Width D."""
        return int(self.rows[0].shape[1])

    @property
    def features(self) -> int:
        """Number of features as scikit-learn counts them: the columns of a table, or the width D."""
        return self.width if self.steps is None else self.steps


def sequences(where: str, X: Any, table: bool | None = None) -> Sequences:
    """Return X as sequences.

    Parameters
    ----------
    where : str
        The caller, for errors.
    X : array (N, T, D), list of N arrays (T_i, D) or (T_i,), or table or array (N, T) of sequences with D = 1
        An array of objects (N,) and a Series of pandas or Polars are lists.
    table : bool, optional
        Whether plain lists of equal length are the rows of a table; by default they are.

    Returns
    -------
    Sequences

    Raises
    ------
    TypeError, ValueError
        X is none of these, or holds numbers that are missing, not finite, or so large that their squares overflow.
    """
    if type(X).__module__.partition(".")[0] == "scipy" or hasattr(X, "toarray"):
        raise TypeError(f"{where}: X is sparse, which is not supported; X.toarray() makes it dense")
    if hasattr(X, "__next__"):
        raise TypeError(f"{where}: X is {checks.shown(X)}, expected {FORMS}; list(X) makes a list of an iterator")
    held = _held(X)
    X = X if held is None else held
    is_list = isinstance(X, list | tuple) and len(X) > 0 and not np.isscalar(X[0])
    if is_list and (held is not None or table is False or not _is_table(X)):
        rows = [_numbers(where, f"X[{k}]", row) for k, row in enumerate(X)]
        rows = [row[:, None] if row.ndim == 1 else row for row in rows]
        for k, row in enumerate(rows):
            if row.ndim != 2 or row.shape[1] != rows[0].shape[-1] or 0 in row.shape:
                raise ValueError(
                    f"{where}: X[{k}] has shape {row.shape} and X[0] {rows[0].shape}, expected (T, D) with one D, "
                    "and a step at least"
                )
            _finite(where, f"X[{k}]", row)
        return Sequences(rows, None, None)
    array = _numbers(where, "X", X)
    if array.ndim and len(array) == 0:
        raise ValueError(f"{where}: X has shape {array.shape}, found 0 sample(s) while a minimum of 1 is required.")
    if array.ndim not in (2, 3):
        advice = f". {MANY}." if array.ndim < 2 else ""
        raise ValueError(f"{where}: X has shape {array.shape}, expected {FORMS}{advice}")
    if 0 in array.shape:
        raise ValueError(f"{where}: X: 0 feature(s) (shape={array.shape}) while a minimum of 1 is required.")
    _finite(where, "X", array)
    flat = array.ndim == 2
    return Sequences(list(array[:, :, None] if flat else array), array.shape[1] if flat else None, _names(X))


def labels(where: str, y: Any, count: int) -> Host:
    """Return labels on the host, (N,).

    Raises
    ------
    ValueError
        The number of labels is not `count`, a label is missing, or they are of several kinds.
    """
    array = _column(where, y, count, False)
    if array.dtype.kind == "c":
        raise ValueError(f"{where}: y: Complex data not supported")
    if array.dtype.kind == "f":
        _finite(where, "y", array)
    given = y if isinstance(y, list | tuple) else array if array.dtype == object else ()
    for k, label in enumerate(given):
        if label is None or (isinstance(label, float) and label != label):
            raise ValueError(f"{where}: y contains NaN or None: y[{k}] is {label}, expected a label")
        if _family(label) is not _family(given[0]):
            problem = f"y[{k}] is {checks.shown(label)} and y[0] {checks.shown(given[0])}"
            raise ValueError(f"{where}: {problem}, expected labels of one kind: text or numbers")
    return array


def targets(where: str, y: Any, count: int) -> Host:
    """Return targets on the host as float64, (N,) or (N, O); raises ValueError or TypeError as `sequences` does."""
    array = _numbers(where, "y", _column(where, y, count, True))
    _finite(where, "y", array)
    return array


def _family(label: Any) -> type[Any]:
    """Return the class of which all labels are to be."""
    if isinstance(label, str):
        return str
    return Number if isinstance(label, Number | np.bool_) else type(label)


def _column(where: str, y: Any, count: int, columns: bool) -> Host:
    """Return y on the host, (N,), or (N, O) where `columns` are allowed."""
    if y is None:
        raise ValueError(f"{where}: requires y to be passed, but the target y is None")
    checks.unmasked(where, "y", y)
    try:
        array = np.asarray(to_numpy(y) if is_foreign(y) else y)
    except ValueError as error:
        raise ValueError(f"{where}: y is ragged, expected (N,){' or (N, O)' * columns}") from error
    if array.ndim == 2 and array.shape[1] == 1 and not columns:
        words = "A column-vector y was passed when a 1d array was expected; it is taken as (N,)"
        warnings.warn(words, _conversion_warning(), stacklevel=5)
        array = array[:, 0]
    if array.ndim != 1 and not (columns and array.ndim == 2):
        raise ValueError(f"{where}: y has shape {array.shape}, expected (N,){' or (N, O)' * columns}")
    if len(array) != count:
        raise ValueError(
            f"{where}: Found input variables with inconsistent numbers of samples: [{count}, {len(array)}]"
        )
    return array


def weights(where: str, given: Any, count: int) -> Host | None:
    """Return the weights of samples (N,), or None; raises ValueError unless they are numbers from 0 up."""
    if given is None:
        return None
    numbers = _numbers(where, "sample_weight", given)
    if numbers.ndim == 0:
        numbers = np.full(count, float(numbers))
    if numbers.shape != (count,):
        raise ValueError(f"{where}: sample_weight has shape {numbers.shape}, expected (N,) = ({count},)")
    _finite(where, "sample_weight", numbers)
    if np.any(numbers < 0):
        raise ValueError(f"{where}: sample_weight has a weight of {numbers.min():g}, expected 0 or more")
    if not np.any(numbers):
        raise ValueError(f"{where}: sample_weight is zero everywhere, expected a weight above zero")
    return numbers


def is_foreign(X: Any) -> bool:
    """Return whether X is an array of a library other than NumPy, and no table."""
    return hasattr(X, "dtype") and not isinstance(X, np.ndarray) and (is_on_gpu(X) or not hasattr(X, "to_numpy"))


def _held(X: Any) -> list[Any] | None:
    """Return the sequences in an array of objects (N,) or in a Series, the usual holders of ragged data, or None."""
    series = hasattr(X, "to_numpy") and not hasattr(X, "columns")
    array = X.to_numpy() if series else X
    is_held = isinstance(array, np.ndarray) and array.dtype == object and array.ndim == 1 and len(array) > 0
    return list(array) if is_held else None


def _is_table(X: Any) -> bool:
    """Return whether a list is a table (N, T) or (N, T, D) written out, rather than a list of arrays."""
    return not any(hasattr(row, "shape") for row in X) and len({len(row) for row in X if hasattr(row, "__len__")}) == 1


def _numbers(where: str, name: str, given: Any) -> Host:
    """Return float64 numbers on the host."""
    checks.unmasked(where, name, given)
    try:
        array = np.asarray(to_numpy(given) if is_foreign(given) else given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name} is {checks.shown(given)}, expected real numbers") from error
    if array.dtype.kind == "c":
        raise ValueError(f"{where}: {name}: Complex data not supported")
    if array.dtype.kind not in "fiub":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            problem = f"{name} has dtype {array.dtype}, expected real numbers ({error})"
            raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{where}: {problem}") from error
    return array.astype(np.float64, copy=False)


def _finite(where: str, name: str, array: Host) -> None:
    if not np.all(np.isfinite(array)):
        problem = "NaN" if np.any(np.isnan(array)) else "infinity"
        raise ValueError(f"{where}: {name} contains {problem}, expected finite numbers")
    beyond = np.argwhere(np.abs(array) > LARGEST)
    if len(beyond):
        place = tuple(int(k) for k in beyond[0])
        problem = f"{name}{[*place]} is {array[place]:g}, whose square overflows"
        raise ValueError(f"{where}: {problem}; expected numbers from {-LARGEST:g} to {LARGEST:g}")


def _names(X: Any) -> list[str] | None:
    """Return the names of columns, where all of them are text."""
    columns = getattr(X, "columns", None)
    names = None if columns is None else [*columns]
    return names if names and all(isinstance(name, str) for name in names) else None


def _conversion_warning() -> type[Warning]:
    """Return scikit-learn's warning of a y in a column, where scikit-learn is in use."""
    if "sklearn" not in sys.modules:
        return UserWarning
    from sklearn.exceptions import DataConversionWarning

    return DataConversionWarning  # type: ignore[no-any-return]
