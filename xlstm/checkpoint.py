"""Parameters and what describes them in one safetensors file, written whole or not at all.

The file holds the arrays under their names. Its metadata has one entry, "xlstm", a JSON object with
the version of the format, the kind of model and its configuration; one entry, because safetensors
writes several in no fixed order, and equal models are to give equal bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xlstm import writing
from xlstm.backend import Array, to_numpy

KEY = "xlstm"
VERSION = 1


def save(path: str | os.PathLike[str], params: dict[str, Array], kind: str, config: dict[str, Any]) -> None:
    """Write a model file, whole or not at all, as `xlstm.writing` does.

    Parameters
    ----------
    path : path
    params : dict of str to array
        Arrays of any backend.
    kind : str
        Kind of model, checked by `load`.
    config : dict
        Anything JSON can hold.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    about = json.dumps({"version": VERSION, "kind": kind, "config": config})
    arrays = {name: np.ascontiguousarray(to_numpy(array)) for name, array in params.items()}
    writing.write(path, to_bytes(arrays, metadata={KEY: about}))


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that `save` wrote; raises as `load` does if it is no safetensors file."""
    with _opened(path) as file:
        return KEY in (file.metadata() or {})


def kind_of(path: str | os.PathLike[str]) -> str:
    """The kind of model a file holds; raises as `load` does."""
    with _opened(path) as file:
        kind: str = _about(Path(path), file.metadata() or {})["kind"]
        return kind


def load(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Read a model file: its arrays, on the host, and its configuration.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no safetensors file, is damaged, or is of another format, version or kind.
    """
    path = Path(path)
    with _opened(path) as file:
        about = _about(path, file.metadata() or {})
        if about["kind"] != kind:
            raise ValueError(f"{path}: kind is {about['kind']!r}, expected {kind!r}")
        return {name: file.get_tensor(name) for name in file.keys()}, about["config"]  # noqa: SIM118 (no mapping)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """An open model file."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected a model file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    with safetensors(path) as file:
        yield file


@contextlib.contextmanager
def safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file that is there, opened; what is wrong with it is said in our words."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    except TypeError as error:
        raise ValueError(f"{path}: holds arrays NumPy does not have ({error})") from error


def _about(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The description in the metadata of a file of our version: its kind and configuration."""
    if KEY not in metadata:
        raise ValueError(f"{path}: not an xlstm model file, its metadata has no entry {KEY!r}")
    try:
        about = json.loads(metadata[KEY])
        found: dict[str, Any] = {key: about[key] for key in ("version", "kind", "config")}
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its description is not readable ({type(error).__name__}: {error})") from error
    if found["version"] != VERSION:
        raise ValueError(f"{path}: version is {found['version']!r}, expected {VERSION!r}")
    return found
