"""Files are written whole or not at all, whoever else writes them at the same time.

The bytes go to a temporary file in the same folder, under a name that nobody can foresee and that
did not exist, and are on the disk before it takes the place of the file in one step. Killed at any
moment, the file is the old one or the new one; where several threads or processes write one path,
the last one wins. An existing file passes its mode on. A symbolic link at the path is replaced, and
the file that it points to stays as it is. Only regular files are replaced, and only those that the
user may write to.
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
from xlstm.data import reading
from xlstm.engines.numba.deferred_signals import held

PATIENCE = 1.0  # seconds to wait for others who write several files into a folder
AnyPath = str | os.PathLike[str]


class _Enough(Exception):  # noqa: N818 (no error)
    """Ends `check` before the file is replaced."""


def write(path: AnyPath, blob: bytes) -> None:
    """Write a file whole or not at all; raises OSError as `foreach` does."""
    with whole(path) as temporary:
        temporary.write_bytes(blob)


@contextlib.contextmanager
def whole(path: AnyPath) -> Iterator[Path]:
    """Give a path to write to in place of `path`, which it then replaces in one step, unless there
    is an error.
    """
    with foreach(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def foreach(*paths: AnyPath) -> Iterator[list[Path]]:
    """Give paths to write to in place of files of one folder, which they replace once all of them
    are on the disk.

    They are replaced in the order given, so the file that names the others comes last. An interrupt
    in between does not stop it; a power cut may. So may an error of the system that comes only
    then: the files before that one are the new ones already, it and those after it stay the old
    ones. Others who write several files there at the same time wait. The OSError of a file that
    cannot be written or replaced names the path that was given.
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
    """Delete the temporary files that processes killed while they wrote have left in a folder that
    nobody else uses.
    """
    for path in Path(folder).glob(".xlstm-*.tmp"):
        path.unlink(missing_ok=True)


def append(path: AnyPath, text: str) -> None:
    """Add lines to a file, or to a stream such as /dev/stdout: all of them, or none where the disk
    is full.

    Others may add lines to it at the same time. An empty `text` raises the OSError of a file that
    cannot be written.
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
    """Raise the OSError with which writing to `path` would fail now, a full disk excepted; nothing
    is left behind.
    """
    with contextlib.suppress(_Enough), whole(path):
        raise _Enough


def _create(temporary: Path, path: Path) -> int:
    """Make the temporary file, which must not exist even as a link, and return the mode that it is
    to have.
    """
    # None, too, for a link to no file
    old = os.stat(reading.regular(path)).st_mode if path.exists() else None
    if old is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected", str(path))
    with open(temporary, "xb") as file:
        if old is None:
            return stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    os.chmod(temporary, 0o600)  # nobody else sees it meanwhile
    return stat.S_IMODE(old) & 0o777


@contextlib.contextmanager
def _folder(folder: Path, lock: bool) -> Iterator[None]:
    """Have the names of a folder on the disk afterwards; with `lock` wait for others a while, and
    keep them out.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # nobody may list it, or the system opens only files
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
    """Lock a folder until it is closed; return False where others have it locked for longer than
    some seconds.
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
