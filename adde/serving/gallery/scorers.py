"""Scorers of stored rows: distance of vectors, match of beliefs, and the options of a search.

Stored rows are those of `augmented`: unit vectors, then the squared lengths of their subspaces.
Symbols: A attributes, D width of a subspace, V values, N items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adde.schema import Labels, Schema, Vector
from adde.scoring import FIRST, fits, likeliest_of, log_term, match_scores, parts, tables

SLACK = 16
"""Extra candidates beyond k, because two ways to compute a distance may differ in the last bits."""

ROUNDING = 1e-6
"""Match scores that differ by less than this, per unit of weight, count as equal."""


@dataclass(frozen=True, eq=False)
class RankOptions:
    """Options of a gallery search beyond query vector, weights and filters."""

    wanted: Vector | None = None
    """(V + A,) float32 beliefs as in `adde.scoring`, to rank by match; None to rank by distance."""
    epsilon: float = 0.0
    """The match score's epsilon."""
    must: Mapping[int, Labels] = field(default_factory=lambda: {})
    """Attribute to labels; every answer must show one of them."""
    unit: bool = False
    """Compare only the directions of subspaces, not their lengths."""
    first: Vector | None = None
    """(A,) float32 weights for the first FIRST matches, if different from the rest."""
    completing: Vector | None = None
    """(V + A,) float32 to rank by the product with beliefs instead, as an outfit is completed."""

    @property
    def by_beliefs(self) -> bool:
        """Whether items are ranked by what they show; vectors then only break ties."""
        return self.wanted is not None or self.completing is not None

    def match_scorers(
        self, weights: Vector, schema: Schema, k: int
    ) -> "list[tuple[BeliefScorer, int]]":
        """Return the scorers of a search by beliefs, each with the number of rows wanted of it."""
        if self.completing is not None:
            return [(OutfitScorer(self.completing, weights, schema), k)]
        assert self.wanted is not None
        asked = [(weights, k)]
        if self.first is not None:
            asked.append((self.first, min(k, FIRST + SLACK // 4)))
        return [(MatchScorer(self.wanted, w, self.epsilon, schema), n) for w, n in asked]


BY_DISTANCE = RankOptions()


def augmented(vectors: Vector) -> Vector:
    """Append squared subspace lengths to unit vectors: (N, A, D) -> (N, A D + A).

    The weighted distance, the sum of w |q - g|^2, is a constant minus (2 w q) . g - w . |g|^2, so
    with these columns it is a single dot product.
    """
    lengths = np.square(vectors).sum(axis=2)
    return np.concatenate([vectors.reshape(len(vectors), -1), lengths], axis=1)


def augmented_query(query: Vector, weights: Vector) -> Vector:
    """(A D + A,) float32 whose product with an `augmented` row grows as the row gets nearer."""
    doubled = 2 * weights[:, None] * query
    return np.concatenate([doubled.ravel(), -weights]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class DistanceScorer:
    """Score stored rows by nearness to a query: higher is nearer."""

    query: Vector
    """(A, D) float32."""
    weights: Vector
    """(A,) float32."""
    unit: bool = False

    @property
    def vector(self) -> Vector:
        """(A D + A,) float32 whose product with stored rows ranks them; with `unit`, only among
        rows whose subspaces have equal lengths.
        """
        if not self.unit:
            return augmented_query(self.query, self.weights)
        doubled = 2 * self.weights[:, None] * unit_rows(self.query)
        return np.append(doubled.ravel(), np.zeros_like(self.weights)).astype(np.float32)

    def __call__(self, stored: Vector) -> Vector:
        """Score stored rows (N, A D + A + ...); (N,) float32."""
        attributes, width = self.query.shape
        if not self.unit:
            vector = self.vector
            # Slicing off the trailing columns would copy the rows, which costs more than the
            # product.
            return stored @ np.pad(vector, (0, stored.shape[1] - len(vector)))
        found = np.zeros(len(stored), np.float32)
        for a in np.flatnonzero(self.weights).tolist():
            product = stored[:, a * width : (a + 1) * width] @ unit_rows(self.query[a])
            length = np.sqrt(stored[:, attributes * width + a])
            found += 2 * self.weights[a] * product / np.maximum(length, 1e-12)
        return found


def unit_rows(vectors: Vector) -> Vector:
    """Normalise vectors (..., D) to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def with_unit_subspaces(stored: Vector, attributes: int, width: int) -> Vector:
    """Stored rows (N, A D + A + ...) with subspaces scaled to length 1; (N, A D + A) float32."""
    vectors = stored[:, : attributes * width].reshape(-1, attributes, width)
    return augmented(unit_rows(vectors))


def subspace_distances(vectors: Vector, query: Vector, unit: bool) -> Vector:
    """Squared distances (N, A) between unit vectors (N, A, D) and a query (A, D).

    Computed from differences, not products: this is exact for near items and independent of the
    rest of the batch.
    """
    if unit:
        vectors, query = unit_rows(vectors), unit_rows(query)
    return np.square(vectors - query).sum(axis=2)


class BeliefScorer(Protocol):
    """Score stored beliefs, attribute by attribute."""

    @property
    def weights(self) -> Vector:
        """(A,) float32; scores that differ by less than ROUNDING times their sum are equal."""
        ...

    def __call__(self, beliefs: Vector) -> Vector:
        """Return scores (N,) float32 of beliefs (N, V + A)."""
        ...

    def tables(self, centroids: Sequence[Vector]) -> list[Vector]:
        """Return what each attribute adds for each of its centroids (K, V_a + 1), at weight 1."""
        ...


@dataclass(frozen=True, eq=False)
class OutfitScorer:
    """Score beliefs by how well items complete an outfit: the product with its query."""

    query: Vector
    """(V + A,) float32."""
    weights: Vector
    """(A,) float32 ones: all attributes count."""
    schema: Schema

    def __call__(self, beliefs: Vector) -> Vector:
        """See `BeliefScorer`."""
        return beliefs @ self.query

    def tables(self, centroids: Sequence[Vector]) -> list[Vector]:
        """See `BeliefScorer`."""
        return [c @ self.query[part] for c, part in zip(centroids, parts(self.schema))]


@dataclass(frozen=True, eq=False)
class MatchScorer:
    """Score stored beliefs by match with the wanted ones: higher is better."""

    wanted: Vector
    """(V + A,) float32."""
    weights: Vector
    """(A,) float32."""
    epsilon: float
    schema: Schema

    def __call__(self, beliefs: Vector) -> Vector:
        """Score beliefs (N, V + A) fast; (N,) float32."""
        return match_scores(
            self.wanted[None], self.weights[None], beliefs, self.schema, self.epsilon
        )[0]

    def tables(self, centroids: Sequence[Vector]) -> list[Vector]:
        """See `BeliefScorer`."""
        ones = np.ones_like(self.weights)
        return tables(self.wanted, ones, centroids, self.schema, self.epsilon)

    def probabilities(self, beliefs: Vector) -> Vector:
        """Match probabilities P_a (N, A) float32, bitwise independent of the rest of the batch."""
        found = [
            np.multiply(beliefs[:, part], self.wanted[part]).sum(axis=1)
            for part in parts(self.schema)
        ]
        return np.clip(np.stack(found, axis=1), 0, 1)

    def costs(self, probabilities: Vector) -> Vector:
        """Loss of each attribute's term against a perfect match, (N, A) float32; 0 if P_a is 1."""
        best = log_term(np.ones(1, np.float32), self.epsilon)
        return (self.weights * (best - log_term(probabilities, self.epsilon))).astype(np.float32)

    def mean_probability(self, costs: Vector) -> Vector:
        """Weighted mean of the P_a, averaged as logarithms, (N,) in 0 to 1.

        It has the order of the scores; a single attribute that does not match counts much.
        """
        mean = costs.sum(axis=1) / self.weights.sum()
        return np.clip((1 + self.epsilon) * np.exp(-mean) - self.epsilon, 0, 1).astype(np.float32)


def shows_labels(
    beliefs: Vector, must: Mapping[int, Labels], schema: Schema
) -> npt.NDArray[np.bool_]:
    """Mask (N,) of beliefs (N, V + A) that show one of the labels of every attribute of `must`."""
    passed = np.ones(len(beliefs), np.bool_)
    for a, labels in must.items():
        passed &= fits(likeliest_of(beliefs, schema, a), labels)
    return passed
