"""Encoding a split: every item once in stored order, and what cannot be read left out."""

import shutil

import numpy as np
import pytest
import torch

from adde import metrics
from adde.errors import UserError
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate
from adde.training import evaluation
from adde.training.evaluation import Evaluator, picture_rows, queries_of, retrieval, top_k


@pytest.fixture
def damaged(tiny_shards, tmp_path):
    """The tiny shards with a byte of the test split's sixth picture flipped."""
    shutil.copytree(tiny_shards, tmp_path / "shards")
    index = ShardIndex.read(tmp_path / "shards")
    (shard,) = index.split("test")
    content = bytearray((index.folder / shard.name).read_bytes())
    content[shard.members[5][0] + 40] ^= 1
    (index.folder / shard.name).write_bytes(content)
    return index


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_left_out(damaged, tiny_shards, tiny_model, workers, capsys):
    def encode(index, on_fault):
        evaluator = Evaluator(index, 7, workers, torch.device("cpu"), on_fault)
        return evaluator.encode(tiny_model, "test")

    whole = encode(ShardIndex.read(tiny_shards), "raise")
    labels = np.stack([s.labels for s in iterate(ShardIndex.read(tiny_shards), "test")])
    np.testing.assert_array_equal(whole.labels, labels)
    np.testing.assert_array_equal(whole.rows, np.arange(len(labels)))
    with pytest.raises(UserError, match=r"sample 5: expected bytes with crc32"):
        encode(damaged, "raise")
    found = encode(damaged, "skip")
    kept = np.delete(np.arange(len(labels)), 5)
    np.testing.assert_array_equal(found.rows, kept)
    np.testing.assert_array_equal(found.labels, labels[kept])
    # The batch that it is missing from is a smaller one.
    np.testing.assert_allclose(found.embeddings, whole.embeddings[kept], atol=1e-5)
    assert "encoding test: skipped" in capsys.readouterr().out

    rows = picture_rows(damaged, "test", tiny_model, found, 40)
    stored = [sample.picture for sample in iterate(ShardIndex.read(tiny_shards), "test")]
    queries = {row.query for row in rows}
    assert len(queries) > 10
    assert stored[5] not in queries
    assert queries <= set(stored)


def test_a_splits_queries_are_found_once(tiny_shards, tiny_model, monkeypatch):
    index, found = ShardIndex.read(tiny_shards), []
    encoded = Evaluator(index, 7, 0, torch.device("cpu")).encode(tiny_model, "test")
    expected = metrics.manipulation_queries(encoded.labels)

    def counted(labels, queries=metrics.manipulation_queries):
        found.append(len(labels))
        return queries(labels)

    monkeypatch.setattr(metrics, "manipulation_queries", counted)
    evaluation._queries_of.cache_clear()
    for _ in range(3):
        retrieval(tiny_model, encoded, torch.device("cpu"))
        picture_rows(index, "test", tiny_model, encoded, 3)
    assert found == [24]
    for name, value in vars(queries_of(encoded.labels)).items():
        np.testing.assert_array_equal(value, getattr(expected, name))
    assert len(queries_of(encoded.labels[:20]).reference) < len(expected)
    assert found == [24, 20]


@pytest.mark.parametrize(("items", "k"), [(3000, 50), (40, 50), (50, 50), (1, 3), (300, 7)])
def test_a_device_ranks_as_numpy_does_ties_included(items, k):
    random = np.random.default_rng(items)
    # Sums of small whole numbers are exact in any order, and many distances are equal.
    gallery = random.integers(-2, 3, (items, 6)).astype(np.float32)
    queries = random.integers(-2, 3, (33, 6)).astype(np.float32)
    expected = metrics.top_k(queries, gallery, k)
    found = top_k(torch.device("cpu"), queries, gallery, k)
    np.testing.assert_array_equal(found, expected)
    assert top_k(torch.device("cpu"), queries[:0], gallery, k).shape == (0, min(k, items))
