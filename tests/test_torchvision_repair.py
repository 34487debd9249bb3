"""Each case runs in an interpreter of its own: what is imported, and which operators exist, is for a whole process."""

import subprocess
import sys
import textwrap

import pytest
from conftest import REPO


def run(code: str) -> str:
    """Standard output of a Python program run from the checkout; fails with what it wrote to standard error."""
    program = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(program, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
def test_what_imports_torchvision_works_after_pipeline() -> None:
    assert (
        run("import pipeline, torchvision, timm, pytorch_grad_cam; print(torchvision.models.resnet18.__name__)")
        == "resnet18"
    )


def test_importing_pipeline_imports_neither_torch_nor_torchvision() -> None:
    assert run("import pipeline, sys; print({'torch', 'torchvision'} & sys.modules.keys())") == "set()"


@pytest.mark.slow
def test_install_twice_and_repair_after_the_import_are_harmless() -> None:
    printed = run(
        """
        import sys
        from pipeline.backbones import torchvision_repair as repair

        def waiting():
            return sys.meta_path.count(repair.RepairBeforeImport)

        before = waiting()
        repair.install()
        twice = waiting()
        import torchvision
        from torchvision.models import get_model
        get_model("resnet18", weights=None)
        after = waiting()
        repair.install()
        print(before, twice, after, waiting(), repair.repair(), repair.repair())
        """
    )
    assert printed == "1 1 0 0 False False"


# The compiled part of torchvision is a shared library that declares operators when it is loaded. In these cases the
# folder of a torchvision holds such a library or a broken one, and loading goes through torch as it does in earnest.
TORCHVISION = """
    import importlib.util, sys, tempfile
    from pathlib import Path
    import torch
    from pipeline.backbones import torchvision_repair as repair

    folder = Path(tempfile.mkdtemp(), "torchvision")
    folder.mkdir()
    (folder / "__init__.py").touch()
    sys.path.insert(0, str(folder.parent))
    sys.meta_path.remove(repair.RepairBeforeImport)
"""


@pytest.mark.slow
def test_nothing_is_declared_without_torchvision_or_where_its_operators_load() -> None:
    printed = run(
        TORCHVISION
        + """
    path, sys.path = sys.path, []
    absent = repair.repair(), hasattr(torch.ops.torchvision, "nms")
    sys.path = path
    ordinary = torch.library.Library("torchvision", "DEF")
    ordinary.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # Of the two operators the ordinary library made one; the repair would have made both, or failed at the first.
    print(absent, repair.repair(), hasattr(torch.ops.torchvision, "nms"), hasattr(torch.ops.torchvision, "qnms"))
    """
    )
    assert printed == "(False, False) False True False"


@pytest.mark.slow
def test_schemas_are_declared_where_the_compiled_part_does_not_load() -> None:
    printed = run(
        TORCHVISION
        + """
    (folder / "_C.so").write_bytes(b"built for another torch")
    first = repair.repair()
    print(first, repair.repair(), hasattr(torch.ops.torchvision, "nms"), hasattr(torch.ops.torchvision, "qnms"))
    """
    )
    assert printed == "True False True True"


@pytest.mark.slow
def test_operators_are_asked_for_whatever_the_compiled_part_is_called() -> None:
    # As since torchvision 0.29: a library of another name that loads and brings the operators.
    printed = run(
        TORCHVISION
        + """
    (folder / "_C_stable.so").touch()
    (folder / "_C_cuda.so").write_bytes(b"built for another torch")
    load, loaded = torch.ops.load_library, []

    def load_library(path):
        loaded.append(Path(path).name)
        if Path(path).name != "_C_stable.so":
            load(path)
        global ordinary
        ordinary = torch.library.Library("torchvision", "DEF")
        ordinary.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    torch.ops.load_library = load_library
    print(loaded, repair.repair(), loaded, hasattr(torch.ops.torchvision, "qnms"))
    """
    )
    assert printed == "['_C_cuda.so', '_C_stable.so'] False ['_C_cuda.so', '_C_stable.so'] False"


@pytest.mark.slow
def test_operators_that_load_after_the_repair_do_not_end_the_process() -> None:
    printed = run(
        TORCHVISION
        + """
    first = repair.repair()
    late = torch.library.Library("torchvision", "DEF")
    late.define("roi_align(Tensor input) -> Tensor")
    print(first, hasattr(torch.ops.torchvision, "roi_align"))
    """
    )
    assert printed == "True True"
