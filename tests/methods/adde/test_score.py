"""The softmax of the match score against plain loops and the definition that serving uses."""

import math

import numpy as np
import pytest
import torch
from test_objective import LAST, SCHEMA, batch, build

from adde import scoring
from adde.edits import LabelEdits
from adde.errors import UserError
from adde.loading.augment import Augmentation
from adde.methods.adde.config import AddeConfig, AddeStage
from adde.methods.adde.objective import AddeObjective
from adde.methods.adde.score import EPSILON, beliefs, match_scores
from adde.mining import tiled
from adde.ranking import wanted_beliefs
from adde.scoring import Calibration
from adde.training.terms import global_mean

SCORED = AddeConfig(adde=AddeStage(score=1.0, compositional=0.0)).stages()[-1]


@pytest.mark.parametrize("absent", [False, True])
def test_scores_are_those_of_serving(absent):
    draws = torch.Generator().manual_seed(2)
    logits, presence = (2 * torch.randn(7, n, generator=draws) for n in (5, 2))
    plain = Calibration((1.0, 1.0), (1.0, 1.0) if absent else (), EPSILON, 1.0)
    expected = plain.beliefs(logits.numpy(), presence.numpy(), SCHEMA)
    found = beliefs(logits, presence if absent else None, SCHEMA)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)

    labels = torch.tensor([[0, 1]] * 7)
    targets = torch.tensor([[value, size] for value in range(3) for size in range(2)] + [[0, 1]])
    edits = torch.where(targets != labels, targets, -1).numpy()
    wanted, _ = wanted_beliefs(LabelEdits(np.arange(7), edits), expected, SCHEMA)
    ones = np.ones((7, 2), np.float32)
    scores = scoring.match_scores(wanted, ones, expected, SCHEMA, EPSILON)
    np.testing.assert_allclose(
        match_scores(found, found, labels, targets, SCHEMA).numpy(), scores, atol=1e-5
    )


def expected_loss(scores, labels, edits):
    """Sum and count over queries, item by item."""
    total, count = 0.0, 0
    for i, target in enumerate(edits.targets.tolist()):
        fits, conflicts = [], []
        for j, row in enumerate(labels.tolist()):
            if row == target or j == int(edits.positive[i]):
                fits.append(math.exp(scores[i][j]))
            elif any(x != y and -1 not in (x, y) for x, y in zip(row, target)):
                conflicts.append(math.exp(scores[i][j]))
        if edits.usable[i] and conflicts:
            total -= math.log(sum(fits) / (sum(fits) + sum(conflicts)))
            count += 1
    return total, count


@pytest.mark.parametrize("rows", [8, 3])
def test_the_term_is_the_softmax_over_what_fits_and_what_conflicts(monkeypatch, rows):
    model = build()
    monkeypatch.setitem(tiled.TILE_ELEMENTS, "cpu", 8 * rows)
    items = batch()
    objective = AddeObjective(SCHEMA, Augmentation(), margin=0.5)
    plan = objective.plan(SCORED, items, torch.Generator().manual_seed(3))
    out = objective.encode(model, plan, items.images)
    terms = objective.terms(SCORED, out, items, plan)
    own = beliefs(out.logits, out.presence, SCHEMA)
    scores = match_scores(own, own, items.labels, plan.edits.targets, SCHEMA).tolist()
    total, count = expected_loss(scores, items.labels, plan.edits)
    term = terms.losses["score"]
    assert (term.sums.item(), term.counts.item()) == (pytest.approx(total, rel=1e-5), count)
    assert count == 7  # the item without labels has no edit
    (gradient,) = torch.autograd.grad(term.sums.sum(), model.presence.linear.weight)
    assert gradient.isfinite().all() and gradient.any()


def test_without_the_compositional_term_no_negatives_are_mined(monkeypatch):
    def unexpected(*_):
        raise AssertionError

    monkeypatch.setattr("adde.methods.adde.objective.semihard_negatives", unexpected)
    objective = AddeObjective(SCHEMA, Augmentation(), margin=0.5)
    terms = objective.batch_terms(SCORED, build(), batch(), torch.Generator().manual_seed(3))
    assert "compositional" not in terms.losses
    loss, scalars, _ = global_mean(terms, SCORED.weights)
    assert math.isfinite(scalars["loss"])
    loss.backward()
    with pytest.raises(AssertionError):
        objective.batch_terms(LAST, build(), batch(), torch.Generator().manual_seed(3))


def test_an_edit_changes_at_least_one_attribute():
    with pytest.raises(UserError, match=r"adde\.edits: expected at least 1, found 0"):
        AddeStage(edits=0)
