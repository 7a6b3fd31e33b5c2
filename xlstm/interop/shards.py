"""Checkpoints in safetensors files, one or several, that are read array by array; and configurations beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.data import reading, writing
from xlstm.data.tensors import Tensors

Host = np.ndarray[Any, Any]
WIDE = {"F64": "float64", "F32": "float32", "F16": "float32", "BF16": "float32"}
LONGEST = 255  # bytes of the name of a file
NAMES = ("config.json", "config.yaml")


class Source(Protocol):
    """A file of arrays that are read one by one; dtypes have the names of safetensors."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, names: Iterable[str]) -> dict[str, Host]:
        """Return arrays by name; bfloat16, which NumPy does not have, as float32."""


class Shards:
    """The arrays of a checkpoint: names, shapes and dtypes of all, and any of them when it is asked for.

    Making one raises OSError or ValueError if a file is damaged or holds other than real numbers, or a name is there
    twice. `renamed` gives the name under which an array is known here; several arrays may share one, and have to be
    equal when they are read.
    """

    def __init__(self, path: Path, files: Iterable[Source], renamed: Callable[[str], str] = str) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtype = "float32"  # that which holds all arrays: float64 if one of them has it
        self._copies: dict[str, list[tuple[Source, str]]] = {}
        owners: dict[str, Source] = {}
        for file in files:
            for name, dtype in file.dtypes.items():
                if name in owners:
                    raise ValueError(f"{path}: {name} is in {owners[name].path.name} and in {file.path.name}")
                if dtype not in WIDE:
                    raise ValueError(f"{file.path}: {name} has dtype {dtype}, expected {', '.join(WIDE)}")
                owners[name], known, shape = file, renamed(name), file.shapes[name]
                if self.shapes.setdefault(known, shape) != shape:
                    raise ValueError(f"{path}: {self._other(known, name)} in its shape, {self.shapes[known]}")
                self._copies.setdefault(known, []).append((file, name))
                self.dtype = max(self.dtype, WIDE[dtype])

    def read(self, name: str) -> Host:
        """Return an array, once its copies under other names are compared with it; bfloat16 becomes float32."""
        first, *others = self._copies[name]
        found = first[0].read([first[1]])[first[1]]
        for file, other in others:
            if not np.array_equal(found, file.read([other])[other]):
                raise ValueError(f"{self.path}: {self._other(name, other)}")
        return found

    def mapped(self, name: str) -> Host | None:
        """Return an array whose numbers stay in their file until they are used, or None where that cannot be."""
        file, own = self._copies[name][0]
        return file.mapped(own) if isinstance(file, Tensors) else None

    def _other(self, known: str, name: str) -> str:
        return f"{name} is another array than {self._copies[known][0][1]}, expected the same"


def write(file: Path, arrays: Mapping[str, Host], texts: Mapping[Path, str]) -> None:
    """Write a safetensors file as PyTorch's are, and texts beside it, each whole or not at all; raises OSError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with writing.foreach(file, *texts) as (weights, *descriptions):
        try:
            save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, weights, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, for one
            raise OSError(str(error)) from error
        for description, text in zip(descriptions, texts.values(), strict=True):
            description.write_bytes(text.encode())


def places(path: Path) -> tuple[Path, Path]:
    """Return the paths of weights and configuration for a folder, which is made, or a file `NAME.safetensors`."""
    if path.suffix == ".safetensors":
        return path, path.with_name(f"{path.stem}_config.json")
    path.mkdir(parents=True, exist_ok=True)
    return path / "model.safetensors", path / "config.json"


def config_beside(path: Path, names: Sequence[str] = NAMES, instead: str = "") -> Mapping[str, Any]:
    """Return the configuration beside a checkpoint; YAML is read as version 1.2 has it, without tags.

    `names` are those of files in its folder, and `instead` says in messages what else would do. Raise FileNotFoundError
    if there is none, ValueError if it cannot be read, and ImportError without PyYAML.
    """
    own = "model_config.json"  # beside a `model.safetensors` that was written as a file by itself
    names = (*names, own) if path.is_dir() else (*(f"{path.stem}_{name}" for name in names), *names)
    folder = path if path.is_dir() else path.parent
    for name in names:
        if (folder / name).is_file():
            return reading.document(folder / name)
    raise FileNotFoundError(f"{path}: no configuration beside it, expected {' or '.join(names)}{instead}")


def files_of(path: Path, instead: str = "") -> list[Path]:
    """Return the safetensors files of a checkpoint; `instead` says in messages what else would do."""
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
        raise FileNotFoundError(f"{path}: no checkpoint in it, expected model.safetensors or shards of it{instead}")
    return found
