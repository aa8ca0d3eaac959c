"""Loss terms as sums and counts; averaging over ranks happens elsewhere (`adde.training.terms`).

The value of a term is sum_j sums_j / counts_j over its parts j (attributes, roles). Adding the
counts of all ranks before dividing gives the global mean.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adde.mining import LabelGrouping, mine
from adde.schema import UNKNOWN


class Term(NamedTuple):
    """Differentiable sums (J,) float32 and their counts (J,) float32 of one named loss."""

    sums: Tensor
    counts: Tensor


def normalise(embeddings: Tensor) -> Tensor:
    """Scale to length 1 over the last axis: r^ = r / |r|."""
    return F.normalize(embeddings, dim=-1)


def classification(
    logits: Tensor, labels: Tensor, sizes: tuple[int, ...], weights: Tensor | None = None
) -> Term:
    """Compute the cross-entropy of each attribute over its known labels.

    Args:
        logits: (B, V) float32.
        labels: (B, A) int64.
        sizes: V_a.
        weights: (B,) float32, how often each item counts; None: once.
    """
    losses = torch.stack(
        [
            F.cross_entropy(part, target, ignore_index=UNKNOWN, reduction="none")
            for part, target in zip(logits.split(sizes, dim=1), labels.unbind(1))
        ],
        dim=1,
    )
    counted = (labels != UNKNOWN).float()
    if weights is not None:
        counted = counted * weights[:, None]
    return Term((losses * counted).sum(0), counted.sum(0))


def presence(logits: Tensor, labels: Tensor) -> Term:
    """Compute the binary cross-entropy of "the label is known" from logits and labels (B, A)."""
    known = (labels != UNKNOWN).float()
    losses = F.binary_cross_entropy_with_logits(logits, known, reduction="none")
    return Term(losses.sum(0), torch.full_like(losses[0], len(losses)))


def accuracy(logits: Tensor, labels: Tensor, sizes: tuple[int, ...]) -> Term:
    """Count correct predictions among the known labels; arguments as `classification`."""
    predicted = torch.stack([part.argmax(1) for part in logits.split(sizes, dim=1)], dim=1)
    known = labels != UNKNOWN
    return Term(((predicted == labels) & known).sum(0).float(), known.sum(0).float())


def label_triplets(
    embeddings: Tensor,
    labels: Tensor,
    refs: Tensor,
    ref_labels: Tensor,
    self_index: Tensor,
    margin: float,
    grouping: LabelGrouping | None = None,
) -> tuple[Term, Tensor]:
    """Compute the semi-hard triplet loss of (N, G, D) anchors and (M, G, D) references per group.

    Returns:
        The term with one part per group, and (G,) int64, the number of pairs with a positive loss.
    """
    mined = mine(
        normalise(embeddings).transpose(0, 1).contiguous(),
        labels.T.contiguous(),
        refs=normalise(refs).transpose(0, 1).contiguous(),
        ref_labels=ref_labels.T.contiguous(),
        self_index=self_index,
        margin=margin,
        grouping=grouping,
    )
    return Term(mined.loss_sum, mined.pairs.float()), mined.active
