"""Attribute heads: map backbone features to A subspaces and the logits of V values."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adde.schema import Schema


class BatchedLinear(nn.Module):
    """A independent linear layers as one batched product: (A, B, in) -> (A, B, out)."""

    def __init__(self, groups: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        # The initialisation of nn.Linear, per group.
        bound = 1 / math.sqrt(fan_in)
        self.weight = nn.Parameter(torch.empty(groups, fan_in, fan_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, 1, fan_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Apply layer g to x[g]."""
        weight = self.weight
        if weight.shape[-1] > 1:
            return torch.baddbmm(self.bias, x, weight)
        # A second column of zeros: onnxruntime has another kernel for one column, whose last bits
        # depend on the batch size; answers must not.
        return torch.baddbmm(self.bias, x, F.pad(weight, (0, 1)))[..., :1]


class AttributePooling(nn.Module):
    """h_a = sum_p w_ap phi_p with w_a = softmax_p(u_a . phi_p / sqrt(C) + b_ap).

    Each attribute has a query u_a and a bias b_ap per position of the map: what its evidence looks
    like, and where it tends to be. Zeros start as the plain mean over the map.
    """

    def __init__(self, schema: Schema, positions: int, channels: int) -> None:
        super().__init__()
        groups = len(schema.sizes)
        self.query = nn.Parameter(torch.zeros(groups, channels))
        self.place = nn.Parameter(torch.zeros(groups, positions))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, P, C) to one row per attribute (A, B, C)."""
        scores = self.query @ features.transpose(1, 2) / math.sqrt(features.shape[-1])
        return ((scores + self.place).softmax(-1) @ features).transpose(0, 1)


class AttributeHeads(nn.Module):
    """r_a = W2_a relu(W1_a h + b1_a) + b2_a for all attributes at once (equation 1).

    `equal` scales each r_a to length sqrt(D).
    """

    def __init__(self, schema: Schema, features: int, hidden: int, width: int, equal: bool) -> None:
        super().__init__()
        self.groups, self.equal = len(schema.sizes), equal
        self.first = BatchedLinear(self.groups, features, hidden)
        self.second = BatchedLinear(self.groups, hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F), or (A, B, F) of each attribute, to embeddings (B, A, D) float32."""
        # `expand` copies nothing: the stride over attributes is zero.
        hidden = self.first(features.expand(self.groups, -1, -1)).relu()
        embeddings = self.second(hidden).transpose(0, 1).float()
        if self.equal:
            embeddings = F.normalize(embeddings, dim=-1) * math.sqrt(embeddings.shape[-1])
        return embeddings


class PresenceHead(nn.Module):
    """p_a . r_a + c_a: the logit of attribute a being present, that is, having a value."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.linear = BatchedLinear(len(schema.sizes), width, 1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (B, A, D) to logits (B, A) float32."""
        return self.linear(embeddings.transpose(0, 1))[:, :, 0].T.float()


class AttributeClassifiers(nn.Module):
    """logits_a = U_a r_a + c_a, columns in the schema's order.

    Attributes differ in their number of values. Weights are padded to the largest, so that one
    batched product computes all; the padding's columns are unused.
    """

    columns: Tensor

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        longest = max(schema.sizes)
        self.linear = BatchedLinear(len(schema.sizes), width, longest)
        places = [a * longest + j for a, size in enumerate(schema.sizes) for j in range(size)]
        self.register_buffer("columns", torch.tensor(places), persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (B, A, D) to logits (B, V) float32."""
        padded = self.linear(embeddings.transpose(0, 1)).transpose(0, 1)
        return padded.flatten(1).index_select(1, self.columns).float()
