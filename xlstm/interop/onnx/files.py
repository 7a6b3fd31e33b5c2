"""Reading ONNX files that may be wrong or malicious: the model, and the values of its constants.

Two bytes of a file can be an empty message, which takes hundreds of bytes in memory. Before protobuf reads a file, the
memory that it would take is estimated by a walk that sees every field once, opens messages only, and stops when the
estimate exceeds its limit. Sizes of tensors are compared with the bytes that are there before memory is taken.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.interop.common import Host
from xlstm.interop.onnx.names import library

LARGEST = 2**31 - 1  # bytes of a protobuf message
FIELD = 100  # bytes in memory of any field, beside its content
MESSAGE = 200  # bytes of a message, and of those that are looked up by name in Python
NAMED = {"NodeProto": 700, "TensorProto": 500, "ValueInfoProto": 400}
PACKED = {1: 2, 2: 2, 3: 16, 4: 16, 5: 8, 13: 8}  # bytes in memory for a byte of packed numbers, by protobuf's type
DEEPEST = 100  # nested messages, as protobuf itself limits them
LIMIT, SPARE = 6, 80 << 20  # bytes in memory for a byte of the file, and beyond that

RANK = 8  # axes of a tensor, more than a recurrent layer has anywhere
SHARED = 32 << 20  # bytes that nodes which share their weights may take beyond what is there
LONGEST_PATH = 1000  # characters of the name of external data
DTYPES = {"FLOAT": "<f4", "INT32": "<i4", "INT64": "<i8", "FLOAT16": "<f2", "DOUBLE": "<f8"}


def parsed(path: Path) -> Any:
    """Return the model in a file; raise ValueError if it is none, or would take very much more memory."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected an ONNX file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, ONNX files have at most {LARGEST}")
    model, data = library().ModelProto(), path.read_bytes()
    try:
        _check(data, model.DESCRIPTOR)
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise ValueError(f"{path}: not an ONNX model ({error})") from error
    return model


def _check(data: bytes, descriptor: Any) -> None:
    """Raise ValueError if the message `descriptor` in `data` is malformed, or would take very much more memory.

    The limit is `LIMIT` times the length of `data`, plus `SPARE`.
    """
    limit, spent, position = LIMIT * len(data) + SPARE, 0, 0
    messages = [(descriptor, len(data))]  # the message at `position` and those around it, each with its end
    while messages:
        descriptor, end = messages[-1]
        if position == end:
            messages.pop()
            continue
        tag, position = _varint(data, position, end)
        wire, kind = tag & 7, _fields(descriptor).get(tag >> 3, 1)
        spent += FIELD
        if wire == 2:
            length, position = _varint(data, position, end)
            if isinstance(kind, int):
                spent, position = spent + kind * length, position + length
            else:
                spent += NAMED.get(kind.name, MESSAGE)
                messages.append((kind, position + length))
        elif wire == 0:
            _, position = _varint(data, position, end)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field has wire type {wire}")
        if max(position, messages[-1][1]) > end or len(messages) > DEEPEST + 1:
            raise ValueError("a message is cut off or nested too deeply")
        if spent > limit:
            raise ValueError(f"its {len(data)} bytes would take more than {limit} in memory")


@functools.cache
def _fields(descriptor: Any) -> dict[int, Any]:
    """Return by field number the descriptor of a message, or the bytes in memory for a byte in the file."""
    return {field.number: field.message_type or PACKED.get(field.type, 1) for field in descriptor.fields}


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and the position behind it."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("a number is cut off or too long")


class Constants:
    """A reader of tensors that counts the bytes it has read, of a model of `size` bytes.

    Files of external data are in `folder`, unless it is None. In messages, `what` is the name of a tensor, behind that
    of the file and of the node that it belongs to.
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
        most = 4 * self._there + SHARED
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
