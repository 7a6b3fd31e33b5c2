"""Groups of commands: the whole command line, and commands of which one is the usual one."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from xlstm.cli.console import one_line_errors

HELP = ("-h", "--help")


class Root(TyperGroup):
    """The command line, which says what is wrong in one line, and keeps its words for messages."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what comes before the name of a command."""
        ctx.obj = [*args]
        if not args:  # help is shown
            return super().parse_args(ctx, args)
        with one_line_errors():
            return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of commands as help shows them, groups first."""
        return sorted(super().list_commands(ctx), key=lambda name: not isinstance(self.commands[name], TyperGroup))

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with one_line_errors():
            return super().invoke(ctx)


class Usual(TyperGroup):
    """A group whose first command, which is hidden, is run where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the name of the command, or put that of the usual one in its place."""
        known = [*HELP, *(name for name, command in self.commands.items() if not command.hidden)]
        named = args[0] in known if args else ctx.resilient_parsing
        return super().parse_args(ctx, args if named else [next(iter(self.commands)), *args])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Show the options of the usual command, and the other commands."""
        self.usual.format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the commands, and the options of the usual one, that begin as the last word does."""
        return [*super().shell_complete(ctx, incomplete), *self.usual.shell_complete(ctx, incomplete)]

    @property
    def usual(self) -> Any:
        """The command that is run where none is named."""
        return next(iter(self.commands.values()))
