"""Attribute manipulation retrieval: its queries and its measures.

docs/architecture.md defines them: equations 15 and 16. `adde.ranking` answers the queries.

Symbols: N gallery items, Q queries, A attributes, V columns, K answers judged.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from adde.schema import (
    MAX_MULTIPLE,
    SEVERAL,
    UNKNOWN,
    Labels,
    Rows,
    Schema,
    Vector,
    labels_of,
    shows,
    value_bits,
)

Figures = npt.NDArray[np.float64]

Watch = Callable[[list[slice]], Iterable[slice]]
"""Passes on the blocks of a computation one by one, such as a progress bar."""

HIT_RANKS = (1, 10, 20, 30, 40, 50)
NDCG_RANKS = 30
METRIC_NAMES = (*(f"hit@{k}" for k in HIT_RANKS), "ndcg@30", "ndcg_target@30", "ndcg_others@30")
BOOTSTRAP_DRAWS = 1000

BLOCK_ELEMENTS = 1 << 24
"""Numbers in memory at a time: 64 MiB in float32."""


class EditQueries(Protocol):
    """Queries "this item, but with these values", one per row."""

    @property
    def reference(self) -> Rows:
        """(Q,) int64 row of the item in the gallery."""
        ...

    @property
    def values(self) -> Labels:
        """(Q, A) int64 requested values, UNKNOWN where an attribute is not edited."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | Rows) -> "EditQueries": ...


@dataclass(frozen=True)
class Queries:
    """Queries "this item, but with this value", one per row.

    Attributes:
        reference: (Q,) int64 row of the item in the gallery.
        attribute: (Q,) int64 edited attribute.
        value: (Q,) int64 requested label of that attribute.
        targets: (Q, A) int64 labels of the item after the edit.
    """

    reference: Rows
    attribute: Rows
    value: Rows
    targets: Labels

    def __len__(self) -> int:
        return len(self.reference)

    def __getitem__(self, rows: slice | Rows) -> "Queries":
        return Queries(
            self.reference[rows], self.attribute[rows], self.value[rows], self.targets[rows]
        )

    @property
    def values(self) -> Labels:
        """As `EditQueries.values`."""
        values = np.full_like(self.targets, UNKNOWN)
        values[np.arange(len(values)), self.attribute] = self.value
        return values

    def spread(self, most: int) -> "Queries":
        """Keep at most `most` queries, evenly spaced; 0 keeps all."""
        if not 0 < most < len(self):
            return self
        return self[np.linspace(0, len(self) - 1, most).astype(np.int64)]


def manipulation_queries(labels: Labels) -> Queries:
    """List every (item, attribute, other value) for which the gallery holds an exact target.

    A target has the requested value and equals the item in all other attributes, where UNKNOWN
    equals only UNKNOWN. The order is by item, attribute, value. A target that is a set of values
    has the requested one among them; no value is requested that the item has.

    Args:
        labels: (N, A) int64 of the gallery, whose items are also the references.
    """
    found: list[Rows] = []
    for attribute in range(labels.shape[1]):
        own = labels[:, attribute]
        # Items that agree in all other attributes form a family; its values can be requested.
        rest = np.delete(labels, attribute, axis=1)
        family = np.unique(rest, axis=0, return_inverse=True)[1].reshape(-1)
        sets = own >= SEVERAL
        size = MAX_MULTIPLE if sets.any() else int(own.max(initial=-1)) + 1
        shown = np.zeros((int(family.max(initial=-1)) + 1, size), bool)
        single = (own != UNKNOWN) & ~sets
        shown[family[single], own[single]] = True
        members = value_bits(own[sets])[:, None] >> np.arange(size) & 1 == 1
        np.logical_or.at(shown, family[sets], members)
        item, value = np.nonzero(shown[family])
        other = ~shows(own[item], value)
        item, value = item[other], value[other]
        found.append(np.stack([item, np.full_like(item, attribute), value], axis=1))
    table = np.concatenate(found)
    table = table[np.lexsort(table.T[::-1])]
    targets = labels[table[:, 0]].copy()
    targets[np.arange(len(table)), table[:, 1]] = table[:, 2]
    return Queries(table[:, 0], table[:, 1], table[:, 2], targets)


def target_matches(labels: Labels, queries: Queries) -> npt.NDArray[np.bool_]:
    """Return whether answers' labels (Q, ..., A) fit the target, by attribute: (Q, ..., A) bool.

    They fit if they equal the target's; in the edited attribute, also if they are a set that has
    the requested value.
    """
    spread = queries.targets.reshape(len(queries), *[1] * (labels.ndim - 2), -1)
    match: npt.NDArray[np.bool_] = np.equal(labels, spread)
    if (labels >= SEVERAL).any():
        rows = np.arange(len(queries))
        asked = queries.value.reshape(len(queries), *[1] * (labels.ndim - 2))
        edited = labels[rows, ..., queries.attribute]
        match[rows, ..., queries.attribute] = shows(edited, asked)
    return match


def extra_answers(items: Rows | None) -> int:
    """Return how many answers `other_items` removes at most; 0 if each item has one picture."""
    if items is None or not len(items):
        return 0
    return int(np.unique(items, return_counts=True)[1].max()) - 1


def other_items(ranked: Rows, references: Rows, items: Rows | None, k: int) -> Rows:
    """Remove other pictures of a query's own item from its answers, which they would only repeat.

    Args:
        ranked: (Q, K) int64 gallery rows, best first; K at least k + `extra_answers(items)`, or all
            of a smaller gallery.
        references: (Q,) int64 rows of the queries' pictures; these stay.
        items: (N,) numbers, equal for pictures of one item; None: each item has one picture.
        k: answers to keep.

    Returns:
        (Q, min(k, K - extra)) int64.
    """
    if items is None:
        return ranked
    own = (items[ranked] == items[references][:, None]) & (ranked != references[:, None])
    kept = max(1, min(k, ranked.shape[1] - extra_answers(items)))
    order = np.argsort(own, axis=1, kind="stable")[:, :kept]
    return np.take_along_axis(ranked, order, axis=1)


def retrieval_metrics(ranked: Rows, labels: Labels, queries: Queries) -> dict[str, float]:
    """Average `query_metrics`, or return zeros without queries; add the number of queries."""
    found = query_metrics(ranked, labels, queries)
    means = {name: float(values.mean()) if len(queries) else 0.0 for name, values in found.items()}
    return {**means, "queries": len(queries)}


def query_metrics(ranked: Rows, labels: Labels, queries: Queries) -> dict[str, Figures]:
    """Compute hit@k and the three NDCG@30 of every query, (Q,) float64 each.

    NDCG: the relevance is the share of matching attributes (of all, of the edited one, of the
    others), the gain 2^rel - 1, the discount 1 / log(rank + 1); it is normalised by relevance 1 at
    every rank. With a single attribute, `ndcg_others@30` is 1. In a gallery of fewer than k items
    all of them are judged.

    Args:
        ranked: (Q, K) int64 gallery rows, best first.
        labels: (N, A) int64 of the gallery.
        queries: the Q queries.
    """
    found = {name: np.zeros(len(queries)) for name in METRIC_NAMES}
    for block in blocks_of(len(queries), ranked.shape[1] * labels.shape[1]):
        part = queries[block]
        match = target_matches(labels[ranked[block]], part)
        hits: Any = match.all(axis=2)
        for k in HIT_RANKS:
            found[f"hit@{k}"][block] = hits[:, :k].any(axis=1)
        near = match[:, :NDCG_RANKS]
        target = near[np.arange(len(part)), :, part.attribute]
        others = (near.sum(axis=2) - target) / max(1, labels.shape[1] - 1)
        others = others if labels.shape[1] > 1 else np.ones_like(others)
        found["ndcg@30"][block] = _ndcg(near.mean(axis=2))
        found["ndcg_target@30"][block] = _ndcg(target.astype(float))
        found["ndcg_others@30"][block] = _ndcg(others)
    return found


def summary(figures: Mapping[str, Figures], references: Rows) -> dict[str, Any]:
    """Average figures (Q,) and add each one's 95 % confidence `interval` and the `queries` count.

    The interval is a bootstrap over the references (Q,): an item is drawn with all its queries,
    because queries of the same item succeed and fail together.
    """
    names, count = list(figures), len(references)
    if not count:
        zeros = dict.fromkeys(names, 0.0)
        return {**zeros, "queries": 0, "interval": dict.fromkeys(names, (0.0, 0.0))}
    _, item = np.unique(references, return_inverse=True)
    item = item.reshape(-1)
    sums = np.stack([np.bincount(item, figures[name]) for name in names], axis=1)
    counts = np.bincount(item)
    draws = np.random.default_rng(0)
    means = np.empty((BOOTSTRAP_DRAWS, len(names)))
    for row in means:
        drawn = np.bincount(draws.integers(len(counts), size=len(counts)), minlength=len(counts))
        row[:] = drawn @ sums / (drawn @ counts)
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return {
        **{name: float(figures[name].mean()) for name in names},
        "queries": count,
        "interval": dict(zip(names, zip(low.tolist(), high.tolist()))),
    }


def _ndcg(relevance: Figures) -> Figures:
    """Return (Q,) NDCG of relevances (Q, K) within 0..1, best answer first."""
    discount = 1 / np.log2(np.arange(relevance.shape[1], dtype=np.float64) + 2)
    return (np.exp2(relevance) - 1) @ discount / discount.sum()


def hits_by_attribute(
    ranked: Rows, labels: Labels, queries: Queries, schema: Schema
) -> dict[str, dict[str, float]]:
    """Compute hit@1, 10, 30 and the number of queries for each edited attribute, and `macro`.

    `macro` is the mean over attributes, so a rarely edited attribute counts as much as a common
    one. Attributes without queries are left out.
    """
    result: dict[str, dict[str, float]] = {}
    keys = ("hit@1", "hit@10", "hit@30", "queries")
    for attribute, name in enumerate(schema.names):
        rows = np.flatnonzero(queries.attribute == attribute)
        if len(rows):
            figures = retrieval_metrics(ranked[rows], labels, queries[rows])
            result[name] = {key: figures[key] for key in keys}
    if result:
        macro = {key: float(np.mean([row[key] for row in result.values()])) for key in keys[:-1]}
        result["macro"] = {**macro, "queries": len(queries)}
    return result


def predicted_labels(logits: Vector, schema: Schema, labels: Labels | None = None) -> Labels:
    """Return (N, A) int64, the likeliest value of each attribute, from logits (N, V).

    Where the true `labels` (N, A) are given and one is a set of n values, the prediction is the set
    of the n likeliest.
    """
    parts = np.split(logits, schema.offsets[1:], axis=1)
    found = np.stack([part.argmax(axis=1) for part in parts], axis=1).astype(np.int64)
    if labels is None:
        return found
    for a in schema.multiple:
        rows = np.flatnonzero(labels[:, a] >= SEVERAL)
        columns = np.arange(schema.sizes[a])
        count = (value_bits(labels[rows, a])[:, None] >> columns & 1).sum(axis=1)
        place = np.argsort(np.argsort(-parts[a][rows], axis=1, kind="stable"), axis=1)
        found[rows, a] = labels_of(place < count[:, None])
    return found


def attribute_accuracy(
    predicted: Labels, labels: Labels, names: tuple[str, ...]
) -> dict[str, float]:
    """Compute per attribute the share of known labels (N, A) predicted correctly, and their mean.

    A set of values is correct as a whole (subset accuracy); see `predicted_labels`. Attributes
    without a known label are left out.
    """
    known = labels != UNKNOWN
    right = ((predicted == labels) & known).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    shares = {n: float(r) for n, r, k in zip(names, right, known.any(axis=0)) if k}
    return {"mean": float(np.mean(list(shares.values()))) if shares else 0.0, **shares}


def smallest(costs: npt.NDArray[np.floating[Any]], k: int) -> Rows:
    """Return (Q, min(k, N)) columns of the smallest costs (Q, N), ascending.

    Ties go to the lowest column.
    """
    k = min(k, costs.shape[1])
    if k == costs.shape[1]:
        return np.argsort(costs, axis=1, kind="stable")
    chosen = np.sort(np.argpartition(costs, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(np.take_along_axis(costs, chosen, axis=1), axis=1, kind="stable")
    ranked = np.take_along_axis(chosen, order, axis=1)
    # A partition keeps arbitrary columns of those that tie with the last: sort such rows whole.
    last = np.take_along_axis(costs, ranked[:, -1:], axis=1)
    for row in np.flatnonzero((costs <= last).sum(axis=1) > k):
        ranked[row] = np.argsort(costs[row], kind="stable")[:k]
    return ranked


def unit(vectors: Vector) -> Vector:
    """Scale vectors (..., E) to length 1; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def blocks_of(rows: int, width: int) -> list[slice]:
    """Split `rows` into slices whose blocks of `width` columns stay within BLOCK_ELEMENTS."""
    step = max(1, BLOCK_ELEMENTS // max(1, width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
