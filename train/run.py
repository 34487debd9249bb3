"""Stage 2: train, fit and score one detector per category and seed, and write down what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from pipeline.backbone import load_backbone
from pipeline.datasets import Category, load_tests
from pipeline.device import choose_device
from pipeline.errors import UserError
from pipeline.progress import progress
from pipeline.roots import absolute
from pipeline.settings import PrecomputeSettings
from pipeline.store import (
    cache_settings,
    choose_categories,
    done_blocks,
    open_cache,
    open_category,
    read_all,
)
from train.detector import Detector, fit_detector, save_detector
from train.evaluate import Evaluation, evaluate
from train.features import extract
from train.fit import fit
from train.network import CutSwapNetwork
from train.plots import plot_maps, plot_scores
from train.results import CategoryResult, ScoreRow, summarise, write_json_atomic, write_scores_csv
from train.scorers import fit_gaussian
from train.settings import TrainSettings
from train.stream import NormalStream

# Two normals held out to standardise by, and as many to fit to, is the least that a detector can be made of.
_LEAST_NORMALS = 4

# Rows of the normals to train on, and of those held out.
_Normals = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Run:
    """What every category and seed of a run shares; root: of the test images, absolute; out: the run folder."""

    store: str
    root: str
    out: Path
    cache: PrecomputeSettings
    settings: TrainSettings
    device: torch.device
    resume: bool


def train(
    store: str,
    out: Path,
    settings: TrainSettings,
    *,
    categories: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    resume: bool = False,
    root: str | None = None,
) -> dict[str, Any]:
    """Train every category with every seed; returns and writes `results.json` (see `train.results.summarise`).

    root: where the test images lie, if they are no longer where precompute found them; the images to train on come
    from the cache alone. resume: results and checkpoints that lie in `out` are gone on with; without it each is made
    anew.
    """
    cache = open_cache(store)
    names = list(dict.fromkeys(choose_categories(cache, categories, store)))
    seeds = list(dict.fromkeys(seeds))
    place = absolute(root or str(cache.attrs["root"]))
    run = Run(store, place, out, cache_settings(cache), settings, choose_device(device), resume)
    tests = {category.name: category for category in load_tests(str(cache.attrs["dataset"]), place, names)}
    normals = {name: _normals(run, open_category(cache, name), name) for name in names}
    _keep_settings(run, {name: str(open_category(cache, name).attrs["images_digest"]) for name in names})
    results = {}
    for name in names:
        cells = [_cell(run, open_category(cache, name), normals[name], tests[name], seed) for seed in seeds]
        results[name] = _category_result(cells)
    described = {**settings.to_attributes(), "seeds": seeds, "store": store, "cache": run.cache.to_attributes()}
    summary = summarise(str(cache.attrs["dataset"]), results, described)
    write_json_atomic(out / "results.json", summary)
    return summary


def hold_out(paths: Sequence[str], share: float) -> NDArray[np.bool_]:
    """(N,) bool: which normals are held out: those of the lowest digests of their paths, at least two.

    The same images whatever the seed, the order and the settings. ValueError where fewer than four are given.
    """
    if len(paths) < _LEAST_NORMALS:
        raise ValueError(f"{len(paths)} normal images cannot be split: {_LEAST_NORMALS} or more can")
    digests = [hashlib.blake2b(path.encode(), digest_size=8).digest() for path in paths]
    count = min(max(2, round(share * len(paths))), len(paths) - 2)
    held = np.zeros(len(paths), bool)
    held[sorted(range(len(paths)), key=digests.__getitem__)[:count]] = True
    return held


def _cell(run: Run, group: zarr.Group, normals: _Normals, category: Category, seed: int) -> dict[str, Any]:
    """One category and seed; a finished one is read back on resume."""
    folder = run.out / category.name / f"seed-{seed}"
    finished = folder / "cell.json"
    if run.resume and finished.exists():
        content: dict[str, Any] = json.loads(finished.read_text())
        return content
    folder.mkdir(parents=True, exist_ok=True)
    for left in (finished, folder / "detector.pt"):
        left.unlink(missing_ok=True)
    detector, n_train = _make_detector(run, group, normals, category.name, seed, folder)
    save_detector(detector, folder / "detector.pt")
    cell: dict[str, Any] = {"threshold": detector.threshold, "n_train": n_train, "n_test": len(category.test)}
    if category.test:
        evaluation = evaluate(detector, run.root, category.test)
        cell |= _write_evaluation(evaluation, detector, category, run.root, folder)
    write_json_atomic(finished, cell)
    return cell


def _normals(run: Run, group: zarr.Group, name: str) -> _Normals:
    """Rows of the normals to train on and of those held out; UserError where there are too few, or some to come."""
    if not done_blocks(group).all():
        raise UserError(f"{name} is not complete in {run.store}: run precompute again to finish it")
    rows = np.flatnonzero(read_all(group, "valid"))
    if len(rows) < _LEAST_NORMALS:
        raise UserError(f"{name} has {len(rows)} normal images in {run.store}, too few: give {_LEAST_NORMALS} or more")
    held = hold_out([str(path) for path in read_all(group, "paths")[rows]], run.settings.held_out)
    return rows[~held], rows[held]


def _make_detector(
    run: Run, group: zarr.Group, normals: _Normals, name: str, seed: int, folder: Path
) -> tuple[Detector, int]:
    trained_on, held_out = normals
    cache, settings = run.cache, run.settings
    pretrained = load_backbone(cache.backbone, cache.weights, cache.seed).to(run.device)
    stream = NormalStream(group, trained_on)
    images, kept = stream.images(trained_on), stream.images(held_out)
    network = None
    if settings.negatives != "none":
        torch.manual_seed(seed)  # of the head's first weights; all else is drawn from (seed, step)
        # A trunk that stays as it is serves both; `extract` then looks at every image once.
        frozen = settings.backbone_lr == 0
        trunk = pretrained if frozen else load_backbone(cache.backbone, cache.weights, cache.seed)
        network = CutSwapNetwork(trunk, cache.backbone, settings.classes(len(cache.stages))).to(run.device)
        network.whitening.fit(
            fit_gaussian(extract(cache.backbone, pretrained, None, images, lambda _: None).pretrained)
        )
        with progress(f"train {name} seed {seed}", settings.steps, "steps") as advance:
            fit(network, stream, cache, settings, seed, folder, run.resume, advance)
    return fit_detector(cache, settings, pretrained, network, images, kept, seed), len(images)


def _write_evaluation(
    evaluation: Evaluation, detector: Detector, category: Category, root: str, folder: Path
) -> dict[str, Any]:
    scores = evaluation.scores.image
    decisive = detector.decisive(evaluation.scores)
    rows = [
        ScoreRow(sample.path, sample.label, float(decisive[i]), {name: float(v[i]) for name, v in scores.items()})
        for i, sample in enumerate(category.test)
    ]
    write_scores_csv(folder / "scores.csv", rows)
    plot_scores(folder / "scores.png", evaluation.labels, decisive, detector.threshold, category.name)
    plot_maps(folder / "maps.png", detector, root, category.test, evaluation)
    figures = ("image_auroc", "image_ap", "pixel_auroc", "aupro", "scorers")
    return {name: getattr(evaluation, name) for name in figures}


def _category_result(cells: Sequence[dict[str, Any]]) -> CategoryResult:
    def per_seed(figure: str) -> list[float | None]:
        return [cell.get(figure) for cell in cells]

    def measured(figure: str) -> list[float | None] | None:
        values = per_seed(figure)
        return None if all(value is None for value in values) else values

    names = list(cells[0].get("scorers", {}))
    scorers = {name: [cell["scorers"][name] for cell in cells] for name in names}
    untrained = scorers.pop("untrained", None)
    return CategoryResult(
        image_auroc=per_seed("image_auroc"),
        image_ap=per_seed("image_ap"),
        pixel_auroc=measured("pixel_auroc"),
        aupro=measured("aupro"),
        threshold=float(np.mean([cell["threshold"] for cell in cells])),
        n_train=cells[0]["n_train"],
        n_test=cells[0]["n_test"],
        scorers=scorers,
        untrained_image_auroc=untrained,
        untrained={} if untrained is None else {"gde": untrained},
    )


def _keep_settings(run: Run, images: dict[str, str]) -> None:
    """Keep beside the run what it was made with: settings, and the digest of each category's list of images.

    Resuming with others raises UserError; without resume, what others made goes.
    """
    path = run.out / "settings.json"
    wanted = {"train": asdict(run.settings), "cache": run.cache.to_attributes(), "images": images}
    found = json.loads(path.read_text()) if path.exists() else wanted
    others = found["images"]
    found["images"] = {**images, **others}  # a category that is new to the run differs from nothing
    pairs = [
        (f"{part}.{name}", value, found[part].get(name)) for part in wanted for name, value in wanted[part].items()
    ]
    differing = [f"{name}: {old}, not {new}" for name, new, old in pairs if json.dumps(new) != json.dumps(old)]
    if differing and run.resume:
        raise UserError(
            f"{run.out} was made with other settings ({'; '.join(differing)}): give those, or leave out --resume"
        )
    if differing:
        # Also of categories and seeds not asked for now: a later resume must not take them for made with these.
        for pattern in ("cell.json", "checkpoint.pt"):
            for left in run.out.glob(f"*/seed-*/{pattern}"):
                left.unlink()
    run.out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, wanted if differing else {**wanted, "images": {**others, **images}})
