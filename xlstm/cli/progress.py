"""The progress of training, as a bar on a terminal and as lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from xlstm import training
from xlstm.cli.console import err, out, tell

EVERY = 30.0  # seconds between two lines


class _Lines:
    """Prints a line about training now and then."""

    def __init__(self) -> None:
        self.next = time.monotonic() + EVERY

    def __call__(self, now: training.Progress) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + EVERY
            tell(f"epoch {now.epoch}/{now.epochs}, step {now.step}/{now.steps}: {_losses(now)}")


@contextlib.contextmanager
def bar() -> Iterator[Callable[[training.Progress], None]]:
    """Show a live progress bar on a terminal, and elsewhere a line now and then; give the function that moves it."""
    if out.quiet or not err.is_terminal:  # old versions of rich print an empty line there
        yield (lambda now: None) if out.quiet else _Lines()
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
            shown.update(
                task,
                total=now.epochs * now.steps,  # training may stop early, so the time left is at most that
                completed=(now.epoch - 1) * now.steps + now.step,
                epoch=f"{now.epoch}/{now.epochs}",
                description=f"{_losses(now)}  left",
            )

        yield show


def _losses(now: training.Progress) -> str:
    return f"loss {now.loss:.4f}" + (f"  validation {now.validation:.4f}" if now.validation is not None else "")
