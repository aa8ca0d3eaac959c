"""What the memory's columns look like: alike, and how much of each lies in its own block."""

import numpy as np

from adde.schema import Vector


def cosines(prototypes: Vector) -> Vector:
    """(V, V) float32 between the rows of (V, A D); 0 where a row is zero."""
    unit = prototypes / np.maximum(np.linalg.norm(prototypes, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def block_energy(prototypes: Vector, sizes: tuple[int, ...]) -> Vector:
    """(V,) share of each row's squared norm that lies in its own attribute's block of D.

    1 where a value touches its own attribute alone; NaN where a row is zero.

    Args:
        prototypes: (V, A D) float32, one row per attribute value.
        sizes: V_a of each attribute.
    """
    blocks = np.square(prototypes).reshape(len(prototypes), len(sizes), -1).sum(-1)
    own = blocks[np.arange(len(blocks)), np.repeat(np.arange(len(sizes)), sizes)]
    whole = blocks.sum(1)
    return np.where(whole > 0, own / np.maximum(whole, 1e-30), np.nan)


def nearest(similarity: Vector, names: list[str], count: int = 3) -> list[list[tuple[str, float]]]:
    """The values whose prototypes are most like each one's, with their cosines, best first."""
    others = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(others, -np.inf)
    order = np.argsort(-others, axis=1, kind="stable")[:, : min(count, len(names) - 1)]
    return [[(names[k], float(others[row, k])) for k in found] for row, found in enumerate(order)]
