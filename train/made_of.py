"""What a cell is made of: its settings, and the content of every file, so that a change is found and said in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any


@dataclass(frozen=True)
class Files:
    """Files of one kind: how many, and the SHA-256 of all their names and contents, in order."""

    count: int
    digest: str

    @classmethod
    def of(cls, names_and_digests: Iterable[tuple[object, ...]]) -> Files:
        """Of names, labels and digests, a tuple per file."""
        lines = [json.dumps(parts) for parts in names_and_digests]
        return cls(len(lines), sha256("\n".join(lines).encode()).hexdigest())


@dataclass(frozen=True)
class MadeOf:
    """What a cell is made of: settings by "part.name", JSON values, and files by their kind, such as "masks".

    Two cells that are made of the same are the same. Paths of roots and stores are no part of it.
    """

    settings: Mapping[str, Any]
    files: Mapping[str, Files]

    @classmethod
    def of(cls, parts: Mapping[str, Mapping[str, Any]], files: Mapping[str, Files]) -> MadeOf:
        """parts: settings of each part by name."""
        settings = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        plain: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists, as they are read back
        return cls(plain, dict(files))

    def changes(self, before: MadeOf) -> list[str]:
        """In words what differs from an earlier cell, a line each; none where nothing does."""
        lines = []
        for name in sorted({*self.settings, *before.settings}):
            now, then = self.settings.get(name), before.settings.get(name)
            if now != then:
                lines.append(f"{name}: {now} now, {then} then")
        for kind, now_of in self.files.items():
            then_of = before.files.get(kind, Files(0, ""))
            if now_of.count != then_of.count:
                lines.append(f"{now_of.count} {kind} now, {then_of.count} then")
            elif now_of != then_of:
                lines.append(f"{now_of.count} {kind} as then, with other content, names or order")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The contents of `made_of.json`."""
        return {"settings": dict(self.settings), "files": {kind: asdict(files) for kind, files in self.files.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MadeOf:
        """The inverse of `to_json`; KeyError, TypeError or AttributeError for anything else."""
        settings, files = value["settings"].items(), value["files"].items()
        if not settings:
            raise KeyError("settings")
        return cls(dict(settings), {kind: Files(**found) for kind, found in files})

    def of_seed(self, seed: int) -> MadeOf:
        """With the seed of one cell."""
        return replace(self, settings={**self.settings, "train.seed": seed})
