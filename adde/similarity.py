"""Conditional similarity: how alike items are in one attribute, whatever else they show.

Items are ranked for each query, and an attribute's ranking is judged by MAP@all: the queries and
candidates of that attribute, relevant those of the query's value, average precision over the whole
list, the query itself left out. Items that score alike share their place: precision is taken at the
end of such a group, so that a constant score gets the share of relevant candidates.

Given triplets (anchor, close, far) are judged by the share in which the close item scores strictly
higher than the far one.

The *leak matrix* has in row a, column b the MAP of attribute a's labels ranked in subspace b. Its
diagonal is what the subspaces are for; elsewhere it should be near the row's MAP of a random
ranking, unless the labels of a and b go together in the data.

Symbols: N items, A attributes, D width of a subspace, V columns, E width of a ranking's vectors,
T triplets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adde.metrics import Figures, Watch, blocks_of, predicted_labels
from adde.schema import UNKNOWN, Labels, Rows, Schema, Vector
from adde.scoring import parts

Mask = npt.NDArray[np.bool_]

RANDOM_WIDTH = 16
"""Width E of the vectors that the random ranking compares."""


class Ranking(NamedTuple):
    """How similar item i is to item j: the product queries[i] @ items[j].

    Attributes:
        queries: (N, E) float32.
        items: (N, E) float32; the same array where similarity is symmetric.
    """

    queries: Vector
    items: Vector


@dataclass(frozen=True, eq=False)
class Benchmark:
    """The queries and candidates of a split.

    Attributes:
        queries: (N, A) bool, whether an item is a query of an attribute.
        candidates: (N, A) bool, whether it is searched for.
        triplets: of an attribute's index (T, 3) int64 rows: anchor, close, far.
    """

    queries: Mask
    candidates: Mask
    triplets: Mapping[int, Rows] = field(default_factory=dict[int, Rows])

    @classmethod
    def of_labels(cls, labels: Labels, most: int = 0) -> "Benchmark":
        """Every item with a known label (N, A) is a query and a candidate of that attribute.

        Args:
            labels: (N, A) int64.
            most: queries of an attribute, evenly spaced over all; 0: all.
        """
        known = labels != UNKNOWN
        queries = known.copy()
        for column in queries.T if most else ():
            rows = np.flatnonzero(column)
            if len(rows) > most:
                column[:] = False
                column[rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]] = True
        return cls(queries, known)


def subspaces(embeddings: Vector) -> list[Ranking]:
    """Rank, for each attribute, by cosine in its subspace of embeddings (N, A, D)."""
    return [_symmetric(_unit(embeddings[:, a])) for a in range(embeddings.shape[1])]


def whole(embeddings: Vector) -> Ranking:
    """Rank by cosine of whole embeddings (N, A, D), whatever the attribute."""
    return _symmetric(_unit(embeddings.reshape(len(embeddings), -1)))


def predicted_values(embeddings: Vector, logits: Vector, schema: Schema) -> list[Ranking]:
    """Rank, for each attribute, items with the same predicted value first, then by cosine.

    Args:
        embeddings: (N, A, D) float32.
        logits: (N, V) float32.
        schema: of the columns.
    """
    hot = np.split(schema.multi_hot(predicted_labels(logits, schema)), schema.offsets[1:], axis=1)
    # A match counts 4, the cosine at most 1.
    return [
        _symmetric(np.concatenate([2 * part, _unit(embeddings[:, a])], axis=1))
        for a, part in enumerate(hot)
    ]


def match_probabilities(beliefs: Vector, schema: Schema) -> list[Ranking]:
    """Rank, for each attribute, by its P_a of the match score (`adde.scoring`) alone.

    Args:
        beliefs: (N, V + A) float32.
        schema: of the columns.
    """
    return [_symmetric(np.ascontiguousarray(beliefs[:, part])) for part in parts(schema)]


def random_ranking(items: int) -> Ranking:
    """Rank by products of independent random vectors."""
    draws = np.random.default_rng(0)
    queries, drawn = draws.standard_normal((2, items, RANDOM_WIDTH), dtype=np.float32)
    return Ranking(queries, drawn)


def average_precisions(
    ranking: Ranking,
    labels: Labels,
    benchmark: Benchmark,
    attributes: Sequence[int],
    watch: Watch = iter,
    items: Rows | None = None,
) -> Figures:
    """Judge one ranking by the labels of several attributes.

    Args:
        ranking: of the N items; a block of queries x items is held at a time.
        labels: (N, A) int64.
        benchmark: the queries and candidates.
        attributes: indices.
        watch: hands on the blocks of queries.
        items: (N,) numbers, equal for pictures of one item, which are no answers to each other;
            None: each item has one picture.

    Returns:
        (N, len(attributes)) float64 average precisions; NaN where an item is not a query of the
        attribute, or no other candidate has its value.
    """
    attributes = list(attributes)
    asked = benchmark.queries[:, attributes] & (labels[:, attributes] != UNKNOWN)
    sought = np.where(benchmark.candidates, labels, UNKNOWN)[:, attributes]
    found = np.full(asked.shape, np.nan)
    queries = np.flatnonzero(asked.any(axis=1))
    rows_of = np.flatnonzero((sought != UNKNOWN).any(axis=1))
    values = np.ascontiguousarray(sought[rows_of].T)  # by attribute
    candidates = ranking.items[rows_of]
    place_of = np.full(len(labels), -1)
    place_of[rows_of] = np.arange(len(rows_of))
    for block in watch(blocks_of(len(queries), len(rows_of))):
        rows = queries[block]
        for row, scores in zip(rows, ranking.queries[rows] @ candidates.T):
            own = place_of[[row]] if items is None else place_of[items == items[row]]
            own = own[own >= 0]
            scores[own] = np.inf  # first of all, and left out
            order = np.argsort(-scores)[len(own) :]
            if not len(order):
                continue
            last = _last_alike(scores[order])
            for column in np.flatnonzero(asked[row]):
                ranked = values[column][order]
                value = labels[row, attributes[column]]
                found[row, column] = _average_precision(ranked, value, last)
    return found


def _last_alike(scores: Vector) -> Rows:
    """Return, for each of M sorted scores, the last place with the same score: (M,) int64."""
    changes = scores[1:] != scores[:-1]
    ends = np.append(np.flatnonzero(changes), len(changes))
    return ends[np.append(0, np.cumsum(changes))]


def _average_precision(ranked: Labels, value: np.int64, last: Rows) -> float:
    """Return the average precision of ranked values (M,), UNKNOWN where not a candidate."""
    relevant = np.flatnonzero(ranked == value)
    if not len(relevant):
        return np.nan
    ends = last[relevant]
    precision = np.searchsorted(relevant, ends, "right") / np.cumsum(ranked != UNKNOWN)[ends]
    return float(precision.mean())


def triplet_accuracy(ranking: Ranking, triplets: Rows) -> float:
    """Return the share of triplets (T, 3) whose close item is strictly nearer to the anchor."""
    right = 0
    for block in blocks_of(len(triplets), 3 * ranking.items.shape[1]):
        anchor, close, far = triplets[block].T
        # The difference first: between equal items it is 0 exactly, whatever the rounding.
        nearer = ranking.items[close] - ranking.items[far]
        right += int((np.einsum("te,te->t", ranking.queries[anchor], nearer) > 0).sum())
    return right / max(1, len(triplets))


def similarity_figures(
    embeddings: Vector,
    logits: Vector,
    beliefs: Vector | None,
    labels: Labels,
    schema: Schema,
    benchmark: Benchmark,
    watch: Watch = iter,
    items: Rows | None = None,
) -> dict[str, Any]:
    """Judge every ranking, each attribute in the ranking of its own.

    Rankings: `subspace` (the embedding as it is meant), `match` (where there are beliefs),
    `classifier` (`predicted_values`), `whole`, `random`.

    Args:
        embeddings: (N, A, D) float32.
        logits: (N, V) float32.
        beliefs: (N, V + A) float32 of the calibration, or None where there is none.
        labels: (N, A) int64.
        schema: of the columns.
        benchmark: what is asked.
        watch: hands on the blocks of queries, of one ranking after the other.
        items: see `average_precisions`.

    Returns:
        `map` and `triplets` by ranking: of each attribute that is asked for, and their `mean`,
        over queries or triplets; `queries` by attribute, counting those that have an answer;
        `unanswered` of those that have none; `leak` (A, A), None where an attribute has no
        query. `triplets` is empty where none were given.
    """
    everything = list(range(len(schema.names)))
    in_subspaces = subspaces(embeddings)
    columns = [
        average_precisions(ranking, labels, benchmark, everything, watch, items)
        for ranking in in_subspaces
    ]
    found = {"subspace": np.stack([found[:, a] for a, found in enumerate(columns)], axis=1)}
    own = {"classifier": predicted_values(embeddings, logits, schema)}
    if beliefs is not None:
        own = {"match": match_probabilities(beliefs, schema), **own}
    for name, rankings in own.items():
        precisions = [
            average_precisions(ranking, labels, benchmark, [a], watch, items)
            for a, ranking in enumerate(rankings)
        ]
        found[name] = np.concatenate(precisions, axis=1)
    shared = {"whole": whole(embeddings), "random": random_ranking(len(labels))}
    for name, ranking in shared.items():
        found[name] = average_precisions(ranking, labels, benchmark, everything, watch, items)
    rankings = {"subspace": in_subspaces, **own}
    rankings |= {name: [ranking] * len(everything) for name, ranking in shared.items()}
    answered = ~np.isnan(found["subspace"])
    return {
        "map": {name: _means(values, schema) for name, values in found.items()},
        "queries": _counts(answered.sum(axis=0), schema),
        "unanswered": int((benchmark.queries & ~answered).sum()),
        "leak": _leak(columns),
        "triplets": {
            name: _triplet_means(of_name, benchmark.triplets, schema)
            for name, of_name in rankings.items()
            if benchmark.triplets
        },
    }


def _means(precisions: Figures, schema: Schema) -> dict[str, float]:
    """Means of (N, A) average precisions, NaN where there is no query."""
    known = ~np.isnan(precisions)
    means = {
        name: float(precisions[known[:, a], a].mean())
        for a, name in enumerate(schema.names)
        if known[:, a].any()
    }
    return {"mean": float(precisions[known].mean()) if means else 0.0, **means}


def _triplet_means(
    rankings: Sequence[Ranking], triplets: Mapping[int, Rows], schema: Schema
) -> dict[str, float]:
    shares = {a: triplet_accuracy(rankings[a], rows) for a, rows in triplets.items()}
    weights = [len(triplets[a]) for a in shares]
    mean = float(np.average(list(shares.values()), weights=weights))
    return {"mean": mean, **{schema.names[a]: share for a, share in shares.items()}}


def _counts(counts: Rows, schema: Schema) -> dict[str, int]:
    return {name: count for name, count in zip(schema.names, counts.tolist()) if count}


def _leak(columns: Sequence[Figures]) -> list[list[float | None]]:
    """Rows: attributes whose labels are ranked; columns: subspaces they are ranked in."""
    return [
        [
            float(column[known, a].mean()) if (known := ~np.isnan(column[:, a])).any() else None
            for column in columns
        ]
        for a in range(len(columns))
    ]


def as_text(figures: Mapping[str, Any], schema: Schema) -> str:
    """Format the figures as tables in percent: MAP, triplets if any were given, and the leak matrix
    beside the MAP of a random ranking.
    """
    lines = [
        "MAP@all, %: queries and candidates of one attribute, ranked in its own subspace",
        *_table(figures["map"], figures["queries"]),
    ]
    if figures["unanswered"]:
        lines.append(f"{figures['unanswered']:,} queries have no candidate of their value")
    if figures["triplets"]:
        lines += ["", "triplets, %: the close item nearer than the far one"]
        lines += _table(figures["triplets"])
    lines += ["", "leak matrix, MAP@all, %: labels of the row ranked in the subspace of the column"]
    asked = figures["map"]["random"]
    rows = [["", *schema.names, "random"]]
    for name, row in zip(schema.names, figures["leak"]):
        if name in asked:
            rows.append([name, *map(_percent, row), _percent(asked[name])])
    return "\n".join([*lines, *_aligned(rows)])


def _table(
    by_ranking: Mapping[str, Mapping[str, float]], queries: Mapping[str, int] | None = None
) -> list[str]:
    first = next(iter(by_ranking.values()))
    rows = [["", *by_ranking, *(["queries"] if queries else [])]]
    for name in [*(name for name in first if name != "mean"), "mean"]:
        count = sum(queries.values()) if queries and name == "mean" else (queries or {}).get(name)
        cells = [_percent(figures[name]) for figures in by_ranking.values()]
        rows.append([name, *cells, *([] if count is None else [f"{count:,}"])])
    return _aligned(rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _symmetric(vectors: Vector) -> Ranking:
    return Ranking(vectors, vectors)


def _unit(vectors: Vector) -> Vector:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
