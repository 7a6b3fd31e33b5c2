"""Reading ONNX files: the graph, and its constants, from files that may be wrong or malicious."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from xlstm.interop.onnx_names import library

Host = np.ndarray[Any, Any]

DOMAINS = ("", "ai.onnx")
OLDEST = 7  # the first opset with today's LSTM, GRU and RNN
LARGEST = 2**31 - 1  # bytes of a protobuf message

# data_type of a tensor to dtype, and the field values are in where they are not in raw_data
DTYPES = {1: ("<f4", "float_data"), 11: ("<f8", "double_data"), 10: ("<f2", "int32_data"), 7: ("<i8", "int64_data")}


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
        It is no ONNX model, or older than opset 7.
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
        self.nodes = list(model.graph.node)
        self._inputs = {entry.name for entry in model.graph.input}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers: dict[str, Any] = {}
        for node in self.nodes:
            self._producers |= {name: node for name in node.output if name}
            if node.op_type == "Constant" and node.domain in DOMAINS:
                values = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
                self._tensors |= dict(zip(node.output, values, strict=False))

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

    def shape(self, where: str, what: str, name: str) -> tuple[int, ...]:
        """The declared shape of a constant; raise ValueError if it is none."""
        return tuple(self._tensor(where, what, name).dims)

    def constant(self, where: str, what: str, name: str) -> Host:
        """The values of a constant; raise ValueError if it is none or damaged.

        Sizes are compared with the bytes that are there before memory is taken.
        """
        tensor = self._tensor(where, what, name)
        if tensor.data_type not in DTYPES:
            kind = {number: name for name, number in library().TensorProto.DataType.items()}.get(tensor.data_type)
            raise ValueError(
                f"{where}: {what} has data type {kind or tensor.data_type}, expected FLOAT, DOUBLE or FLOAT16"
            )
        code, field = DTYPES[tensor.data_type]
        dtype = np.dtype(code)
        shape = tuple(tensor.dims)
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
        return np.frombuffer(blob, dtype).reshape(shape).astype(dtype.newbyteorder("="))

    def is_constant(self, name: str) -> bool:
        """Whether `name` is an initializer, a Constant node, or a copy of one."""
        return self.origin(name) in self._tensors

    def _tensor(self, where: str, what: str, name: str) -> Any:
        source = self.origin(name)
        if source in self._tensors:
            return self._tensors[source]
        if source in self._inputs:
            found = f"an input of the model, {source!r}"
        elif source in self._producers:
            found = f"computed by a node {self._producers[source].op_type}, {source!r}"
        else:
            found = f"{source!r}, which nothing in the model defines"
        raise ValueError(f"{where}: {what} is {found}, expected an initializer or a Constant")

    def _external(self, where: str, what: str, tensor: Any, size: int) -> bytes:
        """Bytes from another file: a plain relative path that stays in the model's folder."""

        def refuse(found: str, expected: str) -> NoReturn:
            raise ValueError(f"{where}: {what} is external data {found}, expected {expected}")

        about = {entry.key: str(entry.value) for entry in tensor.external_data}  # bytes, where it is no text
        location = about.get("location", "")
        if self.folder is None:
            refuse(f"in {location!r}", "a model with its path, so that the file can be found")
        parts = location.split("/")
        plain = not any(c in location for c in "\\:\0") and not any(p in ("", ".", "..") for p in parts)
        home = self.folder.resolve()
        path = home.joinpath(*parts) if plain else home
        if not plain or not path.resolve().is_relative_to(home):
            refuse(f"in {location!r}", "a relative path inside the model's folder")
        if not path.is_file():
            raise FileNotFoundError(f"{where}: {what} is external data in {location!r}, which is no file")
        try:
            offset = int(about.get("offset", "0"))
            length = int(about.get("length", str(size)))
        except ValueError:
            refuse(f"with offset {about.get('offset')!r} and length {about.get('length')!r}", "whole numbers")
        if length != size:
            refuse(f"of {length} bytes", f"{size} for shape {tuple(tensor.dims)}")
        if offset < 0 or offset + size > path.stat().st_size:
            refuse(f"at bytes {offset} to {offset + size} of {location!r}", f"a place in its {path.stat().st_size}")
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)


def name_of(node: Any) -> str:
    """A node's name, or that of its first output where it has none."""
    return str(node.name or next((name for name in node.output if name), ""))


def _parse(path: Path, onnx: Any) -> Any:
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, expected an ONNX file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such ONNX file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, ONNX files have at most {LARGEST}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
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
