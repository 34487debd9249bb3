"""The folder that `predict` writes to: whose files it holds, what of it is an input, and how overlays are called."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import DIES_AT_A_STEP, REPO, SmallCache, changed_at, command_line, invoke

from pipeline.errors import UserError
from pipeline.workers.execution import Execution
from train.deploy.inputs import find_inputs, with_overlays
from train.deploy.predict import Predicted, predict
from train.deploy.wanted import Wanted
from train.run import open_run
from train.settings import TrainSettings
from train.training import train

# What lies beside a table: the list of our files, and the lock of whoever moves them in.
HIDDEN = {".predictions.csv.files", ".predictions.csv.lock"}

CPU = Execution(device="cpu")


@pytest.fixture(scope="module")
def run(small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings = TrainSettings(negatives="none", coreset=30)
    train(open_run(small_cache.store, folder, settings, categories=["poly"], execution=CPU))
    return folder


@pytest.fixture
def here(small_cache: SmallCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with three pictures in `pics`."""
    (tmp_path / "pics").mkdir()
    for i in range(3):
        shutil.copy(small_cache.root / f"poly/test/crack/00{i}.png", tmp_path / f"pics/{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> set[str]:
    return {file for file in changed_at(folder) if not file.startswith(".")}


def predicted(run: Path, *targets: object, out: str = "predictions", pictures: str = "all") -> Predicted:
    return predict(run, list(map(str, targets)), Path(out), CPU, Wanted(pictures=pictures))


# --- inputs -------------------------------------------------------------------------------------------------------


def test_the_second_prediction_of_a_folder_is_that_of_the_first(run: Path, here: Path) -> None:
    scores = []
    for _ in range(3):
        said = invoke("predict", run, ".", "--device", "cpu")
        assert said.exit_code == 0, said.output
        scores.append(table_of(here / "predictions"))
    assert scores[0] == scores[1] == scores[2] and len(scores[0]) == 3
    assert "4 below --out, where nothing is ever scored: predictions/overlays/pics/0.jpg" in said.stderr


def test_no_spelling_and_no_link_makes_an_overlay_an_input(here: Path) -> None:
    inner = here / "predictions/deep"
    inner.mkdir(parents=True)
    for name in ("a.jpg", "deep/b.jpg"):
        shutil.copy(here / "pics/0.png", here / "predictions" / name)
    for link, to in (("to", "predictions"), ("into", "predictions/deep"), ("c.jpg", "predictions/a.jpg")):
        (here / link).symlink_to(here / to)
    # A link in the folder to pictures outside of it lies there, too, but the pictures themselves do not.
    (inner / "out").symlink_to(here / "pics")
    wanted = {Path("pics/0.png"), Path("pics/1.png"), Path("pics/2.png")}
    outs = (
        "predictions",
        "./predictions",
        "pics/../predictions",
        "to",
        str(here / "to"),
        "into/..",
        "to/../predictions",
    )
    for out in outs:
        found, notes = find_inputs(["."], Path(out))
        assert {path for path, _ in found} == wanted, out
        assert any("below --out" in note.line for note in notes)
        absolute, _ = find_inputs([str(here)], Path(out))
        assert {path.relative_to(here) for path, _ in absolute} == wanted, out
        for one in ("predictions/a.jpg", "to/deep/b.jpg", "c.jpg", "pics/../predictions/a.jpg", "into/../a.jpg"):
            found, notes = find_inputs(["pics", one], Path(out))
            assert {path for path, _ in found} == wanted and [note.first for note in notes] == [(one,)], (out, one)
            with pytest.raises(UserError, match="lies below --out") as caught:
                find_inputs([one], Path(out))
            assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="no image below to"):
            find_inputs(["to"], Path(out))
    assert len(find_inputs(["pics"], Path("pics2"))[0]) == 3
    assert len(find_inputs([str(here / "predictions/../pics")], Path("predictions"))[0]) == 3


# --- whose files --------------------------------------------------------------------------------------------------


def test_no_overlay_of_yesterday_stays_and_files_of_others_do(run: Path, here: Path) -> None:
    predicted(run, "pics")
    out = here / "predictions"
    assert files_in(out) == {"predictions.csv", *(f"overlays/{i}.jpg" for i in range(3))}
    mine = {"mine.txt", "overlays/mine.jpg", "overlays/9.jpg", "overlays/sub/mine"}
    (out / "overlays/sub").mkdir()
    for name in mine:
        (out / name).write_text("mine")
    shutil.copy("pics/0.png", "pics/9.png")
    predicted(run, "pics/1.png", "pics/9.png")
    # One that has the name of an overlay stays as well: ours gets another.
    assert files_in(out) == {"predictions.csv", "overlays/1.jpg", "overlays/9-2.jpg", *mine}
    assert all((out / name).read_text() == "mine" for name in mine)
    predicted(run, "pics", pictures="none")
    assert files_in(out) == {"predictions.csv", *mine}


@pytest.mark.parametrize("held", ["notes.txt", "predictions.csv", "overlays/a.jpg"])
def test_a_folder_of_others_is_refused_before_anything_is_scored(held: str, here: Path) -> None:
    out = here / "predictions"
    (out / held).parent.mkdir(parents=True)
    (out / held).write_text("mine")
    # Without a detector: it is not even looked for.
    said = invoke("predict", here, "pics", "--device", "cpu")
    reason = (
        "predictions holds something, but no prediction of this version: give --out a new folder, or empty this one"
    )
    assert said.exit_code == 2 and said.stderr == f"Error: {reason}\n"
    assert files_in(out) == {held} and (out / held).read_text() == "mine"


def test_what_is_in_the_way_of_overlays_is_named_before_anything_is_scored(run: Path, here: Path) -> None:
    predicted(run, "pics/0.png")
    out = here / "predictions"
    (out / "overlays/pics").write_text("mine")
    before = changed_at(out)
    said = invoke("predict", here, ".", "--device", "cpu")
    assert said.exit_code == 2 and "overlays/pics is no folder" in said.stderr
    (out / "overlays").rename(here / "elsewhere")
    (out / "overlays").symlink_to(here / "elsewhere")
    assert invoke("predict", here, "pics", "--device", "cpu").exit_code == 2
    (out / "overlays").unlink()
    (here / "elsewhere").rename(out / "overlays")
    assert changed_at(out) == before


def test_a_bad_image_leaves_the_old_prediction(run: Path, here: Path) -> None:
    predicted(run, "pics")
    before = changed_at(here / "predictions")
    (here / "pics/1.png").write_bytes(b"no image")
    said = invoke("predict", run, "pics", "--device", "cpu")
    assert said.exit_code == 2 and changed_at(here / "predictions") == before
    said = invoke("predict", run, "pics", "--device", "cpu", "--bad-images", "skip")
    assert said.exit_code == 0 and "of 2 images anomalous" in said.stdout
    assert [row["status"][:4] for row in table_of(here / "predictions")] == ["ok", "cann", "ok"]
    assert files_in(here / "predictions") == {"predictions.csv", "overlays/0.jpg", "overlays/2.jpg"}


@pytest.mark.slow
def test_a_predict_killed_at_any_moment_leaves_one_prediction_or_none(run: Path, here: Path) -> None:
    """Killed before every third rename, deletion or folder that is made; `test_files.py` has them all."""
    code = f"import cli\n{DIES_AT_A_STEP}sys.exit(cli.main(sys.argv[1:]))\n"
    out = here / "predictions"
    seen = set()
    for steps in range(1, 60, 3):
        shutil.rmtree(out, ignore_errors=True)
        predicted(run, "pics/0.png", "pics/1.png")
        command = [sys.executable, "-c", code, str(steps), "predict", str(run), "pics/1.png", "pics/2.png"]
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        child = subprocess.run([*command, "--device", "cpu"], env=environment, capture_output=True, timeout=100)
        assert child.returncode in (0, -signal.SIGKILL), child.stderr
        if there := (out / "predictions.csv").exists():
            named = {Path(row["path"]).stem for row in table_of(out)}
            assert {file.removeprefix("overlays/")[0] for file in files_in(out) if file.startswith("overlays")} == named
            seen.add("".join(sorted(named)))
        else:
            seen.add("")
        predicted(run, "pics/2.png")
        assert files_in(out) == {"predictions.csv", "overlays/2.jpg"}, there
        assert {path.name for path in out.glob(".*")} == HIDDEN
        if child.returncode == 0:
            break
    assert child.returncode == 0 and seen == {"01", "12", ""}


@pytest.mark.slow
def test_a_first_predict_that_is_killed_is_finished_by_the_next(run: Path, here: Path) -> None:
    for number in range(200):
        shutil.copy("pics/0.png", f"pics/more-{number}.png")
    child = subprocess.Popen(command_line("predict", run, "pics", "--device", "cpu"), cwd=here)
    try:
        while child.poll() is None and not [*here.glob("predictions/.files*/overlays/*")]:
            pass
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL and not (here / "predictions/predictions.csv").exists()
    said = invoke("predict", run, "pics/0.png", "--device", "cpu")
    assert said.exit_code == 0, said.output
    assert set(changed_at(here / "predictions")) == {*HIDDEN, "predictions.csv", "overlays/0.jpg"}


# --- names --------------------------------------------------------------------------------------------------------


def test_odd_names_all_have_a_line_and_an_overlay(run: Path, here: Path) -> None:
    names = [
        *(f"one/{'a' * 251}.png", f"two/{'a' * 251}.png", f"three/{'a' * 251}.bmp", f"one/{'ä' * 125}.png"),
        *("one/-a.png", "one/=1+1.png", 'one/"a", b.png', "one/ä.png", f"one/{unicodedata.normalize('NFD', 'ä')}.png"),
        *("one/A.png", "one/a.png", "one/a.jpg/a.png", "one/a.jpg/b.png", "one/a-2.png", "one/new\nline.png"),
        *("one/@x.png", "one/....png", "one/x.jpg/x.jpg/x.png", "one/x.png", "one/x.jpg/x.png"),
    ]
    for name in names:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / "pics/0.png", here / name)
    found = predicted(run, *names)
    assert [line.path for line in found.lines] == names and all(line.drawn for line in found.lines)
    assert len({line.score for line in found.lines}) == 1
    assert [row["path"].removeprefix("'") for row in table_of(here / "predictions")] == names
    assert len(files_in(here / "predictions")) == len(names) + 1
    # Folders, in which a name with a line break is passed over; two that share each of their names.
    shutil.copytree("one", "four")
    found = predicted(run, "one", "four", "two")
    listed = [name for name in names if name.startswith("one/") and "\n" not in name and "/." not in name]
    assert len(found.lines) == 2 * len(listed) + 1 == len(files_in(here / "predictions")) - 1
    assert sum("control character" in note.line for note in found.left_out) == 2
    # From where they lie, with names that could be options and formulas.
    os.chdir(here / "one")
    said = invoke("predict", run, "--device", "cpu", "--", "-a.png", "=1+1.png")
    assert said.exit_code == 0, said.output
    assert [row["path"] for row in table_of(here / "one/predictions")] == ["'-a.png", "'=1+1.png"]


def test_a_name_that_is_not_utf_8_is_refused_in_one_line(here: Path) -> None:
    name = os.fsdecode(b"\xff.png")
    shutil.copy("pics/0.png", name)
    with pytest.raises(UserError, match=r"^\\xff\.png: a name that is not UTF-8") as caught:
        find_inputs([name], here / "out")
    assert "\n" not in str(caught.value)


def test_a_thousand_files_of_one_name_get_an_overlay_each() -> None:
    files = [(Path(f"{i}/a.png"), "a.png") for i in range(5000)] + [(Path("b/a-2.png"), "a-2.png")]
    overlays = [overlay for _, overlay in with_overlays(files, ["overlays/a-3.jpg", "overlays/a.jpg/mine"])]
    assert len(set(overlays)) == 5001 and {"a.jpg", "a-3.jpg"}.isdisjoint(overlays)
