"""A transformer that makes features of series with a pretrained TiRex."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np

from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import DType, Params
from xlstm.data import frames
from xlstm.data.host import Values
from xlstm.estimators.base import Estimator
from xlstm.estimators.checkpoints import model_of
from xlstm.models.tirex import TiRex, TiRex2, series


def _rows(X: Any) -> Any:
    """Return series, those of a table as its rows."""
    return frames.table_of("TiRexFeatures", X).values if frames.has_columns(X) else X


def _variates(X: Any) -> int:
    """Return the number of variates of several series, which is the same for all.

    Raises
    ------
    ValueError, TypeError
        It is not, or these are not several series.
    """
    found = series.read("TiRexFeatures", X, 2)
    counts = {len(rows) for rows in found.rows}
    if found.single or len(counts) > 1:
        kinds = "one series" if found.single else f"series with {sorted(counts)} variates"
        raise ValueError(f"TiRexFeatures: X is {kinds}, expected several with one number of variates")
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
    ) -> None:
        self.checkpoint, self.backend, self.dtype = checkpoint, backend, dtype
        self.model, self.params, self.batch_size = model, params, batch_size

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the checkpoint.

        Parameters
        ----------
        X : array (S, L) or (S, V, L), list of S arrays (L,) or (V, L), or table with a row for each series
            Series, of which NaN are missing values.
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
        model, params = model_of("TiRexFeatures", self)
        self.n_variates_ = _variates(_rows(X))
        self.model_, self.params_ = model, params
        return self

    def transform(self, X: Any) -> Values:
        """Return the features of series.

        Parameters
        ----------
        X : array (S, L) or (S, V, L), list of S arrays (L,) or (V, L), or table with a row for each series
            They have as many variates as those of `fit`, and any length.

        Returns
        -------
        array (S, blocks * V * D)
            float64, with the units of each variate side by side and those of the first block first.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            `fit` was not called, or the series do not fit.
        """
        self._check_fitted()
        X = _rows(X)
        if _variates(X) != self.n_variates_:
            expected = f"expected {self.n_variates_}, as in fit"
            raise ValueError(f"TiRexFeatures: series have {_variates(X)} variates, {expected}")
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
        variates = [f"_variate{v}" for v in range(self.n_variates_)] if self.n_variates_ > 1 else [""]
        blocks, units = range(self.model_.num_blocks), range(self.model_.size)
        return np.array([f"block{k}{v}_unit{d}" for k in blocks for v in variates for d in units], dtype=object)
