"""A setting as a field of a frozen dataclass: its default, what help says of it, and which values it takes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from math import inf
from typing import Any

from pipeline.errors import UserError


@dataclass(frozen=True)
class Bounds:
    """The numbers from low to high, each end included unless the field says otherwise."""

    low: float
    high: float = inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.without_low else self.low <= value
        return above and (value < self.high if self.without_high else value <= self.high)

    def __str__(self) -> str:
        least, most = (
            f"{end:,}" if isinstance(end, int) and end >= 10_000 else f"{end:g}" for end in (self.low, self.high)
        )
        low = f"above {least}" if self.without_low else f"from {least}"
        high = f"below {most}" if self.without_high else f"to {most}"
        return f"{least} or more" if self.high == inf else f"{low} {high}"


def _in_words(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) and number >= 10_000 else f"{number:g}"


POSITIVE = Bounds(1)
SHARE = Bounds(0, 1, without_low=True, without_high=True)


def setting(
    default: object,
    help: str = "",
    *,
    choices: Sequence[str] = (),
    within: Bounds | None = None,
    metavar: str | None = None,
    option: str = "",
    type: object = None,
) -> Any:  # noqa: ANN401 - as `dataclasses.field` has it
    """A field with its default; one without help gets no option.

    choices, within: the values allowed, for each part of a tuple. option: its spelling, where that is not the name's.
    metavar, type: what it shows, and what it is parsed as where the default does not say.
    """
    names = ("help", "choices", "within", "metavar", "option", "type")
    values = (help, choices, within, metavar, option, type)
    return field(default=default, metadata=dict(zip(names, values, strict=True)))


def spelling(one: Field[Any]) -> str:
    """The option of a field, such as --image-size."""
    return str(one.metadata.get("option") or f"--{one.name.replace('_', '-')}")


def with_option(settings: Any) -> list[Field[Any]]:  # noqa: ANN401 - a frozen dataclass of settings, or its class
    """The fields that have an option."""
    return [one for one in fields(settings) if one.metadata.get("help")]


def asked(settings: object) -> dict[str, Any]:
    """The values of those fields that have an option, by its name."""
    return {spelling(one).removeprefix("--"): getattr(settings, one.name) for one in with_option(settings)}


def as_toml(values: Mapping[str, object]) -> str:
    """Lines that `--settings` reads back, one per value that is not None; every JSON value is also valid TOML."""
    lines = []
    for name, value in values.items():
        if value is None:
            continue
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        try:
            text.encode()
        except UnicodeEncodeError:  # a path on a disk need not be text
            name, text = f"# {name}", '"not UTF-8: give it on the command line"'
        lines.append(f"{name} = {text}\n")
    return "".join(lines)


def split(values: Iterable[str], known: Sequence[str] = ()) -> tuple[str, ...]:
    """The parts of values separated by commas, in order, each once; a value that is itself known stays whole.

    UserError for values without any part.
    """
    values = list(values)
    found: dict[str, None] = {}
    for value in values:
        parts = [value] if value in known else [part.strip() for part in value.split(",")]
        found |= dict.fromkeys(part for part in parts if part)
    if values and not found:
        raise UserError(f"{','.join(values)!r} names nothing: give names separated by commas, or leave the option out")
    return tuple(found)


def check(settings: object) -> None:
    """Raise UserError, which names the option, for a field whose value is not allowed."""
    for one in fields(settings):  # type: ignore[arg-type]
        value, rule = getattr(settings, one.name), one.metadata
        choices, within = rule.get("choices", ()), rule.get("within")
        parts = value if isinstance(value, tuple) else (value,)
        wrong = [str(part) for part in parts if part not in choices] if choices else []
        if wrong or (choices and not parts):
            refuse(spelling(one), ",".join(wrong), " or ".join(choices))
        if within and isinstance(value, tuple):
            if not (value[0] <= value[-1] and all(part in within for part in parts)):
                refuse(spelling(one), value, f"two rising values {within}")
        elif within and value is not None and value not in within:
            refuse(spelling(one), value, str(within))


def refuse(option: str, value: object, allowed: str) -> None:
    """Raise the UserError of a value that is not allowed."""
    raise UserError(f"{option} {value} is out of range: give {allowed}")
