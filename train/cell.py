"""One cell: a detector of a category, made with one arm and seed, and scored on the test images."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import numpy as np

from pipeline.backbones.inference import for_inference
from pipeline.backbones.load import Backbone
from pipeline.progress import progress
from pipeline.threads import torch_threads
from pipeline.views.drawing import try_to_draw
from train.calibration import Unseen, calibrate
from train.category_data import CategoryData, fit_all
from train.cell_folder import CellFolder
from train.detector import DIGITS, Detector
from train.evaluate import Evaluation, evaluate
from train.evaluation.cell_result import CellResult
from train.features.extract import Images, as_it_is
from train.finetune import finetune
from train.frames import Frames
from train.localiser.fit import fit_localiser
from train.localiser.network import Localiser
from train.made_of import MadeOf
from train.recipe import Recipe, recipe_of
from train.scorers.fit import OfNormals
from train.scorers.fitted import Fitted, join
from train.settings import FinetuneSettings, Settings, TrainSettings
from train.split import Split
from train.threshold import rounded


def make_cell(
    settings: Settings, dataset: str, data: CategoryData, seed: int, made_of: MadeOf, folder: CellFolder
) -> None:
    """Make one category's detector with one seed in a folder, score its test images and write the results.

    A cell that was begun there and is made of the same goes on, and a whole one stays; anything else there goes.
    """
    folder.begin(made_of)
    if folder.finished:
        return
    # One torch thread here, and one in each of those that images are spread over: no sum depends on how many there are.
    with torch_threads(1):
        detector = _make_detector(settings, data, seed, folder)
        detector.save(folder.detector)
        counts = len(data.rows), len(data.tests)
        rests_on = detector.calibration.false_positives
        result = CellResult(dataset, data.category.name, seed, *counts, detector.threshold, false_positives=rests_on)
        if len(data.tests):
            found = evaluate(detector, data.tests)
            told = np.array([rounded(score) for score in found.decision_scores.tolist()])
            folder.write_scores(data.tests.samples, told, found.scores.image)
            _draw(data, found, detector.threshold, folder)
            result = replace(
                result,
                metrics=found.metrics,
                scorers=found.scorers,
                by_defect=found.by_defect,
                n_normal=found.n_normal,
                n_flagged_normal=found.n_flagged_normal,
            )
        folder.write(result)


def _draw(data: CategoryData, found: Evaluation, threshold: float, folder: CellFolder) -> None:
    def scores() -> None:
        from train.views.plots import plot_scores  # here: matplotlib starts in the style of `try_to_draw`

        plot_scores(folder.scores_plot, data.tests.labels, found.decision_scores, threshold, data.category.name)

    def maps() -> None:
        from train.views.plots import plot_maps

        plot_maps(folder.maps_plot, data.tests, found, threshold)

    try_to_draw(scores, folder.scores_plot)
    try_to_draw(maps, folder.maps_plot)


def _make_detector(settings: Settings, data: CategoryData, seed: int, cell: CellFolder) -> Detector:
    recipe, split = recipe_of(data.settings.backbone, settings), data.split(settings)
    of_normals = data.of_normals(recipe, split.folds, seed)
    localiser, finetuned = _learned(settings, data, recipe, split, seed, cell)
    if finetuned is not None:
        # Only the Gaussian is wanted: the references stay those of the pretrained backbone.
        only = replace(recipe, reference_candidates=1, most_references=1)
        again = fit_all(finetuned, only, data.normals, split.folds, seed)
        of_normals = [replace(one, gaussian=of.gaussian) for one, of in zip(of_normals, again, strict=True)]

    def fitted_to(normals: OfNormals) -> Fitted:
        name = "gaussian" if finetuned is None else "finetuned"
        scorers = {} if normals.gaussian is None else {name: normals.gaussian}
        return Fitted(recipe, data.pretrained, scorers, normals.projection, normals.references, localiser, finetuned)

    fitted, *without = map(fitted_to, of_normals)
    scored = zip(without, split.folds, strict=True)
    found = join(one for fold, places in scored for one in fold.each(data.images(places), as_it_is))
    order = np.concatenate(split.folds)
    normals = Unseen(found, ~split.held_out[order], split.parts[order])
    negatives: Images = ()
    if localiser is not None and isinstance(settings, TrainSettings):
        negatives = data.negatives(np.flatnonzero(split.held_out), settings.negatives, seed)
    of_negatives = fitted.each(negatives, as_it_is)
    calibration, scores = calibrate(recipe, normals, of_negatives, data.settings.image_size, settings.false_alarms)
    cell.write_normals([data.paths[place] for place in order], scores)
    frames = Frames.of(data.normals, data.category.sizes)
    trained_on = frozenset(digest[:DIGITS] for digest in data.digests)
    made = asdict(settings), data.plain.state_dict(), fitted, calibration
    return Detector(data.settings, data.category.levels, *made, frames, trained_on)


def _learned(
    settings: Settings, data: CategoryData, recipe: Recipe, split: Split, seed: int, cell: CellFolder
) -> tuple[Localiser | None, Backbone | None]:
    """The localiser and the finetuned backbone that an arm learns from the normals that are not held out, if any."""
    stream, what = data.stream(np.flatnonzero(~split.held_out)), f"{data.category.name} seed {seed}"
    if isinstance(settings, TrainSettings) and settings.trains:
        with progress(f"localiser {what}", settings.steps, "steps") as advance:
            return fit_localiser(data.pretrained, stream, settings, seed, cell, advance), None
    if isinstance(settings, FinetuneSettings):
        trained = copy.deepcopy(data.plain).to(data.device)
        with progress(f"finetune {what}", settings.steps, "steps") as advance:
            finetune(trained, recipe, stream, settings, seed, cell, advance)
        return None, for_inference(trained)
    return None, None
