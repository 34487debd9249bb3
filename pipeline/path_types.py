"""Paths and URLs on the command line: the only place that expands ``~``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.remote import is_url


class Place(click.ParamType):  # type: ignore[type-arg]  # not generic in earlier versions of click
    """A local path or a URL, as text; ``~`` is expanded, and an empty one refused."""

    name = "place"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The place as text."""
        return value if is_url(value) else str(_expanded(self, value, param, ctx))


class LocalPath(click.Path):
    """A local path; ``~`` is expanded, and an empty one refused."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        """exists, file_okay, dir_okay: as click has them."""
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - as click has it
        """The path, as a Path."""
        return super().convert(_expanded(self, str(value), param, ctx), param, ctx)


def _expanded(kind: click.ParamType[Any], value: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
    if not value.strip():
        kind.fail("an empty path; give one, such as . for the working directory", param, ctx)
    try:
        return Path(value).expanduser()
    except RuntimeError:  # nobody of that name has a home folder
        kind.fail(f"{value} names the home folder of nobody; give another path, or ./{value}", param, ctx)
