"""JSON and YAML from untrusted files, read within bounds, and objects made of their values.

A file may hold anything. Its size, its nesting, the number of its values and the size of its
numbers are bounded before or during reading. So time and memory stay in proportion to its size, and
every refusal is a short ValueError or TypeError that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from xlstm.arrays.checks import shown

Made = TypeVar("Made")

JSON_BYTES = 1 << 23
# PyYAML takes some 100 times as long as JSON, and as many bytes hold fewer values
YAML_BYTES = 1 << 16
VALUES = 500_000  # in a document; the worst take 100 bytes each
DEEPEST = 64  # levels of nested containers
DIGITS = 40  # of the longest whole number
LONGEST = 600  # the most characters of a message

# Plain scalars of YAML 1.2 without octal numbers, by their first characters: 1e-6 is a number;
# 12:30:00, 017 and "no" are text.
SCALARS = {
    "null": (r"|~|null|Null|NULL", ["", *"~nN"]),
    "bool": (r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", [*"-+0123456789"]),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?",
        [*"-+.0123456789"],
    ),
}


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """Make error messages short and printable, whichever names and values of a file they quote."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        text = cut(str(error))
        if text == str(error):
            raise
        kinds = (FileNotFoundError, IsADirectoryError, OSError, TypeError, ValueError)
        raise next(kind for kind in kinds if isinstance(error, kind))(text) from None


def cut(text: str) -> str:
    """Return a message, without its middle if it is too long, and with unprintable characters
    escaped.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def document(path: Path) -> dict[str, Any]:
    """Return the object in a .json or .yaml file; raise ValueError if it has none or exceeds the
    bounds.
    """
    is_json = path.suffix == ".json"
    blob = content(path, JSON_BYTES if is_json else YAML_BYTES)
    value = from_json(str(path), blob) if is_json else from_yaml(str(path), blob)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def regular(path: Path) -> Path:
    """Return the path of a regular file; raise OSError for a folder, pipe or device, which might
    block.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path


def readable(path: Path) -> Path:
    """Return the path of a file or a shell's pipe; raise OSError for a named pipe, which may have
    no writer.
    """
    if path.is_fifo() and not os.path.realpath(path).startswith(("/dev/", "/proc/")):
        raise OSError(
            errno.EINVAL,
            "it is a pipe with a name, to which perhaps nobody writes; expected a file, or"
            " <(command) of a shell",
            str(path),
        )
    return path


def content(path: Path, most: int) -> bytes:
    """Return the bytes of a file; raise ValueError if there are more than `most`."""
    with open(readable(path), "rb") as file:
        blob = file.read(most + 1)
    if len(blob) > most:
        raise ValueError(f"{path}: is longer than the {most} bytes that are allowed")
    return blob


def from_json(where: str, text: bytes | str, unlimited: bool = False) -> Any:
    """Return the value of a JSON text; raise ValueError if it is not JSON or exceeds the bounds.

    NaN and infinity, which JSON lacks, are an error, or None with `unlimited` numbers.
    """
    constant = (lambda name: None) if unlimited else float
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        most = VALUES + len(text) // 20
        if sum(map(text.count, ",[{")) > most:
            raise ValueError(f"it has more than {most} values")
        return plain(json.loads(text, parse_constant=constant, object_pairs_hook=_once), most)
    except RecursionError:
        raise ValueError(
            f"{where}: not readable JSON (it is nested more than {DEEPEST} deep)"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: not readable JSON ({error})") from error


def from_yaml(where: str, text: bytes) -> Any:
    """Return the value of a YAML 1.2 text without tags; raise ValueError if it is not one or
    exceeds the bounds.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ImportError(f"{where}: to read it, pip install pyyaml, or give config=") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        # This loader has no resolvers of YAML 1.1, such as merges.
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def fetch_more_tokens(self) -> None:
            """Read more tokens; raise ValueError if containers are nested too deep, since PyYAML
            checks all of them at each token.
            """
            if self.flow_level + len(self.indents) > DEEPEST + 1:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
            super().fetch_more_tokens()

    for kind, (pattern, first) in SCALARS.items():
        Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"), first
        )
    try:
        return plain(yaml.load(text.decode("utf-8"), Loader))
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: not readable YAML ({error})") from error


def plain(value: Any, most: int = VALUES) -> Any:
    """Return a value made of JSON's kinds, with tuples as lists; raise ValueError if it holds
    others.

    The bounds on depth and size are those of JSON, however often aliases of YAML or a pickle repeat
    parts.
    """
    return _plain(value, 0, [most])


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("it has more values than are taken")
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is no text")
        return {key: _plain(inner, depth + 1, left) for key, inner in value.items()}
    if type(value) in (list, tuple):  # not a pickle's tensor, which is a named tuple
        return [_plain(inner, depth + 1, left) for inner in value]
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(
            f"it holds a {type(value).__name__}, expected numbers, texts, lists and dicts"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a number is {value}, expected a finite one")
    if isinstance(value, int) and abs(value) >= 10**DIGITS:
        raise ValueError(f"a whole number has more than {DIGITS} digits")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object made of pairs; raise ValueError if a key occurs twice."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"key {shown(name)} is there twice")
        values[name] = value
    return values


def construct(where: str, kind: Callable[..., Made], options: Any, *first: Any) -> Made:
    """Return an object made with `first` and with options by name; raise ValueError if it refuses
    them.
    """
    if not isinstance(options, dict):
        raise TypeError(f"{where}: is {shown(options)}, expected an object")
    try:
        return kind(*first, **options)
    except TypeError as error:  # a name is unknown or missing, or the class refuses a value
        raise ValueError(f"{where}: {error}") from error
