"""The estimators of one target a sequence: a classifier and a regressor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_like, backend_of
from xlstm.arrays.convert import like, to_numpy
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.namespace import DType
from xlstm.arrays.random import generator
from xlstm.data import Sequences, reading
from xlstm.estimators import base, inputs, sequence_files
from xlstm.estimators.base import Estimator, check_warm_start, layer_options
from xlstm.models.sequence import sequence_model
from xlstm.training import Callback, Interrupted, Terminated, losses

Host = np.ndarray[Any, Any]
CHECKS: dict[str, checks.Kind] = {
    **base.CHECKS,
    **dict.fromkeys(("epochs", "patience"), checks.count),
    **dict.fromkeys(("bidirectional", "standardize"), checks.flag),
}
LEAST = 10  # sequences to validate with; with fewer the validation loss says little
CHUNK = 256  # sequences predicted at once


class SequenceEstimator(Estimator):
    """The base of `SequenceClassifier` and `SequenceRegressor`."""

    _each_output: str  # the attribute with an entry for each output of the model
    params_: Any
    note_: dict[str, Any]
    table_: bool
    n_features_in_: int
    mean_: Host
    std_: Host

    def __init__(
        self,
        *,
        cell: str = "lstm",
        hidden_size: int = 96,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        options: dict[str, Any] | None = None,
        standardize: bool = True,
        epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float = 1e-2,
        weight_decay: float = 0.3,
        clip: float = 1.0,
        averaging: float = 0.98,
        validation_fraction: float = 0.1,
        patience: int = 15,
        seed: int = 0,
        precision: str | None = None,
        backend: str | Backend | None = None,
        dtype: DType = "float32",
        warm_start: bool = False,
        callbacks: Iterable[Callback] = (),
        checkpoints: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> None:
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.options = options
        self.standardize = standardize
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clip = clip
        self.averaging = averaging
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.seed = seed
        self.precision = precision
        self.backend = backend
        self.dtype = dtype
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.checkpoints = checkpoints
        self.resume = resume

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on sequences.

        Parameters
        ----------
        X : array (N, T, D), list of N arrays (T_i, D) or (T_i,), or table or array (N, T) of sequences with D = 1
            An array of objects (N,) and a Series of pandas or Polars are lists of their arrays.
        y : array (N,)
            The target of each sequence; of a regressor also (N, O).
        sample_weight : array (N,), optional
            How much each sequence counts.

        Returns
        -------
        SequenceEstimator
            Itself.

        Raises
        ------
        ValueError, TypeError
            A parameter is out of range; X or y is of the wrong shape or kind, or not finite.
        FloatingPointError
            Training diverged.
        Interrupted, Terminated
            A signal ended training after a step; the estimator has what was best so far.
        """
        where = type(self).__name__
        self.check()
        again = self.warm_start and self.__sklearn_is_fitted__()
        given = inputs.sequences(where, X, self.table_ if again else None)
        count = len(given.rows)
        if again:
            self._check_features(where, given)
        found, target = self._targets(y, count, again)
        weights = inputs.weights(where, sample_weight, count)
        mean, std = self._scale(given)
        model = self.network(given.width, len(found[self._each_output]))
        home = self._backend(X)
        start = None
        if again:
            start, mean, std = self.params_, self.mean_, self.std_
            check_warm_start(where, self.model_.recurrent, model.recurrent)
        order = generator(self.seed, stream=3, where=where).permutation(count)
        held = int(self.validation_fraction * count)
        counts = np.ones(count) if weights is None else weights[order]
        if held < LEAST or not (np.any(counts[:held]) and np.any(counts[held:])):
            held = 0
        rows = [(row - mean) / std for row in given.rows]
        fitted, judged = (self._batches(rows, target, weights, part) for part in (order[held:], order[:held]))
        found |= {"table_": given.steps is not None, "n_features_in_": given.features, "mean_": mean, "std_": std}
        if given.names is not None:
            found["feature_names_in_"] = np.array(given.names, dtype=object)
        try:
            trained = base.learn(
                self,
                model,
                model.init(self.seed, home) if start is None else start,
                fitted,
                home,
                epochs=self.epochs,
                validation=judged if held else None,
                loss=self._loss,
                patience=self.patience if held else None,
                callbacks=self.callbacks,
                checkpoints=self.checkpoints,
                resume=self.resume,
            )
        except (Interrupted, Terminated) as error:
            self._take(model, error.trained, found)
            raise
        self._take(model, trained, found)
        return self

    def save(self, path: str | os.PathLike[str], note: dict[str, Any] | None = None) -> None:
        """Write weights, scaling, labels and parameters to a safetensors file, whole or not at all.

        Parameters
        ----------
        path : path
        note : dict, optional
            Anything JSON can hold; `load` gives it back as `note_`.

        Raises
        ------
        ValueError
            It is not fitted yet, or labels of classes are neither text nor numbers.
        OSError
            The file cannot be written.
        """
        self._check_fitted()
        names = [name for name in CHECKS if name not in ("warm_start", "resume")]
        sequence_files.save(path, self, [*names, "cell", "options", "dtype"], note)

    @classmethod
    @reading.brief()
    def load(cls, path: str | os.PathLike[str], backend: str | Backend | None = None) -> Self:
        """Read a file that `save` wrote.

        Parameters
        ----------
        path : path
        backend : str or Backend, optional
            As for `xlstm.backend`, by default "auto".

        Returns
        -------
        SequenceEstimator

        Raises
        ------
        OSError, ValueError
            There is no such file, or it is not that of such an estimator.
        """
        made: Self = sequence_files.load(path, cls, backend)
        return made

    def prepared(self, X: Any) -> list[Host]:
        """Return sequences as the network sees them, scaled.

        Parameters
        ----------
        X : as for `fit`

        Returns
        -------
        list of array (T_i, D)

        Raises
        ------
        ValueError, TypeError
            It is not fitted yet, or X is of another kind or width than that of `fit`, not finite, or so far from the
            data of `fit` that squares overflow.
        """
        self._check_fitted()
        where = type(self).__name__
        given = inputs.sequences(where, X, self.table_)
        self._check_features(where, given)
        rows = [(row - self.mean_) / self.std_ for row in given.rows]
        most = math.sqrt(np.finfo(self.dtype).max)
        for k, row in enumerate(rows):
            if not np.all(np.abs(row) < most):
                problem = f"X[{k}] is {np.max(np.abs(row)):.3g} from the mean once scaled, whose square overflows"
                raise ValueError(f"{where}: {problem}; expected less than {most:.3g} for {self.dtype}")
        return rows

    def _take(self, model: Any, trained: Any, found: dict[str, Any]) -> None:
        """Become what was trained, all at once: a fit that fails leaves the estimator as it was."""
        vars(self).pop("feature_names_in_", None)
        vars(self).update(found)
        self.model_, self.params_, self.trained_ = model, trained.params, trained
        self.n_iter_ = max(1, len(trained.validations) or trained.best_epoch)

    def _outputs(self, X: Any) -> Host:
        """Return what the model gives for each sequence, (N, O) of float64, on the host."""
        rows = self.prepared(X)
        home = backend_like(next(iter(self.params_.values())))
        lengths = np.array([len(row) for row in rows])
        order, found = np.argsort(lengths, kind="stable"), []  # sorted by length, sequences need little padding
        for start in range(0, len(order), CHUNK):
            places = order[start : start + CHUNK]
            batch = np.zeros((lengths[places[-1]], len(places), rows[0].shape[1]))  # (T, B, D)
            for k, place in enumerate(places):
                batch[: lengths[place], k] = rows[place]
            y, *_ = self.model_(self.params_, home.asarray(batch), lengths=None if self.table_ else lengths[places])
            found.append(to_numpy(y).astype(np.float64))
        return np.concatenate(found)[np.argsort(order)]

    def _check_features(self, where: str, given: inputs.Sequences) -> None:
        count, known = given.features, self.n_features_in_
        if given.steps is not None and not self.table_:
            raise ValueError(
                f"{where}: X is a table {(len(given.rows), given.steps)}, expected a list of sequences (T, D) with "
                f"D = {known}; [X] is a list of one sequence"
            )
        if given.steps is None and self.table_:
            raise ValueError(
                f"{where}: X is sequences (T, D) with D = {count}, expected a table (N, T) with T = {known} columns"
            )
        if count != known:
            raise ValueError(f"{where}: X has {count} features, but {where} is expecting {known} features as input")
        names = getattr(self, "feature_names_in_", None)
        if names is not None and given.names is not None and list(names) != given.names:
            raise ValueError(
                f"{where}: The feature names should match those that were passed during fit: they are "
                f"{checks.shown(given.names)}, expected {checks.shown(list(names))}"
            )

    def _backend(self, X: Any) -> Backend:
        """Return the backend that is asked for, or that of X where it is an array of a library other than NumPy."""
        chosen = backend_like(from_foreign("fit", X)) if self.backend is None and inputs.is_foreign(X) else self.backend
        return backend_of(chosen, self.dtype)

    def _scale(self, given: inputs.Sequences) -> tuple[Host, Host]:
        """Return mean and deviation over all steps, (D,), or in a table by its columns, (T, 1)."""
        if not self.standardize:
            return np.zeros(1), np.ones(1)
        steps = np.stack(given.rows) if given.steps is not None else np.concatenate(given.rows)
        mean, std = steps.mean(axis=0), steps.std(axis=0)
        return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0)

    def _batches(self, rows: list[Host], target: Host, weights: Host | None, part: Host) -> Any:
        if len(part) == 0:
            return None
        mask = None if weights is None else weights[part]
        return Sequences([rows[k] for k in part], target[part], mask, batch_size=self.batch_size)

    def check(self) -> None:
        """Raise ValueError or TypeError where a parameter is out of range."""
        for name, kind in CHECKS.items():
            kind(type(self).__name__, name, getattr(self, name))

    def network(self, width: int, outputs: int) -> Any:
        """Return the model for sequences of a width D that gives so many numbers for each."""
        sizes = {name: getattr(self, name) for name in ("hidden_size", "num_layers", "bidirectional", "dropout")}
        where = type(self).__name__
        options = layer_options(where, self.options, (*sizes, "input_size", "output_size", "last", "cell", "where"))
        return sequence_model(where, self.cell, width, outputs, last=True, **sizes, **options)

    def _targets(self, y: Any, count: int, again: bool) -> tuple[dict[str, Any], Host]:
        """Return the attributes that y (N,) decides, and y as the loss takes it; `again` in a warm start."""
        raise NotImplementedError

    def _loss(self, y: Any, target: Any, mask: Any) -> tuple[Any, Any]:
        raise NotImplementedError


class SequenceClassifier(SequenceEstimator):
    """Classify sequences, which may differ in length, with a recurrent network.

    The network reads a sequence and predicts once, from its state at the end (Elman 1990; Hochreiter & Schmidhuber
    1997). It follows scikit-learn's conventions and needs no scikit-learn. Part of the sequences is held out to decide
    when to stop.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "slstm", "mlstm", "xlstm"}, or the name of a registered cell
    hidden_size, num_layers : int
    bidirectional : bool
        Read the sequence in both directions; not for "mlstm" and "xlstm".
    dropout : float
        Rate of dropout between layers.
    options : dict, optional
        Further options of the layer, such as `{"layer_norm": True}`.
    standardize : bool
        Subtract the mean of each feature and divide by its deviation.
    epochs : int
        Most passes over the sequences.
    batch_size : int
    learning_rate, weight_decay : float
        Options of AdamW.
    clip : float
        Limit of the global norm of the gradient.
    averaging : float
        Decay of the moving average of the weights that is judged and kept.
    validation_fraction : float
        Share of the sequences that is held out to decide when to stop; none where that would be fewer than ten, or
        where `sample_weight` is zero in all of that part or in all of the rest.
    patience : int
        Epochs without a better validation loss before training stops.
    seed : int
        Decides the initial weights, the part that is held out, the order of the batches, and the masks of dropout.
    precision : {"float16", "bfloat16", "tf32"}, optional
        Arithmetic of training, on a GPU.
    backend : str or Backend, optional
        As for `xlstm.backend`. By default that of X where it is an array of CuPy or PyTorch, and else "auto".
    dtype : {"float32", "float64"}
    warm_start : bool
        Let `fit` go on from the weights and the scaling that it found before.
    callbacks : list of Callback
        Callbacks of `training.train`.
    checkpoints : path, optional
        The folder for checkpoints and the history.
    resume : bool
        Go on from the newest checkpoint there.

    Attributes
    ----------
    classes_ : array (C,)
        The labels.
    params_ : dict of str to array
        The weights.
    model_ : SequenceModel
    trained_ : Trained
        How training went.
    n_features_in_ : int
        Width D of sequences, or the number of columns of a table.
    feature_names_in_ : array of str
        The names of the columns, where X was a table that has them.
    n_iter_ : int
        Epochs.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.estimators import SequenceClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.normal(size=(rng.integers(3, 9), 2)) for _ in range(60)]
    >>> y = ["up" if x.mean() > 0 else "down" for x in X]
    >>> classifier = SequenceClassifier(hidden_size=8, epochs=20, backend="numpy").fit(X, y)
    >>> classifier.predict(X[:2]).shape
    (2,)
    """

    _kind = "classifier"
    _each_output = "classes_"
    classes_: Host

    def predict(self, X: Any) -> Host:
        """Return the most probable label of each sequence, (N,); X as for `fit`."""
        logits = self._outputs(X)
        found: Host = self.classes_[np.argmax(logits, axis=1)]
        return found

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, (N, C), in the library of X; X as for `fit`."""
        logits = self._outputs(X)
        logits -= logits.max(axis=1, keepdims=True)
        found = np.exp(logits)
        return _as(found / found.sum(axis=1, keepdims=True), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of sequences whose label is predicted, the accuracy."""
        found = self.predict(X)
        where = type(self).__name__
        hits = found == inputs.labels(where, y, len(found))
        return float(np.average(hits, weights=inputs.weights(where, sample_weight, len(found))))

    def _targets(self, y: Any, count: int, again: bool) -> tuple[dict[str, Any], Host]:
        where = type(self).__name__
        y = inputs.labels(where, y, count)
        if y.dtype.kind == "f" and np.any(y != np.round(y)):
            raise ValueError(f"{where}: Unknown label type: continuous. y holds fractions, expected labels of classes")
        try:
            classes, found = np.unique(y, return_inverse=True)
        except TypeError as error:
            raise ValueError(f"{where}: y holds {checks.shown(y[0])}, expected text or numbers ({error})") from error
        if len(classes) < 2:
            raise ValueError(f"{where}: y holds one class, {checks.shown(classes[0])}, expected two or more")
        if again and not np.array_equal(classes, self.classes_):
            known = checks.shown(list(self.classes_))
            raise ValueError(
                f"{where}: y holds the classes {checks.shown(list(classes))}, expected those of before, {known}"
            )
        return {"classes_": classes}, found.reshape(-1)

    def _loss(self, y: Any, target: Any, mask: Any) -> tuple[Any, Any]:
        return losses.cross_entropy(y, target, mask)


class SequenceRegressor(SequenceEstimator):
    """Predict numbers from sequences, which may differ in length, with a recurrent network.

    Parameters and attributes are those of `SequenceClassifier`, but for `classes_`. Targets are scaled to deviation 1
    for training.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.estimators import SequenceRegressor
    >>> X = np.random.default_rng(0).normal(size=(60, 8, 1))
    >>> regressor = SequenceRegressor(hidden_size=8, epochs=20, backend="numpy").fit(X, X.sum(axis=(1, 2)))
    >>> regressor.predict(X[:2]).shape
    (2,)
    """

    _kind = "regressor"
    _each_output = "target_mean_"
    target_mean_: Host
    target_std_: Host
    one_target_: bool

    def predict(self, X: Any) -> Any:
        """Return predictions (N,), or (N, O) where y had columns, in the library of X; X as for `fit`."""
        found = self._outputs(X) * self.target_std_ + self.target_mean_
        return _as(found[:, 0] if self.one_target_ else found, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R^2, the mean over targets."""
        found = np.asarray(to_numpy(self.predict(X)))
        where = type(self).__name__
        truth = inputs.targets(where, y, len(found)).reshape(found.shape)
        weights = inputs.weights(where, sample_weight, len(found))
        mean = np.average(truth, axis=0, weights=weights)
        squares = [np.average((truth - other) ** 2, axis=0, weights=weights) for other in (found, mean)]
        return float(np.mean(1 - squares[0] / np.where(squares[1] > 0, squares[1], 1.0)))

    def _targets(self, y: Any, count: int, again: bool) -> tuple[dict[str, Any], Host]:
        where = type(self).__name__
        y = inputs.targets(where, y, count)
        found = y.reshape(count, -1)
        if again:
            mean, std = self.target_mean_, self.target_std_
            if found.shape[1] != len(mean):
                problem = f"y has {found.shape[1]} targets, expected those of before, {len(mean)}"
                raise ValueError(f"{where}: {problem}, or warm_start=False")
        else:
            mean, std = found.mean(axis=0), found.std(axis=0)
            std = np.where(std > 0, std, 1.0)
        return {"target_mean_": mean, "target_std_": std, "one_target_": y.ndim == 1}, (found - mean) / std

    def _loss(self, y: Any, target: Any, mask: Any) -> tuple[Any, Any]:
        return losses.mse(y, target, mask)


def _as(found: Host, X: Any) -> Any:
    """Return numbers in the library of X, where it is an array of one other than NumPy."""
    return like(found, from_foreign("predict", X)) if inputs.is_foreign(X) else found
