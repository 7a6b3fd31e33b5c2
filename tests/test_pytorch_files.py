"""PyTorch's checkpoints, read and written without it: every kind of tensor, and what is refused."""

import collections
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest

from tests.attacks.damage import torch_file, zipped_entries
from xlstm.data import pickles, pytorch
from xlstm.data.pickles import Call, Name, Persistent
from xlstm.data.pytorch import TorchFile

PLAIN = {"a": [1, -5, 2**40, 0.5, True, None, "\u00e9"], "b": {"c": (), "d": {}, "e": []}, "f": -(2**70)}
ARRAYS = {"x": np.arange(12.0, dtype="float32").reshape(3, 4), "y": np.zeros((0, 3)), "z": np.array(2, dtype="int64")}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_of_torch(tmp_path, protocol):
    """Views, narrow dtypes, storages that are shared, and the attributes of a state dict."""
    torch = pytest.importorskip("torch")
    x = torch.randn(6, 5)
    state = collections.OrderedDict(x=x, turned=x.T, part=x[1:4, ::2], again=x, none=torch.zeros(0, 3), one=x[2, 3])
    kinds = ("bfloat16", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
    state |= {kind: (x * 10).to(getattr(torch, kind)) for kind in kinds}
    state._metadata = {"": {"version": 1}}
    torch.save({"state_dict": state, "hyper": PLAIN}, tmp_path / "m", pickle_protocol=protocol)
    file = TorchFile(tmp_path / "m")
    assert file.content["hyper"] == PLAIN
    assert file.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in state.items():
        expected = (tensor.float() if name == "bfloat16" else tensor).numpy()
        found = file.read([name])[name]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_state_dict_by_itself(tmp_path):
    torch = pytest.importorskip("torch")
    state = torch.nn.LSTM(2, 3).state_dict()
    torch.save(state, tmp_path / "m")
    found = TorchFile(tmp_path / "m").read(state)
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in state.items())


def test_written_files_are_read_here_and_by_torch(tmp_path):
    pytorch.save(tmp_path / "m", {"hyper": PLAIN}, ARRAYS)
    file = TorchFile(tmp_path / "m")
    assert file.content["hyper"] == PLAIN
    for name, array in file.read(ARRAYS).items():
        assert (array.dtype, array.shape) == (ARRAYS[name].dtype, ARRAYS[name].shape)
        np.testing.assert_array_equal(array, ARRAYS[name])
    torch = pytest.importorskip("torch")
    found = torch.load(tmp_path / "m", weights_only=True)
    assert found["hyper"] == PLAIN
    assert all(np.array_equal(found["state_dict"][name].numpy(), a) for name, a in ARRAYS.items())


@pytest.mark.parametrize("value", [PLAIN, [], {}, (1, 2, 3, 4), collections.OrderedDict(a=1, b=[2])])
def test_pickles_of_python(value):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickles.loads(pickle.dumps(value, protocol), {}, None) == value
    assert pickle.loads(pickles.dumps(dict(value) if isinstance(value, dict) else value)) == value


class Executed:
    """It would call `print`, which is bad enough."""

    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Executed(), "it names '(builtins|__builtin__).print'"),
        ({1, 2}, "it names '(builtins|__builtin__).set'"),
        (b"x", "it names '_codecs.encode'"),
        (np.ones(2), "it names 'numpy"),
        (zipfile.ZipFile, "it names 'zipfile.ZipFile'"),
        ({(1, 2): 3}, "a key is a tuple, expected text or a number"),
    ],
)
def test_pickles_of_anything_else_are_refused(value, words, capsys):
    for protocol in (2, 3):
        if isinstance(value, bytes) and protocol == 3:
            words = "it holds opcode 'SHORT_BINBYTES'"
        with pytest.raises(ValueError, match=words):
            pickles.loads(pickle.dumps(value, protocol), {}, None)
    assert capsys.readouterr().out == ""


OPCODES = {
    "no end": (b"\x80\x02N", "it has no end"),
    "nothing": (b"", "it has no end"),
    "two values": (b"NN.", "it ends with 2 values"),
    "open mark": (b"(N.", "it ends with"),
    "empty stack": (b"e.", "APPENDS at byte 0 finds nothing on the stack"),
    "below a mark": (b"]N(a.", "APPEND at byte 3 finds nothing on the stack"),
    "append to a dict": (b"}Na.", "it appends to a dict"),
    "keys of a list": (b"]NNs.", "of a list"),
    "odd number": (b"}(NNNu.", "it sets 3 keys and values of a dict"),
    "key twice": (b"}(K\x01NK\x01Nu.", "key 1 is there twice"),
    "unhashable key": (b"}(]Nu.", "a key is a list"),
    "unknown memo": (b"h\x05.", "it has no value 5 to repeat"),
    "attributes": (b"]}b.", "it gives attributes to a list"),
    "call of a list": (b"])R.", "it calls"),
    "call without a tuple": (b"ccollections\nOrderedDict\n]R.", "it calls collections.OrderedDict with"),
    "call with arguments": (b"ccollections\nOrderedDict\n]\x85R.", "it calls collections.OrderedDict with"),
    "another name": (b"cos\nsystem\n.", "it names 'os.system'"),
    "instance": (b"(ios\nsystem\n.", "it holds opcode 'INST'"),
    "object": (b"(cos\nsystem\no.", "it names 'os.system'"),
    "name of a list": (b"]X\x01\0\0\0a\x93.", r"it names 'a' of \[\], expected texts"),
    "escapes": (b"c\\z\n\\w\n.", r"it names '\\\\z\.\\\\w'"),
    "extension": (b"\x82\x01.", "it holds opcode 'EXT1'"),
    "old text": (b"S'a'\n.", "it holds opcode 'STRING'"),
    "long text": (b"X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
    "long number": (b"\x8b\1\0\0\0\1.", "it holds opcode 'LONG4'"),
    "unknown opcode": (b"\xff.", "it holds opcode b'\\\\xff' at byte 0"),
}


@pytest.mark.parametrize("name", OPCODES)
def test_damaged_pickles_are_refused(name):
    blob, words = OPCODES[name]
    with pytest.raises(ValueError, match=words):
        pickles.loads(blob, {}, None)


def test_deep_pickles_are_bounded(tmp_path):
    """Values in values in values, which no walk may follow."""
    deep = b")" + b"\x85" * 100_000
    for content in (
        b"}" + b"(X\x01\0\0\0a" + deep + b"u.",
        deep + b".",
        deep + b"Q.",
        deep + b"R.",
        deep + deep + b"\x93.",
    ):
        (tmp_path / "m").write_bytes(zipped_entries({"data.pkl": content}, zipfile.ZIP_STORED))
        with pytest.raises(ValueError, match="not read without PyTorch"):
            TorchFile(tmp_path / "m")


def test_keys_that_collide_are_bounded():
    """Multiples of Python's modulus have one hash: a dict of many of them takes the square of their number."""
    keys = {k * (2**61 - 1): None for k in range(1, pickles.NUMBERED + 2)}
    with pytest.raises(ValueError, match="it has more than 4096 keys that are no text"):
        pickles.loads(pickle.dumps(keys, 2), {}, None)
    del keys[2**61 - 1]
    assert pickles.loads(pickle.dumps(keys, 2), {}, None) == keys


def test_long_pickles_are_refused():
    with pytest.raises(ValueError, match="expected at most"):
        pickles.loads(b"N" * (pickles.BYTES + 1), {}, None)


def test_plain_values_are_bounded():
    cycle: list = []
    cycle.append(cycle)
    shared: list = [0]
    for _ in range(40):
        shared = [shared, shared]
    for value, words in ((cycle, "nested more than"), (shared, "it has more than"), ({1: 2}, "a key is no text")):
        with pytest.raises(ValueError, match=words):
            pickles.plain(value)
    with pytest.raises(ValueError, match="it holds a Storage"):
        pickles.plain([pytorch.Storage("F32", 0, 1)])
    assert pickles.plain({"a": (1, [2.5])}) == {"a": [1, [2.5]]}


def storage(kind="FloatStorage", name="0", numel=6, module="torch"):
    return Persistent(("storage", Name(module, kind), name, "cpu", numel))


def tensor(shape=(2, 3), strides=(3, 1), offset=0, where=None):
    return Call(pytorch.REBUILD, (where or storage(), offset, shape, strides, False, None))


STORED = {"data/0": bytes(24)}
FILES = {
    "wrong storage": (tensor(where=storage("Linear")), STORED, "it names 'torch.Linear'"),
    "other module": (tensor(where=storage(module="os")), STORED, "it names 'os.FloatStorage'"),
    "other count": (tensor(where=storage(numel=2**40)), STORED, "storage '0' has 24 bytes, expected 4398046511104"),
    "negative count": (tensor(where=storage(numel=-6)), STORED, "storage '0' has 24 bytes"),
    "no storage": (tensor(where=storage(name="1")), STORED, "the zip has no entry 'data/1'"),
    "path": (tensor(where=storage(name="../0")), STORED, "the zip has no entry"),
    "other id": (Persistent(("module", 1, 2, 3, 4)), STORED, "a persistent id is"),
    "id is text": (Persistent("x"), STORED, "a persistent id is 'x'"),
    "name is a number": (tensor(where=storage(name=0)), STORED, "a storage is"),
    "too large": (tensor((3, 3)), STORED, "does not lie within its storage of 6 numbers"),
    "beyond the end": (tensor(offset=1), STORED, "does not lie within its storage"),
    "long strides": (tensor(strides=(2**62, 1)), STORED, "does not lie within its storage"),
    "expanded": (tensor((10**12, 1), (0, 1)), STORED, "does not lie within its storage"),
    "negative strides": (tensor(strides=(-3, 1)), STORED, "a tensor is"),
    "negative shape": (tensor((-2, -3)), STORED, "a tensor is"),
    "empty and large": (tensor((0, 2**70), (1, 1)), STORED, "which no array can have"),
    "empty, long strides": (tensor((0, 2**60), (2**70, 1)), STORED, None),
    "no strides": (tensor(strides=()), STORED, r"a tensor has shape \(2, 3\) and strides \(\)"),
    "many axes": (tensor((1,) * 40, (1,) * 40), STORED, "which no array can have"),
    "shape is a list": (tensor([2, 3]), STORED, "a tensor is"),
    "truth in a shape": (tensor((True, 3)), STORED, "a tensor is"),
    "no arguments": (Call(pytorch.REBUILD, ()), STORED, "a tensor is"),
    "call of a storage": (Call(Name("torch", "FloatStorage"), ()), STORED, "it calls torch.FloatStorage"),
    "no tensor": ("text", STORED, "'x' is a str, expected a tensor"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_tensors_are_refused(tmp_path, name):
    value, entries, words = FILES[name]
    (tmp_path / "m").write_bytes(torch_file({"state_dict": {"x": value}}, entries))
    if words is None:
        assert TorchFile(tmp_path / "m").read(["x"])["x"].size == 0
        return
    with pytest.raises(ValueError, match=words) as caught:
        TorchFile(tmp_path / "m")
    assert "with PyTorch, convert it once: c = torch.load(PATH, weights_only=True)" in str(caught.value)


def test_storages_are_not_counted_twice(tmp_path):
    """Tensors that lie at the same place may not be larger together than the file, unless they are the same."""
    many = {f"x{k}": tensor((6 - k % 2,), (1,), k % 2) for k in range(1000)}
    (tmp_path / "m").write_bytes(torch_file({"state_dict": many}, STORED))
    assert len(TorchFile(tmp_path / "m").shapes) == 1000
    wide = {f"x{k}": tensor((1000 - k,), (1,), k, storage(numel=1000)) for k in range(500)}
    (tmp_path / "m").write_bytes(torch_file({"state_dict": wide}, {"data/0": bytes(4000)}))
    with pytest.raises(ValueError, match="its tensors declare 1501000 bytes, the file has"):
        TorchFile(tmp_path / "m")


def test_other_zips_are_refused(tmp_path):
    path = tmp_path / "m"
    sound = torch_file({"state_dict": {"x": tensor()}}, STORED)
    for blob, words in (
        (b"PK", "no readable zip"),
        (sound.replace(b"PK\3\4", b"PK\3\5"), "does not lie within the file"),
        (torch_file({}, {"byteorder": b"big"}), "its numbers are b'big', expected b'little' endian"),
        (torch_file([], {}), "it holds a list, expected a dict"),
        (torch_file({"state_dict": []}, {}), "it holds a list, expected a dict"),
        (torch_file({"a": 1}, {}), "'a' is a int, expected a tensor"),
        (torch_file({"state_dict": {"x": tensor()}}, STORED, zipfile.ZIP_DEFLATED), "is compressed or encrypted"),
        (torch_file({"state_dict": {"x": tensor()}}, {"data/0": bytes(20)}), "storage '0' has 20 bytes, expected 24"),
    ):
        path.write_bytes(blob)
        with pytest.raises(ValueError, match=words):
            TorchFile(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/x", b"")
        archive.writestr("b/x", b"")
    with pytest.raises(ValueError, match="entries of the zip have the same name"):
        TorchFile(path)
    with pytest.raises(IsADirectoryError, match="a folder"):
        TorchFile(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        TorchFile(tmp_path / "none")


def test_every_bit_counts(tmp_path):
    """Whichever bit of the file is flipped, it is refused, or read as it was."""
    path = tmp_path / "m"
    pytorch.save(path, {"hyper": PLAIN}, {"x": ARRAYS["x"], "part": np.arange(300.0)})
    blob, refused = path.read_bytes(), 0
    whole = TorchFile(path).read(["x", "part"])
    for bit in random.Random(0).sample(range(8 * len(blob)), 400):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        try:
            file = TorchFile(path)
            found = file.read(["x", "part"])
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (not every bit is one of a refusal)
            refused += 1
            continue
        assert file.content["hyper"] == PLAIN
        for name, array in whole.items():
            np.testing.assert_array_equal(found[name], array)
    assert refused > 300


def test_shared_storages_are_checked_once(tmp_path, monkeypatch):
    """A storage is read once for its checksum, however many tensors lie in it."""
    torch = pytest.importorskip("torch")
    x, reads = torch.randn(1000, 100), []
    torch.save({f"row {k}": x[k] for k in range(1000)}, tmp_path / "m")
    read_at = pytorch.read_at
    monkeypatch.setattr(pytorch, "read_at", lambda *given: reads.append(given[4]) or read_at(*given))
    file = TorchFile(tmp_path / "m")
    for k in range(1000):
        np.testing.assert_array_equal(file.read([f"row {k}"])[f"row {k}"], x[k].numpy())
    assert sum(reads) == 4 * x.numel() + x.numel()  # bytes for the checksum, numbers for the tensors


def test_files_that_change_while_they_are_read(tmp_path):
    path = tmp_path / "m"
    pytorch.save(path, {}, ARRAYS)
    file = TorchFile(path)
    with open(path, "r+b") as opened:
        opened.truncate(100)
    with pytest.raises(ValueError, match="x ends early, the file has changed"):
        file.read(["x"])


@pytest.mark.parametrize("system", ["few bytes at once", "no preadv"])
def test_reads_go_on_where_they_stopped(tmp_path, monkeypatch, system):
    """A call may read less than it is asked for, and Windows has no preadv."""
    pytorch.save(tmp_path / "m", {}, ARRAYS)
    file = TorchFile(tmp_path / "m")
    if system == "no preadv":
        monkeypatch.delattr(os, "preadv", raising=False)
    elif hasattr(os, "preadv"):
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda number, rooms, at: preadv(number, [rooms[0][:5]], at))
    for name, array in file.read(ARRAYS).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_entries_that_overlap_the_end(tmp_path):
    """Sizes in the directory of a zip are whatever its author wrote."""
    blob = bytearray(torch_file({"state_dict": {"x": tensor(where=storage(numel=600))}}, STORED))
    at = blob.rfind(b"PK\1\2")
    while blob[at + 46 : at + 60].find(b"data/0") < 0:
        at = blob.rfind(b"PK\1\2", 0, at)
    blob[at + 20 : at + 28] = struct.pack("<II", 2400, 2400)
    (tmp_path / "m").write_bytes(bytes(blob))
    with pytest.raises(ValueError, match="of 2400 bytes does not lie within the file"):
        TorchFile(tmp_path / "m")
