"""Stored pictures: unchanged if possible, otherwise RGB, upright and small."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from adde.errors import UserError
from adde.preprocess import decode
from adde.shards.catalogues.pictures import store

RED, BLUE = (220, 30, 30), (30, 30, 220)


def halves(width=60, height=40, mode="RGB"):
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image.convert(mode)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def near(pixel, colour):
    return np.abs(np.asarray(pixel, int) - colour).max() < 12


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_kept_byte_for_byte(kind, extension):
    content = encoded(halves(), kind)
    assert store(content, "x", 40) == (content, extension)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(halves(300, 200), "JPEG"), (60, 40)),
        (encoded(halves(301, 200), "PNG"), (60, 40)),
        (encoded(halves(40, 1000), "PNG"), (40, 1000)),
        (encoded(halves(90, 2000), "WEBP"), (40, 889)),
        (encoded(halves(), "BMP"), (60, 40)),
        (encoded(halves(mode="L"), "JPEG"), (60, 40)),
        (encoded(halves().quantize(4), "PNG"), (60, 40)),
        (encoded(halves(mode="CMYK"), "JPEG"), (60, 40)),
        (encoded(halves(mode="RGBA"), "WEBP", lossless=True), (60, 40)),
    ],
)
def test_made_small_and_rgb(content, expected):
    stored, _ = store(content, "x", 40)
    image = Image.open(io.BytesIO(stored))
    assert (image.mode, image.size) == ("RGB", expected)
    if Image.open(io.BytesIO(content)).mode == "L":
        return
    width, height = image.size
    assert near(image.getpixel((width // 8, height // 2)), RED)
    assert near(image.getpixel((width - width // 8 - 1, height // 2)), BLUE)


def test_first_of_several_frames():
    frames = encoded(halves(), "WEBP", save_all=True, append_images=[halves().rotate(180)])
    stored, extension = store(frames, "x", 40)
    assert extension == "jpg"
    assert near(Image.open(io.BytesIO(stored)).getpixel((3, 3)), RED)


def test_stored_upright():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown rotated by 90 degrees clockwise: red is at the top
    content = encoded(halves(), "JPEG", exif=exif)
    stored, extension = store(content, "x", 40)
    image = Image.open(io.BytesIO(stored))
    assert (extension, image.size) == ("jpg", (40, 60))
    assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    assert near(image.getpixel((20, 5)), RED)
    assert near(image.getpixel((20, 55)), BLUE)
    np.testing.assert_allclose(np.asarray(image, int), np.asarray(decode(content), int), atol=40)


def test_transparency_is_laid_on_white():
    image = halves(mode="RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 30, 40))
    stored, extension = store(encoded(image, "PNG"), "x", 40)
    shown = Image.open(io.BytesIO(stored))
    assert extension == "jpg"
    assert near(shown.getpixel((5, 20)), (255, 255, 255))
    assert near(shown.getpixel((55, 20)), BLUE)


def test_cut_short_though_small_enough_to_keep():
    content = encoded(halves(), "JPEG")
    with pytest.raises(UserError, match=r"a\.jpg: expected a picture that decodes"):
        store(content[: len(content) // 2], "a.jpg", 100)
