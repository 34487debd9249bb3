"""Settings as options of a command: a frozen dataclass becomes click options and comes back as one object."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.errors import UserError
from pipeline.path_types import LocalPath, Place
from pipeline.setting import spelling, split, with_option

Command = Callable[..., Any]


def options_of(
    settings: type[Any], argument: str, only: Sequence[str] = (), **defaults: object
) -> Callable[[Command], Command]:
    """A decorator that gives a command an option for each field with help, and the object as one argument.

    only: the fields to take, all where none are named. defaults: of this command, in place of the fields' own.
    """
    shown = [one for one in with_option(settings) if one.name in (only or (one.name,))]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_settings(**values: Any) -> Any:  # noqa: ANN401 - what click parsed
            given = {one.name: values.pop(one.name) for one in shown}
            return command(**values, **{argument: settings(**given)})

        decorated: Command = with_settings
        for one in reversed(shown):
            decorated = _option(one, defaults.get(one.name, one.default))(decorated)
        return decorated

    return decorate


def numbers(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[int, ...]:
    """The callback of a repeatable option of whole numbers from 0 on, also separated by commas."""
    parts = split(values)
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 and int(part) < 2**63 for part in parts):
        raise click.BadParameter(f"{','.join(values)}: give whole numbers from 0 to 2^63 - 1")
    return tuple(dict.fromkeys(map(int, parts)))


def one_each(option: str, given: Sequence[str], datasets: Sequence[str]) -> Sequence[str | None]:
    """The value of an option for each data set, None for all where it is not given; UserError for another number."""
    if given and len(given) != len(datasets):
        raise UserError(f"{option} is given {len(given)} times for {len(datasets)} data sets: give one each, or none")
    return given or [None] * len(datasets)


def store_option(help: str) -> Callable[[Command], Command]:
    """A decorator that gives a command a cache, None where none is given: as STORE, or as `--store STORE`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_store(store: str | None, place: str | None, **values: Any) -> Any:  # noqa: ANN401 - what click parsed
            typed = click.get_current_context().get_parameter_source("store") is ParameterSource.COMMANDLINE
            if place and typed and place != store:
                raise UserError(f"two caches are given, {place} and --store {store}: give one")
            return command(store=place or store, **values)

        with_option = click.option("--store", metavar="PATH|URL", type=Place(), help=help)(with_store)
        return click.argument("place", metavar="[STORE]", required=False, type=Place())(with_option)

    return decorate


def typed(context: click.Context) -> str:
    """The command as it was typed, with the options that were given."""
    words = ["python", "cli.py", str(context.info_name)]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        if name == "settings":
            words += ["--settings", str(context.meta[name])] if name in context.meta else []
        elif context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            for one in value if isinstance(value, tuple) else (value,):
                named = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
                words += named if one is True else [*named, str(one)]
    return shlex.join(words)


def _option(one: Field[Any], default: object) -> Callable[[Command], Command]:
    rule = one.metadata
    attributes: dict[str, Any] = {"default": default, "help": rule["help"], "metavar": rule["metavar"]}
    if isinstance(default, bool):
        attributes["is_flag"] = True
    elif isinstance(default, tuple) and all(isinstance(part, str) for part in default):
        attributes |= {"multiple": True, "callback": lambda _context, _parameter, values: split(values)}
    elif isinstance(default, tuple):
        attributes |= {"nargs": len(default), "type": float}
    else:
        kind = {Path: LocalPath(), "place": Place()}.get(rule["type"]) or rule["type"] or type(default)
        attributes["type"] = click.Choice(rule["choices"]) if rule["choices"] else kind
    return click.option(spelling(one), one.name, **attributes)
