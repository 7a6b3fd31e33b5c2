"""What blocks are made of: a part has parameters, a forward pass and its backward pass, and may have parts itself.

`forward` and `backward` check what they are given; a block calls `apply` and `apply_bwd`, which do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.namespace import Array, DType, Namespace, Params, namespace
from xlstm.arrays.random import Seed, generator

Values = dict[str, np.ndarray[Any, Any]]


class Kept(NamedTuple):
    """What a part's `forward` keeps."""

    shape: tuple[int, ...]  # of y
    inner: Any


class Part:
    """Something with parameters. Subclasses are frozen dataclasses."""

    @functools.cached_property
    def shapes(self) -> dict[str, checks.Dims]:
        """Names and shapes of the parameters."""
        found = dict(self._own)
        for prefix, part in self.parts.items():
            found |= {f"{prefix}.{name}": dims for name, dims in part.shapes.items()}
        return found

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """The parts of this one, by what stands before the names of their parameters."""
        return {}

    @property
    def _own(self) -> dict[str, checks.Dims]:
        """Parameters that are no part's."""
        return {}

    def init(self, seed: Seed = 0, backend: str | Backend | None = None, dtype: DType | None = None) -> Params:
        """Draw initial parameters; see `LSTM.init`."""
        chosen, rng = backend_of(backend, dtype), generator(seed, where=type(self).__name__)
        return {name: chosen.asarray(values) for name, values in self.draw(rng).items()}

    def draw(self, rng: np.random.Generator) -> Values:
        """Initial parameters on the host."""
        found = self._draw_own(rng)
        for prefix, part in self.parts.items():
            found |= {f"{prefix}.{name}": values for name, values in part.draw(rng).items()}
        return found

    def _draw_own(self, rng: np.random.Generator) -> Values:
        return {}

    @functools.cached_property
    def names(self) -> dict[str, dict[str, str]]:
        """Names of the parameters of each part, by their names there."""
        return {prefix: {name: f"{prefix}.{name}" for name in part.shapes} for prefix, part in self.parts.items()}

    def below(self, prefix: str, params: Params) -> Params:
        """Parameters of a part, under their names there."""
        return {name: params[full] for name, full in self.names[prefix].items()}

    def collect(self, prefix: str, grads: Params, into: Params) -> None:
        """Add the gradients of a part to those of this one."""
        for name, full in self.names[prefix].items():
            into[full] = grads[name]

    def through(self, xp: Namespace, prefix: str, p: Params, x: Array) -> tuple[Array, Any]:
        """`apply` of a part that is pointwise."""
        return self.parts[prefix].apply(xp, self.below(prefix, p), x)  # type: ignore[no-any-return]

    def through_bwd(self, xp: Namespace, prefix: str, p: Params, saved: Any, dy: Array, grads: Params) -> Array:
        """`apply_bwd` of a part that is pointwise: dx, and its gradients are added to `grads`."""
        found, dx = self.parts[prefix].apply_bwd(xp, self.below(prefix, p), saved, dy)
        self.collect(prefix, found, grads)
        return dx

    def check(self, params: Params) -> None:
        """Raise unless `params` has the names and shapes of the parameters."""
        checks.params(type(self).__name__, params, self.shapes)

    def namespace(self, params: Params, arrays: Mapping[str, Array]) -> Namespace:
        """The namespace of all these arrays, once the parameters are checked."""
        self.check(params)
        return namespace(type(self).__name__, {**arrays, **params})


class Pointwise(Part):
    """A part that has no state and no steps: it maps the last axis, `width` wide.

    Raises
    ------
    ValueError, TypeError
        In `forward` and `backward`: a parameter is missing or misshapen, or arrays do not belong together.
    """

    SYMBOL = "D"

    @property
    def width(self) -> int:
        """Width of x."""
        raise NotImplementedError

    def forward(self, params: Params, x: Array) -> tuple[Array, Kept]:
        """x (..., D) -> y and what `backward` needs."""
        where, symbol = type(self).__name__, self.SYMBOL
        xp = self.namespace(params, {"x": x})
        if x.ndim == 0 or x.shape[-1] != self.width:
            raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected (..., {symbol}) = (..., {self.width})")
        y, inner = self.apply(xp, params, x)
        return y, Kept(tuple(y.shape), inner)

    def backward(self, params: Params, saved: Kept, dy: Array) -> tuple[Params, Array]:
        """dy, in the shape of y -> gradients of the parameters, and dx (..., D)."""
        if not isinstance(saved, Kept):
            raise TypeError(f"{type(self).__name__}: saved is {checks.shown(saved)}, expected what forward kept")
        xp = self.namespace(params, {"dy": dy})
        if tuple(dy.shape) != saved.shape:
            raise ValueError(
                f"{type(self).__name__}: dy has shape {tuple(dy.shape)}, expected that of y, {saved.shape}"
            )
        return self.apply_bwd(xp, params, saved.inner, dy)

    def apply(self, xp: Namespace, p: Params, x: Array) -> tuple[Array, Any]:
        """`forward` without checks."""
        raise NotImplementedError

    def apply_bwd(self, xp: Namespace, p: Params, saved: Any, dy: Array) -> tuple[Params, Array]:
        """`backward` without checks."""
        raise NotImplementedError


def rows(xp: Namespace, x: Array) -> Array:
    """(..., D) as a matrix."""
    return xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def total(xp: Namespace, d: Array) -> Array:
    """Sum over all axes but the last."""
    return xp.sum(rows(xp, d), axis=0)


def round_up(size: float, multiple: int) -> int:
    """The next multiple of `multiple` from `size` on."""
    return multiple * math.ceil(size / multiple)
