import csv
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import Result
from conftest import REPO, RunCli, SmallCache, invoke

import train.category_data
import train.evaluation.test_set
from pipeline.cache.cache import open_cache
from pipeline.data.images import decode_rgb
from pipeline.errors import UserError
from pipeline.setting import split
from pipeline.workers.execution import Execution
from train.benchmark.arms import Benchmark
from train.benchmark.cells import Task, compute_cell
from train.benchmark.comparison import read_rows
from train.benchmark.run import ensure_cache, run_benchmark
from train.evaluation.cell_result import CellResult
from train.made_of import MadeOf
from train.settings import ARMS, BenchmarkSettings, FinetuneSettings, PatchCoreSettings, TrainSettings


@dataclass(frozen=True)
class Finished:
    """A quick benchmark of poly, two seeds, what it returned, and how often it called what its cells share."""

    asked: Benchmark
    arms: dict[str, list[CellResult]]
    calls: dict[str, int]


HERE = Execution("threads", device="cpu")


def asked_of(cache: SmallCache, out: Path, arms: str = "untrained,cutswap,patchcore") -> Benchmark:
    return Benchmark(
        dataset="folder",
        store=cache.store,
        out=out,
        asked=BenchmarkSettings(tuple(arms.split(",")), seeds=2, quick=True),
        execution=HERE,
        categories=("poly",),
        command="python cli.py benchmark --quick",
    )


@pytest.fixture(scope="module")
def finished(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    asked = asked_of(small_cache, tmp_path_factory.mktemp("benchmark") / "out")
    calls: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (train.evaluation.test_set, "decode_rgb"),
            (train.category_data, "load_backbone"),
            (train.category_data, "fit_all"),
        ):
            patch.setattr(module, name, partial(counted, calls, name, getattr(module, name)))
        return Finished(asked, run_benchmark(asked).arms, calls)


def counted(calls: dict[str, int], name: str, function: Callable[..., object], *args: object) -> object:
    calls[name] = calls.get(name, 0) + 1
    return function(*args)


def changes(folder: Path, pattern: str) -> dict[str, int]:
    files = (file for file in folder.glob(pattern) if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and all(word in line for word in words), line


# --- arms ---------------------------------------------------------------------------------------------------------


def test_trained_arms_differ_in_their_negatives_alone() -> None:
    asked = Benchmark("folder", "store", Path("out"), BenchmarkSettings(ARMS), HERE)
    negatives = ("cutswap", "random-swap", "cutpaste", "cutpaste-scar", "cutpaste-3way", "mix")
    assert ("untrained", *negatives, "finetuned", "patchcore", "patchcore-whitened") == ARMS
    for arm in negatives:
        assert asked.settings(arm) == replace(TrainSettings(), negatives=arm)
    assert asked.settings("untrained") == replace(TrainSettings(), negatives="none")
    assert asked.settings("finetuned") == FinetuneSettings()
    assert asked.settings("patchcore") == PatchCoreSettings()
    assert asked.settings("patchcore-whitened") == PatchCoreSettings(coreset=0.02, whitened=True)
    shared = {(asked.settings(arm).held_out, asked.settings(arm).false_alarms) for arm in ARMS}
    assert shared == {(TrainSettings().held_out, TrainSettings().false_alarms)}


def test_a_quick_look_trains_a_few_steps() -> None:
    asked = Benchmark("folder", "store", Path("out"), BenchmarkSettings(ARMS, quick=True), HERE)
    for arm, whole in (("mix", TrainSettings(negatives="mix")), ("finetuned", FinetuneSettings())):
        found = asked.settings(arm)
        assert not isinstance(found, PatchCoreSettings) and 0 < found.steps < 10
        assert replace(found, steps=whole.steps) == whole


def test_arms_are_read_once_each_and_unknown_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split(["patchcore, cutswap", "patchcore,"]) == ("patchcore", "cutswap")
    monkeypatch.chdir(tmp_path)
    result = invoke("benchmark", "--dataset", "folder", "--arms", "cutswap,pathcore")
    assert_one_line(result, "--arms pathcore is out of range", "untrained or cutswap")
    assert_one_line(invoke("benchmark", "--dataset", "folder", "--arms", " ,"), "' ,' names nothing")


# --- what is written ----------------------------------------------------------------------------------------------


def test_a_row_a_cell(finished: Finished) -> None:
    with (finished.asked.out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["category"], row["arm"], row["seed"]) for row in rows] == [
        ("poly", arm, seed) for arm in finished.asked.asked.arms for seed in "01"
    ]
    for row in rows:
        cell = json.loads((finished.asked.out / row["arm"] / f"poly/seed-{row['seed']}/cell.json").read_text())
        assert float(row["image_auroc"]) == cell["image_auroc"] and (row["n_train"], row["n_test"]) == ("5", "7")
        assert finished.arms[row["arm"]][int(row["seed"])].metrics["image_auroc"] == cell["image_auroc"]
    assert read_rows(finished.asked.out / "results.csv") == finished.arms


def test_what_cells_share_is_computed_once(finished: Finished) -> None:
    # What is fitted to the normals serves the untrained arm and the trained one. Images are also read before all.
    images, seeds, trained, patchcore = 7, 2, 1, 1
    assert finished.calls == {
        "decode_rgb": 2 * images,
        "load_backbone": 1,
        "fit_all": seeds * (trained + patchcore),
    }


@pytest.mark.slow
def test_what_cells_share_is_read_again_by_the_next_run(
    small_cache: SmallCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, calls = asked_of(small_cache, tmp_path, "untrained"), dict[str, int]()
    read = partial(counted, calls, "decode_rgb", decode_rgb)
    monkeypatch.setattr(train.evaluation.test_set, "decode_rgb", read)
    images = 7
    for seed, run_id, decoded in ((0, "run", images), (1, "run", images), (2, "next run", 2 * images)):
        assert not compute_cell(asked, Task(run_id, "poly", "untrained", seed, MadeOf({}, {}), frozenset()))
        assert calls["decode_rgb"] == decoded


def test_an_arm_has_a_run_folder_as_train_writes_it(finished: Finished) -> None:
    for arm in finished.asked.asked.arms:
        results = json.loads((finished.asked.out / arm / "results.json").read_text())
        assert results["settings"]["seeds"] == [0, 1] and results["dataset"] == "folder"
        assert {"cell.json", "scores.csv", "scores.png", "maps.png"} <= {
            path.name for path in (finished.asked.out / arm / "poly/seed-1").iterdir()
        }
    assert (finished.asked.out / "cutswap/poly/seed-0/detector.pt").is_file()


def test_the_report_says_what_on_what_and_that_a_quick_look_is_none(finished: Finished) -> None:
    text = (finished.asked.out / "results.md").read_text()
    assert text.startswith("## folder\n\n**QUICK LOOK, no measurement")
    assert "    python cli.py benchmark --quick" in text and "CPU cores" in text and "torch 2" in text
    assert "Image size 64, backbone efficientnet_lite0; seeds 0, 1; poly 5 normals, 7 test images." in text
    assert "| category | untrained | cutswap | patchcore |" in text and "AUPRO" not in text
    for name in ("bars.png", "roc.png", "histograms.png"):
        assert (finished.asked.out / name).stat().st_size > 5000


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`docs/build.py`, working on an empty copy of the repository."""
    spec = importlib.util.spec_from_file_location("build", REPO / "docs/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    return module


def test_the_docs_are_assembled_from_benchmarks_but_not_from_quick_looks(
    finished: Finished, build: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "runs/benchmark/folder"
    shutil.copytree(finished.asked.out, folder)
    with pytest.raises(SystemExit, match=r"run `cli\.py benchmark` first"):
        build.main()
    report = (folder / "results.md").read_text().replace("QUICK LOOK", "whole")
    (folder / "results.md").write_text(report)
    build.main()
    text = (tmp_path / "docs/results.md").read_text()
    assert text.startswith("# Results") and report in text
    auroc = next(line for line in report.splitlines() if line.startswith("| poly"))
    assert text.index("## All data sets") < text.index(auroc) < text.index("## folder") < text.rindex(auroc)
    assert f"## Maps of {finished.asked.store}" in text and "| poly | blocks.1 |" in text


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_cell_is_read_back(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.asked.out, out)
    (out / "cutswap/poly/seed-1/cell.json").unlink()
    before = changes(out, "*/poly/seed-*/*")
    assert run_benchmark(replace(finished.asked, out=out)).arms == finished.arms
    changed = {name for name, when in changes(out, "*/poly/seed-*/*").items() if when != before.get(name)}
    assert changed and all(name.startswith("cutswap/poly/seed-1/") for name in changed)


@pytest.mark.slow
def test_more_seeds_and_arms_join_what_is_there(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.asked.out, out)
    before = changes(out, "*/poly/seed-*/cell.json")
    more = replace(finished.asked, out=out, asked=BenchmarkSettings(("untrained", "cutpaste-scar"), 1, quick=True))
    arms = run_benchmark(more).arms
    assert list(arms) == ["untrained", "cutpaste-scar"] and all(len(cells) == 1 for cells in arms.values())
    assert arms["untrained"] == finished.arms["untrained"][:1]
    after = changes(out, "*/poly/seed-*/cell.json")
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 1


def test_cells_made_with_other_settings_are_refused(finished: Finished) -> None:
    before = changes(finished.asked.out, "**/*")
    with pytest.raises(UserError, match=r"train\.steps: 1200 now, 5 then") as caught:
        run_benchmark(replace(finished.asked, asked=BenchmarkSettings(("cutswap",), 2)))
    assert "--out" in str(caught.value) and "\n" not in str(caught.value)
    assert changes(finished.asked.out, "**/*") == before


def test_without_test_images_nothing_is_drawn_and_no_figure_is_told_of(plain_cache: SmallCache, tmp_path: Path) -> None:
    given = ("--dataset", "folder", "--store", plain_cache.store, "--arms", "untrained", "--seeds", 1)
    result = invoke("benchmark", *given, "--scheduler", "threads", "--device", "cpu", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "There are no test images: no metric can be computed (pictures).",
        f"{tmp_path / 'out'}: results.csv, results.md; a run folder per arm",
    ]
    assert not [*tmp_path.glob("out/*.png")]


# --- the cache ----------------------------------------------------------------------------------------------------


def test_a_cache_is_made_once_and_finished_with_its_own_settings(image_root: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "cache.zarr")
    asked = Benchmark(
        "folder", store, tmp_path, BenchmarkSettings(("untrained",), 1, 32), HERE, ("poly",), str(image_root)
    )
    ensure_cache(asked)
    cache = open_cache(store)
    assert cache.complete and cache.names() == ["poly"] and cache.settings.image_size == 32
    when = changes(tmp_path, "cache.zarr/**/*")
    ensure_cache(replace(asked, categories=(), asked=BenchmarkSettings(), image_root="nowhere"))
    assert changes(tmp_path, "cache.zarr/**/*") == when
    # Another category joins with the settings of the cache, a few of its images only for a quick look.
    ensure_cache(replace(asked, categories=("mono",), asked=BenchmarkSettings(quick=True)))
    assert open_cache(store).settings.image_size == 32
    assert len(open_cache(store)["mono"].read("paths")) == 64


def test_a_cache_of_something_else_is_refused(small_cache: SmallCache, tmp_path: Path) -> None:
    given = ["--store", small_cache.store, "--out", tmp_path / "out"]
    assert_one_line(invoke("benchmark", "--dataset", "mvtec", *given), "cache of folder, not of mvtec", "--store")
    assert_one_line(
        invoke("benchmark", "--dataset", "folder", "--image-size", 128, *given), "64 pixels, not 128", "--image-size"
    )
    assert_one_line(invoke("benchmark", "--dataset", "folder", "--arms", "cutswop", *given), "cutswop", "cutswap")
    assert_one_line(invoke("benchmark", "--dataset", "folder", "--scheduler", "fibres", *given), "fibres", "processes")
    more = ["--root", small_cache.root, "--category", "polly"]
    assert_one_line(invoke("benchmark", "--dataset", "folder", *more, *given), "polly", "mono, poly")
    assert not (tmp_path / "out").exists()


# --- as a user runs it --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_from_a_folder_of_images_to_a_table(image_root: Path, run_cli: RunCli, tmp_path: Path) -> None:
    given = ["--dataset", "folder", "--root", image_root, "--quick", "--arms", "cutpaste-3way,patchcore"]
    workers = ["--image-size", 64, "--scheduler", "processes", "--workers", 2, "--device", "cpu"]
    done = run_cli("benchmark", *given, *workers)
    assert done.returncode == 0, done.stderr
    out = tmp_path / f"working-directory/runs/benchmark/{image_root.name}-quick"
    with (out / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["category"], line["arm"]) for line in table] == [
        (category, arm) for arm in ("cutpaste-3way", "patchcore") for category in ("mono", "poly")
    ]
    assert "QUICK LOOK" in done.stdout and "patchcore" in done.stdout
    assert f"{100 * float(table[0]['image_auroc']):.2f}" in done.stdout
    assert "benchmark: 4/4 cells" in done.stderr and "train mono" not in done.stderr
    told = "--arms cutpaste-3way --arms patchcore --image-size 64"
    command = f"python cli.py benchmark --dataset folder --root {image_root} {told}"
    assert command in (out / "results.md").read_text()


@pytest.mark.slow
def test_a_bad_test_image_is_one_line_before_anything_is_computed(
    small_cache: SmallCache, run_cli: RunCli, tmp_path: Path
) -> None:
    root = tmp_path / "cells"
    shutil.copytree(small_cache.root, root)
    (root / "poly/test/good/002.png").write_text("no image")
    given = ["--dataset", "folder", "--store", small_cache.store, "--root", root, "--arms", "untrained"]
    failed = run_cli("benchmark", *given, "--quick", "--scheduler", "processes", "--device", "cpu")
    assert failed.returncode == 2 and "Traceback" not in failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("Error: ")]
    assert str(root / "poly/test/good/002.png") in line and "--bad-images skip" in line
