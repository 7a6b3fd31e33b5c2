"""TiRex beside forecasts: features of series, and a model that is trained from random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Self

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.convert import dtype_text
from xlstm.arrays.namespace import DType, Params
from xlstm.data import frames
from xlstm.data.host import Values
from xlstm.data.panels import Roles
from xlstm.estimators.base import AnyPath, Estimator, TrainedEstimator
from xlstm.interop import tirex
from xlstm.models.tirex import SyntheticPatches, TiRex, TiRex2, items, prediction
from xlstm.training import Trained

WHERE = "TiRexFeatures"
VALIDATION = 8  # batches of synthetic series that validation looks at


def model_of(where: str, given: Any) -> tuple[TiRex | TiRex2, Params]:
    """Return the pretrained model of an estimator with the parameters checkpoint, backend, dtype, model and params.

    Raises
    ------
    OSError, ValueError, TypeError
        There is neither a checkpoint nor a model with parameters, or both; or the checkpoint is none.
    """
    if given.checkpoint is None:
        if given.model is None or given.params is None:
            raise ValueError(f"{where}: there is no checkpoint, expected one, or model and params")
        checks.instance((TiRex, TiRex2), "a TiRex or a TiRex2")(where, "model", given.model)
        return given.model, given.params
    if given.model is not None or given.params is not None:
        raise ValueError(f"{where}: there are a checkpoint and model or params, expected one of the two")
    dtype = None if given.dtype is None else dtype_text(where, given.dtype)
    return tirex.load(given.checkpoint, backend=given.backend, dtype=dtype)


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


@dataclass(eq=False, repr=False)
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

    checkpoint: AnyPath | None = None
    backend: str | Backend | None = None
    dtype: DType | None = None
    _: KW_ONLY
    model: TiRex | TiRex2 | None = None
    params: Params | None = None
    batch_size: int = 64
    series_id: str | None = None
    targets: str | Sequence[str] | None = None

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


@dataclass(eq=False, repr=False, kw_only=True)
class TiRexTrainer(TrainedEstimator):
    """A trainer of a `TiRex` on synthetic series, which gives a forecaster for any series.

    It shows the way from random weights to a checkpoint. A model that is to compete with the published one needs their
    size, real series, and far more time.

    Parameters
    ----------
    size, num_blocks, num_heads, patch_size, input_ff_size : int
        Options of `TiRex`.
    context_length : int
        Its option `context`.
    horizon : int
        Steps to learn to forecast at once.
    batch_size : int
        Series of a batch.
    steps : int
        Batches in all.
    every : int
        Batches between two looks at the validation loss, on series that are no part of training, and checkpoints.
    learning_rate : float
    weight_decay : float
        Decay of AdamW.
    schedule : {"cosine", "constant"}
        Cosine goes down to a tenth of the learning rate.
    clip : float
        Limit of the global norm of the gradient.
    averaging : float
        Decay of the moving average of weights that is kept.
    seed : int
        Initial weights, and series.
    precision : {"float16", "bfloat16", "tf32"}, optional
        Arithmetic of training on a GPU.
    backend : str or Backend, optional
    dtype : {"float32", "float64"}
    callbacks : list of Callback
    checkpoints : path, optional
        Folder of the run.
    resume : bool
        Go on with the run in that folder.

    Attributes
    ----------
    model_ : TiRex
    params_ : dict of str to array
    trained_ : Trained
    """

    size: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    patch_size: int = 16
    input_ff_size: int = 128
    context_length: int = 256
    horizon: int = 64
    steps: int = 1000
    every: int = 100
    weight_decay: float = 0.01
    schedule: str = "cosine"
    averaging: float = 0.99

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Train.

        Parameters
        ----------
        X, y : object, optional
            They are not used.

        Returns
        -------
        TiRexTrainer
            Itself.

        Raises
        ------
        ValueError, TypeError
            A parameter is out of range.
        FloatingPointError
            Training diverged.
        Interrupted, Terminated
            A signal ended training after a step; the trainer has what was best so far.
        """
        self.checked()
        sizes = {name: getattr(self, name) for name in ("patch_size", "input_ff_size")}
        model = TiRex(self.size, self.num_blocks, self.num_heads, context=self.context_length, **sizes)
        home = backend_of(self.backend, self.dtype)
        data, validation = (
            SyntheticPatches(model, batches, self.horizon, self.batch_size) for batches in (self.every, VALIDATION)
        )

        def keep(trained: Trained) -> None:
            self._become(model_=model, params_=trained.params, trained_=trained)

        start = model.init(self.seed, home)
        return self._train(model, start, data, home, keep, steps=self.steps, validation=validation)

    def save(self, path: AnyPath) -> None:
        """Write the model as a checkpoint, which `xlstm.interop.tirex.load` reads.

        Parameters
        ----------
        path : path
            A folder, or a file `NAME.safetensors`, beside which `NAME_config.json` is written.

        Raises
        ------
        NotFittedError, OSError
            There is no model yet, or a file cannot be written.
        """
        self._check_fitted()
        tirex.save(path, self.model_, self.params_)
