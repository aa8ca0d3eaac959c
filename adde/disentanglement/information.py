"""Mutual information between codes in bins and factors: MIG, modularity."""

import numpy as np
import numpy.typing as npt

from adde.disentanglement.coded import Coded, Floats
from adde.schema import Labels

BINS = 20
"""Equal bins of a latent's range."""


def mig(coded: Coded) -> float:
    """Mutual information gap: mean over factors of (largest - second) / entropy of the factor.

    Source: Chen et al. 2018, with bins as in the study. Of n items, a latent that carries nothing
    reads about (BINS - 1)(V - 1) / 2n nats.
    """
    return gap(information(coded), entropies(coded))


def modularity(coded: Coded) -> float:
    """Whether each latent informs of one factor alone; 0 for a latent that informs of none.

    Source: Ridgeway and Mozer 2018.
    """
    return modularity_of(information(coded))


def gap(table: Floats, normaliser: Floats) -> float:
    """Mean over factors of the largest minus the second entry of table (B, K), over (K,)."""
    ranked = np.sort(np.vstack([table, np.zeros(table.shape[1])]), axis=0)
    return float(((ranked[-1] - ranked[-2]) / normaliser).mean())


def modularity_of(table: Floats) -> float:
    """Modularity of a table (B, K) of information in nats."""
    squares = table**2
    best = squares.max(axis=1)
    others = (squares.sum(axis=1) - best) / (table.shape[1] - 1)
    return float(np.where(best > 0, 1 - others / np.where(best > 0, best, 1), 0).mean())


def information(coded: Coded) -> Floats:
    """(L, K) mutual information in nats of the latents in bins and the factors."""
    binned = in_bins(coded.codes[coded.train])
    table = np.zeros((binned.shape[1], len(coded.factors)))
    for factor in range(len(coded.factors)):
        known = coded.labels[coded.train, factor] >= 0
        values = coded.labels[coded.train[known], factor]
        for latent, column in enumerate(binned[known].T):
            table[latent, factor] = mutual_information(column, values)
    return table


def entropies(coded: Coded) -> Floats:
    """(K,) entropy in nats of each factor."""
    found: list[float] = []
    for factor in range(len(coded.factors)):
        _, values = coded.known(coded.train, factor)
        found.append(entropy(np.bincount(values)))
    return np.array(found)


def in_bins(codes: Floats) -> Labels:
    """(N, L) int64 bin of each code in its latent's range; a constant latent has one bin."""
    low, width = codes.min(axis=0), np.ptp(codes, axis=0)
    place = (codes - low) / np.where(width > 0, width, 1) * BINS
    return np.minimum(place.astype(np.int64), BINS - 1)


def mutual_information(first: Labels, second: Labels) -> float:
    """In nats, of two columns (N,) of numbers from 0."""
    width = int(second.max()) + 1
    joint = np.bincount(first * width + second, minlength=(int(first.max()) + 1) * width)
    joint = joint.reshape(-1, width)
    shared = entropy(joint.sum(axis=1)) + entropy(joint.sum(axis=0)) - entropy(joint.ravel())
    return max(0.0, shared)


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """In nats, of counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
