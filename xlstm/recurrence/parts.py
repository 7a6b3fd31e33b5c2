"""Parts of sequences: a sequence with resets becomes several sequences, one after the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy

Host = np.ndarray[Any, np.dtype[Any]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


class Places(NamedTuple):
    """The places of states of B sequences that are cut into n parts, in an order of their own.

    The place after the last one stands for the state before the first step, or for a gradient of
    zero.
    """

    initial: Any  # for each part, the sequence of its initial state, or B, (n,)
    final: Any  # for each sequence, the part of its final state, (B,)
    initial_bwd: Any  # for each sequence, the part that begins from its initial state, or n, (B,)
    final_bwd: Any  # for each part, the sequence whose final state it gives, or B, (n,)
    sequence: Any  # the sequence of each part, (n,)


class Parts(NamedTuple):
    """The n parts of a batch's sequences, by sequence and then by time.

    Each sequence has at least one part.
    """

    sequence: Indices  # the sequence of each part
    start: Indices  # its first step
    length: Indices  # its number of steps
    rests: Host  # whether it begins from the state before the first step

    @classmethod
    def of(cls, ends: Indices, resets: Host | None = None) -> Parts:
        """Return the parts of sequences with the lengths `ends` (B,).

        Cuts are before the steps where `resets` (T, B) is True.
        """
        if resets is None:
            return cls(np.arange(len(ends)), np.zeros_like(ends), ends, np.zeros(len(ends), bool))
        cut = resets & (np.arange(len(resets))[:, None] < ends)
        begins = cut.copy()
        begins[0] = True
        sequence, start = np.nonzero(begins.T)
        parts = cls(sequence, start, start, cut[start, sequence])
        stop = np.append(start[1:], 0)
        stop[parts.last] = ends
        return parts._replace(length=stop - start)

    @property
    def last(self) -> Host:
        """Whether each part is the last one of its sequence, (n,)."""
        return np.append(self.sequence[1:] != self.sequence[:-1], self.sequence[-1:] >= 0)

    @property
    def whole(self) -> bool:
        """Whether no sequence is cut."""
        return bool(np.all(self.last)) and not np.any(self.rests)

    def places(self, order: Indices, B: int) -> Places:
        """Return the places of states between the B sequences and the parts in an order."""
        is_first = self.start == 0
        initial = np.where(is_first & ~self.rests, self.sequence, B)
        final_bwd = np.where(self.last, self.sequence, B)
        place = np.argsort(order)
        initial_bwd = np.where(self.rests, len(order), place)
        return Places(
            initial[order],
            place[self.last],
            initial_bwd[is_first],
            final_bwd[order],
            self.sequence[order],
        )


def on_host(where: str, name: str, value: Any, expected: str) -> Host:
    """Return an array of any library, or nested lists, as an array on the host.

    Raise TypeError or ValueError for a value that is neither.
    """
    if not hasattr(value, "shape") or isinstance(value, type | np.ndarray):
        value = checks.host(where, name, value, expected)
    return to_numpy(value)


def checked_resets(where: str, resets: Any, **sizes: int) -> Host:
    """Return resets on the host, checked.

    Raise TypeError or ValueError unless they are booleans with these sizes, given by letters.
    """
    shape = tuple(sizes.values())
    letters = ", ".join(sizes) if len(sizes) > 1 else f"{next(iter(sizes))},"
    expected = f"({letters}) = {shape}"
    array = on_host(where, "resets", resets, f"shape {expected}")
    if array.dtype != bool:
        raise TypeError(
            f"{where}: resets has dtype {array.dtype}, expected booleans, as `resets != 0` are"
        )
    if array.shape != shape:
        raise ValueError(f"{where}: resets has shape {array.shape}, expected {expected}")
    return array


def resets_at(where: str, cu_seqlens: Any, T: int, B: int) -> Host:
    """Return resets (T, 1) at the places `cu_seqlens`, where sequences inside one sequence begin.

    Raise TypeError or ValueError unless these are whole numbers from 0 to T that do not fall, and B
    is 1.
    """
    if B != 1:
        raise ValueError(f"{where}: cu_seqlens is for one sequence, expected B of 1, got {B}")
    places = on_host(where, "cu_seqlens", cu_seqlens, "whole numbers")
    if places.ndim != 1 or places.dtype.kind not in "iu":
        came = f"shape {places.shape} and dtype {places.dtype}"
        raise TypeError(f"{where}: cu_seqlens has {came}, expected whole numbers (n + 1,)")
    places = places.astype(np.int64)
    if len(places) < 2 or places[0] != 0 or places[-1] != T or np.any(np.diff(places) < 0):
        raise ValueError(
            f"{where}: cu_seqlens is {checks.shown(places.tolist())}, expected the cumulative sums"
            f" of the lengths, from 0 to T = {T}"
        )
    resets = np.zeros((T, 1), bool)
    resets[places[(places > 0) & (places < T)]] = True
    return resets
