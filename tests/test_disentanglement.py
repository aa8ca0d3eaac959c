"""Metrics of disentanglement against values worked out by hand, plain loops and other libraries."""

import itertools
import math

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import entropy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, mutual_info_score, roc_auc_score

from adde.disentanglement import (
    beta_vae,
    code,
    dci,
    downstream,
    explicitness,
    factor_vae,
    irs,
    mig,
    modularity,
    probe,
    rf_metric_2,
    sap,
    unsupervised,
)
from adde.disentanglement.information import BINS, in_bins, information, mutual_information
from adde.disentanglement.prediction import dci_of
from adde.errors import UserError

SIZES = (3, 4, 2, 5)
N = 15_000


@pytest.fixture(scope="module")
def labels():
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(size, size=N) for size in SIZES], axis=1)


@pytest.fixture(scope="module")
def binary():
    """Two factors of values -1 and 1, every combination equally often."""
    return np.array([*itertools.product((0, 1), (0, 1))] * (N // 4))


@pytest.fixture(scope="module")
def noisy(labels):
    """Codes that say something of every factor, and more than one of some."""
    rng = np.random.default_rng(1)
    mixed = labels @ rng.normal(size=(4, 6)) + labels[:, [0, 1, 2, 3, 0, 1]] * 2
    return code(mixed + rng.normal(size=mixed.shape), labels)


def test_codes_that_are_the_factors(labels):
    coded = code(labels * [1.0, -2.0, 0.5, 3.0], labels)
    # Whatever is held fixed does not vary, and a latent names its factor.
    assert beta_vae(coded) == factor_vae(coded) == rf_metric_2(coded) == 1
    assert irs(coded) == pytest.approx(1)
    # I of the own latent is H; of another it is the bias of counts alone.
    assert mig(coded) > 0.99
    assert modularity(coded) > 0.999
    figures = dci(coded)
    assert min(figures.values()) > 0.999
    assert list(figures) == [
        "dci_lgbm_disentanglement",
        "dci_lgbm_completeness",
        "dci_lgbm_informativeness",
    ]
    assert explicitness(coded) > 0.99
    free = unsupervised(coded.codes)
    assert max(free["gaussian_tc"], free["wasserstein_relative"], free["code_information"]) < 0.002


def test_sap_of_factors(labels):
    # One machine against the rest tells two or three values in a row apart: 1 - chance.
    two_and_three = labels[:, [0, 2]]
    assert sap(code(two_and_three, two_and_three)) == pytest.approx((2 / 3 + 1 / 2) / 2, abs=0.02)


def test_probes_of_blocks_that_are_one_hot(labels):
    hot = np.concatenate([np.eye(size)[labels[:, k]] for k, size in enumerate(SIZES)], axis=1)
    coded = code(hot, labels, list("abcd"), np.repeat(list("abcd"), SIZES))
    probes = probe(coded)
    np.testing.assert_array_equal(np.diag(probes.accuracy), 1)
    off = ~np.eye(4, dtype=bool)
    assert np.abs(probes.accuracy - probes.chance)[off].max() < 0.04
    figures = probes.figures()
    assert figures["mig_v"] > 0.98
    assert figures["modularity_v"] > 0.999
    assert figures["leak"] < 0.02
    # The best is 1, the second chance.
    assert figures["sap_v"] == pytest.approx(1 - probes.chance.mean(), abs=0.02)
    assert dci(coded)["dci_lgbm_disentanglement"] > 0.999
    assert factor_vae(coded) == rf_metric_2(coded) == 1


def test_factors_rotated_by_45_degrees(binary):
    values = 2 * binary - 1
    coded = code(values @ np.array([[1, 1], [1, -1]]) / math.sqrt(2), binary)
    # A latent has -sqrt 2, 0, sqrt 2 at 1/4, 1/2, 1/4: it says half a bit of either factor.
    assert information(coded) == pytest.approx(np.full((2, 2), math.log(2) / 2), abs=0.01)
    assert mig(coded) < 0.02
    assert modularity(coded) < 0.1
    assert sap(coded) < 0.03
    # Held fixed, either factor leaves both latents the same variance.
    for by_votes in (beta_vae, factor_vae, rf_metric_2):
        assert by_votes(coded) == pytest.approx(0.5, abs=0.06)
    # Given a factor a latent is sqrt(1/2) from its mean, and sqrt 2 at most without.
    assert irs(coded) == pytest.approx(0.5, abs=0.02)
    assert explicitness(coded) == 1  # both together say all, linearly
    free = unsupervised(coded.codes)
    assert free["gaussian_tc"] == pytest.approx(0, abs=1e-3)  # uncorrelated, yet
    assert free["code_information"] == pytest.approx(math.log(2), abs=1e-3)


def test_codes_of_noise(labels):
    coded = code(np.random.default_rng(2).normal(size=(N, 6)), labels)
    assert mig(coded) < 0.02
    assert sap(coded) < 0.04
    assert explicitness(coded) == pytest.approx(0.5, abs=0.03)
    figures = dci(coded)
    assert figures["dci_lgbm_disentanglement"] < 0.1
    chance = np.mean([1 / size for size in SIZES])
    assert figures["dci_lgbm_informativeness"] == pytest.approx(chance, abs=0.03)
    assert beta_vae(coded) == pytest.approx(1 / 4, abs=0.04)
    assert factor_vae(coded) == pytest.approx(1 / 4, abs=0.04)
    probes = probe(coded).figures()
    assert probes["mig_v"] < 0.01
    assert probes["leak"] < 0.04


def test_factors_written_twice(binary):
    twice = (2 * binary - 1)[:, [0, 0, 1, 1]].astype(float)
    coded = code(twice, binary)
    # The best and the second latent are copies.
    assert mig(coded) == sap(coded) == 0
    assert probe(coded).figures()["mig_v"] == 0
    assert probe(coded).figures()["leak"] == 1
    # Each latent is of one factor all the same.
    assert modularity(coded) == pytest.approx(1, abs=1e-3)
    assert factor_vae(coded) == beta_vae(coded) == rf_metric_2(coded) == 1
    assert dci(coded)["dci_lgbm_disentanglement"] == pytest.approx(1)
    # Of importances that copies share, completeness loses log 2 of log 4.
    assert dci_of(np.array([[1, 0], [1, 0], [0, 1], [0, 1.0]])) == pytest.approx((1, 0.5))
    free = unsupervised(twice)
    assert free["gaussian_tc"] == math.inf
    # S has twos blocks of ones: trace 4, and roots of D^1/2 S D^1/2 sum to 2 sqrt 2.
    assert free["wasserstein"] == pytest.approx(8 - 4 * math.sqrt(2), abs=1e-3)
    # Two of six pairs are copies, of information ln 2.
    assert free["code_information"] == pytest.approx(math.log(2) / 3, abs=1e-3)


def test_information_as_sklearn_has_it(noisy):
    train = noisy.codes[noisy.train]
    table = information(noisy)
    for latent, factor in itertools.product(range(6), range(4)):
        edges = np.histogram(train[:, latent], BINS)[1][:-1]
        expected = mutual_info_score(
            np.digitize(train[:, latent], edges), noisy.labels[noisy.train, factor]
        )
        assert table[latent, factor] == pytest.approx(expected, abs=2e-3)
    gaps, modular = [], []
    for column, size_labels in zip(table.T, noisy.labels[noisy.train].T):
        best, second = sorted(column.tolist(), reverse=True)[:2]
        gaps.append((best - second) / entropy(np.bincount(size_labels)))
    for row in table:
        best = int(np.argmax(row))
        rest = sum(value**2 for place, value in enumerate(row) if place != best)
        modular.append(1 - rest / (3 * row[best] ** 2))
    assert mig(noisy) == pytest.approx(np.mean(gaps))
    assert modularity(noisy) == pytest.approx(np.mean(modular))


def test_votes_as_plain_loops_have_them(noisy):
    rng = np.random.default_rng(3)
    deviation = noisy.codes.std(axis=0, ddof=1)
    votes = {"least": [], "most": []}
    for _ in range(4000):
        factor = int(rng.integers(4))
        values = noisy.labels[rng.integers(N)]
        same = np.flatnonzero(noisy.labels[:, factor] == values[factor])
        spread = np.var(noisy.codes[rng.choice(same, 64)] / deviation, axis=0, ddof=1)
        votes["least"].append((int(spread.argmin()), factor))
        rest = np.delete(np.arange(4), factor)
        line = np.flatnonzero((noisy.labels[:, rest] == values[rest]).all(axis=1))
        spread = np.var(noisy.codes[rng.choice(line, 100)] / deviation, axis=0, ddof=1)
        votes["most"].append((int(spread.argmax()), factor))
    expected = {}
    for name, pairs in votes.items():
        table = np.zeros((6, 4))
        for vote, factor in pairs[:3000]:
            table[vote, factor] += 1
        expected[name] = np.mean([table[vote].argmax() == factor for vote, factor in pairs[3000:]])
    assert 0.3 < expected["least"] < 0.97
    assert factor_vae(noisy) == pytest.approx(expected["least"], abs=0.04)
    assert rf_metric_2(noisy) == pytest.approx(expected["most"], abs=0.05)


def test_beta_vae_as_plain_loops_have_it(noisy):
    rng = np.random.default_rng(4)
    features, factors = [], []
    for _ in range(4500):
        factor = int(rng.integers(4))
        first = rng.integers(N, size=64)
        second = [
            rng.choice(members[factor][noisy.labels[row, factor]])
            for members in [_members(noisy.labels)]
            for row in first
        ]
        features.append(np.abs(noisy.codes[first] - noisy.codes[second]).mean(axis=0))
        factors.append(factor)
    model = LogisticRegression(max_iter=1000).fit(features[:3000], factors[:3000])
    assert beta_vae(noisy) == pytest.approx(model.score(features[3000:], factors[3000:]), abs=0.04)


_MEMBERS = {}


def _members(labels):
    if id(labels) not in _MEMBERS:
        _MEMBERS[id(labels)] = [
            [np.flatnonzero(column == value) for value in range(size)]
            for column, size in zip(labels.T, SIZES)
        ]
    return _MEMBERS[id(labels)]


def test_dci_of_importances_as_scipy_has_it():
    table = np.random.default_rng(5).gamma(0.4, size=(7, 4))
    shares = table / table.sum(axis=0)
    weights = shares.sum(axis=1) / shares.sum()
    one_factor = [1 - entropy(row, base=4) for row in shares]
    one_block = [1 - entropy(column, base=7) for column in shares.T]
    expected = np.dot(weights, one_factor), np.mean(one_block)
    assert dci_of(table) == pytest.approx(expected)
    assert dci_of(np.ones((7, 4))) == pytest.approx((0, 0))
    assert dci_of(np.zeros((7, 4))) == (0, 0)


def test_dci_of_both_kinds_of_trees(noisy):
    few = code(noisy.codes[:1500], noisy.labels[:1500])
    lgbm, sklearn = dci(few), dci(few, "sklearn")
    assert list(sklearn) == [name.replace("lgbm", "sklearn") for name in lgbm]
    assert [*lgbm.values()] == pytest.approx([*sklearn.values()], abs=0.1)
    assert [*lgbm.values()] == [*dci(few).values()]


def test_irs_as_plain_loops_have_it(noisy):
    codes, labels = noisy.codes[noisy.train], noisy.labels[noisy.train]
    best, weights = [], []
    for column in codes.T:
        furthest = max(abs(column - column.mean()))
        robust = []
        for factor, size in enumerate(SIZES):
            moved = [
                np.percentile(abs(own - own.mean()), 99)
                for value in range(size)
                for own in [column[labels[:, factor] == value]]
            ]
            robust.append(1 - sum(moved) / size / furthest)
        best.append(max(robust))
        weights.append(furthest)
    assert irs(noisy) == pytest.approx(np.average(best, weights=weights))


def test_unsupervised_as_scipy_has_it(noisy):
    covariance = np.cov(noisy.codes.T)
    alone = np.diag(np.diag(covariance))
    root = np.real(sqrtm(covariance))
    distance = np.trace(covariance + alone - 2 * np.real(sqrtm(root @ alone @ root)))
    found = unsupervised(noisy.codes)
    expected = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    assert found["gaussian_tc"] == pytest.approx(expected)
    assert found["wasserstein"] == pytest.approx(distance)
    assert found["wasserstein_relative"] == pytest.approx(distance / np.trace(covariance))
    binned = in_bins(noisy.codes)
    pairs = [mutual_info_score(*binned.T[[i, j]]) for i, j in itertools.combinations(range(6), 2)]
    assert found["code_information"] == pytest.approx(np.mean(pairs))


@pytest.fixture(scope="module")
def compared():
    """Codes on which disent 0.8.0 was run, with the same items to learn from and to score."""
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(size, size=6000) for size in SIZES], axis=1)
    codes = labels @ rng.normal(size=(4, 6)) + labels[:, [0, 1, 2, 3, 0, 1]] * 2
    codes = codes + rng.normal(size=codes.shape)
    return code((codes - codes.mean(axis=0)) / codes.std(axis=0), labels)


def test_figures_as_disent_has_them(compared):
    assert mig(compared) == pytest.approx(0.1975340015760665, abs=1e-9)
    assert sap(compared) == pytest.approx(0.119125, abs=2e-3)
    free = unsupervised(compared.codes)
    assert free["gaussian_tc"] == pytest.approx(1.863377757522122, abs=1e-9)
    assert free["wasserstein"] == pytest.approx(1.5382320637701065, abs=1e-9)


@pytest.mark.slow
def test_dci_as_disent_has_it(compared):
    expected = (0.4676, 0.4397, 0.8978)
    assert [*dci(compared, "sklearn").values()] == pytest.approx(expected, abs=0.005)


def test_a_dead_latent_changes_no_score_without_labels(noisy):
    dead = np.column_stack([noisy.codes, np.full(N, 3.0)])
    before, after = unsupervised(noisy.codes), unsupervised(dead)
    assert after["gaussian_tc"] == pytest.approx(before["gaussian_tc"])
    assert after["wasserstein"] == pytest.approx(before["wasserstein"])
    # 15 pairs of 6 latents are 21 of 7.
    assert after["code_information"] == pytest.approx(before["code_information"] * 15 / 21)
    coded = code(dead, noisy.labels)
    for metric in (mig, factor_vae, irs, sap):
        assert metric(coded) == pytest.approx(metric(noisy))
    assert modularity(coded) == pytest.approx(modularity(noisy) * 6 / 7)


def test_explicitness_and_probes_as_sklearn_has_them(noisy):
    train, test = noisy.train, noisy.test
    codes = (noisy.codes - noisy.codes[train].mean(axis=0)) / noisy.codes[train].std(axis=0)
    areas, probes = [], probe(noisy)
    for factor, size in enumerate(SIZES):
        values, expected = noisy.labels[train, factor], noisy.labels[test, factor]
        chances = LogisticRegression().fit(codes[train], values).predict_proba(codes[test])
        hot = np.eye(size)[expected]
        areas.append(roc_auc_score(hot, chances))
        for latent in range(6):
            model = LogisticRegression().fit(codes[train][:, [latent]], values)
            chances = model.predict_proba(codes[test][:, [latent]])
            known = entropy(np.bincount(expected)) - log_loss(expected, chances)
            assert probes.information[latent, factor] == pytest.approx(max(0, known), abs=1e-9)
            accuracy = (chances.argmax(axis=1) == expected).mean()
            assert probes.accuracy[latent, factor] == accuracy
    assert explicitness(noisy) == pytest.approx(np.mean(areas))


def test_scale_of_codes_changes_nothing(noisy):
    scaled = code(noisy.codes * [1, 10, 100, 1e3, 1e4, 1e5], noisy.labels)
    for metric in (mig, modularity, factor_vae, rf_metric_2, sap, explicitness):
        assert metric(scaled) == pytest.approx(metric(noisy), abs=2e-3), metric.__name__


def test_rotation_within_blocks_changes_no_block_metric(labels, noisy):
    rng = np.random.default_rng(6)
    turn = np.zeros((6, 6))
    turn[:3, :3], turn[3:, 3:] = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    blocks = ["left"] * 3 + ["right"] * 3
    before, after = (
        code(noisy.codes, labels, None, blocks),
        code(noisy.codes @ turn, labels, None, blocks),
    )
    assert before.blocks == ("left", "right")
    assert factor_vae(after) == pytest.approx(factor_vae(before))
    assert rf_metric_2(after) == pytest.approx(rf_metric_2(before))
    assert probe(after).accuracy == pytest.approx(probe(before).accuracy, abs=0.02)


def test_a_copy_in_a_wrong_block_is_seen_in_the_leakage_matrix(labels):
    rng = np.random.default_rng(7)
    hot = [np.eye(size)[labels[:, k]] for k, size in enumerate(SIZES)]
    hot[1] = np.column_stack([hot[1], labels[:, 2] + rng.normal(size=N)])
    codes = np.concatenate(hot, axis=1)
    coded = code(codes, labels, list("abcd"), np.repeat(list("abcd"), [len(h.T) for h in hot]))
    probes = probe(coded)
    assert probes.accuracy[1, 2] > 0.65 > 0.55 > probes.accuracy[0, 2]
    assert probes.figures()["leak"] > 0.05


def test_pruned_blocks_have_no_vote(labels):
    codes = labels * 0.01
    assert factor_vae(code(codes, labels)) == 0
    assert factor_vae(code(codes, labels), active=0) == 1


def test_unknown_labels_count_in_no_metric(labels):
    rng = np.random.default_rng(8)
    known = np.where(rng.random(labels.shape) < 0.3, -1, labels)
    coded = code(labels.astype(float), known)
    assert min(beta_vae(coded), factor_vae(coded), mig(coded), irs(coded)) > 0.99
    assert min(dci(coded).values()) > 0.99
    missing = f"{(known < 0).any(axis=1).sum():,}"
    with pytest.raises(UserError, match=f"found {missing} items with unknown"):
        rf_metric_2(coded)


def test_values_that_no_item_has_do_not_count(labels):
    spread = labels * 7
    coded = code(labels.astype(float), spread)
    assert coded.sizes == SIZES
    assert rf_metric_2(coded) == 1


def test_downstream_tasks(labels):
    hot = np.concatenate([np.eye(size)[labels[:, k]] for k, size in enumerate(SIZES)], axis=1)
    coded = code(hot + 0.3 * np.random.default_rng(9).normal(size=hot.shape), labels)
    for model in ("linear", "lgbm"):
        figures = downstream(coded, (10, 100, 1000), model)
        assert figures[f"downstream_{model}@1000"] > 0.9
        assert figures[f"downstream_{model}@10"] < figures[f"downstream_{model}@1000"]
        ratio = figures[f"downstream_{model}@100"] / figures[f"downstream_{model}@1000"]
        assert figures[f"downstream_{model}_efficiency"] == ratio
    few = code(hot[:600], labels[:600])
    with pytest.raises(UserError, match=r"expected 1,000 labelled .* found 400; .* give 1,500"):
        downstream(few, (10, 1000))


def _grid_with_a_hole():
    grid = np.array([*itertools.product(range(3), range(4))] * 20)
    return grid[~(grid == (1, 2)).all(axis=1)]


def test_an_exact_draw_refuses_a_grid_with_a_hole():
    grid = _grid_with_a_hole()
    coded = code(grid.astype(float), grid, ["scale", "shape"])
    with pytest.raises(
        UserError, match=r"each of 3 x 4 = 12 combinations of scale, shape, found 11"
    ):
        rf_metric_2(coded)
    assert factor_vae(coded) > 0.99  # needs none


def test_a_value_of_one_item_is_shared_by_none(labels):
    few = labels.copy()
    few[few[:, 0] == 2, 0] = 1
    few[17, 0] = 2
    coded = code(few.astype(float), few)
    with pytest.raises(UserError, match="'factor 0': expected at least two items of each value"):
        factor_vae(coded)


def _codes(rng):
    return rng.normal(size=(200, 3))


def _labels(rng):
    return rng.integers(4, size=(200, 2))


BAD = {
    "codes of one axis": (lambda c, y: (c[:, 0], y), "expected real numbers .* found float64 .200"),
    "codes of words": (lambda c, y: (c.astype(str), y), "codes: expected real numbers"),
    "codes NaN": (lambda c, y: (np.where(c == c[7, 1], np.nan, c), y), "item 7, latent 1"),
    "codes constant": (lambda c, y: (np.ones_like(c), y), "found 3 that are all constant"),
    "few items": (lambda c, y: (c[:99], y[:99]), "at least 100 items, found 99"),
    "other lengths": (lambda c, y: (c[:150], y), r"expected whole numbers \(150 items"),
    "one factor": (lambda c, y: (c, y[:, :1]), "at least two factors to tell apart, found 1"),
    "a factor of one value": (
        lambda c, y: (c, y * [1, 0]),
        r"'factor 1': .* two values, found \[0\]",
    ),
    "nothing known": (lambda c, y: (c, y * [1, 0] - [0, 1]), r"found \[\] among 0 labelled"),
    "continuous": (lambda c, y: (c, y + 0.5), "'factor 0': expected whole numbers, found .*bins"),
    "NaN label": (
        lambda c, y: (c, np.where(y == 3, np.nan, y)),
        "expected whole numbers, found nan",
    ),
    "a value an item": (
        lambda c, y: (c, np.column_stack([y[:, 0], np.arange(200)])),
        "'factor 1': expected values that items share, found 200 values of 200",
    ),
    "below unknown": (lambda c, y: (c, y - 2), "'factor 0': expected values from 0, .* found -2"),
}


@pytest.mark.parametrize("damage, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(damage, message):
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=message):
        code(*damage(_codes(rng), _labels(rng)))


def test_bad_names_are_named():
    rng = np.random.default_rng(0)
    codes, labels = _codes(rng), _labels(rng)
    with pytest.raises(UserError, match="expected 2 names as of the labels, found 1"):
        code(codes, labels, ["a"])
    with pytest.raises(UserError, match="the block of each of 3 latents, found 2"):
        code(codes, labels, None, ["a", "b"])


def test_mutual_information_is_never_negative():
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = rng.integers(3, size=(2, 30))
        assert mutual_information(first, second) >= 0
