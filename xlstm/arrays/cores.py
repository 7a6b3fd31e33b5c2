"""The number of threads: XLSTM_NUM_THREADS, OMP_NUM_THREADS, or the cores of a process; and those
of NumPy's BLAS.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xlstm.arrays import checks

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
VARIABLE = "XLSTM_NUM_THREADS"
COMMON = "OMP_NUM_THREADS"  # joblib, Dask, torchrun and clusters set it for their workers
MOST = 1024  # the largest number that the variables may have

_ranks = 1  # that share the cores of this process


def threads() -> int:
    """Return into how many parts compiled loops divide large work: as `given` says, else the number
    of cores.

    Ranks on one machine share its cores. No more threads than cores take part in it. Results depend
    neither on the number of parts nor on who does them.
    """
    return given() or max(1, usable() // _ranks)


def given() -> int | None:
    """Return XLSTM_NUM_THREADS, or else OMP_NUM_THREADS, or None where neither is set or both are
    empty.

    Raises
    ------
    ValueError
        The variable is not a whole number from 1 to 1024. OMP_NUM_THREADS may have more of them,
        after commas, for threads within threads.
    """
    for name in (VARIABLE, COMMON):
        if text := os.environ.get(name):
            outer = text.partition(",")[0].strip() if name == COMMON else text
            match = re.fullmatch("0*([1-9][0-9]{0,3})", outer)
            if match is None or int(match[1]) > MOST:
                raise ValueError(
                    f"{name}: {checks.shown(text)} is not a number of threads, expected 1 to {MOST}"
                )
            return int(match[1])
    return None


def share(ranks: int) -> None:
    """Divide the cores of this process, in it and for the threads of BLAS, among ranks that may use
    the same ones.

    Parameters
    ----------
    ranks : int
        The number of ranks on this machine that have the affinity of this process, itself included.
    """
    global _ranks
    _ranks = ranks
    for library in _controller().lib_controllers:
        # fewer are what the user asked for
        if library.user_api == "blas" and library.num_threads > threads():
            library.set_num_threads(threads())


def affinity() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may run on, or none where the system does
    not tell.
    """
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def usable() -> int:
    """Return the number of cores, at least 1; the affinity is read at every call, the quota once
    for the process.
    """
    return math.ceil(min(_affinity(), quota()))


@functools.cache
def quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """Return the smallest CPU quota of the process's cgroup and of those above it, in cores;
    infinity without one.

    Parameters
    ----------
    cgroups : Path
        The folder in which the file system of cgroups (version 2) is mounted, which is the
        container's own in one.
    membership : Path
        The file that names the cgroup of the process, in a line `0::path`.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # this is no Linux
        return math.inf
    paths = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    names = [name for path in paths for name in path.split("/") if name not in ("", "..")]
    return min(
        _read(cgroups.joinpath(*names[:depth], "cpu.max")) for depth in range(len(names) + 1)
    )


def _affinity() -> int:
    count = getattr(os, "process_cpu_count", None)  # exists since Python 3.13
    return (count() if count else len(affinity())) or os.cpu_count() or 1


def _read(path: Path) -> float:
    """Return the quota in a file, "quota period" in microseconds; "max" and a missing file mean
    none.
    """
    try:
        limit, period = path.read_text(encoding="utf-8").split()
        return int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


_turn = threading.RLock()  # whoever bounds the threads of the process, until they are as they were


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Bound the threads of BLAS in the whole process meanwhile; other threads of the program wait
    for their turn.
    """
    with _turn, _controller().limit(limits=1, user_api="blas"):
        yield


def describe_blas() -> list[str]:
    """Describe each library: where it lies, its version, the kernel it chose for this processor,
    and its threads.
    """
    return [
        f"{Path(library.filepath).parent.name}: {library.internal_api} {library.version} "
        f"{getattr(library, 'architecture', 'of unknown kernel')}, threads: {library.num_threads}"
        for library in sorted(
            _controller().lib_controllers, key=lambda library: str(library.filepath)
        )
        if library.user_api == "blas"
    ]


@functools.cache
def _controller() -> Any:
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


def _new_turn() -> None:
    """Make a new lock: another thread of the parent may have held the old one."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_turn)
