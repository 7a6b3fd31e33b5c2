"""The one writer: whole or not at all, modes, links, full disks, several files and several
writers.
"""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from xlstm.data import writing


def limited(folder, code):
    """Run code in a process that cannot write more than 1000 bytes to a file; its standard
    output.
    """
    limit = (
        "import os, resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\nfrom"
        " xlstm.data import writing\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limit + code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_together(*paths):
    with writing.foreach(*paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")


def refused(code):
    return (
        f"try:\n    {code}\nexcept OSError as error:\n    print(error)\nelse:\n   "
        " print('written')\n"
    )


def test_a_new_file_has_the_usual_mode_and_an_old_one_keeps_its_own(tmp_path):
    path = tmp_path / "m"
    before = os.umask(0o027)
    try:
        writing.write(path, b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    for mode in (0o600, 0o666, 0o755):
        path.chmod(mode)
        with writing.whole(path) as temporary:
            # nobody but the owner sees it meanwhile
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
            temporary.write_bytes(b"newer")
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["m"]


def test_links_are_replaced_and_not_followed(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    path = tmp_path / "m"
    precious.write_text("precious")
    precious.chmod(0o600)
    for target in (precious, tmp_path / "absent"):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        writing.write(path, b"new")
        assert not path.is_symlink()
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 or target != precious
    assert sorted(os.listdir(tmp_path)) == ["m", "precious"]
    monkeypatch.setattr(writing.secrets, "token_hex", lambda size: "0" * size)
    (tmp_path / f".xlstm-{'0' * 8}.tmp").symlink_to(precious)
    with pytest.raises(FileExistsError, match=r"not saved.*m'"):
        writing.write(path, b"newer")
    assert precious.read_text() == "precious"


def test_what_cannot_be_replaced_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, error, words in (
        (tmp_path / "folder", OSError, "it is not a regular file"),
        (tmp_path / "absent" / "m", FileNotFoundError, "No such file"),
        (tmp_path / "pipe", OSError, "not a regular file"),
        (Path("/dev/full"), OSError, "not a regular file"),
        (Path("/proc/m"), OSError, ""),
    ):
        for call in (writing.check, lambda path: writing.write(path, b"new")):
            with pytest.raises(error, match=f"not saved, .*{words}") as caught:
                call(path)
            assert caught.value.filename == str(path)
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_folders_and_files_without_permission():
    """As a user who is not root, whom no permission stops."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m").write_text("old")
        (folder / "m").chmod(0o444)
        user = "if os.geteuid() == 0:\n    os.setuid(65534)\n"
        for mode, words in ((0o555, "Permission denied"), (0o777, "it is write-protected")):
            folder.chmod(mode)
            path = "new" if mode == 0o555 else "m"
            code = (
                user
                + refused(f"writing.check({path!r})")
                + refused(f"writing.write({path!r}, b'new')")
            )
            found = limited(folder, code).splitlines()
            assert found == [f"[Errno 13] not saved, {words}: '{path}'"] * 2
            assert os.listdir(folder) == ["m"]
            assert (folder / "m").read_text() == "old"


def test_a_full_disk_keeps_the_old_files(tmp_path):
    """Also those that come in pairs; what was appended is taken back."""
    for name in ("config.json", "model.safetensors", "lines"):
        (tmp_path / name).write_text("old")
    code = """
import xlstm
from xlstm.interop import nxai
model = xlstm.xLSTMLanguageModel(xlstm.xLSTMStack(16, 2, [1], num_heads=2, eps=1e-6), vocab_size=11)
"""
    calls = (
        "writing.write('model.safetensors', bytes(5000))",
        "nxai.save('.', model, model.init(backend='numpy'))",
        "writing.append('lines', 'another line\\n' * 100)",
    )
    *found, last = limited(
        tmp_path,
        code + "".join(map(refused, calls)) + "writing.append('/dev/stdout', 'streams too\\n')",
    ).splitlines()
    assert last == "streams too"
    for line, name in zip(found, ("model.safetensors", "model.safetensors", ""), strict=True):
        assert "not saved" in line
        assert name in line
    assert all("File too large" in line for line in found[:2])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("config.json", "model.safetensors", "lines"), "old"
    )
    with pytest.raises(OSError, match=r"not saved, No space left on device: '/dev/full'"):
        writing.append("/dev/full", "line\n")


def test_an_interrupt_between_two_files_waits_for_the_second(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("weights", "index")]
    replace = os.replace
    moves = []

    def interrupted(*files):
        moves.append(files)
        replace(*files)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together(*paths)
    assert [path.read_text() for path in paths] == ["new", "new"]
    assert [Path(target).name for _, target in moves] == ["weights", "index"]
    assert sorted(os.listdir(tmp_path)) == ["index", "weights"]


def test_a_locked_folder_does_not_wait_for_ever(tmp_path, monkeypatch):
    """`flock FOLDER command` holds the lock as long as the command runs."""
    import fcntl

    monkeypatch.setattr(writing, "PATIENCE", 0.05)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        write_together(tmp_path / "a", tmp_path / "b")
    finally:
        os.close(handle)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
