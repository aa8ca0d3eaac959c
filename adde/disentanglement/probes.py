"""Linear probes of each factor on each block alone.

Scores of this project for encoders whose blocks are subspaces; a latent is a block of one, so that
a VAE stands on the same scale. The information that a probe can use (nats) is the entropy of the
factor minus the probe's cross-entropy on unseen items, at least 0: Xu et al. 2020, "A Theory of
Usable Information under Computational Constraints".
"""

from dataclasses import dataclass

import numpy as np

from adde.disentanglement.coded import Coded, Floats
from adde.disentanglement.information import entropy, gap, modularity_of
from adde.disentanglement.prediction import linear, standardised


@dataclass(frozen=True, eq=False)
class Probes:
    """Logistic regressions of each factor on each block."""

    accuracy: Floats
    """(B, K) on unseen items: the leakage matrix."""
    information: Floats
    """(B, K) usable information in nats."""
    entropy: Floats
    """(K,) in nats, of the factors."""
    chance: Floats
    """(K,) accuracy of naming the most frequent value."""

    def figures(self) -> dict[str, float]:
        """MIG_V, SAP_V and Modularity_V, and how far above chance other blocks predict a factor.

        `leak` is the mean over factors of (second block's accuracy - chance) / (1 - chance).
        """
        second = np.sort(np.vstack([self.accuracy, self.chance]), axis=0)[-2]
        room = np.where(self.chance < 1, 1 - self.chance, 1)
        return {
            "mig_v": gap(self.information, self.entropy),
            "sap_v": gap(np.maximum(self.accuracy, self.chance), np.ones(len(self.chance))),
            "modularity_v": modularity_of(self.information),
            "leak": float((np.maximum(0, second - self.chance) / room).mean()),
        }


def probe(coded: Coded) -> Probes:
    """Fits the probes; see `Probes`."""
    codes = standardised(coded.codes, coded.train)
    shape = len(coded.blocks), len(coded.factors)
    accuracy, information = np.zeros(shape), np.zeros(shape)
    entropies, chance = np.zeros(shape[1]), np.zeros(shape[1])
    for factor in range(shape[1]):
        train, values = coded.known(coded.train, factor)
        test, expected = coded.known(coded.test, factor)
        counts = np.bincount(expected, minlength=coded.sizes[factor])
        entropies[factor], chance[factor] = entropy(counts), counts.max() / counts.sum()
        for block in range(shape[0]):
            own = coded.latents(block)
            model = linear(codes[np.ix_(train, own)], values)
            # Values that no item to learn from has keep a chance of rounding.
            chances = np.full((len(test), coded.sizes[factor]), np.finfo(np.float64).eps)
            chances[:, model.classes_] += model.predict_proba(codes[np.ix_(test, own)])
            cross = -np.log(chances[np.arange(len(test)), expected]).mean()
            accuracy[block, factor] = (chances.argmax(axis=1) == expected).mean()
            information[block, factor] = max(0.0, entropies[factor] - cross)
    return Probes(accuracy, information, entropies, chance)
