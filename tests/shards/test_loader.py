"""Batches from worker processes: whose memory their pictures lie in, and for how long."""

from contextlib import closing

import pytest
import torch

from adde.preprocess import Preprocess
from adde.shards.batches import Batches
from adde.shards.index import ShardIndex
from adde.shards.loader import LENT, READ_AHEAD, BatchStream
from adde.shards.shares import StoredOrder


@pytest.fixture
def batches(tiny_shards):
    index = ShardIndex.read(tiny_shards)
    places = StoredOrder(tuple(s.samples for s in index.split("train")), 3)
    assert len(places) > 2 * (READ_AHEAD + LENT)
    return Batches(index, "train", Preprocess(8), places)


def stream(batches, workers, count=20):
    return closing(BatchStream(batches, range(count), workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_that_are_all_kept_stay_as_they_were(batches, workers):
    with stream(batches, 0) as one_by_one, stream(batches, workers) as found:
        kept = list(found)
        for batch, expected in zip(kept, one_by_one, strict=True):
            assert torch.equal(batch.images, expected.images)


def test_a_batch_at_a_time_lies_where_workers_wrote_it(batches):
    with stream(batches, 0) as one_by_one, stream(batches, 1) as found:
        places = []
        for batch, expected in zip(found, one_by_one, strict=True):
            assert torch.equal(batch.images, expected.images)
            places.append(batch.images.data_ptr())
    # A ring of slots: whatever was copied would lie elsewhere.
    slots = READ_AHEAD + 1 + LENT
    assert len(set(places)) <= slots
    span = max(places) - min(places)
    assert span == (slots - 1) * 3 * 8 * 8 * 3


def test_a_part_of_a_batch_keeps_its_memory(batches):
    with stream(batches, 0) as one_by_one, stream(batches, 1) as found:
        parts = [batch.images[1:2].permute(0, 3, 1, 2) for batch in found]
        for part, expected in zip(parts, one_by_one, strict=True):
            assert torch.equal(part, expected.images[1:2].permute(0, 3, 1, 2))
