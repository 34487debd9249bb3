"""Stage 1: data sets to caches, block by block, in parallel on Dask; goes on where an earlier run stopped."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.backbone_spec import choose_stages, weights_digest
from pipeline.creation import finish_cache, list_images_digests, mark_incomplete, prepare_cache
from pipeline.datasets import Dataset
from pipeline.errors import RunError, UserError
from pipeline.growth import open_rows, refuse_vanished, update_category
from pipeline.progress import progress
from pipeline.roots import absolute
from pipeline.schedule import check_scheduler, run_blocks
from pipeline.settings import PrecomputeSettings
from pipeline.store import BLOCK, DONE, cache_exists, open_cache, open_category, read_all, unit_blocks

if TYPE_CHECKING:
    from pipeline.block import BlockReport


@dataclass(frozen=True)
class PrecomputeReport:
    """What a run came to for one cache.

    images: normal images of the categories asked for; computed: those computed by this run; bad: a line for each
    that could not be read; seconds: of work by step, summed over the workers.
    """

    images: int
    computed: int
    bad: tuple[str, ...]
    seconds: dict[str, float]


@dataclass(frozen=True)
class RunReport:
    """What a run came to: a report a data set, in their order; the blocks it computed; the seconds to the last one."""

    caches: tuple[PrecomputeReport, ...]
    blocks: tuple[BlockReport, ...]
    elapsed: float


def precompute(
    dataset: Dataset,
    store: str,
    settings: PrecomputeSettings,
    *,
    device: str = "auto",
    scheduler: str = "threads",
    workers: int | None = None,
    batch_size: int = BLOCK,
    bad_images: str = "stop",
    overwrite: bool = False,
    update: bool = False,
) -> PrecomputeReport:
    """`precompute_all` for a single data set."""
    return precompute_all(
        [(dataset, store)],
        settings,
        device=device,
        scheduler=scheduler,
        workers=workers,
        batch_size=batch_size,
        bad_images=bad_images,
        overwrite=overwrite,
        update=update,
    ).caches[0]


def precompute_all(
    places: Sequence[tuple[Dataset, str]],
    settings: PrecomputeSettings,
    *,
    device: str = "auto",
    scheduler: str = "threads",
    workers: int | None = None,
    batch_size: int = BLOCK,
    bad_images: str = "stop",
    overwrite: bool = False,
    update: bool = False,
    report: Path | None = None,
) -> RunReport:
    """Fill the cache of each data set with every block of its normal images that is not done yet, on one scheduler.

    places: data sets, each with the path or URL of a cache of its own. workers: None takes one a core. batch_size:
    images through a GPU at once. bad_images: "stop" raises UserError at the first block with an image that cannot be
    read, and the blocks done so far stay; "skip" leaves the image's row empty and not `valid`. New images join the
    cache; update: vanished ones leave it and changed ones are computed again (`pipeline.growth`). report: the file for
    Dask's performance report, written where a block was computed.
    """
    check_scheduler(scheduler, report)
    # Workers have other working directories.
    places = [(dataset, absolute(store)) for dataset, store in places]
    _refuse_shared_stores([store for _, store in places])
    settings = replace(settings, stages=choose_stages(settings.backbone, settings.stages))
    if overwrite or not all(cache_exists(store) for _, store in places):
        # Weights that cannot be had or do not fit must not leave a cache of theirs behind.
        from pipeline.backbone import load_backbone

        load_backbone(settings.backbone, settings.weights, settings.seed)
    cache_ids = [_prepare(dataset, store, settings, overwrite, update) for dataset, store in places]
    blocks = [_open_units(store, dataset) for dataset, store in places]
    finished: list[BlockReport] = []
    start = ended = time.monotonic()
    if any(blocks):
        # Imported here: a finished cache is recognised without the seconds that importing torch takes.
        from pipeline.block import Job, compute_block, torch_threads_kept

        todo = sum(count for some in blocks for *_, count in some)
        with progress("precompute", todo, "images") as advance:

            def on_result(block: BlockReport) -> None:
                nonlocal ended
                ended = time.monotonic()
                finished.append(block)
                if block.bad and bad_images == "stop":
                    raise UserError(f"{block.bad[0]}; mend or remove it, or give --bad-images skip")
                advance(block.images)

            shared = _for_workers(settings)
            jobs = [
                Job(store, cache_id, dataset.root, shared, device, bad_images, batch_size)
                for (dataset, store), cache_id in zip(places, cache_ids, strict=True)
            ]
            tasks = [(job, name, block) for job, some in zip(jobs, blocks, strict=True) for name, block, _ in some]
            with torch_threads_kept():
                run_blocks(compute_block, tasks, scheduler, workers, on_result, report)
        for dataset, store in places:
            if left := len(_open_units(store, dataset)):
                raise RunError(f"{left} tasks of {store} were not done: the same command goes on with them")
    caches = []
    for (dataset, store), some in zip(places, blocks, strict=True):
        finish_cache(store)
        caches.append(_report(dataset, sum(count for *_, count in some), [b for b in finished if b.store == store]))
    return RunReport(tuple(caches), tuple(finished), ended - start)


def _refuse_shared_stores(stores: Sequence[str]) -> None:
    for store, count in Counter(stores).items():
        if count > 1:
            raise UserError(f"{store} is the cache of {count} data sets: give each a --store of its own")


def _for_workers(settings: PrecomputeSettings) -> PrecomputeSettings:
    named = settings.weights in ("imagenet", "none")
    return settings if named else replace(settings, weights=absolute(settings.weights))


def _report(dataset: Dataset, computed: int, blocks: Sequence[BlockReport]) -> PrecomputeReport:
    seconds: Counter[str] = Counter()
    for block in blocks:
        seconds.update(block.seconds)
    images = sum(len(category.train) for category in dataset.categories)
    return PrecomputeReport(images, computed, tuple(line for block in blocks for line in block.bad), dict(seconds))


def _prepare(dataset: Dataset, store: str, settings: PrecomputeSettings, overwrite: bool, update: bool) -> str:
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
    return cache_id


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
