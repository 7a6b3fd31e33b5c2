"""Files that only this user can change: where they may lie, and when they count as absent."""

from __future__ import annotations

import os
import stat

import pytest

from xlstm.engines.numba import private

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders have no modes")


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_modes_whatever_the_umask(tmp_path, umask):
    folder = private.folder(tmp_path / "a" / "b")
    private.write(folder, "name", b"content")
    assert [mode(folder), mode(tmp_path / "a"), mode(folder / "name")] == [0o700, 0o700, 0o600]
    assert private.read(folder, "name", 100) == b"content"
    assert [path.name for path in folder.iterdir()] == ["name"]


def test_a_folder_of_this_user_that_others_may_read_is_closed(tmp_path):
    (tmp_path / "a").mkdir(mode=0o755)
    assert mode(private.folder(tmp_path / "a")) == 0o700


def of_another_user(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    me = os.geteuid()
    monkeypatch.setattr(private.os, "geteuid", lambda: me + 1)
    return tmp_path / "a", "belongs to another user"


def that_all_may_write(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o777)
    return tmp_path / "a", "a may be written by other users"


def that_all_may_write_though_sticky(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o1777)
    return tmp_path / "a", "a may be written by other users"


def that_a_group_may_write(tmp_path, monkeypatch):
    monkeypatch.setattr(private, "_alone", lambda gid: False)
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o770)
    return tmp_path / "a", "a may be written by other users"


def in_a_folder_that_all_may_write(tmp_path, monkeypatch):
    (tmp_path / "open" / "a").mkdir(mode=0o700, parents=True)
    (tmp_path / "open").chmod(0o777)
    return tmp_path / "open" / "a", "open may be written by other users"


def to_be_made_where_all_may_write(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    return tmp_path / "open" / "more" / "a", "open may be written by other users"


def by_a_link_that_others_may_change(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a").symlink_to(tmp_path / "mine")
    (tmp_path / "open").chmod(0o777)
    return tmp_path / "open" / "a", "open may be written by other users"


def by_a_link_to_where_all_may_write(tmp_path, monkeypatch):
    (tmp_path / "open" / "theirs").mkdir(mode=0o700, parents=True)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "a").symlink_to("open/theirs")
    return tmp_path / "a", "open may be written by other users"


def by_a_link_above_it(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    return tmp_path / "link" / "a", "open may be written by other users"


def by_a_link_to_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to(tmp_path / "nothing")
    return tmp_path / "a", "No such file"


def by_links_in_a_circle(tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return tmp_path / "a", "levels of symbolic links"


def a_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("no folder")
    return tmp_path / "a", "is not a folder"


def relative_to_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return type(tmp_path)("a"), "a is not an absolute path"


REFUSED = [
    *(of_another_user, that_all_may_write, that_all_may_write_though_sticky, that_a_group_may_write),
    *(in_a_folder_that_all_may_write, to_be_made_where_all_may_write, by_a_link_that_others_may_change),
    *(by_a_link_to_where_all_may_write, by_a_link_above_it, by_a_link_to_nothing, by_links_in_a_circle, a_file),
    relative_to_the_working_folder,
]


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_folders_that_are_refused(tmp_path, monkeypatch, make):
    path, message = make(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=message):
        private.folder(path)
    assert sorted(tmp_path.rglob("*")) == before


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
    ("name", "members", "alone"),
    [("ann", [], True), ("ann", ["ann"], True), ("ann", ["bob"], False), ("staff", [], False)],
)
def test_a_group_of_one(monkeypatch, name, members, alone):
    import grp
    import pwd
    from types import SimpleNamespace

    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_gid=7, pw_name="ann"))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=name, gr_mem=members))
    assert private._alone(7) == alone
    assert not private._alone(8)


def test_a_file_that_others_might_have_written_counts_as_absent(tmp_path, monkeypatch):
    folder = private.folder(tmp_path / "a")
    private.write(folder, "name", b"content")
    (folder / "name").chmod(0o666)
    assert private.read(folder, "name", 100) is None
    (folder / "name").chmod(0o600)
    assert private.read(folder, "name", 100) == b"content"
    me = os.geteuid()
    monkeypatch.setattr(private.os, "geteuid", lambda: me + 1)
    assert private.read(folder, "name", 100) is None


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    folder = private.folder(tmp_path / "a")
    private.write(folder, "name", b"old")

    def full(suffix, prefix, where):
        (where / "made.tmp").touch()
        return os.open("/dev/full", os.O_WRONLY), str(where / "made.tmp")

    monkeypatch.setattr(private.tempfile, "mkstemp", full)
    with pytest.raises(OSError, match="No space left"):
        private.write(folder, "name", b"new")
    assert [path.name for path in folder.iterdir()] == ["name"]
    assert private.read(folder, "name", 100) == b"old"


def test_files_not_used_for_long_go_first(tmp_path):
    folder = private.folder(tmp_path / "a")
    for k in range(5):
        private.write(folder, f"x_{k}", bytes(100))
        os.utime(folder / f"x_{k}", (k, k))
    (folder / "within").mkdir()
    (folder / "within" / "x_old").write_bytes(bytes(50))
    os.utime(folder / "within" / "x_old", (0, 0))
    (folder / "other").write_bytes(bytes(1000))
    (folder / "x_folder").mkdir()
    assert private.read(folder, "x_0", 200) is not None  # which is a use
    private.bound(folder, "x_", 3 * 132)
    assert {path.name for path in folder.rglob("*")} == {"x_0", "x_4", "x_3", "other", "within", "x_folder"}
