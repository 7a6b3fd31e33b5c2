"""Reading ONNX files: the graph, and its constants, from files that may be wrong or malicious."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from xlstm.arrays.checks import shown
from xlstm.interop.onnx import wire
from xlstm.interop.onnx.names import library

Host = np.ndarray[Any, Any]

DOMAINS = ("", "ai.onnx")
OLDEST = 7  # the first opset with today's LSTM, GRU and RNN
LARGEST = 2**31 - 1  # bytes of a protobuf message
RANK = 8  # axes of a tensor, more than a recurrent layer has anywhere
SPARE = 32 << 20  # bytes that nodes which share their weights may take beyond what is there
LONGEST_PATH = 1000  # characters of the name of external data

# data_type of a tensor to dtype, and the field values are in where they are not in raw_data
DTYPES = {
    1: ("<f4", "float_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    10: ("<f2", "int32_data"),
    11: ("<f8", "double_data"),
}

# How many inputs of a node give its values; the others, and all of Shape's, give no more than sizes or positions.
VALUES = {
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike"), 0),
    **dict.fromkeys(("Expand", "Reshape", "Squeeze", "Tile", "Unsqueeze"), 1),
}


class Graph:
    """The main graph of a model, read by name.

    Parameters
    ----------
    path_or_model : path or onnx.ModelProto
        Weights outside the file are found only by the path.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        There is no such file.
    ValueError
        It is no ONNX model, or older than opset 7; a name is defined twice.
    """

    def __init__(self, path_or_model: Any) -> None:
        onnx = library()
        self.folder: Path | None = None
        if isinstance(path_or_model, onnx.ModelProto):
            self.where, model = "from_onnx", path_or_model
        else:
            path = Path(path_or_model)
            self.where, self.folder, model = str(path), path.parent, _parse(path, onnx)
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        versions = [opsets[domain] for domain in DOMAINS if domain in opsets]
        if not versions or not model.graph.node:
            raise ValueError(f"{self.where}: not an ONNX model, it has no opset or no nodes")
        if versions[0] < OLDEST:
            raise ValueError(f"{self.where}: opset is {versions[0]}, expected {OLDEST} or newer")
        for function in model.functions:
            if function.domain in DOMAINS:
                raise ValueError(f"{self.where}: the model defines an operator {shown(function.name)} of ONNX anew")
        self.nodes = list(model.graph.node)
        self._inputs = {entry.name for entry in model.graph.input}
        self._declared = [*model.graph.input, *model.graph.value_info]
        self._tensors: dict[str, Any] = {}
        self._producers: dict[str, Any] = {}
        for tensor in model.graph.initializer:
            self._define(self._tensors, tensor.name, tensor)
        for node in self.nodes:
            for name in node.output:
                if name:
                    self._define(self._producers, name, node)
        for node in self.nodes:
            tensor = _constant(onnx, node)
            if tensor is not None and node.output:
                self._tensors[node.output[0]] = tensor
        self._there, self._taken = model.ByteSize(), 0  # bytes
        self._files: set[Path] = set()

    def _define(self, kind: dict[str, Any], name: str, value: Any) -> None:
        if name in self._tensors or name in self._producers or (kind is self._producers and name in self._inputs):
            raise ValueError(f"{self.where}: {shown(name)} is defined twice")
        kind[name] = value

    def origin(self, name: str) -> str:
        """The name that `name` is a copy of, through Identity nodes."""
        seen = set()
        while name not in seen and self.producer(name, "Identity") is not None:
            seen.add(name)
            name = self._producers[name].input[0]
        return name

    def producer(self, name: str, op_type: str | None = None) -> Any:
        """The node that computes `name`, None if there is none or it is another operator."""
        node = self._producers.get(name)
        if node is None or op_type is None:
            return node
        return node if node.op_type == op_type and node.domain in DOMAINS and node.input else None

    def described(self, name: str) -> str:
        """Where a value comes from, for a message."""
        source = self.origin(name)
        if source in self._producers:
            return f"computed by a node {shown(self._producers[source].op_type)[1:-1]}, {shown(source)}"
        if source in self._tensors:
            return f"a constant, {shown(source)}"
        if source in self._inputs:
            return f"an input of the model, {shown(source)}"
        return f"{shown(source)}, which nothing in the model defines"

    def inputs(self) -> set[str]:
        """Inputs of the model that have no value of their own."""
        return self._inputs - self._tensors.keys()

    def reached(self, names: Iterable[str]) -> set[str]:
        """All names whose values, and not only whose shapes, depend on those of `names`."""
        consumers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in _values(node):
                consumers.setdefault(name, []).append(node)
        ahead = list(names)
        found = set(ahead)
        while ahead:
            for node in consumers.pop(ahead.pop(), ()):
                new = [name for name in node.output if name and name not in found]
                found.update(new)
                ahead += new
        return found

    def declared(self, name: str) -> list[int | None]:
        """The sizes that the file declares for a value, None where it leaves them open."""
        for entry in self._declared:
            if entry.name == name and entry.type.tensor_type.HasField("shape"):
                dims = entry.type.tensor_type.shape.dim
                return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims[: RANK + 1]]
        return []

    def shape(self, where: str, what: str, name: str) -> tuple[int, ...]:
        """The declared shape of a constant; raise ValueError if it is none."""
        return self._shape(where, what, self._tensor(where, what, name))

    def _shape(self, where: str, what: str, tensor: Any) -> tuple[int, ...]:
        dims = tensor.dims
        if len(dims) > RANK:
            raise ValueError(f"{where}: {what} has {len(dims)} axes, expected {RANK} at most")
        return tuple(dims)

    def constant(self, where: str, what: str, name: str) -> Host:
        """The values of a constant; raise ValueError if it is none or damaged."""
        return self.values(where, what, self._tensor(where, what, name))

    def values(self, where: str, what: str, tensor: Any) -> Host:
        """The values of a tensor; raise ValueError if it is damaged.

        Sizes are compared with the bytes that are there before memory is taken.
        """
        if tensor.data_type not in DTYPES:
            kind = {number: name for name, number in library().TensorProto.DataType.items()}.get(tensor.data_type)
            raise ValueError(
                f"{where}: {what} has data type {kind or tensor.data_type}, expected FLOAT, DOUBLE or FLOAT16"
            )
        code, field = DTYPES[tensor.data_type]
        dtype = np.dtype(code)
        shape = self._shape(where, what, tensor)
        if min(shape, default=0) < 0:
            raise ValueError(f"{where}: {what} has shape {shape}, expected none below 0")
        count = math.prod(shape)
        if tensor.data_location == 1:
            blob = self._external(where, what, tensor, count * dtype.itemsize)
        elif tensor.HasField("raw_data"):
            blob = tensor.raw_data
        else:
            blob = _typed(where, what, getattr(tensor, field), dtype, count)
        if len(blob) != count * dtype.itemsize:
            expected = f"{count * dtype.itemsize} for shape {shape} of {dtype.name}"
            raise ValueError(f"{where}: {what} has {len(blob)} bytes, expected {expected}")
        self._take(where, what, len(blob))
        return np.frombuffer(blob, dtype).reshape(shape).astype(dtype.newbyteorder("="))

    def _take(self, where: str, what: str, size: int) -> None:
        """Count the bytes of a constant: nodes that share a tensor, or a place in a file, each take their own."""
        self._taken += size
        most = 4 * self._there + SPARE
        if self._taken > most:
            raise ValueError(
                f"{where}: with {what} the nodes' constants take {self._taken} bytes, as nodes share them, "
                f"expected at most {most} of {self._there} bytes of files"
            )

    def is_constant(self, name: str) -> bool:
        """Whether `name` is an initializer, a Constant node, or a copy of one."""
        return self.origin(name) in self._tensors

    def _tensor(self, where: str, what: str, name: str) -> Any:
        tensor = self._tensors.get(self.origin(name))
        if tensor is None:
            raise ValueError(f"{where}: {what} is {self.described(name)}, expected an initializer or a Constant")
        return tensor

    def _external(self, where: str, what: str, tensor: Any, size: int) -> bytes:
        """Bytes from another file: a plain relative path that stays in the model's folder."""

        def refuse(found: str, expected: str) -> NoReturn:
            raise ValueError(f"{where}: {what} is external data {found}, expected {expected}")

        def whole(key: str, default: int) -> int:
            text = about.get(key, str(default))
            if not (text.removeprefix("-").isdecimal() and len(text) <= 20):
                refuse(f"with {key} {shown(text)}", "a whole number")
            return int(text)

        about = {entry.key: str(entry.value) for entry in tensor.external_data}  # bytes, where it is no text
        location = about.get("location", "")
        if self.folder is None:
            refuse(f"in {shown(location)}", "a model with its path, so that the file can be found")
        parts = location.split("/")
        plain = (
            len(location) <= LONGEST_PATH
            and not any(c in location for c in "\\:\0")
            and not any(p in ("", ".", "..") for p in parts)
        )
        home = self.folder.resolve()
        path = home.joinpath(*parts) if plain else home
        if not plain or not path.resolve().is_relative_to(home):
            refuse(f"in {shown(location)}", "a relative path inside the model's folder")
        if not path.is_file():
            raise FileNotFoundError(f"{where}: {what} is external data in {shown(location)}, which is no file")
        offset, length = whole("offset", 0), whole("length", size)
        if length != size:
            refuse(f"of {length} bytes", f"{size} for shape {tuple(tensor.dims)}")
        if offset < 0 or offset + size > path.stat().st_size:
            refuse(
                f"at bytes {offset} to {offset + size} of {shown(location)}", f"a place in its {path.stat().st_size}"
            )
        if path not in self._files:
            self._files.add(path)
            self._there += path.stat().st_size
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)


def name_of(node: Any) -> str:
    """A node's name, or that of its first output where it has none."""
    return str(node.name or next((name for name in node.output if name), ""))


def subgraphs(node: Any) -> Iterator[Any]:
    """Graphs inside a node, such as the branches of an If, and those inside their nodes."""
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield graph
            for inner in graph.node:
                yield from subgraphs(inner)


def _values(node: Any) -> Iterator[str]:
    """Names whose values go into a node."""
    yield from node.input[: VALUES.get(node.op_type) if node.domain in DOMAINS else None]
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from inner.input


def _constant(onnx: Any, node: Any) -> Any:
    """The tensor of a Constant node, None of another one."""
    if node.op_type != "Constant" or node.domain not in DOMAINS:
        return None
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            return attribute.t
        if attribute.name in ("value_int", "value_ints"):
            values = attribute.ints if attribute.name == "value_ints" else [attribute.i]
            tensor = onnx.TensorProto(data_type=7, int64_data=values)
        elif attribute.name in ("value_float", "value_floats"):
            values = attribute.floats if attribute.name == "value_floats" else [attribute.f]
            tensor = onnx.TensorProto(data_type=1, float_data=values)
        else:
            continue
        if attribute.name.endswith("s"):
            tensor.dims.append(len(values))
        return tensor
    return None


def _parse(path: Path, onnx: Any) -> Any:
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected an ONNX file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, ONNX files have at most {LARGEST}")
    model, data = onnx.ModelProto(), path.read_bytes()
    try:
        wire.check(data, model.DESCRIPTOR)
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise ValueError(f"{path}: not an ONNX model ({error})") from error
    return model


def _typed(where: str, what: str, values: Any, dtype: np.dtype[Any], count: int) -> bytes:
    """The bytes of a tensor whose values are in a field of numbers."""
    if len(values) != count:
        raise ValueError(f"{where}: {what} has {len(values)} values, expected {count}")
    if dtype.itemsize > 2:
        return np.asarray(values, dtype).tobytes()
    bits = np.asarray(values, np.int64)  # float16 is kept as 16 bits in whole numbers
    if count and (bits.min() < 0 or bits.max() > 0xFFFF):
        raise ValueError(f"{where}: {what} has int32_data outside 0 to 65535, expected the bits of float16")
    return bits.astype("<u2").tobytes()
