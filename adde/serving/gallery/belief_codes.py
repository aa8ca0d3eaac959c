"""Beliefs as one code per item and attribute, so that a match score is a sum of A table lookups.

A match score is a sum over attributes, and each term depends on that attribute's beliefs alone.
Each attribute's beliefs are therefore replaced by the nearest of a few hundred centroids, and a
query computes one table of terms per attribute. Certain beliefs, such as known labels, have codes
of their own and are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from adde.schema import Schema, Vector
from adde.scoring import parts
from adde.serving.gallery.scan import Mask, Rows
from adde.serving.gallery.scorers import ROUNDING, BeliefScorer

MIN_CENTROIDS = 64
"""Minimum centroids per attribute for beliefs that are not certain; an attribute with too many
values for that uses two-byte codes.
"""

TRAINING_ROWS = 100
"""Maximum training rows per centroid."""

ROUNDS = 15
"""Iterations of k-means."""

CERTAIN = 1 - 1e-5

FIRST_BLOCK, BLOCK = 1 << 12, 1 << 16
"""Items scored at a time; the small first block finds a threshold."""

Array = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, eq=False)
class BeliefCodes:
    """Codes of the first N rows of a gallery."""

    centroids: list[Vector]
    """Per attribute (K, V_a + 1) float32: every value and absence with certainty, then the
    centroids.
    """
    codes: Array
    """(A, N)."""

    @classmethod
    def fit(cls, beliefs: Vector, sample: Rows, schema: Schema, faiss: Any) -> "BeliefCodes":
        """Fit centroids to the sampled rows of beliefs (N, V + A) and encode all rows."""
        most = max(schema.sizes) + 1 + MIN_CENTROIDS
        kind = np.uint8 if most <= 256 else np.uint16
        centroids: list[Vector] = []
        codes = np.empty((len(schema.sizes), len(beliefs)), kind)
        some = np.asarray(beliefs[sample])
        for a, part in enumerate(parts(schema)):
            width = part.stop - part.start
            others = _centroids(some[:, part], 256 - width if kind == np.uint8 else 256, faiss)
            near = faiss.IndexFlatL2(2 * width)
            near.add(_to_points(others))
            shown = others.argmax(axis=1)
            for at in range(0, len(beliefs), BLOCK):
                block = np.ascontiguousarray(beliefs[at : at + BLOCK, part])
                code = block.argmax(axis=1)
                unsure = np.flatnonzero(block.max(axis=1) < CERTAIN)
                found = near.search(_to_points(block[unsure]), 1)[1][:, 0]
                # If no centroid has the same likeliest value, store that value as certain, so that
                # it stays likeliest.
                same = shown[found] == code[unsure]
                code[unsure[same]] = width + found[same]
                codes[a, at : at + BLOCK] = code
            centroids.append(np.concatenate([np.eye(width, dtype=np.float32), others]))
        return cls(centroids, codes)

    def scan(
        self, asked: Sequence[BeliefScorer], allowed: Mask, most: Sequence[int]
    ) -> list[tuple[Rows, Vector]]:
        """For each ranking, return the allowed rows with the highest scores by code, and their
        scores.

        All rows that tie with the last one are included, in ascending order of rows.

        Args:
            asked: scorers that want the same beliefs under different weights.
            allowed: (N,) rows that may be found.
            most: rows wanted of each scorer.
        """
        weights = np.stack([match.weights for match in asked])
        added = asked[0].tables(self.centroids)
        # Terms whose weight is the same in all scorers are summed once.
        shared = [a for a in np.flatnonzero(weights[0]).tolist() if np.ptp(weights[:, a]) == 0]
        apart = [a for a in range(weights.shape[1]) if np.ptp(weights[:, a]) > 0]
        looked = self._lookups([w * table for w, table in zip(weights[0], added)], shared)
        best = [
            _TopRows(count, ROUNDING * float(match.weights.sum()))
            for match, count in zip(asked, most)
        ]
        # The first, small block sets a threshold that spares most of the later sorting.
        count = self.codes.shape[1]
        for at, end in pairwise([0, *range(min(FIRST_BLOCK, count), count, BLOCK), count]):
            block = self.codes[:, at:end]
            sums, term = np.zeros((2, block.shape[1]), np.float32)
            for codes, table in looked:
                table.take(codes[at:end], out=term, mode="clip")
                sums += term
            for own, kept in zip(weights, best):
                scores = sums.copy() if apart else sums
                for a in apart:
                    (own[a] * added[a]).take(block[a], out=term, mode="clip")
                    scores += term
                kept.add(scores, allowed[at:end], at)
        return [(kept.rows, kept.scores) for kept in best]

    def _lookups(
        self, added: Sequence[Vector], attributes: Sequence[int]
    ) -> list[tuple[Array, Vector]]:
        """Pair codes (N,) with the table of their terms, for the given attributes.

        Two attributes share one table if both are given, which halves the time.
        """
        found: list[tuple[Array, Vector]] = []
        left = set(attributes)
        for a, codes in zip(range(0, len(added), 2), self._pairs):
            if {a, a + 1} <= left:
                left -= {a, a + 1}
                second = np.pad(added[a + 1], (0, 256 - len(added[a + 1])))
                found.append((codes, np.add.outer(added[a], second).ravel()))
        return found + [(self.codes[a], added[a]) for a in sorted(left)]

    @cached_property
    def _pairs(self) -> list[Array]:
        """(N,) uint16 codes of attributes 0 and 1 together, 2 and 3, and so on; empty for two-byte
        codes.
        """
        if self.codes.dtype != np.uint8:
            return []
        pairs = zip(self.codes[:-1:2], self.codes[1::2])
        return [first.astype(np.uint16) * np.uint16(256) + second for first, second in pairs]

    def likeliest(self, attribute: int) -> npt.NDArray[np.int64]:
        """(N,) likeliest labels, V_a if the attribute is likeliest absent."""
        return self.centroids[attribute].argmax(axis=1)[self.codes[attribute]]


class _TopRows:
    """The rows with the highest scores so far, and all that tie with the last of them."""

    def __init__(self, count: int, slack: float) -> None:
        self.rows, self.scores = np.empty(0, np.int64), np.empty(0, np.float32)
        self._count, self._slack, self._least = count, slack, -np.inf

    def add(self, scores: Vector, allowed: Mask, start: int) -> None:
        """Add the rows from `start` on."""
        chosen = np.flatnonzero((scores >= self._least) & allowed)
        self.rows = np.append(self.rows, chosen + start)
        self.scores = np.append(self.scores, scores[chosen])
        if (spare := len(self.scores) - self._count) > 0:
            self._least = np.partition(self.scores, spare)[spare] - self._slack
            kept = self.scores >= self._least
            self.rows, self.scores = self.rows[kept], self.scores[kept]


def _to_points(beliefs: Vector) -> Vector:
    """Embed beliefs (n, V_a + 1) as points (n, 2 (V_a + 1)) for nearest-neighbour search.

    Square roots keep small probabilities accurate, whose logarithms matter. The second half encodes
    the likeliest value, with enough weight that only beliefs with the same likeliest value are
    near.
    """
    likeliest = np.eye(beliefs.shape[1], dtype=np.float32)[beliefs.argmax(axis=1)]
    return np.hstack([np.sqrt(beliefs), 2 * likeliest])


def _centroids(beliefs: Vector, count: int, faiss: Any) -> Vector:
    """Return at most `count` centroids (K, V_a + 1) of the uncertain ones among beliefs (n, V_a +
    1).
    """
    unsure = beliefs[beliefs.max(axis=1) < CERTAIN]
    distinct = np.unique(unsure, axis=0)
    if len(distinct) <= count:
        return distinct if len(distinct) else beliefs[:1]
    rows = _to_points(unsure)
    means = faiss.Kmeans(
        rows.shape[1], count, niter=ROUNDS, seed=1, max_points_per_centroid=TRAINING_ROWS
    )
    means.cp.min_points_per_centroid = 1  # avoids faiss' warning; few are enough here
    means.train(rows)
    squares = np.square(means.centroids[:, : beliefs.shape[1]])
    return squares / squares.sum(axis=1, keepdims=True)
