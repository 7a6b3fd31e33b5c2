"""Options that commands share: declared once, or made of the parameters of an estimator."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer import Option

from xlstm.arrays import checks
from xlstm.cli.console import out
from xlstm.data.panels import Roles

Command = Callable[..., None]


def _quiet(context: typer.Context, value: bool) -> bool:
    """Print only errors, warnings and output for a program, until the command ends."""
    out.quiet = value
    context.call_on_close(lambda: setattr(out, "quiet", False))
    return value


BackendOption = Annotated[
    str, Option("--backend", help="Array library: auto, numpy, cupy or torch.")
]
ColumnOption = Annotated[
    str | None, Option("--column", help="Column to forecast, if several hold numbers.")
]
TableOption = Annotated[
    Path | None, Option("--output", "-o", help="A .csv or .parquet file; by default, print CSV.")
]
LevelsOption = Annotated[
    str | None, Option("--quantiles", help="Quantiles between 0 and 1, such as 0.05,0.5,0.95.")
]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON object, and no text.")]
QuietOption = Annotated[
    bool, Option("--quiet", "-q", callback=_quiet, help="Print only errors, warnings and --json.")
]


@dataclass
class ByRole:
    """The columns of a table by role."""

    target: Annotated[list[str] | None, Option(help="Column to forecast; may be repeated.")] = None
    past: Annotated[
        list[str] | None, Option(help="Column known as far as the targets; may be repeated.")
    ] = None
    future: Annotated[
        list[str] | None, Option(help="Column known in advance; may be repeated.")
    ] = None
    static: Annotated[
        list[str] | None, Option(help="Column that is constant in a series; may be repeated.")
    ] = None
    series_id: Annotated[str | None, Option(help="Column that tells several series apart.")] = None

    def roles(self, column: str | None = None) -> Roles:
        """Return the roles, with `column` as the target if no target is named."""
        if column is not None and self.target:
            raise ValueError(
                f"--column is {column} beside --target, expected one of them; --target can be"
                " repeated"
            )
        return Roles(
            self.target or column, self.past, self.future, self.static, self.series_id
        ).checked("columns")


def levels_of(command: str, text: str) -> list[float]:
    """Return the levels of `LevelsOption`, a text with commas, in rising order."""
    try:
        levels = sorted({float(level) for level in text.split(",")})
    except ValueError:
        raise ValueError(
            f"{command}: --quantiles is {checks.shown(text)}, expected numbers such as 0.1,0.5,0.9"
        ) from None
    return [*checks.rising(1)(command, "--quantiles", levels)]


# Parameters of estimators that are not options.
NO_OPTIONS = {
    "calendar",
    "options",
    "warm_start",
    "callbacks",
    "checkpoints",
    "resume",
    "graph",
    "every_step",
    "missing",
    "symbols",
    "min_count",
    "SequenceClassifier.embedding_size",  # of symbols
}
# A parameter, or several, in the docstring of a class: its type, and lines about it.
PARAMETER = re.compile(r"^(\w+(?:, \w+)*) : (.*)\n((?:    .*\n)*)", re.MULTILINE)


def command(estimator: type[Any] | None = None) -> Callable[[Command], Command]:
    """Give a command options in the place of its keyword-only parameters and of `**settings`.

    A keyword-only parameter is a group of options: the parameters of its class become options, and
    the command gets an object of the class, made from them. If the command has a `run`, it runs
    within `run.accounted()`.

    Parameters
    ----------
    estimator : type, optional
        Its parameters become options, with the defaults of its constructor. The command gets them
        as `settings`.
    """

    def decorate(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True).parameters
        groups = {
            name: (parameter.annotation, _options_of(parameter.annotation))
            for name, parameter in signature.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        declared = {
            name: parameter
            for name, parameter in signature.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        }
        # first, to be in front; last, to replace options of the estimator with the same names
        options = declared | ({} if estimator is None else _options_of(estimator)) | declared
        for _, members in groups.values():
            options |= members

        @functools.wraps(function)
        def run_command(**values: Any) -> None:
            arguments = {
                name: kind(**{member: values.pop(member) for member in members})
                for name, (kind, members) in groups.items()
            }
            run = arguments.get("run")
            with contextlib.nullcontext() if run is None else run.accounted():
                function(**arguments, **values)

        run_command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [option.replace(kind=option.KEYWORD_ONLY) for option in options.values()]
        )
        run_command.__annotations__ = {name: option.annotation for name, option in options.items()}
        return run_command

    return decorate


def _options_of(group: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class as options. Its docstring gives the help of those that are
    not declared.
    """
    hints = get_type_hints(group.__init__, include_extras=True)
    documented = {
        name: " ".join((text or kind).split())
        for names, kind, text in PARAMETER.findall(f"{inspect.getdoc(group)}\n")
        for name in names.split(", ")
    }
    options = {}
    for name, parameter in inspect.signature(group).parameters.items():
        hint = hints[name]
        if get_origin(hint) is not Annotated and hint is not typer.Context:
            if {name, f"{group.__name__}.{name}"} & NO_OPTIONS:
                continue
            hint = _option(name, hint, parameter.default, documented.get(name, ""))
        options[name] = parameter.replace(annotation=hint)
    return options


def _option(name: str, hint: Any, default: Any, text: str) -> Any:
    """Return the option of a parameter; it takes text if the parameter may be text."""
    types = get_args(hint) or (hint,)
    kind = str if str in types else types[0]
    long = f"--{name.replace('_', '-')}"
    names = [f"{long}/--no-{long[2:]}"] if default is True else [long]
    names += ["--lr"] * (name == "learning_rate")
    return Annotated[kind if default is not None else kind | None, Option(*names, help=text)]
