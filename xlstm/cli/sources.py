"""The files that commands read: models with their kinds, texts, series, and tables of sequences with labels."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from xlstm import checkpoint
from xlstm.arrays import checks
from xlstm.data import reading
from xlstm.data.csv_file import PLAIN, Dialect
from xlstm.data.frames import grouped, places_of
from xlstm.data.host import SeriesError
from xlstm.data.series import Series
from xlstm.data.table import names_in, opened
from xlstm.estimators import Forecaster, SequenceClassifier, SequenceRegressor, TextModel
from xlstm.models import model_files
from xlstm.training import folder

Host = np.ndarray[Any, Any]
MODEL = "model.safetensors"  # in the folder of a run
LONGEST = 1 << 32  # bytes of a text
FORECASTER, TEXT, NETWORK = Forecaster.KIND, TextModel.KIND, model_files.KIND
CLASSIFIER, REGRESSOR = SequenceClassifier.KIND, SequenceRegressor.KIND
# The kinds of model files in words, and the commands that take each.
KINDS = {
    FORECASTER: ("forecaster", ("predict", "evaluate", "export", "inspect")),
    TEXT: ("text model", ("generate", "evaluate", "inspect")),
    CLASSIFIER: ("sequence classifier", ("predict", "evaluate", "inspect")),
    REGRESSOR: ("sequence regressor", ("inspect",)),
    NETWORK: ("network", ("generate", "export", "inspect")),
    folder.KIND: ("checkpoint of training", ("train --resume",)),
}


def find_model(command: str, path: Path, foreign: bool = False) -> tuple[Path, str]:
    """Return the model file that a path names, itself or in the folder of a run, and its kind.

    With `foreign` the command takes files of other libraries, too: their path is returned with "" for the kind.

    Raises
    ------
    OSError, ValueError
        There is no such file, or it is not for the command; the error names the commands that take it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    file = path / MODEL if (path / MODEL).is_file() else path
    if foreign and not _is_ours(file):
        return path, ""
    kind = checkpoint.kind_of(file)
    words, commands = KINDS.get(kind, (kind, ()))
    if command not in commands:
        others = f", which is for xlstm {', '.join(commands)}" if commands else ""
        raise ValueError(f"{file}: is a {words}{others}, not for xlstm {command}")
    return file, kind


def _is_ours(file: Path) -> bool:
    try:
        return checkpoint.is_ours(file)
    except (OSError, TypeError, ValueError):
        return False


def check_options(model: Path, kind: str, dialect: Dialect, column: str | None) -> None:
    """Raise ValueError where options of tables or of series are given for a model of another kind."""
    if column is not None and kind != FORECASTER:
        raise ValueError(f"{model}: is a {kind}, --column goes with a forecaster")
    if dialect != PLAIN and kind in (TEXT, "language model"):
        options = "--date-format, --decimal and --encoding"
        raise ValueError(f"{model}: is a {kind}, {options} go with tables")


def read_text(file: Path) -> str:
    """Return the text of a file; ValueError if it is empty or no UTF-8."""
    try:
        text = reading.content(file, LONGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not text:
        raise ValueError(f"{file}: the file is empty, expected a text")
    return text


@contextlib.contextmanager
def dated(series: Series, wanted: bool = True) -> Iterator[dict[str, Any]]:
    """Give the dates of a series as an argument of a forecaster, and name the date of a value that cannot be used."""
    try:
        yield {"dates": series.index if wanted and series.calendar is not None else None}
    except SeriesError as error:
        raise ValueError(f"{series.name}, {series.step} {series.labels[error.row]}: {error}") from error


class Labelled(NamedTuple):
    """Sequences (T_i, D) in a list, or rows (N, T) that each are one; their names, and their labels if those were read.

    Attributes
    ----------
    sequences : list of array (T_i, D), or array (N, T)
    names : list of str
    labels : array (N,) of str
        Empty where labels were not read.
    """

    sequences: Any
    names: list[str]
    labels: Host

    def part(self, rows: Host) -> Any:
        """Return some of the sequences."""
        return self.sequences[rows] if isinstance(self.sequences, np.ndarray) else [self.sequences[k] for k in rows]


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
        file = opened(path, dialect)
        names, dates = file.names, file.dated
        roles = [label] if sequence is None else [label, sequence]
        places_of(str(path), names, roles, "the header")
        chosen = [n for n in names if n not in (*roles, *dates)] if features is None else features.split(",")
        chosen = [name.strip() for name in chosen]
        if label == sequence or {*roles} & {*chosen} or not chosen:
            several = f"label {label!r}, sequence {sequence!r} and features {checks.few(chosen)}"
            raise ValueError(f"{path}: {several}, expected different columns and a feature; it has {checks.few(names)}")
        return cls(chosen, label, sequence)

    @classmethod
    def kept(cls, path: Path, note: Any) -> Self:
        """Return the layout that a model file keeps; ValueError if it keeps none."""
        try:
            return cls(**note)
        except TypeError:
            raise ValueError(f"{path}: says nothing of a table, expected a model of `xlstm train classify`") from None

    def read(self, path: Path, dialect: Dialect = PLAIN, labels: bool = True) -> Labelled:
        """Read sequences from a CSV or Parquet file, with their labels or without.

        Raises
        ------
        OSError, TypeError, ValueError, ImportError
            The file cannot be read, a column is missing or holds no numbers, a number is missing, or a sequence has two
            labels.
        """
        file = opened(path, dialect)
        values = file.numbers(self.features)
        if missing := np.argwhere(np.isnan(values)).tolist():
            row, column = missing[0]
            raise ValueError(f"{path}: column {checks.shown(self.features[column])} is empty in row {row + 1}")
        read = names_in(file, self.label) if labels else np.array([""] * len(values))
        if self.sequence is None:
            return Labelled(values, [str(row) for row in range(1, len(values) + 1)], read)
        groups = grouped(names_in(file, self.sequence))
        for name, rows in groups.items():
            if len(several := dict.fromkeys(read[rows].tolist())) > 1:
                raise ValueError(
                    f"{path}: sequence {checks.shown(name)} has labels {checks.few(several)}, expected one"
                )
        firsts = np.array([rows[0] for rows in groups.values()])
        return Labelled([values[rows] for rows in groups.values()], [*groups], read[firsts])


def held_out(labels: Host, fraction: float, seed: int) -> tuple[Host, Host]:
    """Return the rows to train on and those to hold out, the same share of each class.

    Raises
    ------
    ValueError
        There is one class, or no class has enough sequences for the fraction.
    """
    counts = Counter(sorted(labels.tolist()))
    if len(counts) < 2:
        raise ValueError(f"classify: all labels are {checks.few(counts)}, expected two classes or more")
    rng = np.random.default_rng(seed)
    held = [rng.permutation(np.flatnonzero(labels == one))[: round(fraction * n)] for one, n in counts.items()]
    test = np.sort(np.concatenate(held))
    if fraction and not len(test):
        most = max(counts.values())
        raise ValueError(f"classify: no class has enough sequences to hold out {fraction:.0%}, the largest has {most}")
    return np.setdiff1d(np.arange(len(labels)), test), test
