"""What a reader of folders took, what it left out, and why: counts by kind, with the first names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.listing import Listing
from pipeline.data.samples import Category, Layout, Sample

_NAMED = 3


@dataclass(frozen=True)
class Note:
    """Files of one kind: of which category ("" for the whole root), how many, what they are, and the first names."""

    category: str
    count: int
    what: str
    first: tuple[str, ...] = ()

    @classmethod
    def of(cls, category: str, what: str, names: Sequence[str]) -> Note:
        """A note of some files, which are counted; the first by name are named."""
        return cls(category, len(names), what, tuple(sorted(names)[:_NAMED]))

    @property
    def names(self) -> str:
        """The first names, and how many more there are."""
        more = self.count - len(self.first)
        return ", ".join(self.first) + (f" and {more} more" if self.first and more else "")

    @property
    def line(self) -> str:
        """All of it in one line."""
        start = f"{self.category}: " if self.category else ""
        return f"{start}{self.count} {self.what}" + (f": {self.names}" if self.first else "")

    def value(self) -> dict[str, Any]:
        """It as JSON."""
        return {"category": self.category, "count": self.count, "what": self.what, "first": list(self.first)}


def missing(notes: Iterable[Note]) -> list[str]:
    """Of the notes that count nothing, a sentence for each kind, with the first categories that lack it."""
    lacking: defaultdict[str, list[str]] = defaultdict(list)
    for note in notes:
        if not note.count:
            lacking[note.what].append(note.category)
    return [f"There are no {what} ({Note.of('', what, names).names})." for what, names in lacking.items()]


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """The files of each reason, of the reason of each file."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path, reason in reasons.items():
        found[reason].append(path)
    return found


def notes_of(category: str, kinds: Mapping[str, Sequence[str]]) -> list[Note]:
    """A note for each kind of files that has any."""
    return [Note.of(category, what, names) for what, names in kinds.items() if names]


def taken(category: Category) -> list[Note]:
    """What a category consists of, and which of its defects have no mask where others have one."""
    anomalous = [sample for sample in category.test if sample.label]
    masked = [sample for sample in anomalous if sample.masks]
    counts = {
        "normal images to train on": len(category.train),
        "normal images to test": len(category.test) - len(anomalous),
        "anomalous images to test": len(anomalous),
        "of these with a mask": len(masked),
    }
    classes = Counter(sample.defect for sample in anomalous)
    notes = [Note(category.name, count, what) for what, count in counts.items() if count or what.endswith("train on")]
    notes += [Note(category.name, count, f"of these of the class {name}") for name, count in sorted(classes.items())]
    return notes + unmasked(category.name, category.test)


def unmasked(category: str, test: Sequence[Sample]) -> list[Note]:
    """A note of the anomalous test images without a mask, where others have one."""
    anomalous = [sample for sample in test if sample.label]
    without = [sample.path for sample in anomalous if not sample.masks]
    if len(without) == len(anomalous):
        return []
    return notes_of(category, {"anomalous images without a mask: they take no part in pixel metrics": without})


def left_out(listing: Listing, layout: Layout) -> list[Note]:
    """Every file below the root that is neither an image of a category nor a mask of one, by the reason."""
    images = sum(len(one.train) + len(one.test) for one in layout.categories)
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    # Where the numbers are the same nothing is left out, and no set of a million names is made.
    if layout.left_out or images != len(listing.files):
        used = {path for category in layout.categories for path in category.files}
        for path in listing.files:
            if path not in used:
                kinds[layout.left_out.get(path, "in no folder that this layout reads")].append(path)
    return [*notes_of("", kinds), *unlisted(listing)]


def unlisted(listing: Listing) -> list[Note]:
    """The files of a listing that are no images by their suffix, and those that were passed over, by the reason."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for path in listing.others:
        name = path.rpartition("/")[2]
        dot = name.rfind(".")
        kinds[f"no image by its suffix, {name[dot:].lower()}" if dot > 0 else "no image: no suffix"].append(path)
    return [*notes_of("", kinds), *notes_of("", by_reason(listing.passed_over))]


def copies(names: Iterable[str], digests: Iterable[str]) -> list[str]:
    """The images whose content is that of an earlier one; "" is no digest."""
    seen: set[str] = set()
    again = []
    for name, digest in zip(names, digests, strict=True):
        if digest and digest in seen:
            again.append(name)
        seen.add(digest)
    return again


def twice(category: str, names: Iterable[str], digests: Iterable[str]) -> list[Note]:
    """A note of the normals that are copies of an earlier one."""
    return notes_of(category, {"normal images that are copies of another one": copies(names, digests)})
