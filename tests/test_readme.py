import contextlib
import re
from pathlib import Path

import pytest
from conftest import REPO, fill_cache, place

from pipeline.data.datasets import load
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution
from train.run import open_run
from train.settings import TrainSettings
from train.training import train


def test_the_lines_of_python_in_the_readme_run(
    elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"## From Python\n+```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    assert found is not None
    place(tmp_path, "parts/train/good", elpv["mono"][0][:6])
    place(tmp_path, "new_images", elpv["mono"][1][:2])
    with contextlib.chdir(tmp_path):
        store, settings = "data/cache/parts.zarr", PrecomputeSettings(image_size=32, pairs=2)
        fill_cache(load("folder", "parts"), store, settings, device="cpu", workers=1)
        train(
            open_run(
                store,
                Path("runs/parts"),
                TrainSettings(negatives="none", coreset=20),
                execution=Execution(device="cpu"),
            )
        )
        capsys.readouterr()
        exec(compile(found[1], "README.md", "exec"), {})
    looked, of_a_file, of_an_array = capsys.readouterr().out.splitlines()
    assert "blocks.1" in looked and "train/good/000.png" in looked and "(6, 32, 32, 3) (6, 4, 8, 8)" in looked
    assert of_a_file.startswith("new_images/001.png ") and of_an_array.startswith("None ")
    assert all(
        line.endswith("normal (32, 32)") or line.endswith("anomalous (32, 32)") for line in (of_a_file, of_an_array)
    )
