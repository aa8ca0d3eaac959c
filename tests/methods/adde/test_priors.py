"""Logit adjustment against cross-entropies of explicit posteriors."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_objective import LAST, batch, build

from adde.methods.adde.config import AddeConfig
from adde.methods.adde.method import METHOD
from adde.methods.adde.objective import AddeObjective
from adde.shards.index import ShardIndex
from adde.shards.reader import iterate
from adde.training.config import Data

CPU = torch.device("cpu")


def test_the_adjustment_is_the_log_share_of_each_value_in_the_training_split(tiny_shards):
    config = AddeConfig(data=Data(shards=str(tiny_shards)), logit_adjustment=0.5)
    index = ShardIndex.read(tiny_shards)
    found = METHOD.objective(config, index.schema, CPU).adjustment
    samples = [sample.labels.tolist() for sample in iterate(index, "train")]
    expected = []
    for a, size in enumerate(index.schema.sizes):
        counts = Counter(row[a] for row in samples if row[a] != -1)
        total = sum(counts.values()) + size
        expected += [0.5 * math.log((counts[value] + 1) / total) for value in range(size)]
    assert found.tolist() == pytest.approx(expected)
    assert (
        METHOD.objective(replace(config, logit_adjustment=0.0), index.schema, CPU).adjustment
        is None
    )


def test_cross_entropies_of_pictures_are_adjusted_and_those_of_edits_are_not():
    net, items = build(), batch()
    plain = METHOD.objective(AddeConfig(), net.schema, CPU)
    shift = torch.tensor([0.0, -1.0, -3.0, -0.5, -2.0])
    adjusted = AddeObjective(net.schema, plain.augmentation, plain.margin, adjustment=shift)
    for stage in AddeConfig().stages():
        plan = plain.plan(stage, items, torch.Generator().manual_seed(3))
        out = plain.encode(net, plan, items.images)
        found = adjusted.terms(stage, out, items, plan).losses["cls"].sums
        whole = plain.terms(stage, out, items, plan).losses["cls"].sums
        reference = torch.zeros(2)
        for a, columns in enumerate((slice(0, 3), slice(3, 5))):
            posterior = (out.logits[:, columns] + shift[columns]).softmax(1)
            for i, label in enumerate(items.labels[:, a].tolist()):
                reference[a] -= 0 if label == -1 else posterior[i, label].log()
        torch.testing.assert_close(found[:2], reference)
        assert not torch.isclose(found[:2], whole[:2]).any()
        if stage.name == LAST.name:
            torch.testing.assert_close(found[6:], whole[6:])
