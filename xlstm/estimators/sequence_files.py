"""Files of sequence estimators: weights, scaling, labels and parameters in one safetensors file."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.training import checkpoint

Host = np.ndarray[Any, Any]
SCALES = ("mean_", "std_", "target_mean_", "target_std_")  # arrays of float64 beside the weights
FACTS = ("table_", "n_features_in_", "one_target_")  # plain values that `fit` found out


def save(path: str | os.PathLike[str], estimator: Any, names: list[str], note: dict[str, Any] | None) -> None:
    """Write a fitted estimator, whole or not at all.

    Parameters
    ----------
    path : path
    estimator : SequenceEstimator
    names : list of str
        Parameters of its constructor that are kept.
    note : dict, optional
        Anything JSON can hold.

    Raises
    ------
    OSError
        The file cannot be written.
    ValueError
        Labels of classes are neither text nor numbers.
    """
    found = vars(estimator)
    config: dict[str, Any] = {
        "settings": {name: getattr(estimator, name) for name in names},
        "facts": {name: found[name] for name in FACTS if name in found},
        "note": {} if note is None else note,
    }
    if "feature_names_in_" in found:
        config["names"] = [str(name) for name in found["feature_names_in_"]]
    if "classes_" in found:
        config["classes"] = _labels(found["classes_"])
    scales = {name: np.asarray(found[name], np.float64) for name in SCALES if name in found}
    checkpoint.save(path, {**estimator.params_, **scales}, kind_of(type(estimator)), config)


def load(path: str | os.PathLike[str], kind: type[Any], backend: str | Backend | None) -> Any:
    """Read what `save` wrote, as an estimator of the class `kind`.

    Raises
    ------
    OSError, ValueError
        There is no such file, or it is not that of such an estimator.
    """
    arrays, config = checkpoint.load(path, kind_of(kind))
    try:
        settings, facts, note = (_object(config, name) for name in ("settings", "facts", "note"))
        made = kind(**settings, backend=backend)
        made.check()
        made.n_features_in_ = checks.size("file", "n_features_in_", facts.get("n_features_in_"))
        regressor = kind._kind == "regressor"
        for name in ("table_", "one_target_") if regressor else ("table_",):
            setattr(made, name, checks.flag("file", name, facts.get(name)))
        for name in SCALES if regressor else SCALES[:2]:
            if name not in arrays or arrays[name].ndim > 2 or not np.all(np.isfinite(arrays[name])):
                raise ValueError(f"{name} is missing or not finite")
            setattr(made, name, arrays.pop(name).astype(np.float64))
        if "classes" in config:
            made.classes_ = np.array(_list(config, "classes"))
        if "names" in config:
            made.feature_names_in_ = np.array(_list(config, "names"), dtype=object)
        steps, width = (made.n_features_in_, 1) if made.table_ else (1, made.n_features_in_)
        for name in ("mean_", "std_"):
            if getattr(made, name).shape not in ((1,), (width,), (steps, width)):
                raise ValueError(f"{name} has shape {getattr(made, name).shape}, expected {(steps, width)}")
        if regressor and (made.target_mean_.ndim != 1 or made.target_mean_.shape != made.target_std_.shape):
            raise ValueError(
                f"target_mean_ and target_std_ have shapes {made.target_mean_.shape}, {made.target_std_.shape}"
            )
        made.model_ = made.network(width, len(getattr(made, kind._each_output)))
        made.model_.check(arrays)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a sound {kind_of(kind)} ({type(error).__name__}: {error})") from error
    home = backend_of(backend, made.dtype)
    checkpoint.finite(path, arrays, home.dtype)
    made.params_, made.note_ = {name: home.asarray(array) for name, array in arrays.items()}, note
    return made


def kind_of(kind: type[Any]) -> str:
    """Return the kind of model file of an estimator's class: "sequence classifier" or "sequence regressor"."""
    return f"sequence {kind._kind}"


def _labels(classes: Host) -> list[Any]:
    """Return labels as JSON can hold them."""
    labels: list[Any] = classes.tolist()
    if not all(isinstance(label, str | int | float) for label in labels):
        raise ValueError(f"classes_ holds {checks.shown(labels[0])}, expected text or numbers in a model file")
    return labels


def _object(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"{name} is {checks.shown(found)}, expected an object")
    return found


def _list(config: dict[str, Any], name: str) -> list[Any]:
    found = config[name]
    if not isinstance(found, list) or len(found) < 1 or len({type(one) for one in found}) > 1:
        raise ValueError(f"{name} is {checks.shown(found)}, expected a list of one kind of value")
    return found
