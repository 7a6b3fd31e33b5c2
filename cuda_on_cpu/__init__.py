"""CUDA without a GPU, below the installed CuPy: it computes, counts requests and finds faults.

`python -m cuda_on_cpu` builds it into the running environment. After that CuPy's own wheel imports
there. With g++ it compiles its own kernels and those of `RawKernel`, `RawModule`,
`ElementwiseKernel` and `ReductionKernel`, launches them and captures graphs. README.md lists the
faults that this finds, and those that it cannot find.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HOME = Path(sys.prefix) / "cuda_on_cpu"
VERSION = "14.2.0"  # the CuPy that it is built against
RUNTIME = Path(
    sysconfig.get_path("platlib"),
    f"cupy_backends/cuda/api/runtime{sysconfig.get_config_var('EXT_SUFFIX')}",
)


def digest(paths: Iterable[Path] = ()) -> str:
    """Return a digest of files; by default of the sources of the libraries, and of the module of
    CuPy that uses them.
    """
    found = hashlib.sha256()
    for path in paths or [*sorted(FOLDER.rglob("*.[chp]*")), RUNTIME]:
        if path.suffix != ".pyc" and path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


@functools.cache
def missing() -> str:
    """Return why CuPy does not compute on the CPU in this environment, or "" if it does."""
    stamp = HOME / "stamp"
    if stamp.exists() and stamp.read_text() == digest():
        return ""
    why = (
        "was built of other sources, or for another CuPy"
        if stamp.exists()
        else "is not built into this environment"
    )
    return f"cuda_on_cpu {why} (python -m cuda_on_cpu builds it)"


@functools.cache
def library() -> ctypes.CDLL:
    """Return the driver, the same library that CuPy has loaded."""
    found = ctypes.CDLL(str(HOME / "lib/libcuda.so.1"))
    found.cuda_on_cpu_lines.restype = ctypes.c_char_p
    return found


def _lines(which: str) -> list[str]:
    return library().cuda_on_cpu_lines(ord(which)).decode().splitlines()


class Counted:
    """The requests of a `with` block: the requests so far, or all when the block has ended.

    `counts` has the number of each kind of operation. `names` has the operations with their
    streams, if `counted` got `names=True`. `problems` has the calls that CUDA would have refused,
    or might have carried out wrongly.
    """

    def __init__(self) -> None:
        self._begun = self._all()
        self._ended = None

    def _all(self) -> Any:
        return (
            Counter({name: int(number) for name, number in map(str.split, _lines("c"))}),
            _lines("n"),
            _lines("p"),
        )

    def _since(self, k: int) -> Any:
        begun = self._begun[k]
        ended = (self._ended or self._all())[k]
        return ended - begun if k == 0 else ended[len(begun) :]

    counts = property(lambda self: self._since(0))
    names = property(lambda self: self._since(1))
    problems = property(lambda self: self._since(2))


@contextlib.contextmanager
def counted(names: bool = False) -> Iterator[Counted]:
    """Count the operations that a `with` block asks for; `names` also lists each."""
    library().cuda_on_cpu_keep_names(int(names))
    found = Counted()
    try:
        yield found
    finally:
        found._ended = found._all()
        library().cuda_on_cpu_keep_names(-int(names))


@contextlib.contextmanager
def configured(**settings: int) -> Iterator[None]:
    """Change settings of this process within a `with` block: seed, lazy, cluster, part, sm,
    devices, idle.
    """
    before = {
        name: library().cuda_on_cpu_set(name.encode(), value) for name, value in settings.items()
    }
    if -1 in before.values():
        raise ValueError(
            f"cuda_on_cpu has no such settings: {[name for name in before if before[name] == -1]}"
        )
    try:
        yield
    finally:
        for name, value in before.items():
            library().cuda_on_cpu_set(name.encode(), value)


def recover() -> None:
    """Forget the error of a failed kernel, as a new process would: after such an error all calls
    fail.
    """
    library().cuda_on_cpu_recover()


@functools.cache
def watch() -> None:
    """Watch the pools of CuPy in this thread and in threads that begin later.

    Blocks that a pool gives hold NaN and count as `allocations`. A launch on memory that went back
    to its pool counts as a problem.
    """
    import cupy

    class Hook(cupy.cuda.MemoryHook):
        name = "cuda_on_cpu"

        def malloc_postprocess(
            self, device_id: int, size: int, mem_size: int, mem_ptr: int, pmem_id: int
        ) -> None:
            stream = cupy.cuda.get_current_stream().ptr
            library().cuda_on_cpu_took(
                ctypes.c_void_p(mem_ptr), ctypes.c_size_t(mem_size), ctypes.c_void_p(stream)
            )

        def free_preprocess(
            self, device_id: int, mem_size: int, mem_ptr: int, pmem_id: int
        ) -> None:
            library().cuda_on_cpu_gave_back(ctypes.c_void_p(mem_ptr), ctypes.c_size_t(mem_size))

    hook = Hook()

    def enter(*event: object) -> None:  # a hook belongs to one thread
        sys.setprofile(None)
        hook.__enter__()

    hook.__enter__()
    # arrays that are freed later find nothing of this module
    atexit.register(hook.__exit__, None, None, None)
    threading.setprofile(enter)
