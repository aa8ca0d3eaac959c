"""Pictures in: every kind that decodes becomes upright RGB, everything else a message."""

import io
import json
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import BmpImagePlugin, Image

from adde.errors import UserError
from adde.preprocess import Preprocess, decode, fit
from adde.shards.jpeg import decode_pixels, is_plain

ORIENTATION = 0x0112
UPRIGHT_TRANSPOSES = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
"""What each EXIF orientation asks a viewer to do (CIPA DC-008, tag 274)."""


def noise(width=13, height=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(width, height):
    y, x = np.mgrid[:height, :width] / max(width, height)
    return np.stack([255 * x, 255 * y, 128 + 90 * np.sin(9 * x)], axis=2).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width, height, depth=8, colour=2, rows=b""):
    """A PNG by its specification, so that the header may promise anything."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize("orientation", UPRIGHT_TRANSPOSES)
def test_pictures_come_upright(orientation):
    stored = noise()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    shown = np.asarray(decode(encoded(Image.fromarray(stored), exif=exif)))
    np.testing.assert_array_equal(shown, UPRIGHT_TRANSPOSES[orientation](stored))


def exif_of(*tags, orientation=6):
    """EXIF by TIFF's specification (Adobe, 1992): its orientation and other tags, each (number,
    type, count, four bytes).
    """
    tags = sorted([(ORIENTATION, 3, 1, struct.pack("<HH", orientation, 0)), *tags])
    entries = b"".join(struct.pack("<HHL", *tag[:3]) + tag[3] for tag in tags)
    head = b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(tags))
    return head + entries + struct.pack("<L", 0)


@pytest.mark.parametrize(
    "tag",
    [
        (0x0128, 2, 2, b"2\0\0\0"),  # ResolutionUnit, a number, as text
        (0x010E, 11, 1, struct.pack("<f", 1)),  # ImageDescription, a text, as a float
        (0x011A, 4, 1, struct.pack("<L", 72)),  # XResolution, a ratio, as a whole number
        (0x8769, 2, 4, b"abc\0"),  # where the camera's own tags stand, as text
        (0x0100, 99, 1, b"\0\0\0\0"),  # a type that there is not
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_turns_a_picture_all_the_same(kind, tag):
    stored = smooth(16, 8)
    content = encoded(Image.fromarray(stored), kind, exif=exif_of(tag), lossless=True, quality=95)
    shown = np.asarray(decode(content)).astype(int)
    assert np.abs(shown - np.rot90(stored, -1)).max() < 40  # a JPEG is not exact
    if kind == "JPEG":
        assert not is_plain(content)
        np.testing.assert_array_equal(decode_pixels(content, "x", 8), shown)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0", b"Exif\0\0nonsense", exif_of(orientation=77), exif_of()[:-30]]
)
def test_exif_that_says_nothing_leaves_a_picture_as_it_is(exif):
    stored = smooth(16, 8)
    content = encoded(Image.fromarray(stored), "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(content)), stored)


@pytest.mark.parametrize("error", [TypeError("a"), struct.error("b"), MemoryError(), KeyError(7)])
def test_whatever_a_decoder_raises_names_the_file(monkeypatch, error):
    def fail(image):
        raise error

    content = encoded(Image.fromarray(noise()), "BMP")
    monkeypatch.setattr(BmpImagePlugin.BmpImageFile, "load", fail)
    with pytest.raises(UserError, match=rf"^a\.bmp: expected .* found: {type(error).__name__}"):
        decode(content, "a.bmp")


def test_grey_palette_and_one_bit():
    grey = noise()[:, :, 0]
    shown = np.asarray(decode(encoded(Image.fromarray(grey))))
    np.testing.assert_array_equal(shown, np.repeat(grey[:, :, None], 3, axis=2))
    few = Image.fromarray(noise()).quantize(16)
    np.testing.assert_array_equal(np.asarray(decode(encoded(few))), np.asarray(few.convert("RGB")))
    bits = Image.fromarray((grey > 127).astype(np.uint8) * 255).convert("1")
    assert set(np.unique(np.asarray(decode(encoded(bits))))) == {0, 255}


def test_cmyk():
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow make red
    red = np.asarray(decode(encoded(inks, "JPEG", quality=95)))
    assert np.abs(red.astype(int) - [255, 0, 0]).max() < 8


def test_sixteen_bits_keep_their_grey():
    levels = np.linspace(0, 65_535, 32).astype(np.uint16).reshape(4, 8)
    expected = np.round(levels / 65_535 * 255)
    for image, kind in (
        (Image.fromarray(levels), "PNG"),
        (Image.fromarray(levels), "TIFF"),
        (Image.fromarray(levels.astype(np.int32)), "TIFF"),
    ):
        shown = np.asarray(decode(encoded(image, kind)))
        np.testing.assert_array_equal(shown, np.repeat(expected[:, :, None], 3, axis=2))


def test_sixteen_bits_of_colour():
    row = b"\0" + struct.pack(">3H", 65_535, 32_896, 0) * 4
    assert (
        np.asarray(decode(png(4, 2, depth=16, rows=row * 2))).reshape(-1, 3).tolist()
        == [[255, 128, 0]] * 8
    )


def test_floats_are_refused():
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    with pytest.raises(UserError, match=r"x\.tif: expected a picture .* floating-point"):
        decode(encoded(floats, "TIFF"), "x.tif")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_laid_on_white(kind):
    rgba = np.dstack([noise(), np.full((9, 13), 255, np.uint8)])
    rgba[:, :5, 3] = 0
    rgba[:, 5:8, 3] = 102
    shown = np.asarray(decode(encoded(Image.fromarray(rgba), kind, lossless=True, exact=True)))
    opacity = rgba[:, :, 3:] / 255
    expected = rgba[:, :, :3] * opacity + 255 * (1 - opacity)
    assert np.abs(shown - expected).max() <= 1


def test_grey_alpha_and_transparent_palette():
    grey = Image.new("LA", (4, 4), (10, 0))
    assert np.asarray(decode(encoded(grey))).min() == 255
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(0, (0, 0, 4, 2))
    shown = np.asarray(decode(encoded(palette, "GIF", transparency=1)))
    assert shown[0, 0].tolist() == [255, 0, 0]
    assert shown[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_file_and_memory_give_the_same(tmp_path, kind):
    path = tmp_path / "a.picture"
    path.write_bytes(encoded(Image.fromarray(noise(300, 200)), kind))
    for size in (7, 64, 333):
        preprocess = Preprocess(size)
        loaded = preprocess.load(path)
        assert (loaded.shape, loaded.dtype) == ((size, size, 3), np.uint8)
        np.testing.assert_array_equal(loaded, preprocess.load(path.read_bytes()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.9])
def test_cut_short(tmp_path, kind, kept):
    content = encoded(Image.fromarray(noise(64, 48)), kind)
    content = content[: int(len(content) * kept)]
    with pytest.raises(UserError, match=r"^item 7: expected a picture that decodes, found: "):
        decode(content, "item 7")
    path = tmp_path / "cut.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cut\.jpg: expected a picture that decodes, found: "):
        Preprocess(32).load(path)


# Above our limit; above Pillow's for a warning; above Pillow's for an error.
@pytest.mark.parametrize("side", [8_500, 12_000, 60_000])
def test_decompression_bombs(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, rows=b"\0" * 100))
    for source in (path, path.read_bytes()):
        with pytest.raises(UserError, match=r"expected .*(pixels|bomb)"):
            decode(source)


def test_no_file_and_no_picture(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jpg: no such file"):
        decode(tmp_path / "nowhere.jpg")
    with pytest.raises(UserError, match="expected a picture that decodes"):
        decode(tmp_path)
    with pytest.raises(UserError, match="expected a picture that decodes"):
        decode(b"<svg/>")


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (20, 20), (50, 31), (9, 70)])
def test_fit_by_definition(shape):
    picture = smooth(*shape)
    fitted = fit(Image.fromarray(picture), 8).astype(float)
    assert np.abs(fitted - cut_and_resize(picture, 8)).max() <= 2  # levels of 255: rounded twice


def cut_and_resize(picture, size):
    """The square in the centre, resized."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resized(picture[top : top + side, left : left + side], size, size)


def resized(picture, width, height):
    """A cubic kernel (a = -1/2) as wide as the reduction, per axis."""
    rows = resize_weights(picture.shape[0], 0, picture.shape[0], height)
    columns = resize_weights(picture.shape[1], 0, picture.shape[1], width)
    return np.einsum("yh,xw,hwc->yxc", rows, columns, picture).clip(0, 255)


@pytest.mark.parametrize("shape", [(40, 20), (21, 40), (20, 20), (50, 31), (9, 70), (300, 1)])
@pytest.mark.parametrize("size", [8, 33])
def test_squash_and_pad_lose_nothing(shape, size):
    picture = smooth(*shape)
    squashed = fit(Image.fromarray(picture), size, "squash").astype(float)
    assert np.abs(squashed - resized(picture, size, size)).max() <= 2

    padded = fit(Image.fromarray(picture), size, "pad").astype(float)
    height, width = (
        max(1, math.floor(size * side / max(shape) + 0.5)) for side in picture.shape[:2]
    )
    top, left = (size - height) // 2, (size - width) // 2
    inside = padded[top : top + height, left : left + width]
    assert np.abs(inside - resized(picture, width, height)).max() <= 2
    # Nine pixels of one border column are enough to see whose median a bar has.
    for bar, border in (
        (padded[:top], picture[0]),
        (padded[top + height :], picture[-1]),
        (padded[:, :left], picture[:, 0]),
        (padded[:, left + width :], picture[:, -1]),
    ):
        levels = [sorted(border[:, c].tolist())[(len(border) - 1) // 2] for c in range(3)]
        assert (bar == levels).all()


def test_a_portraits_collar_and_hem_are_seen():
    """Red above, blue below, in the quarter of a 3:4 picture that a crop takes away."""
    picture = np.full((400, 300, 3), 255, np.uint8)
    picture[:40], picture[-40:] = (255, 0, 0), (0, 0, 255)
    content = encoded(Image.fromarray(picture))
    for how, seen in (("crop", 0), ("pad", 6), ("squash", 6)):
        loaded = Preprocess(64, fit=how).load(content).astype(int)
        middle = loaded[:, 20:44]
        assert (middle[:, :, 0] - middle[:, :, 2] > 200).any(axis=1).sum() >= seen
        assert (middle[:, :, 2] - middle[:, :, 0] > 200).any(axis=1).sum() >= seen
        assert seen or (loaded == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_square_picture_is_the_same_in_every_fit(kind):
    content = encoded(Image.fromarray(noise(90, 90)), kind)
    for size in (16, 90, 100):
        found = [Preprocess(size, fit=how).load(content) for how in ("crop", "pad", "squash")]
        assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


def resize_weights(length, start, side, size):
    scale = side / size
    weights = np.zeros((size, length))
    for out in range(size):
        centre = start + (out + 0.5) * scale
        for i in range(length):
            x = abs(i + 0.5 - centre) / max(scale, 1)
            if x < 1:
                weights[out, i] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weights[out, i] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights[out] /= weights[out].sum()
    return weights


def test_what_fits_is_left_alone():
    square = noise(16, 16)
    np.testing.assert_array_equal(Preprocess(16).load(encoded(Image.fromarray(square))), square)


@pytest.mark.parametrize(("width", "height"), [(800, 600), (600, 800), (650, 2000), (270, 200)])
def test_draft_changes_the_speed_and_not_the_picture(width, height):
    content = encoded(Image.fromarray(smooth(width, height)), "JPEG", quality=95)
    drafted = decode(content, draft_size=64)
    assert 64 <= min(drafted.size) < min(width, height)
    whole = fit(decode(content), 64).astype(int)
    assert np.abs(Preprocess(64).load(content).astype(int) - whole).max() <= 6


def test_json():
    preprocess = Preprocess(32, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "pad")
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess
    before = {name: value for name, value in preprocess.to_json().items() if name != "fit"}
    assert Preprocess.from_json(before).fit == "crop"
    with pytest.raises(UserError, match=r"preprocess.fit: expected one of .* found 'stretch'"):
        Preprocess.from_json({**before, "fit": "stretch"})
