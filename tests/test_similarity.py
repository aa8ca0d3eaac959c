"""Conditional similarity, compared with plain loops and with scikit-learn."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from adde import metrics
from adde.schema import UNKNOWN, Attribute, Schema
from adde.scoring import Calibration
from adde.similarity import (
    Benchmark,
    Ranking,
    as_text,
    average_precisions,
    match_probabilities,
    predicted_values,
    random_ranking,
    similarity_figures,
    subspaces,
    triplet_accuracy,
    whole,
)

SCHEMA = Schema(
    (Attribute("sleeve", ("short", "long", "none")), Attribute("colour", ("red", "blue")))
)
CALIBRATION = Calibration((1.0, 2.0), (1.0, 0.0), 0.01, 2.0)


def planted(items=60, noise=0.6, seed=0, missing=0.2):
    """Embeddings whose subspaces show their own attribute, logits, beliefs and labels."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(size, size=items) for size in SCHEMA.sizes], axis=1)
    centres = [rng.standard_normal((size, 4)) for size in SCHEMA.sizes]
    embeddings = np.stack([centre[column] for centre, column in zip(centres, labels.T)], axis=1)
    embeddings = (embeddings + noise * rng.standard_normal(embeddings.shape)).astype(np.float32)
    logits = SCHEMA.multi_hot(labels) * 2 + rng.standard_normal((items, 5)).astype(np.float32)
    presence = rng.standard_normal((items, 2)).astype(np.float32)
    beliefs = CALIBRATION.beliefs(logits, presence, SCHEMA)
    labels[rng.random(labels.shape) < missing] = UNKNOWN
    return embeddings, logits, beliefs, labels


def looped(ranking, labels, benchmark, attribute):
    """By scikit-learn, query by query, in which equal scores are one threshold."""
    found = {}
    for query in np.flatnonzero(benchmark.queries[:, attribute]):
        others = [row for row in np.flatnonzero(benchmark.candidates[:, attribute]) if row != query]
        relevant = labels[others, attribute] == labels[query, attribute]
        scores = [float(ranking.queries[query] @ ranking.items[row]) for row in others]
        if relevant.any():
            found[query] = average_precision_score(relevant, scores)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_that_of_scikit_learn(seed):
    embeddings, logits, beliefs, labels = planted(40, seed=seed)
    rng = np.random.default_rng(seed)
    known = labels != UNKNOWN
    # As in ASEN's layout: queries and candidates overlap only in part.
    benchmark = Benchmark(
        known & (rng.random(known.shape) < 0.5), known & (rng.random(known.shape) < 0.8)
    )
    rankings = {
        "subspace": subspaces(embeddings)[seed % 2],
        "whole": whole(embeddings),
        "classifier": predicted_values(embeddings, logits, SCHEMA)[seed % 2],
        "match": match_probabilities(beliefs, SCHEMA)[seed % 2],
        "random": random_ranking(len(labels)),
    }
    for ranking in rankings.values():
        found = average_precisions(ranking, labels, benchmark, [0, 1])
        for attribute in (0, 1):
            expected = looped(ranking, labels, benchmark, attribute)
            assert sorted(expected) == np.flatnonzero(~np.isnan(found[:, attribute])).tolist()
            assert len(expected) > 5
            np.testing.assert_allclose(
                found[list(expected), attribute], list(expected.values()), rtol=1e-5
            )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2)), min_size=2, max_size=12))
def test_scores_that_are_equal_share_their_place(items):
    scores, values = np.array(items).T
    labels = values[:, None].astype(np.int64)
    ranking = Ranking(np.ones((len(items), 1), np.float32), scores[:, None].astype(np.float32))
    benchmark = Benchmark.of_labels(labels)
    found = average_precisions(ranking, labels, benchmark, [0])[:, 0]
    expected = looped(ranking, labels, benchmark, 0)
    assert np.flatnonzero(~np.isnan(found)).tolist() == sorted(expected)
    np.testing.assert_allclose(found[sorted(expected)], [expected[q] for q in sorted(expected)])


def test_a_constant_embedding_finds_by_prevalence_and_no_triplet():
    labels = np.array([[0], [0], [0], [1], [1], [2]])
    constant = subspaces(np.full((6, 1, 5), 0.3, np.float32))[0]
    found = average_precisions(constant, labels, Benchmark.of_labels(labels), [0])[:, 0]
    np.testing.assert_allclose(found, [2 / 5, 2 / 5, 2 / 5, 1 / 5, 1 / 5, np.nan])
    assert triplet_accuracy(constant, np.array([[0, 1, 3], [3, 4, 0]])) == 0


@settings(deadline=None, max_examples=25)
@given(st.floats(0.01, 1000), st.floats(0.01, 1000))
def test_length_does_not_count(first, second):
    embeddings, _, _, labels = planted(30)
    benchmark = Benchmark.of_labels(labels)
    scaled = embeddings * np.array([first, second], np.float32)[:, None]
    for one, other in zip(subspaces(embeddings), subspaces(scaled)):
        np.testing.assert_allclose(
            average_precisions(one, labels, benchmark, [0, 1]),
            average_precisions(other, labels, benchmark, [0, 1]),
            rtol=1e-6,
        )


def test_triplets_equal_a_plain_loop_and_turn_round():
    embeddings = planted(50)[0]
    rng = np.random.default_rng(1)
    triplets = np.stack([rng.permutation(50)[:3] for _ in range(200)])
    for attribute, ranking in enumerate(subspaces(embeddings)):
        right = 0
        for anchor, close, far in triplets:
            unit = [
                row / np.linalg.norm(row) for row in embeddings[[anchor, close, far], attribute]
            ]
            right += np.sum((unit[0] - unit[1]) ** 2) < np.sum((unit[0] - unit[2]) ** 2)
        assert triplet_accuracy(ranking, triplets) == right / 200
        assert triplet_accuracy(ranking, triplets[:, [0, 2, 1]]) == pytest.approx(1 - right / 200)


def test_figures_of_planted_subspaces():
    embeddings, logits, beliefs, labels = planted(200, noise=0.3)
    benchmark = Benchmark.of_labels(labels)
    rng = np.random.default_rng(0)
    rows = {value: np.flatnonzero(labels[:, 1] == value) for value in (0, 1)}
    triplets = np.stack(
        [[*rng.choice(rows[0], 2, replace=False), rng.choice(rows[1])] for _ in range(100)]
    )
    benchmark = Benchmark(benchmark.queries, benchmark.candidates, {1: triplets})
    figures = similarity_figures(embeddings, logits, beliefs, labels, SCHEMA, benchmark)
    leak = np.array(figures["leak"])
    assert (leak.argmax(axis=1) == [0, 1]).all()
    assert np.diag(leak).tolist() == [figures["map"]["subspace"][name] for name in SCHEMA.names]
    for a, name in enumerate(SCHEMA.names):
        known = labels[labels[:, a] != UNKNOWN, a]
        prevalence = np.mean([(known == value).sum() - 1 for value in known]) / (len(known) - 1)
        assert figures["map"]["random"][name] == pytest.approx(prevalence, abs=0.02)
        assert leak[a, 1 - a] == pytest.approx(prevalence, abs=0.04)
        assert figures["map"]["subspace"][name] > figures["map"]["whole"][name]
        assert figures["queries"][name] == len(known)
    of_all = figures["map"]["match"]
    sleeve, colour = (figures["queries"][name] for name in SCHEMA.names)
    # Over queries, not over attributes.
    weighted = (sleeve * of_all["sleeve"] + colour * of_all["colour"]) / (sleeve + colour)
    assert of_all["mean"] == pytest.approx(weighted)
    assert figures["triplets"]["subspace"]["colour"] > 0.9
    assert figures["triplets"]["random"]["colour"] == pytest.approx(0.5, abs=0.15)
    text = as_text(figures, SCHEMA)
    assert f"{100 * leak[0, 1]:.1f}" in text and "triplets" in text


def test_an_attribute_without_queries_is_left_out_and_queries_without_answers_are_counted():
    embeddings, logits, _, labels = planted(20)
    labels[:] = UNKNOWN
    labels[:5, 1] = [0, 0, 0, 1, UNKNOWN]
    figures = similarity_figures(
        embeddings, logits, None, labels, SCHEMA, Benchmark.of_labels(labels)
    )
    assert list(figures["map"]) == ["subspace", "classifier", "whole", "random"]
    assert set(figures["map"]["whole"]) == {"mean", "colour"}
    assert figures["queries"] == {"colour": 3} and figures["unanswered"] == 1
    assert figures["leak"][0] == [None, None] and None not in figures["leak"][1]
    assert "1 queries have no candidate" in as_text(figures, SCHEMA)


def test_the_most_queries_are_spread_and_candidates_stay():
    labels = planted(50, missing=0)[3]
    benchmark = Benchmark.of_labels(labels, most=7)
    assert benchmark.queries.sum(axis=0).tolist() == [7, 7]
    assert benchmark.queries[[0, 49]].all() and benchmark.candidates.all()


def test_memory_is_that_of_a_block(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", 1 << 16)
    items = 4000
    embeddings, _, _, labels = planted(items, missing=0)
    benchmark = Benchmark.of_labels(labels, most=200)
    ranking = subspaces(embeddings)[0]
    tracemalloc.start()
    average_precisions(ranking, labels, benchmark, [0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All at once would be 200 x 4,000 float32 = 3.2 MB beside the 0.3 MB of a block.
    assert peak < 2_000_000
