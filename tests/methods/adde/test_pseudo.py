"""Pseudo-labels against the averaged model itself, item by item, and what they need."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from test_objective import SCHEMA, batch, build
from torch import nn

from adde.errors import UserError
from adde.loading.augment import Augmentation
from adde.methods.adde.config import AddeConfig, EncoderStage
from adde.methods.adde.objective import AddeObjective
from adde.methods.adde.pseudo import PseudoLabels, pseudo_classification
from adde.model import ModelSettings
from adde.training.config import Config, Optimizer
from adde.training.strategies import DataParallel

AVERAGED = Optimizer(ema=0.9)
PSEUDO = PseudoLabels(weight=0.5, start=0.5, confidence=0.52)
STAGE = AddeConfig(optimizer=AVERAGED, encoder=EncoderStage(pseudo=PSEUDO)).stages()[0]
COLUMNS = (slice(0, 3), slice(3, 5))


@pytest.fixture
def strategy():
    model = build()
    with torch.no_grad():  # fresh weights see next to nothing
        model.heads.first.weight.mul_(8)
        model.heads.second.weight.mul_(4)
        model.presence.linear.bias.add_(torch.tensor([-0.1, 0.06]).view(2, 1, 1))
    model.backbone.append(nn.BatchNorm1d(96))
    yield DataParallel(Accelerator(cpu=True), model, Config(optimizer=AVERAGED))
    AcceleratorState._reset_state(reset_partial_state=True)


def unlabelled():
    items = batch()
    items.labels[1:, 0] = -1
    items.labels[::2, 1] = -1
    return items


def planned(strategy, items, step=5):
    objective = AddeObjective(SCHEMA, Augmentation(), margin=0.5)
    objective.begin_stage(STAGE, strategy)
    objective.begin_step(step, 10)
    return objective, objective.plan(STAGE, items, torch.Generator().manual_seed(3))


def test_the_averaged_weights_fill_in_what_they_are_sure_of(strategy):
    items = unlabelled()
    assert planned(strategy, items)[1].taught is None  # no step has been averaged yet
    model = strategy.model
    strategy.averaged.update(strategy.state())
    teacher = {n: v.clone() for n, v in strategy.averaged.tensors.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator()))
    assert planned(strategy, items, step=4)[1].taught is None
    before = {n: v.clone() for n, v in model.state_dict().items()}
    objective, plan = planned(strategy, items)
    assert model.training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())

    copy = build()
    copy.backbone.append(nn.BatchNorm1d(96))
    copy.load_state_dict(teacher)
    found = copy.eval()(items.images)
    filled = 0
    for i, row in enumerate(items.labels.tolist()):
        for a, columns in enumerate(COLUMNS):
            posterior = found.logits[i, columns].softmax(0)
            sure = row[a] == -1 and posterior.max() > 0.52 and found.presence[i, a].sigmoid() > 0.5
            expected = posterior if sure else torch.zeros_like(posterior)
            torch.testing.assert_close(plan.taught[i, columns], expected)
            filled += bool(sure)
    unknown = (items.labels == -1).sum().item()
    assert 0 < filled < unknown

    out = objective.encode(model, plan, items.images)
    terms = objective.terms(STAGE, out, items, plan)
    share = terms.shares["pseudo_labels"]
    assert (share.sums.sum(), share.counts.sum()) == (filled, unknown)
    terms.losses["pseudo"].sums.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert STAGE.weights["pseudo"] == 0.5


def test_the_soft_cross_entropy_counts_known_and_filled_labels():
    logits, targets = torch.randn(3, 5), torch.zeros(3, 5)
    targets[1, :3] = torch.tensor([0.7, 0.2, 0.1])
    labels = torch.tensor([[2, -1], [-1, -1], [-1, 0]])
    term, share = pseudo_classification(logits, targets, labels, SCHEMA.sizes)
    posterior = logits[1, :3].softmax(0)
    expected = -sum(t * p.log() for t, p in zip((0.7, 0.2, 0.1), posterior))
    torch.testing.assert_close(term.sums, torch.stack([expected, torch.tensor(0.0)]))
    assert term.counts.tolist() == [2, 1]
    assert (share.sums.tolist(), share.counts.tolist()) == ([1, 0], [2, 2])


def test_what_cannot_give_pseudo_labels_is_refused():
    encoder = EncoderStage(pseudo=PSEUDO)
    with pytest.raises(UserError, match=r"pseudo\.weight: .* found optimizer\.ema = 0"):
        AddeConfig(encoder=encoder)
    with pytest.raises(UserError, match=r"pseudo\.weight: expected model\.presence"):
        AddeConfig(encoder=encoder, optimizer=AVERAGED, model=ModelSettings(presence=False))
    objective = AddeObjective(SCHEMA, Augmentation(), margin=0.5)
    with pytest.raises(UserError, match=r"found a strategy that shards them; use one process"):
        objective.begin_stage(STAGE, SimpleNamespace(sharded=True))
    objective.begin_stage(AddeConfig().stages()[0], SimpleNamespace(sharded=True))
