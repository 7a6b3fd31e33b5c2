"""Source lines of formulas: the variable that a line sets, and the equation numbers beside it."""

from __future__ import annotations

import linecache
import re
import sys
from pathlib import Path
from types import FrameType

NAME = re.compile(r"\s*(\w+) [-+*/]?= ")
NUMBERS = re.compile(r"# *(\(\d+\)(?:[ ,]*\(\d+\))*)")
# a line such as `i, f = z[0, ...], z[1, ...]`
PARTS = re.compile(r"\s*(\w+(?:, \w+)*) = \w+\[[^]]*\](?:, \w+\[[^]]*\])*\s*(?:#.*)?$")
# Functions that formulas call; the name that the formula gives to the result says more.
BELOW = (
    "xlstm.arrays.",
    "xlstm.cells.activations",
    "xlstm.interop.c.arrays",
    "xlstm.interop.c.source_lines",
    "numpy",
)

Line = tuple[str, int]


def of_formula() -> tuple[str, Line, str]:
    """Return where the running formula is: variable, source line, and comment.

    The variable is the one that the line sets, or "". The comment has the file and the equation
    numbers, such as "lstm (3)".
    """
    line, where = _line()
    name = NAME.match(line)
    numbers = NUMBERS.search(line)
    comment = f"{Path(where[0]).stem} {numbers[1]}" if numbers else ""
    return name[1] if name else "", where, comment


def of_part(k: int) -> str:
    """Return the name that the running line gives to part k of an array, or "" if it gives none."""
    match = PARTS.match(_line()[0])
    names = match[1].split(", ") if match else []
    return names[k % len(names)] if names else ""


def _line() -> tuple[str, Line]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(BELOW):
        frame = frame.f_back
    if frame is None:
        return "", ("", 0)
    where = frame.f_code.co_filename, frame.f_lineno
    return linecache.getline(*where), where
