"""Compact rows by principal component analysis within each subspace, never across subspaces.

A weight on an attribute therefore remains a weight on that attribute's numbers, and a query with
any weights is a single dot product. The projection keeps the dimensions that the encoder uses: a
few dozen of a subspace's 340.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adde.schema import Vector

EXPLAINED_VARIANCE = 0.998
"""Share of a subspace's variance to keep, as far as MAX_NUMBERS allows."""

MAX_NUMBERS = 1008
"""Maximum numbers per item: at one byte each plus an 8-byte row number, under 1 KB."""

MULTIPLE = 16
"""Row lengths are padded to a multiple of this, the width of faiss' kernels."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SubspacePCA:
    """Principal directions of A subspaces of width D: r_a of attribute a, R in total."""

    means: Vector
    """(A, D)."""
    bases: Vector
    """(D, R) columns, orthonormal within each attribute, attributes in order."""
    kept: Counts
    """(A,) r_a."""

    @property
    def size(self) -> int:
        """Length of a compact row: R, plus a squared length per attribute, plus padding."""
        used = self.bases.shape[1] + len(self.kept)
        return -(-used // MULTIPLE) * MULTIPLE

    @classmethod
    def fit(cls, blocks: Iterable[Vector], shape: tuple[int, int]) -> "SubspacePCA":
        """Fit to unit vectors, given as blocks (N, A, D) of float32."""
        attributes, width = shape
        count = 0
        sums = np.zeros(shape)
        products = np.zeros((attributes, width, width))
        for block in blocks:
            count += len(block)
            sums += block.sum(axis=0, dtype=np.float64)
            by_attribute = block.transpose(1, 0, 2)
            products += by_attribute.transpose(0, 2, 1) @ by_attribute
        means = sums / count
        spread = products / count - means[:, :, None] * means[:, None, :]
        variances, bases = np.linalg.eigh(spread)
        variances, bases = variances[:, ::-1].clip(0), bases[:, :, ::-1]
        kept = _choose_directions(variances, MAX_NUMBERS - attributes)
        chosen = [bases[a, :, : kept[a]] for a in range(attributes)]
        return cls(means.astype(np.float32), np.hstack(chosen).astype(np.float32), kept)

    def project_rows(self, stored: Vector) -> Vector:
        """Project stored rows (N, A D + A + ...) to compact rows (N, size)."""
        attributes, width = self.means.shape
        used = attributes * width
        vectors = stored[:, :used].reshape(-1, attributes, width) - self.means
        return self._project(vectors, stored[:, used : used + attributes])

    def project_query(self, vector: Vector) -> Vector:
        """Project an `augmented_query` to (1, size).

        Its products with compact rows equal those of the full vectors up to one constant and the
        variance that the projection drops.
        """
        attributes, width = self.means.shape
        used = attributes * width
        return self._project(vector[None, :used].reshape(1, attributes, width), vector[None, used:])

    def _project(self, vectors: Vector, lengths: Vector) -> Vector:
        laid = np.zeros((len(vectors), self.size), np.float32)
        at = 0
        for a, count in enumerate(self.kept.tolist()):
            np.matmul(vectors[:, a], self.bases[:, at : at + count], out=laid[:, at : at + count])
            at += count
        laid[:, at : at + lengths.shape[1]] = lengths
        return laid


def _choose_directions(variances: npt.NDArray[np.float64], room: int) -> Counts:
    """Choose the number of directions per attribute, (A,): enough for EXPLAINED_VARIANCE, or the
    strongest that fit the budget; at least one each.
    """
    shares = variances / np.maximum(variances.sum(axis=1, keepdims=True), 1e-30)
    before = np.cumsum(shares, axis=1) - shares
    wanted = (before < EXPLAINED_VARIANCE) & (shares > 0)
    strongest = np.zeros(shares.shape, np.bool_)
    strongest.flat[np.argsort(-shares, axis=None, kind="stable")[:room]] = True
    chosen = np.logical_and(wanted, strongest)
    return np.maximum(np.bincount(np.nonzero(chosen)[0], minlength=len(shares)), 1)
