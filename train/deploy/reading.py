"""The files that `predict` scores, read ahead of the detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pipeline.data.images import Decoding, Photo, read_photo
from pipeline.errors import ImageError, one_line
from pipeline.threads import CORES


@dataclass(frozen=True)
class File:
    """An image file: its place among all, its path as the user gave it, and the name of its overlay."""

    number: int
    path: Path
    overlay: str


@dataclass(frozen=True, eq=False)
class Bad:
    """A file that could not be read, and why."""

    file: File
    error: ImageError

    @property
    def reason(self) -> str:
        """Why, without the path that the message begins with."""
        # A file of the working directory is called ./x there.
        reason = str(self.error).removeprefix("./").removeprefix(f"{self.file.path}: ")
        return one_line(ImageError(reason))

    def refuse(self) -> NoReturn:
        """Raise the error, with what else the user may do."""
        raise ImageError(f"{one_line(self.error)}, or give --bad-images skip") from self.error


@dataclass(frozen=True, eq=False)
class Good:
    """A file that was read."""

    file: File
    photo: Photo


def read_ahead(
    files: Iterable[File], decoding: Decoding, shown_at: Callable[[int, int], tuple[int, int]] | None
) -> Iterator[Good | Bad]:
    """The files in their order, a bounded number of them ahead; shown_at: as `read_photo` has it."""

    def read(file: File) -> Good | Bad:
        try:
            return Good(file, read_photo(file.path, decoding, shown_at))
        except ImageError as error:
            return Bad(file, error)

    return CORES.spread(read, files)
