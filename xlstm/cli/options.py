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

from xlstm.cli.console import out
from xlstm.data.panels import Roles

Command = Callable[..., None]
KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _quiet(context: typer.Context, value: bool) -> bool:
    """Print nothing but errors, warnings and what a program asked for, until the command ends."""
    out.quiet = value
    context.call_on_close(lambda: setattr(out, "quiet", False))
    return value


BackendOption = Annotated[str, Option("--backend", help="auto, numpy, cupy or torch.")]
ColumnOption = Annotated[
    str | None, Option("--column", help="Column to forecast, if several hold numbers.")
]
TableOption = Annotated[
    Path | None, Option("--output", "-o", help="A .csv or .parquet; else CSV is printed.")
]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON object.")]
QuietOption = Annotated[
    bool, Option("--quiet", "-q", callback=_quiet, help="Print errors, warnings and --json.")
]


@dataclass
class ByRole:
    """The columns of a table by role."""

    target: Annotated[list[str] | None, Option(help="Column to forecast, repeatable.")] = None
    past: Annotated[
        list[str] | None, Option(help="Column known as far as targets, repeatable.")
    ] = None
    future: Annotated[list[str] | None, Option(help="Column known in advance, repeatable.")] = None
    static: Annotated[
        list[str] | None, Option(help="Column that is constant in a series, repeatable.")
    ] = None
    series_id: Annotated[str | None, Option(help="Column that tells several series apart.")] = None

    def roles(self, column: str | None = None) -> Roles:
        """Return the roles, with `column` for the target where none is named."""
        if column is not None and self.target:
            raise ValueError(
                f"--column is {column} beside --target, expected one of them; --target can be"
                " repeated"
            )
        return Roles(
            self.target or column, self.past, self.future, self.static, self.series_id
        ).checked("columns")


# Parameters of estimators that are no options.
OTHERS = {
    "quantiles",
    "calendar",
    "options",
    "warm_start",
    "callbacks",
    "checkpoints",
    "resume",
    "graph",
    "every_step",
}
# A parameter, or several, in the docstring of a class: its type, and lines about it.
PARAMETER = re.compile(r"^(\w+(?:, \w+)*) : (.*)\n((?:    .*\n)*)", re.MULTILINE)


def command(estimator: type[Any] | None = None) -> Callable[[Command], Command]:
    """Give a command options in the place of its `dialect` (those of CSV files), `by_role`, `run`
    and `**settings`.

    The parameters of the classes of `dialect`, `by_role` and `run` become options, from which these
    are made. The command runs within `run.accounted()`.

    Parameters
    ----------
    estimator : type, optional
        Its parameters, which become `settings`, are options with the defaults of its constructor.
    """

    def decorate(function: Command) -> Command:
        declared = dict(inspect.signature(function, eval_str=True).parameters)
        declared.pop("settings", None)
        makers: dict[str, Any] = {
            name: declared.pop(name).annotation
            for name in ("dialect", "by_role", "run")
            if name in declared
        }
        options = {name: _options_of(maker) for name, maker in makers.items()}
        every = declared | ({} if estimator is None else _options_of(estimator)) | declared
        for some in options.values():
            every |= some

        @functools.wraps(function)
        def run(**values: Any) -> None:
            arguments = {
                name: maker(**{key: values.pop(key) for key in options[name]})
                for name, maker in makers.items()
            }
            with arguments["run"].accounted() if "run" in arguments else contextlib.nullcontext():
                function(**arguments, **values)

        parameters = [parameter.replace(kind=KEYWORD) for parameter in every.values()]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {name: parameter.annotation for name, parameter in every.items()}
        return run

    return decorate


def _options_of(maker: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class as options, which its docstring describes where they are not
    declared.
    """
    hints = get_type_hints(maker.__init__, include_extras=True)
    words = _documented(maker)
    options = {}
    for name, parameter in inspect.signature(maker).parameters.items():
        hint = hints[name]
        if get_origin(hint) is not Annotated and hint is not typer.Context:
            if name in OTHERS:
                continue
            hint = _option(name, hint, parameter.default, words.get(name, ""))
        options[name] = parameter.replace(annotation=hint)
    return options


def _documented(estimator: type[Any]) -> dict[str, str]:
    """Return for the parameters of an estimator the text about each in its docstring, or else its
    type.
    """
    entries = PARAMETER.findall(f"{inspect.getdoc(estimator)}\n")
    return {
        name: " ".join((text or kind).split())
        for names, kind, text in entries
        for name in names.split(", ")
    }


def _option(name: str, hint: Any, default: Any, words: str) -> Any:
    """Return the option of a parameter, which is text where it may be text and other things."""
    kinds = get_args(hint) or (hint,)
    kind = str if str in kinds else kinds[0]
    long = f"--{name.replace('_', '-')}"
    names = [f"{long}/--no-{long[2:]}"] if default is True else [long]
    names += ["--lr"] * (name == "learning_rate")
    return Annotated[kind if default is not None else kind | None, Option(*names, help=words)]
