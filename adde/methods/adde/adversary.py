"""Gradient reversal between subspaces: what a subspace tells of other attributes is removed.

Ganin & Lempitsky (ICML 2015); between the subspaces of ADDE: Scaramuzzino et al. (2023). Linear
classifiers Q_ab learn to predict attribute b from the subspace of attribute a, and the encoder
learns to prevent it:

    L_adv = sum over a and b != a of CE_b(Q_ab(R(r_a)))

R is the identity, whose gradient is multiplied by -strength. The classifiers serve training only.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from adde.losses import Term, classification
from adde.methods.adde.heads import BatchedLinear
from adde.schema import Schema

GAMMA = 10.0
"""How fast the strength grows over a stage; as published."""


def strength(step: int, steps: int) -> float:
    """Return 2 / (1 + e^(-GAMMA t)) - 1 at step `step` (from 0) of `steps`, t being their ratio."""
    return 2 / (1 + math.exp(-GAMMA * step / max(1, steps))) - 1


class Adversary(nn.Module):
    """The classifiers Q_ab, as one batched product behind the reversal of gradients."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.linear = BatchedLinear(len(schema.sizes), width, schema.num_values)

    def forward(self, embeddings: Tensor, strength: Tensor) -> Tensor:
        """Map embeddings (B, A, D) to logits (B, A, V) of all values from every subspace."""
        reversed_: Any = _Reversal.apply(embeddings, strength)
        return self.linear(reversed_.transpose(0, 1)).transpose(0, 1).float()


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, strength: Tensor) -> Tensor:
        ctx.save_for_backward(strength)
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (strength,) = ctx.saved_tensors
        return -strength * gradients[0], None


def adversarial(logits: Tensor, labels: Tensor, schema: Schema) -> Term:
    """Compute L_adv; part b is the sum over the subspaces a != b.

    Args:
        logits: (B, A, V) float32, of the `Adversary`.
        labels: (B, A) int64.
        schema: of the labels.
    """
    sizes, multiple = schema.sizes, schema.multiple
    parts = [
        classification(logits[:, a], labels, sizes, multiple=multiple) for a in range(len(sizes))
    ]
    sums = torch.stack([part.sums for part in parts]).fill_diagonal_(0.0)
    return Term(sums.sum(0), parts[0].counts)
