"""Edits are drawn from pictures and items, by the library, HTTP and the command line."""

import io
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adde.bundle import DECODER, GOLDEN, Bundle
from adde.drawing import FIRST, WHOLE
from adde.errors import UserError
from adde.exporting.check import check_bundle
from adde.serving import Not, Searcher
from adde.serving.drawing import NOTICE, SOURCE_TYPE, check_drawing
from adde.serving.gallery.opening import open_gallery
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

PROGRAM = Path(__file__).parents[2] / "serve_onnx" / "query.py"
ITEM = "test-000000-005"
EDITS = {"colour": "blue", "shape": "square"}


@pytest.fixture(scope="module")
def searcher(drawing, drawing_gallery):
    gallery = open_gallery(drawing_gallery, drawing)
    yield Searcher(drawing, gallery)
    gallery.close()


@pytest.fixture(scope="module")
def sample(tiny_shards):
    return next(s for s in iterate(ShardIndex.read(tiny_shards), "test") if s.item_id == ITEM)


def expected(tiny_model, decoder, sample, own, edits):
    """What torch draws of a picture of labels `own`."""
    import torch

    schema, images = tiny_model.schema, decoder.preprocess.load(sample.picture)[None].copy()
    target = own.copy()
    for name, value in edits.items():
        target[schema.attribute_index(name)] = schema.value_index(name, value)
    change = torch.from_numpy(schema.indicator(own[None], target[None]))
    with torch.no_grad():
        images = torch.from_numpy(images)
        plain = tiny_model.encode(images).embeddings
        style = decoder.style(images)[0]
        both = [decoder.draw(one, style) for one in (plain, tiny_model.edit(plain, change))]
        own, drawn = (255 * one.sigmoid()[0].permute(1, 2, 0) for one in both)
        picture = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float(), 2)[0]
    # Largest difference among a pixel and its neighbours, in loops.
    picture, found = picture.permute(1, 2, 0).numpy(), np.zeros((16, 16, 3))
    apart = np.abs(drawn.round().numpy() - own.round().numpy()).max(axis=2) / 255
    for y in range(16):
        for x in range(16):
            near = apart[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max()
            share = min(max((near - FIRST) / (WHOLE - FIRST), 0), 1)
            found[y, x] = (1 - share) * picture[y, x] + share * drawn[y, x].numpy()
    return found.round()


def close(one, other):
    return np.abs(one.astype(np.int16) - other).max() <= 3


def test_several_edits_are_drawn_as_by_torch(searcher, tiny_model, decoder, sample):
    (start,) = searcher.embed([searcher.picture(sample.picture)])
    edits = {
        attribute.name: attribute.values[(own + 1) % len(attribute.values)]
        for attribute, own in zip(searcher.schema.attributes[:2], start.own.tolist())
    }
    drawn = searcher.draw(sample.picture, edits)
    assert drawn.picture.shape == (16, 16, 3)
    assert close(drawn.picture, expected(tiny_model, decoder, sample, start.own, edits))
    assert edits.items() <= drawn.wanted.items()
    plain = searcher.draw(sample.picture)
    assert close(plain.picture, expected(tiny_model, decoder, sample, start.own, {}))
    assert np.abs(plain.picture.astype(np.int16) - drawn.picture).max() > 1


def test_an_item_is_drawn_with_its_known_labels(searcher, tiny_model, decoder, sample):
    own = np.where(sample.labels < 0, searcher.gallery.get(ITEM).predicted, sample.labels)
    drawn = searcher.draw(item=ITEM, edits=EDITS).picture
    assert close(drawn, expected(tiny_model, decoder, sample, own, EDITS))


def test_pictures_say_that_they_are_drawn(searcher):
    drawn = searcher.draw(item=ITEM, edits={"colour": Not("red")})
    picture = Image.open(io.BytesIO(drawn.png()))
    picture.load()
    assert picture.text["Description"] == NOTICE
    assert SOURCE_TYPE in picture.text["XML:com.adobe.xmp"]
    np.testing.assert_array_equal(np.asarray(picture), drawn.picture)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"item": ITEM, "edits": {"colour": "rde"}}, "unknown value 'rde'.*red"),
        ({"item": ITEM, "image": b""}, "expected one of image and item"),
        ({}, "expected one of image and item"),
        ({"item": "nobody"}, "nobody"),
        ({"image": b"no picture"}, "picture"),
    ],
)
def test_what_cannot_be_drawn_is_refused(searcher, asked, message):
    with pytest.raises(UserError, match=message):
        searcher.draw(**asked)


def test_a_bundle_without_a_decoder_is_refused(bundle, searcher):
    with pytest.raises(UserError, match="expected a bundle with a decoder, found none"):
        check_drawing(bundle, {})
    # Pictures that are addresses cannot be read here.
    with pytest.raises(UserError, match=f"found none of '{ITEM}'"):
        searcher.picture_of(ITEM, None)


def test_graphs_are_checked_and_hashed(drawing, tmp_path):
    _, rows = check_bundle(drawing.path)
    assert all(row["max_error"] < 1e-4 for row in rows)
    copy = shutil.copytree(drawing.path, tmp_path / "copy")
    golden = drawing.golden()
    replace(golden, drawn=golden.drawn ^ 64).write(copy / GOLDEN)
    replace(drawing, path=copy).write()
    with pytest.raises(UserError, match="found others than the golden ones: a pixel by 64"):
        check_bundle(copy)
    content = bytearray((copy / DECODER).read_bytes())
    content[-1] ^= 1
    (copy / DECODER).write_bytes(content)
    with pytest.raises(UserError, match=r"decoder\.onnx: damaged"):
        Bundle.read(copy)


def test_another_decoder_fails_the_gate(drawing, decoder):
    from adde.exporting.drawing import with_drawing

    class Swapped:
        def style(self, images):
            return np.roll(Session(drawing).style(images), 1, axis=1)

        draw = Session(drawing).draw

    with pytest.raises(UserError, match=r"onnxruntime does not draw as torch does.*styles by"):
        with_drawing(drawing.golden(), decoder, Swapped())


def test_the_program_draws(drawing, tiny_shards, searcher, tmp_path, monkeypatch, capsys):
    path = tmp_path / "red.png"
    words = ["--bundle", drawing.path, "--gallery", tiny_shards, "--item", ITEM]
    words += ["--set", "colour=blue", "--set", "shape=square", "--draw", path]
    monkeypatch.setattr(sys, "argv", ["query.py", *map(str, words)])
    program = runpy.run_path(str(PROGRAM))
    program["main"]()
    assert path.read_bytes() == searcher.draw(item=ITEM, edits=EDITS).png()
    assert str(path) in capsys.readouterr().err
