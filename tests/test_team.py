"""Calls of compiled functions that several threads share."""

import collections
import time
from types import FunctionType

import numpy as np
import pytest

pytest.importorskip("numba")

import numba

from xlstm.arrays import cores
from xlstm.engines.numba import shared_memory, team, work_queue, workers


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
def wait_for_the_other(counts):
    """Note in the first call of two whether the other one begins before this one ends."""
    if shared_memory.count_up(counts, 0):
        return
    for _ in range(2_000_000):
        if shared_memory.count_of(counts, 0) == 2:
            counts[1] = 1
            break
        shared_memory.let_others_run()


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
        team.together(wait_for_the_other, [(counts,)] * 2)
        if counts[1]:
            return
    pytest.fail("no worker took a call")


def test_a_worker_that_falls_asleep_just_before_a_job_comes_is_woken(monkeypatch):
    employ = workers.employ

    def slowly(*given):
        found = employ(*given)
        time.sleep(0.1)  # a worker that waits sleeps after a millisecond
        return found

    monkeypatch.setattr(workers, "employ", slowly)
    for _ in range(3):
        counts = np.zeros(2, np.int64)
        team.together(wait_for_the_other, [(counts,)] * 2)
        assert counts[1], "no worker took a call"


@pytest.mark.parametrize("cores_usable", [1, 2])
def test_a_call_without_memory_is_an_error(monkeypatch, cores_usable):
    monkeypatch.setattr(cores, "usable", lambda: cores_usable)
    with pytest.raises(MemoryError):
        team.share([(9, fail, (np.zeros(9, np.int64),), 1)], 1 << 40)
    one, seen, _ = call(9)
    team.share([one], 1 << 40)  # the next one is none
    assert (seen == 1).all()


def test_no_more_workers_join_than_are_wanted():
    compiled = team._compiled()
    room = np.zeros(workers.SIZE, np.int64)
    assert not compiled.join(room)
    room[work_queue.OPEN] = (1 << 2 * work_queue.SHIFT) | (3 << work_queue.SHIFT)
    assert compiled.join(room)
    assert not compiled.join(room)
    room[work_queue.OPEN] = (1 << 2 * work_queue.SHIFT) | (3 << work_queue.SHIFT) | 3  # all pieces are taken
    assert not compiled.join(room)
    assert not compiled.take(room)


class StopError(Exception):
    """A function is where a test stops it."""


def advance(name, shared, done, *arguments):
    """Do the next operation of a function of `work_queue`, which runs uncompiled; those in `done` were done before.

    Returns None, or where the function cannot do one: "sleeps", "works" on a piece, or "returned".
    """
    again = iter(done)

    def operation(act):
        def call(*given):
            for result in again:
                return result
            done.append(act(*given))
            raise StopError

        return call

    def set_to(_, at, value):
        shared[at] = value
        return 0

    def swap(_, at, old, new):
        fits = shared[at] == old
        shared[at] = new if fits else shared[at]
        return fits

    def acquire(lock):
        if not shared["free"]:
            raise StopError("sleeps")
        shared["free"] -= 1
        return 0

    def work(*_):
        raise StopError("works")

    acts = {
        "count_of": lambda _, at: shared[at],
        "count_up": lambda _, at: set_to(_, at, shared[at] + 1),
        "put": set_to,
        "swap": swap,
        "acquire": acquire,
        "release": lambda lock: set_to(None, "free", shared["free"] + 1),
    }
    names = vars(work_queue) | {key: operation(act) for key, act in acts.items()}
    names |= {"TURNS": 1, "let_others_run": lambda: None, "take" if name == "help_others" else "part": work}
    for own in ("wake", "wanted", "join", "lead", "take", "help_others"):
        if names[own] is not work:
            names[own] = FunctionType(getattr(work_queue, own).__code__, names)
    try:
        names[name](collections.defaultdict(int), *arguments)
    except StopError as stop:
        return str(stop) or None
    return "returned"


def orders(calls, shared, done):
    """Yield how two threads end, in every order of their operations."""
    ends = []
    for k, (name, *arguments) in enumerate(calls):
        now, own = shared.copy(), [list(one) for one in done]
        end = advance(name, now, own[k], *arguments)
        ends.append(end)
        if end is None:
            yield from orders(calls, now, own)
    if None not in ends:
        yield tuple(ends)


def test_no_order_of_a_leader_and_a_worker_loses_a_call():
    """Whatever comes first, a worker that is about to sleep ends up with the job."""
    leader = ("lead", 0, 1, False, 1, 9)
    worker = ("help_others", work_queue.SLEEPERS, 7)  # at a lock with the address 7
    found = collections.Counter(orders([leader, worker], collections.defaultdict(int), [[], []]))
    assert found.keys() == {("works", "works")}
    assert found.total() > 100
