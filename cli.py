"""The command line: `python cli.py COMMAND` from the checkout and `cutswap COMMAND` are the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

import click

import pipeline as pipeline  # first: repairs torchvision where its compiled part does not fit torch
from pipeline.ending import end_at_signals

if __name__ == "__main__" or Path(sys.argv[0]).stem == "cutswap":  # not where tests or other programs import it
    end_at_signals()  # before what takes long to import

from pipeline.commands import Commands, renamed
from pipeline.data.datasets import DATASETS
from pipeline.errors import UserError
from pipeline.memory import keep_memory
from pipeline.options import numbers, one_each, options_of, store_option, typed
from pipeline.path_types import LocalPath, Place
from pipeline.settings import PrecomputeSettings
from pipeline.settings_file import settings_file
from pipeline.surroundings import settle
from pipeline.threads import sleep_while_waiting
from pipeline.views.console import console, print_known, print_notes
from pipeline.workers.execution import Execution
from train.deploy.commands import calibrate, export_model, predict
from train.settings import BenchmarkSettings, TrainSettings

DATASET = click.option("--dataset", type=click.Choice(DATASETS), required=True, help="The data set.")
ROOT = click.option(
    "--root", metavar="DIR|URL", type=Place(), help="The folder of the data set; default data/<dataset>."
)
STORE = store_option("The cache; default the only one in data/cache.")
CATEGORY = click.option("--category", "categories", multiple=True, metavar="A,B,..", help="Categories; default all.")
COMPARING = ("scheduler", "workers", "device", "bad_images", "max_pixels")
CHUNKS_KEPT = "Stopped: finished chunks are kept; run the same command, without --overwrite, to continue."
CELLS_KEPT = "Stopped: finished cells and checkpoints (every 50 steps) are kept; run the same command to continue."


@click.group(cls=Commands, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cutswap")
def main() -> None:
    """Saliency-guided CutSwap negatives from normal images, and an anomaly detector trained on them."""
    settle()
    sleep_while_waiting()  # before torch is imported
    keep_memory()


@main.command()
@DATASET
@ROOT
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def datasets(dataset: str, root: str | None, as_json: bool) -> None:
    """List what a data set holds against its published counts, and what else lies in its folder."""
    from pipeline.data.counts import compare_counts
    from pipeline.views.tables import counts_table

    counted = compare_counts(dataset, root)
    if as_json:
        click.echo(json.dumps(counted.value(), indent=2))
        return
    console().print(counts_table(counted.rows))
    print_notes(counted.left_out, "left out", stderr=False)


@main.command(context_settings=renamed(batch_size="gpu_batch", report="dask_report"), epilog=CHUNKS_KEPT)
@click.option("--dataset", "datasets", type=click.Choice(DATASETS), multiple=True, required=True, help="Data sets.")
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="DIR|URL",
    type=Place(),
    help="The folder of a data set, one per --dataset; default data/<dataset>, for elpv its package.",
)
@CATEGORY
@click.option(
    "--store",
    "stores",
    multiple=True,
    metavar="PATH|URL",
    type=Place(),
    help="A cache for each --dataset; default data/cache/<name of its folder>.zarr.",
)
@options_of(PrecomputeSettings, "settings")
@options_of(Execution, "execution")
@click.option("--overwrite", is_flag=True, help="Compute the categories again from the start.")
@click.option("--update", is_flag=True, help="Read every file: drop vanished images, compute changed ones again.")
@settings_file
def precompute(
    datasets: Sequence[str],
    roots: Sequence[str],
    categories: Sequence[str],
    stores: Sequence[str],
    settings: PrecomputeSettings,
    execution: Execution,
    overwrite: bool,
    update: bool,
) -> None:
    """Write the saliency maps, clusters and patch pairs of normal images to a cache.

    Several data sets share one run; each must have one of the categories asked for.
    """
    from pipeline.cache.places import cache_of
    from pipeline.data.datasets import load_several
    from pipeline.precompute import precompute as run
    from pipeline.views.tables import work_table

    places = list(zip(datasets, one_each("--root", roots, datasets), strict=True))
    given = one_each("--store", stores, datasets)
    stores = [store or cache_of(*place) for store, place in zip(given, places, strict=True)]
    works = list(zip(load_several(places, categories), stores, strict=True))
    result = run(works, settings, execution, overwrite=overwrite, update=update)
    if result.tasks:
        console(stderr=True).print(work_table(result))
    elif execution.dask_report is not None:
        click.echo(f"{execution.dask_report} is not written: there was nothing to compute", err=True)
    for (found, store), cache in zip(works, result.caches, strict=True):
        print_notes([*found.census, *cache.notes], f"{found.name}: taken and left out")
        for line in cache.bad:
            click.echo(f"skipped: {line}", err=True)
        click.echo(f"{store}: {cache.images} images, {cache.computed} computed now, {len(cache.bad)} skipped")


@main.command(context_settings=renamed(false_alarms="false_positive_rate"), epilog=CELLS_KEPT)
@STORE
@CATEGORY
@click.option(
    "--root", metavar="DIR|URL", type=Place(), help="The folder of the test images, if precompute found them elsewhere."
)
@click.option("--out", type=LocalPath(), help="The run folder; default runs/<name of the root>.")
@options_of(TrainSettings, "settings")
@click.option(
    "--exclude", type=LocalPath(exists=True, dir_okay=False), help="A list of normals to leave out, a path per line."
)
@click.option(
    "--seed", "seeds", multiple=True, default=("0",), callback=numbers, metavar="0,1,..", help="One detector per seed."
)
@options_of(Execution, "execution", only=("device", "bad_images", "max_pixels"))
@click.option("--overwrite", is_flag=True, help="Make every detector again; old ones stay until all are whole.")
@click.option("--resume", is_flag=True, hidden=True, expose_value=False)  # what it asked for is always done
@settings_file
def train(
    store: str | None,
    categories: Sequence[str],
    root: str | None,
    out: Path | None,
    settings: TrainSettings,
    exclude: Path | None,
    seeds: Sequence[int],
    execution: Execution,
    overwrite: bool,
) -> None:
    """Train a detector per category and seed on the cache's negatives, and score the test images.

    The same command continues a stopped run, and keeps what is finished.
    """
    from pipeline.cache.cache import default_store, open_cache
    from pipeline.cache.places import runs_of
    from train.cell_folder import files_in
    from train.evaluation.confusion import confusion_table
    from train.evaluation.results import results_table
    from train.outcome import outcome_lines
    from train.run import open_run
    from train.training import train as run

    store = store or default_store()
    cache = open_cache(store)
    folder = out or runs_of(cache.dataset, cache.image_root)
    asked = open_run(
        store, folder, settings, categories=categories, execution=execution, image_root=root, exclude=exclude
    )
    trained = run(asked, seeds, overwrite=overwrite)
    print_known(trained.notes)
    for table in (results_table(trained.cells), confusion_table(trained.cells)):
        if table is not None:
            console().print(table)
    cells = [(asked.folder.cell(cell.category, cell.seed), cell) for cell in trained.cells]
    click.echo(f"{asked.folder.results}; per category and seed: {files_in([folder for folder, _ in cells])}")
    for line in outcome_lines(cells, settings.false_alarms):
        click.echo(line)
    click.echo(f"Next: cutswap predict {quote(str(asked.folder.path))} IMAGES")


@main.command(epilog="Stopped: finished chunks and cells are kept; run the same command to continue.")
@DATASET
@ROOT
@CATEGORY
@store_option("The cache; default data/cache/<name of the root>.zarr; made if not there.")
@click.option("--out", type=LocalPath(), help="For the results; default runs/benchmark/<name of the root>[-quick].")
@options_of(BenchmarkSettings, "asked")
@options_of(
    Execution, "execution", only=("scheduler", "workers", "device", "bad_images", "max_pixels"), scheduler="processes"
)
@settings_file
@click.pass_context
def benchmark(
    context: click.Context,
    dataset: str,
    root: str | None,
    categories: Sequence[str],
    store: str | None,
    out: Path | None,
    asked: BenchmarkSettings,
    execution: Execution,
) -> None:
    """Train every category with every arm and seed, and compare; the same command continues a stopped benchmark.

    A task is a cell: one category, arm and seed. --scheduler threads runs one cell at a time, on all cores.
    """
    from pipeline.cache.places import cache_of, name_of
    from train.benchmark.arms import Benchmark
    from train.benchmark.comparison import FIGURES, comparison_tables
    from train.benchmark.run import run_benchmark

    name = name_of(dataset, root)
    folder = out or Path("runs/benchmark", f"{name}-quick" if asked.quick else name)
    # A quick look has its own cache, with few normals.
    store = store or (str(folder / "cache.zarr") if asked.quick else cache_of(dataset, root))
    whole = Benchmark(dataset, store, folder, asked, execution, tuple(categories), root, typed(context))
    compared = run_benchmark(whole)
    print_known(compared.notes)
    for table in comparison_tables(compared.arms, ": ".join(filter(None, (dataset, whole.note)))):
        console().print(table)
    figures = [name for name in FIGURES if (folder / name).exists()]
    click.echo(f"{folder}: {', '.join(('results.csv', 'results.md', *figures))}; a run folder per arm")


main.add_command(predict)
main.add_command(calibrate)


@main.command(epilog="Stopped: the cache and an earlier gallery stay as they were.")
@STORE
@CATEGORY
@click.option("--image", metavar="ID", help="Draw one image as <category>-<name>.png, in the --html folder if given.")
@click.option("--html", "folder", type=LocalPath(file_okay=False), metavar="DIR", help="Gallery DIR/index.html.")
@click.option("--verify", is_flag=True, help="Check chunks, arrays and source images; exit 1 with a line per problem.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary, and with --verify the problems, as JSON.")
def inspect(
    store: str | None, categories: Sequence[str], image: str | None, folder: Path | None, verify: bool, as_json: bool
) -> None:
    """Show what the cache at STORE holds, and the settings file that makes it again.

    For a run folder it prints only the settings file. The ID of --image is a relative path, a row number, or a part of
    one path.
    """
    from pipeline.cache.cache import default_store
    from train.run_folder import RunFolder

    store = store or default_store()
    if (run := RunFolder(Path(store))).exists:
        if any((categories, image, folder, verify, as_json)):
            raise UserError(f"{run.path} is a run folder: `inspect` takes no options for it")
        click.echo(run.settings_text(), nl=False)
        return
    if image is not None or folder is not None:
        from pipeline.views.drawing import own_style

        with own_style():
            from pipeline.views.figures import draw_image
            from pipeline.views.gallery import write_gallery

            if image is not None:
                click.echo(draw_image(store, image, categories, folder or Path()), err=as_json)
            if folder is not None:
                click.echo(write_gallery(store, folder, categories), err=as_json)
    if as_json:
        from pipeline.cache.verify import inspection_value

        value = inspection_value(store, categories, verify=verify)
        click.echo(json.dumps(value, indent=2))
        sys.exit(int(verify and bool(value["verify"]["problems"])))
    if verify:
        from pipeline.cache.verify import verify_cache

        verdict = verify_cache(store, categories)
        for path in verdict.skipped:
            click.echo(f"skipped: {path}", err=True)
        for line in verdict.problems:
            click.echo(line)
        counts = f"{verdict.images} images checked, {len(verdict.skipped)} skipped"
        click.echo(f"{store}: {counts}, problems: {len(verdict.problems) or 'none'}")
        sys.exit(int(bool(verdict.problems)))
    if image is None and folder is None:
        from pipeline.cache.summary import summarise
        from pipeline.views.tables import cache_table, settings_text, stage_table

        summary = summarise(store, categories)
        console().print(cache_table(summary), stage_table(summary))
        click.echo(settings_text(summary), nl=False)


@main.group()
def export() -> None:
    """Write negatives or a detector for use without this package."""


@export.command("negatives", epilog="Stopped: an earlier export stays as it was.")
@STORE
@CATEGORY
@click.option("--out", type=LocalPath(file_okay=False), default=Path("negatives"), help="Folder for the negatives.")
@click.option("--per-stage", type=click.IntRange(1, 1000), default=1, help="Negatives per image and stage.")
def export_negatives(store: str | None, categories: Sequence[str], out: Path, per_stage: int) -> None:
    """Write the negatives of the cache at STORE as PNG files, and a table of their sources."""
    from pipeline.cache.cache import default_store
    from pipeline.export.negatives import export_negatives as write

    count = write(store or default_store(), out, categories, per_stage)
    click.echo(f"{count} negatives and negatives.csv in {out}")


export.add_command(export_model)


if __name__ == "__main__":
    sys.exit(main())
