"""Labelled sequences of unequal length in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xlstm.arrays import checks
from xlstm.data import host
from xlstm.data.batches import Batch, check_mask
from xlstm.data.host import Host, finite, numbers
from xlstm.recurrence.packing import checked_lengths


@dataclass(frozen=True)
class Sequences:
    """Independent sequences of unequal length, each from the initial state, in batches of similar lengths.

    A batch is as long as its longest sequence. With a generator of random numbers the sequences are shuffled, those of
    `bucket` batches at a time are sorted by length and cut into batches, and the batches are shuffled: few steps are
    padding, and the order differs from epoch to epoch. Without one they come in the order of the data.

    Parameters
    ----------
    sequences : list of N arrays (T_i, D)
        An array (T_i,) holds tokens where all arrays hold whole numbers, else numbers with D = 1. With `lengths` an
        array (N, T, D) or (N, T) of sequences that are padded at the end.
    target : array (N, ...), or list of N arrays (T_i, ...) with `every_step`
        The truth after the last step, or after every step. An array (N, T, ...) will do for the latter, too.
    mask : array of bool, or of weights from 0 up, or list of such arrays, optional
        Targets that count in the loss, or how much they do: the shape of the targets, or its leading axes.
    batch_size : int
    every_step : bool
        Targets and mask have a time axis.
    lengths : whole numbers (N,), optional
        Lengths of padded sequences.
    bucket : int
        Batches whose sequences are sorted together. With 1 batches are random.

    Raises
    ------
    TypeError, ValueError
        A sequence is empty, shapes do not go together, or numbers are not finite; names the sequence.

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
    lengths: Any = field(default=None, repr=False)
    bucket: int = 50

    def __post_init__(self) -> None:
        checks.fields(self, batch_size=checks.size, every_step=checks.flag, bucket=checks.count)
        if self.lengths is None:
            rows = _arrays("sequences", self.sequences, numbers)
            lengths = np.array([len(row) for row in rows], dtype=np.int64)
        else:
            padded = numbers("Sequences", "sequences", self.sequences)
            if padded.ndim < 2:
                raise ValueError(f"Sequences: sequences has shape {padded.shape}, expected (N, T, D) or (N, T)")
            lengths = checked_lengths("Sequences", self.lengths, padded.shape[1], len(padded))
            rows = _cut(padded, lengths)
        if not rows:
            raise ValueError("Sequences: there are no sequences")
        rows = _of_one_width(rows)
        for k, row in enumerate(rows):
            if len(row) == 0:
                raise ValueError(f"Sequences: sequences[{k}] is empty, expected one step or more")
            finite("Sequences", f"sequences[{k}]", row)
        target, mask = (self._targets_of_steps if self.every_step else self._targets)(lengths)
        for name, value in {"sequences": rows, "target": target, "mask": mask, "lengths": lengths}.items():
            object.__setattr__(self, name, value)

    def _targets(self, lengths: Host) -> tuple[Host, Host | None]:
        """Return targets (N, ...) and their mask."""
        target = numbers("Sequences", "target", self.target)
        if target.shape[:1] != (len(lengths),):
            raise ValueError(
                f"Sequences: target has shape {target.shape}, expected (N, ...) with N = {len(lengths)} sequences"
            )
        finite("Sequences", "target", target)
        mask: Host | None = checks.optional(host.mask)("Sequences", "mask", self.mask)
        check_mask("Sequences", mask, target, 1)
        return target, mask

    def _targets_of_steps(self, lengths: Host) -> tuple[list[Host], list[Host] | None]:
        """Return targets (T_i, ...) and their masks."""
        target = _every_step("target", self.target, numbers, lengths)
        mask = None if self.mask is None else _every_step("mask", self.mask, host.mask, lengths)
        for k, row in enumerate(target):
            finite("Sequences", f"target[{k}]", row)
            if row.shape[1:] != target[0].shape[1:]:
                expected = f"(T, ...) like target[0], {target[0].shape}"
                raise ValueError(f"Sequences: target[{k}] has shape {row.shape}, expected {expected}")
            check_mask(f"Sequences: sequence {k}", None if mask is None else mask[k], row, 1)
        return target, mask

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def batches(self, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """Yield one epoch, in batches of similar lengths that `rng` shuffles, or in order without it."""
        for rows in self._places(rng):
            x, target = _padded(self.sequences, rows), self._of(self.target, rows)
            mask = None if self.mask is None else self._of(self.mask, rows)
            yield Batch(x, target, mask, True, self.lengths[rows])

    def _of(self, given: Any, rows: Host) -> Host:
        """Return the targets, or the masks, of some of the sequences."""
        found: Host = _padded(given, rows) if self.every_step else given[rows]
        return found

    def _places(self, rng: np.random.Generator | None) -> list[Host]:
        """Return the numbers of the sequences in each batch."""
        if rng is None:
            return _pieces(np.arange(len(self.lengths)), self.batch_size)
        pools = _pieces(rng.permutation(len(self.lengths)), self.bucket * self.batch_size)
        order = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = _pieces(order, self.batch_size)
        return [batches[k] for k in rng.permutation(len(batches))]


def _arrays(name: str, given: Any, kind: checks.Kind) -> list[Host]:
    """Return a list of arrays, or the rows of an array, as arrays on the host."""
    if not isinstance(given, list | tuple) and (not hasattr(given, "__dlpack__") or given.ndim == 0):
        raise TypeError(f"Sequences: {name} is {checks.shown(given)}, expected a list of arrays")
    return [kind("Sequences", f"{name}[{k}]", given[k]) for k in range(len(given))]


def _every_step(name: str, given: Any, kind: checks.Kind, lengths: Host) -> list[Host]:
    """Return targets or masks with a time axis, as long as the sequences; an array is cut, a list has to be so."""
    if hasattr(given, "shape"):
        padded = kind("Sequences", name, given)
        if padded.ndim < 2 or len(padded) != len(lengths) or padded.shape[1] < max(lengths):
            expected = f"with every_step (N, T, ...), N = {len(lengths)} and T of {max(lengths)} or more"
            raise ValueError(f"Sequences: {name} has shape {padded.shape}, expected {expected}")
        return _cut(padded, lengths)
    rows = _arrays(name, given, kind)
    if len(rows) != len(lengths):
        raise ValueError(
            f"Sequences: {name} has {len(rows)} entries, expected one for each of {len(lengths)} sequences"
        )
    for k, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if row.shape[:1] != (length,):
            raise ValueError(f"Sequences: {name}[{k}] has shape {row.shape}, expected (T, ...) with T = {length}")
    return rows


def _of_one_width(rows: list[Host]) -> list[Host]:
    """Return sequences as tokens (T_i,), where all of them are, else as numbers (T_i, D)."""
    if all(row.ndim == 1 and row.dtype.kind in "iu" for row in rows):
        return rows
    found = [row[:, None] if row.ndim == 1 else row for row in rows]
    for k, row in enumerate(found):
        if row.ndim != 2 or row.shape[1] != found[0].shape[-1]:
            raise ValueError(
                f"Sequences: sequences[{k}] has shape {rows[k].shape} and sequences[0] {rows[0].shape}, "
                "expected (T, D) with one D, or (T,)"
            )
    return found


def _cut(padded: Host, lengths: Host) -> list[Host]:
    return [row[:length] for row, length in zip(padded, lengths, strict=True)]


def _pieces(order: Host, size: int) -> list[Host]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _padded(arrays: list[Host], rows: Host) -> Host:
    """Return some of the arrays (T_i, ...) side by side, (T, B, ...), with zeros after the end of each."""
    chosen = [arrays[k] for k in rows]
    shape = (max(map(len, chosen)), len(chosen), *chosen[0].shape[1:])
    found = np.zeros(shape, np.result_type(*chosen))
    for b, array in enumerate(chosen):
        found[: len(array), b] = array
    return found
