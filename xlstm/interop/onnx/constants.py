"""The values of constants in an ONNX model, in its file or beside it, from files that may be wrong or malicious."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.interop.common import Host
from xlstm.interop.onnx.names import library

RANK = 8  # axes of a tensor, more than a recurrent layer has anywhere
SPARE = 32 << 20  # bytes that nodes which share their weights may take beyond what is there
LONGEST_PATH = 1000  # characters of the name of external data
DTYPES = {"FLOAT": "<f4", "INT32": "<i4", "INT64": "<i8", "FLOAT16": "<f2", "DOUBLE": "<f8"}


class Constants:
    """A reader of tensors that counts the bytes it has read.

    Sizes are compared with the bytes that are there before memory is taken. In messages, `what` is the name of a
    tensor, behind that of the file and of the node that it belongs to.

    Parameters
    ----------
    folder : Path or None
        Where the files of external data are; None where that is not known.
    size : int
        Bytes of the model.
    """

    def __init__(self, folder: Path | None, size: int) -> None:
        self._folder, self._there, self._taken = folder, size, 0
        self._files: set[Path] = set()

    def shape(self, what: str, tensor: Any) -> tuple[int, ...]:
        """Return the declared shape of a tensor; raise ValueError if it has too many axes."""
        if len(tensor.dims) > RANK:
            raise ValueError(f"{what} has {len(tensor.dims)} axes, expected {RANK} at most")
        return tuple(tensor.dims)

    def values(self, what: str, tensor: Any) -> Host:
        """Return the values of a tensor; raise ValueError if it is damaged."""
        onnx = library()
        kind: Any = {number: name for name, number in onnx.TensorProto.DataType.items()}.get(tensor.data_type)
        if kind not in DTYPES:
            raise ValueError(f"{what} has data type {kind or tensor.data_type}, expected FLOAT, DOUBLE or FLOAT16")
        dtype, shape = np.dtype(DTYPES[kind]), self.shape(what, tensor)
        if min(shape, default=0) < 0:
            raise ValueError(f"{what} has shape {shape}, expected none below 0")
        size = math.prod(shape) * dtype.itemsize
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            blob = self._external(what, tensor, size)
        elif tensor.HasField("raw_data"):
            blob = tensor.raw_data
        else:  # float16 is kept as its bits in whole numbers
            numbers = list(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
            try:
                blob = np.asarray(numbers, "<u2" if kind == "FLOAT16" else dtype).tobytes()
            except OverflowError as error:
                raise ValueError(f"{what} has int32_data outside 0 to 65535, expected bits of float16") from error
        if len(blob) != size:
            raise ValueError(f"{what} has {len(blob)} bytes, expected {size} for shape {shape} of {dtype.name}")
        self._taken += size  # nodes that share a tensor, or a place in a file, each take their own
        most = 4 * self._there + SPARE
        if self._taken > most:
            raise ValueError(
                f"{what} is too much: with it constants take {self._taken} bytes, as nodes share them, "
                f"expected at most {most} of {self._there} bytes of files"
            )
        return np.frombuffer(blob, dtype).reshape(shape).astype(dtype.newbyteorder("="))

    def _external(self, what: str, tensor: Any, size: int) -> bytes:
        """Return bytes from another file: a plain relative path that stays in the model's folder."""

        def refuse(found: str, expected: str) -> NoReturn:
            raise ValueError(f"{what} is external data {found}, expected {expected}")

        def whole(key: str, default: int) -> int:
            text = about.get(key, str(default))
            if not (text.removeprefix("-").isdecimal() and len(text) <= 20):
                refuse(f"with {key} {shown(text)}", "a whole number")
            return int(text)

        about = {entry.key: str(entry.value) for entry in tensor.external_data}  # bytes, where it is no text
        location = about.get("location", "")
        if self._folder is None:
            refuse(f"in {shown(location)}", "a model with its path, so that the file can be found")
        home, parts = self._folder.resolve(), location.split("/")
        plain = len(location) <= LONGEST_PATH and not set("\\:\0") & set(location) and not {"", ".", ".."} & set(parts)
        path = home.joinpath(*parts) if plain else home
        if not plain or not path.resolve().is_relative_to(home):
            refuse(f"in {shown(location)}", "a relative path inside the model's folder")
        if not path.is_file():
            raise FileNotFoundError(f"{what} is external data in {shown(location)}, which is no file")
        there, offset, length = path.stat().st_size, whole("offset", 0), whole("length", size)
        if length != size:
            refuse(f"of {length} bytes", f"{size} for shape {tuple(tensor.dims)}")
        if offset < 0 or offset + size > there:
            refuse(f"at bytes {offset} to {offset + size} of {shown(location)}", f"a place in its {there}")
        if path not in self._files:
            self._files.add(path)
            self._there += there
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
