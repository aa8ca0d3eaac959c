"""Answers compared with the definition, and their metadata."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from adde.errors import UserError
from adde.schema import UNKNOWN
from adde.serving import Request, Searcher
from adde.serving.gallery.base import Header, read_picture
from adde.serving.gallery.embedded import EmbeddedGallery

EDITS = [
    {},
    {"colour": "red"},
    {"border": "white", "colour": "green"},
    {"shape": "disc", "colour": "blue", "border": "plain"},
]
COLUMNS = {
    "colour": (0, ("red", "green", "blue")),
    "shape": (3, ("disc", "square")),
    "border": (5, ("plain", "white")),
}
IDS = ["train-000000-000", "train-000001-007", "test-000000-023"]


@pytest.fixture
def searcher(bundle, session, gallery):
    return Searcher(bundle, gallery, session=session)


@pytest.fixture
def everything(gallery, random_items):
    """All 96 items by id."""
    found = gallery.nearest(random_items(1)[0].vector, np.ones(3, np.float32), 96, {})
    assert len(found) == 96
    return {item.item_id: item for item in found}


def picture_of(searcher, item_id):
    content = read_picture(searcher.gallery.header, searcher.gallery.get(item_id))
    return searcher.bundle.preprocess.load(content)


def by_definition(searcher, tiny_model, picture, edits):
    """r' = r - M[predicted value] + M[new value] for each edit, normalised; and wanted values."""
    embeddings, logits, _ = searcher.session.encode(picture[None])
    memory = tiny_model.memory.weight.detach().numpy()
    query, wanted = embeddings.ravel().copy(), {}
    for name, (start, values) in COLUMNS.items():
        seen = int(logits[0, start : start + len(values)].argmax())
        new = values.index(edits[name]) if name in edits else seen
        query += memory[:, start + new] - memory[:, start + seen]
        wanted[name] = values[new]
    return (query / np.linalg.norm(query)).reshape(3, 6).astype(float), wanted


def unit(vector):
    return vector / np.linalg.norm(vector, axis=1, keepdims=True)


@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize("item_id", IDS)
@pytest.mark.parametrize(
    ("weights", "like", "factors"),
    [
        ({}, (), (1, 1, 1)),
        ({"shape": 4, "border": 0.25}, (), (1, 4, 0.25)),
        ({}, ("colour",), (1, 0, 0)),
        ({"border": 3, "shape": 7}, ("border", "colour"), (1, 0, 3)),
    ],
)
def test_answers_are_the_nearest_to_the_edited_embedding(
    searcher, everything, tiny_model, edits, item_id, weights, like, factors
):
    picture = picture_of(searcher, item_id)
    query, wanted = by_definition(searcher, tiny_model, picture, edits)
    vectors = {i: item.vector.astype(float) for i, item in everything.items()}
    if like or weights:  # directions alone, and the mean instead of the sum
        query = unit(query)
        vectors = {i: unit(vector) for i, vector in vectors.items()}
        factors = np.divide(factors, sum(factors))
    parts = {
        i: [float(f * ((g - q) ** 2).sum()) for f, g, q in zip(factors, vector, query)]
        for i, vector in vectors.items()
    }
    result = searcher.search(picture, edits, k=20, weights=weights, like=like)
    assert len(result) == 20
    distances = [answer.distance for answer in result]
    expected = sorted(sum(part) for part in parts.values())[:20]
    np.testing.assert_allclose(distances, expected, atol=2e-5)
    for answer in result:
        part = parts[answer.item_id]
        assert answer.distance == pytest.approx(sum(part), abs=2e-5)
        shares = [match.share for match in answer.matches.values()]
        if sum(part) < 1e-3:  # the item itself: what is shared out is rounding
            continue
        np.testing.assert_allclose(shares, np.array(part) / sum(part), atol=1e-2)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert result.wanted == wanted
    assert {name: match.wanted for name, match in result[0].matches.items()} == wanted


def test_without_an_edit_the_item_itself_comes_first(searcher):
    for item_id in IDS:
        result = searcher.search(picture_of(searcher, item_id), {}, k=3)
        assert len(result) == 3
        assert result[0].item_id == item_id
        assert result[0].score == pytest.approx(1, abs=1e-5)
        # Asked by its id it is no answer itself, and the others are the same.
        others = searcher.search(item=item_id, k=2)
        assert [a.item_id for a in others] == [a.item_id for a in result[1:]]
        assert [a.distance for a in others] == pytest.approx([a.distance for a in result[1:]])


def test_the_score_is_the_cosine(searcher, tiny_model, everything):
    picture = picture_of(searcher, IDS[0])
    query, _ = by_definition(searcher, tiny_model, picture, {"colour": "red"})
    for answer in searcher.search(picture, {"colour": "red"}, k=96):
        cosine = float((query * everything[answer.item_id].vector).sum())
        assert answer.score == pytest.approx(cosine, abs=1e-5)


def test_predictions_come_from_the_classifiers(searcher, session):
    picture = picture_of(searcher, IDS[1])
    result = searcher.search(picture, {"colour": "blue"})
    logits = session.encode(picture[None])[1][0].astype(float)
    for name, (start, values) in COLUMNS.items():
        row = logits[start : start + len(values)]
        chances = np.exp(row) / np.exp(row).sum()
        assert result.seen[name].value == values[chances.argmax()]
        assert result.seen[name].confidence == pytest.approx(chances.max())


def test_matches_prefer_known_labels_and_mark_predictions(searcher, everything, bundle):
    schema, unknown = bundle.schema, 0
    answers = searcher.search(picture_of(searcher, IDS[0]), {"colour": "blue"}, k=200)
    assert len(answers) == 96
    for answer in answers:
        item = everything[answer.item_id]
        assert answer.labels == schema.decode(item.labels)
        for number, (name, match) in enumerate(answer.matches.items()):
            assert name == schema.names[number]
            values = schema.attributes[number].values
            assert match.predicted == (item.labels[number] == UNKNOWN)
            assert match.seen == values[item.predicted[number]]
            assert match.value == (match.seen if match.predicted else values[item.labels[number]])
            assert match.good == (match.value == match.wanted)
            unknown += match.predicted
        assert answer.matches["colour"].wanted == "blue"
        assert answer.good == all(m.good for m in answer.matches.values() if not m.predicted)
    assert unknown == sum((item.labels == UNKNOWN).sum() for item in everything.values()) > 0


def test_filters_leave_only_what_they_allow(searcher, everything):
    answers = searcher.search(
        picture_of(searcher, IDS[0]), k=96, filters={"colour": ["red", "green"], "shape": "disc"}
    )
    assert {a.item_id for a in answers} == {
        i for i, item in everything.items() if item.labels[0] in (0, 1) and item.labels[1] == 0
    }


def test_many_at_once_and_from_many_threads_answer_as_one_by_one(searcher):
    requests = [
        Request(image=picture_of(searcher, item_id), edits=edits, k=1 + 3 * number)
        for number, item_id in enumerate(IDS)
        for edits in EDITS
    ]
    requests += [Request(item=item_id, like=("shape",)) for item_id in IDS]
    one_by_one = [searcher.search(**vars(request)) for request in requests]
    assert searcher.search_batch(requests) == one_by_one  # floats and all
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda r: searcher.search(**vars(r)), requests * 5)
        assert list(answers) == one_by_one * 5


def test_a_picture_may_be_bytes_or_a_file(searcher, tmp_path):
    content = read_picture(searcher.gallery.header, searcher.gallery.get(IDS[2]))
    (tmp_path / "x.png").write_bytes(content)
    answers = [
        searcher.search(source).answers
        for source in (content, tmp_path / "x.png", str(tmp_path / "x.png"))
    ]
    assert (
        answers[0]
        == answers[1]
        == answers[2]
        == searcher.search(picture_of(searcher, IDS[2])).answers
    )


def test_paths_are_enough(tiny_bundle, tiny_gallery, searcher):
    opened = Searcher(str(tiny_bundle), tiny_gallery)
    assert opened.search(item=IDS[0]).answers == searcher.search(item=IDS[0]).answers


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"edits": {"color": "red"}}, "unknown attribute 'color'; did you mean 'colour'"),
        ({"edits": {"colour": "read"}}, "attribute 'colour': unknown value 'read'; did you mean"),
        ({"edits": {"colour": "red", "shape": "cone"}}, "unknown value 'cone'; valid: 'disc'"),
        ({"weights": {"color": 1}}, "unknown attribute 'color'; did you mean 'colour'"),
        ({"weights": {"colour": -1}}, "weights: 'colour': expected 0 to 1000, found -1"),
        ({"weights": {"colour": float("nan")}}, "weights: 'colour': expected 0 to 1000, found nan"),
        ({"weights": {"colour": 0}, "like": ["colour"]}, "expected at least one above 0"),
        ({"like": ["color"]}, "like: unknown attribute 'color'; did you mean 'colour'"),
        ({"filters": {"price": 3}}, "filters: no item has 'price'"),
        ({"k": 0}, "k: expected 1 to 1000, found 0"),
        ({"item": "x"}, "expected one of image and item, found both"),
        ({"image": b"GIF"}, "picture: expected a picture that decodes"),
        ({"image": None, "item": "val-000000-03"}, "no item 'val-000000-03'.*did you mean"),
    ],
)
def test_invalid_requests_are_reported(searcher, asked, message):
    with pytest.raises(UserError, match=message):
        searcher.search(**{"image": np.zeros((32, 32, 3), np.uint8), **asked})


def test_similar_ranks_by_one_subspace_alone(searcher, everything):
    """By cosine in the subspace, whatever the rest of the embedding; the item is no answer."""
    item_id = next(iter(everything))
    a = searcher.schema.attribute_index("shape")
    found = searcher.similar(item_id, like=("shape",), k=20)
    unit = {i: item.vector[a] / np.linalg.norm(item.vector[a]) for i, item in everything.items()}
    cosines = {i: float(unit[i] @ unit[item_id]) for i in everything if i != item_id}
    best = sorted(cosines.values(), reverse=True)[:20]
    np.testing.assert_allclose([cosines[answer.item_id] for answer in found], best, atol=1e-6)
    page = searcher.similar(item_id, like=("shape",), k=5, offset=5)
    assert [a.item_id for a in page] == [a.item_id for a in found[5:10]]


def test_similar_in_nothing_is_refused(searcher, everything):
    with pytest.raises(UserError, match="like: expected one or more attributes, found none"):
        searcher.similar(next(iter(everything)), like=())


def test_a_weight_means_the_same_however_long_a_subspace_is(bundle, session, everything, tmp_path):
    """A recipe without equal subspaces may leave one of them many times longer than another."""
    name = bundle.schema.names[2]
    factors = np.array([[1], [9], [0.2]], np.float32)
    found: list[list[float]] = []
    for number, scale in enumerate((np.ones((3, 1), np.float32), factors)):
        header = Header.of(bundle, "embedded", None, "test")
        gallery = EmbeddedGallery.create(tmp_path / str(number), header)
        longer = [item.vector * scale for item in everything.values()]
        gallery.upsert(
            [
                replace(item, vector=vector / np.linalg.norm(vector))
                for item, vector in zip(everything.values(), longer)
            ]
        )
        searcher = Searcher(bundle, gallery, session=session)
        asked = searcher.search(item=IDS[0], weights={name: 4.0}, k=20, rank="distance")
        found.append([answer.distance for answer in asked])
        gallery.close()
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
