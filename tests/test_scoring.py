"""The match score against the full joint distribution and the baseline that it generalises."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adde import metrics, scoring
from adde.edits import LabelEdits
from adde.errors import UserError
from adde.ranking import rank_baselines, rank_matches, wanted_beliefs
from adde.schema import UNKNOWN, Attribute, Schema
from adde.scoring import Calibration

SIZES = (3, 2)
SCHEMA = Schema(tuple(Attribute(f"a{i}", tuple("xyz"[:s])) for i, s in enumerate(SIZES)))
PLAIN = Calibration((1.0, 1.0), (1.0, 1.0), 0.0, 1.0)
seeds = st.integers(0, 2**32 - 1)


def outputs(seed, items=5):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (items, sum(SIZES))).astype(np.float32)
    return logits, random.normal(0, 2, (items, len(SIZES))).astype(np.float32)


def states(logits, presence, row):
    """Every (value or UNKNOWN of a0, of a1) with its probability, by the definition."""
    sides = []
    for a, (start, size) in enumerate(zip(SCHEMA.offsets, SIZES)):
        powers = [math.exp(float(x)) for x in logits[row, start : start + size]]
        there = 1 / (1 + math.exp(-float(presence[row, a])))
        known = [(v, there * p / sum(powers)) for v, p in enumerate(powers)]
        sides.append([*known, (UNKNOWN, 1 - there)])
    return [((u, v), p * q) for (u, p), (v, q) in itertools.product(*sides)]


@given(seeds, st.integers(0, 2))
def test_the_score_is_the_log_probability_of_an_exact_match(seed, value):
    """Summed over every joint state of query and item, with a0 edited to `value`."""
    logits, presence = outputs(seed)
    beliefs = PLAIN.beliefs(logits, presence, SCHEMA)
    edits = LabelEdits(np.array([0]), np.array([[value, UNKNOWN]]))
    wanted, edited = wanted_beliefs(edits, beliefs, SCHEMA)
    assert edited.tolist() == [[True, False]]
    ones = np.ones((1, 2), np.float32)
    found = scoring.match_scores(wanted, ones, beliefs, SCHEMA, 0.0)[0]
    for item in range(len(logits)):
        together = itertools.product(states(logits, presence, 0), states(logits, presence, item))
        same = sum(p * q for (u, p), (v, q) in together if v == (value, u[1]))
        assert found[item] == pytest.approx(math.log(same), abs=1e-4)


@given(seeds)
def test_certain_queries_rank_as_classifier_soft(seed):
    """Epsilon 0, temperature 1, no presence, the reference's likeliest values for certain."""
    logits, _ = outputs(seed, items=12)
    labels = np.random.default_rng(seed).integers(0, 2, (12, 2))
    queries = metrics.manipulation_queries(labels)
    embeddings = np.zeros((12, 2, 1), np.float32)
    soft = rank_baselines(queries, embeddings, logits, SCHEMA)["classifier_soft"]
    beliefs = Calibration((1.0, 1.0), (), 0.0, 1.0).beliefs(logits, None, SCHEMA)
    certain = scoring.with_known(beliefs, metrics.predicted_labels(logits, SCHEMA), SCHEMA)
    wanted, _ = wanted_beliefs(queries, certain, SCHEMA)
    weights = np.ones((len(queries), 2), np.float32)
    scores = scoring.match_scores(wanted, weights, beliefs, SCHEMA, 0.0)
    ours = metrics.smallest(-scores, 12)
    # Rank by rank the same score; items may change places where theirs differ by rounding.
    np.testing.assert_allclose(
        np.take_along_axis(scores, ours, 1), np.take_along_axis(scores, soft, 1), atol=1e-4
    )


def test_beliefs_add_up_and_follow_temperature_and_presence():
    logits, presence = outputs(0, items=50)
    for calibration in (PLAIN, Calibration((0.3, 4.0), (2.0, 0.2), 0.1, 2.0)):
        found = calibration.beliefs(1000 * logits, 1000 * presence, SCHEMA)
        assert np.isfinite(found).all()
        found = calibration.beliefs(logits, presence, SCHEMA)
        for part in scoring.parts(SCHEMA):
            np.testing.assert_allclose(found[:, part].sum(axis=1), 1, atol=1e-6)
    always = Calibration((1.0, 1.0), (0.0, 1.0), 0.1, 2.0).beliefs(logits, presence, SCHEMA)
    first, second = scoring.parts(SCHEMA)
    assert not always[:, first.stop - 1].any() and always[:, second.stop - 1].all()
    without = Calibration((1.0, 1.0), (), 0.1, 2.0).beliefs(logits, None, SCHEMA)
    assert not without[:, [part.stop - 1 for part in scoring.parts(SCHEMA)]].any()
    with pytest.raises(ValueError, match="presence"):
        PLAIN.beliefs(logits, None, SCHEMA)


def test_known_labels_are_certain_and_absence_is_unknown():
    beliefs = np.array([[0.2, 0.3, 0.1, 0.4, 0.5, 0.4, 0.1]], np.float32)
    assert scoring.likeliest(beliefs, SCHEMA).tolist() == [[UNKNOWN, 0]]
    known = scoring.with_known(beliefs, np.array([[2, UNKNOWN]]), SCHEMA)
    assert known.tolist() == [[0, 0, 1, 0, *beliefs[0, 4:].tolist()]]
    assert scoring.likeliest(known, SCHEMA).tolist() == [[2, 0]]


def test_other_and_more_are_asked_for_by_value():
    first, _ = scoring.parts(SCHEMA)
    wanted = np.array([[0.7, 0.2, 0.1, 0.0, 1.0, 0.0, 0.0]], np.float32)
    other, more = wanted.copy(), wanted.copy()
    scoring.ask_other(other, first, [0, 2])
    assert other.tolist() == [[0, 1, 0, 0, 1, 0, 0]]
    scoring.ask_more(more, first, 1, 0.5)
    np.testing.assert_allclose(more[0, :4], [0.35, 0.6, 0.05, 0], atol=1e-6)


def test_codes_score_as_the_beliefs_that_they_stand_for():
    logits, presence = outputs(3, items=6)
    beliefs = PLAIN.beliefs(logits, presence, SCHEMA)
    wanted, weights = beliefs[0], np.array([1.5, 0.5], np.float32)
    centroids = [beliefs[:, part] for part in scoring.parts(SCHEMA)]  # each item its own code
    found = sum(scoring.tables(wanted, weights, centroids, SCHEMA, 0.05))
    exact = scoring.match_scores(wanted[None], weights[None], beliefs, SCHEMA, 0.05)[0]
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_the_first_answers_obey_and_the_others_are_close():
    """Twelve items have the value and nothing else; one has all but the value."""
    hot = np.zeros((40, sum(SIZES) + 2), np.float32)
    hot[:, 4] = 1  # all share a1
    hot[:20, 0] = 1
    hot[20:, 1] = 1
    hot[20:, 4:6] = 0, 1  # those with the value differ in a1
    edits = LabelEdits(np.array([0]), np.array([[1, UNKNOWN]]))
    obeying = Calibration((1.0, 1.0), (), 0.001, 3.0)
    found = rank_matches(edits, hot, SCHEMA, obeying, k=40)[0]
    assert sorted(found) == list(range(40))
    assert found[:10].tolist() == list(range(20, 30))
    plain = rank_matches(edits, hot, SCHEMA, Calibration((1.0, 1.0), (), 0.001, 1.0), k=40)[0]
    assert found[10:].tolist() == [row for row in plain.tolist() if row not in range(20, 30)]


def test_calibrations_are_read_as_written_and_checked():
    found = Calibration((0.5, 1.0), (2.0, 3.0), 0.03, 2.5)
    assert Calibration.from_json(found.to_json(), SCHEMA, "x") == found
    with pytest.raises(UserError, match="x: expected a calibration, found: KeyError"):
        Calibration.from_json({}, SCHEMA, "x")
    short = {**found.to_json(), "temperatures": [1.0]}
    with pytest.raises(UserError, match="of 2 attributes, found one of 1"):
        Calibration.from_json(short, SCHEMA, "x")
