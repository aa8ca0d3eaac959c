"""ADDE's own loss terms, in the form of `adde.losses`: sums and counts."""

import torch
from torch import Tensor

from adde.losses import Term
from adde.mining import DrawnEdits
from adde.schema import UNKNOWN


def compositional(
    queries: Tensor, positives: Tensor, negatives: Tensor, counted: Tensor, margin: float
) -> Term:
    """max(0, m + |r'^ - p^| - |r'^ - n^|) of rows (N, E), L2-normalised; `counted` (N,) bool."""
    to_positive = torch.linalg.vector_norm(queries - positives, dim=1)
    to_negative = torch.linalg.vector_norm(queries - negatives, dim=1)
    losses = (margin + to_positive - to_negative).clamp(min=0)
    return Term((losses * counted).sum()[None], counted.float().sum()[None])


def consistency(prototypes: Tensor, embeddings: Tensor, labels: Tensor, weights: Tensor) -> Term:
    """L1 between M v and an embedding, over the blocks of known attributes.

    An attribute that is UNKNOWN has no prototype in M v; pulling its block to zero would teach
    that unknown means nothing, so it is left out.

    Args:
        prototypes: M v, (B, A, D) float32.
        embeddings: (B, A, D) float32.
        labels: (B, A) int64, the v of M v.
        weights: (B,) float32, how often an item counts.
    """
    distances = (prototypes - embeddings).abs().mean(-1)
    counted = (labels != UNKNOWN) * weights[:, None]
    return Term((distances * counted).sum()[None], counted.sum()[None])


def triplet_roles(edits: DrawnEdits, negative: Tensor, has_negative: Tensor, items: int) -> Tensor:
    """How often each item of the global batch is a positive and a negative here: (2, M) float32.

    Summed over ranks, these weights let every item's own rank account for the roles it plays.
    """
    roles = torch.zeros(2, items, device=negative.device)
    roles[0].index_add_(0, edits.positive, edits.usable.float())
    roles[1].index_add_(0, negative, (edits.usable & has_negative).float())
    return roles
