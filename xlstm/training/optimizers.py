"""Optimisers as pairs of pure functions over a state, and clipping of gradients.

>>> import numpy as np
>>> params, grads = {"W": np.ones(2)}, {"W": np.ones(2)}
>>> optimizer = sgd(0.5)
>>> state = optimizer.init(params)
>>> params, state = optimizer.update(params, grads, state)
>>> params["W"].tolist()
[0.5, 0.5]

Parameters and gradients are flat dicts of name to array, and nothing is changed in-place. The
equations follow `torch.optim`; tests compare them step by step. A learning rate is a number or a
schedule, which is a function of the number of updates done. If a schedule can be pickled and
copied, so can its optimiser and the optimiser's state.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from xlstm.arrays import checks, foreach
from xlstm.arrays.cached import cached_property
from xlstm.arrays.foreign import accepts_foreign, from_foreign
from xlstm.arrays.fuse import compiles, listed
from xlstm.arrays.namespace import (
    Array,
    Namespace,
    Params,
    astype,
    namespace,
    namespace_of,
    reshape,
    widened,
)
from xlstm.cells.activations import clamp
from xlstm.checkpoint import check_alike
from xlstm.training.schedules import Schedule, constant, cosine, schedule, step_decay, warmup

__all__ = [
    "OptimState",
    "Optimizer",
    "Schedule",
    "adam",
    "adamw",
    "by_name",
    "clip_global_norm",
    "clip_per_sequence",
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
# The checks of the formulas' options.
OPTIONS: dict[str, checks.Kind] = {
    "momentum": checks.rate,
    "nesterov": checks.flag,
    "alpha": checks.rate,
    "eps": checks.non_negative,
    "weight_decay": checks.squared,
}


class OptimState(NamedTuple):
    """The state of an optimiser.

    Attributes
    ----------
    step : int
        The number of updates done.
    slots : dict of str to dict of str to array
        The moments, by slot name and then by parameter name.
    """

    step: int
    slots: Slots


class Optimizer:
    """The base class of optimisers: two pure functions, `init` and `update`.

    Write your own as a subclass. Training steps with it wait for a GPU; steps with the optimisers
    of this library do not.
    """

    def init(self, params: Params) -> OptimState:
        """Return the state before the first update."""
        raise NotImplementedError

    def update(self, params: Params, grads: Params, state: OptimState) -> tuple[Params, OptimState]:
        """Return the parameters and the state after an update."""
        raise NotImplementedError

    def frozen(self, name: str) -> bool:
        """Return whether the parameter of this name is frozen; its gradient is then not needed."""
        return False

    def _moving(self, grads: Params) -> Params:
        """Return the gradients of the parameters that are not frozen."""
        return {name: g for name, g in grads.items() if not self.frozen(name)}

    def _rates(self, step: int) -> tuple[float, ...]:
        """Return the learning rates after `step` updates, if the optimiser knows them."""
        return ()

    def _numbers(self, step: int) -> tuple[float, ...]:
        """Return all numbers that depend on the updates done, such as the learning rate."""
        return ()

    def _apply(
        self, params: Params, grads: Params, state: OptimState, *how: Any
    ) -> tuple[Params, OptimState]:
        """Return the result of `update`, for arrays that a training step has made."""
        return self.update(params, grads, state)


def sgd(
    lr: float | Schedule, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Optimizer:
    """Make a gradient-descent optimiser, p -= lr g, with heavy-ball or Nesterov momentum (Sutskever
    et al. 2013).

    Parameters
    ----------
    lr : float or Schedule
    momentum : float
        Share of the last step that each step keeps, less than 1.
    nesterov : bool
        Use Nesterov momentum: look ahead along the momentum, as `torch.optim.SGD` does.
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
    options = {"weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
    optimizer = _by_rule("sgd", lr, ("v",), _sgd, options)
    if nesterov and momentum == 0:
        raise ValueError("sgd: nesterov needs a momentum above 0")
    return optimizer


def rmsprop(
    lr: float | Schedule,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Make an RMSprop optimiser, which divides g by the root of its running mean square plus eps
    (Tieleman & Hinton 2012).

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
    options = {"weight_decay": weight_decay, "alpha": alpha, "eps": eps, "momentum": momentum}
    return _by_rule("rmsprop", lr, ("s", "v"), _rmsprop, options)


def adam(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Make an Adam optimiser (Kingma & Ba 2015), which adds weight decay to the gradient.

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
    return _by_adam("adam", lr, betas, eps, weight_decay, decoupled=False)


def adamw(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Make an Adam optimiser with decoupled weight decay, `p *= 1 - lr weight_decay` (Loshchilov &
    Hutter 2019).

    Parameters
    ----------
    lr : float or Schedule
    betas : (float, float)
        Decay of the running means of g and of g^2.
    eps : float
    weight_decay : float
        Share of the weights that an update removes, before the factor of the learning rate.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError, TypeError
        A setting is out of range, or no number.
    """
    return _by_adam("adamw", lr, betas, eps, weight_decay, decoupled=True)


def by_name(rules: Mapping[str, Optimizer | None], otherwise: Optimizer) -> Optimizer:
    """Make an optimiser that applies a different rule to each group of parameter names, or freezes
    the group.

    Parameters
    ----------
    rules : dict of str to Optimizer or None
        An optimiser for each pattern of names, such as `"embedding.*"`, in the syntax of `fnmatch`;
        the first pattern that matches a name decides. None freezes parameters: they stay as they
        are, and their gradients do not count in the norm that is clipped.
    otherwise : Optimizer
        The optimiser of all other parameters.

    Returns
    -------
    Optimizer

    Raises
    ------
    TypeError
        A value is not an optimiser.
    ValueError
        `init` finds no parameter for a pattern.

    Examples
    --------
    >>> optimizer = by_name({"embedding.*": None, "head.*": sgd(0.1)}, adam(1e-3))
    >>> optimizer.frozen("embedding.W")
    True
    """
    checks.mapping("by_name", rules, "rules")
    all_rules: list[_Rule | None] = []
    for pattern, optimizer in [*rules.items(), ("*", otherwise)]:
        if isinstance(optimizer, ByRules) and len(optimizer.rules) == 1:
            all_rules += optimizer.rules
        elif optimizer is None and otherwise is not None:
            all_rules.append(None)
        else:
            raise TypeError(
                f"by_name: {checks.shown(pattern)} has {checks.shown(optimizer)}, expected an"
                " optimiser such as adam(1e-3), or None to freeze parameters"
            )
    return ByRules("by_name", (*rules, "*"), tuple(all_rules))


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
        `grads` is not a dict of arrays, or the arrays differ in library or device.
    """
    checks.mapping("global_norm", grads, "gradients")
    return norm_of(namespace("global_norm", grads), grads)


def norm_of(xp: Namespace, grads: Params) -> Array:
    """Return the Euclidean norm of all gradients together, without checking them."""
    if not grads:
        raise ValueError("global_norm: there are no gradients, expected those of parameters")
    return foreach.norm(xp, list(grads.values()))


@accepts_foreign
def clip_global_norm(
    grads: Params, limit: float, norm: Array | None = None, *, in_place: bool = False
) -> Params:
    """Scale all gradients together so that their global norm is at most `limit` (Pascanu et al.
    2013).

    Parameters
    ----------
    grads : dict of str to array
    limit : float
    norm : 0-d array, optional
        The global norm, if it is already known.
    in_place : bool
        Whether gradients may be changed in-place. CuPy gradients are, if all of them are
        contiguous.

    Returns
    -------
    dict of str to array

    Raises
    ------
    TypeError, ValueError
        `grads` is not a dict of arrays, or the arrays differ in library or device; `limit` is not
        above 0.

    Examples
    --------
    >>> import numpy as np
    >>> clip_global_norm({"W": np.array([3.0, 4.0])}, limit=1.0)["W"].round(6).tolist()
    [0.6, 0.8]
    """
    limit = checks.above_0("clip_global_norm", "limit", limit)
    checks.mapping("clip_global_norm", grads, "gradients")
    xp = namespace("clip_global_norm", grads)
    norm = norm_of(xp, grads) if norm is None else norm
    in_place = in_place and compiles(xp) and all(g.flags.c_contiguous for g in grads.values())
    (scaled,) = each(grads, _scaled, [grads], (norm, limit), (0,) if in_place else ())
    return scaled


def each(
    names: Collection[str],
    function: Callable[..., Any],
    columns: Sequence[Params],
    numbers: tuple[Any, ...],
    into: tuple[int, ...] = (),
    **options: Any,
) -> list[Params]:
    """Return a function's results for each name; its arguments are arrays by name, and numbers."""
    arrays = [[column[name] for name in names] for column in columns]
    results = foreach.apply(namespace_of(arrays[0][0]), function, arrays, numbers, into, **options)
    return [dict(zip(names, some, strict=True)) for some in zip(*results, strict=True)]


@accepts_foreign
def clip_per_sequence(grads: Params, limit: float) -> Params:
    """Scale the gradients of each sequence together so that their norm is at most `limit`.

    This is the clipping of algorithm 1 of Abadi et al. 2016, "Deep learning with differential
    privacy".

    NaN and infinity of a sequence stay.

    Parameters
    ----------
    grads : dict of str to array (B, ...)
        Gradients of B sequences, from `backward` with `per_sequence=True`. Gradients of a plain
        `backward` may have shapes that are accepted by mistake.
    limit : float

    Returns
    -------
    dict of str to array (B, ...)

    Raises
    ------
    TypeError, ValueError
        `grads` is not a dict of arrays (B, ...), or the arrays differ in library or device; `limit`
        is not above 0.
    """
    where = "clip_per_sequence"
    limit = checks.above_0(where, "limit", limit)
    grads = checks.mapping(where, grads, "gradients")
    xp = namespace(where, grads)
    outer = next(iter(grads.values())).shape[:1]
    wide = {}
    for name, g in grads.items():
        if not outer or g.shape[:1] != outer:
            raise ValueError(
                f"{where}: {name} has shape {tuple(g.shape)}, expected (B, ...) with the B of all"
            )
        wide[name] = reshape(astype(xp, g, widened(xp, g.dtype)), (*outer, math.prod(g.shape[1:])))
    norm = xp.sqrt(sum(xp.sum(d * d, axis=1, keepdims=True) for d in wide.values()))
    return {
        name: reshape(astype(xp, _scaled(xp, wide[name], norm, limit), g.dtype), g.shape)
        for name, g in grads.items()
    }


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
        `grads` is not a dict of arrays, or the arrays differ in library or device; `limit` is not
        above 0.

    Examples
    --------
    >>> import numpy as np
    >>> clip_value({"W": np.array([3.0, -0.5])}, limit=1.0)["W"].tolist()
    [1.0, -0.5]
    """
    limit = checks.above_0("clip_value", "limit", limit)
    checks.mapping("clip_value", grads, "gradients")
    xp = namespace("clip_value", grads)
    return {name: clamp(xp, g, limit) for name, g in grads.items()}


def _scaled(xp: Namespace, g: Array, norm: Array, limit: Any) -> Array:
    """Return a gradient times the factor that brings a norm down to at most `limit`."""
    return g * (limit / xp.maximum(norm, xp.full_like(norm, limit)))


def _by_adam(
    where: str,
    lr: float | Schedule,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Optimizer:
    rates = checks.several(where, "betas", betas, "two rates", checks.rate, most=2)
    if len(rates) != 2:
        raise ValueError(f"{where}: betas has {len(rates)} entries, expected two rates")
    b1, b2 = rates
    options = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled}
    return _by_rule(where, lr, ("m", "v"), _adam, options, _adam_scalars, 3)


def _by_rule(
    where: str,
    lr: float | Schedule,
    slots: tuple[str, ...],
    formula: Callable[..., Any],
    options: dict[str, Any],
    *scalars: Any,
) -> ByRules:
    """Return the optimiser of one rule; its last slot holds the momentum, if there is one."""
    for name, kind in OPTIONS.items():
        if name in options:
            options[name] = kind(where, name, options[name])
    if options.get("momentum") == 0:
        slots = slots[:-1]
    rule = _Rule(where, schedule(where, "lr", lr), slots, formula, options, *scalars)
    return ByRules(where, ("*",), (rule,))


def _rate(lr: float, step: int, **_: Any) -> tuple[float, ...]:
    return (lr,)


@dataclass(frozen=True)
class _Rule:
    """The rule that updates one parameter.

    It calls `formula(xp, p, g, *moments, *numbers, **options)`, which returns p and the moments.

    `scalars(lr, step, **options)` returns the `width` numbers of update number `step`.
    """

    where: str
    lr: Schedule
    slots: tuple[str, ...]
    formula: Callable[..., Any]
    options: dict[str, Any]
    # These are not in the text by which checkpoints recognise an optimiser.
    scalars: Callable[..., tuple[float, ...]] = field(default=_rate, repr=False)
    width: int = field(default=1, repr=False)

    def rate(self, step: int) -> float:
        """Return the learning rate after `step` updates."""
        lr: float = checks.finite(self.where, "lr", self.lr(step))
        return lr

    def numbers(self, step: int) -> tuple[float, ...]:
        """Return the numbers of the formula after `step` updates."""
        return self.scalars(self.rate(step), step + 1, **self.options)


@functools.lru_cache(4096)
def _place(patterns: tuple[str, ...], name: str) -> int:
    """Return the number of the first pattern that matches a name."""
    return next(k for k, pattern in enumerate(patterns) if fnmatch.fnmatchcase(name, pattern))


@functools.lru_cache(64)
def _groups(patterns: tuple[str, ...], names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the names that each pattern is the first to match."""
    return tuple(tuple(n for n in names if _place(patterns, n) == k) for k in range(len(patterns)))


@dataclass(frozen=True)
class ByRules(Optimizer):
    """An optimiser with a rule for each pattern of names; a rule of None freezes its parameters.

    The first pattern that matches a name decides. An update has two parts: the host computes
    `numbers`, and the rest need not wait for a GPU.
    """

    where: str
    patterns: tuple[str, ...]
    rules: tuple[_Rule | None, ...]

    def frozen(self, name: str) -> bool:
        return self.rules[_place(self.patterns, name)] is None

    @cached_property
    def _used(self) -> tuple[_Rule, ...]:
        """The rules of parameters that are not frozen."""
        return tuple(rule for rule in self.rules if rule is not None)

    def _rates(self, step: int) -> tuple[float, ...]:
        return tuple(rule.rate(step) for rule in self._used)

    def init(self, params: Params) -> OptimState:
        params = from_foreign(self.where, params)
        checks.mapping(self.where, params)
        xp = namespace(self.where, params)
        slots = {
            slot: {name: xp.zeros_like(p) for name, p in arrays.items()}
            for slot, arrays in self.by_slot(params).items()
        }
        return OptimState(0, slots)

    def _numbers(self, step: int) -> tuple[float, ...]:
        return tuple(number for rule in self._used for number in rule.numbers(step))

    def update(self, params: Params, grads: Params, state: OptimState) -> tuple[Params, OptimState]:
        params, grads = from_foreign(self.where, (params, grads))
        if not isinstance(state, OptimState):
            raise TypeError(
                f"{self.where}: state is {checks.shown(state)}, expected the result of init or update"
            )
        checks.mapping(self.where, params)
        checks.mapping(self.where, grads, "gradients")
        check_alike(f"{self.where}: moments", state.slots, self.by_slot(params))
        return self._apply(params, grads, state, self._numbers(state.step), check=True)

    def _apply(
        self,
        params: Params,
        grads: Params,
        state: OptimState,
        numbers: Any = (),
        counts: Any = None,
        in_place: bool = False,
        check: bool = False,
    ) -> tuple[Params, OptimState]:
        """Return the parameters and the state after an update; `numbers` may be on the device.

        `counts` is a 0-d array on that device; if it is 0, no array changes. With `in_place`, new
        values overwrite the old ones. `check` says whether to check gradients.
        """
        if check:
            named = {f"gradient of {name}": g for name, g in grads.items()}
            namespace(self.where, {**params, **named})
            check_alike(f"{self.where}: gradients", self._moving(grads), self._moving(params))
        new = dict(params)
        slots: Slots = {slot: {} for slot in state.slots}
        first = 0
        for rule, names in zip(self.rules, _groups(self.patterns, tuple(params)), strict=True):
            if rule is None:
                continue
            scalars = (*numbers[first : first + rule.width],)
            first += rule.width
            if not names:
                continue
            befores = [params, grads, *map(state.slots.__getitem__, rule.slots)]
            into = (0, *range(2, len(befores))) if in_place else ()
            formula = rule.formula
            if counts is not None:
                formula = _unless_0(formula)
                scalars = (*scalars, counts)
            results = each(names, formula, befores, scalars, into, **rule.options)
            afters = [new, *map(slots.__getitem__, rule.slots)]
            for after, arrays in zip(afters, results, strict=True):
                after.update(arrays)
        return new, OptimState(state.step + 1, slots)

    def by_slot(self, params: Params) -> Slots:
        """Return the parameters that have a moment, by slot; raise ValueError if a pattern matches
        none.
        """
        groups = _groups(self.patterns, tuple(params))
        for pattern, names in zip(self.patterns[:-1], groups, strict=False):
            if not names:
                raise ValueError(
                    f"{self.where}: no parameter matches {checks.shown(pattern)} first, expected"
                    f" names among {checks.few(params)}"
                )
        by_slot: Slots = {}
        for rule, names in zip(self.rules, groups, strict=True):
            for slot in rule.slots if rule is not None and names else ():
                by_slot.setdefault(slot, {}).update((name, params[name]) for name in names)
        return by_slot


@functools.cache
def _unless_0(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an update function that changes nothing if the last of its numbers is 0."""

    @functools.wraps(function)
    def update(xp: Namespace, p: Array, g: Array, *rest: Any, **options: Any) -> tuple[Array, ...]:
        *others, done = rest
        results = listed(function(xp, p, g, *others, **options))
        return tuple(
            xp.where(done > 0, new, old) for new, old in zip(results, (p, *others), strict=False)
        )

    return update


def _sgd(
    xp: Namespace,
    p: Array,
    g: Array,
    *rest: Any,
    weight_decay: float,
    momentum: float,
    nesterov: bool,
) -> Any:
    *moments, lr = rest
    if weight_decay:
        g = g + weight_decay * p
    if not momentum:
        return p - lr * g
    v = momentum * moments[0] + g
    return p - lr * (g + momentum * v if nesterov else v), v


def _rmsprop(
    xp: Namespace,
    p: Array,
    g: Array,
    s: Array,
    *rest: Any,
    weight_decay: float,
    alpha: float,
    eps: float,
    momentum: float,
) -> Any:
    *moments, lr = rest
    if weight_decay:
        g = g + weight_decay * p
    s = alpha * s + (1 - alpha) * (g * g)
    d = g / (xp.sqrt(s) + eps)
    if not momentum:
        return p - lr * d, s
    v = momentum * moments[0] + d
    return p - lr * v, s, v


def _adam_scalars(
    lr: float, step: int, *, b1: float, b2: float, weight_decay: float, **_: Any
) -> tuple[float, ...]:
    """Return the rate and the factor that correct for moments starting at zero, and the weight
    decay.
    """
    return lr / (1 - b1**step), 1 / math.sqrt(1 - b2**step), lr * weight_decay


def _adam(
    xp: Namespace, p: Array, g: Array, m: Array, v: Array, rate: Any, widening: Any, share: Any, *, b1: float,
    b2: float, eps: float, weight_decay: float, decoupled: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    if weight_decay and decoupled:
        p = p - share * p
    elif weight_decay:
        g = g + weight_decay * p
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * (g * g)
    return p - rate * (m / (widening * xp.sqrt(v) + eps)), m, v
