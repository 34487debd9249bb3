import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import SmallCache, changed_at
from PIL import Image
from sklearn.metrics import roc_auc_score

import train.cell
import train.run
import train.training
from pipeline.cache.cache import open_cache
from pipeline.data.datasets import load
from pipeline.errors import UserError
from pipeline.precompute import precompute
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from train.detector import Detector
from train.evaluate import evaluate
from train.evaluation.metrics import METRICS
from train.evaluation.results import summarise
from train.run_folder import RunFolder
from train.settings import FinetuneSettings, Settings, TrainSettings

SETTINGS = TrainSettings(steps=2, batch_size=2, crop=32, coreset=30, head_lr=0.01)
UNTRAINED = replace(SETTINGS, negatives="none")
FIGURES = tuple(metric.name for metric in METRICS)


def run(store: str, out: Path, settings: Settings = SETTINGS, **options: Any) -> dict[str, Any]:
    """The contents of results.json, which holds what `train` returns."""
    seeds, overwrite = options.pop("seeds", (0,)), options.pop("overwrite", False)
    execution = Execution(device="cpu", bad_images=options.pop("bad_images", "stop"))
    opened = train.run.open_run(store, out, settings, execution=execution, **options)
    found = train.training.train(opened, seeds, overwrite=overwrite)
    results: dict[str, Any] = json.loads(RunFolder(out).results.read_text())
    said = {"notes": [note.value() for note in found.notes]}
    assert summarise(found.cells, results["settings"]) | said == results
    return results


def refusal(store: str, out: Path, settings: Settings = SETTINGS, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(store, out, settings, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@dataclass(frozen=True)
class Finished:
    """A run of poly with the seeds 0 and 1, what it was made of, and its results.json."""

    store: str
    root: Path
    out: Path
    summary: dict[str, Any]

    def again(self, **options: Any) -> dict[str, Any]:
        return run(self.store, self.out, categories=["poly"], seeds=(0, 1), **options)


@pytest.fixture(scope="module")
def finished(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The images trained on are gone; two of the three cracks have a mask."""
    folder = tmp_path_factory.mktemp("run")
    root, store = folder / "cells", str(folder / "cache.zarr")
    shutil.copytree(small_cache.root, root)
    shutil.copytree(small_cache.store, store)
    open_cache(store, "r+").update_attributes(root=str(root))
    for category in ("mono", "poly"):
        shutil.rmtree(root / category / "train")
    mask = np.zeros((300, 300), np.uint8)
    mask[60:180, 100:220] = 255
    (root / "poly/ground_truth/crack").mkdir(parents=True)
    for name in ("000", "001"):
        Image.fromarray(mask).save(root / f"poly/ground_truth/crack/{name}_mask.png")
    summary = run(store, folder / "out", categories=["poly"], seeds=(0, 1))
    return Finished(store, root, folder / "out", summary)


def scores_of(cell: Path) -> list[dict[str, str]]:
    with (cell / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- what is written ----------------------------------------------------------------------------------------------


def test_results_hold_the_keys_of_the_contract(finished: Finished) -> None:
    results = finished.summary
    assert set(results) == {"dataset", "categories", "mean", "settings", "notes"}
    assert results["dataset"] == "folder" and list(results["categories"]) == ["poly"]
    poly = results["categories"]["poly"]
    # Two of the five are held out.
    assert (poly["n_train"], poly["n_test"]) == (5, 7)
    for figure in FIGURES:
        assert len(poly[figure]) == 2 and all(0 <= value <= 1 for value in poly[figure])
        assert results["mean"][figure] == pytest.approx(np.mean(poly[figure]))
    assert set(poly["scorers"]) == {"gaussian", "patches", "cells", "localiser", "largest", "sum"}
    assert poly["scorers"]["largest"] == poly["image_auroc"]
    assert len(poly["untrained_image_auroc"]) == 2
    # The only class of defect: its figures are those of the category.
    flagged = poly["by_defect"]["crack"]["n_flagged"]
    assert poly["by_defect"] == {
        "crack": {"n": 3, "n_flagged": flagged, **{figure: poly[figure] for figure in FIGURES}}
    }
    assert poly["n_normal"] == 4
    for seed, threshold in enumerate(poly["threshold"]):
        above = [
            row["label"] for row in scores_of(finished.out / f"poly/seed-{seed}") if float(row["score"]) > threshold
        ]
        assert (poly["n_flagged_normal"][seed], flagged[seed]) == (above.count("0"), above.count("1"))
    assert results["settings"]["seeds"] == [0, 1] and results["settings"]["cache"]["image_size"] == 64
    assert {name: results["settings"][name] for name in asdict(SETTINGS)} == asdict(SETTINGS)


def test_the_images_trained_on_are_not_needed(finished: Finished) -> None:
    assert not list(finished.root.rglob("train")) and finished.summary["categories"]["poly"]["n_test"] == 7


def test_every_seed_has_its_scores_plots_log_and_detector(finished: Finished) -> None:
    results = finished.summary["categories"]["poly"]
    thresholds = []
    for seed in (0, 1):
        cell = finished.out / f"poly/seed-{seed}"
        table = scores_of(cell)
        assert list(table[0])[:3] == ["path", "label", "score"]
        assert [(row["path"], row["label"]) for row in table] == [
            *((f"poly/test/crack/{i:03}.png", "1") for i in range(3)),
            *((f"poly/test/good/{i:03}.png", "0") for i in range(4)),
        ]
        labels, scores = ([float(row[column]) for row in table] for column in ("label", "score"))
        assert results["image_auroc"][seed] == pytest.approx(roc_auc_score(labels, scores))
        assert scores == [round(float(row["largest"]), 4) for row in table]
        untrained = roc_auc_score(labels, [float(row["untrained"]) for row in table])
        assert results["untrained_image_auroc"][seed] == pytest.approx(untrained)
        assert len((cell / "log.csv").read_text().splitlines()) == 1 + SETTINGS.steps
        for plot in ("scores.png", "maps.png"):
            with Image.open(cell / plot) as image:
                assert min(image.size) > 200
        assert (cell / "detector.pt").is_file() and (cell / "checkpoint.pt").is_file()
        thresholds.append(json.loads((cell / "cell.json").read_text())["threshold"])
    assert results["threshold"] == thresholds


def test_seeds_differ(finished: Finished) -> None:
    first, second = (
        torch.load(finished.out / f"poly/seed-{seed}/detector.pt", weights_only=True)["localiser"] for seed in (0, 1)
    )
    assert first.keys() == second.keys()
    assert not torch.equal(first["head.1.weight"], second["head.1.weight"])


def test_without_masks_the_pixel_figures_are_null(small_cache: SmallCache, tmp_path: Path) -> None:
    results = run(small_cache.store, tmp_path, UNTRAINED, categories=["poly"])["categories"]["poly"]
    assert results["pixel_auroc"] is results["aupro"] is None
    assert len(results["image_auroc"]) == 1 and 0 <= results["image_auroc"][0] <= 1
    # The untrained arm: nothing is trained, so there is nothing to tell it from.
    assert set(results["scorers"]) == {"gaussian", "patches", "largest", "sum"}
    assert results["untrained_image_auroc"] is None
    assert not (tmp_path / "poly/seed-0/log.csv").exists() and not (tmp_path / "poly/seed-0/checkpoint.pt").exists()


@pytest.mark.parametrize("backbone_lr", [0.0, 0.01])
def test_training_starts_from_the_pretrained_stages_and_a_rate_of_0_leaves_them(
    plain_cache: SmallCache, tmp_path: Path, backbone_lr: float
) -> None:
    run(plain_cache.store, tmp_path, replace(SETTINGS, steps=1, backbone_lr=backbone_lr))
    detector = Detector.load(tmp_path, "cpu")
    localiser, pretrained = detector.fitted.localiser, detector.fitted.pretrained
    assert localiser is not None and not localiser.training
    before = dict(zip(pretrained.stage_names, pretrained.stages, strict=True))["blocks.2"].state_dict()
    after = localiser.stages[0].state_dict()
    assert before.keys() == after.keys() and all(torch.allclose(after[n], before[n], atol=0.2) for n in before)
    assert all(torch.equal(after[name], before[name]) for name in before) is (backbone_lr == 0)


def test_the_arm_finetuned_trains_the_backbone_from_its_first_layer_on(plain_cache: SmallCache, tmp_path: Path) -> None:
    run(plain_cache.store, tmp_path, FinetuneSettings(steps=1, batch_size=2, backbone_lr=0.01))
    detector = Detector.load(tmp_path, "cpu")
    before, trained = detector.fitted.pretrained, detector.fitted.finetuned
    assert trained is not None and detector.fitted.localiser is None
    assert list(detector.fitted.scorers) == ["finetuned"] == [detector.recipe.deciding_score]
    weights = trained.state_dict()
    changed = [name for name, value in before.state_dict().items() if not torch.equal(weights[name], value)]
    assert {name.partition(".")[0] for name in changed} == {"stem", "stages"}
    assert len((tmp_path / "pictures/seed-0/log.csv").read_text().splitlines()) == 1 + 1


def test_without_steps_nothing_is_trained(plain_cache: SmallCache, tmp_path: Path) -> None:
    by_steps, by_negatives = (
        run(plain_cache.store, tmp_path / name, settings)["categories"]["pictures"]
        for name, settings in (("steps", replace(SETTINGS, steps=0)), ("negatives", UNTRAINED))
    )
    assert by_steps == by_negatives
    assert Detector.load(tmp_path / "steps", "cpu").fitted.localiser is None


def test_a_plain_folder_has_a_detector_and_no_figures(plain_cache: SmallCache, tmp_path: Path) -> None:
    results = run(plain_cache.store, tmp_path, UNTRAINED, seeds=(3, 3))
    pictures = results["categories"]["pictures"]
    assert results["settings"]["seeds"] == [3]
    assert {metric.name: pictures[metric.name] for metric in METRICS} == {
        metric.name: None if metric.needs_masks else [None] for metric in METRICS
    }
    assert {results["mean"][figure] for figure in FIGURES} == {None}
    assert (pictures["n_train"], pictures["n_test"]) == (6, 0) and np.isfinite(pictures["threshold"])
    assert (tmp_path / "pictures/seed-3/detector.pt").is_file()


# --- the same run again, and another in its place -----------------------------------------------------------------


def copied(finished: Finished, folder: Path) -> Finished:
    """The run, its cache and its test images, to be changed."""
    shutil.copytree(finished.out, folder / "out")
    shutil.copytree(finished.root, folder / "cells")
    store = str(shutil.copytree(finished.store, folder / "cache.zarr"))
    open_cache(store, "r+").update_attributes(root=str(folder / "cells"))
    return replace(finished, store=store, root=folder / "cells", out=folder / "out")


def test_the_same_run_again_leaves_finished_cells_alone(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    before = changed_at(finished.out / "poly")
    assert finished.again() == finished.summary
    assert changed_at(finished.out / "poly") == before
    assert f"{finished.out}: 2 finished cells are kept" in capsys.readouterr().err


def test_the_same_run_at_another_place_is_the_same(finished: Finished, tmp_path: Path) -> None:
    moved = copied(finished, tmp_path)
    before = changed_at(moved.out / "poly")
    moved.again()
    assert changed_at(moved.out / "poly") == before


def test_a_cell_that_was_cut_off_goes_on_from_its_checkpoint(finished: Finished, tmp_path: Path) -> None:
    out = copied(finished, tmp_path).out
    cell, other = out / "poly/partial-seed-1", changed_at(out / "poly/seed-0")
    (out / "poly/seed-1").rename(cell)
    (cell / "cell.json").unlink()
    before = changed_at(cell)
    assert run(finished.store, out, categories=["poly"], seeds=(0, 1)) == finished.summary
    assert changed_at(out / "poly/seed-0") == other
    after = changed_at(out / "poly/seed-1")
    unchanged = {name for name, changed in after.items() if changed == before.get(name)}
    assert unchanged == {"checkpoint.pt", "log.csv", "made_of.json"} and not cell.exists()


def test_other_settings_are_refused_by_name(finished: Finished) -> None:
    before = changed_at(finished.out)
    others: dict[str, Any] = {"steps": 3, "negatives": "cutpaste", "crop": 48, "false_alarms": 0.2}
    for name, value in others.items():
        message = refusal(finished.store, finished.out, replace(SETTINGS, **{name: value}), categories=["poly"])
        assert f"{name}: {value} now, " in message and "--overwrite" in message
        assert "batch_size" not in message and str(finished.out / "poly/seed-0") in message
    assert changed_at(finished.out) == before


def other_normal(run: Finished) -> None:
    group = open_cache(run.store, "r+")["poly"].group
    group["sha256"][2] = "0" * 64


def dropped_normal(run: Finished) -> None:
    group = open_cache(run.store, "r+")["poly"].group
    group["valid"][2] = 0


def other_test_image(run: Finished) -> None:
    Image.new("RGB", (300, 300), "grey").save(run.root / "poly/test/good/002.png")


def new_test_image(run: Finished) -> None:
    shutil.copy(run.root / "poly/test/good/002.png", run.root / "poly/test/good/900.png")


def other_class(run: Finished) -> None:
    (run.root / "poly/test/crack").rename(run.root / "poly/test/scratch")
    (run.root / "poly/ground_truth/crack").rename(run.root / "poly/ground_truth/scratch")


def other_mask(run: Finished) -> None:
    mask = np.zeros((300, 300), np.uint8)
    mask[:9] = 255
    Image.fromarray(mask).save(run.root / "poly/ground_truth/crack/000_mask.png")


def fewer_masks(run: Finished) -> None:
    (run.root / "poly/ground_truth/crack/000_mask.png").unlink()


CHANGES: list[tuple[Callable[[Finished], None], str]] = [
    (other_normal, "5 normal images as then, with other content, names or order"),
    (dropped_normal, "4 normal images now, 5 then"),
    (other_test_image, "7 test images as then, with other content"),
    (new_test_image, "8 test images now, 7 then"),
    (other_class, "7 test images as then, with other content, names"),
    (other_mask, "2 masks as then, with other content"),
    (fewer_masks, "1 masks now, 2 then"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_other_data_are_refused_in_words(
    finished: Finished, tmp_path: Path, change: Callable[[Finished], None], words: str
) -> None:
    mine = copied(finished, tmp_path)
    change(mine)
    before = changed_at(mine.out)
    message = refusal(mine.store, mine.out, categories=["poly"], seeds=(0, 1))
    assert words in message and "and 1 other cells" in message and len(message) < 400
    assert changed_at(mine.out) == before


@pytest.mark.slow
def test_a_cell_is_replaced_only_by_a_whole_one(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = copied(finished, tmp_path), replace(SETTINGS, steps=3)
    before, asked = changed_at(mine.out), {"categories": ["poly"], "seeds": (0, 1)}
    evaluated: list[int] = []

    def cut_off(*arguments: Any) -> Any:
        evaluated.append(1)
        if len(evaluated) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train.cell, "evaluate", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(mine.store, mine.out, other, overwrite=True, **asked)
    after = changed_at(mine.out)
    assert {name: after[name] for name in before if name in after} == before
    assert (mine.out / "poly/partial-seed-0/cell.json").exists()
    made = changed_at(mine.out / "poly/partial-seed-0")
    assert run(mine.store, mine.out, other, overwrite=True, **asked)["settings"]["steps"] == 3
    assert changed_at(mine.out / "poly/seed-0") == made
    assert sorted(path.name for path in (mine.out / "poly").iterdir()) == ["seed-0", "seed-1"]


def test_the_seed_is_part_of_a_cell(finished: Finished, tmp_path: Path) -> None:
    mine = copied(finished, tmp_path)
    shutil.rmtree(mine.out / "poly/seed-1")
    shutil.copytree(mine.out / "poly/seed-0", mine.out / "poly/seed-1")
    message = refusal(mine.store, mine.out, categories=["poly"], seeds=(0, 1))
    assert "poly/seed-1 was made otherwise (train.seed: 1 now, 0 then)" in message


def test_a_finished_cell_that_lost_a_file_is_told(finished: Finished, tmp_path: Path) -> None:
    mine = copied(finished, tmp_path)
    (mine.out / "poly/seed-1/detector.pt").unlink()
    message = refusal(mine.store, mine.out, categories=["poly"], seeds=(0, 1))
    assert f"{mine.out / 'poly/seed-1/detector.pt'} is gone" in message and "--overwrite" in message


def test_a_cache_that_changes_meanwhile_ends_the_run(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, out = copied(finished, tmp_path), tmp_path / "new"

    def changed(*arguments: Any) -> Any:
        other_normal(mine)
        return evaluate(*arguments)

    monkeypatch.setattr(train.cell, "evaluate", changed)
    message = refusal(mine.store, out, UNTRAINED, categories=["poly"])
    assert mine.store in message and "the images of poly changed while it was trained on" in message
    assert not (out / "poly/seed-0").exists() and not (out / "results.json").exists()


def test_what_an_overwrite_left_half_done_does_not_matter_to_the_run_before_it(
    finished: Finished, tmp_path: Path
) -> None:
    mine = copied(finished, tmp_path)
    shutil.copytree(mine.out / "poly/seed-0", mine.out / "poly/partial-seed-0")
    (mine.out / "poly/partial-seed-0/made_of.json").write_text("{}")
    before = changed_at(mine.out / "poly/seed-0")
    mine.again()
    assert changed_at(mine.out / "poly/seed-0") == before


def test_other_weights_than_those_of_the_cache_are_refused(
    small_cache: SmallCache, image_root: Path, tmp_path: Path
) -> None:
    file, store = tmp_path / "weights.pt", str(tmp_path / "cache.zarr")
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), file)
    settings = PrecomputeSettings(image_size=32, pairs=2, weights=str(file))
    precompute([(load("folder", str(image_root), ["poly"]), store)], settings)
    torch.save(timm.create_model("tf_efficientnet_lite0").state_dict(), file)
    message = refusal(store, tmp_path / "out")
    assert str(file) in message and store in message and "restore the file" in message
    file.unlink()
    assert refusal(store, tmp_path / "out") == message and not (tmp_path / "out").exists()


def test_bad_test_images_stop_a_run_before_it_trains_or_are_left_out(finished: Finished, tmp_path: Path) -> None:
    mine = copied(finished, tmp_path)
    whole = (mine.root / "poly/test/good/002.png").read_bytes()
    (mine.root / "poly/test/good/002.png").write_bytes(whole[: len(whole) // 2])
    (mine.root / "poly/ground_truth/crack/000_mask.png").write_text("no mask")
    out = tmp_path / "new"
    message = refusal(mine.store, out, UNTRAINED, categories=["poly"])
    assert str(mine.root / "poly") in message and "--bad-images skip" in message and not out.exists()
    results = run(mine.store, out, UNTRAINED, categories=["poly"], bad_images="skip")
    assert results["categories"]["poly"]["n_test"] == 5
    (note,) = [note for note in results["notes"] if "cannot be read" in note["what"]]
    assert note["count"] == 2 and all(str(mine.root) in line for line in note["first"])


# --- mistakes, told before anything is trained --------------------------------------------------------------------


def test_another_root_is_searched_for_the_test_images(finished: Finished, tmp_path: Path) -> None:
    moved, out = tmp_path / "moved", tmp_path / "out"
    shutil.copytree(finished.root / "poly", moved / "poly")
    for path in (moved / "poly/test/good").iterdir():
        path.unlink()
    assert (
        run(finished.store, out, UNTRAINED, categories=["poly"], image_root=str(moved))["categories"]["poly"]["n_test"]
        == 3
    )
    assert "no such folder" in refusal(finished.store, tmp_path / "a", image_root=str(tmp_path / "nowhere"))
    message = refusal(finished.store, tmp_path / "b", image_root=str(moved))
    assert str(moved) in message and "mono" in message and "--root" in message
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


def damaged(name: str, change: Callable[[Any], None]) -> Any:
    return pytest.param(name, change, id=name)


def unfinished(group: Any) -> None:
    group["done"][1] = 0


def unreadable(group: Any) -> None:
    group["valid"][3:] = 0


@pytest.mark.parametrize(("words", "change"), [damaged("not complete", unfinished), damaged("3 normal", unreadable)])
def test_a_category_that_cannot_be_trained_on_is_named(
    copied_cache: SmallCache, tmp_path: Path, words: str, change: Callable[[Any], None]
) -> None:
    change(open_cache(copied_cache.store, "r+")["mono"].group)
    message = refusal(copied_cache.store, tmp_path / "out", categories=["mono"])
    assert words in message and "mono" in message and copied_cache.store in message
    assert not (tmp_path / "out").exists()


def test_a_category_of_few_normals_is_passed_over_and_named(copied_cache: SmallCache, tmp_path: Path) -> None:
    unreadable(open_cache(copied_cache.store, "r+")["mono"].group)
    results = run(copied_cache.store, tmp_path / "out", UNTRAINED)
    assert list(results["categories"]) == ["poly"]
    assert [(note["category"], note["count"]) for note in results["notes"] if "too few" in note["what"]] == [
        ("mono", 3)
    ]


def test_images_that_could_not_be_read_are_not_trained_on(plain_cache: SmallCache, tmp_path: Path) -> None:
    store = str(shutil.copytree(plain_cache.store, tmp_path / "cache.zarr"))
    open_cache(store, "r+")["pictures"].array("valid")[1] = 0
    results = run(store, tmp_path / "out", UNTRAINED)
    assert results["categories"]["pictures"]["n_train"] == 5


def test_mistakes_in_names_are_told(finished: Finished, tmp_path: Path) -> None:
    assert "'polly'" in refusal(finished.store, tmp_path / "out", categories=["polly"])
    assert "no cache" in refusal(str(tmp_path / "nowhere.zarr"), tmp_path / "out")
