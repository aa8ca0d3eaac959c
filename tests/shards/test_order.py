"""The sample order: each sample once, whole groups, and the same for any number of ranks."""

import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adde.errors import UserError
from adde.shards.order import SampleOrder
from adde.shards.shard import Shard, member_rows
from adde.shards.shares import RankShare, StoredOrder

groups_of_shards = st.lists(
    st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=1, max_size=9
)


def shards(groups):
    rows = [member_rows(g, [[0] * 5] * sum(g)) for g in groups]
    return [Shard(f"{i}.tar", "train", len(r), 0, "", r) for i, r in enumerate(rows)]


@given(
    groups=groups_of_shards,
    batch=st.integers(1, 7),
    window=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_an_epoch_holds_every_sample_at_most_once_with_groups_whole(groups, batch, window, seed):
    total = sum(map(sum, groups))
    if total < batch:
        with pytest.raises(UserError, match=f"at most the {total} items"):
            SampleOrder(shards(groups), batch, seed, window)
        return
    order = SampleOrder(shards(groups), batch, seed, window)
    for epoch in (0, 3):
        first = epoch * order.steps_per_epoch
        places = np.concatenate([order.batch(first + s) for s in range(order.steps_per_epoch)])
        assert len(places) + order.dropped_per_epoch == total
        assert len({tuple(place) for place in places.tolist()}) == len(places)
        # Positions within a group are consecutive; only the end of the epoch may split a group.
        starts = [set(np.cumsum([0, *g[:-1]]).tolist()) for g in groups]
        for before, after in zip(places[:-1].tolist(), places[1:].tolist()):
            follows = after[0] == before[0] and after[1] == before[1] + 1
            assert follows or after[1] in starts[after[0]]


def laid_out(groups, seed, window, epoch):
    """Lay out an epoch group by group, as the module's docstring describes."""

    def random(*key):
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *key))))

    order = random(epoch).permutation(len(groups)).tolist()
    places = []
    for number, first in enumerate(range(0, len(order), window)):
        whole = []
        for shard in order[first : first + window]:
            start = 0
            for size in groups[shard]:
                whole.append([(shard, start + n) for n in range(size)])
                start += size
        for group in random(epoch, number).permutation(len(whole)).tolist():
            places += whole[group]
    return places


@given(
    groups=groups_of_shards,
    batch=st.integers(1, 40),
    window=st.integers(1, 4),
    seed=st.integers(0, 9),
    parts=st.integers(1, 5),
)
@settings(max_examples=80, deadline=None)
def test_every_share_is_its_rows_of_the_epoch(groups, batch, window, seed, parts):
    order = SampleOrder(shards(groups), batch, seed, window, last_batch="pad")
    for epoch in (0, 2):
        expected = laid_out(groups, seed, window, epoch)
        expected += expected * batch
        for step in range(order.steps_per_epoch):
            cuts = np.linspace(0, batch, parts + 1).astype(int).tolist()
            found = []
            for start, stop in itertools.pairwise(cuts):
                if start < stop:
                    share = order.share(epoch * order.steps_per_epoch + step, start, stop)
                    found += map(tuple, share.tolist())
            assert found == expected[step * batch : (step + 1) * batch]


@given(groups=groups_of_shards, batch=st.integers(1, 40), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_padded_epoch_holds_every_sample_and_repeats_what_it_says(groups, batch, seed):
    order = SampleOrder(shards(groups), batch, seed, window=2, last_batch="pad")
    total = sum(map(sum, groups))
    for epoch in (0, 2):
        first = epoch * order.steps_per_epoch
        batches = [order.batch(first + s) for s in range(order.steps_per_epoch)]
        assert all(len(places) == batch for places in batches)
        seen = [tuple(place) for places in batches for place in places.tolist()]
        assert len(set(seen)) == total == len(set(seen[:total]))
        assert len(seen) == total + order.repeated_per_epoch
        assert seen[total:] == (seen[:total] * batch)[: order.repeated_per_epoch]
    counts = order.counts(2 * order.steps_per_epoch)
    assert counts["samples"] == 2 * (total + order.repeated_per_epoch)
    assert counts["repeated"] == 2 * order.repeated_per_epoch
    assert counts["dropped"] == 0
    assert counts["epoch"] == 2


class Counted(list):
    """A list that counts look-ups of elements, but not iteration."""

    reads = 0

    def __getitem__(self, number):
        self.reads += 1
        return super().__getitem__(number)


def test_a_hundred_thousand_shards_and_a_thousand_ranks_cost_a_moment():
    members = member_rows((4,) * 250, [[0] * 5] * 1000)
    every = Counted([Shard("one.tar", "train", 1000, 0, "", members)] * 100_000)
    tracemalloc.start()
    order = SampleOrder(every, batch_size=32_768, seed=1)
    for rank in range(0, 1024, 8):
        order.share(0, rank * 32, rank * 32 + 32)
    touched = 3 * 16  # items of 33 shards are in at most three windows
    assert 33 <= every.reads <= touched  # independent of the number of ranks
    batch = order.batch(10**9 // order.batch_size)
    assert every.reads <= 2 * touched  # after a thousand million samples
    megabytes = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert len({tuple(place) for place in batch.tolist()}) == 32_768
    assert megabytes < 200


def test_the_order_is_a_function_of_seed_and_step():
    groups = [[2, 3, 1], [4, 4], [1, 1, 1, 1], [5]]
    order, again = (SampleOrder(shards(groups), 4, seed=5, window=2) for _ in range(2))
    forwards = [order.batch(s).tolist() for s in range(12)]
    assert [again.batch(s).tolist() for s in reversed(range(12))] == forwards[::-1]
    assert pickle.loads(pickle.dumps(order)).batch(7).tolist() == forwards[7]
    other = SampleOrder(shards(groups), 4, seed=6, window=2)
    assert [other.batch(s).tolist() for s in range(12)] != forwards
    assert (
        forwards[: order.steps_per_epoch]
        != forwards[order.steps_per_epoch :][: order.steps_per_epoch]
    )


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_ranks_and_accumulation_share_the_same_global_batch(ranks, accumulation):
    order = SampleOrder(shards([[3, 2, 4], [6], [1] * 9]), 8, seed=1, window=2)
    for step in range(5):
        parts = [
            RankShare(order, rank, ranks, accumulation)(step * accumulation + part)
            for part in range(accumulation)
            for rank in range(ranks)
        ]
        assert np.concatenate(parts).tolist() == order.batch(step).tolist()


@given(
    samples=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch=st.integers(1, 6),
    ranks=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_stored_order_covers_a_split_once_in_rank_order(samples, batch, ranks):
    seen = []
    for rank in range(ranks):
        places = StoredOrder(tuple(samples), batch, rank, ranks)
        seen += [tuple(p) for number in range(len(places)) for p in places(number).tolist()]
    assert seen == [(shard, p) for shard, count in enumerate(samples) for p in range(count)]
