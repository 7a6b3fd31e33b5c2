"""Optimisers as others see them, a pair of functions over a state; their formulas, and how parameters get them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from xlstm.arrays import checks, foreach
from xlstm.arrays.foreign import from_foreign
from xlstm.arrays.fuse import listed
from xlstm.arrays.namespace import Array, Namespace, Params, namespace, namespace_of
from xlstm.training.schedules import Schedule


class OptimState(NamedTuple):
    """The state of an optimiser: updates done, and moments (slot name -> parameter name -> array)."""

    step: int
    slots: dict[str, Params]


def _none(name: str) -> bool:
    return False


class Parts(NamedTuple):
    """The parts of an update: its numbers, which the host makes, and what is done to arrays.

    Attributes
    ----------
    width : int
        How many numbers there are.
    numbers : callable
        `numbers(step) -> tuple of float`, all that depends on the number of updates done, such as the learning rate.
    apply : callable
        `apply(params, grads, slots, numbers, done, in_place) -> (params, slots)`, the update by these numbers, which
        may be on the device. Where `done`, a 0-d array, is 0 nothing changes; None stands for 1. With `in_place` new
        values take the places of the old ones.
    """

    width: int
    numbers: Callable[[int], tuple[float, ...]]
    apply: Callable[..., tuple[Params, dict[str, Params]]]


class Optimizer(NamedTuple):
    """An optimiser.

    Attributes
    ----------
    init : callable
        `init(params) -> state`.
    update : callable
        `update(params, grads, state) -> (params, state)`.
    frozen : callable
        `frozen(name) -> bool`, whether the parameter stays as it is; its gradient is not needed.
    parts : Parts, optional
        `update` in two parts, for steps of training that do not wait for a GPU. An optimiser of your own may leave them
        out, and its steps then wait.
    schedules : tuple of Schedule
        Its learning rates, by which `train` sees whether a `ReduceOnPlateau` among them is a callback, too. An
        optimiser of your own may leave them out.
    """

    init: Callable[[Params], OptimState]
    update: Callable[[Params, Params, OptimState], tuple[Params, OptimState]]
    frozen: Callable[[str], bool] = _none
    parts: Parts | None = None
    schedules: tuple[Schedule, ...] = ()


class Formula(NamedTuple):
    """How a parameter is updated: `function(xp, p, g, *moments, *numbers, **options)` gives it and its moments."""

    function: Callable[..., Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """An optimiser that treats every parameter by itself, by the same formula."""

    where: str
    lr: Schedule
    slots: tuple[str, ...]
    decay: float
    width: ClassVar[int] = 1  # numbers that change from update to update

    @property
    def formula(self) -> Formula:
        """The formula of an update."""
        raise NotImplementedError

    def changing(self, lr: float, step: int) -> tuple[float, ...]:
        """Return the numbers of the formula that change from update to update, for the `step`-th from 1."""
        return (lr,)

    def pair(self) -> Optimizer:
        """Return the optimiser of this rule."""
        parts = Parts(self.width, self.numbers, self.apply)
        return Optimizer(self.init, self.update, parts=parts, schedules=(self.lr,))

    def init(self, params: Params) -> OptimState:
        """Return the state before the first update."""
        params = from_foreign(self.where, params)
        checks.mapping(self.where, params)
        xp = namespace(self.where, params)
        return OptimState(0, {slot: {name: xp.zeros_like(p) for name, p in params.items()} for slot in self.slots})

    def update(self, params: Params, grads: Params, state: OptimState) -> tuple[Params, OptimState]:
        """Return parameters and state after an update."""
        params, grads = from_foreign(self.where, (params, grads))
        if not isinstance(state, OptimState):
            raise TypeError(f"{self.where}: state is {checks.shown(state)}, expected what init or update gave")
        new, slots = self.apply(params, grads, state.slots, self.numbers(state.step))
        return new, OptimState(state.step + 1, slots)

    def numbers(self, step: int) -> tuple[float, ...]:
        """Return the numbers of an update after so many others."""
        return self.changing(checks.finite(self.where, "lr", self.lr(step)), step + 1)

    def apply(
        self,
        params: Params,
        grads: Params,
        slots: dict[str, Params],
        numbers: Sequence[Any],
        done: Array | None = None,
        in_place: bool = False,
    ) -> tuple[Params, dict[str, Params]]:
        """Update by these numbers."""
        self._check(params, grads, slots)
        function, options = self.formula
        given = [[one[name] for name in params] for one in (params, grads, *(slots[slot] for slot in self.slots))]
        into = tuple(k for k in range(len(given)) if k != 1) if in_place else ()
        if done is not None:
            function, numbers = _unless_0(function), (*numbers, done)
        xp = namespace_of(given[0][0])
        found = foreach.apply(xp, function, given, numbers, into, **options)
        new, *moments = (dict(zip(params, arrays, strict=True)) for arrays in zip(*found, strict=True))
        return new, dict(zip(self.slots, moments, strict=True))

    def _check(self, params: Params, grads: Params, slots: dict[str, Params]) -> None:
        """Raise unless parameters and gradients belong together and to the moments."""
        where = self.where
        checks.mapping(where, params)
        checks.mapping(where, grads, "gradients")
        if grads.keys() != params.keys():
            odd = min(grads.keys() ^ params.keys(), key=str)
            raise ValueError(f"{where}: {odd} is in only one of params and grads")
        if slots.keys() != set(self.slots):
            raise ValueError(f"{where}: the state has moments {sorted(slots)}, expected {sorted(self.slots)}")
        if any(moments.keys() != params.keys() for moments in slots.values()):
            raise ValueError(f"{where}: the state has moments of other parameters than params and grads")
        namespace(where, {**params, **{f"gradient of {name}": g for name, g in grads.items()}})
        for name, g in grads.items():
            if g.shape != params[name].shape:
                shapes = f"{tuple(g.shape)}, expected {tuple(params[name].shape)}"
                raise ValueError(f"{where}: gradient of {name} has shape {shapes}")


@functools.cache
def _unless_0(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of an update that changes nothing where the last of its numbers is 0."""

    @functools.wraps(function)
    def update(xp: Namespace, p: Array, g: Array, *rest: Any, **options: Any) -> tuple[Array, ...]:
        *others, done = rest
        found = listed(function(xp, p, g, *others, **options))
        return tuple(xp.where(done > 0, new, old) for new, old in zip(found, (p, *others), strict=False))

    return update


@dataclass(frozen=True)
class Sgd(Rule):
    momentum: float
    nesterov: bool

    @property
    def formula(self) -> Formula:
        return Formula(_sgd, {"decay": self.decay, "momentum": self.momentum, "nesterov": self.nesterov})


def _sgd(xp: Namespace, p: Array, g: Array, *rest: Any, decay: float, momentum: float, nesterov: bool) -> Any:
    *moments, lr = rest
    if decay:
        g = g + decay * p
    if not momentum:
        return p - lr * g
    v = momentum * moments[0] + g
    return p - lr * (g + momentum * v if nesterov else v), v


@dataclass(frozen=True)
class RmsProp(Rule):
    alpha: float
    eps: float
    momentum: float

    @property
    def formula(self) -> Formula:
        options = {"decay": self.decay, "alpha": self.alpha, "eps": self.eps, "momentum": self.momentum}
        return Formula(_rmsprop, options)


def _rmsprop(
    xp: Namespace, p: Array, g: Array, s: Array, *rest: Any, decay: float, alpha: float, eps: float, momentum: float
) -> Any:
    *moments, lr = rest
    if decay:
        g = g + decay * p
    s = alpha * s + (1 - alpha) * (g * g)
    d = g / (xp.sqrt(s) + eps)
    if not momentum:
        return p - lr * d, s
    v = momentum * moments[0] + d
    return p - lr * v, s, v


@dataclass(frozen=True)
class Adam(Rule):
    width: ClassVar[int] = 3
    b1: float
    b2: float
    eps: float
    decoupled: bool

    @property
    def formula(self) -> Formula:
        options = {"b1": self.b1, "b2": self.b2, "eps": self.eps, "decay": self.decay, "decoupled": self.decoupled}
        return Formula(_adam, options)

    def changing(self, lr: float, step: int) -> tuple[float, ...]:
        return lr / (1 - self.b1**step), 1 / math.sqrt(1 - self.b2**step), lr * self.decay


def _adam(
    xp: Namespace,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    rate: Any,
    widening: Any,
    share: Any,
    *,
    b1: float,
    b2: float,
    eps: float,
    decay: float,
    decoupled: bool,
) -> tuple[Array, Array, Array]:
    """Return p, m and v after an update; `rate` and `widening` correct for moments that begin at zero."""
    if decay and decoupled:
        p = p - share * p
    elif decay:
        g = g + decay * p
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * (g * g)
    return p - rate * (m / (widening * xp.sqrt(v) + eps)), m, v
