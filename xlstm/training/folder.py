"""The folder of a run: checkpoints, and a history with a line of JSON for every step and epoch.

A checkpoint is one safetensors file with everything that training needs to continue: weights, the
state of the optimiser and of callbacks, random states, the position in the data, the losses so far,
and a description of the run. A file is written completely or not at all.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm import checkpoint
from xlstm.arrays import checks
from xlstm.data import reading, writing

KIND = "training"
BEST = "best.safetensors"
HISTORY = "history.jsonl"
NAME = re.compile(r"step-\d+\.safetensors")
EVERY = 1.0  # seconds between two writes of the history
COUNT = checks.whole(0, checks.COUNTED)
PLACE = ("epoch", "done", "ended")  # the fields in which checkpoints of a run differ
# The numbers in a checkpoint's description: the position of a run, and the state of a step.
RULES: dict[str, checks.Kind] = {
    "epoch": checks.count,
    "ended": checks.flag,
    "scale": checks.above_0,
    **dict.fromkeys(
        ("done", "total", "updates", "skipped", "best_epoch", "good", "batches"), COUNT
    ),
    **dict.fromkeys(("seconds", "weight"), checks.non_negative),
}
# The numbers in a line of the history.
ENTRY: dict[str, checks.Kind] = {
    "total": COUNT,
    "epoch": checks.optional(COUNT),
    **dict.fromkeys(("loss", "norm", "validation", "seconds"), checks.optional(checks.any_number)),
}


class Checkpoint(NamedTuple):
    """The content of a checkpoint: path, description, tree of values, and arrays by name."""

    path: Path
    about: dict[str, Any]
    value: Any
    arrays: dict[str, np.ndarray[Any, Any]]


class Folder:
    """The folder in which a run keeps its checkpoints and its history.

    If a file cannot be written, because the disk is full or the folder is gone, training continues.
    There is one warning, and the next checkpoint tries again. At the end `problem` and
    `history_problem` say which files are not on disk.

    Parameters
    ----------
    path : path, or None for a run that writes nothing
    keep : int
        The number of checkpoints to keep, besides the best epoch's checkpoint.
    """

    def __init__(self, path: Path | None, keep: int) -> None:
        self.path = path
        self.keep = keep
        self.saved: dict[str, Any] = {}  # the description of the newest checkpoint on the disk
        self.problem = self.history_problem = ""  # which files are not on the disk, and why
        self._lock: int | None = None
        self._lines: list[str] = []  # of the history, written about once a second
        self._next = 0.0

    def begin(self) -> None:
        """Make the folder, check that files can be written there, and lock it against other runs.

        It raises OSError if the folder cannot be written to, and ValueError if another process
        trains there.
        """
        if self.path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        writing.check(self.path / BEST)
        with contextlib.suppress(OSError):  # some systems cannot open folders
            self._lock = os.open(self.path, os.O_RDONLY)
        if self._lock is not None and not writing.locked(self._lock):
            self.close()
            raise ValueError(
                f"train: another run is going on in {self.path}; choose another folder"
            )

    def close(self) -> None:
        """Unlock the folder for other runs."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check(self, origin: Checkpoint | None) -> None:
        """Raise ValueError unless `origin` is the newest checkpoint in the folder, or there is
        none.
        """
        for path in self.checkpoints()[-1:]:
            if origin is None or origin.path != path:
                raise ValueError(
                    f"train: {self.path} holds a run already ({path.name}); resume=True goes on"
                    " with it where it can be read, and another folder begins a new one"
                )

    def save(self, about: dict[str, Any], tree: Any, validated: bool) -> None:
        """Write a checkpoint and delete old ones, unless the newest has the same position already.

        Parameters
        ----------
        about : dict
            The description, which can be read without the arrays.
        tree : dict
        validated : bool
            Whether there is a best epoch; its checkpoint is also written if it is not on disk.
        """
        if self.path is None or all(self.saved.get(name) == about[name] for name in PLACE):
            return
        self.flush()
        value, arrays = checkpoint.pack(tree)
        best = self.path / BEST
        names = [self.path / f"step-{about['total']:09}.safetensors"]
        if validated and (self.saved.get("best_epoch") != about["best_epoch"] or not best.exists()):
            names.append(best)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in names:
                checkpoint.save(name, arrays, KIND, {"about": about, "value": value})
        except OSError as error:
            if not self.problem:
                text = f"train: {error}; training goes on, and the next checkpoint tries again"
                warnings.warn(text, RuntimeWarning, stacklevel=4)
            newest = (
                f"its newest checkpoint is that of step {self.saved['total']}"
                if self.saved
                else "none was saved"
            )
            self.problem = f"step {about['total']} is not on disk ({error}); {newest}"
            return
        self.saved = about
        self.problem = ""
        for old in self.checkpoints()[: -self.keep]:
            old.unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """Return the paths of the numbered checkpoints, the newest last."""
        names = () if self.path is None else self.path.glob("step-*")
        return sorted(
            (path for path in names if NAME.fullmatch(path.name)),
            key=lambda path: int(path.stem.removeprefix("step-")),
        )

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that can be read, or None if the folder has none at all.

        A damaged checkpoint is renamed with a warning, and the one before it is tried. If none can
        be read, the error of the oldest is raised.
        """
        paths = self.checkpoints()
        while paths:
            path = paths.pop()
            try:
                return read(path)
            except (ValueError, OSError) as error:
                if not paths:
                    raise
                warnings.warn(
                    f"train: {error}; an older checkpoint is taken", RuntimeWarning, stacklevel=4
                )
                # A renamed checkpoint does not block the names of later ones.
                if self._lock is not None and isinstance(error, ValueError):
                    with contextlib.suppress(OSError):
                        path.rename(path.with_suffix(".damaged"))
        return None

    def rewind(self, total: int, epoch: int) -> None:
        """Drop lines of the history after step number `total`, and validations from `epoch` on: the
        run repeats them.

        Lines are in the order of their steps, so bisection finds the first one to drop, and few
        lines of a long history are read. Lines at the end that a killed process or a power cut left
        half written are dropped, too. A run needs only its checkpoint.
        """
        if self.path is None:
            return
        writing.clean(self.path)
        path = reading.regular(self.path / HISTORY)
        size = path.stat().st_size if path.exists() else 0
        if size == 0:
            return
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            kept = 0  # bytes of lines that are kept
            dropped = text.rfind(b"\n") + 1  # where lines to drop begin
            while kept < dropped:
                middle = (kept + dropped) // 2
                begin = max(kept, text.rfind(b"\n", kept, middle) + 1)
                end = text.find(b"\n", middle) + 1
                if _precedes(text[begin:end], total, epoch):
                    kept = end
                else:
                    dropped = begin
        if kept < size:
            os.truncate(path, kept)

    def log(self, **entry: Any) -> None:
        """Add a line to the history; NaN and infinity become null, since JSON has neither."""
        if self.path is None:
            return
        plain = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in entry.items()
        }
        self._lines.append(json.dumps(plain) + "\n")
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Write the waiting lines of the history; if that fails, keep them for the next attempt."""
        self._next = time.monotonic() + EVERY
        try:
            if self._lines and self.path is not None:
                writing.append(self.path / HISTORY, "".join(self._lines))
        except OSError as error:
            self.history_problem = f"the history is not on disk ({error})"
        else:
            self._lines = []
            self.history_problem = ""


@reading.brief()
def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint; raise OSError or ValueError if there is none or it is damaged."""
    arrays, config = checkpoint.load(path, KIND)
    about = config.get("about")
    value = config.get("value")
    if not isinstance(about, dict) or not isinstance(value, dict):
        raise ValueError(f"{path}: not a sound checkpoint, it has no description or no values")
    try:
        for name, rule in RULES.items():
            rule("its description", name, about.get(name))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a sound checkpoint ({error})") from error
    epoch, done, total = (about[name] for name in ("epoch", "done", "total"))
    most = max(about["updates"], about["skipped"], epoch - 1 + done)  # an epoch has a batch or more
    if most > total or about["best_epoch"] > epoch or (about["ended"] and done):
        raise ValueError(
            f"{path}: not a sound checkpoint, epoch {epoch}, step {done} does not go with the rest"
            " of it"
        )
    return Checkpoint(Path(path), about, value, arrays)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a history, without a last line that is cut short.

    Parameters
    ----------
    path : path

    Returns
    -------
    list of dict
        Each line has "total", the number of batches so far, "epoch" and "seconds". The line of a
        step also has "loss" and "norm". The line of an epoch also has "validation" and the metrics
        of `train`, as "metrics.NAME".

    Raises
    ------
    OSError, ValueError
        The file does not exist, or it is not a history.
    """
    entries = []
    lines = reading.regular(path).read_bytes().split(b"\n")
    # Text after the last line break is incomplete.
    for number, line in enumerate(lines[:-1], 1):
        try:
            entries.append(_entry(line))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {number} is not readable ({error})") from error
    return entries


def _precedes(line: bytes, total: int, epoch: int) -> bool:
    """Return whether a line of a history is no later than step `total`, or a validation before
    `epoch`; a line that is not readable is later.
    """
    with contextlib.suppress(KeyError, TypeError, ValueError):
        entry = _entry(line)
        return entry["total"] <= total and ("validation" not in entry or entry["epoch"] < epoch)
    return False


def _entry(line: bytes) -> dict[str, Any]:
    """Return the entry of a line of a history; raise ValueError or TypeError if it is not one. NaN
    is read as None.
    """
    entry = reading.from_json("entry", line, unlimited=True)
    if not isinstance(entry, dict):
        raise ValueError(f"it is {checks.shown(entry)}, expected an object with a total")
    for name, rule in ENTRY.items():
        rule("entry", name, entry.get(name))
    return entry
