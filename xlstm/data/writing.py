"""Files are written whole or not at all, whoever else writes them at the same time.

The bytes go to a temporary file in the same folder, under a name that nobody can foresee and that did not exist, and
are on the disk before it takes the place of the file in one step. Killed at any moment, the file is the old one or the
new one; where several threads or processes write one path, the last one wins. An existing file passes its mode on. A
symbolic link at the path is replaced, and the file that it points to stays as it is. Only regular files are replaced,
and only those that the user may write to.
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
from typing import NamedTuple

PATIENCE = 1.0  # seconds to wait for others who write several files into a folder
AnyPath = str | os.PathLike[str]


class _File(NamedTuple):
    path: Path
    temporary: Path


class _Enough(Exception):  # noqa: N818 (no error)
    """Ends `check` before the file is replaced."""


def write(path: AnyPath, blob: bytes) -> None:
    """Write a file whole or not at all; raises OSError as `together` does."""
    with whole(path) as temporary:
        temporary.write_bytes(blob)


@contextlib.contextmanager
def whole(path: AnyPath) -> Iterator[Path]:
    """Give a path to write to in place of `path`, which it then replaces in one step, unless there is an error."""
    with foreach(path) as (temporary,):
        yield temporary


@contextlib.contextmanager
def foreach(*paths: AnyPath) -> Iterator[list[Path]]:
    """Give paths to write to in place of files of one folder, which they replace once all of them are on the disk.

    They are replaced in the order given, so the file that names the others comes last. An interrupt in between does not
    stop it; a power cut may. So may an error of the system that comes only then: the files before that one are the new
    ones already, it and those after it stay the old ones. Others who write several files there at the same time wait.
    The OSError of a file that cannot be written or replaced names the path that was given.
    """
    files = [_File(Path(path), Path(path).parent / f".xlstm-{secrets.token_hex(8)}.tmp") for path in paths]
    try:
        modes = [_create(file) for file in files]
        yield [file.temporary for file in files]
        for file, mode in zip(files, modes, strict=True):
            _finish(file, mode)
        with _opened(files[0].path.parent) as folder:
            if len(files) > 1 and folder is not None:
                _wait_for_others(folder)
            _replace(files)
            if folder is not None:
                with contextlib.suppress(OSError):  # not every system can have names on the disk
                    os.fsync(folder)
    except BaseException as error:
        for file in files:
            with contextlib.suppress(OSError):
                file.temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _named(error, files) from error
        raise


def clean(folder: AnyPath) -> None:
    """Delete the temporary files that processes killed while they wrote have left in a folder that nobody else uses."""
    for path in Path(folder).glob(".xlstm-*.tmp"):
        path.unlink(missing_ok=True)


def append(path: AnyPath, text: str) -> None:
    """Add lines to a file, or to a stream such as /dev/stdout: all of them, or none where the disk is full.

    Others may add lines to it at the same time. An empty `text` raises the OSError of a file that cannot be written.
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
    """Raise the OSError with which writing to `path` would fail now, a full disk excepted; nothing is left behind."""
    with contextlib.suppress(_Enough), whole(path):
        raise _Enough


def _create(file: _File) -> int:
    """Make the temporary file, which must not exist even as a link, and return the mode that it is to have."""
    old = _mode(file.path)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(file.temporary, flags, 0o666 if old is None else 0o600)  # less the umask
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode) if old is None else old
    finally:
        os.close(handle)


def _mode(path: Path) -> int | None:
    """Return the mode of a file that can be replaced, or None where there is none yet."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):  # or a link to nowhere
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected", str(path))
    return stat.S_IMODE(found.st_mode) & 0o777


def _finish(file: _File, mode: int) -> None:
    """Have the bytes on the disk, under the right mode."""
    with open(file.temporary, "rb+") as opened:
        if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) != mode:  # not every file system has modes
            os.chmod(file.temporary, mode)
        os.fsync(opened.fileno())


def _replace(files: list[_File]) -> None:
    """Put the temporary files in place; an interrupt after the first one waits for the others."""
    try:
        for file in files:
            os.replace(file.temporary, file.path)
    except OSError:
        raise
    except BaseException:
        if not files[0].temporary.exists():
            _replace([file for file in files if file.temporary.exists()])
        raise


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """Open a folder; None where nobody may list it, or the system opens only files."""
    handle = None
    try:
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _wait_for_others(folder: int) -> None:
    """Lock an open folder once nobody else has, or after some time; do nothing where folders have no locks."""
    end = time.monotonic() + PATIENCE
    with contextlib.suppress(ImportError):
        import fcntl

        while time.monotonic() < end:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.002)
            except OSError:
                return


def _named(error: OSError, files: list[_File]) -> OSError:
    """Return the error with the path that the user gave in the place of the temporary one."""
    path = next((file.path for file in files if str(file.temporary) == str(error.filename)), files[0].path)
    if error.errno is None:
        return OSError(f"{path}: not saved, {error}")
    return OSError(error.errno, f"not saved, {error.strerror}", str(path))
