"""Both stages against a real S3 API on loopback, with images and cache in a bucket; commands as a user runs them."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from conftest import NORMALS, REPO, CommandResult, RunCli, SmallCache, assert_same_arrays, command_line, fill_cache

from pipeline.cache.cache import open_cache
from pipeline.data.datasets import load
from pipeline.errors import RunError, UserError
from pipeline.workers.execution import Execution
from train.deploy.predict import predict
from train.run import open_run
from train.settings import TrainSettings
from train.training import train

SMALL = ("--image-size", 64, "--pairs", 4, "--device", "cpu")
# Seconds within which a command tells of a remote side that does not answer.
PATIENCE = 60
NOBODY = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Bucket:
    """A bucket that holds the images of `image_root`; fs: its filesystem."""

    url: str
    fs: Any

    @property
    def root(self) -> str:
        return f"{self.url}/images"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The URL of an S3 server in a process of its own, to which the environment points."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = Path(sys.executable).parent / "moto_server"
    process = subprocess.Popen([server, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", url)
            patch.setenv("AWS_ACCESS_KEY_ID", "a")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "b")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            yield url
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def bucket(endpoint: str, image_root: Path) -> Bucket:
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.mkdir("parts")
    fs.put(f"{image_root}/", "parts/images/", recursive=True)
    return Bucket("s3://parts", fs)


@pytest.fixture(scope="module")
def killed(bucket: Bucket, small_cache: SmallCache, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cache in the bucket whose run was killed in the middle and then ended by processes; returns its URL."""
    store = f"{bucket.url}/cache.zarr"
    command = ("precompute", "--dataset", "folder", "--root", bucket.root, "--store", store, *SMALL)
    folder = tmp_path_factory.mktemp("killed")
    process = subprocess.Popen(command_line(*command, "--workers", 1), cwd=folder, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not bucket.fs.find("parts/cache.zarr/mono/done/c") and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    root = open_cache(store)
    done = sum(int(root[name].done.sum()) for name in NORMALS)
    assert 1 <= done < 3 and root.complete is False

    options = ("--scheduler", "processes", "--workers", 2)
    again = subprocess.run(command_line(*command, *options), cwd=folder, capture_output=True, text=True, timeout=180)
    assert again.returncode == 0, again.stderr
    assert 0 < int(again.stdout.split()[3]) < sum(NORMALS.values())
    return store


def succeeded(result: CommandResult) -> str:
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr and "Unclosed" not in result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bits_of_a_local_cache(killed: str, small_cache: SmallCache) -> None:
    assert_same_arrays(killed, small_cache.store)
    assert open_cache(killed).complete is True


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_writes_nothing(killed: str, bucket: Bucket, run_cli: RunCli) -> None:
    before = bucket.fs.find("parts/cache.zarr", detail=True)
    command = ("precompute", "--dataset", "folder", "--root", bucket.root, "--store", killed, *SMALL)
    assert succeeded(run_cli(*command)) == f"{killed}: 72 images, 0 computed now, 0 skipped\n"
    after = bucket.fs.find("parts/cache.zarr", detail=True)
    assert {key: one["LastModified"] for key, one in after.items()} == {
        key: one["LastModified"] for key, one in before.items()
    }


@pytest.mark.slow
def test_inspect_reads_it(killed: str, run_cli: RunCli, tmp_path: Path) -> None:
    summary = json.loads(succeeded(run_cli("inspect", killed, "--json", "--verify")))
    assert {one["name"]: one["computed"] for one in summary["categories"]} == NORMALS
    assert summary["verify"] == {"images": 72, "problems": [], "skipped": []}
    succeeded(run_cli("inspect", killed, "--category", "poly", "--html", tmp_path / "look"))
    assert "poly/train/good/000.png" in (tmp_path / "look/index.html").read_text()


@pytest.mark.slow
def test_train_streams_from_it_and_predict_needs_the_run_alone(
    killed: str, small_cache: SmallCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainSettings(steps=2, batch_size=2, coreset=30)
    (cell,) = train(
        open_run(killed, tmp_path / "run", settings, categories=["poly"], execution=Execution(device="cpu"))
    ).cells
    assert (cell.category, cell.n_test) == ("poly", 7)
    monkeypatch.setenv("AWS_ENDPOINT_URL", NOBODY)
    images = [str(small_cache.root / "poly/test/crack")]
    predictions = predict(tmp_path / "run", images, tmp_path / "predicted", execution=Execution(device="cpu")).lines
    with (tmp_path / "run/poly/seed-0/scores.csv").open(newline="") as file:
        scores = {Path(row["path"]).name: float(row["score"]) for row in csv.DictReader(file) if "crack" in row["path"]}
    assert {Path(one.path).name: one.score for one in predictions} == pytest.approx(scores, abs=1e-3)


@pytest.mark.slow
def test_images_join_change_and_leave(bucket: Bucket, small_cache: SmallCache, capfd: pytest.CaptureFixture) -> None:
    store, root, folder = f"{bucket.url}/grown.zarr", f"{bucket.url}/grown", "parts/grown/poly/train/good"
    bucket.fs.copy("parts/images/poly", "parts/grown/poly", recursive=True)

    def run(**options: bool) -> int:
        return fill_cache(load("folder", root), store, small_cache.settings, device="cpu", **options).computed

    assert run() == 5
    before = open_cache(store)["poly"].read("pairs")
    bucket.fs.copy(f"{folder}/001.png", f"{folder}/000-new.png")
    assert run() == 1
    assert run() == 0
    bucket.fs.copy(f"{folder}/002.png", f"{folder}/003.png")
    with pytest.raises(UserError, match=r"1 images have changed .*poly/train/good/003\.png; .*--update"):
        run()
    bucket.fs.rm(f"{folder}/004.png")
    with pytest.raises(UserError, match=r"1 cached images have vanished .*poly/train/good/004\.png; .*--update"):
        run()
    capfd.readouterr()
    assert run(update=True) == 1
    told = capfd.readouterr().err
    assert "poly: 1 images have changed and are computed again: poly/train/good/003.png\n" in told
    assert "poly: 1 images have vanished and are dropped: poly/train/good/004.png\n" in told
    group = open_cache(store)["poly"]
    assert [str(path).rpartition("/")[2] for path in group.read("paths")] == [
        *("000.png", "001.png", "002.png", "003.png", "", "000-new.png")
    ]
    np.testing.assert_array_equal(group.read("pairs")[:3], before[:3])


# --- failures of the remote side ------------------------------------------------------------------------------------


def told(status: int, *arguments: object, **environment: str) -> str:
    """The one line of a command that fails, in a bounded time."""
    command = command_line(*arguments)
    result = subprocess.run(
        command, cwd="/", env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (result.returncode, result.stdout) == (status, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: "), line
    return line


def demand_credentials(endpoint: str, after: str) -> None:
    """Have the server refuse keys that it does not know after so many requests."""
    urlopen(Request(f"{endpoint}/moto-api/reset-auth", after.encode(), {"Content-Type": "text/plain"})).close()


@pytest.fixture
def refusing(endpoint: str) -> Iterator[Callable[[], None]]:
    """A function after which the server refuses the credentials of the environment, until the test ends."""
    yield lambda: demand_credentials(endpoint, "0")
    demand_credentials(endpoint, "inf")


@pytest.mark.slow
def test_a_bucket_that_is_not_there(bucket: Bucket, small_cache: SmallCache) -> None:
    assert "s3://none/images: no such folder" in told(2, "datasets", "--dataset", "mvtec", "--root", "s3://none/images")
    assert "no cache at s3://none/c.zarr" in told(2, "inspect", "s3://none/c.zarr")
    dataset = load("folder", bucket.root, ("poly",))
    for store, line in (("s3://none/c.zarr", "cannot be created"), (bucket.root, "exists and is no cache of ours")):
        with pytest.raises(UserError, match=f"^{store} {line}"):
            fill_cache(dataset, store, small_cache.settings, device="cpu")


@pytest.mark.slow
def test_wrong_credentials(killed: str, bucket: Bucket, refusing: Callable[[], None]) -> None:
    refusing()
    for arguments in (("inspect", killed), ("datasets", "--dataset", "mvtec", "--root", bucket.root)):
        line = told(2, *arguments)
        assert arguments[-1] in line and "Access Key" in line


@pytest.mark.slow
def test_an_endpoint_that_does_not_answer(killed: str, bucket: Bucket) -> None:
    line = told(2, "inspect", killed, AWS_ENDPOINT_URL=NOBODY)
    assert killed in line and NOBODY in line
    command = ("datasets", "--dataset", "mvtec", "--root", bucket.root)
    line = told(2, *command, AWS_ENDPOINT_URL=NOBODY, AWS_MAX_ATTEMPTS="1")
    assert bucket.root in line and NOBODY in line


@pytest.mark.slow
def test_images_out_of_reach_are_not_taken_for_bad_ones(
    bucket: Bucket, small_cache: SmallCache, endpoint: str, refusing: Callable[[], None], tmp_path: Path
) -> None:
    dataset, store = load("folder", bucket.root, ("poly",)), str(tmp_path / "c.zarr")
    refusing()
    with pytest.raises(RunError, match=r"poly/train/good.* is out of reach .*Access Key.*: run the same"):
        fill_cache(dataset, store, small_cache.settings, device="cpu", bad_images="skip")
    demand_credentials(endpoint, "inf")
    report = fill_cache(dataset, store, small_cache.settings, device="cpu", bad_images="skip")
    assert (report.computed, report.bad) == (5, ())


# --- the extras ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "extra"), [("gs://parts/c", "gs"), ("az://parts/c", "az"), ("zip://::gs://parts/c.zip", "gs")]
)
def test_a_missing_extra_is_named(url: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for what in (lambda: load("folder", url), lambda: open_cache(url)):
        with pytest.raises(UserError) as caught:
            what()
        assert str(caught.value).endswith(f"pip install 'cutswap[{extra}]'") and url in str(caught.value)


def test_s3_without_its_extra_and_local_without_any(small_cache: SmallCache) -> None:
    packages = {"s3fs", "gcsfs", "adlfs", "aiobotocore", "botocore", "aiohttp", "azure"}
    code = f"""
import sys
sys.modules["s3fs"] = None
from pipeline.data.datasets import load
from pipeline.errors import UserError
from pipeline.precompute import precompute
from pipeline.settings import PrecomputeSettings
from pipeline.cache.cache import open_cache
dataset = load("folder", {str(small_cache.root)!r})
settings = PrecomputeSettings(image_size=64, pairs=4)
print(precompute([(dataset, {small_cache.store!r})], settings).caches[0].computed)
print(sorted({packages} & {{name for name, module in sys.modules.items() if module}}))
for what in (lambda: load("folder", "s3://parts/images"), lambda: open_cache("s3://parts/c.zarr")):
    try:
        what()
    except UserError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "0",
        "[]",
        "s3://parts/images needs the package s3fs: pip install 'cutswap[s3]'",
        "s3://parts/c.zarr needs the package s3fs: pip install 'cutswap[s3]'",
    ]
