"""Answers against the definition written out, and what they say of themselves."""

import numpy as np
import pytest

from adde.errors import UserError
from adde.schema import UNKNOWN
from adde.serving.gallery import open_gallery
from adde.serving.search import Searcher

EDITS = [
    {},
    {"colour": "red"},
    {"border": "white", "colour": "green"},
    {"shape": "disc", "colour": "blue", "border": "plain"},
]


@pytest.fixture
def gallery(bundle, session, tiny_shards):
    return open_gallery(bundle, session, tiny_shards)


@pytest.fixture
def searcher(bundle, session, gallery):
    return Searcher(bundle, session, gallery)


@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize("row", [0, 40, 95])
def test_answers_are_the_nearest_to_the_edited_embedding(
    searcher, gallery, session, bundle, tiny_model, edits, row
):
    picture = bundle.preprocess.load(gallery.sample(row).picture)
    embeddings, logits = session.encode(picture[None])
    # r' = r - M[seen value] + M[new value] for each edit, then the cosine to every item.
    memory = tiny_model.memory.weight.detach().numpy()
    query = embeddings.ravel().copy()
    wanted = {}
    columns = {
        "colour": (0, "red green blue"),
        "shape": (3, "disc square"),
        "border": (5, "plain white"),
    }
    for name, (start, values) in columns.items():
        values = values.split()
        seen = int(logits[0, start : start + len(values)].argmax())
        new = values.index(edits[name]) if name in edits else seen
        query += memory[:, start + new] - memory[:, start + seen]
        wanted[name] = values[new]
    scores = gallery.embeddings @ (query / np.linalg.norm(query))
    answers = searcher.search(picture, edits, k=96)
    assert sorted(answer.row for answer in answers) == list(range(96))
    found = [answer.score for answer in answers]
    np.testing.assert_allclose(found, np.sort(scores)[::-1], atol=1e-5)
    np.testing.assert_allclose(found, scores[[answer.row for answer in answers]], atol=1e-5)
    assert {name: match.wanted for name, match in answers[0].matches.items()} == wanted


def test_without_an_edit_the_item_itself_comes_first(searcher, gallery, bundle):
    answers = searcher.search(bundle.preprocess.load(gallery.sample(50).picture), {}, k=3)
    assert len(answers) == 3
    assert answers[0].row == 50
    assert answers[0].item_id == gallery.item_ids[50]
    assert answers[0].score == pytest.approx(1, abs=1e-5)


def test_matches_take_the_catalogues_word_and_say_where_it_has_none(searcher, gallery, bundle):
    schema = bundle.schema
    picture = bundle.preprocess.load(gallery.sample(0).picture)
    unknown = 0
    for answer in searcher.search(picture, {"colour": "blue"}, k=200):
        labels, seen = gallery.labels[answer.row], gallery.predicted[answer.row]
        assert answer.labels == schema.decode(labels)
        for number, (name, match) in enumerate(answer.matches.items()):
            assert name == schema.names[number]
            values = schema.attributes[number].values
            assert match.predicted == (labels[number] == UNKNOWN)
            shown = seen[number] if match.predicted else labels[number]
            assert match.value == values[shown]
            assert match.good == (match.value == match.wanted)
            unknown += match.predicted
        assert answer.matches["colour"].wanted == "blue"
        assert answer.good == all(match.good for match in answer.matches.values())
    assert unknown == (gallery.labels == UNKNOWN).sum() > 0


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"color": "red"}, "unknown attribute 'color'; did you mean 'colour'"),
        ({"colour": "read"}, "attribute 'colour': unknown value 'read'; did you mean 'red'"),
        ({"colour": "red", "shape": "cone"}, "'shape': unknown value 'cone'; valid: 'disc'"),
    ],
)
def test_unknown_edits_are_named_with_the_nearest_valid_ones(searcher, edits, message):
    with pytest.raises(UserError, match=message):
        searcher.search(np.zeros((32, 32, 3), np.uint8), edits)
