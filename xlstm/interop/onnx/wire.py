"""Memory that an ONNX file would take, estimated before protobuf reads it.

Two bytes of a file can be an empty message, which takes hundreds of bytes in memory. The walk here sees every field
once, opens messages only, and stops where the estimate passes its limit.
"""

from __future__ import annotations

from typing import Any

FIELD = 100  # bytes in memory of any field, beside its content
MESSAGE = 200  # of a message, and of those that are looked up by name in Python
NAMED = {"NodeProto": 700, "TensorProto": 500, "ValueInfoProto": 400}
PACKED = {1: 2, 2: 2, 3: 16, 4: 16, 5: 8, 13: 8}  # bytes in memory for a byte of packed numbers, by protobuf's type
DEEPEST = 100  # protobuf's own limit of nested messages
LIMIT, SPARE = 6, 80 << 20  # bytes in memory for a byte of the file, and beyond that

Plan = dict[int, Any]  # field number to the descriptor of a message, or to bytes in memory for a byte in the file


def check(data: bytes, descriptor: Any) -> None:
    """Raise ValueError if the message `descriptor` in `data` is malformed, or would take very much more memory.

    The limit is `LIMIT` times the length of `data` and `SPARE`.
    """
    limit, spent = LIMIT * len(data) + SPARE, 0
    plans: dict[str, Plan] = {}
    outer: list[tuple[Plan, int]] = []  # of the messages around this one: plan and end
    plan, position, end = _plan(descriptor, plans), 0, len(data)
    while True:
        if position == end:
            if not outer:
                return
            plan, end = outer.pop()
            continue
        tag, position = (data[position], position + 1) if data[position] < 128 else _varint(data, position, end)
        wire, kind = tag & 7, plan.get(tag >> 3, 1)
        spent += FIELD
        if wire == 2:
            length, position = _varint(data, position, end)
            inside = position
            position += length
            if not isinstance(kind, int):
                spent += NAMED.get(kind.name, MESSAGE)
                if length and position <= end:
                    outer.append((plan, end))
                    plan, position, end = _plan(kind, plans), inside, position
            else:
                spent += kind * length
        elif wire == 0:
            _, position = _varint(data, position, end)
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field has wire type {wire}")
        if position > end or len(outer) > DEEPEST:
            raise ValueError("a message is cut off or nested too deeply")
        if spent > limit:
            raise ValueError(f"its {len(data)} bytes would take more than {limit} in memory")


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the position behind it."""
    if position < end and data[position] < 128:
        return data[position], position + 1
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("a number is cut off or too long")


def _plan(descriptor: Any, plans: dict[str, Plan]) -> Plan:
    if descriptor.full_name not in plans:
        plans[descriptor.full_name] = {
            field.number: field.message_type or PACKED.get(field.type, 1) for field in descriptor.fields
        }
    return plans[descriptor.full_name]
