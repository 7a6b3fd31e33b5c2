"""Packing: a batch of sequences of different lengths, without the steps past their ends.

The sequences are sorted, the longest first. The packed batch is a matrix with a row for each step
of each sequence. The rows of the first step come first, one for each sequence. Then come the rows
of the second step, one for each sequence that has it, and so on. Successive steps with the same
number of sequences form a segment.

A sequence that is reset is packed as several sequences, its parts.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import constants, fuse
from xlstm.arrays.backend import Portable
from xlstm.arrays.concat import concat, filled
from xlstm.arrays.constants import Home, from_host, home, kept
from xlstm.arrays.gather import gather
from xlstm.arrays.namespace import Array, Namespace, Params, device_of, reshape
from xlstm.engines.tape import Widths
from xlstm.recurrence.parts import Host, Indices, Parts, Places, on_host


class _Indices(NamedTuple):
    """The places of rows and sequences, each an array of whole numbers."""

    pack: Any  # the place of each packed row among the rows (T*B,) of the batch
    unpack: Any  # the packed row of each row of the batch; their number if there is none
    mirror: Any  # the packed row that each packed row swaps with for the reverse direction
    places: Places  # places of states, with columns in the packed order


@dataclass(frozen=True, eq=False)
class Packing:
    """The packing of a batch. If every sequence has T steps, packing changes only the shape.

    Attributes
    ----------
    T : int
        Number of steps of the batch before packing.
    B : int
        Number of sequences.
    widths : sequence of (steps, width)
        The segments: the number of steps in each, and the number of sequences with these steps.
    order : array (B,) or None
        Numbers of the sequences, or of the parts, the longest first; None if each has T steps.
    lengths : array (B,) or None
        Length of each sequence, in the order of the batch; None if each has T steps.
    parts : Parts or None
        The parts of reset sequences; None without resets.
    has_resets : bool
        Whether `resets` were given; on a rank they may all be False.
    """

    T: int
    B: int
    widths: Widths
    order: Indices | None = None
    lengths: Indices | None = None
    parts: Parts | None = None
    has_resets: bool = False

    @classmethod
    def of(cls, where: str, lengths: Any, T: int, B: int, resets: Host | None = None) -> Packing:
        """Return the packing of B sequences in T steps with these `lengths` (B,).

        None means that all lengths are T. Where `resets` (T, B) is True, a sequence is cut before
        the step.

        Raises
        ------
        TypeError, ValueError
            The lengths are not whole numbers from 0 to T, one for each sequence.
        """
        if lengths is None and resets is None:
            return _even(T, B)
        ends = np.full(B, T) if lengths is None else checked_lengths(where, lengths, T, B)
        cuts = b"" if resets is None else resets.tobytes()
        return _recent.packing(ends.tobytes(), cuts, T, B)

    @property
    def ends(self) -> Indices:
        """Lengths of the sequences, (B,), even if all are equal."""
        return np.full(self.B, self.T) if self.lengths is None else self.lengths

    def pack(self, xp: Namespace, array: Array) -> Array:
        """Pack (T, B, F) into (N, F)."""
        rows = reshape(array, (self.T * self.B, array.shape[2]))
        return (
            rows if self.order is None else gather(xp, [rows], [self._indices(xp, array).pack])[0]
        )

    def unpack(self, xp: Namespace, rows: Array) -> Array:
        """Unpack (N, ...) into (T, B, ...), zero past the end of a sequence."""
        return self.restore(xp, rows, ())[0]

    def mirror(self, xp: Namespace, rows: Array) -> Array:
        """Return rows (N, ...) with the steps of each sequence in reverse order."""
        if self.order is None:
            steps = reshape(rows, (self.T, self.B, *rows.shape[1:]))
            return reshape(xp.flip(steps, axis=0), rows.shape)
        return gather(xp, [rows], [self._indices(xp, rows).mirror])[0]

    def sort(
        self,
        xp: Namespace,
        states: Sequence[Array],
        rest: Sequence[float] | None = None,
        equal: bool = False,
    ) -> Sequence[Array]:
        """Return states (F, B) with their columns in the packed order.

        With `rest` they are initial states, and parts that begin from the state before the first
        step get the values `rest`. Without it they are gradients of final states. If all columns
        are `equal`, the order does not matter.
        """
        if self.order is None or (equal and self.parts is None):
            return states
        if equal:
            return [self.by_sequence(xp, s) for s in states]
        at = self._indices(xp, states[0]).places
        rows = [s.T for s in states]
        if self.parts is not None:
            values = rest or (0.0,) * len(rows)
            pairs = zip(rows, values, strict=True)
            rows = [concat(xp, (s, filled(xp, s, value, 1, 0)), 0) for s, value in pairs]
        places = at.final_bwd if rest is None else at.initial
        return [s.T for s in gather(xp, rows, [places] * len(rows))]

    def restore(
        self,
        xp: Namespace,
        rows: Array,
        columns: Sequence[Sequence[Array]],
        backward: bool = False,
    ) -> tuple[Array, Sequence[Sequence[Array]]]:
        """Unpack rows, and return the states of several layers in the order of the batch.

        They are final states, or after a pass `backward` the gradients of initial states.
        """
        shape = (self.T, self.B, *rows.shape[1:])
        if self.order is None:
            return reshape(rows, shape), columns
        at = self._indices(xp, rows)
        ends = [s.T for states in columns for s in states]
        place = at.places.initial_bwd if backward else at.places.final
        places = [at.unpack, *[place] * len(ends)]
        # Without lengths no row lies past an end, and each sequence has a final state.
        missing = backward and self.parts is not None
        zeros = range(int(self.lengths is None), len(places) if missing else 1)
        steps, *ends = gather(xp, [rows, *ends], places, zeros=zeros)
        left = iter(ends)
        return reshape(steps, shape), [[next(left).T for _ in states] for states in columns]

    def by_sequence(self, xp: Namespace, array: Array) -> Array:
        """Return columns (F, B) in the packed order, each once for every part of its sequence."""
        if self.order is None:
            return array
        return gather(xp, [array.T], [self._indices(xp, array).places.sequence])[0].T

    @property
    def sequences(self) -> Indices:
        """The sequence of each packed column."""
        if self.order is None:
            return np.arange(self.B)
        return self.order if self.parts is None else self.parts.sequence[self.order]

    def _indices(self, xp: Namespace, like: Array) -> _Indices:
        """Return the indices on an array's device, copied from the host only the first time."""
        return _recent.copied(xp, self, home(device_of(like)))


@dataclass(eq=False)
class Span(Portable):
    """The steps and sequences of one call, the same for all parts of a layer.

    There are B sequences of T steps each, or fewer if the packing has lengths.

    Attributes
    ----------
    xp : namespace
    packing : Packing
    rng : numpy.random.Generator or None
        The generator of masks, if there are any.
    keep : bool
        Whether to keep the values that the backward pass needs.
    groups : object
        The sequences that belong together, for layers that let them see each other.
    rest : bool
        Whether all sequences begin from the state before the first step.
    alone : bool
        Whether each sequence runs by itself, so that its results do not depend on the others.
    """

    xp: Namespace
    packing: Packing
    rng: np.random.Generator | None = None
    keep: bool = False
    groups: Any = None
    rest: bool = False
    alone: bool = False

    @property
    def T(self) -> int:  # noqa: N802
        """Number of steps."""
        return self.packing.T

    @property
    def B(self) -> int:  # noqa: N802
        """Number of sequences."""
        return self.packing.B

    @property
    def cut(self) -> bool:
        """Whether any sequence is reset, and so cut into parts."""
        return self.packing.parts is not None

    @property
    def full(self) -> bool:
        """Whether every sequence has T steps."""
        return self.packing.lengths is None

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        """Lengths of the sequences, (B,)."""
        return self.packing.ends

    def after(self, like: Array) -> Array:
        """Return the places of the n rows after each sequence's last step, in rows (T + n, B, ...).

        The places count along both axes as one.
        """
        steps = self.lengths + np.arange(like.shape[0] - self.T)[:, None]  # (n, B)
        return constants.copied(
            self.xp, (steps * self.B + np.arange(self.B)).ravel(), device_of(like)
        )

    def mask(self, x: Array, value: float = 0.0) -> Array:
        """Return x (T, B, ...) with `value` past the end of each sequence."""
        if self.full:
            return x
        xp = self.xp
        device = device_of(x)
        inside = _recent.inside(xp, self.packing, home(device))
        there = xp.reshape(inside, (self.T, self.B, *(1,) * (x.ndim - 2)))
        return fuse.where(xp, there, x, constants.number(xp, value, x.dtype, device))

    def zeros(self, width: int, params: Params) -> Array:
        """Return zeros (T, B, width) with the dtype and device of parameters."""
        like = next(iter(params.values()))
        return self.xp.zeros((self.T, self.B, width), dtype=like.dtype, device=device_of(like))


def checked_lengths(where: str, lengths: Any, T: int, B: int) -> Indices:
    """Return lengths (B,) on the host, checked.

    Raise TypeError or ValueError unless they are whole numbers from 0 to T.
    """
    whole = on_host(where, "lengths", lengths, f"shape (B,) = ({B},)")
    if whole.shape != (B,):
        raise ValueError(f"{where}: lengths has shape {whole.shape}, expected (B,) = ({B},)")
    if whole.dtype.kind not in "iu" and whole.size:
        raise TypeError(f"{where}: lengths has dtype {whole.dtype}, expected whole numbers")
    bad = np.flatnonzero((whole < 0) | (whole > T))
    if bad.size:
        raise ValueError(f"{where}: lengths[{bad[0]}] is {whole[bad[0]]}, expected 0 to T = {T}")
    return whole.astype(np.int64)


def packing_of(lengths: bytes, cuts: bytes, T: int, B: int) -> Packing:
    """Return the packing of B sequences with these lengths and resets.

    It keeps its indices on the device for the next call.
    """
    ends = np.frombuffer(lengths, np.int64)
    parts = None
    if cuts:
        parts = Parts.of(ends, np.frombuffer(cuts, bool).reshape(T, B))
        parts = None if parts.whole else parts
    even = bool(np.all(ends == T))
    if even and parts is None:
        return replace(_even(T, B), has_resets=bool(cuts))
    columns = ends if parts is None else parts.length
    order = np.argsort(-columns, kind="stable")
    shorter = np.searchsorted(columns[order[::-1]], np.arange(np.max(columns)), side="right")
    widths = len(columns) - shorter  # (steps,)
    segments = tuple((len(list(same)), int(n)) for n, same in itertools.groupby(widths))
    return Packing(T, B, segments, order, None if even else ends, parts, bool(cuts))


def _copied(xp: Namespace, packing: Packing, home: Home) -> _Indices:
    """Return the indices of a packing on a device."""
    T = packing.T
    B = packing.B
    order: Any = packing.order
    parts = packing.parts or Parts.of(packing.ends)
    widths = [n for k, n in packing.widths for _ in range(k)]
    starts = np.cumsum([0, *widths])[:-1]  # the first row of each step
    step = np.repeat(np.arange(len(widths)), widths)  # the step of each packed row
    N = len(step)
    column = np.arange(N) - starts[step]
    part = order[column]
    pack = (parts.start[part] + step) * B + parts.sequence[part]
    unpack = np.full(T * B, N)  # N stands for no row
    unpack[pack] = np.arange(N)
    mirror = starts[parts.length[part] - 1 - step] + column
    indices = pack, unpack, mirror, *parts.places(order, B)
    there = from_host(xp, np.concatenate(indices), home)
    stops = np.cumsum([0, *map(len, indices)]).tolist()
    pack, unpack, mirror, *places = (there[a:b] for a, b in itertools.pairwise(stops))
    return _Indices(pack, unpack, mirror, Places(*places))


def _inside(xp: Namespace, packing: Packing, home: Home) -> Array:
    """Return whether steps of a packing are within their sequences, (T, B), on a device."""
    return from_host(xp, np.arange(packing.T)[:, None] < packing.ends, home)


class _Recent(threading.local):
    """The caches of a thread for its last batches' lengths.

    They hold whole numbers for every step of every sequence.
    """

    def __init__(self) -> None:
        self.packing = functools.lru_cache(maxsize=4)(packing_of)
        self.copied = kept(16)(_copied)
        self.inside = kept(16)(_inside)


_recent = _Recent()


@functools.lru_cache
def _even(T: int, B: int) -> Packing:
    """Return the packing of B sequences of T steps each."""
    return Packing(T, B, ((T, B),))
