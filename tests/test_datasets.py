import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pytest
from conftest import touch

from pipeline.data.counts import COUNTS, MASKED, compare_counts
from pipeline.data.datasets import DATASETS, Category, load
from pipeline.data.published import elpv_trains_on
from pipeline.errors import UserError


def tree(category: str, train: int, good: int, defects: int) -> list[str]:
    return [
        *(f"{category}/train/good/{i:03}.png" for i in range(train)),
        *(f"{category}/test/good/{i:03}.png" for i in range(good)),
        *(f"{category}/test/bent/{i:03}.png" for i in range(defects)),
        *(f"{category}/ground_truth/bent/{i:03}_mask.png" for i in range(defects)),
    ]


def error_of(name: str, root: str | None = None, categories: Sequence[str] = ()) -> str:
    with pytest.raises(UserError) as caught:
        load(name, root, categories)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sizes(category: Category) -> tuple[int, int, int]:
    good = sum(sample.label == 0 for sample in category.test)
    return len(category.train), good, len(category.test) - good


# --- the MVTec layout -------------------------------------------------------------------------------------------


def test_mvtec_samples(tmp_path: Path) -> None:
    touch(tmp_path, [*tree("screw", 3, 2, 2), *tree("bottle", 1, 0, 0), "screw/ground_truth/good/000_mask.png"])
    touch(
        tmp_path,
        ["license.txt", "screw/readme.txt", "screw/train/good/.hidden.png", ".cache/train/good/x.png"],
    )
    found = load("mvtec", str(tmp_path))
    assert (found.name, found.image_root) == ("mvtec", str(tmp_path))
    assert [category.name for category in found.categories] == ["bottle", "screw"]
    screw = found.categories[1]
    assert [s.path for s in screw.train] == [f"screw/train/good/00{i}.png" for i in range(3)]
    assert {(s.label, s.defect, s.masks) for s in screw.train} == {(0, "good", ())}
    assert [(s.path, s.label, s.defect, s.masks) for s in screw.test] == [
        ("screw/test/bent/000.png", 1, "bent", ("screw/ground_truth/bent/000_mask.png",)),
        ("screw/test/bent/001.png", 1, "bent", ("screw/ground_truth/bent/001_mask.png",)),
        ("screw/test/good/000.png", 0, "good", ()),
        ("screw/test/good/001.png", 0, "good", ()),
    ]


def test_order_comes_from_code_points_whatever_order_the_disk_has(tmp_path: Path) -> None:
    names = ["a.png", "B.png", "b.PNG", "ä.png", "10.png", "9.png", "_.png", "é.JPG"]
    trees = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        root = touch(tmp_path / str(seed), [f"c/train/good/{name}" for name in names])
        trees.append(load("folder", str(root)).categories)
    assert trees[0] == trees[1] == trees[2]
    assert [s.path for s in trees[0][0].train] == sorted(f"c/train/good/{name}" for name in names)


def test_a_url_lists_as_a_folder_does(tmp_path: Path) -> None:
    paths = [*tree("screw", 3, 2, 2), *tree("nut", 2, 1, 1), "screw/train/good/.hidden/x.png", "readme.txt"]
    touch(tmp_path, paths)
    for path in paths:
        fsspec.filesystem("memory").pipe_file(f"/url-lists/{path}", b"")
    local, remote = load("folder", str(tmp_path)), load("folder", "memory://url-lists")
    assert remote.categories == local.categories
    assert remote.image_root == "memory://url-lists"
    assert load("folder", "memory://url-lists/screw").categories[0].name == "screw"


def test_local_data_need_no_fsspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, tree("screw", 1, 0, 0))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert load("mvtec", str(tmp_path)).categories


def test_a_relative_root_and_the_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "data" / "mvtec", tree("screw", 1, 0, 0))
    monkeypatch.chdir(tmp_path)
    assert load("mvtec") == load("mvtec", "data/mvtec") == load("mvtec", str(tmp_path / "data" / "mvtec"))


def test_chosen_categories(tmp_path: Path) -> None:
    touch(tmp_path, [*tree("a", 1, 0, 0), *tree("b", 1, 0, 0), "c/test/good/0.png"])
    found = load("folder", str(tmp_path), ["b", "a", "b"])
    assert [category.name for category in found.categories] == ["a", "b"]
    # One without normals is passed over and named; it is an error for those only who ask for it, or have no other.
    whole = load("folder", str(tmp_path))
    assert whole.category_names == ["a", "b"]
    assert ("c", 0) in {(note.category, note.count) for note in whole.left_out}
    assert "category c has no image in train/good" in error_of("folder", str(tmp_path), ["c"])


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", ["good/0.png"])
    (tmp_path / "root" / "screw").mkdir(parents=True)
    (tmp_path / "root" / "screw" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "screw" / "loop").symlink_to(tmp_path / "root")
    found = load("mvtec", str(tmp_path / "root"))
    assert [s.path for s in found.categories[0].train] == ["screw/train/good/0.png"]


# --- folder -----------------------------------------------------------------------------------------------------


def test_folder_root_may_be_the_category_itself(tmp_path: Path) -> None:
    touch(tmp_path, tree("widget", 2, 1, 1))
    inside = load("folder", str(tmp_path / "widget"))
    outside = load("folder", str(tmp_path))
    assert [category.name for category in inside.categories] == ["widget"]
    assert sizes(inside.categories[0]) == sizes(outside.categories[0]) == (2, 1, 1)
    assert inside.categories[0].train[0].path == "train/good/000.png"
    # What else lies in the folder of a category is no category beside it.
    touch(tmp_path / "widget", tree("old", 5, 0, 0))
    assert load("folder", str(tmp_path / "widget")).categories == inside.categories


def test_folder_of_normal_images_alone(tmp_path: Path) -> None:
    touch(tmp_path / "bolts", ["2.JPG", "1.bmp", "3.tiff", "notes.txt"])
    found = load("folder", str(tmp_path / "bolts")).categories
    assert [(c.name, [s.path for s in c.train], c.test) for c in found] == [("bolts", ["1.bmp", "2.JPG", "3.tiff"], ())]


def test_folder_masks_may_have_any_suffix_and_either_name(tmp_path: Path) -> None:
    touch(
        tmp_path,
        [
            "w/train/good/0.jpeg",
            *(f"w/test/dent/{name}" for name in ("a.jpg", "b.tif", "c.v2.webp", "d.png")),
            *(f"w/ground_truth/dent/{name}" for name in ("a_mask.bmp", "b.PNG", "c.v2.gif", "c.v2_mask.png")),
            "w/ground_truth/other/d.png",
        ],
    )
    masks = {s.path[-5:]: s.masks for s in load("folder", str(tmp_path)).categories[0].test}
    assert list(masks.values()) == [
        ("w/ground_truth/dent/a_mask.bmp",),
        ("w/ground_truth/dent/b.PNG",),
        ("w/ground_truth/dent/c.v2.gif", "w/ground_truth/dent/c.v2_mask.png"),
        (),
    ]


def test_a_category_may_be_called_test(tmp_path: Path) -> None:
    touch(tmp_path, [*tree("test", 2, 0, 0), *tree("train", 1, 0, 0)])
    assert [c.name for c in load("folder", str(tmp_path)).categories] == ["test", "train"]


def masks_of(root: Path, tests: Sequence[str], masks: Sequence[str]) -> tuple[dict[str, list[str]], int]:
    """The masks by test image in a category of these files, and how many files are left out."""
    touch(root, ["c/train/good/0.png", *(f"c/{path}" for path in (*tests, *masks))])
    dataset = load("folder", str(root))
    found = {sample.path[2:]: [mask[2:] for mask in sample.masks] for sample in dataset.categories[0].test}
    return found, sum(note.count for note in dataset.left_out)


@pytest.mark.parametrize(
    "masks",
    [
        ["ground_truth/crack/001_mask.png", "ground_truth/crack/001_mask_2.png"],
        ["ground_truth/crack/001.png", "ground_truth/crack/001_mask.png"],
        ["ground_truth/crack/001.png", "ground_truth/crack/001_gt.png"],
        ["ground_truth/crack/001/0.png", "ground_truth/crack/001_mask.png"],
        ["ground_truth/crack/001.png", "masks/crack/001.png"],
        ["ground_truth/crack/001_mask.png", "test/crack/001_mask.png"],
        ["ground_truth/crack/001_gt.png", "test/crack/001_gt.png"],
        ["ground_truth/crack/001.png", "test/crack/masks/001.png"],
        ["Ground_Truth/crack/001.png", "ground_truth/crack/001.png"],
        ["ground_truth/001.png", "ground_truth/crack/001.png", "gt/001/0.png"],
        ["ground_truth/crack/001_mask/0.png", "ground_truth/crack/001_mask/002.png"],
        ["gt/crack/mask001.png", "gt/crack/001mask.png"],
        ["gt/crack/001_1_mask.png", "gt/crack/001_2_mask.png", "gt/crack/001_3.png"],
        ["gt/crack/001 (2).png", "gt/crack/001(1)_mask.png", "gt/crack/001_mask (3).png"],
        ["gt/crack/img_001_mask.png", "gt/crack/rgb_001.png"],
    ],
)
def test_every_mask_that_the_names_give_an_image_is_of_it(masks: list[str], tmp_path: Path) -> None:
    tests = ["test/crack/001.png", "test/crack/002.png", "test/crack/003_mask.png"]
    found, left_out = masks_of(tmp_path, tests, masks)
    assert found == {tests[0]: sorted(masks), tests[1]: [], tests[2]: []} and left_out == 0


@pytest.mark.parametrize("photograph", ["img_001.png", "IMG001.png", "001_rgb.png", "image1.png"])
def test_words_for_photographs_need_not_be_in_the_name_of_a_mask(photograph: str, tmp_path: Path) -> None:
    number = "1" if photograph == "image1.png" else "001"
    masks = [f"gt/crack/{name}.png" for name in (f"mask_{number}", f"mask{number}", f"{number}_mask", number)]
    found, left_out = masks_of(tmp_path, [f"test/crack/{photograph}"], masks)
    assert found == {f"test/crack/{photograph}": sorted(masks)} and left_out == 0


@pytest.mark.parametrize(
    ("tests", "mask"),
    [
        (["bad/1.png", "1/0.png"], "gt/1/5.png"),  # 1 is a class
        (["bad/1.png", "1/0.png"], "gt/1_mask/5.png"),
        (["bad/scratch.png", "Scratch/0.png"], "gt/scratch/5.png"),
        (["bad/7.png", "bad/7/0.png"], "gt/bad/7/5.png"),
        (["bad/part.png", "bad/part_1.png"], "gt/bad/part_2_mask.png"),  # the image part_2 may have been removed
        (["bad/part.png", "bad/part (1).png"], "gt/bad/part (2).png"),
        (["bad/img_1.png", "bad/rgb_1.png"], "gt/bad/mask_1.png"),
        (["a/1.png", "b/1.png"], "gt/1.png"),
    ],
)
def test_a_mask_that_may_be_of_another_image_is_of_none(tests: list[str], mask: str, tmp_path: Path) -> None:
    images = [f"test/{path}" for path in tests]
    found, left_out = masks_of(tmp_path, images, [mask])
    assert found == {image: [] for image in sorted(images)} and left_out == 1


@pytest.mark.parametrize("photographs", ["images", "imgs", "Images", "RGB", "photos", "rgb_images"])
@pytest.mark.parametrize("masks", ["masks", "Mask", "gts"])
def test_a_class_may_hold_a_folder_of_photographs_and_one_of_masks(
    photographs: str, masks: str, tmp_path: Path
) -> None:
    image, mask = f"test/crack/{photographs}/0.png", f"test/crack/{masks}/0.png"
    assert masks_of(tmp_path, [image], [mask]) == ({image: [mask]}, 0)


@pytest.mark.parametrize(
    "name",
    ["0_good", "good_images_2", "2 OK parts", "images_good", "samples-3-normal", "good2_images", "01.ok.imgs.02"],
)
def test_normals_may_be_called_with_words_and_numbers_on_both_sides(name: str, tmp_path: Path) -> None:
    touch(tmp_path, [f"c/{side}/{name}/0.png" for side in ("train", "test")])
    touch(tmp_path, [f"c/test/{other}/0.png" for other in ("images_2", "goodness", "0_bad", "not_good", "good_crack")])
    assert sizes(load("folder", str(tmp_path)).categories[0]) == (1, 1, 5)


def test_numbered_folders_of_photographs_are_not_mixed(tmp_path: Path) -> None:
    images = [f"test/crack/image{i}/0.png" for i in (1, 2)]
    masks = [f"gt/crack/image{i}/0.png" for i in (1, 2)]
    assert masks_of(tmp_path, images, masks) == ({image: [mask] for image, mask in zip(images, masks, strict=True)}, 0)


def test_sides_in_two_spellings_are_both_taken(tmp_path: Path) -> None:
    images = ["Test/crack/0.png", "TEST/good/0.png", "test/crack/0.png", "test/crack/1.png", "test/good/0.png"]
    touch(tmp_path, ["c/Train/good/0.png"])
    found, left_out = masks_of(tmp_path, images, ["gt/crack/1.png", "annotations/Test/crack/1.png"])
    assert sorted(found) == sorted(images) and left_out == 0
    assert found["test/crack/1.png"] == ["annotations/Test/crack/1.png", "gt/crack/1.png"]
    assert len(load("folder", str(tmp_path)).categories[0].train) == 2


# --- VisA -------------------------------------------------------------------------------------------------------


def visa_table(category: str, train: int, good: int, bad: int) -> list[str]:
    return [
        *(f"{category},train,normal,{category}/Data/Images/Normal/{i:04}.JPG," for i in range(train)),
        *(f"{category},test,normal,{category}/Data/Images/Normal/{train + i:04}.JPG," for i in range(good)),
        *(
            f"{category},test,anomaly,{category}/Data/Images/Anomaly/{i:03}.JPG,{category}/Data/Masks/Anomaly/{i:03}.png"
            for i in range(bad)
        ),
    ]


def visa(root: Path, rows: list[str], without: Sequence[str] = ()) -> Path:
    touch(root, [path for row in rows for path in row.split(",")[3:] if path and path not in without])
    (root / "split_csv").mkdir(parents=True, exist_ok=True)
    (root / "split_csv" / "1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows]) + "\n")
    return root


def test_visa_as_published(tmp_path: Path) -> None:
    rows = [*visa_table("pcb1", 3, 2, 2), *visa_table("candle", 2, 1, 1)]
    random.Random(0).shuffle(rows)
    found = load("visa", str(visa(tmp_path, rows))).categories
    assert [(c.name, sizes(c)) for c in found] == [("candle", (2, 1, 1)), ("pcb1", (3, 2, 2))]
    assert [s.path for s in found[1].train] == [f"pcb1/Data/Images/Normal/000{i}.JPG" for i in range(3)]
    bad = found[0].test[0]
    assert (bad.path, bad.label, bad.defect) == ("candle/Data/Images/Anomaly/000.JPG", 1, "anomaly")
    assert bad.masks == ("candle/Data/Masks/Anomaly/000.png",)


@pytest.mark.parametrize("above", ["", "1cls/"])
def test_visa_as_converted(tmp_path: Path, above: str) -> None:
    touch(tmp_path, [above + path for path in tree("pcb1", 3, 2, 2)])
    found = load("visa", str(tmp_path)).categories
    assert [(c.name, sizes(c)) for c in found] == [("pcb1", (3, 2, 2))]
    assert found[0].test[0].masks == (f"{above}pcb1/ground_truth/bent/000_mask.png",)


def test_visa_copy_that_lacks_files_is_refused_and_counted(tmp_path: Path) -> None:
    rows = [*visa_table("pcb1", 3, 2, 2), *visa_table("candle", 2, 1, 1)]
    lost = ["pcb1/Data/Images/Normal/0001.JPG", "pcb1/Data/Masks/Anomaly/001.png"]
    visa(tmp_path, rows, without=lost)
    message = error_of("visa", str(tmp_path))
    assert "2 files of category pcb1" in message
    assert lost[0] in message
    assert len(load("visa", str(tmp_path), ["candle"]).categories) == 1
    row = next(row for row in compare_counts("visa", str(tmp_path)).rows if row.category == "pcb1")
    assert (row.train, row.test_good, row.test_defect, row.masks) == (2, 2, 2, 1)


def test_visa_category_that_was_not_copied_at_all_is_not_found(tmp_path: Path) -> None:
    here = visa_table("candle", 2, 1, 1)
    visa(tmp_path, here)
    visa(
        tmp_path,
        [*here, *visa_table("pcb1", 2, 1, 1)],
        without=[c for r in visa_table("pcb1", 2, 1, 1) for c in r.split(",")[3:]],
    )
    assert [c.name for c in load("visa", str(tmp_path)).categories] == ["candle"]
    assert "candle" in error_of("visa", str(tmp_path), ["pcb1"])


@pytest.mark.parametrize(
    "row",
    ["candle,train,anomaly,x.JPG,", "candle,val,normal,x.JPG,", "candle,train,normal,,", "candle,train"],
)
def test_visa_table_with_a_bad_row_is_refused(tmp_path: Path, row: str) -> None:
    visa(tmp_path, [*visa_table("candle", 1, 1, 1), row])
    assert "1cls.csv, line 5: " in error_of("visa", str(tmp_path))


def test_visa_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["split_csv/1cls.csv"])
    (tmp_path / "split_csv" / "1cls.csv").write_text("a,b\n1,2\n")
    assert "no column 'object'" in error_of("visa", str(tmp_path))


# --- ELPV -------------------------------------------------------------------------------------------------------


def test_elpv_package() -> None:
    pytest.importorskip("elpv_dataset")
    found = load("elpv")
    assert [c.name for c in found.categories] == ["mono", "poly"]
    labels = {}
    for line in (Path(found.image_root) / "labels.csv").read_text().splitlines():
        path, probability, kind = line.split()
        labels[path] = (float(probability), kind)
    seen: set[str] = set()
    for category in found.categories:
        assert all(labels[s.path] == (float(s.label), category.name) for s in (*category.train, *category.test))
        assert all(s.label == 0 for s in category.train)
        paths = [s.path for s in (*category.train, *category.test)]
        assert len(paths) == len(set(paths))
        assert not seen & set(paths)
        seen |= set(paths)
        train, good, _ = sizes(category)
        assert 0.67 < train / (train + good) < 0.73
    assert seen == {path for path, (probability, _) in labels.items() if probability in (0, 1)}
    assert all((Path(found.image_root) / path).is_file() for path in seen)
    assert {row.status for row in compare_counts("elpv").rows} == {"whole"}


def test_elpv_split_is_the_documented_rule() -> None:
    # By `printf cell0001.png | sha256sum` and so on: a change of the split must not go unseen.
    assert [elpv_trains_on(f"images/cell{i:04}.png") for i in range(1, 11)] == [
        True,
        True,
        True,
        False,
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert all(elpv_trains_on(f"images/{n}.png") == elpv_trains_on(f"/other/{n}.png") for n in range(100))


def test_elpv_subset_keeps_its_split(tmp_path: Path) -> None:
    names = [f"images/cell{i:04}.png" for i in range(60)]
    lines = [f"{n}  {('0.0', '1.0', '0.3333333333333333')[i % 3]}  mono" for i, n in enumerate(names)]
    touch(tmp_path, names)
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    whole = load("elpv", str(tmp_path)).categories[0]
    (tmp_path / "labels.csv").write_text("\n".join(reversed(lines[:30])))
    half = load("elpv", str(tmp_path)).categories[0]
    assert sum(sizes(whole)) == 40
    assert set(half.train) < set(whole.train)
    assert set(half.test) < set(whole.test)
    assert {s.defect for s in half.test if s.label} == {"defect"}


def test_elpv_without_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    assert "cutswap[demo]" in error_of("elpv")


def test_elpv_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("images/a.png 0.0 mono\nimages/b.png mono\n")
    assert "labels.csv, line 2" in error_of("elpv", str(tmp_path))


# --- mistakes ---------------------------------------------------------------------------------------------------


def test_mistakes_name_the_thing_and_the_mend(tmp_path: Path) -> None:
    touch(tmp_path, [*(f"deep/sets/{path}" for path in tree("screw", 2, 1, 1)), "file.txt"])
    (tmp_path / "empty" / "nut" / "train" / "good").mkdir(parents=True)
    touch(tmp_path / "loose", [*tree("nut", 1, 0, 0), "nut/test/0.png"])
    touch(tmp_path / "mixed", ["0.png", "more/1.png"])
    touch(tmp_path / "flat", ["train/0.png", "test/good/0.png"])
    deep = str(tmp_path / "deep" / "sets")
    assert "choose one of mvtec, visa, elpv, folder" in error_of("cifar")
    assert "no such folder" in error_of("mvtec", str(tmp_path / "none"))
    assert "no such folder" in error_of("mvtec", str(tmp_path / "file.txt"))
    assert "no such folder" in error_of("mvtec", "memory://nothing-here")
    assert "found screw; did you mean 'screw'?" in error_of("mvtec", deep, ["scew"])
    assert f"give --root {deep}" in error_of("mvtec", str(tmp_path / "deep"))
    assert "category nut has no image in train/good" in error_of("mvtec", str(tmp_path / "empty"))
    assert "category flat has no image in train/good" in error_of("folder", str(tmp_path / "flat"))
    assert "nut/test/0.png: has no label" in error_of("folder", str(tmp_path / "loose"))
    assert "holds folders more and 2 images" in error_of("folder", str(tmp_path / "mixed"))
    assert "labels.csv" in error_of("elpv", deep)
    for url in ("nosuchprotocol://x", "s3://"):
        assert url in error_of("mvtec", url)


# --- counts -----------------------------------------------------------------------------------------------------


def test_published_totals() -> None:
    totals = {name: tuple(map(sum, zip(*rows.values(), strict=True))) for name, rows in COUNTS.items()}
    assert (len(COUNTS["mvtec"]), totals["mvtec"]) == (15, (3629, 467, 1258))
    assert (len(COUNTS["visa"]), totals["visa"]) == (12, (8659, 962, 1200))
    assert MASKED < set(COUNTS) < set(DATASETS)


def test_compare_counts_tells_what_differs(tmp_path: Path) -> None:
    whole, spoilt = (
        tree("toothbrush", *COUNTS["mvtec"]["toothbrush"]),
        tree("bottle", *COUNTS["mvtec"]["bottle"]),
    )
    lost = {"bottle/train/good/007.png", "bottle/train/good/008.png", "bottle/ground_truth/bent/000_mask.png"}
    touch(
        tmp_path,
        [*whole, *(p for p in spoilt if p not in lost), "bottle/test/good/x.png", *tree("gear", 1, 0, 0)],
    )
    rows = {row.category: row for row in compare_counts("mvtec", str(tmp_path)).rows}
    assert list(rows) == sorted({*COUNTS["mvtec"], "gear"})
    assert rows["toothbrush"].status == "whole"
    assert rows["bottle"].status == "missing 2 train, extra 1 test good, missing 1 masks"
    assert (rows["bottle"].train, rows["bottle"].expected) == (207, (209, 20, 63))
    assert (rows["gear"].status, rows["gear"].expected) == ("unknown", None)
    assert rows["screw"].status == "not found"


def test_compare_counts_of_a_folder_and_of_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "own", tree("gear", 2, 1, 1))
    (tmp_path / "nothing").mkdir()
    assert [(r.category, r.train, r.status) for r in compare_counts("folder", str(tmp_path / "own")).rows] == [
        ("gear", 2, "unknown")
    ]
    assert {row.status for row in compare_counts("visa", str(tmp_path / "nothing")).rows} == {"not found"}
    with pytest.raises(UserError, match="no category found"):
        compare_counts("folder", str(tmp_path / "nothing"))


def test_the_tables_of_the_data_readme_are_the_counts() -> None:
    text = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `?(\w+)`? \| (\d+) \| (\d+) \| (\d+) \|", text, re.MULTILINE)
    written = {name: tuple(map(int, counts)) for name, *counts in rows}
    assert written == {category: counts for rows in COUNTS.values() for category, counts in rows.items()}
