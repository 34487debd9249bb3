"""Tables for the terminal: what a data set holds, what a cache holds, and where the time of a run went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from rich.box import SIMPLE
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from pipeline.cache.summary import CacheSummary, StageSummary
from pipeline.data.census import Note
from pipeline.data.counts import CountRow
from pipeline.data.listing import absolute
from pipeline.precompute import RunReport
from pipeline.setting import as_toml, asked
from pipeline.settings import PrecomputeSettings

_STATUS_STYLES = {"whole": "green", "unknown": "", "not found": "dim"}


def counts_table(rows: Sequence[CountRow]) -> Table:
    """Images found in each category against the published numbers, and their sum."""
    table = Table(title="images found and, behind a slash, published")
    table.add_column("category")
    for heading in ("train", "test good", "test defect", "masks"):
        table.add_column(heading, justify="right")
    table.add_column("status")
    for row in rows:
        expected: tuple[int | None, ...] = row.expected or (None, None, None)
        counts = zip((row.train, row.test_good, row.test_defect), expected, strict=True)
        cells = [f"{here}" if there is None else f"{here} / {there}" for here, there in counts]
        status = "no published counts" if row.status == "unknown" else row.status
        style = _STATUS_STYLES.get(row.status, "yellow")
        table.add_row(escape(row.category), *cells, str(row.masks), escape(status), style=style)
    totals = [sum(getattr(row, name) for row in rows) for name in ("train", "test_good", "test_defect", "masks")]
    table.add_section()
    table.add_row("all", *map(str, totals), "")
    return table


def notes_table(notes: Sequence[Note], title: str) -> Table:
    """A row for each kind of files, with the first names."""
    table = Table(title=escape(title), box=SIMPLE, padding=(0, 1, 0, 0))
    several = any(note.category for note in notes)
    for heading in (*["category"] * several, "count", "what", "first names"):
        justify: Literal["right", "left"] = "right" if heading == "count" else "left"
        table.add_column(heading, overflow="fold", justify=justify)
    last = ""
    for note in notes:
        shown = note.category if note.category != last else ""
        last = note.category
        table.add_row(*[escape(shown)] * several, str(note.count), escape(note.what), escape(note.names))
    return table


def work_table(run: RunReport) -> Table:
    """Where the time of a run that computed tasks went: a row per worker, seconds of its threads by step, and the sum.

    images/s of a row is over its working seconds, that of the title over the time that the run took.
    """
    everybody = "all"
    images: Counter[str] = Counter()
    seconds: dict[str, Counter[str]] = {}
    for task in run.tasks:
        for worker in (task.worker.removeprefix("tcp://"), everybody):
            images[worker] += task.images
            seconds.setdefault(worker, Counter()).update(task.seconds)
    rate = images[everybody] / run.elapsed
    title = f"{images[everybody]} images in {run.elapsed:.1f} s, {rate:.1f} images/s; seconds of work by step"
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("worker", overflow="fold", min_width=min(24, max(map(len, seconds))))
    steps = list(seconds[everybody])
    for heading in ("images", *steps, "images/s"):
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    for worker in sorted(seconds, key=lambda worker: (worker == everybody, len(worker), worker)):
        if worker == everybody:
            table.add_section()
        rate = images[worker] / max(seconds[worker].total(), 1e-9)
        spent = (f"{seconds[worker][step]:.1f}" for step in steps)
        table.add_row(escape(worker), str(images[worker]), *spent, f"{rate:.1f}")
    return table


def cache_table(summary: CacheSummary) -> Table:
    """The categories of a cache: images, chunks, bytes."""
    state = "complete" if summary.complete else "not complete"
    table = Table(title=escape(f"{summary.store}: {summary.dataset}, {state}"))
    table.add_column("category")
    for heading in ("images", "computed", "skipped", "chunks done", "size"):
        table.add_column(heading, justify="right")
    for one in summary.categories:
        blocks = f"{one.blocks_done} / {one.blocks}"
        counts = (str(one.images), str(one.computed), str(len(one.skipped)), blocks)
        style = "" if one.blocks_done == one.blocks and not one.skipped else "yellow"
        table.add_row(escape(one.name), *counts, decimal(one.stored_bytes), style=style)
    return table


def stage_table(summary: CacheSummary) -> Table:
    """The stages of each category: means over the images computed so far."""
    table = Table(title="mean share of the top cluster, centroids, relaxed pairs; flat maps")
    for heading in ("category", "stage", "top cluster", "centroids", "relaxed", "flat"):
        table.add_column(heading, justify="right" if heading in ("top cluster", "relaxed", "flat") else "left")
    for one in summary.categories:
        for i, stage in enumerate(one.stages):
            table.add_row(escape(one.name) if i == 0 else "", escape(stage.name), *stage_cells(stage))
        table.add_section()
    return table


def stage_cells(stage: StageSummary) -> tuple[str, str, str, str]:
    """Top cluster's share, centroids, relaxed share and flat maps as text; "-" where nothing is computed yet."""
    centroids = "-" if stage.centroids is None else " ".join(f"{c:.2f}" for c in stage.centroids)
    return percent(stage.top_share), centroids, percent(stage.relaxed_share), str(stage.flat)


def setting_lines(summary: CacheSummary) -> list[tuple[str, str]]:
    """Name and value, as text, of every setting of a cache, and the weights and packages that it was made with."""

    def text(value: object) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    settings = [(name.replace("_", " "), text(value)) for name, value in summary.settings.items()]
    packages = ", ".join(f"{name} {number}" for name, number in summary.versions.items())
    return [
        *settings,
        ("digest of the weights", summary.weights),
        ("images from", summary.root),
        ("made with", packages),
    ]


def settings_text(summary: CacheSummary) -> str:
    """The file that makes the cache again by `precompute --settings`."""
    place = {"dataset": [summary.dataset], "root": [summary.root], "store": [absolute(summary.store)]}
    place["category"] = [category.name for category in summary.categories]
    return as_toml(place | asked(PrecomputeSettings.from_attributes(summary.settings)))


def percent(share: float | None) -> str:
    """A share 0..1 as "12.3 %", None as "-"."""
    return "-" if share is None else f"{100 * share:.1f} %"
