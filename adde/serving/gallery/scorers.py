"""What a gallery is asked: how near a stored vector is, how well stored beliefs match.

Stored rows are those of `augmented`: unit vectors, then the squared lengths of their subspaces.
Symbols: A attributes, D width of a subspace, V values, N items.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from adde.schema import Labels, Schema, Vector
from adde.scoring import FIRST, log_term, match_scores, parts

SLACK = 16
"""Candidates beyond k: the last bits of two ways to compute a distance may order them anew."""

ROUNDING = 1e-6
"""Scores no further apart, per unit of weight, count as the same."""


@dataclass(frozen=True, eq=False)
class RankOptions:
    """What is asked of answers beside a query vector, weights and filters."""

    wanted: Vector | None = None
    """(V + A,) float32 as in `adde.scoring`: rank by match; None: by distance."""
    epsilon: float = 0.0
    """Of the match score."""
    must: Mapping[int, Labels] = field(default_factory=lambda: {})
    """Attribute to the labels of which an answer has to show one."""
    unit: bool = False
    """Compare the directions of subspaces alone, whatever their lengths."""
    first: Vector | None = None
    """(A,) float32 weights of the first FIRST matches, where they are others than of the rest."""

    def match_scorers(
        self, weights: Vector, schema: Schema, k: int
    ) -> "list[tuple[MatchScorer, int]]":
        """What to rank by, and how many of each are wanted, of k in all. By match."""
        assert self.wanted is not None
        asked = [(weights, k)]
        if self.first is not None:
            asked.append((self.first, min(k, FIRST + SLACK // 4)))
        return [(MatchScorer(self.wanted, w, self.epsilon, schema), n) for w, n in asked]


BY_DISTANCE = RankOptions()


def augmented(vectors: Vector) -> Vector:
    """Unit vectors (N, A, D) -> (N, A D + A): with them, weighted distance is one product.

    The sum of w |q - g|^2 is a constant less (2 w q) . g - w . |g|^2, so the squared lengths of
    the subspaces stand behind the vector.
    """
    lengths = np.square(vectors).sum(axis=2)
    return np.concatenate([vectors.reshape(len(vectors), -1), lengths], axis=1)


def augmented_query(query: Vector, weights: Vector) -> Vector:
    """(A D + A,) float32, whose product with an `augmented` row is larger the nearer it is."""
    doubled = 2 * weights[:, None] * query
    return np.concatenate([doubled.ravel(), -weights]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class DistanceScorer:
    """Says how near stored rows are to a query: the larger, the nearer."""

    query: Vector
    """(A, D) float32."""
    weights: Vector
    """(A,) float32."""
    unit: bool = False

    @property
    def vector(self) -> Vector:
        """(A D + A,) float32, whose product with stored rows orders them; with `unit`, only where
        their subspaces are of the same length.
        """
        if not self.unit:
            return augmented_query(self.query, self.weights)
        doubled = 2 * self.weights[:, None] * unit_rows(self.query)
        return np.append(doubled.ravel(), np.zeros_like(self.weights)).astype(np.float32)

    def __call__(self, stored: Vector) -> Vector:
        """(N,) float32 of stored rows (N, A D + A + ...)."""
        attributes, width = self.query.shape
        if not self.unit:
            vector = self.vector
            # A copy of the rows without what stands behind them would cost more than the product.
            return stored @ np.pad(vector, (0, stored.shape[1] - len(vector)))
        found = np.zeros(len(stored), np.float32)
        for a in np.flatnonzero(self.weights).tolist():
            product = stored[:, a * width : (a + 1) * width] @ unit_rows(self.query[a])
            length = np.sqrt(stored[:, attributes * width + a])
            found += 2 * self.weights[a] * product / np.maximum(length, 1e-12)
        return found


def unit_rows(vectors: Vector) -> Vector:
    """Vectors (..., D) of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def subspace_distances(vectors: Vector, query: Vector, unit: bool) -> Vector:
    """Squared distances (N, A) of unit vectors (N, A, D) and a query (A, D).

    Differences, not products: exact where items are near, and a pair's distance does not depend on
    what else is compared.
    """
    if unit:
        vectors, query = unit_rows(vectors), unit_rows(query)
    return np.square(vectors - query).sum(axis=2)


@dataclass(frozen=True, eq=False)
class MatchScorer:
    """Says how well stored beliefs match what is wanted: the larger, the better."""

    wanted: Vector
    """(V + A,) float32."""
    weights: Vector
    """(A,) float32."""
    epsilon: float
    schema: Schema

    def __call__(self, beliefs: Vector) -> Vector:
        """(N,) float32 scores of beliefs (N, V + A), quick."""
        return match_scores(
            self.wanted[None], self.weights[None], beliefs, self.schema, self.epsilon
        )[0]

    def probabilities(self, beliefs: Vector) -> Vector:
        """P_a (N, A) float32; a pair's do not depend on what else is compared, to the last bit."""
        found = [
            np.multiply(beliefs[:, part], self.wanted[part]).sum(axis=1)
            for part in parts(self.schema)
        ]
        return np.clip(np.stack(found, axis=1), 0, 1)

    def costs(self, probabilities: Vector) -> Vector:
        """What each attribute takes from the score, (N, A) float32, 0 where P_a is 1."""
        best = log_term(np.ones(1, np.float32), self.epsilon)
        return (self.weights * (best - log_term(probabilities, self.epsilon))).astype(np.float32)

    def mean_probability(self, costs: Vector) -> Vector:
        """(N,) in 0 to 1 in the order of the scores: the weighted mean of the P_a that are
        averaged as logarithms, so that one attribute that does not match counts much.
        """
        mean = costs.sum(axis=1) / self.weights.sum()
        return np.clip((1 + self.epsilon) * np.exp(-mean) - self.epsilon, 0, 1).astype(np.float32)


def shows_labels(
    beliefs: Vector, must: Mapping[int, Labels], schema: Schema
) -> npt.NDArray[np.bool_]:
    """(N,) which of beliefs (N, V + A) show one of the labels of every attribute of `must`."""
    every, passed = parts(schema), np.ones(len(beliefs), np.bool_)
    for a, labels in must.items():
        passed &= np.isin(beliefs[:, every[a]].argmax(axis=1), labels)
    return passed
