"""The fallback from kernels that fail or compute wrong values on a card.

Every launch of a kernel goes through `attempt`. If that returns None, the caller computes in
another way. CUDA refuses a kernel before it writes anything, so the other way can start afresh.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from xlstm.arrays import capture, optional_imports

Result = TypeVar("Result")

# By the name of a card and of a kernel; a kernel's name that ends in "_" or " " stands for all that
# begin with it. Equal cards share these reasons, since the same text fails to compile for both.
_reasons: dict[tuple[str, str], str] = {}
_version = 0  # counts changes of the reasons
NO_MEMORY = {"CUBLASError": 3}  # the status for no memory; other errors of CUDA have 2


class CudaError(RuntimeError):
    """A kernel does not compile, load or launch, or fails while it runs."""


def attempt(name: str, launch: Callable[..., Result], *args: Any) -> Result | None:
    """Return `launch(*args)`, or None if the kernel of this name is broken on the current card.

    A failure gives one warning and is remembered. A name of several words stands for a whole way of
    computing; its first word is the kind.

    Raises
    ------
    CudaError
        The card no longer responds, as after an access to memory that does not exist.
    Exception
        Errors that are not of CUDA or its compiler; errors about missing memory, which is no fault
        of a kernel; and all errors during a capture, which cannot continue.
    """
    if not works(name):
        return None
    try:
        return launch(*args)
    except (RuntimeError, optional_imports.cupy().cuda.compiler.CompileException) as error:
        if no_memory(error) or capture.capturing() is not None:
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
    """Tell whether a kernel has no known fault on the current card."""
    return not _reasons or not why(name, current())


def cached(function: Callable[..., Result]) -> Callable[..., Result]:
    """Cache the results of a function until a reason is noted or forgotten."""

    @functools.lru_cache(1024)
    def keyed(version: int, *args: Any) -> Result:
        return function(*args)

    @functools.wraps(function)
    def call(*args: Any) -> Result:
        return keyed(_version, *args)

    return call


@cached
def why(name: str, card: str) -> str:
    """Return the reason why a kernel, or a kernel of its kind, is not used on a card, or ""."""
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
    """Exclude a kernel, or all of a kind, on the current card; warn once per kind and reason."""
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
    """Exclude kernels on the current card, without a warning."""
    for name in names:
        _reasons.setdefault((current(), name), why)
    _renew()


def forget(names: Iterable[str] | None = None) -> None:
    """Allow kernels again on the current card: those with these names, or all."""
    card = current()
    for name in names or [name for name, _ in _known(card)]:
        _reasons.pop((card, name), None)
    _renew()


def _renew() -> None:
    global _version
    _version += 1


def _known(card: str) -> list[tuple[str, str]]:
    """Return a card's names and reasons, safe from other threads that add some meanwhile."""
    return [(name, why) for (where, name), why in list(_reasons.items()) if where == card]


def reason(error: BaseException) -> str:
    """Return in one line, without file names, why a kernel was not compiled or launched."""
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
