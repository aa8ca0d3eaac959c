"""Calibration of the match score on the validation split, at the end of a run (`adde.scoring`).

Temperatures make beliefs honest: for each attribute the one with the least negative log-likelihood
of the known labels. What is left is chosen by what it gives: one common factor of the temperatures,
epsilon, and whether presence is used, by hit@1 + hit@30 + NDCG@30; then the weight of an edit, the
one with the largest `wanted@10` whose hit@10 and hit@30 are no lower than without it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.distributed import broadcast_from_main, rank
from adde.edits import all_edits, rank_matches, wanted_metrics
from adde.files import read_json, write_json
from adde.methods.adde.evaluation import encode_split
from adde.methods.adde.model import ADDE
from adde.metrics import Places, Queries, Watch, manipulation_queries, retrieval_metrics
from adde.schema import UNKNOWN, Labels, Schema, Vector
from adde.scoring import FIRST, Calibration
from adde.shards.index import ShardIndex
from adde.training.checkpoints.checkpoint import Checkpoint
from adde.training.evaluation import Evaluator

CALIBRATION_NAME = "calibration.json"

TEMPERATURES = np.geomspace(0.2, 10, 79)
FACTORS = (1.0, 1.25, 1.5, 2.0)
"""Of all temperatures: above 1 where attributes are mistaken together."""
EPSILONS = (0.001, 0.03, 0.1, 0.3)
EDIT_WEIGHTS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 3.25, 3.5, 4.0, 5.0, 6.0, 8.0)
USUAL = {"epsilon": 0.03, "edit_weight": 2.0}
"""Where there is no query to choose by."""

SCORES = 1 << 23
"""Queries x gallery items that settings are compared on."""
LEAST = 200
"""Queries that they are compared on however large the gallery is."""


def calibration_of(
    checkpoint: Checkpoint, model: ADDE, evaluator: Evaluator
) -> tuple[Calibration, dict[str, Any]]:
    """A checkpoint's calibration, and the validation figures that it was chosen by.

    It lies in the checkpoint's folder. Where it does not, as in one from before it or one that was
    not the best when its run ended, it is worked out on the evaluator's validation split, and put
    there if these are the shards that the run was trained on; on all ranks.

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
    found, figures = broadcast_from_main(lambda: calibrate(*arrays, model.schema, evaluator.watch))
    if rank() == 0:
        if not figures["queries"]:
            print(
                "calibration: the validation split has no query with an exact target; epsilon and "
                f"the weight of an edit are the usual ones, {USUAL}"
            )
        if _trained_on(checkpoint, evaluator.index):
            write_json(path, {**found.to_json(), "figures": figures})
        else:
            print(f"calibrated on the validation split of {evaluator.index.root}, not kept")
    return found, figures


def _trained_on(checkpoint: Checkpoint, index: ShardIndex) -> bool:
    """Whether a checkpoint's run was trained on these shards."""
    own = checkpoint.state["shards"]
    return "train" in index.splits and index.fingerprint("train") == own


def calibrate(
    logits: Vector,
    presence: Vector | None,
    labels: Labels,
    schema: Schema,
    watch: Watch = iter,
) -> tuple[Calibration, dict[str, Any]]:
    """The calibration of an encoder, and the validation figures that it was chosen by.

    Args:
        logits: (N, V) float32 of the validation split.
        presence: (N, A) float32 logits; None where the encoder has none.
        labels: (N, A) int64.
        schema: of the catalogue.
        watch: is told of the blocks of all rankings.
    """
    values, there = temperatures(logits, labels, schema), presence_temperatures(presence, labels)
    most = max(LEAST, SCORES // max(1, len(labels)))
    queries = manipulation_queries(labels).spread(most)
    start = Calibration(values, there, **USUAL)
    if not len(queries):
        return start, {"queries": 0}

    found: list[tuple[float, Calibration]] = []
    rank_by = partial(rank_matches, schema=schema, watch=watch)
    for used, factor, epsilon in product(dict.fromkeys((there, ())), FACTORS, EPSILONS):
        hotter = tuple(factor * t for t in values)
        tried = Calibration(hotter, used, epsilon, 1.0)
        beliefs = tried.beliefs(logits, presence, schema)
        ranked = rank_by(queries, beliefs, calibration=tried)
        figures = retrieval_metrics(ranked, labels, queries)
        found.append((figures["hit@1"] + figures["hit@30"] + figures["ndcg@30"], tried))
    # Of equals the first: fewest settings moved from the plain ones.
    chosen = max(found, key=lambda pair: pair[0])[1]
    beliefs = chosen.beliefs(logits, presence, schema)
    return _weigh_edits(chosen, queries, beliefs, labels, most, rank_by)


def _weigh_edits(
    plain: Calibration,
    queries: Queries,
    beliefs: Vector,
    labels: Labels,
    most: int,
    rank_by: Callable[..., Places],
) -> tuple[Calibration, dict[str, Any]]:
    edits = all_edits(labels, 1, most)
    figures: list[dict[str, float]] = []
    for weight in EDIT_WEIGHTS:
        tried = replace(plain, edit_weight=weight)
        ranked = rank_by(queries, beliefs, calibration=tried)
        row = retrieval_metrics(ranked, labels, queries)
        ranked = rank_by(edits, beliefs, calibration=tried, k=FIRST + 1, first=FIRST + 1)
        wanted = wanted_metrics(ranked, labels, edits)
        figures.append({**row, **{name: float(v.mean()) for name, v in wanted.items()}})
    allowed = [
        at
        for at, row in enumerate(figures)
        if all(row[hit] >= figures[0][hit] for hit in ("hit@10", "hit@30"))
    ]
    best = max(allowed, key=lambda at: (figures[at]["wanted@10"], -at))
    return replace(plain, edit_weight=EDIT_WEIGHTS[best]), figures[best]


def temperatures(logits: Vector, labels: Labels, schema: Schema) -> tuple[float, ...]:
    """(A,) divisors of the logits (N, V) with the least negative log-likelihood of known labels;
    1 for an attribute of which none is known.
    """
    found: list[float] = []
    for a, part in enumerate(np.split(logits, schema.offsets[1:], axis=1)):
        known = np.flatnonzero(labels[:, a] != UNKNOWN)
        own = part[known].astype(np.float64)
        own -= own[np.arange(len(known)), labels[known, a]][:, None]  # the label's own logit is 0
        found.append(_least(lambda t, own=own: _log_sum_exp(own / t)))
    return tuple(found)


def presence_temperatures(presence: Vector | None, labels: Labels) -> tuple[float, ...]:
    """(A,) as `temperatures`, of presence logits (N, A) and "the label is known"; () without.

    0, for always there, where no label is unknown: a split that was labelled with more care than
    the training split says nothing of absence.
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
