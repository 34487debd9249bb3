import io
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import encode, png
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import pipeline.data.images
import pipeline.data.masks
from pipeline.data.images import RESIZES, Decoding, read_bytes
from pipeline.data.levels import Levels
from pipeline.data.masks import Stance
from pipeline.errors import ImageError, UserError

Pixels = NDArray[np.uint8]


def decode_rgb(data: bytes, size: int, resize: str, name: str, levels: Levels | None = None) -> Pixels:
    return pipeline.data.images.decode_rgb(data, Decoding(size, resize, levels), name)


def resize_rgb(pixels: Pixels, size: int, resize: str, name: str) -> Pixels:
    return pipeline.data.images.resize_rgb(pixels, Decoding(size, resize, None), name)


def read_rgb(path: Path, size: int, resize: str) -> Pixels:
    return pipeline.data.images.read_rgb(path, Decoding(size, resize, None))


def decode_mask(data: bytes, size: int, resize: str, name: str, stance: Stance | None = None) -> NDArray[np.bool_]:
    """The mask of an image of its own size, unless another is given."""
    decoding = Decoding(size, resize, Levels())
    own = stance or Stance(Stance.of(data, decoding.most_pixels, name).upright, None)
    return pipeline.data.masks.decode_mask(data, own, decoding, name)


def texture(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    smooth = Image.fromarray(noise if channels > 1 else noise[..., 0]).filter(ImageFilter.GaussianBlur(2))
    low, high = smooth.getextrema() if channels == 1 else (90, 165)
    values = (np.asarray(smooth).astype(np.float64) - low) * 255 / (high - low)
    return values.clip(0, 255).astype(np.uint8)


GREY = texture(40, 60, channels=1)
COLOUR = texture(40, 60)


# --- the rules on modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(GREY).convert("RGB"), "PNG"),
        (Image.fromarray(GREY).convert("LA"), "PNG"),
        (Image.fromarray(GREY).convert("RGBA"), "PNG"),
        (Image.fromarray(GREY).convert("P"), "PNG"),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
        (Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
        (Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        (Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
        (Image.fromarray(GREY), "BMP"),
        (Image.fromarray(GREY), "PPM"),
        (Image.fromarray(GREY), "WEBP"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode,
)
def test_the_same_grey_picture_decodes_alike_from_every_mode(image: Image.Image, kind: str, resize: str) -> None:
    plain = decode_rgb(encode(Image.fromarray(GREY)), 32, resize, "plain")
    assert plain.shape == (32, 32, 3)
    assert plain.dtype == np.uint8
    assert np.ptp(plain) > 100
    options = {"lossless": True} if kind == "WEBP" else {}
    other = decode_rgb(encode(image, kind, **options), 32, resize, "other")
    assert other.shape == plain.shape
    assert other.dtype == plain.dtype
    assert np.abs(other.astype(int) - plain).max() <= 1


def test_colour_keeps_its_channels() -> None:
    same = decode_rgb(encode(Image.fromarray(COLOUR[:, :40])), 40, "stretch", "x")
    assert np.array_equal(same, COLOUR[:, :40])


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [17, 40, 90])
def test_an_array_is_resized_as_a_file_of_its_pixels_is(tmp_path: Path, size: int, resize: str) -> None:
    for pixels in (COLOUR, np.repeat(GREY, 3).reshape(40, 60, 3), COLOUR[::-1, ::2]):
        (tmp_path / "x.png").write_bytes(encode(Image.fromarray(pixels)))
        assert np.array_equal(resize_rgb(pixels, size, resize, "x"), read_rgb(tmp_path / "x.png", size, resize))


@pytest.mark.parametrize("pixels", [GREY, COLOUR[..., :2], COLOUR.astype(np.float32), COLOUR[:0], COLOUR[None]])
def test_an_array_of_another_shape_or_type_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match=r"^this array is .* give an RGB image \(H,W,3\) of uint8$"):
        resize_rgb(pixels, 32, "pad", "this array")


def test_cmyk_jpeg_becomes_the_colours_it_was_made_from() -> None:
    flat = Image.new("RGB", (32, 32), (200, 60, 20)).convert("CMYK")
    pixels = decode_rgb(encode(flat, "JPEG", quality=100), 8, "stretch", "x")
    assert np.abs(pixels.astype(int) - (200, 60, 20)).max() <= 6


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    pixels = decode_rgb(encode(Image.fromarray(ramp)), 64, "stretch", "x")[0, :, 0]
    assert (pixels[0], pixels[-1]) == (0, 255)
    assert np.array_equal(pixels, np.rint(ramp[0] / 257))


def test_a_dark_sixteen_bit_image_stays_darker_than_a_bright_one() -> None:
    dark, bright = (encode(Image.fromarray(np.full((8, 8), v, np.uint16))) for v in (2000, 60000))
    assert decode_rgb(dark, 8, "stretch", "x").max() < decode_rgb(bright, 8, "stretch", "x").min()


def test_transparent_pixels_are_black_and_half_transparent_ones_half_as_bright() -> None:
    pixels = np.full((4, 6, 4), 200, np.uint8)
    pixels[:, :2, 3], pixels[:, 2:4, 3], pixels[:, 4:, 3] = 0, 128, 255
    image = Image.fromarray(pixels)
    for same in (image, image.convert("LA")):
        row = decode_rgb(encode(same), 6, "stretch", "x")[0, :, 0]
        assert row.tolist() == pytest.approx([0, 0, 100, 100, 200, 200], abs=1)


def test_the_colour_under_full_transparency_does_not_leak_into_its_neighbours() -> None:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16, 0] = 255  # red, but invisible
    pixels[:, 16:] = (0, 0, 255, 255)
    assert decode_rgb(encode(Image.fromarray(pixels)), 9, "stretch", "x")[..., 0].max() == 0


def test_palette_transparency_is_composited_too() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert decode_rgb(encode(image), 4, "stretch", "x")[0, 0].tolist() == [200, 100, 50]
    assert decode_rgb(encode(image, transparency=1), 4, "stretch", "x").max() == 0


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (10, 250)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_rgb(data, 4, "stretch", "x").max() == 10


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_before_the_resize(orientation: int, kind: str) -> None:
    upright = texture(32, 48, channels=1)
    # How a camera stores an upright picture under each orientation (EXIF 2.32, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {}
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    for resize in RESIZES:
        expected = decode_rgb(encode(Image.fromarray(upright)), 24, resize, "x")
        assert np.abs(decode_rgb(data, 24, resize, "x").astype(int) - expected).max() <= 4
        assert (
            decode_mask(data, 24, resize, "x") == (decode_mask(encode(Image.fromarray(upright)), 24, resize, "x"))
        ).mean() > 0.95


# --- the rules on geometry --------------------------------------------------------------------------------------


def test_shrinking_averages() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode_rgb(encode(Image.fromarray(checks)), 16, "stretch", "x")
    assert np.abs(pixels[2:-2, 2:-2].astype(int) - 127).max() <= 3


def test_a_large_jpeg_decodes_as_from_all_of_its_detail() -> None:
    pixels = texture(600, 900)
    data = encode(Image.fromarray(pixels), "JPEG", quality=92)
    with Image.open(io.BytesIO(data)) as image:
        full = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(decode_rgb(data, 64, "stretch", "x") - full)
    assert difference.max() <= 5
    assert difference.mean() < 0.5


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(8, 48),
    resize=st.sampled_from(RESIZES),
)
@settings(max_examples=60, deadline=None)
def test_any_size_fits_the_square(width: int, height: int, size: int, resize: str) -> None:
    data = encode(Image.new("RGB", (width, height), (9, 99, 199)))
    pixels = decode_rgb(data, size, resize, "x")
    assert pixels.shape == (size, size, 3)
    # Neither a resize nor a border may bring in another colour.
    assert (pixels == (9, 99, 199)).all()
    mask = decode_mask(encode(Image.new("L", (width, height), 255)), size, resize, "x")
    assert mask.shape == (size, size)
    inside = size * max(1, round(size * min(width, height) / max(width, height)))
    assert mask.sum() == (size * size if resize == "stretch" else inside)


@given(
    shape=st.tuples(st.integers(20, 80), st.integers(20, 80)),
    corner=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)),
    resize=st.sampled_from(RESIZES),
)
@settings(max_examples=40, deadline=None)
def test_mask_and_image_go_through_the_same_geometry(
    shape: tuple[int, int], corner: tuple[float, float], resize: str
) -> None:
    defect = np.zeros(shape, np.uint8)
    top, left = (int(part * side) for part, side in zip(corner, shape, strict=True))
    defect[top : top + shape[0] // 3, left : left + shape[1] // 3] = 255
    data = encode(Image.fromarray(defect))
    mask = decode_mask(data, 32, resize, "x")
    bright = decode_rgb(data, 32, resize, "x")[..., 0] > 127
    if resize == "pad":
        # The border of the image repeats its edge, that of the mask is empty.
        inside = decode_mask(encode(Image.new("L", shape[::-1], 255)), 32, resize, "x")
        assert not (mask & ~inside).any()
        bright &= inside
    # Two rounded edges of one pixel each way around a rectangle of at most 12 by 12.
    assert mask.any()
    assert (mask != bright).sum() <= 2 * 2 * 12


def test_pad_keeps_the_ratio_and_repeats_the_edge() -> None:
    pixels = np.full((20, 40, 3), 128, np.uint8)
    pixels[0], pixels[-1] = (255, 0, 0), (0, 0, 255)
    padded = decode_rgb(encode(Image.fromarray(pixels)), 40, "pad", "x")
    assert np.array_equal(padded[10:30], pixels)
    assert (padded[:10] == (255, 0, 0)).all()
    assert (padded[30:] == (0, 0, 255)).all()


def test_unknown_resize_names_the_choices() -> None:
    with pytest.raises(UserError, match="stretch, pad"):
        decode_rgb(encode(Image.fromarray(GREY)), 8, "crop", "x")


# --- files that are not images ----------------------------------------------------------------------------------


def png_that_claims(width: int, height: int) -> bytes:
    return png(width, height, 8, 0, bytes(1000))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image, but a text that somebody named .png",
        png_that_claims(50_000, 50_000),
        encode(Image.fromarray(COLOUR), "EPS"),
        encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
        encode(Image.fromarray(np.full((4, 4), 1000, np.float32)), "TIFF"),
        encode(Image.fromarray(np.full((4, 4), -1, np.int32)), "TIFF"),
        encode(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"),
    ],
    ids=["empty", "text", "bomb", "eps", "nan", "float-1000", "negative", "32-bit"],
)
def test_what_cannot_be_decoded_is_one_line_that_names_the_file(data: bytes) -> None:
    for levels in (None, Levels()):
        with pytest.raises(ImageError) as caught:
            decode_rgb(data, 16, "stretch", "screw/train/good/007.png", levels)
        assert str(caught.value).startswith("screw/train/good/007.png: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(kind: str, kept: float) -> None:
    data = encode(Image.fromarray(COLOUR), kind)
    assert decode_rgb(data, 16, "stretch", "x").any()
    with pytest.raises(ImageError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode_rgb(data[: int(len(data) * kept)], 16, "stretch", "x")


@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_corrupt_bytes_give_an_image_or_an_image_error(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encode(Image.fromarray(COLOUR), kind))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        pixels = decode_rgb(bytes(data), 16, "pad", "x")
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert pixels.shape == (16, 16, 3)


def test_broken_exif_does_not_refuse_whole_pixels() -> None:
    data = encode(Image.fromarray(COLOUR[:, :40]), exif=b"Exif\x00\x00no TIFF header at all")
    assert np.array_equal(decode_rgb(data, 40, "stretch", "x"), COLOUR[:, :40])


# --- reading ----------------------------------------------------------------------------------------------------


def test_read_bytes_is_the_same_from_a_folder_and_from_a_url(tmp_path: Path) -> None:
    data = encode(Image.fromarray(GREY))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(data)
    fsspec.filesystem("memory").pipe_file("/images-read/a/x.png", data)
    assert read_bytes(str(tmp_path), "a/x.png") == data
    assert read_bytes("memory://images-read", "a/x.png") == data


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for root, path in [
        (str(tmp_path), "none.png"),
        (str(tmp_path), "folder.png"),
        ("memory://no", "none.png"),
    ]:
        with pytest.raises(ImageError, match=path):
            read_bytes(root, path)
