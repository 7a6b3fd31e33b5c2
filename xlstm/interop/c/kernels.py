"""The loops of a C program: which results are stored, and which are computed in the same loop.

A pointwise result is stored only if something needs it in memory: a product, a sum, or a broadcast.
All others are variables within a loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from xlstm.interop.c.arrays import Array, Node
from xlstm.interop.common import Host

LOADED = ("input", "constant", "row")  # in memory from the start
ALONE = ("product", "sum", "max")  # each has a loop of its own
COSTLY = ("exp", "expm1", "log", "log1p", "tanh", "sqrt")  # never computed in two loops


class Store(NamedTuple):
    """The storing of an array to a place in memory."""

    to: Node
    start: int
    value: Array

    @property
    def is_own(self) -> bool:
        """Whether the result goes to the memory of its own node."""
        return self.to is self.value.node and self.to.op != "input"


@dataclass
class Kernel:
    """Loops over one shape that compute and store results.

    Attributes
    ----------
    shape : tuple of int
    stores : list of Store
    loads : list of (Node, places)
        Memory that is read, and the place read for each number of the shape.
    """

    shape: tuple[int, ...]
    stores: list[Store] = field(default_factory=list)
    loads: list[tuple[Node, Host]] = field(default_factory=list)

    @property
    def alone(self) -> Node | None:
        """The product, sum or maximum that the kernel computes, if any."""
        node = self.stores[0].value.node
        return node if node.op in ALONE and self.stores[0].is_own else None


class _StoredError(Exception):
    """An exception: a node planned as a variable has to be stored."""

    def __init__(self, node: Node) -> None:
        self.node = node


def plan(stores: Sequence[Store]) -> list[Kernel]:
    """Return the kernels that store results to outputs and states, in order."""
    nodes = _reachable([store.value.node for store in stores])
    stored = {node for node in nodes if node.op in ALONE}
    for node in nodes:
        for a in node.args:
            if a.node.op in LOADED:
                continue
            if node.op == "product" or len(np.unique(a.places)) < a.size:
                stored.add(a.node)
    stores = [part for store in stores if store.value.size for part in _joined(store)]
    while True:
        try:
            return _Planner(stored).plan(stores)
        except _StoredError as error:
            stored.add(error.node)


def _reachable(nodes: Sequence[Node]) -> list[Node]:
    """Return nodes and all nodes that they are computed from, in the order of creation."""
    todo = list(nodes)
    reached = set()
    while todo:
        node = todo.pop()
        if node not in reached:
            reached.add(node)
            todo += [a.node for a in node.args]
    return sorted(reached, key=lambda node: node.number)


def part_at(node: Node, places: Host) -> tuple[Array, Host]:
    """Return the array that lies at places of a join, and the numbers' places in that array.

    Raises
    ------
    _StoredError
        The places belong to several arrays.
    """
    ends = np.cumsum([a.size for a in node.args])
    k = int(np.searchsorted(ends, places.min(), side="right"))
    if places.max() >= ends[k]:
        raise _StoredError(node)
    part = node.args[k]
    return part, part.places.reshape(-1)[places - (ends[k] - part.size)]


def _joined(store: Store) -> Iterator[Store]:
    """Yield a store, or a store for each array if its value is a join."""
    node = store.value.node
    if node.op != "join":
        yield store
        return
    places = store.value.places.reshape(-1)
    ends = np.cumsum([a.size for a in node.args])
    of_part = np.searchsorted(ends, places, side="right")
    cuts = [0, *(np.flatnonzero(np.diff(of_part)) + 1), places.size]
    for first, last in itertools.pairwise(cuts):
        part, inner = part_at(node, places[first:last])
        # a whole result keeps its shape, so that it can be stored in the loop that computes it
        value = part.node.array() if is_whole(part.node, inner) else Array(part.node, inner)
        yield from _joined(Store(store.to, store.start + int(first), value))


class _Planner:
    """A planner that puts stores into kernels; nodes in `stored` have their own memory."""

    def __init__(self, stored: set[Node]) -> None:
        self.stored = stored
        self.kernels: list[Kernel] = []
        self.at: dict[Node, list[int]] = {}  # the kernels that compute a node or write to it
        self.results: set[Node] = set()
        self.computed: dict[Node, int] = {}  # the kernel in which a node is a variable

    def plan(self, stores: Sequence[Store]) -> list[Kernel]:
        self.results = {store.value.node for store in stores}
        for node in sorted(self.stored, key=lambda node: node.number):
            whole = Store(node, 0, node.array())
            for store in _joined(whole):
                self._add(store)
        for store in stores:
            self._add(store)
        return self.kernels

    def _add(self, store: Store) -> None:
        """Put a store into an existing kernel, or into a new one."""
        node = store.value.node
        if store.is_own and node.op in ALONE:
            loads = self._loads(*((a.node, a.places) for a in node.args))
            self._new(Kernel(squeezed(node.shape), [store], loads))
            return
        shape = squeezed(store.value.shape)
        if store.is_own:
            loads = self._loads(*((a.node, a.places.reshape(shape)) for a in node.args))
        else:
            loads = self._loads((node, store.value.places.reshape(shape)))
        first = 0
        for source, places in loads:
            for k in self.at.get(source, []):
                beside = source.op not in (*ALONE, "join") and is_whole(source, places)
                first = max(first, k if beside else k + 1)
        for k in range(first, len(self.kernels)):
            kernel = self.kernels[k]
            if kernel.shape == shape and kernel.alone is None:
                kernel.stores.append(store)
                kernel.loads += loads
                self._note(store, k)
                return
        self._new(Kernel(shape, [store], loads))

    def _new(self, kernel: Kernel) -> None:
        self.kernels.append(kernel)
        self._note(kernel.stores[0], len(self.kernels) - 1)

    def _note(self, store: Store, k: int) -> None:
        if store.to.op != "input":
            self.at.setdefault(store.to, []).append(k)
        # last one first: once it is stored, its operands may be needed only once
        variables = self._variables(store.value.node, store.is_own)
        for node in sorted(variables, key=lambda node: -node.number):
            is_costly = node.op in COSTLY or node in self.results
            if self.computed.setdefault(node, k) != k and is_costly:
                raise _StoredError(node)

    def _variables(self, node: Node, is_root: bool = False) -> set[Node]:
        """Return the nodes that become variables in the loop that computes a node."""
        todo = [a.node for a in node.args] if is_root else [node]
        variables = set()
        while todo:
            node = todo.pop()
            if node not in self.stored and node.op not in LOADED and node not in variables:
                variables.add(node)
                todo += [a.node for a in node.args]
        return variables

    def _loads(self, *values: tuple[Node, Host]) -> list[tuple[Node, Host]]:
        """Return the loads that the numbers of nodes at places need."""
        todo = list(values)
        loads: dict[tuple[Node, bytes], tuple[Node, Host]] = {}
        while todo:
            node, places = todo.pop()
            key = node, places.tobytes()
            if key in loads:
                continue
            loads[key] = node, places
            if node.op == "row":
                todo.append((node.args[1].node, np.zeros_like(places)))
            elif node.op == "join" and node not in self.stored:
                part, inner = part_at(node, places)
                todo.append((part.node, inner))
            elif node.op not in LOADED and node not in self.stored:
                todo += [(a.node, a.places.reshape(-1)[places]) for a in node.args]
        return [load for load in loads.values() if load[0].op in LOADED or load[0] in self.stored]


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def is_whole(node: Node, places: Host) -> bool:
    """Return whether places are all places of a node, in order."""
    return places.size == node.size and bool(
        np.array_equal(places.reshape(-1), np.arange(node.size))
    )


class Affine(NamedTuple):
    """Places in memory: the first place, and the step along each axis of a shape."""

    first: int
    steps: tuple[int, ...]


def affine(places: Host) -> Affine | None:
    """Return places as steps, or None if they are not at equal distances."""
    first = int(places.reshape(-1)[0])
    steps = []
    line = np.zeros((), int)
    for axis, n in enumerate(places.shape):
        at = [0] * places.ndim
        at[axis] = min(1, n - 1)
        steps.append(int(places[tuple(at)]) - first)
        line = line[..., None] + np.arange(n) * steps[-1]
    return Affine(first, tuple(steps)) if np.array_equal(places - first, line) else None
