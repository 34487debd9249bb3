import contextlib
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import Result
from conftest import RunCli, SmallCache, command_line, invoke, killed_once_there

from pipeline.cache.cache import open_cache
from train.cell_folder import CellFolder, files_in


@dataclass(frozen=True)
class Trained:
    """What `train` of both categories, without training, printed and wrote to its default --out."""

    result: Result
    folder: Path

    @property
    def run(self) -> Path:
        (run,) = (self.folder / "runs").iterdir()
        return run


@pytest.fixture(scope="module")
def trained(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("cli")
    with contextlib.chdir(folder):
        return Trained(invoke("train", "--store", small_cache.store, "--negatives", "none", "--device", "cpu"), folder)


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and all(word in line for word in words), line
    assert result.stdout == ""


# --- train --------------------------------------------------------------------------------------------------------


def test_train_takes_all_categories_and_says_where_the_results_are(small_cache: SmallCache, trained: Trained) -> None:
    assert trained.result.exit_code == 0, trained.result.output
    results = json.loads((trained.run / "results.json").read_text())
    assert list(results["categories"]) == ["mono", "poly"]
    assert (results["settings"]["negatives"], results["settings"]["seeds"]) == ("none", [0])
    # 15 % of the 67 normals are held out.
    assert [results["categories"]["mono"][name] for name in ("n_train", "n_test", "aupro")] == [67, 7, None]
    root = Path(open_cache(small_cache.store).image_root)
    assert trained.run.name == root.name and f"runs/{root.name}/results.json" in trained.result.stdout
    for category in ("mono", "poly"):
        assert f"{100 * results['categories'][category]['image_auroc'][0]:.1f}" in trained.result.stdout
        assert (trained.run / category / "seed-0/detector.pt").is_file()


def test_train_counts_the_images_that_are_flagged_at_the_threshold(trained: Trained) -> None:
    found = json.loads((trained.run / "results.json").read_text())["categories"]
    lines = trained.result.stdout.splitlines()
    (title,) = (number for number, line in enumerate(lines) if "test images at the threshold" in line)
    rows = {words[0]: words[1:] for words in map(str.split, lines[title + 1 :]) if len(words) == 5}
    for category in ("mono", "poly"):
        (normal,), (crack,) = found[category]["n_flagged_normal"], found[category]["by_defect"]["crack"]["n_flagged"]
        n_crack = found[category]["by_defect"]["crack"]["n"]
        counts = (found[category]["n_normal"] - normal, normal, crack, n_crack - crack)
        assert rows[category] == list(map(str, counts)) and sum(counts) == found[category]["n_test"]
        told = (
            f"finds {crack} of {n_crack} test images with a defect, and flags {normal} of {sum(counts[:2])} good ones"
        )
        assert any(line.startswith(f"{category} seed 0: ") and line.endswith(told) for line in lines)


def test_without_test_images_train_says_so_once_and_tells_of_no_file_that_is_not_there(
    plain_cache: SmallCache, tmp_path: Path
) -> None:
    result = invoke("train", plain_cache.store, "--negatives", "none", "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    said, written, threshold, worst, then = result.stdout.splitlines()
    assert said == "There are no test images: no metric can be computed (pictures)."
    assert threshold.startswith("pictures seed 0: threshold ") and threshold.endswith(
        ": the highest of 6 held-out normals; expect 14 % false alarms, at most 39 % (95 %); for 1 % give 99;"
        " with fewer than 20, any threshold is a guess"
    )
    assert worst.startswith("pictures seed 0: the normals most unlike the others: ")
    assert written == f"{out / 'results.json'}; per category and seed: detector.pt, normals.csv"
    assert then == f"Next: cutswap predict {out} IMAGES"
    assert "metric" not in result.stderr
    assert {path.name for path in tmp_path.glob("out/pictures/seed-0/*")} == {
        "cell.json",
        "detector.pt",
        "made_of.json",
        "normals.csv",
    }


def test_files_that_only_some_categories_have_are_told_by_themselves(trained: Trained, tmp_path: Path) -> None:
    cells = [CellFolder(trained.run / category / "seed-0") for category in ("mono", "poly")]
    pictures = "normals.csv, scores.csv, scores.png, maps.png"
    assert files_in(cells) == f"detector.pt, {pictures}"
    assert f"per category and seed: detector.pt, {pictures}" in trained.result.stdout
    bare = CellFolder(tmp_path)
    bare.detector.touch()
    assert files_in([*cells, bare]) == f"detector.pt; in some of them {pictures}"


def test_options_reach_the_run(small_cache: SmallCache, tmp_path: Path) -> None:
    given: dict[str, object] = {
        "--steps": 2,
        "--batch-size": 3,
        "--crop": 32,
        "--head-lr": 0.02,
        "--backbone-lr": 0.001,
    }
    given |= {"--negatives": "mix", "--colour-jitter": 0.2, "--scorer": "localiser", "--false-alarms": 0.2}
    given |= {"--category": "poly", "--device": "cpu", "--out": tmp_path / "out"}
    options = [word for option in given.items() for word in option]
    result = invoke("train", "--store", small_cache.store, *options, "--seed", 5)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out/results.json").read_text())
    found = results["settings"]
    for option, value in given.items():
        name = option.removeprefix("--").replace("-", "_")
        assert name in ("category", "device", "out") or found[name] == value
    assert found["seeds"] == [5] and found["store"] == small_cache.store
    assert list(results["categories"]) == ["poly"]
    assert "localiser poly seed 5: 2/2 steps" in result.stderr
    again = invoke("train", "--store", small_cache.store, *options, "--seed", 5, "--resume")
    assert again.exit_code == 0 and "steps" not in again.stderr
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
    options[options.index("--steps") + 1] = "3"
    assert_one_line(invoke("train", "--store", small_cache.store, *options, "--seed", 5), "steps: 3 now, 2 then")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--category", "polly"], ["polly", "mono, poly"]),
        (["--root", "nowhere"], ["nowhere"]),
        (["--steps", "-1"], ["--steps -1", "give from 0 to 10,000,000"]),
        (["--crop", "15"], ["--crop 15", "16 or more"]),
        (["--backbone-lr", "1.5"], ["--backbone-lr 1.5"]),
        (["--head-lr", "nan"], ["--head-lr nan"]),
        (["--false-alarms", "0"], ["--false-positive-rate 0.0 is out of range"]),
        (["--negatives", "none", "--scorer", "localiser"], ["--scorer localiser needs a localiser", "--steps"]),
        (["--steps", "0", "--scorer", "localiser"], ["--scorer localiser needs a localiser", "--steps"]),
    ],
)
def test_a_mistake_in_train_is_one_line(
    small_cache: SmallCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(invoke("train", "--store", small_cache.store, *arguments), *words)
    assert not (tmp_path / "runs").exists()


def test_train_without_a_cache_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_line(invoke("train"), "no cache in data/cache", "precompute")
    assert_one_line(invoke("train", "--store", "nowhere.zarr"), "no cache at nowhere.zarr", "precompute")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line(small_cache: SmallCache, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_one_line(invoke("train", "--store", small_cache.store, "--out", out, "--device", "cuda"), "--device cpu")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["train", "--negativs", "none"], "--negativs"),
        (["train", "--negatives", "swap"], "cutswap"),
        (["train", "--scorer", "head"], "largest"),
        (["train", "--proxy", "levels"], "--proxy"),
        (["train", "--translation", "0.1"], "--translation"),
        (["train", "--steps", "many"], "many"),
        (["train", "--seed", "-1"], "-1"),
        (["predict"], "RUN"),
        (["predict", "nowhere", "image.png"], "nowhere"),
        (["predict", ".", "image.png", "--bad-image", "skip"], "--bad-image"),
        (["predict", ".", "image.png", "--pictures", "some"], "anomalous"),
        (["trian"], "trian"),
    ],
)
def test_a_misspelt_command_or_option_exits_2(arguments: list[str], word: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert word in result.stderr and "Traceback" not in result.stderr


# --- predict ------------------------------------------------------------------------------------------------------


def test_predict_writes_the_table_and_says_what_it_found(
    trained: Trained, small_cache: SmallCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = small_cache.root / "mono/test"
    result = invoke("predict", trained.run / "mono", pictures, "--device", "cpu")
    assert result.exit_code == 0, result.output
    with Path("predictions/predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["path"] for row in table] == sorted(map(str, pictures.rglob("*.png")))
    assert f"{sum(int(row['anomalous']) for row in table)} of 7 images anomalous" in result.stdout
    assert len(list(Path("predictions/overlays").rglob("*.jpg"))) == 7


def test_bad_images_stop_or_are_skipped(trained: Trained, small_cache: SmallCache, tmp_path: Path) -> None:
    good, bad, out = small_cache.root / "mono/test/good/000.png", tmp_path / "bad.png", tmp_path / "out"
    bad.write_bytes(b"no image")
    command = ["predict", trained.run / "mono", good, bad, "--out", out, "--device", "cpu"]
    stopped = invoke(*command)
    assert stopped.exit_code == 2 and "Traceback" not in stopped.stderr
    assert [line for line in stopped.stderr.splitlines() if "Error: " in line and str(bad) in line]
    skipped = invoke(*command, "--bad-images", "skip")
    assert skipped.exit_code == 0
    assert f"skipped: {bad}" in skipped.stderr and "of 1 images" in skipped.stdout


def test_a_mistake_in_predict_is_one_line(trained: Trained, small_cache: SmallCache, tmp_path: Path) -> None:
    image, out = small_cache.root / "mono/test/good/000.png", ["--out", tmp_path / "out"]
    assert_one_line(invoke("predict", trained.run, image, *out), "--category mono")
    assert_one_line(invoke("predict", tmp_path, image, *out), "no detector", str(tmp_path))
    assert_one_line(invoke("predict", trained.run / "mono", tmp_path / "gone.png", *out), "gone.png")
    assert_one_line(invoke("predict", image, image, *out), str(image), "train again")
    assert not (tmp_path / "out").exists()


# --- a process of its own -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_ends_with_the_same_status_and_line(run_cli: RunCli) -> None:
    failed = run_cli("train", "--store", "nowhere.zarr")
    assert (failed.returncode, failed.stdout) == (2, "")
    (line,) = failed.stderr.splitlines()
    assert line.startswith("Error: no cache at nowhere.zarr")
    misspelt = run_cli("train", "--negativs", "none")
    assert misspelt.returncode == 2 and "--negativs" in misspelt.stderr and "Traceback" not in misspelt.stderr


@pytest.mark.slow
def test_a_killed_command_resumes_to_the_very_weights_of_an_unbroken_one(
    small_cache: SmallCache, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as `conftest` has it in this process

    def command(out: Path) -> list[object]:
        settings = ["--steps", 60, "--batch-size", 1, "--crop", 32]
        return ["train", "--store", small_cache.store, "--category", "poly", "--out", out, "--device", "cpu", *settings]

    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    cell = killed / "poly/partial-seed-0"
    with killed_once_there(command_line(*command(killed)), cell / "checkpoint.pt"):
        pass
    assert torch.load(cell / "checkpoint.pt", weights_only=True)["step"] == 50 and not (cell / "cell.json").exists()
    for out in (killed, unbroken):
        assert run_cli(*command(out)).returncode == 0
    mine, yours = (torch.load(out / "poly/seed-0/detector.pt", weights_only=True) for out in (killed, unbroken))
    assert len(mine["localiser"]) > 40
    for part in ("localiser", "pretrained"):
        assert [name for name, value in mine[part].items() if not torch.equal(value, yours[part][name])] == []
    assert (mine["threshold"], mine["standardisers"]) == (yours["threshold"], yours["standardisers"])
    # All but the last column, the seconds since the start or the resume.
    tables = [(out / "poly/seed-0/log.csv").read_text().splitlines() for out in (killed, unbroken)]
    logs = [[line.rpartition(",")[0] for line in table] for table in tables]
    assert logs[0] == logs[1] and len(logs[0]) == 61
    assert json.loads((killed / "results.json").read_text()) == json.loads((unbroken / "results.json").read_text())


# --- settings from a file -----------------------------------------------------------------------------------------


def test_settings_come_from_a_file_and_the_command_line_wins(plain_cache: SmallCache, tmp_path: Path) -> None:
    file, out = tmp_path / "settings.toml", tmp_path / "out"
    file.write_text(
        'steps = 2\nbatch-size = 2\ncategory = "pictures"\nseed = [0, 1]\nnegatives = "cutpaste"\ndevice = "cpu"'
    )
    result = invoke("train", "--settings", file, "--store", plain_cache.store, "--out", out, "--negatives", "none")
    assert result.exit_code == 0, result.output
    found = json.loads((out / "results.json").read_text())
    assert found["settings"]["seeds"] == [0, 1] and list(found["categories"]) == ["pictures"]
    assert (found["settings"]["steps"], found["settings"]["negatives"]) == (2, "none")


def test_old_spellings_are_taken_and_a_byte_order_mark_is_passed_over(plain_cache: SmallCache, tmp_path: Path) -> None:
    file, out = tmp_path / "settings.toml", tmp_path / "out"
    file.write_text('\ufefffalse_alarms = 0.2\nnegatives = "none"\ncategory = "pictures"\n', encoding="utf-8")
    result = invoke("train", plain_cache.store, "--settings", file, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "results.json").read_text())["settings"]["false_alarms"] == 0.2


def test_inspect_of_a_run_folder_takes_no_options_and_says_where_there_is_no_file(
    trained: Trained, tmp_path: Path
) -> None:
    assert_one_line(invoke("inspect", trained.run, "--verify"), "is a run folder", "takes no options")
    (tmp_path / "results.json").write_text("{}")
    assert_one_line(invoke("inspect", tmp_path), "is a run folder without settings.toml")


@pytest.mark.slow
def test_a_run_folder_holds_and_inspect_prints_the_settings_that_make_it_again(
    plain_cache: SmallCache, tmp_path: Path
) -> None:
    given = ("--category", "pictures", "--negatives", "none", "--seed", "1,3", "--false-positive-rate", 0.2)
    out = tmp_path / "out"
    assert invoke("train", plain_cache.store, "--out", out, *given, "--device", "cpu").exit_code == 0
    printed = invoke("inspect", out).stdout
    assert printed == (out / "settings.toml").read_text()
    (tmp_path / "again.toml").write_text(printed)
    again = tmp_path / "again"
    result = invoke("train", "--settings", tmp_path / "again.toml", "--out", again, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert (again / "results.json").read_text() == (out / "results.json").read_text()
    for made_of in ("pictures/seed-1/made_of.json", "pictures/seed-3/made_of.json"):
        assert (again / made_of).read_text() == (out / made_of).read_text()


# --- the cache, named in two ways ---------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [("{}",), ("--store", "{}"), ("{}", "--store", "{}")])
@pytest.mark.parametrize("command", [("inspect", "--json"), ("export", "negatives"), ("train", "--negatives", "none")])
def test_a_cache_is_given_as_an_argument_or_an_option(
    plain_cache: SmallCache, tmp_path: Path, command: tuple[str, ...], given: tuple[str, ...]
) -> None:
    words = [word.format(plain_cache.store) for word in given]
    options = [] if command[0] == "inspect" else ["--out", tmp_path / "out"]
    result = invoke(*command, *words, *options)
    assert result.exit_code == 0, result.output
    assert command[0] == "inspect" or (tmp_path / "out").is_dir()


def test_a_category_that_is_named_twice_counts_once(small_cache: SmallCache, tmp_path: Path) -> None:
    twice = ("--category", "poly", "--category", "poly,poly")
    said = invoke("inspect", small_cache.store, *twice, "--json")
    assert [one["name"] for one in json.loads(said.stdout)["categories"]] == ["poly"]
    said = invoke("export", "negatives", small_cache.store, *twice, "--out", tmp_path / "out")
    assert said.stdout == f"20 negatives and negatives.csv in {tmp_path / 'out'}\n"
    assert len([*tmp_path.glob("out/poly/*.png")]) == 20
    place = ("--dataset", "folder", "--root", small_cache.root, "--store", small_cache.store)
    settings = ("--image-size", 64, "--pairs", 4, "--stages", "blocks.1,blocks.2,blocks.4,blocks.6")
    assert "5 images, 0 computed now" in invoke("precompute", *place, *settings, *twice).stdout
    trained = invoke("train", small_cache.store, *twice, "--negatives", "none", "--out", tmp_path / "run")
    assert trained.exit_code == 0 and [path.name for path in tmp_path.glob("run/*/")] == ["poly"]


@pytest.mark.slow
def test_negatives_and_pages_of_before_go_and_other_files_stay(small_cache: SmallCache, tmp_path: Path) -> None:
    for command, first, second in (
        (("export", "negatives", small_cache.store, "--out"), "poly/000000-000-blocks.1-0.png", "mono"),
        (("inspect", small_cache.store, "--html"), "images/1-poly/000000.jpg", "images/1-mono"),
    ):
        out = tmp_path / command[0]
        out.mkdir()
        assert invoke("inspect", small_cache.store, "--image", "poly/train/good/000", "--html", out).exit_code in (0, 2)
        (out / "mine").write_text("mine")
        assert invoke(*command, out, "--category", "poly").exit_code == 0
        assert (out / first).exists()
        (out / first).with_name("mine").write_text("mine")
        assert invoke(*command, out, "--category", "mono").exit_code == 0
        assert [*(out / first).parent.iterdir()] == [(out / first).with_name("mine")]
        assert (out / "mine").exists() and any((out / second).iterdir())


def test_two_different_caches_are_one_too_many(small_cache: SmallCache) -> None:
    assert_one_line(
        invoke("inspect", small_cache.store, "--store", "other.zarr"), "two caches", "other.zarr", "give one"
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("stepps = 2", "train has no setting stepps"),
        ("steps = ", "no TOML file"),
        ("steps = -1", "--steps -1 is out of range"),
        ('steps = "many"', "steps = 'many' is not a whole number"),
        ("steps = 2.5", "steps = 2.5 is not a whole number"),
        ("steps = true", "not a whole number"),
        ("steps = [2]", "not a whole number"),
        ("head-lr = false", "not a number"),
        ("out = 3", "out = 3 is not a text in quotes"),
        ('store = ["a.zarr"]', "not a text in quotes"),
        ("resume = 1", "resume = 1 is not true or false"),
        ("category = [1.5]", "not a text in quotes, or a list of such"),
        ("batch-size = 2\nbatch_size = 3", "gives batch-size twice"),
        ("false_alarms = 0.1\nfalse-positive-rate = 0.2", "gives false-positive-rate twice"),
        ("seed = 99999999999999999999", "whole numbers from 0 to 2^63 - 1"),
        ('seed = "1_0"', "whole numbers"),
        ('category = ","', "names nothing"),
    ],
)
def test_a_mistake_in_a_settings_file_is_named(small_cache: SmallCache, tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    result = invoke("train", "--settings", tmp_path / "s.toml", "--store", small_cache.store, "--out", tmp_path / "out")
    assert result.exit_code == 2 and word in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
