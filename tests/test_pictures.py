"""What `predict` writes of an image beside the table: pictures, maps and masks, on the one scale of maps."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images import Decoding, read_photo
from train.deploy.pictures import draw, panel_size, without_border
from train.prediction import Prediction
from train.views.heat import LINE, Heat, inferno, outline

HEAT = Heat(2.0, 5.0)


def predicted(anomaly_map: NDArray[np.float32], *, anomalous: bool = True, p_value: float | None = 0.02) -> Prediction:
    return Prediction(None, 6.5, p_value, 4.25, anomalous, anomaly_map)


def lined(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H,W): the pixels of the line."""
    return (picture == LINE).all(2)


# --- the scale ----------------------------------------------------------------------------------------------------


def test_heat_is_clear_at_the_normals_median_and_strong_at_twice_as_far_as_the_threshold() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    heat = np.full((4, 6), 2.0, np.float32)
    heat[:, 3:] = 8
    blended = HEAT.over(image, heat)
    assert blended.shape == image.shape and blended.dtype == np.uint8
    np.testing.assert_array_equal(blended[:, :3], image[:, :3])
    hottest = np.array(colormaps["inferno"](1.0)[:3]) * 255
    np.testing.assert_allclose(blended[:, 3:], 0.2 * image[:, 3:] + 0.8 * hottest, atol=2)
    half = HEAT.over(image, np.full((4, 6), 5, np.float32))
    np.testing.assert_allclose(half, 0.6 * image + 0.4 * np.array(colormaps["inferno"](0.5)[:3]) * 255, atol=3)


def test_heat_of_maps_without_spread_is_the_image() -> None:
    image = np.full((4, 6, 3), 90, np.uint8)
    np.testing.assert_array_equal(Heat(0.0, 0.0).over(image, np.zeros((4, 6), np.float32)), image)


def test_its_colours_are_near_those_of_inferno() -> None:
    apart = np.abs(inferno() - colormaps["inferno"](np.arange(256))[:, :3] * 255)
    assert inferno().shape == (256, 3) and apart.max() < 7 and apart.mean() < 1


# --- what is drawn around -----------------------------------------------------------------------------------------


def test_a_line_is_drawn_around_what_is_above_the_threshold() -> None:
    anomaly_map = np.zeros((40, 40), np.float32)
    anomaly_map[10:20, 12:30] = 6
    region = HEAT.region(anomaly_map, (40, 40), flagged=False)
    np.testing.assert_array_equal(region, anomaly_map > 5)
    picture = outline(np.full((40, 40, 3), 90, np.uint8), region, 1)
    expected = np.zeros((40, 40), bool)
    expected[10:20, 12:30] = True
    expected[11:19, 13:29] = False
    np.testing.assert_array_equal(lined(picture), expected)
    assert (picture[9, 12:30] == 0).all() and (picture[15, 20] == 90).all()


@pytest.mark.parametrize("highest", [0.0, 1.0, 4.9])
def test_a_flagged_image_has_at_least_its_highest_region_drawn(highest: float) -> None:
    anomaly_map = np.zeros((40, 40), np.float32)
    anomaly_map[5:9, 30:36] = highest
    assert not HEAT.region(anomaly_map, (40, 40), flagged=False).any()
    region = HEAT.region(anomaly_map, (40, 40), flagged=True)
    np.testing.assert_array_equal(region, anomaly_map >= highest)
    assert lined(outline(np.full((40, 40, 3), 90, np.uint8), region, 1)).any()


def test_a_region_that_shrinks_away_is_drawn() -> None:
    anomaly_map = np.zeros((400, 400), np.float32)
    anomaly_map[100, 200] = 6
    assert HEAT.region(anomaly_map, (40, 40), flagged=False).sum() >= 1


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 5000), (5000, 3), (64, 64), (300, 300), (500, 1240), (2000, 1000), (2000, 400), (9000, 8000)]
)
@pytest.mark.parametrize("p_value", [None, 0.02])
def test_a_picture_of_any_source_is_of_bounded_size_and_keeps_its_aspect(
    size: tuple[int, int], p_value: float | None
) -> None:
    width, height = panel_size(*size)
    assert min(width, height) >= 1 and max(width, height) <= 1600
    if min(size) > 10:
        assert width / height == pytest.approx(size[0] / size[1], rel=0.02)
    source, anomaly_map = np.full((height, width, 3), 90, np.uint8), np.zeros((64, 64), np.float32)
    picture = draw(source, anomaly_map, HEAT, predicted(anomaly_map, p_value=p_value))
    unlike = "17 times as dark, 2.4 times less contrast, 3.1 times as small, 4.5 times as tall for its width"
    warned = draw(source, anomaly_map, HEAT, predicted(anomaly_map, p_value=p_value), unlike)
    assert max(*picture.size, *warned.size) <= 1600 and warned.height > picture.height
    beside = size[0] <= 3 * size[1]
    assert picture.width >= (2 * width + 8 if beside else width)
    assert picture.height > (height if beside else 2 * height + 8)


def test_source_and_heat_stand_side_by_side_below_the_verdict() -> None:
    source = np.full((320, 320, 3), 200, np.uint8)
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[32:48, 32:48] = 8
    picture = np.asarray(draw(source, anomaly_map, HEAT, predicted(anomaly_map)))
    bar = picture.shape[0] - 320
    np.testing.assert_array_equal(picture[bar:, :320], source)
    heat = picture[bar:, 328:]
    np.testing.assert_array_equal(heat[:100, :100], source[:100, :100])
    assert lined(heat)[150:250, 150:250].any() and not lined(heat)[:140].any()
    words = picture[:bar].max(2)
    assert (words.max(0) > 200).sum() > 100 and (words == 24).mean() > 0.5
    calm = np.asarray(draw(source, anomaly_map, HEAT, predicted(anomaly_map, anomalous=False)))
    assert (calm[:bar] != picture[:bar]).any()


def test_the_map_of_a_padded_image_is_shown_without_its_border() -> None:
    anomaly_map = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    padded, stretched = (Decoding(64, resize, None) for resize in ("pad", "stretch"))
    np.testing.assert_array_equal(without_border(anomaly_map, (200, 100), padded), anomaly_map[16:48])
    np.testing.assert_array_equal(without_border(anomaly_map, (200, 100), stretched), anomaly_map)


def test_a_photo_is_shown_at_the_size_asked_for_and_knows_its_own(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.new("L", (3000, 1500), 90).save(tmp_path / "a.jpg", exif=exif)
    photo = read_photo(
        tmp_path / "a.jpg", Decoding(64, "stretch", None), lambda width, height: (width // 10, height // 10)
    )
    assert photo.size == (1500, 3000) and photo.pixels.shape == (64, 64, 3)
    assert photo.shown is not None and photo.shown.shape == (300, 150, 3) and (photo.shown == 90).all()
    assert read_photo(tmp_path / "a.jpg", Decoding(64, "stretch", None), None).shown is None
