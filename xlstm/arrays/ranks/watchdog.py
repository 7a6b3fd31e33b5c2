"""A thread beside each rank, which ends the job if a rank waits for another rank in vain.

A rank that leaves or fails notifies all others. A rank that has waited too long asks the others how
far they have come, and their threads answer. The job then ends with the names of the ranks that did
not arrive. After only one second, a waiting rank asks its two neighbours: if one of these is at
another operation, both would wait for ever.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks

VARIABLE = "XLSTM_GROUP_TIMEOUT"
SECONDS = "600"  # for a rank to wait, if the variable is not set
TICK = 0.1  # seconds between two looks at the clocks
BESIDE = 1.0  # seconds before a waiting rank asks its two neighbours
ANSWER = 3.0  # seconds for others to answer
TURN = 0.3  # seconds in which ranks that fail together agree on the rank that reports
SILENT = 3.0  # seconds that the others wait for its report


class Clock:
    """Counts of the operations that ranks do together on one engine, in the same order.

    Attributes
    ----------
    counts : array (2,)
        The number of operations that this rank has begun, and the number that have ended.
    """

    def __init__(self, kind: str = "") -> None:
        self.counts = np.zeros(2, np.int64)
        self._kind = kind
        # one object, so that the watch never sees half of it
        self._last: tuple[int, str] | None = None

    @property
    def begun(self) -> tuple[int, str]:
        """The number and the kind of the last operation that this rank began."""
        return self._last or (int(self.counts[0]), self._kind)

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count a `with` block as one operation."""
        self._last = int(self.counts[0]) + 1, kind
        self.counts[0] += 1
        try:
            yield
        finally:
            self.counts[1] += 1


class Notice(NamedTuple):
    """The state of a rank, sent to another rank.

    It has the number of operations begun on each clock, and the kind of the last one.
    """

    rank: int
    how: str  # "goes on", "leaves" or "fails"
    asks: bool
    begun: list[tuple[int, str]]


def limit() -> float:
    """Return how many seconds a rank waits for others: XLSTM_GROUP_TIMEOUT, or infinity for 0."""
    text = os.environ.get(VARIABLE) or SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(
            f"{VARIABLE} is {checks.shown(text)}, expected seconds from 0 up; 0 means no limit"
        )
    return seconds or math.inf


class Watch:
    """The thread of a rank, with its knowledge of the others.

    Parameters
    ----------
    comm : communicator of mpi4py
        A communicator that nobody else uses.
    clocks : list of Clock
    fail : callable
        `fail(ranks, why)` ends the job because these ranks failed.

    Attributes
    ----------
    how : str
        The state of this rank: it "goes on", "leaves" or "fails".
    check : callable
        Raises an error that an engine has found since the last call.
    """

    def __init__(
        self, comm: Any, clocks: Sequence[Clock], fail: Callable[[list[int], str], None]
    ) -> None:
        self._comm = comm
        self._clocks = clocks
        self._fail = fail
        self.check: Callable[[], None] = lambda: None
        self._others = [rank for rank in range(comm.size) if rank != comm.rank]
        self._beside = sorted({(comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size})
        self._limit = limit()
        self._parent = os.getppid()
        self.how = "goes on"
        self._notices: dict[int, Notice] = {}  # the last notice of each other rank
        self._sent: list[Any] = []  # requests whose memory MPI needs until they are sent
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="xlstm.watch", daemon=True)
        self._thread.start()

    def notify(self, how: str) -> None:
        """Tell all other ranks the state of this one."""
        self.how = how
        self._send(self._others)

    def speaks(self) -> bool:
        """Tell whether this rank reports the end of the job, if several notice it at once."""
        if self._failing():
            return False
        self.notify("fails")
        time.sleep(TURN)
        return all(rank > self._comm.rank for rank in self._failing())

    def leave(self) -> Callable[[], None]:
        """Return a function that waits until all ranks leave, and stops the thread."""
        barrier = self._comm.Ibarrier()

        def wait() -> None:
            while not barrier.Test():
                time.sleep(TICK / 10)  # some rounds of messages
            self._left.set()
            self._thread.join()

        return wait

    def _send(self, ranks: list[int], asks: bool = False) -> None:
        notice = Notice(self._comm.rank, self.how, asks, [clock.begun for clock in self._clocks])
        self._sent += [self._comm.isend(notice, rank) for rank in ranks]

    def _receive(self) -> None:
        with self._lock:  # the thread and the end of the program may both reach this
            while (message := self._comm.improbe()) is not None:
                notice = message.recv()
                self._notices[notice.rank] = notice
                if notice.asks:
                    self._send([notice.rank])

    def _failing(self) -> list[int]:
        """Return the other ranks that fail."""
        self._receive()
        return [rank for rank, notice in self._notices.items() if notice.how == "fails"]

    def _run(self) -> None:
        """Look at the clocks until all ranks leave."""
        place = None
        since = 0.0
        asked = 0
        while not self._left.wait(TICK):
            if os.getppid() != self._parent:  # the launcher is gone, which would end this rank
                os._exit(1)
            self._receive()
            try:
                self.check()
            except Exception as error:
                self._fail([self._comm.rank], str(error))
            waiting = [k for k, c in enumerate(self._clocks) if c.counts[0] > c.counts[1]]
            now = (waiting[0], int(self._clocks[waiting[0]].counts[0])) if waiting else None
            if now != place:
                place = now
                since = time.monotonic()
                asked = 0
            elif place is not None:
                asked = self._judge(*place, time.monotonic() - since, asked)

    def _judge(self, k: int, begun: int, waited: float, asked: int) -> int:
        """End the job if others do not come to the operation that this rank waits for.

        Return how often this rank has asked.
        """
        last, kind = self._clocks[k].begun
        if last != begun:  # the operation has just ended
            return asked
        notices = self._notices
        came = []
        for rank, notice in notices.items():
            number, other = notice.begun[k]
            if number == begun and other != kind:
                self._fail(
                    sorted((rank, self._comm.rank)),
                    f"rank {rank} came to {other} {begun} and rank {self._comm.rank} to {kind}"
                    f" {begun}, so neither can end",
                )
            elif number >= begun:
                came.append(rank)
        late = [rank for rank in self._others if rank not in came]
        left = [rank for rank in late if rank in notices and notices[rank].how == "leaves"]
        if left:
            self._fail(left, f"left before {kind} {begun}")
        if waited >= self._limit + ANSWER:
            within = f"within {self._limit:g} s ({VARIABLE})"
            if late:
                self._fail(late, f"did not come to {kind} {begun} {within}")
            self._fail(
                [self._comm.rank], f"all ranks came to {kind} {begun}, which did not end {within}"
            )
        due = (waited >= BESIDE) + (waited >= self._limit)
        if due > asked:
            self._send(self._beside if due == 1 else self._others, asks=True)
        return due
