"""How far an index looks: measured on edited items, against looking at every item."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from adde.schema import Vector
from adde.serving.asking import augmented_query

AIM = 0.998
"""Recall of the queries that are measured, so that others have 0.99."""

RECALL_AT = 30
QUERIES = 100
"""Of each kind."""

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
"""Candidates for each item wanted; the smallest that is enough is taken."""

BLOCK_BYTES = 64 << 20
"""Vectors scored at a time."""

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


class Probed(Protocol):
    """What is measured: an index and how it is asked."""

    lists: Any
    directions: Any
    report: dict[str, Any]

    def candidates(self, vector: Vector, most: int, probes: int, chosen: Mask | None) -> Rows:
        """Rows, the likeliest first."""
        ...

    def search(self, vector: Vector, allowed: Mask, rows: Vector, k: int) -> Rows | None:
        """Rows, nearest first."""
        ...


def tune(index: Probed, near: Any, rows: Vector, live: Mask) -> dict[str, Any]:
    """Depth and probes, the smallest that reach AIM, and the recall that they have.

    Args:
        index: whose report is given what is found on the way.
        near: faiss index that says which list a compact row lies in.
        rows: (N, A D + A + 1) as they are stored.
        live: (N,) which of them are items.
    """
    attributes, width = index.directions.means.shape
    k, lists = min(RECALL_AT, int(np.count_nonzero(live))), int(index.report["lists"])
    kinds = {"all": attributes, "half": max(1, attributes // 2), "one": 1}
    queries = {name: _queries(rows, live, (attributes, width), n) for name, n in kinds.items()}
    every = nearest_of_all(rows, live, np.concatenate([*queries.values()]), k)
    truth = dict(zip(queries, np.split(every, len(queries))))
    places = {name: _places(index, queries[name], truth[name], live) for name in kinds}
    ranks = {name: _list_ranks(index, near, queries[name], truth[name], rows) for name in kinds}
    enough = (1 + AIM) / 2  # what is left is for the lists that are not looked at
    depth = next(
        (d for d in DEPTHS if min((place < d * k).mean() for place in places.values()) >= enough),
        DEPTHS[-1],
    )
    settings = {
        name: {
            "attributes": kinds[name],
            "probes": _probes(np.where(places[name] < depth * k, ranks[name], lists), lists),
        }
        for name in kinds
    }
    index.report |= {"depth": depth, "kinds": settings}
    for name in kinds:
        settings[name][f"recall{RECALL_AT}"] = _recall(
            index, queries[name], truth[name], rows, live
        )
    return {"depth": depth, "kinds": settings}


def _probes(ranks: npt.NDArray[np.int64], lists: int) -> int:
    """Lists to look at, so that AIM of these ranks lie within them."""
    needed = np.sort(ranks, axis=None)[int(np.ceil(AIM * ranks.size)) - 1]
    return min(int(needed) + 1, lists)


def _queries(rows: Vector, live: Mask, shape: tuple[int, int], alike: int) -> Vector:
    """Stored items with one subspace of another, as an edit makes them, (QUERIES, A D + A); that
    subspace and others, `alike` in all, count.
    """
    attributes, width = shape
    draws = np.random.default_rng(1)
    items, queries = np.flatnonzero(live), np.empty((QUERIES, attributes * width + attributes))
    for row in range(QUERIES):
        one, other = rows[draws.choice(items, 2)][:, : attributes * width]
        edited = one.reshape(shape).copy()
        order = draws.permutation(attributes)
        edited[order[0]] = other.reshape(shape)[order[0]]
        edited /= max(float(np.linalg.norm(edited)), 1e-12)
        weights = np.isin(np.arange(attributes), order[:alike]).astype(np.float32)
        queries[row] = augmented_query(edited, weights)
    return queries.astype(np.float32)


def _places(index: Probed, queries: Vector, truth: Rows, live: Mask) -> Rows:
    """Of each wanted row (Q, k), its place among the candidates of all lists."""
    lists, most = int(index.report["lists"]), DEPTHS[-1] * truth.shape[1]
    chosen = None if live.all() else live
    places = np.full(truth.shape, most)
    for query, wanted, place in zip(queries, truth, places):
        found = index.candidates(query, most, lists, chosen)
        at = np.flatnonzero(np.isin(found, wanted))
        known = {int(found[number]): int(number) for number in at}
        place[:] = [known.get(int(row), most) for row in wanted]
    return places


def _list_ranks(index: Probed, near: Any, queries: Vector, truth: Rows, rows: Vector) -> Rows:
    """Of each wanted row (Q, k), how many lists are looked at before its own."""
    lists = int(index.report["lists"])
    ranks = np.empty(truth.shape, np.int64)
    for query, wanted, rank in zip(queries, truth, ranks):
        own = near.search(index.directions.rows(rows[wanted]), 1)[1][:, 0]
        order = index.lists.quantizer.search(index.directions.query(query), lists)[1][0]
        rank[:] = np.argsort(order)[own]
    return ranks


def _recall(index: Probed, queries: Vector, truth: Rows, rows: Vector, live: Mask) -> float:
    hits = 0
    for query, wanted in zip(queries, truth):
        found = index.search(query, live, rows, truth.shape[1])
        hits += truth.shape[1] if found is None else len(np.intersect1d(found, wanted))
    return hits / truth.size


def nearest_of_all(rows: Vector, allowed: Mask, vectors: Vector, k: int) -> Rows:
    """As `exact` for vectors (Q, A D + A) at once, in one pass over the rows: (Q, k), unordered."""
    used, count = vectors.shape[1], len(vectors)
    best = np.full((count, k), -np.inf, np.float32)
    found = np.zeros((count, k), np.int64)
    step = max(1, BLOCK_BYTES // (4 * rows.shape[1]))
    for at in range(0, len(rows), step):
        scores = vectors @ np.ascontiguousarray(rows[at : at + step, :used]).T
        scores[:, ~allowed[at : at + step]] = -np.inf
        numbers: Rows = np.tile(np.arange(at, at + scores.shape[1], dtype=np.int64), (count, 1))
        scores, numbers = np.hstack([best, scores]), np.hstack([found, numbers])
        first = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best = np.take_along_axis(scores, first, axis=1)
        found = np.take_along_axis(numbers, first, axis=1)
    return found
