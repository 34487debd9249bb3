"""Commands that are killed at random moments, again and again, and what is on disk after each kill.

`make reliability` runs it; CUTSWAP_KILLS sets how many kills there are in all (200), CUTSWAP_SEED their moments.
"""

import csv
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import SmallCache, command_line

from train.cell_folder import CellFolder
from train.detector import Detector
from train.run_folder import RunFolder

KILLS = int(os.environ.get("CUTSWAP_KILLS", "200"))
RANDOM = random.Random(int(os.environ.get("CUTSWAP_SEED", "0")))
# Of all kills; the rest is predict's.
TRAIN, OVERWRITE, BENCHMARK = round(0.35 * KILLS), round(0.25 * KILLS), round(0.15 * KILLS)
PREDICT = KILLS - TRAIN - OVERWRITE - BENCHMARK
SEEDS = (0, 1)
TINY = ("--batch-size", 1, "--crop", 32, "--device", "cpu", "--seed", "0,1", "--category", "poly")


def run(command: Sequence[str]) -> float:
    """Run a command to its end; the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def was_killed(command: Sequence[str], seconds: float) -> bool:
    """Kill a command at any moment of its `seconds`; False where it ended before, well."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = child.communicate(timeout=RANDOM.uniform(0, 1.1 * seconds))
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        return True
    assert child.returncode == 0, said
    return False


def contents(file: Path) -> Any:
    value = json.loads(file.read_text())
    if file.name == "results.json":
        value["settings"].pop("store")
    return value


def steps_of(cell: CellFolder) -> int:
    return int(json.loads(cell.made_of.read_text())["settings"]["train.steps"])


def same_detectors(mine: Path, yours: Path) -> None:
    for seed in SEEDS:
        a, b = (torch.load(out / f"poly/seed-{seed}/detector.pt", weights_only=True) for out in (mine, yours))
        assert a["threshold"] == b["threshold"]
        assert [name for name, value in a["localiser"].items() if not torch.equal(value, b["localiser"][name])] == []


def train(cache: SmallCache, out: Path, steps: int, *more: object) -> list[str]:
    return command_line("train", cache.store, "--out", out, "--steps", steps, *TINY, *more)


def test_train_leaves_whole_cells_and_goes_on_to_the_same_bits(small_cache: SmallCache, tmp_path: Path) -> None:
    unbroken, out = tmp_path / "unbroken", tmp_path / "out"
    seconds, kills, ends = run(train(small_cache, unbroken, 120)), 0, 0
    while kills < TRAIN:
        if was_killed(train(small_cache, out, 120), seconds):
            kills += 1
            for cell in RunFolder(out).cells():
                assert contents(cell.result) == contents(unbroken / "poly" / cell.path.name / "cell.json")
                Detector.load(cell.path, "cpu")
            if (out / "results.json").exists():
                assert contents(out / "results.json") == contents(unbroken / "results.json")
            if kills < TRAIN:
                continue
            run(train(small_cache, out, 120))
        ends += 1
        assert contents(out / "results.json") == contents(unbroken / "results.json")
        same_detectors(out, unbroken)
        shutil.rmtree(out)
    print(f"train: {kills} kills, {ends} runs to the same bits")


def test_train_overwrite_replaces_nothing_by_halves(small_cache: SmallCache, tmp_path: Path) -> None:
    finished, out = tmp_path / "finished", tmp_path / "out"
    run(train(small_cache, finished, 2))
    shutil.copytree(finished, out)
    other = train(small_cache, out, 60, "--overwrite")
    seconds, kills, ends = run(other), 0, 1
    while kills < OVERWRITE:
        if not was_killed(other, seconds):
            ends += 1
            assert contents(out / "results.json")["settings"]["steps"] == 60
            assert sorted(path.name for path in (out / "poly").iterdir()) == ["seed-0", "seed-1"]
            shutil.rmtree(out)
            shutil.copytree(finished, out)
            continue
        kills += 1
        steps = set()
        for seed in SEEDS:
            cell = RunFolder(out).cell("poly", seed)
            if not cell.path.exists():  # between two renames: the next run puts it back
                assert (out / f"poly/old-seed-{seed}/cell.json").exists()
                continue
            Detector.load(cell.path, "cpu")
            assert cell.finished and len(cell.read_scores()[0]) == 7
            steps.add(steps_of(cell))
        if (out / "results.json").exists():
            assert {contents(out / "results.json")["settings"]["steps"]} == steps
    print(f"train --overwrite: {kills} kills, {ends} runs to their end")


def test_predict_leaves_a_table_of_its_own_overlays_or_none(small_cache: SmallCache, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    run(train(small_cache, model, 2))
    tests, kills, ends, tables = small_cache.root / "poly/test", 0, 0, 0
    sides = [
        command_line("predict", model / "poly/seed-0", tests / name, "--out", out, "--device", "cpu")
        for name in ("good", "crack")
    ]
    seconds = max(map(run, sides))
    while kills < PREDICT:
        killed = was_killed(sides[(kills + ends) % 2], seconds)
        kills, ends = kills + killed, ends + (not killed)
        if not (out / "predictions.csv").exists():
            continue
        tables += 1
        with (out / "predictions.csv").open(newline="") as file:
            listed = [Path(row["path"]) for row in csv.DictReader(file)]
        assert len({path.parent for path in listed}) == 1
        assert sorted(path.stem for path in (out / "overlays").rglob("*.jpg")) == sorted(path.stem for path in listed)
    print(f"predict: {kills} kills, {ends} ends, {tables} tables, each with its own overlays and no others")


def test_benchmark_goes_on_to_the_same_table_and_leaves_no_process(small_cache: SmallCache, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        given = ("--store", small_cache.store, "--category", "poly", "--arms", "untrained,cutswap", "--seeds", 2)
        return command_line("benchmark", "--dataset", "folder", *given, "--quick", "--device", "cpu", "--out", out)

    unbroken, out = tmp_path / "unbroken", tmp_path / "out"
    seconds, kills, ends = run(command(unbroken)), 0, 0
    while kills < BENCHMARK:
        if was_killed(command(out), seconds):
            kills += 1
            for cell in RunFolder(out / "cutswap").cells():
                assert contents(cell.result) == contents(unbroken / "cutswap/poly" / cell.path.name / "cell.json")
            if kills < BENCHMARK:
                continue
            assert not orphans(within=15), "processes that outlive their parent"
            run(command(out))
        ends += 1
        assert (out / "results.csv").read_text() == (unbroken / "results.csv").read_text()
        shutil.rmtree(out)
    print(f"benchmark: {kills} kills, {ends} runs to the same table")


def orphans(within: float) -> list[str]:
    """Command lines of workers that no driver waits for, after so many seconds at most."""
    until = time.monotonic() + within
    while (found := _taken_over()) and time.monotonic() < until:
        time.sleep(0.5)
    return found


def _taken_over() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in listed.splitlines()]
    return [line[1] for line in lines if line[0] == "1" and "multiprocessing" in line[-1]]
