"""PyTorch's checkpoints, read without it: every kind of tensor, and what is refused."""

import collections
import io
import pickle
import random
import zipfile

import numpy as np
import pytest

from tests.attacks.bounds import refusal
from tests.attacks.damage import checkpoint_of_torch, opcodes, state, storage, tensor, torch_file, zipped_entries
from xlstm.data import pytorch, reading
from xlstm.data.pytorch import TorchFile

PLAIN = {"a": [1, -5, 2**40, 0.5, True, None, "\u00e9"], "b": {"c": (), "d": {}, "e": []}, "f": -(2**62)}


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
    assert file.shapes == {name: tuple(one.shape) for name, one in state.items()}
    for name, one in state.items():
        expected = (one.float() if name == "bfloat16" else one).numpy()
        found = file.read([name])[name]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [PLAIN, [], {}, collections.OrderedDict(a=1, b=[2])])
def test_pickles_of_python(value):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pytorch.loads(pickle.dumps(value, protocol), None) == value


class Executed:
    """It would call `print`, which is bad enough."""

    def __reduce__(self):
        return print, ("executed",)


OPCODES = {
    "no end": (b"\x80\x02N", "EOFError"),
    "tuple as a key": (b"}(N\x85Nu.", "TypeError"),
    "another name": (b"cos\nsystem\n.", "it names 'os.system'"),
    "long text": (b"X\xff\xff\xff\x7fabc.", "EOFError"),
    "unknown opcode": (b"\xff.", "KeyError: 255"),
    "a call": (pickle.dumps(Executed(), 2), r"it names '(__builtin__|builtins).print'"),
    "wide keys": (pickle.dumps({k * (2**61 - 1): None for k in range(1, 100)}, 2), "it has a whole number of 9 bytes"),
}


@pytest.mark.parametrize("name", OPCODES)
def test_other_pickles_are_refused(name, capsys):
    blob, words = OPCODES[name]
    with pytest.raises(ValueError, match=words):
        pytorch.loads(blob, len)
    assert capsys.readouterr().out == ""


def test_deep_pickles_are_bounded(tmp_path):
    """Values in values in values, which no walk may follow, and lists as many as there are bytes."""
    deep = b")" + b"\x85" * 20_000
    for content in (
        b"}" + b"(X\x01\0\0\0a" + deep + b"u.",
        *(deep + end for end in (b".", b"Q.", b"R.")),
        b"]" * 20_000,
    ):
        (tmp_path / "m").write_bytes(zipped_entries({"data.pkl": content}, zipfile.ZIP_STORED))
        assert "not read without PyTorch" in str(refusal(lambda: TorchFile(tmp_path / "m"), len(content)))
    (tmp_path / "m").write_bytes(zipped_entries({"data.pkl": b"N" * (pytorch.BYTES + 1)}, zipfile.ZIP_STORED))
    with pytest.raises(ValueError, match=r"entry data\.pkl has 1048577 bytes, expected at most"):
        TorchFile(tmp_path / "m")


def test_plain_values_are_bounded():
    cycle: list = []
    cycle.append(cycle)
    shared: list = [0]
    for _ in range(40):
        shared = [shared, shared]
    for value, words in ((cycle, "nested more than"), (shared, "it has more values"), ({1: 2}, "a key is no text")):
        with pytest.raises(ValueError, match=words):
            reading.plain(value)
    with pytest.raises(ValueError, match="it holds a Storage"):
        reading.plain([pytorch.Storage("F32", 0, 1)])
    assert reading.plain({"a": (1, [2.5])}) == {"a": [1, [2.5]]}


STORED = {"data/0": bytes(24)}
FILES = {
    "wrong storage": (tensor(where=storage("Linear")), STORED, "it names 'torch.Linear'"),
    "other count": (tensor(where=storage(numel=2**40)), STORED, "storage '0' has 24 bytes, expected 4398046511104"),
    "no storage": (tensor(where=storage(name="1")), STORED, "the zip has no entry 'data/1'"),
    "other id": (opcodes(["module", 1, 2, 3, 4]) + b"Q", STORED, "a persistent id is"),
    "too large": (tensor((3, 3)), STORED, "does not lie within its storage of 6 numbers"),
    "expanded": (tensor((10**12, 1), (0, 1)), STORED, "does not lie within its storage"),
    "empty and large": (tensor((0, 2**62), (1, 1)), STORED, "which no array can have"),
    "no strides": (tensor(strides=()), STORED, "has not as many strides as axes"),
    "no tensor": (opcodes("text"), STORED, "'x' is a str, expected a tensor"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_tensors_are_refused(tmp_path, name):
    value, entries, words = FILES[name]
    (tmp_path / "m").write_bytes(torch_file(state({"x": value}), entries))
    with pytest.raises(ValueError, match=words) as caught:
        TorchFile(tmp_path / "m")
    assert "with PyTorch, convert it once: c = torch.load(PATH, weights_only=True)" in str(caught.value)


def test_storages_are_not_counted_twice(tmp_path):
    """Tensors that lie at the same place may not be larger together than the file, unless they are the same."""
    many = {f"x{k}": tensor((6 - k % 2,), (1,), k % 2) for k in range(1000)}
    (tmp_path / "m").write_bytes(torch_file(state(many), STORED))
    assert len(TorchFile(tmp_path / "m").shapes) == 1000
    wide = {f"x{k}": tensor((1000 - k,), (1,), k, storage(numel=1000)) for k in range(500)}
    (tmp_path / "m").write_bytes(torch_file(state(wide), {"data/0": bytes(4000)}))
    with pytest.raises(ValueError, match="its tensors declare 1501000 bytes, the file has"):
        TorchFile(tmp_path / "m")


def test_other_zips_are_refused(tmp_path):
    path, content = tmp_path / "m", state({"x": tensor()})
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a/x", b"")
        archive.writestr("b/x", b"")
    for blob, words in (
        (b"PK", "File is not a zip file"),
        (torch_file(content, STORED).replace(b"PK\3\4", b"PK\3\5"), "Bad magic number"),
        (torch_file(b"}.", {"byteorder": b"big"}), "its numbers are b'big', expected b'little' endian"),
        (torch_file(pickle.dumps({"state_dict": []}), {}), "it holds a list, expected a dict"),
        (torch_file(pickle.dumps({"a": 1}), {}), "'a' is a int, expected a tensor"),
        (torch_file(content, STORED, zipfile.ZIP_DEFLATED), "is compressed"),
        (twice.getvalue(), "entries of the zip have the same name"),
    ):
        path.write_bytes(blob)
        with pytest.raises(ValueError, match=words):
            TorchFile(path)
    with pytest.raises(OSError, match="it is not a regular file"):
        TorchFile(tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        TorchFile(tmp_path / "none")


def test_every_bit_counts(tmp_path):
    """Whichever bit of the file is flipped, it is refused, or read as it was."""
    path = tmp_path / "m"
    arrays = {"x": np.arange(12.0, dtype="float32").reshape(3, 4), "part": np.arange(300.0)}
    path.write_bytes(checkpoint_of_torch(arrays, {"hyper": PLAIN}))
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
    x, opened = torch.randn(100, 100), []
    torch.save({f"row {k}": x[k] for k in range(100)}, tmp_path / "m")
    file, open_entry = TorchFile(tmp_path / "m"), zipfile.ZipFile.open
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *given: opened.append(given) or open_entry(*given))
    for k in range(100):
        np.testing.assert_array_equal(file.read([f"row {k}"])[f"row {k}"], x[k].numpy())
    assert len(opened) == 1
