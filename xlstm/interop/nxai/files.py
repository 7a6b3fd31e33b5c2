"""Checkpoints in safetensors files, one or several, that are read array by array; and configurations beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data import reading
from xlstm.data.tensors import Tensors

Host = np.ndarray[Any, Any]
WIDE = {"F64": "float64", "F32": "float32", "F16": "float32", "BF16": "float32"}
LONGEST = 255  # bytes of the name of a file
NAMES = ("config.json", "config.yaml")


class Shards:
    """The arrays of a checkpoint: names, shapes and dtypes of all, and any of them when it is asked for.

    Making one raises OSError or ValueError if there is none, or it is damaged or holds other than real numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, Tensors] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtype = "float32"  # that which holds all arrays: float64 if one of them has it
        for file in map(Tensors, _files(path)):
            for name, dtype in file.dtypes.items():
                if name in self.files:
                    raise ValueError(f"{path}: {name} is in {self.files[name].path.name} and in {file.path.name}")
                if dtype not in WIDE:
                    raise ValueError(f"{file.path}: {name} has dtype {dtype}, expected {', '.join(WIDE)}")
                self.files[name], self.shapes[name] = file, file.shapes[name]
                self.dtype = max(self.dtype, WIDE[dtype])

    def read(self, name: str) -> Host:
        """Return an array; bfloat16, which NumPy does not have, becomes float32."""
        return self.files[name].read([name])[name]


def config_beside(path: Path) -> Mapping[str, Any]:
    """Return the configuration beside a checkpoint; YAML is read as version 1.2 has it, without tags.

    Raise FileNotFoundError if there is none, ValueError if it cannot be read, and ImportError without PyYAML.
    """
    names = NAMES if path.is_dir() else (*(f"{path.stem}_{name}" for name in NAMES), *NAMES)
    folder = path if path.is_dir() else path.parent
    for name in names:
        if (folder / name).is_file():
            return reading.document(folder / name)
    raise FileNotFoundError(f"{path}: no configuration beside it, expected {' or '.join(names)}, or config=")


def _files(path: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    index, whole = path / "model.safetensors.index.json", path / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        named = reading.document(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise ValueError(f"{index}: weight_map is {shown(named)}, expected names of files by names of arrays")
        found = [path / name for name in sorted(set(named.values()))]
        for file in found:
            if file.parent != path or len(file.name) > LONGEST or not file.is_file():
                raise FileNotFoundError(f"{file}: no such file, but {index.name} names it")
        return found
    found = []
    while (path / f"model_{len(found)}.safetensors").is_file():
        found.append(path / f"model_{len(found)}.safetensors")
    if not found:
        raise FileNotFoundError(f"{path}: no checkpoint in it, expected model.safetensors or shards of it")
    return found
