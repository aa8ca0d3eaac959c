"""Calibration of the match score (`adde.scoring`) on the validation split, at the end of a run.

For each attribute, the temperature is the one with the lowest negative log-likelihood of the known
labels. A common factor of all temperatures, epsilon, and whether presence is used are chosen by
hit@1 + hit@30 + NDCG@30. The weight of an edit is the one with the highest `wanted@10` among those
that leave hit@10 and hit@30 no lower than weight 1.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.distributed import broadcast_from_main, rank
from adde.edits import all_edits, wanted_metrics
from adde.files import read_json, write_json
from adde.methods.adde.evaluation import ANSWERS, encode_split
from adde.methods.adde.model import ADDE
from adde.metrics import (
    Queries,
    extra_answers,
    manipulation_queries,
    other_items,
    retrieval_metrics,
)
from adde.ranking import NUMPY, Ranker, rank_matches, rank_matches_by_weight
from adde.schema import UNKNOWN, Labels, Rows, Schema, Vector, shares
from adde.scoring import DEFAULTS, FIRST, Calibration
from adde.shards.index import ShardIndex
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.evaluation import Evaluator

CALIBRATION_NAME = "calibration.json"

TEMPERATURES = np.geomspace(0.2, 10, 79)
FACTORS = (1.0, 1.25, 1.5, 2.0)
"""Common factors of all temperatures: above 1 if several attributes are mistaken together."""
EPSILONS = (0.001, 0.03, 0.1, 0.3)
EDIT_WEIGHTS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0, 8.0)
MAX_SCORES = 1 << 23
"""Queries x gallery items that settings are compared on."""
MIN_QUERIES = 200
"""Queries that they are compared on, however large the gallery."""


def calibration_of(
    checkpoint: Checkpoint, model: ADDE, evaluator: Evaluator
) -> tuple[Calibration, dict[str, Any]]:
    """Return a checkpoint's calibration and its figures on the validation split.

    Reads it from the checkpoint's folder. If it is missing there (only the best checkpoint of a run
    is calibrated at its end), computes it on the evaluator's validation split, and saves it if
    these are the shards that the run was trained on. Must run on all ranks.

    Args:
        checkpoint: of the model.
        model: on the evaluator's device.
        evaluator: of shards with the same schema.
    """
    path = checkpoint.path / CALIBRATION_NAME
    content = broadcast_from_main(lambda: read_json(path) if path.exists() else None)
    if content is not None:
        return Calibration.from_json(content, model.schema, str(path)), content["figures"]
    encoded = encode_split(evaluator, model, "val")
    arrays = (encoded.logits, encoded.presence, encoded.labels)
    ranker, items = Ranker(evaluator.watch), encoded.items
    found, figures = broadcast_from_main(lambda: calibrate(*arrays, model.schema, ranker, items))
    if rank() == 0:
        if not figures["queries"]:
            print(
                "calibration: the validation split has no query with an exact target; epsilon and "
                f"the weight of an edit take their defaults, {DEFAULTS}"
            )
        if _trained_on(checkpoint, evaluator.index):
            write_json(path, {**found.to_json(), "figures": figures})
        else:
            print(
                f"calibrated on the validation split of {evaluator.index.root}, not saved: the run "
                "was trained on other shards"
            )
    return found, figures


def _trained_on(checkpoint: Checkpoint, index: ShardIndex) -> bool:
    """Return whether a checkpoint's run was trained on these shards."""
    own = checkpoint.state["shards"]
    return "train" in index.splits and index.fingerprint("train") == own


def calibrate(
    logits: Vector,
    presence: Vector | None,
    labels: Labels,
    schema: Schema,
    ranker: Ranker = NUMPY,
    items: Rows | None = None,
) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate the match score of an encoder.

    Args:
        logits: (N, V) float32 of the validation split.
        presence: (N, A) float32 logits; None if the encoder has none.
        labels: (N, A) int64.
        schema: of the catalogue.
        ranker: does the arithmetic.
        items: see `metrics.other_items`.

    Returns:
        The calibration, and its figures on the validation split.
    """
    extra = extra_answers(items)
    values, there = temperatures(logits, labels, schema), presence_temperatures(presence, labels)
    most = max(MIN_QUERIES, MAX_SCORES // max(1, len(labels)))
    queries = manipulation_queries(labels).spread(most)
    if not len(queries):
        return Calibration(values, there, **DEFAULTS), {"queries": 0}

    found: list[tuple[float, Calibration, Vector]] = []
    for used, factor in product(dict.fromkeys((there, ())), FACTORS):
        plain = Calibration(tuple(factor * t for t in values), used, EPSILONS[0], 1.0)
        beliefs = plain.beliefs(logits, presence, schema)
        for epsilon in EPSILONS:
            tried = replace(plain, epsilon=epsilon)
            ranked = rank_matches(
                queries, beliefs, schema, tried, ANSWERS + extra, FIRST + extra, ranker
            )
            ranked = other_items(ranked, queries.reference, items, ANSWERS)
            figures = retrieval_metrics(ranked, labels, queries)
            score = figures["hit@1"] + figures["hit@30"] + figures["ndcg@30"]
            found.append((score, tried, beliefs))
    # The first of equals differs least from the uncalibrated settings.
    _, chosen, beliefs = max(found, key=lambda each: each[0])
    return _weigh_edits(chosen, queries, beliefs, labels, schema, most, ranker, items)


def _weigh_edits(
    plain: Calibration,
    queries: Queries,
    beliefs: Vector,
    labels: Labels,
    schema: Schema,
    most: int,
    ranker: Ranker,
    items: Rows | None,
) -> tuple[Calibration, dict[str, Any]]:
    edits, extra = all_edits(labels, 1, most), extra_answers(items)
    shared = (beliefs, schema, plain.epsilon, EDIT_WEIGHTS)
    by_target = rank_matches_by_weight(queries, *shared, ANSWERS + extra, FIRST + extra, ranker)
    first = FIRST + 1 + extra
    by_edit = rank_matches_by_weight(edits, *shared, first, first, ranker)
    figures: list[dict[str, float]] = []
    for ranked, answers in zip(by_target, by_edit):
        ranked = other_items(ranked, queries.reference, items, ANSWERS)
        answers = other_items(answers, edits.reference, items, FIRST + 1)
        wanted = wanted_metrics(answers, labels, edits)
        means = {name: float(values.mean()) for name, values in wanted.items()}
        figures.append({**retrieval_metrics(ranked, labels, queries), **means})
    allowed = [
        at
        for at, row in enumerate(figures)
        if all(row[hit] >= figures[0][hit] for hit in ("hit@10", "hit@30"))
    ]
    best = max(allowed, key=lambda at: (figures[at]["wanted@10"], -at))
    return replace(plain, edit_weight=EDIT_WEIGHTS[best]), figures[best]


def temperatures(logits: Vector, labels: Labels, schema: Schema) -> tuple[float, ...]:
    """Fit the (A,) divisors of logits (N, V) that minimise the loss of the known labels.

    An attribute without known labels gets 1.
    """
    found: list[float] = []
    for a, part in enumerate(np.split(logits, schema.offsets[1:], axis=1)):
        known = np.flatnonzero(labels[:, a] != UNKNOWN)
        own = part[known].astype(np.float64)
        if a in schema.multiple:  # the mean of the set's logits becomes 0
            own -= (own * shares(labels[known, a], np.arange(schema.sizes[a]))).sum(1)[:, None]
        else:  # the label's logit becomes 0
            own -= own[np.arange(len(known)), labels[known, a]][:, None]
        found.append(_least(lambda t, own=own: _log_sum_exp(own / t)))
    return tuple(found)


def presence_temperatures(presence: Vector | None, labels: Labels) -> tuple[float, ...]:
    """Fit the (A,) divisors of presence logits (N, A) to "the label is known".

    An attribute whose labels are all known gets 0, "always present": labels that are more complete
    than the training split's say nothing about absence. Without presence logits, or if all labels
    are known, the result is ().
    """
    known = labels != UNKNOWN
    if presence is None or known.all():
        return ()
    signed = np.where(known, presence, -presence).astype(np.float64)
    return tuple(
        0.0 if all_known else _least(lambda t, x=x: np.logaddexp(0, -x / t))
        for x, all_known in zip(signed.T, known.all(axis=0))
    )


def _least(losses: Any) -> float:
    means = [losses(t).sum() for t in TEMPERATURES]
    if not means[0] and not means[-1]:
        return 1.0
    return float(TEMPERATURES[int(np.argmin(means))])


def _log_sum_exp(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    top = x.max(axis=1, initial=0.0)
    return top + np.log(np.exp(x - top[:, None]).sum(axis=1))
