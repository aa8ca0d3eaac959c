"""Attributes of several values, from mining to metrics, against loops over Python's sets."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adde import losses, metrics
from adde.edits import all_edits, wanted_metrics
from adde.methods.adde.calibration import temperatures
from adde.methods.adde.memory import multi_hot
from adde.metrics import Queries
from adde.mining import draw_edits, joint_labels, mine, semihard_negatives
from adde.schema import UNKNOWN, Attribute, Schema, label_of, values_of
from adde.shards.packing.groups import edit_groups, neighbour_in_group

SIZES = (2, 3)
SCHEMA = Schema((Attribute("kind", ("a", "b")), Attribute("colour", ("r", "g", "w"), True)))
OFFSETS = torch.tensor([0, 2])

# Items (kind, colours): a kind or -1, and a set of colours, empty if unknown.
tables = st.lists(
    st.tuples(st.integers(UNKNOWN, 1), st.frozensets(st.integers(0, 2))), min_size=1, max_size=12
)
seeds = st.integers(0, 999)


def label_table(items):
    return np.array([[kind, label_of(sorted(colours))] for kind, colours in items], np.int64)


def as_items(labels):
    return [(kind, frozenset(values_of(colours))) for kind, colours in np.asarray(labels).tolist()]


def is_known(item):
    return item[0] != UNKNOWN, bool(item[1])


@given(tables)
@settings(max_examples=40, deadline=None)
def test_joint_ids_are_equal_for_equal_sets(items):
    labels = torch.from_numpy(label_table(items))
    ids = joint_labels(labels, SIZES, SCHEMA.multiple).tolist()
    for (one, a), (two, b) in itertools.product(zip(items, ids), repeat=2):
        assert (a == b) == (one == two)
        assert (a == UNKNOWN) == (not any(is_known(one)))


@given(tables, seeds)
@settings(max_examples=40, deadline=None)
def test_triplets_of_sets_are_those_of_their_numbers(items, seed):
    labels = label_table(items)
    numbers = {colours: number for number, colours in enumerate({c for _, c in items if c})}
    plain = torch.tensor([[numbers.get(colours, UNKNOWN) for _, colours in items]])
    vectors = torch.randn(1, len(items), 4, generator=torch.Generator().manual_seed(seed))
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    expected = mine(vectors, plain, margin=0.5, impl="reference")
    for impl in ("reference", "tiled"):
        found = mine(vectors, torch.from_numpy(labels[:, 1])[None], margin=0.5, impl=impl)
        assert found.pairs.tolist() == expected.pairs.tolist()
        torch.testing.assert_close(found.loss_sum, expected.loss_sum)


@given(tables, seeds)
@settings(max_examples=60, deadline=None)
def test_drawn_edits_ask_for_one_value(items, seed):
    labels = torch.from_numpy(label_table(items))
    edits = draw_edits(
        labels, labels, torch.arange(len(items)), 31 * seed, OFFSETS, multiple=SCHEMA.multiple
    )
    for i, (kind, colours) in enumerate(items):
        exact = {
            j
            for j, (other, shown) in enumerate(items)
            if (other == kind and shown != colours and len(shown) == 1 and colours)
            or (shown == colours and other != kind and UNKNOWN not in (other, kind))
        }
        assert bool(edits.exact[i]) == bool(exact)
        if exact:
            assert int(edits.positive[i]) in exact
        (target,) = as_items(edits.targets[i : i + 1])
        positive = items[int(edits.positive[i])]
        if edits.usable[i]:
            assert target == (
                positive[0] if UNKNOWN not in (positive[0], kind) else kind,
                positive[1] if positive[1] and colours else colours,
            )
        else:
            assert target == items[i]


@given(tables, seeds)
@settings(max_examples=60, deadline=None)
def test_negatives_share_no_value_with_the_target(items, seed):
    labels = torch.from_numpy(label_table(items))
    count = len(items)
    edits = draw_edits(labels, labels, torch.arange(count), seed, OFFSETS, multiple=SCHEMA.multiple)
    draws = torch.Generator().manual_seed(seed)
    queries, refs = torch.nn.functional.normalize(
        torch.randn(2, count, 3, generator=draws, dtype=torch.float64), dim=-1
    )
    negative, found = semihard_negatives(
        queries, edits.targets, edits.positive, refs, labels, SCHEMA.multiple
    )
    for i, (kind, colours) in enumerate(as_items(edits.targets)):
        wrong = [
            j
            for j, (other, shown) in enumerate(items)
            if (UNKNOWN not in (kind, other) and kind != other)
            or (shown and colours and not shown & colours)
        ]
        assert bool(found[i]) == bool(wrong)
        if wrong:
            far = [float((queries[i] - r).square().sum()) for r in refs]
            beyond = [j for j in wrong if far[j] > far[int(edits.positive[i])]]
            best = min(beyond, key=far.__getitem__) if beyond else max(wrong, key=far.__getitem__)
            assert int(negative[i]) == best


@given(tables, seeds)
@settings(max_examples=30, deadline=None)
def test_classification_and_accuracy(items, seed):
    labels = torch.from_numpy(label_table(items))
    draws = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(items), 5, generator=draws, dtype=torch.float64)
    expected, right, known = 0.0, [0, 0], [0, 0]
    for a, part in enumerate(logits.split(SIZES, dim=1)):
        total = 0.0
        for row, item in zip(part.tolist(), items):
            values = sorted(item[1]) if a else [item[0]] * (item[0] != UNKNOWN)
            if not values:
                continue
            norm = math.log(sum(math.exp(x) for x in row))
            total += sum(norm - row[value] for value in values) / len(values)
            known[a] += 1
            best = sorted(range(len(row)), key=lambda v, row=row: -row[v])[: len(values)]
            right[a] += set(best) == set(values)
        expected += total / max(1, known[a])
    term = losses.classification(logits, labels, SIZES, multiple=SCHEMA.multiple)
    assert float((term.sums / term.counts.clamp(min=1)).sum()) == pytest.approx(expected)
    counted = losses.accuracy(logits, labels, SIZES, SCHEMA.multiple)
    assert (counted.sums.tolist(), counted.counts.tolist()) == (right, known)
    predicted = metrics.predicted_labels(logits.numpy(), SCHEMA, labels.numpy())
    shares = metrics.attribute_accuracy(predicted, labels.numpy(), SCHEMA.names)
    for name, r, k in zip(SCHEMA.names, right, known):
        assert shares.get(name) == (r / k if k else None)


def queries_by_loops(items):
    found = []
    for at, (kind, colours) in enumerate(items):
        for value in range(2):
            if value != kind and (value, colours) in items:
                found.append((at, 0, value))
        for value in range(3):
            fits = any(other == kind and value in shown for other, shown in items)
            if value not in colours and fits:
                found.append((at, 1, value))
    return found


@given(tables, seeds)
@settings(max_examples=60, deadline=None)
def test_queries_and_their_figures(items, seed):
    labels = label_table(items)
    queries = metrics.manipulation_queries(labels)
    asked = zip(queries.reference, queries.attribute, queries.value)
    assert [tuple(map(int, row)) for row in asked] == queries_by_loops(items)
    random = np.random.default_rng(seed)
    ranked = np.array([random.permutation(len(items)) for _ in range(len(queries))], np.int64)
    ranked = ranked.reshape(len(queries), len(items))
    found = metrics.query_metrics(ranked, labels, queries)
    for at, answers in enumerate(ranked.tolist()):
        kind, colours = items[int(queries.reference[at])]
        value = int(queries.value[at])
        kinds, sets = value if queries.attribute[at] == 0 else kind, colours
        matches = [
            (
                items[row][0] == kinds,
                value in items[row][1] if queries.attribute[at] == 1 else items[row][1] == sets,
            )
            for row in answers
        ]
        assert found["hit@1"][at] == all(matches[0])
        assert found["hit@10"][at] == any(map(all, matches[:10]))
        gains = [2 ** (sum(m) / 2) - 1 for m in matches[:30]]
        discounts = [1 / math.log2(rank + 2) for rank in range(len(gains))]
        expected = sum(g * d for g, d in zip(gains, discounts)) / sum(discounts)
        assert found["ndcg@30"][at] == pytest.approx(expected)


@given(tables, seeds)
@settings(max_examples=60, deadline=None)
def test_edits_of_known_labels_ask_for_values_that_the_item_lacks(items, seed):
    labels = label_table(items)
    edits = all_edits(labels, 1)
    expected = {
        (at, 1, value)
        for at, (_, colours) in enumerate(items)
        for value in set().union(*(shown for _, shown in items)) - colours
        if colours
    } | {
        (at, 0, value)
        for at, (kind, _) in enumerate(items)
        for value in {other for other, _ in items} - {kind, UNKNOWN}
        if kind != UNKNOWN
    }
    found = {
        (int(row), a, value)
        for row, values in zip(edits.reference, edits.values.tolist())
        for a, value in enumerate(values)
        if value != UNKNOWN
    }
    assert found == expected and len(edits) == len(expected)
    random = np.random.default_rng(seed)
    ranked = np.array([random.permutation(len(items)) for _ in range(len(edits))], np.int64)
    figures = wanted_metrics(ranked.reshape(len(edits), len(items)), labels, edits)
    for at, values in enumerate(edits.values.tolist()):
        good = [
            values[1] in shown if values[0] == UNKNOWN else kind == values[0]
            for kind, shown in items
        ]
        answers = [row for row in ranked[at].tolist() if row != edits.reference[at]]
        wanted = min(10, sum(good))
        assert figures["first_wanted"][at] == good[answers[0]]
        assert figures["wanted@10"][at] == pytest.approx(
            sum(good[row] for row in answers[:wanted]) / wanted
        )
    two = all_edits(labels, 2, most=50)
    for row, (kind, colour) in zip(two.reference, two.values.tolist()):
        own = items[int(row)]
        assert all(is_known(own)) and own[0] != kind and colour not in own[1]
        assert any(other == kind and colour in shown for other, shown in items)


def test_edit_groups_hold_neighbours_of_sets():
    random = np.random.default_rng(3)
    sets = [label_of(each) for n in (1, 2, 3) for each in itertools.combinations(range(3), n)]
    labels = np.stack([random.integers(0, 2, 60), random.choice(sets, 60)], axis=1)
    groups = edit_groups(labels, seed=0)
    assert sorted(row for group in groups for row in group) == list(range(60))
    found = neighbour_in_group(labels, groups)
    for group in groups:
        for row in group:
            apart = [(labels[row] != labels[other]).sum() for other in group]
            assert found[row] == (1 in apart)
    assert found.mean() > 0.9


def test_temperatures_minimise_the_loss_of_sets():
    random = np.random.default_rng(0)
    items = [(n % 2, frozenset([(0,), (1, 2), (2,)][n % 3])) for n in range(60)]
    labels = label_table(items)
    noise = random.standard_normal((60, 5)).astype(np.float32)
    logits = 4 * SCHEMA.multi_hot(labels) + noise

    def loss(t):
        part = logits[:, 2:].astype(float) / t
        norm = np.log(np.exp(part).sum(axis=1))
        return sum(norm[i] - part[i, sorted(c)].mean() for i, (_, c) in enumerate(items))

    found = temperatures(logits, labels, SCHEMA)[1]
    assert all(loss(found) <= loss(t) + 1e-9 for t in np.geomspace(0.2, 10, 79))


def test_torch_and_numpy_share_the_columns():
    items = [(0, frozenset({0, 2})), (UNKNOWN, frozenset({1})), (1, frozenset())]
    labels = label_table(items)
    hot = SCHEMA.multi_hot(labels)
    assert np.array_equal(multi_hot(torch.from_numpy(labels), SCHEMA).numpy(), hot)
    edit = SCHEMA.indicator(labels, label_table([(0, {1}), (1, {1}), (1, {0})]))
    assert edit.tolist() == [[0, 0, -0.5, 1, -0.5], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]


def test_a_target_of_an_unedited_set_is_the_same_set():
    labels = label_table([(0, {0, 1}), (1, {0, 1}), (1, {0}), (1, {0, 1, 2})])
    asked = Queries(*(np.array([value]) for value in (0, 0, 1)), labels[1:2])
    assert metrics.target_matches(labels[None], asked)[0].all(axis=1).tolist() == [0, 1, 0, 0]


@given(tables, seeds)
@settings(max_examples=20, deadline=None)
def test_each_rank_draws_its_part_of_the_edits(items, seed):
    labels, count = torch.from_numpy(label_table(items)), len(items)
    whole = draw_edits(labels, labels, torch.arange(count), seed, OFFSETS, multiple=SCHEMA.multiple)
    for rows in (slice(0, count // 2), slice(count // 2, count)):
        own = torch.arange(count)[rows]
        part = draw_edits(labels[rows], labels, own, seed, OFFSETS, multiple=SCHEMA.multiple)
        assert all(torch.equal(one[rows], other) for one, other in zip(whole, part))
