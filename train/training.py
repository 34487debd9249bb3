"""Train, fit and score one detector per category and seed, and write the results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pipeline.data.census import Note
from pipeline.data.listing import absolute
from pipeline.errors import UserError
from pipeline.files import write_json, write_text
from pipeline.setting import as_toml, asked
from train.category_data import CategoryData
from train.cell import make_cell
from train.evaluation.cell_result import CellResult
from train.evaluation.results import summarise
from train.made_of import MadeOf
from train.run import Run, examined_run
from train.settings import TrainSettings

# Changes that a line names; the others are counted.
_TOLD = 5


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
        if overwrite:
            _replace_cells(run, seeds)
        return Trained(write_results(run, seeds, record=True), run.notes)


def _replace_cells(run: Run, seeds: Sequence[int]) -> None:
    """Move whole cells that waited for each other to their places."""
    cells = [run.folder.cell(name, seed) for name in run.normals for seed in seeds]
    if waiting := [cell for cell in cells if cell.partial.finished]:
        # It tells of the old ones: a run that is killed now must leave no results of other cells than there are.
        run.folder.results.unlink(missing_ok=True)
    for cell in waiting:
        cell.partial.take_place_of(cell)


def refuse_other_cells(run: Run, seeds: Sequence[int], fix: str) -> None:
    """UserError, with the fix, where a cell of an examined run is there, or was begun, and is made of something else.

    Also where a finished one is damaged. What was begun beside a finished one does not matter.
    """
    differing = []
    for name in run.normals:
        made_of = run.made_of(name)
        for seed in seeds:
            cell = run.folder.cell(name, seed)
            folder = cell if cell.finished else cell.partial
            if not (folder.finished or folder.made_of.exists()):
                continue
            if changes := folder.changes(made_of.of_seed(seed)):
                more = f"; and {len(changes) - _TOLD} more" if len(changes) > _TOLD else ""
                differing.append(f"{folder.path} was made otherwise ({'; '.join(changes[:_TOLD])}{more})")
            elif folder.finished:
                folder.refuse_damage(run.cache.dataset)
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
    make_cell(run.settings, run.cache.dataset, data, seed, made_of.of_seed(seed), cell.partial)
    if not run.normals[data.category.name].holds(data.category):
        raise UserError(
            f"{run.cache.store}: the images of {data.category.name} changed while it was trained on: run the command"
            " again"
        )
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
        place |= {"exclude": None if run.exclude is None else absolute(str(run.exclude))}
        place |= {"bad-images": run.execution.bad_images, "max-pixels": run.execution.max_pixels}
        write_text(run.folder.asked, as_toml(place | asked(run.settings)))
    return cells
