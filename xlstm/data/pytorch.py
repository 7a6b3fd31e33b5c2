"""Checkpoints of `torch.save` and Lightning, read array by array without PyTorch.

The file is a zip: `data.pkl` is a pickle of the object, and `data/0`, `data/1`, ... are the
storages of its tensors, not compressed. Names of classes in the pickle become inert stand-ins;
nothing in it is executed or imported. Declared sizes are checked against the file before anything
is read. The zip's checksums are checked as storages are read.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data import reading
from xlstm.data.tensors import DTYPES, Host, check_shape, widened

STORAGES = {
    "Double": "F64",
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Bool": "BOOL",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
}
PICKLED = (".ckpt", ".pt", ".pth", ".bin")  # suffixes of such files
CONVERSION = (
    "with PyTorch, convert it once: c = torch.load(PATH, weights_only=True);"
    " safetensors.torch.save_file({n: t.clone() for n, t in c['state_dict'].items()},"
    " 'model.safetensors'); json.dump(c['hyper_parameters'], open('config.json', 'w'))"
)
BYTES = 1 << 20  # the most bytes of a pickle, which take a second or two to read
# the most bytes of a whole number in a pickle: a dict of wider ones may take quadratic time
WIDEST = 8
DAMAGED = (  # errors of zips and pickles with other content
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    OverflowError,
    struct.error,
    OSError,
)
OPCODES = (
    "PROTO",
    "FRAME",
    "STOP",
    "MARK",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "EMPTY_LIST",
    "APPEND",
    "APPENDS",
    "EMPTY_DICT",
    "SETITEM",
    "SETITEMS",
    "EMPTY_TUPLE",
    "BINPUT",
    "LONG_BINPUT",
    "MEMOIZE",
    "BINGET",
    "LONG_BINGET",
    "GLOBAL",
    "STACK_GLOBAL",
    "REDUCE",
    "BINPERSID",
)
PYTHON: Any = pickle._Unpickler  # the one in C takes as much memory as an index says


class _Unpickler(PYTHON):  # type: ignore[misc]
    """An unpickler of plain values. Tuples become lists, so a dict cannot have them as keys;
    attributes of objects are left out.
    """

    def __init__(self, blob: bytes, storage: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(blob))
        self.persistent_load = storage

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for a class or function of a checkpoint; raise ValueError for any
        other.
        """
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: {}
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Tensor.of
        if module == "torch" and name.removesuffix("Storage") in STORAGES:
            return name.removesuffix("Storage")
        raise ValueError(f"it names {shown(f'{module}.{name}')}")

    def _last(self, count: int) -> None:
        self.stack[-count:] = [self.stack[-count:]]

    def _whole(self) -> None:
        width = self.read(1)[0]
        if width > WIDEST:
            raise ValueError(f"it has a whole number of {width} bytes, expected at most {WIDEST}")
        self.append(int.from_bytes(self.read(width), "little", signed=True))

    dispatch: ClassVar[dict[int, Callable[[Any], Any]]] = {
        **{getattr(pickle, name)[0]: PYTHON.dispatch[getattr(pickle, name)[0]] for name in OPCODES},
        pickle.TUPLE[0]: PYTHON.dispatch[pickle.LIST[0]],
        pickle.TUPLE1[0]: lambda self: self._last(1),
        pickle.TUPLE2[0]: lambda self: self._last(2),
        pickle.TUPLE3[0]: lambda self: self._last(3),
        pickle.LONG1[0]: _whole,
        pickle.BUILD[0]: lambda self: self.stack.pop(),
    }


class Storage(NamedTuple):
    """Numbers of one dtype in the file, given by the name of their entry."""

    dtype: str
    entry: str
    numel: int


class Tensor(NamedTuple):
    """A view of a storage; strides are in numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        """Return the tensor that `_rebuild_tensor_v2` makes; raise ValueError unless it lies within
        its storage.
        """
        if not isinstance(storage, Storage) or not all(
            type(n) is int and n >= 0 for n in (*shape, *strides, offset)
        ):
            raise ValueError(
                f"a tensor is {shown((storage, offset, shape, strides))}, expected a storage, an"
                " offset, a shape and strides"
            )
        tensor = cls(storage, offset, tuple(shape), tuple(strides))
        where = (
            f"a tensor of shape {shown(tensor.shape)}, strides {shown(tensor.strides)} and offset"
            f" {shown(offset)}"
        )
        if len(shape) != len(strides):
            raise ValueError(f"{where} has different numbers of strides and axes")
        check_shape("a tensor", shape, storage.dtype)
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if (0 not in shape and offset + span > storage.numel) or math.prod(shape) > storage.numel:
            raise ValueError(f"{where} does not lie within its storage of {storage.numel} numbers")
        return tensor


class TorchFile:
    """A PyTorch checkpoint: its tensors, and everything else in it.

    The file stays open as long as the object exists. The tensors come from the entry `state_dict`,
    or from the whole object if there is no such entry.

    Attributes
    ----------
    content : dict
        The object, made of dicts, lists, numbers and texts.
    shapes : dict of str to tuple of int
    dtypes : dict of str to str
        The dtypes, by the names of safetensors.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path = reading.regular(Path(path))
        self._size = path.stat().st_size
        self._latest: tuple[Storage | None, Host] = None, np.empty(0)
        try:
            self._archive = zipfile.ZipFile(path)
            entries = self._archive.infolist()
            # All entries are in one folder.
            self._entries = {entry.filename.partition("/")[2]: entry for entry in entries}
            if len(self._entries) != len(entries):
                raise ValueError("entries of the zip have the same name")
            if "byteorder" in self._entries and (order := self._bytes("byteorder")) != b"little":
                raise ValueError(f"its numbers are {shown(order)}, expected b'little' endian")
            self.content = _dict(_Unpickler(self._bytes("data.pkl"), self._storage).load())
            self._tensors = self._state()
        except DAMAGED as error:
            raise ValueError(
                f"{path}: not read without PyTorch ({type(error).__name__}: {error}); {CONVERSION}"
            ) from error
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.storage.dtype for name, tensor in self._tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Host]:
        """Return arrays by name; bfloat16, which NumPy lacks, becomes float32."""
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> Host:
        storage, offset, shape, strides = self._tensors[name]
        try:
            numbers = self._numbers(storage)
        except DAMAGED as error:
            raise ValueError(f"{self.path}: {name} is damaged ({error})") from error
        steps = [stride * numbers.itemsize for stride in strides]
        view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps)
        return widened(view.copy(), storage.dtype)

    def _numbers(self, storage: Storage) -> Host:
        """Return all numbers of a storage, checked by its checksum.

        Consecutive tensors of one storage read it once.
        """
        if self._latest[0] != storage:
            blob = self._archive.read(self._entries[storage.entry])
            numbers = np.frombuffer(blob, DTYPES[storage.dtype], storage.numel)
            self._latest = storage, numbers
        return self._latest[1]

    def _entry(self, name: str) -> zipfile.ZipInfo:
        """Return an entry of the zip; raise ValueError unless its bytes lie uncompressed in the
        file.
        """
        if name not in self._entries:
            raise ValueError(f"the zip has no entry {shown(name)}")
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"entry {shown(name)} is compressed, which PyTorch's are not")
        if entry.file_size > self._size:
            raise ValueError(
                f"entry {shown(name)} has {entry.file_size} bytes, the file {self._size}"
            )
        return entry

    def _bytes(self, name: str) -> bytes:
        """Return the bytes of a short entry, checked by its checksum."""
        entry = self._entry(name)
        if entry.file_size > BYTES:
            raise ValueError(f"entry {name} has {entry.file_size} bytes, expected at most {BYTES}")
        return self._archive.read(entry)

    def _storage(self, identity: Any) -> Storage:
        """Return the storage of a persistent id: ["storage", kind, name of the entry, device,
        count].
        """
        match identity:
            case ["storage", str(kind), str(name), _, int(numel)] if kind in STORAGES:
                size = self._entry(f"data/{name}").file_size
                dtype = STORAGES[kind]
            case _:
                raise ValueError(
                    f"a persistent id is {shown(identity)}, expected that of a storage of numbers"
                )
        expected = numel * np.dtype(DTYPES[dtype]).itemsize
        if size != expected:
            raise ValueError(
                f"storage {shown(name)} has {size} bytes, expected {expected} for {numel} of {kind}"
            )
        return Storage(dtype, f"data/{name}", numel)

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors by name; check their total size, since tensors may overlap."""
        state = _dict(self.content.get("state_dict", self.content))
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"{shown(name)} is a {type(tensor).__name__}, expected a tensor")
        declared = sum(
            math.prod(tensor.shape) * np.dtype(DTYPES[tensor.storage.dtype]).itemsize
            for tensor in {*state.values()}
        )
        if declared > self._size:
            raise ValueError(f"its tensors declare {declared} bytes, the file has {self._size}")
        return state


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, expected a dict")
    return value
