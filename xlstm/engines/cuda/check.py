"""A comparison of every kind of kernel with NumPy in float64, on the card that is there.

The kernels that do many steps at once are not used before they were checked, which the first
training does in a process of its own. A kind whose values are wrong is not used again. Which are
wrong is kept in the folder of CuPy's compiled kernels, by dtype, card, driver and versions, and a
process that finds it there goes by it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import hashlib
import importlib
import json
import logging
import os
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import block_diagonal, checks, foreach, optional_imports
from xlstm.arrays.backend import backend
from xlstm.arrays.concat import concat, filled
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.cuda import device, kernel_fallback, waits
from xlstm.arrays.fuse import fuse, total
from xlstm.arrays.gather import add_rows, gather
from xlstm.arrays.matmul import TF32 as CUBLAS_TF32
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace
from xlstm.arrays.random import bernoulli
from xlstm.arrays.rows import by_rows, summed
from xlstm.cells import gru, lstm, mlstm_chunks, rnn, slstm
from xlstm.engines import secure_cache
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.cuda import chunk_passes, launch
from xlstm.engines.cuda.choice import LAUNCHES, PATHS, PRECISIONS, TENSOR, TF32, choose, told, use
from xlstm.engines.cuda.chunk_source import WAYS
from xlstm.engines.cuda.cuda_engine import CUDA
from xlstm.engines.cuda.tiling import Device
from xlstm.engines.pointwise import pointwise

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
CELLS = {"LSTM": lstm.Cell(), "GRU": gru.Cell(), "RNN": rnn.Cell(), "sLSTM": slstm.Cell()}
WIDTHS = [(2, 9), (1, 5)]  # steps and sequences
D = 3
H = 40
STEP = "step"  # in the place of a path, for a single step
LEAST = 1e-3  # a smaller array counts as one of this size
WRONG = "wrong values"
OTHER = "other bits in a second run"
UNCHECKED = (
    "its kernels are not checked on this card yet: the first training does it, and `xlstm check`"
)
# A kind takes some kernels, each of which NVRTC compiles in a few seconds, and they run for less
# than one. So one that takes a minute hangs, and costs no more than that; a limit for all kinds
# would be reached by a slow compiler, too.
SECONDS = 60
HUNG = "Timeout ("  # what faulthandler says then
MARK = "xlstm check: "  # before the lines of the process
END: list[Any] = []  # its last line
COMMAND = (sys.executable, "-P", "-c", "from xlstm.engines.cuda import check; check.child()")
Call = tuple[Any, ...]
_begun: set[str] = set()  # cards that were used before
log = logging.getLogger("xlstm")


class Row(NamedTuple):
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


class Checked(list[Row]):
    """The rows of a check; as a string they are a table."""

    @property
    def wrong(self) -> list[Row]:
        """The rows with a problem."""
        return [row for row in self if row.problem]

    def __str__(self) -> str:
        return "\n".join(
            f"{kernel:18s}{dtype:10s}{'no' if difference is None else f'{difference:.1e}':>8s} "
            f"of {ALLOWED[dtype]:.1e}  {problem or 'right'}"
            for kernel, dtype, difference, problem, _ in self
        )


def check() -> Checked:
    """Compare the values of every kind of kernel on the current GPU with NumPy's, print a table,
    and keep the result.

    The kernels are compiled where they were not before, which takes some minutes. Kernels with
    wrong values, or that do not run, are not used again: slower ways do their work. Each kind runs
    twice, and has to give the same bits. This process runs the kernels, so it ends with one that
    does not; `xlstm check` has a process of its own for them, and so has the check that the first
    training on a card makes by itself.

    Returns
    -------
    list of Row
        With the attribute `wrong`, the rows with a problem.

    Raises
    ------
    BackendError
        CuPy is not usable, or is the one for ROCm; the message says why.
    """
    _usable()
    _begun.add(kernel_fallback.current())
    kernel_fallback.forget()
    found = Checked()
    for dtype in DTYPES:
        rows = Checked(_row(*call) for call in _calls(dtype))
        _keep(dtype, rows, False)
        found += rows
    _mark(found)
    sys.stdout.write(f"{found}\n")
    return found


def apart() -> Checked:
    """Do as `check` in a process of its own, without a table; where a kernel hangs, the rows end
    with it.
    """
    _usable()
    return Checked(row for dtype in DTYPES for row in _apart(dtype)[0])


def first_use() -> None:
    """Go by the results that are kept for the current card, and hold the kernels of which there is
    none.
    """
    if (card := kernel_fallback.current()) in _begun:
        return
    _begun.add(card)
    for dtype in DTYPES:
        if kept := _kept(dtype):
            _go_by(dtype, *kept)
        elif _asked() != "0":
            kernel_fallback.hold(_names(dtype), UNCHECKED)


def first_training(*dtypes: str) -> None:
    """Check the kernels for arrays of these dtypes on the current card, unless there is a result.

    It is kept where a folder can be written to. Of several processes one checks, and the others
    wait for its result.
    """
    launch.current()
    if _asked() != "0" and told()[0] != "loop":
        for dtype in dtypes:
            _prove(kernel_fallback.current(), dtype)


@functools.cache
def _prove(card: str, dtype: str) -> None:
    with _one_at_a_time():
        _go_by(dtype, *(_kept(dtype) or _apart(dtype)))


def child() -> None:
    """Check the kernels for a dtype on a device, the arguments of this process, which ends where
    one of them hangs.

    A line on standard output says which kind is next, and another one how it went.
    """
    dtype, number = sys.argv[1:]
    # also while a call of CUDA does not come back
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    backend("cupy")
    cupy = optional_imports.cupy()
    cupy.cuda.Device(int(number)).use()
    for kernel, kind, name, *how in _calls(dtype):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        _say((kernel, kind, name))
        row = _row(kernel, kind, name, *how)
        # raises where the card answers nothing more after this kernel
        cupy.cuda.Device().synchronize()
        _say(row)
    _say(END)


def _say(line: Sequence[Any]) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(line)}\n")
    sys.stdout.flush()


def _usable() -> None:
    backend("cupy")
    if optional_imports.rocm():
        raise BackendError(f"cuda.check: {optional_imports.ROCM}")


def _asked() -> str:
    """Return what the environment asks for: "" is a check at the first training, "0" none, "1" one
    in any case.
    """
    return str(checks.choice(("", "0", "1"))("cuda", VARIABLE, os.environ.get(VARIABLE, "")))


def _names(dtype: str) -> set[str]:
    """Return the names of the kinds of kernels for a dtype that are not used before they are
    checked.

    They do many steps at once, and most of them have blocks that wait for one another.
    """
    arithmetics = {dtype, *(TENSOR.get((dtype, precision), dtype) for precision in PRECISIONS)}
    loops = {f"{path} {name} " for path in PATHS if path not in LAUNCHES for name in arithmetics}
    return loops | {
        f"chunks {way.io} {way.planes} " for (of, _), way in WAYS.items() if of == dtype
    }


def _apart(dtype: str) -> tuple[Checked, bool]:
    """Check the kernels for a dtype in a process of its own, and keep the result; also return
    whether it stopped.
    """
    device = optional_imports.cupy().cuda.runtime.getDevice()
    log.info(
        "checking the %s kernels of %s, once for this card, driver and versions",
        dtype,
        kernel_fallback.current(),
    )
    environment = {**os.environ, VARIABLE: "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*COMMAND, dtype, str(device)]
    done = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, errors="replace"
    )
    words = done.stderr or f"it ended with {done.returncode}"
    lines = [
        json.loads(text) for line in done.stdout.splitlines() if (text := line.partition(MARK)[2])
    ]
    found = Checked(Row(*line) for line in lines if len(line) == len(Row._fields))
    stopped = lines[-1:] != [END]
    if stopped:
        why = f"no answer within {SECONDS} s" if HUNG in words else words.strip().splitlines()[-1]
        kernel, kind, *_, name = lines[-1] if lines else ("all", dtype, "check ")
        found.append(Row(kernel, kind, None, why, name))
    if lines and "OutOfMemoryError" not in words:  # else another process may come further
        _keep(dtype, found, stopped)
    return found, stopped


def _go_by(dtype: str, found: Checked, stopped: bool) -> None:
    """Use the kernels for a dtype that a check found right; none that are to be checked first where
    it stopped.
    """
    kernel_fallback.forget(_names(dtype))
    _mark(found)
    if stopped and _asked() != "0":
        kernel_fallback.hold(
            _names(dtype), f"the check stopped at {found[-1].kernel}, {found[-1].dtype}"
        )


def _mark(found: Checked) -> None:
    for row in found.wrong:
        if not kernel_fallback.why(row.name, kernel_fallback.current()):
            kernel_fallback.note(row.name, f"{row.problem}, {row.dtype}")


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait until no other process checks."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
        handle = os.open(
            secure_cache.folder(_place("")[0]) / "check.lock", os.O_RDWR | os.O_CREAT, 0o600
        )
    except (ImportError, OSError):  # Windows, or a folder that is not ours
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _kept(dtype: str) -> tuple[Checked, bool] | None:
    """Return the rows with a problem of the result that is kept for a dtype, and whether the check
    stopped there.

    It is None where there is none, or where the environment asks for a new one.
    """
    text = None if _asked() == "1" else secure_cache.read(*_place(dtype), 1 << 20)
    if text is None:
        return None
    rows, stopped = json.loads(text)
    return Checked(Row(*row) for row in rows), stopped


def _keep(dtype: str, found: Checked, stopped: bool) -> None:
    # A kernel that was refused may run elsewhere, and else is refused again: MPS gives a process a
    # part of a card.
    lasting = [row for row in found if row.problem.endswith((WRONG, OTHER, waits.GAVE_UP))]
    rows = lasting + found[-1:] * stopped
    try:
        folder, name = _place(dtype)
        secure_cache.write(secure_cache.folder(folder), name, json.dumps((rows, stopped)).encode())
    except OSError:  # nobody else may write there, and so nothing is kept
        pass


def _place(dtype: str) -> tuple[Path, str]:
    """Return the folder and the name of the file that keeps a result."""
    cupy = optional_imports.cupy()
    package = sys.modules["xlstm"]  # an import of it would go upwards
    runtime = cupy.cuda.runtime
    versions = (cupy.__version__, package.__version__, dtype)
    key = repr(
        (
            Row._fields,
            kernel_fallback.current(),
            runtime.driverGetVersion(),
            runtime.runtimeGetVersion(),
            *versions,
        )
    )
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy/kernel_cache", "xlstm")
    return folder, f"check-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _calls(dtype: str) -> Iterator[Call]:
    """Yield the arguments of `_row` for each kind of kernel for a dtype."""
    card = launch.current()
    if dtype == "bfloat16" and card.capability < TF32:
        return
    for name, run in ARRAYS.items():
        yield name.strip("_").removeprefix("xlstm_"), dtype, name, run, (4, 40), (4, 40)
    yield "product", dtype, "product", lambda xp, a, b: [matmul(xp, a, b)], (2, 40, 30), (2, 30, 20)
    for precision in PRECISIONS if dtype == "float32" else PRECISIONS[:1]:
        yield from _calls_of_layers(dtype, precision, card)


def _calls_of_layers(dtype: str, precision: str, card: Device) -> Iterator[Call]:
    kind = "tf32" if precision == "tf32" else dtype
    for of, cell in CELLS.items():
        rows = len(cell.GATES) * H
        biases = ("b", "bh") if of == "GRU" else ("b",)
        shapes = (rows, D), (rows, H), *[(rows,)] * len(biases), (sum(k * n for k, n in WIDTHS), D)
        step = pointwise(cell, (), biases)
        names = {} if kind == "tf32" else {STEP: f"{STEP} "}
        for path in PATHS[1:]:
            with contextlib.suppress(ValueError):  # a path that the card has not
                name = choose(
                    (path, precision), step, "", dtype, H, 1, WIDTHS[0][1], card
                ).arithmetic.name
                names |= {path: f"{path} {name} "} if kind in (dtype, name) else {}
        for path, name in names.items():
            yield (
                f"{path} {of}",
                kind,
                name,
                functools.partial(_passes, cell, path, precision),
                *shapes,
            )
    if way := chunk_passes.way_of(dtype, precision, card):
        run = functools.partial(_chunks, precision)
        shapes = (*[(40, 2, 32)] * 3, *[(40, 2, 2)] * 2)
        yield "chunks mLSTM", kind, f"chunks {way.io} {way.planes} ", run, *shapes


def _row(
    kernel: str, kind: str, name: str, run: Callable[..., Sequence[Array]], *shapes: tuple[int, ...]
) -> Row:
    """Run a function of arrays twice on CuPy, and on NumPy in float64."""
    dtype = "float32" if kind == "tf32" else kind
    rng = np.random.default_rng(0)
    be = backend("cupy", dtype=dtype)
    if (
        kind == "float32"
        and optional_imports.cupy()._core.get_compute_type(np.dtype(kind)) == CUBLAS_TF32
    ):
        kind = "tf32"
    given = [be.asarray(0.3 * rng.standard_normal(shape)) for shape in shapes]
    try:
        found, again = (
            [to_numpy(a).astype("float64").ravel() for a in run(be.xp, *given)] for _ in range(2)
        )
    except kernel_fallback.CudaError as error:
        return Row(kernel, kind, None, kernel_fallback.reason(error), name)
    expected = [a.ravel() for a in run(np, *(to_numpy(a).astype("float64") for a in given))]
    gaps = [
        np.abs(a - b).max() / max(np.abs(b).max(), LEAST)
        for a, b in zip(found, expected, strict=True)
    ]
    gap = float(np.max(gaps))  # NaN counts
    problem = kernel_fallback.why(name, kernel_fallback.current()) or (
        "" if gap <= ALLOWED[kind] else WRONG
    )
    if not problem and not all(map(np.array_equal, found, again)):
        problem = OTHER
    return Row(kernel, kind, gap if np.isfinite(gap) else None, problem, name)


def _passes(cell: Any, path: str, precision: str, xp: Namespace, *arrays: Array) -> list[Array]:
    """Return what a pass forward and one backward give, or a single step, by kernels or by
    NumPy.
    """
    *weights, x = arrays
    engine: Any = ARRAY_API if xp is np else CUDA
    step = Step(xp, cell, dict(zip(("Wx", "Wh", "b", "bh"), weights, strict=False)), Masks())
    state = [xp.full((H, WIDTHS[0][1]), rest, dtype=x.dtype) for rest in cell.REST]
    if path == STEP:
        with use("pointwise"):
            _, after = engine.step(step, x[: WIDTHS[0][1], :], [s.T for s in state])
        return list(after)
    with use(path, precision):
        y, end, tape = engine.forward(step, x, state, WIDTHS, "all")
        # Which of two numbers is the maximum m, and so has its gradient, may depend on a rounding.
        dend = [xp.zeros_like(s) for s in end] if "m" in cell.STATES else end
        found, start = engine.backward(tape, y, dend)
    return [y, *end, *start, *(found.arrays[name] for name in sorted(found.arrays))]


def _chunks(precision: str, xp: Namespace, *arrays: Array) -> list[Array]:
    """Return what the passes of an mLSTM give in chunks of 16 steps."""
    cell = typing.cast(Any, mlstm_chunks)
    kernels = typing.cast(Any, chunk_passes)
    _, B, N = arrays[3].shape
    K = arrays[0].shape[2] // N
    heads = functools.partial(chunk_passes.by_head, heads=N)
    state = [xp.zeros((B, N, K, K)[:axes], dtype=xp.float32) for axes in (4, 3, 2)]
    if xp is np:
        given = [*map(heads, arrays[:3]), *(heads(a)[..., 0] for a in arrays[3:]), *state]
        h, *end, saved = cell.chunkwise(np, *given, eps=0.1)
        return [h, *end, *cell.chunkwise_bwd(np, h, *end, saved, eps=0.1)]
    with use("auto", precision):
        made = kernels.kernels(xp, *arrays[:3], N, chunk=16, forget="sigmoid", eps=0.1)
    h, *end, saved = kernels.forward(xp, *arrays, *state, made)
    grads = kernels.backward(xp, h, *end, saved)
    return [heads(h), *end, *map(heads, grads[:5]), *grads[5:]]


def _softmax(xp: Namespace, a: Array, b: Array) -> tuple[Array, Array]:
    e = xp.exp(a - xp.max(a, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True), xp.mean(a * b, axis=-1, keepdims=True)


def _moved(xp: Namespace, a: Array, b: Array, rate: Any) -> tuple[Array, Array]:
    return a - rate * b, b * b


def _sigmoid(xp: Namespace, a: Array) -> Array:
    return 1 / (1 + xp.exp(-a))


# Calls of two arrays (4, 40) that launch the kernels of these names.
ARRAYS: dict[str, Callable[..., Sequence[Array]]] = {
    "xlstm_concat": lambda xp, a, b: [concat(xp, [a, filled(xp, a, 0.5, 2, 1), b], 1)],
    "xlstm_gather": lambda xp, a, b: gather(
        xp, [a, b], [xp.asarray([1, 3, 0]), xp.asarray([2, 2])]
    ),
    "xlstm_rows_": lambda xp, a, b: [
        *by_rows(xp, _softmax, a, b),
        *summed(xp, _moved, a, b, rate=0.3),
        block_diagonal.products(xp, [a, b], [xp.reshape(w, (10, 4, 4)) for w in (b, a)]),
    ],
    "xlstm_add_rows": lambda xp, a, b: [add_rows(xp, xp.asarray([1, 3, 1, 0]), a, 5)],
    "xlstm_fuse_": lambda xp, a, b: [fuse(xp, _sigmoid, a), fuse(xp, _sigmoid, b, out=b + 0)],
    "xlstm_total": lambda xp, a, b: [total(xp, a, b, axes=(-2, -1))],
    "xlstm_each_": lambda xp, a, b: [
        *foreach.copies(xp, [a]),
        *foreach.apply(xp, _moved, [[a], [b]], [0.3])[0],
        *foreach.apply(xp, _moved, [[a + 0], [b + 0]], [0.3], into=(0, 1))[0],
    ],
    "xlstm_squares": lambda xp, a, b: [foreach.norm(xp, [30 * a, b])],
    "xlstm_bernoulli": lambda xp, a, b: [
        bernoulli(np.random.default_rng(1), 0.4, (9, 3), a, dropout=True)
    ],
}
