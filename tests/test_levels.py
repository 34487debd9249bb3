"""Images of more than 8 bits, and colours that are not sRGB: one scale per category, told by its normals."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, png
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from pipeline.data.images import Decoding, decode_rgb
from pipeline.data.levels import Levels
from pipeline.data.masks import Stance, decode_mask
from pipeline.data.pixels import MOST_PIXELS
from pipeline.data.survey import survey
from pipeline.errors import ImageError

SIZE = 32
GREY = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
EARLIER = Levels(65535, 1.0, rules=1)
Pixels = NDArray[np.uint8]


def deep_png(values: NDArray[np.integer]) -> bytes:
    """A PNG of 16 bits per channel, which Pillow writes only for grey."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, {2: 4, 3: 2, 4: 6}[channels], rows)


def deep_tiff(values: NDArray[np.generic], kind: int, photometric: int, order: str = "<") -> bytes:
    """A TIFF as other programs write it, uncompressed: kind 1 integers, 3 floating point (tag 339)."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    channels = values.shape[2] if values.ndim == 3 else 1
    bits = 8 * values.dtype.itemsize
    start = 8 + 2 + 12 * 10 + 4
    extra = struct.pack(f"{order}{channels}H", *[bits] * channels)
    tags = [
        (256, 3, 1, values.shape[1]),
        (257, 3, 1, values.shape[0]),
        (258, 3, channels, bits if channels == 1 else start),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, start + len(extra)),
        (277, 3, 1, channels),
        (278, 3, 1, values.shape[0]),
        (279, 4, 1, len(data)),
        (339, 3, 1, kind),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, size, count, value in tags:
        short = size == 3 and not (tag == 258 and channels > 2)
        head += struct.pack(f"{order}HHI", tag, size, count) + struct.pack(f"{order}{'Hxx' if short else 'I'}", value)
    return head + struct.pack(f"{order}I", 0) + extra + data


def decoded(data: bytes, levels: Levels | None) -> Pixels:
    return decode_rgb(data, Decoding(SIZE, "stretch", levels), "x.png")


def surveyed(folder: Path, files: dict[str, bytes]) -> Levels:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return survey(str(folder), list(files), MOST_PIXELS).levels


# --- one scale per category -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_files_that_hold_fewer_bits_are_as_bright_as_the_picture(
    bits: int, kind: str, tmp_path: Path
) -> None:
    white = 2**bits - 1
    values = np.rint(GREY.astype(np.float64) * white / 255).astype(np.uint16)
    data = encode(Image.fromarray(values), kind)
    levels = surveyed(tmp_path, {f"{i}.{kind.lower()}": data for i in range(4)})
    assert levels == Levels(white, None)
    assert np.abs(decoded(data, levels)[..., 0].astype(int) - GREY).max() <= 1
    # Caches of earlier versions keep their rule.
    assert decoded(data, None).max() == max(1, round(255 * white / 65535))


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("form", ["png", "png with opacity", "little tiff", "big tiff"])
def test_so_are_colours_of_sixteen_bits(bits: int, form: str, tmp_path: Path) -> None:
    white = 2**bits - 1
    values = np.rint(COLOUR.astype(np.float64) * white / 255).astype(np.uint16)
    opaque = np.concatenate([values, np.full((SIZE, SIZE, 1), 65535, np.uint16)], 2)
    data = {
        "png": lambda: deep_png(values),
        "png with opacity": lambda: deep_png(opaque),
        "little tiff": lambda: deep_tiff(values, 1, 2),
        "big tiff": lambda: deep_tiff(values, 1, 2, ">"),
    }[form]()
    levels = surveyed(tmp_path, {"a.png": data})
    assert levels == Levels(white, None)
    assert np.abs(decoded(data, levels).astype(int) - COLOUR).max() <= 1


def test_a_dark_image_stays_dark_beside_the_normals_of_its_category() -> None:
    dark, bright = (encode(Image.fromarray(np.full((8, 8), v, np.uint16))) for v in (100, 4000))
    levels = Levels(integer=4095)
    assert decoded(dark, levels).max() == 6 and decoded(bright, levels).max() == 249


@given(white=st.sampled_from([1.0, 255.0, 4095.0, 65535.0]), above=st.floats(1, 1.4), below=st.floats(0, 0.4))
@settings(max_examples=40, deadline=None)
def test_one_bright_pixel_does_not_change_the_scale_of_floating_point(white: float, above: float, below: float) -> None:
    values = GREY.astype(np.float32) * np.float32(white / 255)
    odd = values.copy()
    odd[0, 0], odd[0, 1] = white * above, -white * below
    levels = Levels(real=white)
    plain, changed = (decoded(encode(Image.fromarray(v), "TIFF"), levels)[..., 0] for v in (values, odd))
    assert np.abs(plain.astype(int) - GREY).max() <= 1
    assert (plain != changed).sum() <= 2 and changed[0, 0] == 255 and changed[0, 1] == 0


@pytest.mark.parametrize(
    ("most", "white"), [(0.4, 1), (1.003, 1), (1.4, 1), (40, 255), (200, 255), (260, 255), (3000, 4095)]
)
def test_the_scale_of_floating_point_is_that_of_most_normals(most: float, white: float, tmp_path: Path) -> None:
    values = GREY.astype(np.float32) * np.float32(most / GREY.max())
    files = {f"{i}.tiff": encode(Image.fromarray(values), "TIFF") for i in range(5)}
    outlier = {"6.tiff": encode(Image.fromarray(values * 1000), "TIFF")}
    assert surveyed(tmp_path, files | outlier) == Levels(None, white)


@pytest.mark.parametrize(
    ("values", "levels", "says"),
    [
        (np.full((8, 8), 40_000, np.uint16), Levels(4095), "values up to 40000, while 4095 is white"),
        (np.full((8, 8), 200, np.float32), Levels(), "values up to 200, while 1 is white"),
        (np.full((8, 8), -0.8, np.float32), Levels(), "values down to -0.8, while 0 is black"),
        (np.full((8, 8), np.inf, np.float32), Levels(), "not finite"),
    ],
)
def test_an_image_of_another_scale_is_refused(values: NDArray[np.generic], levels: Levels, says: str) -> None:
    with pytest.raises(ImageError, match=f"^x.png: .*{says}"):
        decoded(encode(Image.fromarray(values), "TIFF"), levels)
    if values.dtype == np.uint16:
        with pytest.raises(ImageError, match=f"^x.png: .*{says}"):
            decoded(deep_png(values[..., None].repeat(3, 2)), levels)


def test_plain_files_are_looked_at_by_their_headers_only(tmp_path: Path) -> None:
    data = encode(Image.fromarray(COLOUR))
    files = {"a.png": data, "cut.png": data[: len(data) // 2], "none.png": b"", "text.png": b"text"}
    assert surveyed(tmp_path, files) == Levels(None, None)
    found = survey(str(tmp_path), [*files, "missing.png"], MOST_PIXELS)
    assert (found.looked, found.lines()) == (2, [])
    assert survey(str(tmp_path), list(files), 100).looked == 0


# --- forms of TIFF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_tiff_whose_white_is_zero_is_no_negative(bits: int, tmp_path: Path) -> None:
    white = 2**bits - 1
    values = white - np.rint(GREY.astype(np.float64) * white / 255).astype(np.uint16)
    data = deep_tiff(values, 1, 0)
    levels = surveyed(tmp_path, {"a.tif": data})
    assert np.abs(decoded(data, levels)[..., 0].astype(int) - GREY).max() <= 1
    # Pillow reads no such file of the other byte order.
    with pytest.raises(ImageError, match="a TIFF of 1 channel of 16-bit integers"):
        decoded(deep_tiff(values, 1, 0, ">"), levels)


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        (np.zeros((8, 8), np.float16), 3, "1 channel of 16-bit floating point"),
        (np.zeros((8, 8, 5), np.uint16), 1, "5 channels of 16-bit integers"),
        (np.zeros((8, 8, 7), np.float32), 3, "7 channels of 32-bit floating point"),
        (np.zeros((8, 8, 3), np.float32), 3, "3 channels of 32-bit floating point"),
    ],
)
def test_a_sound_tiff_that_is_not_read_is_called_what_it_is(values: NDArray[np.generic], kind: int, says: str) -> None:
    with pytest.raises(ImageError, match=rf"^x\.png: .*a TIFF of {says}.*save it as"):
        decoded(deep_tiff(values, kind, 1), Levels())


def test_double_precision_is_read_or_called_what_it_is() -> None:
    data = deep_tiff(GREY.astype(np.float64) / 255, 3, 1)
    try:
        found = decoded(data, Levels())
    except ImageError as error:
        assert "1 channel of 64-bit floating point" in str(error)
    else:
        assert np.abs(found[..., 0].astype(int) - GREY).max() <= 1


# --- colours ----------------------------------------------------------------------------------------------------


ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def wide_profile(
    kind: bytes = b"RGB ", name: bytes = b"wide", gamma: float = 1.8, primaries: tuple[tuple[float, ...], ...] = ADOBE
) -> bytes:
    """An ICC profile (ICC.1:2001-04) of the primaries of Adobe RGB, or of grey, with a gamma of 1.8."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(65536 * value)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(256 * gamma))
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" + bytes(8 + 4 + 67 + 3)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if kind == b"RGB ":
        tags |= {bytes([at]) + b"XYZ": xyz(*primary) for at, primary in zip(b"rgb", primaries, strict=True)}
        tags |= {bytes([at]) + b"TRC": curve for at in b"rgb"}
    else:
        tags[b"kTRC"] = curve
    body, table = b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    size = 128 + 4 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, b"mntr", kind, b"XYZ ") + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_same_parts_in_a_wide_gamut_look_the_same(kind: str, mode: str) -> None:
    if (kind, mode) == ("JPEG", "RGBA"):
        pytest.skip("JPEG has no opacity")
    # Inside both gamuts.
    seen = np.repeat(np.repeat(np.random.default_rng(2).integers(60, 200, (2, 2, 3), np.uint8), 16, 0), 16, 1)
    profile = wide_profile()
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    wide = ImageCms.profileToProfile(Image.fromarray(seen), ImageCms.createProfile("sRGB"), opened, outputMode="RGB")
    assert wide is not None
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {"quality": 100}
    data = encode(wide.convert(mode), kind, icc_profile=profile, **options)
    inner = (slice(4, 12), slice(4, 12))
    managed, ignored = (decoded(data, levels)[inner].astype(int) - seen[inner] for levels in (Levels(), None))
    assert np.abs(managed).max() <= 4
    assert np.abs(ignored).max() > 8  # caches of earlier versions keep their rule


def test_a_grey_profile_too_and_one_that_does_not_fit_or_is_damaged_is_ignored() -> None:
    grey = Image.fromarray(GREY)
    with_profile = decoded(encode(grey, icc_profile=wide_profile(b"GRAY")), Levels())
    # From a gamma of 1.8 to that of sRGB, about 2.2: darker tones become lighter numbers.
    middle = (GREY > 60) & (GREY < 200)
    assert (with_profile[middle] > GREY[middle][:, None]).all()
    for profile in (wide_profile(b"RGB "), b"no profile", wide_profile(b"GRAY")[:200]):
        assert np.array_equal(decoded(encode(grey, icc_profile=profile), Levels())[..., 0], GREY)


def test_srgb_is_left_as_it_is() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decoded(encode(Image.fromarray(COLOUR), icc_profile=profile), Levels()), COLOUR)


@pytest.mark.parametrize(
    "profile",
    [
        wide_profile(name=b"sRGB-elle-V2-g10.icc", gamma=1.0, primaries=SRGB),
        wide_profile(name=b"sRGB of another gamma", primaries=SRGB),
        wide_profile(name=b"sRGB with a wide gamut", gamma=2.2),
        wide_profile(b"GRAY", name=b"sRGB-elle-V2-g10 grey", gamma=1.0),
    ],
    ids=["linear", "gamma", "primaries", "grey"],
)
def test_a_profile_that_is_srgb_by_its_name_only_is_heeded(profile: bytes) -> None:
    image = Image.fromarray(GREY if profile[16:20] == b"GRAY" else COLOUR)
    data, plain = (encode(image, icc_profile=one) for one in (profile, None))
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    seen = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert np.abs(decoded(data, Levels()).astype(int) - np.asarray(seen)).max() <= 1
    assert np.abs(decoded(data, Levels()).astype(int) - decoded(plain, Levels())).max() > 8
    # Caches of earlier versions keep their rule.
    assert np.array_equal(decoded(data, EARLIER), decoded(plain, EARLIER))


def test_a_profile_that_is_srgb_by_its_colours_is_left_as_it_is_whatever_its_name() -> None:
    named = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = named.replace("sRGB".encode("utf-16-be"), "Mine".encode("utf-16-be"))
    assert other != named
    data = encode(Image.fromarray(COLOUR), icc_profile=other)
    assert np.array_equal(decoded(data, Levels()), COLOUR)


def test_lab_has_the_colours_of_its_picture() -> None:
    flat = np.repeat(np.repeat(np.array([[(200, 60, 20), (20, 90, 160)]], np.uint8), SIZE, 0), SIZE // 2, 1)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(Image.fromarray(flat), srgb, lab, outputMode="LAB")
    assert converted is not None
    found = decoded(encode(converted, "TIFF"), Levels())
    assert np.abs(found[:, [3, -4]].astype(int) - flat[:, [3, -4]]).max() <= 6


def test_a_survey_counts_colour_profiles(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(COLOUR), icc_profile=wide_profile()))
    (tmp_path / "b.png").write_bytes(encode(Image.fromarray(COLOUR)))
    found = survey(str(tmp_path), ["a.png", "b.png"], MOST_PIXELS)
    assert found.lines() == ["1 of 2 images looked at have a colour profile: its colours become sRGB"]


# --- limits -----------------------------------------------------------------------------------------------------


def test_a_picture_above_the_limit_says_how_to_lift_it() -> None:
    data = encode(Image.new("L", (100, 50)))
    with pytest.raises(ImageError, match=r"^x\.png: 100 x 50 pixels .* limit of 4,999: give --max-pixels 5000"):
        decode_rgb(data, Decoding(8, "stretch", None, 4999), "x.png")
    assert decode_rgb(data, Decoding(8, "stretch", None, 5000), "x.png").shape == (8, 8, 3)


def test_a_png_with_much_text_is_read_and_one_with_too_much_says_so() -> None:
    def with_text(count: int) -> bytes:
        info = PngImagePlugin.PngInfo()
        for i in range(count):
            info.add_text(f"log{i}", "x" * (3 << 20), zip=True)
        return encode(Image.fromarray(GREY), pnginfo=info)

    assert np.array_equal(decoded(with_text(2), Levels())[..., 0], GREY)
    with pytest.raises(ImageError, match=r"^x\.png: holds more than the limit of 64 MiB of text"):
        decoded(with_text(24), Levels())


# --- what an attack found ---------------------------------------------------------------------------------------


def test_grey_with_opacity_of_sixteen_bits_is_as_bright_as_the_picture(tmp_path: Path) -> None:
    values = np.rint(GREY.astype(np.float64) * 4095 / 255).astype(np.uint16)
    data = deep_png(np.stack([values, np.full_like(values, 65535)], axis=2))
    levels = surveyed(tmp_path, {"a.png": data})
    assert levels == Levels(4095, None)
    assert np.abs(decoded(data, levels)[..., 0].astype(int) - GREY).max() <= 1


def with_clear(data: bytes, colour: tuple[int, ...]) -> bytes:
    """A PNG that calls one colour transparent (chunk tRNS)."""
    body = b"tRNS" + struct.pack(f">{len(colour)}H", *colour)
    at = data.index(b"IDAT") - 4
    return data[:at] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[at:]


@pytest.mark.parametrize("white", [4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_sixteen_bits_is_black_and_no_measure_of_white(
    white: int, channels: int, tmp_path: Path
) -> None:
    values = np.rint(COLOUR[..., :channels].astype(np.float64) * (white - 1) / 255).astype(np.uint16)
    seen = COLOUR[..., :channels].copy()
    values[4:8], seen[4:8] = 60001, 0
    values[8:12], seen[8:12] = white - 1, 255
    plain = encode(Image.fromarray(values[..., 0])) if channels == 1 else deep_png(values)
    data = with_clear(plain, (60001,) * channels)
    levels = surveyed(tmp_path, {"a.png": data})
    assert levels == Levels(white, None)
    assert np.abs(decoded(data, levels).astype(int) - seen).max() <= 1
    if white == 65535:  # caches of earlier versions keep their rule
        assert (decoded(data, EARLIER)[4:8] > 230).all()


@pytest.mark.parametrize("form", ["RGB", "palette", "grey", "grey palette"])
def test_a_transparent_colour_is_black_with_a_profile_too(form: str) -> None:
    profile = wide_profile(b"GRAY" if "grey" in form else b"RGB ")
    image = Image.fromarray(GREY if "grey" in form else COLOUR // 64 * 64)
    if "palette" in form:
        image = image.quantize(64)
    clear = image.getpixel((3, 3))
    is_clear = np.asarray(image) == clear if image.mode != "RGB" else (np.asarray(image) == clear).all(axis=2)
    data, plain = (encode(image, icc_profile=profile, **more) for more in ({"transparency": clear}, {}))
    expected = np.where(is_clear[..., None], 0, decoded(plain, Levels()))
    assert expected.any() and decoded(plain, Levels())[is_clear].any()
    assert np.abs(decoded(data, Levels()).astype(int) - expected).max() <= 1


def test_opacity_may_have_the_scale_of_the_camera() -> None:
    values = np.rint(COLOUR.astype(np.float64) * 4095 / 255).astype(np.uint16)
    data = deep_png(np.concatenate([values, np.full((SIZE, SIZE, 1), 4095, np.uint16)], 2))
    assert np.abs(decoded(data, Levels(integer=4095)).astype(int) - COLOUR).max() <= 1


@pytest.mark.parametrize(("side", "stuck"), [(128, 1), (90, 1), (90, 3), (20, 3), (10, 1)])
def test_stuck_pixels_do_not_change_the_scale_of_a_category(side: int, stuck: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    files = {}
    for i in range(4):
        values = random.integers(0, 4096, (side, side), np.uint16)
        values[5, :stuck] = 65535
        files[f"{i}.png"] = encode(Image.fromarray(values))
    assert surveyed(tmp_path, files) == Levels(4095, None)


def test_signed_values_are_as_bright_as_the_picture(tmp_path: Path) -> None:
    values = np.rint(GREY.astype(np.float64) * 32767 / 255).astype(np.int16)
    data = deep_tiff(values, 2, 1)
    levels = surveyed(tmp_path, {"a.tif": data})
    assert np.abs(decoded(data, levels)[..., 0].astype(int) - GREY).max() <= 1


def fits(values: NDArray[np.generic], **more: str) -> bytes:
    """A FITS of values in the byte order of its standard, the lowest row first."""
    bits = (-8 if values.dtype.kind == "f" else 8) * values.dtype.itemsize
    axes = {f"NAXIS{i + 1}": str(count) for i, count in enumerate(values.shape[::-1])}
    cards = {"SIMPLE": "T", "BITPIX": str(bits), "NAXIS": str(values.ndim)} | axes | more
    head = "".join(f"{name:8}= {value:>20} / told".ljust(80) for name, value in cards.items()) + "END".ljust(80)
    body = values.tobytes()
    return head.ljust(2880).encode() + body + bytes(-len(body) % 2880)


@given(integer=st.none() | st.integers(255, 65535), real=st.none() | st.floats(1, 65535), rules=st.sampled_from([1, 2]))
def test_what_is_stored_of_a_scale_is_read_again_and_an_earlier_one_stays_as_it_was(
    integer: int | None, real: float | None, rules: int
) -> None:
    levels = Levels(integer, real, rules)
    assert Levels.from_attributes(levels.to_attributes()) == levels
    earlier = {"integer": 65535, "real": 1.0}
    assert Levels.from_attributes(earlier) == EARLIER and EARLIER.to_attributes() == earlier


@pytest.mark.parametrize("least", [-100, 0])
def test_signed_bytes_are_refused_and_read_by_earlier_caches_as_before(least: int) -> None:
    values = np.linspace(least, 100, SIZE * SIZE).astype(np.int8).reshape(SIZE, SIZE)
    data = deep_tiff(values, 2, 1)
    with pytest.raises(ImageError, match=r"^x\.png: a TIFF of signed 8-bit integers, which Pillow reads as unsigned"):
        decoded(data, Levels())
    for levels in (EARLIER, None):
        assert np.array_equal(decoded(data, levels)[..., 0], values.view(np.uint8))
    assert decode_mask(data, Stance((SIZE, SIZE), None), Decoding(SIZE, "stretch", Levels()), "x.png").any()


def planar_tiff() -> bytes:
    """As `deep_tiff`, in three planes: tag 284 is 2."""
    planes = np.zeros((3, 8, 8), np.uint16)
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 3, 146), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 3, 152), (277, 3, 1, 3), (278, 3, 1, 8), (279, 4, 3, 164), (284, 3, 1, 2), (339, 3, 1, 1)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, size, count, value in tags:
        head += struct.pack("<HHI", tag, size, count)
        head += struct.pack("<Hxx" if size == 3 and count == 1 else "<I", value)
    head += struct.pack("<I", 0)
    assert len(head) == 146
    head += struct.pack("<3H", 16, 16, 16) + struct.pack("<3I", 176, 304, 432) + struct.pack("<3I", 128, 128, 128)
    return head + planes.tobytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (planar_tiff(), "a TIFF of 16 bits in separate planes"),
        (
            fits(np.zeros((8, 8), ">i2"), BZERO="32768", BSCALE="1.0"),
            r"a FITS whose values are to be scaled \(BZERO 32768\)",
        ),
        (fits(np.zeros((8, 8), ">i2"), BSCALE="2.5D0"), r"a FITS whose values are to be scaled \(BSCALE 2.5D0\)"),
        (fits(np.zeros((8, 8), np.uint8), BZERO="-128"), r"a FITS whose values are to be scaled \(BZERO -128\)"),
        (fits(np.zeros((3, 8, 8), np.uint8)), r"a FITS of several planes \(NAXIS3 3\)"),
        (b"P6\n# by a camera\n2 2\n65535\n" + bytes(24), "a PPM of more than 8 bits per channel"),
    ],
    ids=["planar", "unsigned fits", "scaled fits", "signed fits", "colour fits", "ppm"],
)
def test_forms_of_which_only_a_part_would_be_read_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=rf"^x\.png: {says}, which Pillow reads wrongly or in part"):
        decoded(data, Levels())


@pytest.mark.parametrize("kind", ["u1", ">i2", ">f4"])
def test_fits_is_as_bright_as_the_picture_and_no_value_wraps_round(kind: str, tmp_path: Path) -> None:
    white = {"u1": 255, ">i2": 32767, ">f4": 1}[kind]
    values = (GREY[::-1].astype(np.float64) * white / 255 + (kind != ">f4") * 0.5).astype(kind)
    data = fits(values, BZERO="0.0", BSCALE="1")
    levels = surveyed(tmp_path, {"a.fits": data})
    assert np.abs(decoded(data, levels)[..., 0].astype(int) - GREY).max() <= 1
    if kind == ">i2":
        for levels in (Levels(), Levels(None, None), None):
            with pytest.raises(ImageError, match=r"^x\.png: values outside 0\.\.65535"):
                decoded(fits(-values), levels)


def test_a_grey_profile_holds_for_a_palette_too() -> None:
    grey, profile = Image.fromarray(GREY), wide_profile(b"GRAY")
    plain, palette = (decoded(encode(image, icc_profile=profile), Levels()) for image in (grey, grey.convert("P")))
    assert np.abs(plain.astype(int) - palette).max() <= 1 and (plain != GREY[..., None]).any()


def test_a_tiff_whose_tags_say_nothing_of_its_bits_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> str:
        raise ValueError("max() arg is an empty sequence")

    monkeypatch.setattr("pipeline.data.pixels.unread_depth", damaged)
    with pytest.raises(ImageError, match=r"^x\.png: cannot be read as an image"):
        decoded(planar_tiff(), Levels())


# --- a scale that the normals do not tell -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["grey", "colours", "floating point"])
def test_a_deep_image_beside_normals_of_eight_bits_is_refused_unless_it_uses_its_range(
    form: str, tmp_path: Path
) -> None:
    levels = surveyed(tmp_path, {"a.png": encode(Image.fromarray(GREY))})

    def with_bits(bits: int) -> bytes:
        values = np.rint(COLOUR.astype(np.float64) * (2**bits - 1) / 255).astype(np.uint16)
        if form == "colours":
            return deep_png(values)
        grey = values[..., 0]
        return encode(Image.fromarray(grey if form == "grey" else grey.astype(np.float32) / 65535), "TIFF")

    whole = decoded(with_bits(16), levels).astype(int)
    assert np.abs(whole - (COLOUR if form == "colours" else COLOUR[..., :1])).max() <= 1
    for bits in (8, 10, 12, 14):
        with pytest.raises(ImageError, match=r"^x\.png: values up to .* no normal of its category has this depth"):
            decoded(with_bits(bits), levels)
    # Caches of earlier versions hold a white that was not found.
    assert decoded(with_bits(12), Levels(65535, 1.0)).max() <= 16


@pytest.mark.parametrize("most", [1e-4, 4095 / 65535, 1.6, 1.8, 7, 30, 31.8])
def test_floating_point_between_the_usual_scales_keeps_its_levels(most: float, tmp_path: Path) -> None:
    data = encode(Image.fromarray(GREY.astype(np.float32) * np.float32(most / GREY.max())), "TIFF")
    levels = surveyed(tmp_path, {"a.tiff": data})
    assert levels.real is not None and most <= levels.real < 2 * most * 1.001
    assert len(np.unique(decoded(data, levels))) > 100


def test_black_floating_point_has_the_usual_white(tmp_path: Path) -> None:
    data = encode(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    assert surveyed(tmp_path, {"a.tiff": data}) == Levels(None, 1.0)
