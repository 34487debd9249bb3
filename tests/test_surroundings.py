"""Commands in a process of their own, in surroundings that are not as they should be: they work, or end in one line."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import command_line, place

Run = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a category whose name no plain font has, and of a defect that could be mathematics; their cache."""
    folder = tmp_path_factory.mktemp("odd")
    place(folder, "root/中$x_1$/train/good", elpv["mono"][0][:6])
    place(folder, "root/中$x_1$/test/good", elpv["mono"][0][6:8])
    place(folder, "root/中$x_1$/test/cr$ack_", elpv["mono"][1][:2])
    small = ("--image-size", 64, "--pairs", 2, "--stages", "blocks.1,blocks.4", "--device", "cpu")
    subprocess.run(
        command_line(
            "precompute", "--dataset", "folder", "--root", folder / "root", "--store", folder / "c.zarr", *small
        ),
        cwd=folder,
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return folder


@pytest.fixture
def shell(folder: Path, tmp_path: Path) -> Run:
    """Run words of a shell, in which $CUTSWAP is the command and $C the cache, in an empty working directory."""

    def run(words: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        command = " ".join(command_line())
        here = {
            **os.environ,
            "CUTSWAP": command,
            "C": str(folder / "c.zarr"),
            "ROOT": str(folder / "root"),
            **environment,
        }
        known = {name: value for name, value in here.items() if value is not None}
        return subprocess.run(
            ["bash", "-c", words], cwd=tmp_path, env=known, capture_output=True, text=True, timeout=120
        )

    return run


TRAIN = "$CUTSWAP train $C --out run --steps 0 --device cpu"
PRECOMPUTE = (
    "$CUTSWAP precompute --dataset folder --root $ROOT --store c.zarr --image-size 32 --stages blocks.6 --device cpu"
)


def worked(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr
    return result


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    assert result.returncode == code, result.stderr
    *progress, line = result.stderr.splitlines()
    assert all(other.startswith(("precompute: ", "localiser ", "not drawn: ", "predict: ")) for other in progress), (
        result.stderr
    )
    assert line.startswith("Error: "), line
    return line


@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MATPLOTLIBRC": "tex"},
        {"HOME": "/proc/1", "MPLCONFIGDIR": "/proc/1/x"},
        {"HOME": None, "TMPDIR": "/no/such/folder"},
        {"PYTHONWARNINGS": "error", "PYTHONHASHSEED": "7"},
    ],
    ids=lambda environment: ",".join(environment),
)
def test_train_draws_its_figures_whatever_the_environment(
    shell: Run, tmp_path: Path, environment: dict[str, str | None]
) -> None:
    Path(tmp_path, "tex").write_text("text.usetex: True\nfont.family: No Such Font\nbackend: nothing\n")
    result = worked(shell(TRAIN, **environment))
    assert result.stderr == ""
    for name in ("scores.png", "maps.png"):
        assert Path(tmp_path, "run/中$x_1$/seed-0", name).stat().st_size > 5000


def test_a_figure_that_cannot_be_drawn_costs_no_result(shell: Run, tmp_path: Path) -> None:
    Path(tmp_path, "matplotlibrc").write_bytes(b"\xff\xfe")
    result = worked(shell(TRAIN))
    assert [line.split(" (")[0] for line in result.stderr.splitlines()] == [
        f"not drawn: run/中$x_1$/partial-seed-0/{name}" for name in ("scores.png", "maps.png")
    ]
    assert Path(tmp_path, "run/results.json").is_file() and Path(tmp_path, "run/中$x_1$/seed-0/cell.json").is_file()
    assert "matplotlibrc" in one_line(shell("$CUTSWAP inspect $C --html look"), 1)


@pytest.mark.parametrize(
    "words",
    [
        "$CUTSWAP inspect $C | head -1",
        "$CUTSWAP inspect $C | true",
        "$CUTSWAP inspect $C >&-",
        f"{PRECOMPUTE} 2>&-",
        f"{PRECOMPUTE} --scheduler processes --workers 2 <&- >&- 2>&- && $CUTSWAP inspect c.zarr --verify 2>/dev/null",
        "PYTHONIOENCODING=ascii $CUTSWAP inspect $C",
        "LC_ALL=C $CUTSWAP datasets --dataset folder --root $ROOT",
    ],
)
def test_closed_streams_and_narrow_encodings(shell: Run, words: str) -> None:
    worked(shell(words))


def test_a_full_disk_behind_standard_output_is_one_line(shell: Run) -> None:
    assert "No space left" in one_line(shell("$CUTSWAP inspect $C >/dev/full"), 1)


def test_without_assertions_is_one_line(shell: Run) -> None:
    assert "PYTHONOPTIMIZE" in one_line(shell("$CUTSWAP inspect $C", PYTHONOPTIMIZE="2"), 2)


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"])
def test_no_bar_moves_in_a_log_and_no_table_is_cut(shell: Run, name: str) -> None:
    result = worked(shell(f"{PRECOMPUTE} && $CUTSWAP inspect c.zarr", **{name: "1", "COLUMNS": "40"}))
    lines = result.stderr.splitlines()
    assert [line for line in lines if "images/s" in line and line.startswith("precompute: 6/6 images")] == [lines[0]]
    assert "\x1b[2K" not in result.stderr and "\r" not in result.stderr
    assert "…" not in result.stdout


def test_a_file_that_the_disk_has_no_room_for_is_one_line(shell: Run, tmp_path: Path) -> None:
    """The limit of a file's size stands for a full disk: the same call fails, at the same place."""
    worked(shell(f"{TRAIN} && {PRECOMPUTE}"))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    commands = (
        "$CUTSWAP train $C --out other --steps 1 --device cpu",
        "$CUTSWAP export model run --out model.pt2",
        "$CUTSWAP precompute --dataset folder --root $ROOT --store other.zarr --image-size 256 --device cpu",
    )
    for command in commands:
        assert "File too large" in one_line(shell(f"ulimit -f 100; {command}"), 1)
    assert {file: file.read_bytes() for file in before} == before and not Path(tmp_path, "model.pt2").exists()


@pytest.mark.parametrize(
    ("command", "there"),
    [
        ("$CUTSWAP train gone.zarr --out run --steps 50 --device cpu", "run/中$x_1$/partial-seed-0/made_of.json"),
        (
            "$CUTSWAP precompute --dataset folder --root $ROOT --store gone.zarr --overwrite --device cpu",
            "gone.zarr/中$x_1$/done/zarr.json",
        ),
    ],
)
def test_a_store_that_is_deleted_under_a_run_is_one_line(shell: Run, tmp_path: Path, command: str, there: str) -> None:
    if command.startswith("$CUTSWAP train"):
        worked(shell("cp -r $C gone.zarr"))
    deletes = threading.Thread(target=delete_when, args=(tmp_path / there, tmp_path / "gone.zarr"))
    deletes.start()
    result = shell(command)
    deletes.join()
    assert one_line(result, result.returncode)


def delete_when(there: Path, store: Path) -> None:
    """Delete a cache as soon as a folder is there."""
    until = time.monotonic() + 100
    while not there.exists() and time.monotonic() < until:
        time.sleep(0.01)
    shutil.rmtree(store)


def test_an_object_store_that_never_answers_is_given_up_after_a_minute(shell: Run) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)  # the kernel takes connections, and nobody reads from them
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        began = time.monotonic()
        line = one_line(shell("$CUTSWAP inspect s3://parts/c.zarr", AWS_ENDPOINT_URL=place, **keys), 2)
    assert place in line and time.monotonic() - began < 90
