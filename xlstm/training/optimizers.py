"""Optimisers as pairs of pure functions over a state, for all parameters or by their names; clipping of gradients.

>>> import numpy as np
>>> params, grads = {"W": np.ones(2)}, {"W": np.ones(2)}
>>> optimizer = sgd(0.5)
>>> state = optimizer.init(params)
>>> params, state = optimizer.update(params, grads, state)
>>> params["W"].tolist()
[0.5, 0.5]

Parameters and gradients are flat dicts of name to array, and nothing is changed in place. The equations are those of
`torch.optim`, which the tests follow step by step. A learning rate is a number or a schedule, a function of the number
of updates done. Optimisers and their states can be pickled and copied where their schedule can.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from xlstm.arrays import checks, foreach
from xlstm.arrays.foreign import accepts_foreign, from_foreign
from xlstm.arrays.fuse import compiles, listed
from xlstm.arrays.namespace import Array, Namespace, Params, namespace, namespace_of
from xlstm.cells.activations import clamp
from xlstm.training.schedules import Schedule, constant, cosine, schedule, step_decay, warmup

__all__ = [
    "OptimState",
    "Optimizer",
    "Parts",
    "Schedule",
    "adam",
    "adamw",
    "by_name",
    "clip_global_norm",
    "clip_value",
    "constant",
    "cosine",
    "global_norm",
    "rmsprop",
    "sgd",
    "step_decay",
    "warmup",
]

Slots = dict[str, Params]  # moments: slot name -> parameter name -> array


class OptimState(NamedTuple):
    """The state of an optimiser: updates done, and moments (slot name -> parameter name -> array)."""

    step: int
    slots: Slots


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
    apply: Callable[..., tuple[Params, Slots]]


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
    """

    init: Callable[[Params], OptimState]
    update: Callable[[Params, Params, OptimState], tuple[Params, OptimState]]
    frozen: Callable[[str], bool] = _none
    parts: Parts | None = None


def sgd(lr: float | Schedule, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Optimizer:
    """Make gradient descent, p -= lr g, with heavy-ball or Nesterov momentum (Sutskever et al. 2013).

    Parameters
    ----------
    lr : float or Schedule
    momentum : float
        Share of the last step that is kept, less than 1.
    nesterov : bool
        Take the gradient where the momentum leads.
    weight_decay : float
        Factor of the weights that is added to their gradients.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError
        A setting is out of range, or `nesterov` has no momentum.
    """
    momentum, nesterov = checks.rate("sgd", "momentum", momentum), checks.flag("sgd", "nesterov", nesterov)
    decay = checks.squared("sgd", "weight_decay", weight_decay)
    if nesterov and momentum == 0:
        raise ValueError("sgd: nesterov needs a momentum above 0")
    options = {"decay": decay, "momentum": momentum, "nesterov": nesterov}
    return _optimizer(_Rule("sgd", schedule("sgd", "lr", lr), ("v",) if momentum else (), _sgd, options))


def rmsprop(
    lr: float | Schedule, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, weight_decay: float = 0.0
) -> Optimizer:
    """Make RMSprop, which divides g by the root of its running mean square plus eps (Tieleman & Hinton 2012).

    Parameters
    ----------
    lr : float or Schedule
    alpha : float
        Decay of the running mean square.
    eps : float
    momentum : float
    weight_decay : float
        Factor of the weights that is added to their gradients.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError, TypeError
        A setting is out of range, or no number.
    """
    alpha, eps = checks.rate("rmsprop", "alpha", alpha), checks.non_negative("rmsprop", "eps", eps)
    momentum = checks.rate("rmsprop", "momentum", momentum)
    decay = checks.squared("rmsprop", "weight_decay", weight_decay)
    options = {"decay": decay, "alpha": alpha, "eps": eps, "momentum": momentum}
    slots = ("s", "v") if momentum else ("s",)
    return _optimizer(_Rule("rmsprop", schedule("rmsprop", "lr", lr), slots, _rmsprop, options))


def adam(
    lr: float | Schedule, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """Make Adam (Kingma & Ba 2015); weight decay is added to the gradient.

    Parameters
    ----------
    lr : float or Schedule
    betas : (float, float)
        Decay of the running means of g and of g^2.
    eps : float
    weight_decay : float
        Factor of the weights that is added to their gradients.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError, TypeError
        A setting is out of range, or no number.
    """
    return _make_adam("adam", lr, betas, eps, weight_decay, decoupled=False)


def adamw(
    lr: float | Schedule, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
) -> Optimizer:
    """Make Adam with decoupled weight decay, p *= 1 - lr weight_decay (Loshchilov & Hutter 2019).

    Parameters
    ----------
    lr : float or Schedule
    betas : (float, float)
        Decay of the running means of g and of g^2.
    eps : float
    weight_decay : float
        Share of the weights that is taken away, times the learning rate.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError, TypeError
        A setting is out of range, or no number.
    """
    return _make_adam("adamw", lr, betas, eps, weight_decay, decoupled=True)


def by_name(rules: Mapping[str, Optimizer | None], otherwise: Optimizer) -> Optimizer:
    """Make an optimiser that treats parameters by their names: some at rates of their own, some not at all.

    Parameters
    ----------
    rules : dict of str to Optimizer or None
        Patterns of names, such as `"embedding.*"`, as of `fnmatch`; the first one that matches a name decides. None
        freezes parameters: they stay as they are, and their gradients do not count in the norm that is clipped.
    otherwise : Optimizer
        For all other parameters.

    Returns
    -------
    Optimizer

    Raises
    ------
    TypeError
        Something is no optimiser.
    ValueError
        `init` finds no parameter for a pattern.

    Examples
    --------
    >>> optimizer = by_name({"embedding.*": None, "head.*": sgd(0.1)}, adam(1e-3))
    >>> optimizer.frozen("embedding.W")
    True
    """
    checks.mapping("by_name", rules, "rules")
    for pattern, optimizer in [*rules.items(), ("*", otherwise)]:
        known = isinstance(optimizer, Optimizer) and optimizer.parts is not None
        if not known and (optimizer is not None or otherwise is None):
            expected = "an optimiser with parts, or None to freeze parameters"
            raise TypeError(f"by_name: {checks.shown(pattern)} has {checks.shown(optimizer)}, expected {expected}")
    rule = _ByName((*rules, "*"), (*rules.values(), otherwise))
    return _optimizer(rule, rule.frozen)


@accepts_foreign
def global_norm(grads: Params) -> Array:
    """Return the Euclidean norm of all gradients together, a 0-d array.

    Parameters
    ----------
    grads : dict of str to array

    Returns
    -------
    0-d array

    Raises
    ------
    TypeError, ValueError
        `grads` is no dict of arrays, or they do not belong together.
    """
    checks.mapping("global_norm", grads, "gradients")
    xp = namespace("global_norm", grads)
    return foreach.norm(xp, list(grads.values()))


@accepts_foreign
def clip_global_norm(grads: Params, limit: float, norm: Array | None = None) -> Params:
    """Scale all gradients together so that their global norm is at most `limit` (Pascanu et al. 2013).

    Parameters
    ----------
    grads : dict of str to array
    limit : float
    norm : 0-d array, optional
        The global norm, where it is known already.

    Returns
    -------
    dict of str to array

    Raises
    ------
    TypeError, ValueError
        `grads` is no dict of arrays, or they do not belong together; `limit` is not above 0.
    """
    limit = checks.above_0("clip_global_norm", "limit", limit)
    checks.mapping("clip_global_norm", grads, "gradients")
    xp = namespace("clip_global_norm", grads)
    norm = global_norm(grads) if norm is None else norm
    if compiles(xp):
        found = foreach.apply(xp, _scaled, [list(grads.values())], (norm, limit))
        return {name: g for name, (g,) in zip(grads, found, strict=True)}
    scale = _scale(xp, norm, limit)
    return {name: g * scale for name, g in grads.items()}


@accepts_foreign
def clip_value(grads: Params, limit: float) -> Params:
    """Clip every element of every gradient to [-limit, limit].

    Parameters
    ----------
    grads : dict of str to array
    limit : float

    Returns
    -------
    dict of str to array

    Raises
    ------
    TypeError, ValueError
        `grads` is no dict of arrays, or they do not belong together; `limit` is not above 0.
    """
    limit = checks.above_0("clip_value", "limit", limit)
    checks.mapping("clip_value", grads, "gradients")
    xp = namespace("clip_value", grads)
    return {name: clamp(xp, g, limit) for name, g in grads.items()}


def _scaled(xp: Namespace, g: Array, norm: Array, limit: Any) -> Array:
    return g * _scale(xp, norm, limit)


def _scale(xp: Namespace, norm: Array, limit: Any) -> Array:
    """Return the factor that makes a norm `limit` at most."""
    return limit / xp.maximum(norm, xp.full_like(norm, limit))


def _make_adam(
    where: str, lr: float | Schedule, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool
) -> Optimizer:
    rates = checks.several(where, "betas", betas, "two rates", 2)
    if len(rates) != 2:
        raise ValueError(f"{where}: betas has {len(rates)} entries, expected two rates")
    b1, b2 = (checks.rate(where, f"betas[{k}]", beta) for k, beta in enumerate(rates))
    eps, decay = checks.non_negative(where, "eps", eps), checks.squared(where, "weight_decay", weight_decay)
    options = {"b1": b1, "b2": b2, "eps": eps, "decay": decay, "decoupled": decoupled}
    return _optimizer(_Rule(where, schedule(where, "lr", lr), ("m", "v"), _adam, options))


def _optimizer(rule: _Rule | _ByName, frozen: Callable[[str], bool] = _none) -> Optimizer:
    parts = Parts(len(rule.numbers(0)), rule.numbers, rule.apply)
    return Optimizer(rule.init, functools.partial(_update, rule), frozen, parts)


def _update(rule: _Rule | _ByName, params: Params, grads: Params, state: OptimState) -> tuple[Params, OptimState]:
    params, grads = from_foreign(rule.where, (params, grads))
    if not isinstance(state, OptimState):
        raise TypeError(f"{rule.where}: state is {checks.shown(state)}, expected what init or update gave")
    new, slots = rule.apply(params, grads, state.slots, rule.numbers(state.step))
    return new, OptimState(state.step + 1, slots)


@dataclass(frozen=True)
class _Rule:
    """An optimiser that updates every parameter by the same formula.

    The formula is `formula(xp, p, g, *moments, *numbers, **options)`; it returns the new parameter and moments.
    """

    where: str
    lr: Schedule
    slots: tuple[str, ...]
    formula: Callable[..., Any]
    options: dict[str, Any]

    def init(self, params: Params) -> OptimState:
        params = from_foreign(self.where, params)
        checks.mapping(self.where, params)
        xp = namespace(self.where, params)
        return OptimState(0, {slot: {name: xp.zeros_like(p) for name, p in params.items()} for slot in self.slots})

    def numbers(self, step: int) -> tuple[float, ...]:
        """Return the numbers of the formula that change from update to update, after `step` updates."""
        lr = checks.finite(self.where, "lr", self.lr(step))
        return _adam_numbers(lr, step + 1, **self.options) if self.formula is _adam else (lr,)

    def apply(
        self,
        params: Params,
        grads: Params,
        slots: Slots,
        numbers: Any,
        done: Array | None = None,
        in_place: bool = False,
    ) -> tuple[Params, Slots]:
        """Update by these numbers, as `Parts` says."""
        self._check(params, grads, slots)
        sources = (params, grads, *(slots[slot] for slot in self.slots))
        columns = [[arrays[name] for name in params] for arrays in sources]
        formula, into = self.formula, (0, *range(2, len(columns))) if in_place else ()
        if done is not None:
            formula, numbers = _unless_0(formula), (*numbers, done)
        results = foreach.apply(namespace_of(columns[0][0]), formula, columns, numbers, into, **self.options)
        new, *moments = (dict(zip(params, arrays, strict=True)) for arrays in zip(*results, strict=True))
        return new, dict(zip(self.slots, moments, strict=True))

    def _check(self, params: Params, grads: Params, slots: Slots) -> None:
        """Raise unless parameters and gradients belong together and to the moments."""
        where = self.where
        checks.mapping(where, params)
        checks.mapping(where, grads, "gradients")
        for odd in grads.keys() ^ params.keys():
            raise ValueError(f"{where}: {odd} is in only one of params and grads")
        if slots.keys() != set(self.slots) or any(moments.keys() != params.keys() for moments in slots.values()):
            expected = f"expected {sorted(self.slots)} of the same parameters"
            raise ValueError(f"{where}: the state has moments {sorted(slots)}, {expected}")
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
        results = listed(function(xp, p, g, *others, **options))
        return tuple(xp.where(done > 0, new, old) for new, old in zip(results, (p, *others), strict=False))

    return update


def _sgd(xp: Namespace, p: Array, g: Array, *rest: Any, decay: float, momentum: float, nesterov: bool) -> Any:
    *moments, lr = rest
    if decay:
        g = g + decay * p
    if not momentum:
        return p - lr * g
    v = momentum * moments[0] + g
    return p - lr * (g + momentum * v if nesterov else v), v


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


def _adam_numbers(lr: float, step: int, *, b1: float, b2: float, decay: float, **_: Any) -> tuple[float, ...]:
    """Return the rate and the factor that correct for moments that begin at zero, and the share that decays."""
    return lr / (1 - b1**step), 1 / math.sqrt(1 - b2**step), lr * decay


def _adam(
    xp: Namespace, p: Array, g: Array, m: Array, v: Array, rate: Any, widening: Any, share: Any, *, b1: float,
    b2: float, eps: float, decay: float, decoupled: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    if decay and decoupled:
        p = p - share * p
    elif decay:
        g = g + decay * p
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * (g * g)
    return p - rate * (m / (widening * xp.sqrt(v) + eps)), m, v


@dataclass(frozen=True)
class _ByName:
    """Optimisers by patterns of names; the moments of the k-th are kept as `k.slot`."""

    patterns: tuple[str, ...]
    optimizers: tuple[Optimizer | None, ...]

    where = "by_name"

    @property
    def parts(self) -> list[Parts | None]:
        return [None if optimizer is None else optimizer.parts for optimizer in self.optimizers]

    def place(self, name: str) -> int:
        """Return the number of the pattern that decides for a parameter."""
        return next(k for k, pattern in enumerate(self.patterns) if fnmatch.fnmatchcase(name, pattern))

    def frozen(self, name: str) -> bool:
        optimizer = self.optimizers[self.place(name)]
        return optimizer is None or optimizer.frozen(name)

    def share(self, k: int, arrays: Params) -> Params:
        """Return the arrays for which the k-th pattern decides."""
        return {name: a for name, a in arrays.items() if self.place(name) == k}

    def init(self, params: Params) -> OptimState:
        checks.mapping("by_name", params)
        slots: Slots = {}
        for k, (pattern, optimizer) in enumerate(zip(self.patterns, self.optimizers, strict=True)):
            part = self.share(k, params)
            if not part and k + 1 < len(self.patterns):
                raise ValueError(f"by_name: no parameter matches {checks.shown(pattern)} first: {checks.few(params)}")
            if part and optimizer is not None:
                slots |= {f"{k}.{slot}": moments for slot, moments in optimizer.init(part).slots.items()}
        return OptimState(0, slots)

    def numbers(self, step: int) -> tuple[float, ...]:
        """Return the numbers of all optimisers, one after the other."""
        return tuple(n for part in self.parts if part for n in part.numbers(step))

    def apply(
        self, params: Params, grads: Params, slots: Slots, numbers: Sequence[Any], *how: Any
    ) -> tuple[Params, Slots]:
        """Update by the numbers of all optimisers."""
        new, after, first = dict(params), Slots(), 0
        for k, part in enumerate(self.parts):
            if part is None:
                continue
            its_numbers, first = numbers[first : first + part.width], first + part.width
            its_slots = {name.removeprefix(f"{k}."): s for name, s in slots.items() if name.startswith(f"{k}.")}
            if its_params := self.share(k, params):
                updated, moments = part.apply(its_params, self.share(k, grads), its_slots, its_numbers, *how)
                new |= updated
                after |= {f"{k}.{slot}": arrays for slot, arrays in moments.items()}
        return new, after
