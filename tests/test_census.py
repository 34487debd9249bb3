"""What readers of folders take and leave out, told on files of every kind that people have beside their photographs."""

import json
import os
import shutil
import stat
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import command_line, invoke, touch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.census import Note, left_out, missing, twice
from pipeline.data.datasets import load
from pipeline.data.ground_truth import beside_photographs, match_masks
from pipeline.data.listing import list_images
from pipeline.data.samples import Layout
from pipeline.errors import UserError
from train.deploy.inputs import find_inputs


def told(root: Path, name: str = "folder") -> dict[str, int]:
    return {note.what: note.count for note in load(name, str(root)).census}


# --- listing ----------------------------------------------------------------------------------------------------


def test_files_of_other_suffixes_are_counted_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "b.heic", "c.HEIC", "d.jxl", "e.dcm", "f", "sub.d/g", ".hidden.png", "notes.txt"])
    listing = list_images(str(tmp_path))
    assert listing.files == ("a.png",)
    notes = {note.what: (note.count, note.first) for note in left_out(listing, Layout(()))}
    assert notes["no image by its suffix, .heic"] == (2, ("b.heic", "c.HEIC"))
    assert notes["no image: no suffix"] == (2, ("f", "sub.d/g"))
    assert notes["hidden"] == (1, (".hidden.png",))
    assert {"no image by its suffix, .jxl", "no image by its suffix, .dcm", "no image by its suffix, .txt"} < set(notes)


def test_only_regular_files_are_listed_and_the_others_named(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png"])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mknod(tmp_path / "door.png", stat.S_IFSOCK | 0o600)
    listing = list_images(str(tmp_path))
    assert listing.files == ("a.png", "linked.png")
    assert listing.passed_over == {
        "pipe.png": "no regular file",
        "zero.png": "no regular file",
        "door.png": "no regular file",
        "gone.png": "a link that leads nowhere",
        "itself.png": "a link that leads nowhere",
        "loop": "a link to a folder that holds it",
    }


def test_a_name_that_is_not_utf8_is_named_and_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, ["ä.png", "漢字.png"])
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).touch()
    listing = list_images(str(tmp_path))
    assert listing.files == ("ä.png", "漢字.png")
    ((name, why),) = listing.passed_over.items()
    assert why == "its name is not UTF-8" and name.encode()  # it can be printed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_read_is_the_one_that_is_named(tmp_path: Path) -> None:
    touch(tmp_path, ["a/train/good/0.png", "b/train/good/0.png"])
    (tmp_path / "b/train").chmod(0)
    try:
        with pytest.raises(UserError, match=f"^{tmp_path}/b/train: cannot be listed"):
            list_images(str(tmp_path))
    finally:
        (tmp_path / "b/train").chmod(0o700)


def test_so_it_is_for_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, ["a/train/good/0.png"])
    scan = os.scandir

    def refusing(folder: str) -> object:
        if str(folder).endswith("train"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=f"^{tmp_path}/a/train: cannot be listed .Permission denied"):
        list_images(str(tmp_path))


# --- what is a normal, what stands beside it --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["good", "Good", "GOOD", "ok", "OK", "Normal", "normal", "defect-free", "No_Defect"])
def test_folders_of_normals_have_any_usual_name(name: str, tmp_path: Path) -> None:
    touch(tmp_path, [f"c/train/{name}/0.png", f"c/test/{name}/1.png", "c/test/crack/2.png", "c/train/crack/3.png"])
    (category,) = load("folder", str(tmp_path)).categories
    assert [s.path for s in category.train] == [f"c/train/{name}/0.png"]
    assert [(s.label, s.defect) for s in category.test] == [(1, "crack"), (0, "good")][:: 1 if name > "crack" else -1]
    assert told(tmp_path)["in train, but in no folder of normals"] == 1


@pytest.mark.parametrize(
    "beside",
    [
        "{}_label.png",
        "{}_mask.bmp",
        "{}_GT.png",
        "{}-depth.tiff",
        "{}.tiff",
        "{}.png",
        "{}_depth_0.png",
        "masks/{}.png",
        "Depth/{}.png",
    ],
)
def test_labels_and_depth_maps_beside_photographs_are_no_normals(beside: str, tmp_path: Path) -> None:
    photographs = [f"c/train/good/{i}.jpg" for i in range(6)]
    touch(tmp_path, [*photographs, *(f"c/train/good/{beside.format(i)}" for i in range(6))])
    dataset = load("folder", str(tmp_path))
    assert [sample.path for sample in dataset.categories[0].train] == photographs
    assert sum(note.count for note in dataset.left_out) == 6
    flat = touch(tmp_path / "flat", [f"{i}.jpg" for i in range(6)])
    if "/" not in beside:
        touch(flat, [beside.format(i) for i in range(6)])
        assert len(load("folder", str(flat)).categories[0].train) == 6


def test_a_name_that_only_ends_like_a_label_is_a_photograph() -> None:
    assert beside_photographs(["a_label.png", "b_mask.png", "label.png", "depth.png", "bottle_1.png"]) == {}


@pytest.mark.parametrize("name", ["zarr.json", "results.json", "settings.toml", "index.html"])
def test_categories_of_a_name_of_ours_are_refused(tmp_path: Path, name: str) -> None:
    touch(tmp_path, [f"{name}/train/good/0.png"])
    with pytest.raises(UserError, match=f"a category cannot be called {name}: rename its folder"):
        load("folder", str(tmp_path))


# --- masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        "ground_truth/crack/7_mask.png",
        "ground_truth/crack/7.bmp",
        "masks/crack/7.png",
        "Mask/crack/7_GT.png",
        "gt/7.png",
        "labels/crack/7_label.png",
        "ground-truth/crack/mask_7.tif",
        "annotations/test/crack/7.png",
        "ground_truth/crack/7/000.png",
        "ground_truth/crack/7_mask_1.png",
        "test/crack/7_mask.png",
    ],
)
def test_a_mask_is_found_by_rule(mask: str, tmp_path: Path) -> None:
    touch(tmp_path, ["c/train/good/0.jpg", "c/test/crack/7.jpg", "c/test/good/8.jpg", f"c/{mask}"])
    (category,) = load("folder", str(tmp_path)).categories
    assert {sample.path: sample.masks for sample in category.test} == {
        "c/test/crack/7.jpg": (f"c/{mask}",),
        "c/test/good/8.jpg": (),
    }


def test_several_masks_of_an_image_all_count_and_unmatched_ones_are_named(tmp_path: Path) -> None:
    masks = [f"c/ground_truth/crack/7/{i:03}.png" for i in range(3)]
    touch(tmp_path, ["c/train/good/0.png", "c/test/crack/7.png", "c/test/crack/9.png", *masks])
    touch(tmp_path, ["c/ground_truth/crack/12_mask.png"])
    dataset = load("folder", str(tmp_path))
    assert dataset.categories[0].test[0].masks == tuple(masks)
    said = told(tmp_path)
    assert said["a mask of no test image"] == 1
    assert said["anomalous images without a mask: they take no part in pixel metrics"] == 1


def test_a_flat_mask_of_two_images_of_its_stem_belongs_to_neither() -> None:
    assert match_masks(["a/1.png", "b/1.png", "b/2.png"], ["1.png", "2.png"]) == {"b/2.png": ("2.png",)}


@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8).filter(lambda name: name.isprintable()))
@settings(max_examples=60, deadline=None)
def test_composed_and_decomposed_letters_are_the_same(stem: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, stem) for form in ("NFC", "NFD"))
    image, mask = f"crack/{composed}.png", f"crack/{decomposed}_mask.png"
    assert match_masks([image], [mask]) == {image: (mask,)}


# --- notes ------------------------------------------------------------------------------------------------------


def test_a_note_is_one_line_with_the_first_names() -> None:
    note = Note.of("screw", "copies", ["d", "a", "c", "b"])
    assert note.line == "screw: 4 copies: a, b, c and 1 more"
    assert Note("", 0, "nothing").line == "0 nothing"
    lacking = [Note(name, 0, "test images") for name in "edcba"]
    assert missing([note, *lacking, Note("f", 0, "masks")]) == [
        "There are no test images (a, b, c and 2 more).",
        "There are no masks (f).",
    ]
    assert twice("c", ["a", "b", "c", "d"], ["x", "y", "x", ""]) == [
        Note("c", 1, "normal images that are copies of another one", ("c",))
    ]


# --- the commands -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category with one of everything that is to be told, and one with two images."""
    root = tmp_path_factory.mktemp("odd") / "data"
    random = np.random.default_rng(0)

    def write(name: str, value: int | None = None) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (40, 40), np.uint8) if value is None else np.full((40, 40), value, np.uint8)
        Image.fromarray(pixels).save(path)

    for i in range(6):
        write(f"part/train/OK/{i}.png")
        write(f"part/train/OK/{i}_depth.png")
    for i in range(2):
        write(f"small/train/good/{i}.png")
    shutil.copy(root / "part/train/OK/0.png", root / "part/train/OK/copy.png")
    write("part/test/ok/0.png")
    shutil.copy(root / "part/train/OK/1.png", root / "part/test/ok/leak.png")
    for i in range(3):
        write(f"part/test/crack/{i}.png")
    shutil.copy(root / "part/test/ok/0.png", root / "part/test/crack/2.png")
    write("part/ground_truth/crack/0_mask.png", 0)
    write("part/ground_truth/crack/1_mask.png", 90)
    write("part/ground_truth/crack/9_mask.png", 255)
    (root / "part/train/OK/photo.heic").write_bytes(b"x")
    return root


@pytest.mark.slow
def test_the_commands_say_what_they_took_and_left_out(odd: Path, tmp_path: Path) -> None:
    place = ["--dataset", "folder", "--root", str(odd)]
    listed = json.loads(invoke("datasets", *place, "--json").stdout)
    assert {row["category"]: row["train"] for row in listed["categories"]} == {"part": 7, "small": 2}
    assert {note["what"]: note["count"] for note in listed["left_out"]} == {
        "taken for a mask or depth map of a photograph beside it, by its name": 6,
        "a mask of no test image": 1,
        "no image by its suffix, .heic": 1,
    }
    assert "no image by its suffix, .heic" in invoke("datasets", *place).stdout
    store = str(tmp_path / "c.zarr")
    size = ["--image-size", "64", "--weights", "none"]
    made = invoke("precompute", *place, "--store", store, *size)
    for words in ("normal images to train on", "photo.heic", "copies of another one part/train/OK/copy.png"):
        assert words in " ".join(made.stderr.split()), words
    assert json.loads(invoke("inspect", store, "--json").stdout)["left_out"] == listed["left_out"]
    trained = invoke("train", store, "--negatives", "none", "--out", str(tmp_path / "run"))
    notes = json.loads((tmp_path / "run/results.json").read_text())["notes"]
    found = {(note["category"], note["what"].partition(":")[0]): note["count"] for note in notes}
    assert found == {
        ("small", "normal images"): 2,
        ("part", "test images that are among the normals of the cache"): 1,
        ("part", "anomalous images whose mask is empty"): 1,
        ("part", "masks that mark more than half of their image"): 1,
        ("part", "anomalous images without a mask"): 1,
        ("part", "test images that are there both as normal and as anomalous"): 2,
    }
    assert "leak.png" in trained.stderr
    (odd / "part/test/note.txt").write_text("x")
    said = invoke("predict", str(tmp_path / "run"), str(odd / "part/test"), "--out", str(tmp_path / "out")).stderr
    assert "1 no image by its suffix, .txt: note.txt" in said


def test_without_one_label_it_says_why_there_are_no_figures(odd: Path, tmp_path: Path) -> None:
    root = shutil.copytree(odd, tmp_path / "data")
    shutil.rmtree(root / "part/test/ok")
    shutil.rmtree(root / "small")
    store = str(tmp_path / "c.zarr")
    invoke("precompute", "--dataset", "folder", "--root", str(root), "--store", store, "--image-size", "64")
    trained = invoke("train", store, "--negatives", "none", "--out", str(tmp_path / "run"))
    why = "There are no normal test images: no image metric can be computed (part)."
    assert trained.stdout.splitlines().count(why) == 1 and "no image metric" not in trained.stderr
    assert "AUROC" not in trained.stdout and "found" in trained.stdout  # the defects are counted


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_any_name_works_in_any_locale(locale: str, odd: Path, tmp_path: Path) -> None:
    root = shutil.copytree(odd / "part/train/OK", tmp_path / "Teile_ä漢", ignore=shutil.ignore_patterns("*.heic"))
    for name in (b"caf\xe9.png", "ü.png".encode(), unicodedata.normalize("NFD", "ö.png").encode()):
        shutil.copy(root / "0.png", os.fsencode(root) + b"/" + name)
    store = str(tmp_path / "c.zarr")
    command = command_line("precompute", "--dataset", "folder", "--root", root, "--store", store, "--image-size", 64)
    environment = os.environ | {"LC_ALL": locale}
    made = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert made.returncode == 0, made.stderr
    assert b"9 images, 9 computed now" in made.stdout
    assert b"not UTF-8" in b" ".join(made.stderr.split())


# --- what an attack found ---------------------------------------------------------------------------------------


def sides(root: Path) -> tuple[list[str], dict[str, tuple[int, str, tuple[str, ...]]]]:
    (category,) = load("folder", str(root)).categories
    tests = {sample.path: (sample.label, sample.defect, sample.masks) for sample in category.test}
    return [sample.path for sample in category.train], tests


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".jp2", ".jpg"])
def test_the_usual_suffix_of_a_category_is_that_of_its_photographs(suffix: str, tmp_path: Path) -> None:
    touch(tmp_path, [f"c/train/good/{i}{suffix}" for i in range(4)])
    touch(tmp_path, [f"c/test/crack/{i}{end}" for i in range(3) for end in (suffix, ".png")])
    _, tests = sides(tmp_path)
    assert tests == {f"c/test/crack/{i}{suffix}": (1, "crack", (f"c/test/crack/{i}.png",)) for i in range(3)}


@pytest.mark.parametrize("beside", [".tiff", ".gif"])
def test_a_depth_map_of_the_same_name_is_no_mask(beside: str, tmp_path: Path) -> None:
    touch(tmp_path, [*(f"c/train/good/{i}.png" for i in range(4)), "c/test/crack/1.png", f"c/test/crack/1{beside}"])
    assert sides(tmp_path)[1] == {"c/test/crack/1.png": (1, "crack", ())}


def test_an_exact_name_goes_before_another_case(tmp_path: Path) -> None:
    touch(tmp_path, ["c/train/good/0.png", "c/test/crack/a.png", "c/test/crack/A.png"])
    touch(tmp_path, ["c/ground_truth/crack/a_mask.png", "c/ground_truth/crack/A_mask.png"])
    found = sides(tmp_path)[1]
    assert {path[-5:]: masks for path, (_, _, masks) in found.items()} == {
        "A.png": ("c/ground_truth/crack/A_mask.png",),
        "a.png": ("c/ground_truth/crack/a_mask.png",),
    }
    assert match_masks(["crack/B.png"], ["crack/b_mask.png"]) == {"crack/B.png": ("crack/b_mask.png",)}


@pytest.mark.parametrize(
    ("photograph", "beside"),
    [
        ("0.png", "mask_0.png"),
        ("0.png", "depth-0.png"),
        ("IMG_0.JPG", "img_0_mask.png"),
        ("ä0.png", unicodedata.normalize("NFD", "ä0_mask.png")),
        ("0_color.png", "0_depth.png"),
        ("rgb_0.png", "depth_0.png"),
        ("0.png", "0_mask (2).png"),
        ("0.png", "0_mask - Kopie.png"),
        ("0.png", "0_mask_final.png"),
        ("0.png", "depth_maps/0.png"),
        ("0.png", "binary_masks/0.png"),
        ("0.png", "SegmentationClass/0.png"),
        ("0.png", "thumbnails/0.png"),
    ],
)
def test_what_stands_beside_a_photograph_is_never_a_normal(photograph: str, beside: str, tmp_path: Path) -> None:
    touch(tmp_path, [f"c/train/good/{photograph}", f"c/train/good/{beside}", f"c/test/crack/{photograph}"])
    touch(tmp_path, [f"c/test/crack/{beside}"])
    train, tests = sides(tmp_path)
    assert train == [f"c/train/good/{photograph}"]
    ((path, (_, _, masks)),) = tests.items()
    assert path == f"c/test/crack/{photograph}"
    assert masks == ((f"c/test/crack/{beside}",) if "mask" in beside or "Seg" in beside else ())


def test_a_class_of_defect_may_be_called_as_masks_are(tmp_path: Path) -> None:
    touch(tmp_path, ["c/train/good/0.png", *(f"c/test/{name}/1.png" for name in ("label", "seg", "Depth"))])
    touch(tmp_path, ["c/ground_truth/label/1_mask.png", "c/test/crack/1.png", "c/test/crack/Label/1_label.png"])
    touch(tmp_path, ["c/ground_truth/good/3_mask.png", "c/test/good/3.png", "c/test/crack/a.png"])
    touch(
        tmp_path, ["c/test/crack/a_seg.png", "c/ground_truth/crack/a_seg_mask.png", "c/ground_truth/crack/a_mask.png"]
    )
    found = {path.removeprefix("c/test/"): masks for path, (_, _, masks) in sides(tmp_path)[1].items()}
    assert found == {
        "Depth/1.png": (),
        "crack/1.png": ("c/test/crack/Label/1_label.png",),
        "crack/a.png": ("c/ground_truth/crack/a_mask.png",),
        "crack/a_seg.png": ("c/ground_truth/crack/a_seg_mask.png",),
        "good/3.png": (),
        "label/1.png": ("c/ground_truth/label/1_mask.png",),
        "seg/1.png": (),
    }
    assert told(tmp_path)["the mask of a normal image"] == 1


def test_normals_below_a_class_are_left_out_and_classes_are_named(tmp_path: Path) -> None:
    touch(tmp_path, ["c/train/good/0.png", "c/test/cam1/good/1.png", "c/test/cam1/bad/2.png", "c/test/OK parts/3.png"])
    said = told(tmp_path)
    assert said["normals in a folder of the class cam1: move them to c/test/good"] == 1
    assert said["of these of the class cam1"] == 1 and said["normal images to test"] == 1


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    for i in range(8):
        touch(tmp_path, [f"{i}/a.png"])
    for i in range(8):
        for other in range(8):
            if i != other:
                (tmp_path / f"{i}/to{other}").symlink_to(tmp_path / str(other))
    listing = list_images(str(tmp_path))
    assert 64 <= len(listing.files) < 100 and listing.passed_over


def test_names_of_systems_and_with_control_characters_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "@eaDir/a.png", "__MACOSX/a.png", "b\nc.png", "d\x1b[31m.png"])
    listing = list_images(str(tmp_path))
    assert listing.files == ("a.png",)
    assert {name: why for name, why in listing.passed_over.items() if "control" in why} == {
        "b\\nc.png": "its name holds a control character",
        "d\\x1b[31m.png": "its name holds a control character",
    }


def test_a_pipe_in_place_of_a_table_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "split_csv").mkdir()
    os.mkfifo(tmp_path / "split_csv/1cls.csv")
    with pytest.raises(UserError, match=r"1cls\.csv: cannot be read"):
        load("visa", str(tmp_path))


def test_predict_leaves_out_what_stands_beside_photographs(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "a.tiff", "b.png", "b_mask.png", "masks/b.png"])
    # A file that differs only in its suffix may be another part: it is scored.
    found, left = find_inputs([str(tmp_path)], tmp_path / "out")
    assert [name for _, name in found] == ["a.png", "a.tiff", "b.png"]
    assert sum(note.count for note in left) == 2


def test_what_a_newcomer_met(tmp_path: Path) -> None:
    # A link to a folder above the root, and a plain folder with masks below it.
    touch(tmp_path / "up/root", ["0.png", "1.png", "masks/0.png"])
    (tmp_path / "up/root/out").symlink_to(tmp_path)
    listing = list_images(str(tmp_path / "up/root"))
    assert listing.passed_over == {"out": "a link to a folder that holds it"}
    (category,) = load("folder", str(tmp_path / "up/root")).categories
    assert [sample.path for sample in category.train] == ["0.png", "1.png"]


def test_an_image_that_was_skipped_is_named_in_every_later_run(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    root.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40), np.uint8)).save(root / f"{i}.png")
    (root / "broken.png").touch()
    line = ["precompute", "--dataset", "folder", "--root", str(root), "--store", str(tmp_path / "c.zarr")]
    line += ["--image-size", "32", "--stages", "blocks.6", "--weights", "none"]
    stopped = invoke(*line)
    assert stopped.exit_code == 2 and stopped.stderr.splitlines()[-1].endswith(
        "replace or remove it, or give --bad-images skip"
    )
    first, again = invoke(*line, "--bad-images", "skip"), invoke(*line)
    assert "4 images, 3 computed now, 1 skipped" in first.stdout and "4 images, 0 computed now" in again.stdout
    for result in (first, again):
        assert "1 normal images that could not be read, now or before" in " ".join(result.stderr.split())
