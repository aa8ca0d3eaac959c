"""The terms of the VAE family, of codes; how they are averaged over ranks is not known here.

Symbols: b items of M, L latents, mean mu and log-variance lambda (b, L) of the posterior. Natural
logarithms; everything is in nats.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def reconstruction(logits: Tensor, pictures: Tensor) -> Tensor:
    """(b,) binary cross-entropy summed over pixels and channels.

    Args:
        logits: (b, C, S, S).
        pictures: (b, C, S, S) in 0..1.
    """
    losses = F.binary_cross_entropy_with_logits(logits, pictures, reduction="none")
    return losses.flatten(1).sum(1)


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(b, L) divergence of the posterior from N(0, 1): (mu^2 + e^lambda - lambda - 1) / 2."""
    return (mean.square() + log_variance.exp() - log_variance - 1) / 2


def log_density(codes: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """(b, M, L) log N(z_jl; mu_il, sigma_il) of codes (b, L) under posteriors (M, L)."""
    apart = (codes[:, None] - mean).square() * (-log_variance).exp()
    return -(apart + log_variance + math.log(2 * math.pi)) / 2


def total_correlation(codes: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """(b,) log q(z) - sum_l log q(z_l) with q the mixture of the M posteriors, but for a constant.

    With N data points and weights 1 / NM (minibatch-weighted sampling, Chen et al. 2018) the
    constant is (L - 1) log(NM); of all data, N = 1, it is (L - 1) log M. It has no gradient.
    """
    density = log_density(codes, mean, log_variance)
    return density.sum(2).logsumexp(1) - density.logsumexp(1).sum(1)


def covariance(mean: Tensor, log_variance: Tensor | None = None) -> Tensor:
    """(L, L) covariance of the means (M, L), divided by M; with log-variances, that of the codes
    (DIP-VAE-II; Kumar et al. 2018).
    """
    centred = mean - mean.mean(0)
    found = centred.T @ centred / len(mean)
    return found if log_variance is None else found + log_variance.exp().mean(0).diag()


def off_diagonal(matrix: Tensor) -> Tensor:
    """Sum of squares beside the diagonal of (L, L), a scalar."""
    return (matrix - matrix.diag().diag()).square().sum()


def diagonal(matrix: Tensor) -> Tensor:
    """Sum of squared distances of the diagonal of (L, L) from 1, a scalar."""
    return (matrix.diag() - 1).square().sum()


def price(relevance: Tensor, low: float, high: float) -> Tensor:
    """RF-VAE's weight of a nat of each latent: `low` at relevance 1, `high` at 0."""
    return high - (high - low) * relevance


def entropy(relevance: Tensor) -> Tensor:
    """Binary entropy of each relevance, in nats; 0 at 0 and 1."""
    return torch.special.entr(relevance) + torch.special.entr(1 - relevance)
