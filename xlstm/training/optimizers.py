"""Optimisers as pairs of pure functions over a state, and gradient clipping.

>>> optimizer = adam(1e-3)
>>> state = optimizer.init(params)
>>> params, state = optimizer.update(params, grads, state)

Parameters and gradients are flat dicts of name to array, and nothing is changed in place. The equations are those of
`torch.optim`, which the tests follow step by step. A learning rate is a number or a schedule, a function of the number
of updates done. Optimisers and their states can be pickled and copied where their schedule can.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from xlstm.arrays import checks, together
from xlstm.arrays.adopt import adopt, adopting
from xlstm.arrays.fuse import compiles, listed
from xlstm.arrays.namespace import Array, Namespace, Params, namespace, namespace_of
from xlstm.cells.activations import clamp
from xlstm.training.schedules import Schedule, constant, cosine, schedule, step_decay, warmup  # noqa: F401


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
    return _Sgd("sgd", schedule("sgd", "lr", lr), ("v",) if momentum else (), decay, momentum, nesterov).pair()


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
    slots = ("s", "v") if momentum else ("s",)
    return _RmsProp("rmsprop", schedule("rmsprop", "lr", lr), slots, decay, alpha, eps, momentum).pair()


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
    return _adam("adam", lr, betas, eps, weight_decay, decoupled=False)


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
    return _adam("adamw", lr, betas, eps, weight_decay, decoupled=True)


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
    kind = checks.instance(Optimizer, "an optimiser, or None to freeze parameters")
    for pattern, optimizer in checks.mapping("by_name", rules, "rules").items():
        checks.optional(kind)("by_name", f"rules[{checks.shown(pattern)}]", optimizer)
    kind("by_name", "otherwise", otherwise)
    made = _ByName((*rules.items(), ("*", otherwise)))
    optimizers = [optimizer for _, optimizer in made.rules if optimizer is not None]
    whole = all(optimizer.parts for optimizer in optimizers)
    parts = Parts(sum(made.widths), made.numbers, made.apply) if whole else None
    rates = [optimizer.schedules for optimizer in optimizers]
    return Optimizer(made.init, made.update, made.frozen, parts, sum(rates, ()) if all(rates) else ())


@dataclass(frozen=True)
class _ByName:
    """Optimisers by patterns of names; the moments of the k-th are kept as `k.slot`."""

    rules: tuple[tuple[str, Optimizer | None], ...]

    def place(self, name: str) -> int:
        """Return the number of the rule that decides for a parameter."""
        return next(k for k, (pattern, _) in enumerate(self.rules) if fnmatch.fnmatchcase(name, pattern))

    def frozen(self, name: str) -> bool:
        optimizer = self.rules[self.place(name)][1]
        return optimizer is None or optimizer.frozen(name)

    def init(self, params: Params) -> OptimState:
        checks.mapping("by_name", params)
        slots: dict[str, Params] = {}
        for k, (pattern, optimizer) in enumerate(self.rules):
            part = {name: p for name, p in params.items() if self.place(name) == k}
            if not part and k < len(self.rules) - 1:
                raise ValueError(f"by_name: no parameter matches {checks.shown(pattern)} first: {checks.few(params)}")
            if part and optimizer is not None:
                slots |= {f"{k}.{slot}": found for slot, found in optimizer.init(part).slots.items()}
        return OptimState(0, slots)

    def update(self, params: Params, grads: Params, state: OptimState) -> tuple[Params, OptimState]:
        new = dict(params)
        slots: dict[str, Params] = {}
        for k, optimizer, part, given, own in self._divided(params, grads, state.slots):
            updated, after = optimizer.update(part, given, OptimState(state.step, own))
            new |= updated
            slots |= {f"{k}.{slot}": found for slot, found in after.slots.items()}
        return new, OptimState(state.step + 1, slots)

    @property
    def widths(self) -> list[int]:
        """How many numbers each rule has."""
        return [0 if optimizer is None else _parts(optimizer).width for _, optimizer in self.rules]

    def numbers(self, step: int) -> tuple[float, ...]:
        """Return the numbers of all optimisers, one after the other."""
        return tuple(n for _, optimizer in self.rules if optimizer is not None for n in _parts(optimizer).numbers(step))

    def apply(
        self, params: Params, grads: Params, slots: dict[str, Params], numbers: Sequence[Any], *how: Any
    ) -> tuple[Params, dict[str, Params]]:
        """Update by the numbers of all optimisers."""
        new, found = dict(params), dict[str, Params]()
        for k, optimizer, part, given, own in self._divided(params, grads, slots):
            mine = numbers[sum(self.widths[:k]) : sum(self.widths[: k + 1])]
            updated, after = _parts(optimizer).apply(part, given, own, mine, *how)
            new |= updated
            found |= {f"{k}.{slot}": moments for slot, moments in after.items()}
        return new, found

    def _divided(
        self, params: Params, grads: Params, slots: dict[str, Params]
    ) -> Iterator[tuple[int, Optimizer, Params, Params, dict[str, Params]]]:
        """Yield each optimiser that has something to do with its parameters, their gradients and its moments."""
        for k, (_, optimizer) in enumerate(self.rules):
            part = {name: p for name, p in params.items() if self.place(name) == k}
            if not part or optimizer is None:
                continue
            own = {name.removeprefix(f"{k}."): s for name, s in slots.items() if name.startswith(f"{k}.")}
            yield k, optimizer, part, {name: grads[name] for name in part if name in grads}, own


def _parts(optimizer: Optimizer) -> Parts:
    assert optimizer.parts is not None
    return optimizer.parts


def _adam(
    where: str, lr: float | Schedule, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool
) -> Optimizer:
    given = checks.several(where, "betas", betas, "two rates", 2)
    if len(given) != 2:
        raise ValueError(f"{where}: betas has {len(given)} entries, expected two rates")
    b1, b2 = (checks.rate(where, f"betas[{k}]", beta) for k, beta in enumerate(given))
    eps, decay = checks.non_negative(where, "eps", eps), checks.squared(where, "weight_decay", weight_decay)
    return _Adam(where, schedule(where, "lr", lr), ("m", "v"), decay, b1, b2, eps, decoupled).pair()


class _Formula(NamedTuple):
    """How a parameter is updated: `function(xp, p, g, *moments, *numbers, **options)` gives it and its moments."""

    function: Callable[..., Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class _Rule:
    """An optimiser that treats every parameter by itself, by the same formula."""

    where: str
    lr: Schedule
    slots: tuple[str, ...]
    decay: float
    width: ClassVar[int] = 1  # numbers that change from update to update

    @property
    def formula(self) -> _Formula:
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
        params = adopt(self.where, params)
        checks.mapping(self.where, params)
        xp = namespace(self.where, params)
        return OptimState(0, {slot: {name: xp.zeros_like(p) for name, p in params.items()} for slot in self.slots})

    def update(self, params: Params, grads: Params, state: OptimState) -> tuple[Params, OptimState]:
        """Return parameters and state after an update."""
        params, grads = adopt(self.where, (params, grads))
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
        found = together.each(xp, function, given, numbers, into, **options)
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
class _Sgd(_Rule):
    momentum: float
    nesterov: bool

    @property
    def formula(self) -> _Formula:
        return _Formula(_sgd, {"decay": self.decay, "momentum": self.momentum, "nesterov": self.nesterov})


def _sgd(xp: Namespace, p: Array, g: Array, *rest: Any, decay: float, momentum: float, nesterov: bool) -> Any:
    *moments, lr = rest
    if decay:
        g = g + decay * p
    if not momentum:
        return p - lr * g
    v = momentum * moments[0] + g
    return p - lr * (g + momentum * v if nesterov else v), v


@dataclass(frozen=True)
class _RmsProp(_Rule):
    alpha: float
    eps: float
    momentum: float

    @property
    def formula(self) -> _Formula:
        options = {"decay": self.decay, "alpha": self.alpha, "eps": self.eps, "momentum": self.momentum}
        return _Formula(_rmsprop, options)


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
class _Adam(_Rule):
    width: ClassVar[int] = 3
    b1: float
    b2: float
    eps: float
    decoupled: bool

    @property
    def formula(self) -> _Formula:
        options = {"b1": self.b1, "b2": self.b2, "eps": self.eps, "decay": self.decay, "decoupled": self.decoupled}
        return _Formula(_adam_update, options)

    def changing(self, lr: float, step: int) -> tuple[float, ...]:
        return lr / (1 - self.b1**step), 1 / math.sqrt(1 - self.b2**step), lr * self.decay


def _adam_update(
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


@adopting
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
    return together.norm(xp, list(grads.values()))


@adopting
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
        found = together.each(xp, _scaled, [list(grads.values())], (norm, limit))
        return {name: g for name, (g,) in zip(grads, found, strict=True)}
    scale = _scale(xp, norm, limit)
    return {name: g * scale for name, g in grads.items()}


def _scaled(xp: Namespace, g: Array, norm: Array, limit: Any) -> Array:
    return g * _scale(xp, norm, limit)


def _scale(xp: Namespace, norm: Array, limit: Any) -> Array:
    """Return the factor that makes a norm `limit` at most."""
    return limit / xp.maximum(norm, xp.full_like(norm, limit))


@adopting
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


def running_mean(mean: Params, params: Params, decay: float) -> Params:
    """Return the exponential moving average of weights, decay mean + (1 - decay) params (Polyak & Juditsky 1992).

    Parameters
    ----------
    mean, params : dict of str to array
    decay : float
        From 0, which gives `params`, to 1, which gives `mean`.

    Returns
    -------
    dict of str to array

    Raises
    ------
    ValueError, TypeError
        `decay` is no number from 0 to 1.
    """
    decay = checks.real(0, 1)("running_mean", "decay", decay)
    return {name: decay * mean[name] + (1 - decay) * p for name, p in params.items()}
