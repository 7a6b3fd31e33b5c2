"""The history of a run: one line of JSON for every step and every epoch, in history.jsonl."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from xlstm.arrays import checks
from xlstm.data import reading, writing

NUMBER = checks.optional(checks.any_number)
RULES = {"total": checks.whole(0, checks.COUNTED), "epoch": checks.optional(checks.whole(0, checks.COUNTED))}
RULES |= dict.fromkeys(("loss", "norm", "validation", "seconds"), NUMBER)
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
        self.problem = ""  # why lines are not on the disk

    def begin(self, total: int, validations: int) -> None:
        """Drop the lines of steps after the `total`-th and of later validations, which come again.

        So does what a power cut may have left of a line; a checkpoint is all that a run needs to go on.
        """
        if not reading.regular(self.path).exists():
            return
        kept, judged, blob = [], 0, self.path.read_bytes()
        for line in blob.split(b"\n"):
            with contextlib.suppress(ValueError):
                entry = _entry(line)
                judged += "validation" in entry
                if entry["total"] <= total and ("validation" not in entry or judged <= validations):
                    kept.append(entry)
        text = "".join(_line(entry) for entry in kept).encode()
        if text != blob:
            writing.write(self.path, text)

    def add(self, **entry: Any) -> None:
        """Add a line."""
        self._lines.append(_line(entry))
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait; `problem` says why where that does not work."""
        self._next = time.monotonic() + EVERY
        try:
            if self._lines:
                writing.append(self.path, "".join(self._lines))
        except OSError as error:
            self.problem = str(error)
        else:
            self._lines, self.problem = [], ""


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
    lines = reading.regular(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last end of a line is not whole
        try:
            found.append(_entry(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is not readable ({error})") from error
    return found


def _entry(line: bytes) -> dict[str, Any]:
    """Return what a line says; ValueError if it is none of a history. NaN, which JSON does not have, comes as None."""
    entry = reading.from_json("entry", line, unlimited=True)
    if not isinstance(entry, dict):
        raise ValueError(f"it is {checks.shown(entry)}, expected an object with a total")
    try:
        for name, rule in RULES.items():
            rule("entry", name, entry.get(name))
    except TypeError as error:
        raise ValueError(str(error)) from error
    return entry


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
