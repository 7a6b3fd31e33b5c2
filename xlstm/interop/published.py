"""Published checkpoints: files read array by array, arrays mapped to parameters, and
configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm import checkpoint
from xlstm.arrays import checks
from xlstm.arrays.backend import Backend, backend_of
from xlstm.arrays.checks import shown
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.namespace import Params
from xlstm.data import reading, writing
from xlstm.data.pytorch import TorchFile
from xlstm.data.tensors import Host, Tensors

Shape = tuple[int, ...]
Layout = tuple[Shape, Shape, Shape]  # `fine`, `order` and `there` of a `Piece`
WIDE = {"F64": "float64", "F32": "float32", "F16": "float32", "BF16": "float32"}
blocks = checks.whole(1, 1 << 10)  # more than any model has
ENDINGS = {"W": "weight", "w": "weight", "b": "bias"}  # their endings of names by this library's


class Shards:
    """The arrays of a checkpoint: names, shapes and dtypes at once, and numbers on request.

    The constructor raises OSError or ValueError if a file is damaged or does not hold real numbers.
    `renamed` returns an array's name in this library. Several arrays, also in several files, may
    share a name; they must be equal when they are read.
    """

    def __init__(
        self, path: Path, files: Iterable[Tensors | TorchFile], renamed: Callable[[str], str] = str
    ) -> None:
        self.path = path
        self.shapes: dict[str, Shape] = {}
        self.dtype = "float32"  # wide enough for all arrays: float64 if any has it
        self._copies: dict[str, list[tuple[Tensors | TorchFile, str]]] = {}
        for file in files:
            for name, dtype in file.dtypes.items():
                if dtype not in WIDE:
                    raise ValueError(
                        f"{file.path}: {name} has dtype {dtype}, expected {', '.join(WIDE)}"
                    )
                ours = renamed(name)
                self.shapes.setdefault(ours, file.shapes[name])
                self._copies.setdefault(ours, []).append((file, name))
                self.dtype = max(self.dtype, WIDE[dtype])

    def read(self, name: str, dtype: str | None = None) -> Host:
        """Return an array as a dtype; bfloat16 becomes float32.

        It is compared with its copies under other names, and its numbers must be finite, also as
        that dtype.
        """
        (file, stored_name), *others = self._copies[name]
        array = file.read([stored_name])[stored_name]
        for other, alias in others:
            if not np.array_equal(array, other.read([alias])[alias]):
                raise ValueError(
                    f"{self.path}: {alias} is another array than {stored_name}, expected the same"
                )
        checkpoint.finite(self.path, {name: array}, dtype)
        return array

    def mapped(self, name: str) -> Host | None:
        """Return an array whose numbers stay in the file until they are used, or None if that is
        impossible.
        """
        file, stored_name = self._copies[name][0]
        return file.mapped(stored_name) if isinstance(file, Tensors) else None


def write(path: Path, arrays: Mapping[str, Host], config: str, as_yaml: bool = False) -> None:
    """Write a safetensors file in PyTorch's form, and the text of its configuration beside it.

    Each file is written completely or not at all; it raises OSError. The path is a folder, which is
    made if needed, or a file `NAME.safetensors`. With `as_yaml`, a folder also gets the
    configuration as `config.yaml`, since JSON is YAML.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if path.suffix == ".safetensors":
        files = [path, path.with_name(f"{path.stem}_config.json")]
    else:
        path.mkdir(parents=True, exist_ok=True)
        files = [path / "model.safetensors", path / "config.json"]
        if as_yaml:
            files.append(path / "config.yaml")
    with writing.foreach(*files) as (weights, *descriptions):
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            save_file(contiguous, weights, metadata={"format": "pt"})
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from error
        for description in descriptions:
            description.write_bytes(config.encode())


def config_beside(path: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """Return the configuration beside a checkpoint; YAML is read as version 1.2 without tags.

    `names` are the possible names of the file. It raises FileNotFoundError if there is none,
    ValueError if it cannot be read, and ImportError without PyYAML.
    """
    folder = path if path.is_dir() else path.parent
    beside = [*(f"{path.stem}_{name}" for name in names), *names]
    if path.is_dir():  # the last is of a `model.safetensors` written alone
        beside = [*names, "model_config.json"]
    for name in beside:
        if (folder / name).is_file():
            return reading.document(folder / name)
    raise FileNotFoundError(f"{path}: no configuration beside it, expected {' or '.join(names)}")


def files_of(path: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint."""
    if not path.is_dir():
        return [path]
    index = path / "model.safetensors.index.json"
    whole = path / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        named = reading.document(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise ValueError(
                f"{index}: weight_map is {shown(named)}, expected names of files by names of arrays"
            )
        listed = [path / name for name in sorted(set(named.values()))]
        for file in listed:
            if file.parent != path or not file.is_file():
                raise FileNotFoundError(f"{file}: no such file, but {index.name} names it")
        return listed
    raise FileNotFoundError(f"{path}: no checkpoint in it, expected {whole.name} or {index.name}")


class Piece(NamedTuple):
    """Some rows of a parameter here as an array of the package: divided into `fine` axes, permuted,
    and joined to the shape `there`.
    """

    name: str
    rows: slice
    fine: Shape
    order: Shape
    there: Shape


# for each parameter, by name, the package's arrays that are stacked into it
Pieces = Mapping[str, list[Piece]]


def block(ours: str, theirs: str, table: Mapping[str, str]) -> dict[str, list[str]]:
    """Return a block's names in the package by its names here, from a table of names within it."""
    return {
        f"{ours}{name}": [theirs + there for there in names.split()]
        for name, names in table.items()
    }


def pieces_of(
    shapes: Mapping[str, checks.Dims],
    theirs: Mapping[str, Sequence[str]],
    v_size: int,
    layout: Callable[[str, str, Shape], Layout | None],
) -> Pieces:
    """Return the package's arrays of which each parameter is made.

    `theirs` maps names of parameters to names in the package, in full or both without endings. Four
    names are q, k, v and o; v and o have `v_size` rows. `layout` takes an array's name here, its
    name there and its shape here, and returns its layout if that differs.
    """
    pieces: dict[str, list[Piece]] = {}
    for ours, dims in shapes.items():
        part, _, last = ours.rpartition(".")
        height, *rest = (n or 0 for n in dims.values())
        names = (
            theirs[ours] if ours in theirs else [f"{name}.{ENDINGS[last]}" for name in theirs[part]]
        )
        heights = [height // len(names)] * len(names)
        if len(names) == 4:
            heights = [height // 2 - v_size, height // 2 - v_size, v_size, v_size]
        pieces[ours] = []
        start = 0
        for name, n in zip(names, heights, strict=True):
            shape = (n, *rest)
            same = (shape, tuple(range(len(shape))), shape)
            axes = layout(ours, name, shape) or same
            pieces[ours].append(Piece(name, slice(start, start + n), *axes))
            start += n
    return pieces


def check(pieces: Pieces, shards: Shards, spare: Iterable[str] = ()) -> None:
    """Raise ValueError unless a checkpoint has exactly the arrays of these pieces, in their shapes.

    Arrays named in `spare` may be there, too.
    """
    expected = {piece.name: piece.there for some in pieces.values() for piece in some}
    for name, shape in expected.items():
        if name not in shards.shapes:
            raise ValueError(f"{shards.path}: {name} is missing, expected it in shape {shape}")
        if shards.shapes[name] != shape:
            raise ValueError(
                f"{shards.path}: {name} has shape {shards.shapes[name]}, expected {shape}"
            )
    surplus = [name for name in shards.shapes if name not in expected and name not in spare]
    if surplus:
        raise ValueError(f"{shards.path}: the configuration has no place for {checks.few(surplus)}")


def params(
    pieces: Pieces,
    shards: Shards,
    shapes: Mapping[str, checks.Dims],
    backend: str | Backend | None,
    dtype: str | None,
) -> Params:
    """Return parameters of these shapes, read one by one from a checked checkpoint."""
    dtype = dtype or (backend.dtype if isinstance(backend, Backend) else shards.dtype)
    target = backend_of(backend, dtype)
    return {
        name: target.asarray(_assembled(shards, some, shapes[name], target.dtype))
        for name, some in pieces.items()
    }


def exported(pieces: Pieces, arrays: Params) -> dict[str, Host]:
    """Return arrays under this library's names, such as parameters or gradients, in the package's
    layout.
    """
    theirs = {}
    for name, some in pieces.items():
        for piece in some:
            divided = to_numpy(arrays[name])[piece.rows].reshape(piece.fine)
            theirs[piece.name] = divided.transpose(piece.order).reshape(piece.there)
    return theirs


def _assembled(shards: Shards, pieces: list[Piece], dims: checks.Dims, dtype: str) -> Any:
    """Return a parameter made of its pieces, in the requested dtype and never twice in memory.

    NumPy has no bfloat16: such a parameter comes as float32, and its backend rounds it. A parameter
    with the same layout in its file stays there until it is used.
    """
    dtype = "float32" if dtype == "bfloat16" else dtype
    shape = tuple(n or 0 for n in dims.values())
    if len(pieces) > 1:
        whole = np.empty(shape, dtype=dtype)
        for piece in pieces:
            whole[piece.rows] = shards.read(piece.name, dtype)
        return whole
    name, _, fine, order, _ = pieces[0]
    array = shards.read(name, dtype)  # a copy: reading a whole mapping would keep it in memory
    as_it_lies = order == tuple(range(len(order))) and array.dtype.name == dtype
    mapped = shards.mapped(name) if as_it_lies else None
    if mapped is not None:
        return mapped.reshape(shape)
    permuted = array.reshape([fine[k] for k in order]).transpose(np.argsort(order))
    return np.ascontiguousarray(permuted.reshape(shape), dtype=dtype)


def table(*same: str, **others: str) -> dict[str, str]:
    """Return this library's names of options by the package's: shared names, and others."""
    return {**dict(zip(same, same, strict=True)), **others}


def options(
    config: Any,
    where: str,
    names: Mapping[str, str],
    ignored: Collection[str] | None = None,
    fixed: Mapping[str, Any] | None = None,
    required: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the values of a configuration as options of this library; `names` maps the package's
    names.

    Keys that are `ignored` mean nothing here; by default these are all other keys. Keys that are
    `fixed` have no option here and must have the only value that this library supports. It raises
    ValueError or TypeError if a key is unknown, or a `required` key is missing. The layer that
    takes the options checks their values.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"{where}: is {shown(config)}, expected a dict")
    for name, value in config.items():
        if fixed is not None and name in fixed:
            only(where, name, value, fixed[name])
        elif not (ignored is None or name in names or name in ignored or str(name).startswith("_")):
            raise ValueError(
                f"{where}: key {shown(name)} is unknown, expected some of {', '.join(names)}"
            )
    for name in required:
        if config.get(name) is None:
            raise ValueError(f"{where}: {name} is missing")
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def only(where: str, name: str, value: Any, expected: Any) -> None:
    """Raise ValueError unless a key without an option here has the only value that this library
    supports.
    """
    if value != expected:
        raise ValueError(
            f"{where}: {name} is {shown(value)}, which xlstm cannot express, expected {expected!r}"
        )


def values(layer: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of a layer as a configuration of the package, the reverse of `options`."""
    return {theirs: getattr(layer, name) for theirs, name in names.items()}


def factor(D: int, size: int) -> float:
    """Return a factor whose product with D, rounded down, is `size`."""
    factor = size / D
    return factor if int(D * factor) == size else math.nextafter(factor, math.inf)
