"""Checkpoints of PyTorch, as torch.save and Lightning write them, read array by array, without PyTorch.

The file is a zip: `data.pkl` is a pickle of the object, and `data/0`, `data/1`, ... are the storages of its tensors,
not compressed. Names of classes in the pickle become inert stand-ins, and nothing of it is executed or imported. Sizes
that it declares are checked against the file before any is read, and checksums of the zip as storages are read.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import weakref
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data import reading, writing
from xlstm.data.tensors import DTYPES, ONE, Host, check_shape, read_at, widened

STORAGES = {
    **{"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Bool": "BOOL"},
    **{"Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8"},
}
CONVERSION = (
    "with PyTorch, convert it once: c = torch.load(PATH, weights_only=True); "
    "safetensors.torch.save_file({n: t.clone() for n, t in c['state_dict'].items()}, 'model.safetensors'); "
    "json.dump(c['hyper_parameters'], open('config.json', 'w'))"
)
# The beginning of an entry, before its name: the signature, and the lengths of the name and of an extra field.
LOCAL = struct.Struct("<4s22xHH")
CHUNK = 1 << 20  # bytes of a storage that are read at once for its checksum
BYTES = 1 << 20  # of a pickle, which is read in a second or two
WIDEST = 8  # bytes of a whole number in a pickle: a dict of wider ones may take the square of their number
DAMAGED = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OverflowError, struct.error, OSError)
UNREADABLE = (pickle.UnpicklingError, LookupError, TypeError, AttributeError, EOFError, RuntimeError, struct.error)
OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM"),
    *("SETITEMS", "EMPTY_TUPLE", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL"),
    *("REDUCE", "BINPERSID"),
)


class Name(NamedTuple):
    """A class or a function by its name."""

    module: str
    name: str


class Call(NamedTuple):
    """For `dumps`, a call of a function."""

    function: Name
    arguments: tuple[Any, ...]


class Persistent(NamedTuple):
    """For `dumps`, an object that lies outside the pickle, by its id."""

    identity: Any


PYTHON: Any = pickle
ORDERED, REBUILD = Name("collections", "OrderedDict"), Name("torch._utils", "_rebuild_tensor_v2")


class _Unpickler(PYTHON._Unpickler):  # type: ignore[misc]  # that in C takes as much memory as an index says
    """Reads plain values. Tuples become lists, which no dict has as keys; attributes of objects are left out."""

    def __init__(self, blob: bytes, storage: Callable[[Any], Any]) -> None:
        super().__init__(io.BytesIO(blob))
        self.persistent_load = storage
        self.known = {
            ORDERED: _ordered,
            REBUILD: _tensor,
            **{Name("torch", f"{kind}Storage"): kind for kind in STORAGES},
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or a function; ValueError for all but those of a checkpoint."""
        if (module, name) not in self.known:
            raise ValueError(f"it names {shown(f'{module}.{name}')}")
        return self.known[Name(module, name)]

    def _marked(self) -> None:
        items = self.pop_mark()  # which exchanges the stack
        self.append(items)

    def _last(self, count: int) -> None:
        self.stack[-count:] = [self.stack[-count:]]

    def _whole(self) -> None:
        width = self.read(1)[0]
        if width > WIDEST:
            raise ValueError(f"it has a whole number of {width} bytes, expected at most {WIDEST}")
        self.append(int.from_bytes(self.read(width), "little", signed=True))

    dispatch: ClassVar[dict[int, Callable[[Any], Any]]] = {
        **{getattr(pickle, name)[0]: PYTHON._Unpickler.dispatch[getattr(pickle, name)[0]] for name in OPCODES},
        pickle.TUPLE[0]: _marked,
        pickle.TUPLE1[0]: lambda self: self._last(1),
        pickle.TUPLE2[0]: lambda self: self._last(2),
        pickle.TUPLE3[0]: lambda self: self._last(3),
        pickle.LONG1[0]: _whole,
        pickle.BUILD[0]: lambda self: self.stack.pop(),
    }


class _Pickler(PYTHON._Pickler):  # type: ignore[misc]
    """Writes names and calls without importing anything."""

    def persistent_id(self, value: Any) -> Any:
        """Return the id of an object that lies elsewhere, else None."""
        return value.identity if isinstance(value, Persistent) else None

    def _name(self, value: Name) -> None:
        self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())

    def _call(self, value: Call) -> None:
        self.save(value.function)
        self.save(value.arguments)
        self.write(pickle.REDUCE)

    dispatch: ClassVar[dict[type, Callable[..., None]]] = {**PYTHON._Pickler.dispatch, Name: _name, Call: _call}


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
        The object, of dicts, lists, numbers and texts.
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
        self._unchecked: dict[int, zipfile.ZipInfo] = {}  # storages whose checksum is open, by where they begin
        try:
            self._archive = zipfile.ZipFile(self._file)
            entries = self._archive.infolist()
            self._entries = {entry.filename.partition("/")[2]: entry for entry in entries}  # all are in one folder
            if len(self._entries) != len(entries):
                raise ValueError("entries of the zip have the same name")
            if "byteorder" in self._entries and (order := self._content("byteorder", 16)) != b"little":
                raise ValueError(f"its numbers are {shown(order)}, expected b'little' endian")
            self.content = _dict(loads(self._content("data.pkl", BYTES), self._storage))
            self._tensors = self._state()
        except (ValueError, *DAMAGED) as error:
            raise ValueError(f"{path}: not read without PyTorch ({error}); {CONVERSION}") from error
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.storage.dtype for name, tensor in self._tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Host]:
        """Return arrays by name; bfloat16, which NumPy does not have, comes as float32."""
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> Host:
        tensor = self._tensors[name]
        dtype = np.dtype(DTYPES[tensor.storage.dtype])
        self._check_sum(name, tensor.storage.start)
        start = tensor.storage.start + tensor.offset * dtype.itemsize
        numbers = read_at(f"{self.path}: {name}", self._file, start, DTYPES[tensor.storage.dtype], tensor.span)
        if numbers.size:
            steps = [stride * dtype.itemsize for stride in tensor.strides]
            numbers = np.ascontiguousarray(np.lib.stride_tricks.as_strided(numbers, tensor.shape, steps))
        return widened(numbers.reshape(tensor.shape), tensor.storage.dtype)

    def _check_sum(self, name: str, start: int) -> None:
        """Raise ValueError unless a storage has its checksum; each is read once for it."""
        with ONE:
            if start not in self._unchecked:
                return
            try:
                with self._archive.open(self._unchecked[start]) as storage:
                    while storage.read(CHUNK):
                        pass
            except DAMAGED as error:
                raise ValueError(f"{self.path}: {name} is damaged ({error})") from error
            del self._unchecked[start]

    def _place(self, name: str) -> tuple[int, int]:
        """Return where an entry begins in the file, and how many bytes it has."""
        if name not in self._entries:
            raise ValueError(f"the zip has no entry {shown(name)}")
        entry = self._entries[name]
        size, begin = entry.file_size, entry.header_offset
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != size:
            raise ValueError(f"entry {shown(name)} is compressed or encrypted, which PyTorch's are not")
        self._file.seek(begin)
        signature, *lengths = LOCAL.unpack(self._file.read(LOCAL.size))
        start = begin + LOCAL.size + sum(lengths)
        if signature != b"PK\3\4" or start + size > self._size:
            raise ValueError(f"entry {shown(name)} of {size} bytes does not lie within the file of {self._size}")
        return start, size

    def _content(self, name: str, most: int) -> bytes:
        """Return the bytes of an entry, once its checksum is checked."""
        _, size = self._place(name)
        if size > most:
            raise ValueError(f"entry {name} has {size} bytes, expected at most {most}")
        return self._archive.read(self._entries[name])

    def _storage(self, identity: Any) -> Storage:
        """Return the storage of a persistent id: ["storage", kind, name of the entry, device, count]."""
        if not isinstance(identity, list) or len(identity) != 5 or identity[0] != "storage":
            raise ValueError(f"a persistent id is {shown(identity)}, expected that of a storage")
        _, kind, name, _, numel = identity
        if not isinstance(kind, str) or kind not in STORAGES or not isinstance(name, str) or type(numel) is not int:
            raise ValueError(
                f"a storage is {shown(identity)}, expected one of numbers, its name and how many there are"
            )
        start, size = self._place(f"data/{name}")
        expected = numel * np.dtype(DTYPES[STORAGES[kind]]).itemsize
        if size != expected:
            raise ValueError(f"storage {shown(name)} has {size} bytes, expected {expected} for {numel} of {kind}")
        self._unchecked[start] = self._entries[f"data/{name}"]
        return Storage(STORAGES[kind], start, numel)

    def _state(self) -> dict[str, Tensor]:
        """Return the tensors by name, once their sizes are checked together: several may lie at the same place."""
        state = _dict(self.content.get("state_dict", self.content))
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"{shown(name)} is a {type(tensor).__name__}, expected a tensor")
        declared = sum(tensor.nbytes for tensor in set(state.values()))
        if declared > self._size:
            raise ValueError(f"its tensors declare {declared} bytes, the file has {self._size}")
        return state


def loads(blob: bytes, storage: Callable[[Any], Any]) -> Any:
    """Return the value of a pickle, where `storage` gives the object of a persistent id; ValueError for any other."""
    try:
        return _Unpickler(blob, storage).load()
    except UNREADABLE as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"its pickle is damaged, or holds more than plain values and tensors ({problem})") from error


def dumps(value: Any) -> bytes:
    """Return the pickle, of protocol 2, of plain values, `Name`, `Call` and `Persistent`."""
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    return file.getvalue()


def save(path: str | os.PathLike[str], content: Mapping[str, Any], arrays: Mapping[str, Host]) -> None:
    """Write a checkpoint that torch.load reads, whole or not at all: plain values, and arrays as `state_dict`."""
    kinds = {np.dtype(DTYPES[dtype]): kind for kind, dtype in STORAGES.items() if dtype != "BF16"}
    state, storages = {}, {}
    for k, (name, array) in enumerate(arrays.items()):
        storages[f"data/{k}"] = host = np.asarray(array, order="C")
        storage = Persistent(("storage", Name("torch", f"{kinds[host.dtype]}Storage"), str(k), "cpu", host.size))
        strides = tuple(step // host.itemsize for step in host.strides)
        state[name] = Call(REBUILD, (storage, 0, host.shape, strides, False, Call(ORDERED, ())))
    with writing.whole(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr("archive/data.pkl", dumps({**content, "state_dict": state}))
        archive.writestr("archive/byteorder", "little")
        for name, host in storages.items():
            archive.writestr(f"archive/{name}", host.tobytes())
        archive.writestr("archive/version", "3\n")


def plain(value: Any) -> Any:
    """Return a value made of dicts, lists and scalars as JSON has them, tuples as lists; ValueError if it holds others.

    It may be no deeper and no larger than a value of JSON, however often a pickle repeats its parts.
    """
    return _plain(value, 0, [reading.VALUES])


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it has more than {reading.VALUES} values")
    if depth > reading.DEEPEST:
        raise ValueError(f"it is nested more than {reading.DEEPEST} deep")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is no text")
        return {key: _plain(inner, depth + 1, left) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, depth + 1, left) for inner in value]
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"it holds a {type(value).__name__}, expected numbers, texts, lists and dicts")
    return value


def _ordered() -> dict[Any, Any]:
    return {}


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, expected a dict")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """Return the tensor that `_rebuild_tensor_v2` makes of a storage, an offset, a shape, strides and more."""
    if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in (*shape, *strides, offset)):
        problem = f"a tensor is {shown((storage, offset, shape, strides))}"
        raise ValueError(f"{problem}, expected a storage, an offset, a shape and strides")
    tensor = Tensor(storage, offset, tuple(shape), tuple(strides))
    if len(shape) != len(strides):
        raise ValueError(f"a tensor has shape {shown(tensor.shape)} and strides {shown(tensor.strides)}")
    check_shape("a tensor", shape, np.dtype(DTYPES[storage.dtype]).itemsize)
    if offset + tensor.span > storage.numel or math.prod(shape) > storage.numel:
        where = f"shape {shown(tensor.shape)}, strides {shown(tensor.strides)} and offset {shown(offset)}"
        raise ValueError(f"a tensor of {where} does not lie within its storage of {storage.numel} numbers")
    return tensor
