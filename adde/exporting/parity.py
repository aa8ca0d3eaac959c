"""The gate of an export: onnxruntime must answer as torch does.

Two figures: the largest error of every output at several batch sizes, and the share of the test
split's manipulation queries whose first 30 answers are the same.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from adde.bundle import Outputs
from adde.errors import UserError
from adde.metrics import (
    Queries,
    attribute_accuracy,
    manipulation_queries,
    predicted_labels,
    retrieval_metrics,
    unit,
)
from adde.preprocess import Picture
from adde.ranking import Edit, Ranker, edited_labels, rank_edits, rank_matches
from adde.schema import Labels, Rows, Schema, Vector
from adde.scoring import Calibration

BATCH_SIZES = (1, 2, 7, 64)
MAX_ERROR = 1e-4
"""Of any output, relative to its largest absolute value."""

RETRIEVAL_METRICS = ("hit@30", "ndcg@30")
BOUNDED_METRICS = (*RETRIEVAL_METRICS, *(f"match_{name}" for name in RETRIEVAL_METRICS), "accuracy")
"""Figures that fewer bits may lower by a bounded number of points: of the published ranking, of the
match score, and of the classifiers."""

MAX_QUERIES = 20_000
"""Most that are asked, evenly spaced over all of the split's."""

RANKER = Ranker(partial(tqdm, desc="rank", unit="block", leave=False, disable=None))
TOP = 30
MIN_IDENTICAL = 0.999
"""Share of queries whose first TOP answers must be the same."""

TIE_DISTANCE = 1e-6
"""Items whose squared distances to the query differ by less may exchange places."""


class EncodesAndEdits(Protocol):
    """What runs a model: torch, or onnxruntime."""

    def encode(self, images: Picture) -> Outputs:
        """Encodes pictures (B, S, S, 3) uint8."""
        ...

    def edit(self, embeddings: Vector, indicator: Vector) -> Vector:
        """Embeddings (B, A, D) and indicator (B, V) -> queries (B, A D), L2-normalised."""
        ...


def measure(
    ours: EncodesAndEdits,
    theirs: EncodesAndEdits,
    split: Iterable[tuple[Picture, Labels]],
    schema: Schema,
    calibration: Calibration | None,
) -> Any:
    """The parity report, as bundle.json holds it.

    Args:
        ours: the model in torch.
        theirs: the exported graphs.
        split: batches of pictures (B, S, S, 3) uint8 and labels (B, A) int64 of the test split.
        schema: of the catalogue.
        calibration: of the match score; None: it is not compared.

    Raises:
        UserError: the exported graphs give numbers that are not finite.
    """
    pictures, labels, *encoded = _encode(ours, theirs, split)
    if not all(np.isfinite(array).all() for array in encoded[1] if array is not None):
        raise UserError(
            "expected finite outputs from onnxruntime, found infinities or NaN: "
            "numbers leave the precision's range; export with more bits"
        )
    errors = {
        str(size): _errors(ours, theirs, np.resize(pictures, (size, *pictures.shape[1:])), schema)
        for size in BATCH_SIZES
    }
    sides = (ours, theirs)
    queries = manipulation_queries(labels).spread(MAX_QUERIES)
    ranked = [_ranked(side, queries, answers, schema) for side, answers in zip(sides, encoded)]
    return {
        "max_error": max(max(row.values()) for row in errors.values()),
        "max_error_allowed": MAX_ERROR,
        "errors_by_batch": errors,
        f"top{TOP}": _rankings(queries, ranked, ours, encoded[0], schema),
        "min_identical": MIN_IDENTICAL,
        "drop": {"points": _drop(queries, ranked, encoded, labels, schema, calibration)},
    }


def require_small_drop(report: Any, allowed: float, precision: str) -> None:
    """The gate of fewer bits: figures of the test split may be `allowed` points below torch's.

    Raises:
        UserError: one is further below; names it.
    """
    report["drop"]["allowed"] = allowed
    points = {name: value for name, value in report["drop"]["points"].items() if value is not None}
    # Written so that a NaN fails, too.
    failing = [f"{name} by {value:.2f}" for name, value in points.items() if not value <= allowed]
    if failing:
        raise UserError(
            f"{precision}: expected figures of the test split at most {allowed:g} points below "
            f"torch's, found lower {', '.join(failing)}; allow it with --allow-drop, or export "
            "with more bits"
        )


def require_parity(report: Any) -> None:
    """The gate of float32. Raises UserError with the figures that fail."""
    failures: list[str] = []
    # Written so that a NaN fails, too.
    if not report["max_error"] <= MAX_ERROR:
        failures.append(
            f"largest error: expected at most {MAX_ERROR:g} of the output's scale, found "
            f"{report['max_error']:.3g} ({_worst(report['errors_by_batch'])})"
        )
    ranking = report[f"top{TOP}"]
    # A split without queries, as where a catalogue has no two alike, has no ranking to compare:
    # the errors of the outputs decide alone, and the report says null.
    if ranking["queries"] and not ranking["identical"] >= MIN_IDENTICAL:
        failures.append(
            f"identical top-{TOP}: expected at least {MIN_IDENTICAL:.1%} of queries, found "
            f"{ranking['identical']:.3%} of {ranking['queries']}"
        )
    if failures:
        raise UserError(
            f"onnxruntime does not answer as torch does, no bundle is written; "
            f"{'; '.join(failures)}; try another version of torch, onnx or onnxruntime"
        )


def random_edits(logits: Vector, schema: Schema, seed: int = 0) -> Vector:
    """(B, V) float32 indicators: of every item, one to three attributes get a random value."""
    rng = np.random.default_rng(seed)
    own = predicted_labels(logits, schema)
    targets = own.copy()
    for row in range(len(own)):
        count = min(len(schema.sizes), int(rng.integers(1, 4)))
        for attribute in rng.choice(len(schema.sizes), count, replace=False):
            targets[row, attribute] = rng.integers(schema.sizes[attribute])
    return schema.indicator(own, targets)


def relative_error(expected: Vector, found: Vector) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    scale = max(float(np.abs(expected).max()), 1e-12)
    return float(np.abs(expected - found).max()) / scale


def output_errors(expected: Outputs, found: Outputs) -> dict[str, float]:
    """`relative_error` of each output that is there."""
    pairs = zip(Outputs._fields, expected, found)
    return {name: relative_error(a, b) for name, a, b in pairs if a is not None and b is not None}


def _errors(
    ours: EncodesAndEdits, theirs: EncodesAndEdits, pictures: Picture, schema: Schema
) -> dict[str, float]:
    """Errors at one batch; the query's are those of both graphs together."""
    expected, found = ours.encode(pictures), theirs.encode(pictures)
    indicator = random_edits(expected.logits, schema)
    query = ours.edit(expected.embeddings, indicator), theirs.edit(found.embeddings, indicator)
    return {**output_errors(expected, found), "query": relative_error(*query)}


def _worst(errors: dict[str, dict[str, float]]) -> str:
    found = [
        (error, f"{output} at batch {size}")
        for size, row in errors.items()
        for output, error in row.items()
    ]
    return max(found, key=lambda pair: (np.isnan(pair[0]), pair[0]))[1]


def _ranked(side: EncodesAndEdits, queries: Queries, encoded: Outputs, schema: Schema) -> Rows:
    doubled, edit = _as_float64(encoded.embeddings), _float64_edit(side)
    return rank_edits(queries, doubled, encoded.logits, schema, edit, TOP, RANKER)


def _rankings(
    queries: Queries, ranked: list[Rows], ours: EncodesAndEdits, encoded: Outputs, schema: Schema
) -> dict[str, Any]:
    differ = np.flatnonzero((ranked[0] != ranked[1]).any(axis=1))
    apart = 0
    if len(differ):
        embeddings, logits, _ = encoded
        some = queries[differ]
        own = predicted_labels(logits, schema)[some.reference]
        indicator = schema.indicator(own, edited_labels(own, some))
        query = ours.edit(embeddings[some.reference], indicator)
        same = same_but_for_ties(query, embeddings, ranked[0][differ], ranked[1][differ])
        apart = int((~same).sum())
    return {
        "queries": len(queries),
        "identical": 1 - apart / len(queries) if len(queries) else None,
        "exchanged_ties": len(differ) - apart,
    }


def _drop(
    queries: Queries,
    ranked: list[Rows],
    encoded: list[Outputs],
    labels: Labels,
    schema: Schema,
    calibration: Calibration | None,
) -> dict[str, float | None]:
    """By figure, how many points of 100 theirs is below ours; None where there is no query."""
    figures: list[dict[str, float]] = []
    for places, (_, logits, presence) in zip(ranked, encoded):
        predicted = predicted_labels(logits, schema)
        found = {"accuracy": attribute_accuracy(predicted, labels, schema.names)["mean"]}
        if len(queries):
            found |= retrieval_metrics(places, labels, queries)
            if calibration is not None:
                beliefs = calibration.beliefs(logits, presence, schema)
                matched = rank_matches(queries, beliefs, schema, calibration, TOP, ranker=RANKER)
                by_match = retrieval_metrics(matched, labels, queries)
                found |= {f"match_{name}": by_match[name] for name in RETRIEVAL_METRICS}
        figures.append(found)
    ours, theirs = figures
    return {
        name: 100 * (ours[name] - theirs[name]) if name in ours else None
        for name in BOUNDED_METRICS
    }


def _as_float64(array: Vector) -> Any:
    """The same numbers in float64.

    Ranking in float32 rounds distances by about as much as TIE_DISTANCE, which would be taken for a
    difference between the two sides where a gallery is dense.
    """
    return array.astype(np.float64)


def _float64_edit(side: EncodesAndEdits) -> Edit:
    return lambda embeddings, indicator: _as_float64(
        side.edit(embeddings.astype(np.float32), indicator)
    )


def same_but_for_ties(query: Vector, embeddings: Vector, ours: Rows, theirs: Rows) -> Any:
    """(Q,) bool: at every rank the two answers are the same item or lie as far away.

    Args:
        query: (Q, A D) float32, L2-normalised.
        embeddings: (N, A, D) float32 of the gallery.
        ours: (Q, K) gallery rows, best first.
        theirs: (Q, K) gallery rows, best first.
    """
    flat = unit(_as_float64(embeddings.reshape(len(embeddings), -1)))
    result = np.zeros(len(query), bool)
    for row, vector in enumerate(query.astype(np.float64)):
        distances = [((flat[side[row]] - vector) ** 2).sum(axis=1) for side in (ours, theirs)]
        result[row] = bool((np.abs(distances[0] - distances[1]) < TIE_DISTANCE).all())
    return result


def _encode(
    ours: EncodesAndEdits, theirs: EncodesAndEdits, split: Iterable[tuple[Picture, Labels]]
) -> tuple[Picture, Labels, Outputs, Outputs]:
    """The first batch's pictures, all labels, and what either side makes of all pictures.

    Pictures are held a batch at a time: a shop's test split need not fit into memory.
    """
    first: Picture | None = None
    labels: list[Labels] = []
    found: tuple[list[Outputs], list[Outputs]] = [], []
    for pictures, batch in split:
        first = pictures if first is None else first
        labels.append(batch)
        for side, outputs in zip((ours, theirs), found):
            outputs.append(side.encode(pictures))
    assert first is not None  # a split without pictures is refused where it is read
    return first, np.concatenate(labels), _joined(found[0]), _joined(found[1])


def _joined(batches: list[Outputs]) -> Outputs:
    embeddings, logits, presence = zip(*batches)
    there = None if presence[0] is None else np.concatenate(presence)
    return Outputs(np.concatenate(embeddings), np.concatenate(logits), there)
