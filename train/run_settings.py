"""What a run folder was made with, kept beside its results so that no cell is taken for one made otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.files import write_json

_NAME = "settings.json"


def differing_settings(out: Path, wanted: dict[str, Any]) -> list[str]:
    """A line `part.name: old, not new` for each setting in which the run folder's differ from those wanted.

    wanted: part -> name -> JSON value; its part "images" has the digest of each category's list of images, and a
    category that is new to the run differs from nothing.
    """
    found = _found(out) or wanted
    found = {**found, "images": {**wanted["images"], **found["images"]}}
    pairs = [
        (f"{part}.{name}", value, found.get(part, {}).get(name))
        for part in wanted
        for name, value in wanted[part].items()
    ]
    return [f"{name}: {old}, not {new}" for name, new, old in pairs if json.dumps(new) != json.dumps(old)]


def keep_settings(out: Path, wanted: dict[str, Any]) -> None:
    """Write the settings to the run folder; what others made goes."""
    found = _found(out)
    if differing_settings(out, wanted):
        # Also of categories and seeds not asked for now: a later resume must not take them for made with these.
        for pattern in ("cell.json", "checkpoint.pt"):
            for left in out.glob(f"*/seed-*/{pattern}"):
                left.unlink()
    elif found is not None:
        wanted = {**wanted, "images": {**found["images"], **wanted["images"]}}
    write_json(out / _NAME, wanted)


def _found(out: Path) -> dict[str, Any] | None:
    path = out / _NAME
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content
