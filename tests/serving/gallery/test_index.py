"""The index of large galleries: recall as reported, and no answer that is not allowed."""

import resource
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from adde.errors import UserError
from adde.files import read_json
from adde.schema import Attribute, Schema
from adde.scoring import Calibration
from adde.serving.gallery import index, subspace_pca, tuning
from adde.serving.gallery.base import Header
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.gallery.index import Index
from adde.serving.gallery.opening import open_gallery
from adde.serving.gallery.scorers import RankOptions, augmented, augmented_query
from adde.serving.gallery.subspace_pca import SubspacePCA

CALIBRATION = Calibration((1.0, 1.5, 0.7), (), 0.01, 2.0)
TINY_SCHEMA = Schema(
    (
        Attribute("colour", ("red", "green", "blue")),
        Attribute("shape", ("disc", "square")),
        Attribute("border", ("plain", "white")),
    )
)


@pytest.fixture(scope="module")
def items(random_items):
    """Items around forty centres, like a catalogue's."""
    draws = np.random.default_rng(0)
    made, centres = random_items(3000, price=list(range(3000))), random_items(40, seed=7)
    for number, item in enumerate(made):
        vector = centres[number % 40].vector + draws.normal(0, 0.05, (3, 6))
        item.vector[:] = vector / np.linalg.norm(vector)
    return made


@pytest.fixture
def gallery(tmp_path, bundle, items, monkeypatch):
    monkeypatch.setattr(index, "EXACT_BELOW", 50)
    header = Header.of(bundle, "embedded", None, "test")
    gallery = EmbeddedGallery.create(tmp_path / "g", header, exact_items=1000)
    gallery.upsert(items)
    gallery.finish()
    yield gallery
    gallery.close()


def brute(items, query, weights, k, unit=False):
    vectors = np.stack([item.vector for item in items]).astype(float)
    if unit:
        query, vectors = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (query, vectors))
    distances = (((vectors - query) ** 2).sum(axis=2) * weights).sum(axis=1)
    return {items[row].item_id for row in np.argsort(distances, kind="stable")[:k]}


@pytest.mark.parametrize("weights", [[1, 1, 1], [0, 1, 0], [2, 0.5, 1]])
def test_recall_is_what_the_report_promises(gallery, items, tmp_path, random_items, weights):
    report = read_json(tmp_path / "g" / "index.json")
    assert [kind["attributes"] for kind in report["distance"].values()] == [3, 1, 1]
    assert all(kind["recall30"] >= 0.998 for kind in report["distance"].values())
    assert report["rows"] == 3000
    hits = 0
    for query in items[::100]:
        unit = len(set(weights)) > 1  # as `Searcher` asks
        asked = RankOptions(unit=unit)
        found = gallery.nearest(query.vector, np.array(weights, np.float32), 30, {}, asked=asked)
        wanted = brute(items, query.vector, weights, 30, unit)
        hits += len(wanted & {item.item_id for item in found})
    assert hits / (30 * len(items[::100])) >= 0.99


def test_later_changes_are_searched_too(gallery, items, bundle, tmp_path, random_items):
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


def test_a_snapshot_has_the_gallerys_exact_items(tmp_path, bundle, items):
    header = Header.of(bundle, "embedded", None, "test")
    few = EmbeddedGallery.create(tmp_path / "g", header, exact_items=1000)
    with closing(few):
        few.upsert(items)
        few.snapshot(tmp_path / "s")
    with closing(open_gallery(tmp_path / "s", bundle)) as copy:
        assert copy.index.count == 3000


@pytest.fixture
def matched(tmp_path, items, monkeypatch):
    """A gallery of a calibrated bundle: a third of the labels known, some beliefs certain."""
    monkeypatch.setattr(index, "EXACT_BELOW", 50)
    header = Header("embedded", "b", TINY_SCHEMA, 6, None, "test", CALIBRATION.to_json())
    draws = np.random.default_rng(3)
    logits = draws.normal(0, 2, (len(items), 7)).astype(np.float32)
    beliefs = CALIBRATION.beliefs(logits, None, TINY_SCHEMA)
    made = []
    for item, row in zip(items, beliefs):
        labels = np.where(draws.random(3) < 0.3, item.labels, -1)
        made.append(replace(item, labels=labels, beliefs=row))
    gallery = EmbeddedGallery.create(tmp_path / "m", header, exact_items=1000)
    gallery.upsert(made)
    gallery.finish()
    yield gallery
    gallery.close()


def scores_of(gallery, wanted, weights):
    """Scores and distances of all items by id, from the formulas."""
    found = {}
    for number in range(len(gallery)):
        item = gallery.get(f"item-{number}")
        score = 0.0
        for part, weight in zip((slice(0, 4), slice(4, 7), slice(7, 10)), weights):
            chance = (wanted[part].astype(float) * item.beliefs[part]).sum()
            score += weight * np.log(CALIBRATION.epsilon + chance)
        found[item.item_id] = score
    return found


@pytest.mark.parametrize("weights", [[1, 2, 1], [0, 1, 0], [2, 0.5, 1]])
def test_matches_of_codes_are_those_of_every_item(matched, weights):
    assert matched.index.codes is not None
    for number in (3, 500, 1200):
        item = matched.get(f"item-{number}")
        wanted = item.beliefs.copy()
        wanted[4:7] = (0, 1, 0)
        every = scores_of(matched, wanted, weights)
        least = sorted(every.values())[-30] - 1e-5
        asked = RankOptions(wanted, CALIBRATION.epsilon)
        found = matched.nearest(item.vector, np.array(weights, np.float32), 30, {}, None, asked)
        assert sum(every[item.item_id] >= least for item in found[:30]) >= 30 * 0.99
        # `must` holds for indexed and later items.
        must = replace(asked, must={0: np.array([1, 2])})
        matched.upsert([replace(item, item_id="later")])
        shown = matched.nearest(item.vector, np.ones(3, np.float32), 30, {}, None, must)
        assert all(one.beliefs[:4].argmax() in (1, 2) for one in shown)
        assert len(shown) >= 30
        matched.delete(["later"])


def test_equal_matches_come_nearest_first(matched, items):
    alike = np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0], np.float32)
    labels = np.array([1, 0, 1])
    matched.upsert([replace(i, labels=labels, beliefs=alike) for i in items])
    matched.build_index()
    ones, query = np.ones(3, np.float32), items[5].vector
    found = matched.nearest(query, ones, 20, {}, None, RankOptions(alike, 0.01))
    assert found[0].item_id == "item-5"
    assert brute(items, query, ones, 20) <= {item.item_id for item in found}


def test_many_unindexed_items_are_reported(matched, items, caplog):
    query, ones = items[0].vector, np.ones(3, np.float32)
    matched.upsert([replace(matched.get(i.item_id), item_id=f"{i.item_id}-b") for i in items[:500]])
    for _ in range(2):
        matched.nearest(query, ones, 3, {})
    assert [r.getMessage() for r in caplog.records] == [
        "500 of the gallery's 3500 items are not in its index and are scanned exactly; "
        "build_index() adds them"
    ]


def test_insufficient_recall_is_reported(gallery, capsys, monkeypatch):
    monkeypatch.setattr(tuning, "DEPTHS", (1,))
    monkeypatch.setattr(tuning, "TARGET_RECALL", 1.1)
    gallery.build_index()
    said = capsys.readouterr().err
    assert "by distance, queries on one of the attributes reach recall" in said
    assert "the target is 1.1" in said


def left(folder):
    return sorted(path.suffix for path in folder.glob("*index*"))


def test_an_interrupted_build_keeps_the_old_index(gallery, items, bundle, tmp_path, monkeypatch):
    before = read_json(tmp_path / "g" / "index.json")
    gallery.upsert([items[0]])

    def killed(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(index, "write_json", killed)
        patch.setattr(index, "_remove_stale_files", lambda folder: None)
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


def test_an_index_replaced_while_it_is_read_is_read_again(gallery, tmp_path, monkeypatch):
    load, builds = Index._load.__func__, iter([gallery.build_index])

    def replaced(cls, folder, report):
        for build in builds:
            build()
        return load(cls, folder, report)

    monkeypatch.setattr(Index, "_load", classmethod(replaced))
    opened = Index.open(tmp_path / "g")
    assert opened.report == read_json(tmp_path / "g" / "index.json")


@pytest.mark.parametrize("room", [1000, -8])
def test_a_full_disk_is_reported_and_keeps_the_index(gallery, tmp_path, room):
    """-8: all but the last bytes, which faiss writes without checking the result."""
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


def test_a_damaged_index_is_reported(gallery, bundle, tmp_path):
    (written,) = (tmp_path / "g").glob("index-*.faiss")
    written.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"index-.*\.faiss: expected a faiss index .*found"):
        open_gallery(tmp_path / "g", bundle)


def test_pca_explains_the_variance_and_keeps_attributes_apart():
    draws = np.random.default_rng(5)
    lively, still = draws.normal(size=(500, 40)), draws.normal(size=(500, 40))
    still[:, 3:] *= 1e-3
    vectors = np.stack([lively, still], axis=1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=(1, 2), keepdims=True)
    found = SubspacePCA.fit(iter([vectors[:200], vectors[200:]]), (2, 40))
    assert found.kept[0] == 40
    assert found.kept[1] == 3
    assert found.size == 48
    query, weights = vectors[7], np.array([1, 3], np.float32)
    products = (
        found.project_rows(augmented(vectors))
        @ found.project_query(augmented_query(query, weights))[0]
    )
    wanted = (np.square(vectors - query).sum(axis=2) * weights).sum(axis=1)
    assert np.ptp(products + wanted) < 1e-4


def test_a_tight_budget_keeps_the_strongest_of_each_subspace(monkeypatch):
    monkeypatch.setattr(subspace_pca, "MAX_NUMBERS", 2 + 5)
    scales = np.array([[4, 2, 1, 1, 0.5, 0.2], [0.4, 0.2, 0.1, 0.1, 0.05, 0.02]])
    vectors = np.random.default_rng(5).normal(size=(4000, 2, 6)) * scales
    found = SubspacePCA.fit([vectors.astype(np.float32)], (2, 6))
    assert found.kept.tolist() == [3, 2] or found.kept.tolist() == [2, 3]


def test_a_missing_faiss_is_reported_with_what_to_install(gallery, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(index.importlib, "import_module", absent)
    with pytest.raises(UserError, match=r"needs faiss.*pip install 'adde\[serve\]'"):
        gallery.build_index()
