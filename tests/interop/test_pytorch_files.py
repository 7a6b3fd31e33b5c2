"""PyTorch's checkpoints, read without it: every kind of tensor, and what is refused."""

import collections
import io
import pickle
import random
import zipfile

import numpy as np
import pytest

from tests.attacks.bounds import refusal
from tests.attacks.damage import (
    checkpoint_of_torch,
    opcodes,
    state,
    storage,
    tensor,
    torch_file,
    zipped_entries,
)
from xlstm.data import pytorch
from xlstm.data.pytorch import TorchFile

STORED = {"data/0": bytes(24)}
PLAIN = {
    "a": [1, -5, 2**40, 0.5, True, None, "\u00e9"],
    "b": {"c": (), "d": {}, "e": []},
    "f": -(2**62),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_of_torch(tmp_path, protocol):
    """Views, narrow dtypes, storages that are shared, and the attributes of a state dict."""
    torch = pytest.importorskip("torch")
    x = torch.randn(6, 5)
    state = collections.OrderedDict(
        x=x, turned=x.T, part=x[1:4, ::2], again=x, none=torch.zeros(0, 3), one=x[2, 3]
    )
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


class Executed:
    """It would call `print`, which is bad enough."""

    def __reduce__(self):
        return print, ("executed",)


def of(value, entries=STORED):
    """A checkpoint of one tensor, of which this is the pickle."""
    return torch_file(state({"x": value}), entries)


def two_folders():
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        archive.writestr("a/x", b"")
        archive.writestr("b/x", b"")
    return blob.getvalue()


REFUSED = {
    "tuple as a key": (torch_file(b"}(N\x85Nu.", {}), "TypeError"),
    "unknown opcode": (torch_file(b"\xff.", {}), "KeyError: 255"),
    "a call": (
        torch_file(pickle.dumps(Executed(), 2), {}),
        r"it names '(__builtin__|builtins).print'",
    ),
    "wide keys": (
        torch_file(pickle.dumps({k * (2**61 - 1): None for k in range(1, 100)}, 2), {}),
        "it has a whole number of 9 bytes",
    ),
    "wrong storage": (of(tensor(where=storage("Linear"))), "it names 'torch.Linear'"),
    "other count": (
        of(tensor(where=storage(numel=2**40))),
        "storage '0' has 24 bytes, expected 4398046511104",
    ),
    "no storage": (of(tensor(where=storage(name="1"))), "the zip has no entry 'data/1'"),
    "other id": (of(opcodes(["module", 1, 2, 3, 4]) + b"Q"), "a persistent id is"),
    "too large": (of(tensor((3, 3))), "does not lie within its storage of 6 numbers"),
    "expanded": (of(tensor((10**12, 1), (0, 1))), "does not lie within its storage"),
    "empty and large": (of(tensor((0, 2**62), (1, 1))), "which no array can have"),
    "no tensor": (of(opcodes("text")), "'x' is a str, expected a tensor"),
    "big endian": (torch_file(b"}.", {"byteorder": b"big"}), "its numbers are b'big'"),
    "compressed": (
        torch_file(state({"x": tensor()}), STORED, zipfile.ZIP_DEFLATED),
        "is compressed",
    ),
    "two folders": (two_folders(), "entries of the zip have the same name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused(tmp_path, capsys, name):
    blob, words = REFUSED[name]
    (tmp_path / "m").write_bytes(blob)
    with pytest.raises(ValueError, match=words) as caught:
        TorchFile(tmp_path / "m")
    assert "with PyTorch, convert it once: c = torch.load(PATH, weights_only=True)" in str(
        caught.value
    )
    assert capsys.readouterr().out == ""


def test_deep_pickles_are_bounded(tmp_path):
    """Values in values in values, which no walk may follow, and lists as many as there are
    bytes.
    """
    deep = b")" + b"\x85" * 100_000
    for content in (
        b"}" + b"(X\x01\0\0\0a" + deep + b"u.",
        *(deep + end for end in (b".", b"Q.", b"R.")),
        b"]" * 100_000,
    ):
        (tmp_path / "m").write_bytes(zipped_entries({"data.pkl": content}, zipfile.ZIP_STORED))
        assert "not read without PyTorch" in str(
            refusal(lambda: TorchFile(tmp_path / "m"), len(content))
        )
    (tmp_path / "m").write_bytes(
        zipped_entries({"data.pkl": b"N" * (pytorch.BYTES + 1)}, zipfile.ZIP_STORED)
    )
    with pytest.raises(ValueError, match=r"entry data\.pkl has 1048577 bytes, expected at most"):
        TorchFile(tmp_path / "m")


def test_storages_are_not_counted_twice(tmp_path):
    """Tensors that lie at the same place may not be larger together than the file, unless they are
    the same.
    """
    many = {f"x{k}": tensor((6 - k % 2,), (1,), k % 2) for k in range(1000)}
    (tmp_path / "m").write_bytes(torch_file(state(many), STORED))
    assert len(TorchFile(tmp_path / "m").shapes) == 1000
    wide = {f"x{k}": tensor((1000 - k,), (1,), k, storage(numel=1000)) for k in range(500)}
    (tmp_path / "m").write_bytes(torch_file(state(wide), {"data/0": bytes(4000)}))
    with pytest.raises(ValueError, match="its tensors declare 1501000 bytes, the file has"):
        TorchFile(tmp_path / "m")


def test_every_bit_counts(tmp_path):
    """Whichever bit of the file is flipped, it is refused, or read as it was."""
    path = tmp_path / "m"
    arrays = {"x": np.arange(12.0, dtype="float32").reshape(3, 4), "part": np.arange(300.0)}
    path.write_bytes(checkpoint_of_torch(arrays, {"hyper": PLAIN}))
    blob = path.read_bytes()
    refused = 0
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
