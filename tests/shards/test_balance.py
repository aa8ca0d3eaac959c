"""Balanced sampling: equal shares where possible, whole groups, the same for all ranks."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_order import shards

from adde.errors import UserError
from adde.schema import UNKNOWN, Attribute, Schema
from adde.shards.balance import group_weights
from adde.shards.index import ShardIndex
from adde.shards.order import SampleOrder
from adde.shards.reader import iterate, split_labels
from adde.training.startup import _labels_to_balance


def balanced(groups, values, **options):
    parts = np.split(np.array(values), np.cumsum([sum(g) for g in groups])[:-1])
    return SampleOrder(shards(groups), options.pop("batch", 5), 3, balance=parts, **options), parts


@given(seed=st.integers(0, 999), items=st.integers(10, 200), window=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_single_items_show_every_value_of_a_window_equally_often(seed, items, window):
    random = np.random.default_rng(seed)
    groups = [[1] * items, [1] * 7, [1] * items]
    values = random.choice([UNKNOWN, 0, 1, 2], 2 * items + 7, p=[0.2, 0.7, 0.07, 0.03])
    order, parts = balanced(groups, values, window=window)
    whole = np.concatenate([order.batch(s) for s in range(order.steps_per_epoch)])
    assert len(whole) + order.dropped_per_epoch == len(values)
    places = order._stretch(0, 0, len(values))
    assert places[: len(whole)].tolist() == whole.tolist()
    numbers, ends = order._shard_order(0)
    for at, stretch in enumerate(np.split(places, ends[:-1])):
        inside = numbers[at * window : (at + 1) * window]
        assert set(stretch[:, 0].tolist()) <= set(inside.tolist())
        stored = np.concatenate([parts[number] for number in inside])
        shown = np.array([parts[shard][position] for shard, position in stretch.tolist()])
        known = np.unique(stored[stored != UNKNOWN])
        for value in known:
            expected = (stored != UNKNOWN).sum() / len(known)
            assert abs((shown == value).sum() - expected) <= 2
        assert abs((shown == UNKNOWN).sum() - (stored == UNKNOWN).sum()) <= 2


@given(seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_weights_of_mixed_groups_balance_where_that_is_possible(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 5, 60)
    values = random.choice(3, sizes.sum(), p=[0.8, 0.15, 0.05])
    weights = group_weights(values, sizes)
    per_item = np.repeat(weights, sizes)
    assert per_item.sum() == pytest.approx(len(values))
    shares = np.bincount(values, per_item, 3)[np.unique(values)] / len(values)
    plain = np.bincount(values, minlength=3)[np.unique(values)] / len(values)

    def divergence(found):
        return -np.log(len(found) * found).mean()

    assert divergence(shares) <= divergence(plain) + 1e-9
    # The gradient at the optimum (Karush, Kuhn, Tucker): a group that is shown is worth 1 a piece.
    worth = np.repeat(np.arange(60), sizes)
    worth = np.bincount(worth, (1 / (len(shares) * np.bincount(values, per_item, 3)))[values])
    worth = worth * len(values) / sizes
    assert (worth[weights > 0.3] < 1.15).all()


def test_groups_stay_whole_and_ranks_and_epochs_agree():
    groups = [[3, 2, 4], [1, 5, 1], [2, 2]]
    values = np.random.default_rng(0).integers(0, 2, 20)
    order, _ = balanced(groups, values, batch=6, window=3)
    again, _ = balanced(groups, values, batch=6, window=3)
    starts = [set(np.cumsum([0, *g[:-1]]).tolist()) for g in groups]
    for step in (0, 1, 2, 7):
        batch = order.batch(step).tolist()
        for before, after in itertools.pairwise(batch):
            assert after == [before[0], before[1] + 1] or after[1] in starts[after[0]]
        shares = [again.share(step, start, start + 2) for start in (0, 2, 4)]
        assert np.concatenate(shares).tolist() == batch
    assert order.batch(0).tolist() != order.batch(order.steps_per_epoch).tolist()


def test_labels_are_read_without_pictures(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    found = split_labels(index, "train")
    assert [len(labels) for labels in found] == [s.samples for s in index.split("train")]
    expected = [sample.labels.tolist() for sample in iterate(index, "train")]
    assert np.concatenate(found).tolist() == expected


def test_an_attribute_without_labels_cannot_be_balanced(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    more = (*index.schema.attributes, Attribute("season", ("summer", "winter")))
    index = replace(index, schema=Schema(more))
    assert len(_labels_to_balance(index, "colour")) == len(index.split("train"))
    with pytest.raises(UserError, match=r"data\.balance: .* found none of 'season'; name another"):
        _labels_to_balance(index, "season")
    with pytest.raises(UserError, match=r"data\.balance: unknown attribute 'colours'.*colour"):
        _labels_to_balance(index, "colours")
