"""Stage 2: train, fit and score one detector per category and seed, and write down what came of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from pipeline.backbone import load_backbone
from pipeline.datasets import Category, Sample, load_tests
from pipeline.device import choose_device
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.progress import progress
from pipeline.roots import absolute
from pipeline.settings import PrecomputeSettings
from pipeline.store import cache_settings, choose_categories, done_blocks, open_cache, open_category, read_all
from train.calibration import calibrate
from train.contrast import Contrast
from train.detector import Detector
from train.evaluate import Evaluation, evaluate
from train.fit import fit
from train.fitted import fit_scorers
from train.network import CutSwapNetwork
from train.normals import look_at
from train.plots import plot_maps, plot_scores
from train.recipe import recipe_of
from train.results import CategoryResult, ScoreRow, summarise, write_scores_csv
from train.run_settings import differing_settings, keep_settings
from train.settings import PatchCoreSettings, TrainSettings
from train.stream import NormalStream

# Two normals held out to standardise by, and as many to fit to, is the least that a detector can be made of.
_LEAST_NORMALS = 4

# In the folder of a category and seed; written last.
_FINISHED = "cell.json"

Settings = TrainSettings | PatchCoreSettings
# Rows of the normals to train on, and of those held out.
_Normals = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Run:
    """What every category and seed of a run shares.

    root: of the test images, absolute; out: the run folder; normals and tests: of every category of the run;
    test_images: of each label and category, None for all.
    """

    dataset: str
    store: str
    root: str
    out: Path
    cache: PrecomputeSettings
    settings: Settings
    device: torch.device
    resume: bool
    normals: dict[str, _Normals]
    tests: dict[str, Category]
    test_images: int | None

    def kept(self) -> dict[str, Any]:
        """What `train.run_settings` keeps of the run: settings, and the digest of each category's list of images."""
        root = open_cache(self.store)
        images = {name: str(open_category(root, name).attrs["images_digest"]) for name in self.normals}
        settings = {"train": self.settings.to_attributes(), "cache": self.cache.to_attributes()}
        return {**settings, "test": {"images": self.test_images}, "images": images}

    def cell(self, name: str, seed: int) -> Path:
        """The folder of one category and seed."""
        return self.out / name / f"seed-{seed}"


def train(
    store: str,
    out: Path,
    settings: Settings,
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
    run = open_run(store, out, settings, categories=categories, device=device, resume=resume, root=root)
    differing = differing_settings(out, run.kept())
    if differing and resume:
        raise UserError(
            f"{out} was made with other settings ({'; '.join(differing)}): give those, or leave out --resume"
        )
    keep_settings(out, run.kept())
    seeds = list(dict.fromkeys(seeds))
    for name in run.normals:
        for seed in seeds:
            run_cell(run, name, seed)
    return write_results(run, seeds)


def open_run(
    store: str,
    out: Path,
    settings: Settings,
    *,
    categories: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    root: str | None = None,
    test_images: int | None = None,
) -> Run:
    """A run of some categories, or all, of the cache, as for `train`; mistakes are told here, and nothing written.

    test_images: so many of each label and category are tested with, spread over the list; None takes all.
    """
    cache = open_cache(store)
    names = list(dict.fromkeys(choose_categories(cache, categories, store)))
    place = absolute(root or str(cache.attrs["root"]))
    dataset = str(cache.attrs["dataset"])
    on = choose_device(device)
    tests = {category.name: _tested(category, test_images) for category in load_tests(dataset, place, names)}
    normals = {name: _normals(open_category(cache, name), name, store, settings.held_out) for name in names}
    return Run(dataset, store, place, out, cache_settings(cache), settings, on, resume, normals, tests, test_images)


def write_results(run: Run, seeds: Sequence[int]) -> dict[str, Any]:
    """Write `results.json` of a run whose cells are all finished, and return what it holds."""
    cells = {
        name: [json.loads((run.cell(name, seed) / _FINISHED).read_text()) for seed in seeds] for name in run.normals
    }
    results = {name: _category_result(found) for name, found in cells.items()}
    described = {**run.settings.to_attributes(), "seeds": seeds, "store": run.store, "cache": run.cache.to_attributes()}
    summary = summarise(run.dataset, results, described)
    write_json(run.out / "results.json", summary)
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


def finished(run: Run, name: str, seed: int) -> bool:
    """Whether the cell of a category and seed is whole; with which settings, `train.run_settings` knows."""
    return (run.cell(name, seed) / _FINISHED).exists()


def run_cell(run: Run, name: str, seed: int) -> None:
    """Make one category's detector with one seed, score its test images and write it all down.

    On resume a finished cell is left as it is.
    """
    if run.resume and finished(run, name, seed):
        return
    folder = run.cell(name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for left in (_FINISHED, "detector.pt"):
        (folder / left).unlink(missing_ok=True)
    group, category = open_category(open_cache(run.store), name), run.tests[name]
    detector, n_train = _make_detector(run, group, name, seed, folder)
    detector.save(folder / "detector.pt")
    cell: dict[str, Any] = {"threshold": detector.threshold, "n_train": n_train, "n_test": len(category.test)}
    if category.test:
        evaluation = evaluate(detector, run.root, category.test)
        cell |= _write_evaluation(evaluation, detector, category, run.root, folder)
    write_json(folder / _FINISHED, cell)


def _tested(category: Category, most: int | None) -> Category:
    """The category with at most so many test images of each label, spread over the list."""
    if most is None:
        return category
    kept: list[Sample] = []
    for label in (0, 1):
        samples = [sample for sample in category.test if sample.label == label]
        kept += samples[:: max(1, -(-len(samples) // most))]
    return replace(category, test=tuple(sorted(kept, key=lambda sample: sample.path)))


def _normals(group: zarr.Group, name: str, store: str, held_out: float) -> _Normals:
    """Rows of the normals to train on and of those held out; UserError where there are too few, or some to come."""
    if not done_blocks(group).all():
        raise UserError(f"{name} is not complete in {store}: run precompute again to finish it")
    rows = np.flatnonzero(read_all(group, "valid"))
    if len(rows) < _LEAST_NORMALS:
        raise UserError(f"{name} has {len(rows)} normal images in {store}, too few: give {_LEAST_NORMALS} or more")
    held = hold_out([str(path) for path in read_all(group, "paths")[rows]], held_out)
    return rows[~held], rows[held]


def _make_detector(run: Run, group: zarr.Group, name: str, seed: int, folder: Path) -> tuple[Detector, int]:
    """The detector of one category and seed, and the number of normals that it was trained on."""
    cache, settings = run.cache, run.settings
    trained_on, held_out = run.normals[name]
    recipe = recipe_of(cache.backbone, settings)
    pretrained = load_backbone(cache.backbone, cache.weights, cache.seed).to(run.device)
    stream = NormalStream(group, trained_on)
    seen = look_at(pretrained, recipe, stream.images(trained_on), trained_on, seed)
    network = contrast = None
    if isinstance(settings, TrainSettings) and settings.negatives != "none":
        torch.manual_seed(seed)  # of the head's first weights; all else is drawn from (seed, step)
        frozen = settings.backbone_lr == 0
        trunk = pretrained if frozen else load_backbone(cache.backbone, cache.weights, cache.seed)
        classes = settings.classes(len(cache.stages))
        network = CutSwapNetwork(trunk.to(run.device), recipe, classes, frozen).to(run.device)
        network.whitening.fit(seen.gaussian)
        contrast = Contrast(pretrained, recipe, seen, seed)
        with progress(f"train {name} seed {seed}", settings.steps, "steps") as advance:
            fit(network, stream, cache, settings, seed, folder, run.resume, advance, contrast)
    fitted = fit_scorers(recipe, pretrained, network, contrast, seen, seed)
    calibration = calibrate(fitted, stream.images(held_out), settings.false_alarms)
    return Detector(cache, settings.to_attributes(), fitted, calibration), len(trained_on)


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
