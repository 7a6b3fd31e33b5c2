"""Optimisers as pairs of pure functions over a state, gradient clipping, and learning-rate schedules.

>>> optimizer = adam(1e-3)
>>> state = optimizer.init(params)
>>> params, state = optimizer.update(params, grads, state)

Parameters and gradients are flat dicts of name to array, and nothing is changed in place. The
equations are those of `torch.optim`, which the tests follow step by step. A learning rate is a
number or a schedule, a function of the number of updates done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from xlstm.arrays import checks
from xlstm.arrays.namespace import Array, Namespace, Params, namespace
from xlstm.cells.activations import clamp

Schedule = Callable[[int], float]


class OptimState(NamedTuple):
    """Updates done, and moments: slot name -> parameter name -> array."""

    step: int
    slots: dict[str, Params]


class Optimizer(NamedTuple):
    """`init(params) -> state` and `update(params, grads, state) -> (params, state)`."""

    init: Callable[[Params], OptimState]
    update: Callable[[Params, Params, OptimState], tuple[Params, OptimState]]


# One parameter: (xp, p, g, moments, learning rate, updates done including this one) -> p, moments.
Rule = Callable[[Namespace, Array, Array, list[Array], float, int], tuple[Array, list[Array]]]


def sgd(lr: float | Schedule, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Optimizer:
    """Gradient descent, p -= lr g, with heavy-ball or Nesterov momentum (Sutskever et al. 2013).

    Raises
    ------
    ValueError
        A setting out of range, or `nesterov` without momentum.
    """
    momentum, nesterov = checks.rate("sgd", "momentum", momentum), checks.flag("sgd", "nesterov", nesterov)
    weight_decay = checks.squared("sgd", "weight_decay", weight_decay)
    if nesterov and momentum == 0:
        raise ValueError("sgd: nesterov needs a momentum above 0")

    def rule(
        xp: Namespace, p: Array, g: Array, moments: list[Array], rate: float, step: int
    ) -> tuple[Array, list[Array]]:
        if weight_decay:
            g = g + weight_decay * p
        if not momentum:
            return p - rate * g, []
        v = momentum * moments[0] + g
        return p - rate * (g + momentum * v if nesterov else v), [v]

    return _optimizer("sgd", lr, ("v",) if momentum else (), rule)


def rmsprop(
    lr: float | Schedule, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, weight_decay: float = 0.0
) -> Optimizer:
    """g divided by the root of its running mean square (Tieleman & Hinton 2012); eps is added to the root."""
    alpha, eps = checks.rate("rmsprop", "alpha", alpha), checks.non_negative("rmsprop", "eps", eps)
    momentum = checks.rate("rmsprop", "momentum", momentum)
    weight_decay = checks.squared("rmsprop", "weight_decay", weight_decay)

    def rule(
        xp: Namespace, p: Array, g: Array, moments: list[Array], rate: float, step: int
    ) -> tuple[Array, list[Array]]:
        if weight_decay:
            g = g + weight_decay * p
        s = alpha * moments[0] + (1 - alpha) * (g * g)
        d = g / (xp.sqrt(s) + eps)
        if not momentum:
            return p - rate * d, [s]
        v = momentum * moments[1] + d
        return p - rate * v, [s, v]

    return _optimizer("rmsprop", lr, ("s", "v") if momentum else ("s",), rule)


def adam(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient."""
    return _adam("adam", lr, betas, eps, weight_decay, decoupled=False)


def adamw(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay, p *= 1 - lr weight_decay (Loshchilov & Hutter 2019)."""
    return _adam("adamw", lr, betas, eps, weight_decay, decoupled=True)


def _adam(
    where: str, lr: float | Schedule, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool
) -> Optimizer:
    given = checks.several(where, "betas", betas, "two rates", 2)
    if len(given) != 2:
        raise ValueError(f"{where}: betas has {len(given)} entries, expected two rates")
    b1, b2 = (checks.rate(where, f"betas[{k}]", beta) for k, beta in enumerate(given))
    eps = checks.non_negative(where, "eps", eps)
    weight_decay = checks.squared(where, "weight_decay", weight_decay)

    def rule(
        xp: Namespace, p: Array, g: Array, moments: list[Array], rate: float, step: int
    ) -> tuple[Array, list[Array]]:
        if weight_decay and decoupled:
            p = (1 - rate * weight_decay) * p
        elif weight_decay:
            g = g + weight_decay * p
        m = b1 * moments[0] + (1 - b1) * g
        v = b2 * moments[1] + (1 - b2) * (g * g)
        root = xp.sqrt(v)
        root *= 1 / math.sqrt(1 - b2**step)
        root += eps
        return p - (rate / (1 - b1**step)) * (m / root), [m, v]

    return _optimizer(where, lr, ("m", "v"), rule)


def _optimizer(where: str, lr: float | Schedule, slots: tuple[str, ...], rule: Rule) -> Optimizer:
    schedule = _schedule(where, "lr", lr)

    def init(params: Params) -> OptimState:
        checks.mapping(where, params)
        xp = namespace(where, params)
        return OptimState(0, {slot: {name: xp.zeros_like(p) for name, p in params.items()} for slot in slots})

    def update(params: Params, grads: Params, state: OptimState) -> tuple[Params, OptimState]:
        checks.mapping(where, params)
        checks.mapping(where, grads, "gradients")
        if not isinstance(state, OptimState):
            raise TypeError(f"{where}: state is {checks.shown(state)}, expected what init or update gave")
        if grads.keys() != params.keys():
            odd = min(grads.keys() ^ params.keys(), key=str)
            raise ValueError(f"{where}: {odd} is in only one of params and grads")
        if state.slots.keys() != set(slots):
            raise ValueError(f"{where}: the state has moments {sorted(state.slots)}, expected {sorted(slots)}")
        for slot in slots:
            if state.slots[slot].keys() != params.keys():
                raise ValueError(f"{where}: the state has moments of other parameters than params and grads")
        xp = namespace(where, {**params, **{f"gradient of {name}": g for name, g in grads.items()}})
        for name, g in grads.items():
            if g.shape != params[name].shape:
                raise ValueError(
                    f"{where}: gradient of {name} has shape {tuple(g.shape)}, expected {tuple(params[name].shape)}"
                )
        rate = checks.finite(where, "lr", schedule(state.step))
        new: Params = {}
        moments: dict[str, Params] = {slot: {} for slot in slots}
        for name, p in params.items():
            old = [state.slots[slot][name] for slot in slots]
            new[name], now = rule(xp, p, grads[name], old, rate, state.step + 1)
            for slot, value in zip(slots, now, strict=True):
                moments[slot][name] = value
        return new, OptimState(state.step + 1, moments)

    return Optimizer(init, update)


def global_norm(grads: Params) -> Array:
    """Euclidean norm of all gradients together, a 0-d array."""
    checks.mapping("global_norm", grads, "gradients")
    xp = namespace("global_norm", grads)
    squares = [xp.sum(g * g) for g in grads.values()]
    return xp.sqrt(sum(squares[1:], squares[0]))


def clip_global_norm(grads: Params, limit: float, norm: Array | None = None) -> Params:
    """Scale all gradients together so that their global norm is at most `limit` (Pascanu et al. 2013).

    `norm` is the global norm where it is known already.
    """
    limit = checks.above_0("clip_global_norm", "limit", limit)
    checks.mapping("clip_global_norm", grads, "gradients")
    xp = namespace("clip_global_norm", grads)
    norm = global_norm(grads) if norm is None else norm
    scale = limit / xp.maximum(norm, xp.full_like(norm, limit))
    return {name: g * scale for name, g in grads.items()}


def clip_value(grads: Params, limit: float) -> Params:
    """Clip every element of every gradient to [-limit, limit]."""
    limit = checks.above_0("clip_value", "limit", limit)
    checks.mapping("clip_value", grads, "gradients")
    xp = namespace("clip_value", grads)
    return {name: clamp(xp, g, limit) for name, g in grads.items()}


def running_mean(mean: Params, params: Params, decay: float) -> Params:
    """Exponential moving average of weights, decay mean + (1 - decay) params (Polyak & Juditsky 1992)."""
    decay = checks.real(0, 1)("running_mean", "decay", decay)
    return {name: decay * mean[name] + (1 - decay) * p for name, p in params.items()}


def constant(lr: float) -> Schedule:
    """The same learning rate for ever."""
    return _schedule("constant", "lr", checks.above_0("constant", "lr", lr))


def step_decay(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """lr times `factor`, at most 1, after each `every` updates."""
    rate, every = checks.above_0("step_decay", "lr", lr), checks.count("step_decay", "every", every)
    factor = checks.non_negative("step_decay", "factor", factor)
    if factor > 1:
        raise ValueError(f"step_decay: factor is {factor}, expected at most 1")
    return lambda step: float(rate * factor ** (step // every))


def cosine(lr: float, steps: int, floor: float = 0.0) -> Schedule:
    """Half a cosine from lr down to `floor` in `steps` updates, then `floor` (Loshchilov & Hutter 2017)."""
    rate, steps = checks.above_0("cosine", "lr", lr), checks.count("cosine", "steps", steps)
    floor = checks.non_negative("cosine", "floor", floor)
    return lambda step: floor + (rate - floor) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def warmup(steps: int, then: Schedule) -> Schedule:
    """A straight rise to `then(0)` over `steps` updates, then `then` from its beginning."""
    steps, then = checks.count("warmup", "steps", steps), _schedule("warmup", "then", then)
    return lambda step: then(0) * (step + 1) / (steps + 1) if step < steps else then(step - steps)


def _schedule(where: str, name: str, value: float | Schedule) -> Schedule:
    """A schedule as it is, once it has given a rate for no updates, and a number as one."""
    if callable(value):
        try:
            first = checks.function(where, name, value)(0)
        except Exception as error:
            raise TypeError(f"{where}: {name} is no schedule ({checks.shown(value)}: {error})") from error
        checks.finite(where, f"{name}(0)", first)
        return value
    rate = checks.above_0(where, name, value)
    return lambda step: rate
