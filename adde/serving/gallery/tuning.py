"""Choose how many candidates an index re-ranks, by comparison with exact search on edited items."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from adde.schema import Schema, Vector
from adde.scoring import Calibration, ask_value, match_scores, parts
from adde.serving.gallery.scan import Mask, Rows, score_rows
from adde.serving.gallery.scorers import DistanceScorer, MatchScorer, with_unit_subspaces

if TYPE_CHECKING:
    from adde.serving.gallery.index import Index

TARGET_RECALL = 0.998
"""Recall to reach on the measured queries, with a margin so that other queries reach 0.995."""

RECALL_AT = 30
QUERIES = 100
"""Queries per kind."""

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
"""Candidates per wanted item; the smallest sufficient one is chosen."""

BLOCK_BYTES = 16 << 20
"""Bytes of rows scored at a time."""

Kinds = dict[str, dict[str, float]]


def depth_for(kinds: Mapping[str, Mapping[str, float]], weights: Vector) -> int:
    """Return the depth measured for weights at least as concentrated as these."""
    even = effective_attributes(weights) * (1 + 1e-6)
    enough = [kind for kind in kinds.values() if kind["attributes"] <= even]
    return int(max(enough or kinds.values(), key=lambda kind: kind["attributes"])["depth"])


def effective_attributes(weights: Vector) -> float:
    """Effective number of attributes: A for equal weights, 1 if only one counts."""
    exact = weights.astype(np.float64)
    return float(exact.sum() ** 2 / np.square(exact).sum())


def tune(
    index: "Index",
    rows: Vector,
    beliefs: Vector | None,
    live: Mask,
    schema: Schema,
    calibration: Calibration | None,
) -> dict[str, Kinds]:
    """Find the smallest depths by distance and by match that reach TARGET_RECALL, with their
    recall.

    Args:
        index: its report is set to each depth tried.
        rows: (N, A D + A + 1) as stored.
        beliefs: (N, V + A) as stored.
        live: (N,) True for rows that are live items.
        schema: the gallery's schema.
        calibration: the bundle's calibration, or None.
    """
    attributes = len(schema.sizes)
    k = min(RECALL_AT, int(np.count_nonzero(live)))
    counts = {"all": attributes, "half": max(1, attributes // 2), "one": 1}
    queries = {
        # Requests that weight attributes or leave some out compare unit subspaces.
        name: _sample_queries(rows, beliefs, live, schema, counted, name != "all", calibration)
        for name, counted in counts.items()
    }
    every = [query for kind in queries.values() for query in kind]
    vectors = np.stack([near.vector for near, _ in every])
    width = vectors.shape[1] // attributes - 1

    def nearness(block: Vector) -> Vector:
        unit = with_unit_subspaces(block, attributes, width)
        plain = vectors[:QUERIES] @ block[:, : vectors.shape[1]].T
        return np.vstack([plain, vectors[QUERIES:] @ unit.T])

    floors = _score_floors(rows, live, nearness, k)
    tuned: dict[str, Kinds] = {"distance": {}, "match": {}}
    for (name, kind), least in zip(queries.items(), np.split(floors, len(counts))):
        scorers = [near for near, _ in kind]
        searches = [partial(index.nearest, near, live, rows, k) for near in scorers]
        found = _find_depth(index, "distance", name, scorers, least, rows, searches, k)
        tuned["distance"][name] = found
    matches = [match for _, match in every if match is not None]
    if beliefs is None or not matches:
        return tuned
    wanted, weights = (
        np.stack([vars(match)[field] for match in matches]) for field in ("wanted", "weights")
    )
    epsilon = matches[0].epsilon
    floors = _score_floors(
        beliefs, live, lambda block: match_scores(wanted, weights, block, schema, epsilon), k
    )
    for (name, kind), least in zip(queries.items(), np.split(floors, len(counts))):
        pairs = [(near, match) for near, match in kind if match is not None]
        searches = [
            partial(index.matches, [(match, k)], near, live, rows, beliefs) for near, match in pairs
        ]
        scorers = [match for _, match in pairs]
        tuned["match"][name] = _find_depth(
            index, "match", name, scorers, least, beliefs, searches, k
        )
    return tuned


def _find_depth(
    index: "Index",
    rank: str,
    name: str,
    scorers: Sequence[DistanceScorer] | Sequence[MatchScorer],
    floors: Vector,
    stored: Vector,
    searches: Sequence[Callable[[], Rows]],
    k: int,
) -> dict[str, float]:
    """Find the smallest depth that reaches TARGET_RECALL, or the largest tried.

    Args:
        index: its report is set to each depth tried.
        rank: "distance" or "match".
        name: of this kind of queries.
        scorers: of each query.
        floors: (Q,) scores that a correct answer reaches.
        stored: rows that the scorers take.
        searches: of each query, by the index.
        k: rows that each search returns.
    """
    found: dict[str, float] = {}
    recall = 0.0
    for depth in DEPTHS:
        found = {"attributes": round(effective_attributes(scorers[0].weights), 3), "depth": depth}
        index.report[rank] = {name: found}
        right = 0
        for score, floor, search in zip(scorers, floors, searches):
            rows = np.sort(search())
            # Fully labelled items tie; any of them is correct.
            right += min(k, int(np.count_nonzero(score_rows(stored, rows, score) >= floor)))
        recall = right / (k * len(searches))
        found[f"recall{RECALL_AT}"] = round(recall, 5)
        if recall >= TARGET_RECALL:
            return found
    print(
        f"warning: index: by {rank}, queries on {name} of the attributes reach recall "
        f"{recall:.3f} with {DEPTHS[-1]} candidates per answer, the most tried; the target is "
        f"{TARGET_RECALL}",
        file=sys.stderr,
    )
    return found


def _score_floors(stored: Vector, live: Mask, scores: Callable[[Vector], Vector], k: int) -> Vector:
    """For each query, the k-th best score over all live items, less rounding; one pass over the
    rows.

    Args:
        stored: rows (N, ...).
        live: (N,) True for rows that are live items.
        scores: maps rows to scores (Q, N).
        k: the rank.
    """
    best: Vector | None = None
    step = max(k, BLOCK_BYTES // (4 * stored.shape[1]))
    for at in range(0, len(stored), step):
        every = scores(np.asarray(stored[at : at + step])[live[at : at + step]])
        if best is not None:
            every = np.hstack([best, every])
        floor = max(0, every.shape[1] - k)
        best = np.partition(every, floor, axis=1)[:, floor:] if every.shape[1] else best
    assert best is not None
    kth = best.min(axis=1)
    return kth - np.float32(1e-5) * np.maximum(1, np.abs(kth))


def _sample_queries(
    rows: Vector,
    beliefs: Vector | None,
    live: Mask,
    schema: Schema,
    counted: int,
    unit: bool,
    calibration: Calibration | None,
) -> list[tuple[DistanceScorer, MatchScorer | None]]:
    """Make queries from stored items by swapping in one subspace of another item, as an edit does.

    The swapped attribute and others, `counted` in all, have weight; `unit` as in `DistanceScorer`.
    """
    attributes = len(schema.sizes)
    width = (rows.shape[1] - attributes - 1) // attributes
    draws = np.random.default_rng(1)
    items, asked = np.flatnonzero(live), list[tuple[DistanceScorer, MatchScorer | None]]()
    for _ in range(QUERIES):
        one, other = draws.choice(items, 2).tolist()
        order = draws.permutation(attributes)
        edited = rows[one, : attributes * width].reshape(attributes, width).copy()
        donor = rows[other, : attributes * width].reshape(attributes, width)
        edited[order[0]] = donor[order[0]]
        edited /= max(float(np.linalg.norm(edited)), 1e-12)
        weights = np.isin(np.arange(attributes), order[:counted]).astype(np.float32)
        match = None
        if beliefs is not None and calibration is not None:
            wanted, part = beliefs[one].copy(), parts(schema)[int(order[0])]
            ask_value(wanted[None], part, int(beliefs[other, part][:-1].argmax()))
            weighed = weights.copy()
            weighed[order[0]] *= calibration.edit_weight
            match = MatchScorer(wanted, weighed, calibration.epsilon, schema)
        asked.append((DistanceScorer(edited, weights, unit), match))
    return asked
