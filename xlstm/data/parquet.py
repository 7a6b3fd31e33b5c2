"""Training examples in the rows of Parquet files, read one row group at a time.

Row groups are assigned to shards once, for any number of ranks. A batch takes rows of every shard
in proportion to the shard's size, so that all shards end with the last batch.
"""

from __future__ import annotations

import bisect
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays.groups import Group, columns
from xlstm.arrays.optional_imports import pyarrow
from xlstm.data.batches import Batch, Shuffler, part_of, time_first
from xlstm.data.host import Host, finite

WHERE = "FileShards"
SEEN = 4096  # the last bytes of each file, which ranks compare


class _RowGroup(NamedTuple):
    """A row group, given by its file and its index in the file."""

    path: Path
    metadata: Any  # the footer of the file, read once
    number: int
    rows: int


class RowGroups:
    """The batches of the row groups of several files; arguments are those of `FileShards`."""

    def __init__(
        self,
        files: list[tuple[Path]],
        batch_size: int,
        every_step: bool,
        x: str,
        target: str,
        shards: int,
        **_: Any,
    ) -> None:
        self.names = [x, target]
        self.batch_size = batch_size
        self.every_step = every_step
        self.shapes: list[Any] = []  # of rows of x and target, once some are read
        self.identity: dict[str, str] = {}
        groups: list[_RowGroup] = []
        for k, (path,) in enumerate(files):
            metadata, types = self._footer(path)
            if k == 0:
                first = types
            if types != first:
                raise ValueError(
                    f"{WHERE}: {path} has columns {types}, expected {first} as {files[0][0]} has"
                )
            rows = [
                metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)
            ]
            groups += [_RowGroup(path, metadata, *pair) for pair in enumerate(rows) if pair[1]]
            self.identity[f"{k} {path.name}"] = (
                f"{path.stat().st_size} bytes, rows {rows}, ends {_end(path)}"
            )
        if not groups:
            raise ValueError(f"{WHERE}: {files[0][0]} and others have no rows, expected some")
        groups.sort(key=lambda group: -group.rows)
        # the most shards such that each has at least one row in every full batch
        for count in range(min(shards, batch_size, len(groups)), 0, -1):
            self.shards = [groups[k::count] for k in range(count)]
            sizes = [sum(group.rows for group in shard) for shard in self.shards]
            if min(sizes) * batch_size >= sum(sizes):
                break
        self.ends = [0, *itertools.accumulate(sizes)]  # of each shard among all rows

    def _footer(self, path: Path) -> tuple[Any, dict[str, str]]:
        """Return the footer of a file, and the types of its columns x and target."""
        try:
            with pyarrow().parquet.ParquetFile(path) as file:
                schema = file.schema_arrow
                return file.metadata, {name: str(schema.field(name).type) for name in self.names}
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{WHERE}: {path} has no columns {self.names}, or is no Parquet file ({error})"
            ) from error

    def __len__(self) -> int:
        return -(-self.ends[-1] // self.batch_size)

    def parts(self, group: Group, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield the parts of a rank, which consist of whole shards."""
        count = len(self.shards)
        if count < group.size:
            raise ValueError(
                f"{WHERE}: row groups are dealt into {count} shards, expected one or more for each"
                f" of {group.size} ranks; write smaller row groups of equal size, or raise shards"
                " or batch_size"
            )
        # All ranks draw one number, whichever shards they have.
        seed = None if rng is None else int(rng.integers(2**63))
        own = range(count)[columns(count, group)]
        readers = [_Shard(self, k, seed) for k in own]
        for number in range(skip, len(self)):
            starts = self._borders(number)
            stops = self._borders(number + 1)
            x, target = _joined(
                reader.rows(starts[k + 1] - starts[k], stops[k + 1] - stops[k])
                for k, reader in zip(own, readers, strict=True)
            )
            if self.every_step:
                target = time_first(target)
            firsts = np.subtract(stops, starts)  # the first column of each shard in the batch
            mine = slice(int(firsts[own.start]), int(firsts[own.stop]))
            order = np.array([number, seed or 0, *itertools.chain(*self.shapes)])
            batch = Batch(time_first(x), target, None, True)
            yield part_of(batch, mine, int(firsts[-1]), self.every_step, order)

    def _borders(self, number: int) -> list[int]:
        """Return the borders between the shards' rows, in the order of the shards, after `number`
        batches.
        """
        rows = min(number * self.batch_size, self.ends[-1])
        return [rows * end // self.ends[-1] for end in self.ends]

    def read(self, group: _RowGroup) -> list[Host]:
        """Return x and target of all rows of a row group."""
        where = f"{WHERE}: {group.path}, row group {group.number}"
        with pyarrow().parquet.ParquetFile(group.path, metadata=group.metadata) as file:
            table = file.read_row_group(group.number, self.names)
        values = []
        for name, axes in zip(self.names, (2, 1 + self.every_step), strict=True):
            array = _array(f"{where}, column {name}", table[name])
            finite(f"{where}, column {name}", "rows", array)
            values.append(
                array[..., None] if (array.ndim, array.dtype.kind) == (axes, "f") else array
            )
        shapes = [array.shape[1:] for array in values]
        self.shapes = self.shapes or shapes
        timed = not self.every_step or shapes[0][:1] == shapes[1][:1]
        if shapes != self.shapes or not shapes[0] or not timed:
            raise ValueError(
                f"{where} has rows x and target of shapes {shapes}, others {self.shapes}, expected"
                " (T, D), or tokens (T,), and any shape, or (T, ...) with every_step"
            )
        return values


class _Shard:
    """The rows of one shard in one epoch."""

    def __init__(self, data: RowGroups, number: int, seed: int | None) -> None:
        groups = data.shards[number]
        self.data = data
        self.place = (seed, number)
        self.groups = [groups[k] for k in _order(len(groups), seed, number, 0)]
        self.ends = [*itertools.accumulate(group.rows for group in self.groups)]
        self.current = -1  # the index in `groups` of the row group in memory
        self.values: list[Host] = []

    def rows(self, start: int, stop: int) -> list[Host]:
        """Return x and target of rows in the order of the epoch."""
        pieces: list[list[Host]] = []
        while not pieces or start < stop:  # no rows still have a shape
            k = min(bisect.bisect(self.ends, start), len(self.ends) - 1)
            group = self.groups[k]
            if k != self.current:
                self.current = k
                self.values = []  # frees one row group before the next
                self.values = self.data.read(group)
                self.order = _order(group.rows, *self.place, k + 1)
            first = self.ends[k] - group.rows
            rows = self.order[start - first : stop - first]
            pieces.append([array[rows] for array in self.values])
            start += len(rows)
        return _joined(pieces)


def _end(path: Path) -> str:
    """Return a checksum of the end of a file, which holds the minima and maxima of row groups."""
    with path.open("rb") as file:
        file.seek(-min(SEEN, path.stat().st_size), os.SEEK_END)
        return f"{zlib.crc32(file.read()):08x}"


def _joined(pieces: Iterable[list[Host]]) -> list[Host]:
    """Return x and target of several pieces, concatenated."""
    return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]


def _order(count: int, seed: int | None, *place: int) -> Host:
    """Return an order of row groups or rows, which depends on the seed and on their place."""
    if seed is None:
        return np.arange(count)
    return np.random.default_rng([seed, *place]).permutation(count)


def _array(where: str, column: Any) -> Host:
    """Return a column of numbers, or of lists of one length, as an array (N, ...)."""
    compute = pyarrow().compute
    shape = [len(column)]
    while pyarrow().types.is_nested(column.type) and not column.null_count:
        lengths = compute.min_max(compute.list_value_length(column)).as_py()
        if lengths["min"] != lengths["max"]:
            raise ValueError(
                f"{where} has lists of {lengths['min']} to {lengths['max']} entries, expected one"
                " length"
            )
        shape.append(lengths["max"])
        column = compute.list_flatten(column)
    array: Host = column.to_numpy()
    if column.null_count or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{where} has type {column.type} and {column.null_count} nulls, expected real numbers"
        )
    return array.reshape(shape)
