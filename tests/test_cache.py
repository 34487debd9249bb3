import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from conftest import NORMALS, SmallCache, assert_same_arrays, listed, read_arrays
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import LocalStore

from pipeline.backbones.spec import find_spec
from pipeline.cache.cache import Cache, default_store, find_cache, open_cache
from pipeline.cache.create import prepare_cache
from pipeline.cache.layout import images_digest, layout
from pipeline.errors import UserError
from pipeline.settings import PrecomputeSettings

SETTINGS = PrecomputeSettings(image_size=64, stages=("blocks.1", "blocks.4"), clusters=3, pairs=2)
PATHS = {"nut": [f"nut/train/good/{i:03}.png" for i in range(70)], "bolt": ["bolt/train/good/0.png"]}


def prepare(
    store: Path | str, categories: Mapping[str, Sequence[str]] = PATHS, dataset: str = "folder", **changes: Any
) -> str:
    """The id of a cache of the categories' paths."""
    options: dict[str, Any] = {"settings": SETTINGS, "weights": "none", **changes}
    return prepare_cache(str(store), listed("/images", categories, dataset), **options).id


def refusal(store: Path | str, categories: Mapping[str, Sequence[str]] = PATHS, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare(store, categories, **changes)
    assert "\n" not in str(caught.value)
    assert str(store) in str(caught.value)
    return str(caught.value)


def files_of(folder: Path | str) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file below a folder."""
    return {
        str(f.relative_to(folder)): (f.read_bytes(), f.stat().st_mtime_ns)
        for f in Path(folder).rglob("*")
        if f.is_file()
    }


def some_rows(count: int, seed: int = 0) -> dict[str, Any]:
    """Arrays of `count` images, of the right shapes and types, with values of no meaning."""
    random = np.random.default_rng(seed)
    rows: dict[str, Any] = {}
    for name, (shape, dtype, _) in layout(count, SETTINGS).items():
        values = random.integers(1, 100, shape)
        rows[name] = values.astype(str).astype(object) if dtype == "str" else values.astype(dtype)
    del rows["paths"]
    return rows


def fill(store: Path | str, categories: Sequence[str] = ("nut", "bolt")) -> None:
    for category in open_cache(str(store), "r+").choose(categories):
        for chunk in range(len(category.done)):
            category.write_shard(chunk, some_rows(len(category.rows_of(chunk)), chunk))


# --- the layout ---------------------------------------------------------------------------------------------------


def contract(images: int) -> dict[str, tuple[tuple[int, ...], str, tuple[str, ...]]]:
    """What is promised of the small cache: shape, type and dimensions of every array, written out."""
    n, stages, side, cells, pairs, clusters = images, 4, 64, 16, 4, 4
    maps = (n, stages, cells, cells), "uint8", ("image", "stage", "map_y", "map_x")
    return {
        "images": ((n, side, side, 3), "uint8", ("image", "y", "x", "channel")),
        "paths": ((n,), "string", ("image",)),
        "sha256": ((n,), "string", ("image",)),
        "stamps": ((n,), "string", ("image",)),
        "valid": ((n,), "uint8", ("image",)),
        "saliency": maps,
        "target_class": ((n,), "int32", ("image",)),
        "clusters": maps,
        "centroids": ((n, stages, clusters), "float32", ("image", "stage", "cluster")),
        "pairs": ((n, stages, pairs, 6), "int16", ("image", "stage", "pair", "box")),
        "relaxed": ((n, stages, pairs), "uint8", ("image", "stage", "pair")),
        "done": ((-(-n // 64),), "uint8", ("block",)),
    }


@pytest.mark.parametrize("category", NORMALS)
def test_every_array_is_as_the_contract_says(small_cache: SmallCache, category: str) -> None:
    images = NORMALS[category]
    folder = Path(small_cache.store, category)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == contract(images).keys()
    for name, (shape, dtype, dimensions) in contract(images).items():
        metadata = json.loads((folder / name / "zarr.json").read_text())
        assert metadata["zarr_format"] == 3
        assert (tuple(metadata["shape"]), metadata["data_type"]) == (shape, dtype), name
        assert tuple(metadata["dimension_names"]) == dimensions, name
        chunk = (1,) if name == "done" else (64, *shape[1:])
        assert tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"]) == chunk, name
        assert [codec["name"] for codec in metadata["codecs"]][-1] == "zstd", name


def test_a_block_is_one_chunk_of_every_array(small_cache: SmallCache) -> None:
    for name in contract(67):
        chunks = Path(small_cache.store, "mono", name, "c")
        assert {path.name for path in chunks.iterdir()} <= {"0", "1"}
        assert all(
            len([f for f in block.rglob("*") if f.is_file()]) <= 1 for block in chunks.iterdir() if block.is_dir()
        )


def test_root_attributes(small_cache: SmallCache) -> None:
    attributes = open_cache(small_cache.store).attributes
    assert attributes["format"] == 1 and attributes["complete"] is True
    assert attributes["dataset"] == "folder" and attributes["root"] == str(small_cache.root)
    assert attributes["weights"] == find_spec("efficientnet_lite0").imagenet
    assert open_cache(small_cache.store).settings == small_cache.settings
    assert {"torch", "numpy", "zarr", "timm"} <= attributes["versions"].keys()  # type: ignore[union-attr]
    paths = {name: [f"{name}/train/good/{i:03}.png" for i in range(count)] for name, count in NORMALS.items()}
    assert attributes["images_digest"] == {name: images_digest(p) for name, p in paths.items()}
    # Plain JSON: no reader needs this project to know what it has before it.
    assert json.loads(Path(small_cache.store, "zarr.json").read_text())["attributes"] == attributes


def test_xarray_opens_a_category(small_cache: SmallCache) -> None:
    with xarray.open_zarr(small_cache.store, group="mono", consolidated=False) as opened:
        assert opened.sizes["image"] == 67 and opened.sizes["block"] == 2
        assert opened["saliency"].dims == ("image", "stage", "map_y", "map_x")
        assert set(opened.variables) == contract(67).keys()
        expected = open_cache(small_cache.store)["mono"].read("pairs")
        np.testing.assert_array_equal(opened["pairs"].values, expected)
        assert opened["paths"].values[66] == "mono/train/good/066.png"


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), max_size=4))
def test_the_digest_of_a_list_tells_lists_apart(paths: list[str]) -> None:
    digest = images_digest(paths)
    assert digest == images_digest(tuple(paths)) and len(digest) == 64
    assert digest != images_digest([*paths, "a"])
    if len(paths) > 1:
        assert digest != images_digest(["".join(paths[:2]), *paths[2:]])
        assert (digest == images_digest(paths[::-1])) == (paths == paths[::-1])


# --- blocks -------------------------------------------------------------------------------------------------------


def test_blocks_are_written_and_read_back(tmp_path: Path) -> None:
    store = str(tmp_path / "c.zarr")
    prepare(store)
    nut = open_cache(store, "r+")["nut"]
    assert nut.done.tolist() == [False, False] and not nut.pending_rows(1).done
    last, first = some_rows(6, seed=1), some_rows(64, seed=2)
    nut.write_shard(1, last)
    assert nut.done.tolist() == [False, True] and nut.pending_rows(1).done and not nut.pending_rows(0).done
    assert nut.pending_shards() == [(0, 64)] and nut.pending_rows(0).paths == tuple(PATHS["nut"][:64])
    nut.write_shard(0, first)
    for block, rows in enumerate((first, last)):
        for name, values in nut.read_chunk(block, list(rows)).items():
            np.testing.assert_array_equal(values, rows[name])
    np.testing.assert_array_equal(nut.read("pairs"), np.concatenate([first["pairs"], last["pairs"]]))
    assert nut.read_chunk(1, ["paths"])["paths"].tolist() == PATHS["nut"][64:]
    assert nut.done_chunks() == [0, 1]


def test_a_block_that_fails_half_way_is_not_done(tmp_path: Path) -> None:
    prepare(tmp_path / "c.zarr")
    nut = open_cache(str(tmp_path / "c.zarr"), "r+")["nut"]
    rows = some_rows(64)
    rows["relaxed"] = rows["relaxed"][:, :1, :1, None].repeat(9, axis=1)
    with pytest.raises(ValueError):
        nut.write_shard(0, rows)
    assert not nut.done.any()
    assert nut.done_chunks() == []


def test_complete_means_every_block_of_every_category(tmp_path: Path) -> None:
    store = str(tmp_path / "c.zarr")
    prepare(store)
    assert not open_cache(store, "r+").finish()
    fill(store, ["nut"])
    assert not open_cache(store, "r+").finish() and open_cache(store).complete is False
    fill(store, ["bolt"])
    assert open_cache(store, "r+").finish() and open_cache(store).complete is True


# --- going on with a cache ----------------------------------------------------------------------------------------


def test_preparing_again_changes_nothing_that_is_done(tmp_path: Path) -> None:
    store = tmp_path / "c.zarr"
    first = prepare(store)
    fill(store, ["nut"])
    before = read_arrays(store)
    assert prepare(store) == first
    after = read_arrays(store)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_categories_come_one_after_the_other(tmp_path: Path) -> None:
    store = tmp_path / "c.zarr"
    first = prepare(store, {"nut": PATHS["nut"]})
    fill(store, ["nut"])
    assert open_cache(str(store), "r+").finish()
    assert prepare(store, {"bolt": PATHS["bolt"]}) == first
    root = open_cache(str(store))
    assert root.names() == ["bolt", "nut"] and root.complete is False
    assert root["nut"].done.all()
    assert root.attributes["images_digest"] == {name: images_digest(paths) for name, paths in PATHS.items()}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"settings": dataclasses.replace(SETTINGS, clusters=5)}, "clusters: 3, not 5"),
        (
            {"settings": dataclasses.replace(SETTINGS, stages=("blocks.1",))},
            "stages: ('blocks.1', 'blocks.4'), not ('blocks.1',)",
        ),
        ({"settings": dataclasses.replace(SETTINGS, image_size=96, seed=7)}, "image_size: 64, not 96; seed: 0, not 7"),
        (
            {"settings": dataclasses.replace(SETTINGS, patch_area=(0.01, 0.02))},
            "patch_area: (0.005, 0.05), not (0.01, 0.02)",
        ),
        ({"dataset": "mvtec"}, "dataset: folder, not mvtec"),
        ({"weights": "sha256:1"}, "weights: none, not sha256:1"),
        (
            {"settings": dataclasses.replace(SETTINGS, weights="w.pt"), "weights": "sha256:1"},
            "weights: none, not sha256:1",
        ),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    store = tmp_path / "c.zarr"
    prepare(store)
    fill(store)
    open_cache(str(store), "r+").finish()
    before = files_of(store)
    for overwrite in (False, True):
        # --overwrite of one category cannot change the settings of the others.
        line = refusal(store, {"nut": PATHS["nut"]}, overwrite=overwrite, **changes)
        assert f"({told})" in line and "--overwrite" in line
    assert files_of(store) == before


def test_the_same_weights_under_another_path_are_no_other_setting(tmp_path: Path) -> None:
    here, there = (dataclasses.replace(SETTINGS, weights=path) for path in ("here.pt", "there.pt"))
    first = prepare(tmp_path / "c.zarr", settings=here, weights="sha256:1")
    assert prepare(tmp_path / "c.zarr", settings=there, weights="sha256:1") == first


def test_overwrite_of_everything_takes_new_settings_and_images(tmp_path: Path) -> None:
    store = tmp_path / "c.zarr"
    first = prepare(store)
    fill(store)
    open_cache(str(store), "r+").finish()
    other = dataclasses.replace(SETTINGS, clusters=5)
    second = prepare(
        store, {"nut": PATHS["nut"][:3], "bolt": PATHS["bolt"]}, settings=other, weights="sha256:1", overwrite=True
    )
    root = open_cache(str(store))
    assert second != first
    assert root.settings == other and root.attributes["weights"] == "sha256:1" and root.complete is False
    arrays = read_arrays(store)
    assert arrays["nut/centroids"].shape == (3, 2, 5)
    assert not arrays["nut/done"].any() and not arrays["bolt/done"].any()
    assert not arrays["nut/saliency"].any()


def test_overwrite_of_a_cache_that_is_not_there_makes_one(tmp_path: Path) -> None:
    store = tmp_path / "c.zarr"
    first = prepare(store, overwrite=True)
    assert open_cache(store).id == first and open_cache(store).names() == ["bolt", "nut"]
    assert prepare(store) == first


def test_overwrite_of_one_category_leaves_the_others(tmp_path: Path) -> None:
    store = tmp_path / "c.zarr"
    first = prepare(store)
    fill(store)
    before = read_arrays(store)
    assert prepare(store, {"nut": PATHS["nut"][:65]}, overwrite=True) == first
    after = read_arrays(store)
    assert after["nut/done"].tolist() == [0, 0] and len(after["nut/paths"]) == 65 and not after["nut/saliency"].any()
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("bolt/"))


@pytest.mark.filterwarnings("ignore:Object at nut")
@pytest.mark.parametrize("gone", ["nut/zarr.json", "nut/done/zarr.json", "nut/images/zarr.json", "nut/done/c/0"])
def test_overwrite_goes_on_where_a_killed_overwrite_stopped(tmp_path: Path, gone: str) -> None:
    store = tmp_path / "c.zarr"
    prepare(store)
    fill(store)
    # As a kill leaves it between the mark and the last file deleted.
    open_cache(str(store), "r+")["nut"].group.update_attributes({"ready": False})
    (store / gone).unlink()
    prepare(store)
    arrays = read_arrays(store)
    assert arrays["nut/done"].tolist() == [0, 0] and arrays["bolt/done"].tolist() == [1]
    assert not arrays["nut/saliency"].any()


def test_a_kill_in_the_middle_of_deleting_leaves_nothing_that_passes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "c.zarr"
    prepare(store)
    fill(store)

    def killed(*_: object) -> None:
        shutil.rmtree(store / "nut" / "images" / "c")
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "delete_dir", killed)
        with pytest.raises(RuntimeError, match="killed"):
            prepare(store, overwrite=True)
    assert open_cache(str(store)).names() == []
    prepare(store)
    assert not read_arrays(store)["nut/done"].any()


# --- what is no cache ---------------------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    zarr.open_group(tmp_path / "foreign.zarr", mode="w").create_array("x", shape=(3,), dtype="i4")
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="i4")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    before = files_of(tmp_path)
    for name in ("thesis", "foreign.zarr", "array.zarr", "file", "file/below", "broken.zarr"):
        for overwrite in (False, True):
            line = refusal(tmp_path / name, overwrite=overwrite)
            assert line.endswith("choose another --store")
            assert name != "thesis" or "exists and is no cache of ours" in line
    assert files_of(tmp_path) == before


def test_an_empty_folder_becomes_a_cache(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert open_cache(str(tmp_path)).names() == ["bolt", "nut"]


def test_stores_that_cannot_be_reached_are_named() -> None:
    assert "nowhere" in refusal("nowhere://bucket/c.zarr")


def test_a_store_may_be_a_url(tmp_path: Path) -> None:
    remote = "memory://bucket/c.zarr"
    for store in (remote, f"file://{tmp_path}/u.zarr", str(tmp_path / "p.zarr")):
        first = prepare(store)
        fill(store)
        assert open_cache(store, "r+").finish() and prepare(store) == first
    assert_same_arrays(remote, tmp_path / "p.zarr")
    assert_same_arrays(tmp_path / "u.zarr", tmp_path / "p.zarr")
    assert prepare(remote, overwrite=True) != prepare(tmp_path / "p.zarr")
    assert not read_arrays(remote)["nut/saliency"].any()


def test_a_cache_that_another_run_creates_meanwhile_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, found = tmp_path / "c.zarr", []

    def find(place: str, mode: Any = "r") -> Cache | None:
        if not found:
            found.append(place)
            prepare(store)  # the other run
            return None
        return find_cache(place, mode)

    monkeypatch.setattr("pipeline.cache.create.find_cache", find)
    monkeypatch.setattr("pipeline.cache.create.holds_anything", lambda _: False)  # as before the other run
    mine = prepare(store)
    assert mine == open_cache(store).id and open_cache(store).names() == ["bolt", "nut"]


def test_a_cache_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cache at .*: make one with `precompute"):
        open_cache(str(tmp_path / "c.zarr"))
    assert not (tmp_path / "c.zarr").exists()


def test_a_cache_of_a_later_format_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "c.zarr")
    open_cache(str(tmp_path / "c.zarr"), "r+").update_attributes(format=2)
    with pytest.raises(UserError, match="no cache of format 1"):
        open_cache(str(tmp_path / "c.zarr"))
    assert "format 1" in refusal(tmp_path / "c.zarr")


# --- choosing -----------------------------------------------------------------------------------------------------


def test_categories_are_chosen_by_name(small_cache: SmallCache) -> None:
    root = open_cache(small_cache.store)
    assert [category.name for category in root.choose()] == ["mono", "poly"]
    assert [category.name for category in root.choose(["poly"])] == ["poly"]
    assert list(root) == ["mono", "poly"] and "mono" in root and "screw" not in root
    assert [category.name for category in root.choose(["poly,mono", "poly"])] == ["poly", "mono"]
    for name in ("screw", "mono/", "/mono", "./mono", "../x", ".", "", "mono/images"):
        with pytest.raises(UserError, match=r"no category .*: it holds mono, poly"):
            root[name]
    with pytest.raises(UserError, match="no category 'screw': it holds mono, poly"):
        root.choose(["poly", "screw"])


def test_the_default_store_is_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no cache in data/cache"):
        default_store()
    prepare("data/cache/elpv.zarr")
    assert default_store() == "data/cache/elpv.zarr"
    prepare("data/cache/visa.zarr")
    with pytest.raises(UserError, match=r"elpv\.zarr, data/cache/visa\.zarr"):
        default_store()


def test_settings_survive_the_attributes() -> None:
    settings = dataclasses.replace(SETTINGS, patch_area=(0.01, 0.2), resize="pad", weights="w.pt")
    assert PrecomputeSettings.from_attributes(json.loads(json.dumps(settings.to_attributes()))) == settings
    assert settings.differences(settings) == []
