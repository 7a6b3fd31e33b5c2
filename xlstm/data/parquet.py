"""Examples in the rows of Parquet files, of which a row group is the least that can be read.

Row groups are dealt into shards once, whatever the number of ranks. A batch takes rows of every
shard in proportion to the rows that they have, so that all shards end with the last batch.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.optional_imports import pyarrow
from xlstm.arrays.ranks.groups import Group, columns
from xlstm.data.batches import Batch, Shuffler, part_of, time_first
from xlstm.data.host import Host

WHERE = "FileShards"


class _RowGroup(NamedTuple):
    """A row group, by its file and its number in it."""

    path: Path
    metadata: Any  # the footer of the file, which need not be read again
    number: int
    rows: int


class RowGroups:
    """The batches of the row groups of several files; arguments are those of `FileShards`."""

    def __init__(
        self,
        paths: list[Path],
        x: str,
        target: str,
        batch_size: int,
        every_step: bool,
        most: int,
    ) -> None:
        self.names = (x, target)
        self.axes = (2, 2 if every_step else 1)  # without those of a row's numbers
        self.batch_size = batch_size
        self.every_step = every_step
        self.identity: dict[str, Any] = {"shards": most}
        groups: list[_RowGroup] = []
        first: list[Any] = []
        for k, path in enumerate(paths):
            metadata, types = self._opened(path)
            first = first or types
            for name, own, expected in zip(self.names, types, first, strict=True):
                if own != expected:
                    raise ValueError(
                        f"{WHERE}: {path} has {name} of type {own}, expected {expected} as"
                        f" {paths[0]} has"
                    )
            rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            groups += [_RowGroup(path, metadata, g, n) for g, n in enumerate(rows) if n]
            size = path.stat().st_size
            self.identity[f"{k} {path.name}"] = f"{sum(rows)} rows in {rows}, {size} bytes"
        if not groups:
            raise ValueError(f"{WHERE}: files have no rows, expected one or more")
        self.shards = _dealt(groups, min(most, batch_size, len(groups)), batch_size)
        sizes = [sum(group.rows for group in shard) for shard in self.shards]
        self.ends = [0, *itertools.accumulate(sizes)]  # of the rows of each shard among all

    def _opened(self, path: Path) -> tuple[Any, list[Any]]:
        """Return the footer of a file and the types of its columns; ValueError where they do not
        fit.
        """
        try:
            with pyarrow().parquet.ParquetFile(path) as file:
                metadata = file.metadata
                schema = file.schema_arrow
        except ValueError as error:
            raise ValueError(f"{WHERE}: {path} is no Parquet file, {error}") from error
        types = []
        for name, axes, most in zip(self.names, self.axes, (3, 64), strict=True):
            if schema.names.count(name) != 1:
                raise ValueError(f"{WHERE}: {path} has columns {schema.names}, expected {name!r}")
            kind = schema.field(name).type
            leaf = kind
            depth = 1
            while _is_list(leaf):
                leaf = leaf.value_type
                depth += 1
            is_number = pyarrow().types.is_integer(leaf) or pyarrow().types.is_floating(leaf)
            if not is_number or not axes <= depth <= most:
                raise ValueError(
                    f"{WHERE}: {path} has {name} of type {kind}, expected numbers in lists of"
                    f" {axes - 1} or more levels, {most - 1} at most"
                )
            types.append(kind)
        return metadata, types

    def __len__(self) -> int:
        return -(-self.ends[-1] // self.batch_size)

    def parts(self, group: Group, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield the parts of a rank, of whole shards."""
        count = len(self.shards)
        if count < group.size:
            raise ValueError(
                f"{WHERE}: row groups are dealt into {count} shards, expected one or more for each"
                f" of {group.size} ranks; write smaller row groups of equal size, or raise shards"
                " or batch_size"
            )
        # One number is drawn by all ranks, whatever their shards are.
        seed = None if rng is None else int(rng.integers(2**63))
        own = range(count)[columns(count, group)]
        shapes: list[Any] = []  # of the rows of x and target, once they are read
        readers = [_Shard(self, k, seed, shapes) for k in own]
        for number in range(skip, len(self)):
            starts = self._borders(number)
            stops = self._borders(number + 1)
            arrays = [
                reader.rows(starts[k + 1] - starts[k], stops[k + 1] - stops[k])
                for k, reader in zip(own, readers, strict=True)
            ]
            x, target = (np.concatenate(values) for values in zip(*arrays, strict=True))
            if self.every_step:
                target = time_first(target)
            firsts = [stop - start for start, stop in zip(starts, stops, strict=True)]
            mine = slice(firsts[own.start], firsts[own.stop])
            order = np.array([number, seed or 0, *(n for shape in shapes for n in shape)])
            batch = Batch(time_first(x), target, None, True)
            yield part_of(batch, mine, firsts[-1], self.every_step, order)

    def _borders(self, number: int) -> list[int]:
        """Return between which rows of the first `number` batches, in the order of the shards, each
        shard has its own.
        """
        rows = min(number * self.batch_size, self.ends[-1])
        return [rows * end // self.ends[-1] for end in self.ends]

    def read(self, group: _RowGroup) -> list[Host]:
        """Return x and target of the rows of a row group."""
        where = f"{WHERE}: {group.path}, row group {group.number}"
        with pyarrow().parquet.ParquetFile(group.path, metadata=group.metadata) as file:
            table = file.read_row_group(group.number, [*self.names])
        values = []
        for name, axes in zip(self.names, self.axes, strict=True):
            array = _array(f"{where}, column {name}", table[name])
            if array.ndim == axes and array.dtype.kind == "f":
                array = array[..., None]
            values.append(array)
        x, target = values
        if self.every_step and x.shape[:2] != target.shape[:2]:
            raise ValueError(
                f"{where} has x of {x.shape[1]} steps and targets of {target.shape[1]}, expected as"
                " many with every_step"
            )
        return values


class _Shard:
    """The rows of one shard in one epoch."""

    def __init__(self, data: RowGroups, number: int, seed: int | None, shapes: list[Any]) -> None:
        groups = data.shards[number]
        self.data = data
        self.number = number
        self.seed = seed
        self.shapes = shapes
        self.groups = [groups[k] for k in _order(len(groups), seed, number, 0)]
        self.ends = [*itertools.accumulate(group.rows for group in self.groups)]
        self.current = -1  # the place among `groups` of the one in memory
        self.values: list[Host] = []
        self.order = np.arange(0)

    def rows(self, start: int, stop: int) -> list[Host]:
        """Return x and target of rows in the order of the epoch."""
        pieces: list[list[Host]] = []
        while not pieces or start < stop:  # no rows have a shape, too
            k = min(bisect.bisect(self.ends, start), len(self.ends) - 1)
            self._load(k)
            first = self.ends[k] - self.groups[k].rows
            last = min(stop, self.ends[k])
            rows = self.order[start - first : last - first]
            pieces.append([array[rows] for array in self.values])
            start = last
        return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]

    def _load(self, k: int) -> None:
        """Bring the k-th row group into memory in the place of the one before it."""
        if k == self.current:
            return
        self.values = []
        group = self.groups[k]
        values = self.data.read(group)
        shapes = [array.shape[1:] for array in values]
        self.shapes[:] = self.shapes or shapes
        if shapes != self.shapes:
            raise ValueError(
                f"{WHERE}: {group.path}, row group {group.number} has rows x and target of shapes"
                f" {shapes}, expected {self.shapes} as others have"
            )
        self.order = _order(group.rows, self.seed, self.number, k + 1)
        self.values = values
        self.current = k


def _dealt(groups: list[_RowGroup], most: int, batch_size: int) -> list[list[_RowGroup]]:
    """Return shards of row groups, as many as there can be with a row or more in each full
    batch.
    """
    total = sum(group.rows for group in groups)
    # the largest ones first, each into the shard that has the fewest rows
    order = sorted(range(len(groups)), key=lambda k: -groups[k].rows)
    for count in range(most, 1, -1):
        heap = [(0, shard) for shard in range(count)]
        shards: list[list[int]] = [[] for _ in range(count)]
        for k in order:
            rows, shard = heap[0]
            heapq.heapreplace(heap, (rows + groups[k].rows, shard))
            shards[shard].append(k)
        if heap[0][0] * batch_size >= total:
            return [[groups[k] for k in sorted(shard)] for shard in shards]
    return [groups]


def _order(count: int, seed: int | None, *place: int) -> Host:
    """Return an order of row groups or of rows, which depends on the seed and on their place."""
    if seed is None:
        return np.arange(count)
    return np.random.default_rng([seed, *place]).permutation(count)


def _is_list(kind: Any) -> bool:
    """Return whether a type is one of lists."""
    types = pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _array(where: str, column: Any) -> Host:
    """Return a column of numbers, or of lists of one length, as an array (N, ...)."""
    compute = pyarrow().compute
    shape = [len(column)]
    while _is_list(column.type):
        lengths = compute.min_max(compute.list_value_length(column)).as_py()
        if column.null_count or lengths["min"] != lengths["max"]:
            raise ValueError(
                f"{where} has lists of {lengths['min']} to {lengths['max']} entries and"
                f" {column.null_count} nulls, expected lists of one length"
            )
        shape.append(lengths["max"])
        column = compute.list_flatten(column)
    if column.null_count:
        raise ValueError(f"{where} has {column.null_count} nulls, expected numbers")
    array: Host = column.to_numpy().reshape(shape)
    return array
