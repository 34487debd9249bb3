"""What a run of `train` is: a cache, an arm, and the normals and test images of each category."""

from __future__ import annotations

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
from pipeline.errors import UserError, one_line
from pipeline.workers.execution import Execution
from train.category_data import CategoryData
from train.evaluation.examine import Examined, examine
from train.evaluation.test_set import TestSet
from train.made_of import MadeOf
from train.recipe import recipe_of
from train.run_folder import RunFolder
from train.settings import Settings
from train.split import Normals, choose_normals


@dataclass(frozen=True)
class Run:
    """What every category and seed of a run shares.

    image_root: of the test images, absolute. normals, tests: of every category of the run. passed_over: notes of
    categories that have too few normals, and of normals left out. examined: what `examined_run` found of the test
    images, by category. exclude: the file that lists the normals left out.
    """

    cache: Cache
    image_root: str
    folder: RunFolder
    settings: Settings
    execution: Execution
    device: torch.device
    normals: Mapping[str, Normals]
    tests: Mapping[str, Category]
    passed_over: tuple[Note, ...]
    examined: Mapping[str, Examined] = field(default_factory=dict)
    exclude: Path | None = None

    @property
    def notes(self) -> list[Note]:
        """What a user should know of the data behind the results."""
        return [*self.passed_over, *(note for found in self.examined.values() for note in found.notes)]

    def made_of(self, name: str) -> MadeOf:
        """What decides the cells of a category that was examined, but for the seed."""
        category = self.cache[name]
        settings = {key: value for key, value in category.settings.to_attributes().items() if key != "weights"}
        levels = None if category.levels is None else category.levels.to_attributes()
        about = {"weights": self.cache.attributes["weights"], "folded": category.folded, "levels": levels}
        recipe = asdict(recipe_of(category.settings.backbone, self.settings))
        parts = {"train": asdict(self.settings), "recipe": recipe, "cache": {**settings, **about}}
        return MadeOf.of(parts, {"normal images": self.normals[name].files, **self.examined[name].files})

    def data(self, name: str) -> CategoryData:
        """What all cells of a category share."""
        return CategoryData(self.cache[name], self.normals[name].rows, self.test_set(name), self.device)

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
    exclude: Path | None = None,
) -> Run:
    """A run of some categories, or all, of the cache at `store`; UserError for a mistake, and nothing is written.

    image_root: where the test images lie, if they are no longer where precompute found them. The images to train on
    come only from the cache. exclude: a file that lists normals to leave out, a path per line, as `normals.csv` has
    them. execution: its device, the most pixels of a test image, and what to do with a bad one.
    """
    execution = execution or Execution()
    cache = open_cache(store)
    _refuse_other_weights(cache)
    cached = {category.name: category for category in cache.choose(categories)}
    place, on = absolute(image_root or cache.image_root), choose_device(execution.device)
    tests = {category.name: category for category in load_tests(cache.dataset, place, list(cached))}
    normals, passed_over = choose_normals(cached.values(), store, _listed(exclude), asked=bool(categories))
    return Run(cache, place, RunFolder(folder), settings, execution, on, normals, tests, passed_over, exclude=exclude)


def _listed(file: Path | None) -> frozenset[str]:
    """The lines of a file; UserError where it cannot be read."""
    if file is None:
        return frozenset()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--exclude {file} cannot be read ({one_line(error)}): give a text file, a path per line"
        ) from error
    return frozenset(line.strip() for line in lines) - {""}


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
