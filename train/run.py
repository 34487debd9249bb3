"""Train, fit and score one detector per category and seed, and write the results."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.backbones.inference import for_inference
from pipeline.cache.cache import Cache, open_cache
from pipeline.data.census import Note
from pipeline.data.datasets import load_tests
from pipeline.data.listing import absolute
from pipeline.data.samples import Category
from pipeline.device import choose_device
from pipeline.files import write_json, write_text
from pipeline.progress import progress
from pipeline.setting import as_toml, asked
from pipeline.threads import torch_threads
from pipeline.views.drawing import try_to_draw
from pipeline.workers.execution import Execution
from train.calibration import calibrate
from train.category_data import CategoryData
from train.detector import Detector
from train.evaluate import Evaluation, evaluate
from train.evaluation.cell_result import CellResult
from train.evaluation.examine import examine
from train.evaluation.results import summarise
from train.evaluation.test_set import TestSet
from train.features.extract import Images
from train.finetune import finetune
from train.localiser.fit import fit_localiser
from train.recipe import recipe_of
from train.run_folder import CellFolder, RunFolder
from train.scorers.fit import fit_normals
from train.scorers.fitted import Fitted
from train.settings import FinetuneSettings, Settings, TrainSettings
from train.split import Split, split_all


@dataclass(frozen=True)
class Run:
    """What every category and seed of a run shares.

    image_root: of the test images, absolute. resume: whether finished cells and checkpoints in `folder` are kept.
    normals, tests: of every category of the run. max_pixels: larger test images are refused. passed_over: notes
    of categories that have too few normals. test_images: of each label and category, None for all.
    """

    cache: Cache
    image_root: str
    folder: RunFolder
    settings: Settings
    device: torch.device
    resume: bool
    normals: dict[str, Split]
    tests: dict[str, Category]
    max_pixels: int
    passed_over: tuple[Note, ...]
    test_images: int | None = None

    def fingerprint(self) -> dict[str, Any]:
        """What tells this run from another: settings, and the digest of each category's list of images."""
        images = {name: str(self.cache[name].group.attrs["images_digest"]) for name in self.normals}
        settings = {"train": asdict(self.settings), "cache": self.cache.settings.to_attributes()}
        return {**settings, "test": {"images": self.test_images}, "images": images}

    def data(self, name: str) -> CategoryData:
        """What all cells of a category share."""
        category = self.cache[name]
        tests = TestSet(self.image_root, self.tests[name].test, category.decoding(self.max_pixels))
        return CategoryData(category, *self.normals[name], tests, self.device)

    def with_fewer_tests(self, most: int) -> Run:
        """The run with at most so many test images of each label and category, spread over the list."""
        tests = {}
        for name, category in self.tests.items():
            by_label = ([sample for sample in category.test if sample.label == label] for label in (0, 1))
            kept = [sample for samples in by_label for sample in samples[:: max(1, -(-len(samples) // most))]]
            tests[name] = replace(category, test=tuple(sorted(kept, key=lambda sample: sample.path)))
        return replace(self, tests=tests, test_images=most)


@dataclass(frozen=True)
class Trained:
    """The outcome of `train`: the result of each cell, and what a user should know of the data behind them."""

    cells: list[CellResult]
    notes: list[Note]


def train(run: Run, seeds: Sequence[int] = (0,)) -> Trained:
    """Train every category with every seed, and write `results.json`.

    Test images and masks are read first, so that one that cannot be read stops the run before it trains anything.

    UserError on resume where the folder was made with other settings. Without resume every cell is computed again.
    """
    if run.resume:
        run.folder.require(run.fingerprint(), "give those, or leave out --resume")
    seeds = list(dict.fromkeys(seeds))
    record(run, seeds)
    every = {name: run.data(name) for name in run.normals}
    notes = [*run.passed_over, *(note for data in every.values() for note in examine(data.tests, data.category))]
    while every:
        # A category's images and networks go when it is done.
        data = every.pop(next(iter(every)))
        for seed in seeds:
            run_cell(run, data, seed)
    return Trained(write_results(run, seeds, notes), notes)


def record(run: Run, seeds: Sequence[int]) -> None:
    """Write what the run is made with to its folder, and the settings file that makes it again where `train` can."""
    run.folder.keep(run.fingerprint())
    if isinstance(run.settings, TrainSettings) and run.test_images is None:
        place: dict[str, object] = {
            "store": absolute(run.cache.store),
            "category": list(run.normals),
            "root": run.image_root,
        }
        place |= {"seed": list(seeds), "out": absolute(str(run.folder.path))}
        write_text(run.folder.asked, as_toml(place | asked(run.settings)))


def open_run(
    store: str,
    folder: Path,
    settings: Settings,
    *,
    categories: Sequence[str] = (),
    execution: Execution | None = None,
    resume: bool = False,
    image_root: str | None = None,
) -> Run:
    """A run of some categories, or all, of the cache at `store`; it raises every UserError before anything is written.

    image_root: where the test images lie, if they are no longer where precompute found them. The images to train on
    come only from the cache. execution: its device, and the most pixels of a test image.
    """
    execution = execution or Execution()
    cache = open_cache(store)
    cached = {category.name: category for category in cache.choose(categories)}
    place, on = absolute(image_root or cache.image_root), choose_device(execution.device)
    tests = {category.name: category for category in load_tests(cache.dataset, place, list(cached))}
    normals, passed_over = split_all(cached.values(), store, settings.held_out, asked=bool(categories))
    return Run(cache, place, RunFolder(folder), settings, on, resume, normals, tests, execution.max_pixels, passed_over)


def write_results(run: Run, seeds: Sequence[int], notes: Sequence[Note] = ()) -> list[CellResult]:
    """Write `results.json` of a run whose cells are all finished, and return their results."""
    cells = [run.folder.cell(name, seed).read(run.cache.dataset) for name in run.normals for seed in seeds]
    cache = {"store": run.cache.store, "cache": run.cache.settings.to_attributes()}
    summary = summarise(cells, {**asdict(run.settings), "seeds": seeds, **cache})
    write_json(run.folder.results, {**summary, "notes": [note.value() for note in notes]})
    return cells


def run_cell(run: Run, data: CategoryData, seed: int) -> None:
    """Make one category's detector with one seed, score its test images and write the results.

    data: of the run's category, or of another run's with the same cache and images. On resume a finished cell is left
    as it is.
    """
    cell = run.folder.cell(data.category.name, seed)
    if run.resume and cell.finished:
        return
    cell.clear(keep_checkpoint=run.resume)
    # One torch thread here, and one in each of those that images are spread over: no sum depends on how many there are.
    with torch_threads(1):
        _compute_cell(run, data, seed, cell)


def _compute_cell(run: Run, data: CategoryData, seed: int, cell: CellFolder) -> None:
    tests, name = data.tests, data.category.name
    detector = _make_detector(run.settings, data, seed, cell)
    detector.save(cell.detector)
    result = CellResult(run.cache.dataset, name, seed, len(data.trained_on.rows), len(tests), detector.threshold)
    if len(tests):
        found = evaluate(detector, tests)
        cell.write_scores(tests.samples, found.decision_scores, found.scores.image)
        _draw(cell, tests, found, detector.threshold, name)
        result = replace(result, metrics=found.metrics, scorers=found.scorers, by_defect=found.by_defect)
    cell.write(result)


def _draw(cell: CellFolder, tests: TestSet, found: Evaluation, threshold: float, title: str) -> None:
    def scores() -> None:
        from train.views.plots import plot_scores  # here: matplotlib starts in the style of `try_to_draw`

        plot_scores(cell.scores_plot, tests.labels, found.decision_scores, threshold, title)

    def maps() -> None:
        from train.views.plots import plot_maps

        plot_maps(cell.maps_plot, tests, found, threshold)

    try_to_draw(scores, cell.scores_plot)
    try_to_draw(maps, cell.maps_plot)


def _make_detector(settings: Settings, data: CategoryData, seed: int, cell: CellFolder) -> Detector:
    recipe = recipe_of(data.settings.backbone, settings)
    of_normals = data.of_normals(recipe, seed)
    scorers = {} if of_normals.gaussian is None else {"gaussian": of_normals.gaussian}
    localiser = finetuned = None
    negatives: Images = ()
    what = f"{data.category.name} seed {seed}"
    if isinstance(settings, TrainSettings) and settings.trains:
        with progress(f"localiser {what}", settings.steps, "steps") as advance:
            localiser = fit_localiser(data.pretrained, data.stream, settings, seed, cell, advance)
        negatives = data.held_out_negatives(settings.negatives, seed)
    if isinstance(settings, FinetuneSettings):
        trained = copy.deepcopy(data.plain).to(data.device)
        with progress(f"finetune {what}", settings.steps, "steps") as advance:
            finetune(trained, recipe, data.stream, settings, seed, cell, advance)
        finetuned = for_inference(trained)
        # Only the Gaussian is wanted: the references stay those of the pretrained backbone.
        alone = replace(recipe, reference_candidates=1, most_references=1)
        again = fit_normals(finetuned, alone, data.trained_on, len(data.trained_on.rows), seed)
        assert again.gaussian is not None
        scorers = {"finetuned": again.gaussian}
    fitted = Fitted(
        recipe, data.pretrained, scorers, of_normals.projection, of_normals.references, localiser, finetuned
    )
    calibration = calibrate(fitted, data.held_out, negatives, data.settings.image_size, settings.false_alarms)
    return Detector(data.settings, data.category.levels, asdict(settings), data.plain.state_dict(), fitted, calibration)
