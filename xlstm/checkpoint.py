"""Checkpoints: arrays and their description in one safetensors file, written whole or not at all.

The file holds the arrays under their names. Its metadata has one entry, "xlstm": a JSON object with
the version of the format, the kind of model, its configuration, a digest of kind, configuration and
arrays, and the version of xlstm that wrote the file. `load` refuses a file whose digest does not
match. There is only one entry because safetensors writes several entries in no fixed order, and
equal models must give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from xlstm.arrays.backend import backend_like
from xlstm.arrays.checks import few, instance, shown
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Array
from xlstm.core import version as release
from xlstm.data import reading, writing
from xlstm.data.tensors import Tensors

__all__ = ["load", "save"]

KEY = "xlstm"
VERSION = 2
ENTRIES = ("version", "kind", "config", "digest", KEY)
# the call that reads each kind of file of this library
READERS = {
    "model": "models.load(path)",
    "forecaster": "Forecaster.load(path)",
    "text model": "TextModel.load(path)",
    "sequence classifier": "SequenceClassifier.load(path)",
    "sequence regressor": "SequenceRegressor.load(path)",
    "training": "training.train(..., checkpoints=folder, resume=True)",
}
Host = np.ndarray[Any, Any]


def save(
    path: str | os.PathLike[str], params: dict[str, Array], kind: str, config: dict[str, Any]
) -> None:
    """Write a model file, whole or not at all.

    Parameters
    ----------
    path : path
        The file to write.
    params : dict of str to array
        Arrays of any backend.
    kind : str
        Kind of model, checked by `load`.
    config : dict
        Anything that JSON can hold.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    instance(dict, "a dict of name to array")("save", "params", params)
    arrays = {}
    for name, array in params.items():
        host = to_numpy(array)
        arrays[name] = np.asarray(host, host.dtype.newbyteorder("<"), order="C")
    about = VERSION, kind, config, digest(kind, config, arrays), release.__version__
    entry = json.dumps(dict(zip(ENTRIES, about, strict=True)))
    writing.write(path, to_bytes(arrays, metadata={KEY: entry}))


def digest(kind: str, config: dict[str, Any], arrays: dict[str, Host]) -> str:
    """Return the SHA-256 of everything that a file holds, in hexadecimal digits."""
    sha256 = hashlib.sha256(json.dumps([kind, config]).encode())
    for name, array in sorted(arrays.items()):
        sha256.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        sha256.update(array.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


@reading.brief()
def is_ours(path: str | os.PathLike[str]) -> bool:
    """Return whether `save` wrote this file; a folder or a file of another kind gives False."""
    try:
        return KEY in Tensors(path).metadata
    except (OSError, TypeError, ValueError):
        return False


@reading.brief()
def kind_of(path: str | os.PathLike[str]) -> str:
    """Return the kind of model in a file, or raise as `load` does."""
    return str(_about(Tensors(path))["kind"])


@reading.brief()
def load(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Host], dict[str, Any]]:
    """Read the arrays of a model file, as NumPy arrays, and its configuration.

    Parameters
    ----------
    path : path
        The file to read.
    kind : str
        The kind of model that the file must hold.

    Returns
    -------
    arrays : dict of str to NumPy array
    config : dict

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is no safetensors file, is damaged or changed, or has another format, version or
        kind.
    """
    file = Tensors(path)
    about = _about(file)
    its_kind = about["kind"]
    if its_kind != kind:
        reader = f"; {READERS[its_kind]} reads it" if its_kind in READERS else ""
        raise ValueError(f"{path}: kind is {its_kind!r}, expected {kind!r}{reader}")
    arrays = file.read()
    if digest(kind, about["config"], arrays) != about.get("digest"):
        raise ValueError(
            f"{path}: was changed after it was written, its digest is not that of what it holds"
        )
    return arrays, about["config"]


def finite(path: str | os.PathLike[str], arrays: dict[str, Host], dtype: str | None = None) -> None:
    """Raise ValueError unless all numbers of a file are finite, also after a cast to `dtype`."""
    # NumPy has no bfloat16; exponents of float32 have as many bits
    host = "float32" if dtype == "bfloat16" else dtype
    for name, array in arrays.items():
        with np.errstate(over="ignore"):
            values = array if host is None else array.astype(host, copy=False)
        if not np.all(np.isfinite(values)):
            there = "" if values is array else f" in {dtype}"
            raise ValueError(f"{path}: {name} is not finite{there}")


@contextlib.contextmanager
def sound(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Name the file, and the version of xlstm that wrote it if it is another one, in errors about
    what the file holds.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a sound {kind} ({type(error).__name__}:"
            f" {error}){_advice(_about(Tensors(path)))}"
        ) from error


def _advice(about: dict[str, Any]) -> str:
    """Return the end of an error about a file that another version of xlstm wrote, or an empty
    text.
    """
    if about.get(KEY) == release.__version__:
        return ""
    writer = f"xlstm {shown(about[KEY])}" if KEY in about else "an earlier version of xlstm"
    return (
        f"; {writer} wrote the file, and this is xlstm {release.__version__}: fit or train"
        " again, or install that version to load it"
    )


def _about(file: Tensors) -> dict[str, Any]:
    """Return the description of a file in this version of the format."""
    if KEY not in file.metadata:
        raise ValueError(f"{file.path}: not an xlstm model file, its metadata has no entry {KEY!r}")
    try:
        about = reading.from_json(f"entry {KEY!r}", file.metadata[KEY])
    except ValueError as error:
        raise ValueError(f"{file.path}: its description is not readable ({error})") from error
    about = about if isinstance(about, dict) else {}
    version, kind, config = map(about.get, ENTRIES[:3])
    if version != VERSION:
        raise ValueError(
            f"{file.path}: version of the format is {shown(version)}, expected"
            f" {VERSION!r}{_advice(about)}"
        )
    if not isinstance(kind, str) or not isinstance(config, dict):
        raise ValueError(
            f"{file.path}: kind and config are {shown([kind, config])}, expected text and an object"
        )
    return about


def pack(tree: Any) -> tuple[Any, dict[str, Host]]:
    """Return a tree as a JSON value, and its arrays on the host by name.

    The value represents a dict as {"dict": ...}, a tuple as {"tuple": [...]}, an array as {"array":
    name, "dtype": dtype}, and a number that is not finite as {"float": "inf"}. An array that occurs
    several times is kept once. A tree holds dicts with text as keys, lists, tuples, text, numbers,
    None and arrays of numbers; anything else raises TypeError.
    """
    arrays: dict[str, Host] = {}
    return _packed(tree, "", arrays, {}), arrays


def _packed(value: Any, path: str, arrays: dict[str, Host], names: dict[int, str]) -> Any:
    """Return a part of a tree as a JSON value, and put its arrays into `arrays`.

    `names` maps the id of each array to its name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no such number
    if isinstance(value, str | bool | int | float | None):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        items = value.items()
        return {"dict": {k: _packed(part, f"{path}.{k}", arrays, names) for k, part in items}}
    if isinstance(value, list | tuple):
        parts = [_packed(part, f"{path}.{k}", arrays, names) for k, part in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    on_host = isinstance(value, np.ndarray)
    if not hasattr(value, "shape") or (on_host and value.dtype.kind not in "fiub"):
        raise TypeError(
            f"{path[1:]} is {shown(value)}, expected numbers, text, arrays of numbers, or"
            " containers of them"
        )
    name = names.setdefault(id(value), path[1:])
    if name not in arrays:
        arrays[name] = np.ascontiguousarray(to_numpy(value)).reshape(value.shape)
    return {
        "array": name,
        "dtype": "" if on_host and value.dtype.kind != "f" else backend_like(value).dtype,
    }


def unpack(value: Any, arrays: dict[str, Host], put: Callable[[Host, str], Array]) -> Any:
    """Return the tree that `pack` got, or raise ValueError for a value that `pack` did not make.

    `put(array, dtype)` moves an array of floating-point numbers to its device; other arrays stay on
    the host.
    """
    return _unpacked(value, arrays, put, {})


def _unpacked(
    value: Any, arrays: dict[str, Host], put: Callable[[Host, str], Array], placed: dict[str, Array]
) -> Any:
    """Return a part of a tree; `placed` holds the arrays unpacked so far."""
    match value:
        case {"dict": dict() as parts}:
            return {key: _unpacked(part, arrays, put, placed) for key, part in parts.items()}
        case {"tuple": list() as parts}:
            return tuple(_unpacked(part, arrays, put, placed) for part in parts)
        case list():
            return [_unpacked(part, arrays, put, placed) for part in value]
        case {"float": "inf" | "-inf" | "nan" as number}:
            return float(number)
        case {"array": str() as name, "dtype": str() as dtype} if name in arrays:
            if name not in placed:
                placed[name] = put(arrays[name], dtype) if dtype else arrays[name]
            return placed[name]
        case str() | bool() | int() | float() | None:
            return value
    raise ValueError(f"{shown(value)} is not one of the values that a checkpoint holds")


def check_alike(name: str, value: Any, like: Any) -> None:
    """Raise ValueError unless `value` has the structure of `like`.

    A dict must have the same names, an array the same shape and dtype.
    """
    if isinstance(like, dict):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"{name} is {shown(value)}, expected a dict of {few(like)}")
        for key, part in like.items():
            check_alike(f"{name} {key}", value[key], part)
    elif getattr(value, "shape", None) != like.shape or value.dtype != like.dtype:
        raise ValueError(f"{name} is {shown(value)}, expected {shown(like)}")
