"""How threads of compiled code share work, as plain Python that Numba compiles: nobody needs the interpreter for it.

A thread that leads writes what is to be done to the queue, an array of integers that all threads see, and takes pieces
of it one by one, as do the workers that look at the queue meanwhile. Nobody waits for a worker that takes nothing, but
the leader for the pieces that others have taken. `team.py` binds the names below.

A worker that finds nothing for a while sleeps at a lock of its own. No order of the two loses the call that wakes it:
the worker writes the lock to its place and then looks at the queue again; the leader writes the job to the queue and
then looks at the places. These four are sequentially consistent, so at least one of the two sees what the other wrote.
Whoever clears the place, the leader or the worker itself, releases the lock, and only the first one can clear it: each
time that a worker takes its lock, the lock is released once.
"""

from __future__ import annotations

from typing import Any

from xlstm.engines.numba import workers

# Places of the queue. Those that several threads write lie in different cache lines.
LED = 0  # 1 while a thread leads
OPEN = 8  # how many more workers may help, how many pieces there are, and how many are taken, in one number
DONE = 16  # pieces that are done
JOB, COUNT, APART, FAILED = 24, 25, 26, 27  # address and number of calls; each is a piece; pieces that failed
SLEPT = 32  # how often workers fell asleep, for measurements
SLEEPERS = workers.SLEEPERS  # from here on a place for each worker: its lock while it sleeps, else 0
SHIFT, MASK = 24, (1 << 24) - 1
TURNS = 2000  # times that a worker looks for work before it sleeps, some 0.5 ms


stand_in: Any = None  # for functions of `shared_memory.py` and `vectors.py`
count_up = count_of = put = swap = let_others_run = acquire = release = stand_in
carray = integers = call_part = stand_in


def lead(queue: Any, job: int, count: int, apart: bool, helpers: int, pieces: int) -> int:
    """Do all calls of a job with the workers that look at the queue, and return how many pieces failed.

    Row k of the job (count, 4) has the address of a function, the address of its arguments, the number n of what it
    does, and how many of these stay together. Piece k is part k of every call, or, if `apart`, call k.
    """
    if not swap(queue, LED, 0, 1):  # another thread leads
        failed = 0
        for k in range(pieces):
            failed += part(job, count, apart, k, pieces)
        return failed
    queue[JOB], queue[COUNT], queue[APART], queue[FAILED], queue[DONE] = job, count, apart, 0, 0
    put(queue, OPEN, (helpers << 2 * SHIFT) | (pieces << SHIFT))
    wake(queue, SLEEPERS, helpers)
    while take(queue):
        pass
    while count_of(queue, DONE) < pieces:
        let_others_run()
    failed = int(queue[FAILED])
    put(queue, LED, 0)
    return failed


def wake(queue: Any, place: int, count: int) -> None:
    """Wake so many workers from a place on, those of them that sleep."""
    for k in range(place, place + count):
        lock = count_of(queue, k)
        if lock and swap(queue, k, lock, 0):
            release(lock)


def wanted(state: int) -> bool:
    """Whether one more worker may help with a job of which pieces are left."""
    return state >> 2 * SHIFT > 0 and state & MASK < (state >> SHIFT) & MASK


def join(queue: Any) -> bool:
    """Try to join the current job."""
    state = count_of(queue, OPEN)
    return wanted(state) and bool(swap(queue, OPEN, state, state - (1 << 2 * SHIFT)))


def take(queue: Any) -> bool:
    """Do a piece that nobody has taken, and return whether there may be more."""
    state = count_of(queue, OPEN)
    pieces, k = (state >> SHIFT) & MASK, state & MASK
    if k >= pieces:
        return False
    if swap(queue, OPEN, state, state + 1):
        if part(queue[JOB], queue[COUNT], queue[APART] != 0, k, pieces):
            count_up(queue, FAILED)
        count_up(queue, DONE)
    return True


def part(job: int, count: int, apart: bool, k: int, pieces: int) -> int:
    """Do a piece of a job, and return 1 where it failed."""
    calls, failed = carray(integers(job), (count, 4)), 0
    for c in range(k if apart else 0, k + 1 if apart else count):
        n, unit = calls[c, 2], calls[c, 3]
        units = (n + unit - 1) // unit
        first, last = units * k // pieces * unit, min(n, units * (k + 1) // pieces * unit)
        if apart:
            first, last = 0, n
        if first < last:
            failed |= call_part(calls[c, 0], calls[c, 1], first, last)
    return failed


def help_others(queue: Any, place: int, lock: int) -> None:
    """Help with jobs until the process ends; sleep at a lock, which is held, while there are none. With 0, return."""
    asked = 0
    while lock:
        if join(queue):
            while take(queue):
                pass
            asked = 0
        elif asked < TURNS:
            asked += 1
            let_others_run()
        else:
            count_up(queue, SLEPT)
            put(queue, place, lock)
            if wanted(count_of(queue, OPEN)):
                wake(queue, place, 1)
            acquire(lock)
            asked = 0
