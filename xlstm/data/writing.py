"""Files written completely or not at all, even with several writers at the same time.

The bytes go to a temporary file in the same folder, under a new and unpredictable name. They are on
the disk before the temporary file replaces the file in one step. If the process is killed at any
moment, the file is the old one or the new one. If several threads or processes write one path, the
last one wins.

The new file keeps the mode of an existing file. A symbolic link at the path is replaced, and its
target stays as it is. Only regular files that the user may write to are replaced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from xlstm.arrays import checks
from xlstm.core.deferred_signals import held
from xlstm.data import reading

PATIENCE = 1.0  # seconds to wait for others that write several files into a folder
AnyPath = str | os.PathLike[str]


class _Enough(Exception):  # noqa: N818 (no error)
    """An exception that ends `check` before the file is replaced."""


def write(path: AnyPath, blob: bytes) -> None:
    """Write a file completely or not at all; raise OSError as `foreach` does."""
    with whole(path) as temporary:
        temporary.write_bytes(blob)


@contextlib.contextmanager
def whole(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary path to write to; without an error, it then replaces `path` in one step."""
    with foreach(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def foreach(*paths: AnyPath) -> Iterator[list[Path]]:
    """Yield temporary paths for files of one folder, which they replace once all are on the disk.

    They are replaced in the given order, so the file that names the others must come last. An
    interrupt does not stop the replacement, but a power cut or an error of the system may. Then the
    files before the failed one are new already, and it and the files after it are still the old
    ones.

    Other writers of several files in the folder wait. If a file cannot be written or replaced, the
    OSError names the given path.
    """
    targets = [checks.path("save", "path", path) for path in paths]
    files = [(path.parent / f".xlstm-{secrets.token_hex(8)}.tmp", path) for path in targets]
    try:
        modes = [_create(*file) for file in files]
        yield [temporary for temporary, _ in files]
        for (temporary, _), mode in zip(files, modes, strict=True):
            with open(temporary, "rb+") as file:
                # not every file system has modes
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                    os.chmod(temporary, mode)
                os.fsync(file.fileno())
        with _folder(files[0][1].parent, lock=len(files) > 1), held():
            for temporary, path in files:
                os.replace(temporary, path)
    except BaseException as error:
        for temporary, _ in files:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        named = next(
            (path for temporary, path in files if str(temporary) == str(error.filename)),
            files[0][1],
        )
        if error.errno is None:
            raise OSError(f"{named}: not saved, {error}") from error
        raise OSError(error.errno, f"not saved, {error.strerror}", str(named)) from error


def clean(folder: AnyPath) -> None:
    """Delete temporary files that killed processes have left in a folder that nobody else uses."""
    for path in Path(folder).glob(".xlstm-*.tmp"):
        path.unlink(missing_ok=True)


def append(path: AnyPath, text: str) -> None:
    """Append lines to a file or a stream such as /dev/stdout: all of them, or none if the disk is
    full.

    Other processes may append at the same time. With an empty `text` it only checks the file, and
    raises OSError if it cannot be written.
    """
    blob = text.encode()
    try:
        with open(path, "ab", buffering=0) as file:
            written = file.write(blob)
            if written < len(blob):
                file.truncate(file.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, f"not saved, {error.strerror}", str(path)) from error


def check(path: AnyPath) -> None:
    """Raise the OSError that writing to `path` would raise now, except for a full disk; leave
    nothing behind.
    """
    with contextlib.suppress(_Enough), whole(path):
        raise _Enough


def _create(temporary: Path, path: Path) -> int:
    """Make the temporary file, which must not exist even as a link, and return its final mode."""
    # None also for a link to no file
    old = os.stat(reading.regular(path)).st_mode if path.exists() else None
    if old is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected", str(path))
    with open(temporary, "xb") as file:
        if old is None:
            return stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    os.chmod(temporary, 0o600)  # nobody else may read it meanwhile
    return stat.S_IMODE(old) & 0o777


@contextlib.contextmanager
def _folder(folder: Path, lock: bool) -> Iterator[None]:
    """Put the names of a folder on the disk afterwards; with `lock`, wait a while for others and
    keep them out.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # it may not be listed, or the system cannot open folders
        yield
        return
    try:
        if lock:
            locked(handle, PATIENCE)
        yield
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def locked(handle: int, patience: float = 0.0) -> bool:
    """Lock a folder until it is closed; return False if others keep it locked for `patience`
    seconds.
    """
    end = time.monotonic() + patience
    # not every system, nor every file system, has such locks
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.002)
    return True
