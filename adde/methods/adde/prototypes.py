"""Diagnostics of the prototype memory: similarity of prototypes and their block energy."""

import numpy as np

from adde.metrics import unit
from adde.schema import Vector


def cosines(prototypes: Vector) -> Vector:
    """Return (V, V) float32 cosines between the rows of (V, A D); 0 for a zero row."""
    rows = unit(prototypes)
    return rows @ rows.T


def block_energy(prototypes: Vector, sizes: tuple[int, ...]) -> Vector:
    """Return (V,), the share of each row's squared norm inside its own attribute's block of D.

    1 if editing the value changes its own attribute alone; NaN for a zero row.

    Args:
        prototypes: (V, A D) float32, one row per attribute value.
        sizes: V_a of each attribute.
    """
    blocks = np.square(prototypes).reshape(len(prototypes), len(sizes), -1).sum(-1)
    own = blocks[np.arange(len(blocks)), np.repeat(np.arange(len(sizes)), sizes)]
    whole = blocks.sum(1)
    return np.where(whole > 0, own / np.maximum(whole, 1e-30), np.nan)


def nearest(similarity: Vector, names: list[str], count: int = 3) -> list[list[tuple[str, float]]]:
    """List for each value those with the most similar prototypes and their cosines, best first."""
    others = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(others, -np.inf)
    order = np.argsort(-others, axis=1, kind="stable")[:, : min(count, len(names) - 1)]
    return [[(names[k], float(others[row, k])) for k in found] for row, found in enumerate(order)]
