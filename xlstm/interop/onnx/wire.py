"""The memory that an ONNX file would take, estimated before protobuf reads it.

Two bytes of a file can be an empty message, which takes hundreds of bytes in memory. The walk here sees every field
once, opens messages only, and stops when the estimate exceeds its limit.
"""

from __future__ import annotations

import functools
from typing import Any

FIELD = 100  # bytes in memory of any field, beside its content
MESSAGE = 200  # bytes of a message, and of those that are looked up by name in Python
NAMED = {"NodeProto": 700, "TensorProto": 500, "ValueInfoProto": 400}
PACKED = {1: 2, 2: 2, 3: 16, 4: 16, 5: 8, 13: 8}  # bytes in memory for a byte of packed numbers, by protobuf's type
DEEPEST = 100  # nested messages, as protobuf itself limits them
LIMIT, SPARE = 6, 80 << 20  # bytes in memory for a byte of the file, and beyond that


def check(data: bytes, descriptor: Any) -> None:
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
