"""Data sets to caches, shard by shard, in parallel on Dask; a second run continues where the first one stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.backbones.spec import choose_stages, weights_digest
from pipeline.cache.cache import Cache, find_cache, open_cache
from pipeline.cache.category import CachedCategory
from pipeline.cache.create import prepare_cache
from pipeline.cache.update import update_cache
from pipeline.data.census import Note, notes_of, twice
from pipeline.data.datasets import Dataset
from pipeline.data.listing import absolute
from pipeline.errors import RunError, UserError
from pipeline.progress import progress
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from pipeline.workers.processes import refuse_unguarded_script
from pipeline.workers.schedule import run_tasks

if TYPE_CHECKING:
    from pipeline.workers.task import TaskReport


@dataclass(frozen=True)
class PrecomputeReport:
    """The outcome of a run for one cache.

    images: normal images of the categories asked for; computed: those computed by this run; bad: a line for each
    that could not be read; seconds: of work by step, summed over the workers; notes: of normals that could not be read,
    now or before, and of copies.
    """

    images: int
    computed: int
    bad: tuple[str, ...]
    seconds: dict[str, float]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class RunReport:
    """The outcome of a run: a report per data set in their order, its tasks, and the seconds that they took."""

    caches: tuple[PrecomputeReport, ...]
    tasks: tuple[TaskReport, ...]
    elapsed: float


@dataclass(frozen=True)
class _Work:
    """A data set, its cache, and the shards to compute: category, number and images to compute of each."""

    dataset: Dataset
    cache: Cache
    shards: tuple[tuple[str, int, int], ...]

    @property
    def images(self) -> int:
        """Images to compute."""
        return sum(images for *_, images in self.shards)


def precompute(
    places: Sequence[tuple[Dataset, str]],
    settings: PrecomputeSettings,
    execution: Execution | None = None,
    *,
    overwrite: bool = False,
    update: bool = False,
) -> RunReport:
    """Fill the cache of each data set with every shard of its normal images that is not done yet, on one scheduler.

    places: data sets, each with the path or URL of a cache of its own. execution: None takes threads on this machine.
    overwrite: the categories start again. New images join the cache. update: vanished ones leave it and changed ones
    are computed again (`pipeline.cache.update`). An image that cannot be read raises UserError at the end of its task,
    and the shards done so far stay; with bad_images "skip" its row stays empty and not `valid`.
    """
    execution = execution or Execution()
    refuse_unguarded_script(execution.scheduler)
    # Workers have other working directories.
    places = [(dataset, absolute(store)) for dataset, store in places]
    _refuse_shared_stores([store for _, store in places])
    weights = settings.weights if settings.weights in ("imagenet", "none") else absolute(settings.weights)
    settings = replace(settings, stages=choose_stages(settings.backbone, settings.stages), weights=weights)
    if overwrite or not all(find_cache(store) for _, store in places):
        # Before the cache is created: weights that do not load must not leave an empty cache.
        _check_weights(settings, execution)
    works = [_prepare(place, settings, execution, overwrite, update) for place in places]
    start = time.monotonic()
    finished = _compute(works, settings, execution) if any(work.shards for work in works) else []
    for work in works:
        # Opened again, because another run may have written to it meanwhile.
        open_cache(work.cache.store, "r+").finish()
    reports = tuple(report for report, _ in finished)
    elapsed = finished[-1][1] - start if finished else 0.0
    return RunReport(tuple(_report(work, reports) for work in works), reports, elapsed)


def _check_weights(settings: PrecomputeSettings, execution: Execution) -> None:
    """Load the network; UserError where its weights do not fit."""
    from pipeline.device import choose_device
    from pipeline.workers.loaded import open_backbone

    # Tasks in threads of this process use this very network; a worker elsewhere may have another device.
    device = str(choose_device(execution.device)) if execution.scheduler == "threads" else "cpu"
    open_backbone(settings.backbone, settings.weights, settings.seed, device, True)


def _refuse_shared_stores(stores: Sequence[str]) -> None:
    for store, count in Counter(stores).items():
        if count > 1:
            raise UserError(f"{store} is the cache of {count} data sets: give each a --store of its own")


def _prepare(
    place: tuple[Dataset, str], settings: PrecomputeSettings, execution: Execution, overwrite: bool, update: bool
) -> _Work:
    dataset, store = place
    weights = weights_digest(settings.backbone, settings.weights)
    most = execution.max_pixels
    cache = prepare_cache(store, dataset, settings, weights, overwrite=overwrite, update=update, most_pixels=most)
    update_cache(cache, dataset, update)
    return _Work(dataset, cache, tuple(cache.pending(dataset.category_names)))


def _compute(
    works: Sequence[_Work], settings: PrecomputeSettings, execution: Execution
) -> list[tuple[TaskReport, float]]:
    """The report of every task, and when it came, in the order in which they came."""
    # Imported here, because a finished cache is recognised without torch, which takes seconds to import.
    from pipeline.workers.task import Job, compute_shard

    tasks = [
        (Job(work.cache.store, work.cache.id, work.dataset.image_root, settings.weights, execution), category, shard)
        for work in works
        for category, shard, _ in work.shards
    ]
    finished: list[tuple[TaskReport, float]] = []
    with progress("precompute", sum(work.images for work in works), "images") as advance:

        def on_result(report: TaskReport) -> None:
            finished.append((report, time.monotonic()))
            if report.bad and execution.bad_images == "stop":
                raise UserError(f"{report.bad[0]}, or give --bad-images skip")
            advance(report.images)

        run_tasks(compute_shard, tasks, execution, on_result)
    for work in works:
        if left := len(list(work.cache.pending(work.dataset.category_names))):
            raise RunError(f"{left} tasks of {work.cache.store} were not done: run the same command to continue")
    return finished


def _report(work: _Work, reports: Sequence[TaskReport]) -> PrecomputeReport:
    mine = [report for report in reports if report.store == work.cache.store]
    seconds: Counter[str] = Counter()
    for report in mine:
        seconds.update(report.seconds)
    images = sum(len(category.train) for category in work.dataset.categories)
    bad = tuple(line for report in mine for line in report.bad)
    notes = tuple(note for name in work.dataset.category_names for note in _notes(work.cache[name]))
    return PrecomputeReport(images, work.images - len(bad), bad, dict(seconds), notes)


def _notes(category: CachedCategory) -> list[Note]:
    """What a user should know of the images of a category: those that no run could read, and copies."""
    paths, digests = category.paths, category.digests
    unread = [path for path, digest in zip(paths, digests, strict=True) if path and not digest]
    what = "normal images that could not be read, now or before: they take no part, --update tries them again"
    return [*notes_of(category.name, {what: unread}), *twice(category.name, paths, digests)]
