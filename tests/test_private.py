"""Files that only this user can change: where they may lie, and which go first."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from types import SimpleNamespace

import pytest

from xlstm.engines.numba import private

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders have no modes")


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = private.folder(tmp_path / "a" / "b")
        private.write(folder, "name", b"content")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(os.lstat(path).st_mode) for path in (folder, tmp_path / "a", folder / "name")]
    assert modes == [0o700, 0o700, 0o600]
    assert private.read(folder, "name", 100) == b"content"
    folder.chmod(0o755)
    assert stat.S_IMODE(os.lstat(private.folder(folder)).st_mode) == 0o700


# Folders with their modes, links with their targets, the folder that is asked for, and the error.
SHARED = "may be written by other users"
REFUSED = {
    "that all may write": ({"a": 0o777}, "a", f"a {SHARED}"),
    "that all may write though sticky": ({"a": 0o1777}, "a", f"a {SHARED}"),
    "that a group may write": ({"a": 0o770}, "a", f"a {SHARED}"),
    "where all may write": ({"open": 0o777, "open/a": 0o700}, "open/a", f"open {SHARED}"),
    "to be made where all may write": ({"open": 0o777}, "open/more/a", f"open {SHARED}"),
    "by a link that others may change": (
        {"mine": 0o700, "open": 0o777, "open/a": "../mine"},
        "open/a",
        f"open {SHARED}",
    ),
    "by a link to where all may write": ({"open": 0o777, "open/b": 0o700, "a": "open/b"}, "a", f"open {SHARED}"),
    "by a link above it": ({"open": 0o777, "link": "open"}, "link/a", SHARED),
    "by a link to nothing": ({"a": "nothing"}, "a", "is not a folder"),
    "by links in a circle": ({"a": "b", "b": "a"}, "a", "is not a folder"),
    "a file": ({"a": None}, "a", "is not a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_are_refused(tmp_path, monkeypatch, case):
    made, name, message = REFUSED[case]
    monkeypatch.setattr(private, "_alone", lambda gid: False)
    for path, kind in made.items():
        if isinstance(kind, int):
            (tmp_path / path).mkdir()
            (tmp_path / path).chmod(kind)
        elif kind is None:
            (tmp_path / path).touch()
        else:
            (tmp_path / path).symlink_to(kind)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=message):
        private.folder(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_relative_folder_and_one_of_another_user_are_refused(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="a is not an absolute path"):
        private.folder(type(tmp_path)("a"))
    folder, me = private.folder(tmp_path / "a"), os.geteuid()
    private.write(folder, "name", b"content")
    monkeypatch.setattr(private.os, "geteuid", lambda: me + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        private.folder(folder)
    assert private.read(folder, "name", 100) is None


def test_folders_that_are_taken(tmp_path, monkeypatch):
    """In a sticky folder, as /tmp is, by a link, and below a folder that only this user's own group may write to."""
    (tmp_path / "sticky").mkdir()
    (tmp_path / "sticky").chmod(0o1777)
    assert private.folder(tmp_path / "sticky" / "a") == tmp_path / "sticky" / "a"
    (tmp_path / "link").symlink_to("sticky/a")
    assert private.folder(tmp_path / "link") == tmp_path / "sticky" / "a"
    monkeypatch.setattr(private, "_alone", lambda gid: True)
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o775)
    assert private.folder(tmp_path / "group" / "a") == tmp_path / "group" / "a"


@pytest.mark.parametrize(
    ("name", "members", "alone"), [("ann", ["ann"], True), ("ann", ["bob"], False), ("x", [], False)]
)
def test_a_group_of_one(monkeypatch, name, members, alone):
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_gid=7, pw_name="ann"))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=name, gr_mem=members))
    assert private._alone(7) == alone
    assert not private._alone(8)


def test_files_not_used_for_long_go_first(tmp_path):
    folder = private.folder(tmp_path / "a")
    for k in range(5):
        private.write(folder, f"x_{k}", bytes(100))
        os.utime(folder / f"x_{k}", (k, k))
    (folder / "other").write_bytes(bytes(1000))
    assert private.read(folder, "x_0", 200) is not None  # which is a use
    private.bound(folder, "x_", 3 * 132)
    assert {path.name for path in folder.iterdir()} == {"x_0", "x_4", "x_3", "other"}
