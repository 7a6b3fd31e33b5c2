"""Mixed precision with float16 or bfloat16 and float32 weights, and TF32 products.

Micikevicius et al. (2018) describe the method. The weights that the optimiser changes, the master
weights, are float32. The loss, its gradient and sums over gradients are float32, too. `forward` and
`backward` get copies of the weights in the lower dtype.

A scale multiplies the gradients during the backward pass, because small ones would vanish in
float16. If the gradients of a step overflow, training skips the step and reduces the scale. Nothing
is changed in place. `training.train(..., precision=Mixed("float16"))` does all of this. Its loop
shows how to use `lowered`, `raised` and `after`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks, compiled, foreach, optional_imports
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.convert import BackendError, dtype_of, dtype_text
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import HALVES, Array, Namespace, Params, namespace_of

__all__ = ["Mixed", "Scaling", "tf32"]

DTYPES = HALVES
NAMES = (*HALVES, "tf32")
FIRST = 2.0**16  # the scale of the first step in float16
LEAST = 2.0**-14
MOST = 2.0**24  # gradients that still overflow at the least scale do so for another reason


class Scaling(NamedTuple):
    """The scale of gradients, and the number of good steps since it changed.

    Attributes
    ----------
    scale : float
        The factor that multiplies the gradients.
    good : int
        Number of successive steps with finite gradients since the scale last changed.
    """

    scale: float = 1.0
    good: int = 0


@dataclass(frozen=True)
class Mixed:
    """Settings of mixed precision, without state.

    Parameters
    ----------
    dtype : {"float16", "bfloat16"}
        The dtype of forward and backward. bfloat16 has the range of float32, so it needs no scale
        and skips no step.
    scale : float, optional
        The scale of the first step, from 2**-14 to 2**24; by default 2**16 in float16.
    growth : float
        Factor that multiplies the scale after `every` good steps, up to a scale of 2**24; 1 keeps
        the scale.
    backoff : float
        Factor that multiplies the scale after a step whose gradients are not finite.
    every : int
        Number of good steps in a row before the scale grows.


    Raises
    ------
    ValueError, TypeError
        An unknown dtype, or a number out of range.
    """

    dtype: str = "float16"
    scale: float | None = None
    growth: float = 2.0
    backoff: float = 0.5
    every: int = 2000

    def __post_init__(self) -> None:
        if isinstance(self.dtype, np.dtype | type):
            object.__setattr__(self, "dtype", dtype_text("Mixed", self.dtype))
        checks.fields(
            self,
            dtype=checks.choice(DTYPES),
            every=checks.count,
            growth=checks.real(1, checks.HUGE),
            backoff=checks.real(0, 1, strict=True),
            scale=checks.optional(checks.real(LEAST, MOST + 1)),
        )
        if self.scale is not None and not self.scales:
            raise ValueError(
                f"Mixed: scale is {self.scale} for {self.dtype}, which needs none; leave it out"
            )

    @property
    def scales(self) -> bool:
        """Whether training scales gradients and skips steps that overflow."""
        return self.dtype != "bfloat16"

    def init(self) -> Scaling:
        """Return the scale of the first step."""
        return Scaling(float(self.scale or FIRST) if self.scales else 1.0)

    def below(self, home: Backend) -> Backend:
        """Return the backend of forward and backward, from the backend of the master weights.

        Parameters
        ----------
        home : Backend
            The backend of the master weights.


        Returns
        -------
        Backend

        Raises
        ------
        ValueError
            The master weights have a lower dtype themselves.
        TypeError
            The device is a CPU.
        BackendError
            Something that the dtype needs is missing.
        """
        low = backend_of(home, self.dtype)
        if home.dtype in HALVES:
            raise ValueError(
                f"precision {self.dtype}: the weights are {home.dtype}, expected float32 to begin"
                " with"
            )
        return low


def after(mixed: Mixed | None, scaling: Scaling, finite: bool) -> Scaling | None:
    """Return the scale of the next step, given whether all gradients of this step were finite.

    The result is None if they were not finite and the scale cannot be the reason: it is at its
    minimum already, or there is no scale.
    """
    if mixed is None or not mixed.scales:
        return scaling if finite else None
    if not finite:
        shrunk = scaling.scale * mixed.backoff
        return Scaling(shrunk) if shrunk >= LEAST else None
    if scaling.good + 1 < mixed.every:
        return Scaling(scaling.scale, scaling.good + 1)
    return Scaling(min(scaling.scale * mixed.growth, MOST))


def lowered(arrays: Any, dtype: str, scale: float | Array = 1.0) -> Any:
    """Multiply an array, or a dict of arrays, by `scale`, and cast it to a lower dtype.

    The result may overflow. Training lowers the master weights for `forward` and `backward`, and dy
    for `backward`. On CuPy the scale may be a 0-d array.
    """
    return _cast(arrays, dtype, scale, _multiplied)


def raised(arrays: Any, dtype: str = "float32", scale: float | Array = 1.0) -> Any:
    """Cast an array, or a dict of arrays, to a wider dtype, and divide it by `scale`.

    This reverses `lowered`.
    """
    return _cast(arrays, dtype, scale, _divided)


def _cast(arrays: Any, dtype: str, scale: float | Array, function: Callable[..., Array]) -> Any:
    """Return `function(xp, array, scale, dtype)` of each array; it may be the array itself."""
    parts: Params = arrays if isinstance(arrays, dict) else {"": arrays}
    if not parts:
        return arrays
    xp = namespace_of(next(iter(parts.values())))
    target = dtype_of(xp, dtype)
    others = [a for a in parts.values() if a.dtype != target]
    if not others and isinstance(scale, float) and scale == 1:
        return arrays
    if compiles(xp):
        rows = foreach.apply(xp, function, [list(parts.values())], (scale,), dtype=np.dtype(target))
        results = {name: a for name, (a,) in zip(parts, rows, strict=True)}
    else:
        results = {name: function(xp, a, scale, target) for name, a in parts.items()}
    return results if isinstance(arrays, dict) else results[""]


def _multiplied(xp: Namespace, a: Array, scale: Any, dtype: Any) -> Array:
    return xp.astype(scale * a, dtype)


def _divided(xp: Namespace, a: Array, scale: Any, dtype: Any) -> Array:
    return xp.astype(a, dtype) / scale


@contextlib.contextmanager
def tf32(on: bool = True) -> Iterator[None]:
    """Multiply float32 matrices in TF32 inside a `with tf32():` block.

    TF32 has the range of float32 and a fraction of 10 bits. The setting holds for CuPy's products
    in the whole process, and for the products in kernels of recurrent layers (`cuda.use`). If
    CUPY_TF32=1 or an outer `tf32()` has switched TF32 on, `tf32(False)` switches it off. The end of
    the block restores the previous setting.

    Parameters
    ----------
    on : bool
        Whether to use TF32.


    Returns
    -------
    context manager

    Raises
    ------
    BackendError
        CuPy does not work here, or the GPU has no TF32: it needs compute capability 8.0 or more.
    """
    failure = optional_imports.cupy_failure()
    if failure is not None:
        raise BackendError(f"tf32: CuPy is not usable here: {failure}")
    cupy = optional_imports.cupy()
    capability = int(cupy.cuda.Device().compute_capability)
    if on and capability < 80:  # CuPy would warn and continue in float32
        raise BackendError(
            f"tf32: needs a GPU of compute capability 8.0 or more, this one has {capability / 10}"
        )
    core = cupy._core
    kinds = core._routines_linalg
    before = core.get_compute_type(np.float32)
    core.set_compute_type(np.float32, kinds.COMPUTE_TYPE_TF32 if on else kinds.COMPUTE_TYPE_DEFAULT)
    try:
        with compiled.module("cupy.choice").use(precision="tf32" if on else "float32"):
            yield
    finally:
        core.set_compute_type(np.float32, before)


def named(
    name: str | None, home: Backend
) -> tuple[Mixed | None, contextlib.AbstractContextManager[None]]:
    """Return the settings for `train` and the context to train in, for a name of NAMES or None.

    An unknown name, or a dtype of weights on `home` that excludes it, raises ValueError. float16 or
    bfloat16 on a CPU raises TypeError. TF32 on another library than CuPy, or a missing package,
    raises BackendError.
    """
    if name is None:
        return None, contextlib.nullcontext()
    checks.choice(NAMES)("precision", "name", name)
    if name != "tf32":
        mixed = Mixed(name)
        mixed.below(home)
        return mixed, contextlib.nullcontext()
    if not compiles(home.xp):
        raise BackendError(
            f"precision tf32: is for float32 on an NVIDIA GPU with CuPy, the backend is {home}"
        )
    if home.dtype != "float32":
        raise ValueError(f"precision tf32: the weights are {home.dtype}, expected float32")
    return None, tf32()
