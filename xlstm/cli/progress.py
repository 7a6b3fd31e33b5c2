"""The progress of training, as a bar on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from xlstm import training
from xlstm.cli.console import err, out


@contextlib.contextmanager
def bar() -> Iterator[Callable[[training.Progress], None]]:
    """Show a live progress bar on a terminal; give the function that moves it."""
    if out.quiet or not err.is_terminal:  # old versions of rich print an empty line there
        yield lambda now: None
        return
    columns = (
        TextColumn("{task.fields[epoch]}"),
        BarColumn(16),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as shown:
        task = shown.add_task("", total=None, epoch="")

        def show(now: training.Progress) -> None:
            validation = "-" if now.validation is None else f"{now.validation:.4f}"
            shown.update(
                task,
                total=now.epochs * now.steps,  # training may stop early, so the time left is at most that
                completed=(now.epoch - 1) * now.steps + now.step,
                epoch=f"{now.epoch}/{now.epochs}",
                description=f"loss {now.loss:.4f}  validation {validation}  left",
            )

        yield show
