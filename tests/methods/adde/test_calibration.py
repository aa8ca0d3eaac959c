"""Calibration recovers temperatures of known noise and follows its selection rules."""

import numpy as np
import pytest
import torch

from adde.edits import all_edits, wanted_metrics
from adde.methods.adde.calibration import (
    CALIBRATION_NAME,
    DEFAULTS,
    calibrate,
    calibration_of,
    presence_temperatures,
    temperatures,
)
from adde.metrics import manipulation_queries, retrieval_metrics
from adde.ranking import rank_matches
from adde.schema import UNKNOWN, Attribute, Schema
from adde.scoring import FIRST, Calibration
from adde.shards.index import ShardIndex
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.evaluation import Evaluator

SIZES = (4, 3, 3)
SCHEMA = Schema(tuple(Attribute(f"a{i}", tuple("wxyz"[:s])) for i, s in enumerate(SIZES)))


def catalogue(items, noise=1.0, seed=0, missing=0.0):
    """Labels, and logits whose log-likelihood is true at temperature 1."""
    random = np.random.default_rng(seed)
    labels = np.stack([random.integers(0, s, items) for s in SIZES], axis=1)
    signal = 3 * SCHEMA.multi_hot(labels)
    logits = signal + noise * random.gumbel(size=signal.shape).astype(np.float32)
    labels[random.random(labels.shape) < missing] = UNKNOWN
    return logits.astype(np.float32), labels


def test_temperatures_undo_a_scale():
    """Labels drawn from softmax(x): logits s x want temperature s."""
    random = np.random.default_rng(1)
    x = random.normal(0, 2, (20_000, 10)).astype(np.float32)
    labels = np.stack(
        [
            (part + random.gumbel(size=part.shape)).argmax(axis=1)
            for part in np.split(x, SCHEMA.offsets[1:], axis=1)
        ],
        axis=1,
    )
    for scale in (0.5, 1.0, 3.0):
        assert temperatures(scale * x, labels, SCHEMA) == pytest.approx((scale,) * 3, rel=0.06)


def test_presence_temperatures_undo_a_scale():
    random = np.random.default_rng(2)
    x = random.normal(0, 2, (20_000, 3)).astype(np.float32)
    known = random.random(x.shape) < 1 / (1 + np.exp(-x))
    labels = np.where(known, 0, UNKNOWN)
    assert presence_temperatures(2 * x, labels) == pytest.approx((2.0,) * 3, rel=0.08)
    labels[:, 1] = 0
    assert presence_temperatures(x, labels)[1] == 0.0
    assert presence_temperatures(x, np.zeros_like(labels)) == ()
    assert presence_temperatures(None, labels) == ()


def test_an_attribute_without_a_known_label_stays_as_it_is():
    logits, labels = catalogue(50)
    labels[:, 1] = UNKNOWN
    assert temperatures(logits, labels, SCHEMA)[1] == 1.0


def test_the_weight_of_an_edit_follows_its_rule():
    logits, labels = catalogue(150)
    found, figures = calibrate(logits, None, labels, SCHEMA)
    assert found.presence == ()
    beliefs = found.beliefs(logits, None, SCHEMA)
    queries, edits = manipulation_queries(labels), all_edits(labels, 1)

    def judged(weight):
        tried = Calibration(found.temperatures, (), found.epsilon, weight)
        hits = retrieval_metrics(rank_matches(queries, beliefs, SCHEMA, tried), labels, queries)
        ranked = rank_matches(edits, beliefs, SCHEMA, tried, FIRST + 1, FIRST + 1)
        wanted = wanted_metrics(ranked, labels, edits)["wanted@10"].mean()
        return hits["hit@10"], hits["hit@30"], wanted

    plain, chosen = judged(1.0), judged(found.edit_weight)
    assert chosen[0] >= plain[0] and chosen[1] >= plain[1] and chosen[2] >= plain[2]
    assert figures["wanted@10"] == pytest.approx(chosen[2])


def test_presence_is_used_where_it_helps():
    """Items whose first attribute is absent look like any value there; presence tells them."""
    logits, labels = catalogue(150, noise=0.3)
    random = np.random.default_rng(3)
    absent = random.random(150) < 0.5
    labels[absent, 0] = UNKNOWN
    logits[absent, :4] = 3 * random.random((int(absent.sum()), 4))
    presence = np.full((150, 3), 4, np.float32)
    presence[absent, 0] = -4
    found, figures = calibrate(logits, presence, labels, SCHEMA)
    assert found.presence
    _, worse = calibrate(logits, None, labels, SCHEMA)
    assert figures["hit@1"] > worse["hit@1"]


def test_without_a_query_the_usual_settings_are_taken():
    labels = np.array([[0, 0, 0], [1, 1, 1]])
    logits = SCHEMA.multi_hot(labels)
    found, figures = calibrate(logits, None, labels, SCHEMA)
    assert figures == {"queries": 0}
    assert (found.epsilon, found.edit_weight) == (DEFAULTS["epsilon"], DEFAULTS["edit_weight"])


def test_a_calibration_is_kept_where_it_is_of_the_runs_own_shards(
    tiny_shards, tiny_model, tmp_path, capsys
):
    index = ShardIndex.read(tiny_shards)
    evaluator = Evaluator(index, 16, 0, torch.device("cpu"))
    others = Checkpoint(tmp_path, {"shards": "of other shards"})
    found, figures = calibration_of(others, tiny_model, evaluator)
    assert not (tmp_path / CALIBRATION_NAME).exists()
    assert "not saved" in capsys.readouterr().out
    own = Checkpoint(tmp_path, {"shards": index.fingerprint("train")})
    assert calibration_of(own, tiny_model, evaluator) == (found, figures)
    assert (tmp_path / CALIBRATION_NAME).exists()
    # From now on it is read, whoever asks.
    assert calibration_of(others, tiny_model, evaluator)[0] == found
