"""Training into a folder, where the model, the options, checkpoints and the history are kept."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xlstm.cli.console import accounted, again, tell
from xlstm.cli.options import as_toml
from xlstm.cli.progress import bar
from xlstm.data import writing
from xlstm.training import Callback, Interrupted, Progress, Terminated
from xlstm.training.callbacks import Each
from xlstm.training.folder import Folder

Learn = Callable[[Any, Callable[[Progress], None]], None]
Fit = Callable[[Callable[..., Any], Learn, Callable[[Any, Path], None]], Any]
MODEL, OPTIONS = "model.safetensors", "options.toml"
OutputOption = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the model, checkpoints and the history.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]


class _Note(Callback):
    """Keeps the options of a run beside its history, once it runs."""

    def __init__(self, path: Path, options: str) -> None:
        self.path, self.options = path, options

    def step(self, now: Progress) -> None:
        if self.options:
            try:
                writing.write(self.path, self.options.encode())
            except OSError as error:  # training goes on without it, as without a checkpoint
                tell(f"warning: {error}")
        self.options = ""


def check(output: Path, resume: bool) -> None:
    """Raise unless a run can begin in a folder, or go on there: ValueError or OSError."""
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file, expected a folder", str(output))
    if output.is_dir():
        writing.check(output / MODEL)
    found = Folder(output, 1).checkpoints()
    if resume and not found:
        raise ValueError(f"{output}: holds no run to resume; without --resume one begins")
    if found and not resume:
        raise ValueError(f"{output}: holds a run already; --resume goes on with it, and --output names another folder")


@contextlib.contextmanager
def run(context: typer.Context, output: Path, resume: bool, more: Sequence[Path] = ()) -> Iterator[Fit]:
    """Give the function that trains an estimator into a folder; where that or more fails, say what is saved.

    The function is given what makes the estimator of `checkpoints`, `resume` and `callbacks`, what trains it and is
    given a function for progress, and what writes it to a file. It saves the model also where a signal ends training.

    Parameters
    ----------
    context : typer.Context
        That of the command.
    output : Path
    resume : bool
    more : list of Path
        Further files that the command writes.
    """
    check(output, resume)
    saved = output / MODEL

    def fit(make: Callable[..., Any], learn: Learn, save: Callable[[Any, Path], None]) -> Any:
        with bar() as show:
            note = _Note(output / OPTIONS, as_toml(context))
            made = make(checkpoints=output, resume=resume, callbacks=[note])
            try:
                learn(made, show)
            except (Interrupted, Terminated):
                save(made, saved)  # the best so far
                raise
        save(made, saved)
        return made

    def how() -> str:
        return again(context, "--resume") if Folder(output, 1).checkpoints() else ""

    with accounted([saved, *more], how):
        yield fit


def learn(*data: Any) -> Learn:
    """Return what trains an estimator with data, and shows the progress."""

    def act(made: Any, show: Callable[[Progress], None]) -> None:
        made.set_params(callbacks=[*made.callbacks, Each(show)]).fit(*data)

    return act
