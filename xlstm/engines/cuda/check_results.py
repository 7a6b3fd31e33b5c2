"""Keep the results of checks of kernels, by dtype, card, driver and versions.

They are in the folder of CuPy's compiled kernels. A process that finds a result there applies it:
kernels with wrong values are not used, and kernels of many steps are not used until they are
checked.
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
# A gradient is rounded some ten times on its way: in products, gates and states of three steps.
# Halves are rounded when they are stored, float32 and float64 also in some 40 sums, and in exp and
# tanh. The bounds are wide, because a wrong index, barrier or scale changes values by their own
# size.
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
_begun: set[str] = set()  # cards already in use


class KernelCheck(NamedTuple):
    """The result of a check of one kind of kernel.

    Attributes
    ----------
    kernel, dtype : str
        The kind, and the dtype of its arrays.
    difference : float or None
        The largest difference from NumPy, relative to the largest value of an array; None if there
        is no number.
    problem : str
        The problem in words, "" if there is none.
    name : str
        The name of the kernels that are blocked if there is a problem, as for
        `kernel_fallback.note`.
    """

    kernel: str
    dtype: str
    difference: float | None
    problem: str
    name: str


class Checked(list[KernelCheck]):
    """The rows of a check; its text is a table."""

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
    """Apply the kept results for the current card, and hold back kernels without a result."""
    if (card := kernel_fallback.current()) in _begun:
        return
    _begun.add(card)
    for dtype in DTYPES:
        if result := read(dtype):
            go_by(dtype, *result)
        elif asked() != "0":
            kernel_fallback.hold(names(dtype), UNCHECKED)


def begin_anew() -> None:
    """Let all kernels be tried again on the current card, whatever results are kept."""
    _begun.add(kernel_fallback.current())
    kernel_fallback.forget()


def asked() -> str:
    """Return the setting in the environment: "" checks at the first training, "0" never, "1"
    always.
    """
    return checks.variable(VARIABLE, ("0", "1"))


def names(dtype: str) -> set[str]:
    """Return the names of the kinds of kernels for a dtype that are not used until they are
    checked.

    They compute many steps at once, and most of them have blocks that wait for one another.
    """
    arithmetics = {dtype, *(TENSOR.get((dtype, precision), dtype) for precision in PRECISIONS)}
    loops = {f"{path} {name} " for path in PATHS if path not in LAUNCHES for name in arithmetics}
    return loops | {a.kind for (of, _), a in CHUNK_ARITHMETIC.items() if of == dtype}


def go_by(dtype: str, rows: Checked, stopped: bool) -> None:
    """Apply the result of a check for a dtype: use the kernels without a problem.

    If the check stopped early, hold back all kernels that have to be checked first.
    """
    kernel_fallback.forget(names(dtype))
    note(rows)
    if stopped and asked() != "0":
        kernel_fallback.hold(
            names(dtype), f"the check stopped at {rows[-1].kernel}, {rows[-1].dtype}"
        )


def note(rows: Checked) -> None:
    """Block the kernels that have a problem."""
    for row in rows.wrong:
        if not kernel_fallback.why(row.name, kernel_fallback.current()):
            kernel_fallback.note(row.name, f"{row.problem}, {row.dtype}")


def read(dtype: str) -> tuple[Checked, bool] | None:
    """Return the rows with a problem in the kept result for a dtype, and whether that check stopped
    early.

    It is None if there is no result, or if the environment asks for a new check.
    """
    text = None if asked() == "1" else secure_cache.read(*place(dtype), 1 << 20)
    if text is None:
        return None
    rows, stopped = json.loads(text)
    return Checked(KernelCheck(*row) for row in rows), stopped


def write(dtype: str, rows: Checked, stopped: bool) -> None:
    """Keep a result, if the folder is writable."""
    # A kernel that was refused is not kept: it may run in another process, since MPS gives each
    # process a part of a card.
    lasting = [row for row in rows if row.problem.endswith((WRONG, OTHER, waits.GAVE_UP))]
    lasting += rows[-1:] * stopped
    try:
        folder, name = place(dtype)
        content = json.dumps((lasting, stopped)).encode()
        secure_cache.write(secure_cache.folder(folder), name, content)
    except OSError:  # the folder is not writable, so nothing is kept
        pass


def place(dtype: str) -> tuple[Path, str]:
    """Return the folder and the file name of the result for a dtype."""
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
