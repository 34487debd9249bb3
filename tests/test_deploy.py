"""The program of docs/deploy.md gives what `predict` gives, where there is no torch and nothing of this package."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, SmallCache, invoke
from PIL import Image

from pipeline.data.levels import Levels
from pipeline.workers.execution import Execution
from train.detector import Detector
from train.run import open_run
from train.settings import TrainSettings
from train.training import train

PROGRAM = re.search(r"```python\n(.*?)```", (REPO / "docs/deploy.md").read_text(), re.DOTALL)
# With what onnxruntime imports; the last two are the shared libraries of wheels.
NEEDED = ("onnxruntime", "PIL", "numpy", "flatbuffers", "google", "packaging", "numpy.libs", "pillow.libs")


def packages_alone(folder: Path) -> str:
    """A folder for PYTHONPATH with the packages that the page names, and no others."""
    site = Path(str(importlib.util.find_spec("numpy").submodule_search_locations[0])).parent  # type: ignore[union-attr,index]
    for name in NEEDED:
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return str(folder)


def pictures(folder: Path, elpv: Mapping[str, tuple[list[Path], list[Path]]]) -> list[Path]:
    """Image files of many kinds: grey, colour, turned, JPEG larger than needed, a palette, 12 and 16 bits, real."""
    cells = [Image.open(file) for file in (*elpv["mono"][0][:4], *elpv["mono"][1][:4])]
    turned, deep = Image.Exif(), [np.asarray(cell, np.uint16) for cell in cells]
    turned[0x0112] = 6
    cells[0].save(folder / "grey.png")
    cells[1].convert("RGB").crop((0, 0, 300, 180)).save(folder / "wide.png")
    cells[2].convert("RGB").resize((900, 1300)).save(folder / "large.jpg", quality=92)
    cells[4].crop((20, 0, 280, 100)).convert("RGB").save(folder / "turned.jpg", exif=turned)
    cells[5].quantize(16).save(folder / "palette.png")
    Image.fromarray(deep[6] * 16).save(folder / "twelve.png")
    Image.fromarray(deep[7][:150] * 16).save(folder / "twelve.tif")
    Image.fromarray(deep[3].astype(np.float32) / 255).save(folder / "real.tif")
    return sorted(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_the_program_of_the_page_runs_without_torch_and_says_what_predict_says(
    resize: str, small_cache: SmallCache, elpv: Mapping[str, tuple[list[Path], list[Path]]], tmp_path: Path
) -> None:
    assert PROGRAM is not None
    settings, execution = TrainSettings(negatives="none", coreset=30), Execution(device="cpu")
    train(open_run(small_cache.store, tmp_path / "run", settings, categories=["mono"], execution=execution))
    trained = Detector.load(tmp_path / "run", "cpu")
    cache = replace(trained.precompute_settings, resize=resize)
    replace(trained, precompute_settings=cache, levels=Levels(4095, 1.0)).save(tmp_path / "detector.pt")
    done = invoke("export", "model", tmp_path / "detector.pt", "--out", tmp_path / "detector.onnx")
    assert done.exit_code == 0, done.output
    for name in ("images", "packages"):
        (tmp_path / name).mkdir()
    files = pictures(tmp_path / "images", elpv)
    (tmp_path / "score.py").write_text(PROGRAM[1])
    assert len([line for line in PROGRAM[1].splitlines() if line]) <= 24
    # -S: without the packages of this environment.
    python = [sys.executable, "-S"]
    environment = {"PYTHONPATH": packages_alone(tmp_path / "packages")}
    without = subprocess.run([*python, "-c", "import torch"], cwd=tmp_path, env=environment, capture_output=True)
    assert without.returncode == 1 and b"No module named 'torch'" in without.stderr
    result = subprocess.run(
        [*python, "score.py", *files], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    lines = [line.rsplit(" ", 2) for line in result.stdout.splitlines()]
    expected = Detector.load(tmp_path / "detector.pt", "cpu").predict(files)
    assert [path for path, _, _ in lines] == [p.path for p in expected]
    apart = np.abs([float(score) - p.score for (_, score, _), p in zip(lines, expected, strict=True)])
    assert apart.max() < 1.01e-4
    assert [verdict == "anomalous" for _, _, verdict in lines] == [p.anomalous for p in expected]
