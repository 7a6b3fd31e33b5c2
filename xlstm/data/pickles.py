"""Pickles read by a small interpreter of our own, which makes plain values and executes and imports nothing.

It knows the opcodes of numbers of up to 255 bytes, texts, tuples, lists and dicts. A class or a function in a pickle is
a name here; what stands for it is a function that the caller gives under this name. All else is refused. `dumps` writes
the same values.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xlstm.arrays.checks import shown
from xlstm.data import reading

BYTES = 1 << 20  # of a pickle, for which the interpreter takes a second or two
SCALARS = (str, int, float, type(None))  # kinds of keys of dicts
NUMBERED = 1 << 12  # keys that are no text: a file can have numbers that all fall on one place of a dict
ORDERED = "collections.OrderedDict"
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONTAINERS: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
TAKEN = {*VALUES, *CONTAINERS, *TUPLES, *NUMBERS, *TEXTS, "PROTO", "FRAME", "STOP", "MARK", "TUPLE", "MEMOIZE"}
TAKEN |= {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}
TAKEN |= {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID"}
OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes if opcode.name in TAKEN}


class Ordered(dict[Any, Any]):
    """An OrderedDict of a pickle, whose attributes are left out."""


@dataclass(frozen=True)
class Name:
    """A class or a function that a pickle names."""

    module: str
    last: str

    def __str__(self) -> str:
        return f"{self.module}.{self.last}"


@dataclass(frozen=True)
class Call:
    """For `dumps`, a call of a function."""

    function: Name
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Persistent:
    """For `dumps`, an object that lies outside the pickle, by its id."""

    identity: Any


def loads(blob: bytes, known: Mapping[str, Callable[..., Any] | None], persistent: Callable[[Any], Any]) -> Any:
    """Return the value of a pickle.

    Parameters
    ----------
    blob : bytes
        At most `BYTES`.
    known : dict of str to function or None
        The names "module.name" that the pickle may have, and for each the function that returns the result of a call of
        it, or None where it may not be called.
    persistent : function
        Returns the object for a persistent id, in which classes are of the kind `Name`.

    Raises
    ------
    ValueError
        It is no whole pickle, or holds anything else; the message names it.
    """
    if len(blob) > BYTES:
        raise ValueError(f"the pickle has {len(blob)} bytes, expected at most {BYTES}")
    machine = _Machine({ORDERED: Ordered, **known}, persistent)
    stream = io.BytesIO(blob)
    while code := stream.read(1):
        position, opcode = stream.tell() - 1, OPCODES.get(code)
        if opcode is None:
            other = next((o.name for o in pickletools.opcodes if o.code.encode("latin-1") == code), code)
            raise ValueError(f"it holds opcode {other!r} at byte {position}")
        try:
            if opcode.name == "STOP":
                return machine.result()
            machine.follow(opcode.name, _argument(opcode, stream))
        except IndexError:
            raise ValueError(f"{opcode.name} at byte {position} finds nothing on the stack") from None
    raise ValueError("it has no end")


def _argument(opcode: pickletools.OpcodeInfo, stream: io.BytesIO) -> Any:
    """Read the argument of an opcode; a name as two lines, whose escapes pickletools would undo with warnings."""
    if opcode.name != "GLOBAL":
        return None if opcode.arg is None else opcode.arg.reader(stream)
    return [stream.readline().removesuffix(b"\n").decode("ascii") for _ in range(2)]


class _Machine:
    def __init__(self, known: Mapping[str, Callable[..., Any] | None], persistent: Callable[[Any], Any]) -> None:
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}
        self.numbered = 0  # keys that were no text

    def follow(self, name: str, argument: Any) -> None:
        """Do what an opcode says; IndexError where the stack is too short."""
        stack = self.stack
        if name in NUMBERS or name in TEXTS:
            stack.append(argument)
        elif name in VALUES:
            stack.append(VALUES[name])
        elif name in CONTAINERS:
            stack.append(CONTAINERS[name]())
        elif name in TUPLES:
            stack.append(tuple([stack.pop() for _ in range(TUPLES[name])][::-1]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise ValueError(f"it has no value {argument} to repeat")
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name == "TUPLE":
            items = self._marked()
            self.stack.append(tuple(items))
        elif name == "APPEND":
            self._extend([stack.pop()])
        elif name == "APPENDS":
            self._extend(self._marked())
        elif name == "SETITEM":
            self._update([stack.pop(), stack.pop()][::-1])
        elif name == "SETITEMS":
            self._update(self._marked())
        elif name == "GLOBAL":
            self._named(*argument)
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            self._named(module, last)
        elif name == "REDUCE":
            self._call(stack.pop(), stack.pop())
        elif name == "BUILD":
            stack.pop()
            if not isinstance(stack[-1], Ordered):
                raise ValueError(f"it gives attributes to a {type(stack[-1]).__name__}")
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))

    def result(self) -> Any:
        if len(self.stack) != 1 or self.below:
            raise ValueError(f"it ends with {len(self.stack)} values, expected one")
        return self.stack[0]

    def _marked(self) -> list[Any]:
        """Return what lies above the last mark, which goes."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        there = self.stack[-1]
        if not isinstance(there, dict) or len(items) % 2:
            raise ValueError(f"it sets {len(items)} keys and values of a {type(there).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, SCALARS):
                raise ValueError(f"a key is a {type(key).__name__}, expected text or a number")
            self.numbered += not isinstance(key, str)
            if self.numbered > NUMBERED:
                raise ValueError(f"it has more than {NUMBERED} keys that are no text")
            if key in there:
                raise ValueError(f"key {shown(key)} is there twice")
            there[key] = value

    def _named(self, module: Any, last: Any) -> None:
        if not isinstance(module, str) or not isinstance(last, str):
            raise ValueError(f"it names {shown(last)} of {shown(module)}, expected texts")
        found = Name(module, last)
        if str(found) not in self.known:
            raise ValueError(f"it names {shown(str(found))}")
        self.stack.append(found)

    def _call(self, arguments: Any, called: Any) -> None:
        function = self.known[str(called)] if isinstance(called, Name) else None
        if function is None or not isinstance(arguments, tuple) or (function is Ordered and arguments):
            what = str(called) if isinstance(called, Name) else shown(called)
            raise ValueError(f"it calls {what} with {shown(arguments)}")
        self.stack.append(function(*arguments))


def dumps(value: Any) -> bytes:
    """Return the pickle, of protocol 2, of dicts, tuples, lists, scalars, `Name`, `Call` and `Persistent`."""
    return b"\x80\x02" + _dumped(value) + b"."


def _dumped(value: Any) -> bytes:
    if isinstance(value, Name):
        return f"c{value.module}\n{value.last}\n".encode()
    if isinstance(value, Call):
        return _dumped(value.function) + _dumped(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return _dumped(value.identity) + b"Q"
    if isinstance(value, dict):
        return b"}(" + b"".join(_dumped(key) + _dumped(inner) for key, inner in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_dumped, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_dumped, value)) + b"t"
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, bool) or value is None:
        return {True: b"\x88", False: b"\x89", None: b"N"}[value]
    if not isinstance(value, int):
        raise TypeError(f"dumps: got a {type(value).__name__}")
    length = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


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
    if not isinstance(value, SCALARS):
        raise ValueError(f"it holds a {type(value).__name__}, expected numbers, texts, lists and dicts")
    return value
