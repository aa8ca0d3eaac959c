"""Loss terms as sums and counts; averaging over ranks happens elsewhere (`adde.training.terms`).

The value of a term is sum_j sums_j / counts_j over its parts j (attributes, roles). Adding the
counts of all ranks before dividing gives the global mean.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adde.mining import LabelGrouping, mine
from adde.schema import UNKNOWN, shares, value_bits


class Term(NamedTuple):
    """Differentiable sums (J,) float32 and their counts (J,) float32 of one named loss."""

    sums: Tensor
    counts: Tensor


def normalise(embeddings: Tensor) -> Tensor:
    """Scale to length 1 over the last axis: r^ = r / |r|."""
    return F.normalize(embeddings, dim=-1)


def classification(
    logits: Tensor,
    labels: Tensor,
    sizes: tuple[int, ...],
    weights: Tensor | None = None,
    multiple: Collection[int] = (),
) -> Term:
    """Compute the cross-entropy of each attribute over its known labels.

    The target of a set of n values has the probability 1 / n at each.

    Args:
        logits: (B, V) float32.
        labels: (B, A) int64.
        sizes: V_a.
        weights: (B,) float32, how often each item counts; None: once.
        multiple: attributes whose labels may be sets.
    """
    losses = torch.stack(
        [
            F.cross_entropy(part, shares(target, _values(part)), reduction="none")
            if attribute in multiple
            else F.cross_entropy(part, target, ignore_index=UNKNOWN, reduction="none")
            for attribute, (part, target) in enumerate(
                zip(logits.split(sizes, dim=1), labels.unbind(1))
            )
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


def accuracy(
    logits: Tensor, labels: Tensor, sizes: tuple[int, ...], multiple: Collection[int] = ()
) -> Term:
    """Count correct predictions among the known labels; arguments as `classification`.

    The prediction of a set of n values is the set of the n likeliest.
    """
    parts = logits.split(sizes, dim=1)
    predicted = torch.stack([part.argmax(1) for part in parts], dim=1)
    right = predicted == labels
    for a in multiple:
        members = value_bits(labels[:, a])[:, None] >> _values(parts[a]) & 1
        place = parts[a].argsort(dim=1, descending=True, stable=True).argsort(1)
        right[:, a] = ((place < members.sum(1, keepdim=True)) == (members > 0)).all(1)
    known = labels != UNKNOWN
    return Term((right & known).sum(0).float(), known.sum(0).float())


def _values(logits: Tensor) -> Tensor:
    """Return the values 0 to V_a - 1 of logits (B, V_a)."""
    return torch.arange(logits.shape[1], device=logits.device)


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
