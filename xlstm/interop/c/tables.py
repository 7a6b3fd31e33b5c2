"""Constants of a C program: their order in memory, their rounding, and their text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from xlstm.interop.c.arrays import Array, Node
from xlstm.interop.c.kernels import Kernel
from xlstm.interop.c.memory import unique
from xlstm.interop.common import Host

SPECIAL = {"inf": "INFINITY", "-inf": "-INFINITY", "nan": "NAN"}


class Table:
    """A table of constants that becomes an array in C.

    Parameters
    ----------
    node : Node
        The node of the constants, with values in the order of a parameter.
    name : str
        The name of the array.

    Attributes
    ----------
    position : array of int
        The place of each value in the array.
    scales : array or None
        The factor of each row of the parameter, with int8.
    """

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.values: Host = node.values.reshape(-1)  # type: ignore[union-attr]
        self.position: Host = np.arange(node.size, dtype=np.int32)
        self.scales: Host | None = None
        self.rounding = 0.0, 0.0  # sums of squares: of the changes by rounding, and of the matrix

    def turn(self, matrix: Array) -> None:
        """Store the outputs of a product side by side for each input, so a loop over outputs needs
        no sum.
        """
        order = np.swapaxes(matrix.places, -1, -2).reshape(-1)
        if order.size == self.node.size and np.array_equal(np.sort(order), self.position):
            self.position = np.argsort(order).astype(np.int32)

    def quantize(self) -> None:
        """Round each row to a scale times whole numbers from -127 to 127."""
        rows = self.values.reshape(-1, self.node.shape[-1]).astype(np.float64)
        least = np.finfo(np.float32).tiny
        self.scales = np.maximum(np.abs(rows).max(axis=1) / 127, least).astype(np.float32)
        whole = np.clip(np.rint(rows / self.scales[:, None]), -127, 127)
        changed = whole * self.scales[:, None] - rows
        self.rounding = float(np.sum(changed**2)), float(np.sum(rows**2))
        self.values = whole.astype(np.int8).reshape(-1)

    @property
    def bytes(self) -> int:
        """The bytes of the table and its scales."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def lines(self) -> list[str]:
        """The C definition of the array and its scales."""
        about = f"{self.node.name} ({', '.join(map(str, self.node.shape)) or 'a number'})"
        ordered = np.empty_like(self.values)
        ordered[self.position] = self.values
        if self.scales is None:
            return [f"/* {about} */", *defined("float", self.name, ordered)]
        return [
            f"/* {about}, each row divided by its scale */",
            *defined("int8_t", self.name, ordered),
            *defined("float", f"{self.name}_scale", self.scales),
        ]


def defined(kind: str, name: str, values: Host) -> list[str]:
    """Return the C definition of an array of numbers."""
    texts = [f"{_suffixed(text, kind)}," for text in values.astype(str).tolist()]
    width = 16 if kind == "int8_t" else 8
    rows = (texts[k : k + width] for k in range(0, len(texts), width))
    head = f"static const {kind} {name}[{values.size}] = {{"
    return [head, *(f"    {' '.join(row)}" for row in rows), "};"]


def literal(value: float) -> str:
    """Return a float32 number as text with all digits."""
    return _suffixed(str(np.asarray(value, np.float32).astype(str)), "float")


def _suffixed(text: str, kind: str) -> str:
    return text if kind != "float" else SPECIAL.get(text, f"{text}f")


def tables(kernels: Sequence[Kernel], prefix: str, quantized: bool) -> dict[Node, Table]:
    """Return the tables of the constants that kernels load.

    With `quantized`, matrices of products, and tables whose rows are read, are rounded.
    """
    loaded = [node for kernel in kernels for node, _ in kernel.loads]
    nodes = {node.args[0].node if node.op == "row" else node: None for node in loaded}
    products = [k.alone.args[0] for k in kernels if k.alone is not None and k.alone.op == "product"]
    rows = [node for node in loaded if node.op == "row"]
    matrices = {a.node for a in products} | {
        node.args[0].node for node in rows if node.args[1].dtype == np.int64
    }
    indexed = matrices | {node.args[0].node for node in rows}
    found: dict[Node, Table] = {}
    names: set[str] = set()
    for node in nodes:
        if node.op == "constant" and (node in indexed or not is_uniform(node)):
            name = f"{prefix}_{re.sub(r'[^A-Za-z0-9_]', '_', node.name)}"
            found[node] = Table(node, unique(name, names))
    for matrix in products:
        if matrix.node in found:
            found[matrix.node].turn(matrix)
    matrices &= found.keys()
    for node in matrices if quantized else ():
        found[node].quantize()
    return found


def is_uniform(node: Node) -> bool:
    """Return whether all constants are the same number."""
    return bool(np.all(node.values == node.values.flat[0]))  # type: ignore[union-attr]
