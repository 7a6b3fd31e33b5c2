"""Kernels that a card does not compile, load or launch, or whose values are wrong there: others do
their work.

Whoever launches a kernel does so through `attempt`, and goes another way where that returns None.
CUDA refuses a kernel before anything is written, so the other way can begin anew.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from xlstm.arrays import optional_imports
from xlstm.arrays.cuda import cuda_graph

Result = TypeVar("Result")

# By the name of a card and that of a kernel; one that ends in "_" or " " stands for all that begin
# with it. Equal cards share what is known, since the same text does not compile for both.
_reasons: dict[tuple[str, str], str] = {}
_version = 0  # of the reasons
NO_MEMORY = {"CUBLASError": 3}  # the status, which is 2 in other errors of CUDA


class CudaError(RuntimeError):
    """A kernel that does not compile, is not loaded or launched, or that failed while it ran."""


def attempt(name: str, launch: Callable[..., Result], *args: Any) -> Result | None:
    """Return `launch(*args)`, or None where the kernel of this name is broken on the current card.

    It is remembered, with one warning. A name of several words is that of a whole way, of which the
    first word is the kind.

    Raises
    ------
    CudaError
        The card answers nothing any more, as after an access to memory that is not there.
    Exception
        Others than those of CUDA and its compiler; those that say that there is no memory, which is
        no fault of a kernel; and all within a capture, which cannot go on.
    """
    if not works(name):
        return None
    try:
        return launch(*args)
    except (RuntimeError, optional_imports.cupy().cuda.compiler.CompileException) as error:
        if no_memory(error) or cuda_graph.capturing() is not None:
            raise
        try:
            optional_imports.cupy().cuda.get_current_stream().synchronize()
        except RuntimeError:
            problem = f"{name}, or a kernel before it, failed while it ran ({optional_imports.first_line(error)})"
            raise CudaError(
                f"cuda: {problem}; {current()} answers nothing more to this process"
            ) from error
        note(name, reason(error))
    return None


def no_memory(error: BaseException) -> bool:
    """Tell whether CUDA, cuBLAS or a pool found no memory."""
    return isinstance(error, MemoryError) or getattr(error, "status", None) == NO_MEMORY.get(
        type(error).__name__, 2
    )


def works(name: str) -> bool:
    """Tell whether nothing is known against a kernel on the current card."""
    return not _reasons or not why(name, current())


def cached(function: Callable[..., Result]) -> Callable[..., Result]:
    """Keep the results of a function until a reason is noted or forgotten."""

    @functools.lru_cache(1024)
    def keyed(version: int, *args: Any) -> Result:
        return function(*args)

    @functools.wraps(function)
    def call(*args: Any) -> Result:
        return keyed(_version, *args)

    return call


@cached
def why(name: str, card: str) -> str:
    """Return why a kernel, or one of a kind, is not used on a card, or ""."""
    return next(
        (
            why
            for other, why in _known(card)
            if name == other or _among(name, other) or _among(other, name)
        ),
        "",
    )


def _among(name: str, kind: str) -> bool:
    return kind.endswith(("_", " ")) and name.startswith(kind)


def note(name: str, why: str) -> None:
    """Have a kernel not be used on the current card, or all of a kind; warn once for each kind and
    reason.
    """
    card = current()
    kind = name.split()[0]
    said = (kind, why) in [(other.split()[0], reason) for other, reason in _known(card)]
    _reasons[card, name] = why
    _renew()
    if not said:
        text = (
            f"cuda: on {card} {name.strip('_ ')}: {why}; another way does its work where there"
            " is one"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def hold(names: Iterable[str], why: str) -> None:
    """Have kernels not be used on the current card, without a warning."""
    for name in names:
        _reasons.setdefault((current(), name), why)
    _renew()


def forget(names: Iterable[str] | None = None) -> None:
    """Have kernels be tried again on the current card: those of these names, or all."""
    card = current()
    for name in names or [name for name, _ in _known(card)]:
        _reasons.pop((card, name), None)
    _renew()


def _renew() -> None:
    global _version
    _version += 1


def _known(card: str) -> list[tuple[str, str]]:
    """Return names and reasons on a card, whatever other threads add meanwhile."""
    return [(name, why) for (where, name), why in list(_reasons.items()) if where == card]


def reason(error: BaseException) -> str:
    """Return in one line why a kernel was not compiled or launched, without names of files."""
    if isinstance(error, CudaError):
        return str(error).partition("\n")[0].removeprefix(f"cuda: on {current()} ")
    if isinstance(error, RuntimeError):
        return f"is not loaded or launched ({optional_imports.first_line(error)})"
    errors = (line[line.index("error") :] for line in str(error).splitlines() if "error" in line)
    return f"does not compile ({next(errors, 'NVRTC says nothing')})"


def current() -> str:
    """Return the name of the current card."""
    return _card(optional_imports.cupy().cuda.runtime.getDevice())


@functools.cache
def _card(number: int) -> str:
    return str(optional_imports.cupy().cuda.runtime.getDeviceProperties(number)["name"].decode())
