"""Cross-batch memory: what is remembered, and the loss over it, against plain loops."""

import pytest
import torch
from torch import nn

from adde.loading.augment import Augmentation
from adde.loading.batch import Batch
from adde.methods.adde.config import AddeConfig, EncoderStage
from adde.methods.adde.cross_batch import CrossBatch, CrossBatchQueue
from adde.methods.adde.model import ADDE, Forward
from adde.methods.adde.objective import AddeObjective
from adde.model import ModelSettings
from adde.schema import Attribute, Schema
from adde.training.terms import global_mean

SCHEMA = Schema((Attribute("colour", ("r", "g", "b")), Attribute("size", ("s", "l"))))
ITEMS, WIDTH, MARGIN = 6, 4, 0.5
ENCODER = AddeConfig().stages()[0]
CPU = torch.device("cpu")


def memory(size=14, warmup=0):
    return CrossBatchQueue(CrossBatch(size=size, warmup=warmup), ITEMS, (2, WIDTH), CPU)


def items(seed):
    draws = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(ITEMS, 2, WIDTH, generator=draws)
    labels = [torch.randint(-1, size, (ITEMS,), generator=draws) for size in SCHEMA.sizes]
    return embeddings, torch.stack(labels, 1)


def terms(objective, embeddings, labels):
    images = torch.zeros(ITEMS, 8, 8, 3, dtype=torch.uint8)
    batch = Batch(images, labels, [])
    plan = objective.plan(ENCODER, batch, torch.Generator())
    logits = torch.zeros(ITEMS, SCHEMA.num_values)
    return objective.terms(ENCODER, Forward(embeddings, logits, None), batch, plan)


def by_hand(anchors, anchor_labels, others, other_labels):
    """Sum and pairs of one group: anchors are the first of the others."""
    losses = []
    for a in range(len(anchors)):
        d = [float((anchors[a] - other).square().sum()) for other in others]
        mine = anchor_labels[a]
        negatives = [n for n in range(len(others)) if other_labels[n] not in (None, mine)]
        for p in range(len(others)):
            if mine is None or p == a or other_labels[p] != mine or not negatives:
                continue
            outside = [d[n] for n in negatives if d[n] > d[p]]
            losses.append(
                MARGIN + d[p] - (min(outside) if outside else max(d[n] for n in negatives))
            )
    return sum(max(0.0, loss) for loss in losses), len(losses)


@pytest.mark.parametrize("size", [4, 6, 14, 40])
def test_remembers_the_last_items_of_all_batches(size):
    queue, past = memory(size), []
    for seed in range(5):
        embeddings, labels = items(seed)
        queue.push(embeddings, labels)
        past += zip(embeddings.tolist(), labels.tolist())
        found, found_labels = queue.with_batch(embeddings[:0], labels[:0])
        rows = list(zip(found.tolist(), found_labels.tolist()))
        known = [row for row in rows if row != ([[0.0] * WIDTH] * 2, [-1, -1])]
        assert sorted(known) == sorted(past[-size:])


def test_what_the_model_gave_no_figures_for_forms_no_pairs_later():
    queue, (embeddings, labels) = memory(), items(2)
    objective = AddeObjective(SCHEMA, Augmentation(), MARGIN, queue)
    broken = embeddings.clone()
    broken[3] = torch.nan
    terms(objective, broken, labels.abs())
    found, found_labels = queue.with_batch(embeddings[:0], labels[:0])
    assert found.isfinite().all()
    assert (found_labels[:ITEMS] == -1).all(1).tolist() == [i == 3 for i in range(ITEMS)]


def test_loss_and_pairs_are_those_of_plain_loops():
    objective = AddeObjective(SCHEMA, Augmentation(), MARGIN, memory())
    past = []
    for seed in range(4):
        embeddings, labels = items(seed)
        found = terms(objective, embeddings, labels).losses
        rows = [*zip(embeddings, labels.tolist()), *past[-14:]]
        for group in range(2):
            unit = [nn.functional.normalize(row[0][group], dim=-1) for row in rows]
            ids = [None if row[1][group] == -1 else row[1][group] for row in rows]
            expected = by_hand(unit[:ITEMS], ids[:ITEMS], unit, ids)
            term = found["local_triplet"]
            assert (term.sums[group].item(), term.counts[group].item()) == pytest.approx(
                expected, rel=1e-5, abs=1e-5
            )
        unit = [nn.functional.normalize(row[0].flatten(), dim=-1) for row in rows]
        ids = [None if row[1] == [-1, -1] else tuple(row[1]) for row in rows]
        expected = by_hand(unit[:ITEMS], ids[:ITEMS], unit, ids)
        term = found["global_triplet"]
        assert (term.sums.item(), term.counts.item()) == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert seed == 0 or expected[1] > 0
        past += zip(embeddings, labels.tolist())


def test_the_mean_is_over_all_pairs_and_past_items_get_no_gradient():
    objective = AddeObjective(SCHEMA, Augmentation(), MARGIN, memory())
    first = items(0)[0].requires_grad_()
    terms(objective, first, items(0)[1])
    second, labels = items(1)[0].requires_grad_(), items(1)[1]
    found = terms(objective, second, labels)
    loss, scalars, _ = global_mean(found, EncoderStage(cls=0, local_triplet=0).weights)
    term = found.losses["global_triplet"]
    assert scalars["global_triplet"] == pytest.approx((term.sums / term.counts).item())
    loss.backward()
    assert second.grad.any()
    assert first.grad is None


def test_it_is_used_from_the_end_of_the_warmup_on():
    alone = AddeObjective(SCHEMA, Augmentation(), MARGIN)
    warming = AddeObjective(SCHEMA, Augmentation(), MARGIN, memory(warmup=2))
    for seed in range(4):
        plain, found = (
            terms(objective, *items(seed)).losses["local_triplet"] for objective in (alone, warming)
        )
        assert torch.equal(plain.counts, found.counts) == (seed < 2)


def test_a_model_is_trained_with_it():
    model = ADDE(
        ModelSettings(backbone="test_resnet", image_size=32, width=WIDTH, hidden=4), SCHEMA
    )
    objective = AddeObjective(SCHEMA, Augmentation(), MARGIN, memory())
    images = torch.randint(0, 256, (ITEMS, 32, 32, 3), dtype=torch.uint8)
    for seed in range(2):
        found = objective.batch_terms(
            ENCODER, model, Batch(images, items(seed)[1], []), torch.Generator()
        )
        global_mean(found, ENCODER.weights)[0].backward()
    assert model.heads.second.weight.grad.any()
