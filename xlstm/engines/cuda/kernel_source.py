"""The source of a kernel, and the templates of this folder that it is made from."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple


class KernelSource(NamedTuple):
    """The source of a kernel, ready to be compiled."""

    name: str
    text: str
    # its arguments after those of the schedule, in order; the cell's numbers come last
    arrays: tuple[str, ...] = ()
    shared: int = 0  # bytes of dynamic shared memory
    blocks: int = 0  # blocks that wait for one another
    cluster: bool = False  # whether these are a cluster


@functools.cache
def template(name: str) -> str:
    """Return the text of a file of this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
