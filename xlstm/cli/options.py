"""Options that commands share: those of an estimator's parameters, and files of options."""

from __future__ import annotations

import functools
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from xlstm.arrays import checks
from xlstm.cli.console import quieted
from xlstm.data import reading, writing
from xlstm.data.table import ENCODINGS, PLAIN, Dialect

Command = Callable[..., None]
KEYWORD = inspect.Parameter.KEYWORD_ONLY
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors, warnings and what --json asks for.")]
DateFormatOption = Annotated[
    str | None, typer.Option("--date-format", help="Format of dates such as %d/%m/%Y; else ISO 8601.", metavar="FORMAT")
]
DecimalOption = Annotated[
    str | None, typer.Option("--decimal", help="Decimal sign of a CSV file, a point or a comma.", metavar="SIGN")
]
EncodingOption = Annotated[str, typer.Option("--encoding", help=f"That of a CSV file: {', '.join(ENCODINGS)}.")]
ALIASES = {"learning_rate": ("--lr",)}
LONGEST = 1 << 17  # bytes of a file of options
# A key of more parts than are taken: tomllib's memory for a key grows with the square of their number.
DOTTED = re.compile(
    rf"""(?<![\w-])(?:(?:[\w-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{reading.DEEPEST}}}"""
)
HOW = ("config", "save-config", "resume", "json", "quiet", "help")  # options that say nothing of what is trained
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path", list: "a list"}


def with_settings(estimator: type[Any], words: Mapping[str, str]) -> Callable[[Command], Command]:
    """Give a command an option for each of some parameters of an estimator, in the place of its `**settings`.

    Parameters
    ----------
    estimator : type
        Its constructor has the defaults.
    words : dict of str to str
        The help of each parameter.
    """
    parameters, hints = inspect.signature(estimator.__init__).parameters, get_type_hints(estimator.__init__)

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [_option(name, hints[name], parameters[name].default, words[name]) for name in words]
        return _with_parameters(command, [*own, *added])

    return decorate


def reads_tables(command: Command) -> Command:
    """Give a command options that say how a CSV file is written, in the place of its `dialect`."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "dialect"]
    added = [
        inspect.Parameter("date_format", KEYWORD, annotation=DateFormatOption, default=None),
        inspect.Parameter("decimal", KEYWORD, annotation=DecimalOption, default=None),
        inspect.Parameter("encoding", KEYWORD, annotation=EncodingOption, default="utf-8"),
    ]

    @functools.wraps(command)
    def run(date_format: str | None, decimal: str | None, encoding: str, **given: Any) -> None:
        command(**given, dialect=Dialect(date_format, decimal, encoding))

    return _with_parameters(run, [*own, *added])


def check_no_table(model: Path, kind: str, dialect: Dialect) -> None:
    """Raise ValueError where it is said how a table is written, but a model reads text."""
    if dialect != PLAIN:
        options = "--date-format, --decimal and --encoding"
        raise ValueError(f"{model}: is a {kind}, {options} go with tables")


def configurable(command: Command) -> Command:
    """Give a command the options --config, --save-config and --quiet."""
    own = inspect.signature(command, eval_str=True).parameters
    kinds = {name: _kind(parameter.annotation) for name, parameter in own.items()}

    def read(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None and not context.resilient_parsing:
            names = {long: name for long, name in _longs(context).items() if name in kinds}
            context.default_map = {names[long]: value for long, value in _checked(path, names, kinds)}
        return path

    def run(context: typer.Context, config: Any, save_config: Any, quiet: bool, **given: Any) -> None:
        if save_config is not None:
            writing.write(save_config, as_toml(context).encode())
        with quieted(quiet):
            command(**given, **({"context": context} if "context" in own else {}))

    config = typer.Option("--config", metavar="FILE", is_eager=True, callback=read, help="TOML file of options.")
    save = typer.Option("--save-config", metavar="FILE", help="Write the options to a TOML file for --config.")
    added = {
        "config": (Annotated[Path | None, config], None),
        "save_config": (Annotated[Path | None, save], None),
        "quiet": (QuietOption, False),
    }
    every = {"context": inspect.Parameter("context", KEYWORD, annotation=typer.Context), **own}
    every |= {name: inspect.Parameter(name, KEYWORD, annotation=a, default=d) for name, (a, d) in added.items()}
    return _with_parameters(functools.wraps(command)(run), list(every.values()))


def as_toml(context: typer.Context) -> str:
    """Return the options of a command, but those that say nothing of what is trained, as the text of a TOML file."""
    given = {long: context.params.get(name) for long, name in _longs(context).items() if long not in HOW}
    return "".join(f"{long} = {_toml(value)}\n" for long, value in given.items() if value is not None)


def from_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds; ValueError where it is none, or has a number that is too long to be printed."""
    content = reading.content(path, LONGEST)
    try:
        text = content.decode()
        if DOTTED.search(text):
            raise RecursionError(f"a key has more than {reading.DEEPEST} parts")
        found = tomllib.loads(text)
        json.dumps(found, default=str)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable TOML file ({error})") from error
    return found


def _with_parameters(command: Command, parameters: list[inspect.Parameter]) -> Command:
    """Return a command that says that it takes these parameters."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**given)

    run.__signature__ = inspect.Signature([p.replace(kind=KEYWORD) for p in parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _option(name: str, hint: Any, default: Any, words: str) -> inspect.Parameter:
    """Return the option of a parameter, which is text where it may be text and other things."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = str if str in kinds else kinds[0]
    wanted = kind if default is not None else kind | None
    long = name.replace("_", "-")
    flag = f"--{long}/--no-{long}" if default is True else f"--{long}"
    annotation: Any = Annotated[wanted, typer.Option(flag, *ALIASES.get(name, ()), help=words)]
    return inspect.Parameter(name, KEYWORD, default=default, annotation=annotation)


def _longs(context: typer.Context) -> dict[str, str]:
    """Return the long names of the options of a command without their dashes, and the names of their parameters."""
    options = [p for p in context.command.params if p.param_type_name == "option"]
    named = {str(p.name): [name for name in p.opts if name.startswith("--")] for p in options}
    return {names[0].removeprefix("--"): name for name, names in named.items() if names}


def _checked(path: Path, known: Mapping[str, str], kinds: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options of a file; raises ValueError for what is none, or of another kind."""
    for name, value in from_toml(path).items():
        if name not in known:
            raise ValueError(f"{path}: key {checks.shown(name)} is unknown, expected some of {', '.join(known)}")
        kind = kinds[known[name]]
        right = isinstance(value, str if kind is Path else (int, float) if kind is float else kind)
        if not right or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{path}: {name} is {checks.shown(value)}, expected {WORDS[kind]}")
        yield name, value


def _kind(annotation: Any) -> type[Any]:
    """Return the plain type of an option: bool, int, float, str, Path or list."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(kind) is UnionType:
        kind = next(one for one in get_args(kind) if one is not NoneType)
    return get_origin(kind) or kind  # type: ignore[no-any-return]


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
