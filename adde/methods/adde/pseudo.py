"""Pseudo-labels: averaged weights fill in unknown labels of which they are sure.

Tarvainen & Valpola (NeurIPS 2017) average the teacher's weights. Its posterior is the target of a
soft cross-entropy where its largest probability exceeds `confidence` and its presence output says
that the attribute is there. Pictures that the teacher sees are not augmented.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adde.losses import Term
from adde.methods.adde.model import Forward
from adde.schema import UNKNOWN

CHUNK = 256
"""Pictures that the teacher encodes at a time."""


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """Labels for UNKNOWN, for catalogues in which labels are missing that pictures show."""

    weight: float = 0.0
    """Weight of their cross-entropy, summed over attributes; half of that of labels is a good
    start. 0 does without. Needs optimizer.ema and model.presence."""

    start: float = 0.5
    """Share of the stage after which they are used."""

    confidence: float = 0.9
    """Smallest probability of a value; values below it stay unknown."""


def teach(
    teacher: Callable[[Tensor], Forward],
    images: Tensor,
    labels: Tensor,
    sizes: tuple[int, ...],
    confidence: float,
) -> Tensor:
    """Return soft targets (b, V) float32 of UNKNOWN labels, 0 where the teacher is not sure.

    Args:
        teacher: the averaged model.
        images: (b, S, S, 3) uint8.
        labels: (b, A) int64.
        sizes: V_a.
        confidence: see `PseudoLabels`.
    """
    outputs = [teacher(part) for part in images.split(CHUNK)]
    logits = torch.cat([out.logits for out in outputs])
    presence = torch.cat([out.presence for out in outputs if out.presence is not None])
    targets: list[Tensor] = []
    for a, part in enumerate(logits.split(sizes, dim=1)):
        posterior = part.softmax(1)
        sure = (labels[:, a] == UNKNOWN) & (presence[:, a] > 0)
        sure &= posterior.amax(1) > confidence
        targets.append(torch.where(sure[:, None], posterior, 0.0))
    return torch.cat(targets, dim=1)


def pseudo_classification(
    logits: Tensor, targets: Tensor, labels: Tensor, sizes: tuple[int, ...]
) -> tuple[Term, Term]:
    """Compute the soft cross-entropy of each attribute, and the share of UNKNOWN that is filled.

    The count includes known labels, so that a filled one weighs the same however few there are.

    Args:
        logits: (b, V) float32.
        targets: (b, V) float32 from `teach`.
        labels: (b, A) int64.
        sizes: V_a.
    """
    sums: list[Tensor] = []
    filled: list[Tensor] = []
    for part, target in zip(logits.split(sizes, dim=1), targets.split(sizes, dim=1)):
        sums.append(-(target * part.log_softmax(1)).sum())
        filled.append((target.sum(1) > 0).float().sum())
    unknown = (labels == UNKNOWN).float().sum(0)
    found = torch.stack(filled)
    return Term(torch.stack(sums), len(labels) - unknown + found), Term(found, unknown)
