"""Loss terms specific to ADDE, as sums and counts like those of `adde.losses`."""

import torch
from torch import Tensor

from adde.losses import Term
from adde.mining import DrawnEdits
from adde.schema import UNKNOWN


def compositional(
    queries: Tensor, positives: Tensor, negatives: Tensor, counted: Tensor, margin: float
) -> Term:
    """Compute max(0, m + |r'^ - p^| - |r'^ - n^|) of L2-normalised rows (N, E).

    `counted` (N,) bool selects the rows of the mean.
    """
    to_positive = torch.linalg.vector_norm(queries - positives, dim=1)
    to_negative = torch.linalg.vector_norm(queries - negatives, dim=1)
    losses = (margin + to_positive - to_negative).clamp(min=0)
    return Term((losses * counted).sum()[None], counted.float().sum()[None])


def consistency(prototypes: Tensor, embeddings: Tensor, labels: Tensor, weights: Tensor) -> Term:
    """Compute the L1 distance between M v and an embedding over the blocks of known attributes.

    An UNKNOWN attribute has no prototype in M v, and its block should not be pulled to zero.

    Args:
        prototypes: M v, (B, A, D) float32.
        embeddings: (B, A, D) float32.
        labels: (B, A) int64, the v of M v.
        weights: (B,) float32, how often each item counts.
    """
    distances = (prototypes - embeddings).abs().mean(-1)
    counted = (labels != UNKNOWN) * weights[:, None]
    return Term((distances * counted).sum()[None], counted.sum()[None])


def triplet_roles(edits: DrawnEdits, negative: Tensor, has_negative: Tensor, items: int) -> Tensor:
    """Count how often each item of the global batch is a positive and a negative: (2, M) float32.

    Summed over ranks, these counts weight the losses of an item on its own rank.
    """
    roles = torch.zeros(2, items, device=negative.device)
    roles[0].index_add_(0, edits.positive, edits.usable.float())
    roles[1].index_add_(0, negative, (edits.usable & has_negative).float())
    return roles
