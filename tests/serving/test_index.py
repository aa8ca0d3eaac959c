"""The index of large galleries: recall as it says, and no answer that is not allowed."""

import resource
from contextlib import closing

import numpy as np
import pytest

from adde.errors import UserError
from adde.files import read_json
from adde.serving import compact, index
from adde.serving.asking import augmented, augmented_query
from adde.serving.build import open_gallery
from adde.serving.compact import Directions
from adde.serving.embedded import EmbeddedGallery
from adde.serving.gallery import Header
from adde.serving.index import Index


@pytest.fixture(scope="module")
def items(random_items):
    """Items around forty centres, as a catalogue has them."""
    draws = np.random.default_rng(0)
    made, centres = random_items(3000, price=list(range(3000))), random_items(40, seed=7)
    for number, item in enumerate(made):
        vector = centres[number % 40].vector + draws.normal(0, 0.05, (3, 6))
        item.vector[:] = vector / np.linalg.norm(vector)
    return made


@pytest.fixture
def gallery(tmp_path, bundle, items, monkeypatch):
    monkeypatch.setattr(index, "FEW", 50)
    header = Header.of(bundle, "embedded", None, "test")
    gallery = EmbeddedGallery.create(tmp_path / "g", header, exact_items=1000)
    gallery.upsert(items)
    gallery.finish()
    yield gallery
    gallery.close()


def brute(items, query, weights, k):
    vectors = np.stack([item.vector for item in items]).astype(float)
    distances = (((vectors - query) ** 2).sum(axis=2) * weights).sum(axis=1)
    return {items[row].item_id for row in np.argsort(distances, kind="stable")[:k]}


@pytest.mark.parametrize("weights", [[1, 1, 1], [0, 1, 0], [2, 0.5, 1]])
def test_recall_is_what_the_report_promises(gallery, items, tmp_path, random_items, weights):
    report = read_json(tmp_path / "g" / "index.json")
    assert [kind["attributes"] for kind in report["kinds"].values()] == [3, 1, 1]
    assert all(kind["recall30"] >= 0.99 for kind in report["kinds"].values())
    assert report["rows"] == 3000
    hits = 0
    for query in items[::100]:
        found = gallery.nearest(query.vector, np.array(weights, np.float32), 30, {})
        wanted = brute(items, query.vector, weights, 30)
        hits += len(wanted & {item.item_id for item in found})
    assert hits / (30 * len(items[::100])) >= 0.97


def test_what_changed_since_is_searched_too(gallery, items, bundle, tmp_path, random_items):
    query, ones = items[17].vector, np.ones(3, np.float32)
    first = [item.item_id for item in gallery.nearest(query, ones, 30, {})]
    gallery.delete(first[:10])
    gallery.upsert(random_items(5, prefix="new"))
    near = random_items(1, seed=4, prefix="near")[0]
    near.vector[:] = query
    gallery.upsert([near])
    for opened in (gallery, open_gallery(tmp_path / "g", bundle)):
        found = [item.item_id for item in opened.nearest(query, ones, 30, {})]
        assert found[0] == "near-0"
        assert not set(first[:10]) & set(found)


def test_filters_hold_whether_they_leave_few_or_many(gallery, items):
    ones = np.ones(3, np.float32)
    for low in (100, 2970, 2999):
        found = gallery.nearest(items[5].vector, ones, 20, {"price": {"min": low}})
        wanted = brute(items[low:], items[5].vector, ones, 20)
        assert all(item.fields["price"] >= low for item in found)
        assert len(wanted & {item.item_id for item in found}) >= 0.9 * len(wanted)


def test_a_snapshot_has_an_index_too(gallery, items, bundle, tmp_path):
    gallery.delete(["item-0"])
    gallery.snapshot(tmp_path / "s")
    with closing(open_gallery(tmp_path / "s", bundle)) as copy:
        assert copy.index.count == len(copy) == 2999
    gallery.delete([item.item_id for item in items])
    gallery.snapshot(tmp_path / "s")
    with closing(open_gallery(tmp_path / "s", bundle)) as copy:
        assert copy.index is None and len(copy) == 0


def test_a_snapshot_has_an_index_above_as_many_as_the_gallery(tmp_path, bundle, items):
    header = Header.of(bundle, "embedded", None, "test")
    few = EmbeddedGallery.create(tmp_path / "g", header, exact_items=1000)
    with closing(few):
        few.upsert(items)
        few.snapshot(tmp_path / "s")
    with closing(open_gallery(tmp_path / "s", bundle)) as copy:
        assert copy.index.count == 3000


def left(folder):
    return sorted(path.suffix for path in folder.glob("*index*"))


def test_an_interrupted_build_leaves_the_index_that_there_was(
    gallery, items, bundle, tmp_path, monkeypatch
):
    before = read_json(tmp_path / "g" / "index.json")
    gallery.upsert([items[0]])

    def killed(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index, "write_json", killed)
        patch.setattr(index, "_remove_unnamed", lambda folder: None)
        with pytest.raises(KeyboardInterrupt):
            gallery.build_index()
    assert left(tmp_path / "g") == [".faiss", ".faiss", ".json", ".npz", ".npz"]
    with closing(open_gallery(tmp_path / "g", bundle)) as opened:
        assert opened.index.report == before
        found = opened.nearest(items[5].vector, np.ones(3, np.float32), 1, {})
        assert found[0].item_id == "item-5"
    gallery.build_index()
    assert left(tmp_path / "g") == [".faiss", ".json", ".npz"]
    with closing(open_gallery(tmp_path / "g", bundle)) as opened:
        assert opened.index.count == 3001


def test_an_index_that_is_replaced_while_it_is_read_is_read_anew(gallery, tmp_path, monkeypatch):
    load, builds = Index._load.__func__, iter([gallery.build_index])

    def replaced(cls, folder, report):
        for build in builds:
            build()
        return load(cls, folder, report)

    monkeypatch.setattr(Index, "_load", classmethod(replaced))
    opened = Index.open(tmp_path / "g")
    assert opened.report == read_json(tmp_path / "g" / "index.json")


@pytest.mark.parametrize("room", [1000, -8])
def test_a_disk_that_is_full_is_told_and_keeps_the_index(gallery, tmp_path, room):
    """-8: all but the last bytes, which faiss writes without a look at whether it worked."""
    before = read_json(tmp_path / "g" / "index.json")
    size = (tmp_path / "g" / f"{before['files']}.faiss").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room % size, limits[1]))
    try:
        with pytest.raises(UserError, match=r"g/index-.*\.faiss: .*(written|build it again)"):
            gallery.build_index()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_json(tmp_path / "g" / "index.json") == before
    assert left(tmp_path / "g") == [".faiss", ".json", ".npz"]


def test_a_damaged_index_is_told(gallery, bundle, tmp_path):
    (written,) = (tmp_path / "g").glob("index-*.faiss")
    written.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"index-.*\.faiss: expected a faiss index .*found"):
        open_gallery(tmp_path / "g", bundle)


def test_directions_carry_what_varies_and_keep_attributes_apart():
    draws = np.random.default_rng(5)
    lively, still = draws.normal(size=(500, 40)), draws.normal(size=(500, 40))
    still[:, 3:] *= 1e-3
    vectors = np.stack([lively, still], axis=1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=(1, 2), keepdims=True)
    found = Directions.of(iter([vectors[:200], vectors[200:]]), (2, 40))
    assert found.kept[0] == 40
    assert found.kept[1] == 3
    assert found.size == 48
    query, weights = vectors[7], np.array([1, 3], np.float32)
    products = found.rows(augmented(vectors)) @ found.query(augmented_query(query, weights))[0]
    wanted = (np.square(vectors - query).sum(axis=2) * weights).sum(axis=1)
    assert np.ptp(products + wanted) < 1e-4
    centre = found.with_lengths(found.rows(augmented(vectors)).mean(axis=0, keepdims=True))
    true = np.square(vectors.mean(axis=0)).sum(axis=1)
    assert np.allclose(centre[0, 43:45], true, atol=1e-5)


def test_a_tight_budget_keeps_the_strongest_of_each_subspace(monkeypatch):
    monkeypatch.setattr(compact, "ROOM", 2 + 5)
    scales = np.array([[4, 2, 1, 1, 0.5, 0.2], [0.4, 0.2, 0.1, 0.1, 0.05, 0.02]])
    vectors = np.random.default_rng(5).normal(size=(4000, 2, 6)) * scales
    found = Directions.of([vectors.astype(np.float32)], (2, 6))
    assert found.kept.tolist() == [3, 2] or found.kept.tolist() == [2, 3]


def test_without_faiss_it_is_said_what_to_install(gallery, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(index.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs faiss.*pip install 'adde\[serve\]'"):
        gallery.build_index()
