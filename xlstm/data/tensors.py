"""safetensors files, read array by array.

A file has eight bytes for the header's length, a header in JSON, and then the arrays.

The package safetensors checks the header against the size of the file before any array is read.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.checks import shown
from xlstm.data import reading

Host = np.ndarray[Any, Any]
ONE = threading.Lock()  # guards the position of files
METADATA = "__metadata__"
AXES = 32
# The format's own names of dtypes; float8 and similar dtypes are refused.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "BOOL": "?",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
}
# Files that users give by mistake, by their first bytes.
OTHERS = {
    b"PK\x03\x04": "is a zip archive, as those of PyTorch and Keras are",
    b"\x80": "is a pickle, as old files of PyTorch are",
    b"\x89HDF": "is an HDF5 file, as old ones of Keras are",
    b"version https://": "is a pointer of Git LFS, whose file has not been downloaded",
    b"<": "is a page of HTML or XML",
}


class Tensors:
    """The arrays of a file: names, shapes and dtypes at once, and numbers on request.

    The file stays open as long as the object exists. So all arrays come from one version of the
    file, even if another process replaces it.

    Attributes
    ----------
    metadata : dict of str to str
    shapes : dict of str to tuple of int
    dtypes : dict of str to str
        The format's own names.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path = reading.regular(checks.path("load", "path", path))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._starts: dict[str, int] = {}
        self._file = open(path, "rb")  # noqa: SIM115 (closed with the object)
        weakref.finalize(self, self._file.close)
        try:
            self._read_header()
        except (ValueError, SafetensorError) as error:
            raise ValueError(
                f"{path}: not a readable safetensors file ({self._other() or error})"
            ) from error

    def read(self, names: Iterable[str] | None = None) -> dict[str, Host]:
        """Return arrays by name, by default all; bfloat16, which NumPy lacks, becomes float32."""
        return {name: self._read(name) for name in (self.shapes if names is None else names)}

    def _read(self, name: str) -> Host:
        shape = self.shapes[name]
        dtype = self.dtypes[name]
        start = self._starts[name]
        array = np.empty(math.prod(shape), DTYPES[dtype])
        with ONE:  # several threads may read one file at the same time
            self._file.seek(start)
            size = self._file.readinto(array.view(np.uint8).data)
        if size < array.nbytes:
            raise ValueError(
                f"{self.path}: {name} ends early, the file has changed while it was read"
            )
        return widened(array, dtype).reshape(shape)

    def mapped(self, name: str) -> Host | None:
        """Return an array whose numbers stay in the file until they are used; changes do not reach
        the file.

        It returns None if NumPy cannot use the numbers as they lie in the file. On Windows it
        always returns None, since a mapped file could not be replaced there.
        """
        shape = self.shapes[name]
        start = self._starts[name]
        dtype = np.dtype(DTYPES[self.dtypes[name]])
        if self.dtypes[name] == "BF16" or start % dtype.itemsize or os.name == "nt":
            return None
        return np.frombuffer(self._map, dtype, math.prod(shape), start).reshape(shape)

    @cached_property
    def _map(self) -> mmap.mmap:
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)

    def _other(self) -> str:
        """Return in words which other kind of file this is, recognised by its first bytes."""
        self._file.seek(0)
        begin = self._file.read(16)
        if begin[8:9] == b"{":
            return ""
        unknown = f"begins with {begin!r}" if begin else "is empty"
        kinds = (kind for first, kind in OTHERS.items() if begin.startswith(first))
        return f"it {next(kinds, unknown)}"

    def _read_header(self) -> None:
        # this raises unless arrays have their sizes and fill the file without a gap
        with safe_open(self.path, "numpy"):
            length = int.from_bytes(self._file.read(8), "little")
        if length > reading.JSON_BYTES:
            raise ValueError(
                f"its header has {length} bytes, expected at most {reading.JSON_BYTES}"
            )
        header = reading.from_json("header", self._file.read(length))
        self.metadata: dict[str, str] = header.pop(METADATA, {})
        for name, about in header.items():
            shape = tuple(about["shape"])
            dtype = about["dtype"]
            checks.choice(DTYPES)(name, "dtype", dtype)
            check_shape(name, shape, dtype)
            self.shapes[name] = shape
            self.dtypes[name] = dtype
            self._starts[name] = 8 + length + about["data_offsets"][0]


def widened(array: Host, dtype: str) -> Host:
    """Return an array as it was read; bfloat16, which NumPy lacks, as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array


def check_shape(name: str, shape: Sequence[int], dtype: str) -> None:
    """Raise ValueError for a shape that no NumPy array can have."""
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    if len(shape) > AXES or math.prod(n or 1 for n in shape) * itemsize >= 2**63:
        raise ValueError(f"{name} has shape {shown(shape)}, which no array can have")
