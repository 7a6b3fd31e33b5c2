"""A folder of files that only this user and the administrator can change.

Files are written whole, under their name at once, and read only as they were written: each begins with a digest of its
name and of its content, so that a damaged file, or one under another's name, counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH  # may write a file besides its owner
_DIGEST = hashlib.sha256().digest_size


def folder(path: Path) -> Path:
    """Return the folder without links on the way to it, made where it is missing, and of mode 0700.

    Raises
    ------
    OSError
        It cannot be made or used: it is not this user's, or somebody else may write to it, to a folder above it, or to
        a link on the way; or the path is not absolute, and so another one in each working folder.
    """
    if not path.is_absolute():
        raise OSError(f"{path} is not an absolute path")
    there = next(above for above in (path, *path.parents) if os.path.lexists(above))
    os.path.realpath(there, strict=True)  # links in a circle are an error here
    _check(there)
    for missing in reversed([above for above in (path, *path.parents) if not os.path.lexists(above)]):
        missing.mkdir(0o700, exist_ok=True)
    found = Path(os.path.realpath(path, strict=True))
    here = os.lstat(found)
    if not stat.S_ISDIR(here.st_mode):
        raise NotADirectoryError(f"{path} is not a folder")
    if os.name != "nt":  # there, folders of a user are closed to others by other means
        if here.st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to another user")
        if _shared(here):
            raise PermissionError(f"{path} may be written by other users")
        if stat.S_IMODE(here.st_mode) != 0o700:
            found.chmod(0o700)
    return found


def read(folder: Path, name: str, limit: int) -> bytes | None:
    """Return the content of a file, or None where there is none of this user's that is as it was written.

    Parameters
    ----------
    folder
        As the function of this name gives it.
    limit : int
        Bytes of a file, which larger ones are not.
    """
    path = folder / name
    try:
        with open(path, "rb", opener=_open) as file:
            here = os.fstat(file.fileno())
            if not stat.S_ISREG(here.st_mode) or here.st_size > limit or not _own(here):
                return None
            digest, content = file.read(_DIGEST), file.read()
        if digest != _digest(name, content):
            return None
        with contextlib.suppress(OSError):  # of a file system that is not to be written
            os.utime(path)  # `bound` removes those that were not used for the longest time
    except OSError:
        return None
    return content


def write(folder: Path, name: str, content: bytes) -> None:
    """Write a file, whole or not at all, of mode 0600.

    Raises
    ------
    OSError
        It cannot be written: the disk is full, for example, or a folder has its name.
    """
    handle, made = tempfile.mkstemp(".tmp", name, folder)  # a name of its own: others may write the same file now
    try:
        with open(handle, "wb") as file:
            file.write(_digest(name, content))
            file.write(content)
        os.chmod(made, 0o600)
        os.replace(made, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made)
        raise


def bound(folder: Path, prefix: str, limit: int) -> None:
    """Remove files whose names begin with a prefix, also in folders within, until they have at most `limit` bytes.

    Those that were not used for the longest time go first.
    """
    found = []
    for path in folder.rglob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another process removed it
            here = os.lstat(path)
            if not stat.S_ISDIR(here.st_mode):
                found.append((here.st_mtime, here.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > limit:
            with contextlib.suppress(OSError):
                path.unlink()


def _check(path: Path) -> None:
    """Refuse a path where somebody else may change what lies there.

    Raises
    ------
    PermissionError
        What there is, a folder above it or the target of a link belongs to another user, or others may write to it.
    """
    if os.name == "nt":
        return
    here = os.lstat(path)
    if path != path.parent:
        _check(path.parent)
    if here.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to another user")
    if stat.S_ISLNK(here.st_mode):
        _check(path.parent / os.readlink(path))
    elif _shared(here) and not here.st_mode & stat.S_ISVTX:  # in a sticky folder what is ours stays ours
        raise PermissionError(f"{path} may be written by other users")


def _shared(here: os.stat_result) -> bool:
    """Whether other users may write to a folder."""
    return bool(here.st_mode & stat.S_IWOTH or (here.st_mode & stat.S_IWGRP and not _alone(here.st_gid)))


def _alone(gid: int) -> bool:
    """Whether a group is that of this user alone, which many systems make for each user."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _open(path: str, flags: int) -> int:
    """Open a file, neither through a link nor waiting for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _own(here: os.stat_result) -> bool:
    return os.name == "nt" or (here.st_uid == os.geteuid() and not here.st_mode & _OTHERS)


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(b"%s\0%s" % (name.encode(), content)).digest()
