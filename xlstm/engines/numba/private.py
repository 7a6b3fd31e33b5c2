"""A folder that only this user can change, and files in it that are read only as they were written.

Each file begins with a digest of its name and content, so that a damaged one, or one under another's name, counts as
absent.
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
    """Return the folder without links on the way to it, made where it is missing, and of mode 0700.

    Raises
    ------
    OSError
        It cannot be made; or it, or a folder above it, belongs to another user or may be written by others; or the path
        is not absolute, and so another one in each working folder.
    """
    if not path.is_absolute():
        raise OSError(f"{path} is not an absolute path")
    for above in (*reversed(path.parents), path):
        try:
            above.mkdir(0o700, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(f"{above} is not a folder") from None
        _check(above, last=above == path)
    found = path.resolve(strict=True)
    for above in found.parents:
        _check(above)
    if stat.S_IMODE(found.stat().st_mode) != 0o700:
        found.chmod(0o700)
    return found


def _check(path: Path, last: bool = False) -> None:
    """Raise PermissionError where others may change a folder.

    Above the `last` one, folders of the administrator do, and sticky ones such as /tmp, in which what is ours stays so.
    """
    if os.name == "nt":  # folders of a user are closed to others by other means
        return
    here = path.stat()
    if {here.st_uid, path.lstat().st_uid} - {os.geteuid(), *([] if last else [0])}:
        raise PermissionError(f"{path} belongs to another user")
    shared = here.st_mode & stat.S_IWOTH or (here.st_mode & stat.S_IWGRP and not _alone(here.st_gid))
    if shared and (last or not here.st_mode & stat.S_ISVTX):
        raise PermissionError(f"{path} may be written by other users")


def _alone(gid: int) -> bool:
    """Whether a group is that of this user alone, which many systems make for each user."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def read(folder: Path, name: str, limit: int) -> bytes | None:
    """Return the content of a file of at most `limit` bytes, or None if it is missing, not ours, or damaged."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no link, and no wait for a pipe's writer
    try:
        with open(folder / name, "rb", opener=lambda path, mode: os.open(path, mode | flags)) as file:
            here = os.fstat(file.fileno())
            ours = os.name == "nt" or (here.st_uid == os.geteuid() and not here.st_mode & 0o022)
            if not (ours and stat.S_ISREG(here.st_mode) and here.st_size <= limit):
                return None
            digest, content = file.read(_DIGEST), file.read()
        with contextlib.suppress(OSError):  # of a file system that is not to be written
            os.utime(folder / name)  # `bound` removes those that were not used for the longest time
    except OSError:
        return None
    return content if digest == _digest(name, content) else None


def write(folder: Path, name: str, content: bytes) -> None:
    """Write a file, whole or not at all, of mode 0600; raise OSError where that cannot be."""
    handle, made = tempfile.mkstemp(".tmp", name, folder)  # a name of its own: others may write the same file now
    try:
        with open(handle, "wb") as file:
            file.write(_digest(name, content) + content)
        os.replace(made, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made)
        raise


def bound(folder: Path, prefix: str, limit: int) -> None:
    """Remove files whose names begin with a prefix, those not used for longest first, until `limit` bytes are left."""
    found = []
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another process removed it
            here = path.lstat()
            found.append((here.st_mtime, here.st_size, path))
    for _, size, path in sorted(found, reverse=True):
        limit -= size
        if limit < 0:
            with contextlib.suppress(OSError):  # a folder, for example
                path.unlink()


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(b"%s\0%s" % (name.encode(), content)).digest()
