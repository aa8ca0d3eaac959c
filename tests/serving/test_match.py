"""Ranking by match, compared with the formulas, and its edits."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from adde.errors import UserError
from adde.metrics import Queries
from adde.ranking import rank_baselines
from adde.schema import UNKNOWN
from adde.scoring import Calibration, with_known
from adde.serving import More, Not, Request, Searcher
from adde.serving.gallery.base import Header, read_picture
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.gallery.opening import open_gallery
from adde.serving.gallery.scorers import RankOptions

IDS = ["train-000000-000", "train-000001-007", "test-000000-023"]
VALUES = {
    "colour": ("red", "green", "blue"),
    "shape": ("disc", "square"),
    "border": ("plain", "white"),
}


@pytest.fixture
def searcher(calibrated, calibrated_gallery, session):
    with closing(open_gallery(calibrated_gallery, calibrated)) as gallery:
        yield Searcher(calibrated, gallery, session=session)


@pytest.fixture
def everything(searcher, random_items):
    found = searcher.gallery.nearest(random_items(1)[0].vector, np.ones(3, np.float32), 96, {})
    assert len(found) == 96
    return {item.item_id: item for item in found}


def picture_of(searcher, item_id):
    content = read_picture(searcher.gallery.header, searcher.gallery.get(item_id))
    return searcher.bundle.preprocess.load(content)


def softmax(logits, temperature):
    powers = np.exp(logits.astype(float) / temperature)
    return powers / powers.sum()


def seen_in(searcher, item_id):
    """Per attribute the probabilities of values and absence, from the picture."""
    _, logits, presence = searcher.session.encode(picture_of(searcher, item_id)[None])
    found = {}
    for name, row, logit, divisor, other in zip(
        VALUES, np.split(logits[0], [3, 5]), presence[0], (1.0, 1.5, 0.7), (1.0, 0.5, 2.0)
    ):
        there = 1 / (1 + np.exp(-float(logit) / other))
        found[name] = np.append(there * softmax(row, divisor), 1 - there)
    return found


def known_of(searcher, item, item_id):
    """As `seen_in`, but known labels are certain."""
    found = seen_in(searcher, item_id)
    for (name, values), label in zip(VALUES.items(), item.labels):
        if label != UNKNOWN:
            found[name] = np.eye(len(values) + 1)[label]
    return found


@pytest.mark.parametrize(
    ("edits", "wanted", "heavy"),
    [
        ({}, {}, ()),
        ({"colour": "red"}, {"colour": (1, 0, 0, 0)}, ("colour",)),
        (
            {"colour": "blue", "shape": "disc"},
            {"colour": (0, 0, 1, 0), "shape": (1, 0, 0)},
            ("colour", "shape"),
        ),
        ({"colour": Not("red")}, {"colour": (0, 1, 1, 0)}, ("colour",)),
        ({"colour": Not("red", "blue")}, {"colour": (0, 1, 0, 0)}, ("colour",)),
    ],
)
@pytest.mark.parametrize(
    ("weights", "like", "factors"),
    [
        ({}, (), (1, 1, 1)),
        ({"shape": 4, "border": 0.25}, (), (1, 4, 0.25)),
        ({"border": 3}, ("border", "colour"), (1, 0, 3)),
    ],
)
@pytest.mark.parametrize("item_id", IDS[:2])
def test_answers_are_ranked_by_the_product_of_probabilities(
    searcher, everything, edits, wanted, heavy, weights, like, factors, item_id
):
    own = seen_in(searcher, item_id)
    asked = {name: np.array(wanted.get(name, own[name]), float) for name in VALUES}
    scores, firsts, chances = {}, {}, {}
    for other, item in everything.items():
        beliefs = known_of(searcher, item, other)
        chances[other] = {n: float(asked[n] @ beliefs[n]) for n in VALUES}
        logs = [np.log(0.01 + chances[other][n]) for n in VALUES]
        scores[other] = sum(f * log for f, log in zip(factors, logs))
        firsts[other] = sum(
            f * (3 if n in heavy else 1) * log for n, f, log in zip(VALUES, factors, logs)
        )
    result = searcher.search(picture_of(searcher, item_id), edits, k=40, weights=weights, like=like)
    assert result.rank == "match"
    found = [answer.item_id for answer in result]
    assert len(set(found)) == 40
    best = sorted(firsts.values(), reverse=True)[:10]
    np.testing.assert_allclose([firsts[i] for i in found[:10]], best, atol=1e-4)
    rest = sorted((s for i, s in scores.items() if i not in found[:10]), reverse=True)[:30]
    np.testing.assert_allclose([scores[i] for i in found[10:]], rest, atol=1e-4)
    for answer in result:
        for name, match in answer.matches.items():
            assert match.probability == pytest.approx(chances[answer.item_id][name], abs=1e-5)
        # A mean of the probabilities, as logarithms.
        mean = np.exp(scores[answer.item_id] / sum(factors)) - 0.01
        assert answer.score == pytest.approx(mean, abs=1e-5)
        assert 0 <= answer.score <= 1
        assert sum(m.share for m in answer.matches.values()) == pytest.approx(1, abs=1e-5)


def test_ties_in_match_go_to_the_nearest(searcher):
    result = searcher.search(picture_of(searcher, IDS[0]), {"colour": "green"}, k=96)
    rest = [(answer.score, -answer.distance) for answer in result[10:]]
    alike = [(a, b) for (s, a), (t, b) in pairwise(rest) if s == t]
    assert len(alike) > 20  # most labels of the tiny catalogue are known
    assert all(one >= other for one, other in alike)


def test_with_no_epsilon_and_a_certain_reference_it_is_the_soft_classifier(
    session, bundle, searcher, everything
):
    """`classifier_soft` of the published comparison ranks by log-probabilities of the labels."""
    logits = np.random.default_rng(0).normal(0, 2, (300, 7)).astype(np.float32)
    plain = Calibration((1.0,) * 3, (), 0.0, 1.0)
    beliefs = plain.beliefs(logits, None, bundle.schema)
    predicted = np.stack([p.argmax(axis=1) for p in np.split(logits, [3, 5], axis=1)], axis=1)
    reference, attribute = np.arange(40), np.arange(40) % 3
    value = (predicted[reference, attribute] + 1) % np.array([3, 2, 2])[attribute]
    targets = predicted[reference].copy()
    targets[np.arange(40), attribute] = value
    queries = Queries(reference, attribute, value, targets)
    vectors = np.random.default_rng(1).normal(size=(300, 3, 6)).astype(np.float32)
    expected = rank_baselines(queries, vectors, logits, bundle.schema)["classifier_soft"]
    wanted = with_known(np.zeros((40, 10), np.float32), targets, bundle.schema)
    ones = np.ones(3, np.float32)
    for query, row in zip(wanted, expected):
        match = RankOptions(query, 0.0).match_scorers(ones, bundle.schema, 50)[0][0]
        order = np.argsort(-match(beliefs), kind="stable")[:50]
        np.testing.assert_allclose(match(beliefs[order]), match(beliefs[row]), atol=1e-4)


def test_candidates_of_two_thousand_items_are_those_of_all(tmp_path, bundle, random_items):
    calibration = Calibration((1.0,) * 3, (), 0.01, 3.0)
    header = Header("embedded", "b", bundle.schema, 6, None, "test", calibration.to_json())
    logits = np.random.default_rng(0).normal(0, 2, (2000, 7)).astype(np.float32)
    beliefs = calibration.beliefs(logits, None, bundle.schema)
    items = [
        replace(item, labels=np.full(3, UNKNOWN), beliefs=row)
        for item, row in zip(random_items(2000), beliefs)
    ]
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert(items)
        ones = np.ones(3, np.float32)
        for number in range(0, 2000, 200):
            query = beliefs[number]
            asked = RankOptions(query, 0.01, first=np.array([1, 5, 1], np.float32))
            found = gallery.nearest(items[number].vector, ones, 30, {}, None, asked)
            every = {
                item.item_id: np.log(0.01 + np.add.reduceat(query.astype(float) * row, [0, 4, 7]))
                for item, row in zip(items, beliefs)
            }
            for factors, count in (((1, 1, 1), 30), ((1, 5, 1), 10)):
                scores = {item_id: logs @ np.array(factors) for item_id, logs in every.items()}
                wanted = sorted(scores, key=scores.get, reverse=True)[:count]
                assert set(wanted) <= {item.item_id for item in found}


def test_known_labels_count_and_predictions_are_shown(searcher, everything):
    unsure = 0
    for item_id, item in everything.items():
        result = searcher.search(item=item_id, k=1)
        seen = seen_in(searcher, item_id)
        for a, (name, values) in enumerate(VALUES.items()):
            said = result.seen[name]
            assert said.known == (item.labels[a] != UNKNOWN)
            if said.known:
                assert (said.value, said.confidence) == (values[item.labels[a]], 1.0)
            else:
                unsure += 1
                assert said.value == [*values, None][seen[name].argmax()]
                assert said.confidence == pytest.approx(seen[name].max(), abs=1e-5)
                assert said.confidence < 1
    assert unsure


@pytest.mark.parametrize("rank", ["match", "distance"])
def test_an_edit_removes_the_known_value_not_the_predicted_one(
    searcher, everything, tiny_model, rank
):
    """An edit to the value that was wrongly guessed used to change nothing."""
    item = next(i for i in everything.values() if UNKNOWN != i.labels[0] != i.predicted[0])
    guessed = VALUES["colour"][item.predicted[0]]
    before = searcher.search(item=item.item_id, k=20, rank=rank)
    after = searcher.search(item=item.item_id, edits={"colour": guessed}, k=20, rank=rank)
    assert [a.item_id for a in before] != [a.item_id for a in after]
    if rank == "distance":
        memory = tiny_model.memory.weight.detach().numpy()
        query = (item.vector * item.norm).ravel()
        query += memory[:, item.predicted[0]] - memory[:, item.labels[0]]
        query = (query / np.linalg.norm(query)).reshape(3, 6)
        distances = sorted(
            float(np.square(other.vector - query).sum())
            for other in everything.values()
            if other is not item
        )
        np.testing.assert_allclose([a.distance for a in after], distances[:20], atol=2e-5)


@pytest.mark.parametrize("rank", ["match", "distance"])
def test_must_keeps_only_answers_that_show_the_value(searcher, everything, rank):
    edits = {"colour": "red", "shape": Not("disc")}
    picture = picture_of(searcher, IDS[1])
    result = searcher.search(picture, edits, k=96, must=["colour", "shape"], rank=rank)
    shown = {
        item_id
        for item_id, item in everything.items()
        if known_of(searcher, item, item_id)["colour"].argmax() == 0
        and known_of(searcher, item, item_id)["shape"].argmax() == 1
    }
    assert {answer.item_id for answer in result} == shown
    assert all(a.matches["colour"].good and a.matches["shape"].good for a in result)
    assert result.wanted["shape"] == "not disc"


@pytest.mark.parametrize("rank", ["match", "distance", None])
def test_pages_continue_where_the_previous_one_ended(searcher, rank):
    picture = picture_of(searcher, IDS[0])
    whole = searcher.search(picture, {"colour": "red"}, k=40, rank=rank)
    pages = [
        searcher.search(picture, {"colour": "red"}, k=k, offset=offset, rank=rank)
        for offset, k in ((0, 7), (7, 13), (20, 20))
    ]
    assert [a for page in pages for a in page] == list(whole)
    assert len(searcher.search(picture, k=50, offset=90)) == 6
    assert len(searcher.search(picture, k=5, offset=200)) == 0


def test_more_of_a_value_lies_between(searcher, tiny_model):
    picture = picture_of(searcher, IDS[0])
    embeddings, logits, _ = searcher.session.encode(picture[None])
    own, memory = int(logits[0, :3].argmax()), tiny_model.memory.weight.detach().numpy()
    new = (own + 1) % 3
    query = embeddings.ravel() + 0.25 * (memory[:, new] - memory[:, own])
    query = (query / np.linalg.norm(query)).reshape(3, 6)
    edit = {"colour": More(VALUES["colour"][new], 0.25)}
    for answer in searcher.search(picture, edit, rank="distance"):
        distance = np.square(answer.item.vector - query).sum()
        assert answer.distance == pytest.approx(float(distance), abs=2e-5)
        chance = seen_in(searcher, IDS[0])["colour"] * 0.75
        chance[new] += 0.25
        found = float(chance @ answer.item.beliefs[:4])
        assert answer.matches["colour"].probability == pytest.approx(found, abs=1e-5)
    whole = searcher.search(picture, {"colour": More(VALUES["colour"][new], 1.0)})
    plain = searcher.search(picture, {"colour": VALUES["colour"][new]})
    assert [a.item_id for a in whole] == [a.item_id for a in plain]


def test_another_value_by_distance_is_the_mean_of_the_others(searcher, tiny_model):
    picture = picture_of(searcher, IDS[0])
    embeddings, logits, _ = searcher.session.encode(picture[None])
    own, memory = int(logits[0, :3].argmax()), tiny_model.memory.weight.detach().numpy()
    others = [value for value in range(3) if value != own]
    query = embeddings.ravel() + memory[:, others].mean(axis=1) - memory[:, own]
    query = (query / np.linalg.norm(query)).reshape(3, 6)
    edit = {"colour": Not(VALUES["colour"][own])}
    for answer in searcher.search(picture, edit, rank="distance"):
        distance = np.square(answer.item.vector - query).sum()
        assert answer.distance == pytest.approx(float(distance), abs=2e-5)


def test_an_absent_attribute_has_no_value(
    calibrated, session, tmp_path, random_items, tiny_gallery
):
    """Absence that is likelier than any value is reported, unless the label is known."""
    header = Header.of(calibrated, "embedded", None, "test")
    beliefs = np.array([0.2, 0.1, 0.1, 0.6, 0.8, 0.1, 0.1, 0.5, 0.4, 0.1], np.float32)
    items = [
        replace(item, beliefs=beliefs, labels=np.array([label, UNKNOWN, UNKNOWN]))
        for item, label in zip(random_items(2), (UNKNOWN, 2))
    ]
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        gallery.upsert(items)
        searcher = Searcher(calibrated, gallery, session=session)
        (answer,) = searcher.search(item="item-1")
        assert answer.matches["colour"].value is None and answer.matches["colour"].predicted
        assert not answer.matches["colour"].good
        result = searcher.search(item="item-0")
        assert result.seen["colour"].value is None
        assert result.seen["colour"].confidence == pytest.approx(0.6)
        assert result.wanted["colour"] is None
        assert result[0].matches["colour"].value == "blue"
        assert not searcher.search(item="item-1", edits={"colour": "red"}, must=["colour"])


def test_many_at_once_and_later_answer_as_one_by_one(searcher):
    requests = [
        Request(image=picture_of(searcher, item_id), edits=edits, k=20, must=[*edits][:1])
        for item_id in IDS
        for edits in ({}, {"colour": "red"}, {"shape": Not("disc"), "colour": More("blue")})
    ]
    requests += [Request(item=item_id, like=("shape",)) for item_id in IDS]
    one_by_one = [searcher.search(**vars(request)) for request in requests]
    assert searcher.search_batch(requests) == one_by_one
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda request: searcher.search(**vars(request)), requests * 5)
        assert list(answers) == one_by_one * 5


def test_a_bundle_without_calibration_answers_by_distance(bundle, session, gallery):
    searcher = Searcher(bundle, gallery, session=session)
    result = searcher.search(item=IDS[0], edits={"colour": "red"}, must=["colour"], k=96)
    assert result.rank == "distance"
    for answer in result:
        item = answer.item
        shown = item.predicted[0] if item.labels[0] == UNKNOWN else item.labels[0]
        assert shown == 0
        assert all(match.probability is None for match in answer.matches.values())
    unknown = [name for name, seen in result.seen.items() if not seen.known]
    assert all(result.seen[name].confidence is None for name in unknown)
    with pytest.raises(UserError, match=r"'match' needs a calibrated bundle.*export the run again"):
        searcher.search(item=IDS[0], rank="match")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"must": ["colour"]}, "must: expected an edited attribute, found 'colour'"),
        ({"must": ["color"]}, "unknown attribute 'color'; did you mean 'colour'"),
        ({"edits": {"colour": Not("read")}}, "unknown value 'read'; did you mean 'red'"),
        ({"edits": {"colour": More("read")}}, "unknown value 'read'; did you mean 'red'"),
        ({"edits": {"colour": Not()}}, "'colour': expected values to exclude"),
        ({"edits": {"shape": Not("disc", "square")}}, "'shape': expected at least one value"),
        ({"edits": {"colour": More("red", 0)}}, "amount: expected more than 0 and at most 1"),
        ({"edits": {"colour": More("red", float("nan"))}}, "amount: expected .* found nan"),
        ({"rank": "best"}, "rank: expected 'match' or 'distance', found 'best'"),
        ({"weights": dict.fromkeys(VALUES, 0)}, "weights: expected at least one above 0"),
        ({"k": 600, "offset": 401}, "offset: expected 0 to 400.*found 401"),
        ({"offset": -1}, "offset: expected 0 to 990"),
    ],
)
def test_invalid_requests_are_reported(searcher, asked, message):
    with pytest.raises(UserError, match=message):
        searcher.search(item=IDS[0], **asked)


def test_an_item_without_beliefs_is_rejected(
    calibrated_gallery, calibrated, tmp_path, random_items
):
    header = Header.of(calibrated, "embedded", None, "test")
    with closing(EmbeddedGallery.create(tmp_path / "g", header)) as gallery:
        with pytest.raises(UserError, match=r"item 'item-0': expected its beliefs.*found none"):
            gallery.upsert(random_items(1))
        assert len(gallery) == 0


def test_a_corrected_label_is_certain_at_once(calibrated, calibrated_gallery, tmp_path):
    folder = shutil.copytree(calibrated_gallery, tmp_path / "g")
    with closing(open_gallery(folder, calibrated, writable=True)) as gallery:
        item = gallery.get(IDS[0])
        gallery.upsert([replace(item, labels=np.array([2, UNKNOWN, 1]))])
        found = gallery.get(IDS[0]).beliefs
        assert found[:4].tolist() == [0, 0, 1, 0]
        assert found[4:7].tolist() == item.beliefs[4:7].tolist()
