"""Training data in files larger than memory: each rank reads only the rows of its own sequences."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.groups import GROUP, Alone, Group, columns
from xlstm.data.batches import Batch, ByRows, Shuffler, is_input, orders, part_of, time_first
from xlstm.data.host import Host
from xlstm.data.parquet import RowGroups

WHERE = "FileShards"
SEEN = 512  # the first numbers of each file, which ranks compare
OPTIONS = ("batch_size", "every_step", "length", "document_end", "x", "target", "shards")


@dataclass(frozen=True)
class FileShards:
    """Examples, tokens or text in files; each rank reads only the rows of its own sequences.

    Use it for files that are larger than memory. Batches and their order are the same for any
    number of ranks. Shapes, dtypes and numbers of rows are checked at the start, from the headers
    of the files; numbers are checked when they are read. An error about a number names the file
    and its row, from 0; in a Parquet file also the column and the row group. There are three kinds of files:

    - Pairs of .npy files hold x (N, T, D), or tokens (N, T), and targets, as for `Windows`. The
      order is the same as in `Windows` over the concatenated files.
    - Files .npy of tokens (N,), or .txt with a token for each byte, are one long sequence. The
      batches are the same as in `Streams.of_tokens` over the concatenated files.
    - Parquet files hold an example in each row, and are read in whole row groups. Row groups are
      assigned to shards with about as many rows each, and every batch has rows of all shards. In
      each epoch, a generator of random numbers shuffles the row groups of a shard, and the rows of
      a row group.

    Parameters
    ----------
    files : list of paths, or of pairs of paths (x, target)
        The files, the same on all ranks.
    group : Group, optional
        For a loop of your own: with a group, `batches` yields the parts of this rank; without one,
        whole batches. For `train` and `evaluate`, leave it out and give them the group.
    batch_size : int
        Number of examples, or streams, in a whole batch.
    every_step : bool
        Whether targets have a time axis, (N, T, ...) instead of (N, ...). Targets of tokens and
        text always have one.
    length : int, optional
        Steps T in a batch; needed for tokens and text.
    document_end : int, optional
        The token that ends a document, as for `Streams`.
    x, target : str
        The columns of Parquet files. An entry of x is a list of T rows with D numbers each, or a
        list of T numbers: tokens if they are whole numbers, otherwise D is 1. An entry of the
        target is a number or a list of numbers; with `every_step`, a list of T such entries. A
        number that is not whole counts as a list of one.
    shards : int
        The most shards. A shard is a set of row groups of Parquet files and belongs to one rank. A
        rank holds one row group of each of its shards in memory.

    Attributes
    ----------
    identity : dict
        The options, and the name, shape, dtype and first numbers of each file. A checkpoint stores
        it, and a resumed run compares it. The rest of the files is not compared.

    Raises
    ------
    TypeError, ValueError
        There are no files, a file cannot be read, its shape or dtype differs from the others,
        `length` is missing or does not apply, or there are too few tokens; the error names the
        file. When ranks begin to read: Parquet files have fewer shards than there are ranks.
    ImportError
        PyArrow is missing for Parquet files.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = pathlib.Path(folder.name, "text.txt")
    >>> file.write_bytes(b"hello")
    5
    >>> (batch,) = FileShards([file], batch_size=2, length=2).batches()
    >>> bytes(batch.x[:, 0]), bytes(batch.target[:, 0])
    (b'he', b'el')
    >>> folder.cleanup()
    """

    files: Sequence[Any] = field(repr=False)
    group: Group | None = None
    _: KW_ONLY
    batch_size: int = 64
    every_step: bool = False
    length: int | None = None
    document_end: int | None = None
    x: str = "x"
    target: str = "target"
    shards: int = 64
    identity: dict[str, Any] = field(init=False, repr=False, compare=False)
    _reader: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.fields(
            self,
            group=checks.optional(GROUP),
            batch_size=checks.size,
            every_step=checks.flag,
            length=checks.optional(checks.size),
            document_end=checks.optional(checks.size_or_0),
            x=checks.text,
            target=checks.text,
            shards=checks.size,
        )
        expected = "a list of paths, or of pairs of paths (x, target)"
        files = checks.several(WHERE, "files", self.files, expected, _paths)
        if not files:
            raise ValueError(f"{WHERE}: files is empty, expected one or more")
        kinds = [(len(paths), *{path.suffix for path in paths}) for paths in files]
        for paths, kind in zip(files, kinds, strict=True):
            if kind != kinds[0] or kind not in KINDS:
                raise ValueError(
                    f"{WHERE}: files has {' and '.join(map(str, paths))} beside {files[0][0]},"
                    " expected all .npy, all .txt or all .parquet, or pairs of .npy"
                )
        sequence = KINDS[kinds[0]] is _Tokens
        if sequence and self.length is None:
            raise ValueError(
                f"{WHERE}: length is None for {files[0][0]}, expected the steps of a batch of tokens"
                " or text; examples are in pairs of files, (x, target)"
            )
        for name in ("length", "document_end"):
            if getattr(self, name) is not None and not sequence:
                raise ValueError(
                    f"{WHERE}: {name} is {getattr(self, name)} for {files[0][0]}, expected None, as"
                    " it is for files of tokens or text"
                )
        options = {name: getattr(self, name) for name in OPTIONS}
        reader = KINDS[kinds[0]](files, **options)
        vars(self).update(files=files, identity=options | reader.identity, _reader=reader)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._reader)

    def batches(self, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield one epoch without its first `skip` batches, in an order that `rng` decides, or in
        order without it.
        """
        for batch in self.parts(Alone() if self.group is None else self.group, rng, skip):
            yield batch._replace(part=None) if self.group is None else batch

    def parts(self, group: Group, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield the parts of these batches that belong to a rank of a group."""
        number = zlib.crc32(repr(self.identity).encode())
        batch: Any
        for batch in self._reader.parts(group, rng, skip):
            yield batch._replace(part=batch.part._replace(checksum=batch.part.checksum ^ number))


class _Rows:
    """The rows of several files, concatenated."""

    def __init__(self, paths: Sequence[Path]) -> None:
        arrays = [_mapped(path) for path in paths]
        first = arrays[0]
        for path, array in zip(paths, arrays, strict=True):
            if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
                raise ValueError(
                    f"{WHERE}: {path} has rows of {array.dtype} {array.shape[1:]}, expected"
                    f" {first.dtype} {first.shape[1:]} as {paths[0]} has"
                )
        self.paths = paths
        self.offsets = [array.offset for array in arrays]  # bytes before the first row
        self.counts = [len(array) for array in arrays]
        self.ends = np.cumsum(self.counts)
        self.dtype = first.dtype
        self.ndim = first.ndim
        self.shape: tuple[int, ...] = (sum(self.counts), *first.shape[1:])
        self.row_bytes = first[:1].nbytes
        self.identity = {
            f"{k} {path.name}": f"{array.dtype} {array.shape}, begins {_checksum(array)}"
            for k, (path, array) in enumerate(zip(paths, arrays, strict=True))
        }

    def read(self, rows: Host) -> Host:
        """Return the rows with these indices, (n, ...); consecutive rows are read at once."""
        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        files = np.searchsorted(self.ends, rows, side="right")
        starts = np.flatnonzero(
            (np.diff(rows, prepend=-2) != 1) | (np.diff(files, prepend=-1) != 0)
        )
        pieces = np.split(values, starts[1:])
        firsts = self.ends - self.counts
        for number in np.unique(files):
            # A memory map would read whole pages and their neighbours, and count as memory.
            with self.paths[number].open("rb", buffering=0) as file:
                for k in np.flatnonzero(files[starts] == number):
                    place = int(rows[starts[k]] - firsts[number]) * self.row_bytes
                    file.seek(self.offsets[number] + place)
                    if file.readinto(pieces[k]) != pieces[k].nbytes:
                        raise ValueError(f"{WHERE}: {self.paths[number]} has become shorter")
        for k, *at in np.argwhere(~np.isfinite(values))[:1].tolist():
            row = int(rows[k] - firsts[files[k]])
            raise ValueError(
                f"{WHERE}: {self.paths[files[k]]}: rows{[row, *at]} is {values[k, *at]:g}, expected"
                " finite numbers"
            )
        return values


class _Examples(ByRows):
    """Examples in pairs of files, batched as in `Windows`."""

    checksum = 0  # other ranks read the other rows, so ranks compare the files' identity instead

    def __init__(
        self, files: list[tuple[Path, ...]], batch_size: int, every_step: bool, **_: Any
    ) -> None:
        self.batch_size = batch_size
        self.every_step = every_step
        self.x, self.target = x, target = [_Rows(paths) for paths in zip(*files, strict=True)]
        for paths, *counts in zip(files, x.counts, target.counts, strict=True):
            if counts[0] != counts[1]:
                raise ValueError(
                    f"{WHERE}: {paths[0]} has {counts[0]} rows and {paths[1]} {counts[1]}, expected"
                    " as many"
                )
        axes = 2 if every_step else 1
        if not is_input(x, 3) or x.shape[:axes] != target.shape[:axes]:  # type: ignore[arg-type]
            raise ValueError(
                f"{WHERE}: {x.paths[0]} and others have {x.dtype} {x.shape}, {target.paths[0]} and"
                f" others {target.shape}, expected (N, T, D), or tokens, whole numbers (N, T), and"
                " (N, ...), or (N, T, ...) with every_step"
            )
        self.identity = {"x files": x.identity, "target files": target.identity}

    def orders(self, rng: Shuffler) -> list[Host]:
        return orders(self.x.shape[0], self.batch_size, rng)

    def __len__(self) -> int:
        return -(-self.x.shape[0] // self.batch_size)

    def batch(self, rows: Host, own: slice) -> Batch:
        x = self.x.read(rows[own])
        target = self.target.read(rows[own])
        return Batch(time_first(x), time_first(target) if self.every_step else target, None, True)


class _Tokens:
    """The tokens of files as streams, batched as in `Streams.of_tokens`."""

    def __init__(
        self,
        files: list[tuple[Path]],
        batch_size: int,
        length: int,
        document_end: int | None,
        **_: Any,
    ) -> None:
        self.rows = rows = _Rows([path for (path,) in files])
        self.batch_size = batch_size
        self.length = length
        self.document_end = document_end
        self.identity = rows.identity
        self.each = (rows.shape[0] - 1) // batch_size  # steps of a stream
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or self.each < length:
            raise ValueError(
                f"{WHERE}: {rows.paths[0]} and others have {rows.dtype} {rows.shape}, expected"
                f" tokens, whole numbers (N,), {batch_size * length + 1} or more for {batch_size}"
                f" streams (batch_size) of {length} steps (length)"
            )

    def __len__(self) -> int:
        return self.each // self.length

    def parts(self, group: Group, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield the parts of a rank in order; `rng` is not used."""
        own = columns(self.batch_size, group)
        streams = np.arange(self.batch_size)[own]
        start = skip * self.length
        # The first step of a stream has no token before it; the stream's last token stands there.
        seen = self._of(streams, np.array([(start - 1) % self.each, start]))
        for number in range(skip, len(self)):
            start = number * self.length
            steps = np.arange(start + 1, start + 1 + self.length)
            tokens = np.concatenate([seen, self._of(streams, steps)])
            seen = tokens[-2:]
            options = None
            if self.document_end is not None:
                options = {"resets": tokens[:-2] == self.document_end}
            batch = Batch(tokens[1:-1], tokens[2:], None, number == 0, options=options)
            yield part_of(batch, own, self.batch_size, True, np.array(number))

    def _of(self, streams: Host, steps: Host) -> Host:
        """Return the tokens (T, B) of some steps of some streams."""
        rows = streams[:, None] * self.each + steps
        return self.rows.read(rows.reshape(-1)).reshape(rows.shape).T


def _paths(where: str, name: str, entry: Any) -> tuple[Path, ...]:
    """Return the path or the pair of paths of an entry."""
    pair = isinstance(entry, list | tuple)
    if pair and len(entry) != 2:
        raise ValueError(f"{where}: {name} is {checks.shown(entry)}, expected a pair (x, target)")
    return tuple(checks.path(where, name, path) for path in (entry if pair else [entry]))


def _checksum(array: Host) -> str:
    """Return a checksum of the first numbers of an array."""
    return f"{zlib.crc32(array.reshape(-1)[:SEEN].tobytes()):08x}"


def _mapped(path: Path) -> Any:
    """Return the array of a file as a memory map; a text is an array of bytes."""
    try:
        if path.suffix == ".txt":
            return np.memmap(path, np.uint8, mode="r")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{WHERE}: {path} is empty or no {path.suffix} file") from error
    if array.ndim == 0 or not array.flags.c_contiguous or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{WHERE}: {path} has {array.dtype} {array.shape}"
            f"{' in Fortran order' * (not array.flags.c_contiguous)}, expected rows of real"
            " numbers in C order, as numpy.ascontiguousarray makes them"
        )
    return array


KINDS: dict[tuple[int, str], Any] = {  # classes by the number of files in an entry and their suffix
    (2, ".npy"): _Examples,
    (1, ".npy"): _Tokens,
    (1, ".txt"): _Tokens,
    (1, ".parquet"): RowGroups,
}
