import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import REPO, place


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(
    elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place(tmp_path, "parts/train/good", elpv["mono"][0][:4])
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Of a copy: a build leaves files beside the sources.
    source = tmp_path / "source"
    for name in ("pipeline", "train"):
        shutil.copytree(REPO / name, source / name)
    for name in ("cli.py", "cutswap_command.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    build = ["wheel", str(source), "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", "wheels"]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = Path("wheels").glob("cutswap-*.whl")
    venv.create("fresh", with_pip=False)
    python = Path("fresh/bin/python")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # The packages that it needs are those of this environment; its own modules are none of them.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    # A user's modules of the same names, in the working directory, which is on PYTHONPATH here.
    for name in ("cli", "pipeline", "train"):
        Path(f"{name}.py").write_text("raise SystemExit('a module of the user')\n")
    beside = {**environment, "PYTHONPATH": os.pathsep.join((str(tmp_path), environment["PYTHONPATH"]))}

    def run(*arguments: str) -> str:
        command = [str(python.with_name("cutswap")), *arguments]
        result = subprocess.run(command, env=beside, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert run("--version").startswith("cutswap, version ")
    where = subprocess.run(
        [
            str(python),
            "-P",
            "-c",
            "import cli, pipeline, train; print(cli.__file__, pipeline.__file__, train.__file__)",
        ],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert all(path.startswith(str(tmp_path / "fresh")) for path in where.stdout.split())
    small = ("--image-size", "32", "--stages", "blocks.6", "--device", "cpu", "--store", "c.zarr")
    for scheduler in ("processes", "cluster"):
        several = ("--scheduler", scheduler, "--workers", "2", "--overwrite")
        assert "4 images, 4 computed now" in run(
            "precompute", "--dataset", "folder", "--root", "parts", *small, *several
        )
    run("inspect", "c.zarr", "--html", "look")
    assert "4 / 4" not in Path("look/index.html").read_text() and "1 / 1" in Path("look/index.html").read_text()
