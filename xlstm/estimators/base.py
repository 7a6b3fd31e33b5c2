"""The common part of all estimators: scikit-learn's conventions without scikit-learn, checks, and training."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any, Self

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend
from xlstm.arrays.namespace import Params
from xlstm.training import Batches, Trained, loop, optimizers
from xlstm.training import precision as precisions
from xlstm.training.schedules import Schedule

# Checks of the parameters that every estimator of one network has.
CHECKS: dict[str, checks.Kind] = {
    **dict.fromkeys(("hidden_size", "batch_size"), checks.size),
    **dict.fromkeys(("warm_start", "resume"), checks.flag),
    **dict.fromkeys(("dropout", "averaging", "validation_fraction"), checks.rate),
    **dict.fromkeys(("learning_rate", "clip"), checks.above_0),
    "num_layers": checks.depth,
    "weight_decay": checks.non_negative,
    "seed": checks.seed_number,
    "precision": checks.optional(checks.choice(precisions.NAMES)),
}


class NotFittedError(ValueError, AttributeError):
    """An estimator is used before it is fitted."""


class Estimator:
    """The base of estimators.

    A constructor stores its arguments as they are, under their names; `fit` checks them. Results of `fit` have names
    with an underscore at their end.
    """

    _kind = ""  # scikit-learn's name for the kind of estimator: "classifier", "regressor" or nothing
    _takes: tuple[str, ...] = ("two_d_array", "three_d_array")  # scikit-learn's names for the kinds of X

    @classmethod
    def _names(cls) -> list[str]:
        """Return the names of the constructor's parameters."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters of the constructor.

        Parameters
        ----------
        deep : bool
            It makes no difference here; `sklearn` gives it.

        Returns
        -------
        dict
        """
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the constructor.

        Parameters
        ----------
        params : dict

        Returns
        -------
        Estimator
            Itself.

        Raises
        ------
        ValueError
            There is no such parameter.
        """
        for name, value in params.items():
            if name not in self._names():
                known = ", ".join(self._names())
                raise ValueError(
                    f"{type(self).__name__}: {checks.shown(name)} is no parameter, expected some of {known}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = {n: v for n, v in self.get_params().items() if not _same(v, defaults[n].default)}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether `fit` has found parameters."""
        return getattr(self, "params_", None) is not None

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn, which calls this, is to know of the estimator."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type=self._kind or None,
            target_tags=TargetTags(required=bool(self._kind), multi_output=self._kind == "regressor"),
            classifier_tags=ClassifierTags() if self._kind == "classifier" else None,
            regressor_tags=RegressorTags() if self._kind == "regressor" else None,
            input_tags=InputTags(**{"two_d_array": False, **dict.fromkeys(self._takes, True)}),
            non_deterministic=False,
        )

    def _check_fitted(self) -> None:
        """Raise NotFittedError, that of scikit-learn where it is in use, unless the estimator is fitted."""
        if self.__sklearn_is_fitted__():
            return
        kind: type[Exception] = NotFittedError
        if "sklearn" in sys.modules:
            from sklearn.exceptions import NotFittedError as Known

            kind = Known
        raise kind(f"{type(self).__name__}: not fitted yet, call fit first")


def learn(
    given: Any,
    model: Any,
    params: Params,
    data: Batches,
    home: Backend,
    schedule: Schedule | None = None,
    **options: Any,
) -> Trained:
    """Train with the options that every estimator has.

    Parameters
    ----------
    given : estimator or Settings
        It has learning_rate, weight_decay, clip, averaging, seed and precision.
    model, params, data
        As for `training.train`.
    home : Backend
        Where the parameters are.
    schedule : Schedule, optional
        The learning rate, by default that of `given`.
    options : dict
        Further arguments of `training.train`.

    Returns
    -------
    Trained
    """
    mixed, context = precisions.named(given.precision, home)
    rate = given.learning_rate if schedule is None else schedule
    with context:
        return loop.train(
            model,
            params,
            data,
            optimizers.adamw(rate, weight_decay=given.weight_decay),
            seed=given.seed,
            precision=mixed,
            clip=given.clip,
            averaging=given.averaging,
            **options,
        )


def layer_options(where: str, given: Any, own: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of a layer as a dict.

    Parameters
    ----------
    where : str
        The estimator, for errors.
    given : dict or None
    own : tuple of str
        Names that the estimator itself gives to the layer.

    Raises
    ------
    TypeError, ValueError
        It is no dict of names, or has one of `own`.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"{where}: options is {checks.shown(given)}, expected a dict of name to value")
    for name in given:
        if name in own:
            raise ValueError(f"{where}: options has {name!r}, which {where} gives to the layer; expected other options")
    return dict(given)


def check_warm_start(where: str, before: Any, layer: Any) -> None:
    """Raise ValueError unless `layer`, which the parameters make now, can go on from the weights of `before`.

    Parameters
    ----------
    where : str
        The estimator, for errors.
    before, layer : SequenceLayer
    """
    if type(before) is not type(layer) or before.shapes != layer.shapes:
        problem = f"warm_start goes on from {before}, expected its cell and sizes, but there is {layer}"
        raise ValueError(f"{where}: {problem}")


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, (bool, int, float, str)) and one == other)
