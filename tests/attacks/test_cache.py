"""Damaged files of compiled code: they count as absent, and the code is compiled again."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attacks.bounds import examples
from xlstm.cli import info
from xlstm.engines import secure_cache
from xlstm.engines.numba import jit

pytestmark = [
    pytest.mark.skipif(jit.failure() is not None, reason=str(jit.failure())),
    pytest.mark.skipif(os.name == "nt", reason="folders have no modes"),
]
SOURCE = """
from xlstm.engines.numba.codecache import cached


@cached
def double(x):
    return x + x


@cached
def triple(x):
    return x + x + x
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    return tmp_path / "xlstm"


@functools.cache
def load():
    """SOURCE as a module, named as those of compiled loops are."""
    module = jit.new_module(SOURCE)
    exec(SOURCE, module.__dict__)
    return module


def call(name="double"):
    """The result of a compiled function as the next process has it, and whether its code was
    loaded.
    """
    from xlstm.engines.numba import codecache

    made = codecache.cached(getattr(load(), name).py_func)
    found = made(1.5)
    return found, sum(made.stats.cache_hits.values()) == 1


def replaced(change):
    """Damage that makes other bytes of the bytes of a file."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


class Bomb:
    def __reduce__(self):
        return os._exit, (66,)


def instead(make):
    """Damage that puts something else in the place of the file."""

    def damage(path):
        path.unlink()
        make(path)

    return damage


def of_another_function(path):
    call("triple")
    (other,) = path.parent.glob("*.triple-*")
    path.write_bytes(other.read_bytes())


DAMAGE = {
    "pickle with its digest": replaced(
        lambda data: hashlib.sha256(pickle.dumps(Bomb())).digest() + pickle.dumps(Bomb())
    ),
    "of another function": of_another_function,
    # it has holes, and no digest of it is made
    "too large": lambda path: os.truncate(path, 1 << 40),
    "that all may write": lambda path: path.chmod(0o666),
    "a link to itself": instead(lambda path: path.symlink_to(path.name)),
    "a pipe": instead(os.mkfifo),
    "a folder": instead(lambda path: path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_thrown_away_and_made_again(cache, kind):
    assert call() == (3.0, False)
    assert call() == (3.0, True)
    (path,) = cache.iterdir()
    DAMAGE[kind](path)
    assert call() == (3.0, False)
    assert call() == (3.0, not path.is_dir())  # a folder is not ours to remove
    assert not list(cache.glob("*.tmp"))


def test_code_of_other_versions_is_not_loaded(cache, monkeypatch):
    call()
    monkeypatch.setattr("xlstm.engines.numba.codecache.VERSIONS", ("another",))
    assert call() == (3.0, False)
    old, _ = sizes = [path.stat().st_size for path in cache.iterdir()]
    assert len(sizes) == 2
    # large enough for one of them
    monkeypatch.setattr("xlstm.engines.numba.codecache.LIMIT", old * 3 // 2)
    call("triple")
    (path,) = cache.iterdir()
    assert "triple" in path.name


def test_a_full_disk_leaves_nothing(cache, monkeypatch):
    secure_cache.folder(cache)
    secure_cache.write(cache, "name", b"old")

    def full(*_):
        (cache / "made.tmp").touch()
        return os.open("/dev/full", os.O_WRONLY), str(cache / "made.tmp")

    monkeypatch.setattr(secure_cache.tempfile, "mkstemp", full)
    assert call() == (3.0, False)
    with pytest.raises(OSError, match="No space left"):
        secure_cache.write(cache, "name", b"new")
    assert [path.name for path in cache.iterdir()] == ["name"]
    assert secure_cache.read(cache, "name", 100) == b"old"


def test_a_folder_that_others_may_write_to_is_left_alone(cache):
    call()
    cache.chmod(0o777)
    (path,) = cache.iterdir()
    before = path.read_bytes()
    assert call() == (3.0, False)
    assert call("triple") == (4.5, False)
    assert list(cache.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_user_without_a_home(cache, monkeypatch):
    monkeypatch.setenv(jit.VARIABLE, "1")

    def fail(name, appauthor):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("xlstm.engines.numba.codecache.platformdirs.user_cache_path", fail)
    assert call() == (3.0, False)
    assert call() == (3.0, False)
    assert "compiled again in each process: could not determine the home" in info.compiled()


@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_damage_is_seen(tmp_path, data):
    folder = secure_cache.folder(tmp_path / "a")
    content = data.draw(st.binary(max_size=200))
    secure_cache.write(folder, "name", content)
    whole = (folder / "name").read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    damaged = whole[:start] + data.draw(st.binary(max_size=50)) + whole[end:]
    (folder / "name").write_bytes(damaged)
    assert secure_cache.read(folder, "name", 1000) == (content if damaged == whole else None)


CODE = f"""
import os
os.umask(0)
from xlstm.engines.numba import jit
module = jit.new_module({SOURCE!r})
exec({SOURCE!r}, module.__dict__)
print(module.double(1.5), module.triple(1.5))
"""


def test_processes_that_compile_at_the_same_time(cache):
    processes = [
        subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=600)[0] for process in processes] == ["3.0 4.5\n"] * 2
    assert sorted(path.name.split(".")[1].split("-")[0] for path in cache.iterdir()) == [
        "double",
        "triple",
    ]
    assert call() == (3.0, True)
