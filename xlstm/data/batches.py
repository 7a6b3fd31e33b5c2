"""Batches for training as NumPy arrays on the host: windows, streams, sequences of unequal length,
and prefetching.

Layers pack sequences of different lengths with `recurrence/packing.py`.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.cached import cached_property
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.groups import Group, Part, checksum, columns
from xlstm.arrays.namespace import dtype_name
from xlstm.data.host import Host, finite, numbers, weights
from xlstm.recurrence.packing import checked_lengths

Shuffler: TypeAlias = "np.random.Generator | None"  # draws an order; None keeps the data's
EXPECTED = "Windows, Sequences, Streams, or something else that yields batches or pairs (x, target)"
BATCHES = checks.having("batches", "__len__", expected=EXPECTED)


class Batch(NamedTuple):
    """A mini-batch: the examples of one training step, with the time axis first.

    Attributes
    ----------
    x : array (T, B, D), or whole numbers (T, B) for a model of tokens
        For a layer without time, such as `Linear`, also floating-point numbers (B, D).
    target : array (T, B, ...), or (B, ...) for a model that predicts once
    mask : bool array, array of weights, or None
        The targets that count, or their weights. Targets beyond the end of a sequence never count.
        The shape is that of `target`, or of its leading axes.
    fresh : bool
        Whether the batch starts from the initial state, not from the previous batch's final state.
    lengths : whole numbers (B,), optional
        Lengths of the sequences, if they differ.
    options : dict of str to array, optional
        Further arguments of the model's `forward`, on the host, with an entry for each sequence;
        for example `groups` of a TiRex-2. `resets` are booleans (T, B), time first for every model.
    part : Part, optional
        The place of this part in a larger batch, if `distributed.Shard` has cut it.
    """

    x: Any
    target: Any
    mask: Any | None
    fresh: bool
    lengths: Any | None = None
    options: Mapping[str, Any] | None = None
    part: Part | None = None


class Batches(Protocol):
    """The protocol of training data: `Windows`, `Sequences`, `Streams`, or any object that yields
    batches.

    Four additions are optional:

    - `batches` may take an argument `skip`, and then leaves out that many batches without making
      them.
    - `parts(group, rng, skip)` yields the parts of a rank, as `Shard` does. It is used if the class
      that defines `batches` also defines `parts`.
    - `identity`, a dict of plain values, identifies the data, so that a resumed run need not read
      the first batch.
    - `every_step` says whether targets have a time axis. By default `Shard` looks at their shape, in
      which (T, B) and (B, ...) may be alike.
    """

    def __len__(self) -> int: ...
    def batches(self, rng: Shuffler = None) -> Iterator[Batch]:
        """Yield the batches of one epoch; `rng` may decide their order."""


class ByRows:
    """The base class of data that know a batch's rows before making it, so that a rank can make
    only its part.

    Attributes
    ----------
    target : array
        The targets of all examples.
    batch_size : int
        The number of examples in a batch.
    checksum : int
        A checksum of all batches, by which ranks compare their data.
    """

    target: Any
    batch_size: int

    @cached_property
    def checksum(self) -> int:
        return checksum(array for batch in self.batches() for array in batch[:3])

    def orders(self, rng: Shuffler) -> list[Host]:
        """Return the indices of the examples in each batch of an epoch."""
        return orders(len(self.target), self.batch_size, rng)

    def batch(self, rows: Host, own: slice) -> Batch:
        """Return the batch of the examples `rows`, but only the columns `own` of x and target."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.orders(None))

    def batches(self, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield one epoch without its first `skip` batches, in an order that `rng` decides, or in
        order without it.
        """
        for rows in self.orders(rng)[skip:]:
            yield self.batch(rows, slice(None))

    def parts(self, group: Group, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield the rank's parts of these batches."""
        timed = getattr(self, "every_step", False)
        start = self.checksum if group.size > 1 else 0
        for rows in self.orders(rng)[skip:]:
            own = columns(len(rows), group)
            yield part_of(self.batch(rows, own), own, len(rows), timed, rows, start=start)


@dataclass(frozen=True)
class Windows(ByRows):
    """Independent examples in shuffled mini-batches, each from the initial state.

    Arrays may come from any library, or be lists; they are kept on the host.

    Parameters
    ----------
    x : array (N, T, D), or whole numbers (N, T) for a model of tokens
    target : array (N, ...), or (N, T, ...) with `every_step`
        The target after the last step, or after every step.
    mask : array of bool, or of weights from 0 up, optional
        The targets that count in the loss, or their weights. Its shape is the target's shape, or
        the leading axes of it.
    batch_size : int
        Number of examples in a batch; the last batch may be smaller.
    every_step : bool
        Whether targets and mask have a time axis.
    lengths : whole numbers (N,), optional
        Lengths of the sequences, if some end before step T. The rest of `x` is padding and does not
        matter; with `every_step`, targets in the padding do not count. `Sequences` takes lists of
        arrays, and needs less padding.

    Raises
    ------
    TypeError, ValueError
        Shapes do not match, or numbers are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> data = Windows(np.ones((6, 4, 1)), target=np.ones((6, 1)), batch_size=4)
    >>> [(batch.x.shape, batch.target.shape) for batch in data.batches()]  # time first
    [((4, 4, 1), (4, 1)), ((4, 2, 1), (2, 1))]
    """

    x: Host = field(repr=False)
    target: Host = field(repr=False)
    mask: Host | None = field(default=None, repr=False)
    batch_size: int = 64
    every_step: bool = False
    lengths: Host | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        kinds = {"x": numbers, "target": numbers, "mask": checks.optional(weights)}
        checks.fields(self, **kinds, batch_size=checks.size, every_step=checks.flag)
        axes = 2 if self.every_step else 1
        fits = is_input(self.x, 3) and self.x.shape[:axes] == self.target.shape[:axes]
        if not fits or 0 in self.x.shape[:2]:
            raise ValueError(
                f"Windows: x has shape {self.x.shape} and target {self.target.shape}, expected"
                " (N, T, D) and (N, ...), or (N, T, ...) with every_step; x may also be tokens,"
                " whole numbers (N, T)"
            )
        check_mask("Windows", self.mask, self.target, axes)
        N, T = self.x.shape[:2]
        if self.lengths is not None:
            vars(self)["lengths"] = checked_lengths("Windows", self.lengths, T, N)
        finite("Windows", "x", self.x, counts=within_lengths(self.lengths, T, N).T)
        finite("Windows", "target", self.target)

    def batch(self, rows: Host, own: slice) -> Batch:
        ordered = time_first if self.every_step else np.asarray
        mask = None if self.mask is None else ordered(self.mask[rows])
        lengths = None if self.lengths is None else self.lengths[rows]
        x = time_first(self.x[rows[own]])
        return Batch(x, ordered(self.target[rows[own]]), mask, True, lengths)


@dataclass(frozen=True)
class Streams:
    """One long sequence, read as parallel streams for truncated backpropagation through time.

    The sequence is cut into `batch_size` equal contiguous streams, which lie side by side in every
    batch. Each batch continues the one before it, so the hidden state is carried along. Rows left
    over at the end are not used.

    Parameters
    ----------
    x : array (N, D), or whole numbers (N,) for a model of tokens
    target : array (N, ...)
        The target after each row.
    batch_size : int
        Number B of streams.
    length : int
        Steps T in a batch.
    document_end : int, optional
        The token that ends a document. After it the model starts again from the initial state:
        batches have the option `resets`.

    Raises
    ------
    TypeError, ValueError
        Shapes do not match, numbers are not finite, or there are too few rows. Or there is a
        `document_end`, but x does not hold tokens.

    Examples
    --------
    >>> import numpy as np
    >>> rows = np.arange(9.0)[:, None]
    >>> data = Streams(rows[:-1], target=rows[1:], batch_size=2, length=2)
    >>> for batch in data.batches():
    ...     print(batch.x[:, :, 0].tolist(), batch.fresh)  # (T, B)
    [[0.0, 4.0], [1.0, 5.0]] True
    [[2.0, 6.0], [3.0, 7.0]] False
    """

    x: Host = field(repr=False)
    target: Host = field(repr=False)
    batch_size: int
    length: int
    document_end: int | None = None

    def __post_init__(self) -> None:
        checks.fields(
            self,
            x=numbers,
            target=numbers,
            batch_size=checks.size,
            length=checks.size,
            document_end=checks.optional(checks.size_or_0),
        )
        if not is_input(self.x, 2) or self.target.ndim == 0 or len(self.x) != len(self.target):
            raise ValueError(
                f"Streams: x has shape {self.x.shape} and target {self.target.shape}, expected"
                " (N, D) and (N, ...); x may also be tokens, whole numbers (N,)"
            )
        need = self.batch_size * self.length
        if len(self.x) < need:
            raise ValueError(
                f"Streams: {self.batch_size} streams (batch_size) of {self.length} steps (length)"
                f" need {need} rows or tokens, got {len(self.x)}; expected more of them, or a"
                " smaller batch_size or length"
            )
        if self.document_end is not None and not is_input(self.x, 1):
            raise ValueError(
                f"Streams: document_end is {self.document_end}, but x has shape {self.x.shape} and"
                f" dtype {self.x.dtype}, expected tokens, whole numbers (N,)"
            )
        finite("Streams", "x", self.x)
        finite("Streams", "target", self.target)

    @classmethod
    def of_tokens(
        cls, tokens: Any, batch_size: int, length: int, document_end: int | None = None
    ) -> Streams:
        """Return the streams of a text; the target of each token is the next token.

        Parameters
        ----------
        tokens : whole numbers (N,), or bytes
            The text as tokens; in bytes, each byte is a token. An array in a file (`numpy.memmap`)
            stays there.
        batch_size, length, document_end : int
            As for `Streams`.

        Returns
        -------
        Streams
            The streams of N - 1 rows.

        Raises
        ------
        TypeError, ValueError
            `tokens` are not tokens, or there are too few.

        Examples
        --------
        >>> (batch,) = Streams.of_tokens(b"hello", batch_size=2, length=2).batches()
        >>> bytes(batch.x[:, 0]), bytes(batch.target[:, 0])
        (b'he', b'el')
        """
        ids = (
            np.frombuffer(tokens, np.uint8)
            if isinstance(tokens, bytes)
            else numbers("Streams", "tokens", tokens)
        )
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(
                f"Streams: tokens has dtype {ids.dtype} and shape {ids.shape}, expected whole"
                " numbers (N,)"
            )
        return cls(ids[:-1], ids[1:], batch_size, length, document_end)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.x) // self.batch_size // self.length

    def batches(self, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield one epoch without its first `skip` batches, always in order; `rng` is not used."""
        x = self._streams(self.x)
        target = self._streams(self.target)
        for start in range(skip * self.length, len(self) * self.length, self.length):
            steps = slice(start, start + self.length)
            options = None
            if self.document_end is not None:
                # The very first row has no row before it, but its batch is fresh.
                before = x[np.arange(start, steps.stop) - 1]
                options = {"resets": before == self.document_end}
            yield Batch(x[steps], target[steps], None, start == 0, options=options)

    def _streams(self, rows: Host) -> Host:
        """Return rows (N, ...) as streams side by side, (N/B, B, ...)."""
        each = len(rows) // self.batch_size
        used = rows[: each * self.batch_size]
        return np.swapaxes(used.reshape(self.batch_size, each, *rows.shape[1:]), 0, 1)


@dataclass(frozen=True)
class Sequences(ByRows):
    """Independent sequences of unequal length in mini-batches of similar lengths, each from the
    initial state.

    A batch is as long as its longest sequence. With a generator of random numbers, an epoch works
    as follows, so that there is little padding and the order differs from epoch to epoch:

    1. Shuffle the sequences.
    2. Sort by length the sequences of `bucket` batches at a time, and cut them into batches.
    3. Shuffle the batches.

    Without a generator, sequences keep the order of the data.

    Parameters
    ----------
    sequences : list of N arrays (T_i, D)
        An array (T_i,) holds tokens if all arrays hold whole numbers, otherwise numbers with D = 1.
    target : array (N, ...), or list of N arrays (T_i, ...) with `every_step`
        The target after the last step, or after every step.
    mask : array of bool, or of weights from 0 up, or list of such arrays, optional
        The targets that count in the loss, or their weights. Its shape is the targets' shape, or
        the leading axes of it.
    batch_size : int
    every_step : bool
        Whether targets and mask have a time axis.
    bucket : int
        Number of batches whose sequences are sorted together. With 1, batches are random.

    Attributes
    ----------
    lengths : whole numbers (N,)
        The length of each sequence.

    Raises
    ------
    TypeError, ValueError
        A sequence is empty, shapes do not match, or numbers are not finite; the error names the
        sequence.

    Examples
    --------
    >>> import numpy as np
    >>> data = Sequences([np.ones((5, 2)), np.ones((3, 2)), np.ones((4, 2))], target=[0, 1, 1], batch_size=2)
    >>> [(batch.x.shape, batch.lengths.tolist()) for batch in data.batches()]
    [((5, 2, 2), [5, 3]), ((4, 1, 2), [4])]
    """

    sequences: Any = field(repr=False)
    target: Any = field(repr=False)
    mask: Any = field(default=None, repr=False)
    batch_size: int = 64
    every_step: bool = False
    bucket: int = 50
    lengths: Host = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.fields(self, batch_size=checks.size, every_step=checks.flag, bucket=checks.count)
        rows = _of_one_width(_arrays("sequences", self.sequences, numbers))
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        if not rows:
            raise ValueError("Sequences: there are no sequences, expected one or more")
        if 0 in lengths:
            raise ValueError(
                f"Sequences: sequences[{np.argmin(lengths)}] is empty, expected one step or more"
            )
        target, mask = self._targets_of_steps(lengths) if self.every_step else self._targets(rows)
        for k, row in enumerate(rows):
            finite("Sequences", f"sequences[{k}]", row)
        vars(self).update(sequences=rows, target=target, mask=mask, lengths=lengths)

    def _targets(self, rows: list[Host]) -> tuple[Host, Host | None]:
        """Return the targets and the mask after the last step of each sequence."""
        target = numbers("Sequences", "target", self.target)
        mask = checks.optional(weights)("Sequences", "mask", self.mask)
        if target.shape[:1] != (len(rows),):
            raise ValueError(
                f"Sequences: target has shape {target.shape}, expected (N, ...) with N ="
                f" {len(rows)}"
            )
        finite("Sequences", "target", target)
        check_mask("Sequences", mask, target, 1)
        return target, mask

    def _targets_of_steps(self, lengths: Host) -> tuple[list[Host], list[Host] | None]:
        """Return the targets and the masks of all steps of each sequence."""
        target = _arrays("target", self.target, numbers, lengths)
        mask = None if self.mask is None else _arrays("mask", self.mask, weights, lengths)
        for k, truth in enumerate(target):
            finite("Sequences", f"target[{k}]", truth)
            if truth.shape[1:] != target[0].shape[1:]:
                raise ValueError(
                    f"Sequences: target[{k}] has shape {truth.shape}, expected (T, ...) like"
                    f" target[0], {target[0].shape}"
                )
            check_mask(f"Sequences: sequence {k}", None if mask is None else mask[k], truth, 1)
        return target, mask

    def orders(self, rng: Shuffler) -> list[Host]:
        """Return the indices of the sequences in each batch: similar lengths, shuffled by `rng`, or
        in order.
        """
        batches = orders(len(self.lengths), self.batch_size, None)
        if rng is None:
            return batches
        pools = orders(len(self.lengths), self.bucket * self.batch_size, rng)
        order = np.concatenate(
            [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        )
        return [order[batches[k]] for k in rng.permutation(len(batches))]

    def batch(self, rows: Host, own: slice) -> Batch:
        """Return the batch of the sequences `rows`, as long as the longest, with columns `own` of x
        and target.
        """
        T = int(np.max(self.lengths[rows]))
        x = _padded(self.sequences, rows[own], T)
        target = self._of(self.target, rows[own], T)
        mask = None if self.mask is None else self._of(self.mask, rows, T)
        return Batch(x, target, mask, True, self.lengths[rows])

    def _of(self, values: Any, rows: Host, T: int) -> Host:
        """Return the targets or the masks of the sequences `rows`."""
        return _padded(values, rows, T) if self.every_step else np.asarray(values[rows])


@dataclass(frozen=True)
class Prefetch:
    """Data that wrap other data and prepare their next batches in a thread.

    Batches, their order and the random numbers drawn are the same as without prefetching, bit for
    bit. An error in the data is raised in place of its batch. The thread ends with the epoch, or
    when no more batches are requested.

    Use it for data that read files or wait for something else. Data that hold arrays gain nothing:
    batches of `Windows` take about 2 % of the time in which a small LSTM trains on them.

    Parameters
    ----------
    data : Batches
        Data whose batches take time to prepare.
    ahead : int
        Number of batches to prepare ahead.

    Raises
    ------
    TypeError, ValueError
        `data` does not yield batches, or `ahead` is not a whole number from 1 up.
    """

    data: Batches
    ahead: int = 2

    def __post_init__(self) -> None:
        checks.fields(self, data=BATCHES, ahead=checks.size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.data)

    def batches(self, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield one epoch of the data without its first `skip` batches.

        After each batch, `rng` is in the same state as without prefetching.
        """
        own = copy.deepcopy(rng)  # the thread draws ahead of the caller
        inner = after(self.data, own, skip)
        thread = ThreadPoolExecutor(1, "xlstm-prefetch")
        try:
            coming = deque(thread.submit(_next, inner, own) for _ in range(self.ahead))
            while True:
                batch, state = coming.popleft().result()
                if rng is not None:
                    rng.bit_generator.state = state
                if batch is None:
                    return
                coming.append(thread.submit(_next, inner, own))
                yield batch
        finally:
            thread.shutdown(cancel_futures=True)  # waits for the batch in preparation


def after(data: Batches, rng: Shuffler, skip: int) -> Iterator[Batch]:
    """Return an iterator over an epoch without its first `skip` batches, which are not made if the
    data support `skip`.
    """
    if skip and "skip" in inspect.signature(data.batches).parameters:
        skipping: Any = data
        return iter(skipping.batches(rng, skip=skip))
    return itertools.islice(data.batches(rng), skip, None)


def check_mask(where: str, mask: Host | None, target: Host, axes: int) -> None:
    """Raise ValueError unless a mask's shape is the leading axes of the target, at least `axes` of
    them.
    """
    if mask is not None and (mask.ndim < axes or mask.shape != target.shape[: mask.ndim]):
        raise ValueError(
            f"{where}: mask has shape {mask.shape}, expected leading axes of the target,"
            f" {target.shape}"
        )


def is_input(x: Host, ndim: int) -> bool:
    """Return whether x has `ndim` axes, or holds tokens and has one axis fewer."""
    return x.ndim == ndim or (x.ndim == ndim - 1 and x.dtype.kind in "iu")


def time_first(array: Host) -> Host:
    """Return an array (B, T, ...) as (T, B, ...)."""
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))


def _arrays(name: str, values: Any, kind: checks.Kind, lengths: Host | None = None) -> list[Host]:
    """Return a list of arrays, or the rows of an array, on the host; with `lengths` T_i they are
    (T_i, ...).
    """
    if not isinstance(values, list | tuple) and (
        not hasattr(values, "__dlpack__") or values.ndim == 0
    ):
        raise TypeError(f"Sequences: {name} is {checks.shown(values)}, expected a list of arrays")
    rows = [kind("Sequences", f"{name}[{k}]", values[k]) for k in range(len(values))]
    if lengths is None:
        return rows
    if len(rows) != len(lengths):
        raise ValueError(
            f"Sequences: {name} has {len(rows)} entries, expected one for each of {len(lengths)}"
            " sequences"
        )
    for k, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if row.shape[:1] != (length,):
            raise ValueError(
                f"Sequences: {name}[{k}] has shape {row.shape}, expected (T, ...) with T ="
                f" {length}, as every_step is True"
            )
    return rows


def _of_one_width(rows: list[Host]) -> list[Host]:
    """Return sequences as tokens (T_i,) if all hold tokens, otherwise as numbers (T_i, D)."""
    if all(row.ndim == 1 and row.dtype.kind in "iu" for row in rows):
        return rows
    wide = [row[:, None] if row.ndim == 1 else row for row in rows]
    for k, row in enumerate(wide):
        if row.ndim != 2 or row.shape[1] != wide[0].shape[-1]:
            raise ValueError(
                f"Sequences: sequences[{k}] has shape {rows[k].shape} and sequences[0]"
                f" {rows[0].shape}, expected (T, D) with one D, or (T,)"
            )
    return wide


def orders(count: int, size: int, rng: Shuffler) -> list[Host]:
    """Return the indices of the examples in each batch of `size`: shuffled by `rng`, or in order
    without it.
    """
    order = np.arange(count) if rng is None else rng.permutation(count)
    return [order[start : start + size] for start in range(0, count, size)]


def within_lengths(lengths: Any, T: int, B: int) -> Host:
    """Return a mask (T, B) of the steps within sequences of these lengths (B,), by default all
    steps.
    """
    return np.ones((T, B), bool) if lengths is None else np.arange(T)[:, None] < to_numpy(lengths)


def mask_of_steps(mask: Any, lengths: Any, T: int, B: int) -> Host:
    """Return the mask (T, B, ...) of targets with a time axis; it leaves out padding."""
    there = within_lengths(lengths, T, B)
    mask = there if mask is None else to_numpy(mask)
    return np.asarray(
        mask.reshape(mask.shape + (1,) * (2 - mask.ndim))
        * there.reshape(T, B, *(1,) * (mask.ndim - 2))
    )


def timeless(x: Any) -> bool:
    """Return whether x holds examples without a time axis, (B, D).

    Whole numbers with two axes are tokens, (T, B) or (B, T).
    """
    return x.ndim == 2 and "float" in dtype_name(x.dtype)


def part_of(batch: Batch, own: slice, B: int, timed: bool, *seen: Any, start: int = 0) -> Batch:
    """Return a part of a batch of B sequences. `batch` has only the columns `own`, but the whole
    mask and all lengths.

    The part's checksum continues from `start` with the mask, the lengths and the arrays `seen`,
    which belong to the whole batch. Arrays on a device are left out.
    """
    mask, lengths = (
        None if array is None else to_numpy(array) for array in (batch.mask, batch.lengths)
    )
    number = checksum((a for a in (mask, lengths, *seen) if isinstance(a, np.ndarray)), start)
    T = len(batch.x)
    if timed and (mask is not None or lengths is not None):
        mask = mask_of_steps(mask, lengths, T, B)
    shape = (T, B, *batch.target.shape[2:]) if timed else (B, *batch.target.shape[1:])
    total = float(math.prod(shape))
    if mask is not None:
        total = float(np.sum(mask)) * math.prod(shape[mask.ndim :])
        mask = mask[:, own] if timed else mask[own]
    part = Part(total, B, own, lengths, number)
    return batch._replace(mask=mask, lengths=None if lengths is None else lengths[own], part=part)


def _padded(arrays: list[Host], rows: Host, T: int) -> Host:
    """Return the arrays `rows`, each (T_i, ...), side by side as (T, B, ...), padded with zeros."""
    columns = [arrays[k] for k in rows]
    dtype = np.result_type(*(columns or arrays[:1]))
    padded = np.zeros((T, len(columns), *arrays[0].shape[1:]), dtype)
    for b, array in enumerate(columns):
        padded[: len(array), b] = array
    return padded


def _next(inner: Iterator[Batch], rng: Shuffler) -> tuple[Batch | None, Any]:
    """Return the next batch, or None at the end, and the state of `rng` after that batch."""
    batch = next(inner, None)
    return batch, None if rng is None else rng.bit_generator.state
