"""Initial weights, drawn on the host so that a seed gives the same numbers on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Values = np.ndarray[Any, Any]
Shape = tuple[int, ...]
# it draws initial values of a shape
Draw = Callable[[np.random.Generator, Shape], Values]


def _uniform(rng: np.random.Generator, name: str, shape: Shape, H: int) -> Values:
    """Draw U(-1/sqrt(H), 1/sqrt(H)) for every weight and bias, as `torch.nn.LSTM` does.

    It is the default of gated layers.
    """
    return rng.uniform(-(H**-0.5), H**-0.5, shape)


def _notebook(rng: np.random.Generator, name: str, shape: Shape, H: int) -> Values:
    """Draw normal weights, with variance 2/(D+H) for the input and 1/H for h; the rest is zero."""
    if name == "Wx":
        return rng.normal(0.0, (2 / (shape[1] + H)) ** 0.5, shape)
    return _lecun(rng, name, shape, H)


def _glorot(rng: np.random.Generator, name: str, shape: Shape, H: int) -> Values:
    """Draw as Keras does.

    Wx is U(-a, a) with a^2 = 6/(D + G H) (Glorot & Bengio 2010), Wh is orthogonal (Saxe et al.
    2014), and the rest is 0.
    """
    if name == "Wh":
        q, r = np.linalg.qr(rng.standard_normal(shape))
        return q * np.sign(np.diag(r))
    if len(shape) == 2:
        limit = (6 / sum(shape)) ** 0.5
        return rng.uniform(-limit, limit, shape)
    return np.zeros(shape)


def _lecun(rng: np.random.Generator, name: str, shape: Shape, H: int) -> Values:
    """Draw matrices N(0, 1/inputs) (LeCun et al. 1998); the rest is zero."""
    return rng.normal(0.0, shape[1] ** -0.5, shape) if len(shape) == 2 else np.zeros(shape)


# The functions by which recurrent layers draw: `draw(rng, parameter, shape, H)`.
RECURRENT = {"uniform": _uniform, "glorot": _glorot, "lecun": _lecun, "notebook": _notebook}


def powerlaw(K: int, depth: float = 0.0) -> Values:
    """Return a head's forget biases in an sLSTM, 5 - 12 (k / (K - 1))^(0.3 + 1.3 depth).

    The published package has the same.

    `depth` goes from 0 for the first block of a stack to 1 for the last.
    """
    return 5 - 12 * (np.arange(K) / max(1, K - 1)) ** (0.3 + 1.3 * depth)


def slstm_bias(N: int, K: int, forget: Values | float) -> Values:
    """Return the biases (4 N K,) of an sLSTM with N heads.

    They are `forget` in the forget gate of each head, and 0 elsewhere.
    """
    values = np.zeros((4, N, K))
    values[1] = forget
    return values.ravel()


def mlstm_bias(rng: np.random.Generator, N: int) -> Values:
    """Draw the biases (2 N,) of the gates of an mLSTM.

    They are N(0, 0.1^2) for i, and for f they rise from 3 to 6 over the N heads.
    """
    return np.concatenate((rng.normal(0.0, 0.1, N), np.linspace(3.0, 6.0, N)))


def normal(std: float) -> Draw:
    """Return the initialiser of N(0, std^2)."""
    return lambda rng, shape: rng.normal(0.0, std, shape)


def uniform(bound: float) -> Draw:
    """Return the initialiser of U(-bound, bound)."""
    return lambda rng, shape: rng.uniform(-bound, bound, shape)


def constant(value: float) -> Draw:
    """Return the initialiser of one value."""
    return lambda rng, shape: np.full(shape, value)
