"""Scores of the codes' distribution: interventional robustness, and scores without labels."""

import math

import numpy as np

from adde.disentanglement.coded import Coded, Floats
from adde.disentanglement.information import in_bins, mutual_information

QUANTILE = 0.99


def irs(coded: Coded) -> float:
    """Interventional robustness: how little a latent moves while its best factor is held fixed.

    1 - mean over values of the 99th percentile of |z - E[z | value]| over max |z - E z|; the best
    factor counts, latents weigh by the denominator. Source: Suter et al. 2019.
    """
    codes, labels = coded.codes[coded.train], coded.labels[coded.train]
    furthest = np.abs(codes - codes.mean(axis=0)).max(axis=0)
    kept = furthest > 0
    codes, furthest = codes[:, kept], furthest[kept]
    robustness = np.zeros((len(coded.factors), kept.sum()))
    for factor, column in enumerate(labels.T):
        values = np.unique(column[column >= 0])
        for value in values:
            own = codes[column == value]
            moved = np.quantile(np.abs(own - own.mean(axis=0)), QUANTILE, axis=0)
            robustness[factor] += (1 - moved / furthest) / len(values)
    return float(np.average(robustness.max(axis=0), weights=furthest))


def unsupervised(codes: Floats) -> dict[str, float]:
    """Scores of codes (N, L) without labels; constant latents count as independent ones.

    Returns:
        gaussian_tc: total correlation of a Gaussian of the same covariance, nats; infinite where
            latents depend linearly on others.
        wasserstein: squared 2-Wasserstein distance of that Gaussian to the one without
            correlations; wasserstein_relative: the same over the trace of the covariance.
        code_information: mean mutual information of two latents in bins, nats.
    """
    latents = codes.shape[1]
    varied = codes[:, np.ptp(codes, axis=0) > 0]
    covariance = np.atleast_2d(np.cov(varied, rowvar=False))
    scale = np.sqrt(np.diag(covariance))
    values = np.linalg.eigvalsh(covariance / np.outer(scale, scale))
    singular = values.min() < latents * np.finfo(np.float64).eps
    # The square root in the distance has the eigenvalues of D^1/2 S D^1/2, D the diagonal of S.
    root = np.linalg.eigvalsh(covariance * np.outer(scale, scale))
    trace = float(np.trace(covariance))
    distance = max(0.0, 2 * trace - 2 * float(np.sqrt(np.clip(root, 0, None)).sum()))
    binned = in_bins(codes)
    pairs = [
        mutual_information(binned[:, first], binned[:, second])
        for first in range(latents)
        for second in range(first)
    ]
    return {
        "gaussian_tc": math.inf if singular else max(0.0, -0.5 * float(np.log(values).sum())),
        "wasserstein": distance,
        "wasserstein_relative": distance / trace,
        "code_information": float(np.mean(pairs)) if pairs else 0.0,
    }
