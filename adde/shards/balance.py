"""Balanced sampling: draw edit groups so that every value of an attribute is shown as often."""

import numpy as np
import numpy.typing as npt

from adde.schema import UNKNOWN, Rows

ROUNDS = 50
"""Updates of the groups' weights; groups of one item need one."""


def group_weights(values: Rows, sizes: Rows) -> npt.NDArray[np.float64]:
    """Return how often to show each group, on average, so that values are shown equally often.

    UNKNOWN keeps its share. Where groups mix values, equal shares may be impossible; the weights
    then minimise the Kullback-Leibler divergence from them (by expectation maximisation). Sums are
    sequential, and so equal on every machine.

    Args:
        values: (n,) int64 labels of the items, group after group.
        sizes: (G,) int64 items of each group; they add up to n.

    Returns:
        (G,) float64; the weighted sizes add up to n.
    """
    group = np.repeat(np.arange(len(sizes)), sizes)
    classes, value = np.unique(values, return_inverse=True)
    wanted = np.bincount(value).astype(np.float64)
    known = classes != UNKNOWN
    wanted[known] = wanted[known].sum() / max(1, known.sum())
    weights = np.ones(len(sizes))
    for _ in range(ROUNDS):
        missing = wanted / np.bincount(value, weights[group])
        weights *= np.bincount(group, missing[value]) / sizes
    return weights


def draw_groups(values: Rows, sizes: Rows, random: np.random.Generator) -> Rows:
    """Draw groups in random order, each about as often as `group_weights` says.

    A group is drawn floor(w) or ceil(w) times. Neighbours in the draw have the same first value, so
    that the total of each value differs from the expected one by little more than a group.

    Args:
        values: see `group_weights`.
        sizes: see `group_weights`.
        random: draws.

    Returns:
        (K,) int64 group numbers, whose sizes add up to at least n.
    """
    shuffled = random.permutation(len(sizes))
    first = values[np.cumsum(sizes) - sizes]
    order = shuffled[np.argsort(first[shuffled], kind="stable")]
    ends = np.floor(np.cumsum(group_weights(values, sizes)[order]) + random.random())
    drawn = np.repeat(order, np.diff(ends, prepend=0.0).astype(np.int64))
    drawn = random.permutation(drawn)
    if sizes[drawn].sum() < len(values):
        drawn = np.concatenate([drawn, shuffled])
    return drawn
