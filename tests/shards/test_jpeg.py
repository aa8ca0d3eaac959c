"""The fast decoder gives the pixels of `adde.preprocess.decode`, and its errors."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from adde.errors import UserError
from adde.preprocess import decode
from adde.shards import jpeg
from adde.shards.jpeg import decode_pixels, is_plain


def encoded(width, height, mode="RGB", orientation=1, **options):
    rng = np.random.default_rng(width * height)
    small = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    picture = Image.fromarray(small).resize((width, height)).convert(mode)
    picture.save(buffer, "JPEG", exif=exif, **options)
    return buffer.getvalue()


KINDS = {
    "as cameras write": {},
    "full chroma": {"subsampling": 0, "quality": 95},
    "half chroma": {"subsampling": 1},
    "progressive": {"progressive": True},
    "turned": {"orientation": 6},
    "mirrored": {"orientation": 2},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (97, 211), (513, 300), (799, 801)])
def test_same_pixels_at_every_scale(kind, size):
    content = encoded(*size, **KINDS[kind])
    for asked in (1, 31, 32, 33, 48, 75, 100, 150, 224, 400, 900):
        found = decode_pixels(content, "x", asked)
        np.testing.assert_array_equal(found, np.asarray(decode(content, "x", asked)))


def test_plain_jpegs_bypass_pillow(monkeypatch):
    monkeypatch.setattr(jpeg, "decode", None)
    kinds = {kind: encoded(50, 70, **options) for kind, options in KINDS.items()}
    plain = [kind for kind, content in kinds.items() if is_plain(content)]
    assert plain == ["as cameras write", "full chroma", "half chroma", "progressive"]
    for kind in plain:
        assert decode_pixels(kinds[kind], kind, 50).shape == (70, 50, 3)


def test_damaged_files_give_the_pixels_or_errors_of_pillow():
    content = encoded(120, 90, quality=95)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.integers(2, len(content))] ^= 1 << rng.integers(8)
        damaged = bytes(damaged[: rng.integers(len(content) // 2, 2 * len(content))])
        try:
            expected = np.asarray(decode(damaged, "a.tar, sample 3", 60))
        except UserError as error:
            refused += 1
            with pytest.raises(UserError) as found:
                decode_pixels(damaged, "a.tar, sample 3", 60)
            assert str(found.value) == str(error)
        else:
            np.testing.assert_array_equal(decode_pixels(damaged, "x", 60), expected)
    assert 0 < refused < 60
