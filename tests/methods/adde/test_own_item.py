"""Evaluation of items with several pictures: none is an answer to another of its own item."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from adde import metrics
from adde.methods.adde.evaluation import (
    encode_split,
    evaluate_split,
    memory_edit,
    picture_rows,
)
from adde.schema import UNKNOWN, Schema, label_of, values_of
from adde.scoring import Calibration
from adde.shards.reader import iterate
from adde.similarity import Benchmark, Ranking, average_precisions
from adde.training.evaluation import Evaluator


def test_answers_of_the_own_item_are_removed():
    random = np.random.default_rng(0)
    for _ in range(50):
        count = int(random.integers(2, 12))
        items = random.integers(0, 4, count)
        references = random.integers(0, count, 6)
        ranked = np.array([random.permutation(count) for _ in references])
        extra = max(items.tolist().count(item) for item in items) - 1
        assert metrics.extra_answers(items) == extra
        found = metrics.other_items(ranked, references, items, 5)
        for answers, kept, reference in zip(ranked.tolist(), found.tolist(), references):
            others = [r for r in answers if r == reference or items[r] != items[reference]]
            assert kept == others[: len(kept)]
            assert len(kept) == min(5, count - extra)
    assert metrics.other_items(ranked, references, None, 3) is ranked
    assert metrics.extra_answers(None) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_of_one_item_share_a_number(several_pictures, tiny_model, workers):
    evaluator = Evaluator(several_pictures, 7, workers, torch.device("cpu"))
    found = encode_split(evaluator, tiny_model, "test")
    names = [sample.item for sample in iterate(several_pictures, "test")]
    assert len(set(names)) < len(names)
    for (one, a), (two, b) in itertools.product(zip(names, found.items), repeat=2):
        assert (one == two) == (a == b)


def test_a_split_is_judged_without_the_own_item(several_pictures, tiny_model, monkeypatch):
    evaluator = Evaluator(several_pictures, 24, 0, torch.device("cpu"))
    encoded = encode_split(evaluator, tiny_model, "test")
    queries = metrics.manipulation_queries(encoded.labels)
    judged = []
    measure = metrics.query_metrics

    def watched(ranked, labels, asked):
        judged.append((ranked, asked.reference))
        return measure(ranked, labels, asked)

    monkeypatch.setattr(metrics, "query_metrics", watched)
    calibration = Calibration((1.0,) * 3, (1.0,) * 3, 0.01, 2.0)
    evaluate_split(encoded, tiny_model.schema, memory_edit(tiny_model), calibration, queries)
    assert len(judged) >= 6
    for ranked, references in judged:
        own = encoded.items[ranked] == encoded.items[references][:, None]
        assert (own <= (ranked == references[:, None])).all()
        assert ranked.shape[1] == len(encoded.labels) - metrics.extra_answers(encoded.items)


def test_precisions_leave_the_own_item_out():
    random = np.random.default_rng(1)
    vectors = random.standard_normal((14, 3)).astype(np.float32)
    labels, items = random.integers(UNKNOWN, 2, (14, 1)), random.integers(0, 5, 14)
    benchmark = Benchmark.of_labels(labels)
    found = average_precisions(Ranking(vectors, vectors), labels, benchmark, [0], items=items)
    for row, label in enumerate(labels[:, 0]):
        others = [
            other for other in range(14) if items[other] != items[row] and labels[other] != UNKNOWN
        ]
        others.sort(key=lambda other, row=row: -float(vectors[row] @ vectors[other]))
        right = [labels[other, 0] == label for other in others]
        if label == UNKNOWN or not any(right):
            assert np.isnan(found[row, 0])
            continue
        hits = [sum(right[: at + 1]) / (at + 1) for at, good in enumerate(right) if good]
        assert found[row, 0] == pytest.approx(np.mean(hits))


def test_pictures_of_answers(several_pictures, tiny_model, monkeypatch):
    """None is of the own item, and those that have the value among others are marked."""
    first, *rest = tiny_model.schema.attributes
    schema = Schema((replace(first, multiple=True), *rest))
    evaluator = Evaluator(several_pictures, 24, 0, torch.device("cpu"))
    encoded = encode_split(evaluator, tiny_model, "test")
    red = encoded.labels[:, 0] == 0
    encoded.labels[red, 0] = label_of([0, 2])
    monkeypatch.setattr(tiny_model, "schema", schema)
    samples = [*iterate(several_pictures, "test")]
    row_of = {sample.picture: row for row, sample in enumerate(samples)}
    titles = set()
    for row in picture_rows(several_pictures, "test", schema, encoded, 40):
        name, _, edit = row.title.partition(": ")
        own, _, new = edit.partition(" -> ")
        attribute, reference = schema.attribute_index(name), row_of[row.picture]
        value, start = schema.value_index(name, new), encoded.labels[reference]
        titles.add(own)
        for answers in row.lines.values():
            assert answers
            for picture, good in answers:
                other = row_of[picture]
                assert other == reference or samples[other].item != samples[reference].item
                label = encoded.labels[other]
                same = [a for a in range(3) if label[a] == start[a]]
                others = set(range(3)) - {attribute} <= set(same)
                assert good == (others and value in values_of(int(label[attribute])))
    assert "red, blue" in titles
