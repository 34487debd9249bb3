import io
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, png
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data.images import Decoding
from pipeline.data.levels import Levels
from pipeline.data.masks import MaskMismatch, Stance, decode_mask, may_stand_otherwise, read_mask, shrink
from pipeline.data.pixels import MOST_PIXELS
from pipeline.data.samples import Sample
from pipeline.errors import ImageError
from train.evaluation.test_set import TURNED, TestSet

WHERE = np.zeros((24, 32), np.bool_)
WHERE[4:9, 6:20] = True


def marked(data: bytes) -> NDArray[np.bool_]:
    return read_mask(data, MOST_PIXELS, "m.png")


def grey(value: int, background: int = 0, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.where(WHERE, value, background).astype(dtype))


@pytest.mark.parametrize("value", [1, 2, 9, 31, 32, 60, 100, 127, 128, 200, 255])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
def test_any_label_but_the_background_is_a_defect(value: int, mode: str) -> None:
    assert np.array_equal(marked(encode(grey(value).convert(mode))), WHERE)


@pytest.mark.parametrize("value", [1, 9, 255, 4095, 40_000, 65535])
def test_so_it_is_in_sixteen_bits(value: int) -> None:
    assert np.array_equal(marked(encode(grey(value, dtype=np.uint16))), WHERE)
    assert np.array_equal(marked(encode(grey(value, dtype=np.uint16), "TIFF")), WHERE)


@pytest.mark.parametrize("value", [0.1, 1.0, 255.0])
def test_so_it_is_in_floating_point(value: float) -> None:
    image = Image.fromarray(np.where(WHERE, value, 0).astype(np.float32))
    assert np.array_equal(marked(encode(image, "TIFF")), WHERE)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("value", [1, 200, 255])
def test_a_tiff_whose_white_is_zero_marks_what_it_shows(dtype: type, value: int) -> None:
    white = {np.uint8: 255, np.uint16: 65535, np.float32: 255.0}[dtype]
    # Pillow's own writer turns 8 bits over, too.
    stored = WHERE * value if dtype is np.uint8 else white - WHERE * value
    data = encode(Image.fromarray(stored.astype(dtype)), "TIFF", tiffinfo={262: 0})
    assert np.array_equal(marked(data), WHERE)


def deep(channels: NDArray[np.integer], colour_type: int) -> bytes:
    """A PNG of 16 bits per channel, (H,W,C); 2 is RGB, 4 LA and 6 RGBA."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    return png(channels.shape[1], channels.shape[0], 16, colour_type, rows)


@pytest.mark.parametrize("value", [1, 9, 255, 256, 4095, 65535])
@pytest.mark.parametrize(("colour_type", "count"), [(2, 3), (4, 1), (6, 3)])
@pytest.mark.parametrize("one_channel", [True, False])
def test_colours_of_sixteen_bits_are_labels(value: int, colour_type: int, count: int, one_channel: bool) -> None:
    channels = np.repeat((WHERE * value)[..., None], count, axis=2)
    channels[..., : count - 1] *= not one_channel
    if colour_type != 2:
        channels = np.concatenate([channels, np.full((*WHERE.shape, 1), 65535)], axis=2)
    assert np.array_equal(marked(deep(channels, colour_type)), WHERE)


def test_soft_colours_of_sixteen_bits_are_cut_at_half_and_transparent_ones_are_black() -> None:
    soft = np.asarray(grey(255).filter(ImageFilter.GaussianBlur(2))).astype(np.int64)
    channels = np.stack([soft * 257, soft * 100, soft * 0], axis=2)
    assert np.array_equal(marked(deep(channels, 2)), soft > soft.max() / 2)
    opacity = np.stack([np.full(WHERE.shape, 900), WHERE * 65535], axis=2)
    assert np.array_equal(marked(deep(opacity, 4)), WHERE)
    hidden = Image.fromarray(np.where(WHERE, 900, 70).astype(np.uint16))
    assert np.array_equal(marked(encode(hidden, transparency=900)), ~WHERE)


def test_one_bit() -> None:
    assert np.array_equal(marked(encode(Image.fromarray(WHERE))), WHERE)


@pytest.mark.parametrize("colours", [[(255, 0, 0)], [(0, 0, 128), (0, 128, 0), (128, 0, 0)]])
def test_colours_are_labels(colours: list[tuple[int, int, int]]) -> None:
    image = Image.new("RGB", (32, 24))
    found = np.zeros_like(WHERE)
    for i, colour in enumerate(colours):
        ImageDraw.Draw(image).rectangle((2 + 8 * i, 3, 7 + 8 * i, 9), fill=colour)
        found[3:10, 2 + 8 * i : 8 + 8 * i] = True
    assert np.array_equal(marked(encode(image)), found)
    assert np.array_equal(marked(encode(image.convert("P", palette=Image.Palette.ADAPTIVE))), found)


def test_a_palette_may_have_any_colour_as_its_background() -> None:
    image = Image.fromarray(WHERE.astype(np.uint8), "P")
    image.putpalette([0, 0, 128, 200, 200, 0])
    assert np.array_equal(marked(encode(image)), WHERE)


@pytest.mark.parametrize("alpha", [30, 127, 128, 255])
def test_a_half_transparent_overlay_marks_what_it_covers(alpha: int) -> None:
    pixels = np.zeros((*WHERE.shape, 4), np.uint8)
    pixels[WHERE] = (255, 0, 0, alpha)
    assert np.array_equal(marked(encode(Image.fromarray(pixels))), WHERE)


@pytest.mark.parametrize("high", [80, 255])
def test_a_soft_mask_is_cut_at_half_its_range(high: int) -> None:
    soft = Image.fromarray(np.where(WHERE, high, 0).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    values = np.asarray(soft)
    assert len(np.unique(values)) > 32
    assert np.array_equal(marked(encode(soft)), values > values.max() / 2)


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_a_jpeg_of_a_mask_marks_what_the_mask_does(quality: int) -> None:
    data = encode(grey(255), "JPEG", quality=quality)
    assert (marked(data) != WHERE).mean() < 0.02
    # Once decoded and saved as PNG it has the same values, and no few ones.
    assert (marked(encode(Image.open(io.BytesIO(data)))) != WHERE).mean() < 0.02


def test_an_empty_mask_is_empty_also_as_a_jpeg_with_noise() -> None:
    assert not marked(encode(Image.new("L", (8, 8), 0))).any()
    noise = np.random.default_rng(0).integers(0, 6, (64, 64), np.uint8)
    assert not marked(encode(Image.fromarray(noise), "JPEG", quality=90)).any()
    assert marked(encode(Image.new("L", (8, 8), 255))).all()


def test_a_mask_without_finite_values_is_one_line() -> None:
    with pytest.raises(ImageError, match=r"^m\.png: .*not finite"):
        marked(encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"))


# --- orientation and size ---------------------------------------------------------------------------------------


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("drawn", ["upright", "stored", "stored with its own orientation"])
def test_a_mask_turns_with_its_image(orientation: int, kind: str, drawn: str) -> None:
    stored = Image.fromarray(WHERE.astype(np.uint8) * 255)
    photograph = encode(stored.convert("RGB"), kind, exif=exif(orientation))
    with Image.open(io.BytesIO(encode(stored, "PNG", exif=exif(orientation)))) as image:
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(image)
    mask = {
        "upright": encode(upright),
        "stored": encode(stored),
        "stored with its own orientation": encode(stored, "PNG", exif=exif(orientation)),
    }[drawn]
    decoding = Decoding(24, "pad", Levels())
    stance = Stance.of(photograph, MOST_PIXELS, "x")
    assert stance.upright == upright.size
    found = decode_mask(mask, stance, decoding, "m")
    straight = decode_mask(encode(upright), Stance(upright.size, None), decoding, "m")
    assert found.any() and np.array_equal(found, straight)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("square", [False, True])
def test_a_mask_of_the_size_before_turning_turns_with_its_image(orientation: int, own: bool, square: bool) -> None:
    stored = Image.fromarray((WHERE[:, :24] if square else WHERE).astype(np.uint8) * 255)
    stance = Stance.of(encode(stored, exif=exif(orientation)), MOST_PIXELS, "x")
    mask = encode(stored, exif=exif(orientation)) if own else encode(stored)
    assert stance.turn is not None
    upright = encode(stored.transpose(stance.turn))
    decoding = Decoding(24, "stretch", Levels())
    straight = decode_mask(upright, Stance(stance.upright, None), decoding, "m")
    assert np.array_equal(decode_mask(mask, stance, decoding, "m"), straight)
    # Only where the sides are the same both ways, nobody can know what was meant.
    unclear = not own and (square or orientation < 5)
    assert may_stand_otherwise(mask, stance, MOST_PIXELS, "m") == unclear
    half = encode(stored.resize((stored.width // 2, stored.height // 2)))
    assert may_stand_otherwise(half, stance, MOST_PIXELS, "m") == (square or orientation < 5)


def test_train_names_masks_that_may_be_turned(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8))
    samples = []
    for i, orientation in enumerate((1, 3, 6)):
        (tmp_path / f"{i}.png").write_bytes(encode(picture, exif=exif(orientation)))
        (tmp_path / f"{i}_mask.png").write_bytes(encode(Image.fromarray(WHERE[:, :24])))
        samples.append(Sample(f"{i}.png", 1, "crack", (f"{i}_mask.png",)))
    found = TestSet(str(tmp_path), samples, Decoding(24, "stretch", Levels())).look()
    assert [one.doubt for one in found] == [None, (TURNED, "1_mask.png"), (TURNED, "2_mask.png")]


def test_a_mask_at_another_scale_is_taken_and_one_of_another_shape_is_named() -> None:
    decoding, stance = Decoding(16, "stretch", Levels()), Stance((64, 48), None)
    assert decode_mask(encode(grey(255)), stance, decoding, "m.png").any()
    with pytest.raises(MaskMismatch, match=r"^m\.png: a mask of 24 x 32 pixels, and its image has 64 x 48$"):
        decode_mask(encode(grey(255).transpose(Image.Transpose.ROTATE_90)), stance, decoding, "m.png")


# --- shrinking --------------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    to=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 1000),
    share=st.floats(0, 0.3),
)
@settings(max_examples=150, deadline=None)
def test_a_pixel_is_defective_if_any_that_it_stands_for_is(
    shape: tuple[int, int], to: tuple[int, int], seed: int, share: float
) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    found = shrink(mask, *to)
    assert found.shape == to
    for y in range(to[0]):
        for x in range(to[1]):
            rows = slice(y * shape[0] // to[0], -(-(y + 1) * shape[0] // to[0]))
            columns = slice(x * shape[1] // to[1], -(-(x + 1) * shape[1] // to[1]))
            assert found[y, x] == mask[rows, columns].any()


@given(place=st.tuples(st.integers(0, 899), st.integers(0, 1199)), size=st.integers(8, 64))
@settings(max_examples=30, deadline=None)
def test_one_defective_pixel_is_never_lost(place: tuple[int, int], size: int) -> None:
    mask = np.zeros((900, 1200), np.bool_)
    mask[place] = True
    data = encode(Image.fromarray(mask))
    for resize in ("stretch", "pad"):
        assert decode_mask(data, Stance((1200, 900), None), Decoding(size, resize, None), "m").any()


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_the_border_of_pad_is_no_defect(resize: str, tmp_path: Path) -> None:
    data = encode(Image.new("L", (40, 20), 255))
    found = decode_mask(data, Stance((40, 20), None), Decoding(16, resize, None), "m")
    assert found.sum() == (16 * 16 if resize == "stretch" else 16 * 8)


# --- many labels ------------------------------------------------------------------------------------------------


def areas(ids: list[int], dtype: type = np.uint8) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """A mask with a square of 6 pixels for each id."""
    values = np.zeros((8 * len(ids), 24), dtype)
    for i, number in enumerate(ids):
        values[8 * i + 1 : 8 * i + 7, 4:10] = number
    return values, values != 0


@pytest.mark.parametrize(
    "ids",
    [list(range(1, 41)), [0, 7, 8, *range(11, 34)], [1, 2, 3, 5, 7, 9, 11, 40, 50, 255], list(range(1, 256))],
    ids=["1 to 40", "cityscapes", "odd", "instances"],
)
def test_many_labels_are_labels(ids: list[int]) -> None:
    values, where = areas(ids)
    assert np.array_equal(marked(encode(Image.fromarray(values))), where)
    wide, where = areas(ids, np.uint16)
    assert np.array_equal(marked(encode(Image.fromarray(wide * 200))), where)
    palette = Image.fromarray(values, "P")
    palette.putpalette([0, 0, 0, *np.random.default_rng(0).integers(1, 256, 765).tolist()])
    assert np.array_equal(marked(encode(palette)), values != 0)


@pytest.mark.parametrize("high", [1, 2, 5])
def test_a_jpeg_of_nothing_but_noise_is_empty(high: int) -> None:
    noise = np.random.default_rng(0).integers(0, high + 1, (60, 80), np.uint8)
    assert not marked(encode(Image.fromarray(noise), "JPEG", quality=98)).any()


def test_a_lossy_webp_is_cut_at_half_and_a_lossless_one_has_labels() -> None:
    where = np.zeros((60, 80), np.bool_)
    where[10:40, 10:50] = True
    mask = Image.fromarray(where.astype(np.uint8) * 255)
    assert (marked(encode(mask, "WEBP")) != where).mean() < 0.02
    few = Image.fromarray(where.astype(np.uint8) * 3)
    assert np.array_equal(marked(encode(few, "WEBP", lossless=True)), where)


def test_a_large_mask_needs_no_sort() -> None:
    data = encode(Image.new("1", (9000, 9000)))
    assert not marked(data).any()
