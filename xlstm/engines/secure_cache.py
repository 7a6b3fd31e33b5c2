"""Read and write files in a folder that only this user can change.

Each file begins with a digest of its name and content. So a damaged or renamed file counts as
missing. A file is read only if it belongs to this user, whoever owns the folders above.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

_DIGEST = hashlib.sha256().digest_size


def folder(path: Path) -> Path:
    """Return the folder, made with mode 0700 if it is missing; raise OSError if others may change
    it.
    """
    path.mkdir(0o700, parents=True, exist_ok=True)
    if os.name != "nt":  # Windows closes a user's folders to others by other means
        _check(path.stat(), path)
        path.chmod(0o700)
    return path


def read(folder: Path, name: str, limit: int) -> bytes | None:
    """Return the content of a file of at most `limit` bytes, or None if it is missing, damaged, or
    another user's.
    """
    path = folder / name
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no link, and no pipe
    try:
        with open(path, "rb", opener=lambda path, mode: os.open(path, mode | flags)) as file:
            here = os.fstat(file.fileno())
            if os.name != "nt":
                _check(here, path)
            if not stat.S_ISREG(here.st_mode) or here.st_size > limit:
                return None
            digest = file.read(_DIGEST)
            content = file.read()
    except OSError:
        return None
    return content if digest == _digest(name, content) else None


def write(folder: Path, name: str, content: bytes) -> None:
    """Write a file with mode 0600, whole or not at all; raise OSError if that fails."""
    # a new name, since others may write the same file now
    handle, temporary = tempfile.mkstemp(".tmp", name, folder)
    try:
        with open(handle, "wb") as file:
            file.write(_digest(name, content) + content)
        os.replace(temporary, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _check(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} may be written by other users")


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(b"%s\0%s" % (name.encode(), content)).digest()
