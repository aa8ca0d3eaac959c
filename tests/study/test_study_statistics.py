"""Statistics of a study against other libraries, loops and cases worked out by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression

from adde.study.results import Models
from adde.study.statistics import (
    best_cell,
    chance_to_beat,
    expected_by_chance,
    explained,
    explained_interval,
    numbered,
    rank_correlations,
    seed_spread,
    selection,
)


def test_explained_variance_is_that_of_a_regression_on_the_groups():
    rng = np.random.default_rng(0)
    groups = rng.integers(5, size=40)
    values = groups * 0.3 + rng.normal(size=40)
    one_hot = np.eye(5)[groups]
    wanted = LinearRegression().fit(one_hot, values).score(one_hot, values)
    assert explained(values, groups) == pytest.approx(wanted)
    assert np.isnan(explained(np.ones(4), np.array([0, 0, 1, 1])))


def test_explained_variance_of_noise_is_its_expectation():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(14), 3)
    assert explained(rng.normal(size=(2000, 42)), groups).mean() == pytest.approx(
        expected_by_chance(42, 14), abs=0.01
    )


def test_intervals_of_explained_variance():
    cells = np.repeat(np.arange(6), 10)
    method = cells // 2
    rng = np.random.default_rng(2)
    means = rng.normal(size=6)
    values = means[cells] + 0.4 * rng.normal(size=60)
    low, high = explained_interval(values, method, cells)
    assert low < explained(values, method) < high
    # Where seeds do not count, nothing is uncertain.
    assert explained_interval(means[cells], cells, cells) == pytest.approx((1, 1))
    # The drawn variance between seeds is the one found, not (n - 1) / n of it.
    noise = rng.normal(size=600)
    pairs = np.repeat(np.arange(300), 2)
    assert explained_interval(noise, np.zeros(600, int), pairs) == pytest.approx((0, 0))
    low, high = explained_interval(noise, pairs, pairs)
    between = np.bincount(pairs, noise) / 2
    within = ((noise - between[pairs]) ** 2).sum()
    # A mean of two draws varies by half of their variance: within, which is n sigma^2 / 2, adds
    # itself to the variance of the means.
    total = ((noise - noise.mean()) ** 2).sum()
    assert low < 1 - within / (total + within) < high


def test_rank_correlations_are_spearmans():
    rng = np.random.default_rng(3)
    columns = rng.integers(6, size=(4, 30)).astype(float)
    wanted = spearmanr(columns.T).statistic
    np.testing.assert_allclose(rank_correlations([*columns]), wanted, atol=1e-12)
    with np.errstate(all="raise"):
        assert np.isnan(rank_correlations([columns[0], np.ones(30)])[0, 1])


def test_groups_and_spread():
    assert numbered([("a", 1), ("b", 1), ("a", 1), ("a", 2)]).tolist() == [0, 1, 0, 2]
    spread = seed_spread(np.array([1.0, 5, 4, 2]), np.array([0, 1, 0, 1]))
    assert spread.tolist() == [3, 3]


def test_chance_to_beat_a_random_model_by_hand():
    # Cells a and b, seeds 0 and 1. Of seed 1, a has the larger score (5 > 4): the model of a and
    # seed 0 scores 1, which beats none of four and ties with itself, 1/8. Of seed 0, b is larger
    # (2 > 1): b of seed 1 scores 4, beats 1 and 2, ties with itself: 5/8.
    values, cells, seed = np.array([1.0, 5, 2, 4]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    found = chance_to_beat(best_cell(values, cells), values, seed)
    assert found == pytest.approx((1 / 8 + 5 / 8) / 2)


def test_selection_by_scores_and_without_labels():
    rng = np.random.default_rng(4)
    method = tuple(np.repeat(["a", "b", "c"], 8))
    quality = np.repeat([0.0, 5.0, 10.0], 8) + rng.normal(size=24)
    scores = {
        "mig": quality,
        "sap": quality + rng.normal(size=24),
        "elbo": quality,
        "kl": quality,  # the smallest is taken, which is the worst here
    }
    seed = tuple(int(s) for s in np.tile(np.arange(8), 3))
    models = Models(method, np.repeat([1.0, 2.0, 1.0], 8), seed, scores, 0)
    found = dict(selection(models, ["mig", "sap"], ["elbo", "kl"]))
    assert list(found) == ["the same score", "another score, mean", "elbo", "kl"]
    for way in ("the same score", "another score, mean", "elbo"):
        # The best third: on average it beats the other two thirds and half of its own.
        assert found[way] == pytest.approx([5 / 6, 5 / 6], abs=1e-9)
    assert found["kl"] == pytest.approx([1 / 6, 1 / 6], abs=1e-9)
