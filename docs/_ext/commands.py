"""The page of the command line, made from the commands themselves: every command with its arguments
and options.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from sphinx.application import Sphinx

from xlstm.cli.app import app as command_line

HEAD = """# Commands

Every command of the command line with its arguments and options, as `xlstm COMMAND --help` shows them. The guide to
[the command line](../../command_line.md) shows them in use.
"""


def escaped(text: str) -> str:
    """Return a help text for Markdown: braces, stars and underlines stand for themselves."""
    return "".join(f"\\{c}" if c in "\\*_<[|$" else c for c in " ".join(text.split()))


def entry(parameter: Any) -> str:
    """Return an argument or an option as an entry of a definition list."""
    if parameter.param_type_name == "argument":
        title = f"`{parameter.name.upper()}`"
    else:
        title = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    usual = parameter.default
    shown = "" if usual in (None, False, (), []) or callable(usual) else f" By default `{usual}`."
    return f"{title}\n: {escaped(parameter.help or '')}{shown}\n"


def command(name: str, found: Any) -> Iterator[str]:
    """Yield the text of a command and of those below it."""
    if found.hidden:
        return
    yield f"## {name}\n\n{escaped(found.help)}\n"
    yield from (entry(p) for p in getattr(found, "default", found).params if p.name != "help")
    for below, one in getattr(found, "commands", {}).items():
        yield from command(f"{name} {below}", one)


def write(app: Sphinx) -> None:
    """Write the page before Sphinx looks for pages."""
    page = Path(app.srcdir) / "reference" / "generated" / "commands.md"
    page.parent.mkdir(exist_ok=True)
    commands = typer.main.get_command(command_line).commands
    text = "\n".join(
        [HEAD, *(part for name in commands for part in command(f"xlstm {name}", commands[name]))]
    )
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
