"""Encoding a split: every item once in stored order, without unreadable ones."""

import shutil

import numpy as np
import pytest
import torch

from adde import metrics, ranking
from adde.edits import all_edits
from adde.errors import UserError
from adde.methods.adde import evaluation
from adde.methods.adde.evaluation import (
    encode_split,
    picture_rows,
    prototypes,
    queries_of,
    retrieval,
)
from adde.mining.distances import allow_tf32
from adde.schema import UNKNOWN, Attribute, Schema
from adde.scoring import Calibration, with_known
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate
from adde.training.evaluation import Evaluator
from adde.training.ranking import TorchRanker


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
        return encode_split(evaluator, tiny_model, "test")

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

    rows = picture_rows(damaged, "test", tiny_model.schema, found, 40)
    stored = [sample.picture for sample in iterate(ShardIndex.read(tiny_shards), "test")]
    queries = {row.picture for row in rows}
    assert len(queries) > 10
    assert stored[5] not in queries
    assert queries <= set(stored)


def test_pictures_show_the_answers_of_a_search(tiny_shards, tiny_model):
    index, schema = ShardIndex.read(tiny_shards), tiny_model.schema
    encoded = encode_split(Evaluator(index, 7, 0, torch.device("cpu")), tiny_model, "test")
    stored = [sample.picture for sample in iterate(index, "test")]
    parts = np.split(np.exp(encoded.logits.astype(np.float64)), schema.offsets[1:], axis=1)
    parts = [part / part.sum(1, keepdims=True) for part in parts]
    for row in picture_rows(index, "test", schema, encoded, 40):
        name, _, change = row.title.partition(": ")
        edited = schema.attribute_index(name)
        value = schema.value_index(name, change.partition(" -> ")[2])
        own = stored.index(row.picture)
        scores = np.zeros(len(stored))
        for a, part in enumerate(parts):
            if a == edited:
                scores += 2 * np.log(0.03 + part[:, value])
            else:
                scores += np.log(0.03 + part @ part[own])
        best = [stored[i] for i in np.argsort(-scores, kind="stable")[:10]]
        assert [picture for picture, _ in row.lines["after"]] == best


def test_matches_are_found_on_a_device_as_in_numpy():
    """Beliefs of few distinct values, so that scores tie."""
    schema = Schema((Attribute("a", ("x", "y", "z")), Attribute("b", ("x", "y"))))
    random = np.random.default_rng(0)
    labels = random.integers(UNKNOWN, 2, (60, 2))
    calibration = Calibration((1.0, 1.0), (), 0.01, 3.0)
    plain = calibration.beliefs(np.zeros((60, 5), np.float32), None, schema)
    beliefs = with_known(plain, labels, schema)
    asked = all_edits(labels, 1)
    found = [
        ranking.rank_matches(asked, beliefs, schema, calibration, k=17, ranker=ranker)
        for ranker in (ranking.NUMPY, TorchRanker(torch.device("cpu")))
    ]
    assert len(asked) > 20
    np.testing.assert_array_equal(*found)


def test_baselines_are_ranked_on_a_device_as_in_numpy():
    schema = Schema((Attribute("a", ("x", "y", "z")), Attribute("b", ("x", "y"))))
    random = np.random.default_rng(1)
    labels = random.integers(UNKNOWN, 2, (60, 2))
    # Of few distinct numbers, which add up exactly: items tie.
    embeddings = random.choice([-0.5, 0.5], (60, 2, 2)).astype(np.float32)
    logits = schema.multi_hot(labels.clip(0))
    queries = metrics.manipulation_queries(labels)
    arguments = (queries, embeddings, logits, schema)
    device = TorchRanker(torch.device("cpu"))
    here = ranking.rank_baselines(*arguments, k=17)
    there = ranking.rank_baselines(*arguments, k=17, ranker=device)
    assert len(queries) > 20 and tuple(there) == ranking.BASELINES
    for name in ("no_edit", "classifier"):
        np.testing.assert_array_equal(here[name], there[name], name)
    # Sums of logarithms round otherwise there, and random products too.
    for name in ("random", "classifier_soft"):
        assert np.mean(here[name] == there[name]) > 0.9, name


def test_a_splits_queries_are_found_once(tiny_shards, tiny_model, monkeypatch):
    index, found = ShardIndex.read(tiny_shards), []
    encoded = encode_split(Evaluator(index, 7, 0, torch.device("cpu")), tiny_model, "test")
    expected = metrics.manipulation_queries(encoded.labels)

    def counted(labels, queries=metrics.manipulation_queries):
        found.append(len(labels))
        return queries(labels)

    monkeypatch.setattr(metrics, "manipulation_queries", counted)
    evaluation._queries_of.cache_clear()
    for _ in range(3):
        retrieval(tiny_model, encoded, torch.device("cpu"))
        picture_rows(index, "test", tiny_model.schema, encoded, 3)
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
    ranker = TorchRanker(torch.device("cpu"))
    expected = ranking.top_k(queries, gallery, k)
    found = ranking.top_k(queries, gallery, k, ranker)
    np.testing.assert_array_equal(found, expected)
    assert ranking.top_k(queries[:0], gallery, k, ranker).shape == (0, min(k, items))


def test_figures_and_prototypes_are_those_of_ieee_float32(tiny_shards, tiny_model, monkeypatch):
    """As bundles are served, whatever training computes with."""
    seen = []
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    encode = tiny_model.encode

    def spy(images):
        seen.append([switch.fp32_precision for switch in switches])
        found = encode(images)
        seen.append(found[0].dtype)
        return found

    monkeypatch.setattr(tiny_model, "encode", spy)
    evaluator = Evaluator(ShardIndex.read(tiny_shards), 30, 0, torch.device("cpu"))
    allow_tf32(True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            encode_split(evaluator, tiny_model, "val")
            prototypes(evaluator, tiny_model)
        assert torch.backends.cudnn.allow_tf32
    finally:
        allow_tf32(False)
    assert seen == [["ieee", "ieee"], torch.float32] * (len(seen) // 2)
    assert len(seen) >= 6
