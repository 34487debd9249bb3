"""The shape of the product: which way imports go, between packages and between their rooms, and how long a file is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PRODUCT = ("cutswap_command.py", "cli.py", "pipeline", "train")
FILES = [path for part in PRODUCT for path in ([REPO / part] if part.endswith(".py") else (REPO / part).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """Modules of the product that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
        yield from (name for name in names if name and name.partition(".")[0] in ("cli", "pipeline", "train"))


def room(module: str) -> str:
    """`pipeline.cache` of a module in it; of a module at the door of its package, the module itself."""
    return ".".join(module.split(".")[:2])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_is_short_and_imports_only_what_lies_behind_it(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= (330 if path.name == "cli.py" else 250)
    behind = {
        "cutswap_command": (),
        "cli": ("cli", "train", "pipeline"),
        "train": ("train", "pipeline"),
        "pipeline": ("pipeline",),
    }
    allowed = behind[module_of(path).partition(".")[0]]
    assert not [name for name in imported(path) if name.partition(".")[0] not in allowed]


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        if path.name != "__init__.py" or path.parent.name not in ("pipeline", "train"):
            here = room(module_of(path))
            arrows.setdefault(here, set()).update(room(name) for name in imported(path))
            arrows[here].discard(here)
    assert len(list(TopologicalSorter(arrows).static_order())) > 30
