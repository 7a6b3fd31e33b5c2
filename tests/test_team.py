"""Calls of compiled functions that several threads share."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from xlstm.arrays import cores, pool
from xlstm.arrays import threads as sharing
from xlstm.engines.numba import atomics, board, team


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
def fill(seen, value):
    """Set all to a number."""
    for k in range(seen.size):
        seen[k] = value


@numba.njit(nogil=True)
def meet(counts):
    """Wait for the other call of two."""
    atomics.count_up(counts, 0)
    for _ in range(100_000):
        if atomics.count_of(counts, 0) == 2:
            counts[1] = 1
            break
        atomics.let_others_run()


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
    monkeypatch.setenv(sharing.VARIABLE, "2")


def call(n, unit=1):
    seen, rows = np.zeros(n, np.int64), np.zeros((n, 3))
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


def test_calls_that_stay_whole():
    rooms = [np.zeros(5, np.int64) for _ in range(9)]
    team.together(fill, [(room, k) for k, room in enumerate(rooms)])
    for k, room in enumerate(rooms):
        assert (room == k).all()


def test_arrays_of_a_subclass():
    """numpy.memmap is one."""

    class Own(np.ndarray):
        pass

    seen = np.zeros(2, np.int64).view(Own)
    team.together(fill, [(seen[:1], 3), (seen[1:], 3)])
    np.testing.assert_array_equal(seen, 3)


def test_a_worker_takes_part():
    """Two calls wait for each other, so that one thread alone would not end well."""
    for _ in range(20):  # a worker may be late
        counts = np.zeros(2, np.int64)
        team.together(meet, [(counts,)] * 2)
        if counts[1]:
            return
    pytest.fail("no worker took a call")


@pytest.mark.parametrize("cores_usable", [1, 2])
def test_a_call_without_memory_is_an_error(monkeypatch, cores_usable):
    monkeypatch.setattr(cores, "usable", lambda: cores_usable)
    with pytest.raises(MemoryError):
        team.share([(9, fail, (np.zeros(9, np.int64),), 1)], 1 << 40)
    one, seen, _ = call(9)
    team.share([one], 1 << 40)  # the next one is none
    assert (seen == 1).all()


def test_several_threads_lead_at_once():
    def lead():
        for _ in range(30):
            one, seen, _ = call(40)
            team.share([one], 1 << 40)
            found.append((seen == 1).all())

    found: list[bool] = []
    threads = [threading.Thread(target=lead) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    assert all(found)


def test_no_more_workers_join_than_are_wanted():
    compiled = team._compiled()
    room = np.zeros(pool.SIZE, np.int64)
    assert not compiled.join(room)
    room[board.OPEN] = (1 << 2 * board.SHIFT) | (3 << board.SHIFT)
    assert compiled.join(room)
    assert not compiled.join(room)
    room[board.OPEN] = (1 << 2 * board.SHIFT) | (3 << board.SHIFT) | 3  # all pieces are taken
    assert not compiled.join(room)
    assert not compiled.take(room)


def test_a_worker_that_looks_at_the_board_does_jobs_of_the_interpreter():
    one, *_ = call(40)
    for _ in range(50):
        team.share([one], 1 << 40)
        assert pool.run([threading.get_ident, lambda: time.sleep(2e-3)], 1)[0] is not None
