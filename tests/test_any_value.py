"""Whatever value an option is given, on the command line or in a file: the command works, or it ends in a line.

EXAMPLES=3000 pytest tests/test_any_value.py tries more of them, drawn anew each time.
"""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from conftest import REPO, place
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from cli import main

EXAMPLES = int(os.environ.get("EXAMPLES", "0"))
# Seconds that a command may take on inputs as small as these, and lines that it may say at an error.
PATIENCE, LINES = 100, 6

# Of each command, what it needs, and what keeps its work short. {..}: see `Small`.
_FOLDER = {"--dataset": "folder", "--root": "{root}"}
_HERE = {"--device": "cpu"}
_QUICK = {"--quick": "", "--arms": "untrained", "--scheduler": "threads", "--workers": "1"}
SHORT: dict[str, dict[str, str]] = {
    "datasets": _FOLDER,
    "precompute": {**_FOLDER, **_HERE, "--store": "new", "--image-size": "32", "--stages": "blocks.6", "--pairs": "2"},
    "train": {**_HERE, "--store": "{store}", "--out": "new", "--steps": "1", "--crop": "32", "--batch-size": "1"},
    "benchmark": {**_FOLDER, **_HERE, **_QUICK, "--store": "{store}", "--out": "new"},
    "predict": {**_HERE, "--out": "new", "run": "{run}", "images": "{image}"},
    "calibrate": {**_HERE, "run": "{run}", "--good": "{fresh}"},
    "inspect": {"--store": "{store}"},
    "export negatives": {"--store": "{store}", "--out": "new"},
    "export model": {"--out": "{image}/new.pt2", "run": "{run}"},
}
_NUMBERS = ("9223372036854775808", "18446744073709551616", "-1", "0", "nan", "inf", "1e400", "9" * 5000, "1,2", "0.5")
_TEXTS = (
    "",
    " ",
    "~nobody/x",
    "~no-such-user/x",
    "x" * 10_000,
    "a\0b",
    "a\nb\x1b[2J",
    "\ud800",
    "\udcff",
    "%s",
    "{}",
    "..",
    ",,",
    "[b]",
)
_PLACES = ("{root}", "{image}", "{store}", "{run}", "/dev/null", "s3://", "file://", "http://[", "x://y", "::", "-")
VALUES = (*_NUMBERS, *_TEXTS, *_PLACES)


@dataclass(frozen=True)
class Small:
    """Tiny inputs below one folder: normal images, one of them, their cache, and a run on it."""

    folder: Path

    def place(self, value: str) -> str:
        """The place that a word in braces names; any other word as it is."""
        names = {"{root}": "root", "{image}": "root/parts/train/good/000.png", "{store}": "cache.zarr", "{run}": "run"}
        names["{fresh}"] = "fresh.png"
        for name, path in names.items():
            value = value.replace(name, str(self.folder / path))
        return value


def leaves(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{above}{name} ")
        else:
            yield above + name, command


COMMANDS = dict(leaves(main))
PARAMETERS = {
    f"{command} {parameter.opts[0]}": parameter for command, one in COMMANDS.items() for parameter in one.params
}


@pytest.fixture(scope="module")
def small(elpv: dict[str, tuple[list[Path], list[Path]]], tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    shutil.copy(elpv["poly"][0][6], folder / "fresh.png")
    return make_small(folder, elpv["poly"][0][:6])


def make_small(folder: Path, files: list[Path]) -> Small:
    small = Small(folder)
    place(folder, "root/parts/train/good", files)
    made = attempt(small, "precompute", {"--store": ["{store}"], "--stages": ["blocks.2,blocks.4,blocks.6"]})
    assert made.exit_code == 0, made.output
    made = attempt(small, "train", {"--out": ["{run}"]})
    assert made.exit_code == 0, made.output
    return small


def attempt(small: Small, command: str, tried: Mapping[str, list[str]], settings: str = "") -> Result:
    """Run a command in this process and working directory, with these values and what it needs beside them."""
    rest = {name: [value] for name, value in SHORT[command].items() if name not in tried}
    if "place" in tried:  # the other way to give a cache
        rest.pop("--store", None)
    words = [*command.split(), *(("--settings", settings) if settings else ())]
    named = {**rest, **tried}
    for name in sorted(named, key=lambda name: not name.startswith("-")):
        values = [small.place(value) for value in named[name]]
        one = PARAMETERS[f"{command} {name}"]
        if isinstance(one, click.Argument):
            words += ["--", *values] if "--" not in words else values
        elif one.is_flag:
            words += [name]
        else:
            words += [word for value in values for word in (name, *[value] * one.nargs)]
    with within(PATIENCE):
        return CliRunner().invoke(main, words)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """An error in the main thread where the block takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def elsewhere(small: Small) -> Iterator[None]:
    """An empty working directory, three folders deep, so that `..` is one that this test made as well."""
    with tempfile.TemporaryDirectory(dir=small.folder.parent) as above:
        deep = Path(above, "a", "b", "c")
        deep.mkdir(parents=True)
        with chdir(deep):
            yield


def assert_told(result: Result) -> None:
    """It ended as every command ends: with a status that says how, in a few lines, without a traceback."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2, 3)  # 3: `predict --fail-on-anomaly`
    if result.exit_code == 2:
        assert len(result.stderr.splitlines()) <= LINES and len(result.stderr) < 6000
        assert result.stderr.splitlines()[-1].startswith("Error: ")


def outside() -> dict[str, float]:
    """When the files of this repository were last written, and what lies in the home folder and above it."""
    places = [*REPO.glob("*"), *Path.home().glob("*"), *Path("/").glob("*")]
    fixed = {"/proc", "/sys", "/dev", "/run", "/tmp"}
    return {str(file): 0.0 if file.is_dir() else file.lstat().st_mtime for file in places if str(file) not in fixed}


# What an earlier version did not stand, and what takes no value from a list.
KNOWN = (
    ("benchmark --image-size", "0"),
    ("train --seed", "18446744073709551616"),
    ("train --seed", "9" * 5000),
    ("train --batch-size", "9223372036854775808"),
    ("train --steps", "9223372036854775808"),
    ("train --category", "a\0b"),
    ("precompute --weights", "~no-such-user/x"),
    ("precompute --weights", "~nobody/x"),
    ("inspect --image", "9" * 5000),
    ("inspect --html", "\ud800"),
    ("export negatives --out", "s3://"),
    ("export model --out", "{root}"),
)
FAST = settings(
    max_examples=EXAMPLES or 15,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink) if EXAMPLES else (Phase.explicit, Phase.generate),
)
# An export takes ten seconds, and a benchmark as long.
SLOW = ("benchmark", "export model")
DRAWN = st.sampled_from([name for name in PARAMETERS if EXAMPLES or not name.startswith(SLOW)])


def try_value(small: Small, tried: str, values: list[str]) -> None:
    command = next(name for name in COMMANDS if tried.startswith(f"{name} "))
    copy = Small(Path(tempfile.mkdtemp(dir=small.folder.parent)))
    shutil.copytree(small.folder, copy.folder, dirs_exist_ok=True)
    before = outside()
    try:
        with elsewhere(copy):
            assert_told(attempt(copy, command, {tried.removeprefix(f"{command} "): values}))
        assert outside() == before
    finally:
        shutil.rmtree(copy.folder)


@pytest.mark.parametrize(("tried", "value"), KNOWN)
def test_what_an_earlier_version_did_not_stand(small: Small, tried: str, value: str) -> None:
    try_value(small, tried, [value])


@FAST
@given(DRAWN, st.lists(st.sampled_from(VALUES) | st.text(max_size=20), min_size=1, max_size=2))
def test_any_value_is_taken_or_told(small: Small, tried: str, values: list[str]) -> None:
    try_value(small, tried, values)


TOML = st.sampled_from(VALUES).filter(lambda value: "\ud800" not in value and "\udcff" not in value) | st.text(
    max_size=9
)
WITH_FILE = [name for name, command in COMMANDS.items() if any(one.name == "settings" for one in command.params)]
NAMES = [(name, one.opts[0].removeprefix("--")) for name in WITH_FILE for one in COMMANDS[name].params]


@FAST
@given(st.sampled_from([one for one in NAMES if EXAMPLES or one[0] not in SLOW]), TOML, st.booleans(), st.booleans())
@example(("precompute", "seed"), "9" * 5000, False, False)
@example(("train", "batch-size"), "9223372036854775808", False, False)
@example(("train", "head-lr"), "nan", False, False)
def test_any_value_of_a_settings_file_is_taken_or_told(
    small: Small, tried: tuple[str, str], value: str, quoted: bool, several: bool
) -> None:
    command, name = tried
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if quoted else value
    copy = Small(Path(tempfile.mkdtemp(dir=small.folder.parent)))
    shutil.copytree(small.folder, copy.folder, dirs_exist_ok=True)
    try:
        with elsewhere(copy):
            written = f"{name} = [{copy.place(text)}]" if several else f"{name} = {copy.place(text)}"
            Path("settings.toml").write_text(written, encoding="utf-8", errors="replace")
            assert_told(attempt(copy, command, {}, "settings.toml"))
    finally:
        shutil.rmtree(copy.folder)
