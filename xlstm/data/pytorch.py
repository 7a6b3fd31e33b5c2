"""Checkpoints of PyTorch, as torch.save and Lightning write them, read array by array, without PyTorch or unpickling.

The file is a zip: `data.pkl` is a pickle of the object, and `data/0`, `data/1`, ... are the storages of its tensors,
not compressed. `pickles.py` reads the pickle. Sizes that it declares are checked against the file before any is read,
and the checksums of the zip as entries are read: zipfile, which checks them, would read tensors one after the other.
"""

from __future__ import annotations

import math
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data import pickles, writing
from xlstm.data.pickles import ORDERED, Call, Name, Persistent
from xlstm.data.tensors import DTYPES, Host, check_shape, read_at, widened

STORAGES = {
    **{"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Bool": "BOOL"},
    **{"Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8"},
}
TORCH = "torch"
REBUILD = Name("torch._utils", "_rebuild_tensor_v2")
CONVERSION = (
    "with PyTorch, convert it once: c = torch.load(PATH, weights_only=True); "
    "safetensors.torch.save_file({n: t.clone() for n, t in c['state_dict'].items()}, 'model.safetensors'); "
    "json.dump(c['hyper_parameters'], open('config.json', 'w'))"
)
# The beginning of an entry, before its name: the signature, and the lengths of the name and of an extra field.
LOCAL = struct.Struct("<4s22xHH")
CHUNK = 1 << 20  # bytes of a storage that are read at once for its checksum
DAMAGED = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OverflowError, struct.error, OSError)


@dataclass(frozen=True)
class Storage:
    """Numbers of one dtype in the file, from a byte on."""

    dtype: str
    start: int
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; the strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """How many numbers of the storage lie between the first and the last one, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor by itself."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.storage.dtype]).itemsize


class TorchFile:
    """A checkpoint: its tensors, and all else that it holds.

    The file stays open as long as the object exists. The tensors are those of the entry `state_dict`, or the whole
    object where there is no such entry.

    Attributes
    ----------
    content : dict
        The object, of dicts, lists, tuples, numbers and texts.
    shapes : dict of str to tuple of int
    dtypes : dict of str to str
        The names that safetensors has for them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path}: a folder, expected a file of PyTorch")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self._file = open(path, "rb")  # noqa: SIM115 (closed with the object)
        weakref.finalize(self, self._file.close)
        self._size = os.fstat(self._file.fileno()).st_size
        self._sums: dict[int, int] = {}  # checksums of storages that were not checked yet, by where they begin
        try:
            self._entries = self._listed()
            known = {str(REBUILD): _tensor, **{f"{TORCH}.{name}Storage": None for name in STORAGES}}
            self.content = self._checked(pickles.loads(self._pickle(), known, self._storage))
            self._tensors = self._state()
        except ValueError as error:
            raise ValueError(f"{path}: not read without PyTorch ({error}); {CONVERSION}") from error
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.storage.dtype for name, tensor in self._tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Host]:
        """Return arrays by name; bfloat16, which NumPy does not have, comes as float32."""
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> Host:
        tensor = self._tensors[name]
        dtype = np.dtype(DTYPES[tensor.storage.dtype])
        self._check_sum(tensor.storage.start, tensor.storage.numel * dtype.itemsize, name)
        start = tensor.storage.start + tensor.offset * dtype.itemsize
        found = read_at(f"{self.path}: {name}", self._file, start, DTYPES[tensor.storage.dtype], tensor.span)
        if not found.size or _is_contiguous(tensor):
            return widened(found.reshape(tensor.shape), tensor.storage.dtype)
        steps = [stride * dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(found, tensor.shape, steps)
        return widened(np.ascontiguousarray(view), tensor.storage.dtype)

    def _listed(self) -> dict[str, zipfile.ZipInfo]:
        """Return the entries of the zip by their names without the folder that all of them are in."""
        try:
            with zipfile.ZipFile(self._file) as archive:
                entries = archive.infolist()
        except DAMAGED as error:
            raise ValueError(f"no readable zip: {error}") from error
        found = {entry.filename.partition("/")[2]: entry for entry in entries}
        if len(found) != len(entries):
            raise ValueError("entries of the zip have the same name")
        return found

    def _place(self, name: str) -> tuple[int, int]:
        """Return where an entry begins in the file, and how many bytes it has."""
        if name not in self._entries:
            raise ValueError(f"the zip has no entry {shown(name)}")
        entry = self._entries[name]
        size, begin = entry.file_size, entry.header_offset
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != size:
            raise ValueError(f"entry {shown(name)} is compressed or encrypted, which PyTorch's are not")
        if not 0 <= begin <= self._size - LOCAL.size:
            raise ValueError(f"entry {shown(name)} begins at byte {begin}, the file has {self._size}")
        self._file.seek(begin)
        signature, *lengths = LOCAL.unpack(self._file.read(LOCAL.size))
        start = begin + LOCAL.size + sum(lengths)
        if signature != b"PK\3\4" or start + size > self._size:
            raise ValueError(f"entry {shown(name)} of {size} bytes does not lie within the file of {self._size}")
        return start, size

    def _check_sum(self, start: int, size: int, name: str) -> None:
        """Raise ValueError unless a storage has its checksum; each is read once for it."""
        if (expected := self._sums.get(start)) is None:
            return
        found, where = 0, f"{self.path}: {name}"
        for done in range(0, size, CHUNK):
            part = read_at(where, self._file, start + done, "u1", min(CHUNK, size - done))
            found = zlib.crc32(part.data, found)
        if found != expected:
            raise ValueError(f"{where} is damaged, its bytes are not those of its checksum")
        self._sums.pop(start, None)  # another thread may have done the same

    def _pickle(self) -> bytes:
        start, size = self._place("data.pkl")
        if size > pickles.BYTES:
            raise ValueError(f"its pickle has {size} bytes, expected at most {pickles.BYTES}")
        if "byteorder" in self._entries:
            place, length = self._place("byteorder")
            self._file.seek(place)
            if (order := self._file.read(min(length, 16))) != b"little":
                raise ValueError(f"its numbers are {shown(order)}, expected b'little' endian")
        self._file.seek(start)
        found = self._file.read(size)
        if zlib.crc32(found) != self._entries["data.pkl"].CRC:
            raise ValueError("its pickle is damaged, its bytes are not those of its checksum")
        return found

    def _storage(self, given: Any) -> Storage:
        """Return the storage of a persistent id: ("storage", class, name of the entry, device, count)."""
        if not isinstance(given, tuple) or len(given) != 5 or given[0] != "storage" or not isinstance(given[1], Name):
            raise ValueError(f"a persistent id is {shown(given)}, expected that of a storage")
        kind, name, numel = given[1].last.removesuffix("Storage"), given[2], given[4]
        if kind not in STORAGES or not isinstance(name, str) or type(numel) is not int:
            raise ValueError(f"a storage is {shown(given)}, expected one of numbers, its name and how many there are")
        start, size = self._place(f"data/{name}")
        expected = numel * np.dtype(DTYPES[STORAGES[kind]]).itemsize
        if size != expected:
            raise ValueError(f"storage {shown(name)} has {size} bytes, expected {expected} for {numel} of {kind}")
        self._sums[start] = self._entries[f"data/{name}"].CRC
        return Storage(STORAGES[kind], start, numel)

    def _checked(self, content: Any) -> dict[Any, Any]:
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a dict")
        return content

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors by name, once their sizes are checked together: several may lie at the same place."""
        state = self._checked(self.content.get("state_dict", self.content))
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"{shown(name)} is a {type(tensor).__name__}, expected a tensor")
        declared = sum(tensor.nbytes for tensor in set(state.values()))
        if declared > self._size:
            raise ValueError(f"its tensors declare {declared} bytes, the file has {self._size}")
        return state


def save(path: str | os.PathLike[str], content: Mapping[str, Any], arrays: Mapping[str, Host]) -> None:
    """Write a checkpoint that torch.load reads, whole or not at all: plain values, and arrays as `state_dict`."""
    kinds = {np.dtype(DTYPES[dtype]): kind for kind, dtype in STORAGES.items() if dtype != "BF16"}
    state, storages = {}, {}
    for k, (name, array) in enumerate(arrays.items()):
        storages[f"data/{k}"] = host = np.asarray(array, order="C")
        storage = Persistent(("storage", Name(TORCH, f"{kinds[host.dtype]}Storage"), str(k), "cpu", host.size))
        strides = tuple(step // host.itemsize for step in host.strides)
        hooks = Call(Name(*ORDERED.split(".")), ())
        state[name] = Call(REBUILD, (storage, 0, host.shape, strides, False, hooks))
    with writing.whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("archive/data.pkl", pickles.dumps({**content, "state_dict": state}))
        archive.writestr("archive/byteorder", "little")
        for name, host in storages.items():
            archive.writestr(f"archive/{name}", host.tobytes())
        archive.writestr("archive/version", "3\n")


def _tensor(*given: Any) -> Tensor:
    """Return the tensor that `_rebuild_tensor_v2` makes of a storage, an offset, a shape, strides and more."""
    storage, offset, shape, strides = (*given, None, None, None, None)[:4]
    counts = [*shape, *strides, offset] if isinstance(shape, tuple) and isinstance(strides, tuple) else [None]
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError(f"a tensor is {shown(given)}, expected a storage, an offset, a shape and strides")
    found = Tensor(storage, offset, shape, strides)
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has shape {shown(shape)} and strides {shown(strides)}")
    check_shape("a tensor", shape, np.dtype(DTYPES[storage.dtype]).itemsize)
    if offset + found.span > storage.numel or math.prod(shape) > storage.numel:
        where = f"shape {shown(shape)}, strides {shown(strides)} and offset {shown(offset)}"
        raise ValueError(f"a tensor of {where} does not lie within its storage of {storage.numel} numbers")
    return found


def _is_contiguous(tensor: Tensor) -> bool:
    """Tell whether numbers lie in the order of C."""
    expected = 1
    for n, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True
