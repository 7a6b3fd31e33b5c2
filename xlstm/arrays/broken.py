"""Kernels that a card does not compile, load or launch, or whose values are wrong there: others do their work.

Whoever launches a kernel does so through `attempt`, and goes another way where that returns None. CUDA refuses a kernel
before anything is written, so the other way can begin anew.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from xlstm.arrays import cuda_graph, probe

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")

# By card and name; a name that ends in "_" or " " stands for all that begin with it.
_reasons: dict[tuple[str, str], str] = {}
_caches: list[Any] = []


class CudaError(RuntimeError):
    """A kernel that does not compile, is not loaded or launched, or that failed while it ran."""


def attempt(name: str, launch: Callable[..., Result], *args: Any) -> Result | None:
    """Return `launch(*args)`, or None where the kernel of this name is broken on the current card.

    It is remembered, with one warning. A name of several words is that of a whole way, of which the first word is
    the kind.

    Raises
    ------
    CudaError
        The card answers nothing any more, as after an access to memory that is not there.
    Exception
        Others than those of CUDA and its compiler; and all within a capture, which cannot go on.
    """
    if not works(name):
        return None
    try:
        return launch(*args)
    except (RuntimeError, probe.cupy().cuda.compiler.CompileException) as error:
        if cuda_graph.capturing() is not None:
            raise
        try:
            probe.cupy().cuda.get_current_stream().synchronize()
        except RuntimeError:
            problem = f"{name}, or a kernel before it, failed while it ran ({probe.first_line(error)})"
            raise CudaError(f"cuda: {problem}; {current()} answers nothing more to this process") from error
        note(name, reason(error))
    return None


def works(name: str) -> bool:
    """Tell whether nothing is known against a kernel on the current card."""
    return not _reasons or not why(name, current())


def why(name: str, card: str) -> str:
    """Return why a kernel is not used on a card, or ""."""
    kinds = (why for start, why in _known(card) if name == start or (start[-1] in "_ " and name.startswith(start)))
    return next(kinds, "")


def among(start: str) -> str:
    """Return why one of the kernels whose names begin like this is not used on the current card, or ""."""
    return next((why for name, why in _known(current()) if name.startswith(start)), "")


def note(name: str, why: str) -> None:
    """Have a kernel not be used on the current card, or all of a kind; warn once for each kind and reason."""
    card, kind = current(), name.split()[0]
    said = (kind, why) in [(other.split()[0], one) for other, one in _known(card)]
    _reasons[card, name] = why
    _clear()
    if not said:
        text = f"cuda: on {card} {name.strip('_ ')}: {why}; another way does its work where there is one"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def forget() -> None:
    """Have all kernels be tried again on the current card."""
    for name, _ in _known(card := current()):
        del _reasons[card, name]
    _clear()


def _known(card: str) -> list[tuple[str, str]]:
    """Return names and reasons on a card, whatever other threads add meanwhile."""
    return [(name, why) for (where, name), why in list(_reasons.items()) if where == card]


def _clear() -> None:
    for cached in _caches:
        cached.cache_clear()


def cache(function: Function) -> Function:
    """Cache the results of a function as `functools.cache` does, until another kernel turns out to be broken."""
    cached = functools.cache(function)
    _caches.append(cached)
    return cast(Function, cached)


def reason(error: BaseException) -> str:
    """Return in one line why a kernel was not compiled or launched, without names of files."""
    if isinstance(error, CudaError):
        return str(error).partition("\n")[0].removeprefix(f"cuda: on {current()} ")
    if isinstance(error, RuntimeError):
        return f"is not loaded or launched ({probe.first_line(error)})"
    found = (line[line.index("error") :] for line in str(error).splitlines() if "error" in line)
    return f"does not compile ({next(found, 'NVRTC says nothing')})"


def current() -> str:
    """Return the name of the current card."""
    return _card(probe.cupy().cuda.runtime.getDevice())


@functools.cache
def _card(number: int) -> str:
    return str(probe.cupy().cuda.runtime.getDeviceProperties(number)["name"].decode())
