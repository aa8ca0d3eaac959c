"""Galleries and answers of a catalogue whose items may have several colours."""

import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from adde.bundle import Bundle
from adde.errors import UserError
from adde.schema import UNKNOWN, Schema
from adde.serving import Not, Searcher
from adde.serving.gallery.base import Header
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.gallery.milvus import MilvusGallery
from adde.serving.http.response_models import answer_json, item_json

COLOURS = {
    "striped": ["red", "blue"],
    "red": ["red"],
    "blue": ["blue"],
    "green": ["green"],
    "all": ["red", "green", "blue"],
    "unknown": None,
}


@pytest.fixture(scope="module", params=[True, False], ids=["calibrated", "uncalibrated"])
def marked(request, calibrated, tmp_path_factory):
    """The tiny bundle with several colours per item."""
    folder = shutil.copytree(calibrated.path, tmp_path_factory.mktemp("marked") / "b")
    first, *rest = calibrated.schema.attributes
    schema = Schema((replace(first, multiple=True), *rest))
    calibration = calibrated.calibration if request.param else None
    replace(calibrated, path=folder, schema=schema, calibration=calibration).write()
    return Bundle.read(folder)


@pytest.fixture
def searcher(marked, session, random_items, tmp_path):
    header = Header.of(marked, "embedded", None, "test")
    draws = np.random.default_rng(0)
    items = []
    for (name, colours), item in zip(COLOURS.items(), random_items(len(COLOURS))):
        labels = marked.schema.encode({"colour": colours, "shape": "disc", "border": "plain"})
        logits = draws.normal(size=(1, 7)).astype(np.float32)
        beliefs = None
        if marked.calibration is not None:
            beliefs = marked.calibration.beliefs(logits, np.full((1, 3), 9), marked.schema)[0]
        items.append(
            replace(item, item_id=name, labels=labels, beliefs=beliefs, predicted=np.array([1] * 3))
        )
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert(items)
        yield Searcher(marked, gallery, session=session)


def ids(result):
    return {answer.item_id for answer in result}


def test_a_striped_item_has_each_of_its_values(searcher):
    red = {name for name, colours in COLOURS.items() if colours and "red" in colours}
    assert ids(searcher.search(item="green", filters={"colour": "red"})) == red
    both = searcher.search(item="unknown", filters={"colour": ["green", "blue"]})
    assert ids(both) == {"striped", "blue", "green", "all"}
    found = searcher.search(item="green", edits={"colour": "red"}, must=["colour"])
    assert red <= ids(found) <= red | {"unknown"}
    for answer in found:
        match = answer.matches["colour"]
        assert match.good
        if answer.item_id in red:
            assert match.value == ", ".join(COLOURS[answer.item_id])
            assert match.probability in (1, None)
            assert answer.labels["colour"] == COLOURS[answer.item_id]
    never = ids(searcher.search(item="green", edits={"colour": Not("red")}, must=["colour"]))
    assert {"blue"} <= never <= {"blue", "unknown"}
    chances = {
        answer.item_id: answer.matches["colour"].probability
        for answer in searcher.search(item="green", edits={"colour": Not("red")})
    }
    if searcher.calibration is not None:
        assert chances["striped"] == chances["red"] == chances["all"] == 0
        assert chances["blue"] == 1


def test_a_search_from_a_striped_item(searcher):
    result = searcher.search(item="striped")
    assert result.seen["colour"].value == "red, blue" and result.seen["colour"].known
    assert result.wanted["colour"] == "red, blue"
    good = {answer.item_id for answer in result if answer.matches["colour"].good}
    assert good <= {"unknown"}  # no other item has these two and no third
    if searcher.calibration is not None:
        chances = {answer.item_id: answer.matches["colour"].probability for answer in result}
        assert chances["all"] == 1
        assert chances["red"] == chances["blue"] == pytest.approx(0.5)
        assert chances["green"] == 0


def test_an_edit_takes_all_values_of_a_set_away(searcher, tiny_model):
    memory = tiny_model.memory.weight.detach().numpy()
    start = searcher.gallery.get("striped")
    query = (start.vector * start.norm).ravel()
    query += memory[:, 1] - (memory[:, 0] + memory[:, 2]) / 2
    query = (query / np.linalg.norm(query)).reshape(3, 6)
    for answer in searcher.search(item="striped", edits={"colour": "green"}, rank="distance"):
        distance = float(np.square(answer.item.vector - query).sum())
        assert answer.distance == pytest.approx(distance, abs=2e-5)


def test_words_and_bodies_have_every_value(searcher):
    gallery = searcher.gallery
    assert {item.item_id for item in gallery.browse("blue red", {}, 9)} == {"striped", "all"}
    body = item_json(gallery.header, gallery.get("striped"))
    assert body["labels"] == {"colour": ["red", "blue"], "shape": "disc", "border": "plain"}
    assert body["seen"] == {"colour": "green", "shape": "square", "border": "white"}
    (answer,) = searcher.search(item="green", filters={"colour": "red"}, k=1)
    assert answer_json(gallery.header, answer)["labels"]["colour"] == COLOURS[answer.item_id]


def test_engines_without_sets_refuse_them(searcher, marked, tmp_path):
    with pytest.raises(UserError, match=r"'colour', which may have several.*--engine embedded"):
        MilvusGallery.creator(str(tmp_path / "m.db"))(
            tmp_path / "m", Header.of(marked, "milvus", None, "test")
        )
    with pytest.raises(UserError, match="attributes of several values, for which there is no inde"):
        searcher.gallery.build_index()


def test_large_galleries_of_sets_are_scanned(marked, random_items, tmp_path, capsys):
    header = Header.of(marked, "embedded", None, "test")
    beliefs = None if marked.calibration is None else np.full(10, 0.25, np.float32)
    items = [replace(i, beliefs=beliefs, labels=np.full(3, UNKNOWN)) for i in random_items(9)]
    with closing(EmbeddedGallery.create(tmp_path / "g", header, exact_items=5)) as gallery:
        gallery.upsert(items)
        gallery.finish()
        assert gallery.index is None
    assert "no index is built and each search reads all 9 items" in capsys.readouterr().err
