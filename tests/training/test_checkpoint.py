"""Model files: bytes, atomicity, and what is refused."""

import gc
import hashlib
import json
import multiprocessing
import os
import signal
import time
import weakref

import numpy as np
import pytest
from safetensors.numpy import save as to_bytes

from xlstm import checkpoint
from xlstm.arrays.convert import to_numpy
from xlstm.data.tensors import Tensors

ARRAYS = {"a": np.arange(3.0), "b": np.ones((2, 2), "float32")}


def test_round_trip(be, tmp_path):
    params = {n: be.asarray(a, str(a.dtype)) for n, a in ARRAYS.items()}
    checkpoint.save(tmp_path / "m", params, "test", {"x": [1, 2.5]})
    arrays, config = checkpoint.load(tmp_path / "m", "test")
    assert config == {"x": [1, 2.5]}
    for name, array in arrays.items():
        assert array.dtype == to_numpy(params[name]).dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize(
    "array",
    [np.array(2.5), np.zeros((0, 3)), np.arange(3, dtype=">f4"), np.array([True]), np.arange(6.0).reshape(2, 3).T],
)
def test_arrays_of_every_kind(tmp_path, array):
    checkpoint.save(tmp_path / "m", {"a": array}, "test", {})
    found = checkpoint.load(tmp_path / "m", "test")[0]["a"]
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_arrays_of_a_checkpoint_are_freed_without_the_garbage_collector():
    """Those of many checkpoints would wait for it."""
    array = np.ones(3)
    alive = weakref.ref(array)
    gc.disable()
    try:
        value, arrays = checkpoint.pack({"a": [array]})
        checkpoint.unpack(value, arrays, lambda a, dtype: a)
        del array, arrays
        assert alive() is None
    finally:
        gc.enable()


def test_literal_bytes(tmp_path):
    """The format itself: eight bytes of length, a JSON header, the data."""
    checkpoint.save(tmp_path / "m", {"a": np.array([1.0, 2.0])}, "test", {"k": 1})
    blob = (tmp_path / "m").read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    assert header["a"] == {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}
    data = np.array([1.0, 2.0]).tobytes()
    digest = hashlib.sha256(b'["test", {"k": 1}]["a", "<f8", [2]]' + data).hexdigest()
    about = '{"version": 2, "kind": "test", "config": {"k": 1}, "digest": "'
    assert header["__metadata__"] == {"xlstm": about + digest + '"}'}
    assert blob[8 + length :] == data


def good(**changes):
    about = {"version": 2, "kind": "test", "config": {}, "digest": "0" * 64, **changes}
    return to_bytes({"a": np.ones(100)}, metadata={"xlstm": json.dumps(about)})


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", r"not a readable safetensors file \(it is empty\)"),
        (good()[:-5], "not a readable safetensors file .*[Hh]eader"),
        (b"PK\x03\x04" + bytes(60), r"file \(it is a zip archive, as those of PyTorch and Keras are\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS, whose file is still to be"),
        (b"time,value\n1,2\n", r"it begins with b'time,value\\n1,2\\n'"),
        (to_bytes({"a": np.ones(1)}), "not an xlstm model file, its metadata has no entry 'xlstm'"),
        (to_bytes({"a": np.ones(1)}, metadata={"xlstm": "{"}), "description is not readable"),
        (to_bytes({"a": np.ones(1)}, metadata={"xlstm": "[]"}), "version of the format is None, expected 2"),
        (good(version=9), "version of the format is 9, expected 2"),
        (good(), "was changed after it was written"),
        (good(digest=None), "was changed after it was written"),
        (good(config=[]), r"kind and config are \['test', \[\]\], expected text and an object"),
        (good(kind="language model"), "kind is 'language model', expected 'test'"),
    ],
)
def test_bad_files_are_named(tmp_path, blob, words):
    path = tmp_path / "m.safetensors"
    path.write_bytes(blob)
    with pytest.raises(ValueError, match=words) as caught:
        checkpoint.load(path, "test")
    assert str(path) in str(caught.value)


def test_a_missing_file_and_parameters_that_are_no_dict_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        checkpoint.load(tmp_path / "absent", "test")
    with pytest.raises(TypeError, match="save: params is 3, expected a dict of name to array"):
        checkpoint.save(tmp_path / "m", 3, "test", {})


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", ["a"], np.array("a")], ids=repr)
def test_what_is_no_path_is_named(path):
    with pytest.raises(TypeError, match=r"^save: path is .*, expected a path$"):
        checkpoint.save(path, {"a": np.ones(2)}, "test", {})
    with pytest.raises(TypeError, match=r"^load: path is .*, expected a path$"):
        checkpoint.load(path, "test")


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m"
    checkpoint.save(path, ARRAYS, "test", {"old": True})

    def fail(*args):
        raise OSError(28, "disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"not saved, disk full: .*m'"):
        checkpoint.save(path, ARRAYS, "test", {"old": False})
    assert checkpoint.load(path, "test")[1] == {"old": True}
    assert os.listdir(tmp_path) == ["m"]


def save_for_ever(path, started):
    k = 1
    while True:
        checkpoint.save(path, {"a": np.full(200_000, float(k))}, "test", {"k": k})
        started.set()
        k += 1


def test_killed_at_any_moment_the_file_is_whole(tmp_path):
    path = tmp_path / "m"
    context = multiprocessing.get_context("spawn")
    for delay in (0.0, 0.003, 0.007, 0.011):
        started = context.Event()
        process = context.Process(target=save_for_ever, args=(path, started))
        process.start()
        assert started.wait(60)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        arrays, config = checkpoint.load(path, "test")
        assert np.all(arrays["a"] == config["k"])


def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(tmp_path):
    """Description and arrays are of one version, while another process saves the next."""
    path = tmp_path / "m"
    checkpoint.save(path, {"a": np.zeros(3)}, "test", {})
    opened = Tensors(path)
    checkpoint.save(path, {"a": np.ones(5)}, "test", {})
    np.testing.assert_array_equal(opened.read()["a"], np.zeros(3))


@pytest.mark.parametrize("system", ["few bytes at once", "no preadv"])
def test_reads_go_on_where_they_stopped(tmp_path, monkeypatch, system):
    """A call may read less than it is asked for, and Windows has no preadv."""
    arrays = {"x": np.arange(12.0).reshape(3, 4), "y": np.zeros((0, 3))}
    checkpoint.save(tmp_path / "m", arrays, "test", {})
    file = Tensors(tmp_path / "m")
    if system == "no preadv":
        monkeypatch.delattr(os, "preadv", raising=False)
    elif hasattr(os, "preadv"):
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda number, buffers, at: preadv(number, [buffers[0][:5]], at))
    for name, array in file.read(arrays).items():
        np.testing.assert_array_equal(array, arrays[name])
