"""Mixed precision: forward and backward in float16 or bfloat16 with float32 weights; TF32 products
on request.

After Micikevicius et al. 2018. The weights that the optimiser changes, the masters, are float32,
and so are the loss, its gradient and what is summed over gradients; `forward` and `backward` see
copies in the lower dtype. Gradients too small for float16 are multiplied by a scale on their way
back. A step whose gradients overflow is left out, and the scale shrinks. Nothing is changed in
place. `training.train(..., precision=Mixed("float16"))` does all of that, and its loop shows how
`lowered`, `raised` and `after` are used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks, foreach, optional_imports
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.convert import BackendError, dtype_of, dtype_text
from xlstm.arrays.fuse import compiles
from xlstm.arrays.namespace import HALVES, Array, Namespace, Params, namespace_of
from xlstm.engines.cuda import use

__all__ = ["Mixed", "Scaling", "tf32"]

DTYPES = HALVES
NAMES = (*HALVES, "tf32")
FIRST = 2.0**16  # the scale of the first step in float16
LEAST = 2.0**-14
MOST = 2.0**24  # gradients that still overflow at the least scale do so for another reason


class Scaling(NamedTuple):
    """The factor of gradients, and when it last changed.

    Attributes
    ----------
    scale : float
        The factor.
    good : int
        Number of steps in a row with finite gradients since the factor last changed.
    """

    scale: float = 1.0
    good: int = 0


@dataclass(frozen=True)
class Mixed:
    """A description of mixed precision; it holds no state.

    Parameters
    ----------
    dtype : {"float16", "bfloat16"}
        The dtype of forward and backward. bfloat16 has the range of float32: it needs no scale and
        leaves no step out.
    scale : float, optional
        The first factor of gradients, from 2**-14 to 2**24; by default 2**16 in float16.
    growth : float
        Factor of the scale after `every` good steps, up to 2**24; 1 leaves it.
    backoff : float
        Factor of the scale after a step whose gradients are not finite.
    every : int

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
        """Whether gradients are scaled, and steps left out."""
        return self.dtype != "bfloat16"

    def init(self) -> Scaling:
        """Return the scale of the first step."""
        return Scaling(float(self.scale or FIRST) if self.scales else 1.0)

    def below(self, home: Backend) -> Backend:
        """Return the backend that forward and backward run on, from that of the masters.

        Parameters
        ----------
        home : Backend

        Returns
        -------
        Backend

        Raises
        ------
        ValueError
            The masters are of a lower dtype themselves.
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
    """Return the scale of the next step, from whether all gradients of this one were `finite`.

    It is None where they were not and the scale cannot be the reason: it is the least already, or
    there is none.
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
    """Return an array, or a dict of arrays, times `scale` and then in a lower dtype, where it may
    overflow.

    The masters are lowered for `forward` and `backward`, and dy for `backward`. On CuPy the scale
    may be a 0-d array.
    """
    return _cast(arrays, dtype, scale, _multiplied)


def raised(arrays: Any, dtype: str = "float32", scale: float | Array = 1.0) -> Any:
    """Return an array, or a dict of arrays, in a wider dtype and then divided by `scale`; the
    reverse of `lowered`.
    """
    return _cast(arrays, dtype, scale, _divided)


def _cast(arrays: Any, dtype: str, scale: float | Array, function: Callable[..., Array]) -> Any:
    """Return `function(xp, array, scale, dtype)` of arrays, which may be those that there are."""
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
    """Multiply float32 matrices in TF32 within `with tf32():`; it has the range of float32 and 10
    bits of fraction.

    This holds for CuPy's products in the whole process, and for those in the kernels of recurrent
    layers (`cuda.use`). `tf32(False)` is the opposite, where CUPY_TF32=1 or an outer `tf32()`
    holds. The end of the block restores what was there before.

    Parameters
    ----------
    on : bool

    Returns
    -------
    context manager

    Raises
    ------
    BackendError
        CuPy does not work here, or the GPU has no TF32, which came with compute capability 8.0.
    """
    failure = optional_imports.cupy_failure()
    if failure is not None:
        raise BackendError(f"tf32: CuPy is not usable here: {failure}")
    cupy = optional_imports.cupy()
    capability = int(cupy.cuda.Device().compute_capability)
    if on and capability < 80:  # CuPy would warn and go on in float32
        raise BackendError(
            f"tf32: needs a GPU of compute capability 8.0 or more, this one has {capability / 10}"
        )
    core = cupy._core
    kinds = core._routines_linalg
    before = core.get_compute_type(np.float32)
    core.set_compute_type(np.float32, kinds.COMPUTE_TYPE_TF32 if on else kinds.COMPUTE_TYPE_DEFAULT)
    try:
        with use(precision="tf32" if on else "float32"):
            yield
    finally:
        core.set_compute_type(np.float32, before)


def named(
    name: str | None, home: Backend
) -> tuple[Mixed | None, contextlib.AbstractContextManager[None]]:
    """Return the description for `train` and the context to train in that a name of NAMES, or None,
    stands for.

    An unknown name, or weights on `home` that do not go with it, are a ValueError; float16 or
    bfloat16 on a CPU are a TypeError; TF32 elsewhere than on CuPy, and something that is missing,
    are a BackendError.
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
