"""`train --exclude`: normals that a list names take no part."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from conftest import SmallCache, invoke

ARGUMENTS = ("--negatives", "none", "--device", "cpu", "--category", "poly")


def paths_of(run: Path) -> list[str]:
    with (run / "poly/seed-0/normals.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    return [row["path"] for row in rows]


@pytest.mark.slow
def test_listed_normals_are_left_out_and_counted(small_cache: SmallCache, tmp_path: Path) -> None:
    assert invoke("train", small_cache.store, "--out", tmp_path / "all", *ARGUMENTS).exit_code == 0
    worst, *others = paths_of(tmp_path / "all")
    (tmp_path / "bad.txt").write_text(f"\ufeff{worst}\n\n", encoding="utf-8")
    given = ("--exclude", tmp_path / "bad.txt", "--out", tmp_path / "some")
    result = invoke("train", small_cache.store, *given, *ARGUMENTS)
    assert result.exit_code == 0 and "normals left out by --exclude" in result.stderr and worst in result.stderr
    assert sorted(paths_of(tmp_path / "some")) == sorted(others)
    results = json.loads((tmp_path / "some/results.json").read_text())
    assert results["categories"]["poly"]["n_train"] == len(others)
    assert any(note["what"] == "normals left out by --exclude" and note["count"] == 1 for note in results["notes"])
    # The settings file makes the same run, and another list would make another.
    again = invoke("train", "--settings", tmp_path / "some/settings.toml")
    assert again.exit_code == 0 and "1 finished cells are kept" in again.stderr
    (tmp_path / "bad.txt").write_text(others[0])
    refused = invoke("train", small_cache.store, *given, *ARGUMENTS)
    assert refused.exit_code == 2 and "was made otherwise" in refused.stderr


@pytest.mark.parametrize("content", [b"nowhere.png\nfar.png\n", b"\xff\xfe\x00"])
def test_a_list_of_something_else_is_refused_in_one_line(
    content: bytes, small_cache: SmallCache, tmp_path: Path
) -> None:
    (tmp_path / "list").write_bytes(content)
    out = tmp_path / "out"
    result = invoke("train", small_cache.store, "--exclude", tmp_path / "list", "--out", out, *ARGUMENTS)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and "--exclude" in line and not out.exists()
    assert ("2 images" in line and "far.png" in line) or "cannot be read" in line
