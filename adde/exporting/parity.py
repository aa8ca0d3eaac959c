"""The parity gate of an export: onnxruntime must give the same answers as torch.

It checks the largest error of every output at several batch sizes, and the share of the split's
manipulation queries whose first 30 answers are the same.
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
"""Largest error of any output, relative to its largest absolute value."""

MAX_LEVELS = 1
"""By how many levels of 255 a drawn pixel may differ; a sum may round to either side."""

MAX_DIFFERENT = 0.01
"""Share of the pixels that may differ at all."""

RETRIEVAL_METRICS = ("hit@30", "ndcg@30")
BOUNDED_METRICS = (*RETRIEVAL_METRICS, *(f"match_{name}" for name in RETRIEVAL_METRICS), "accuracy")
"""Metrics whose loss by reduced precision is bounded: of the published ranking, of the match score,
and of the classifiers."""

MAX_QUERIES = 20_000
"""Queries of the split that are compared, evenly spaced."""

RANKER = Ranker(partial(tqdm, desc="rank", unit="block", leave=False, disable=None))
TOP = 30
MIN_IDENTICAL = 0.999
"""Required share of queries with the same first TOP answers."""

TIE_DISTANCE = 1e-6
"""Items whose squared distances to the query differ by less may swap ranks."""


class EncodesAndEdits(Protocol):
    """A session that runs a model, in torch or onnxruntime."""

    def encode(self, images: Picture) -> Outputs:
        """Encode pictures (B, S, S, 3) uint8."""
        ...

    def edit(self, embeddings: Vector, indicator: Vector) -> Vector:
        """Edit embeddings (B, A, D) by indicator (B, V): L2-normalised queries (B, A D)."""
        ...


def measure(
    ours: EncodesAndEdits,
    theirs: EncodesAndEdits,
    split: Iterable[tuple[Picture, Labels]],
    schema: Schema,
    calibration: Calibration | None,
) -> Any:
    """Compute the parity report of bundle.json.

    Args:
        ours: the model in torch.
        theirs: the exported graphs.
        split: batches of pictures (B, S, S, 3) uint8 and labels (B, A) int64 of the test split.
        schema: of the catalogue.
        calibration: of the match score; None: the match score is not compared.

    Raises:
        UserError: the exported graphs return non-finite numbers.
    """
    pictures, labels, *encoded = _encode(ours, theirs, split)
    if not all(np.isfinite(array).all() for array in encoded[1] if array is not None):
        raise UserError(
            "expected finite outputs from onnxruntime, found infinities or NaN: "
            "numbers exceed the range of the precision; export with more bits"
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
    """Check a reduced precision: metrics may be at most `allowed` points below those of torch.

    Raises:
        UserError: names the metrics that are lower.
    """
    report["drop"]["allowed"] = allowed
    points = {name: value for name, value in report["drop"]["points"].items() if value is not None}
    # Written so that a NaN fails, too.
    failing = [f"{name} by {value:.2f}" for name, value in points.items() if not value <= allowed]
    if failing:
        raise UserError(
            f"{precision}: expected metrics of the test split at most {allowed:g} points below "
            f"torch's, found lower {', '.join(failing)}; allow it with --allow-drop, or export "
            "with more bits"
        )


def require_parity(report: Any) -> None:
    """Check float32. Raises UserError with the figures that fail."""
    failures: list[str] = []
    # Written so that a NaN fails, too.
    if not report["max_error"] <= MAX_ERROR:
        failures.append(
            f"largest error: expected at most {MAX_ERROR:g} of the output's scale, found "
            f"{report['max_error']:.3g} ({_worst(report['errors_by_batch'])})"
        )
    ranking = report[f"top{TOP}"]
    # Without queries (no two items of the catalogue are similar enough) there is no ranking to
    # compare: the report has null, and only the errors of the outputs count.
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
    """Draw indicators (B, V) float32: one to three attributes of each item get a random value."""
    rng = np.random.default_rng(seed)
    own = predicted_labels(logits, schema)
    targets = own.copy()
    for row in range(len(own)):
        count = min(len(schema.sizes), int(rng.integers(1, 4)))
        for attribute in rng.choice(len(schema.sizes), count, replace=False):
            targets[row, attribute] = rng.integers(schema.sizes[attribute])
    return schema.indicator(own, targets)


def relative_error(expected: Vector, found: Vector) -> float:
    """Divide the largest absolute difference by the largest absolute expected value."""
    scale = max(float(np.abs(expected).max()), 1e-12)
    return float(np.abs(expected - found).max()) / scale


def pictures_differ(expected: Picture, found: Picture) -> str | None:
    """Say how drawn pictures differ; None if only by rounding."""
    levels = np.abs(expected.astype(np.int16) - found)
    if levels.max(initial=0) > MAX_LEVELS:
        return f"a pixel by {levels.max()} of 255 levels, expected at most {MAX_LEVELS}"
    if (share := float((levels > 0).mean())) > MAX_DIFFERENT:
        return f"{share:.1%} of the pixels, expected at most {MAX_DIFFERENT:.0%}"
    return None


def output_errors(expected: Outputs, found: Outputs) -> dict[str, float]:
    """Compute the `relative_error` of each output that exists."""
    pairs = zip(Outputs._fields, expected, found)
    return {name: relative_error(a, b) for name, a, b in pairs if a is not None and b is not None}


def _errors(
    ours: EncodesAndEdits, theirs: EncodesAndEdits, pictures: Picture, schema: Schema
) -> dict[str, float]:
    """Compute the errors of a batch; the query's error includes the encoder's."""
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
    """Compute by metric how many points theirs is below ours; None without queries."""
    figures: list[dict[str, float]] = []
    for places, (_, logits, presence) in zip(ranked, encoded):
        predicted = predicted_labels(logits, schema, labels)
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
    """Convert to float64.

    Float32 distances have rounding errors of about TIE_DISTANCE, which in a dense gallery would
    count as differences between the two sides.
    """
    return array.astype(np.float64)


def _float64_edit(side: EncodesAndEdits) -> Edit:
    return lambda embeddings, indicator: _as_float64(
        side.edit(embeddings.astype(np.float32), indicator)
    )


def same_but_for_ties(query: Vector, embeddings: Vector, ours: Rows, theirs: Rows) -> Any:
    """Return (Q,) bool, whether both answers have the same distance at every rank.

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
    """Return the first batch's pictures, all labels, and the outputs of both sides.

    Only one batch of pictures is in RAM at a time.
    """
    first: Picture | None = None
    labels: list[Labels] = []
    found: tuple[list[Outputs], list[Outputs]] = [], []
    for pictures, batch in split:
        first = pictures if first is None else first
        labels.append(batch)
        for side, outputs in zip((ours, theirs), found):
            outputs.append(side.encode(pictures))
    assert first is not None  # reading a split without pictures raises
    return first, np.concatenate(labels), _joined(found[0]), _joined(found[1])


def _joined(batches: list[Outputs]) -> Outputs:
    embeddings, logits, presence = zip(*batches)
    there = None if presence[0] is None else np.concatenate(presence)
    return Outputs(np.concatenate(embeddings), np.concatenate(logits), there)
