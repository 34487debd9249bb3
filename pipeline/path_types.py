"""Paths and URLs on the command line: the only place that expands ``~``."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import click

from pipeline.remote import is_url


class Place(click.ParamType):  # type: ignore[type-arg]  # not generic in earlier versions of click
    """A local path or a URL, as text; ``~`` is expanded, and an empty one refused."""

    name = "place"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The place as text."""
        if is_url(value):
            if not value.isprintable():
                self.fail(f"{value!r} is no URL", param, ctx)
            return value
        return str(_expanded(self, value, param, ctx))


class LocalPath(click.Path):
    """A local path; ``~`` is expanded, and an empty one refused."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        """exists, file_okay, dir_okay: as click has them."""
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - as click has it
        """The path, as a Path."""
        if is_url(str(value)):
            self.fail(f"{value} is a URL; give a local path", param, ctx)
        return super().convert(_expanded(self, str(value), param, ctx), param, ctx)


def _expanded(kind: click.ParamType[Any], value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
    if not value.strip():
        kind.fail("an empty path; give one, such as . for the working directory", param, ctx)
    path = Path(os.path.expanduser(value))  # noqa: PTH111 - Path takes ./~ for ~
    if value.startswith("~") and not Path(os.path.expanduser(value.partition("/")[0])).is_dir():  # noqa: PTH111
        kind.fail(f"{value} names a home folder that is not there; give another path, or ./{value}", param, ctx)
    try:
        os.lstat(path)
    except ValueError:  # a null byte, or what a file system has no bytes for
        kind.fail(f"{value!r} is no path", param, ctx)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            kind.fail(f"{value} is no path ({error.strerror})", param, ctx)
    # Else it would be expanded later, or taken for standard input.
    return path.absolute() if value.startswith("./~") or value == "./-" else path
