"""Data in files, larger than memory: a rank reads the rows of its own sequences alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.ranks.groups import GROUP, Alone, Group, columns
from xlstm.data import parquet
from xlstm.data.batches import Batch, ByRows, Shuffler, is_input, part_of, time_first
from xlstm.data.host import Host

WHERE = "FileShards"
SUFFIXES = (".npy", ".txt", ".parquet")
OPTIONS = ("batch_size", "every_step", "length", "document_end", "x", "target")  # of `identity`


class _Reader(Protocol):
    """One kind of files: the batches that they hold, and a text for each that tells it apart."""

    identity: dict[str, Any]

    def __len__(self) -> int: ...
    def parts(self, group: Group, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield the parts of a rank, without the first `skip` batches."""


@dataclass(frozen=True)
class FileShards:
    """Examples, tokens or text in files, of which each rank reads the rows of its own sequences
    alone.

    Batches and their order are the same for any number of ranks. Shapes, dtypes and numbers of rows
    are checked at the start, from the headers of the files; numbers are checked as they are read.
    There are three kinds:

    - Pairs of .npy files hold the x (N, T, D), or tokens (N, T), and the targets of `Windows`. The
      order is that of `Windows` over all files one after the other.
    - Files .npy of tokens (N,), or .txt, of which each byte is a token, hold one long sequence. The
      batches are those of `Streams.of_tokens` over all files one after the other.
    - Parquet files hold an example in each row. A row group is the least that can be read. The row
      groups are dealt into shards with about as many rows each, and every batch has rows of all
      shards. In each epoch a generator of random numbers shuffles the row groups of a shard, and
      the rows of a row group.

    Parameters
    ----------
    files : list of paths, or of pairs of paths (x, target)
        The same on all ranks.
    group : Group, optional
        The ranks whose parts `batches` yields; by default it yields whole batches. `train` and
        `evaluate` take the parts of the group that they are given.
    batch_size : int
        Examples, or streams, of a whole batch.
    every_step : bool
        Targets have a time axis, (N, T, ...) instead of (N, ...). Those of tokens and text always
        have it.
    length : int, optional
        Steps T in a batch of tokens or text, which need it.
    document_end : int, optional
        The token that ends a document, as for `Streams`.
    x, target : str
        The columns of Parquet files. Entries of x are lists of T rows with D numbers each, or lists
        of T numbers: tokens where they are whole numbers, else D is 1. Entries of the target are
        numbers, or lists of them, and with `every_step` lists of T such entries; a number that is
        not whole counts as a list of one.
    shards : int
        The most shards of Parquet files, of which a rank has whole ones. A rank holds a row group
        of each of its shards in memory.

    Attributes
    ----------
    identity : dict
        Options, and what is known of each file without reading its rows. A checkpoint keeps it, and
        a run that is resumed compares it.

    Raises
    ------
    TypeError, ValueError
        There are no files, a file cannot be read, its shape or dtype does not go with the others,
        `length` is missing or not for these files, or there are too few tokens; names the file.
        Once ranks read: there are fewer shards of Parquet files than ranks.
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
    _reader: _Reader = field(init=False, repr=False, compare=False)

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
            raise ValueError(f"{WHERE}: files is empty, expected {expected}")
        kinds = {_kind(paths) for paths in files}
        if len(kinds) > 1:
            raise ValueError(
                f"{WHERE}: files are {' and '.join(sorted(kinds))}, expected one kind of them"
            )
        (kind,) = kinds
        if kind != "tokens" and (self.length, self.document_end) != (None, None):
            raise ValueError(
                f"{WHERE}: files are {kind}, expected no length and no document_end, which are for"
                " tokens"
            )
        reader = self._reader_of(kind, files)
        options = {name: getattr(self, name) for name in OPTIONS}
        vars(self).update(files=files, identity=options | reader.identity, _reader=reader)

    def _reader_of(self, kind: str, files: list[tuple[Path, ...]]) -> _Reader:
        """Return the reader of one kind of files."""
        if kind == "pairs of .npy":
            return _Examples(files, self.batch_size, self.every_step)
        if kind == "Parquet":
            paths = [path for (path,) in files]
            return parquet.RowGroups(
                paths, self.x, self.target, self.batch_size, self.every_step, self.shards
            )
        if self.length is None:
            raise ValueError(
                f"{WHERE}: length is None for {files[0][0]}, expected the steps of a batch of"
                " tokens, or pairs (x, target) of files"
            )
        headers = [_header(path) for (path,) in files]
        return _Tokens(headers, self.batch_size, self.length, self.document_end)

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
        """Yield the parts of these batches that a rank of a group has."""
        # Targets lie in rows of other ranks: what is known of the files is compared in their place.
        number = zlib.crc32(repr(self.identity).encode())
        for batch in self._reader.parts(group, rng, skip):
            assert batch.part is not None
            yield batch._replace(part=batch.part._replace(checksum=batch.part.checksum ^ number))


class _Header(NamedTuple):
    """What a file says of the array in it."""

    path: Path
    offset: int  # bytes before the first row
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def check(self, first: _Header) -> None:
        """Raise ValueError unless rows are like those of the first file."""
        for name, own, expected in (
            ("rows of shape", self.shape[1:], first.shape[1:]),
            ("dtype", self.dtype, first.dtype),
        ):
            if own != expected:
                raise ValueError(
                    f"{WHERE}: {self.path} has {name} {own}, expected {expected} as"
                    f" {first.path} has"
                )


class _Rows:
    """The rows of several files, one after the other."""

    def __init__(self, headers: list[_Header]) -> None:
        for header in headers:
            header.check(headers[0])
        self.headers = headers
        self.ends = np.cumsum([header.shape[0] for header in headers])
        # an array of their shape and dtype, which takes no memory
        shape = (int(self.ends[-1]), *headers[0].shape[1:])
        self.like = np.broadcast_to(np.zeros((), headers[0].dtype), shape)
        self.row_bytes = self.like[:1].nbytes

    def __len__(self) -> int:
        return len(self.like)

    def read(self, rows: Host) -> Host:
        """Return rows (n, ...) of these numbers. Rows that follow each other are read at once."""
        values = np.empty((len(rows), *self.like.shape[1:]), self.like.dtype)
        files = np.searchsorted(self.ends, rows, side="right")
        goes_on = (np.diff(rows) == 1) & (np.diff(files) == 0)
        borders = [0, *(np.flatnonzero(~goes_on) + 1).tolist(), len(rows)]
        starts = np.array(borders[:-1])
        for number in np.unique(files):
            path, offset, _, (count, *_) = self.headers[number]
            first = self.ends[number] - count
            # A memory map would read whole pages and those around them, and count as memory.
            with path.open("rb", buffering=0) as file:
                for k in np.flatnonzero(files[starts] == number):
                    piece = values[borders[k] : borders[k + 1]]
                    file.seek(offset + int(rows[borders[k]] - first) * self.row_bytes)
                    if file.readinto(piece) != piece.nbytes:
                        raise ValueError(f"{WHERE}: {path} has become shorter since it was opened")
        return values


class _Examples(ByRows):
    """Rows of pairs of files, as `Windows` has them."""

    def __init__(self, pairs: list[tuple[Path, ...]], batch_size: int, every_step: bool) -> None:
        self.batch_size = batch_size
        self.every_step = every_step
        axes = 2 if every_step else 1
        headers = [tuple(map(_header, pair)) for pair in pairs]
        for x, target in headers:
            if x.shape[:axes] != target.shape[:axes]:
                raise ValueError(
                    f"{WHERE}: {x.path} has shape {x.shape} and {target.path} {target.shape},"
                    " expected (N, T, ...) and (N, ...), or (N, T, ...) with every_step"
                )
        self.x, self.target = (_Rows([*column]) for column in zip(*headers, strict=True))
        if not is_input(self.x.like, 3) or 0 in self.x.like.shape:
            raise ValueError(
                f"{WHERE}: {headers[0][0].path} has dtype {self.x.like.dtype} and all files shape"
                f" {self.x.like.shape}, expected (N, T, D), or whole numbers (N, T)"
            )
        self.identity = _identity([header for pair in headers for header in pair])

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def truths(self, rows: Host) -> Host:
        """Return the numbers of the rows, as other ranks read their targets."""
        return rows

    def batch(self, rows: Host, own: slice) -> Batch:
        x = self.x.read(rows[own])
        target = self.target.read(rows[own])
        return Batch(time_first(x), time_first(target) if self.every_step else target, None, True)


class _Tokens:
    """The tokens of files as streams, as `Streams.of_tokens` has them."""

    def __init__(
        self, headers: list[_Header], batch_size: int, length: int, document_end: int | None
    ) -> None:
        self.rows = _Rows(headers)
        self.batch_size = batch_size
        self.length = length
        self.document_end = document_end
        tokens = self.rows.like
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise ValueError(
                f"{WHERE}: {headers[0].path} has dtype {tokens.dtype} and shape"
                f" {headers[0].shape}, expected tokens, whole numbers (N,)"
            )
        self.each = (len(tokens) - 1) // batch_size  # steps of a stream
        if self.each < length:
            raise ValueError(
                f"{WHERE}: {batch_size} streams (batch_size) of {length} steps (length) need"
                f" {batch_size * length + 1} tokens, files have {len(tokens)}; expected more of"
                " them, or a smaller batch_size or length"
            )
        self.identity = _identity(headers)

    def __len__(self) -> int:
        return self.each // self.length

    def parts(self, group: Group, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield the parts of a rank in order: `rng` is not used."""
        own = columns(self.batch_size, group)
        streams = np.arange(self.batch_size)[own]
        start = skip * self.length
        # The first step of a stream has no token before it; that of its end stands there.
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
        """Return tokens (T, B) of streams."""
        rows = streams[:, None] * self.each + steps
        return self.rows.read(rows.reshape(-1)).reshape(rows.shape).T


def _paths(where: str, name: str, entry: Any) -> tuple[Path, ...]:
    """Return the path or the pair of paths of an entry."""
    pair = isinstance(entry, list | tuple)
    if pair and len(entry) != 2:
        raise ValueError(f"{where}: {name} is {checks.shown(entry)}, expected a pair (x, target)")
    return tuple(checks.path(where, name, path) for path in (entry if pair else [entry]))


def _kind(paths: tuple[Path, ...]) -> str:
    """Return the kind of an entry of `files`; ValueError where there is none for the suffix."""
    allowed = SUFFIXES if len(paths) == 1 else SUFFIXES[:1]
    for path in paths:
        if path.suffix not in allowed:
            raise ValueError(
                f"{WHERE}: {path} has suffix {path.suffix!r}, expected one of {allowed}"
            )
    if len(paths) == 2:
        return "pairs of .npy"
    return "Parquet" if paths[0].suffix == ".parquet" else "tokens"


def _header(path: Path) -> _Header:
    """Return what a file says of its array; a text is one of bytes."""
    if path.suffix != ".npy":
        return _Header(path, 0, np.dtype(np.uint8), (path.stat().st_size,))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{WHERE}: {path} is no array that can be read, {error}") from error
    if array.ndim == 0 or not array.flags.c_contiguous or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{WHERE}: {path} has dtype {array.dtype} and shape {array.shape}, expected rows of"
            " real numbers, in C order"
        )
    return _Header(path, array.offset, array.dtype, array.shape)


def _identity(headers: list[_Header]) -> dict[str, str]:
    """Return a text for each file, by its place and its name."""
    return {
        f"{k} {header.path.name}": f"{header.dtype} {header.shape}"
        for k, header in enumerate(headers)
    }
