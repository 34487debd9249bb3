import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPO

from pipeline.files import replacing_folder, write_csv, write_json, write_tensors


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
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


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
        assert set(contents(page).values()) == {"old", "new"} and contents(page)["pictures/a"] == "old"
    assert contents(page) == {"index.html": "new", "pictures/a": "new", "pictures/b": "new", "pictures/mine": "old"}


def test_the_file_that_lists_the_others_moves_last(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (moved.append(path.name), replace(path, to)))
    with replacing_folder(page, last="index.html") as new:
        for name in ("index.html", "a", "z"):
            (new / name).write_text("new")
    assert sorted(moved) == ["a", "index.html", "z"] and moved[-1] == "index.html"


def test_a_move_that_fails_leaves_no_list_of_what_is_not_there(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, to: Path) -> Path:
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
    assert not list(page.glob(".*"))


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
