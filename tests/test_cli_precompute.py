import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import Result
from conftest import REPO, RunCli, SmallCache, assert_same_arrays, invoke, place, read_arrays
from PIL import Image

from cli import main
from pipeline.backbones.load import load_backbone
from pipeline.cache.cache import default_store, open_cache

TINY = ("--image-size", "64", "--pairs", "2", "--stages", "blocks.6", "--device", "cpu")
SMALL = ("--image-size", "64", "--pairs", "4", "--device", "cpu")


def precompute(store: Path | str, root: Path | str, *options: object) -> Result:
    places = {"--dataset": "folder", "--root": root, "--store": store}
    given = [part for option, value in places.items() if option not in options for part in (option, value)]
    return invoke("precompute", *given, *options)


def succeeded(result: Result) -> str:
    """The last line of standard output of a command that did its work."""
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[-1]


def mistake(result: Result) -> str:
    """The one line that a command told of a user's mistake."""
    assert result.exit_code == 2, result.output
    # Not an exception that got through to the runner: click ended the command.
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    *progress, line = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert all(other.startswith(("precompute: ", "check ")) or "now lie in" in other for other in progress)
    return line


# --- one run from end to end --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_precompute_from_end_to_end(run_cli: RunCli, small_cache: SmallCache, tmp_path: Path) -> None:
    store = tmp_path / "new" / "c.zarr"
    arguments = ("precompute", "--dataset", "folder", "--root", small_cache.root, "--store", store, *SMALL)
    first = run_cli(*arguments, "--category", "poly")
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{store}: 5 images, 5 computed now, 0 skipped\n"
    # On a pipe progress is plain lines: done of total, rate and time left.
    line, *table = first.stderr.splitlines()
    assert line.startswith("precompute: 5/5 images, ") and line.endswith(" images/s, 0 s left")
    assert table[0].strip().startswith("5 images in ")
    arrays, expected = read_arrays(store), read_arrays(small_cache.store)
    assert all((values == expected[name]).all() for name, values in arrays.items())


def test_a_second_run_of_the_same_command_and_of_another(run_cli: RunCli, copied_cache: SmallCache) -> None:
    store, root = copied_cache.store, copied_cache.root
    arguments = ("precompute", "--dataset", "folder", "--root", root, "--store", store, *SMALL)
    again = run_cli(*arguments)
    assert again.returncode == 0 and again.stderr.strip().startswith("folder: taken and left out")
    assert again.stdout == f"{store}: 72 images, 0 computed now, 0 skipped\n"

    refused = run_cli(*arguments, "--clusters", 5)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: ") and refused.stderr.count("\n") == 1
    assert "clusters: 4, not 5" in refused.stderr


def test_defaults_lie_below_the_working_directory(
    small_cache: SmallCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_cache.root, "data/folder")
    shutil.copytree(small_cache.store, "data/cache/folder.zarr")
    line = succeeded(invoke("precompute", "--dataset", "folder", *SMALL))
    assert line == "data/cache/folder.zarr: 72 images, 0 computed now, 0 skipped"
    assert default_store() == "data/cache/folder.zarr"


def test_all_categories_or_those_asked_for(copied_cache: SmallCache) -> None:
    assert "72 images, 0 computed" in succeeded(precompute(copied_cache.store, copied_cache.root, *SMALL))
    asked = ("--category", "poly", "--category", "mono")
    assert "72 images, 0 computed" in succeeded(precompute(copied_cache.store, copied_cache.root, *SMALL, *asked))
    line = mistake(precompute(copied_cache.store, copied_cache.root, *SMALL, "--category", "pony"))
    assert "pony" in line and "poly" in line


# --- going on, starting again, refusing ---------------------------------------------------------------------------


def test_a_deleted_block_comes_back(copied_cache: SmallCache, small_cache: SmallCache) -> None:
    for name in ("done", "saliency", "images"):
        shutil.rmtree(Path(copied_cache.store, "poly", name, "c"))
    line = succeeded(precompute(copied_cache.store, copied_cache.root, *SMALL))
    assert "72 images, 5 computed now" in line
    assert_same_arrays(copied_cache.store, small_cache.store)


def test_overwrite(copied_cache: SmallCache, small_cache: SmallCache) -> None:
    poly = ("--category", "poly", "--overwrite")
    assert "5 images, 5 computed now" in succeeded(precompute(copied_cache.store, copied_cache.root, *SMALL, *poly))
    assert_same_arrays(copied_cache.store, small_cache.store)
    # New settings, but mono would keep the old ones.
    line = mistake(precompute(copied_cache.store, copied_cache.root, *SMALL, "--seed", 3, *poly))
    assert "seed: 0, not 3" in line
    assert_same_arrays(copied_cache.store, small_cache.store)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--clusters", 3), "clusters: 4, not 3"),
        (("--image-size", 96), "image_size: 64, not 96"),
        (("--pairs", 5), "pairs: 4, not 5"),
        (
            ("--stages", "blocks.6,blocks.2"),
            "stages: ('blocks.1', 'blocks.2', 'blocks.4', 'blocks.6'), not ('blocks.2', 'blocks.6')",
        ),
        (("--backbone", "resnet18", "--weights", "none"), "backbone: efficientnet_lite0, not resnet18"),
        (("--resize", "pad", "--seed", 1), "resize: stretch, not pad; seed: 0, not 1"),
        (("--patch-area", 0.01, 0.02), "patch_area: (0.005, 0.05), not (0.01, 0.02)"),
        (("--patch-aspect", 0.5, 2), "patch_aspect: (0.3, 3.3), not (0.5, 2.0)"),
        (("--dataset", "mvtec"), "dataset: folder, not mvtec"),
    ],
)
def test_other_settings_are_refused_by_name(small_cache: SmallCache, options: Sequence[object], told: str) -> None:
    line = mistake(precompute(small_cache.store, small_cache.root, *SMALL, *options))
    assert told in line and small_cache.store in line and "--overwrite" in line
    assert open_cache(small_cache.store).complete is True


def test_vanished_images_are_refused_with_a_name(copied_cache: SmallCache, copied_root: Path) -> None:
    (copied_root / "poly/train/good/004.png").unlink()
    line = mistake(precompute(copied_cache.store, copied_root, *SMALL))
    assert "poly: 1 cached images have vanished" in line and "poly/train/good/004.png" in line
    assert open_cache(copied_cache.store).complete is True


def test_a_folder_that_is_no_cache_is_refused_and_untouched(image_root: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in ((), ("--overwrite",)):
        line = mistake(precompute(tmp_path, image_root, *TINY, *overwrite))
        assert f"{tmp_path} exists and is no cache" in line
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


# --- images that cannot be read -----------------------------------------------------------------------------------


def test_an_unreadable_image_stops_the_run_or_is_skipped(
    elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path: Path
) -> None:
    root, store = tmp_path / "cells", tmp_path / "c.zarr"
    place(root, "poly/train/good", elpv["poly"][0][:3])[1].write_text("no image")
    line = mistake(precompute(store, root, *TINY))
    assert "poly/train/good/001.png" in line and "--bad-images skip" in line
    assert read_arrays(store)["poly/done"].tolist() == [0]

    result = precompute(store, root, *TINY, "--bad-images", "skip")
    assert succeeded(result) == f"{store}: 3 images, 2 computed now, 1 skipped"
    assert [line for line in result.stderr.splitlines() if line.startswith("skipped: ") and "001.png" in line]
    arrays = read_arrays(store)
    assert arrays["poly/done"].tolist() == [1] and arrays["poly/valid"].tolist() == [1, 0, 1]


def test_what_inspect_prints_makes_the_cache_again(copied_cache: SmallCache, tmp_path: Path) -> None:
    lines = invoke("inspect", copied_cache.store).stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("dataset = "))
    settings = "\n".join(lines[first:]).replace(copied_cache.store, str(tmp_path / "again.zarr"))
    (tmp_path / "settings.toml").write_text(settings)
    result = invoke("precompute", "--settings", tmp_path / "settings.toml", "--device", "cpu")
    assert "72 images, 72 computed now" in succeeded(result)
    assert_same_arrays(copied_cache.store, tmp_path / "again.zarr")


def test_the_file_names_the_categories_and_paths_hold_from_anywhere(
    small_cache: SmallCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(load_backbone("efficientnet_lite0").state_dict(), tmp_path / 'w "é".pt')
    monkeypatch.chdir(tmp_path)
    root = os.path.relpath(small_cache.root, tmp_path)
    given = ("--category", "poly", "--weights", 'w "é".pt', "--device", "cpu")
    succeeded(precompute("c.zarr", root, *TINY, *given))
    lines = invoke("inspect", "c.zarr").stdout.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("dataset = "))
    file = tmp_path / "settings.toml"
    file.write_text("\n".join(lines[first:]).replace("/c.zarr", "/again.zarr"), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "5 images, 5 computed now" in succeeded(invoke("precompute", "--settings", file, "--device", "cpu"))
    assert_same_arrays(tmp_path / "c.zarr", tmp_path / "again.zarr")


def test_names_of_categories_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in (" A", "B,C"):
        (tmp_path / name / "train/good").mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32), (i, 9, 9)).save(tmp_path / name / f"train/good/{i}.png")
    store = str(tmp_path / "c.zarr")
    assert "4 images, 4 computed now" in succeeded(precompute(store, tmp_path, *TINY))
    assert "2 images, 0 computed" in succeeded(precompute(store, tmp_path, *TINY, "--category", " A"))
    printed = invoke("inspect", store).stdout
    assert 'category = [" A", "B,C"]' in printed


# --- a user's other mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--image-size", 31), "--image-size 31 is out of range: give from 32 to 1024"),
        (("--image-size", "big"), "--image-size"),
        (("--clusters", 1), "--clusters 1 is out of range"),
        (("--clusters", 17), "--clusters 17 is out of range"),
        (("--pairs", 0), "--pairs 0 is out of range"),
        (("--seed", -1), "--seed -1 is out of range"),
        (("--patch-area", 0.05, 0.3), "--patch-area (0.05, 0.3) is out of range"),
        (("--patch-area", 0.05, 0.01), "--patch-area (0.05, 0.01) is out of range"),
        (("--patch-area", "nan", "nan"), "--patch-area (nan, nan) is out of range"),
        (("--patch-aspect", 0, 1), "--patch-aspect (0.0, 1.0) is out of range"),
        (("--stages", "blocks.1,layer1"), "efficientnet_lite0 has no stage 'layer1'"),
        (("--backbone", "alexnet"), "alexnet"),
        (("--weights", "missing.pt"), "missing.pt cannot be read"),
        (("--scheduler", "ray"), "unknown scheduler 'ray'"),
        (("--workers", 0), "--workers"),
        (("--root", "missing-folder"), "missing-folder"),
        (("--dataset", "imagenet"), "imagenet"),
        (("--store", "nowhere://x"), "nowhere://x cannot be opened as a cache"),
    ],
)
def test_mistakes_are_told_in_one_line(
    image_root: Path, tmp_path: Path, options: Sequence[object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = precompute("c.zarr", image_root, *TINY, *options)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ") and told in line
    assert not (tmp_path / "c.zarr").exists()


def test_unusable_weights_are_told_in_one_line(image_root: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("no weights")
    line = mistake(precompute(tmp_path / "c.zarr", image_root, *TINY, "--weights", tmp_path / "w.pt"))
    assert "w.pt" in line and "state dict" in line


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="needs a machine without CUDA")
def test_cuda_that_is_not_there_is_told_in_one_line(image_root: Path, tmp_path: Path) -> None:
    line = mistake(precompute(tmp_path / "c.zarr", image_root, *TINY, "--device", "cuda"))
    assert "--device cuda" in line and "cpu" in line


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_told_in_one_line(image_root: Path, tmp_path: Path) -> None:
    address = "tcp://127.0.0.1:9"
    line = mistake(precompute(tmp_path / "c.zarr", image_root, *TINY, "--scheduler", address))
    assert f"no Dask scheduler answers at {address}" in line


# --- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", main.commands)
def test_every_command_explains_itself(command: str) -> None:
    help_of = invoke(command, "--help")
    assert help_of.exit_code == 0 and "Usage: " in help_of.stdout
    assert invoke(command, "-h").stdout == help_of.stdout
    assert command in invoke("--help").stdout


def test_help_of_precompute_names_what_the_contract_lists() -> None:
    text = invoke("precompute", "--help").stdout
    options = "dataset root category store image-size backbone stages clusters pairs seed device scheduler overwrite"
    assert [option for option in options.split() if f"--{option}" not in text] == []


def test_an_unknown_command_is_a_mistake() -> None:
    result = invoke("precompte")
    assert result.exit_code == 2 and "precompte" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("given", "seen"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_is_told_to_sleep_before_torch_is_imported(
    image_root: Path, tmp_path: Path, given: str | None, seen: str
) -> None:
    code = """
import os, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print("torch", os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Watch())
import cli
print("torch" in sys.modules)
cli.main(sys.argv[1:])
"""
    arguments = ("precompute", "--dataset", "folder", "--root", image_root, "--category", "poly", "--store", "c.zarr")
    arguments += ("--image-size", 32, "--pairs", 2, "--stages", "blocks.6", "--device", "cpu")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"PYTHONPATH": str(REPO)} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["False", f"torch {seen}", "c.zarr: 5 images, 5 computed now, 0 skipped"]
