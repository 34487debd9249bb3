"""Make torchvision importable with a torch build that its compiled part was not made for.

A CPU build of torch next to a torchvision built for CUDA cannot load torchvision's compiled operators, and
``import torchvision`` then fails with "operator torchvision::nms does not exist". Nothing here uses those
operators (models and weight enums are plain Python), so declaring their schemas is enough. `pipeline/__init__.py`
calls `install`, and the repair itself runs when torchvision is about to be imported by anyone (timm and
grad-cam do), so that commands which need no network do not pay for importing torch.
On an ordinary install the compiled operators load and nothing is declared.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# Schemas live as long as the Library object that declared them.
_declared: list[Any] = []


class RepairBeforeImport:
    """A finder that finds nothing: it repairs when torchvision is looked for and leaves the import to others."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """None, after the repair where torchvision is what is looked for."""
        if name == "torchvision":
            sys.meta_path.remove(RepairBeforeImport)  # first: repair() itself looks torchvision up
            repair()
        return None


def install() -> None:
    """Arrange for `repair` to run before the first import of torchvision; a second call changes nothing."""
    if "torchvision" not in sys.modules and RepairBeforeImport not in sys.meta_path:
        sys.meta_path.insert(0, RepairBeforeImport)


def repair() -> bool:
    """Declare torchvision's operator schemas if its compiled part does not bring them.

    Returns True where schemas were declared; False where there was nothing to do: an ordinary install, no
    torchvision at all, or a repeated call.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if _declared or spec is None or spec.origin is None:
        return False
    _load_operators(Path(spec.origin).parent)
    if hasattr(torch.ops.torchvision, "nms"):
        return False
    # A fragment: at a second whole library of one name, should the compiled part load later, torch aborts the process.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return True


def _load_operators(torchvision_folder: Path) -> None:
    """Load the compiled part, whatever its files are called: `_C.so`, since torchvision 0.29 `_C_stable.so`."""
    import torch

    for compiled in sorted(torchvision_folder.glob("_C*")):
        with suppress(OSError):
            torch.ops.load_library(str(compiled))
