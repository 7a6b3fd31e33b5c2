"""Sequences with labels, read from a table with a row for each step or for each sequence."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from xlstm.arrays import checks
from xlstm.data.table import PLAIN, Dialect, by_name, read_header, read_names, read_numbers

Host = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layout:
    """Which columns of a table are what.

    Attributes
    ----------
    features : list of str
        Columns of numbers: features of a step, or in a table with a row for each sequence its steps.
    label : str
    sequence : str or None
        The column that names the sequence of a row; without it each row is a sequence.
    """

    features: list[str]
    label: str
    sequence: str | None = None

    @classmethod
    def of(cls, path: Path, label: str, sequence: str | None, features: str | None, dialect: Dialect = PLAIN) -> Self:
        """Return the layout of a file, whose features are by default all other columns but that of dates."""
        names, dates = read_header(path, dialect)
        for name in (label, sequence):
            if name is not None and name not in names:
                shown = checks.shown(name)
                raise ValueError(f"{path}: column {shown} is not in the header, which has {checks.few(names)}")
        if label == sequence:
            raise ValueError(f"{path}: label and sequence are both {checks.shown(label)}, expected two columns")
        if features is None:
            found = [name for name in names if name not in (label, sequence, *dates)]
        else:
            found = [name.strip() for name in features.split(",")]
        for name in (label, sequence):
            if name in found:
                raise ValueError(f"{path}: column {checks.shown(name)} is label or sequence, expected features only")
        if not found:
            raise ValueError(f"{path}: no column is left for features, the header has {checks.few(names)}")
        return cls(found, label, sequence)

    @classmethod
    def kept(cls, path: Path, note: Any) -> Self:
        """Return the layout that a model file keeps; ValueError if it keeps none."""
        try:
            return cls(**note)
        except TypeError:
            raise ValueError(f"{path}: says nothing of a table, expected a model of `xlstm train classify`") from None

    def as_dict(self) -> dict[str, Any]:
        """Return the layout as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Labelled:
    """Sequences, their names, and their labels if those were read.

    Attributes
    ----------
    sequences : list of array (T_i, D), or array (N, T)
    names : list of str
    labels : array (N,) of str, or None
    """

    sequences: Any
    names: list[str]
    labels: Host | None

    def part(self, rows: Host) -> Any:
        """Return some of the sequences."""
        return self.sequences[rows] if isinstance(self.sequences, np.ndarray) else [self.sequences[k] for k in rows]


def read(path: Path, layout: Layout, dialect: Dialect = PLAIN, labels: bool = True) -> Labelled:
    """Read sequences from a CSV or Parquet file.

    Parameters
    ----------
    path : Path
    layout : Layout
    dialect : Dialect
        How a CSV file is written.
    labels : bool
        Whether labels are read.

    Raises
    ------
    OSError, TypeError, ValueError, ImportError
        The file cannot be read, a column is missing or holds no numbers, a number is missing, or a sequence has two
        labels.
    """
    values = read_numbers(path, layout.features, dialect)
    if missing := np.argwhere(np.isnan(values)).tolist():
        row, column = missing[0]
        raise ValueError(f"{path}: column {checks.shown(layout.features[column])} is empty in row {row + 1}")
    given = read_names(path, layout.label, dialect) if labels else None
    if layout.sequence is None:
        return Labelled(values, [str(row) for row in range(1, len(values) + 1)], given)
    groups = by_name(read_names(path, layout.sequence, dialect))
    for name, rows in groups.items():
        if given is not None and len(set(given[rows])) > 1:
            some = checks.few(dict.fromkeys(given[rows].tolist()))
            raise ValueError(f"{path}: sequence {checks.shown(name)} has labels {some}, expected one")
    firsts = np.array([rows[0] for rows in groups.values()])
    return Labelled([values[rows] for rows in groups.values()], [*groups], None if given is None else given[firsts])


def held_out(labels: Host, fraction: float, seed: int) -> tuple[Host, Host]:
    """Return the rows to train on and those to hold out, the same share of each class.

    Parameters
    ----------
    labels : array (N,)
    fraction : float
    seed : int

    Raises
    ------
    ValueError
        There is one class, or no class has enough sequences for the fraction.
    """
    found = Counter(sorted(labels.tolist()))
    if len(found) < 2:
        raise ValueError(f"classify: all labels are {checks.few(found)}, expected two classes or more")
    rng = np.random.default_rng(seed)
    held = [rng.permutation(np.flatnonzero(labels == one))[: round(fraction * count)] for one, count in found.items()]
    test = np.sort(np.concatenate(held))
    if fraction and not len(test):
        most = max(found.values())
        raise ValueError(f"classify: no class has enough sequences to hold out {fraction:.0%}, the largest has {most}")
    return np.setdiff1d(np.arange(len(labels)), test), test
