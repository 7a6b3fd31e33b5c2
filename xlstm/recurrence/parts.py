"""Parts of sequences: a sequence whose state is reset is several sequences, one after the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xlstm.arrays import checks
from xlstm.arrays.convert import to_numpy

Host = np.ndarray[Any, np.dtype[Any]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


class Parts(NamedTuple):
    """The n parts of the sequences of a batch, by sequences and then by time; each sequence has
    one at least.
    """

    sequence: Indices  # the sequence of each part
    start: Indices  # its first step
    length: Indices  # its number of steps
    rests: Host  # whether it begins from the state before the first step

    @classmethod
    def of(cls, ends: Indices, resets: Host | None = None) -> Parts:
        """Return the parts of sequences of the lengths `ends` (B,), cut before the steps where
        `resets` (T, B) is True.
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
        """Whether a part is the last one of its sequence, (n,)."""
        return np.append(self.sequence[1:] != self.sequence[:-1], self.sequence[-1:] >= 0)

    @property
    def whole(self) -> bool:
        """Whether nothing is cut."""
        return bool(np.all(self.last)) and not np.any(self.rests)

    # Where states go. The place after the last one stands for none: the state before the first
    # step, or a gradient of zero.

    def initial(self, B: int) -> Indices:
        """Return the sequence whose initial state each part begins with, or B, (n,)."""
        return np.where((self.start == 0) & ~self.rests, self.sequence, B)

    def initial_bwd(self) -> Indices:
        """Return the part that begins with the initial state of each sequence, or n, (B,)."""
        first = np.flatnonzero(self.start == 0)
        return np.where(self.rests[first], len(self.start), first)

    def final(self) -> Indices:
        """Return the part that ends with the final state of each sequence, (B,)."""
        return np.flatnonzero(self.last)

    def final_bwd(self, B: int) -> Indices:
        """Return the sequence whose final state each part ends with, or B, (n,)."""
        return np.where(self.last, self.sequence, B)


def checked_resets(where: str, resets: Any, **sizes: int) -> Host:
    """Return resets on the host; raise TypeError or ValueError unless they are booleans of these
    sizes by their letters.
    """
    shape = tuple(sizes.values())
    letters = ", ".join(sizes) if len(sizes) > 1 else f"{next(iter(sizes))},"
    expected = f"({letters}) = {shape}"
    if not hasattr(resets, "shape") or isinstance(resets, type | np.ndarray):
        resets = checks.host(where, "resets", resets, f"shape {expected}")
    array = to_numpy(resets)
    if array.dtype != bool:
        raise TypeError(
            f"{where}: resets has dtype {array.dtype}, expected booleans, as `resets != 0` are"
        )
    if array.shape != shape:
        raise ValueError(f"{where}: resets has shape {array.shape}, expected {expected}")
    return array


def resets_at(where: str, cu_seqlens: Any, T: int, B: int) -> Host:
    """Return resets (T, 1) at the places `cu_seqlens`, at which sequences begin that lie in one;
    raise TypeError or ValueError unless these are whole numbers from 0 to T that do not fall, and B
    is 1.
    """
    if B != 1:
        raise ValueError(f"{where}: cu_seqlens is for one sequence, expected B of 1, got {B}")
    if not hasattr(cu_seqlens, "shape") or isinstance(cu_seqlens, type | np.ndarray):
        cu_seqlens = checks.host(where, "cu_seqlens", cu_seqlens, "whole numbers")
    places = to_numpy(cu_seqlens)
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
