"""Outfits are completed by one search, from items, pictures, HTTP and the command line."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adde.bundle import OUTFIT, Bundle
from adde.errors import UserError
from adde.exporting.check import check_bundle
from adde.outfits import BilinearScorer, value_features
from adde.scoring import Calibration
from adde.serving import Searcher
from adde.serving.gallery import index
from adde.serving.gallery.base import Header
from adde.serving.gallery.build import build_gallery
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.gallery.milvus import MilvusGallery
from adde.serving.gallery.opening import open_gallery
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate

PROGRAM = Path(__file__).parents[2] / "serve_onnx" / "query.py"
CALIBRATION = Calibration((1.0, 1.5, 0.7), (1.0, 0.5, 2.0), 0.01, 3.0)


@pytest.fixture(scope="module")
def head():
    import torch

    from adde.exporting.export import OutfitHead
    from adde.methods.outfits.model import Bilinear
    from tests.conftest import TINY_SCHEMA

    made = Bilinear(TINY_SCHEMA, 1)
    made.begin(torch.randn(made.table.shape, generator=torch.Generator().manual_seed(0)))
    return OutfitHead(made, "shape", {"run": "outfits"})


@pytest.fixture(scope="module")
def worn(tiny_model, tiny_shards, head, tmp_path_factory):
    """A bundle with an outfit head, whose outfits are of shapes."""
    from adde.exporting.export import export_bundle

    out = tmp_path_factory.mktemp("worn") / "bundle"
    index = ShardIndex.read(tiny_shards)
    return export_bundle(tiny_model, index, out, None, {"run": "x"}, CALIBRATION, outfits=head)


@pytest.fixture(scope="module")
def searcher(worn, tiny_shards, tmp_path_factory):
    session, folder = Session(worn), tmp_path_factory.mktemp("gallery") / "g"
    build_gallery(worn, session, tiny_shards, folder)
    gallery = open_gallery(folder, worn)
    yield Searcher(worn, gallery, session=session)
    gallery.close()


@pytest.fixture(scope="module")
def everything(searcher):
    """All items of the gallery."""
    vector = np.zeros((3, 6), np.float32)
    return searcher.gallery.nearest(vector, np.ones(3, np.float32), 96, {})


def of_shape(everything, label, count):
    return [item.item_id for item in everything if item.labels[1] == label][:count]


def best_of(everything, head, outfit, target, schema):
    """Ids and scores of the ground layer, best first."""
    values = value_features(np.stack([item.beliefs for item in everything]), schema)
    shapes = np.array([i.labels[1] if i.labels[1] >= 0 else i.predicted[1] for i in everything])
    scorer = BilinearScorer(values, shapes, head.head.table.detach().numpy())
    row = {item.item_id: at for at, item in enumerate(everything)}
    rest = [
        at
        for at, item in enumerate(everything)
        if item.labels[1] == target and item.item_id not in outfit
    ]
    scores = scorer.complete(np.array([row[i] for i in outfit]), np.array(rest))
    order = np.argsort(-scores, kind="stable")
    return [everything[rest[at]].item_id for at in order], scores[order]


@pytest.mark.parametrize("shapes", [(0,), (0, 0, 1)])
def test_it_ranks_as_the_mean_over_pairs_does(searcher, everything, head, shapes):
    outfit = [of_shape(everything, s, 5)[n] for n, s in enumerate(shapes)]
    found = searcher.complete(outfit, "square", k=12)
    _, scores = best_of(everything, head, outfit, 1, searcher.schema)
    np.testing.assert_allclose([f.score for f in found], scores[:12], atol=1e-5)
    assert all(f.labels["shape"] == "square" and f.item_id not in outfit for f in found)


def test_a_picture_is_an_item_of_the_outfit(searcher, everything, tiny_shards, head):
    sample = next(s for s in iterate(ShardIndex.read(tiny_shards), "test") if s.labels[1] >= 0)
    (start,) = searcher.embed([searcher.picture(sample.picture)])
    mixed = searcher.complete([of_shape(everything, 1, 1)[0]], "disc", images=[sample.picture])
    assert len(mixed) == 10
    alone = searcher.complete([], "disc", k=3, images=[sample.picture])
    shape, table = int(start.own[1]), head.head.table.detach().numpy()
    mine = value_features(start.beliefs[None], searcher.schema)[0]
    theirs = value_features(alone[0].item.beliefs[None], searcher.schema)[0]
    assert alone[0].score == pytest.approx(mine @ table[shape, 0] @ theirs, abs=1e-5)


def test_filters_hold_besides(searcher, everything):
    outfit = of_shape(everything, 0, 1)
    found = searcher.complete(outfit, "square", filters={"colour": "red"})
    assert {(f.labels["shape"], f.labels["colour"]) for f in found} == {("square", "red")}


@pytest.mark.parametrize(
    ("items", "category", "more", "message"),
    [
        ([], "disc", {}, "expected 1 to 50 items or pictures .* found 0"),
        (["A", "A"], "disc", {}, "expected each item once, found"),
        (["A"], "dsic", {}, "unknown value 'dsic'.*disc"),
        (["nobody"], "disc", {}, "nobody"),
        (["A"], "disc", {"filters": {"shape": "square"}}, "expected none of 'shape'"),
        (["A"], "disc", {"k": 0}, "k: expected 1 to"),
    ],
)
def test_an_outfit_that_is_none_is_refused(searcher, everything, items, category, more, message):
    known = of_shape(everything, 0, 1)[0]
    with pytest.raises(UserError, match=message):
        searcher.complete([known if i == "A" else i for i in items], category, **more)


def test_a_category_without_items_is_said(worn, searcher, everything, tmp_path):
    gallery = EmbeddedGallery.create(tmp_path / "g", Header.of(worn, "embedded", None, "test"))
    gallery.upsert([item for item in everything if item.labels[1] == 0])
    few = Searcher(worn, gallery, session=searcher.session)
    with pytest.raises(UserError, match="expected items of shape 'square' in the gallery"):
        few.complete(of_shape(everything, 0, 1), "square")
    gallery.close()


def test_a_bundle_without_a_head_is_refused(bundle, session, gallery):
    plain = Searcher(bundle, gallery, session=session)
    assert plain.outfits is None
    with pytest.raises(UserError, match="expected a bundle with an outfit head, found none"):
        plain.complete(["x"], "disc")


def test_an_index_finds_what_every_item_gives(worn, searcher, everything, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "EXACT_BELOW", 20)
    header = Header.of(worn, "embedded", None, "test")
    gallery = EmbeddedGallery.create(tmp_path / "g", header, exact_items=100)
    copies = [
        replace(i, item_id=f"{i.item_id}-{n}", beliefs=i.beliefs.copy())
        for n in range(20)
        for i in everything
    ]
    draws = np.random.default_rng(0)
    for item in copies:
        item.beliefs[:] = draws.dirichlet(np.ones(10)).astype(np.float32)
        for part in (slice(0, 4), slice(4, 7), slice(7, 10)):
            item.beliefs[part] /= item.beliefs[part].sum()
    gallery.upsert(copies)
    exact = Searcher(worn, gallery, session=searcher.session)
    outfit = [copies[3].item_id, copies[50].item_id]
    wanted = [f.score for f in exact.complete(outfit, "square", k=30)]
    gallery.build_index()
    found = [f.score for f in exact.complete(outfit, "square", k=30)]
    assert np.isclose(found, wanted, atol=1e-5).mean() >= 0.9
    gallery.close()


def test_a_gallery_in_milvus_completes_as_an_embedded_one(worn, searcher, everything, tmp_path):
    create = MilvusGallery.creator(str(tmp_path / "milvus.db"))
    gallery = create(tmp_path / "g", Header.of(worn, "milvus", None, "test"))
    gallery.upsert(everything)
    outfit = [of_shape(everything, s, 5)[n] for n, s in enumerate((0, 0, 1))]
    asked = {"k": 9, "filters": {"border": "plain"}}
    wanted = searcher.complete(outfit, "square", **asked)
    found = Searcher(worn, gallery, session=searcher.session).complete(outfit, "square", **asked)
    np.testing.assert_allclose([f.score for f in found], [f.score for f in wanted], atol=1e-5)
    assert {f.item_id for f in found if f.score > wanted[-1].score + 1e-4} <= {
        f.item_id for f in wanted
    }
    gallery.close()


def test_the_graph_is_checked_and_hashed(worn, tmp_path):
    _, rows = check_bundle(worn.path)
    assert all(row["max_error"] < 1e-4 for row in rows)
    copy = shutil.copytree(worn.path, tmp_path / "copy")
    content = bytearray((copy / OUTFIT).read_bytes())
    content[-1] ^= 1
    (copy / OUTFIT).write_bytes(content)
    with pytest.raises(UserError, match=r"outfit\.onnx: damaged"):
        Bundle.read(copy)
    (copy / OUTFIT).unlink()
    with pytest.raises(UserError, match=r"outfit\.onnx: expected .* bytes, found no file"):
        Bundle.read(copy)


def test_the_program_prints_what_goes_with_it(worn, searcher, everything, tiny_shards):
    outfit = of_shape(everything, 0, 2)
    words = ["--bundle", worn.path, "--gallery", tiny_shards, "--item", outfit[0]]
    words += ["--with", outfit[1], "--complete", "square", "--k", 4, "--json"]
    done = subprocess.run(
        [sys.executable, PROGRAM, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    expected = [f.score for f in searcher.complete(outfit, "square", k=4)]
    assert [a["score"] for a in answers] == pytest.approx(expected, abs=1e-5)
