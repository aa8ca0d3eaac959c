"""Compare the pictures for training with those for evaluation and serving."""

import io

import numpy as np
import pytest
from PIL import Image

from adde.errors import UserError
from adde.loading.resize import load_for_training
from adde.preprocess import Preprocess


def load(preprocess, content, name="picture"):
    picture = np.full((preprocess.size, preprocess.size, 3), 99, np.uint8)
    load_for_training(preprocess, content, name, picture)
    return picture


def photograph(width, height, rng):
    """Return noise at several scales, with edges like a photograph."""
    layers = [
        Image.fromarray(rng.integers(0, 256, (n, n, 3)).astype(np.uint8)).resize((width, height))
        for n in (3, 17, 90)
    ]
    return Image.fromarray(
        np.mean([np.asarray(layer) for layer in layers], axis=0).astype(np.uint8)
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
def test_few_numbers_differ_and_by_little(kind, how):
    rng = np.random.default_rng(0)
    for _ in range(15):
        width, height, size = rng.integers(9, 700, 3).tolist()
        buffer = io.BytesIO()
        photograph(width, height, rng).save(buffer, kind)
        preprocess = Preprocess(min(size, 300), fit=how)
        found = load(preprocess, buffer.getvalue())
        expected = preprocess.load(buffer.getvalue())
        apart = np.abs(found.astype(int) - expected)
        assert apart.max() <= 2
        assert (apart > 0).mean() < (0.02 if how == "crop" else 0.25)
        if how == "pad" and width != height:  # bars are identical
            first, last = (apart[0], apart[-1]) if width > height else (apart[:, 0], apart[:, -1])
            assert max(width, height) / min(width, height) < 1.03 or not (first.any() or last.any())


def test_upright_and_of_the_same_size_it_is_the_same():
    picture = photograph(40, 64, np.random.default_rng(1))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    preprocess = Preprocess(40)
    found = load(preprocess, buffer.getvalue())
    np.testing.assert_array_equal(found, preprocess.load(buffer.getvalue()))


def test_errors_are_those_of_decode():
    with pytest.raises(UserError, match=r"a.tar, sample 3: expected a picture that decodes"):
        load(Preprocess(8), b"no picture", "a.tar, sample 3")
