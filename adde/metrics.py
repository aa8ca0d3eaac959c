"""Attribute manipulation retrieval: its queries, its rankings, its measures.

docs/architecture.md defines them: equations 15 and 16.

Symbols: N gallery items, Q queries, A attributes, V columns, E width of a whole embedding, K
ranks looked at.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from adde.schema import UNKNOWN, Labels, Schema, Vector

Places = npt.NDArray[np.int64]
Figures = npt.NDArray[np.float64]
Edit = Callable[[Vector, Vector], Vector]
"""Embeddings (Q, A, D) and indicator (Q, V) to L2-normalised queries (Q, A D), all float32."""

Search = Callable[[Vector, Vector, int], Places]
"""Queries (Q, E), gallery (N, E) and k to what `top_k` gives of them."""

Watch = Callable[[list[slice]], Iterable[slice]]
"""Hands on the blocks of a ranking, one after the other: a progress bar."""

HIT_RANKS = (1, 10, 20, 30, 40, 50)
NDCG_RANKS = 30
METRIC_NAMES = (*(f"hit@{k}" for k in HIT_RANKS), "ndcg@30", "ndcg_target@30", "ndcg_others@30")
BASELINES = ("random", "no_edit", "classifier", "classifier_soft")
BASELINE_ARRAYS = 8
"""Float32 arrays of queries x gallery that ranking by the baselines holds at a time."""

BOOTSTRAP = 1000
"""Draws of an interval."""

BLOCK_ELEMENTS = 1 << 24
"""Numbers held at a time: 64 MiB in float32."""


class Asked(Protocol):
    """Questions "this item, but with these values", a row each."""

    @property
    def reference(self) -> Places:
        """(Q,) int64 row of the item in the gallery."""
        ...

    @property
    def values(self) -> Labels:
        """(Q, A) int64 values asked for, UNKNOWN where an attribute is not edited."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | Places) -> "Asked": ...


@dataclass(frozen=True)
class Queries:
    """Rows of one question each: "this item, but with this value".

    Attributes:
        reference: (Q,) int64 row of the item in the gallery.
        attribute: (Q,) int64 edited attribute.
        value: (Q,) int64 new label of that attribute.
        targets: (Q, A) int64 the item's labels with the edit made.
    """

    reference: Places
    attribute: Places
    value: Places
    targets: Labels

    def __len__(self) -> int:
        return len(self.reference)

    def __getitem__(self, rows: slice | Places) -> "Queries":
        return Queries(
            self.reference[rows], self.attribute[rows], self.value[rows], self.targets[rows]
        )

    @property
    def values(self) -> Labels:
        """See `Asked`."""
        values = np.full_like(self.targets, UNKNOWN)
        values[np.arange(len(values)), self.attribute] = self.value
        return values

    def spread(self, most: int) -> "Queries":
        """At most so many, evenly spaced over all; 0: all."""
        if not 0 < most < len(self):
            return self
        return self[np.linspace(0, len(self) - 1, most).astype(np.int64)]


def manipulation_queries(labels: Labels) -> Queries:
    """Every (item, attribute, other value) for which the gallery holds an exact target.

    A target equals the item's labels in all other attributes, UNKNOWN only UNKNOWN, and shows
    the new value, which is known. Ordered by item, attribute, value.

    Args:
        labels: (N, A) int64 of the gallery, whose items are the queries' too.
    """
    found: list[Places] = []
    for attribute in range(labels.shape[1]):
        own = labels[:, attribute]
        # Items that agree in everything else form a family; its values are what can be asked.
        rest = np.delete(labels, attribute, axis=1)
        family = np.unique(rest, axis=0, return_inverse=True)[1].reshape(-1)
        shown = np.zeros((int(family.max(initial=-1)) + 1, int(own.max(initial=-1)) + 1), bool)
        shown[family[own != UNKNOWN], own[own != UNKNOWN]] = True
        item, value = np.nonzero(shown[family])
        other = value != own[item]
        item, value = item[other], value[other]
        found.append(np.stack([item, np.full_like(item, attribute), value], axis=1))
    table = np.concatenate(found)
    table = table[np.lexsort(table.T[::-1])]
    targets = labels[table[:, 0]].copy()
    targets[np.arange(len(table)), table[:, 1]] = table[:, 2]
    return Queries(table[:, 0], table[:, 1], table[:, 2], targets)


def top_k(queries: Vector, gallery: Vector, k: int = 50) -> Places:
    """Gallery rows by ascending squared Euclidean distance, ties to the lowest row.

    Args:
        queries: (Q, E) float32.
        gallery: (N, E) float32.
        k: ranks wanted; all N where the gallery is smaller.

    Returns:
        (Q, min(k, N)) int64.
    """
    norms = np.einsum("ne,ne->n", gallery, gallery)
    blocks = [
        smallest(norms - 2 * (queries[block] @ gallery.T), k)
        for block in blocks_of(len(queries), len(gallery))
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, min(k, len(gallery))), np.int64)


def smallest(costs: npt.NDArray[np.floating[Any]], k: int) -> Places:
    """(Q, min(k, N)) columns of the smallest costs (Q, N), ascending, ties to the lowest."""
    k = min(k, costs.shape[1])
    if k == costs.shape[1]:
        return np.argsort(costs, axis=1, kind="stable")
    chosen = np.sort(np.argpartition(costs, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(np.take_along_axis(costs, chosen, axis=1), axis=1, kind="stable")
    ranked = np.take_along_axis(chosen, order, axis=1)
    # A partition keeps any of those equal to the last one in; there, sort the whole row.
    last = np.take_along_axis(costs, ranked[:, -1:], axis=1)
    for row in np.flatnonzero((costs <= last).sum(axis=1) > k):
        ranked[row] = np.argsort(costs[row], kind="stable")[:k]
    return ranked


class On(NamedTuple):
    """Where products are taken and sorted: numpy, or a device whose arrays have its operators."""

    place: Callable[[Any], Any]
    """A numpy array to one of there."""
    smallest: Callable[[Any, int], Places]
    """As `smallest`, of costs that are there."""


HERE = On(np.asarray, smallest)


def retrieval_metrics(ranked: Places, labels: Labels, queries: Queries) -> dict[str, float]:
    """Means of `query_metrics`, 0 where there is no query, and the number of queries."""
    found = query_metrics(ranked, labels, queries)
    means = {name: float(values.mean()) if len(queries) else 0.0 for name, values in found.items()}
    return {**means, "queries": len(queries)}


def query_metrics(ranked: Places, labels: Labels, queries: Queries) -> dict[str, Figures]:
    """hit@k and the three NDCG@30 of every query, (Q,) float64 each.

    NDCG: relevance is the share of matching attributes (all; the edited one; the others), gain
    2^rel - 1, discount 1 / log(rank + 1), normalised by relevance 1 at every rank. With a single
    attribute the others match vacuously. A gallery with fewer items is judged on what it has.

    Args:
        ranked: (Q, K) int64 gallery rows, best first.
        labels: (N, A) int64 of the gallery.
        queries: the Q queries.
    """
    found = {name: np.zeros(len(queries)) for name in METRIC_NAMES}
    for block in blocks_of(len(queries), ranked.shape[1] * labels.shape[1]):
        part = queries[block]
        match = labels[ranked[block]] == part.targets[:, None, :]
        hits = match.all(axis=2)
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


def summary(figures: Mapping[str, Figures], references: Places) -> dict[str, Any]:
    """Means of figures (Q,) each, their `interval`s, and the number of `queries`.

    An interval has the bounds of the mean that hold in 95 of 100 draws of other reference items: a
    bootstrap over references (Q,), each drawn with all its queries, since those of one item succeed
    and fail together.
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
    means = np.empty((BOOTSTRAP, len(names)))
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
    """(Q,) of relevances (Q, K) within 0..1, best answer first."""
    discount = 1 / np.log2(np.arange(relevance.shape[1], dtype=np.float64) + 2)
    return (np.exp2(relevance) - 1) @ discount / discount.sum()


def hits_by_attribute(
    ranked: Places, labels: Labels, queries: Queries, schema: Schema
) -> dict[str, dict[str, float]]:
    """hit@1, 10, 30 and the number of queries of each edited attribute that has queries, and their
    `macro` mean, in which a rare attribute counts as much as one that most queries edit.
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


def predicted_labels(logits: Vector, schema: Schema) -> Labels:
    """(N, A) int64: the likeliest value of each attribute, of logits (N, V)."""
    parts = np.split(logits, schema.offsets[1:], axis=1)
    return np.stack([part.argmax(axis=1) for part in parts], axis=1).astype(np.int64)


def attribute_accuracy(
    predicted: Labels, labels: Labels, names: tuple[str, ...]
) -> dict[str, float]:
    """Share of known labels (N, A) predicted right, per attribute, and their mean.

    An attribute of which no label is known is left out.
    """
    known = labels != UNKNOWN
    right = ((predicted == labels) & known).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    shares = {n: float(r) for n, r, k in zip(names, right, known.any(axis=0)) if k}
    return {"mean": float(np.mean(list(shares.values()))) if shares else 0.0, **shares}


def rank_edits(
    queries: Asked,
    embeddings: Vector,
    logits: Vector,
    schema: Schema,
    edit: Edit,
    k: int = 50,
    search: Search = top_k,
    watch: Watch = iter,
) -> Places:
    """(Q, k) answers of the edited embeddings.

    The value taken away is the predicted one, so that pictures alone decide; embeddings are
    (N, A, D) float32, logits (N, V) float32, both of the gallery.
    """
    predicted = predicted_labels(logits, schema)
    gallery = _normalised(embeddings)
    blocks: list[Places] = []
    for block in watch(blocks_of(len(queries), gallery.shape[1] + schema.num_values)):
        part = queries[block]
        own = predicted[part.reference]
        indicator = schema.indicator(own, swapped(own, part))
        blocks.append(search(edit(embeddings[part.reference], indicator), gallery, k))
    return np.concatenate(blocks) if blocks else np.zeros((0, min(k, len(gallery))), np.int64)


def baseline_rankings(
    queries: Asked,
    embeddings: Vector,
    logits: Vector,
    schema: Schema,
    k: int = 50,
    watch: Watch = iter,
    names: Sequence[str] = BASELINES,
    on: On | None = None,
) -> dict[str, Places]:
    """(Q, k) answers of each baseline, on pictures alone (docs/architecture.md).

    * random: queries and gallery are independent random vectors.
    * no_edit: the reference's own embedding.
    * classifier: number of attributes in which the gallery item's predicted values equal the
      reference's predicted ones with the asked one swapped in; ties by embedding distance.
    * classifier_soft: sum of the gallery item's log-probabilities of those wanted values.

    `on` says where products are taken and sorted; None: here, in numpy.
    """
    on = on or HERE
    predicted = predicted_labels(logits, schema)
    gallery = on.place(_normalised(embeddings))
    predicted_hot = on.place(schema.multi_hot(predicted))
    log_probabilities = on.place(_log_softmax(logits, schema))
    random = np.random.default_rng(0)
    random_gallery = on.place(random.standard_normal((len(gallery), 16), dtype=np.float32))
    shape = (len(queries), min(k, len(gallery)))
    ranked = {name: np.zeros(shape, np.int64) for name in names}
    for block in watch(blocks_of(len(queries), BASELINE_ARRAYS * len(gallery))):
        part = queries[block]
        wanted = on.place(schema.multi_hot(swapped(predicted[part.reference], part)))
        # Queries stand in the order of their items, of which a block has far fewer.
        items, query = map(on.place, np.unique(part.reference, return_inverse=True))
        distances = None
        if {"no_edit", "classifier"} & set(names):
            distances = (2 - 2 * gallery[items] @ gallery.T)[query.reshape(-1)]
        for name in names:
            if name == "random":
                drawn = random.standard_normal((len(part), 16), dtype=np.float32)
                costs = on.place(drawn) @ random_gallery.T
            elif name == "no_edit":
                costs = distances
            elif name == "classifier":
                # Squared distances of unit vectors stay below 8, so that one match outweighs them.
                costs = distances - 8 * (wanted @ predicted_hot.T)
            else:
                costs = -(wanted @ log_probabilities.T)
            ranked[name][block] = on.smallest(costs, k)
    return ranked


def swapped(labels: Labels, queries: Asked) -> Labels:
    """Labels (Q, A) int64 with each query's values in place of its own."""
    values = queries.values
    return np.where(values == UNKNOWN, labels, values)


def _normalised(embeddings: Vector) -> Vector:
    flat = embeddings.reshape(len(embeddings), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)


def _log_softmax(logits: Vector, schema: Schema) -> Vector:
    parts = np.split(logits, schema.offsets[1:], axis=1)
    shifted = [part - part.max(axis=1, keepdims=True) for part in parts]
    return np.concatenate(
        [part - np.log(np.exp(part).sum(axis=1, keepdims=True)) for part in shifted], axis=1
    )


def blocks_of(rows: int, width: int) -> list[slice]:
    """Slices of `rows` so that a block of `width` columns stays within BLOCK_ELEMENTS."""
    step = max(1, BLOCK_ELEMENTS // max(1, width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
