import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DIES_AT_A_STEP, REPO

from pipeline.errors import UserError
from pipeline.files import files_of, fitting, replacing_folder, write_csv, write_json, write_tensors, write_text


@pytest.mark.parametrize(
    ("write", "bad", "error"),
    [
        (write_json, {"a": float("nan")}, ValueError),
        (write_json, [float("inf")], ValueError),
        (write_json, {"a": object()}, TypeError),
        (write_tensors, {"step": 2, "bad": lambda: None}, Exception),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    write: Callable[[Path, object], None], bad: object, error: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error):
        write(path, bad)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1} and list(tmp_path.iterdir()) == [path]


def test_files_are_read_back_as_written(tmp_path: Path) -> None:
    write_json(tmp_path / "new/deep/a.json", {"ä": [1, None]})
    assert json.loads((tmp_path / "new/deep/a.json").read_text(encoding="utf-8")) == {"ä": [1, None]}
    for step in (1, 3):
        write_tensors(tmp_path / "checkpoint.pt", {"step": step})
        assert torch.load(tmp_path / "checkpoint.pt", weights_only=True) == {"step": step}


def contents(folder: Path) -> dict[str, str]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items() if not name.startswith(".")}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A folder with a page, a picture that it lists, and somebody else's file."""
    folder = tmp_path / "page"
    (folder / "pictures").mkdir(parents=True)
    for name in ("index.html", "pictures/a", "pictures/mine"):
        (folder / name).write_text("old")
    return folder


def test_the_files_of_a_folder_take_their_places_at_its_end(page: Path) -> None:
    with replacing_folder(page, last="index.html") as new:
        (new / "pictures").mkdir()
        for name in ("index.html", "pictures/a", "pictures/b"):
            (new / name).write_text("new")
        assert set(contents(page).values()) == {"old"}
    assert contents(page) == {"index.html": "new", "pictures/a": "new", "pictures/b": "new", "pictures/mine": "old"}


def test_the_file_that_lists_the_others_moves_last(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (moved.append(path.name), replace(path, to)))
    with replacing_folder(page, last="index.html") as new:
        for name in ("index.html", "a", "z"):
            (new / name).write_text("new")
    # Of all files it is known beforehand whose they are.
    known = [name for name in moved if name.startswith(".")]
    assert sorted(set(moved) - set(known)) == ["a", "index.html", "z"] and moved[-1] == "index.html"
    assert len(known) == 2 and moved[0] == known[0]


def test_a_move_that_fails_leaves_no_list_of_what_is_not_there(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def full(path: Path, to: Path) -> Path:
        if path.name.startswith("."):
            return replace(path, to)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"), replacing_folder(page, last="index.html") as new:
        (new / "index.html").write_text("new")
        (new / "a").write_text("new")
    assert contents(page) == {"pictures/a": "old", "pictures/mine": "old"}


def test_an_exception_leaves_a_folder_as_it_was(page: Path) -> None:
    before = contents(page)
    with pytest.raises(KeyboardInterrupt), replacing_folder(page, last="index.html") as new:
        (new / "index.html").write_text("new")
        raise KeyboardInterrupt
    assert contents(page) == before and not list(page.glob(".*"))
    with pytest.raises(KeyboardInterrupt), replacing_folder(page / "new", last="index.html"):
        raise KeyboardInterrupt
    assert not (page / "new").exists()


def test_a_killed_process_leaves_a_folder_as_it_was(page: Path) -> None:
    before = contents(page)
    script = (
        "import os, signal; from pathlib import Path; from pipeline.files import replacing_folder\n"
        f"with replacing_folder(Path({str(page)!r}), last='index.html') as new:\n"
        "    (new / 'index.html').write_text('new'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = subprocess.run([sys.executable, "-c", script], cwd=REPO, env=os.environ, timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert {name: text for name, text in contents(page).items() if not name.startswith(".")} == before
    # What it left goes when the next one starts; what a living process writes stays.
    with replacing_folder(page, last="index.html") as first, replacing_folder(page, last="index.html") as second:
        assert set(page.glob(".*")) == {first, second}
        for new in (first, second):
            (new / "index.html").write_text("new")
    assert sorted(path.name for path in page.glob(".*")) == [".index.html.files", ".index.html.lock"]


def written(folder: Path, *names: str) -> dict[str, str]:
    with replacing_folder(folder, last="list") as new:
        for name in ("list", *names):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text(",".join(names))
    return contents(folder)


def test_files_of_yesterday_go_and_those_of_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert set(written(folder, "a/1", "a/b/2", "c/3")) == {"list", "a/1", "a/b/2", "c/3"}
    for mine in ("mine", "a/mine", "d/mine"):
        (folder / mine).parent.mkdir(exist_ok=True)
        (folder / mine).write_text("mine")
    # A file takes the place of a folder of yesterday's, and a folder that of a file.
    assert set(written(folder, "a/b", "c/3/4")) == {"list", "a/b", "c/3/4", "mine", "a/mine", "d/mine"}
    assert set(written(folder)) == {"list", "mine", "a/mine", "d/mine"}
    assert not (folder / "c").exists() and files_of(folder, "list") == {"list"}


def test_what_is_in_the_way_is_named_before_anything_goes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    before = written(folder, "a/1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "link").symlink_to(elsewhere)
    (folder / "dir").mkdir()
    (folder / "file").write_text("mine")
    for names in (("link/2",), ("dir",), ("file/2",)):
        with pytest.raises(UserError, match="move it away"):
            written(folder, *names)
        assert contents(folder) == {**before, "file": "mine"} and not [*elsewhere.iterdir()]


def test_nothing_outside_the_folder_or_behind_a_link_is_deleted(tmp_path: Path) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    written(folder, "a/1")
    (tmp_path / "mine").write_text("mine")
    (folder / "a").rename(other)
    (folder / "a").symlink_to(other)
    write_json(folder / ".list.files", ["list", "a/1", "../mine", str(tmp_path / "mine")])
    written(folder, "b")
    assert (tmp_path / "mine").exists() and (other / "1").exists()


@pytest.mark.slow
def test_a_process_killed_between_any_two_steps_leaves_no_list_of_what_is_not_there(tmp_path: Path) -> None:
    script = (
        f"import pipeline.files as files\n{DIES_AT_A_STEP}"
        "with files.replacing_folder(Path(sys.argv[1]), last='list') as new:\n"
        "    for name in ('list', 'b', 'c'): (new / name).write_text('b,c')\n"
    )
    outcomes = set()
    for steps in range(40):
        folder = tmp_path / str(steps)
        written(folder, "a", "b")
        command = [sys.executable, "-c", script, str(steps), str(folder)]
        child = subprocess.run(command, cwd=REPO, env=os.environ, timeout=60)
        found = contents(folder)
        if "list" in found:
            outcomes.add(found["list"])
            assert {name: text for name, text in found.items() if name in found["list"]} == dict.fromkeys(
                found["list"].split(","), found["list"]
            )
        else:
            outcomes.add("none")
            assert files_of(folder, "list") is not None
        assert set(written(folder, "d")) == {"list", "d"}
        assert {path.name for path in folder.iterdir()} == {"list", "d", ".list.files", ".list.lock"}
        if child.returncode == 0:
            break
    assert child.returncode == 0 and outcomes == {"a,b", "b,c", "none"}


@pytest.mark.slow
def test_of_many_processes_at_once_the_files_of_one_stay(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.files import replacing_folder\n"
        "for turn in range(20):\n"
        "    names = [f'{sys.argv[2]}{turn}{i}' for i in range(5)]\n"
        "    with replacing_folder(Path(sys.argv[1]), last='list') as new:\n"
        "        for name in (*names, 'list'): (new / name).write_text(','.join(names))\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, tmp_path, who], cwd=REPO) for who in "abcd"]
    assert [child.wait(timeout=100) for child in children] == [0] * 4
    found = contents(tmp_path)
    assert set(found) == {"list", *found["list"].split(",")} and len(found) == 6


def test_a_name_that_no_file_can_have_is_cut(tmp_path: Path) -> None:
    names = {fitting(f"{'ä' * 150}{end}") for end in ("1.png", "2.png", "3.jpg")}
    assert len(names) == 3 and {name[-4:] for name in names} == {".png", ".jpg"}
    assert all(len(name.encode()) <= 255 and name.startswith("ä" * 100) for name in names)
    assert fitting("a" * 251 + ".png") == "a" * 251 + ".png"
    longest = tmp_path / ("a" * 255)
    write_text(longest, "whole")
    assert [*tmp_path.iterdir()] == [longest]


def test_a_killed_process_leaves_a_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results [1].json"
    write_json(path, {"old": 1})
    script = (
        "import os, signal; from pathlib import Path; from pipeline.files import replacing\n"
        f"with replacing(Path({str(path)!r})) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    child = subprocess.run([sys.executable, "-c", script], cwd=REPO, env=os.environ, timeout=60)
    assert child.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 2
    assert json.loads(path.read_text()) == {"old": 1}
    write_json(path, {"new": 2})
    assert list(tmp_path.iterdir()) == [path] and json.loads(path.read_text()) == {"new": 2}


def test_a_text_that_a_spreadsheet_would_compute_is_quoted(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [("path", "score"), ("=1+1.png", -1.5), ("-a", 2), ("@x", 3), ("+y", 4), ("z", -5)])
    assert (tmp_path / "t.csv").read_text().splitlines()[1:] == ["'=1+1.png,-1.5", "'-a,2", "'@x,3", "'+y,4", "z,-5"]
