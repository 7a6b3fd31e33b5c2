"""The kinds of model files, and the commands that take each."""

from __future__ import annotations

from pathlib import Path

from xlstm.cli.folders import MODEL
from xlstm.estimators import Forecaster, SequenceClassifier, SequenceRegressor, TextModel
from xlstm.models import model_files
from xlstm.training import checkpoint, folder

# What a file is, in words, and its commands.
KINDS = {
    Forecaster.KIND: ("forecaster", ("predict", "evaluate", "export", "inspect")),
    TextModel.KIND: ("text model", ("generate", "evaluate", "inspect")),
    SequenceClassifier.KIND: ("sequence classifier", ("predict", "evaluate", "inspect")),
    SequenceRegressor.KIND: ("sequence regressor", ("inspect",)),
    model_files.KIND: ("network", ("generate", "export", "inspect")),
    folder.KIND: ("checkpoint of training", ("train --resume",)),
}


def find(command: str, path: Path, foreign: bool = False) -> tuple[Path, str]:
    """Return the model file that a path names, itself or in the folder of a run, and its kind.

    With `foreign` the command takes what other libraries wrote, too: that is returned as it is, with "" for its kind.

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
        found = f", which is for xlstm {', '.join(commands)}" if commands else ""
        raise ValueError(f"{file}: is a {words}{found}, not for xlstm {command}")
    return file, kind


def _is_ours(file: Path) -> bool:
    try:
        return checkpoint.is_ours(file)
    except (OSError, TypeError, ValueError):
        return False
