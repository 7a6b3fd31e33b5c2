"""Files of ONNX: models read, though they may be wrong or malicious, and models written.

Two bytes of a file can be an empty message, which takes hundreds of bytes in memory. So the fields
of a file are counted before protobuf reads it. The package's checker then refuses invalid models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.checks import shown
from xlstm.data import reading, writing
from xlstm.data.writing import AnyPath
from xlstm.interop.common import Host, package

DOMAINS = ("", "ai.onnx")
LARGEST = 2**31 - 1  # bytes of a protobuf message
INSIDE = 2_000_000_000  # the most bytes of weights in a model, which leaves room for its nodes
WEIGHT = 1024  # the least bytes of what counts as a weight, as in the package onnx
FIELDS = 200_000
SPACING = 100  # a file may have this many fields, or a field for each so many of its bytes
# the most bytes of the name or value of an entry, such as the path of a file with external data
LONGEST = 1 << 18


def library() -> Any:
    """Import the package onnx."""
    return package("onnx", "onnx: the package is not installed; pip install onnx")


def parsed(path: Path) -> Any:
    """Return the model in a file; raise ValueError if it is not ONNX, or has too many fields for
    its size.
    """
    model = library().ModelProto()
    data = reading.content(path, LARGEST)
    try:
        _count_fields(data, model.DESCRIPTOR)
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError moves between versions
        raise ValueError(f"{path}: not a readable ONNX model ({error})") from error
    check(str(path), str(path))
    return model


def finish(model: Any, weights: Mapping[str, Host], path: AnyPath | None) -> None:
    """Add weights to a model, and write it to a path, completely or not at all.

    If the weights take more than `INSIDE` bytes, they are written to a second file, named after the
    first with `.data` appended.
    """
    tensors = model.graph.initializer
    if sum(a.nbytes for a in weights.values()) <= INSIDE:
        tensors.extend(library().numpy_helper.from_array(a, name) for name, a in weights.items())
        if path is not None:
            writing.write(path, model.SerializeToString())
        return
    path = checks.path("to_onnx", "path", path)
    beside = path.with_name(f"{path.name}.data")
    with writing.foreach(beside, path) as (data, file):
        with open(data, "wb") as stream:
            for name, a in weights.items():
                # of FLOAT, EXTERNAL
                tensor = tensors.add(name=name, dims=a.shape, data_type=1, data_location=1)
                place = {"location": beside.name, "offset": stream.tell(), "length": a.nbytes}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                stream.write(a.data)
        file.write_bytes(model.SerializeToString())


def check(where: str, model: Any) -> None:
    """Raise ValueError unless a model, or the model at a path, is valid: nodes in order, names
    unique.
    """
    try:
        library().checker.check_model(model)
    except Exception as error:  # the checker's, or those of text that is not UTF-8
        raise ValueError(f"{where}: not a sound ONNX model ({error})") from None


def attributes_of(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    return {entry.name: library().helper.get_attribute_value(entry) for entry in node.attribute}


def _count_fields(data: bytes, descriptor: Any) -> None:
    """Raise ValueError if a message, with the messages inside it, has too many fields or a too long
    entry.

    Malformed data are left to protobuf, which stops there.
    """
    most = max(FIELDS, len(data) // SPACING)
    count = 0
    position = 0
    # the message at `position` and the messages around it, each with its end
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
    """Return a number stored as 7 bits a byte, lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position] if position < len(data) else 0
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, position


def values(what: str, tensor: Any, folder: Path | None) -> Host:
    """Return the values of a tensor, which errors call `what`; raise ValueError if it is damaged.

    Files of external data are in `folder`; if it is None, they are not allowed.
    """
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    if locations and folder is None:
        raise ValueError(
            f"{what} is external data in {shown(locations[0])}, expected a model with its path"
        )
    try:
        array: Host = library().numpy_helper.to_array(tensor, str(folder or ""))
    except Exception as error:  # the package onnx raises a dozen kinds
        raise ValueError(f"{what} of shape {tuple(tensor.dims)} is damaged ({error})") from error
    return array
