"""Counts of what is asked of the device."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from cupy import _capture

OPERATIONS = ("launches", "products", "to_device", "to_host")


@dataclass
class Counts:
    """The operations of a block of code."""

    launches: int = 0  # kernels, and copies and fills within the device, which take as long to ask for
    products: int = 0  # calls of cuBLAS
    to_device: int = 0  # copies
    to_host: int = 0  # copies
    waits: int = 0  # of the host for the device
    allocations: int = 0  # from the pool
    compiled: int = 0  # kernels that were compiled
    unordered: int = 0  # arrays that another stream filled, and that the current one did not wait for
    streams: set[int] = field(default_factory=set)  # addresses of those that had operations
    where: bool = False
    log: list[str] = field(default_factory=list)

    @property
    def operations(self) -> int:
        """All that the device is asked to do."""
        return sum(getattr(self, kind) for kind in OPERATIONS)

    def places(self) -> str:
        """The operations by what they are and the line that asked for them, the most frequent first."""
        return "\n".join(f"{n:5d}  {line}" for line, n in Counter(self.log).most_common())


_counting: list[Counts] = []


@contextlib.contextmanager
def counted(where: bool = False) -> Iterator[Counts]:
    counts = Counts(where=where)
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


def record(kind: str, what: str) -> None:
    """Count one operation of a kind, which is the name of a field of `Counts`."""
    _capture.asked(kind)
    for counts in _counting:
        setattr(counts, kind, getattr(counts, kind) + 1)
        if kind in OPERATIONS and _capture.now.capture is None:
            counts.streams.add(sys.modules["cupy._streams"].get_current_stream().ptr)
        if counts.where and kind not in ("allocations", "waits"):
            counts.log.append(f"{kind:9s} {what:28s} {_line()}")


def _line() -> str:
    """The innermost line of the package that asked, without the stand-in's own."""
    for frame in reversed(traceback.extract_stack()):
        if "/xlstm/" in frame.filename and "/standin/" not in frame.filename and "/arrays/fuse" not in frame.filename:
            return f"{frame.filename.rpartition('/xlstm/')[2]}:{frame.lineno}"
    return ""
