"""Stage 1: a data set to a cache, block by block, in parallel on Dask; goes on where an earlier run stopped."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from pipeline.backbone_spec import choose_stages, weights_digest
from pipeline.datasets import Dataset
from pipeline.errors import RunError, UserError
from pipeline.growth import open_rows, refuse_vanished, update_category
from pipeline.progress import progress
from pipeline.schedule import check_scheduler, run_blocks
from pipeline.settings import PrecomputeSettings
from pipeline.store import (
    BLOCK,
    DONE,
    cache_exists,
    finish_cache,
    list_images_digests,
    mark_incomplete,
    open_cache,
    open_category,
    prepare_cache,
    read_all,
    unit_blocks,
)


@dataclass(frozen=True)
class PrecomputeReport:
    """What a run came to.

    images: normal images of the categories asked for; computed: those computed by this run; bad: a line for each
    that could not be read; seconds: of work by step, summed over the workers.
    """

    images: int
    computed: int
    bad: tuple[str, ...]
    seconds: dict[str, float]


def precompute(
    dataset: Dataset,
    store: str,
    settings: PrecomputeSettings,
    *,
    device: str = "auto",
    scheduler: str = "threads",
    workers: int | None = None,
    bad_images: str = "stop",
    overwrite: bool = False,
    update: bool = False,
) -> PrecomputeReport:
    """Fill the cache at `store` with every block of the data set's normal images that is not done yet.

    workers: None takes one a core. bad_images: "stop" raises UserError at the first block with an image that cannot
    be read, and the blocks done so far stay; "skip" leaves the image's row empty and not `valid`. New images join the
    cache; update: vanished ones leave it and changed ones are computed again (`pipeline.growth`).
    """
    check_scheduler(scheduler)
    settings = replace(settings, stages=choose_stages(settings.backbone, settings.stages))
    if overwrite or not cache_exists(store):
        # Weights that cannot be had or do not fit must not leave a cache of theirs behind.
        from pipeline.backbone import load_backbone

        load_backbone(settings.backbone, settings.weights, settings.seed)
    cache_id = prepare_cache(
        store,
        dataset=dataset.name,
        image_root=dataset.root,
        categories={category.name: [sample.path for sample in category.train] for category in dataset.categories},
        settings=settings,
        weights=weights_digest(settings.backbone, settings.weights),
        overwrite=overwrite,
    )
    _bring_up_to_date(store, dataset, update)
    images = sum(len(category.train) for category in dataset.categories)
    blocks = _open_units(store, dataset)
    bad: list[str] = []
    seconds: Counter[str] = Counter()
    if blocks:
        # Imported here: a finished cache is recognised without the seconds that importing torch takes.
        from pipeline.block import BlockReport, Job, compute_block, torch_threads_kept

        job = Job(store, cache_id, dataset.root, settings, device, bad_images)
        todo = sum(count for *_, count in blocks)
        with progress("precompute", todo, "images") as advance:

            def on_result(report: BlockReport) -> None:
                bad.extend(report.bad)
                seconds.update(report.seconds)
                if report.bad and bad_images == "stop":
                    raise UserError(f"{report.bad[0]}; mend or remove it, or give --bad-images skip")
                advance(report.images)

            tasks = [(job, name, block) for name, block, _ in blocks]
            with torch_threads_kept():
                run_blocks(compute_block, tasks, scheduler, workers, on_result)
        if left := len(_open_units(store, dataset)):
            raise RunError(f"{left} tasks of {store} were not done: the same command goes on with them")
    finish_cache(store)
    return PrecomputeReport(images, sum(count for *_, count in blocks), tuple(bad), dict(seconds))


def _bring_up_to_date(store: str, dataset: Dataset, update: bool) -> None:
    root = open_cache(store, "r+")
    listed = [
        (category.name, open_category(root, category.name), [sample.path for sample in category.train])
        for category in dataset.categories
    ]
    for name, group, paths in () if update else listed:
        refuse_vanished(name, group, dataset.root, paths)  # all of them, before anything is changed
    if update:
        mark_incomplete(root)
    for name, group, paths in listed:
        for line in update_category(group, dataset.root, paths, update).lines(name):
            # At once: a run that is killed later has no other chance to name them.
            print(line, file=sys.stderr, flush=True)
            mark_incomplete(root)
    list_images_digests(root)


def _open_units(store: str, dataset: Dataset) -> list[tuple[str, int, int]]:
    """Category, number and images to compute of every write unit with a block that is not done."""
    root = open_cache(store)
    units = []
    for category in dataset.categories:
        group = open_category(root, category.name)
        states, blocks = read_all(group, "done"), unit_blocks(group)
        if (states == DONE).all():
            continue
        paths, digests = read_all(group, "paths"), read_all(group, "sha256")
        opened = open_rows(states, paths, digests) // (blocks * BLOCK)
        counts = np.bincount(opened, minlength=-(-len(states) // blocks))
        found = np.unique(np.flatnonzero(states != DONE) // blocks)
        units += [(category.name, int(unit), int(counts[unit])) for unit in found]
    return units
