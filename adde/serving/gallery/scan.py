"""Exact scans of stored rows in blocks: nearest rows, best matches, rows that show a value."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from adde.metrics import smallest
from adde.schema import Labels, Schema, Vector
from adde.serving.gallery.scorers import ROUNDING, BeliefScorer, DistanceScorer, shows_labels

BLOCK_BYTES = 4 << 20
"""Bytes of rows scored at a time, small enough for intermediate results to stay in cache."""

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


def score_rows(rows: Vector, chosen: Rows, score: Callable[[Vector], Vector]) -> Vector:
    """Score the chosen rows, given in ascending order, in blocks; (n,) float32."""
    step = max(1, BLOCK_BYTES // (4 * rows.shape[1]))
    if len(chosen) < len(rows) // 4:
        few = range(0, len(chosen), step)
        return _concatenate([score(rows[chosen[at : at + step]]) for at in few])
    scores = [score(rows[at : at + step]) for at in range(0, len(rows), step)]
    return _concatenate(scores)[chosen]


def _concatenate(scores: list[Vector]) -> Vector:
    return np.concatenate(scores) if scores else np.empty(0, np.float32)


def nearest_rows(rows: Vector, allowed: Mask, near: DistanceScorer, k: int) -> Rows:
    """Return the k nearest allowed rows, nearest first; ties go to the lowest row."""
    chosen = np.flatnonzero(allowed)
    return chosen[smallest(-score_rows(rows, chosen, near)[None], k)[0]]


def best_match_rows(
    beliefs: Vector,
    rows: Vector,
    allowed: Mask,
    asked: Sequence[tuple[BeliefScorer, int]],
    near: DistanceScorer,
) -> Rows:
    """Return the allowed rows that match best by any of several rankings; ties go to the nearest.

    Args:
        beliefs: (N, V + A) of every row.
        rows: (N, A D + A + ...) as stored.
        allowed: (N,) rows that may be chosen.
        asked: scorers, each with the number of rows wanted of it.
        near: breaks ties between equal match scores.
    """
    chosen = np.flatnonzero(allowed)
    found = [
        top_matches(chosen, score_rows(beliefs, chosen, match), rows, match, near, k)
        for match, k in asked
    ]
    return merge_rankings(found)


def merge_rankings(found: Sequence[Rows]) -> Rows:
    """Merge rankings: each row once, in the order of the first ranking that has it."""
    every = np.concatenate(found)
    return every[np.sort(np.unique(every, return_index=True)[1])]


def top_matches(
    chosen: Rows, scores: Vector, rows: Vector, match: BeliefScorer, near: DistanceScorer, k: int
) -> Rows:
    """Return the k chosen rows with the highest scores, highest first; ties go to the nearest.

    Fully labelled items tie by the thousand.
    """
    if len(chosen) > k:
        last = scores[np.argpartition(-scores, k - 1)[k - 1]]
        kept = np.flatnonzero(scores >= last - ROUNDING * match.weights.sum())
        chosen, scores = chosen[kept], scores[kept]
    nearness = score_rows(rows, chosen, near)
    # The last bits of a sum depend on the block it was computed in.
    steps = np.floor_divide(scores, ROUNDING * float(match.weights.sum()))
    return chosen[np.lexsort((-nearness, -steps))[:k]]


def rows_showing(
    beliefs: Vector, allowed: Mask, must: Mapping[int, Labels], schema: Schema
) -> Mask:
    """(N,) which of the allowed rows show one of the labels of every attribute of `must`."""
    chosen, passed = np.flatnonzero(allowed), np.zeros(len(allowed), np.bool_)

    def score(block: Vector) -> Vector:
        return shows_labels(block, must, schema).astype(np.float32)

    passed[chosen] = score_rows(beliefs, chosen, score) > 0
    return passed
