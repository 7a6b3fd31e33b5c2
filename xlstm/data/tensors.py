"""safetensors files, read array by array: eight bytes of length, a header in JSON, then the arrays one after another.

The header is checked against the size of the file before any array is read.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data import reading

Host = np.ndarray[Any, Any]
ONE = threading.Lock()  # of the position of files
METADATA = "__metadata__"
AXES = 32
# The format's own names; float8 and the like are refused.
DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"},
}


class Tensors:
    """The arrays of a file: names, shapes and dtypes of all, and any of them when it is asked for.

    The file stays open as long as the object exists: all of it is of one version of the file, which another process may
    replace meanwhile.

    Attributes
    ----------
    metadata : dict of str to str
    shapes : dict of str to tuple of int
    dtypes : dict of str to str
        The format's own names.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(f"{path}: a folder, expected a safetensors file")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self.metadata: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._starts: dict[str, int] = {}
        self._file = open(path, "rb")  # noqa: SIM115 (closed with the object)
        weakref.finalize(self, self._file.close)
        try:
            self._read_header()
        except ValueError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from error

    def read(self, names: Iterable[str] | None = None) -> dict[str, Host]:
        """Return arrays, by default all; bfloat16, which NumPy does not have, comes as float32."""
        return {name: self._read(name) for name in (self.shapes if names is None else names)}

    def _read(self, name: str) -> Host:
        shape, dtype = self.shapes[name], self.dtypes[name]
        found = read_at(f"{self.path}: {name}", self._file, self._starts[name], DTYPES[dtype], math.prod(shape))
        return widened(found, dtype).reshape(shape)

    def mapped(self, name: str) -> Host | None:
        """Return an array whose numbers stay in the file until they are used; changes of it do not reach the file.

        It is None where NumPy cannot take the numbers as they lie, and on Windows, where nobody could replace the file.
        """
        shape, start, dtype = self.shapes[name], self._starts[name], np.dtype(DTYPES[self.dtypes[name]])
        if self.dtypes[name] == "BF16" or start % dtype.itemsize or os.name == "nt":
            return None
        return np.frombuffer(self._map, dtype, math.prod(shape), start).reshape(shape)

    @functools.cached_property
    def _map(self) -> mmap.mmap:
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"its header has {length} bytes, the file {size}")
        if length > reading.JSON_BYTES:
            raise ValueError(f"its header has {length} bytes, expected at most {reading.JSON_BYTES}")
        header = reading.from_json("header", self._file.read(length))
        if not isinstance(header, dict):
            raise ValueError(f"its header is a {type(header).__name__}, expected an object")
        self.metadata = header.pop(METADATA, {})
        if not isinstance(self.metadata, dict) or not all(isinstance(v, str) for v in self.metadata.values()):
            raise ValueError(f"its {METADATA} are {shown(self.metadata)}, expected names and texts")
        end = 0
        for first, last, name in sorted((*self._span(name, about), name) for name, about in header.items()):
            if first != end:
                before = f"expected {end}, the end of the one before"
                raise ValueError(f"{name} begins at byte {first} of the arrays, {before}")
            end, self._starts[name] = last, 8 + length + first
        if end != size - 8 - length:
            raise ValueError(f"its arrays have {end} bytes, the file has {size - 8 - length} for them")

    def _span(self, name: str, about: Any) -> tuple[int, int]:
        """Return the bytes in which an array lies, once its description is checked."""
        if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} is {shown(about)}, expected dtype, shape and data_offsets")
        dtype, shape, span = about["dtype"], about["shape"], about["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{name} has dtype {shown(dtype)}, expected one of {', '.join(DTYPES)}")
        for numbers in (shape, span):
            if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
                raise ValueError(f"{name} has {shown(numbers)}, expected whole numbers from 0 up")
        itemsize = np.dtype(DTYPES[dtype]).itemsize
        check_shape(name, shape, itemsize)
        if len(span) != 2 or span[1] - span[0] != math.prod(shape) * itemsize:
            raise ValueError(f"{name} of {dtype} has shape {shown(shape)} but lies in {shown(span)}")
        self.shapes[name], self.dtypes[name] = tuple(shape), dtype
        return span[0], span[1]


def read_at(where: str, file: BinaryIO, start: int, dtype: str, count: int) -> Host:
    """Return `count` numbers from a byte of a file on; several threads may read one file at the same time."""
    found = np.empty(count, dtype)
    room, done = found.view(np.uint8).data, 0
    while done < found.nbytes:
        if hasattr(os, "preadv"):
            some = os.preadv(file.fileno(), [room[done:]], start + done)
        else:  # Windows
            with ONE:
                file.seek(start + done)
                some = file.readinto(room[done:])  # type: ignore[attr-defined]
        if not some:
            raise ValueError(f"{where} ends early, the file has changed while it was read")
        done += some
    return found


def widened(array: Host, dtype: str) -> Host:
    """Return an array as it was read; bfloat16, which NumPy does not have, as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array


def check_shape(name: str, shape: Sequence[int], itemsize: int) -> None:
    """Raise ValueError for a shape that no array of NumPy can have."""
    if len(shape) > AXES or math.prod(n or 1 for n in shape) * itemsize >= 2**63:
        raise ValueError(f"{name} has shape {shown(shape)}, which no array can have")
