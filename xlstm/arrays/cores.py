"""The number of threads of compiled loops, and of NumPy's BLAS.

XLSTM_NUM_THREADS sets the former, else OMP_NUM_THREADS, else the cores of the process.
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
COMMON = "OMP_NUM_THREADS"  # joblib, Dask, torchrun and clusters set this for their workers
MOST = 1024  # the largest number that the variables may have

_ranks = 1  # the ranks that share the cores of this process


def threads() -> int:
    """Return into how many parts compiled loops divide large work.

    The number is `given()`, else the number of cores.

    Ranks on one machine share its cores. At most as many threads as cores take part. Results depend
    neither on the number of parts nor on the threads that compute them.
    """
    return given() or max(1, usable() // _ranks)


def given() -> int | None:
    """Return XLSTM_NUM_THREADS, else OMP_NUM_THREADS, else None if both are unset or empty.

    Raises
    ------
    ValueError
        The variable is not a whole number from 1 to 1024. OMP_NUM_THREADS may have further numbers
        after commas, for nested threads.
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
    """Divide the cores of this process among ranks, for compiled loops and for BLAS.

    Parameters
    ----------
    ranks : int
        The number of ranks on this machine that have the affinity of this process, itself included.
    """
    global _ranks
    _ranks = ranks
    for library in _controller().lib_controllers:
        # fewer threads are the user's choice
        if library.user_api == "blas" and library.num_threads > threads():
            library.set_num_threads(threads())


def affinity() -> tuple[int, ...]:
    """Return the numbers of this process's cores, or () if the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def usable() -> int:
    """Return the number of cores, at least 1.

    The affinity is read at every call, the quota once in a process.
    """
    return math.ceil(min(_affinity(), quota()))


@functools.cache
def quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float:
    """Return the smallest CPU quota, in cores, of the process's cgroup and the cgroups above it.

    Without a quota it is infinity.

    Parameters
    ----------
    cgroups : Path
        The folder at which the file system of cgroups (version 2) is mounted. In a container it is
        the container's own.
    membership : Path
        The file that names the cgroup of the process, in a line `0::path`.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # this is not Linux
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
    """Return the quota in a file, "quota period" in microseconds.

    "max" and a missing file mean no quota.
    """
    try:
        limit, period = path.read_text(encoding="utf-8").split()
        return int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


_turn = threading.RLock()  # held by the thread that bounds the threads of the process


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run BLAS with one thread in the whole process inside a `with` block.

    Other threads of the program wait for their turn.
    """
    with _turn, _controller().limit(limits=1, user_api="blas"):
        yield


def describe_blas() -> list[str]:
    """Describe each library of BLAS: its path, version, kernel for this processor, and threads."""
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
    """Make a new lock after a fork: another thread of the parent may have held the old one."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_turn)
