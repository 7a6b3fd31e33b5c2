"""A transformer that makes features of series with a pretrained TiRex."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import DType, Params
from xlstm.data import frames
from xlstm.data.host import Values
from xlstm.data.panels import Roles
from xlstm.estimators.base import Estimator
from xlstm.estimators.checkpoints import model_of
from xlstm.models.tirex import TiRex, TiRex2, items, prediction

WHERE = "TiRexFeatures"


def _variates(X: Any) -> int:
    """Return the number of variates of several series, which is the same for all.

    Raises
    ------
    ValueError, TypeError
        It is not, or these are not several series.
    """
    found = items.read_arrays(WHERE, X, 2)
    counts = {len(rows) for rows in found.rows}
    if found.single or len(counts) > 1:
        kinds = "one series" if found.single else f"series with {sorted(counts)} variates"
        raise ValueError(f"{WHERE}: X is {kinds}, expected several with one number of variates")
    return counts.pop()


class TiRexFeatures(Estimator):
    """Embeddings of series by a pretrained TiRex, as features for any classifier or regressor of scikit-learn.

    A feature is one of D units of one block, averaged over time; `TiRex.embed` describes the computation. Nothing is
    trained.

    Parameters
    ----------
    checkpoint : path, optional
        A published checkpoint, as `xlstm.interop.tirex.load` takes it.
    backend : str or Backend, optional
        As for `xlstm.backend`, by default "auto".
    dtype : {"float32", "float64"}, optional
        By default that of the checkpoint.
    model, params : TiRex or TiRex2, and dict of str to array, optional
        A model and its parameters in the place of a checkpoint.
    batch_size : int
        Series that the network sees at once, at most.
    series_id : str, optional
        The column of long tables that tells series apart; without it a table has a row for each series.
    targets : list of str, optional
        With `series_id` the columns that are read, by default all; they are the variates of a series.

    Attributes
    ----------
    model_ : TiRex or TiRex2
    params_ : dict of str to array
    n_variates_ : int
        Variates of each series of `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.models import TiRex
    >>> model = TiRex(16, 2, 2, patch_size=4, input_ff_size=24, context=32)
    >>> features = TiRexFeatures(model=model, params=model.init(backend="numpy"))
    >>> features.fit_transform(np.sin(np.arange(100) / 5).reshape(4, 25)).shape
    (4, 32)
    """

    _takes = ("two_d_array", "three_d_array")
    model_: Any

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        backend: str | Backend | None = None,
        dtype: DType | None = None,
        *,
        model: TiRex | TiRex2 | None = None,
        params: Params | None = None,
        batch_size: int = 64,
        series_id: str | None = None,
        targets: str | Sequence[str] | None = None,
    ) -> None:
        self.checkpoint, self.backend, self.dtype = checkpoint, backend, dtype
        self.model, self.params, self.batch_size = model, params, batch_size
        self.series_id, self.targets = series_id, targets

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the checkpoint.

        Parameters
        ----------
        X : array (S, L) or (S, V, L), list of S arrays (L,) or (V, L), or table
            Series, of which NaN are missing values. A table has a row for each series, or with `series_id` a row for
            each step of each series, as `TiRex.forecast` takes it.
        y : object, optional
            It is not used.

        Returns
        -------
        TiRexFeatures
            Itself.

        Raises
        ------
        OSError, ValueError, TypeError
            The checkpoint or the series are none.
        """
        model, params = model_of(WHERE, self)
        self.n_variates_ = _variates(self._rows(model, X))
        self.model_, self.params_ = model, params
        return self

    def transform(self, X: Any) -> Values:
        """Return the features of series.

        Parameters
        ----------
        X : array (S, L) or (S, V, L), list of S arrays (L,) or (V, L), or table
            They have as many variates as those of `fit`, and any length.

        Returns
        -------
        array (S, blocks * V * D)
            float64, with the units of each variate side by side and those of the first block first. Series of a long
            table are in the order in which their names come first.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            `fit` was not called, or the series do not fit.
        """
        self._check_fitted()
        X = self._rows(self.model_, X)
        if _variates(X) != self.n_variates_:
            expected = f"expected {self.n_variates_}, as in fit"
            raise ValueError(f"{WHERE}: series have {_variates(X)} variates, {expected}")
        found: Values = self.model_.embed(self.params_, X, batch_size=self.batch_size)
        return found

    def fit_transform(self, X: Any, y: Any = None) -> Values:
        """Return `fit(X).transform(X)`; see there."""
        return self.fit(X).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray[Any, Any]:
        """Return the names of the features, such as "block3_unit17", and "block3_variate1_unit17" of several variates.

        Parameters
        ----------
        input_features : object, optional
            It is not used.

        Returns
        -------
        array of str
        """
        self._check_fitted()
        return np.array(prediction.names(self.model_, self.n_variates_), dtype=object)

    def _rows(self, model: Any, X: Any) -> Any:
        """Return series, those of a table as arrays."""
        if self.series_id is not None:
            items.is_table(WHERE, "X", X, series_id=self.series_id)
            return prediction.named(WHERE, model, X, Roles(self.targets, series_id=self.series_id))[2]
        if self.targets is not None:
            raise ValueError(f"{WHERE}: targets is {checks.shown(self.targets)}, expected None, as series_id is")
        return frames.table_of(WHERE, X).values if frames.has_columns(X) else X
