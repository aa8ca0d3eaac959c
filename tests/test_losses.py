"""Loss terms against plain loops."""

import math

import pytest
import torch

from adde import losses
from adde.losses import Term, accuracy
from adde.methods.adde.config import AddeStage
from adde.methods.adde.losses import compositional, consistency, triplet_roles
from adde.mining import DrawnEdits, draw_edits, semihard_negatives
from adde.training.terms import Terms, global_mean

SIZES = (3, 2)


def value(term: Term) -> float:
    return float((term.sums / term.counts.clamp(min=1)).sum())


def test_classification_is_a_mean_per_attribute_over_known_labels():
    logits = torch.randn(5, 5, dtype=torch.float64)
    labels = torch.tensor([[0, -1], [2, 1], [-1, -1], [1, 0], [0, 1]])
    weights = torch.tensor([1.0, 3, 1, 0, 2])
    expected = 0.0
    for attribute, (start, size) in enumerate(((0, 3), (3, 2))):
        total = count = 0.0
        for row, label, weight in zip(logits.tolist(), labels[:, attribute].tolist(), weights):
            if label == -1:
                continue
            part = row[start : start + size]
            log_p = part[label] - math.log(sum(math.exp(x) for x in part))
            total, count = total - float(weight) * log_p, count + float(weight)
        expected += total / count
    assert value(losses.classification(logits, labels, SIZES, weights)) == pytest.approx(expected)


def test_compositional_compares_distances_not_squares():
    queries = torch.tensor([[1.0, 0], [1, 0], [1, 0]])
    positives = torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    negatives = torch.tensor([[-1.0, 0], [0, 1], [1, 0]])
    counted = torch.tensor([True, True, False])
    term = compositional(queries, positives, negatives, counted, margin=1.0)
    expected = (1 + math.sqrt(2) - 2) + max(0, 1 + 0 - math.sqrt(2))
    assert (value(term), float(term.counts)) == (pytest.approx(expected / 2), 2.0)


def test_compositional_has_a_gradient_at_distance_zero():
    queries = torch.tensor([[1.0, 0]], requires_grad=True)
    same = queries.detach().clone()
    term = compositional(queries, same, same, torch.tensor([True]), margin=0.3)
    term.sums.sum().backward()
    assert torch.isfinite(queries.grad).all()


def test_consistency_leaves_unknown_attributes_out():
    prototypes, embeddings = torch.zeros(2, 2, 3), torch.ones(2, 2, 3)
    embeddings[0, 1] = 100.0
    labels = torch.tensor([[0, -1], [1, 1]])
    term = consistency(prototypes, embeddings, labels, torch.tensor([1.0, 2.0]))
    assert (float(term.sums), float(term.counts)) == (5.0, 5.0)


def test_roles_count_how_often_an_item_was_chosen():
    edits = DrawnEdits(
        targets=torch.zeros(3, 2, dtype=torch.int64),
        positive=torch.tensor([1, 1, 0]),
        exact=torch.ones(3, dtype=torch.bool),
        usable=torch.tensor([True, True, False]),
    )
    roles = triplet_roles(
        edits, torch.tensor([2, 0, 1]), torch.tensor([True, False, True]), items=3
    )
    assert roles.tolist() == [[0, 2, 0], [0, 0, 1]]


def test_losses_are_the_same_to_the_last_bit_under_autocast():
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 3, (12, 2), generator=draws)
    hot = torch.ones(12)
    edits = draw_edits(labels, labels, torch.arange(12), 5, torch.tensor([0, 3]))

    def terms():
        vectors = torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(1))
        vectors.requires_grad_()
        queries, refs = losses.normalise(vectors.flatten(1)), losses.normalise(vectors.flatten(1))
        itself = torch.arange(12)
        negative, found = semihard_negatives(
            queries.flip(1), edits.targets, edits.positive, refs, labels
        )
        counted = edits.usable & found
        every = [
            losses.label_triplets(vectors, labels, vectors, labels, itself, 0.5)[0],
            losses.classification(vectors.flatten(1)[:, :6], labels, (3, 3)),
            compositional(queries, refs[edits.positive], refs[negative], counted, 0.5),
            consistency(vectors.flip(0), vectors, labels, hot),
        ]
        sum(term.sums.sum() for term in every).backward()
        return [negative, vectors.grad, *(part for term in every for part in term)]

    plain = terms()
    with torch.autocast("cpu", torch.bfloat16):
        cast = terms()
    for one, other in zip(plain, cast):
        assert other.dtype in (torch.float32, torch.int64)
        assert torch.equal(one, other)


def test_the_total_is_the_weighted_sum_of_means():
    terms = Terms(
        {
            "cls": Term(torch.tensor([4.0, 9.0]), torch.tensor([2.0, 3.0])),
            "memory": Term(torch.tensor([7.0]), torch.tensor([1.0])),
        },
        {"exact_targets": Term(torch.tensor([3.0]), torch.tensor([4.0]))},
    )
    loss, scalars, flag = global_mean(terms, AddeStage(cls=0.5, memory=2.0).weights, flag=True)
    assert float(loss) == pytest.approx(0.5 * 5 + 2 * 7)
    assert scalars == pytest.approx({"loss": 16.5, "cls": 5, "memory": 7, "exact_targets": 0.75})
    assert flag


def test_figures_of_each_attribute_are_told_where_the_batch_has_any():
    # Two roles of three attributes; of the third the batch knows nothing.
    terms = Terms(
        {"cls": Term(torch.tensor([4.0, 9, 0, 1, 6, 0]), torch.tensor([2.0, 3, 0, 1, 3, 0]))},
        {"accuracy": Term(torch.tensor([1.0, 3, 0]), torch.tensor([2.0, 4, 0]))},
        dict.fromkeys(("cls", "accuracy"), ("top", "hat", "shoes")),
    )
    _, scalars, _ = global_mean(terms, AddeStage(cls=1.0).weights)
    expected = {"loss": 8, "cls": 8, "cls/top": 3, "cls/hat": 5}
    expected |= {"accuracy": 0.625, "accuracy/top": 0.5, "accuracy/hat": 0.75}
    assert scalars == pytest.approx(expected)


def test_accuracy_counts_right_predictions_of_known_labels():
    logits = torch.tensor([[1.0, 2, 0, 5, 1], [3, 2, 0, 5, 1], [0, 2, 9, 0, 1]])
    labels = torch.tensor([[1, -1], [1, 0], [2, 0]])
    term = accuracy(logits, labels, (3, 2))
    assert term.sums.tolist() == [2, 1]
    assert term.counts.tolist() == [3, 2]
