"""Estimators of sequences: a classifier of sequences or of their steps, and a regressor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from xlstm import losses
from xlstm.arrays import checks
from xlstm.arrays.backend import backend_like, backend_of
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.groups import Group
from xlstm.arrays.namespace import Namespace, Params
from xlstm.arrays.random import generator
from xlstm.cells.activations import sigmoid, softmax
from xlstm.data import Sequences
from xlstm.data.host import Host
from xlstm.estimators import inputs
from xlstm.estimators import symbols as of_symbols
from xlstm.estimators.base import (
    AnyPath,
    Export,
    NetworkEstimator,
    bytes_of,
    checked,
    column_names,
    learn,
    names_array,
)
from xlstm.models.sequence import sequence_model
from xlstm.training.agreement import of_first

LEAST = 10  # least sequences to validate with: the loss of fewer says little
CHUNK = 256  # sequences that are predicted at once
# one target for each sequence, one for each step, or several labels for each sequence
TARGET_KINDS = ("sequence", "step", "multilabel")


def _note(where: str, name: str, value: Any) -> dict[str, Any]:
    return dict(checks.instance(dict, "an object")(where, name, {} if value is None else value))


def _labels(where: str, name: str, value: Any) -> Host:
    """Check the labels of classes as a file holds them."""
    expected = "text or numbers of one kind"
    labels = checks.several(where, name, value, expected)
    kinds = {type(label) for label in labels}
    if len(kinds) != 1 or not isinstance(labels[0], str | int | float):
        label = checks.shown(labels[0] if labels else labels)
        raise ValueError(f"{where}: {name} holds {label}, expected {expected}")
    return np.array(labels)


@dataclass(eq=False, repr=False, kw_only=True)
class SequenceEstimator(NetworkEstimator):
    """The base of `SequenceClassifier` and `SequenceRegressor`."""

    _arrays: ClassVar[tuple[str, ...]] = ("mean_", "std_")
    _facts: ClassVar = {
        "table_": checks.flag,
        "n_features_in_": checks.size,
        "feature_names_in_": column_names,
        "note_": _note,
        "target_kind_": checks.optional(checks.choice(TARGET_KINDS)),
        "averages_": lambda _, name, value: None if value is None else np.array(value, np.float64),
    }
    #: "sequence", "step" or "multilabel": the kind of target, from the form of y
    target_kind_ = "sequence"
    #: averages of the features, if numbers may be missing
    averages_ = None
    #: the parameter `symbols` in `fit`
    symbols_ = None
    bidirectional: bool = False
    standardize: bool = True
    symbols: Any = None
    embedding_size: int = 64
    min_count: int = 2
    missing: str = "refuse"
    epochs: int = 100
    learning_rate: float = 1e-2
    weight_decay: float = 0.3
    averaging: float = 0.98
    patience: int = 15

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        group: Group | None = None,
        progress: Any = "auto",
    ) -> Self:
        """Train on sequences.

        Parameters
        ----------
        X : array (N, T, D), list of N arrays (T_i, D) or (T_i,), or table or array (N, T), D = 1
            Sequences of quantities. An array of objects (N,) and a Series of pandas or Polars count
            as lists of arrays. With `symbols`, X is a list of texts or of sequences of symbols, in
            the forms that the class lists.
        y : array (N,), (N, O) or (N, T)
            One target for each sequence, or O targets. A classifier also takes a label for each
            step, in the forms that its class lists.
        sample_weight : array (N,), optional
            Weight of each sequence in the loss.
        group : Group, optional
            The ranks that train together, each with the same arguments, as for `training.train`.
        progress : callable, bool or "auto"
            As for `training.train`: by default there is a progress bar on a terminal.

        Returns
        -------
        SequenceEstimator
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            A parameter is out of range. X or y has the wrong shape or kind, or is not finite.
        FloatingPointError
            Training diverged.
        Interrupted, Terminated
            A signal ended training after a step. The estimator is then fitted with the best weights
            so far.
        """
        where = type(self).__name__
        checked(self)
        again = self.warm_start and self.__sklearn_is_fitted__()
        data = self._sequences(X, again)
        lengths = [len(row) for row in data.rows]
        results, target, weights = of_first(group, self._targets, y, sample_weight, lengths, again)
        kind = results.get("target_kind_", "sequence")
        parts = self._parts(len(lengths), weights)
        scaling = self._scaling if again else of_first(group, self._scale, data)
        vocabulary = None
        if self.symbols is not None:
            some = [data.rows[k] for k in parts[0]]
            vocabulary = (
                self.vocabulary_ if again else of_symbols.learnt(where, some, self.min_count)
            )
        rows = self._scaled(data.rows, scaling, vocabulary, warn=again)
        outputs = len(results[self._each_output])
        width = rows[0].shape[1] if vocabulary is None else 1 + len(vocabulary)
        model = self._network(width, outputs, last=kind != "step")
        backend = self.backend
        if backend is None and inputs.is_foreign(X):
            backend = backend_like(from_foreign("fit", X))
        home = backend_of(backend, self.dtype)
        if again:
            self._check_warm_start(self.model_.recurrent, model.recurrent)
        training, validation = (
            self._batches(rows, target, weights, part, kind == "step") for part in parts
        )
        start = self.params_ if again else model.init(self.seed, home)
        if not again and self.symbols is not None:
            start = of_symbols.begun(start, home)
        trained, stop = learn(
            self,
            model,
            start,
            training,
            home,
            loss=self._losses[kind],
            group=group,
            progress=progress,
            epochs=self.epochs,
            patience=None if validation is None else self.patience,
            validation=validation,
        )
        return self._become(
            stop,
            model_=model,
            params_=trained.params,
            trained_=trained,
            n_iter_=max(1, len(trained.validations) or trained.best_epoch),
            table_=data.is_table,
            n_features_in_=data.features,
            feature_names_in_=names_array(data.names),
            mean_=scaling[0],
            std_=scaling[1],
            averages_=scaling[2],
            symbols_=self.symbols,
            vocabulary_=vocabulary,
            **results,
        )

    def save(self, path: AnyPath, note: dict[str, Any] | None = None) -> None:
        """Write weights, scaling, labels and parameters to a safetensors file.

        The file is written whole or not at all.

        Parameters
        ----------
        path : path
            The file, which is replaced if it exists.
        note : dict, optional
            A note of values that JSON can hold; `load` returns it as `note_`.

        Raises
        ------
        ValueError
            The estimator is not fitted, or labels of classes are neither text nor numbers.
        TypeError
            The tokenizer has no `to_str`.
        OSError
            The file cannot be written.
        """
        self.note_ = note
        super().save(path)

    def prepared(self, X: Any) -> list[Host]:
        """Return sequences as the network sees them.

        Quantities are scaled, and with `missing="indicator"` further columns mark missing numbers.
        With `symbols`, each symbol becomes its place in the vocabulary.

        Parameters
        ----------
        X : as for `fit`

        Returns
        -------
        list of array (T_i, D), or (T_i, 2D) with `missing="indicator"`, or int64 (T_i,)

        Raises
        ------
        ValueError, TypeError
            The estimator is not fitted. X has another kind or width than in `fit`, is not finite,
            or is so far from the data of `fit` that squares overflow.
        """
        where = type(self).__name__
        data = self._sequences(X, True)
        rows = self._scaled(data.rows, self._scaling, vars(self).get("vocabulary_"))
        if self.symbols is not None:
            return rows
        most = math.sqrt(np.finfo(self.dtype).max)
        for k, row in enumerate(rows):
            if not np.all(np.abs(row) < most):
                raise ValueError(
                    f"{where}: X[{k}] is {np.max(np.abs(row)):.3g} from the mean once scaled, whose"
                    f" square overflows; expected less than {most:.3g} for {self.dtype}"
                )
        return rows

    def _for_export(self, lengths: bool) -> Export:
        N = self.n_features_in_
        if self.averages_ is not None:
            raise ValueError(
                f"{type(self).__name__}: missing is 'indicator', expected 'refuse' for a file that"
                " others run; it can be of the network alone, model_ with params_, for prepared(X)"
            )
        if lengths and self.table_:
            raise ValueError(
                f"{type(self).__name__}: lengths is True, expected False: it takes tables, whose rows have {N}"
                " steps"
            )
        inputs: dict[str, Any] = {}
        about: dict[str, str] = {}
        if self.symbols_ is None:
            inputs["x"] = ("batch", N) if self.table_ else ("batch", "time", N), np.float64
        else:
            inputs["tokens"] = ("batch", N if self.table_ else "time"), np.int64
            about[of_symbols.VOCABULARY] = json.dumps([*self.vocabulary_])
        if lengths:
            inputs["lengths"] = ("batch",), np.int32
        return super()._for_export(lengths)[0] | about, inputs, self._exported

    def _exported(
        self, xp: Namespace, run: Callable[..., Any], x: Any, *lengths: Any
    ) -> dict[str, Any]:
        """Return the outputs of an exported file, by name."""
        if self.symbols_ is None:
            x = ((x[..., None] if self.table_ else x) - self.mean_) / self.std_
        y = run(xp.permute_dims(x, (1, 0, *range(2, x.ndim))), *lengths)
        if self.target_kind_ == "step":
            y = xp.permute_dims(y, (1, 0, 2))
        answers: dict[str, Any] = self._answers(xp, y)
        return answers

    def _answer(self, X: Any, name: str) -> Any:
        """Return the answer `name` for X: an array, or a list of arrays if X is a list and each
        step has an answer.
        """
        rows = self.prepared(X)
        home = backend_like(next(iter(self.params_.values())))
        # sequences sorted by length need little padding
        order = np.argsort([len(row) for row in rows], kind="stable")
        data = Sequences([rows[k] for k in order], np.zeros(len(rows)), batch_size=CHUNK)
        is_step = self.target_kind_ == "step"
        outputs: list[Host] = []
        for batch in data.batches():
            lengths: Any = batch.lengths
            x = home.asarray(batch.x)
            y, *_ = self.model_(self.params_, x, lengths=None if self.table_ else lengths)
            y = to_numpy(y).astype(np.float64)
            outputs.extend((y[:T, k] for k, T in enumerate(lengths)) if is_step else y)
        outputs = [outputs[k] for k in np.argsort(order)]
        if is_step and len(getattr(X, "shape", ())) < 2:
            return [self._answers(np, of_sequence)[name] for of_sequence in outputs]
        return self._answers(np, np.stack(outputs))[name]

    def _sequences(self, X: Any, again: bool) -> inputs.InputSequences:
        """Return X as sequences; if `again`, raise unless they are like the sequences of `fit`."""
        where = type(self).__name__
        # before `fit`, model_ raises NotFittedError
        if again and self.model_ is not None and self.symbols != self.symbols_:
            raise ValueError(
                f"{where}: symbols is {checks.shown(self.symbols)}, but it is fitted with"
                f" {checks.shown(self.symbols_)}"
            )
        if self.symbols is None:
            may_miss = (self.averages_ is not None) if again else self.missing == "indicator"
            data = inputs.sequences(where, X, not again or self.table_, may_miss)
        elif self.missing == "indicator":
            raise ValueError(f"{where}: missing is 'indicator', expected 'refuse' beside symbols")
        else:
            data = of_symbols.sequences(where, X, self.symbols)
        if again:
            self._check_features(where, data)
        return data

    def _scaled(
        self,
        rows: list[Any],
        scaling: tuple[Host, Host, Host | None],
        vocabulary: dict[Any, int] | None,
        warn: bool = True,
    ) -> list[Host]:
        """Return sequences as the network sees them; with `warn`, warn of unknown symbols."""
        if vocabulary is not None:
            return of_symbols.numbered(type(self).__name__, rows, vocabulary, self.symbols, warn)
        return [inputs.scaled(row, *scaling) for row in rows]

    def _check_features(self, where: str, data: inputs.InputSequences) -> None:
        count = data.features
        fitted = self.n_features_in_
        kinds = "a list of sequences (T, D) with D = {}", "a table (N, T) with T = {} columns"
        if data.is_table != self.table_:
            came = kinds[data.is_table].format(count)
            expected = kinds[self.table_].format(fitted)
            raise ValueError(
                f"{where}: X is {came}, expected {expected}; [X] is a list of one sequence"
            )
        if count != fitted:
            raise ValueError(
                f"{where}: X has {count} features, but {where} is expecting {fitted} features as"
                " input"
            )
        names = list(getattr(self, "feature_names_in_", ()))
        if names and data.names and names != data.names:
            raise ValueError(
                f"{where}: The feature names should match those that were passed during fit: they"
                f" are {checks.shown(data.names)}, expected {checks.shown(names)}"
            )

    @property
    def _scaling(self) -> tuple[Host, Host, Host | None]:
        return self.mean_, self.std_, self.averages_

    def _scale(self, data: inputs.InputSequences) -> tuple[Host, Host, Host | None]:
        """Return mean and deviation over all steps, and the averages of features if numbers may be
        missing.

        Each is (D,), or (T, 1) for the columns of a table.
        """
        if self.symbols is not None:
            return np.zeros(1), np.ones(1), None
        steps = np.stack(data.rows) if data.is_table else np.concatenate(data.rows)
        there = ~np.isnan(steps)
        there |= ~np.any(there, axis=0)  # the mean of nothing is NaN, and counts as 0
        mean = np.nan_to_num(steps.mean(axis=0, where=there))
        averages = None if self.missing == "refuse" else mean
        if not self.standardize:
            return np.zeros(1), np.ones(1), averages
        std = steps.std(axis=0, where=there)
        return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0), averages

    def _parts(self, count: int, weights: Any) -> tuple[Host, Host]:
        """Return the numbers of the training sequences, and those of the validation sequences, if
        any.
        """
        order = generator(self.seed, stream=3, where=type(self).__name__).permutation(count)
        validation, training = np.split(order, [int(self.validation_fraction * count)])
        both_count = weights is None or all(
            any(np.any(weights[k]) for k in part) for part in (training, validation)
        )
        if len(validation) < LEAST or not both_count:
            return order, order[:0]
        return training, validation

    def _batches(
        self, rows: list[Host], target: Any, weights: Any, part: Host, every_step: bool
    ) -> Any:
        """Return batches of a part of the sequences, with their targets and, if given, their
        weights.
        """
        if len(part) == 0:
            return None
        return Sequences(
            [rows[k] for k in part],
            [target[k] for k in part],
            None if weights is None else [weights[k] for k in part],
            batch_size=self.batch_size,
            every_step=every_step,
        )

    def _settings(self) -> dict[str, Any]:
        """Return the parameters for a file, without a tokenizer, which is among the arrays."""
        symbols = self.symbols_ if isinstance(self.symbols_, str | bool) else None
        return super()._settings() | {"symbols": symbols}

    def _fitted(self) -> dict[str, Any]:
        fitted = super()._fitted()
        if self.symbols_ is None:
            return fitted
        return fitted | of_symbols.to_arrays(self.vocabulary_, self.symbols_)

    @property
    def _takes(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("two_d_array", "three_d_array") if self.symbols is None else ("string",)

    def _restore(self, fitted: dict[str, Any]) -> Params:
        steps, width = (self.n_features_in_, 1) if self.table_ else (1, self.n_features_in_)
        for name, array in zip(("mean_", "std_", "averages_"), self._scaling, strict=True):
            if array is not None and array.shape not in ((1,), (width,), (steps, width)):
                raise ValueError(f"{name} has shape {array.shape}, expected {(steps, width)}")
        if self.averages_ is not None:
            width *= 2
        if self.symbols is not None or of_symbols.TOKENIZER in fitted:
            content = bytes_of(fitted, of_symbols.VOCABULARY)
            self.vocabulary_ = of_symbols.vocabulary_of(content)
            width = 1 + len(self.vocabulary_)
        if of_symbols.TOKENIZER in fitted:
            self.symbols = of_symbols.tokenizer_of(bytes_of(fitted, of_symbols.TOKENIZER))
        self.symbols_ = self.symbols
        self.model_ = self._network(
            width, len(getattr(self, self._each_output)), last=self.target_kind_ != "step"
        )
        return self._weights(fitted)

    def _network(self, width: int, outputs: int, last: bool) -> Any:
        """Return a model with `outputs` numbers at the last step, or at each step if `last` is
        False.

        `width` is the width D of the sequences, or the number of symbols.
        """
        symbols = None if self.symbols is None else width
        return sequence_model(
            type(self).__name__,
            self.cell,
            width if symbols is None else self.embedding_size,
            outputs,
            last,
            symbols,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            **(self.options or {}),
        )


@dataclass(eq=False, repr=False, kw_only=True)
class SequenceClassifier(SequenceEstimator):
    """Classify sequences of equal or different lengths with a recurrent network.

    By default, sequences hold quantities. With the parameter `symbols`, they are texts or other
    sequences of symbols.

    The network reads a sequence and predicts once, from its state at the end, or at each step
    (Elman 1990; Hochreiter & Schmidhuber 1997). A part of the sequences is held out for validation,
    which decides when training stops. The class follows scikit-learn's conventions, but does not
    need scikit-learn.

    The form of y in `fit` decides what the network predicts:

    - (N,): a class for each sequence.
    - (N, T), or a list of N arrays (T_i,): a class for each step of each sequence, if y has as many
      labels as X has steps. `sample_weight` may have this form, too; a step of weight 0 does not
      count in the loss.
    - (N, L) of 0 and 1 otherwise: several labels for each sequence, each present or absent
      (multi-label). Each label has a sigmoid and a binary cross-entropy. `score` counts the
      sequences whose labels are all right, as scikit-learn does.

    `symbols` decides which form X has in `fit` and `predict`; whether numbers are symbols is never
    guessed:

    - "word", "character", or a tokenizer: X holds texts, in a list, an array (N,), a Series of
      pandas or Polars, or a table of one column. Words are put into lower case and keep their
      apostrophes; every other character that is no space is a symbol, too. A tokenizer comes from
      the package tokenizers, or is another object whose `encode(text)` returns whole numbers or an
      object with whole numbers as `ids`. `save` needs a tokenizer with `to_str`.
    - True: X holds N sequences of symbols, all text or all whole numbers, in lists or arrays of any
      length. Or X is a table (N, T) of text, categories or whole numbers, with a symbol for each
      step; a symbol means the same in each column. A table of one column of text is refused.

    Empty texts and empty sequences are refused; the error lists them.

    Each symbol that occurs at least `min_count` times in the training sequences has a place in
    `vocabulary_`, from 1. All other symbols share place 0. So rare symbols train the embedding of
    unknown ones (as in language models of n-grams). Without rare symbols, that embedding stays
    zero, the mean of initial embeddings.

    If symbols are not in the vocabulary, `predict` warns and says how many.

    Parameters
    ----------
    cell : {"lstm", "gru", "rnn", "slstm", "minlstm", "mingru", "mlstm", "xlstm"}
        Or the name of a registered cell.
    hidden_size : int
        Units of each recurrent layer.
    num_layers : int
        Number of recurrent layers.
    bidirectional : bool
        Read a sequence in both directions; not for "mlstm" and "xlstm".
    dropout : float
        Rate of dropout between layers and of the embeddings of symbols.
    options : dict, optional
        Further options of the layer, such as `{"layer_norm": True}`.
    standardize : bool
        Subtract the mean of each feature of quantities and divide by its deviation.
    symbols : {"word", "character", True}, tokenizer or None
        The kind of symbols that X holds; None means quantities.
    embedding_size : int
        Width of the embedding of a symbol; in "xlstm", the width of the blocks. It is not used if
        `symbols` is None.
    min_count : int
        Least number of times that a symbol occurs to have a place in the vocabulary. It is not used
        if `symbols` is None.
    missing : {"refuse", "indicator"}
        Whether X may hold NaN, which marks a missing number. With "indicator", the last value of
        the feature in the sequence replaces a missing number; before the first value, the mean of
        the feature over the training data does (Che et al. 2018 call this "forward"). A further
        column for each feature is 1 at the steps where a number is missing, else 0 (Lipton et al.
        2016). Means and deviations ignore missing numbers. You cannot combine it with `symbols`.
    epochs : int
        Most passes over the sequences.
    batch_size : int
        Sequences of a mini-batch.
    learning_rate, weight_decay : float
        Options of AdamW.
    clip : float
        Limit of the global norm of the gradient.
    averaging : float
        Decay of the moving average of the weights that is validated and kept.
    validation_fraction : float
        Share of the sequences that is held out for validation. Nothing is held out if that would be
        fewer than ten sequences, or if `sample_weight` is zero in all of that part or in all of the
        rest.
    patience : int
        Epochs without a better validation loss before training stops.
    class_weight : dict, "balanced" or None
        The weight of each class in the loss, which multiplies `sample_weight`. Classes that the
        dict leaves out have weight 1. With "balanced", a class with n of N labels has the weight N
        / (n C), for C classes (King & Zeng 2001). If a sequence has several labels, each of them
        has the classes 0 and 1.
    every_step : bool, optional
        Whether y has a label for each step. Give it if the form of y is ambiguous: y (N, T) of 0
        and 1.
    seed : int
        Seed of the initial weights, the held-out part, the order of the batches, and the masks of
        dropout.
    precision : {"float16", "bfloat16", "tf32"}, optional
        Arithmetic of training, on a GPU.
    backend : str or Backend, optional
        As for `xlstm.backend`. By default it is the backend of X if X is an array of CuPy or
        PyTorch, else "auto".
    dtype : {"float32", "float64"}
    warm_start : bool
        Continue from the weights and the scaling of the last `fit`.
    callbacks : list of Callback
        Callbacks, as for `training.train`.
    checkpoints : path, optional
        A folder for checkpoints and the history of training.
    resume : bool
        Continue from the newest checkpoint in that folder.
    graph : bool or "auto"
        Capture steps in CUDA graphs, as for `training.train`.

    Attributes
    ----------
    classes_ : array (C,)
        The classes. If a sequence has several of L labels, these are the numbers from 0 to L - 1.
    target_kind_ : {"sequence", "step", "multilabel"}
        The kind of target, from the form of y.
    params_ : dict of str to array
        The weights.
    model_ : SequenceModel
    trained_ : Trained
        How training went.
    symbols_ : {"word", "character", True}, tokenizer or None
        The parameter `symbols` in `fit`. To change it, fit again.
    vocabulary_ : dict of str or int to int
        The place of each symbol, the most frequent first, if X holds symbols.
    n_features_in_ : int
        Width D of sequences, 1 for lists of symbols, or the number of columns of a table.
    feature_names_in_ : array of str
        Names of the columns, if X was a table with names.
    n_iter_ : int
        Number of epochs.

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
    >>> texts = ["to be or not to be", "the rest is silence"] * 20
    >>> words = SequenceClassifier(hidden_size=8, epochs=20, symbols="word", backend="numpy")
    >>> words.fit(texts, ["question", "answer"] * 20).predict(["not to be"]).tolist()
    ['question']
    """

    KIND = "sequence classifier"
    _kind = "classifier"
    _each_output = "classes_"  # the attribute with an entry for each output of the model
    _losses: ClassVar = dict.fromkeys(TARGET_KINDS, losses.cross_entropy) | {
        "multilabel": losses.binary_cross_entropy
    }
    _facts: ClassVar = SequenceEstimator._facts | {"classes_": _labels}
    class_weight: Mapping[Any, float] | str | None = None
    every_step: bool | None = None

    def predict(self, X: Any) -> Any:
        """Return the likeliest labels in the form of y in `fit`.

        Parameters
        ----------
        X : list, array or table
            As for `fit`.

        Returns
        -------
        array (N,), (N, T), or (N, L) of 0 and 1, or list of array (T_i,)
            A list if X is a list and each step has a label.

        Raises
        ------
        ValueError, TypeError
            As for `prepared`.
        """
        return self._answer(X, "label")

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, or of each of several labels.

        Parameters
        ----------
        X : list, array or table
            As for `fit`.

        Returns
        -------
        array (N, C), (N, T, C) or (N, L), or list of array (T_i, C)
            In the library of X. It is a list if X is a list and each step has a label.

        Raises
        ------
        ValueError, TypeError
            As for `prepared`.
        """
        return _as(self._answer(X, "probabilities"), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy: the share of sequences, or of steps, whose labels are all predicted.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        float
            From 0 to 1.

        Raises
        ------
        ValueError, TypeError
            As for `fit`.
        """
        labels = self.predict(X)
        where = type(self).__name__
        each_step = self.target_kind_ == "step"
        lengths = [len(label) if each_step else 1 for label in labels]
        predicted = np.concatenate([*labels]) if each_step else labels
        _, truth = inputs.classified(where, y, lengths, each_step)
        if truth.shape != predicted.shape:
            raise ValueError(
                f"{where}: y has shape {truth.shape}, expected that of y in fit, {predicted.shape}"
            )
        hits = np.all((predicted == truth).reshape(len(truth), -1), axis=1)
        weights = inputs.weights(where, sample_weight, len(labels), lengths if each_step else None)
        return float(np.average(hits, weights=weights))

    def _answers(self, xp: Namespace, logits: Any) -> dict[str, Any]:
        """Return the answers by name, from the network's logits (N, O) or (N, T, O)."""
        if self.target_kind_ == "multilabel":
            return {
                "label": xp.asarray(logits > 0, dtype=xp.int64),
                "probabilities": sigmoid(xp, logits),
            }
        label = xp.take(xp.asarray(self.classes_), xp.argmax(logits, axis=-1), axis=0)
        return {"label": label, "probabilities": softmax(xp, logits)}

    def _targets(
        self, y: Any, sample_weight: Any, lengths: list[int], again: bool
    ) -> tuple[dict[str, Any], Any, Any]:
        where = type(self).__name__
        kind, truth = inputs.classified(where, y, lengths, self.every_step)
        classes, target = (
            (np.arange(truth.shape[1]), truth) if truth.ndim == 2 else self._numbered(truth)
        )
        if again and not (kind == self.target_kind_ and np.array_equal(classes, self.classes_)):
            raise ValueError(
                f"{where}: y holds the {kind} classes {checks.shown(classes.tolist())}, expected"
                f" those of before, {self.target_kind_} classes"
                f" {checks.shown(self.classes_.tolist())}"
            )
        weights = inputs.weights(
            where, sample_weight, len(lengths), lengths if kind == "step" else None
        )
        if self.class_weight is not None:
            factors = self._class_weights(classes, target)
            weights = factors if weights is None else (factors.T * weights).T
        parts: list[Any] = [target, weights]
        if kind == "step":
            parts = [None if a is None else np.split(a, np.cumsum(lengths)[:-1]) for a in parts]
        return {"target_kind_": kind, "classes_": classes}, *parts

    def _numbered(self, y: Host) -> tuple[Host, Host]:
        """Return the classes among labels, and the number of the class of each label."""
        where = type(self).__name__
        if y.dtype.kind == "f" and np.any(y != np.round(y)):
            raise ValueError(
                f"{where}: Unknown label type: continuous. y holds fractions, expected labels of"
                " classes"
            )
        try:
            classes, numbers = np.unique(y, return_inverse=True)
        except TypeError as error:
            raise ValueError(
                f"{where}: y is {checks.shown(y.tolist())}, expected text or numbers ({error})"
            ) from error
        if len(classes) < 2:
            raise ValueError(
                f"{where}: y holds one class, {checks.shown(classes[0])}, expected two or more"
            )
        return classes, numbers.reshape(-1)

    def _class_weights(self, classes: Host, target: Host) -> Host:
        """Return the weight of each label of a target; of several labels, the weight of each 0 and
        1.
        """
        if target.ndim == 2:
            return np.stack(
                [self._class_weights(np.arange(2), column) for column in target.astype(np.int64).T],
                axis=1,
            )
        weights = self.class_weight
        labels = classes.tolist()
        if not isinstance(weights, Mapping):  # "balanced": all classes that occur count alike
            counts = np.bincount(target, minlength=len(classes))
            return (len(target) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[target]
        if set(weights) - set(labels) and set(labels) - set(weights):
            raise ValueError(
                f"{type(self).__name__}: class_weight has the labels {checks.shown([*weights])},"
                f" expected some of {checks.shown(labels)}"
            )
        return np.array([weights.get(label, 1.0) for label in labels], dtype=np.float64)[target]

    def _settings(self) -> dict[str, Any]:
        """Return the parameters for a file, with `class_weight` as pairs: JSON has only text as
        keys.
        """
        settings = super()._settings()
        weights = settings["class_weight"]
        if isinstance(weights, dict):
            settings["class_weight"] = [*weights.items()]
        return settings


class SequenceRegressor(SequenceEstimator):
    """Predict numbers from sequences of equal or different lengths with a recurrent network.

    By default, sequences hold quantities. With the parameter `symbols`, they are texts or other
    sequences of symbols. Training scales targets to mean 0 and deviation 1.

    Parameters
    ----------
    cell, hidden_size, num_layers, bidirectional, dropout, options, standardize, missing, \
validation_fraction
        As in `SequenceClassifier`.
    epochs, batch_size, learning_rate, weight_decay, clip, patience, averaging, callbacks, \
checkpoints, resume
        As in `SequenceClassifier`.
    warm_start, seed, backend, dtype, precision, graph, symbols, embedding_size, min_count
        As in `SequenceClassifier`.

    Attributes
    ----------
    model_, params_, trained_
        As in `SequenceClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from xlstm.estimators import SequenceRegressor
    >>> X = np.random.default_rng(0).normal(size=(60, 8, 1))
    >>> y = X.sum(axis=(1, 2))
    >>> regressor = SequenceRegressor(hidden_size=8, epochs=20, backend="numpy").fit(X, y)
    >>> regressor.predict(X[:2]).shape
    (2,)
    """

    KIND = "sequence regressor"
    _kind = "regressor"
    _each_output = "target_mean_"
    _losses: ClassVar = {"sequence": losses.mse}
    _arrays = (*SequenceEstimator._arrays, "target_mean_", "target_std_")
    _facts: ClassVar = SequenceEstimator._facts | {"one_target_": checks.flag}

    def predict(self, X: Any) -> Any:
        """Return the predicted numbers.

        Parameters
        ----------
        X : list, array or table
            As for `fit`.

        Returns
        -------
        array (N,) or (N, O)
            In the library of X. It has O columns if y in `fit` had columns.

        Raises
        ------
        ValueError, TypeError
            As for `prepared`.
        """
        return _as(self._answer(X, "y"), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R^2, as the mean over targets.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        float
            At most 1.

        Raises
        ------
        ValueError, TypeError
            As for `fit`.
        """
        predicted = to_numpy(self.predict(X))
        where = type(self).__name__
        truth = inputs.targets(where, y, len(predicted)).reshape(predicted.shape)
        weights = inputs.weights(where, sample_weight, len(predicted))
        mean = np.average(truth, axis=0, weights=weights)
        squares = [
            np.average((truth - other) ** 2, axis=0, weights=weights) for other in (predicted, mean)
        ]
        return float(np.mean(1 - squares[0] / np.where(squares[1] > 0, squares[1], 1.0)))

    def _answers(self, xp: Namespace, y: Any) -> dict[str, Any]:
        """Return the answers by name, from the network's output y (N, O)."""
        numbers = y * self.target_std_ + self.target_mean_
        return {"y": numbers[:, 0] if self.one_target_ else numbers}

    def _targets(
        self, y: Any, sample_weight: Any, lengths: list[int], again: bool
    ) -> tuple[dict[str, Any], Host, Any]:
        where = type(self).__name__
        count = len(lengths)
        y = inputs.targets(where, y, count)
        weights = inputs.weights(where, sample_weight, count)
        columns = y.reshape(count, -1)
        if again:
            mean = self.target_mean_
            std = self.target_std_
            if columns.shape[1] != len(mean):
                raise ValueError(
                    f"{where}: y has {columns.shape[1]} targets, expected those of before,"
                    f" {len(mean)}, or warm_start=False"
                )
        else:
            mean = columns.mean(axis=0)
            std = columns.std(axis=0)
            std = np.where(std > 0, std, 1.0)
        results = {"target_mean_": mean, "target_std_": std, "one_target_": y.ndim == 1}
        return results, (columns - mean) / std, weights

    def _restore(self, fitted: dict[str, Any]) -> Params:
        for name in ("target_mean_", "target_std_"):
            checks.shape("file", name, getattr(self, name), {"O": len(self.target_mean_)})
        return super()._restore(fitted)


def _as(values: Host, X: Any) -> Any:
    """Return numbers in the library of X, if X is an array of another library than NumPy."""
    if not inputs.is_foreign(X):
        return values
    home = backend_like(from_foreign("predict", X))
    # whole numbers would cut decimals
    return home.asarray(values, home.dtype if "float" in home.dtype else values.dtype.name)
