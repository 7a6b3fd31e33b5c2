"""Choose the path of a recurrent layer on a GPU: by shape, dtype and device, or as you ask."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

from xlstm.arrays import checks
from xlstm.arrays.cuda import kernel_fallback
from xlstm.arrays.namespace import HALVES
from xlstm.engines.cuda import tiling
from xlstm.engines.cuda.tiling import ARITHMETIC, Arithmetic, Device, Tiling
from xlstm.engines.pointwise import Pointwise

# "loop" uses only the array library; "pointwise" has one kernel per step beside the product with h.
# The others have one kernel for all steps: "plain" with ordinary arithmetic, "grid" with tensor
# cores and blocks that exchange through global memory, "cluster" with tensor cores and clusters of
# blocks.
PATHS = ("loop", "pointwise", "plain", "grid", "cluster")
PRECISIONS = ("float32", "tf32")
# arithmetic of tensor cores, by dtype and precision
TENSOR = {("float32", "float32"): "3xfp16", ("float32", "tf32"): "tf32"}
PATH = "XLSTM_CUDA_PATH"
PRECISION = "XLSTM_CUDA_PRECISION"
# Microseconds that the host takes to launch a step: a product and one kernel, or with "loop" about
# five of each. These are estimates.
LAUNCHES = {"loop": 75.0, "pointwise": 15.0}
# The first sm with the instructions of loops through global memory; with tensor cores in float16;
# with tensor cores in TF32 and bfloat16.
LOOPS = 70
MMA = 75
TF32 = 80

_told: contextvars.ContextVar[tuple[str | None, str | None]] = contextvars.ContextVar(
    "told", default=(None, None)
)


class Choice(NamedTuple):
    """The chosen path, and the reason against each other path.

    Attributes
    ----------
    path : str
        A name in `PATHS`.
    arithmetic : Arithmetic
        The dtypes of products, sums and states.
    name : str
        The name of the kernels in the list of broken kernels.
    forward, backward : Tiling or None
        How a path with one kernel for all steps divides the batch.
    others : dict of str to str
        The reason against each other path.
    """

    path: str
    arithmetic: Arithmetic
    name: str = ""
    forward: Tiling | None = None
    backward: Tiling | None = None
    others: dict[str, str] = {}  # noqa: RUF012

    @property
    def time(self) -> float:
        """Estimated time of a step, forward and backward, in microseconds."""
        if self.forward is None or self.backward is None:
            return 2 * LAUNCHES[self.path]
        return self.forward.time + self.backward.time


@contextlib.contextmanager
def use(path: str | None = None, precision: str | None = None) -> Iterator[None]:
    """Choose how recurrent layers run on CuPy arrays, within a `with`.

    Parameters
    ----------
    path : {"auto", "loop", "pointwise", "plain", "grid", "cluster"}, optional
        The path of the kernels. "auto", the default, takes the path that should be fastest. If you
        name another path and it cannot run, the layer raises an error. The environment variable
        XLSTM_CUDA_PATH sets the path for the process.
    precision : {"float32", "tf32"}, optional
        The precision of products of float32 arrays in the kernels. "float32", the default, keeps
        the digits of float32. In loops over time, tensor cores compute it as three products of two
        float16, unless ordinary arithmetic should be faster; "tf32" is one product there, with 11
        bits of each factor. The kernels of the mLSTM split a number into three bfloat16, or two
        with "tf32" (16 digits). The environment variable XLSTM_CUDA_PRECISION sets the precision
        for the process.

    Raises
    ------
    ValueError
        A name is unknown.

    Examples
    --------
    >>> from xlstm import cuda
    >>> with cuda.use(path="grid", precision="tf32"):
    ...     pass  # forward and backward passes on CuPy arrays
    """
    checks.optional(checks.choice(("auto", *PATHS)))("use", "path", path)
    checks.optional(checks.choice(PRECISIONS))("use", "precision", precision)
    before = _told.get()
    token = _told.set((path or before[0], precision or before[1]))
    try:
        yield
    finally:
        _told.reset(token)


def told() -> tuple[str, str]:
    """Return the path and the precision that `use` or the environment asks for.

    Raises
    ------
    ValueError
        An environment variable has an unknown name.
    """
    path, precision = _told.get()
    path = path or checks.variable(PATH, ("auto", *PATHS)) or "auto"
    return path, precision or checks.variable(PRECISION, PRECISIONS) or "float32"


@kernel_fallback.cached
def choose(
    asked: tuple[str, str],
    step: Pointwise | None,
    why: str,
    dtype: str,
    width: int,
    heads: int,
    B: int,
    device: Device,
) -> Choice:
    """Return how a layer of `heads` heads, each with `width` units, runs a batch of B sequences.

    Parameters
    ----------
    asked : (str, str)
        The path and the precision, from `told`.
    step : Pointwise or None
        None if the step cannot be traced; `why` then has the reason.

    Raises
    ------
    ValueError
        The path that was asked for cannot run the layer.
    """
    path, precision = asked
    possible = {}
    others = {}
    for name in PATHS:
        way = _way(name, precision, step, why, dtype, width, heads, B, device)
        if path == "auto" and isinstance(way, Choice):
            way = kernel_fallback.why(way.name, device.name) or way
        if isinstance(way, str):
            others[name] = way
        else:
            possible[name] = way
    if path == "auto":
        path = min(possible, key=lambda name: possible[name].time)
        words = "forward and backward should take {:.1f} us a step (an estimate)"
        reasons = {name: words.format(way.time) for name, way in possible.items()}
    elif path in possible:
        reasons = dict.fromkeys(possible, f"{path} was asked for")
    else:
        raise ValueError(
            f"cuda: path {path!r} was asked for, but {others[path]}; {', '.join(possible)} can do"
            " it, auto chooses"
        )
    del reasons[path]
    return possible[path]._replace(others=others | reasons)


def _way(
    path: str,
    precision: str,
    step: Pointwise | None,
    why: str,
    dtype: str,
    width: int,
    heads: int,
    B: int,
    device: Device,
) -> Choice | str:
    """Return how a path runs a layer, or the reason why it cannot."""
    if path == "loop":
        return Choice(path, ARITHMETIC[dtype])
    if step is None:
        return why
    recurrent = step.form.RECURRENT
    if not recurrent and path in ("grid", "cluster"):
        return "there is no product of h for tensor cores"
    if refused := _refuses(path, dtype, device, recurrent):
        return refused
    a = ARITHMETIC[dtype]
    forward = None
    backward = None
    if path not in LAUNCHES:
        if step.obstacle:
            return f"no kernel does several steps with {step.obstacle}"
        # A card without TF32 computes with more digits than were asked for.
        exact = precision if device.capability >= TF32 else "float32"
        a = ARITHMETIC[dtype if path == "plain" else TENSOR.get((dtype, exact), dtype)]
        forward, backward = (
            tiling.without_product(kind, a, width, heads, B)
            if not recurrent
            else tiling.best(kind, step, width, heads, B, a, device, path == "cluster")
            for kind in tiling.PASSES
        )
        if forward is None or backward is None:
            return (
                f"no way to divide {heads} x {width} units, {B} sequences and {a.name} fits"
                f" {device.sms} SMs with {device.shared} bytes"
            )
    name = f"{path} {a.name} {step.before['zx']} x {heads} x {width}"
    return Choice(path, a, name, forward, backward)


def _refuses(path: str, dtype: str, device: Device, recurrent: bool) -> str:
    """Return why a device does not have a path for a dtype, with or without a product with h, or
    "".
    """
    sm = f"{device.name} is sm_{device.capability}"
    if dtype == "bfloat16" and device.capability < TF32:
        return f"{sm}, bfloat16 needs sm_{TF32}"
    if path != "pointwise" and device.capability < LOOPS:
        return f"{sm}, which needs sm_{LOOPS}"
    if path == "plain" and dtype in HALVES and recurrent:
        return f"ordinary arithmetic is not used for {dtype}"
    if path in ("grid", "cluster"):
        if dtype == "float64":
            return "tensor cores are not used for float64"
        if device.capability < MMA:
            return f"{sm}, tensor cores are not used below sm_{MMA}"
    if path == "cluster" and not device.cluster:
        return f"{sm}, clusters need sm_90, and did not run on it"
    return ""
