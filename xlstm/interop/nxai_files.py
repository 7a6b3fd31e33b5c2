"""Checkpoints in safetensors files, one or several, that are read array by array; and configurations beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlstm import checkpoint

Host = np.ndarray[Any, Any]
WIDE = {"F64": "float64", "F32": "float32", "F16": "float32", "BF16": "float32"}
NAMES = ("config.json", "config.yaml")


class Shards:
    """The arrays of a checkpoint: names, shapes and dtypes of all, and any of them when it is asked for.

    Raises
    ------
    OSError, ValueError
        There is no such file or folder, no checkpoint in it, or one that is damaged or holds other than real numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for file in _files(path):
            with checkpoint.safetensors(file) as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    if name in self.files:
                        raise ValueError(f"{path}: {name} is in {self.files[name].name} and in {file.name}")
                    view = opened.get_slice(name)
                    self.files[name] = file
                    self.shapes[name], self.dtypes[name] = tuple(view.get_shape()), view.get_dtype()
                    if self.dtypes[name] not in WIDE:
                        raise ValueError(f"{file}: {name} has dtype {self.dtypes[name]}, expected {', '.join(WIDE)}")

    @property
    def dtype(self) -> str:
        """float64 if any array has it, else float32."""
        return max(WIDE[dtype] for dtype in self.dtypes.values()) if self.dtypes else "float32"

    def read(self, name: str) -> Host:
        """An array; bfloat16, which NumPy does not have, as float32."""
        file = self.files[name]
        if self.dtypes[name] != "BF16":
            with checkpoint.safetensors(file) as opened:
                found: Host = opened.get_tensor(name)
                return found
        with open(file, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            start = json.loads(opened.read(size))[name]["data_offsets"][0]
        shape = self.shapes[name]
        bits = np.fromfile(file, dtype="<u2", count=math.prod(shape), offset=8 + size + start)
        return (bits.astype(np.uint32) << 16).view(np.float32).reshape(shape)


def config_beside(path: Path) -> Mapping[str, Any]:
    """The configuration beside a checkpoint.

    Raises
    ------
    FileNotFoundError, ValueError
        There is none, or it cannot be read.
    ImportError
        It is YAML, and PyYAML is not installed.
    """
    names = NAMES if path.is_dir() else (*(f"{path.stem}_{name}" for name in NAMES), *NAMES)
    folder = path if path.is_dir() else path.parent
    for name in names:
        if (folder / name).is_file():
            return _config(folder / name)
    raise FileNotFoundError(f"{path}: no configuration beside it, expected {' or '.join(names)}, or config=")


def _config(file: Path) -> Mapping[str, Any]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: not readable JSON ({error})") from error
    else:
        try:
            import yaml
        except ModuleNotFoundError as error:
            raise ImportError(f"{file}: to read it, pip install pyyaml, or give config=") from error
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{file}: not readable YAML ({error})") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{file}: holds a {type(found).__name__}, expected an object")
    return found


def _files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    index, whole = path / "model.safetensors.index.json", path / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{index}: not a readable index ({type(error).__name__}: {error})") from error
        found = [path / name for name in names]
        for file in found:
            if file.parent != path or not file.is_file():
                raise FileNotFoundError(f"{file}: no such file, but {index.name} names it")
        return found
    found = []
    while (path / f"model_{len(found)}.safetensors").is_file():
        found.append(path / f"model_{len(found)}.safetensors")
    if not found:
        raise FileNotFoundError(f"{path}: no checkpoint in it, expected model.safetensors or shards of it")
    return found
