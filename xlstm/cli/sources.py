"""The files that commands read: models with their kinds, texts, series, and tables of sequences
with labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from xlstm import checkpoint
from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.cli.console import tell
from xlstm.data import reading
from xlstm.data.csv_file import PLAIN, STANDARD_INPUT, Dialect
from xlstm.data.frames import grouped, places_of
from xlstm.data.host import Host
from xlstm.data.panels import Panel
from xlstm.data.table import names_in, opened
from xlstm.estimators import Forecaster, SequenceClassifier, SequenceRegressor, TextModel
from xlstm.estimators.base import roles_of
from xlstm.models import model_files
from xlstm.models.language import xLSTMLanguageModel
from xlstm.training import folder

MODEL = "model.safetensors"  # in the folder of a run
LONGEST = 1 << 32  # bytes of a text
LANGUAGE = "language model"  # a kind of network
ESTIMATORS = {
    kind.KIND: kind for kind in (Forecaster, TextModel, SequenceClassifier, SequenceRegressor)
}
# The commands that take each kind of model file.
COMMANDS = {
    Forecaster.KIND: ("predict", "forecast", "evaluate", "export", "inspect"),
    TextModel.KIND: ("generate", "evaluate", "export", "inspect"),
    SequenceClassifier.KIND: ("predict", "evaluate", "export", "inspect"),
    SequenceRegressor.KIND: ("export", "inspect"),
    model_files.KIND: ("generate", "export", "inspect"),
    folder.KIND: ("train --resume",),
}


class Loaded(NamedTuple):
    """A model file: its kind, its estimator or None, and a network with its parameters."""

    file: Path
    kind: str
    estimator: Any
    network: Any
    params: Params


def find_model(command: str, path: Path, foreign: bool = False) -> tuple[Path, str]:
    """Return the model file that a path names, and its kind. The path may be the folder of a run.

    With `foreign` the command also takes files of other libraries: it gets their path, with "" as
    the kind.

    Raises
    ------
    OSError, ValueError
        There is no such file, or the command does not take its kind; the error names the commands
        that do.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    file = path / MODEL if (path / MODEL).is_file() else path
    if foreign and not checkpoint.is_ours(file):
        return path, ""
    kind = checkpoint.kind_of(file)
    commands = COMMANDS.get(kind, ())
    if command not in commands:
        others = f", which is for xlstm {', '.join(commands)}" if commands else ""
        raise ValueError(f"{file}: kind is {kind!r}{others}, not for xlstm {command}")
    return file, kind


def load_model(
    command: str,
    path: Path,
    backend: str = "numpy",
    dialect: Dialect = PLAIN,
    **options: object,
) -> Loaded:
    """Return the content of a model file.

    Raises as `find_model` and as the loader of its kind do, and ValueError if options of a
    forecaster, or of tables, are given for a model of another kind.
    """
    file, kind = find_model(command, path)
    if kind in ESTIMATORS:
        estimator: Any = ESTIMATORS[kind].load(file, backend)
        loaded = Loaded(file, kind, estimator, estimator.model_, estimator.params_)
    else:
        network, params = model_files.load(file, backend)
        kind = LANGUAGE if isinstance(network, xLSTMLanguageModel) else kind
        loaded = Loaded(file, kind, None, network, params)
    if kind in (TextModel.KIND, LANGUAGE):
        options |= {
            name: value for name, value in vars(dialect).items() if value != getattr(PLAIN, name)
        }
    if kind != Forecaster.KIND:
        refuse(file, kind, options)
    return loaded


def refuse(file: Path, kind: str, options: Mapping[str, object]) -> None:
    """Raise ValueError if options are given that a model of this kind does not take."""
    names = sorted(f"--{name.replace('_', '-')}" for name, value in options.items() if value)
    if names:
        raise ValueError(f"{file}: is a {kind}, which takes no {', '.join(names)}")


def check_file(command: str, path: Path) -> None:
    """Raise ValueError for standard input, as the command reads its file twice, once for the
    digest.
    """
    if path == STANDARD_INPUT:
        raise ValueError(
            f"{command}: reads a file more than once, expected one, not - for standard input"
        )


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_text(file: Path) -> str:
    """Return the text of a file; ValueError if it is empty or not UTF-8."""
    try:
        text = reading.content(file, LONGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: not UTF-8 text ({error.reason} at byte {error.start})"
        ) from error
    if not text:
        raise ValueError(f"{file}: the file is empty, expected a text")
    return text


def panel_of(
    loaded: Loaded, path: Path, column: str | None, dialect: Dialect, later: Path | None = None
) -> Panel:
    """Return the series of a table, from the columns that a forecaster was trained on, or with
    another column as the target.
    """
    model = loaded.estimator
    names = [*getattr(model, "feature_names_in_", ())]
    roles = roles_of(model)
    if column is not None and model.n_targets_ > 1:
        raise ValueError(f"{loaded.file}: forecasts {checks.few(names)}, expected no --column")
    targets = roles.targets or names * (len(names) > 1) if column is None else [column]
    panel = Panel.from_file(path, roles._replace(targets=targets), dialect, later, model.name)
    if model.name not in ("", panel.title):
        tell(f"note: the model was trained on {model.name}, this is {panel.title}")
    return panel


@dataclass(frozen=True)
class SequenceTable:
    """The roles of the columns of a table of sequences.

    Attributes
    ----------
    features : list of str
        Columns of numbers: the features of a step, or the steps if each row is a sequence.
    label : str
    sequence : str or None
        The column that names the sequence of a row; without it each row is a sequence.
    """

    features: list[str]
    label: str
    sequence: str | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        label: str,
        sequence: str | None,
        features: str | None,
        dialect: Dialect = PLAIN,
    ) -> Self:
        """Return the layout of a file. By default its features are all other columns but dates."""
        file = opened(path, dialect)
        roles = [label] if sequence is None else [label, sequence]
        places_of(str(path), file.names, roles, "the header")
        columns = [name for name in file.names if name not in (*roles, *file.dated)]
        if features is not None:
            columns = [name.strip() for name in features.split(",")]
        if label == sequence or {*roles} & {*columns} or not columns:
            raise ValueError(
                f"{path}: label {label!r}, sequence {sequence!r} and features"
                f" {checks.few(columns)}, expected different columns and a feature; it has"
                f" {checks.few(file.names)}"
            )
        return cls(columns, label, sequence)

    @classmethod
    def of_model(cls, loaded: Loaded) -> Self:
        """Return the layout in the file of a classifier; ValueError if it has none."""
        try:
            return cls(**loaded.estimator.note_)
        except TypeError:
            raise ValueError(
                f"{loaded.file}: says nothing of a table, expected a model of"
                " `xlstm train classify`"
            ) from None

    def read(
        self, path: Path, dialect: Dialect = PLAIN, labels: bool = True
    ) -> tuple[Host, list[str], Host]:
        """Read sequences, their names and their labels from a CSV or Parquet file.

        The sequences are an array of objects (N,), which are arrays (T_i, D), or an array (N, T) if
        each row is a sequence. Without `labels` the labels are empty.

        Raises
        ------
        OSError, TypeError, ValueError, ImportError
            The file cannot be read, a column is missing or holds no numbers, a number is missing,
            or a sequence has two labels.
        """
        file = opened(path, dialect)
        values = file.numbers(self.features)
        for row, column in np.argwhere(np.isnan(values)):
            raise ValueError(
                f"{path}: column {checks.shown(self.features[column])} is empty in row {row + 1}"
            )
        read = names_in(file, self.label) if labels else np.array([""] * len(values))
        if self.sequence is None:
            return values, [str(row) for row in range(1, len(values) + 1)], read
        groups = grouped(names_in(file, self.sequence))
        for name, rows in groups.items():
            if len(several := dict.fromkeys(read[rows])) > 1:
                raise ValueError(
                    f"{path}: sequence {checks.shown(name)} has labels {checks.few(several)},"
                    " expected one"
                )
        firsts = np.array([rows[0] for rows in groups.values()])
        return (
            np.fromiter((values[rows] for rows in groups.values()), object),
            [*groups],
            read[firsts],
        )


def held_out(labels: Host, fraction: float, seed: int) -> tuple[Host, Host]:
    """Return the training rows and the held-out rows, with the same share of each class.

    Raises
    ------
    ValueError
        No class has enough sequences for the fraction.
    """
    rng = np.random.default_rng(seed)
    rows_by_class = [np.flatnonzero(labels == label) for label in sorted({*labels})]
    held = [rng.permutation(rows)[: round(fraction * len(rows))] for rows in rows_by_class]
    test = np.sort(np.concatenate(held))
    if fraction and not len(test):
        raise ValueError(
            f"classify: no class has enough sequences to hold out {fraction:.0%}, the largest has"
            f" {max(map(len, rows_by_class))}"
        )
    return np.setdiff1d(np.arange(len(labels)), test), test
