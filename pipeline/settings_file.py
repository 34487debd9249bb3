"""`--settings FILE`: any options of a command by their names, in TOML; what the command line gives wins."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UserError, one_line
from pipeline.path_types import LocalPath

Command = Callable[..., Any]


def settings_file(command: Command) -> Command:
    """Give a command the option `--settings FILE`."""
    return click.option(
        "--settings",
        type=LocalPath(exists=True, dir_okay=False),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read_settings,
        help="A TOML file with any of these options; what the command line gives wins.",
    )(command)


def _read_settings(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    context.meta["settings"] = path  # for `pipeline.options.typed`
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        reason = one_line(error)
        raise UserError(
            f"--settings {path} is no TOML file ({reason}): write lines such as image-size = 256"
        ) from error
    shown = [one for one in context.command.params if isinstance(one, click.Option) and one.name != "settings"]
    options = {one.opts[0].removeprefix("--"): one for one in shown}
    given: dict[str, Any] = {}
    for key, value in found.items():
        # Old spellings are taken as they are on the command line.
        renamed = context.token_normalize_func or str
        name = renamed(key.replace("_", "-"))
        if name not in options:
            raise UserError(f"--settings {path}: {context.info_name} has no setting {key}; see --help")
        if name in given:
            raise UserError(f"--settings {path} gives {name} twice: leave one out")
        given[name] = _checked(options[name], value, f"--settings {path}: {key} = {value!r}")
    context.default_map = {str(options[name].name): value for name, value in given.items()}


def _checked(option: click.Option, value: object, place: str) -> object:
    """The value as click takes it; UserError, which begins with the place, for one of a wrong type."""
    kinds: tuple[type, ...]
    if option.is_flag:
        kinds, what = (bool,), "true or false"
    elif isinstance(option.type, click.types.IntParamType):
        kinds, what = (int,), "a whole number"
    elif isinstance(option.type, click.types.FloatParamType):
        kinds, what = (int, float), "a number"
    else:
        # Numbers that are separated by commas on the command line, such as seeds, are numbers here.
        kinds, what = ((str, int) if option.multiple else (str,)), "a text in quotes"
    several = option.multiple or option.nargs > 1
    parts = value if several and isinstance(value, list) else [value]
    if not all(isinstance(part, kinds) and (option.is_flag or not isinstance(part, bool)) for part in parts):
        raise UserError(f"{place} is not {what}{', or a list of such' if several else ''}: fix it")
    if option.nargs > 1 and len(parts) != option.nargs:
        raise UserError(f"{place} is not a list of {option.nargs} numbers: fix it")
    return parts if several else value
