"""The common base of all estimators: parameters, their checks, scikit-learn's conventions, training
and files.

A subclass is a dataclass whose fields are its parameters. The constructor stores them unchanged,
and `fit` checks them by `CHECKS`. Names of results of `fit` end with an underscore.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from xlstm import checkpoint
from xlstm import precision as precisions
from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.convert import dtype_text
from xlstm.arrays.namespace import DType, Params
from xlstm.data import reading
from xlstm.data.host import Host
from xlstm.data.panels import Roles
from xlstm.estimators import seasons, symbols
from xlstm.training import (
    Batches,
    Callback,
    Interrupted,
    Terminated,
    Trained,
    loop,
    optimizers,
)
from xlstm.training.schedules import cosine
from xlstm.training.steps import graph_choice

CANDIDATES = ("linear", "smoothing", "theta", "network")  # methods of a forecaster
AnyPath = str | os.PathLike[str]
# the results of `_for_export`: metadata, inputs by name, and a formula
Export = tuple[dict[str, str], dict[str, Any], Callable[..., Any] | None]


def _class_weight(where: str, name: str, value: Any) -> Any:
    """Check None, "balanced", or a dict of weights by label; a file holds the dict as pairs."""
    if value is None or (isinstance(value, str) and value == "balanced"):
        return value
    try:
        weights = dict(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{where}: {name} is {checks.shown(value)}, expected None, 'balanced' or a dict of"
            " label to weight"
        ) from None
    return {
        _plain(label): checks.non_negative(where, f"{name}[{label!r}]", weight)
        for label, weight in weights.items()
    }


def _candidates(where: str, name: str, value: Any) -> tuple[str, ...]:
    """Check a list of methods of a forecaster."""
    expected = f"some of {', '.join(CANDIDATES)}"
    names = tuple(checks.several(where, name, value, expected, checks.choice(CANDIDATES)))
    if not names:
        raise ValueError(f"{where}: {name} is empty, expected {expected}")
    return names


# The checks of parameters. A name means the same in every estimator. Parameters without an entry
# are checked when they are used.
CHECKS: dict[str, checks.Kind] = {
    **dict.fromkeys(
        ("horizon", "hidden_size", "embedding_size", "batch_size", "length", "min_count"),
        checks.size,
    ),
    **dict.fromkeys(("epochs", "patience", "steps"), checks.count),
    **dict.fromkeys(("bidirectional", "refit", "resume", "standardize", "warm_start"), checks.flag),
    **dict.fromkeys(("averaging", "dropout", "validation_fraction"), checks.rate),
    **dict.fromkeys(("learning_rate", "clip"), checks.above_0),
    "linear_baseline": checks.word_or("auto", checks.size_or_0),
    "season": checks.word_or("auto", seasons.check),
    **dict.fromkeys(("cell", "name"), checks.text),
    "calendar": checks.word_or("auto", checks.flag),
    "candidates": checks.word_or("auto", _candidates),
    "class_weight": _class_weight,
    "dtype": checks.optional(lambda where, name, value: dtype_text(where, value)),
    "every": checks.optional(checks.count),
    "every_step": checks.optional(checks.flag),
    "graph": graph_choice,
    "holidays": checks.optional(checks.text),
    "least": checks.optional(checks.finite),
    "missing": checks.choice(("refuse", "indicator")),
    "num_layers": checks.depth,
    "options": checks.optional(
        checks.accepted(
            lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value),
            "a dict of name to value",
        )
    ),
    "precision": checks.optional(checks.choice(precisions.NAMES)),
    "quantiles": checks.rising(0),
    "schedule": checks.choice(("constant", "cosine")),
    "seed": checks.seed_number,
    "symbols": symbols.choice,
    "weight_decay": checks.non_negative,
    "window": checks.optional(checks.whole(2, checks.LARGEST)),
}
# parameters that are passed to `training.train` unchanged
OF_TRAIN = ("callbacks", "checkpoints", "resume", "graph")
# Parameters that no file keeps: they belong to one run. The file has a codec in place of `tokens`.
RUN = ("backend", "callbacks", "checkpoints", "every", "graph", "resume", "tokens", "warm_start")


class NotFittedError(ValueError, AttributeError):
    """An estimator was used before `fit`.

    It is a ValueError and an AttributeError. If scikit-learn is imported, it is also scikit-learn's
    NotFittedError.
    """


@functools.cache
def _both(theirs: type[Exception]) -> type[Exception]:
    """Return a class that is both our NotFittedError and that of scikit-learn."""
    members = {
        "__module__": NotFittedError.__module__,
        "__reduce__": lambda error: (_not_fitted, error.args),
    }
    return type("NotFittedError", (NotFittedError, theirs), members)


def _not_fitted(problem: str) -> Exception:
    """Return a NotFittedError; if scikit-learn is imported, it is also scikit-learn's."""
    theirs = getattr(sys.modules.get("sklearn.exceptions"), "NotFittedError", None)
    return (NotFittedError if theirs is None else _both(theirs))(problem)


class Estimator:
    """The base of all estimators: parameters, their checks and scikit-learn's conventions."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    KIND: ClassVar[str] = ""  #: the kind of its files
    # scikit-learn's name for the kind of estimator: "classifier", "regressor" or nothing
    _kind: ClassVar[str] = ""
    # scikit-learn's names for the kinds of X
    _takes: ClassVar[tuple[str, ...]] = ("two_d_array", "three_d_array")
    _arrays: ClassVar[tuple[str, ...]] = ()  # results of `fit` for files: arrays of float64
    # other results of `fit` for files, and their checks
    _facts: ClassVar[dict[str, checks.Kind]] = {}
    backend: Any
    params_: Params
    __eq__ = object.__eq__  # not the comparison of a dataclass among the bases
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        """Leave the parameters unchanged; `fit` checks them."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters of the constructor.

        Parameters
        ----------
        deep : bool
            It makes no difference; scikit-learn passes it.

        Returns
        -------
        dict of str to object
            The value of each parameter.
        """
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the constructor.

        Parameters
        ----------
        params : dict of str to object
            New values by name; `fit` checks them.

        Returns
        -------
        Estimator
            The estimator itself.

        Raises
        ------
        ValueError
            A name is not a parameter.
        """
        names = self.get_params()
        for name in params.keys() - names.keys():
            raise ValueError(
                f"{type(self).__name__}: {checks.shown(name)} is no parameter, expected some of"
                f" {', '.join(names)}"
            )
        vars(self).update(params)
        return self

    def __repr__(self) -> str:
        values = [(field, repr(getattr(self, field.name))) for field in fields(self)]
        changed = [
            f"{field.name}={value}" for field, value in values if value != repr(field.default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __getattr__(self, name: str) -> Any:
        """Raise NotFittedError for a result of `fit` before `fit`, and AttributeError for any other
        name.
        """
        if name.endswith("_") and not name.startswith("_") and not self.__sklearn_is_fitted__():
            raise _not_fitted(
                f"{type(self).__name__}: not fitted yet, call fit first; there is no {name}"
            )
        raise AttributeError(f"{type(self).__name__}: there is no attribute {name}")

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether the estimator is fitted."""
        return "params_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        """Return the tags of the estimator for scikit-learn."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type=self._kind or None,
            target_tags=TargetTags(
                required=bool(self._kind), multi_output=self._kind == "regressor"
            ),
            classifier_tags=(
                ClassifierTags(multi_label=True) if self._kind == "classifier" else None
            ),
            regressor_tags=RegressorTags() if self._kind == "regressor" else None,
            input_tags=InputTags(
                **{"two_d_array": False, **dict.fromkeys(self._takes, True)},
                allow_nan=getattr(self, "missing", None) == "indicator",
            ),
        )

    def _become(self, stop: BaseException | None = None, **results: Any) -> Self:
        """Store the results of a fit, then raise `stop`, the signal that ended the fit, if there is
        one.

        Results that are None are removed, so that none is left of an earlier fit. A fit that fails
        does not come here, and changes nothing.
        """
        for name in ("data_", *results):
            vars(self).pop(name, None)
        vars(self).update({name: value for name, value in results.items() if value is not None})
        if stop is not None:
            raise stop
        return self


def checked(estimator: Estimator) -> dict[str, Any]:
    """Return the parameters as plain values; raise ValueError or TypeError if one is out of
    range.
    """
    where = type(estimator).__name__
    return {
        name: CHECKS[name](where, name, value) if name in CHECKS else value
        for name, value in estimator.get_params().items()
    }


class FiledEstimator(Estimator):
    """An estimator that a safetensors file keeps: its weights, its parameters, and other results of
    `fit`.
    """

    data_: str | None = None  #: digest of the file that the command line trained on

    def save(self, path: AnyPath) -> None:
        """Write the weights, the parameters and all other results of `fit` to a safetensors file.

        The file is written whole or not at all.

        Parameters
        ----------
        path : path
            The file, which is replaced if it exists.

        Raises
        ------
        ValueError
            The estimator is not fitted, or holds a value that no file can hold, such as dates as
            labels of classes.
        OSError
            The file cannot be written.
        """
        fitted = self._fitted()
        where = type(self).__name__
        settings = {name: value for name, value in self._settings().items() if name not in RUN}
        facts = {
            name: _plain(kind(where, name, _plain(getattr(self, name, None))))
            for name, kind in self._facts.items()
        }
        tree = {"settings": settings, "facts": facts, "data": self.data_, "fitted": fitted}
        content, arrays = checkpoint.pack(tree)
        checkpoint.save(path, arrays, self.KIND, {"tree": content})

    @classmethod
    @reading.brief()
    def load(cls, path: AnyPath, backend: str | Backend | None = None) -> Self:
        """Read an estimator from a file that `save` wrote.

        Parameters
        ----------
        path : path
            The file.
        backend : str or Backend, optional
            As for `xlstm.backend`, by default "auto".

        Returns
        -------
        Estimator

        Raises
        ------
        OSError, ValueError
            The file does not exist, is damaged, or holds another kind of estimator.
        """
        arrays, config = checkpoint.load(path, cls.KIND)
        with checkpoint.sound(path, cls.KIND):
            checkpoint.finite(cls.KIND, arrays)
            tree = _unpacked(arrays, config)
            facts = subtree(tree, "facts")
            estimator = reading.construct("settings", cls, tree.get("settings"))
            for name in tree["settings"].keys() & set(RUN):
                raise ValueError(f"settings: {name} is unknown, no file keeps it")
            estimator.set_params(**checked(estimator))
            estimator.backend = backend
            fitted = subtree(tree, "fitted")
            estimator._become(
                None,
                **{name: kind("facts", name, facts.get(name)) for name, kind in cls._facts.items()},
                **{name: array_of(fitted, name) for name in cls._arrays},
            )
            # makes the model from the results of `_fitted`, and checks all else
            estimator.params_ = estimator._restore(fitted)
            estimator.data_ = checks.optional(checks.text)("file", "data", tree.get("data"))
        return estimator

    def _for_export(self, lengths: bool) -> Export:
        """Return the metadata, inputs and formula that an exported file (ONNX or C) has beside the
        network.

        Parameters
        ----------
        lengths : bool
            Whether the file has an input of lengths.

        Returns
        -------
        about : dict of str to str
            Metadata of the file.
        inputs : dict of str to (shape, dtype)
            Inputs by name; sizes that stay open are "batch" and "time".
        formula : callable or None
            `formula(xp, run, *inputs)` returns the outputs by name, and calls the network as
            `run(x, lengths=None)`. None if the file holds the network alone.
        """
        facts = {name: json.dumps(_plain(getattr(self, name, None))) for name in self._facts}
        return {"kind": self.KIND, **facts}, {}, None

    def _settings(self) -> dict[str, Any]:
        """Return the parameters for a file, and those in `RUN`, which `save` leaves out."""
        return checked(self)

    def _fitted(self) -> dict[str, Any]:
        """Return the arrays for a file, as a tree."""
        arrays = {name: np.asarray(getattr(self, name), np.float64) for name in self._arrays}
        return {"params": self.params_, **arrays}

    def _weights(self, fitted: Mapping[str, Any]) -> Params:
        """Return the weights of a file on the backend; raise if they do not fit the model."""
        params = subtree(fitted, "params")
        self.model_.check(params)
        home = backend_of(self.backend, self.dtype)
        checkpoint.finite(self.KIND, params, home.dtype)
        return {name: home.asarray(array) for name, array in params.items()}


@dataclass(eq=False, repr=False, kw_only=True)
class SeriesEstimator(Estimator):
    """A base for forecasters: the name of a series, and the roles of the columns of a table."""

    _takes = ("one_d_array",)  # rows of a table are steps, not samples
    name: str = ""
    targets: str | Sequence[str] | None = None
    past: str | Sequence[str] | None = None
    future: str | Sequence[str] | None = None
    series_id: str | None = None

    def _names(self) -> list[str]:
        """Return the names of the targets, if `fit` was given a table, else an empty list."""
        return list(vars(self).get("feature_names_in_", ()))


def roles_of(forecaster: SeriesEstimator) -> Roles:
    """Return the columns of tables by role; raise if they are not valid."""
    columns = (getattr(forecaster, name, None) for name in Roles._fields)
    return Roles(*columns).checked(type(forecaster).__name__)


@dataclass(eq=False, repr=False, kw_only=True)
class NetworkEstimator(FiledEstimator):
    """A base for estimators that are one network, with the parameters of its cell and its
    training.
    """

    cell: str = "lstm"
    hidden_size: int = 96
    num_layers: int = 1
    dropout: float = 0.0
    options: dict[str, Any] | None = None
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    clip: float = 1.0
    averaging: float = 0.0
    validation_fraction: float = 0.1
    seed: int = 0
    precision: str | None = None
    backend: str | Backend | None = None
    dtype: DType = "float32"
    warm_start: bool = False
    callbacks: Iterable[Callback] = ()
    checkpoints: AnyPath | None = None
    resume: bool = False
    graph: bool | str = "auto"

    def _check_warm_start(self, before: Any, layer: Any) -> None:
        """Raise ValueError unless `layer`, made from the current parameters, can continue from the
        weights of the layer `before`.
        """
        if type(before) is not type(layer) or before.shapes != layer.shapes:
            raise ValueError(
                f"{type(self).__name__}: warm_start goes on from {before}, expected its cell and"
                f" sizes, but there is {layer}"
            )


def learn(
    settings: Any, model: Any, params: Params, data: Batches, home: Backend, **options: Any
) -> tuple[Trained, Interrupted | Terminated | None]:
    """Train with AdamW; return the result, and the signal that ended training, if any.

    The caller stores the result first and then raises the signal. `settings` has learning_rate,
    weight_decay, clip, averaging, seed and precision. With a `schedule` of "cosine" the learning
    rate falls to a tenth in `settings.steps` steps. Further options are those of `training.train`;
    those in `OF_TRAIN` are also parameters of estimators.
    """
    mixed, context = precisions.named(settings.precision, home)
    rate: Any = settings.learning_rate
    if getattr(settings, "schedule", "constant") == "cosine":
        rate = cosine(rate, settings.steps, rate / 10)
    adamw = optimizers.adamw(rate, weight_decay=settings.weight_decay)
    named = ("seed", "clip", "averaging", *OF_TRAIN)
    options = {name: getattr(settings, name) for name in named if hasattr(settings, name)} | options
    try:
        with context:
            return loop.train(model, params, data, adamw, precision=mixed, **options), None
    except (Interrupted, Terminated) as error:
        return error.trained, error


def names_array(names: Sequence[str] | None) -> Host | None:
    """Return names as an array, as scikit-learn keeps them; None if there are none."""
    return np.array(names, dtype=object) if names else None


def column_names(where: str, name: str, value: Any) -> Host | None:
    """Check names of columns; None means that there was no table."""
    if value is None:
        return None
    return names_array(checks.several(where, name, value, "names of columns", checks.text))


def errors_by_name(where: str, name: str, value: Any) -> dict[str, float] | None:
    """Check errors of candidates by name; None means that there are none."""
    expected = "an object of names to numbers"
    errors = checks.optional(checks.instance(dict, expected))(where, name, value)
    return errors and {
        str(key): checks.finite(where, f"{name}.{key}", error) for key, error in errors.items()
    }


def subtree(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a named part of a file's tree; raise if it is missing."""
    part: dict[str, Any] = checks.instance(dict, "an object")("file", name, tree.get(name))
    return part


def array_of(tree: Mapping[str, Any], name: str, shape: checks.Dims | None = None) -> Host:
    """Return an array of float64 from a file's tree; raise if it is missing or has another
    shape.
    """
    array: Any = tree.get(name)
    if getattr(array, "dtype", None) != np.float64:
        raise TypeError(f"{name} is {checks.shown(array)}, expected an array of float64")
    if shape is not None:
        checks.shape("file", name, array, shape)
    return np.asarray(array)


def positive(name: str, array: Host) -> Host:
    """Return an array of a file; raise ValueError unless all its numbers are above 0."""
    if not np.all(array > 0):
        raise ValueError(f"{name} has {np.min(array):g}, expected numbers above 0")
    return array


def bytes_of(tree: Mapping[str, Any], name: str) -> bytes:
    """Return bytes from a file's tree; raise if they are missing."""
    content: Any = tree.get(name)
    if getattr(content, "dtype", None) != np.uint8:
        raise ValueError(f"{name} is {checks.shown(content)}, expected an array of bytes")
    return bytes(content.tobytes())


def _unpacked(arrays: dict[str, Host], config: dict[str, Any]) -> dict[str, Any]:
    """Return the tree of a file.

    A file without a tree has its arrays under their own names; a name with a dot is then a weight.
    """
    if "tree" not in config:
        weights = {name: array for name, array in arrays.items() if "." in name}
        others = {name: array for name, array in arrays.items() if "." not in name}
        return config | {"fitted": others | {"params": weights}}
    return subtree({"tree": checkpoint.unpack(config["tree"], arrays, lambda a, dtype: a)}, "tree")


def _plain(value: Any) -> Any:
    """Return a value in a form that JSON can hold, if there is one."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
