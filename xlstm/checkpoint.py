"""Parameters and what describes them in one safetensors file, written whole or not at all.

The file holds the arrays under their names. Its metadata has one entry, "xlstm", a JSON object with
the version of the format, the kind of model and its configuration; one entry, because safetensors
writes several in no fixed order, and equal models are to give equal bytes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.backend import Array, to_numpy

KEY = "xlstm"
VERSION = 1


def save(path: str | os.PathLike[str], params: dict[str, Array], kind: str, config: dict[str, Any]) -> None:
    """Write a model file.

    The bytes go to a temporary file in the same folder, which then takes the place of `path` in one
    step: killed at any moment, `path` is the old file or the new one.

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
        The folder cannot be written to.
    """
    from safetensors.numpy import save as to_bytes

    path = Path(path)
    about = json.dumps({"version": VERSION, "kind": kind, "config": config})
    arrays = {name: np.ascontiguousarray(to_numpy(array)) for name, array in params.items()}
    blob = to_bytes(arrays, metadata={KEY: about})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"not saved, {error.strerror or error}", str(path)) from error
        raise


def load(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Read a model file: its arrays, on the host, and its configuration.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no safetensors file, is damaged, or is of another format, version or kind.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected a model file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            config = _describe(path, metadata, kind)
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    except TypeError as error:
        raise ValueError(f"{path}: holds arrays NumPy does not have ({error})") from error


def _describe(path: Path, metadata: dict[str, str], kind: str) -> dict[str, Any]:
    """The configuration in the metadata of a file of the expected kind and version."""
    if KEY not in metadata:
        raise ValueError(f"{path}: not an xlstm model file, its metadata has no entry {KEY!r}")
    try:
        about = json.loads(metadata[KEY])
        found = {"version": about["version"], "kind": about["kind"]}
        config: dict[str, Any] = about["config"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its description is not readable ({type(error).__name__}: {error})") from error
    for key, expected in {"version": VERSION, "kind": kind}.items():
        if found[key] != expected:
            raise ValueError(f"{path}: {key} is {found[key]!r}, expected {expected!r}")
    return config
