"""Files of models and folders of runs: bytes, atomicity, full disks, histories, and what is
refused.
"""

import errno
import gc
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import weakref

import numpy as np
import pytest
from safetensors.numpy import save as to_bytes

import xlstm
from tests.training.runs import (
    at,
    checkpoints_in,
    fit,
    history,
    never,
    plain,
    random_masks,
    same,
    steps_on_disk,
    streams,
)
from xlstm import checkpoint, models
from xlstm.arrays.convert import to_numpy
from xlstm.data import writing
from xlstm.data.tensors import Tensors
from xlstm.training import ReduceOnPlateau, folder, optimizers

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
    [
        np.array(2.5),
        np.zeros((0, 3)),
        np.arange(3, dtype=">f4"),
        np.array([True]),
        np.arange(6.0).reshape(2, 3).T,
    ],
)
def test_arrays_of_every_kind(tmp_path, array):
    checkpoint.save(tmp_path / "m", {"a": array}, "test", {})
    found = checkpoint.load(tmp_path / "m", "test")[0]["a"]
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


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
    end = f'", "xlstm": "{xlstm.__version__}"}}'
    assert header["__metadata__"] == {"xlstm": about + digest + end}
    assert blob[8 + length :] == data


def good(**changes):
    about = {"version": 2, "kind": "test", "config": {}, "digest": "0" * 64, **changes}
    return to_bytes({"a": np.ones(100)}, metadata={"xlstm": json.dumps(about)})


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "it is empty"),
        (good()[:-5], "[Hh]eader"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"time,value\n1,2\n", "it begins with"),
        (to_bytes({"a": np.ones(1)}), "no entry 'xlstm'"),
        (to_bytes({"a": np.ones(1)}, metadata={"xlstm": "{"}), "description is not readable"),
        (to_bytes({"a": np.ones(1)}, metadata={"xlstm": "[]"}), "version of the format is None"),
        (
            good(version=9, xlstm="9.1"),
            "format is 9, expected 2; xlstm '9.1' wrote the file, and this",
        ),
        (good(version=1, xlstm="\x1b" * 999), r"xlstm '(\\x1b){9}[^\x1b]{,90}' wrote the file"),
        (good(version=1), "is 1, .*; an earlier version of xlstm wrote the file"),
        (good(), "was changed after it was written"),
        (good(digest=None), "was changed after it was written"),
        (good(config=[]), "kind and config"),
        (good(kind="language model"), "kind is 'language model', expected 'test'"),
    ],
)
def test_bad_files_are_named(tmp_path, blob, words):
    path = tmp_path / "m.safetensors"
    path.write_bytes(blob)
    with pytest.raises(ValueError, match=words) as caught:
        checkpoint.load(path, "test")
    assert str(path) in str(caught.value)


def test_a_file_that_is_replaced_meanwhile_is_read_as_it_was(tmp_path):
    """Description and arrays are of one version, while another process saves the next."""
    path = tmp_path / "m"
    checkpoint.save(path, {"a": np.zeros(3)}, "test", {})
    opened = Tensors(path)
    checkpoint.save(path, {"a": np.ones(5)}, "test", {})
    np.testing.assert_array_equal(opened.read()["a"], np.zeros(3))


# The folder of a run


def test_files_that_are_kept(tmp_path):
    (tmp_path / ".xlstm-0123.tmp").write_bytes(b"half")  # of a killed process
    trained = fit(plain, tmp_path, every=4, keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "best.safetensors",
        "history.jsonl",
        "step-000000012.safetensors",
        "step-000000015.safetensors",
    ]
    assert folder.read(tmp_path / "best.safetensors").about["best_epoch"] == trained.best_epoch
    assert history(tmp_path, "loss") == trained.losses
    assert history(tmp_path, "validation") == trained.validations
    with pytest.raises(ValueError, match=r"kind is 'training', .*; training\.train\(.* reads it$"):
        models.load(tmp_path / "best.safetensors")


def test_the_history_of_what_is_repeated_is_replaced(tmp_path):
    """Steps, validations, and what a power cut has left of a line."""
    fit(plain, tmp_path, every=4, callbacks=[at(10)])
    checkpoints_in(tmp_path)[-1].unlink()
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20] + b"\n" + bytes(30))
    trained = fit(plain, tmp_path, resume=True)
    assert history(tmp_path, "loss") == trained.losses
    assert history(tmp_path, "validation") == trained.validations


def test_the_end_of_a_long_history_is_found_in_few_lines(tmp_path, monkeypatch):
    """Wherever a run goes on; the lines of an epoch are those of its steps, and its validation."""
    lines = {}
    for total in range(1, 3001):
        epoch = (total + 999) // 1000
        lines[total, epoch, 0] = json.dumps({"total": total, "epoch": epoch, "loss": 0.5})
        if total % 1000 == 0:
            about = {"total": total, "epoch": epoch, "validation": None}
            lines[total, epoch, 1] = json.dumps(about)
    read = []
    entry = folder._entry
    monkeypatch.setattr(folder, "_entry", lambda line: read.append(line) or entry(line))
    places = [(0, 1), (1, 1), (999, 1), (1000, 1), (1000, 2), (1001, 2), (2999, 3), (3000, 4)]
    path = tmp_path / "history.jsonl"
    for tail, (total, epoch) in itertools.product(
        ("", '{"total": 1', "\0" * 99, '\n\0\n{"total": 0, "validation": 1}\n'), places
    ):
        path.write_text("".join(f"{line}\n" for line in lines.values()) + tail)
        read.clear()
        folder.Folder(tmp_path, 1).rewind(total, epoch)
        kept = (
            line
            for (step, of, validation), line in lines.items()
            if step <= total and (not validation or of < epoch)
        )
        assert path.read_text() == "".join(f"{line}\n" for line in kept)
        assert len(read) < 40


def test_a_history_that_is_none(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"total": 1}\n{"total": 2, "lo')
    assert folder.read_history(path) == [{"total": 1}]
    path.write_text("3\n")
    with pytest.raises(ValueError, match="line 1 is not readable"):
        folder.read_history(path)


def fill_disk(monkeypatch, first, last=math.inf):
    """Leave no room on the disk from one write to another."""
    count = itertools.count(1)
    write = writing.write

    def limited(path, blob):
        if first <= next(count) <= last:
            raise OSError(errno.ENOSPC, "not saved, No space left on device", str(path))
        write(path, blob)

    monkeypatch.setattr(writing, "write", limited)


def test_a_full_disk(tmp_path, monkeypatch):
    whole = fit(plain)
    fill_disk(monkeypatch, 5)
    with pytest.warns(RuntimeWarning) as caught:
        trained = fit(plain, tmp_path, every=3)
    same(whole, trained)
    first, last = (str(warning.message) for warning in caught)
    assert "No space left" in first
    assert "training goes on" in first
    assert last.startswith("train: step 15 is not on disk")
    assert trained.unsaved in last
    assert "newest checkpoint is that of step 6" in trained.unsaved
    monkeypatch.undo()
    same(whole, fit(plain, tmp_path, resume=True))


def test_a_disk_that_was_full_for_a_while(tmp_path, monkeypatch):
    """The best epoch is the first, whose files come once there is room again."""
    fill_disk(monkeypatch, 1, 1)
    with pytest.warns(RuntimeWarning, match="training goes on") as caught:
        trained = fit(plain, tmp_path, optimizer=optimizers.sgd(1e-30))
    assert len(caught) == trained.best_epoch == 1
    assert trained.unsaved == ""
    assert steps_on_disk(tmp_path) == 15
    assert folder.read(tmp_path / "best.safetensors").about["best_epoch"] == 1


def test_a_history_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    def append(path, text):
        raise OSError(errno.ENOSPC, "No space left", str(path))

    monkeypatch.setattr(writing, "append", append)
    with pytest.warns(RuntimeWarning, match="the history is not on disk"):
        assert "history" in fit(plain, tmp_path).unsaved


def test_a_folder_that_goes_away_is_made_again(tmp_path):
    remove = at(7, lambda: shutil.rmtree(tmp_path / "run"))
    trained = fit(plain, tmp_path / "run", progress=remove, every=2)
    assert trained.unsaved == ""
    same(trained, fit(plain, tmp_path / "run", resume=True))


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run"):
        fit(plain, tmp_path / "run", progress=never)


def test_one_run_in_a_folder_at_a_time(tmp_path):
    refused = []

    def begin():
        with pytest.raises(ValueError, match="another run is going on in"):
            fit(plain, tmp_path, resume=True)
        refused.append(1)

    same(fit(plain), fit(plain, tmp_path, progress=at(2, begin)))
    assert refused == [1]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    whole = fit(plain, tmp_path, every=4)
    path = checkpoints_in(tmp_path)[-1]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.warns(RuntimeWarning, match="an older checkpoint is taken"):
        same(whole, fit(plain, tmp_path, resume=True))
    rewrite(checkpoints_in(tmp_path)[-1], "about/updates", -1)
    with pytest.warns(RuntimeWarning, match="updates is -1, .*an older checkpoint is taken"):
        same(whole, fit(plain, tmp_path, resume=True))
    for path in checkpoints_in(tmp_path):
        path.write_bytes(b"nothing")
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match="not a readable safetensors file"),
    ):
        fit(plain, tmp_path, resume=True)


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    """Whichever bit is flipped, the file is refused, or says what it said."""
    fit(plain, tmp_path, callbacks=[at(8)])
    path = checkpoints_in(tmp_path)[-1]
    blob = path.read_bytes()
    sound = folder.read(path)
    refused = 0
    header = 8 * (8 + int.from_bytes(blob[:8], "little"))
    draw = random.Random(0)
    for bit in (
        *range(64),
        *draw.sample(range(64, header), 200),
        *draw.sample(range(header, 8 * len(blob)), 200),
    ):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        try:
            found = folder.read(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017 (not every bit is one of a refusal)
            continue
        assert (found.about, found.value, found.arrays.keys()) == (
            sound.about,
            sound.value,
            sound.arrays.keys(),
        )
        assert all(
            array.tobytes() == sound.arrays[name].tobytes() for name, array in found.arrays.items()
        )
    assert refused > 450


def rewrite(path, place, value):
    """Write a checkpoint anew, with its digest, with another value at a place of its description or
    of its values.
    """
    arrays, config = checkpoint.load(path, folder.KIND)
    *outer, last = [int(name) if name.isdigit() else name for name in place.split("/")]
    inner = config
    for name in outer:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    checkpoint.save(path, arrays, folder.KIND, config)


UNSOUND = [
    ("about/epoch", 10**9, "epoch 1000000000, step 3"),
    ("about/ended", True, "epoch 2, step 3 does not go with"),
    ("about/total", None, "total is None"),
    ("about/total", 9, "losses is an array"),
    ("about/updates", 9, "does not go with"),
    ("about/best_epoch", 3, "does not go with"),
    ("about", 3, "no description"),
    (
        "value/dict/params/dict/head.W",
        {"array": "params.head.W", "dtype": "float64"},
        "params head.W is an array",
    ),
    ("value/dict/order", {"dict": {}}, "not a sound"),
    ("value/dict/callbacks/1/dict/scale", -1.0, "scale is -1.0"),
    ("value/dict/callbacks", [], "not a sound"),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A checkpoint of a run with everything that has a state, and what goes on with it."""
    path = tmp_path_factory.mktemp("stopped")
    plateau = ReduceOnPlateau(0.05)
    options = {
        "optimizer": optimizers.adam(plateau),
        "validation": streams(25),
        "callbacks": [plateau, at(8)],
    }
    fit(random_masks, path, **options)
    return checkpoints_in(path)[-1], options


@pytest.mark.parametrize(("place", "value", "words"), UNSOUND)
def test_descriptions_and_values_of_runs_are_checked(tmp_path, stopped, place, value, words):
    """Those of a checkpoint whose digest is right."""
    sound, options = stopped
    rewrite(shutil.copy(sound, tmp_path / sound.name), place, value)
    with pytest.raises(ValueError, match=words) as caught:
        fit(random_masks, tmp_path, resume=True, progress=never, **options)
    assert f"{sound.name}: not a sound checkpoint" in str(caught.value)


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
        monkeypatch.setattr(
            os, "preadv", lambda number, buffers, at: preadv(number, [buffers[0][:5]], at)
        )
    for name, array in file.read(arrays).items():
        np.testing.assert_array_equal(array, arrays[name])
