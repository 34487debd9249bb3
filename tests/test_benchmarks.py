"""The benchmarks of a GPU, of whole commands and of the choice of scorers, at tiny sizes on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO
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
def test_every_format_is_timed_beside_patchcore() -> None:
    told = run_benchmark("benchmarks/latency.py", 8, 2, 32)
    for way in ("predict", "pt2", "onnx", "openvino"):
        assert f"{way}, 1 " in told and f"{way}, 16 " in told
