"""Compare edit groups with neighbours found pair by pair; check their effect on batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adde.schema import UNKNOWN
from adde.shards.catalogues.drawn.wardrobe import wardrobe
from adde.shards.order import SampleOrder
from adde.shards.packing.groups import edit_groups, has_neighbour, neighbour_in_group
from adde.shards.shard import Shard, member_rows

tables = st.tuples(st.integers(1, 40), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(UNKNOWN, 2))
)


def are_neighbours(one, other):
    differing = [(a, b) for a, b in zip(one, other) if a != b]
    return len(differing) == 1 and UNKNOWN not in differing[0]


def pair_by_pair(labels, rows):
    rows = list(rows)
    return [any(are_neighbours(labels[i], labels[j]) for j in rows) for i in rows]


def dense(items, attributes, values, missing, seed=0):
    rng = np.random.default_rng(seed)
    tail = 1 / np.arange(1, values + 1)
    labels = rng.choice(values, (items, attributes), p=tail / tail.sum())
    labels[rng.random(labels.shape) < missing] = UNKNOWN
    return labels


@given(tables)
def test_neighbours_pair_by_pair(labels):
    assert has_neighbour(labels).tolist() == pair_by_pair(labels, range(len(labels)))


@given(tables, st.integers(0, 9), st.integers(2, 5))
def test_groups_hold_every_row_once(labels, seed, size):
    groups = edit_groups(labels, seed, size)
    assert sorted(row for group in groups for row in group) == list(range(len(labels)))
    assert all(1 <= len(group) <= 2 * size for group in groups)
    found = neighbour_in_group(labels, groups)
    for group in groups:
        assert found[group].tolist() == pair_by_pair(labels, group)
        # Groups grow and join along neighbours, so every member has one.
        assert len(group) == 1 or found[group].all()


def test_families_stay_together():
    labels = wardrobe(1500).labels
    assert neighbour_in_group(labels, edit_groups(labels, 0)).all()


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize(("attributes", "values"), [(1, 5), (4, 3), (8, 4), (10, 2)])
def test_almost_every_item_gets_a_neighbour(attributes, values, missing):
    labels = dense(3000, attributes, values, missing)
    in_group = neighbour_in_group(labels, edit_groups(labels, 0)).mean()
    assert in_group >= 0.99 * has_neighbour(labels).mean()


def test_rare_partners_are_shared():
    labels = np.zeros((2000, 3), dtype=np.int64)
    labels[:5, 1] = 1
    groups = edit_groups(labels, 0)
    with_partner = [group for group in groups if len(group) > 1]
    assert sum(map(len, with_partner)) >= 16
    assert {row for group in with_partner for row in group} >= set(range(5))


def test_groups_keep_the_proportions():
    labels = np.repeat([0, 1, 2], [500, 300, 200])[:, None]
    groups = edit_groups(labels, 0)
    # A draw of 8 lacks the last value with probability 0.8 ** 8, about 0.17.
    lacking = np.mean([2 not in labels[group] for group in groups])
    assert 0.05 < lacking < 0.25


def test_groups_come_in_random_order_by_seed():
    labels = dense(2000, 4, 4, 0.0)
    groups = edit_groups(labels, 3)
    assert groups == edit_groups(labels, 3)
    assert groups != edit_groups(labels, 4)
    # The catalogue's order, here by the first attribute, is lost.
    labels = labels[np.argsort(labels[:, 0])]
    firsts = [labels[group[0], 0] for group in edit_groups(labels, 3)]
    assert abs(np.corrcoef(firsts, np.arange(len(firsts)))[0, 1]) < 0.2
    # Later groups are smaller, because fewer items are left; that order is lost, too.
    sizes = list(map(len, edit_groups(dense(2000, 8, 4, 0.1), 3)))
    assert abs(np.corrcoef(sizes, np.arange(len(sizes)))[0, 1]) < 0.2


def test_batches_hold_targets_of_edits():
    catalogue = wardrobe(4000)
    labels = catalogue.labels[np.array(catalogue.splits) == "train"]

    def share_with_target(groups):
        rows = np.array([row for group in groups for row in group])
        members = member_rows([len(g) for g in groups], [[0] * 5] * len(rows))
        shard = Shard("train-000000.tar", "train", len(rows), 0, "", members)
        order = SampleOrder([shard], batch_size=64, seed=0)
        batches = [labels[rows[order.batch(step)[:, 1]]] for step in range(20)]
        return np.mean([has_neighbour(batch).mean() for batch in batches])

    scattered = [[row] for row in range(len(labels))]
    assert share_with_target(scattered) < 0.2
    assert share_with_target(edit_groups(labels, 0)) > 0.95
