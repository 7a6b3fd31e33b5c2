"""Share work among threads of compiled code, as plain Python that Numba compiles.

No thread needs the interpreter for it. The leading thread writes a job to the queue, an array of
integers that all threads see. It takes pieces of the job one by one, and so do the workers that
look at the queue meanwhile. Only the leader waits, and only for pieces that others have taken.
`team.py` binds the names below.
"""

# Numba finds the types of these functions.
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

from typing import Any

# Places of the queue. Places that several threads write lie in different cache lines.
LED = 0  # 1 while a thread leads
# three counts in one number: workers that may still help, pieces, and pieces that are taken
OPEN = 8
DONE = 16  # pieces that are done
JOB = 24
FAILED = 25  # the address of the pieces; how many of them failed
SHIFT = 24
MASK = (1 << 24) - 1
TURNS = 2000  # how often a worker looks for work before it sleeps, some 0.5 ms


stand_in: Any = None  # for functions of `llvm.py`
count_up = count_of = put = swap = let_others_run = stand_in
carray = at_integer = call_part = stand_in


def lead(queue, job, helpers, pieces):
    """Do all pieces of a job, together with the workers that look at the queue, and return how many
    failed.

    Row k of the job (pieces, 4) has the address of a function, the address of its arguments, and
    the first and the last item of its work.
    """
    failed = 0
    if not swap(queue, LED, 0, 1):  # another thread leads
        for k in range(pieces):
            failed += do(job, k)
        return failed
    queue[JOB] = job
    queue[FAILED] = 0
    queue[DONE] = 0
    put(queue, OPEN, (helpers << 2 * SHIFT) | (pieces << SHIFT))
    while take(queue):
        pass
    while count_of(queue, DONE) < pieces:
        let_others_run()
    failed = int(queue[FAILED])
    put(queue, LED, 0)
    return failed


def join(queue):
    """Try to join the current job, and return whether one more worker may help."""
    state = count_of(queue, OPEN)
    if state >> 2 * SHIFT == 0 or state & MASK >= (state >> SHIFT) & MASK:
        return False
    return swap(queue, OPEN, state, state - (1 << 2 * SHIFT))


def take(queue):
    """Do a piece that no thread has taken, and return whether there may be more."""
    state = count_of(queue, OPEN)
    pieces = (state >> SHIFT) & MASK
    k = state & MASK
    if k >= pieces:
        return False
    if swap(queue, OPEN, state, state + 1):
        if do(queue[JOB], k):
            count_up(queue, FAILED)
        count_up(queue, DONE)
    return True


def do(job, k):
    """Do a piece of a job, and return 1 if it failed."""
    pieces = carray(at_integer(job), (k + 1, 4))
    return call_part(pieces[k, 0], pieces[k, 1], pieces[k, 2], pieces[k, 3])


def help_others(queue):
    """Help with jobs until there has been none for a while."""
    asked = 0
    while asked < TURNS:
        asked += 1
        if join(queue):
            while take(queue):
                pass
            asked = 0
        let_others_run()
