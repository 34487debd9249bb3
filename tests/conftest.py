"""Fixtures shared by the tests: real solar-cell images as a data set on disk, and a small cache of it."""

import csv
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As our commands do, before torch is imported: OpenMP's threads must not spin while the tests beside them compute.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

import cli
from cli import main
from pipeline.backbones.spec import weights_digest
from pipeline.cache.cache import open_cache
from pipeline.cache.create import prepare_cache
from pipeline.cache.layout import CHUNK, layout
from pipeline.data.datasets import Dataset, load
from pipeline.data.images import Decoding, decode_rgb
from pipeline.data.samples import Category, Sample
from pipeline.pairs import draw_pairs
from pipeline.precompute import PrecomputeReport, precompute
from pipeline.settings import PrecomputeSettings
from pipeline.workers.execution import Execution

REPO = Path(__file__).resolve().parent.parent

# More than one chunk of 64, so that chunks can be done, missing and resumed.
NORMALS = {"mono": 67, "poly": 5}

CommandResult = subprocess.CompletedProcess[str]
RunCli = Callable[..., CommandResult]


@dataclass(frozen=True)
class SmallCache:
    """A finished cache: where it lies, the root and data set it was made of, and its settings (stages chosen)."""

    store: str
    root: Path
    dataset: str
    settings: PrecomputeSettings


def pytest_configure() -> None:
    # A job in the background ignores these, and so would the commands that tests send them to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    # Two threads on two cores that others use as well are slower than one, and one is what the workers use.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def memory_given_back() -> Iterator[None]:
    """Commands that run in this process do not make it keep its memory, which is for a process of one command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "keep_memory", lambda: False)
        yield


@pytest.fixture(scope="session")
def elpv() -> dict[str, tuple[list[Path], list[Path]]]:
    """Files of the ELPV package by category: (normal, defective), PNG, 300x300, grey."""
    dataset = load("elpv")
    files: dict[str, tuple[list[Path], list[Path]]] = {}
    for category in dataset.categories:
        normal = [Path(dataset.image_root, sample.path) for sample in category.train]
        files[category.name] = (
            normal,
            [Path(dataset.image_root, sample.path) for sample in category.test if sample.label],
        )
    return files


@pytest.fixture(scope="session")
def photos(elpv: dict[str, tuple[list[Path], list[Path]]]) -> NDArray[np.uint8]:
    """(6,64,64,3) uint8: four normal and two defective cells."""
    files = [*elpv["mono"][0][:2], *elpv["poly"][0][:2], elpv["mono"][1][0], elpv["poly"][1][0]]
    return np.stack([decode_rgb(file.read_bytes(), Decoding(64, "stretch", None), file.name) for file in files])


@pytest.fixture(scope="session")
def image_root(elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of MVTec AD: mono (67 normal) and poly (5); 4 good and 3 cracked to test; read only."""
    root = tmp_path_factory.mktemp("cells")
    for category, count in NORMALS.items():
        normal, cracked = elpv[category]
        place(root, f"{category}/train/good", normal[:count])
        place(root, f"{category}/test/good", normal[count : count + 4])
        place(root, f"{category}/test/crack", cracked[:3])
    return root


def place(root: Path, folder: str, files: Iterable[Path]) -> list[Path]:
    """Copy images to ``root/folder/000.png`` and so on."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(file, root / folder / f"{i:03}.png")) for i, file in enumerate(files)]


@pytest.fixture(scope="session")
def small_settings() -> PrecomputeSettings:
    """Settings that are quick to compute: 64 pixels, maps of 16x16 cells, the default four stages named."""
    return PrecomputeSettings(image_size=64, pairs=4, stages=("blocks.1", "blocks.2", "blocks.4", "blocks.6"))


def fill_cache(
    dataset: Dataset,
    store: str | Path,
    settings: PrecomputeSettings,
    *,
    overwrite: bool = False,
    update: bool = False,
    **execution: Any,
) -> PrecomputeReport:
    """`precompute` of one data set; execution: the fields of `Execution`."""
    places = [(dataset, str(store))]
    return precompute(places, settings, Execution(**execution), overwrite=overwrite, update=update).caches[0]


@pytest.fixture(scope="session")
def small_cache(
    image_root: Path, small_settings: PrecomputeSettings, tmp_path_factory: pytest.TempPathFactory
) -> SmallCache:
    """A finished cache of `image_root` at 64 pixels; read only: copy it (`copied_cache`) to change it."""
    store = str(tmp_path_factory.mktemp("cache") / "folder.zarr")
    fill_cache(load("folder", str(image_root)), store, small_settings, device="cpu", workers=2)
    return SmallCache(store, image_root, "folder", small_settings)


@pytest.fixture(scope="session")
def plain_cache(elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path_factory: pytest.TempPathFactory) -> SmallCache:
    """A cache of a folder of six normal images, "pictures", and nothing to test on; read only."""
    folder = tmp_path_factory.mktemp("plain")
    place(folder, "pictures", elpv["poly"][0][:6])
    settings = PrecomputeSettings(image_size=64, pairs=2, stages=("blocks.1", "blocks.4"))
    fill_cache(load("folder", str(folder / "pictures")), str(folder / "cache.zarr"), settings, device="cpu")
    return SmallCache(str(folder / "cache.zarr"), folder / "pictures", "folder", settings)


@pytest.fixture
def copied_cache(small_cache: SmallCache, tmp_path: Path) -> SmallCache:
    """A copy of `small_cache` that a test may change; its images are still those of `image_root`."""
    store = shutil.copytree(small_cache.store, tmp_path / "folder.zarr")
    return SmallCache(str(store), small_cache.root, small_cache.dataset, small_cache.settings)


@pytest.fixture
def copied_root(image_root: Path, tmp_path: Path) -> Path:
    """A copy of `image_root` that a test may change."""
    return Path(shutil.copytree(image_root, tmp_path / "cells"))


def read_arrays(store: str | Path) -> dict[str, NDArray[Any]]:
    """Every array of a cache by ``category/name``."""
    names = [*layout(1, PrecomputeSettings(stages=("any",))), "done"]
    return {f"{c.name}/{name}": c.read(name) for c in open_cache(str(store)).choose() for name in names}


def assert_same_arrays(store: str | Path, other: str | Path) -> None:
    """Two caches hold the same categories and, bit for bit, the same arrays."""
    mine, yours = read_arrays(store), read_arrays(other)
    assert mine.keys() == yours.keys()
    for name, values in mine.items():
        assert values.dtype == yours[name].dtype, name
        np.testing.assert_array_equal(values, yours[name], err_msg=name)


def command_line(*arguments: object) -> list[str]:
    """The command `python cli.py ARGUMENTS`."""
    return [sys.executable, str(REPO / "cli.py"), *map(str, arguments)]


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The content of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG of rows as they are before compression, each begun by its filter; also one that claims what is not so."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def touch(root: Path, paths: Iterable[str]) -> Path:
    """Empty files: a listing must not need to open one."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def invoke(*arguments: object) -> Result:
    """`cli.py ARGUMENTS` in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class Killed(Exception):
    pass


class Advance:
    """Counts the steps that are done, and cuts the run off after so many."""

    def __init__(self, die_at: int | None = None) -> None:
        self.done, self._die_at = 0, die_at

    def __call__(self, count: int) -> None:
        self.done += count
        if self.done == self._die_at:
            raise Killed


Weights = dict[str, torch.Tensor]


def assert_same_weights(mine: Weights, yours: Weights) -> None:
    assert mine.keys() == yours.keys()
    assert [name for name in mine if not torch.equal(mine[name], yours[name])] == []


def log_of(folder: Path) -> list[dict[str, str]]:
    """The lines of a training log without the seconds, which differ from run to run."""
    with (folder / "log.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@contextmanager
def killed_once_there(command: Sequence[str], file: Path) -> Iterator[None]:
    """Run a command beside the block, and kill it, after the block, as soon as the file is there."""
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
        until = time.monotonic() + 100
        while not file.exists() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL


# The begin of a script that kills itself before the step of that number, `left`, of those that move files in place.
DIES_AT_A_STEP = """\
import os, signal, sys; from pathlib import Path
left = int(sys.argv.pop(1))
def step(kind):
    def stepped(self, *rest, **named):
        global left
        left -= 1
        left < 0 and os.kill(os.getpid(), signal.SIGKILL)
        return kind(self, *rest, **named)
    return stepped
for name in ('replace', 'unlink', 'rmdir', 'mkdir'): setattr(Path, name, step(getattr(Path, name)))
"""


def changed_at(folder: str | Path) -> dict[str, int]:
    """When each file below a folder was written, in ns, by its path there; the locks of owners are left out."""
    files = (file for file in Path(folder).rglob("*") if file.is_file() and file.name != ".lock")
    return {file.relative_to(folder).as_posix(): file.stat().st_mtime_ns for file in files}


@pytest.fixture
def run_cli(tmp_path: Path) -> RunCli:
    """Run `python cli.py ARGUMENTS` in a process of its own, in an empty working directory."""
    folder = tmp_path / "working-directory"
    folder.mkdir()

    def run(*arguments: object, timeout: float = 120) -> CommandResult:
        command = command_line(*arguments)
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)

    return run


def listed(root: str | Path, paths: Mapping[str, Sequence[str]], name: str = "folder") -> Dataset:
    """A data set of normal images at these paths by category, none of which need exist."""
    samples = {category: tuple(Sample(path, 0, "good", ()) for path in some) for category, some in paths.items()}
    return Dataset(name, str(root), tuple(Category(category, some, ()) for category, some in samples.items()))


def write_cache(
    store: Path, images: Mapping[str, NDArray[np.uint8]], settings: PrecomputeSettings, chunks_per_shard: int = 1
) -> str:
    """A finished cache of images (N,S,S,3) by category with random pairs, written without a network; its path."""
    paths = {name: [f"{name}/train/good/{i:04}.png" for i in range(len(rows))] for name, rows in images.items()}
    weights = weights_digest(settings.backbone, settings.weights)
    cache = prepare_cache(str(store), listed(store.parent, paths), settings, weights, chunks_per_shard=chunks_per_shard)
    for name, rows in images.items():
        category = cache[name]
        shape = len(rows), len(settings.stages), settings.pairs
        bounds: dict[str, Any] = {"area": settings.patch_area, "aspect": settings.patch_aspect}
        anywhere = torch.zeros(int(np.prod(shape)), 8, 8, dtype=torch.uint8)
        keys = np.arange(len(anywhere), dtype=np.uint64)
        pairs, _ = draw_pairs(anywhere, keys, pairs=1, image_size=settings.image_size, **bounds)
        arrays = {"images": rows, "valid": np.ones(len(rows), np.uint8), "pairs": pairs.numpy().reshape(*shape, 6)}
        for number, first in enumerate(range(0, len(rows), chunks_per_shard * CHUNK)):
            part = slice(first, first + chunks_per_shard * CHUNK)
            category.write_shard(number, {name: values[part] for name, values in arrays.items()})
    cache.finish()
    return str(store)
