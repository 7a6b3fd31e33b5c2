"""Files that only this user can change: where they may lie."""

import os
import stat

import pytest

from xlstm.engines import secure_cache

pytestmark = pytest.mark.skipif(os.name == "nt", reason="folders have no modes")


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = secure_cache.folder(tmp_path / "a" / "b")
        secure_cache.write(folder, "name", b"content")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(os.lstat(path).st_mode) for path in (folder, folder / "name")] == [
        0o700,
        0o600,
    ]
    assert secure_cache.read(folder, "name", 100) == b"content"
    folder.chmod(0o755)
    assert stat.S_IMODE(os.lstat(secure_cache.folder(folder)).st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_folders_that_others_may_write_to_are_refused(tmp_path, mode):
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    (tmp_path / "link").symlink_to("a")
    for name in ("a", "link"):
        with pytest.raises(PermissionError, match="may be written by other users"):
            secure_cache.folder(tmp_path / name)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError):
        secure_cache.folder(tmp_path / "a")


def test_a_folder_and_a_file_of_another_user_are_refused(tmp_path, monkeypatch):
    folder = secure_cache.folder(tmp_path / "a")
    me = os.geteuid()
    secure_cache.write(folder, "name", b"content")
    monkeypatch.setattr(secure_cache.os, "geteuid", lambda: me + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        secure_cache.folder(folder)
    assert secure_cache.read(folder, "name", 100) is None
