"""Kernels that a card does not compile, load or launch, or whose values are wrong there: others do their work.

Whoever launches a kernel goes another way where it does not work:

    if broken.works("xlstm_concat"):
        try:
            return _launched(...)
        except Exception as error:
            broken.failed("xlstm_concat", error)
    return ...  # by operations of CuPy

CUDA refuses a kernel before anything is written, so the other way can begin anew.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from xlstm.arrays import cuda_graph, probe

Function = TypeVar("Function", bound=Callable[..., Any])

_reasons: dict[tuple[str, str], str] = {}  # by card and the beginning of a kernel's name
_caches: list[Any] = []


class CudaError(RuntimeError):
    """A kernel that does not compile, is not loaded or launched, or that failed while it ran."""


def works(name: str, card: str | None = None) -> bool:
    """Tell whether nothing is known against a kernel, on the current card by default."""
    return not _reasons or not why(name, card or current())


def why(name: str, card: str) -> str:
    """Return why a kernel is not used on a card, or ""."""
    found = (why for (where, start), why in _reasons.items() if where == card and name.startswith(start))
    return next(found, "")


def failed(name: str, error: Exception, instead: str = "operations of CuPy do its work", start: str = "") -> None:
    """Note that a kernel failed on the current card, where it is not used again, with one warning.

    Parameters
    ----------
    name : str
        That of the kernel.
    error : Exception
        What compiling or launching it raised.
    instead : str
        What does its work, for the warning.
    start : str, optional
        Whatever begins with this is not used again, by default the kernel of the name.

    Raises
    ------
    CudaError
        The card answers nothing any more, as after an access to memory that is not there.
    Exception
        `error` itself, where there was no memory, or within a capture, which cannot go on.
    """
    if isinstance(error, MemoryError) or cuda_graph.capturing() is not None:
        raise error
    try:
        probe.cupy().cuda.get_current_stream().synchronize()
    except RuntimeError:
        problem = f"{name}, or a kernel before it, failed while it ran ({probe.first_line(error)})"
        raise CudaError(f"cuda: {problem}; {current()} answers nothing more to this process") from error
    note(start or name, f"{name} {reason(error)}", instead)


def note(start: str, why: str, instead: str) -> None:
    """Have no kernel be used on the current card whose name begins like this, with one warning for each reason."""
    card = current()
    said = (card, why) in {(where, one) for (where, _), one in _reasons.items()}
    _reasons[card, start] = why
    for cached in _caches:
        cached.cache_clear()
    if not said:
        warnings.warn(f"cuda: on {card} {why}; {instead}", RuntimeWarning, stacklevel=3)


def cache(function: Function) -> Function:
    """Cache the results of a function as `functools.cache` does, until another kernel turns out to be broken."""
    _caches.append(functools.cache(function))
    return _caches[-1]  # type: ignore[no-any-return]


def reason(error: Exception) -> str:
    """Return in one line why a kernel was not compiled or launched, without names of files."""
    if isinstance(error, CudaError):
        return str(error).partition("\n")[0].removeprefix("cuda: ")
    if isinstance(error, probe.cupy().cuda.compiler.CompileException):
        lines = error.get_message().splitlines()
        found = (line[line.index("error") :] for line in lines if "error" in line)
        return f"does not compile ({next(found, 'NVRTC says nothing')})"
    return f"is not loaded or launched ({probe.first_line(error)})"


def current() -> str:
    """Return the name of the current card."""
    return _card(probe.cupy().cuda.runtime.getDevice())


@functools.cache
def _card(number: int) -> str:
    return str(probe.cupy().cuda.runtime.getDeviceProperties(number)["name"].decode())
