"""Reading ONNX files that may be wrong or malicious: the model, and the values of its constants.

Two bytes of a file can be an empty message, which takes hundreds of bytes in memory. So the fields of a file are
counted before protobuf reads it. Sizes of tensors are compared with the bytes that are there before memory is taken.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NoReturn

from xlstm.arrays.checks import shown
from xlstm.interop.common import Host, package

LARGEST = 2**31 - 1  # bytes of a protobuf message
FIELDS, SPACING = 200_000, 100  # a file may have so many fields, or one for so many of its bytes
RANK = 8  # axes of a tensor, more than a recurrent layer has anywhere
SHARED = 32 << 20  # bytes that nodes which share their weights may take beyond what is there
TYPES = ("FLOAT", "INT32", "INT64", "FLOAT16", "DOUBLE")


def library() -> Any:
    """Import the package onnx."""
    return package("onnx", "onnx: the package is not installed; pip install onnx")


def parsed(path: Path) -> Any:
    """Return the model in a file; raise ValueError if it is none, or has too many fields for its size."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected an ONNX file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, ONNX files have at most {LARGEST}")
    model, data = library().ModelProto(), path.read_bytes()
    try:
        _count_fields(data, model.DESCRIPTOR)
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise ValueError(f"{path}: not a readable ONNX model ({error})") from error
    return model


def _count_fields(data: bytes, descriptor: Any) -> None:
    """Raise ValueError if a message has too many fields, those of messages in it among them.

    Whatever is malformed is left to protobuf, which stops there.
    """
    most, count, position = max(FIELDS, len(data) // SPACING), 0, 0
    messages = [(descriptor, len(data))]  # the message at `position` and those around it, each with its end
    while messages:
        descriptor, end = messages[-1]
        if position >= end:
            messages.pop()
            continue
        tag, position = _varint(data, position)
        wire, field = tag & 7, descriptor.fields_by_number.get(tag >> 3)
        if wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            length, position = _varint(data, position)
            if wire == 2 and field is not None and field.message_type:
                messages.append((field.message_type, min(position + length, end)))
            elif wire == 2:
                position += length
        count += 1
        if count > most:
            raise ValueError(f"it has more than {most} fields, out of proportion to its {len(data)} bytes")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position] if position < len(data) else 0
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number is too long")


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
        names = {number: name for name, number in onnx.TensorProto.DataType.items()}
        kind, shape = names.get(tensor.data_type, tensor.data_type), self.shape(what, tensor)
        if kind not in TYPES:
            raise ValueError(f"{what} has data type {kind}, expected FLOAT, DOUBLE or FLOAT16")
        if min(shape, default=0) < 0:
            raise ValueError(f"{what} has shape {shape}, expected none below 0")
        size = math.prod(shape) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            blob = self._external(what, tensor, size)
            tensor = onnx.TensorProto(dims=shape, data_type=tensor.data_type, raw_data=blob)
        try:
            array: Host = onnx.numpy_helper.to_array(tensor)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{what} of shape {shape} is damaged ({error})") from error
        self._taken += size  # nodes that share a tensor, or a place in a file, each take their own
        most = 4 * self._there + SHARED
        if self._taken > most:
            raise ValueError(
                f"{what} is too much: with it constants take {self._taken} bytes, as nodes share them, "
                f"expected at most {most} of {self._there} bytes of files"
            )
        return array

    def _external(self, what: str, tensor: Any, size: int) -> bytes:
        """Return bytes from another file: a plain relative path that stays in the model's folder."""

        def refuse(problem: str, expected: str) -> NoReturn:
            raise ValueError(f"{what} is external data {problem}, expected {expected}")

        about = {entry.key: str(entry.value) for entry in tensor.external_data}  # bytes, where it is no text
        location = about.get("location", "")
        if self._folder is None:
            refuse(f"in {shown(location)}", "a model with its path, so that the file can be found")
        home, path = self._folder.resolve(), self._folder
        if re.fullmatch(r"[^\\:\0]{1,1000}", location):
            path = self._folder.joinpath(location).resolve()
        if path == self._folder or not path.is_relative_to(home):
            refuse(f"in {shown(location)}", "a relative path inside the model's folder")
        if not path.is_file():
            raise FileNotFoundError(f"{what} is external data in {shown(location)}, which is no file")
        for key in ("offset", "length"):
            if not re.fullmatch(r"-?\d{1,20}", about.setdefault(key, str(size if key == "length" else 0)), re.ASCII):
                refuse(f"with {key} {shown(about[key])}", "a whole number")
        there, offset, length = path.stat().st_size, int(about["offset"]), int(about["length"])
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
