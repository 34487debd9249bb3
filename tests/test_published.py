"""The published data sets that are in no layout of `tests/test_datasets.py`: tiny trees of their true form."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import touch
from PIL import Image

from pipeline.data.counts import COUNTS, compare_counts
from pipeline.data.datasets import DATASETS, find_categories, load
from pipeline.data.published import KNOWN, kolektor_trains_on
from pipeline.data.samples import Category, Layout
from pipeline.errors import UserError


def label_image(path: Path, defect: bool, mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, (6, 4))
    if defect:
        image.putpixel((5, 3), 1 if mode != "RGB" else (0, 0, 1))  # the faintest defect there can be
    image.save(path)


def layout_of(name: str, root: Path) -> Layout:
    return find_categories(name, str(root)).layout


def samples_of(category: Category) -> list[tuple[str, int, str, tuple[str, ...]]]:
    return [(sample.path, sample.label, sample.defect, sample.masks) for sample in category.test]


def error_of(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(name, str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- MVTec's later sets -----------------------------------------------------------------------------------------

LOCO = [
    "pushpins/defects_config.json",
    "pushpins/train/good/000.png",
    "pushpins/validation/good/000.png",
    "pushpins/test/good/000.png",
    *(
        f"pushpins/test/{kind}_anomalies/{number}.png"
        for kind in ("logical", "structural")
        for number in ("000", "001")
    ),
    *(f"pushpins/ground_truth/logical_anomalies/000/{number}.png" for number in ("000", "001")),
    "pushpins/ground_truth/logical_anomalies/001/000.png",
    *(f"pushpins/ground_truth/structural_anomalies/{number}/000.png" for number in ("000", "001")),
]


def test_loco_has_masks_in_a_folder_for_each_image(tmp_path: Path) -> None:
    layout = layout_of("mvtec_loco", touch(tmp_path, LOCO))
    (pushpins,) = layout.categories
    assert [sample.path for sample in pushpins.train] == ["pushpins/train/good/000.png"]
    truth = "pushpins/ground_truth"
    assert samples_of(pushpins) == [
        ("pushpins/test/good/000.png", 0, "good", ()),
        (
            "pushpins/test/logical_anomalies/000.png",
            1,
            "logical_anomalies",
            (f"{truth}/logical_anomalies/000/000.png", f"{truth}/logical_anomalies/000/001.png"),
        ),
        (
            "pushpins/test/logical_anomalies/001.png",
            1,
            "logical_anomalies",
            (f"{truth}/logical_anomalies/001/000.png",),
        ),
        *(
            (
                f"pushpins/test/structural_anomalies/{number}.png",
                1,
                "structural_anomalies",
                (f"{truth}/structural_anomalies/{number}/000.png",),
            )
            for number in ("000", "001")
        ),
    ]
    assert list(layout.left_out) == ["pushpins/validation/good/000.png"]
    assert "validation" in layout.left_out["pushpins/validation/good/000.png"]
    # One category may be the root, here as for MVTec AD.
    assert list(layout_of("mvtec_loco", tmp_path / "pushpins").left_out) == ["validation/good/000.png"]


AD2 = [
    "can/train/good/000_regular.png",
    "can/validation/good/000_regular.png",
    "can/test_public/good/000_regular.png",
    "can/test_public/bad/000_overexposed.png",
    "can/test_public/bad/000_shift_1.png",
    "can/test_public/ground_truth/bad/000_overexposed_mask.png",
    "can/test_public/ground_truth/bad/000_shift_1_mask.png",
    "can/test_private/000_regular.png",
    "can/test_private_mixed/000_mixed.png",
]


@pytest.mark.parametrize("above", ["can/", ""])
def test_ad2_is_tested_with_the_public_images(tmp_path: Path, above: str) -> None:
    layout = layout_of("mvtec_ad2", touch(tmp_path, AD2) / ("" if above else "can"))
    (can,) = layout.categories
    assert can.name == "can"
    assert [sample.path for sample in can.train] == [f"{above}train/good/000_regular.png"]
    public = f"{above}test_public"
    assert samples_of(can) == [
        (f"{public}/bad/{stem}.png", 1, "bad", (f"{public}/ground_truth/bad/{stem}_mask.png",))
        for stem in ("000_overexposed", "000_shift_1")
    ] + [(f"{public}/good/000_regular.png", 0, "good", ())]
    private = (f"{above}test_private/000_regular.png", f"{above}test_private_mixed/000_mixed.png")
    assert {layout.left_out.pop(path) for path in private} == {"no labels are published"}
    assert list(layout.left_out) == [f"{above}validation/good/000_regular.png"]


THREE_D = [
    "bagel/calibration/camera_parameters.json",
    *(f"bagel/{side}/good/{file}" for side in ("train", "validation") for file in ("rgb/000.png", "xyz/000.tiff")),
    *(
        f"bagel/test/{kind}/{file}"
        for kind in ("good", "hole")
        for file in ("rgb/000.png", "xyz/000.tiff", "gt/000.png")
    ),
]


@pytest.mark.parametrize("above", ["bagel/", ""])
def test_3d_ad_is_read_without_its_depth(tmp_path: Path, above: str) -> None:
    layout = layout_of("mvtec_3d", touch(tmp_path, THREE_D) / ("" if above else "bagel"))
    (bagel,) = layout.categories
    assert [sample.path for sample in bagel.train] == [f"{above}train/good/rgb/000.png"]
    assert samples_of(bagel) == [
        (f"{above}test/good/rgb/000.png", 0, "good", ()),
        (f"{above}test/hole/rgb/000.png", 1, "hole", (f"{above}test/hole/gt/000.png",)),
    ]
    depth = [f"{above}{folder}/xyz/000.tiff" for folder in ("test/good", "test/hole", "train/good")]
    assert {layout.left_out.pop(path) for path in depth} == {"depth, not a photograph"}
    assert layout.left_out.pop(f"{above}test/good/gt/000.png") == "the mask of a normal image"
    assert set(layout.left_out) == {f"{above}validation/good/{file}" for file in ("rgb/000.png", "xyz/000.tiff")}


@pytest.mark.parametrize(("name", "paths"), [("mvtec_ad2", AD2), ("mvtec_3d", THREE_D)])
def test_a_category_may_have_lost_a_side(tmp_path: Path, name: str, paths: list[str]) -> None:
    """`cutswap evaluate` needs no normal images, and training no test images."""
    touch(tmp_path / "a", (path for path in paths if "/train/" not in path))
    touch(tmp_path / "b", (path for path in paths if "/test" not in path))
    (tests,) = layout_of(name, tmp_path / "a").categories
    (trains,) = layout_of(name, tmp_path / "b").categories
    assert (len(tests.train), len(trains.train), len(trains.test)) == (0, 1, 0)
    assert len(tests.test) > 1


# --- MVTec AD's tree --------------------------------------------------------------------------------------------

BTAD = [
    "01/train/ok/0000.bmp",
    "01/test/ok/0001.bmp",
    "01/test/ko/0000.bmp",
    "01/ground_truth/ko/0000.png",
    "03/train/ok/0000.bmp",
    "03/test/ko/0002.bmp",
    "03/ground_truth/ko/0002.bmp",
]


@pytest.mark.parametrize("name", ["btad", "folder"])
def test_btad_calls_normals_ok(tmp_path: Path, name: str) -> None:
    one, three = layout_of(name, touch(tmp_path, BTAD)).categories
    assert [sample.path for sample in one.train] == ["01/train/ok/0000.bmp"]
    assert samples_of(one) == [
        ("01/test/ko/0000.bmp", 1, "ko", ("01/ground_truth/ko/0000.png",)),
        ("01/test/ok/0001.bmp", 0, "good", ()),
    ]
    assert samples_of(three) == [("03/test/ko/0002.bmp", 1, "ko", ("03/ground_truth/ko/0002.bmp",))]


MPDD = [
    "tubes/train/good/000.png",
    "tubes/test/good/000.png",
    "tubes/test/anomalous/000.png",
    "tubes/ground_truth/anomalous/000_mask.png",
]


def test_mpdd_has_the_tree_of_mvtec(tmp_path: Path) -> None:
    (tubes,) = layout_of("mpdd", touch(tmp_path, MPDD)).categories
    assert samples_of(tubes) == [
        ("tubes/test/anomalous/000.png", 1, "anomalous", ("tubes/ground_truth/anomalous/000_mask.png",)),
        ("tubes/test/good/000.png", 0, "good", ()),
    ]


# --- labels from pixels -----------------------------------------------------------------------------------------


def kolektor(root: Path) -> Path:
    """Eight parts of three images each, the second of them a defect."""
    for part in range(1, 9):
        for image in range(3):
            touch(root, [f"kos{part:02}/Part{image}.jpg"])
            label_image(root / f"kos{part:02}/Part{image}_label.bmp", image == 1)
    return root


def test_kolektor_keeps_each_part_on_one_side(tmp_path: Path) -> None:
    layout = layout_of("kolektor", kolektor(tmp_path))
    (category,) = layout.categories
    trained = {f"kos{part:02}" for part in range(1, 9) if kolektor_trains_on(f"kos{part:02}")}
    assert 0 < len(trained) < 8
    assert {sample.path.partition("/")[0] for sample in category.train} == trained
    assert not trained & {sample.path.partition("/")[0] for sample in category.test}
    assert len(category.train) == 2 * len(trained)
    defects = [sample for sample in category.test if sample.label]
    assert [(s.path[-9:], s.defect, s.masks) for s in defects] == [
        ("Part1.jpg", "defect", (s.path[:-4] + "_label.bmp",)) for s in defects
    ]
    assert len(defects) == 8 - len(trained)
    left_out = {path for path, reason in layout.left_out.items() if reason == "a defect of a part to train on"}
    assert left_out == {f"{part}/Part1.jpg" for part in trained}
    # Every file is an image of the category, its mask, or left out for a reason.
    used = {path for s in (*category.train, *category.test) for path in (s.path, *s.masks)}
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert used | layout.left_out.keys() == files
    assert not used & layout.left_out.keys()
    assert (category.name, compare_counts("kolektor", str(tmp_path)).rows[0].status) == ("kolektor", "unknown")


def test_kolektor_split_is_the_documented_rule() -> None:
    # By `printf kos01 | sha256sum` and so on: a change of the split must not go unseen.
    trained = [part for part in range(1, 51) if kolektor_trains_on(f"kos{part:02}")]
    assert (len(trained), trained[:6]) == (24, [4, 5, 7, 14, 17, 18])


def test_kolektor2_is_split_as_published(tmp_path: Path) -> None:
    defects = {"train/10001", "test/20001"}
    for stem in ("train/10000", "train/10001", "test/20000", "test/20001"):
        touch(tmp_path, [f"{stem}.png"])
        label_image(tmp_path / f"{stem}_GT.png", stem in defects)
    copies = touch(tmp_path, ["train/10000 (copy).png", "train/10000_GT (copy).png", "train/10009.png"])
    layout = layout_of("kolektor2", copies)
    (category,) = layout.categories
    assert [sample.path for sample in category.train] == ["train/10000.png"]
    assert samples_of(category) == [
        ("test/20000.png", 0, "good", ()),
        ("test/20001.png", 1, "defect", ("test/20001_GT.png",)),
    ]
    assert layout.left_out == {
        "train/10000_GT.png": "the blank label image of a normal image",
        "train/10001.png": "a defect in train",
        "train/10001_GT.png": "the label image of an image that is left out",
        "test/20000_GT.png": "the blank label image of a normal image",
        "train/10000 (copy).png": "a copy of an image",
        "train/10000_GT (copy).png": "a copy of an image",
        "train/10009.png": "no label image of its name",
    }


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_a_label_image_of_any_mode_is_blank_where_all_is_0(tmp_path: Path, mode: str) -> None:
    for number, defect in enumerate((False, True)):
        touch(tmp_path, [f"test/{number}.png"])
        image = Image.new(mode, (6, 4))
        if mode == "P":
            image.putpalette([0, 0, 0, 0, 0, 9])
        image.save(tmp_path / f"test/{number}_GT.png")
        if defect:
            image.putpixel((5, 3), (0, 0, 1) if mode == "RGB" else 1)
            image.save(tmp_path / f"test/{number}_GT.png")
    assert [sample.label for sample in layout_of("kolektor2", tmp_path).categories[0].test] == [0, 1]


def test_a_damaged_label_image_is_named(tmp_path: Path) -> None:
    touch(tmp_path, ["train/10000.png", "train/10000_GT.png"])
    assert f"{tmp_path}/train/10000_GT.png: cannot be read as an image (empty file)" in error_of("kolektor2", tmp_path)


# --- Real-IAD ---------------------------------------------------------------------------------------------------


def real_iad(root: Path, nested: str = "") -> Path:
    def row(defect: str, image: str, mask: str | None = None) -> dict[str, str | None]:
        return {"category": "usb", "anomaly_class": defect, "image_path": image, "mask_path": mask}

    table = {
        "meta": {"prefix": "usb/", "normal_class": "OK"},
        "train": [row("OK", f"OK/S0001/usb_0001_OK_C{view}.jpg") for view in range(1, 6)],
        "test": [
            row("OK", "OK/S0002/usb_0002_OK_C1.jpg"),
            row("AK", "NG/AK/S0003/usb_0003_NG_AK_C1.jpg", "NG/AK/S0003/usb_0003_NG_AK_C1.png"),
            row("OK", "NG/AK/S0003/usb_0003_NG_AK_C2.jpg"),
        ],
    }
    rows: list[dict[str, str | None]] = [*table["train"], *table["test"]]  # type: ignore[list-item]
    touch(root, (f"realiad_1024/usb/{row[key]}" for row in rows for key in ("image_path", "mask_path") if row[key]))
    touch(root, [f"realiad_jsons/{nested}usb.json", "realiad_1024/usb/OK/S0009/usb_0009_OK_C1.jpg"])
    touch(root, ["realiad_256/usb/OK/S0001/usb_0001_OK_C1.jpg"])
    (root / f"realiad_jsons/{nested}usb.json").write_text(json.dumps(table))
    return root


@pytest.mark.parametrize("nested", ["", "realiad_jsons/"])
def test_real_iad_follows_its_tables(tmp_path: Path, nested: str) -> None:
    layout = layout_of("real_iad", real_iad(tmp_path, nested))
    (usb,) = layout.categories
    folder = "realiad_1024/usb"
    assert [s.path for s in usb.train] == [f"{folder}/OK/S0001/usb_0001_OK_C{view}.jpg" for view in range(1, 6)]
    stem = f"{folder}/NG/AK/S0003/usb_0003_NG_AK_C"
    assert samples_of(usb) == [
        (f"{stem}1.jpg", 1, "AK", (f"{stem}1.png",)),
        (f"{stem}2.jpg", 0, "good", ()),
        (f"{folder}/OK/S0002/usb_0002_OK_C1.jpg", 0, "good", ()),
    ]
    assert layout.left_out == {
        f"{folder}/OK/S0009/usb_0009_OK_C1.jpg": "in no table of realiad_jsons",
        "realiad_256/usb/OK/S0001/usb_0001_OK_C1.jpg": "of another size than realiad_1024",
    }


def test_real_iad_that_lacks_files_is_counted(tmp_path: Path) -> None:
    (real_iad(tmp_path) / "realiad_1024/usb/OK/S0001/usb_0001_OK_C3.jpg").unlink()
    (row,) = compare_counts("real_iad", str(tmp_path)).rows
    assert (row.train, row.status) == (4, "missing 1 files of its table")
    assert "1 files of category usb are missing" in error_of("real_iad", tmp_path)


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ("{", "is no table of Real-IAD"),
        ("[]", "is no table of Real-IAD"),
        ({"meta": {"prefix": "usb/", "normal_class": "OK"}, "train": []}, "has no 'test'"),
        ({"meta": {"prefix": "usb/", "normal_class": "OK"}, "train": [{}], "test": []}, "has no 'image_path'"),
        ({"meta": {"prefix": "usb/", "normal_class": "OK"}, "train": [3], "test": []}, "is no table of Real-IAD"),
    ],
)
def test_real_iad_names_a_table_of_another_form(tmp_path: Path, table: Any, wrong: str) -> None:
    path = real_iad(tmp_path) / "realiad_jsons" / "usb.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    assert error_of("real_iad", tmp_path).startswith(f"{path}: {wrong}")


# --- VisA as people have it -------------------------------------------------------------------------------------


def visa(root: Path, header: str = "object,split,label,image,mask", rows: Iterable[str] = ()) -> Path:
    folder = "candle/Data"
    touch(root, [f"{folder}/Images/Normal/{number:04}.JPG" for number in range(2)])
    touch(root, [f"{folder}/Images/Anomaly/000.JPG", f"{folder}/Masks/Anomaly/000.png", "split_csv/1cls.csv"])
    written = rows or (
        f"candle,train,normal,{folder}/Images/Normal/0000.JPG,",
        f"candle,test,normal,{folder}/Images/Normal/0001.JPG,",
        f"candle,test,anomaly,{folder}/Images/Anomaly/000.JPG,{folder}/Masks/Anomaly/000.png",
    )
    (root / "split_csv/1cls.csv").write_text("\n".join([header, *written]) + "\n")
    return root


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("Object, Split, Label, Image, Mask", ()),
        (
            "object,split,label,image,mask",
            (
                r"candle,Train,NORMAL,candle\Data\Images\Normal\0000.JPG,",
                r"candle,TEST,Normal,candle\Data\Images\Normal\0001.JPG,",
                r"candle,test,Anomaly,candle\Data\Images\Anomaly\000.JPG,candle\Data\Masks\Anomaly\000.png",
            ),
        ),
        (
            "OBJECT,SPLIT,LABEL,IMAGE,MASK",
            (
                "candle,train,normal,Candle/data/images/normal/0000.jpg,",
                "candle,test,normal,./candle/Data/Images/Normal/0001.jpg,",
                "candle,test,anomaly,candle/data/images/anomaly/000.jpg,candle/Data/masks/Anomaly/000.PNG",
            ),
        ),
        (
            "object,split,label,image,mask",
            (
                "Candle,train,normal,candle/Data/Images/Normal/0000.JPG,",
                "candle,test,normal,candle/Data/Images/Normal/0001.JPG,",
                "CANDLE,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
            ),
        ),
        (
            "object,split,label,image,mask",
            (
                "candle,train,normal,/candle/Data/Images/Normal/0000.JPG,",
                "candle,test,normal,VisA/candle/Data/Images/Normal/0001.JPG,",
                ",,,,",
                "candle,test,anomaly,VisA/candle/Data/Images/Anomaly/000.JPG,/candle/Data/Masks/Anomaly/000.png",
            ),
        ),
    ],
    ids=["columns", "backslashes", "case", "category", "root"],
)
def test_visa_tables_of_other_spelling_are_read_alike(tmp_path: Path, header: str, rows: tuple[str, ...]) -> None:
    usual, other = layout_of("visa", visa(tmp_path / "a")), layout_of("visa", visa(tmp_path / "b", header, rows))
    assert usual.categories[0].test[0].masks == ("candle/Data/Masks/Anomaly/000.png",)
    assert other == usual


# --- which set a tree is ----------------------------------------------------------------------------------------


def elpv(root: Path) -> Path:
    touch(root, ["images/cell0001.png"])
    (root / "labels.csv").write_text("images/cell0001.png 0.0 mono\n")
    return root


def kolektor2(root: Path) -> Path:
    for stem in ("train/10000", "test/20000"):
        touch(root, [f"{stem}.png"])
        label_image(root / f"{stem}_GT.png", False)
    return root


FOREIGN = {
    "visa": visa,
    "elpv": elpv,
    "mvtec_ad2": lambda root: touch(root, AD2),
    "mvtec_3d": lambda root: touch(root, THREE_D),
    "kolektor": kolektor,
    "kolektor2": kolektor2,
    "real_iad": real_iad,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_the_tree_of_another_set_is_refused(tmp_path: Path, name: str) -> None:
    FOREIGN[name](tmp_path)
    known = KNOWN[name]
    told = f"{tmp_path} looks like {known.title}"
    assert error_of("folder", tmp_path) == f"{told}: `folder` {known.misread}; give --dataset {name}"
    assert error_of("mvtec", tmp_path) == f"{told}, not like MVTec AD: give --dataset {name}"
    assert layout_of(name, tmp_path).categories


OWN = [
    ["gear/train/good/0.png", "gear/test/good/0.png", "gear/test/rgb/0.png", "gear/ground_truth/rgb/0_mask.png"],
    ["gear/train/good/0.png", "gear/test/bent/0.png", "gear/test_public/bad/0.png", "gear/labels.csv"],
    ["train/good/10000.png", "test/good/20000.png", "test/test_public/1.png", "split_csv/1cls.csv"],
    ["train/ok/10000.png", "test/ko/20000.png", "test/ko/20000_GT.png", "labels.csv"],
    ["kos01/train/good/Part0.jpg", "kos01/test/bent/Part0.jpg", "kos01/ground_truth/bent/Part0_label.bmp"],
]


@pytest.mark.parametrize("paths", [BTAD, MPDD, LOCO, *OWN])
def test_a_tree_that_folder_reads_rightly_is_not_refused(tmp_path: Path, paths: list[str]) -> None:
    assert layout_of("folder", touch(tmp_path, paths)).categories


def test_folder_reads_loco_as_its_own_layout_does(tmp_path: Path) -> None:
    touch(tmp_path, LOCO)
    assert layout_of("folder", tmp_path).categories == layout_of("mvtec_loco", tmp_path).categories


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "elpv"])
def test_a_root_that_holds_nothing_of_a_set_names_what_it_needs(tmp_path: Path, name: str) -> None:
    touch(tmp_path, ["pictures/0.png"])
    assert f"no category found: needs {KNOWN[name].needs}, holds folders pictures" in error_of(name, tmp_path)


def test_published_totals() -> None:
    totals = {name: tuple(map(sum, zip(*rows.values(), strict=True))) for name, rows in COUNTS.items()}
    assert totals["mvtec_loco"] == (1778, 575, 993)
    assert totals["mvtec_ad2"] == (2528, 379, 705)
    assert totals["mvtec_3d"] == (2656, 249, 948)
    assert (totals["btad"], sum(totals["btad"])) == ((1799, 451, 290), 2540)
    assert totals["mpdd"] == (888, 176, 282)
    assert totals["kolektor2"] == (2085, 894, 110)


def test_a_tree_of_mvtec_ad_is_none_of_ad_2_or_of_others(tmp_path: Path) -> None:
    touch(tmp_path, ["screw/train/good/000.png", "screw/test/good/000.png", "screw/test/scratch/000.png"])
    for name in ("mvtec_ad2", "mvtec_3d", "kolektor"):
        told = error_of(name, tmp_path)
        assert "no category found: needs" in told and f"give --root {tmp_path};" not in told and "deeper" not in told
