"""Files that take their places together, whatever happens to the process."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DIES_AT_A_STEP, REPO

from pipeline.together import replacing_together

NAMES = ("weights", "graph", "graph.json")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}


def write(folder: Path, text: str) -> None:
    with replacing_together([folder / name for name in NAMES]) as new:
        for name in NAMES:
            (new / name).write_text(text)


def test_files_take_their_places_and_leave_others_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write(folder, "old")
    (folder / "other").write_text("other")
    write(folder, "new")
    assert contents(folder) == dict.fromkeys(NAMES, "new") | {"other": "other"}
    assert len(list(folder.iterdir())) == 4


@pytest.mark.parametrize("left_out", [None, "graph"])
def test_an_exception_and_a_missing_file_leave_all_old_ones(left_out: str | None, tmp_path: Path) -> None:
    write(tmp_path, "old")
    with (
        pytest.raises((ZeroDivisionError, FileNotFoundError)),
        replacing_together([tmp_path / name for name in NAMES]) as new,
    ):
        for name in NAMES:
            if name != left_out:
                (new / name).write_text("new")
        if left_out is None:
            raise ZeroDivisionError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(NAMES, "old")


def test_an_error_of_the_disk_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="weights") as told, replacing_together([tmp_path / name for name in NAMES]):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert told.value.errno == errno.ENOSPC and told.value.filename == str(tmp_path / "weights")
    (tmp_path / "graph").mkdir()
    with pytest.raises(IsADirectoryError, match="graph"), replacing_together([tmp_path / name for name in NAMES]):
        pytest.fail("the work was done before the place was looked at")


@pytest.mark.slow
def test_a_process_that_dies_leaves_no_last_file_beside_others_than_its_own(tmp_path: Path) -> None:
    script = (
        f"from pipeline.together import replacing_together\n{DIES_AT_A_STEP}"
        f"with replacing_together([Path(sys.argv[1], name) for name in {NAMES}]) as new:\n"
        f"    for name in {NAMES}: (new / name).write_text('new')\n"
    )
    outcomes = set()
    for steps in range(20):
        folder = tmp_path / str(steps)
        write(folder, "old")
        command = [sys.executable, "-c", script, str(steps), str(folder)]
        child = subprocess.run(command, cwd=REPO, env=os.environ, timeout=60)
        found = contents(folder)
        if last := found.get(NAMES[-1]):
            assert found == dict.fromkeys(NAMES, last)
        outcomes.add(last)
        write(folder, "again")
        assert len(list(folder.iterdir())) == 3, "what the dead process left is still there"
        if child.returncode == 0:
            break
    assert child.returncode == 0 and outcomes == {"old", "new", None}
