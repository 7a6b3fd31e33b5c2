"""Batches for training, NumPy on the host: windows, streams, sequences of unequal length, and
others prefetched.

A layer packs sequences of different lengths by `recurrence/packing.py`.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy
from xlstm.arrays.ranks.groups import Group, Part, columns
from xlstm.data.host import Host, finite, numbers, weights
from xlstm.recurrence.packing import checked_lengths

Shuffler: TypeAlias = "np.random.Generator | None"  # it draws an order, None keeps the one there is
EXPECTED = "Windows, Sequences, Streams, or something else that yields batches or pairs (x, target)"
BATCHES = checks.having("batches", "__len__", expected=EXPECTED)
COMPARED = 2048  # targets of a batch that ranks compare by their checksum


class Batch(NamedTuple):
    """The examples of one training step, time first.

    Attributes
    ----------
    x : array (T, B, D), or whole numbers (T, B) for a model of tokens
    target : array (T, B, ...), or (B, ...) for a model that predicts once
    mask : bool array, array of weights, or None
        Which targets count, or how much they do; those past the end of a sequence never do. Its
        shape is the leading axes of `target`.
    fresh : bool
        Start from the initial state, not from the last one.
    lengths : whole numbers (B,), optional
        Lengths of the sequences, where they differ.
    options : dict of str to array, optional
        Further arguments of the model's `forward`, on the host, such as `groups` of a TiRex-2, an
        entry for each sequence. `resets` are booleans (T, B), time first for every model.
    part : Part, optional
        Which part of a larger batch this is, where `distributed.Shard` has cut it.
    """

    x: Any
    target: Any
    mask: Any | None
    fresh: bool
    lengths: Any | None = None
    options: Mapping[str, Any] | None = None
    part: Part | None = None


class Batches(Protocol):
    """Data for training: `Windows`, `Sequences`, `Streams`, or anything else that yields
    batches.

    Three things are optional. Where `batches` has an argument `skip`, it leaves out that many
    batches without making them. `parts(group, rng, skip)` yields the parts of a rank, as `Shard`
    does, and is used where the class that defines `batches` defines it, too. A dict `identity` of
    plain values tells data apart, so that a run that is resumed need not read the first batch.
    """

    def __len__(self) -> int: ...
    def batches(self, rng: Shuffler = None) -> Iterator[Batch]:
        """Yield the batches of one epoch, in an order that `rng` may decide."""


class ByRows:
    """Data that know the rows of each batch before they make it, so that a rank can make its own
    part alone.

    Attributes
    ----------
    target : array
        Targets of all examples.
    batch_size : int
        Examples of a batch.
    """

    target: Any
    batch_size: int

    def orders(self, rng: Shuffler) -> list[Host]:
        """Return the numbers of the examples in each batch of an epoch."""
        return orders(len(self.target), self.batch_size, rng)

    def batch(self, rows: Host, own: slice) -> Batch:
        """Return the batch of some examples, with the columns `own` of x and target alone."""
        raise NotImplementedError

    def truths(self, rows: Host) -> Host:
        """Return the targets of some examples, examples first or time first."""
        return np.asarray(self.target[rows])

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
        """Yield the parts of these batches that a rank has."""
        timed = getattr(self, "every_step", False)
        for number, rows in enumerate(self.orders(rng)[skip:], skip):
            own = columns(len(rows), group)
            batch = self.batch(rows, own)
            truths = self.truths(rows[compared(batch.target, timed, len(rows), number)])
            yield part_of(batch, own, len(rows), timed, rows, truths)


@dataclass(frozen=True)
class Windows(ByRows):
    """Independent examples in shuffled batches, each from the initial state.

    Arrays may be of any library, or lists; they are kept on the host.

    Parameters
    ----------
    x : array (N, T, D), or whole numbers (N, T) for a model of tokens
    target : array (N, ...), or (N, T, ...) with `every_step`
        The truth after the last step, or after every step.
    mask : array of bool, or of weights from 0 up, optional
        Targets that count in the loss, or how much they do: the target's shape, or its leading
        axes.
    batch_size : int
    every_step : bool
        Targets and mask have a time axis.
    lengths : whole numbers (N,), optional
        Lengths of the sequences, where some end before step T. Numbers in `x` past an end do not
        matter, and with `every_step` targets past an end do not count. `Sequences` takes lists of
        arrays, and has less padding.

    Raises
    ------
    TypeError, ValueError
        Shapes do not go together, or numbers are not finite.
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
    """One long sequence read as parallel streams, for truncated backpropagation through time.

    The sequence is cut into `batch_size` equal contiguous streams, which lie side by side in every
    batch; successive batches continue each other, so the state is carried from one to the next.
    Rows left over at the end are not used.

    Parameters
    ----------
    x : array (N, D), or whole numbers (N,) for a model of tokens
    target : array (N, ...)
        The truth after each row.
    batch_size : int
        Number B of streams.
    length : int
        Steps T in a batch.
    document_end : int, optional
        The token that ends a document. The state after it is that before the first step: batches
        have the option `resets`.

    Raises
    ------
    TypeError, ValueError
        Shapes do not go together, numbers are not finite, or there are too few rows. There is a
        `document_end`, but x are no tokens.
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
        """Return the streams of a text, in which the target of each token is the next one.

        Parameters
        ----------
        tokens : whole numbers (N,), or bytes
            The text as tokens, one token a byte where it is given as bytes. An array in a file
            (`numpy.memmap`) stays there.
        batch_size, length, document_end : int
            As for `Streams`.

        Returns
        -------
        Streams
            It has N - 1 rows.

        Raises
        ------
        TypeError, ValueError
            These are no tokens, or too few.

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
        """Yield one epoch without its first `skip` batches, always in order: `rng` is not used."""
        x = self._streams(self.x)
        target = self._streams(self.target)
        for start in range(skip * self.length, len(self) * self.length, self.length):
            steps = slice(start, start + self.length)
            options = None
            if self.document_end is not None:
                # The first row of all has no row before it, but its batch is fresh.
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
    """Independent sequences of unequal length, each from the initial state, in batches of similar
    lengths.

    A batch is as long as its longest sequence. With a generator of random numbers the sequences are
    shuffled, those of `bucket` batches at a time are sorted by length and cut into batches, and the
    batches are shuffled: few steps are padding, and the order differs from epoch to epoch. Without
    one they come in the order of the data.

    Parameters
    ----------
    sequences : list of N arrays (T_i, D)
        An array (T_i,) holds tokens where all arrays hold whole numbers, else numbers with D = 1.
    target : array (N, ...), or list of N arrays (T_i, ...) with `every_step`
        The truth after the last step, or after every step.
    mask : array of bool, or of weights from 0 up, or list of such arrays, optional
        Targets that count in the loss, or how much they do: the shape of the targets, or its
        leading axes.
    batch_size : int
    every_step : bool
        Targets and mask have a time axis.
    bucket : int
        Batches whose sequences are sorted together. With 1 batches are random.

    Attributes
    ----------
    lengths : whole numbers (N,)
        The length of each sequence.

    Raises
    ------
    TypeError, ValueError
        A sequence is empty, shapes do not go together, or numbers are not finite; names the
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
        """Return the target and the mask after the last step of each sequence."""
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
        """Return the numbers of the sequences in each batch: of similar lengths that `rng`
        shuffles, or in order.
        """
        batches = orders(len(self.lengths), self.batch_size, None)
        if rng is None:
            return batches
        pools = orders(len(self.lengths), self.bucket * self.batch_size, rng)
        order = np.concatenate(
            [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        )
        return [order[batches[k]] for k in rng.permutation(len(batches))]

    def truths(self, rows: Host) -> Host:
        return self._of(self.target, rows, int(np.max(self.lengths[rows])))

    def batch(self, rows: Host, own: slice) -> Batch:
        """Return the batch of some sequences, as long as the longest of them, with `own` columns of
        x and target.
        """
        T = int(np.max(self.lengths[rows]))
        x = _padded(self.sequences, rows[own], T)
        target = self._of(self.target, rows[own], T)
        mask = None if self.mask is None else self._of(self.mask, rows, T)
        return Batch(x, target, mask, True, self.lengths[rows])

    def _of(self, values: Any, rows: Host, T: int) -> Host:
        """Return the targets or the masks of some of the sequences."""
        return _padded(values, rows, T) if self.every_step else np.asarray(values[rows])


@dataclass(frozen=True)
class Prefetch:
    """Other data, whose next batches are prepared in a thread.

    Batches, their order and the random numbers that they take are those of the data alone, bit for
    bit. An error in the data is raised where its batch would have come. The thread ends with the
    epoch, or when its batches are no longer asked for.

    This is for data that read files or wait for something else. Data that hold arrays gain nothing:
    their batches take about 2 % of the time in which a small LSTM trains with them (`Windows`).

    Parameters
    ----------
    data : Batches
        Data whose batches take time to come.
    ahead : int
        Batches that are prepared ahead.

    Raises
    ------
    TypeError, ValueError
        These are no data, or `ahead` is no whole number from 1 up.
    """

    data: Batches
    ahead: int = 2

    def __post_init__(self) -> None:
        checks.fields(self, data=BATCHES, ahead=checks.size)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.data)

    def batches(self, rng: Shuffler = None, skip: int = 0) -> Iterator[Batch]:
        """Yield one epoch of the data without its first `skip` batches; after each batch `rng` is in
        the state that the data alone would leave it in.
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
            thread.shutdown(cancel_futures=True)  # waits for the batch that is being prepared


def after(data: Batches, rng: Shuffler, skip: int) -> Iterator[Batch]:
    """Return an iterator over an epoch without its first `skip` batches, which are not made where
    the data can do so.
    """
    if skip and "skip" in inspect.signature(data.batches).parameters:
        skipping: Any = data
        return iter(skipping.batches(rng, skip=skip))
    return itertools.islice(data.batches(rng), skip, None)


def check_mask(where: str, mask: Host | None, target: Host, axes: int) -> None:
    """Raise ValueError unless a mask has leading axes of the target, at least the first `axes` of
    them.
    """
    if mask is not None and (mask.ndim < axes or mask.shape != target.shape[: mask.ndim]):
        raise ValueError(
            f"{where}: mask has shape {mask.shape}, expected leading axes of the target,"
            f" {target.shape}"
        )


def is_input(x: Host, ndim: int) -> bool:
    """Return whether x has `ndim` axes, or one fewer as it holds tokens."""
    return x.ndim == ndim or (x.ndim == ndim - 1 and x.dtype.kind in "iu")


def time_first(array: Host) -> Host:
    """Return an array (B, T, ...) as (T, B, ...)."""
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))


def _arrays(name: str, values: Any, kind: checks.Kind, lengths: Host | None = None) -> list[Host]:
    """Return a list of arrays, or the rows of an array, on the host, (T_i, ...) with `lengths`
    T_i.
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
    """Return sequences as tokens (T_i,), where all of them are, else as numbers (T_i, D)."""
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
    """Return the numbers of the examples in each batch of `size`, shuffled by `rng` or in order
    without it.
    """
    order = np.arange(count) if rng is None else rng.permutation(count)
    return [order[start : start + size] for start in range(0, count, size)]


def within_lengths(lengths: Any, T: int, B: int) -> Host:
    """Return which steps (T, B) lie within sequences of these lengths (B,), by default all."""
    return np.ones((T, B), bool) if lengths is None else np.arange(T)[:, None] < to_numpy(lengths)


def mask_of_steps(mask: Any, lengths: Any, T: int, B: int) -> Host:
    """Return the mask (T, B, ...) of targets that have a time axis, without those past the end of a
    sequence.
    """
    there = within_lengths(lengths, T, B)
    mask = there if mask is None else to_numpy(mask)
    return np.asarray(
        mask.reshape(mask.shape + (1,) * (2 - mask.ndim))
        * there.reshape(T, B, *(1,) * (mask.ndim - 2))
    )


def compared(target: Any, timed: bool, B: int, number: int) -> slice:
    """Return the sequences of a batch whose targets ranks compare: all where they are few, else
    some in turn.
    """
    each = math.prod(target.shape[:1] + target.shape[2:] if timed else target.shape[1:])
    count = max(1, COMPARED // max(1, each))
    first = number % max(1, -(-B // count)) * count
    return slice(first, first + count)


def part_of(batch: Batch, own: slice, B: int, timed: bool, *seen: Any) -> Batch:
    """Return a part of a batch of B, of which `batch` has the columns `own`, but the whole mask and
    all lengths.

    Its checksum is that of all lengths and of the arrays `seen`, which are of the whole batch.
    Arrays on a device are left out.
    """
    mask, lengths = (
        None if array is None else to_numpy(array) for array in (batch.mask, batch.lengths)
    )
    T = len(batch.x)
    if timed and (mask is not None or lengths is not None):
        mask = mask_of_steps(mask, lengths, T, B)
    shape = (T, B, *batch.target.shape[2:]) if timed else (B, *batch.target.shape[1:])
    total = float(math.prod(shape))
    if mask is not None:
        total = float(np.sum(mask)) * math.prod(shape[mask.ndim :])
        mask = mask[:, own] if timed else mask[own]
    checksum = 0
    for array in (lengths, *seen):
        if isinstance(array, np.ndarray):
            checksum = zlib.crc32(array.tobytes(), checksum)
    part = Part(total, B, own, lengths, checksum)
    return batch._replace(mask=mask, lengths=None if lengths is None else lengths[own], part=part)


def _padded(arrays: list[Host], rows: Host, T: int) -> Host:
    """Return some of the arrays (T_i, ...) side by side, (T, B, ...), with zeros after the end of
    each.
    """
    columns = [arrays[k] for k in rows]
    dtype = np.result_type(*(columns or arrays[:1]))
    padded = np.zeros((T, len(columns), *arrays[0].shape[1:]), dtype)
    for b, array in enumerate(columns):
        padded[: len(array), b] = array
    return padded


def _next(inner: Iterator[Batch], rng: Shuffler) -> tuple[Batch | None, Any]:
    """Return the next batch, or None at the end, and the state of `rng` after it."""
    batch = next(inner, None)
    return batch, None if rng is None else rng.bit_generator.state
