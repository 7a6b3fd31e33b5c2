"""Threads that share calls of compiled functions: who works, and interrupts."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from xlstm.arrays import cores
from xlstm.engines.numba import llvm, team

SECONDS = 60  # a bound against hangs, far above what a worker takes


@numba.njit(nogil=True)
def count(seen, more, negative, first, last):
    """Add 1 to all from a first to a last one, after some work, so that others come in between."""
    for k in range(first, last):
        found = 0.0
        for j in range(2000):
            found += np.sin(float(j))
        seen[k] += 1 if found < 1e9 else 2
        more[1][k, 0] += -1.0 if negative else 1.0


@numba.njit(nogil=True)
def wait_for_the_other(counts, first, last):
    """Note in the first call of two whether the other one begins before this one ends."""
    if llvm.count_up(counts, 0):
        return
    for _ in range(2_000_000):
        if llvm.count_of(counts, 0) == 2:
            counts[1] = 1
            break
        llvm.let_others_run()


@numba.njit(nogil=True)
def fail(seen, first, last):
    """Fail where 5 is among the numbers."""
    for k in range(first, last):
        if k == 5:
            raise MemoryError
        seen[k] += 1


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(cores, "usable", lambda: 2)
    monkeypatch.setenv(cores.VARIABLE, "2")


def until(true):
    """Wait for what a worker does."""
    deadline = time.monotonic() + SECONDS
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def call(n, unit=1):
    seen = np.zeros(n, np.int64)
    rows = np.zeros((n, 3))
    return (n, count, (seen, (np.zeros(0), rows), True), unit), seen, rows


@pytest.mark.parametrize("unit", [0, 1, 4, 24])
@pytest.mark.parametrize("sizes", [[1], [7], [100], [3, 0, 50]])
def test_all_is_done_once(sizes, unit):
    for _ in range(20):
        calls = [call(n, unit) for n in sizes]
        team.share([c for c, *_ in calls], 1 << 40)
        for _, seen, rows in calls:
            assert (seen == 1).all()
            assert (rows[:, 0] == -1).all()
            assert not rows[:, 1:].any()


def test_arrays_of_a_subclass():
    """numpy.memmap is one."""

    class Own(np.ndarray):
        pass

    one, seen, _ = call(9)
    n, function, (_, *others), unit = one
    team.share([(n, function, (seen.view(Own), *others), unit)], 1 << 40)
    assert (seen == 1).all()


@pytest.mark.parametrize("asleep", [False, True])
def test_a_worker_takes_part(asleep):
    """Two calls wait for each other, so that one thread alone would not end well; a worker may be
    late.
    """
    counts = np.zeros(2, np.int64)
    deadline = time.monotonic() + SECONDS
    while not counts[1] and time.monotonic() < deadline:
        if asleep:
            one, _, _ = call(9)
            team.share([one], 1 << 40)
            until(lambda: team.workers[0].asleep)
            time.sleep(0.01)  # it looks once more
        counts[:] = 0
        team.run_parallel([(wait_for_the_other, [((counts,), 0, 0)] * 2)], 2)
    assert counts[1], "no worker took a call"


@pytest.mark.parametrize("cores_usable", [1, 2])
def test_a_call_without_memory_is_an_error(monkeypatch, cores_usable):
    monkeypatch.setattr(cores, "usable", lambda: cores_usable)
    with pytest.raises(MemoryError):
        team.share([(9, fail, (np.zeros(9, np.int64),), 1)], 1 << 40)
    one, seen, _ = call(9)
    team.share([one], 1 << 40)  # the next one is none
    assert (seen == 1).all()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_a_worker_starts_leaves_none_that_never_works(
    monkeypatch, error, started
):
    start = threading.Thread.start
    helped = threading.Semaphore(0)

    def interrupted(thread):
        if started:
            start(thread)
        raise error

    def employ():
        return team.employ(1, lambda queue: helped.release())

    monkeypatch.setattr(team, "workers", [])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        if error is RuntimeError:  # there can be no more threads
            assert employ() == 0
        else:
            with pytest.raises(error):
                employ()
    assert employ() == 1
    assert all(helped.acquire(timeout=SECONDS) for _ in range(2))
    (worker,) = team.workers
    until(lambda: worker.bell.empty() and worker.asleep)
    assert employ() == 1
    assert all(helped.acquire(timeout=SECONDS) for _ in range(2))
