"""Items in few numbers: each subspace along its principal directions, none across subspaces.

A weight on an attribute so stays a weight on its own numbers, and a query weighed in any way is one
product with them. What is kept is what an encoder uses: of 340 numbers of a subspace a few dozen.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adde.schema import Vector

EXPLAINED_VARIANCE = 0.998
"""Share of a subspace's variance that its directions are to carry, where there is room."""

MAX_NUMBERS = 1008
"""Numbers of one item at most: with a byte each and 8 of a row number, under 1 KB."""

MULTIPLE = 16
"""faiss multiplies so many numbers at once."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SubspacePCA:
    """Where subspaces of width D vary: A attributes, r_a directions of attribute a, R in sum."""

    means: Vector
    """(A, D)."""
    bases: Vector
    """(D, R) orthonormal columns within each attribute, attributes in order."""
    kept: Counts
    """(A,) r_a."""

    @property
    def size(self) -> int:
        """Numbers of one compact row: R, a squared length per attribute, filled up."""
        used = self.bases.shape[1] + len(self.kept)
        return -(-used // MULTIPLE) * MULTIPLE

    @classmethod
    def fit(cls, blocks: Iterable[Vector], shape: tuple[int, int]) -> "SubspacePCA":
        """Finds them in unit vectors, given as blocks (N, A, D) of float32."""
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
        """Rows as they are stored, (N, A D + A + ...) -> compact (N, size)."""
        attributes, width = self.means.shape
        used = attributes * width
        vectors = stored[:, :used].reshape(-1, attributes, width) - self.means
        return self._project(vectors, stored[:, used : used + attributes])

    def project_query(self, vector: Vector) -> Vector:
        """`augmented_query` -> compact (1, size): products with rows differ from those of the
        whole by one constant, and by what the directions leave out.
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
    """(A,) directions of each attribute: those that explain it, or as many as there is room for,
    the strongest of their subspace first.
    """
    shares = variances / np.maximum(variances.sum(axis=1, keepdims=True), 1e-30)
    before = np.cumsum(shares, axis=1) - shares
    wanted = (before < EXPLAINED_VARIANCE) & (shares > 0)
    strongest = np.zeros(shares.shape, np.bool_)
    strongest.flat[np.argsort(-shares, axis=None, kind="stable")[:room]] = True
    chosen = np.logical_and(wanted, strongest)
    return np.maximum(np.bincount(np.nonzero(chosen)[0], minlength=len(shares)), 1)
