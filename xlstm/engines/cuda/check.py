"""Check every kind of kernel on the current GPU against NumPy in float64.

Kernels of many steps are not used until they are checked. The first training on a GPU does this in
a process of its own. `check_results` keeps the results, and blocks kinds with wrong values.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from xlstm.arrays import block_diagonal, foreach, optional_imports
from xlstm.arrays.backend import backend
from xlstm.arrays.concat import concat, filled
from xlstm.arrays.convert import BackendError, to_numpy
from xlstm.arrays.cuda import kernel_fallback
from xlstm.arrays.cuda.products import TF32 as CUBLAS_TF32
from xlstm.arrays.fuse import fuse, total
from xlstm.arrays.gather import add_rows, gather
from xlstm.arrays.matmul import matmul
from xlstm.arrays.namespace import Array, Namespace
from xlstm.arrays.random import bernoulli
from xlstm.arrays.rows import by_rows, summed
from xlstm.cells import gru, lstm, minimal, mlstm_chunks, rnn, slstm
from xlstm.engines import secure_cache
from xlstm.engines.array_api import ARRAY_API
from xlstm.engines.cell_step import Masks, Step
from xlstm.engines.cuda import check_results, chunk_passes, launch
from xlstm.engines.cuda.check_results import ALLOWED, OTHER, WRONG, Checked, KernelCheck
from xlstm.engines.cuda.choice import PATHS, PRECISIONS, TF32, choose, told, use
from xlstm.engines.cuda.cuda_engine import CUDA
from xlstm.engines.cuda.tiling import Device
from xlstm.engines.pointwise import pointwise

CELLS = {
    "LSTM": lstm.Cell(),
    "GRU": gru.Cell(),
    "RNN": rnn.Cell(),
    "sLSTM": slstm.Cell(),
    "minGRU": minimal.MinGRU(),
}
WIDTHS = [(2, 9), (1, 5)]  # steps and sequences
D = 3
H = 40
STEP = "step"  # in place of a path: a single step
LEAST = 1e-3  # least size of an array to which differences are relative
# NVRTC compiles each of the few kernels of a kind in some seconds, and they run for less than one.
# So a kind that takes a minute hangs, and costs no more than a minute. A limit for all kinds
# together would also stop a slow compiler.
SECONDS = 60
HUNG = "Timeout ("  # the message of faulthandler at the limit
MARK = "xlstm check: "  # beginning of each line of the process
END: list[Any] = []  # last line of the process
COMMAND = (sys.executable, "-P", "-c", "from xlstm.engines.cuda import check; check.child()")
log = logging.getLogger("xlstm")


def check() -> Checked:
    """Compare every kind of kernel on the current GPU with NumPy, print a table, and keep the
    result.

    Kernels that are not compiled yet are compiled first, which takes some minutes. Each kind runs
    twice, and must give the same bits both times. Kernels that have wrong values or do not run are
    not used again: slower paths replace them.

    The kernels run in this process. If one of them crashes or hangs, so does the process. `xlstm
    check`, and the check that the first training on a card makes, use a process of their own.

    Returns
    -------
    list of KernelCheck
        Its attribute `wrong` has the rows with a problem.

    Raises
    ------
    BackendError
        CuPy is not usable, or is the version for ROCm; the message has the reason.
    """
    _usable()
    check_results.begin_anew()
    whole = Checked()
    for dtype in check_results.DTYPES:
        rows = Checked(_compare(*kind) for kind in _kinds(dtype))
        check_results.write(dtype, rows, False)
        whole += rows
    check_results.note(whole)
    sys.stdout.write(f"{whole}\n")
    return whole


def apart() -> Checked:
    """Run `check` in a process of its own, without a table; if a kernel hangs, it has the last
    row.
    """
    _usable()
    return Checked(row for dtype in check_results.DTYPES for row in _apart(dtype)[0])


def first_training(*dtypes: str) -> None:
    """Check the kernels for these dtypes on the current card, unless there is a result.

    The result is kept if a folder is writable. If several processes start, one checks and the
    others wait for its result.
    """
    launch.current()
    if check_results.asked() != "0" and told()[0] != "loop":
        for dtype in dtypes:
            _prove(kernel_fallback.current(), dtype)


@functools.cache
def _prove(card: str, dtype: str) -> None:
    with _one_at_a_time():
        check_results.go_by(dtype, *(check_results.read(dtype) or _apart(dtype)))


def child() -> None:
    """Check the kernels for a dtype on a device, both from the arguments of this process.

    If a kernel hangs, the process ends. Standard output has a line before each kind, with its name,
    and a line after it, with its result.
    """
    dtype, number = sys.argv[1:]
    # It ends the process even if a call of CUDA does not return.
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    backend("cupy")
    cupy = optional_imports.cupy()
    cupy.cuda.Device(int(number)).use()
    for kind in _kinds(dtype):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        _say(kind[:3])
        row = _compare(*kind)
        # This raises if the card no longer answers after this kernel.
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


def _apart(dtype: str) -> tuple[Checked, bool]:
    """Check the kernels for a dtype in a process of its own, and keep the result; also return
    whether the process stopped early.
    """
    log.info(
        "checking the %s kernels of %s, once for this card, driver and versions",
        dtype,
        kernel_fallback.current(),
    )
    process = subprocess.run(
        [*COMMAND, dtype, str(optional_imports.cupy().cuda.runtime.getDevice())],
        env={**os.environ, check_results.VARIABLE: "0", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
    )
    words = process.stderr or f"it ended with {process.returncode}"
    marked = (line.partition(MARK)[2] for line in process.stdout.splitlines())
    lines = [json.loads(text) for text in marked if text]
    rows = Checked(KernelCheck(*line) for line in lines if len(line) == len(KernelCheck._fields))
    stopped = lines[-1:] != [END]
    if stopped:
        why = f"no answer within {SECONDS} s" if HUNG in words else words.strip().splitlines()[-1]
        kernel, kind, *_, name = lines[-1] if lines else ("all", dtype, "check ")
        rows.append(KernelCheck(kernel, kind, None, why, name))
    if lines and "OutOfMemoryError" not in words:  # else another process may get further
        check_results.write(dtype, rows, stopped)
    return rows, stopped


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait until no other process runs a check."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
        folder = secure_cache.folder(check_results.place("")[0])
        handle = os.open(folder / "check.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError):  # Windows, or a folder of another user
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _kinds(dtype: str) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of `_compare` for each kind of kernel for a dtype."""
    card = launch.current()
    if dtype == "bfloat16" and card.capability < TF32:
        return
    for name, run in ARRAYS.items():
        yield name.strip("_").removeprefix("xlstm_"), dtype, name, run, (4, 40), (4, 40)
    yield "product", dtype, "product", lambda xp, a, b: [matmul(xp, a, b)], (2, 40, 30), (2, 30, 20)
    for precision in PRECISIONS if dtype == "float32" else PRECISIONS[:1]:
        yield from _kinds_of_layers(dtype, precision, card)


def _kinds_of_layers(dtype: str, precision: str, card: Device) -> Iterator[tuple[Any, ...]]:
    kind = "tf32" if precision == "tf32" else dtype
    for layer, cell in CELLS.items():
        rows = len(cell.GATES) * H
        biases = ("b", "bh") if layer == "GRU" else ("b",)
        Wh = [(rows, H)] * cell.RECURRENT
        shapes = (rows, D), *Wh, *[(rows,)] * len(biases), (sum(k * n for k, n in WIDTHS), D)
        step = pointwise(cell, (), biases)
        names = {} if kind == "tf32" else {STEP: f"{STEP} "}
        for path in PATHS[1:]:
            with contextlib.suppress(ValueError):  # a path that the card does not have
                asked = path, precision
                choice = choose(asked, step, "", dtype, H, 1, WIDTHS[0][1], card)
                if kind in (dtype, choice.arithmetic.name):
                    names[path] = f"{path} {choice.arithmetic.name} "
        for path, name in names.items():
            run = functools.partial(_passes, cell, path, precision)
            yield f"{path} {layer}", kind, name, run, *shapes
    if arithmetic := chunk_passes.arithmetic_of(dtype, precision, card):
        run = functools.partial(_chunks, precision)
        shapes = (*[(40, 2, 32)] * 3, *[(40, 2, 2)] * 2)
        yield "chunks mLSTM", kind, arithmetic.kind, run, *shapes


def _compare(
    kernel: str, kind: str, name: str, run: Callable[..., Sequence[Array]], *shapes: tuple[int, ...]
) -> KernelCheck:
    """Run a function of arrays twice on CuPy, and on NumPy in float64, and return the
    comparison.
    """
    dtype = "float32" if kind == "tf32" else kind
    rng = np.random.default_rng(0)
    be = backend("cupy", dtype=dtype)
    cublas = optional_imports.cupy()._core.get_compute_type
    if kind == "float32" and cublas(np.dtype(kind)) == CUBLAS_TF32:
        kind = "tf32"
    inputs = [be.asarray(0.3 * rng.standard_normal(shape)) for shape in shapes]
    try:
        first, second = (
            [to_numpy(a).astype("float64").ravel() for a in run(be.xp, *inputs)] for _ in range(2)
        )
    except kernel_fallback.CudaError as error:
        return KernelCheck(kernel, kind, None, kernel_fallback.reason(error), name)
    expected = [a.ravel() for a in run(np, *(to_numpy(a).astype("float64") for a in inputs))]
    gaps = [
        np.abs(a - b).max() / max(np.abs(b).max(), LEAST)
        for a, b in zip(first, expected, strict=True)
    ]
    gap = float(np.max(gaps))  # NaN counts as a gap
    problem = kernel_fallback.why(name, kernel_fallback.current())
    if not problem and not gap <= ALLOWED[kind]:
        problem = WRONG
    if not problem and not all(map(np.array_equal, first, second)):
        problem = OTHER
    return KernelCheck(kernel, kind, gap if np.isfinite(gap) else None, problem, name)


def _passes(cell: Any, path: str, precision: str, xp: Namespace, *arrays: Array) -> list[Array]:
    """Return the results of a forward and a backward pass, or of a single step, by kernels or by
    NumPy.
    """
    *weights, x = arrays
    engine: Any = ARRAY_API if xp is np else CUDA
    names = "Wx", *["Wh"] * cell.RECURRENT, "b", "bh"
    step = Step(xp, cell, dict(zip(names, weights, strict=False)), Masks())
    state = [xp.full((H, WIDTHS[0][1]), rest, dtype=x.dtype) for rest in cell.REST]
    if path == STEP:
        with use("pointwise"):
            _, after = engine.step(step, x[: WIDTHS[0][1], :], [s.T for s in state])
        return list(after)
    with use(path, precision):
        y, end, tape = engine.forward(step, x, state, WIDTHS, "all")
        # Rounding may decide which of two numbers is the maximum m, and so gets its gradient.
        dend = [xp.zeros_like(s) for s in end] if "m" in cell.STATES else end
        gradients, start = engine.backward(tape, y, dend)
    return [y, *end, *start, *(gradients.arrays[name] for name in sorted(gradients.arrays))]


def _chunks(precision: str, xp: Namespace, *arrays: Array) -> list[Array]:
    """Return the results of both passes of an mLSTM, in chunks of 16 steps."""
    cell: Any = mlstm_chunks
    passes: Any = chunk_passes
    _, B, N = arrays[3].shape
    K = arrays[0].shape[2] // N
    heads = functools.partial(chunk_passes.by_head, heads=N)
    state = [xp.zeros((B, N, K, K)[:axes], dtype=xp.float32) for axes in (4, 3, 2)]
    if xp is np:
        inputs = *map(heads, arrays[:3]), *(heads(a)[..., 0] for a in arrays[3:]), *state
        h, *end, saved = cell.chunkwise(np, *inputs, eps=0.1)
        return [h, *end, *cell.chunkwise_bwd(np, h, *end, saved, eps=0.1)]
    with use("auto", precision):
        kernels = passes.kernels(xp, *arrays[:3], N, chunk=16, forget="sigmoid", eps=0.1)
    h, *end, saved = passes.forward(xp, kernels, *arrays, *state)
    grads = passes.backward(xp, h, *end, saved)
    return [heads(h), *end, *map(heads, grads[:5]), *grads[5:]]


def _softmax(xp: Namespace, a: Array, b: Array) -> tuple[Array, Array]:
    e = xp.exp(a - xp.max(a, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True), xp.mean(a * b, axis=-1, keepdims=True)


def _moved(xp: Namespace, a: Array, b: Array, rate: Any) -> tuple[Array, Array]:
    return a - rate * b, b * b


def _sigmoid(xp: Namespace, a: Array) -> Array:
    return 1 / (1 + xp.exp(-a))


# Calls with two arrays (4, 40), by the names of the kernels that they launch.
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
