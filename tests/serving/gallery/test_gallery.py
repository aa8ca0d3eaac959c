"""Both engines against a plain list of items, and the embedded engine's own guarantees."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest

from adde.bundle import Bundle
from adde.errors import UserError
from adde.files import read_json, write_json
from adde.serving.gallery import embedded, filters, item_database, row_file
from adde.serving.gallery.base import (
    Header,
    Item,
    ItemNotFoundError,
    UnavailableError,
    read_picture,
)
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.gallery.embedding import embed
from adde.serving.gallery.facets import Facet
from adde.serving.gallery.milvus import MilvusGallery
from adde.serving.gallery.opening import open_gallery
from adde.serving.gallery.scorers import RankOptions
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate


@pytest.fixture(params=["embedded", "milvus"])
def empty(request, bundle, tmp_path):
    """A new gallery of either engine."""
    header = Header.of(bundle, "embedded", None, "test")
    if request.param == "embedded":
        create = EmbeddedGallery.create
    else:
        create = MilvusGallery.creator(str(tmp_path / "milvus.db"))
    gallery = create(tmp_path / "gallery", header)
    yield gallery
    gallery.close()


def nearest(items, query, weights, k):
    """Ids by definition, in double precision."""
    distances = [
        sum(w * ((q - g) ** 2).sum() for w, q, g in zip(weights, query, item.vector))
        for item in ((replace(item, vector=item.vector.astype(float))) for item in items)
    ]
    return [items[row].item_id for row in np.argsort(distances, kind="stable")[:k]]


def ids(items):
    return [item.item_id for item in items]


def same(one, two):
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(two, name), err_msg=name)


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.5, 3, 1], [0, 1, 0]])
def test_nearest_are_the_nearest_by_definition(empty, random_items, weights):
    items, queries = random_items(70), random_items(9, seed=1)
    empty.upsert(items)
    assert len(empty) == 70
    for query in queries:
        found = empty.nearest(query.vector, np.array(weights, np.float32), 5, {})
        assert len(found) >= 5
        assert set(nearest(items, query.vector, weights, 5)) <= set(ids(found))
        for item in found:
            same(item, items[int(item.item_id.split("-")[1])])


@pytest.mark.parametrize("weights", [[0, 1, 0], [0.5, 2, 1]])
def test_unit_subspaces_are_compared_whatever_their_lengths(empty, random_items, weights):
    items = random_items(200)
    empty.upsert(items)
    unit = {i.item_id: i.vector / np.linalg.norm(i.vector, axis=1, keepdims=True) for i in items}
    for query in random_items(5, seed=1):
        near = query.vector / np.linalg.norm(query.vector, axis=1, keepdims=True)
        cosines = {i: float((weights * (v * near).sum(axis=1)).sum()) for i, v in unit.items()}
        best = sorted(unit, key=lambda item: -cosines[item])[:3]
        asked = RankOptions(unit=True)
        found = empty.nearest(query.vector, np.array(weights, np.float32), 3, {}, asked=asked)
        assert set(best) <= set(ids(found))


def test_items_are_added_changed_and_deleted(empty, random_items):
    items = random_items(20)
    ones, query = np.ones(3, np.float32), random_items(1, seed=5)[0].vector
    empty.upsert(items[:12])
    empty.upsert([])
    moved = replace(items[3], vector=query, fields={"price": 3})
    empty.upsert([*items[12:], moved])
    assert len(empty) == 20
    same(empty.get("item-3"), moved)
    assert empty.nearest(query, ones, 1, {})[0].item_id == "item-3"
    assert empty.delete(["item-3", "item-5", "absent"]) == 2
    assert empty.delete([]) == 0
    rest = [item for item in items if item.item_id not in ("item-3", "item-5")]
    assert sorted(ids(empty.nearest(query, ones, 50, {}))) == sorted(ids(rest))
    assert "item-7" not in ids(empty.nearest(query, ones, 50, {}, exclude="item-7"))
    with pytest.raises(ItemNotFoundError, match="no item 'item-3' in the gallery"):
        empty.get("item-3")
    empty.upsert([items[3]])
    same(empty.get("item-3"), items[3])


FIELDS = {
    "price": [5, 7.5, 10, "10", None, 12],
    "brand": ['o"k', "b\\s", "a' OR 1=1", "é", "b", "b"],
    "sold": [True, False, True, False, True, False],
}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"price": {"min": 7.5}}, {1, 2, 5}),
        ({"price": {"min": 6, "max": 10}}, {1, 2}),
        ({"price": 10}, {2}),
        ({"price": "10"}, {3}),
        ({"brand": ['o"k', "b\\s", "a' OR 1=1", "é"]}, {0, 1, 2, 3}),
        ({"brand": "b", "sold": True}, {4}),
        ({"brand": "absent"}, set()),
    ],
)
def test_filters_leave_only_what_was_asked_for(empty, random_items, filters, expected):
    empty.upsert([*random_items(6, prefix="x", **FIELDS), *random_items(9, prefix="bare")])
    query = random_items(1, seed=5)[0].vector
    found = empty.nearest(query, np.ones(3, np.float32), 20, filters)
    assert {int(i.removeprefix("x-")) for i in ids(found)} == expected


def test_filters_know_the_catalogues_labels(empty, random_items):
    items = random_items(60)
    empty.upsert(items)
    found = empty.nearest(items[0].vector, np.ones(3, np.float32), 60, {"colour": ["red", "blue"]})
    assert set(ids(found)) == {item.item_id for item in items if item.labels[0] in (0, 2)}


TITLES = ["Bär & Söhne T-shirt", "red tea set", "T-shirt, 100 % wool", "v_w_z", '"x" OR y*']


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BAR sohne", {0}),
        ("shirt t", {0, 2}),
        ("woo", {2}),  # the beginning of a word, not its end
        ("irt", set()),
        ("x-3 v", {3}),
        ("w_", {2, 3}),
        ('OR "y"', {4}),
        ("title", set()),
        ("wool red", set()),
        ("%", set()),
        ("\0 \ud800 wool", {2}),
    ],
)
def test_items_are_found_by_words(empty, random_items, text, expected):
    items = [*random_items(5, prefix="x", title=TITLES), *random_items(9, prefix="bare")]
    empty.upsert([replace(item, labels=np.full(3, -1)) for item in items])
    assert {int(i.removeprefix("x-")) for i in ids(empty.browse(text, {}, 20))} == expected


def test_browsing_respects_filters_and_pages(empty, random_items):
    items = random_items(60, sold=[row % 2 == 0 for row in range(60)])
    empty.upsert(items)
    red = {item.item_id for item in items if item.labels[0] == 0}
    assert {*ids(empty.browse("red", {}, 60))} == red
    sold = {"sold": True, "colour": "red"}
    wanted = {i for i in red if int(i.removeprefix("item-")) % 2 == 0}
    assert {*ids(empty.browse("red", sold, 60))} == {*ids(empty.browse(" ", sold, 60))} == wanted
    pages = [ids(empty.browse("red", {}, 4, offset)) for offset in range(0, len(red) + 4, 4)]
    assert sorted(i for page in pages for i in page) == sorted(red)
    # Changed and deleted items are no longer found by their old values.
    first = items[0]
    empty.upsert([replace(first, labels=np.array([1, 0, 0]), fields={"title": "new"})])
    assert ids(empty.browse("new", {}, 9)) == [first.item_id]
    empty.delete([first.item_id])
    assert ids(empty.browse("new", {}, 9)) == []
    with pytest.raises(UserError, match="filters: no item has 'prise'"):
        empty.browse("red", {"prise": 3}, 9)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"price": 2**70}, r"filters: 'price': expected a value, .* found 1180591620717411303424"),
        ({"price": float("nan")}, "filters: 'price': expected a value"),
        ({"price": {"max": 2**70}}, "filters: 'price': expected .*min"),
        ({"price": {"min": float("-inf")}}, "filters: 'price': expected .*min"),
        ({"prise": 3}, "no item has 'prise'"),
        ({"colour": "bleu"}, "'colour': unknown value 'bleu'; did you mean 'blue'"),
        ({"colour": ["red", 3]}, "'colour': unknown value 3; valid: 'red'"),
        ({"colour": {"max": 3}}, "'colour': expected values, found bounds"),
        ({"colour": {}}, "'colour': expected .*min.*found {}"),
        ({"colour": {"above": 3}}, "'colour': expected .*min.*above"),
        ({"colour": {"min": "3"}}, "'colour': expected .*min"),
        ({"colour": {"min": 3}}, "'colour': expected values, found bounds"),
        ({"brand": {"max": 1e9}}, "'brand': .* found numbers; build_gallery.py reports which cell"),
        ({"colour": []}, "'colour': expected a value, a list of values or bounds"),
        ({"colour": [["red"]]}, "'colour': expected a value"),
    ],
)
def test_malformed_filters_are_reported(empty, random_items, filters, message):
    empty.upsert(random_items(3, price=[1, 2, 3], brand=["a", "10,90", "b"]))
    with pytest.raises(UserError, match=message):
        empty.nearest(random_items(1)[0].vector, np.ones(3, np.float32), 3, filters)
    for words in ("", "item"):
        with pytest.raises(UserError, match=message):
            empty.browse(words, filters, 3)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"price": "cheap"}, "'price': expected numbers, as the items have, found text"),
        ({"price": ["1", "2"]}, "'price': expected numbers, as the items have, found text"),
        ({"brand": {"min": 0}}, "'brand': expected text, as the items have, found numbers"),
        ({"brand": [3, True]}, "'brand': expected text, as the items have, found numbers"),
        ({"price": ["cheap", 1]}, None),
        ({"price": {"min": 99}}, None),
        ({"brand": "absent"}, None),
        ({"both": {"min": 99}}, None),
        ({"both": "absent"}, None),
    ],
)
def test_a_filter_of_the_wrong_kind_is_rejected_and_an_absent_value_is_not(
    empty, random_items, filters, message
):
    empty.upsert(random_items(2, price=[2, 3.5], brand=["a", "b"], both=[1, "x"]))
    query, weights = random_items(1)[0].vector, np.ones(3, np.float32)
    if message is None:
        assert empty.nearest(query, weights, 3, filters) == []
        return
    with pytest.raises(UserError, match=message):
        empty.nearest(query, weights, 3, filters)


def test_an_unknown_id_uses_the_index_on_ids(bundle, random_items, tmp_path):
    header = Header.of(bundle, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert(random_items(40, prefix="shoe\U0010ffff%"))
        with pytest.raises(ItemNotFoundError, match=r"did you mean 'shoe\\U0010ffff%-7'"):
            gallery.get("shoe\U0010ffff-7")
        with gallery._reading() as (database, _):
            query = f"EXPLAIN QUERY PLAN {item_database.SIMILAR_IDS}"
            (step,) = database.execute(query, ("shirt", "shirt")).fetchall()
    assert "SEARCH" in step[3] and "id>?" in step[3]


def test_fields_list_their_values_if_they_are_few(empty, random_items):
    assert empty.facets() == []
    many = [*range(30), 2.5]
    nothing = [None] * 31
    fields = {"price": many, "name": [f"n{row}" for row in many], "void": nothing}
    fields |= {"sold": [True, *[False, None] * 15], "mixed": [1, True, "1", *nothing[:28]]}
    fields["size"] = [42, 36.5, *[40] * 29]
    empty.upsert([*random_items(31, prefix="x", **fields), *random_items(3, prefix="bare")])
    expected = [
        Facet("mixed", (1, True, "1"), None, None),
        Facet("name", (), None, None),
        Facet("price", (), 0, 29),
        Facet("size", (36.5, 40, 42), 36.5, 42),
        Facet("sold", (False, True), None, None),
    ]
    assert empty.facets() == expected
    assert list(map(type, empty.facets()[0].values)) == [int, bool, str]
    empty.delete(["x-0"])
    assert next(f for f in empty.facets() if f.name == "price").low == 1


def test_ambiguous_or_unstorable_fields_are_rejected(empty, random_items):
    with pytest.raises(UserError, match="item id once, found 'item-0' twice"):
        empty.upsert(random_items(1) * 2)
    for fields, message in (
        ({"colour": ["x"]}, "item 'item-0': .*'colour', which is an attribute"),
        ({"tags": [["a"]]}, "field 'tags': expected text, a finite number.*found list"),
        ({"price": [float("nan")]}, "item 'item-0': field 'price': .*found nan; leave out"),
        ({"price": [float("-inf")]}, "field 'price': .*found -inf"),
        ({"price": [2**63]}, "field 'price': .*found 9223372036854775808"),
        ({"brand": ["\ud800"]}, "field 'brand': .*found"),
    ):
        with pytest.raises(UserError, match=message):
            empty.upsert(random_items(1, **fields))
    assert len(empty) == 0
    assert empty.nearest(random_items(1)[0].vector, np.ones(3, np.float32), 3, {}) == []


def test_every_item_is_there_with_its_picture(bundle, session, gallery, tiny_shards):
    index = ShardIndex.read(tiny_shards)
    samples = [sample for name in ("train", "val", "test") for sample in iterate(index, name)]
    assert len(gallery) == len(samples) == 96
    for sample in samples:
        item = gallery.get(sample.item_id)
        assert np.array_equal(item.labels, sample.labels)
        assert read_picture(gallery.header, item) == sample.picture
        # One at a time, as a query would be.
        embeddings, logits, _ = session.encode(bundle.preprocess.load(sample.picture)[None])
        np.testing.assert_allclose(item.vector * item.norm, embeddings[0], atol=1e-5, rtol=1e-5)
        assert np.linalg.norm(item.vector) == pytest.approx(1)
        seen = [logits[0, :3].argmax(), logits[0, 3:5].argmax(), logits[0, 5:].argmax()]
        assert item.predicted.tolist() == seen
    with pytest.raises(ItemNotFoundError, match=r"'val-00000-003'.*did you mean 'val-000000-003'"):
        gallery.get("val-00000-003")


def test_a_missing_picture_is_reported(gallery, tmp_path):
    item = gallery.get("val-000000-003")
    gone = replace(gallery.header, pictures=str(tmp_path))
    with pytest.raises(UserError, match=r"val-000000\.tar: expected the shard that holds") as told:
        read_picture(gone, item)
    assert item.item_id not in str(told.value)  # servers log it
    shutil.copy(f"{gallery.header.pictures}/val-000000.tar", tmp_path)
    os.truncate(tmp_path / "val-000000.tar", 3000)
    with pytest.raises(UserError, match=r"expected .* bytes at .*, found"):
        read_picture(gone, item)
    assert read_picture(replace(gone, pictures=None), item) is None


def exported_anew(bundle, folder):
    """The bundle now in the folder, with the same graphs."""
    details = {**bundle.details, "source": {"run": "another"}}
    replace(bundle, path=folder, details=details).write()
    return Bundle.read(folder)


def test_a_gallery_belongs_to_the_bundle_that_was_opened(bundle, tiny_bundle, tmp_path):
    opened = Bundle.read(shutil.copytree(tiny_bundle, tmp_path / "b"))
    other = exported_anew(bundle, opened.path)
    assert Header.of(opened, "exact", None, "").bundle == bundle.hash != other.hash


def test_a_gallery_of_another_bundle_is_rejected_by_hash(
    bundle, tiny_bundle, tiny_gallery, tmp_path
):
    other = exported_anew(bundle, shutil.copytree(tiny_bundle, tmp_path / "b"))
    with pytest.raises(UserError, match=f"{other.hash}.*found one of bundle {bundle.hash}"):
        open_gallery(tiny_gallery, other)


def test_damage_is_reported(tiny_gallery, tmp_path):
    def damaged(name):
        folder = shutil.copytree(tiny_gallery, tmp_path / f"damaged-{name}")
        return folder, folder / name

    folder, path = damaged("vectors.f32")
    os.truncate(path, 400)
    with pytest.raises(UserError, match=r"vectors\.f32: expected 8448 bytes, found 400"):
        EmbeddedGallery(folder)
    folder, path = damaged("items.sqlite")
    path.write_bytes(b"x" * 4096)
    with pytest.raises(
        UserError, match=r"items\.sqlite: expected the gallery's SQLite database, found"
    ):
        EmbeddedGallery(folder)
    path.unlink()
    with pytest.raises(
        UserError, match=r"items\.sqlite: expected the gallery's SQLite database, found"
    ):
        EmbeddedGallery(folder)
    folder, path = damaged("gallery.json")
    write_json(path, {**read_json(path), "format": 9})
    with pytest.raises(UserError, match="expected format 3, found 9"):
        EmbeddedGallery(folder)
    with pytest.raises(UserError, match=r"expected a gallery with gallery\.json, found none"):
        EmbeddedGallery(tmp_path)


def test_one_process_writes_and_others_read(tiny_gallery, tmp_path, random_items):
    folder = shutil.copytree(tiny_gallery, tmp_path / "g")
    writer, reader = EmbeddedGallery(folder, writable=True), EmbeddedGallery(folder)
    with closing(writer), closing(reader):
        with pytest.raises(UserError, match="another process writes this gallery"):
            EmbeddedGallery(folder, writable=True)
        with pytest.raises(UserError, match="open for reading only"):
            reader.upsert(random_items(1))
        writer.upsert(random_items(4))
        assert (len(reader), len(writer)) == (100, 100)
    with closing(EmbeddedGallery(folder, writable=True)) as again:
        assert len(again) == 100


WRITES = """
import pickle, sys
from pathlib import Path
from adde.serving.gallery.embedded import EmbeddedGallery

gallery = EmbeddedGallery(Path(sys.argv[1]), writable=True)
while True:
    method, argument = pickle.load(sys.stdin.buffer)
    getattr(gallery, method)(argument)
    print("done", flush=True)
"""


@pytest.fixture
def other_process():
    """Call methods of a gallery in another process: `write = other_process(folder)`."""
    with ExitStack() as started:

        def start(folder):
            process = started.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WRITES, folder],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            started.callback(process.kill)

            def write(method, argument):
                process.stdin.write(pickle.dumps((method, argument)))
                process.stdin.flush()
                assert process.stdout.readline() == b"done\n"

            return write

        yield start


def test_a_reader_sees_what_another_process_has_written(
    tmp_path, bundle, random_items, other_process
):
    items, ones = random_items(60, price=list(range(60))), np.ones(3, np.float32)
    query = items[7].vector
    EmbeddedGallery.create(tmp_path / "g", Header.of(bundle, "embedded", None, "test")).close()
    write = other_process(tmp_path / "g")
    write("upsert", items[:50])
    with closing(EmbeddedGallery(tmp_path / "g")) as reader:
        assert reader.nearest(query, ones, 1, {})[0].item_id == "item-7"
        write("upsert", items[50:])
        same(reader.get("item-55"), items[55])
        write("upsert", [replace(items[7], fields={"price": 1000, "brand": "new"})])
        assert reader.get("item-7").fields["price"] == 1000
        assert "item-7" not in ids(reader.nearest(query, ones, 60, {}, exclude="item-7"))
        assert ids(reader.nearest(query, ones, 60, {"price": {"min": 59}})) == ["item-7", "item-59"]
        assert ids(reader.nearest(query, ones, 60, {"brand": "new"})) == ["item-7"]
        write("delete", ["item-7", "item-59"])
        assert len(reader) == reader.probe() == 58
        assert len(reader.nearest(query, ones, 60, {})) == 58
        assert reader.nearest(query, ones, 60, {"price": {"min": 59}}) == []
        assert next(f for f in reader.facets() if f.name == "price").high == 58
        with pytest.raises(ItemNotFoundError):
            reader.get("item-7")


def test_searches_during_writes_of_another_process_see_committed_states(
    tmp_path, bundle, random_items, other_process
):
    pair, ones = [replace(item, norm=1.0) for item in random_items(2)], np.ones(3, np.float32)
    header = Header.of(bundle, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert([*pair, *random_items(50, seed=3, prefix="other")])
    write = other_process(tmp_path / "g")
    with closing(EmbeddedGallery(tmp_path / "g")) as reader, ThreadPoolExecutor(4) as pool:

        def look(_):
            found = {i.item_id: i for i in reader.nearest(pair[0].vector, ones, 52, {})}
            assert len(found) == 52
            assert found["item-0"].norm == found["item-1"].norm
            left = ids(reader.nearest(pair[0].vector, ones, 52, {}, exclude="item-0"))
            assert "item-0" not in left and len(left) == 51

        looks = [pool.submit(look, number) for number in range(150)]
        for number in range(30):
            write("upsert", [replace(item, norm=float(number)) for item in pair])
        for future in looks:
            future.result()
        assert reader.get("item-0").norm == 29


def test_filters_look_up_what_they_ask_for(tmp_path, bundle, random_items):
    header = Header.of(bundle, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert(random_items(50, price=list(range(50))))
        for wanted in (3, [3, "4"], {"min": 3}, {"max": 3}, {"min": 3, "max": 4}):
            (condition,) = filters.parse({"price": wanted}, ["price"])
            query, values = filters.to_sql(condition)
            with gallery._reading() as (database, _):
                plan = database.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
            assert plan[0][3].startswith("SEARCH facts USING PRIMARY KEY (name=? AND value")


def test_a_slow_reader_does_not_block_others(tmp_path, bundle, random_items):
    header = Header.of(bundle, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery, ExitStack() as long:
        gallery.upsert(random_items(50))
        for _ in range(embedded.READERS - 1):
            long.enter_context(gallery._reading())
        with ThreadPoolExecutor(1) as pool:
            ones = np.ones(3, np.float32)
            found = pool.submit(gallery.nearest, random_items(1)[0].vector, ones, 5, {}, "item-1")
            assert "item-1" not in ids(found.result(60))


def test_a_snapshot_is_the_present_state_without_the_dead(tmp_path, bundle, random_items):
    header = Header.of(bundle, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert(random_items(1500))
        gallery.upsert(random_items(700, seed=1))
        gallery.delete([f"item-{row}" for row in range(0, 1500, 3)])
        gallery.snapshot(tmp_path / "s")
        with closing(open_gallery(tmp_path / "s", bundle)) as copy:
            assert len(copy) == len(gallery) == 1000
            query, ones = random_items(1, seed=9)[0].vector, np.ones(3, np.float32)
            for one, two in zip(*(g.nearest(query, ones, 30, {}) for g in (gallery, copy))):
                same(one, two)
    stride = 4 * (3 * 6 + 3 + 1)
    assert (tmp_path / "s" / "vectors.f32").stat().st_size == 1000 * stride
    assert (tmp_path / "g" / "vectors.f32").stat().st_size == 2200 * stride


def test_searches_during_writes_see_committed_states(tmp_path, bundle, random_items):
    """Two items always change together: seeing one new and one old means seeing half a state."""
    header = Header.of(bundle, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        pair = random_items(2)
        gallery.upsert([*pair, *random_items(50, seed=3, prefix="other")])

        def change(number):
            gallery.upsert([replace(item, norm=float(number)) for item in pair])

        def look(_):
            ones = np.ones(3, np.float32)
            found = {i.item_id: i for i in gallery.nearest(pair[0].vector, ones, 52, {})}
            assert len(found) == 52
            assert found["item-0"].norm == found["item-1"].norm

        with ThreadPoolExecutor(4) as pool:
            changes = [pool.submit(change, number) for number in range(60)]
            looks = [pool.submit(look, number) for number in range(200)]
            for future in (*changes, *looks):
                future.result()


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from adde.serving.gallery import embedded
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.gallery.base import Item

gallery = EmbeddedGallery(Path(sys.argv[1]), writable=True)
batch = 0
while True:
    print(batch, flush=True)
    gallery.upsert([
        Item(f"{batch}-{row}", np.zeros(3, int), np.zeros(3, int),
             np.full((3, 6), batch, np.float32), float(row))
        for row in range(200)
    ])
    batch += 1
"""


def test_a_kill_while_writing_leaves_whole_batches(tmp_path, bundle, random_items):
    header = Header.of(bundle, "embedded", None, "test")
    EmbeddedGallery.create(tmp_path / "g", header).close()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "g"], stdout=subprocess.PIPE, text=True
    )
    with process:
        while int(process.stdout.readline()) < 5:
            pass
        process.send_signal(signal.SIGKILL)
    with closing(EmbeddedGallery(tmp_path / "g")) as reader:
        known = len(reader)
    with closing(EmbeddedGallery(tmp_path / "g", writable=True)) as gallery:
        assert len(gallery) == known
        count = len(gallery)
        assert count >= 1000
        assert count % 200 == 0
        gallery.upsert(random_items(3))
        for item_id, value in (("item-0", None), ("0-199", 0), (f"{count // 200 - 1}-7", None)):
            item = gallery.get(item_id)
            assert value is None or (item.vector == value).all()
        assert (gallery.get("4-100").vector == 4).all()
        assert len(gallery) == count + 3


HALF_WRITTEN = """
import os, signal, sqlite3, sys

database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")
database.execute("UPDATE items SET labels = labels || hex(zeroblob(9000))")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def half_written(tmp_path, bundle, random_items):
    """Make a gallery of 50 items, and return a function that leaves an unfinished commit in it."""
    header = Header.of(bundle, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert(random_items(50))

    def kill():
        path = tmp_path / "g" / "items.sqlite"
        done = subprocess.run([sys.executable, "-c", HALF_WRITTEN, path], check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.with_name("items.sqlite-journal").stat().st_size

    return kill


def test_readers_roll_back_the_commit_of_a_killed_writer(tmp_path, half_written, random_items):
    query, ones = random_items(1, seed=5)[0].vector, np.ones(3, np.float32)
    with closing(EmbeddedGallery(tmp_path / "g")) as reader:
        half_written()
        assert len(reader.nearest(query, ones, 50, {})) == 50
        same(reader.get("item-3"), random_items(50)[3])
    half_written()
    with closing(EmbeddedGallery(tmp_path / "g")) as reader:
        same(reader.get("item-3"), random_items(50)[3])
    assert not list((tmp_path / "g").glob("*-journal"))


def test_an_unfinished_commit_in_a_read_only_folder_is_reported(
    tmp_path, half_written, random_items, monkeypatch
):
    connect = item_database.connect
    query, ones = random_items(1, seed=5)[0].vector, np.ones(3, np.float32)
    with closing(EmbeddedGallery(tmp_path / "g")) as reader:
        half_written()
        with monkeypatch.context() as patch:  # as on a read-only mount, even for root
            patch.setattr(item_database, "connect", lambda folder, mode: connect(folder, "ro"))
            with pytest.raises(UnavailableError, match=r"items\.sqlite: a process .* was killed"):
                reader.nearest(query, ones, 5, {})
            with pytest.raises(UserError, match="open the gallery once where its folder"):
                EmbeddedGallery(tmp_path / "g")
        EmbeddedGallery(tmp_path / "g", writable=True).close()
        assert len(reader.nearest(query, ones, 50, {})) == 50


def test_readers_of_a_replaced_gallery_ignore_the_journal_of_its_successor(
    tmp_path, half_written, bundle, random_items
):
    (tmp_path / "g").rename(tmp_path / "other")
    shutil.copytree(tmp_path / "other", tmp_path / "g")
    with closing(EmbeddedGallery(tmp_path / "g")) as reader:
        (tmp_path / "g").rename(tmp_path / "aside")
        (tmp_path / "other").rename(tmp_path / "g")
        before = (tmp_path / "aside" / "items.sqlite").read_bytes()
        half_written()  # in the new gallery, whose journal has the path of the old one's
        same(reader.get("item-3"), random_items(50)[3])
        assert (tmp_path / "aside" / "items.sqlite").read_bytes() == before
        with closing(EmbeddedGallery(tmp_path / "g")) as new:
            same(new.get("item-3"), random_items(50)[3])


def test_a_full_disk_loses_nothing_and_is_told(tmp_path, bundle, random_items, monkeypatch):
    header = Header.of(bundle, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert(random_items(10))

        def full(descriptor, content, at):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(row_file.os, "pwrite", full)
            with pytest.raises(OSError, match="No space left") as raised:
                gallery.upsert(random_items(5, seed=1))
            assert raised.value.filename == str(tmp_path / "g" / "vectors.f32")
        same(gallery.get("item-3"), random_items(10)[3])
        gallery._database.execute("PRAGMA max_page_count = 1")
        long = random_items(5, seed=1, note=["x" * 100_000] * 5)
        with pytest.raises(UserError, match=r"nothing was written: .*full"):
            gallery.upsert(long)
        gallery._database.execute("PRAGMA max_page_count = 100000")
        assert len(gallery) == 10
        same(gallery.get("item-3"), random_items(10)[3])
        gallery.upsert(long)
        same(gallery.get("item-3"), long[3])


def test_unreachable_milvus_is_reported_and_found_again(bundle, tmp_path, random_items):
    with pytest.raises(UserError, match=r"localhost:9: Milvus did not answer as expected"):
        MilvusGallery.creator("http://localhost:9")(
            tmp_path / "g", Header.of(bundle, "embedded", None, "x")
        )
    assert not (tmp_path / "g").exists()


ODD = ["men's-1", "é-2", 'a"b', "back\\slash", "tab\there", "line\nend", "{id}"]
INTO = ["zz'] or id in ['é-2", 'zz"] or id in ["é-2', "é-2' or id != '", "\\"]


def test_any_text_can_be_an_id(empty, random_items):
    items = [replace(i, item_id=name) for i, name in zip(random_items(len(ODD)), ODD)]
    ones = np.ones(3, np.float32)
    empty.upsert(items)
    for item in items:
        same(empty.get(item.item_id), item)
        found = ids(empty.nearest(item.vector, ones, 20, {}, exclude=item.item_id))
        assert sorted(found) == sorted({*ODD} - {item.item_id})
        assert empty.delete([item.item_id]) == 1
        empty.upsert([item])
    for name in INTO:
        with pytest.raises(ItemNotFoundError):
            empty.get(name)
        assert empty.delete([name]) == 0
        assert len(empty.nearest(items[0].vector, ones, 20, {}, exclude=name)) == len(ODD)


def test_any_text_is_a_name_of_a_field(empty, random_items):
    ones, query = np.ones(3, np.float32), random_items(1)[0].vector
    names = ["größe", 'a"b', "it's", "back\\slash"]
    empty.upsert(random_items(3, **{name: [1, 2, 3] for name in names}))
    for name in names:
        assert ids(empty.nearest(query, ones, 3, {name: 2})) == ["item-1"]


def test_requests_that_milvus_rejects_are_user_errors(bundle, tmp_path, random_items):
    header = Header.of(bundle, "embedded", None, "x")
    create = MilvusGallery.creator(str(tmp_path / "milvus.db"))
    query, ones = random_items(1)[0].vector, np.ones(3, np.float32)
    with closing(create(tmp_path / "g", header)) as gallery:
        gallery.upsert(random_items(3, price=[1, 2, 3]))
        odd = replace(random_items(1)[0], item_id="a\x01")
        long = replace(odd, item_id="x" * 513)
        for ask, message in (
            (lambda: gallery.get("a\x00b"), r"without control characters, found 'a\\x00b'"),
            (lambda: gallery.delete(["a\x1b"]), "without control characters"),
            (lambda: gallery.upsert([odd]), "without control characters"),
            (lambda: gallery.upsert([long]), "Milvus rejected the request: .*512"),
            (lambda: gallery.nearest(query, ones, 3, {"price": "\x07"}), "control characters"),
            (lambda: gallery.nearest(query, ones, 3, {"\x07": 1}), "control characters"),
            (lambda: gallery.nearest(query, ones, 3, {}, exclude="\x07"), "control characters"),
        ):
            with pytest.raises(UserError, match=message) as raised:
                ask()
            assert not isinstance(raised.value, UnavailableError)
            assert "milvus.db" not in str(raised.value)
        assert len(gallery) == 3


def test_a_new_item_is_embedded_and_added(bundle, session, gallery, tiny_gallery, tmp_path):
    """As in docs/serving.md: the picture of an item finds that item."""
    stored = gallery.get("val-000000-003")
    path = tmp_path / "new.png"
    path.write_bytes(read_picture(gallery.header, stored))
    folder = shutil.copytree(tiny_gallery, tmp_path / "g")
    with closing(open_gallery(folder, bundle, writable=True)) as written:
        picture = bundle.preprocess.load(path)
        (seen,) = embed(session, bundle, picture[None])
        labels = bundle.schema.encode({"colour": "red"})
        written.upsert([Item("new", labels, fields={"price": 25}, **seen._asdict())])
        written.upsert([replace(written.get("val-000000-003"), fields={"price": 19.9})])
    with closing(open_gallery(folder, bundle)) as read:
        found = read.nearest(seen.vector, np.ones(3, np.float32), 2, {"price": {"min": 1}})
        assert sorted(ids(found)) == ["new", "val-000000-003"]
        np.testing.assert_allclose(read.get("new").vector, stored.vector, atol=1e-5)
        assert bundle.schema.decode(read.get("new").labels)["colour"] == "red"
