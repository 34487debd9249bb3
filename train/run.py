"""Train, fit and score one detector per category and seed, and write the results."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from pipeline.backbones.spec import weights_digest
from pipeline.cache.cache import Cache, open_cache
from pipeline.data.census import Note
from pipeline.data.datasets import load_tests
from pipeline.data.listing import absolute
from pipeline.data.samples import Category
from pipeline.device import choose_device
from pipeline.errors import UserError
from pipeline.files import write_json, write_text
from pipeline.setting import as_toml, asked
from pipeline.workers.execution import Execution
from train.category_data import CategoryData
from train.cell import make_cell
from train.evaluation.cell_result import CellResult
from train.evaluation.examine import Examined, examine
from train.evaluation.results import summarise
from train.evaluation.test_set import TestSet
from train.made_of import Files, MadeOf
from train.recipe import recipe_of
from train.run_folder import RunFolder
from train.settings import Settings, TrainSettings
from train.split import Split, split_all


@dataclass(frozen=True)
class Run:
    """What every category and seed of a run shares.

    image_root: of the test images, absolute. normals, tests: of every category of the run. passed_over: notes of
    categories that have too few normals. examined: what `examined_run` found of the test images, by category.
    """

    cache: Cache
    image_root: str
    folder: RunFolder
    settings: Settings
    execution: Execution
    device: torch.device
    normals: Mapping[str, Split]
    tests: Mapping[str, Category]
    passed_over: tuple[Note, ...]
    examined: Mapping[str, Examined] = field(default_factory=dict)

    @property
    def notes(self) -> list[Note]:
        """What a user should know of the data behind the results."""
        return [*self.passed_over, *(note for found in self.examined.values() for note in found.notes)]

    def made_of(self, name: str) -> MadeOf:
        """What decides the cells of a category that was examined, but for the seed."""
        category = self.cache[name]
        settings = {key: value for key, value in category.settings.to_attributes().items() if key != "weights"}
        levels = None if category.levels is None else asdict(category.levels)
        about = {"weights": self.cache.attributes["weights"], "folded": category.folded, "levels": levels}
        recipe = asdict(recipe_of(category.settings.backbone, self.settings))
        parts = {"train": asdict(self.settings), "recipe": recipe, "cache": {**settings, **about}}
        paths, digests = category.paths, category.digests
        rows = {kind: rows.tolist() for kind, rows in zip(("trained on", "held out"), self.normals[name], strict=True)}
        normals = [(kind, row, paths[row], digests[row]) for kind, some in rows.items() for row in some]
        return MadeOf.of(parts, {"normal images": Files.of(normals), **self.examined[name].files})

    def data(self, name: str) -> CategoryData:
        """What all cells of a category share."""
        category = self.cache[name]
        return CategoryData(category, *self.normals[name], self.test_set(name), self.device)

    def test_set(self, name: str) -> TestSet:
        """The test images of a category."""
        decoding = self.cache[name].decoding(self.execution.max_pixels)
        return TestSet(self.image_root, self.tests[name].test, decoding)

    def with_examined(self, examined: Mapping[str, Examined]) -> Run:
        """The run with the test images that can be read."""
        left_out = frozenset(path for found in examined.values() for path in found.left_out)
        return replace(self.without(left_out), examined=examined)

    def without(self, left_out: frozenset[str]) -> Run:
        """The run without some test images."""
        tests = {
            name: replace(category, test=tuple(sample for sample in category.test if sample.path not in left_out))
            for name, category in self.tests.items()
        }
        return replace(self, tests=tests)

    def with_fewer_tests(self, most: int) -> Run:
        """The run with at most so many test images of each label and category, spread over the list."""
        tests = {}
        for name, category in self.tests.items():
            by_label = ([sample for sample in category.test if sample.label == label] for label in (0, 1))
            kept = [sample for samples in by_label for sample in samples[:: max(1, -(-len(samples) // most))]]
            tests[name] = replace(category, test=tuple(sorted(kept, key=lambda sample: sample.path)))
        return replace(self, tests=tests)


def open_run(
    store: str,
    folder: Path,
    settings: Settings,
    *,
    categories: Sequence[str] = (),
    execution: Execution | None = None,
    image_root: str | None = None,
) -> Run:
    """A run of some categories, or all, of the cache at `store`; UserError for a mistake, and nothing is written.

    image_root: where the test images lie, if they are no longer where precompute found them. The images to train on
    come only from the cache. execution: its device, the most pixels of a test image, and what to do with a bad one.
    """
    execution = execution or Execution()
    cache = open_cache(store)
    _refuse_other_weights(cache)
    cached = {category.name: category for category in cache.choose(categories)}
    place, on = absolute(image_root or cache.image_root), choose_device(execution.device)
    tests = {category.name: category for category in load_tests(cache.dataset, place, list(cached))}
    normals, passed_over = split_all(cached.values(), store, settings.held_out, asked=bool(categories))
    return Run(cache, place, RunFolder(folder), settings, execution, on, normals, tests, passed_over)


def _refuse_other_weights(cache: Cache) -> None:
    """UserError where the file of the weights that the cache was made with is gone or has changed."""
    settings = cache.settings
    try:
        same = weights_digest(settings.backbone, settings.weights) == cache.attributes["weights"]
    except UserError:  # it cannot be read
        same = False
    if not same:
        raise UserError(
            f"{settings.weights} does not hold the weights that {cache.store} was made with: restore the file, or give"
            " precompute --weights with its new place"
        )


def examined_run(run: Run) -> Run:
    """The run with its test images examined: each is read, and those that cannot be are left out, or raise."""
    bad = run.execution.bad_images
    return run.with_examined({name: examine(run.test_set(name), run.cache[name], bad) for name in run.normals})


@dataclass(frozen=True)
class Trained:
    """The outcome of `train`: the result of each cell, and what a user should know of the data behind them."""

    cells: list[CellResult]
    notes: list[Note]


def train(run: Run, seeds: Sequence[int] = (0,), *, overwrite: bool = False) -> Trained:
    """Make the cells that are missing, a category and seed each, and write `results.json`.

    Test images and masks are read first, so that one that cannot be read stops the run before it trains anything. A
    finished cell that is made of the same stays, and a cell that was begun goes on. UserError, before anything is
    written, where a cell is made of something else, and where another process writes to the folder.
    overwrite: make every cell again; old ones are replaced together, once all new ones are whole.
    """
    seeds = list(dict.fromkeys(seeds))
    run = examined_run(run)
    with run.folder.owned():
        if not overwrite:
            refuse_other_cells(run, seeds, "give another --out, or --overwrite to make them again")
        kept = 0
        for name in run.normals:
            missing = [seed for seed in seeds if overwrite or not run.folder.cell(name, seed).finished]
            kept += len(seeds) - len(missing)
            if missing:
                data, made_of = run.data(name), run.made_of(name)
                for seed in missing:
                    run_cell(run, data, seed, made_of, wait=run.folder.cell(name, seed).finished)
        if kept:
            print(f"{run.folder.path}: {kept} finished cells are kept", file=sys.stderr, flush=True)
        _replace_cells(run, seeds)
        return Trained(write_results(run, seeds, record=True), run.notes)


def _replace_cells(run: Run, seeds: Sequence[int]) -> None:
    """Move whole cells that waited for each other to their places."""
    cells = [run.folder.cell(name, seed) for name in run.normals for seed in seeds]
    waiting = [cell for cell in cells if cell.partial.finished]
    if waiting:
        # It tells of the old ones: a run that is killed now must leave no results of other cells than there are.
        run.folder.results.unlink(missing_ok=True)
    for cell in waiting:
        cell.partial.take_place_of(cell)


def refuse_other_cells(run: Run, seeds: Sequence[int], fix: str) -> None:
    """UserError, with the fix, where a cell of an examined run is there, or was begun, and is made of something else.

    Also where the result of a finished one is damaged.
    """
    differing = []
    for name in run.normals:
        made_of = run.made_of(name)
        for seed in seeds:
            cell = run.folder.cell(name, seed)
            if cell.finished:
                cell.read(run.cache.dataset)
            begun = [folder for folder in (cell, cell.partial) if folder.finished or folder.made_of.exists()]
            found = [(folder.path, changes) for folder in begun if (changes := folder.changes(made_of))]
            differing += [f"{path} was made otherwise ({'; '.join(changes)})" for path, changes in found]
    if differing:
        more = f", and {len(differing) - 1} other cells" if len(differing) > 1 else ""
        raise UserError(f"{differing[0]}{more}: {fix}")


def run_cell(run: Run, data: CategoryData, seed: int, made_of: MadeOf, *, wait: bool = False) -> None:
    """Make one cell beside its place, and move it there; it stays beside where it is to wait.

    data: of the run's category, or of another run's with the same cache and images. A finished cell is not made again
    unless the new one is to wait.
    """
    cell = run.folder.cell(data.category.name, seed)
    if cell.finished and not wait:
        return
    make_cell(run.settings, run.cache.dataset, data, seed, made_of, cell.partial)
    if not wait:
        cell.partial.take_place_of(cell)


def write_results(run: Run, seeds: Sequence[int], *, record: bool) -> list[CellResult]:
    """Write `results.json` of a run whose cells are all finished, and return their results.

    record: write the settings file that makes the run again by `train`, as well.
    """
    cells = [run.folder.cell(name, seed).read(run.cache.dataset) for name in run.normals for seed in seeds]
    cache = {"store": run.cache.store, "cache": run.cache.settings.to_attributes()}
    summary = summarise(cells, {**asdict(run.settings), "seeds": seeds, **cache})
    write_json(run.folder.results, {**summary, "notes": [note.value() for note in run.notes]})
    if record and isinstance(run.settings, TrainSettings):
        place: dict[str, object] = {"store": absolute(run.cache.store), "category": list(run.normals)}
        place |= {"root": run.image_root, "seed": list(seeds), "out": absolute(str(run.folder.path))}
        write_text(run.folder.asked, as_toml(place | asked(run.settings)))
    return cells
