"""Reading ONNX files that may be wrong or malicious: the model, and the values of its constants.

Two bytes of a file can be an empty message, which takes hundreds of bytes in memory. So the fields
of a file are counted before protobuf reads it. The package's checker refuses what is no sound
model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xlstm.arrays.checks import shown
from xlstm.data import reading
from xlstm.interop.common import Host, package

LARGEST = 2**31 - 1  # bytes of a protobuf message
FIELDS = 200_000
SPACING = 100  # a file may have so many fields, or one for so many of its bytes
# bytes of the name or the value of an entry, such as the path of a file with external data
LONGEST = 1 << 18


def library() -> Any:
    """Import the package onnx."""
    return package("onnx", "onnx: the package is not installed; pip install onnx")


def parsed(path: Path) -> Any:
    """Return the model in a file; raise ValueError if it is none, or has too many fields for its
    size.
    """
    model = library().ModelProto()
    data = reading.content(path, LARGEST)
    try:
        _count_fields(data, model.DESCRIPTOR)
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise ValueError(f"{path}: not a readable ONNX model ({error})") from error
    check(str(path), str(path))
    return model


def check(where: str, model: Any) -> None:
    """Raise ValueError unless a model, or the one at a path, is sound: its nodes in order, its
    names unique.
    """
    try:
        library().checker.check_model(model)
    except Exception as error:  # that of the checker, or those of a text that is no UTF-8
        raise ValueError(f"{where}: not a sound ONNX model ({error})") from None


def _count_fields(data: bytes, descriptor: Any) -> None:
    """Raise ValueError if a message has too many fields, those of messages in it among them, or too
    long an entry.

    Whatever is malformed is left to protobuf, which stops there.
    """
    most = max(FIELDS, len(data) // SPACING)
    count = 0
    position = 0
    # the message at `position` and those around it, each with its end
    messages = [(descriptor, len(data))]
    while messages:
        descriptor, end = messages[-1]
        if position >= end:
            messages.pop()
            continue
        tag, position = _varint(data, position)
        wire = tag & 7
        field = descriptor.fields_by_number.get(tag >> 3)
        if wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            length, position = _varint(data, position)
            if wire == 2 and field is not None and field.message_type:
                messages.append((field.message_type, min(position + length, end)))
            elif wire == 2:
                position += length
                if length > LONGEST and descriptor.name == "StringStringEntryProto":
                    raise ValueError(f"an entry has {length} bytes, expected at most {LONGEST}")
        count += 1
        if count > most:
            raise ValueError(
                f"it has more than {most} fields, out of proportion to its {len(data)} bytes"
            )


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position] if position < len(data) else 0
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, position


def values(what: str, tensor: Any, folder: Path | None) -> Host:
    """Return the values of a tensor, which messages call `what`; raise ValueError if it is damaged.

    Files of external data are in `folder`, unless it is None.
    """
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    if locations and folder is None:
        raise ValueError(
            f"{what} is external data in {shown(locations[0])}, expected a model with its path"
        )
    try:
        array: Host = library().numpy_helper.to_array(tensor, str(folder or ""))
    except Exception as error:  # the package onnx has a dozen for what may be wrong
        raise ValueError(f"{what} of shape {tuple(tensor.dims)} is damaged ({error})") from error
    return array
