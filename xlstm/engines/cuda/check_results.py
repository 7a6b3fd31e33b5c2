"""The results of checks of kernels on a card, which are kept in the folder of CuPy's compiled
kernels by dtype, card, driver and versions.

A process that finds a result there goes by it: kernels that were found wrong are not used, and
those that do many steps at once are not used before they were checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

from xlstm.arrays import checks, optional_imports
from xlstm.arrays.cuda import device, kernel_fallback, waits
from xlstm.engines import secure_cache
from xlstm.engines.cuda.choice import LAUNCHES, PATHS, PRECISIONS, TENSOR
from xlstm.engines.cuda.chunk_source import CHUNK_ARITHMETIC

VARIABLE = "XLSTM_CUDA_CHECK"
# Numbers are rounded some ten times on the way of a gradient: the products, gates and states of
# three steps. Halves are rounded where they are stored, float32 and float64 also in some 40 sums,
# and in exp and tanh. The bounds are wide, as a wrong index, barrier or scale changes values by as
# much as they are themselves.
ALLOWED = {
    "float64": 200 * 2.0**-53,
    "float32": 200 * 2.0**-24,
    "tf32": 16 * 2.0**-11,
    "float16": 16 * 2.0**-11,
    "bfloat16": 16 * 2.0**-8,
}
DTYPES = tuple(device.TYPES)
WRONG = "wrong values"
OTHER = "other bits in a second run"
UNCHECKED = (
    "its kernels are not checked on this card yet: the first training does it, and `xlstm check`"
)
_begun: set[str] = set()  # cards that were used before


class KernelCheck(NamedTuple):
    """The result for a kind of kernel.

    Attributes
    ----------
    kernel, dtype : str
    difference : float or None
        The largest one from NumPy, relative to the largest value of an array; None where there is
        no number.
    problem : str
        "" where all is well.
    name : str
        That of the kernels that are not used where there is a problem, as `kernel_fallback.note` takes it.
    """

    kernel: str
    dtype: str
    difference: float | None
    problem: str
    name: str


class Checked(list[KernelCheck]):
    """The rows of a check; as a string they are a table."""

    @property
    def wrong(self) -> list[KernelCheck]:
        """The rows with a problem."""
        return [row for row in self if row.problem]

    def __str__(self) -> str:
        return "\n".join(
            f"{kernel:18s}{dtype:10s}{'no' if difference is None else f'{difference:.1e}':>8s} "
            f"of {ALLOWED[dtype]:.1e}  {problem or 'right'}"
            for kernel, dtype, difference, problem, _ in self
        )


def first_use() -> None:
    """Go by the results that are kept for the current card, and hold the kernels of which there is
    none.
    """
    if (card := kernel_fallback.current()) in _begun:
        return
    _begun.add(card)
    for dtype in DTYPES:
        if result := read(dtype):
            go_by(dtype, *result)
        elif asked() != "0":
            kernel_fallback.hold(names(dtype), UNCHECKED)


def begin_anew() -> None:
    """Have all kernels be tried again on the current card, whatever is kept."""
    _begun.add(kernel_fallback.current())
    kernel_fallback.forget()


def asked() -> str:
    """Return what the environment asks for: "" is a check at the first training, "0" none, "1" one
    in any case.
    """
    return checks.variable(VARIABLE, ("0", "1"))


def names(dtype: str) -> set[str]:
    """Return the names of the kinds of kernels for a dtype that are not used before they are
    checked.

    They do many steps at once, and most of them have blocks that wait for one another.
    """
    arithmetics = {dtype, *(TENSOR.get((dtype, precision), dtype) for precision in PRECISIONS)}
    loops = {f"{path} {name} " for path in PATHS if path not in LAUNCHES for name in arithmetics}
    return loops | {a.kind for (of, _), a in CHUNK_ARITHMETIC.items() if of == dtype}


def go_by(dtype: str, rows: Checked, stopped: bool) -> None:
    """Use the kernels for a dtype that a check found right; none that are to be checked first where
    it stopped.
    """
    kernel_fallback.forget(names(dtype))
    note(rows)
    if stopped and asked() != "0":
        kernel_fallback.hold(
            names(dtype), f"the check stopped at {rows[-1].kernel}, {rows[-1].dtype}"
        )


def note(rows: Checked) -> None:
    """Have the kernels with a problem not be used."""
    for row in rows.wrong:
        if not kernel_fallback.why(row.name, kernel_fallback.current()):
            kernel_fallback.note(row.name, f"{row.problem}, {row.dtype}")


def read(dtype: str) -> tuple[Checked, bool] | None:
    """Return the rows with a problem of the result that is kept for a dtype, and whether the check
    stopped there.

    It is None where there is none, or where the environment asks for a new one.
    """
    text = None if asked() == "1" else secure_cache.read(*place(dtype), 1 << 20)
    if text is None:
        return None
    rows, stopped = json.loads(text)
    return Checked(KernelCheck(*row) for row in rows), stopped


def write(dtype: str, rows: Checked, stopped: bool) -> None:
    """Keep a result, where a folder can be written to."""
    # A kernel that was refused may run elsewhere, and else is refused again: MPS gives a process a
    # part of a card.
    lasting = [row for row in rows if row.problem.endswith((WRONG, OTHER, waits.GAVE_UP))]
    lasting += rows[-1:] * stopped
    try:
        folder, name = place(dtype)
        content = json.dumps((lasting, stopped)).encode()
        secure_cache.write(secure_cache.folder(folder), name, content)
    except OSError:  # nobody else may write there, and so nothing is kept
        pass


def place(dtype: str) -> tuple[Path, str]:
    """Return the folder and the name of the file that keeps a result."""
    cupy = optional_imports.cupy()
    package = sys.modules["xlstm"]  # an import of it would go upwards
    runtime = cupy.cuda.runtime
    key = repr(
        (
            KernelCheck._fields,
            kernel_fallback.current(),
            runtime.driverGetVersion(),
            runtime.runtimeGetVersion(),
            cupy.__version__,
            package.__version__,
            dtype,
        )
    )
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy/kernel_cache", "xlstm")
    return folder, f"check-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
