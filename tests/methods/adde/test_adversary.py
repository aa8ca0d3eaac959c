"""Gradient reversal against classifiers applied one by one, and its absence where it is off."""

import math

import pytest
import torch
from test_objective import SCHEMA, batch, build
from torch import nn

from adde.loading.augment import Augmentation
from adde.methods.adde.adversary import strength
from adde.methods.adde.config import AddeConfig, AddeStage, EncoderStage
from adde.methods.adde.method import METHOD
from adde.methods.adde.objective import AddeObjective
from adde.model import ModelSettings


def model():
    with_adversary = build(adversary=True)
    with_adversary.dropout = nn.Identity()
    return with_adversary


def test_every_subspace_predicts_every_other_attribute():
    items, net = batch(), model()
    stage = AddeConfig(encoder=EncoderStage(adversary=1.0)).stages()[0]
    objective = AddeObjective(SCHEMA, Augmentation(), margin=0.5)
    objective.begin_step(3, 10)
    plan = objective.plan(stage, items, torch.Generator().manual_seed(3))
    out = objective.encode(net, plan, items.images)
    term = objective.terms(stage, out, items, plan).losses["adversary"]

    weight, bias = net.adversary.linear.weight, net.adversary.linear.bias
    embeddings = out.embeddings.detach().requires_grad_()
    expected = torch.zeros(2)
    for a, b, columns in ((0, 1, slice(3, 5)), (1, 0, slice(0, 3))):
        for i, label in enumerate(items.labels[:, b].tolist()):
            if label != -1:
                logits = embeddings[i, a] @ weight[a][:, columns] + bias[a, 0, columns]
                expected[b] -= logits.log_softmax(0)[label]
    torch.testing.assert_close(term.sums, expected)
    assert term.counts.tolist() == [6, 7]
    # The classifiers follow the gradient, the embeddings the reversed one.
    names = (out.embeddings, weight)
    reversed_, own = torch.autograd.grad(term.sums.sum(), names, retain_graph=True)
    plain, same = torch.autograd.grad(expected.sum(), (embeddings, weight))
    torch.testing.assert_close(own, same)
    growth = 2 / (1 + math.exp(-10 * 0.3)) - 1
    torch.testing.assert_close(reversed_, -growth * plain)


def test_the_strength_grows_from_nothing_to_one():
    found = [strength(step, 100) for step in range(100)]
    assert found[0] == 0
    assert found == sorted(found)
    assert 0.99 < found[-1] < 1


@pytest.mark.parametrize(("encoder", "adde"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_a_stage_trains_the_adversary_only_if_it_uses_it(encoder, adde):
    config = AddeConfig(
        model=ModelSettings(backbone="test_resnet", image_size=32, width=4, hidden=6),
        encoder=EncoderStage(adversary=encoder),
        adde=AddeStage(adversary=adde),
    )
    net = METHOD.build(config, SCHEMA)
    assert any(name.startswith("adversary") for name in net.state_dict()) == (encoder + adde > 0)
    for stage, weight in zip(config.stages(), (encoder, adde)):
        assert ("adversary" in stage.frozen) == (weight == 0 and encoder + adde > 0)
        for name in stage.frozen:
            net.get_submodule(name)
        objective = METHOD.objective(config, SCHEMA, torch.device("cpu"))
        terms = objective.batch_terms(stage, net, batch(), torch.Generator().manual_seed(3))
        assert ("adversary" in terms.losses) == (weight > 0)
