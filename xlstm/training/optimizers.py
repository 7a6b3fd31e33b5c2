"""Optimisers as pairs of pure functions over a state, and gradient clipping.

>>> optimizer = adam(1e-3)
>>> state = optimizer.init(params)
>>> params, state = optimizer.update(params, grads, state)

Parameters and gradients are flat dicts of name to array, and nothing is changed in place. The equations are those of
`torch.optim`, which the tests follow step by step. A learning rate is a number or a schedule, a function of the number
of updates done. Optimisers and their states can be pickled and copied where their schedule can.
"""

from __future__ import annotations

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.training.clipping import clip_global_norm, clip_value, global_norm
from xlstm.training.groups import by_name
from xlstm.training.rules import Adam, Optimizer, OptimState, Parts, RmsProp, Sgd
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
    "running_mean",
    "sgd",
    "step_decay",
    "warmup",
]


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
    return Sgd("sgd", schedule("sgd", "lr", lr), ("v",) if momentum else (), decay, momentum, nesterov).pair()


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
    return RmsProp("rmsprop", schedule("rmsprop", "lr", lr), slots, decay, alpha, eps, momentum).pair()


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


def _adam(
    where: str, lr: float | Schedule, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool
) -> Optimizer:
    given = checks.several(where, "betas", betas, "two rates", 2)
    if len(given) != 2:
        raise ValueError(f"{where}: betas has {len(given)} entries, expected two rates")
    b1, b2 = (checks.rate(where, f"betas[{k}]", beta) for k, beta in enumerate(given))
    eps, decay = checks.non_negative(where, "eps", eps), checks.squared(where, "weight_decay", weight_decay)
    return Adam(where, schedule(where, "lr", lr), ("m", "v"), decay, b1, b2, eps, decoupled).pair()
