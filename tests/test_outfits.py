"""Outfits: figures and scorers, compared with plain loops, enumeration and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from adde.outfits import (
    SMOOTHING,
    BilinearScorer,
    Blank,
    Hidden,
    OutfitBenchmark,
    RandomScorer,
    Scorer,
    SimilarityScorer,
    StyleScorer,
    as_text,
    compatibility_auc,
    cooccurrence,
    fill_in_the_blank,
    hide_items,
    outfit_figures,
    retrieval_recall,
    value_features,
)
from adde.schema import UNKNOWN, Attribute, Schema
from adde.scoring import Calibration

SCHEMA = Schema(
    (Attribute("colour", ("red", "blue", "grey")), Attribute("kind", ("plain", "dots")))
)
PRIOR = np.array([0.5, 0.3, 0.2])


class Given(Scorer):
    """Scores items by numbers of their own, whatever the outfit."""

    def __init__(self, scores):
        self.scores = np.asarray(scores, np.float64)

    def complete(self, outfit, candidates):
        return self.scores[candidates]


def rows(*values):
    return np.array(values, np.int64)


def world(outfits=400, seed=0):
    """Outfits of three categories from three styles: labels, categories, rows, the tables."""
    rng = np.random.default_rng(seed)
    colours = rng.dirichlet((0.4, 0.4, 0.4), size=(3, 3))
    kinds = rng.dirichlet((0.4, 0.4), size=(3, 3))
    values = np.concatenate([colours, kinds], axis=2) * 0.9 + np.repeat([0.1 / 3, 0.05], (3, 2))
    labels, categories = [], []
    for style in rng.choice(3, p=PRIOR, size=outfits):
        for category in range(3):
            colour = rng.choice(3, p=values[style, category, :3])
            # The last category has no kind.
            kind = UNKNOWN if category == 2 else rng.choice(2, p=values[style, category, 3:])
            labels.append([colour, kind])
            categories.append(category)
    whole = np.arange(3 * outfits).reshape(outfits, 3)
    return np.array(labels), np.array(categories), list(whole), values


def benchmark_of(outfits, categories, seed=0):
    rng = np.random.default_rng(seed)
    by_category = [np.flatnonzero(categories == c) for c in range(3)]
    ids = [f"item{row}" for row in range(len(categories))]
    blanks, clashing = [], []
    for outfit in outfits:
        place = rng.integers(3)
        others = rng.choice(np.setdiff1d(by_category[place], outfit), 3, replace=False)
        answers = np.insert(others, truth := rng.integers(4), outfit[place])
        blanks.append(Blank(np.delete(outfit, place), answers, int(truth)))
        clashing.append(np.array([rng.choice(by_category[c]) for c in categories[outfit]]))
    hidden = hide_items(outfits, ids, categories)
    return OutfitBenchmark(blanks, outfits, clashing, hidden, categories)


def test_a_constant_scorer_gets_one_in_four_wherever_the_truth_stands():
    blanks = [Blank(rows(0), rows(1, 2, 3, 4), truth) for truth in (0, 0, 0, 3)]
    constant = Given(np.zeros(41))
    assert fill_in_the_blank(constant, blanks) == 0.25
    assert compatibility_auc(constant, [rows(0, 1)], [rows(2, 3), rows(1, 4)]) == 0.5
    hidden = [Hidden(rows(0), 2, np.arange(1, 41))]
    found = retrieval_recall(constant, hidden, np.zeros(41, np.int64))
    assert found == {"recall@10": 0.25, "recall@30": 0.75, "recall@50": 1}


def test_fill_in_the_blank_shares_the_credit_of_ties():
    scorer = Given([0, 5, 5, 1, 0])
    cases = {0: 0.5, 1: 0.5, 2: 0, 3: 0}
    for truth, credit in cases.items():
        blank = Blank(rows(0), rows(1, 2, 3, 4), truth)
        assert fill_in_the_blank(scorer, [blank]) == credit


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    st.lists(st.integers(-3, 3), min_size=1, max_size=8),
)
def test_auc_equals_that_of_scikit_learn(right, wrong):
    scorer = Given([*right, *wrong])
    places = [rows(i, i) for i in range(len(scorer.scores))]
    found = compatibility_auc(scorer, places[: len(right)], places[len(right) :])
    truth = [1] * len(right) + [0] * len(wrong)
    assert found == pytest.approx(roc_auc_score(truth, scorer.scores))


def test_compatibility_is_the_mean_over_pairs_whatever_the_length():
    embeddings = np.random.default_rng(0).standard_normal((6, 2, 3)).astype(np.float32)
    unit = embeddings.reshape(6, 6) / np.linalg.norm(embeddings.reshape(6, 6), axis=1)[:, None]
    for outfit in (rows(0, 1), rows(2, 0, 5, 4)):
        pairs = [unit[i] @ unit[j] for i, j in itertools.combinations(outfit, 2)]
        found = SimilarityScorer(embeddings).compatibility(outfit)
        assert found == pytest.approx(np.mean(pairs), abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=70), st.data())
def test_recall_is_the_mean_over_orders_of_those_that_score_alike(scores, data):
    truth = data.draw(st.integers(0, len(scores) - 1))
    found = retrieval_recall(
        Given(scores), [Hidden(rows(0), truth, np.arange(len(scores)))], np.zeros(70, np.int64)
    )
    rng = np.random.default_rng(0)
    ranks = []
    for _ in range(300):
        order = np.lexsort((rng.random(len(scores)), -np.array(scores)))
        ranks.append(int(np.flatnonzero(order == truth)[0]))
    for k in (10, 30, 50):
        assert found[f"recall@{k}"] == pytest.approx(np.mean(np.array(ranks) < k), abs=0.15)


def test_recall_is_the_mean_over_categories():
    # Four questions of category 0 found, one of category 1 not found.
    candidates = np.arange(100)
    scorer = Given(-candidates)
    categories = np.repeat([0, 1], 50)
    hidden = [Hidden(rows(0), truth, candidates) for truth in (1, 2, 3, 4, 99)]
    assert retrieval_recall(scorer, hidden, categories)["recall@10"] == 0.5


def test_hidden_items_are_the_same_on_every_run_and_never_among_the_given():
    _, categories, outfits, _ = world(30)
    ids = [f"item{row}" for row in range(90)]
    hidden = hide_items(outfits, ids, categories, most=8)
    again = hide_items(outfits[::-1], ids, categories, most=8)[::-1]
    places = set()
    for outfit, question, other in zip(outfits, hidden, again):
        assert sorted([*question.outfit, question.truth]) == outfit.tolist()
        assert question.truth in question.candidates
        assert not set(question.outfit) & set(question.candidates)
        assert set(categories[question.candidates]) == {categories[question.truth]}
        assert 8 <= len(question.candidates) <= 9
        assert (question.truth, *question.candidates) == (other.truth, *other.candidates)
        places.add(outfit.tolist().index(question.truth))
    assert places == {0, 1, 2}


def test_co_occurrence_equals_counting_pairs():
    labels, categories, outfits, _ = world(40)
    features = SCHEMA.multi_hot(labels)
    table = cooccurrence(features, categories, 3, outfits, SCHEMA)
    assert table.shape == (3, 3, 5, 5) and table.dtype == np.float32
    blocks = {0: (0, 3), 1: (0, 3), 2: (0, 3), 3: (3, 5), 4: (3, 5)}
    for c, d, u, v in itertools.product(range(3), range(3), range(5), range(5)):
        pairs = [
            (features[i], features[j])
            for outfit in outfits
            for i in outfit
            for j in outfit
            if i != j and categories[i] == c and categories[j] == d
        ]
        (a, b), (e, f) = blocks[u], blocks[v]
        both = [(x[a:b], y[e:f]) for x, y in pairs if x[a:b].any() and y[e:f].any()]
        n = sum(x[u - a] * y[v - e] for x, y in both)
        expected = 0.0
        if both:
            expected = sum(x[u - a] for x, _ in both) * sum(y[v - e] for _, y in both) / len(both)
        wanted = math.log((n + SMOOTHING) / (expected + SMOOTHING))
        assert table[c, d, u, v] == pytest.approx(wanted, abs=1e-5)


def test_a_bilinear_outfit_is_one_query():
    rng = np.random.default_rng(0)
    features = rng.random((20, 5)).astype(np.float32)
    categories = rng.integers(3, size=20)
    table = rng.standard_normal((3, 3, 5, 5)).astype(np.float32)
    scorer = BilinearScorer(features, categories, table)
    outfit, candidates = rows(0, 1, 2, 3), np.arange(4, 20)
    found = scorer.complete(outfit, candidates)
    for score, g in zip(found, candidates):
        pairs = [features[i] @ table[categories[i], categories[g]] @ features[g] for i in outfit]
        assert score == pytest.approx(np.mean(pairs), abs=1e-5)


def test_the_oracle_equals_enumeration():
    labels, categories, _, values = world(5)
    scorer = StyleScorer.of_tables(PRIOR, values, labels, categories, SCHEMA)

    def likelihood(row, style):
        colour, kind = labels[row]
        shown = values[style, categories[row], colour]
        return shown * (1 if kind == UNKNOWN else values[style, categories[row], 3 + kind])

    def together(*items):
        return sum(
            PRIOR[s] * math.prod(likelihood(row, s) for row in items) for s in range(len(PRIOR))
        )

    outfit, candidates = rows(0, 4), rows(2, 5, 8, 11)
    for score, g in zip(scorer.complete(outfit, candidates), candidates):
        wanted = together(0, 4, g) / together(0, 4) / together(g)
        assert score == pytest.approx(math.log(wanted))
    wanted = together(0, 4, 8) / (together(0) * together(4) * together(8))
    assert scorer.compatibility(rows(0, 4, 8)) == pytest.approx(math.log(wanted))


def test_the_oracle_is_not_beaten_and_co_occurrence_comes_near():
    labels, categories, outfits, values = world(2400)
    train, test = outfits[:1600], outfits[1600:]
    features = SCHEMA.multi_hot(labels)
    figures = outfit_figures(
        {
            "random": RandomScorer(),
            "similarity": SimilarityScorer(features),
            "pmi": BilinearScorer(
                features, categories, cooccurrence(features, categories, 3, train, SCHEMA)
            ),
            "oracle": StyleScorer.of_tables(PRIOR, values, labels, categories, SCHEMA),
        },
        benchmark_of(test, categories),
    )
    found = figures["scorers"]
    assert found["random"]["fitb"] == pytest.approx(0.25, abs=0.05)
    assert found["random"]["auc"] == pytest.approx(0.5, abs=0.05)
    for name, noise in (("fitb", 0.02), ("auc", 0.01), ("recall@10", 0.01)):
        best = found["oracle"][name]
        assert all(of_scorer[name] <= best + noise for of_scorer in found.values())
        assert found["pmi"][name] > max(found["random"][name], found["similarity"][name])
    assert found["pmi"]["fitb"] > 0.25 + 0.7 * (found["oracle"]["fitb"] - 0.25)
    text = as_text(figures)
    assert f"{found['pmi']['auc']:.3f}" in text and "fitb 800" in text


def test_figures_that_are_not_asked_for_are_absent():
    benchmark = OutfitBenchmark([], [rows(0, 1)], [], [], rows(0, 1))
    assert outfit_figures({"random": RandomScorer()}, benchmark)["scorers"] == {"random": {}}
    as_text(outfit_figures({"random": RandomScorer()}, benchmark))


def test_features_are_beliefs_without_absence():
    logits = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    presence = np.random.default_rng(1).standard_normal((4, 2)).astype(np.float32)
    beliefs = Calibration((1.0, 1.0), (1.0, 1.0), 0.01, 2.0).beliefs(logits, presence, SCHEMA)
    found = value_features(beliefs, SCHEMA)
    assert found.shape == (4, 5)
    there = 1 / (1 + np.exp(-presence))
    np.testing.assert_allclose(found[:, :3].sum(axis=1), there[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:].sum(axis=1), there[:, 1], rtol=1e-5)
