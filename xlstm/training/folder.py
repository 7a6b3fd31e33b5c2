"""The folder of a run: its checkpoints and its history.

A checkpoint is one safetensors file with all that training needs to go on: weights, the state of the optimiser and of
callbacks, random states, the position in the data, the losses so far, and a description of the run. Files are written
whole or not at all.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.backend import backend_like
from xlstm.arrays.checks import shown
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array
from xlstm.data import reading, writing
from xlstm.training import checkpoint

KIND = "training"
BEST = "best.safetensors"
NAME = re.compile(r"step-\d+\.safetensors")
Host = np.ndarray[Any, Any]
PLAIN = (str, bool, int, float, type(None))
NUMBER = checks.optional(checks.real(-math.inf, math.inf))
# What a description says of where a run stands.
RULES: dict[str, checks.Kind] = {
    **dict.fromkeys(("epoch", "epochs"), checks.count),
    **dict.fromkeys(("done", "total", "updates", "skipped", "best_epoch"), checks.whole(0, checks.COUNTED)),
    **{"ended": checks.flag, "seconds": checks.non_negative, "loss": NUMBER, "best": NUMBER},
}


class Checkpoint(NamedTuple):
    """A checkpoint that was read: its path, the tree of its values with arrays by name, and the arrays."""

    path: Path
    about: dict[str, Any]
    value: Any
    arrays: dict[str, Host]


class Folder:
    """Where a run keeps its checkpoints.

    Where a checkpoint cannot be written, since the disk is full or the folder went away, training goes on: there is one
    warning, the next checkpoint tries again, and `missing` says at the end what is not on disk.

    Parameters
    ----------
    path : path
    keep : int
        The number of checkpoints that are kept, beside that of the best epoch.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self.saved = -1  # batches done at the newest checkpoint on the disk
        self.problem = ""  # why the last one is not there
        self._owed = False  # the best one could not be written
        self._lock: int | None = None

    def begin(self) -> None:
        """Make the folder, try whether files can be written there, and keep others from training there.

        Raises
        ------
        OSError
            The folder cannot be written to.
        ValueError
            Another process trains there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        writing.check(self.path / BEST)
        with contextlib.suppress(ImportError):  # not every system has locks of this kind
            import fcntl

            self._lock = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise ValueError(f"train: another run is going on in {self.path}; choose another folder") from None
            except OSError:  # a file system without locks
                self.close()

    def close(self) -> None:
        """Let others train in the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check(self, found: Checkpoint | None) -> None:
        """Raise ValueError where the folder holds checkpoints that a run from `found` on would mix with its own."""
        old = self.checkpoints()
        if old and found is None:
            raise ValueError(
                f"train: {self.path} holds a run already ({old[-1].name}); resume=True goes on with it, "
                "and another folder begins a new one"
            )
        if old and found is not None and _total(old[-1]) > found.about["total"]:
            raise ValueError(
                f"train: {self.path} holds later checkpoints than {found.path} ({old[-1].name}); "
                "delete them, or choose another folder"
            )

    def clean(self) -> None:
        """Delete what a killed process has left half written."""
        writing.clean(self.path)

    def save(self, total: int, about: dict[str, Any], tree: Any, best: bool, judged: bool) -> None:
        """Write the checkpoint after `total` batches, and delete those that are not to be kept.

        Parameters
        ----------
        total : int
        about : dict
            All that can be read without the arrays.
        tree : dict
        best : bool
            Write it as the best one, too.
        judged : bool
            There is a best one, which is to be written again where it is missing.
        """
        value, arrays = pack(tree)
        self._owed |= best or (judged and not (self.path / BEST).exists())
        names = [f"step-{total:09}.safetensors", *([BEST] if self._owed else [])]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in names:
                checkpoint.save(self.path / name, arrays, KIND, {"about": about, "value": value})
        except OSError as error:
            if not self.problem:
                warnings.warn(
                    f"train: {error}; training goes on, and the next checkpoint tries again",
                    RuntimeWarning,
                    stacklevel=4,
                )
            self.problem = str(error)
            return
        self.saved, self.problem, self._owed = total, "", False
        for old in self.checkpoints()[: -self.keep]:
            old.unlink(missing_ok=True)

    def missing(self, total: int) -> str:
        """Return what is not on the disk of a run with `total` batches, or nothing."""
        if not self.problem:
            return ""
        newest = f"its newest checkpoint is that of step {self.saved}" if self.saved >= 0 else "no checkpoint was saved"
        return f"step {total} is not on disk ({self.problem}); {newest}"

    def checkpoints(self) -> list[Path]:
        """Return the numbered checkpoints, the newest last."""
        return sorted((path for path in self.path.glob("step-*") if NAME.fullmatch(path.name)), key=_total)

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that can be read, or None where there is none at all.

        A damaged one gives a warning and another name, and the one before it is taken.

        Raises
        ------
        ValueError, OSError
            There are checkpoints, and none of them can be read.
        """
        problem: Exception | None = None
        for path in reversed(self.checkpoints()):
            try:
                return read(path)
            except (ValueError, OSError) as error:
                warnings.warn(f"train: {error}; an older checkpoint is taken", RuntimeWarning, stacklevel=4)
                problem = error
                if self._lock is not None and isinstance(error, ValueError):  # it is not in the way of later ones
                    with contextlib.suppress(OSError):
                        path.rename(path.with_suffix(".damaged"))
        if problem is not None:
            raise problem
        return None


@reading.brief()
def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : path

    Returns
    -------
    Checkpoint

    Raises
    ------
    OSError, ValueError
        There is no such file, or it is no checkpoint of training.
    """
    arrays, config = checkpoint.load(path, KIND)
    about, value = config.get("about"), config.get("value")
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
        raise ValueError(f"{path}: not a sound checkpoint, epoch {epoch}, step {done} does not go with the rest of it")
    return Checkpoint(Path(path), about, value, arrays)


def find(where: str | os.PathLike[str]) -> Checkpoint:
    """Return the checkpoint to resume from: a file, or the newest one of a folder.

    Raises
    ------
    OSError, ValueError
        There is none, or none that can be read.
    """
    path = Path(where)
    if not path.is_dir():
        return read(path)
    found = Folder(path, 1).newest()
    if found is None:
        raise FileNotFoundError(f"{path}: holds no checkpoint (step-*.safetensors) to resume from")
    return found


def _total(path: Path) -> int:
    """Return the number in the name of a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def pack(tree: Any) -> tuple[Any, dict[str, Host]]:
    """Return a tree as a JSON value, and its arrays on the host by name.

    Parameters
    ----------
    tree : dict, list, tuple, str, number, None, or array
        Dicts have text as keys. An array that is there several times is kept once.

    Returns
    -------
    value : JSON value
        A container is {"dict": ...}, {"list": ...} or {"tuple": ...}, an array {"array": name, "dtype": dtype}, and a
        number that is not finite {"float": "inf"}.
    arrays : dict of str to NumPy array

    Raises
    ------
    TypeError
        The tree holds something else.
    """
    arrays: dict[str, Host] = {}
    names: dict[int, str] = {}

    def packed(value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}  # which JSON does not have
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: packed(part, f"{path}.{key}") for key, part in value.items()}}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [packed(part, f"{path}.{k}") for k, part in enumerate(value)]}
        if not hasattr(value, "shape") or (isinstance(value, np.ndarray) and value.dtype.kind not in "fiub"):
            raise TypeError(
                f"{path[1:]} is {shown(value)}, expected numbers, text, arrays of numbers, or containers of them"
            )
        name = names.setdefault(id(value), path[1:])
        if name not in arrays:
            arrays[name] = np.ascontiguousarray(to_numpy(value)).reshape(value.shape)
        return {"array": name, "dtype": _floating(value)}

    return packed(tree, ""), arrays


def unpack(value: Any, arrays: dict[str, Host], put: Callable[[Host, str], Array]) -> Any:
    """Return the tree that `pack` was given.

    Parameters
    ----------
    value : JSON value
    arrays : dict of str to NumPy array
    put : callable
        `put(array, dtype)` moves an array of floating-point numbers to where it belongs; others stay on the host.

    Returns
    -------
    dict, list, tuple, str, number, None, or array

    Raises
    ------
    ValueError
        The value is none that `pack` made, or an array is missing.
    """
    placed: dict[str, Array] = {}

    def unpacked(value: Any) -> Any:
        match value:
            case {"dict": dict() as parts}:
                return {key: unpacked(part) for key, part in parts.items()}
            case {"list": list() as parts}:
                return [unpacked(part) for part in parts]
            case {"tuple": list() as parts}:
                return tuple(unpacked(part) for part in parts)
            case {"float": "inf" | "-inf" | "nan" as number}:
                return float(number)
            case {"array": str() as name, "dtype": str() as dtype} if name in arrays:
                if name not in placed:
                    placed[name] = put(arrays[name], dtype) if dtype else arrays[name]
                return placed[name]
            case str() | bool() | int() | float() | None:
                return value
        raise ValueError(f"{shown(value)} is not one of the values that a checkpoint holds")

    return unpacked(value)


def _floating(array: Array) -> str:
    """Return the dtype of an array of floating-point numbers, or nothing for one that stays on the host."""
    on_host = isinstance(array, np.ndarray) and array.dtype.kind != "f"
    return "" if on_host else backend_like(array).dtype
