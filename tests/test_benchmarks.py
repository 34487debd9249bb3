"""The benchmarks of a GPU, of whole commands and of the choice of scorers, at tiny sizes on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, SmallCache, invoke
from PIL import Image


def run_benchmark(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(
        command, cwd=REPO, env={"PYTHONPATH": str(REPO)}, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)).save(tmp_path / f"{i}.png")
    told = run_benchmark("benchmarks/gpu.py", tmp_path, "--device", "cpu", "--tiny", "--repeats", 1)
    for part in ("network", "decoding", "script", "train", "predict", "maps"):
        assert f"-- {part}\n" in told


@pytest.mark.slow
def test_whole_commands_run_against_another_checkout() -> None:
    assert "times" in run_benchmark("benchmarks/against.py", REPO, "precompute", "--tiny", "--repeats", 1)


@pytest.mark.slow
def test_every_scorer_of_a_run_is_judged_by_negatives_it_was_not_trained_on(
    small_cache: SmallCache, tmp_path: Path
) -> None:
    given = ("--category", "poly", "--steps", 1, "--batch-size", 2, "--crop", 32, "--device", "cpu")
    assert invoke("train", "--store", small_cache.store, "--out", tmp_path / "run", *given).exit_code == 0
    told = run_benchmark("benchmarks/judge.py", tmp_path / "run")
    assert "poly: image AUROC" in told
    for scorer in ("untrained", "gaussian", "patches", "cells", "localiser", "largest", "sum"):
        assert sum(scorer in line for line in told.splitlines()) == 1


@pytest.mark.slow
def test_every_format_is_timed_beside_patchcore() -> None:
    told = run_benchmark("benchmarks/latency.py", 8, 2, 32)
    for way in ("predict", "pt2", "onnx", "openvino"):
        assert f"{way}, 1 " in told and f"{way}, 16 " in told
