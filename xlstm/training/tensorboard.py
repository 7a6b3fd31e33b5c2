"""Training curves in TensorBoard's format, written by its own package."""

from __future__ import annotations

import os
from typing import Any

from xlstm.arrays import checks
from xlstm.arrays.namespace import Params
from xlstm.training.callbacks import Callback, Progress


class TensorBoard(Callback):
    """Writes loss, norm of the gradient and validation loss for TensorBoard (`pip install tensorboard`).

    Parameters
    ----------
    folder : path
        The folder for its files; TensorBoard shows the runs of a folder by the names of its folders.
    every : int
        Batches between two entries.

    Raises
    ------
    TypeError, ValueError
        `folder` is no path, or `every` no whole number from 1 up.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 1) -> None:
        self.folder = checks.path("TensorBoard", "folder", folder)
        self.every = checks.count("TensorBoard", "every", every)
        self._writer: Any = None

    def begin(self, params: Params) -> None:
        """Open the files; raises ImportError where the package is not installed."""
        try:
            from tensorboard.summary import Writer
        except ModuleNotFoundError as error:
            raise ImportError("TensorBoard: pip install tensorboard, whose package writes its files") from error
        self._writer = Writer(str(self.folder))

    def step(self, now: Progress) -> bool | None:
        if now.total % self.every == 0:
            self._writer.add_scalar("loss", now.loss, now.total)
            self._writer.add_scalar("gradient norm", now.norm, now.total)
        return None

    def epoch(self, now: Progress) -> bool | None:
        if now.validation is not None:
            self._writer.add_scalar("validation loss", now.validation, now.total)
        self._writer.flush()
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open files out of copies and pickles."""
        return {**vars(self), "_writer": None}
