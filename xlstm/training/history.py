"""The history of a run: one line of JSON for every step and every epoch, in history.jsonl."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from xlstm.data import writing

FILE = "history.jsonl"
EVERY = 1.0  # seconds between two writes


class History:
    """The lines of a run, added to its file about once a second.

    Lines that cannot be written wait for the next time.

    Parameters
    ----------
    folder : path
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lines: list[str] = []
        self._next = 0.0

    def begin(self, total: int) -> None:
        """Drop the lines of later steps than the `total`-th, which come again."""
        before = read(self.path) if self.path.exists() else []
        lines = [line for line in before if line["total"] <= total]
        if lines != before:
            writing.write(self.path, "".join(_line(entry) for entry in lines).encode())

    def add(self, **entry: Any) -> None:
        """Add a line."""
        self._lines.append(_line(entry))
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> bool:
        """Write the lines that wait; return whether that worked."""
        self._next = time.monotonic() + EVERY
        try:
            if self._lines:
                writing.append(self.path, "".join(self._lines))
        except OSError:
            return False
        self._lines = []
        return True


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a history; the last one is left out where it is cut short.

    Parameters
    ----------
    path : path

    Returns
    -------
    list of dict
        Each has "total", the number of batches so far, "epoch" and "seconds"; that of a step has "loss" and "norm",
        and that of an epoch "validation".

    Raises
    ------
    OSError, ValueError
        There is no such file, or it is not a history.
    """
    found = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last end of a line is not whole
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("total"), int):
                raise ValueError("it is no object with a total")
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not readable ({error})") from error
        found.append(entry)
    return found


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
