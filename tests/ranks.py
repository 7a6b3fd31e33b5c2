"""A group of threads in one process: what several ranks do, without MPI."""

import threading
from concurrent.futures import ThreadPoolExecutor


class Meeting:
    """A barrier. One of Python may turn away a thread that it has let through, if another thread
    that went through breaks it before the first one is awake.
    """

    def __init__(self, size):
        self.size = size
        self.came = self.passed = 0
        self.broken = False
        self.condition = threading.Condition()

    def wait(self):
        with self.condition:
            number = self.passed
            self.came += 1
            if self.came == self.size and not self.broken:
                self.came = 0
                self.passed += 1
                self.condition.notify_all()
            self.condition.wait_for(lambda: self.passed > number or self.broken, timeout=60)
            if self.passed == number:
                raise threading.BrokenBarrierError

    def abort(self):
        with self.condition:
            self.broken = True
            self.condition.notify_all()


class Threads:
    """One rank; `shared` is what all ranks have in common."""

    def __init__(self, rank, shared):
        self.rank = rank
        self.local_rank = rank
        self.size = len(shared.slots)
        self.machines = shared.machines
        self.shared = shared
        self.sums = self.told = 0
        self.beside = ThreadPoolExecutor(1)

    def _meet(self, mine, function):
        """Return `function` of what all ranks bring, which each of them computes for itself."""
        self.shared.slots[self.rank] = mine
        self.shared.barrier.wait()
        found = function(self.shared.slots)
        self.shared.barrier.wait()
        return found

    def sum(self, a):
        self.sums += 1
        assert a.flags.c_contiguous
        a[...] = self._meet(a, lambda all_: sum(all_[1:], all_[0] + 0))

    def tell(self, what):
        self.told += 1
        return self._meet(what, list)

    def share(self, arrays):
        for mine, first in zip(
            arrays, self._meet(arrays, lambda all_: [a.copy() for a in all_[0]]), strict=True
        ):
            mine[...] = first

    def sum_part(self, a, out):
        own = slice(self.rank * out.size, (self.rank + 1) * out.size)
        out[...] = self._meet(a, lambda all_: sum((one[own] for one in all_[1:]), all_[0][own] + 0))

    def gather_parts(self, part, out):
        parts = self._meet(part, lambda all_: [one.copy() for one in all_])
        for k, one in enumerate(parts):
            out[k * part.size : (k + 1) * part.size] = one

    def exchange(self, a, out):
        n = out.size // self.size
        own = slice(self.rank * n, (self.rank + 1) * n)
        parts = self._meet(a, lambda all_: [one[own].copy() for one in all_])
        for k, part in enumerate(parts):
            out[k * n : (k + 1) * n] = part

    def collect(self, part, out):
        parts = self._meet(part, lambda all_: [one.copy() for one in all_])
        assert (out is None) == (self.rank > 0)
        for k, one in enumerate(parts if out is not None else ()):
            out[k * part.size : (k + 1) * part.size] = one

    def later(self, function, *arrays):
        return self.beside.submit(function, *arrays).result

    def abort(self, message):
        self.shared.barrier.abort()

    def close(self):
        pass


class Shared:
    """The things that ranks have in common: a slot for each, and where they meet."""

    def __init__(self, size, machines=1):
        self.slots = [None] * size
        self.machines = machines
        self.barrier = Meeting(size)


def together(size, function, *args, machines=1):
    """Return what `function(group, *args)` returns on each rank; an error of a rank is raised after
    all have ended.

    Where several ranks raise, that of the lowest rank which is not only the end of the others is
    raised.
    """
    shared = Shared(size, machines)

    def one(rank):
        try:
            return function(Threads(rank, shared), *args)
        except BaseException:
            shared.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [future.exception() for future in futures]
    found = [error for error in errors if error is not None]
    for error in found:
        if not isinstance(error, threading.BrokenBarrierError) or all(
            isinstance(e, type(error)) for e in found
        ):
            raise error
    return [future.result() for future in futures]
