"""Descriptions that other people wrote, JSON and YAML, read within bounds; and objects made of them.

A file may hold anything. Its size, its nesting, the number of its values and the size of its numbers are bounded before
or while it is read, so that time and memory are in proportion to its size, and every refusal is a short ValueError or
TypeError that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from xlstm.arrays.checks import shown

Made = TypeVar("Made")

JSON_BYTES = 1 << 23
YAML_BYTES = 1 << 16  # for which PyYAML takes some 100 times as long, and which hold fewer values
VALUES = 500_000  # in a document, of which the worst take 100 bytes each
DEEPEST = 64  # containers in containers
DIGITS = 40  # longest whole number
LONGEST = 600  # characters of a message, whatever a file holds

# Plain scalars of YAML 1.2, but for octal numbers: 1e-6 is a number; 12:30:00, 017 and "no" are text.
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """Make messages of errors short and printable, whatever names and values of a file they quote."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        text = cut(str(error))
        if text == str(error):
            raise
        kinds = (FileNotFoundError, IsADirectoryError, OSError, TypeError, ValueError)
        raise next(kind for kind in kinds if isinstance(error, kind))(text) from None


def cut(text: str) -> str:
    """Return a message without its middle where it is too long, and with escapes for what cannot be printed."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def document(path: Path) -> dict[str, Any]:
    """Return the object that a .json or .yaml file holds; ValueError if it holds none or is beyond bounds."""
    is_json = path.suffix == ".json"
    blob = content(path, JSON_BYTES if is_json else YAML_BYTES)
    found = from_json(str(path), blob) if is_json else from_yaml(str(path), blob)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, expected an object")
    return found


def regular(path: Path) -> Path:
    """Return the path of a file; OSError for a pipe or a device, whose reader might wait for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path


def content(path: Path, most: int) -> bytes:
    """Return the bytes of a file; ValueError if there are more than `most`."""
    with open(path, "rb") as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"{path}: is longer than the {most} bytes that are taken")
    return found


def from_json(where: str, given: bytes | str, unlimited: bool = False) -> Any:
    """Return the value of a JSON text; ValueError if there is none, or it is beyond bounds.

    NaN and infinity, which JSON does not have, are an error, or None where numbers are `unlimited`.
    """
    constant = (lambda text: None) if unlimited else _real
    try:
        text = given if isinstance(given, str) else given.decode("utf-8")
        most = VALUES + len(text) // 20
        if sum(map(text.count, ",[{")) > most:
            raise ValueError(f"it has more than {most} values")
        found = json.loads(text, parse_int=_whole, parse_float=_real, parse_constant=constant, object_pairs_hook=_once)
        _check_depth(found)
    except RecursionError:
        raise ValueError(f"{where}: not readable JSON (it is nested more than {DEEPEST} deep)") from None
    except ValueError as error:
        raise ValueError(f"{where}: not readable JSON ({error})") from error
    return found


def from_yaml(where: str, given: bytes) -> Any:
    """Return the value of a YAML 1.2 text without tags; ValueError if there is none, or it is beyond bounds."""
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ImportError(f"{where}: to read it, pip install pyyaml, or give config=") from error
    try:
        events = yaml.parse(given.decode("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        next(events)
        if not isinstance(next(events), yaml.DocumentStartEvent):
            return None
        value = _composed(yaml, events, next(events), {}, 0)
        next(events)
        if not isinstance(next(events), yaml.StreamEndEvent):
            raise ValueError("there are several documents, expected one")
        return value
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: not readable YAML ({error})") from error


def _composed(yaml: Any, events: Iterator[Any], event: Any, anchors: dict[str, Any], depth: int) -> Any:
    """Return the value that begins with an event; PyYAML itself takes any depth, and any number of copies."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in anchors:
            raise ValueError(f"alias {event.anchor!r} is not that of a number or a text before it")
        return anchors[event.anchor]
    if event.tag not in (None, "!"):
        raise ValueError(f"tag {event.tag!r} is not taken")
    if isinstance(event, yaml.ScalarEvent):
        value = _scalar(event.value) if event.implicit[0] else event.value
        if event.anchor:
            anchors[event.anchor] = value
        return value
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_composed(yaml, events, item, anchors, depth + 1))
        return items
    pairs = []
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise ValueError("a key is no name")
        pairs.append((key.value, _composed(yaml, events, next(events), anchors, depth + 1)))
    return _once(pairs)


def _scalar(text: str) -> Any:
    """Return the value of a plain scalar of YAML."""
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        return _whole(text)
    return _real(text) if REAL.fullmatch(text) else text


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text)} digits, expected at most {DIGITS}")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number is {shown(text)}, expected a finite one")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of pairs; ValueError if a key is there twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {shown(name)} is there twice")
        found[name] = value
    return found


def _check_depth(value: Any) -> None:
    """Raise ValueError if containers are nested too deep."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [v for values in inner for v in values]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def made(where: str, kind: Callable[..., Made], options: Any, *first: Any) -> Made:
    """Return a dataclass of values by the names of its fields, after those that are given first.

    A name that is unknown or missing is a ValueError; the class checks the values.
    """
    if not isinstance(options, dict):
        raise TypeError(f"{where}: is {shown(options)}, expected an object")
    known = {f.name: f for f in fields(kind)[len(first) :]}  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise ValueError(f"{where}: {shown(name)} is unknown, expected some of {', '.join(known)}")
    for name, field in known.items():
        if name not in options and field.default is MISSING:
            raise ValueError(f"{where}: {name} is missing")
    return kind(*first, **options)
